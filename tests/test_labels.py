"""Labels on a study's own voxels, made slab by slab: those of the whole maps, in flat memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_systems import Echo, spec_2d, spec_3d
from hepar import score_cohort
from hepar.errors import InputRefused
from hepar.geometry import Box, Grid
from hepar.infer import on_grid
from hepar.infer.components import largest
from hepar.infer.labels import most_likely, predict_labels
from hepar.infer.on_grid import HuOnGrid, mask_on
from hepar.infer.tiling import Tiling, predict
from hepar.preprocess import AIR_HU, working_grid
from hepar.resampling import PartSampler, resample
from hepar.study import Phase, Volume

shapes = st.tuples(*(st.integers(1, 26) for _ in range(3)))
spacings = st.tuples(*(st.floats(0.6, 4.0) for _ in range(3)))


class Three(Echo):
    """Background, liver and tumor by rising intensity."""

    def decode(self, outputs: torch.Tensor) -> torch.Tensor:
        logits = torch.stack([1 - 3 * outputs, 1.2 * outputs, 4 * outputs - 2], 1)
        return (3 * logits).softmax(1)


def three(spacing_mm, **changes: object) -> Three:
    names = ("background", "liver", "tumor")
    size = (16, 16, 16)
    settings = {"spacing_mm": spacing_mm, "class_names": names, "window": size, **changes}
    return Three(spec_3d(patch=size, **settings))


def hu_of(shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(-50, 150, shape).astype(np.int16)


def by_hand(system: Three, hu: np.ndarray, grid: Grid, liver, tiling: Tiling) -> np.ndarray:
    """The whole maps, resampled as one."""
    target = working_grid(grid, system.input_spec.spacing_mm)
    seen = {"PV": HuOnGrid(hu, grid, target)[Box.full(target.shape).slices]}
    where = None if liver is None else resample(liver.astype(np.uint8), grid, target) >= 0.5
    found = predict(system, seen, target.spacing_mm, liver=where, tiling=tiling)
    return np.stack([resample(one, target, grid, antialias=False) for one in found]).argmax(0)


@settings(max_examples=15, deadline=None)
@given(
    shape=shapes,
    spacing=spacings,
    working=spacings,
    liver=st.sampled_from(["none", "given", "needed"]),
    around=st.sampled_from([None, 3.0]),
    whole=st.booleans(),
)
def test_oracle_labels_are_those_of_whole_maps(
    shape, spacing, working, liver, around, whole
) -> None:
    hu, grid = hu_of(shape), Grid.axial(shape, spacing)
    mask = None if liver == "none" else np.random.default_rng(1).random(shape) < 0.1
    system = three(working, needs_liver=liver == "needed", whole_windows=whole)
    tiling = Tiling(around_liver_mm=around)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_grid, "_STEP_VOXELS", 1500)  # several slabs even here
        found = predict_labels(system, {"PV": hu}, grid, liver=mask, tiling=tiling)
        expected = by_hand(system, hu, grid, mask, tiling)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def test_oracle_labels_of_many_slabs_hold_all_classes() -> None:
    shape, spacing = (90, 40, 44), (1.0, 0.8, 0.8)
    z, y, x = np.indices(shape)
    hu = (50 + 60 * np.sin(z / 7) * np.cos(y / 9 + x / 11)).astype(np.int16)
    grid, system = Grid.axial(shape, spacing), three((2.47, 1.9, 1.9))
    found = predict_labels(system, {"PV": hu}, grid)
    assert set(np.unique(found)) == {0, 1, 2}
    np.testing.assert_array_equal(found, by_hand(system, hu, grid, None, Tiling()))


@pytest.mark.parametrize("needs_liver", [True, False])
@pytest.mark.parametrize("around", [None, 0.0])
def test_oracle_whole_windows_reach_beyond_a_small_liver(needs_liver, around) -> None:
    shape = (50, 60, 70)
    hu, grid, liver = hu_of(shape), Grid.axial(shape, (1.0, 0.8, 0.8)), np.zeros(shape, bool)
    liver[20:29, 2:9, 50:61] = True
    system = three((2.47, 1.9, 1.9), needs_liver=needs_liver, whole_windows=True)
    tiling = Tiling(around_liver_mm=around)
    found = predict_labels(system, {"PV": hu}, grid, liver=liver, tiling=tiling)
    assert found.any()
    np.testing.assert_array_equal(found, by_hand(system, hu, grid, liver, tiling))


@settings(max_examples=25, deadline=None)
@given(shape=shapes, spacing=spacings, working=spacings, cut=st.integers(1, 9))
def test_oracle_slabs_of_hu_and_masks_are_those_of_the_whole(shape, spacing, working, cut) -> None:
    hu, grid = hu_of(shape), Grid.axial(shape, spacing)
    target = working_grid(grid, working)
    whole = np.rint(resample(hu, grid, target, fill=AIR_HU))
    lazy = HuOnGrid(hu, grid, target)
    for first in range(0, target.shape[0], cut):
        stop = min(first + 2 * cut, target.shape[0])
        part = (slice(first, stop), slice(0, target.shape[1]), slice(0, target.shape[2]))
        # Averages are sums of another order, so that a value at a half may go the other way.
        assert np.abs(lazy[part] - whole[part]).max() <= 1
    mask = hu > 100
    expected = resample(mask.astype(np.uint8), grid, target) >= 0.5
    np.testing.assert_array_equal(mask_on(mask, grid, target), expected)


@settings(max_examples=25, deadline=None)
@given(shape=shapes, spacing=spacings, working=spacings, data=st.data())
def test_oracle_a_part_of_a_resampled_volume_is_that_of_the_whole(
    shape, spacing, working, data
) -> None:
    grid = Grid.axial(shape, spacing)
    target = working_grid(grid, working)
    start = tuple(data.draw(st.integers(0, n - 1)) for n in target.shape)
    wanted = Box(
        start,
        tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(start, target.shape, strict=True)),
    )
    hu = hu_of(shape)
    for antialias, within in ((False, 0.0), (True, 1e-3)):
        whole = resample(hu, grid, target, fill=AIR_HU, antialias=antialias)
        sampler = PartSampler(grid, target, antialias=antialias)
        needed = sampler.needs(wanted)
        found = sampler.part(hu[needed.slices], needed, wanted, fill=AIR_HU)
        np.testing.assert_allclose(found, whole[wanted.slices], rtol=0, atol=within)


def test_closed_form_parts_need_their_voxels_and_axes() -> None:
    grid = Grid.axial((9, 9, 9), (1.0, 1.0, 1.0))
    sampler = PartSampler(grid, Grid.axial((17, 9, 9), (0.5, 1.0, 1.0)), antialias=False)
    wanted = Box((4, 0, 0), (6, 9, 9))  # at 2.0 and 2.5
    assert sampler.needs(wanted) == Box((2, 0, 0), (4, 9, 9))
    assert sampler.reached(Box((2, 0, 0), (3, 9, 9))) == Box((2, 0, 0), (6, 9, 9))
    too_small = Box((2, 0, 0), (3, 9, 9))
    with pytest.raises(ValueError, match="read beyond"):
        sampler.part(np.zeros(too_small.shape, np.float32), too_small, wanted)
    turned = Grid((9, 9, 9), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    with pytest.raises(ValueError, match="axes are the same"):
        PartSampler(grid, turned)


@pytest.mark.parametrize("shape", [(2, 30, 30), (1, 30, 30), (2, 3, 4)])
@pytest.mark.parametrize("liver", [False, True])
def test_property_two_thick_slices_get_a_label_in_every_voxel(shape, liver) -> None:
    hu, grid = hu_of(shape), Grid.axial(shape, (10.0, 0.8, 0.8))
    system = three((2.47, 1.9, 1.9), whole_windows=True)
    mask = np.ones(shape, bool) if liver else None
    found = predict_labels(system, {"PV": hu}, grid, liver=mask)
    assert {image[3:] for image, _ in system.seen} == {(16, 16, 16)}
    np.testing.assert_array_equal(found, by_hand(system, hu, grid, mask, Tiling()))
    bright = predict_labels(system, {"PV": np.full(shape, 140, np.int16)}, grid, liver=mask)
    assert (bright == 2).all()


def test_property_memory_does_not_grow_with_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what numpy holds; processes are measured whole in `benchmarks/inference_3d.py`."""
    monkeypatch.setattr(on_grid, "_STEP_VOXELS", 200_000)

    def beyond(slices: int) -> int:
        hu = np.broadcast_to(hu_of((1, 96, 96)), (slices, 96, 96)).copy()
        grid = Grid.axial(hu.shape, (1.0, 0.8, 0.8))
        system = three((2.47, 1.9, 1.9), whole_windows=True, window=(32, 48, 48))
        system.seen = _Forgetful()
        tracemalloc.start()
        try:
            labels = predict_labels(system, {"PV": hu}, grid)
            return tracemalloc.get_traced_memory()[1] - labels.nbytes
        finally:
            tracemalloc.stop()

    few, many = beyond(100), beyond(300)
    # The float maps of three classes on 200 more slices would be 22 MB; what does grow is a table
    # of how slices are averaged.
    assert many < few + 2e6


class _Forgetful(list):
    def append(self, _: object) -> None:
        pass


def test_property_most_likely_is_the_first_of_the_largest() -> None:
    probability = np.round(np.random.default_rng(0).random((4, 5, 6, 7)), 1).astype(np.float32)
    np.testing.assert_array_equal(most_likely(probability), probability.argmax(0))


def test_property_what_cannot_be_labelled_is_refused() -> None:
    hu, grid = hu_of((4, 16, 16)), Grid.axial((4, 16, 16), (2.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="3D systems"):
        predict_labels(Echo(spec_2d()), {"PV": hu}, grid)
    with pytest.raises(ValueError, match="grid"):
        predict_labels(three(None), {"PV": hu[1:]}, grid)
    with pytest.raises(ValueError, match="liver mask"):
        predict_labels(three((3.0, 2.0, 2.0), needs_liver=True), {"PV": hu}, grid)
    with pytest.raises(InputRefused) as caught:
        predict_labels(three(None), {"NC": hu}, grid)
    assert caught.value.code == "E_PHASES_REQUIRED"
    empty = predict_labels(three(None), {"PV": hu}, grid, liver=np.zeros(hu.shape, bool))
    assert not empty.any()


@pytest.mark.parametrize("names", [("background", "liver", "tumor"), ("background", "tumor")])
def test_oracle_a_cohort_is_labelled_as_from_whole_maps(names) -> None:
    class Named(Three):
        def decode(self, outputs: torch.Tensor) -> torch.Tensor:
            found = super().decode(outputs)
            if len(names) == 3:
                return found
            return torch.stack([found[:, :2].sum(1), found[:, 2]], 1)

    shape = (30, 24, 20)
    z, y, x = np.indices(shape)
    hu = (50 + 60 * np.sin(z / 7) * np.cos(y / 5 + x / 6)).astype(np.int16)
    grid = Grid.axial(shape, (1.0, 0.8, 0.8))
    size = (16, 16, 16)
    system = Named(spec_3d(spacing_mm=(2.5, 1.9, 1.9), class_names=names, patch=size, window=size))
    volumes, liver = {Phase.PV: Volume(hu, grid)}, np.zeros(shape, bool)
    liver[4:22, 3:20, 2:15] = True
    classes = ("tumor", "liver")[: len(names) - 1]
    found = score_cohort._probabilities(system, volumes, grid, liver, classes, None)
    expected = np.where(liver, 1, 0) if len(names) == 2 else (found.sum(0) >= 0.5) * 1
    expected[found[0] >= 0.5] = 2
    labels = score_cohort.look_in_liver(system, volumes, grid, liver)
    np.testing.assert_array_equal(labels, expected)
    assert set(np.unique(labels)) == {0, 1, 2}
    if len(names) == 3:
        whole = score_cohort._probabilities(system, volumes, grid, None, ("liver", "tumor"), None)
        organ = score_cohort.find_organ(system, volumes, grid)
        np.testing.assert_array_equal(organ, largest(whole.sum(0) > 0.5))
        assert organ.any()
