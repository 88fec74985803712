"""Settings of PA-ResSeg. Torch-free."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from hepar.systems.baselines.complete_study_settings import (
    CompleteStudySettings,
    PhaseName,
    Sequence,
)


class PaRessegSettings(CompleteStudySettings):
    """Xu Y. et al., Medical Physics 2021; see `system.py`.

    Attributes:
        slice_offsets_mm: one slice by default; each is one input channel of a phase's encoder.
        up_width: channels that each scale brings to the final layers.
        pa_sum_axis: axis of the attention whose sum scales the channels of a phase: `last` as in
            the authors' code, where the scale is a constant, or `first`, where it depends on the
            images (see `phase_attention.py`).
    """

    stride: ClassVar[int] = 32

    name: Literal["pa_resseg"] = "pa_resseg"

    slice_offsets_mm: Annotated[tuple[float, ...], Sequence, Field(min_length=1)] = (0.0,)
    up_width: Annotated[int, Field(ge=1)] = 16
    pa_sum_axis: Literal["last", "first"] = "last"

    @property
    def reference(self) -> PhaseName:
        """The phase that attends to the others: PV, else DL, else ART, else NC."""
        order: tuple[PhaseName, ...] = ("PV", "DL", "ART", "NC")
        return next(phase for phase in order if phase in self.phases)

    @classmethod
    def preset(cls, name: str) -> PaRessegSettings:
        """A named configuration: `paper`, `official`, `reduced` or `toy`.

        Raises:
            KeyError: no such preset.
        """
        return cls.model_validate(PRESETS[name])


PRESETS: dict[str, dict[str, object]] = {
    # 18.18 M parameters.
    "paper": {"base_width": 32},
    # What the training script of the authors' code sets: 64 channels, images of three channels,
    # patches of 224. Whether the three are slices or one gray image thrice, it does not say.
    "official": {"base_width": 64, "slice_offsets_mm": (-0.5, 0.0, 0.5), "patch": (224, 224)},
    # The slices of the comparison in SAM + URIM, half the width, for one modest GPU.
    "reduced": {"base_width": 16, "slice_offsets_mm": (-0.5, 0.0, 0.5), "patch": (128, 128)},
    # For tests and CPUs.
    "toy": {
        "base_width": 8,
        "up_width": 8,
        "slice_offsets_mm": (-0.5, 0.0, 0.5),
        "patch": (128, 128),
    },
}
