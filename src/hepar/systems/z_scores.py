"""Intensity normalization as nnU-Net's for CT: HU clipped to a window, then z-scores, by phase.

Isensee F. et al., nnU-Net, Nature Methods 18, 2021, Methods. Window, mean and standard deviation
are those of the foreground of training.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hepar.systems.planned_settings import PlannedSettings


class ZScores(nn.Module):
    """From the window that images arrive in, scaled to [0, 1], to z-scores of each phase.

    Args:
        settings: windows, means and standard deviations in HU.
    """

    low: Tensor
    high: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, settings: PlannedSettings) -> None:
        super().__init__()
        self.window_hu = settings.widest_window_hu
        lows, highs = zip(*settings.windows_hu, strict=True)
        for name, values in (
            ("low", lows),
            ("high", highs),
            ("mean", settings.means_hu),
            ("std", settings.stds_hu),
        ):
            # Known from the settings: not among the weights.
            self.register_buffer(name, torch.tensor(values), persistent=False)

    def forward(self, image: Float[Tensor, "b p 1 z y x"]) -> Float[Tensor, "b p 1 z y x"]:
        """Of HU clipped to each phase's window; what is NaN stays so."""
        widest_low, widest_high = self.window_hu
        hu = image * (widest_high - widest_low) + widest_low
        low, high, mean, std = (
            values.view(-1, 1, 1, 1, 1) for values in (self.low, self.high, self.mean, self.std)
        )
        return (hu.clamp(low, high) - mean) / std
