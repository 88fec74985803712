"""Positions in the patient, against SimpleITK and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from hepar.geometry import Box, Displacement, Grid, canonical, flip_lps_ras, uncanonical
from hepar.resampling import resample

angles = st.tuples(*[st.floats(-180, 180) for _ in range(3)])
spacings = st.tuples(*[st.floats(0.4, 6.0) for _ in range(3)])
origins = st.tuples(*[st.floats(-300, 300) for _ in range(3)])


def turned(shape, spacing, origin, angle, flips=(1, 1, 1)) -> Grid:
    matrix = Rotation.from_euler("xyz", angle, degrees=True).as_matrix()
    matrix = matrix @ Grid.axial((1, 1, 1), (1, 1, 1)).matrix * np.asarray(flips)
    return Grid(shape, spacing, origin, tuple(float(v) for v in matrix.ravel()))


def as_sitk(array: np.ndarray, grid: Grid) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(grid.spacing_mm[::-1])
    image.SetOrigin(grid.origin_mm)
    image.SetDirection(grid.matrix[:, ::-1].ravel())
    return image


@given(angles, spacings, origins, st.tuples(*[st.sampled_from([-1, 1])] * 3))
def test_property_world_positions_agree_with_simpleitk(angle, spacing, origin, flips):
    grid = turned((5, 6, 7), spacing, origin, angle, flips)
    image = as_sitk(np.zeros(grid.shape, np.float32), grid)
    for index in ((0, 0, 0), (4, 5, 6), (2, 0, 3)):
        expected = image.TransformIndexToPhysicalPoint(tuple(reversed(index)))
        got = grid.index_to_world(np.asarray(index, dtype=float))
        assert np.abs(got - expected).max() < 0.01
        assert np.abs(grid.world_to_index(got) - index).max() < 1e-6


@given(angles, spacings, origins, st.tuples(*[st.sampled_from([-1, 1])] * 3))
def test_property_canonical_keeps_every_voxel_in_place_and_undoes(angle, spacing, origin, flips):
    grid = turned((3, 4, 5), spacing, origin, angle, flips)
    array = np.arange(60).reshape(3, 4, 5)
    axial, axial_grid = canonical(array, grid)
    for index in ((0, 0, 0), (axial.shape[0] - 1, 1, 2)):
        world = axial_grid.index_to_world(np.asarray(index, dtype=float))
        source = np.rint(grid.world_to_index(world)).astype(int)
        assert axial[index] == array[tuple(source)]
    assert np.array_equal(uncanonical(axial, grid), array)


def test_closed_form_canonical_runs_superior_posterior_left():
    grid = turned((3, 4, 5), (2.0, 1.0, 1.5), (0.0, 0.0, 0.0), (12, -9, 14), (-1, 1, -1))
    _, axial = canonical(np.zeros(grid.shape), grid)
    assert (axial.matrix[[2, 1, 0], [0, 1, 2]] > 0.9).all()


@pytest.mark.parametrize("angle", [(0, 0, 0), (25, -10, 40), (180, 0, 90)])
@pytest.mark.parametrize("order", [0, 1])
def test_oracle_resample_equals_simpleitk(angle, order):
    rng = np.random.default_rng(1)
    source = turned((9, 12, 15), (3.0, 1.2, 0.9), (10.0, -20.0, 5.0), angle)
    center = source.index_to_world(np.asarray([4.0, 6.0, 7.0]))
    target = Grid.axial((11, 13, 17), (2.0, 1.1, 1.0), tuple(center - 8.37))
    array = rng.normal(size=source.shape).astype(np.float32)
    got = resample(array, source, target, order=order, fill=-5.0, antialias=False)
    method = sitk.sitkLinear if order else sitk.sitkNearestNeighbor
    reference = as_sitk(np.zeros(target.shape, np.float32), target)
    expected = sitk.GetArrayFromImage(
        sitk.Resample(as_sitk(array, source), reference, sitk.Transform(), method, -5.0)
    )
    inside = (got != -5.0) & (expected != -5.0)
    assert inside.mean() > 0.05
    assert ((got != -5.0) == (expected != -5.0)).mean() > 0.99
    assert np.abs(got - expected)[inside].max() < 1e-4


def test_oracle_both_paths_of_resample_agree():
    rng = np.random.default_rng(2)
    source = Grid.axial((8, 9, 10), (2.0, 1.0, 1.0), (1.0, 2.0, 3.0))
    target = Grid.axial((7, 12, 9), (1.7, 0.8, 1.1), (1.5, 2.5, 3.5))
    array = rng.normal(size=source.shape).astype(np.float32)
    still = Displacement(np.zeros((3, 2, 2, 2), np.float32), source.with_spacing((8.0, 5.0, 5.0)))
    fast = resample(array, source, target, antialias=False)
    slow = resample(array, source, target, antialias=False, displacement=still)
    assert np.abs(fast - slow).max() < 1e-4


@pytest.mark.parametrize("step", [0.4, 1.0, 2.7])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_oracle_one_axis_equals_a_slow_sum_over_a_tent(step, axis, monkeypatch):
    monkeypatch.setattr("hepar.resampling._SLAB_VOXELS", 100)
    rng = np.random.default_rng(3)
    source = Grid.axial((9, 10, 11), (1.0, 1.0, 1.0))
    shift = [0.3 if a == axis else 0.0 for a in (2, 1, 0)]
    spacing = tuple(step if a == axis else 1.0 for a in range(3))
    shape = tuple(3 if a == axis else n for a, n in enumerate(source.shape))
    target = Grid.axial(shape, spacing, tuple(shift))
    array = rng.integers(-1000, 1000, source.shape).astype(np.int16)
    got = np.moveaxis(resample(array, source, target), axis, 0)
    lines = np.moveaxis(array, axis, 0).astype(float)
    for k in range(3):
        tent = [max(0.0, 1 - abs(0.3 + k * step - i) / max(1.0, step)) for i in range(len(lines))]
        expected = sum(w * line for w, line in zip(tent, lines, strict=True)) / sum(tent)
        assert np.abs(got[k] - expected).max() < 1e-2


@pytest.mark.parametrize("angle", [(0, 0, 0), (12, -7, 20)])
def test_oracle_a_displacement_field_is_read_where_its_own_grid_says(angle):
    rng = np.random.default_rng(5)
    grid = turned((7, 9, 8), (2.0, 1.1, 1.3), (5.0, 6.0, 7.0), angle)
    coarse = Grid.axial((3, 4, 3), (6.0, 5.0, 6.0), tuple(grid.index_to_world(np.zeros(3)) + 2.0))
    field = Displacement(rng.normal(0, 2, (3, *coarse.shape)).astype(np.float32), coarse)
    array = rng.normal(size=grid.shape).astype(np.float32)
    got = resample(array, grid, grid, displacement=field, fill=0.0, antialias=False)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1)
    world = grid.index_to_world(index.astype(float))
    at = np.moveaxis(grid.world_to_index(world + field.at(world)), -1, 0)
    expected = ndimage.map_coordinates(array, at, order=1, mode="nearest", prefilter=False)
    inside = got != 0
    assert inside.mean() > 0.5
    assert np.abs(got - expected)[inside].max() < 1e-3


def test_closed_form_displacement_is_in_world_mm():
    grid = turned((6, 7, 8), (2.0, 1.0, 1.5), (5.0, 6.0, 7.0), (0, 0, 0), (1, -1, 1))
    array = np.random.default_rng(0).normal(size=grid.shape).astype(np.float32)
    field = np.zeros((3, 2, 2, 2), np.float32)
    field[0] = 3.0  # +3 mm to the Left: two voxels of 1.5 mm along x
    moved = resample(
        array, grid, grid, displacement=Displacement(field, grid.crop(Box((0, 0, 0), (2, 2, 2))))
    )
    assert np.abs(moved[:, :, :-2] - array[:, :, 2:]).max() < 1e-5


def test_closed_form_antialias_keeps_the_mean_and_linear_ramps():
    source = Grid.axial((10, 60, 60), (3.0, 1.0, 1.0))
    target = source.with_spacing((5.0, 5.0, 5.0))
    noise = np.random.default_rng(0).normal(size=source.shape).astype(np.float32)
    assert resample(noise, source, target).std() < 0.25
    ramp = np.broadcast_to(np.arange(60, dtype=np.float32), source.shape)
    got = resample(ramp, source, target)[:, :, 1:-1]
    world = target.index_to_world(
        np.stack(np.meshgrid(*[np.arange(n) for n in target.shape], indexing="ij"), -1).astype(
            float
        )
    )
    assert np.abs(got - world[:, :, 1:-1, 0]).max() < 1e-3


@given(spacings, st.tuples(*[st.integers(1, 40)] * 3))
def test_property_with_spacing_covers_the_extent_around_the_same_center(spacing, shape):
    grid = turned(shape, (2.0, 1.0, 0.7), (3.0, -4.0, 5.0), (10, 20, 30))
    new = grid.with_spacing(spacing)
    middle = (np.asarray(grid.shape) - 1) / 2, (np.asarray(new.shape) - 1) / 2
    assert np.allclose(grid.index_to_world(middle[0]), new.index_to_world(middle[1]), atol=1e-6)
    assert all(n >= o - 1e-3 for n, o in zip(new.extent_mm, grid.extent_mm, strict=True))


def test_closed_form_box_and_crop():
    mask = np.zeros((5, 6, 7), bool)
    mask[2, 3:5, 1] = True
    box = Box.around(mask, (1, 9, 1))
    assert box == Box((1, 0, 0), (4, 6, 3))
    assert Box.around(np.zeros((2, 2, 2), bool)) is None
    grid = turned(mask.shape, (2.0, 1.0, 0.5), (1.0, 2.0, 3.0), (30, 0, 10))
    part = grid.crop(box)
    assert part.shape == box.shape
    assert np.allclose(part.index_to_world(np.zeros(3)), grid.index_to_world(np.array([1.0, 0, 0])))


def test_closed_form_ras_flip_is_its_own_inverse():
    affine = np.random.default_rng(0).normal(size=(4, 4))
    assert np.allclose(flip_lps_ras(flip_lps_ras(affine)), affine)


def test_closed_form_bad_grids_are_refused():
    with pytest.raises(ValueError, match="spacing"):
        Grid.axial((1, 1, 1), (0.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="orthonormal"):
        Grid((1, 1, 1), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0,) * 9)
    with pytest.raises(ValueError, match="not on its grid"):
        resample(
            np.zeros((2, 2, 2)), Grid.axial((1, 1, 1), (1, 1, 1)), Grid.axial((1, 1, 1), (1, 1, 1))
        )
