"""Stages 5 and 6 where a person gives the masks: brought onto the reference, and measured.

A mask that lies on the voxels of a phase makes that phase the reference, so that nothing drawn is
interpolated and HU are taken where it was drawn; phases that share their voxels cannot be told
apart, unless the mask names its series, and the usual reference comes first. Any other mask is
brought onto the reference by world coordinates, to the nearest voxel, if all of it lies in that
series. Nobody says how probable a given lesion is, so it has no confidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Integer, UInt16
from numpy.typing import NDArray

from hepar.data.cohort import SAME_VOXELS
from hepar.data.importers.placing import liver_share, tumor_apart
from hepar.errors import InputRefused
from hepar.geometry import Box, Grid, canonical
from hepar.infer.calibrate import LiverCalibration
from hepar.infer.components import components
from hepar.infer.lesion_map import measured_map, numbered
from hepar.infer.liver_extent import BOX_MARGIN_MM, extent_doubts
from hepar.io.given_masks import Given, GivenMask, values_of
from hepar.io.refusal import refuse
from hepar.io.seg_masks import DrawnOn
from hepar.preprocess import liver_box
from hepar.resampling import resample
from hepar.stages.stored_voxels import series_of
from hepar.study import (
    LIVER,
    REFERENCE_ORDER,
    TUMOR,
    AlignedStudy,
    LesionMap,
    LiverCase,
    Phase,
    PhasedStudy,
    Series,
    Volume,
)

_STAGE = "given"
# Share of a mask that has to lie within the series it is brought onto.
_MIN_INSIDE = 0.99
# Shares of a liver with a liver's HU: below the first it is none, below the second it is doubtful.
_MIN_LIKE_LIVER, _USUAL_LIKE_LIVER = 0.5, 0.8
# Of the liver: a label 1 that covers more, in a mask of the labels 1 and 2 alone, is the organ.
_ORGAN_SHARE = 0.5
_MAX_POINTS = 200_000


def check_belongs(series: Iterable[Series], given: Given) -> None:
    """Find out that a DICOM Segmentation is of another study, before anything slow runs.

    Args:
        series: all that may be used. NIfTI files and arrays have no UIDs: nothing can be known.
        given: masks; others than Segmentations say nothing of where they belong.

    Raises:
        InputRefused: `E_MASK_STUDY`.
    """
    every = [one.tags for one in series if one.tags.get("StudyInstanceUID")]
    for mask in (given.liver, given.tumor):
        if every and mask is not None and mask.drawn_on is not None:
            if all(tags["StudyInstanceUID"] != mask.drawn_on.study for tags in every):
                raise refuse("E_MASK_STUDY", f"{mask.name} belongs to another study.", _STAGE)
            if not any(_in_one_frame(tags, mask.drawn_on) for tags in every):
                raise _elsewhere(mask)


def drawn_on(phased: PhasedStudy, given: Given) -> PhasedStudy:
    """The study with the phase as its reference whose voxels the lesions, else the liver, lie on.

    Args:
        phased: as read or harmonized; its `source_grids` are compared.
        given: masks; without any, or where they lie on no phase's voxels, nothing changes. A
            Segmentation lies on the phase that it names, on whichever voxels.

    Raises:
        InputRefused: `E_MASK_STUDY`, a Segmentation lies in the frame of reference of no phase.
    """
    mask = given.tumor or given.liver
    if mask is None:
        return phased
    phases = [phase for phase in REFERENCE_ORDER if phase in phased.volumes]
    meant = phases if mask.drawn_on is None else _meant(mask, phased, phases)
    there = _axial(mask.volume.grid)
    grids = {phase: _axial(phased.source_grids[phase]) for phase in meant}
    for coincides in (_lies_on, _is_part):
        for phase in meant:
            if coincides(there, grids[phase]):
                return replace(phased, drawn_on=phase)
    return phased if meant == phases else replace(phased, drawn_on=meant[0])


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
    instances, kind = _instances(array, case.liver, mask.holds)
    case, apart_ml = _around(case, instances > 0)
    if apart_ml:
        text = f"{apart_ml:.1f} ml of the given tumor touch no liver and are measured all the same"
        warnings = (*warnings, f"W_TUMOR_OUTSIDE_LIVER: {text}")
    found = measured_map(case, None, instances[case.box.slices])
    told = tuple(w for w in warnings if w not in case.warnings)
    return case, replace(found, warnings=told, given=f"{kind}, {where}")


def _axial(grid: Grid) -> Grid:
    return canonical(np.broadcast_to(np.uint8(0), grid.shape), grid)[1]


def _meant(mask: GivenMask, phased: PhasedStudy, phases: list[Phase]) -> list[Phase]:
    """The phases that a Segmentation may have been drawn on, in their order."""
    assert mask.drawn_on is not None
    found = {phase: series_of(phased, phase) for phase in phases}
    tags = {phase: one.tags for phase, one in found.items() if one and one.tags}
    if not tags:
        return phases
    near = [phase for phase in tags if _in_one_frame(tags[phase], mask.drawn_on)]
    if not near:
        raise _elsewhere(mask)
    named = [p for p in near if tags[p].get("SeriesInstanceUID") in mask.drawn_on.series]
    return named or near


def _in_one_frame(tags: Mapping[str, str], drawn: DrawnOn) -> bool:
    frame = tags.get("FrameOfReferenceUID")
    if frame and drawn.frame_of_reference:
        return frame == drawn.frame_of_reference
    return tags.get("SeriesInstanceUID") in drawn.series


def _elsewhere(mask: GivenMask) -> InputRefused:
    words = f"{mask.name} lies in a frame of reference that no series in use has."
    return refuse("E_MASK_STUDY", words, _STAGE)


def _lies_on(mask: Grid, target: Grid) -> bool:
    return mask.is_close(target, SAME_VOXELS * min(target.spacing_mm))


def _is_part(mask: Grid, target: Grid) -> bool:
    """Whether the voxels of a mask are some of those of a series."""
    start = np.rint(target.world_to_index(np.asarray(mask.origin_mm))).astype(int)
    stop = start + mask.shape
    if (start < 0).any() or (stop > target.shape).any():
        return False
    (z, y, x), (d, h, w) = start.tolist(), stop.tolist()
    return _lies_on(mask, target.crop(Box((z, y, x), (d, h, w))))


def _placed(
    mask: GivenMask, aligned: AlignedStudy
) -> tuple[NDArray[np.integer], str, tuple[str, ...]]:
    """A mask on the reference grid, where it lay in words, and a warning if it was resampled."""
    turned, there = canonical(mask.volume.array, mask.volume.grid)
    target, phase = aligned.grid, aligned.reference.long_name
    note = f", {mask.note}" if mask.note else ""
    if _lies_on(there, target):
        return np.ascontiguousarray(turned), f"on the voxels of the {phase} series{note}", ()
    inside = _share_inside(turned > 0, there, target)
    if inside < _MIN_INSIDE:
        sizes = " and ".join(f"{grid.shape} voxels" for grid in (there, target))
        words = f"{100 * inside:.0f} % of {mask.name} lies within the {phase} series ({sizes})."
        raise refuse("E_GRID_MISMATCH", words, _STAGE)
    found = resample(turned, there, target, order=0, fill=0)
    lost = set(values_of(mask)) - set(values_of(replace(mask, volume=Volume(found, target))))
    if lost:
        words = f"Of {mask.name} the labels {sorted(lost)} vanish on the {phase} series' voxels."
        raise refuse("E_GRID_MISMATCH", words, _STAGE)
    if _is_part(there, target):
        return found, f"on a part of the voxels of the {phase} series{note}", ()
    text = (
        f"W_MASK_RESAMPLED: {mask.name} lies on no phase's voxels; those of the {phase} series "
        "took the nearest label by world coordinates"
    )
    return found, f"brought onto the voxels of the {phase} series{note}", (text,)


def _share_inside(mask: Bool[np.ndarray, "z y x"], grid: Grid, target: Grid) -> float:
    """Share of a mask whose voxel centers lie within another grid; of many voxels, every n-th."""
    found = np.argwhere(mask)
    if not len(found):
        return 1.0
    points = np.asarray(found[:: max(1, len(found) // _MAX_POINTS)], dtype=np.float64)
    index = target.world_to_index(grid.index_to_world(points))
    inside = (index >= -0.5) & (index <= np.asarray(target.shape) - 0.5)
    return float(inside.all(axis=1).mean())


def _instances(
    array: Integer[np.ndarray, "z y x"], liver: Bool[np.ndarray, "z y x"], holds: str
) -> tuple[UInt16[np.ndarray, "z y x"], str]:
    """Ids of the lesions, and how the mask was read.

    Args:
        array: the mask on the reference grid.
        liver: the organ.
        holds: what its values are known to be, `labels` or `ids`.
    """
    values = sorted({int(v) for plane in array for v in np.unique(plane[plane > 0])})
    filled = int(((array == LIVER) & liver).sum())
    fills = not holds and values == [LIVER, TUMOR] and filled > _ORGAN_SHARE * liver.sum()
    labels = holds == "labels" or fills
    if not labels and len(values) > 1:
        return array.astype(np.uint16), f"{len(values)} lesions by their ids"
    tumor = array == TUMOR if labels else array > 0
    pieces, found = components(np.ascontiguousarray(tumor))
    kind = "label 2 of a label map" if labels else "a mask without ids"
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
