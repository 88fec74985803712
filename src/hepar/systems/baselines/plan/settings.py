"""Every switch of PLAN, torch-free, so that recipes can be read without a network."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hepar.systems.lidia.query_settings import (
    REDUCED,
    TOY,
    Levels,
    NonNegative,
    QuerySettings,
)
from hepar.systems.planned_settings import Count, PhaseName, Positive, Sequence, Sizes


class PlanSettings(QuerySettings):
    """Yan K. et al., PLAN, MICCAI 2023, as LIDIA's Table 1 compares with it.

    Attributes:
        phases: channels of the input; none may be absent.
        branches: what is trained and answers: `all`, or the `pixel` branch alone, which is the
            first of two stages. The second starts from its weights (`schedule.initial_weights`).
        patient_width, patient_heads, patient_feedforward, patient_blocks: of the patient branch.
        patient_grid: places, (z, y, x), that a level of the pixel decoder is averaged over.
        patient_levels: of the encoder, at which the branch looks in turn.
        pixel_weight, mask_weight, class_weight, patient_weight, consistency_weight: of the terms of
            the loss; those of masks (cross-entropy and Dice) and classes are of the matching too.
        dice_smooth: of the Dice loss of the pixel branch, in voxels.
    """

    name: Literal["plan"] = "plan"

    phases: Annotated[tuple[PhaseName, ...], Sequence] = ("NC", "ART", "PV")
    branches: Literal["all", "pixel"] = "all"
    patient_width: Annotated[int, Field(ge=6)] = 128
    patient_heads: Count = 8
    patient_feedforward: Count = 512
    patient_blocks: Count = 4
    patient_grid: Sizes = (4, 6, 8)
    patient_levels: Levels = (4, 2)

    pixel_weight: NonNegative = 2.0
    mask_weight: NonNegative = 5.0
    class_weight: NonNegative = 2.0
    patient_weight: NonNegative = 1.0
    consistency_weight: NonNegative = 0.1
    dice_smooth: Positive = 1e-5

    @model_validator(mode="after")
    def _branch_agrees(self) -> PlanSettings:
        if self.patient_width % 2 or self.patient_width % self.patient_heads:
            raise ValueError(
                f"patient_width {self.patient_width} must be even, and a multiple of patient_heads"
            )
        if max(self.patient_levels) >= len(self.channels):
            raise ValueError(f"patient_levels {self.patient_levels} of {len(self.channels)} levels")
        return self

    @classmethod
    def preset(cls, name: str) -> PlanSettings:
        """A named configuration of `PRESETS`.

        Raises:
            KeyError: no such preset.
        """
        return cls.model_validate(PRESETS[name])


# As LIDIA's, preset by preset, so that rows of its tables differ by their method.
PRESETS: dict[str, dict[str, object]] = {
    "paper": {},
    "reduced": {
        **REDUCED,
        "patient_width": 64,
        "patient_heads": 4,
        "patient_feedforward": 256,
    },
    "toy": {**TOY, "patient_width": 32, "patient_heads": 2, "patient_feedforward": 128},
}
