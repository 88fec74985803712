"""3D windows: where they say what a whole pass says, which are run, what lies beyond a volume."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fake_systems import Echo, spec_3d
from hepar.data.patches import cut
from hepar.data.prepared_case import PreparedCase, foreground_voxels, slice_contents
from hepar.geometry import Box
from hepar.infer.scene import scene_of
from hepar.infer.tiling import Tiling, predict
from hepar.infer.windows import windows

SPACING = (2.0, 1.0, 1.0)


def hu_of(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-50, 150, shape).astype(np.int16)


class Neighbors(Echo):
    """One 3x3x3 convolution that pads with zeros, as real networks do: a receptive field of 3."""

    def __init__(self, spec) -> None:
        super().__init__(spec)
        torch.manual_seed(0)
        self.convolution = nn.Conv3d(1, 1, 3, padding=1)

    def decode(self, outputs: torch.Tensor) -> torch.Tensor:
        found = self.convolution(outputs[:, None]).sigmoid()
        return torch.cat([1 - found, found], dim=1)


class Steep(Echo):
    """A pointwise network whose logits and probabilities have different means over mirrors."""

    def decode(self, outputs: torch.Tensor) -> torch.Tensor:
        ramp = torch.linspace(-9, 3, outputs.shape[-1]).expand(outputs.shape).sigmoid()
        return torch.stack([1 - ramp, ramp], dim=1)


def small(**changes: object):
    return spec_3d(patch=(16, 16, 16), window=(16, 16, 16), **changes)


def far_from_borders(shape: tuple[int, int, int], overlap: float, reach: int) -> np.ndarray:
    """Voxels farther than `reach` from the inner borders of all windows that cover them."""
    inside = np.ones(shape, bool)
    for axis, n in enumerate(shape):
        near = np.zeros(n, bool)
        for start in windows(n, 16, overlap, 8)[0]:
            stop = min(start + 16, n)
            if start > 0:
                near[start : start + reach] = True
            if stop < n:
                near[stop - reach : stop] = True
        inside &= ~near.reshape([-1 if a == axis else 1 for a in range(3)])
    return inside


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_oracle_windows_of_a_pointwise_network_give_a_whole_pass(uniform, overlap) -> None:
    hu = hu_of((21, 40, 33))
    system = Echo(small(uniform_windows=uniform))
    found = predict(system, {"PV": hu}, SPACING, tiling=Tiling(overlap=overlap))
    assert len(system.seen) > 8
    whole = predict(Echo(spec_3d()), {"PV": hu}, SPACING)
    np.testing.assert_allclose(found, whole, atol=1e-6)


@pytest.mark.parametrize("uniform", [True, False])
def test_oracle_windows_with_neighbors_give_a_whole_pass_away_from_their_borders(uniform) -> None:
    hu = hu_of((21, 40, 33))
    found = predict(Neighbors(small(uniform_windows=uniform)), {"PV": hu}, SPACING)[1]
    whole = predict(Neighbors(spec_3d()), {"PV": hu}, SPACING)[1]
    exact = far_from_borders(hu.shape, 0.5, reach=1)
    assert 0.3 < exact.mean() < 0.9
    np.testing.assert_allclose(found[exact], whole[exact], atol=1e-6)
    # And at those borders they do not: the condition is not idle.
    assert np.abs(found - whole)[~exact].max() > 1e-3


def test_closed_form_uniform_windows_count_the_same() -> None:
    starts, weights = windows(32, 16, 0.5, 8, uniform=True)
    assert starts == [0, 8, 16]
    np.testing.assert_array_equal(weights[0], [1.0] * 8 + [0.5] * 8)
    np.testing.assert_array_equal(weights[1], [0.5] * 16)
    bell = windows(32, 16, 0.5, 8)[1][1]
    # The middle window where its neighbor begins: exp(-0.5 (7.5/2)^2) to exp(-0.5 (0.5/2)^2).
    share = np.exp(-0.5 * 3.75**2) / (np.exp(-0.5 * 3.75**2) + np.exp(-0.5 * 0.25**2))
    assert bell[0] == pytest.approx(max(share, 1e-3 / (1e-3 + np.exp(-0.5 * 0.25**2))), rel=1e-5)


def test_closed_form_windows_and_mirrors_average_probabilities_not_logits() -> None:
    hu = np.zeros((16, 16, 24), np.int16)
    found = predict(Steep(small(uniform_windows=True)), {"PV": hu}, SPACING)[1]
    ramp = 1 / (1 + np.exp(-np.linspace(-9, 3, 16)))
    expected = (ramp[12] + ramp[4]) / 2
    mean_of_logits = 1 / (1 + np.exp(-np.linspace(-9, 3, 16)[[4, 12]].mean()))
    assert found[0, 0, 12] == pytest.approx(expected, abs=1e-6)
    assert abs(expected - mean_of_logits) > 0.2
    mirrored = predict(
        Steep(small()), {"PV": hu[..., :16]}, SPACING, tiling=Tiling(flips=True, flip_z=True)
    )[1]
    np.testing.assert_allclose(mirrored, np.broadcast_to((ramp + ramp[::-1]) / 2, (16,) * 3), 1e-5)


@pytest.mark.parametrize(("flips", "flip_z", "images"), [(True, True, 8), (False, True, 2)])
def test_closed_form_all_axes_are_mirrored(flips, flip_z, images) -> None:
    class Corner(Echo):
        """Sure of one corner of what it sees."""

        def decode(self, outputs: torch.Tensor) -> torch.Tensor:
            found = torch.zeros_like(outputs)
            found[:, 0, 0, 0] = 1.0
            return torch.stack([1 - found, found], dim=1)

    hu = hu_of((8, 8, 16))
    system = Corner(spec_3d(whole_windows=True, window=(8, 8, 16), patch=(8, 8, 16)))
    found = predict(system, {"PV": hu}, SPACING, tiling=Tiling(flips=flips, flip_z=flip_z))[1]
    assert len(system.seen) == images
    corners = found[:: hu.shape[0] - 1, :: hu.shape[1] - 1, :: hu.shape[2] - 1]
    assert np.count_nonzero(found) == images
    assert np.count_nonzero(corners == 1 / images) == images


@settings(max_examples=8, deadline=None)
@given(shape=st.tuples(*(st.integers(1, 30) for _ in range(3))), uniform=st.booleans())
def test_property_a_volume_smaller_than_the_window_is_continued_by_its_edge(shape, uniform) -> None:
    hu = hu_of(shape)
    system = Echo(small(whole_windows=True, uniform_windows=uniform))
    found = predict(system, {"PV": hu}, SPACING)
    assert {image[3:] for image, _ in system.seen} == {(16, 16, 16)}
    np.testing.assert_allclose(found[1], np.clip(hu.astype(np.float32) / 100, 0, 1), atol=1e-6)


def test_oracle_a_small_volume_is_shown_as_in_training() -> None:
    hu, spec = hu_of((2, 9, 20)), small(whole_windows=True)
    label, liver = np.zeros(hu.shape, np.uint8), np.zeros(hu.shape, bool)
    contents, none = slice_contents(label, liver), np.zeros((0, 3), np.int32)
    shown = np.array([True])
    voxels = foreground_voxels(label)
    case = PreparedCase("case", hu[None], shown, label, liver, SPACING, contents, none, voxels)
    start = (-7, -3, 1)
    wanted = cut(case, spec, start, (16, 16, 16), shown).image
    scene = scene_of(spec, {"PV": hu}, None, SPACING)
    z, y, x = start
    np.testing.assert_array_equal(scene.image(Box(start, (z + 16, y + 16, x + 16))), wanted)


def corner_liver(shape: tuple[int, int, int]) -> np.ndarray:
    liver = np.zeros(shape, dtype=bool)
    liver[10:22, 6:20, 30:45] = True
    return liver


def run(system: Echo, hu: np.ndarray, liver: np.ndarray | None, **tiling) -> tuple:
    counts: list[tuple[int, int]] = []
    settings = Tiling(counted=lambda *n: counts.append(n), **tiling)
    found = predict(system, {"PV": hu}, SPACING, liver=liver, tiling=settings)
    (count,) = counts
    return found, count


@pytest.mark.parametrize("needs_liver", [False, True])
def test_property_only_windows_that_meet_the_liver_are_run(needs_liver) -> None:
    hu, liver = hu_of((32, 40, 48)), corner_liver((32, 40, 48))
    system = Neighbors(small(needs_liver=needs_liver, whole_windows=True))
    found, (ran, left_out) = run(system, hu, liver)
    assert ran == len(system.seen)
    seen = hu if not needs_liver else np.where(liver, hu, -100).astype(np.int16)
    everywhere, (every, none) = run(Neighbors(small(whole_windows=True)), seen, None)
    assert none == 0
    if needs_liver:
        assert left_out + ran < every / 4
        assert (found[0][~liver] == 1).all()
    else:
        assert left_out + ran == every
        assert ran < every / 2
        np.testing.assert_allclose(found[:, liver], everywhere[:, liver], atol=1e-6)
        np.testing.assert_allclose(found[0][:, 32:], 1, atol=1e-6)


@pytest.mark.parametrize("around_mm", [0.0, 4.0, 30.0])
def test_property_windows_laid_around_the_liver_are_fewer_and_see_real_neighbors(around_mm) -> None:
    hu, liver = hu_of((32, 40, 48)), corner_liver((32, 40, 48))
    system = Neighbors(small(whole_windows=True))
    found, (ran, left_out) = run(system, hu, liver, around_liver_mm=around_mm)
    plain, (more, _) = run(Neighbors(small(whole_windows=True)), hu, liver)
    assert ran == len(system.seen)
    assert ran < more or around_mm > 4
    if around_mm == 0:
        assert (ran, left_out) == (1, 0)  # 12 x 14 x 15 voxels fit one window of 16
        whole = predict(Neighbors(spec_3d()), {"PV": hu}, SPACING)
        inner = np.zeros_like(liver)
        inner[10:22, 6:20, 31:45] = True  # of the window 8-24, 5-21, 30-46
        inner &= liver
        np.testing.assert_allclose(found[:, inner], whole[:, inner], atol=1e-6)
        assert (found[0][:, 21:] == 1).all()
    assert plain.shape == found.shape
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)


def test_property_without_a_liver_found_no_window_is_run() -> None:
    system = Echo(small(whole_windows=True))
    found = predict(system, {"PV": hu_of((8, 20, 20))}, SPACING, liver=np.zeros((8, 20, 20), bool))
    assert not system.seen
    assert (found[0] == 1).all()
