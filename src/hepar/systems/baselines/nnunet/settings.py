"""Settings of nnU-Net. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from hepar.systems.planned_settings import PHASES, PlannedSettings, Positive


class NnunetSettings(PlannedSettings):
    """A plan of nnU-Net's, and its loss; the batch size belongs to the schedule.

    Attributes:
        fusion: each phase is a channel of the input (`channels`), or the first level of the encoder
            is a stem that takes any of them (LIDIA, Table 2): `hemis`, `convlstm`, `ifm`.
        classes: background, liver and `tumor`; or, of tumor, one class for each of the `types` of
            `study.LESION_TYPES`.
        deep_supervision: every level of the decoder but the coarsest is trained, with weights that
            halve from level to level and sum to 1.
        coarsest_head: the coarsest level is trained too, with half the weight of the next finer.
        batch_dice: the Dice loss takes the batch for one volume; False takes the mean over samples.
        dice_smooth: added to numerator and denominator of each Dice, in voxels.
    """

    name: Literal["nnunet"] = "nnunet"
    fusion: Literal["channels", "hemis", "convlstm", "ifm"] = "channels"
    classes: Literal["tumor", "types"] = "tumor"
    deep_supervision: bool = True
    coarsest_head: bool = False
    batch_dice: bool = False
    dice_smooth: Positive = 1e-5

    @model_validator(mode="after")
    def _coarsest_is_supervised(self) -> NnunetSettings:
        if self.coarsest_head and not self.deep_supervision:
            raise ValueError("coarsest_head needs deep_supervision")
        return self

    @classmethod
    def preset(cls, name: str) -> NnunetSettings:
        """A named configuration of `PRESETS`.

        Raises:
            KeyError: no such preset.
        """
        return cls.model_validate(PRESETS[name])


# The liver data of the Medical Segmentation Decathlon are the training cases of LiTS. Spacing,
# patch and the percentiles, mean and standard deviation of their foreground stand in MONAI's
# tutorial of a dynamic U-Net, which follows nnU-Net (1 x 0.77 x 0.77 mm, 128 cubed, -17 to 201,
# 99.40, 39.36); nnU-Net's own supplement was not at hand.
_LOWRES: dict[str, object] = {"spacing_mm": (2.47, 1.9, 1.9)}
# LIDIA's Table 2 has no setting but nnU-Net's. Spacing, patch and intensities are those of
# `lidia/settings.py`; a head at every level of the decoder is nnU-Net's own.
_LIDIA: dict[str, object] = {
    **_LOWRES,
    "phases": ("NC", "ART", "PV"),
    "patch": (64, 128, 128),
    "classes": "types",
    "coarsest_head": True,
}
_ALL_PHASES: dict[str, object] = {**_LIDIA, "phases": PHASES}
PRESETS: dict[str, dict[str, object]] = {
    # A cascade ends here, so that nnU-Net's Dice is of the batch.
    "lits_3d_fullres": {"batch_dice": True},
    # DPC-Net's text has it. Version 2 of nnU-Net comes to 2.43 x 1.86 x 1.86 mm, and otherwise
    # to the same (`planning.py`, 131 cases of 432 x 512 x 512 voxels).
    "lits_3d_lowres": _LOWRES,
    # DPC-Net's Table 5 compares with it, and has its spacing and patch.
    "paper": _LOWRES,
    # What the planner makes of such a patch at that spacing, half as wide, on cases as they come.
    "reduced": {
        "spacing_mm": None,
        "patch": (32, 128, 128),
        "channels": (16, 32, 64, 128, 160, 160),
        "strides": ((2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)),
    },
    # The same of a smaller patch, a quarter as wide: for tests and CPUs.
    "toy": {
        "spacing_mm": None,
        "patch": (32, 64, 64),
        "channels": (8, 16, 32, 64, 80),
        "strides": ((2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)),
        "kernels": ((3, 3, 3),) * 5,
    },
    # LIDIA, Table 1, and Table 2 without the delayed phase.
    "lidia": _LIDIA,
    # The other rows of Table 2, with it where a patient has it.
    "lidia_hemis": {**_ALL_PHASES, "fusion": "hemis"},
    "lidia_convlstm": {**_ALL_PHASES, "fusion": "convlstm"},
    "lidia_ifm": {**_ALL_PHASES, "fusion": "ifm"},
}
