"""Surface distances, each definition against the tool that holds it, and ours against a loop."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import SimpleITK
import surface_distance
from hypothesis import given
from hypothesis import strategies as st
from medpy.metric import binary as medpy
from scipy import ndimage
from surface_distance import lookup_tables

from hepar.evaluate import point_sets
from hepar.evaluate.point_sets import boundary, distances, neighbor_codes
from hepar.evaluate.surface import surface_distances
from hepar.evaluate.surfels import surfel_distances
from masks import ball, blobs, pairs

PAIRS = pairs()
each_pair = pytest.mark.parametrize("name", PAIRS)


@pytest.fixture(params=["tree", "transform"])
def either_way(request, monkeypatch):
    """Both ways to the same distances, whatever the size of the masks."""
    monkeypatch.setattr(point_sets, "_PAIRS_PER_VOXEL", math.inf if request.param == "tree" else -1)


def slow_surface(mask: np.ndarray) -> np.ndarray:
    """Voxels with a background neighbor through a face or an edge, one by one."""
    padded = np.pad(mask, 1)
    found = np.zeros_like(mask)
    steps = [s for s in np.ndindex(3, 3, 3) if 1 <= sum(abs(k - 1) for k in s) <= 2]
    for z, y, x in np.argwhere(mask):
        found[z, y, x] = any(not padded[z + a, y + b, x + c] for a, b, c in steps)
    return found


def slow_directed(a: np.ndarray, b: np.ndarray, spacing_mm) -> np.ndarray:
    there = np.argwhere(slow_surface(a)).astype(np.float64) * spacing_mm
    here = np.argwhere(slow_surface(b)).astype(np.float64) * spacing_mm
    return np.array([np.sqrt(((here - p) ** 2).sum(axis=1)).min() for p in there])


@each_pair
def test_oracle_ours_equals_a_brute_force_loop(name, either_way):
    a, b, spacing = PAIRS[name]
    forth, back = slow_directed(a, b, spacing), slow_directed(b, a, spacing)
    both = np.concatenate([forth, back])
    got = surface_distances(a, b, spacing)
    assert got.assd_mm == pytest.approx(both.mean(), rel=1e-6, abs=1e-12)
    assert got.rmsd_mm == pytest.approx(math.sqrt((both**2).mean()), rel=1e-6, abs=1e-12)
    assert got.hd_mm == pytest.approx(both.max(), rel=1e-6, abs=1e-12)
    expected = max(np.percentile(forth, 95), np.percentile(back, 95))
    assert got.hd95_mm == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert (got.forth.n, got.back.n) == (len(forth), len(back))
    assert got.forth.rms_mm == pytest.approx(math.sqrt((forth**2).mean()), rel=1e-6, abs=1e-12)


@each_pair
def test_oracle_medpy(name, either_way):
    a, b, spacing = PAIRS[name]
    got = surface_distances(a, b, spacing, surface=6)
    assert got.assd_mm == pytest.approx(medpy.assd(a, b, spacing), rel=1e-6, abs=1e-12)
    assert got.forth.mean_mm == pytest.approx(medpy.asd(a, b, spacing), rel=1e-6, abs=1e-12)
    assert got.hd_mm == pytest.approx(medpy.hd(a, b, spacing), rel=1e-6, abs=1e-12)
    assert got.hd95_pooled_mm == pytest.approx(medpy.hd95(a, b, spacing), rel=1e-6, abs=1e-12)
    wide = surface_distances(a, b, spacing, surface=18)
    assert wide.assd_mm == pytest.approx(
        medpy.assd(a, b, spacing, connectivity=2), rel=1e-6, abs=1e-12
    )


@pytest.fixture(scope="module")
def monai():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import monai.metrics
    return monai.metrics


@each_pair
def test_oracle_monai(name, either_way, monai):
    a, b, spacing = PAIRS[name]
    one_hot = {"y_pred": a[None, None].astype(np.float32), "y": b[None, None].astype(np.float32)}
    common = {"include_background": True, "spacing": spacing}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asd = monai.compute_average_surface_distance(**one_hot, **common).item()
        assd = monai.compute_average_surface_distance(**one_hot, symmetric=True, **common).item()
        hd95 = monai.compute_hausdorff_distance(**one_hot, percentile=95, **common).item()
    got = surface_distances(a, b, spacing, surface=6)
    assert got.forth.mean_mm == pytest.approx(asd, rel=1e-6, abs=1e-12)
    assert got.assd_mm == pytest.approx(assd, rel=1e-6, abs=1e-12)
    assert got.hd95_mm == pytest.approx(hd95, rel=1e-6, abs=1e-12)


@each_pair
def test_oracle_simpleitk_hausdorff_of_filled_masks(name, either_way):
    a, b, spacing = PAIRS[name]
    images = [SimpleITK.GetImageFromArray(m.astype(np.uint8)) for m in (a, b)]
    for image in images:
        image.SetSpacing(spacing[::-1])
    measure = SimpleITK.HausdorffDistanceImageFilter()
    measure.Execute(*images)
    got = surface_distances(a, b, spacing, surface="filled")
    assert got.hd_mm == pytest.approx(measure.GetHausdorffDistance(), rel=1e-6, abs=1e-6)


@each_pair
def test_oracle_deepmind_surface_distance(name, either_way):
    a, b, spacing = PAIRS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = surface_distance.compute_surface_distances(b, a, spacing)
    back, forth = surface_distance.compute_average_surface_distance(theirs)
    got = surfel_distances(a, b, spacing)
    assert got.averages_mm == pytest.approx((forth, back), rel=1e-6, abs=1e-12)
    for percent in (50, 95, 100):
        robust = surface_distance.compute_robust_hausdorff(theirs, percent)
        # An area that adds up to exactly the share is one element early or late by rounding.
        near = [got.robust_hausdorff_mm(percent + step) for step in (-1e-9, 0.0, 1e-9)]
        assert any(value == pytest.approx(robust, rel=1e-6, abs=1e-12) for value in near)
    for tolerance_mm in (0.4, 1.05, 2.05, 7.3):
        dice = surface_distance.compute_surface_dice_at_tolerance(theirs, tolerance_mm)
        overlap = surface_distance.compute_surface_overlap_at_tolerance(theirs, tolerance_mm)
        assert got.surface_dice(tolerance_mm) == pytest.approx(dice, rel=1e-6)
        assert got.overlap(tolerance_mm) == pytest.approx(overlap[::-1], rel=1e-6)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 0.7, 0.9), (1.0, 3.0, 2.0)])
def test_oracle_area_of_each_of_the_256_elements(spacing):
    kernel = lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL
    theirs = lookup_tables.create_table_neighbour_code_to_surface_area(spacing)
    whole = np.ones((2, 2, 2), dtype=bool)
    middle = np.ravel_multi_index((1, 1, 1), (3, 3, 3))
    for code in range(1, 256):
        cube = np.array([code >> k & 1 for k in range(8)], dtype=bool).reshape(2, 2, 2)
        codes = neighbor_codes(cube).reshape(-1)
        elements = np.flatnonzero((codes != 0) & (codes != 255))
        # The middle corner of the image has all eight voxels around it.
        area = surfel_distances(cube, whole, spacing).forth_mm2[elements == middle].sum()
        assert area == pytest.approx(theirs[(cube * kernel).sum()], rel=1e-12), code


@pytest.mark.parametrize("neighbors", [6, 18, 26])
@each_pair
def test_oracle_boundary_equals_scipy_erosion(name, neighbors, monkeypatch):
    mask = PAIRS[name][0]
    structure = ndimage.generate_binary_structure(3, {6: 1, 18: 2, 26: 3}[neighbors])
    expected = np.flatnonzero(mask & ~ndimage.binary_erosion(mask, structure))
    np.testing.assert_array_equal(boundary(mask, neighbors), expected)
    # A slab of one plane sees its neighbors too.
    monkeypatch.setattr(point_sets, "_SLAB_VOXELS", 1)
    np.testing.assert_array_equal(boundary(mask, neighbors), expected)


def test_closed_form_two_voxels_two_millimeters_apart(either_way):
    a, b = np.zeros((1, 1, 5), bool), np.zeros((1, 1, 5), bool)
    a[0, 0, 1], b[0, 0, 3] = True, True
    got = surface_distances(a, b, (3.0, 3.0, 1.0))
    assert got.assd_mm == got.rmsd_mm == got.hd_mm == got.hd95_mm == 2.0
    area = surfel_distances(a, b, (3.0, 3.0, 1.0))
    assert area.surface_dice(2.0) == 1.0
    assert area.surface_dice(0.5) == 0.0


def test_closed_form_area_of_a_block_and_a_tolerance_that_is_just_met():
    block = np.zeros((12, 12, 12), bool)
    block[2:10, 2:10, 2:10] = True
    spacing = (0.7, 0.7, 0.7)
    moved = np.roll(block, 3, axis=2)
    got = surfel_distances(block, moved, spacing)
    # Marching cubes cuts the 12 edges and 8 corners of the 8-voxel block.
    faces, edges, corners = 6 * 7**2, 12 * 7 * math.sqrt(0.5), 8 * math.sqrt(3) / 8
    assert got.forth_mm2.sum() == pytest.approx((faces + edges + corners) * 0.49)
    # 3 x 0.7 mm is 2.0999999999999996 in floating point.
    assert got.surface_dice(2.1) == 1.0
    assert got.surface_dice(2.09) < 1.0


@pytest.mark.parametrize("measure", [surface_distances, surfel_distances])
def test_closed_form_an_empty_mask_has_no_distance(measure):
    mask, empty = blobs(0), np.zeros_like(blobs(0))
    for pair in ((mask, empty), (empty, mask), (empty, empty)):
        assert measure(*pair, (1.0, 1.0, 1.0)) is None
    with pytest.raises(ValueError, match="shapes"):
        measure(mask, mask[1:], (1.0, 1.0, 1.0))


def test_closed_form_refusals():
    with pytest.raises(ValueError, match="no point"):
        distances(np.array([0]), np.array([], dtype=int), (1, 1, 1), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="neighbors"):
        boundary(blobs(0), 8)


SPACING = (2.0, 0.9, 1.1)
seeds = st.integers(0, 10_000)


def everything(a: np.ndarray, b: np.ndarray, spacing_mm=SPACING) -> list[float]:
    surface, area = surface_distances(a, b, spacing_mm), surfel_distances(a, b, spacing_mm)
    lengths = [surface.assd_mm, surface.rmsd_mm, surface.hd_mm, surface.hd95_mm]
    lengths += [surface.hd95_pooled_mm, *area.averages_mm, area.robust_hausdorff_mm()]
    return lengths


@given(seeds, st.sampled_from([0, 1, 2, (0, 1), (0, 1, 2)]))
def test_property_flips_change_nothing(seed, axes):
    a, b = blobs(seed), blobs(seed + 1)
    assert everything(np.flip(a, axes), np.flip(b, axes)) == pytest.approx(everything(a, b))


@given(seeds, st.permutations([0, 1, 2]))
def test_property_axes_may_be_exchanged_with_their_spacing(seed, order):
    a, b = blobs(seed), blobs(seed + 1)
    turned = tuple(SPACING[k] for k in order)
    moved = everything(a.transpose(order), b.transpose(order), turned)
    assert moved == pytest.approx(everything(a, b), rel=1e-6)


@given(seeds, st.integers(1, 4))
def test_property_padding_changes_nothing(seed, width):
    a, b = blobs(seed), blobs(seed + 1)
    assert everything(np.pad(a, width), np.pad(b, width)) == everything(a, b)


@given(seeds, st.floats(0.1, 20.0))
def test_property_distances_scale_with_the_spacing(seed, factor):
    a, b = blobs(seed), blobs(seed + 1)
    scaled = everything(a, b, tuple(factor * s for s in SPACING))
    assert scaled == pytest.approx([factor * v for v in everything(a, b)], rel=1e-5)
    area, wide = (surfel_distances(a, b, tuple(f * s for s in SPACING)) for f in (1.0, factor))
    assert wide.surface_dice(1.5 * factor) == pytest.approx(area.surface_dice(1.5), rel=1e-6)


@given(seeds)
def test_property_exchanging_the_masks_exchanges_the_directions(seed):
    a, b = blobs(seed), blobs(seed + 1)
    there, back = surface_distances(a, b, SPACING), surface_distances(b, a, SPACING)
    assert (there.forth, there.back) == (back.back, back.forth)
    assert surface_distances(a, a, SPACING).hd_mm == 0.0
    assert surfel_distances(a, a, SPACING).surface_dice(0.0) == 1.0


@given(seeds, st.floats(0.0, 8.0), st.floats(0.0, 8.0))
def test_property_surface_dice_grows_with_the_tolerance(seed, one, other):
    got = surfel_distances(blobs(seed), blobs(seed + 1), SPACING)
    low, high = (got.surface_dice(t) for t in sorted((one, other)))
    assert 0.0 <= low <= high <= 1.0


@given(seeds)
def test_property_no_distance_is_longer_than_the_diagonal(seed):
    a, b = blobs(seed), blobs(seed + 1)
    diagonal_mm = math.dist((0, 0, 0), np.multiply(a.shape, SPACING))
    assert max(everything(a, b)) < diagonal_mm


@pytest.mark.full
@pytest.mark.parametrize("seed", range(40))
def test_oracle_random_masks_of_every_density(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 12, size=3))
    spacing = tuple(float(s) for s in rng.uniform(0.3, 5.0, size=3))
    a, b = rng.random(shape) < rng.random(), rng.random(shape) < rng.random()
    a.flat[0] = b.flat[-1] = True
    both = np.concatenate([slow_directed(a, b, spacing), slow_directed(b, a, spacing)])
    got = surface_distances(a, b, spacing)
    assert (got.assd_mm, got.hd_mm) == pytest.approx((both.mean(), both.max()), rel=1e-6, abs=1e-9)


def test_property_a_ball_and_one_two_millimeters_larger(either_way):
    spacing = (1.5, 0.8, 0.8)
    small, large = (ball((40, 70, 70), (30, 28, 28), r, spacing) for r in (18.0, 20.0))
    half = math.dist((0, 0, 0), spacing) / 2
    surface = surface_distances(large, small, spacing)
    assert surface.hd_mm <= 2.0 + 2 * half
    assert surface.assd_mm == pytest.approx(2.0, abs=half)
    assert surfel_distances(large, small, spacing).averages_mm == pytest.approx((2, 2), abs=half)
