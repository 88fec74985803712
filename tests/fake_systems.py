"""Systems whose answer is a known function of the input, for tests of what surrounds a network."""

from __future__ import annotations

import torch
from torch import nn

from hepar.study import LESION_TYPES
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


TYPED_CLASSES = ("background", *LESION_TYPES, "liver")


class PaintedTypes(Echo):
    """A typed system whose map is painted in HU: 10 k + m is class k, by m tenths class k + 1.

    The window is [0, 100] HU, so 0 is background, 10 `hcc`, 14 six tenths of it and four of `icc`,
    and 90 liver.
    """

    def __init__(self) -> None:
        super().__init__(spec_3d(class_names=TYPED_CLASSES))

    def decode(self, outputs: torch.Tensor) -> torch.Tensor:
        tens = (outputs.clamp(0, 1) * 10).clamp(max=9)
        first = tens.floor().long()
        share = (tens - first).unsqueeze(1)
        last = len(TYPED_CLASSES) - 1
        planes = torch.arange(last + 1).reshape(1, -1, *(1 for _ in outputs.shape[1:]))
        here = (planes == first.unsqueeze(1)).float()
        above = (planes == (first + 1).clamp(max=last).unsqueeze(1)).float()
        return (1 - share) * here + share * above
