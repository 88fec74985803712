"""What a case of the hazard catalogue asks of a reader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from synthetic_dicom import Scene, Slice, save

# Where the product had a name for a thing before the catalogue gave it one, the product's stays.
HOUSE_CODES = {
    "E_MIXED_PATIENTS": "E_SEVERAL_PATIENTS",
    "W_DUP_INSTANCE": "W_DUPLICATE_SLICE",
    "E_UID_CONFLICT": "E_DUPLICATE_SLICE",
    "W_DROPPED_SLICES": "W_OTHER_ORIENTATION",
    "E_MIXED_MATRIX": "E_MIXED_GEOMETRY",
    "E_UNSUPPORTED_TS": "E_UNSUPPORTED_SYNTAX",
}

Outcome = Literal["read", "refused", "set aside"]


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        id: its id in the catalogue.
        level: what the catalogue calls it.
        code: the catalogue's code, empty where nothing has to be said.
        build: writes the folder.
        outcome: `read`, every volume is right; `refused`, the study is; `set aside`, a file is
            refused with the code and the study beside it is right.
        tolerance_mm: how far a voxel may lie from its pixel.
        resampled: whether a right volume is on other voxels than the images.
    """

    id: str
    level: Literal["HANDLE", "WARN", "ERROR", "REJECT"]
    code: str
    build: Callable[[Path], Scene]
    outcome: Outcome = "read"
    tolerance_mm: float = 0.01
    resampled: bool = False

    @property
    def house_code(self) -> str:
        """The code the product says."""
        return HOUSE_CODES.get(self.code, self.code)


def lone(slices: list[Slice], folder: Path, names: list[str] | None = None) -> Scene:
    """Save one volume."""
    save(slices, folder, names)
    return Scene([slices])
