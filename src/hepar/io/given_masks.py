"""Masks that somebody gave: NIfTI, DICOM Segmentation or array, checked for what they hold."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hepar.errors import HeparError, InputRefused
from hepar.io.nifti import histogram, read_label
from hepar.io.privacy import Mask, names_in, public_name
from hepar.io.refusal import refuse
from hepar.io.seg_masks import DrawnOn, SegMasks, is_dicom, read_seg_masks
from hepar.provenance import sha256_file
from hepar.study import LIVER, TUMOR, Volume

_STAGE = "given"
_MAX_LISTED = 8

Source = Path | str | Volume


@dataclass(frozen=True)
class GivenMask:
    """A mask that somebody gave.

    Attributes:
        volume: non-negative whole numbers on the mask's own voxels.
        sha256: of its file; of array and grid where it came as an array.
        name: for messages; it names no patient.
        drawn_on: what a DICOM Segmentation says that it belongs to.
        holds: what its values are known to be: `labels` of a label map, `ids` of lesions.
        note: where it came from, in words.
    """

    volume: Volume
    sha256: str
    name: str
    drawn_on: DrawnOn | None = None
    holds: Literal["", "labels", "ids"] = ""
    note: str = ""


@dataclass(frozen=True)
class Given:
    """Masks of a patient that are not to be sought; one label map for both is the same object.

    Attributes:
        liver: the organ, tumors included.
        tumor: the lesions.
    """

    liver: GivenMask | None = None
    tumor: GivenMask | None = None

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of what was given, for the provenance."""
        found = {"given_liver": self.liver, "given_tumor": self.tumor}
        return {name: mask.sha256 for name, mask in found.items() if mask is not None}


def read_given(liver: Source | None, tumor: Source | None) -> Given:
    """Read masks and check what they hold, before anything slow runs.

    Args:
        liver: NIfTI file or labels: 0 and one other value, or a label map (1 and 2 are the organ);
            or a DICOM Segmentation with a segment of the liver.
        tumor: NIfTI file or labels: ids of lesions, or a mask of one value, or a label map; or a
            DICOM Segmentation with segments of lesions. Where it is the same as `liver`, one label
            map or Segmentation says both.

    Raises:
        InputRefused: `E_MASK_FORMAT`, `E_MASK_VALUES`, `E_MASK_EMPTY`, `E_MASK_SEGMENTS`, or as
            `io.nifti.read_label`.
    """
    if liver is not None and _same(liver, tumor):
        drawn = _read(liver, "mask")
        if isinstance(drawn, Given):
            return Given(_organ(drawn), drawn.tumor)
        values = values_of(drawn)
        if values[-1] > TUMOR:
            raise _wrong_values(drawn)
        if LIVER not in values:
            raise refuse("E_MASK_EMPTY", f"There is no liver (label 1) in {drawn.name}.", _STAGE)
        drawn = replace(drawn, holds="labels")
        return Given(drawn, drawn)
    organ = None if liver is None else _organ(_read(liver, "liver mask"))
    lesions = None if tumor is None else _lesions(_read(tumor, "tumor mask"))
    return Given(organ, lesions)


def values_of(mask: GivenMask) -> list[int]:
    """The labels above 0 that a mask holds, ascending."""
    found: set[int] = set()
    for plane in mask.volume.array:
        found.update(np.unique(plane[plane > 0]).tolist())
    return sorted(found)


def _organ(drawn: GivenMask | Given) -> GivenMask:
    if isinstance(drawn, Given):
        assert drawn.tumor is not None
        if drawn.liver is None:
            words = f"No segment of {drawn.tumor.name} is the liver."
            raise refuse("E_MASK_SEGMENTS", words, _STAGE)
        drawn = drawn.liver
        if not drawn.volume.array.any():
            raise _empty(drawn.name)
    elif len(values := values_of(drawn)) > 1 and values != [LIVER, TUMOR]:
        raise _wrong_values(drawn)
    return drawn


def _lesions(drawn: GivenMask | Given) -> GivenMask:
    if isinstance(drawn, Given):
        assert drawn.tumor is not None
        drawn = drawn.tumor
        if not drawn.volume.array.any():
            raise _empty(drawn.name)
    elif values_of(drawn)[-1] > np.iinfo(np.uint16).max:
        raise _wrong_values(drawn)
    return drawn


def _same(one: Source, other: Source | None) -> bool:
    if isinstance(one, Volume) or isinstance(other, Volume) or other is None:
        return one is other
    return Path(one).resolve() == Path(other).resolve()


def _read(source: Source, name: str) -> GivenMask | Given:
    """A mask that is not empty, or what a Segmentation holds."""
    if isinstance(source, Volume):
        array, grid = _whole(source.array, name), source.grid
        digest = hashlib.sha256(f"{grid} {array.dtype}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
        mask = GivenMask(Volume(array, grid), digest.hexdigest(), f"the {name}")
    else:
        found = _read_file(Path(source))
        if isinstance(found, Given):
            return found
        mask = found
    if not mask.volume.array.any():
        raise _empty(mask.name)
    return mask


def _read_file(path: Path) -> GivenMask | Given:
    """A mask on disk, whose name may name a patient."""
    try:
        if path.is_dir():
            raise refuse("E_MASK_FORMAT", f"{path.name} is a folder.", _STAGE)
        name, digest = public_name(path.name), sha256_file(path) if path.is_file() else ""
        if is_dicom(path):
            return _segments(read_seg_masks(path), digest, name)
        return GivenMask(read_label(path), digest, name)
    except HeparError as error:
        raise Mask(names_in([path])).on_error(error) from None


def _segments(found: SegMasks, digest: str, name: str) -> Given:
    """Liver and lesions of a Segmentation."""
    others = f", {found.left_out} other segments left out" if found.left_out else ""

    def mask(array: NDArray[Any]) -> GivenMask:
        volume, note = Volume(array, found.grid), f"of a DICOM Segmentation{others}"
        return GivenMask(volume, digest, name, found.drawn_on, "ids", note)

    liver = None if found.liver is None else mask(found.liver.astype(np.uint8))
    return Given(liver, mask(found.lesions))


def _empty(name: str) -> InputRefused:
    return refuse("E_MASK_EMPTY", f"No voxel of {name} is set.", _STAGE)


def _whole(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Labels of an array that came without a file."""
    if array.dtype == np.bool_:
        return array.astype(np.uint8)
    if array.dtype.kind not in "iu" or array.min() < 0:
        words = f"The {name} is of {array.dtype} and holds {histogram(array)}."
        raise refuse("E_LABEL_VALUES", words, _STAGE)
    return array


def _wrong_values(mask: GivenMask) -> InputRefused:
    values = values_of(mask)
    more = f" and {len(values) - _MAX_LISTED} more" if len(values) > _MAX_LISTED else ""
    listed = ", ".join(map(str, values[:_MAX_LISTED]))
    return refuse("E_MASK_VALUES", f"Labels {listed}{more} stand in {mask.name}.", _STAGE)
