"""What a case of the hazard catalogue asks of a reader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from synthetic_dicom import Scene, Slice, save

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


def lone(slices: list[Slice], folder: Path, names: list[str] | None = None) -> Scene:
    """Save one volume."""
    save(slices, folder, names)
    return Scene([slices])
