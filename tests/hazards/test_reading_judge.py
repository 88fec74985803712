"""The judge of resampled volumes is judged first: it passes what is right and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from reading_truth import misplaced, resampled_wrong
from scipy.ndimage import map_coordinates
from study_cases import AXIAL
from synthetic_dicom import MARKER_HU, Place, Slice, ct_slice, stack


def _tilted() -> list[Slice]:
    turned = (1.0, 0.0, 0.0, 0.0, float(np.cos(0.3)), float(-np.sin(0.3)))
    return [ct_slice(k, Place((-24.0, -32.0, 4.0 * k), turned)) for k in range(18)]


def _affine(slices: list[Slice]) -> np.ndarray:
    """From `(k, row, column, 1)` to LPS mm, lean included."""
    first, last = slices[0].place, slices[-1].place
    affine = np.eye(4)
    step = (np.asarray(last.corner_mm) - first.corner_mm) / (len(slices) - 1)
    row, column = np.asarray(first.orientation[:3]), np.asarray(first.orientation[3:])
    affine[:3] = np.stack([step, column, row, first.corner_mm], axis=1)
    return affine


def _upright(slices: list[Slice], order: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The images on upright axial voxels: HU and affine."""
    affine = np.array([[0, 0, 1, -24], [0, 1, 0, -36], [4, 0, 0, -20], [0, 0, 0, 1]], dtype=float)
    index = np.moveaxis(np.indices((27, 80, 48)), 0, -1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    source = _affine(slices)
    there = (world - source[:3, 3]) @ np.linalg.inv(source[:3, :3]).T
    hu = np.stack([one.hu for one in slices]).astype(float)
    found = map_coordinates(hu, np.moveaxis(there, -1, 0), order=order, cval=-1024.0)
    return np.rint(found), affine


def test_closed_form_a_sheared_volume_is_accepted() -> None:
    slices = _tilted()
    array, affine = _upright(slices)
    assert resampled_wrong(array, affine, slices, MARKER_HU) is None


@pytest.mark.parametrize("fault", ["not sheared", "moved", "flipped", "cut", "marker", "padded"])
def test_closed_form_what_is_wrong_is_not_accepted(fault: str) -> None:
    slices = _tilted()
    array, affine = _upright(slices)
    if fault == "not sheared":
        array = np.stack([one.hu for one in slices])
        affine = _affine(slices)
        affine[:3, 0] = slices[0].place.normal * 4 * np.cos(0.3)
    elif fault == "moved":
        affine[2, 3] += 4
    elif fault == "flipped":
        array = array[:, :, ::-1]
    elif fault == "cut":
        array = array[:-8]
    elif fault == "marker":
        array = np.where(array > 175, 50, array)
    else:
        array = np.where(array < -1000, 40, array)
    assert resampled_wrong(array, affine, slices, MARKER_HU) is not None


def test_closed_form_a_voxel_out_of_place_or_one_hu_off_is_seen() -> None:
    slices = stack(orientation=AXIAL)
    array, affine = np.stack([one.hu for one in slices]), _affine(slices)
    assert misplaced(array, affine, slices) is None
    moved = affine.copy()
    moved[0, 3] += 0.02
    assert misplaced(array, moved, slices) is not None
    changed = array.copy()
    changed[3, 30, 20] += 1
    assert misplaced(changed, affine, slices) is not None
    assert misplaced(array[:-1], affine, slices) is not None
    assert misplaced(array[::-1], affine, slices) is not None
