"""What networks of a plan of nnU-Net's have in common: what they are shown, and its z-scores.

Isensee F. et al., nnU-Net, Nature Methods 18, 2021, Methods. HU are clipped to a window and made
z-scores, phase by phase; window, mean and standard deviation are those of the foreground of
training.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hepar.systems.base import InputSpec
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


def planned_spec(
    settings: PlannedSettings, class_names: tuple[str, ...], *, needs_all_phases: bool
) -> InputSpec:
    """What such a network sees: whole images, in windows of the patch's size.

    Args:
        settings: the plan.
        class_names: of its probabilities, background first.
        needs_all_phases: it cannot lack a phase.
    """
    return InputSpec(
        dims=3,
        phases=settings.phases,
        class_names=class_names,
        windows_hu=(settings.widest_window_hu,),
        slice_offsets_mm=(0.0,),
        spacing_mm=settings.spacing_mm,
        patch=settings.patch,
        stride=max(settings.divisor),
        needs_liver=False,
        needs_all_phases=needs_all_phases,
        window=settings.patch,
        whole_windows=True,
        axis_strides=settings.divisor,
    )


def check_image(
    settings: PlannedSettings,
    image: Float[Tensor, "b p 1 z y x"],
    present: Bool[Tensor, "b p"],
) -> None:
    """Refuse what the network of a plan cannot be shown.

    Raises:
        ValueError: other phases than the plan's, or a size that is not a multiple of its strides.
    """
    phases, divisor = settings.phases, settings.divisor
    if image.shape[1] != len(phases) or present.shape != image.shape[:2]:
        raise ValueError(
            f"expected {len(phases)} phases {phases}, got an image of "
            f"{tuple(image.shape)} and presence of {tuple(present.shape)}"
        )
    if any(size % step for size, step in zip(image.shape[3:], divisor, strict=True)):
        raise ValueError(f"spatial sizes {tuple(image.shape[3:])} not multiples of {divisor}")
