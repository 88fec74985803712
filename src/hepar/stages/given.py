"""Stages 5 and 6 where a person gives the masks: read, brought onto the reference, and measured.

A mask that lies on the voxels of a phase makes that phase the reference, so that nothing drawn is
interpolated and HU are taken where it was drawn; phases that share their voxels cannot be told
apart, and the usual reference comes first. Any other mask is brought onto the reference by world
coordinates, to the nearest voxel, if all of it lies in that series. Nobody says how probable a
given lesion is, so it has no confidence.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer, UInt16
from numpy.typing import NDArray

from hepar.data.cohort import SAME_VOXELS
from hepar.data.importers.placing import liver_share, tumor_apart
from hepar.errors import HeparError, InputRefused
from hepar.geometry import Grid, canonical
from hepar.infer.calibrate import LiverCalibration
from hepar.infer.components import components
from hepar.infer.lesion_map import measured_map, numbered
from hepar.infer.liver_extent import BOX_MARGIN_MM, extent_doubts
from hepar.io.nifti import histogram, read_label
from hepar.io.privacy import Mask, names_in, public_name
from hepar.io.refusal import refuse
from hepar.preprocess import liver_box
from hepar.provenance import sha256_file
from hepar.resampling import resample
from hepar.study import (
    LIVER,
    REFERENCE_ORDER,
    TUMOR,
    AlignedStudy,
    LesionMap,
    LiverCase,
    PhasedStudy,
    Volume,
)

_STAGE = "given"
# Share of a mask that has to lie within the series it is brought onto.
_MIN_INSIDE = 0.99
# Shares of a liver with a liver's HU: below the first it is none, below the second it is doubtful.
_MIN_LIKE_LIVER, _USUAL_LIKE_LIVER = 0.5, 0.8
# Of the liver: a label 1 that covers more, in a mask of the labels 1 and 2 alone, is the organ.
_ORGAN_SHARE = 0.5
_MAX_POINTS, _MAX_LISTED = 200_000, 8

Source = Path | str | Volume


@dataclass(frozen=True)
class GivenMask:
    """A mask that somebody gave.

    Attributes:
        volume: non-negative whole numbers on the mask's own voxels.
        sha256: of its file; of array and grid where it came as an array.
        name: for messages; it names no patient.
    """

    volume: Volume
    sha256: str
    name: str


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
        liver: NIfTI file or labels: 0 and one other value, or a label map (1 and 2 are the organ).
        tumor: NIfTI file or labels: ids of lesions, or a mask of one value, or a label map; the
            label map is read once where `liver` is the same.

    Raises:
        InputRefused: `E_MASK_FORMAT`, `E_MASK_VALUES`, `E_MASK_EMPTY`, or as `io.nifti.read_label`.
    """
    if liver is not None and _same(liver, tumor):
        mask = _read(liver, "mask")
        values = _values(mask)
        if values[-1] > TUMOR:
            raise _wrong_values(mask)
        if LIVER not in values:
            raise refuse("E_MASK_EMPTY", f"There is no liver (label 1) in {mask.name}.", _STAGE)
        return Given(mask, mask)
    organ = None if liver is None else _read(liver, "liver mask")
    lesions = None if tumor is None else _read(tumor, "tumor mask")
    if organ is not None and len(values := _values(organ)) > 1 and values != [LIVER, TUMOR]:
        raise _wrong_values(organ)
    if lesions is not None and _values(lesions)[-1] > np.iinfo(np.uint16).max:
        raise _wrong_values(lesions)
    return Given(organ, lesions)


def drawn_on(phased: PhasedStudy, given: Given) -> PhasedStudy:
    """The study with the phase as its reference whose voxels the lesions, else the liver, lie on.

    Args:
        phased: as read or harmonized; its `source_grids` are compared.
        given: masks; without any, or where they lie on no phase's voxels, nothing changes.
    """
    mask = given.tumor or given.liver
    if mask is None:
        return phased
    there = _axial(mask.volume.grid)
    for phase in REFERENCE_ORDER:
        if phase in phased.volumes and _lies_on(there, _axial(phased.source_grids[phase])):
            return replace(phased, drawn_on=phase)
    return phased


def given_liver(aligned: AlignedStudy, mask: GivenMask) -> LiverCase:
    """The liver as it was given, in place of `find_liver`.

    Args:
        aligned: registered phases.
        mask: from `read_given`.

    Returns:
        The mask on the reference grid and its box. Warnings: `W_MASK_RESAMPLED`, `W_MASK_HU`,
        `W_LIVER_TRUNCATED`, `W_LIVER_VOLUME`.

    Raises:
        InputRefused: `E_GRID_MISMATCH`: it lies elsewhere; `E_MASK_IMAGE`: what it covers is no
            liver; `E_MASK_EMPTY`: nothing is left of it on the reference's voxels.
    """
    array, where, warnings = _placed(mask, aligned)
    liver = array > 0
    box = liver_box(liver, aligned.grid, BOX_MARGIN_MM)
    if box is None:
        raise refuse("E_MASK_EMPTY", f"No voxel of the series lies in {mask.name}.", _STAGE)
    liver_ml = float(liver.sum()) * aligned.grid.voxel_ml
    if liver_ml < LiverCalibration().min_volume_ml:
        raise refuse("E_MASK_IMAGE", f"The liver in {mask.name} has {liver_ml:.1f} ml.", _STAGE)
    share = liver_share(aligned.volumes[aligned.reference].array[box.slices], liver[box.slices])
    percent = f"{100 * share:.0f} % of {mask.name} has a liver's HU"
    if share < _MIN_LIKE_LIVER:
        raise refuse("E_MASK_IMAGE", f"Only {percent}.", _STAGE)
    if share < _USUAL_LIKE_LIVER:
        warnings = (*warnings, f"W_MASK_HU: {percent}; it may lie beside the organ")
    doubts = extent_doubts(liver, aligned.grid, liver_ml)
    return LiverCase(aligned, liver, box, liver_ml, (*warnings, *doubts), f"mask {where}")


def given_lesions(case: LiverCase, given: Given) -> tuple[LiverCase, LesionMap]:
    """The lesions as they were given, measured as found ones are, in place of `find_lesions`.

    Args:
        case: the liver, found or given.
        given: with a tumor mask.

    Returns:
        The liver with the lesions as part of it, and the lesions. Ids stay; pieces of a mask
        without ids are numbered from the largest. Warnings: `W_MASK_RESAMPLED`,
        `W_TUMOR_OUTSIDE_LIVER`.

    Raises:
        InputRefused: `E_GRID_MISMATCH`: it lies elsewhere, or lesions vanish on the reference's
            voxels; `E_MASK_IMAGE`: no lesion touches the liver.
    """
    mask = given.tumor
    assert mask is not None
    array, where, warnings = _placed(mask, case.aligned)
    instances, kind = _instances(array, case.liver, labels=mask is given.liver)
    case, apart_ml = _around(case, instances > 0)
    if apart_ml:
        text = f"{apart_ml:.1f} ml of the given tumor touch no liver and are measured all the same"
        warnings = (*warnings, f"W_TUMOR_OUTSIDE_LIVER: {text}")
    found = measured_map(case, None, instances[case.box.slices])
    told = tuple(w for w in warnings if w not in case.warnings)
    return case, replace(found, warnings=told, given=f"{kind}, {where}")


def _same(one: Source, other: Source | None) -> bool:
    if isinstance(one, Volume) or isinstance(other, Volume) or other is None:
        return one is other
    return Path(one).resolve() == Path(other).resolve()


def _read(source: Source, name: str) -> GivenMask:
    """A mask that is not empty."""
    if isinstance(source, Volume):
        array, grid = _whole(source.array, name), source.grid
        digest = hashlib.sha256(f"{grid} {array.dtype}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
        mask = GivenMask(Volume(array, grid), digest.hexdigest(), f"the {name}")
    else:
        mask = _read_file(Path(source))
    if not mask.volume.array.any():
        raise refuse("E_MASK_EMPTY", f"No voxel of {mask.name} is set.", _STAGE)
    return mask


def _read_file(path: Path) -> GivenMask:
    """A mask on disk, whose name may name a patient."""
    try:
        if path.is_dir() or _is_dicom(path):
            raise refuse("E_MASK_FORMAT", f"{path.name} is no NIfTI file.", _STAGE)
        return GivenMask(read_label(path), sha256_file(path), public_name(path.name))
    except HeparError as error:
        raise Mask(names_in([path])).on_error(error) from None


def _is_dicom(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _whole(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Labels of an array that came without a file."""
    if array.dtype == np.bool_:
        return array.astype(np.uint8)
    if array.dtype.kind not in "iu" or array.min() < 0:
        words = f"The {name} is of {array.dtype} and holds {histogram(array)}."
        raise refuse("E_LABEL_VALUES", words, _STAGE)
    return array


def _values(mask: GivenMask) -> list[int]:
    """The labels above 0 that a mask holds, ascending."""
    found: set[int] = set()
    for plane in mask.volume.array:
        found.update(np.unique(plane[plane > 0]).tolist())
    return sorted(found)


def _wrong_values(mask: GivenMask) -> InputRefused:
    values = _values(mask)
    more = f" and {len(values) - _MAX_LISTED} more" if len(values) > _MAX_LISTED else ""
    listed = ", ".join(map(str, values[:_MAX_LISTED]))
    return refuse("E_MASK_VALUES", f"Labels {listed}{more} stand in {mask.name}.", _STAGE)


def _axial(grid: Grid) -> Grid:
    return canonical(np.broadcast_to(np.uint8(0), grid.shape), grid)[1]


def _lies_on(mask: Grid, target: Grid) -> bool:
    return mask.is_close(target, tol_mm=SAME_VOXELS * min(target.spacing_mm))


def _placed(
    mask: GivenMask, aligned: AlignedStudy
) -> tuple[NDArray[np.integer], str, tuple[str, ...]]:
    """A mask on the reference grid, where it lay in words, and a warning if it was resampled."""
    turned, there = canonical(mask.volume.array, mask.volume.grid)
    target, phase = aligned.grid, aligned.reference.long_name
    if _lies_on(there, target):
        return np.ascontiguousarray(turned), f"on the voxels of the {phase} series", ()
    inside = _share_inside(turned > 0, there, target)
    if inside < _MIN_INSIDE:
        sizes = " and ".join(f"{grid.shape} voxels" for grid in (there, target))
        words = f"{100 * inside:.0f} % of {mask.name} lies within the {phase} series ({sizes})."
        raise refuse("E_GRID_MISMATCH", words, _STAGE)
    found = resample(turned, there, target, order=0, fill=0)
    lost = set(_values(mask)) - set(_values(replace(mask, volume=Volume(found, target))))
    if lost:
        words = f"Of {mask.name} the labels {sorted(lost)} vanish on the {phase} series' voxels."
        raise refuse("E_GRID_MISMATCH", words, _STAGE)
    text = (
        f"W_MASK_RESAMPLED: {mask.name} lies on no phase's voxels; those of the {phase} series "
        "took the nearest label by world coordinates"
    )
    return found, f"brought onto the voxels of the {phase} series", (text,)


def _share_inside(mask: Bool[np.ndarray, "z y x"], grid: Grid, target: Grid) -> float:
    """Share of a mask whose voxel centers lie within another grid; of many voxels, every n-th."""
    found = np.argwhere(mask)
    points = np.asarray(found[:: max(1, len(found) // _MAX_POINTS)], dtype=np.float64)
    index = target.world_to_index(grid.index_to_world(points))
    inside = (index >= -0.5) & (index <= np.asarray(target.shape) - 0.5)
    return float(inside.all(axis=1).mean())


def _instances(
    array: Integer[np.ndarray, "z y x"], liver: Bool[np.ndarray, "z y x"], *, labels: bool
) -> tuple[UInt16[np.ndarray, "z y x"], str]:
    """Ids of the lesions, and how the mask was read.

    Args:
        array: the mask on the reference grid.
        liver: the organ.
        labels: whether it is known to be a label map.
    """
    values = sorted({int(v) for plane in array for v in np.unique(plane[plane > 0])})
    organ = array == LIVER
    fills = values == [LIVER, TUMOR] and int((organ & liver).sum()) > _ORGAN_SHARE * liver.sum()
    if not (labels or fills) and len(values) > 1:
        return array.astype(np.uint16), f"{len(values)} lesions by their ids"
    tumor = array == TUMOR if labels or fills else array > 0
    pieces, found = components(np.ascontiguousarray(tumor))
    kind = "label 2 of a label map" if labels or fills else "a mask without ids"
    count = f"{len(found)} connected piece{'' if len(found) == 1 else 's'}"
    return numbered(pieces, found), f"{kind}, {count}"


def _around(case: LiverCase, tumor: Bool[np.ndarray, "z y x"]) -> tuple[LiverCase, float]:
    """The liver with the lesions as part of it, and how much of them touches no liver, in ml."""
    grid = case.aligned.grid
    label = case.liver.astype(np.uint8)
    label[tumor] = TUMOR
    apart = tumor_apart(label)
    if apart and apart == int(tumor.sum()):
        raise refuse("E_MASK_IMAGE", "None of the given tumor touches the liver.", _STAGE)
    liver = label > 0
    box = liver_box(liver, grid, BOX_MARGIN_MM)
    assert box is not None
    liver_ml = float(liver.sum()) * grid.voxel_ml
    return replace(case, liver=liver, box=box, liver_ml=liver_ml), apart * grid.voxel_ml
