"""Stage 5: where is the liver. A coarse network on the reference phase, refined to its voxels."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hepar.geometry import Box, Grid
from hepar.infer.bundle import Model
from hepar.infer.calibrate import LiverCalibration
from hepar.infer.components import fill_holes, largest
from hepar.infer.liver_extent import BOX_MARGIN_MM, extent_doubts
from hepar.infer.organs import coarse_view
from hepar.infer.refine import no_liver
from hepar.infer.streaks import streaked_share
from hepar.infer.tiling import Tiling
from hepar.infer.unusual import SAME_SHARE, same_around, unusual
from hepar.infer.windows import slabs
from hepar.preprocess import liver_box
from hepar.resampling import resample
from hepar.study import AlignedStudy, LiverCase, Volume
from hepar.systems.base import System

log = logging.getLogger(__name__)

# Share of the liver's slices with streaks: 0 to 0.1 in clean scans, 0.4 and more in spoiled ones.
STREAKED = 0.2
# Where the network is unsure, tissue halfway between liver and fat is not liver.
_UNSURE = 0.9
_FAT_HU = -100.0


def find_liver(aligned: AlignedStudy, model: Model, *, tiling: Tiling | None = None) -> LiverCase:
    """Find the liver on the reference phase.

    Args:
        aligned: registered phases; the liver is sought in the reference, `W_OOD` looks at all.
        model: a system with `liver` among its classes; its `tumor`, where it knows one, is liver
            too.
        tiling: memory, device, speed.

    Returns:
        The liver mask on the reference grid and its box with a margin of 10 mm. Warnings:
        `W_LIVER_TRUNCATED`, `W_LIVER_VOLUME`, `W_LIVER_STREAKS`, `W_OOD`, `W_MEMORY`.

    Raises:
        InputRefused: `E_NO_LIVER`, also for a mask without a border in the image.
    """
    told: list[str] = []
    tiling = replace(tiling or Tiling(), warn=told.append)
    calibration = LiverCalibration.model_validate(dict(model.calibration))
    reference = aligned.volumes[aligned.reference]
    # A network that tells tumors apart finds them as part of the organ.
    known = cast(System, model.system).input_spec.class_names
    classes = tuple(name for name in ("liver", "tumor") if name in known)
    coarse_grid, coarse, likely = coarse_view(
        reference, model, classes, phase=aligned.reference.value, tiling=tiling
    )
    probability = likely.sum(axis=0)
    core = largest(probability >= calibration.threshold)
    _refuse_if_none(core, probability, coarse_grid, calibration)
    # Two voxels around the component keep its border's slope and drop every other component.
    near = ndimage.binary_dilation(core, iterations=2)
    sure = coarse[core & (probability >= _UNSURE)]
    median_hu = float(np.median(sure if sure.size else coarse[core]))
    around = _box_on(reference.grid, coarse_grid, near)
    mask = _fine_mask(
        np.where(near, probability, np.float32(0)),
        coarse_grid,
        reference,
        around,
        calibration.threshold,
        median_hu,
    )
    liver = np.zeros(reference.grid.shape, dtype=bool)
    liver[around.slices] = fill_holes(largest(mask))
    liver_ml = float(liver[around.slices].sum()) * reference.grid.voxel_ml
    box = liver_box(liver, reference.grid, BOX_MARGIN_MM)
    if box is None or liver_ml < calibration.min_volume_ml:
        raise no_liver("liver", f"the largest candidate measures {liver_ml:.0f} ml")
    same = same_around(reference.array[box.slices], liver[box.slices], reference.grid.spacing_mm)
    if same > SAME_SHARE:
        raise no_liver("liver", f"{100 * same:.0f} % of what surrounds the candidate looks like it")
    found = extent_doubts(liver, reference.grid, liver_ml)
    found += _streaks(reference, liver, box) + _unusual(aligned, liver, box)
    return LiverCase(aligned, liver, box, liver_ml, (*found, *told))


def _refuse_if_none(
    core: NDArray[np.bool_],
    probability: NDArray[np.float32],
    grid: Grid,
    calibration: LiverCalibration,
) -> None:
    volume_ml = float(core.sum()) * grid.voxel_ml
    if volume_ml < calibration.min_volume_ml:
        raise no_liver("liver", f"the largest candidate measures {volume_ml:.0f} ml")
    mean = float(probability[core].mean())
    if mean < calibration.min_mean_probability:
        raise no_liver("liver", f"the best candidate has a mean probability of {mean:.2f}")


def _box_on(fine: Grid, coarse: Grid, mask: NDArray[np.bool_]) -> Box:
    """The voxels of `fine` that a mask on `coarse` covers, whole voxels included."""
    box = Box.around(mask)
    assert box is not None
    corners = np.array([box.start, box.stop], dtype=np.float64) - 0.5
    index = fine.world_to_index(coarse.index_to_world(corners))
    low, high = np.floor(index.min(axis=0)), np.ceil(index.max(axis=0)) + 1
    start = [max(0, int(v)) for v in low]
    stop = [min(size, int(v)) for size, v in zip(fine.shape, high, strict=True)]
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def _fine_mask(
    probability: NDArray[np.float32],
    coarse: Grid,
    reference: Volume,
    around: Box,
    threshold: float,
    median_hu: float,
) -> NDArray[np.bool_]:
    """The mask on the reference voxels of a box, made slab by slab.

    The probability is interpolated linearly, which rounds the coarse steps. Where the network is
    unsure, smoothed HU halfway to fat or lung exclude a voxel; a lesion, even a cyst, stays.
    """
    floor_hu = min((median_hu + _FAT_HU) / 2, -10.0)
    _, dy, dx = reference.grid.spacing_mm
    mask = np.empty(around.shape, dtype=bool)
    for low, high in slabs(around.shape[0], around.shape[1] * around.shape[2]):
        z0, y0, x0 = around.start
        part = Box((z0 + low, y0, x0), (z0 + high, *around.stop[1:]))
        fine = resample(probability, coarse, reference.grid.crop(part), antialias=False)
        hu = reference.array[part.slices].astype(np.float32)
        hu = ndimage.gaussian_filter(hu, (0.0, 1.0 / dy, 1.0 / dx))
        mask[low:high] = (fine >= threshold) & ((fine >= _UNSURE) | (hu >= floor_hu))
    return mask


def _unusual(aligned: AlignedStudy, liver: NDArray[np.bool_], box: Box) -> tuple[str, ...]:
    """One warning of everything about the liver that no training scan showed."""
    reasons = [
        f"in {phase} {reason}"
        for phase, volume in aligned.volumes.items()
        for reason in unusual(
            volume.array[box.slices], liver[box.slices], volume.grid.spacing_mm, phase
        )
    ]
    if not reasons:
        return ()
    return (
        "W_OOD: this liver looks like none the networks were made for, so their results may be "
        f"worthless: {'; '.join(reasons)}",
    )


def _streaks(reference: Volume, liver: NDArray[np.bool_], box: Box) -> tuple[str, ...]:
    share = streaked_share(
        reference.array[box.slices], liver[box.slices], reference.grid.spacing_mm
    )
    if share < STREAKED:
        return ()
    return (
        f"W_LIVER_STREAKS: streaks from left to right cross {100 * share:.0f} % of the liver's "
        "slices; what is reported in their bands may be an artifact",
    )
