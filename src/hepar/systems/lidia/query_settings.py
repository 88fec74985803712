"""What networks whose queries answer with masks have in common: LIDIA, Mask2Former and PLAN.

Torch-free, so that recipes can be read without a network.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from hepar.study import LESION_TYPES
from hepar.systems.planned_settings import Count, PlannedSettings, Positive, Sequence, Sizes

CLASSES = ("background", *LESION_TYPES, "liver")
NonNegative = Annotated[float, Field(ge=0.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Levels = Annotated[tuple[Count, ...], Sequence, Field(min_length=1)]


class QuerySettings(PlannedSettings):
    """Encoder of a plan, pixel decoder, mask transformer, and how its masks are sampled.

    Attributes:
        queries: how many masks are answered.
        width: channels of the pixel decoder, the queries and the masks.
        heads: of attention.
        feedforward: hidden channels of the transformer's perceptrons.
        layers: of the transformer decoder; the i-th attends to `memory_levels[i mod 3]`.
        memory_levels: levels of the encoder whose features of the pixel decoder queries attend to.
        no_object_weight: of "no object" in a cross-entropy of the classes.
        points: voxels that a mask is compared at.
        oversample: candidates for each of these, of which the most uncertain are taken.
        uncertain_share: of the points.
        fg_sample_ratio: share of the points drawn inside the true mask.
    """

    spacing_mm: Annotated[tuple[Positive, Positive, Positive], Sequence] | None = (2.47, 1.9, 1.9)
    patch: Sizes = (64, 128, 128)

    queries: Count = 50
    width: Annotated[int, Field(ge=6)] = 64
    heads: Count = 8
    feedforward: Count = 512
    layers: Count = 3
    memory_levels: Levels = (4, 3, 2)

    no_object_weight: Positive = 0.1
    points: Annotated[int, Field(ge=4)] = 12544
    oversample: Annotated[float, Field(ge=1.0)] = 3.0
    uncertain_share: Share = 0.75
    fg_sample_ratio: Share = 0.0002

    @model_validator(mode="after")
    def _queries_agree(self) -> QuerySettings:
        if self.width % 2 or self.width % self.heads:
            raise ValueError(f"width {self.width} must be even, and a multiple of heads")
        if max(self.memory_levels) >= len(self.channels):
            raise ValueError(f"memory_levels {self.memory_levels} of {len(self.channels)} levels")
        if self.uncertain_share + self.fg_sample_ratio > 1.0:
            raise ValueError("uncertain_share and fg_sample_ratio are shares of the same points")
        return self


# Patch and levels of nnU-Net's plans for such phantoms (`nnunet/settings.py`). Few steps see few
# small lesions: more than two points are drawn inside each.
_PHANTOMS: dict[str, object] = {"spacing_mm": None, "fg_sample_ratio": 0.05}
# Half of every width on phantoms, for comparisons on one GPU.
REDUCED: dict[str, object] = {
    "patch": (32, 128, 128),
    "channels": (16, 32, 64, 128, 160, 160),
    "strides": ((2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)),
    "width": 32,
    "heads": 4,
    "feedforward": 256,
    **_PHANTOMS,
}
# A quarter, for tests and comparisons without a GPU.
TOY: dict[str, object] = {
    "patch": (32, 64, 64),
    "channels": (8, 16, 32, 64, 80),
    "strides": ((2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)),
    "kernels": ((3, 3, 3),) * 5,
    "width": 16,
    "heads": 2,
    "feedforward": 128,
    "points": 3136,
    **_PHANTOMS,
}
