"""Every switch of PLAN, torch-free, so that recipes can be read without a network."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hepar.systems.planned_settings import (
    Count,
    PhaseName,
    PlannedSettings,
    Positive,
    Sequence,
    Sizes,
)

NonNegative = Annotated[float, Field(ge=0.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class PlanSettings(PlannedSettings):
    """Yan K. et al., PLAN, MICCAI 2023, as LIDIA's Table 1 compares with it.

    Attributes:
        phases: channels of the input; none may be absent.
        branches: what is trained and answers: `all`, or the `pixel` branch alone, which is the
            first of two stages. The second starts from its weights (`schedule.initial_weights`).
        queries, width, heads, feedforward, layers, memory_levels: of pixel decoder and mask
            transformer, as `lidia/settings.py` has them.
        patient_width, patient_heads, patient_feedforward, patient_blocks: of the patient branch.
        patient_grid: places, (z, y, x), that a level of the pixel decoder is averaged over.
        patient_levels: of the encoder, at which the branch looks in turn.
        pixel_weight, mask_weight, class_weight, patient_weight, consistency_weight: of the terms of
            the loss; those of masks (cross-entropy and Dice) and classes are of the matching too.
        no_object_weight: of the cross-entropy of the queries' classes.
        points, oversample, uncertain_share, fg_sample_ratio: how masks are sampled, as
            `lidia/settings.py` has them.
        dice_smooth: of the Dice loss of the pixel branch, in voxels.
    """

    name: Literal["plan"] = "plan"

    phases: Annotated[tuple[PhaseName, ...], Sequence] = ("NC", "ART", "PV")
    spacing_mm: Annotated[tuple[Positive, Positive, Positive], Sequence] | None = (2.47, 1.9, 1.9)
    patch: Sizes = (64, 128, 128)

    branches: Literal["all", "pixel"] = "all"
    queries: Count = 50
    width: Annotated[int, Field(ge=6)] = 64
    heads: Count = 8
    feedforward: Count = 512
    layers: Count = 3
    memory_levels: Annotated[tuple[Count, ...], Sequence, Field(min_length=1)] = (4, 3, 2)

    patient_width: Annotated[int, Field(ge=6)] = 128
    patient_heads: Count = 8
    patient_feedforward: Count = 512
    patient_blocks: Count = 4
    patient_grid: Sizes = (4, 6, 8)
    patient_levels: Annotated[tuple[Count, ...], Sequence, Field(min_length=1)] = (4, 2)

    pixel_weight: NonNegative = 2.0
    mask_weight: NonNegative = 5.0
    class_weight: NonNegative = 2.0
    patient_weight: NonNegative = 1.0
    consistency_weight: NonNegative = 0.1
    no_object_weight: Positive = 0.1
    points: Annotated[int, Field(ge=4)] = 12544
    oversample: Annotated[float, Field(ge=1.0)] = 3.0
    uncertain_share: Share = 0.75
    fg_sample_ratio: Share = 0.0002
    dice_smooth: Positive = 1e-5

    @model_validator(mode="after")
    def _network_agrees(self) -> PlanSettings:
        for name, heads in (("width", self.heads), ("patient_width", self.patient_heads)):
            width = getattr(self, name)
            if width % 2 or width % heads:
                raise ValueError(f"{name} {width} must be even, and a multiple of {heads} heads")
        for name in ("memory_levels", "patient_levels"):
            if max(getattr(self, name)) >= len(self.channels):
                raise ValueError(f"{name} {getattr(self, name)} of {len(self.channels)} levels")
        if self.uncertain_share + self.fg_sample_ratio > 1.0:
            raise ValueError("uncertain_share and fg_sample_ratio are shares of the same points")
        return self

    @classmethod
    def preset(cls, name: str) -> PlanSettings:
        """A named configuration of `PRESETS`.

        Raises:
            KeyError: no such preset.
        """
        return cls.model_validate(PRESETS[name])


# As in `lidia/settings.py`, preset by preset, so that rows of its tables differ by their method.
_PHANTOMS: dict[str, object] = {"spacing_mm": None, "fg_sample_ratio": 0.05}
PRESETS: dict[str, dict[str, object]] = {
    "paper": {},
    "reduced": {
        "patch": (32, 128, 128),
        "channels": (16, 32, 64, 128, 160, 160),
        "strides": ((2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)),
        "width": 32,
        "heads": 4,
        "feedforward": 256,
        "patient_width": 64,
        "patient_heads": 4,
        "patient_feedforward": 256,
        **_PHANTOMS,
    },
    "toy": {
        "patch": (32, 64, 64),
        "channels": (8, 16, 32, 64, 80),
        "strides": ((2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)),
        "kernels": ((3, 3, 3),) * 5,
        "width": 16,
        "heads": 2,
        "feedforward": 128,
        "patient_width": 32,
        "patient_heads": 2,
        "patient_feedforward": 128,
        "points": 3136,
        **_PHANTOMS,
    },
}
