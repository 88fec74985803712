"""Settings of the multi-phase 3D U-Net. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

PhaseName = Literal["NC", "ART", "PV", "DL"]


class MultiphaseUnet3dSettings(BaseModel):
    """A 3D U-Net that takes whatever phases exist and names liver and tumor.

    Attributes:
        name: the system.
        phases: ordered subset of NC, ART, PV, DL.
        widths: channels of each level, finest first.
        spacing_mm: working spacing (z, y, x).
        patch: training patch in voxels of `spacing_mm`.
        window: largest window at use, in voxels of `spacing_mm`.
        windows_hu: intensity channels of each phase: soft tissue, and the liver's own range.
        small_lesion_ml: tumor voxels of lesions below this volume weigh more in the cross entropy,
            by the square root of the ratio; 0 weighs all alike.
        most_weight: at most this much.
        urim: the logits are refined by a 3D URIM (`systems/sam_urim`), and both are trained.
        urim_width: channels of its LC-Conv layers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Literal["multiphase_unet3d"] = "multiphase_unet3d"
    phases: tuple[PhaseName, ...] = Field(default=("NC", "ART", "PV", "DL"), min_length=1)
    widths: tuple[int, ...] = Field(default=(16, 32, 64, 128), min_length=2)
    spacing_mm: tuple[float, float, float] = (2.0, 1.5, 1.5)
    patch: tuple[int, int, int] = (40, 64, 64)
    window: tuple[int, int, int] = (56, 128, 128)
    windows_hu: tuple[tuple[float, float], ...] = ((-160.0, 280.0), (0.0, 160.0))
    small_lesion_ml: float = Field(default=2.0, ge=0)
    most_weight: float = Field(default=4.0, ge=1)
    urim: bool = False
    urim_width: int = Field(default=16, ge=1)

    @classmethod
    def preset(cls, name: str) -> MultiphaseUnet3dSettings:
        """Settings by name: `lite` (recipes/tumor) or `tiny` (tests).

        Raises:
            KeyError: no preset of that name.
        """
        return cls.model_validate(PRESETS[name])


PRESETS: dict[str, dict[str, object]] = {
    "lite": {},
    "tiny": {"widths": (4, 8), "patch": (16, 16, 16), "spacing_mm": (4.0, 4.0, 4.0)},
}
