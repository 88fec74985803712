"""Settings of the coarse liver network. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

CONTEXT_CLASSES = (
    "other",
    "liver",
    "spleen",
    "kidney",
    "heart",
    "gut",
    "vessels",
    "lung",
    "bone",
    "muscle",
    "fat",
)


class ContextUnet3dSettings(BaseModel):
    """A coarse 3D U-Net that names the liver and the organs around it.

    Attributes:
        name: the system.
        widths: channels of each level, finest first.
        spacing_mm: isotropic working spacing (z, y, x).
        patch: training patch and inference window, in voxels of `spacing_mm`.
        windows_hu: the two intensity channels: soft tissue, and everything.
        liver_weight: weight of the liver in the soft Dice mean; context classes weigh 1.
        reference_phase: name under which the one input phase is filed; any phase may be given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Literal["context_unet3d"] = "context_unet3d"
    widths: tuple[int, ...] = Field(default=(12, 24, 48, 96), min_length=2)
    spacing_mm: tuple[float, float, float] = (5.0, 5.0, 5.0)
    patch: tuple[int, int, int] = (48, 64, 64)
    windows_hu: tuple[tuple[float, float], ...] = ((-160.0, 280.0), (-1000.0, 1000.0))
    liver_weight: float = Field(default=5.0, gt=0)
    reference_phase: Literal["NC", "ART", "PV", "DL"] = "PV"

    @classmethod
    def preset(cls, name: str) -> ContextUnet3dSettings:
        """Settings by name: `coarse` (shipped, 0.82 M parameters) or `tiny` (tests).

        Raises:
            KeyError: no preset of that name.
        """
        return cls.model_validate(PRESETS[name])


PRESETS: dict[str, dict[str, object]] = {
    "coarse": {},
    "tiny": {"widths": (4, 8), "patch": (16, 16, 16)},
}
