"""Settings of MC-FCN. Torch-free."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from hepar.systems.baselines.complete_study_settings import CompleteStudySettings, Sequence

Depths = tuple[
    Annotated[int, Field(ge=1)],
    Annotated[int, Field(ge=1)],
    Annotated[int, Field(ge=1)],
    Annotated[int, Field(ge=1)],
    Annotated[int, Field(ge=1)],
]


class McFcnSettings(CompleteStudySettings):
    """Sun et al., 2017, in our reading; see `system.py`. Defaults are those of VGG-16.

    Attributes:
        base_width: channels of the first stage; the five have 1, 2, 4, 8, 8 times as many.
        depths: 3x3 convolutions of each stage.
        head_width: channels of the two layers after the last stage (fc6, fc7).
        head_kernel: kernel of the first of them.
        dropout: after either.
    """

    stride: ClassVar[int] = 32

    name: Literal["mc_fcn"] = "mc_fcn"

    base_width: Annotated[int, Field(ge=4)] = 64
    depths: Annotated[Depths, Sequence] = (2, 2, 3, 3, 3)
    head_width: Annotated[int, Field(ge=1)] = 4096
    head_kernel: Literal[1, 3, 5, 7] = 7
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5

    @classmethod
    def preset(cls, name: str) -> McFcnSettings:
        """A named configuration: `paper`, `reduced` or `toy`.

        Raises:
            KeyError: no such preset.
        """
        return cls.model_validate(PRESETS[name])


PRESETS: dict[str, dict[str, object]] = {
    # VGG-16, the trunk of the FCN that the paper builds on: 268.6 M parameters with two phases,
    # nine tenths of them in fc6 and fc7.
    "paper": {},
    # Half the width, two convolutions a stage, and no head of 4096 channels, for one modest GPU.
    "reduced": {
        "base_width": 32,
        "depths": (2, 2, 2, 2, 2),
        "head_width": 256,
        "head_kernel": 3,
        "dropout": 0.0,
        "patch": (128, 128),
    },
    # For tests and CPUs.
    "toy": {
        "base_width": 8,
        "depths": (2, 2, 2, 2, 2),
        "head_width": 64,
        "head_kernel": 3,
        "dropout": 0.0,
        "patch": (128, 128),
    },
}
