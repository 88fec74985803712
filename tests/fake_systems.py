"""Systems whose answer is a known function of the input, for tests of what surrounds a network."""

from __future__ import annotations

import torch
from torch import nn

from hepar.systems.base import Batch, InputSpec


def spec_2d(**changes: object) -> InputSpec:
    """A 2D spec over PV and ART with one window of [0, 100] HU."""
    settings: dict = {
        "dims": 2,
        "phases": ("ART", "PV"),
        "class_names": ("background", "tumor"),
        "windows_hu": ((0.0, 100.0),),
        "slice_offsets_mm": (0.0,),
        "spacing_mm": None,
        "patch": (32, 32),
        "stride": 8,
        "needs_liver": True,
    }
    return InputSpec(**{**settings, **changes})


def spec_3d(**changes: object) -> InputSpec:
    """A 3D spec over PV with one window of [0, 100] HU."""
    settings: dict = {
        "dims": 3,
        "phases": ("PV",),
        "class_names": ("other", "liver"),
        "windows_hu": ((0.0, 100.0),),
        "slice_offsets_mm": (0.0,),
        "spacing_mm": None,
        "patch": (16, 16, 16),
        "stride": 8,
        "needs_liver": False,
    }
    return InputSpec(**{**settings, **changes})


class Echo(nn.Module):
    """Says that the second class is as probable as its windowed intensity, context included.

    The mean over channels and present phases; a module of activations lets the cost be measured.
    """

    def __init__(self, spec: InputSpec, scale: float = 1.0) -> None:
        super().__init__()
        self.input_spec = spec
        self.weight = nn.Parameter(torch.tensor([scale]))
        self.body = nn.Identity()
        self.seen: list[tuple[tuple[int, ...], torch.Tensor]] = []

    def targets(self, batch: Batch) -> torch.Tensor:
        return batch.label

    def forward(self, image: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        assert all(size % self.input_spec.stride == 0 for size in image.shape[3:])
        self.seen.append((tuple(image.shape), present.clone()))
        mean = image.mean(2)
        shape = (*present.shape, *(1 for _ in image.shape[3:]))
        keep = present.reshape(shape)
        mean = torch.where(keep, mean, torch.zeros(())).sum(1) / keep.sum(1)
        return self.body(mean * self.weight)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - targets).square().mean()

    def decode(self, outputs: torch.Tensor) -> torch.Tensor:
        return torch.stack([1 - outputs, outputs], dim=1)
