"""Settings that the 2D multi-phase baselines share. Torch-free."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PhaseName = Literal["NC", "ART", "PV", "DL"]
PHASES: tuple[PhaseName, ...] = ("NC", "ART", "PV", "DL")
# A YAML list is a list: lax for the container alone, each member stays strict.
Sequence = Field(strict=False)


class CompleteStudySettings(BaseModel):
    """What a slice is, and how it is scored; a system adds its own switches.

    Attributes:
        stride: image sizes must be multiples of this, in pixels.
        phases: the model's phases, an ordered subset of NC, ART, PV, DL.
        window_hu: intensity window scaled to [0, 1].
        slice_offsets_mm: context slices along z, one input channel each; a non-zero offset is at
            least one slice away.
        spacing_mm: (z, y, x); None works on the case's own.
        patch: (y, x) pixels of a training patch.
        needs_liver: voxels outside the liver are set to the lower bound of the window.
        class_names: background first.
        base_width: channels of the first level of an encoder.
        presence_channel: ours: an absent phase is fed as zeros, and every phase has a channel that
            says whether it is there. False, as published, cannot lack a phase.
        loss: cross-entropy, or with a soft Dice term (ours).
        class_weights: of the cross-entropy.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    stride: ClassVar[int]

    phases: Annotated[tuple[PhaseName, ...], Sequence] = ("ART", "PV")
    window_hu: Annotated[tuple[float, float], Sequence] = (-70.0, 180.0)
    slice_offsets_mm: Annotated[tuple[float, ...], Sequence, Field(min_length=1)] = (-0.5, 0.0, 0.5)
    spacing_mm: Annotated[tuple[float, float, float], Sequence] | None = None
    patch: Annotated[tuple[int, int], Sequence] = (512, 512)
    needs_liver: bool = True
    class_names: Annotated[tuple[str, ...], Sequence, Field(min_length=2)] = ("background", "tumor")

    base_width: Annotated[int, Field(ge=4)] = 32
    presence_channel: bool = False

    loss: Literal["ce", "ce_dice"] = "ce"
    class_weights: Annotated[tuple[float, ...], Sequence] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> CompleteStudySettings:
        ordered = tuple(phase for phase in PHASES if phase in self.phases)
        if not self.phases or self.phases != ordered:
            raise ValueError(f"phases must be an ordered subset of {PHASES}, got {self.phases}")
        if self.class_weights is not None and len(self.class_weights) != len(self.class_names):
            raise ValueError(
                f"class_weights has {len(self.class_weights)} entries for "
                f"{len(self.class_names)} classes"
            )
        if any(size < 1 or size % self.stride for size in self.patch):
            raise ValueError(f"patch {self.patch} must be multiples of {self.stride}")
        return self
