"""Settings of MW-UNet. Torch-free."""

from __future__ import annotations

from typing import ClassVar, Literal

from hepar.systems.baselines.complete_study_settings import CompleteStudySettings


class MwUnetSettings(CompleteStudySettings):
    """Wu et al., ICIP 2019, in our reading; see `system.py`. Attributes as in the base class."""

    stride: ClassVar[int] = 16

    name: Literal["mw_unet"] = "mw_unet"

    @classmethod
    def preset(cls, name: str) -> MwUnetSettings:
        """A named configuration: `paper`, `reduced` or `toy`.

        Raises:
            KeyError: no such preset.
        """
        return cls.model_validate(PRESETS[name])


PRESETS: dict[str, dict[str, object]] = {
    # The phases and slices of the comparison in SAM + URIM; base 32 is 12.48 M parameters.
    "paper": {"base_width": 32},
    # Half the width, for one modest GPU.
    "reduced": {"base_width": 16, "patch": (128, 128)},
    # For tests and CPUs.
    "toy": {"base_width": 8, "patch": (128, 128)},
}
