"""Cases beside the catalogue: what scanners and archives write, and two ways to lose a slice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from hazard_case import Case, lone
from random_series import store
from synthetic_dicom import Place, Scene, Slice, Storage, ct_slice, enhanced, save, stack

# Less than half as much again: no slice is missing, the distance changes.
DEPTHS_MM = (*(4.0 * k for k in range(8)), *(32 + 5.5 * k for k in range(7)))


def plain(folder: Path) -> Scene:
    """Nothing is wrong."""
    return lone(stack(), folder)


def two_distances(folder: Path) -> Scene:
    """Slices 4 mm apart, then 5.5 mm."""
    return lone(stack(depths_mm=DEPTHS_MM), folder)


def stored_as(syntax: str) -> Callable[[Path], Scene]:
    """A series in a transfer syntax."""

    def build(folder: Path) -> Scene:
        slices = stack(storage=Storage(bits=12))
        for one in slices:
            store(one, syntax)
        return lone(slices, folder)

    return build


def enhanced_passes(folder: Path) -> Scene:
    """Two passes as frames of one enhanced file."""
    first, second = stack(), stack(acquisition=2, marker_hu=200)
    save([enhanced([*first, *second])], folder)
    return Scene([first, second], (300, 200))


def enhanced_slopes(folder: Path) -> Scene:
    """An enhanced file whose frames have a slope each."""
    slices = stack(storage=lambda k: Storage(slope=(1.0, 0.5, 0.25)[k % 3]))
    save([enhanced(slices)], folder)
    return Scene([slices])


def tilted(degrees: float, n: int = 24) -> list[Slice]:
    """Images of a tilted gantry, 3 mm apart along z."""
    cos, sin = float(np.cos(np.deg2rad(degrees))), float(np.sin(np.deg2rad(degrees)))
    turned = (1.0, 0.0, 0.0, 0.0, cos, -sin)
    return [ct_slice(k, Place((-24.0, -32.0, 3.0 * k), turned)) for k in range(n)]


def enhanced_tilt(folder: Path) -> Scene:
    """An enhanced file of a tilted gantry."""
    slices = tilted(-20.0)
    save([enhanced(slices)], folder)
    return Scene([slices])


def enhanced_compressed(folder: Path) -> Scene:
    """An enhanced file whose frames are JPEG-LS."""
    slices = stack(storage=Storage(bits=12))
    one_file = enhanced(slices)
    store(one_file, "JPEG-LS")
    save([one_file], folder)
    return Scene([slices])


def last_file_cut_short(folder: Path) -> Scene:
    """The last slice ends before the mark that makes it DICOM: nothing inside leaves a gap."""
    slices = stack()
    path = save(slices, folder)[-1]
    path.write_bytes(path.read_bytes()[:60])
    return Scene([slices])


def bytes_inserted(folder: Path) -> Scene:
    """Four bytes too many within the pixels of one file, which then runs on past its end."""
    slices = stack()
    path = save(slices, folder)[5]
    content = path.read_bytes()
    path.write_bytes(content[:-3000] + b"\x07\x01\x09\x02" + content[-3000:])
    return Scene([slices])


def another_image_there(folder: Path) -> Scene:
    """Two images at one position, and nothing tells which is right."""
    slices = stack()
    other = ct_slice(40, slices[5].place, hu=np.roll(slices[5].hu, 3, axis=0))
    save([*slices, other], folder)
    return Scene([slices])


MORE_CASES = (
    Case("X01", "HANDLE", "", plain),
    Case("X02", "WARN", "", two_distances, resampled=True),
    Case("X03", "HANDLE", "", stored_as("JPEG2000")),
    Case("X04", "HANDLE", "", stored_as("RLE")),
    Case("X05", "HANDLE", "", stored_as("JPEG-SV1")),
    Case("X06", "HANDLE", "", stored_as("JPEG-P14-6")),
    Case("X07", "HANDLE", "", stored_as("JPEG-LS")),
    Case("X08", "HANDLE", "", stored_as("deflated")),
    Case("X09", "HANDLE", "", stored_as("big endian")),
    Case("X10", "HANDLE", "", enhanced_passes),
    Case("X11", "HANDLE", "", enhanced_slopes),
    Case("X12", "WARN", "", enhanced_tilt, resampled=True),
    Case("X13", "HANDLE", "", enhanced_compressed),
    Case("X14", "ERROR", "E_TRUNCATED", last_file_cut_short, "refused"),
    Case("X15", "ERROR", "E_MALFORMED", bytes_inserted, "refused"),
    Case("X16", "ERROR", "E_DUPLICATE_SLICE", another_image_there, "refused"),
)
