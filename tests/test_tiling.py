"""Tiling: what reaches a network, and that the way it is cut up changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fake_systems import Echo, spec_2d, spec_3d
from hepar.errors import InputRefused
from hepar.infer.tiling import Tiling, predict

SPACING = (2.0, 1.0, 1.0)


def _hu(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-50, 150, shape).astype(np.int16)


def _liver(shape: tuple[int, int, int]) -> np.ndarray:
    liver = np.zeros(shape, dtype=bool)
    liver[2:5, 5:20, 7:30] = True
    return liver


def _scaled(hu: np.ndarray) -> np.ndarray:
    return np.clip(hu.astype(np.float32) / 100, 0, 1)


@given(
    shape=st.tuples(*(st.integers(5, 40) for _ in range(3))),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75]),
)
def test_property_windows_give_what_the_whole_volume_gives(
    shape: tuple[int, int, int], overlap: float
) -> None:
    hu = _hu(shape)
    system = Echo(spec_3d())
    tiled = predict(system, {"PV": hu}, SPACING, tiling=Tiling(budget_bytes=1, overlap=overlap))
    windows = len(system.seen)
    whole = predict(system, {"PV": hu}, SPACING)
    # Two float32 sums over as many as 125 overlapping windows: 2 * 125 * 2**-24 = 1.5e-5.
    np.testing.assert_allclose(tiled, whole, atol=1.5e-5)
    np.testing.assert_allclose(whole[1], _scaled(hu), atol=1e-6)
    assert windows > 2 or max(shape) <= 16
    assert all(max(image[3:]) <= 16 for image, _ in system.seen[:windows])


def test_property_windows_with_context_agree_in_their_middles() -> None:
    class Blur(Echo):
        """Needs its neighbors: a window is wrong at its border and right in its middle."""

        def decode(self, outputs: torch.Tensor) -> torch.Tensor:
            blurred = nn.functional.avg_pool3d(outputs[:, None], 3, 1, 1, count_include_pad=False)
            return torch.cat([1 - blurred, blurred], dim=1)

    hu = _hu((12, 40, 40))
    system = Blur(spec_3d(patch=(16, 24, 24)))
    whole = predict(system, {"PV": hu}, SPACING)[1]
    tiled = predict(system, {"PV": hu}, SPACING, tiling=Tiling(budget_bytes=1))[1]
    assert np.abs(tiled - whole).mean() < 0.005
    assert np.abs(tiled - whole).max() > 0  # the windows were really used


@pytest.mark.parametrize("budget", [1, 100_000, 10**9])
def test_property_memory_budget_changes_nothing_in_2d(budget: int) -> None:
    hu = {"ART": _hu((9, 33, 41), 1), "PV": _hu((9, 33, 41), 2)}
    liver = _liver((9, 33, 41))
    system = Echo(spec_2d(slice_offsets_mm=(-2.0, 0.0, 2.0)))
    found = predict(system, hu, SPACING, liver=liver, tiling=Tiling(budget_bytes=budget))
    reference = predict(system, hu, SPACING, liver=liver)
    np.testing.assert_allclose(found, reference, atol=1e-6)


def test_closed_form_context_repeats_the_edge_and_is_masked() -> None:
    hu = np.zeros((3, 8, 8), dtype=np.int16)
    hu[0], hu[1], hu[2] = 10, 20, 60
    liver = np.ones((3, 8, 8), dtype=bool)
    liver[2, :, 4:] = False
    system = Echo(spec_2d(phases=("PV",), slice_offsets_mm=(-2.0, 0.0, 2.0)))
    found = predict(system, {"PV": hu}, SPACING, liver=liver)[1]
    assert found[0, 0, 0] == pytest.approx((0.1 + 0.1 + 0.2) / 3)
    assert found[1, 0, 0] == pytest.approx((0.1 + 0.2 + 0.6) / 3)
    assert found[1, 0, 7] == pytest.approx((0.1 + 0.2 + 0.0) / 3)  # the neighbor is not liver
    assert found[2, 0, 0] == pytest.approx((0.2 + 0.6 + 0.6) / 3)
    assert found[2, 0, 7] == 0  # itself not liver


def test_slices_without_liver_are_never_sent() -> None:
    shape = (30, 40, 48)
    liver = _liver(shape)
    liver[10:12, 5:20, 7:30] = True  # a second part after a gap
    system = Echo(spec_2d())
    found = predict(system, {"PV": _hu(shape)}, SPACING, liver=liver)
    sent = system.seen[1:]  # the first only measures the cost
    assert sum(image[0] for image, _ in sent) == 5
    # 15 x 23 pixels of liver and 4 around them, padded to the stride of 8
    assert all(image[3:] == (24, 32) for image, _ in sent)
    assert (found[0][~liver] == 1).all()
    assert (found[1][~liver] == 0).all()
    assert found[1][liver].mean() > 0.1


def test_windows_without_liver_are_never_sent() -> None:
    shape = (16, 64, 64)
    liver = np.zeros(shape, dtype=bool)
    liver[:, :10, :10] = True
    system = Echo(spec_3d())
    predict(system, {"PV": _hu(shape)}, SPACING, tiling=Tiling(budget_bytes=1))
    without_liver = len(system.seen)
    system.seen.clear()
    found = predict(system, {"PV": _hu(shape)}, SPACING, liver=liver, tiling=Tiling(budget_bytes=1))
    assert len(system.seen) < without_liver / 4
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)


def test_no_window_is_larger_than_the_system_wants() -> None:
    shape = (20, 50, 40)
    system = Echo(spec_3d(window=(24, 32, 32)))
    whole = predict(Echo(spec_3d()), {"PV": _hu(shape)}, SPACING)
    found = predict(system, {"PV": _hu(shape)}, SPACING)
    sizes = {seen[-3:] for seen, _ in system.seen[1:]}
    assert sizes == {(24, 32, 32)}  # 20 slices, padded to the stride
    np.testing.assert_allclose(found, whole, atol=1e-5)
    alone = Echo(spec_3d())
    predict(alone, {"PV": _hu(shape)}, SPACING)
    assert len(alone.seen) == 2  # the cost of a corner, and the whole volume


def test_empty_liver_asks_the_network_nothing() -> None:
    system = Echo(spec_2d())
    found = predict(system, {"PV": _hu((4, 8, 8))}, SPACING, liver=np.zeros((4, 8, 8), dtype=bool))
    assert not system.seen
    assert (found[0] == 1).all()
    assert (found[1] == 0).all()


def test_absent_phases_are_passed_as_absent() -> None:
    shape = (4, 16, 16)
    liver = np.ones(shape, dtype=bool)
    system = Echo(spec_2d(phases=("NC", "ART", "PV")))
    hu = _hu(shape)
    found = predict(system, {"PV": hu, "DL": hu}, SPACING, liver=liver)
    assert all(
        present.tolist() == [[False, False, True]] * image[0] for image, present in system.seen
    )
    np.testing.assert_allclose(found[1], _scaled(hu), atol=1e-6)


def test_refused_without_any_or_a_required_phase() -> None:
    hu = _hu((4, 16, 16))
    liver = np.ones((4, 16, 16), dtype=bool)
    with pytest.raises(InputRefused) as none:
        predict(Echo(spec_2d()), {"DL": hu}, SPACING, liver=liver)
    with pytest.raises(InputRefused) as one:
        predict(Echo(spec_2d(needs_all_phases=True)), {"PV": hu}, SPACING, liver=liver)
    assert none.value.code == one.value.code == "E_PHASES_REQUIRED"
    assert "ART" in one.value.message
    assert one.value.exit_code == 10


def test_classes_are_chosen_by_name_and_in_order() -> None:
    hu = _hu((9, 17, 11))
    both = predict(Echo(spec_3d()), {"PV": hu}, SPACING)
    liver = predict(Echo(spec_3d()), {"PV": hu}, SPACING, classes=("liver",))
    turned = predict(Echo(spec_3d()), {"PV": hu}, SPACING, classes=("liver", "other"))
    np.testing.assert_array_equal(liver, both[1:])
    np.testing.assert_array_equal(turned, both[::-1])


def test_property_flips_of_an_equivariant_system_change_nothing() -> None:
    hu = _hu((5, 19, 23))
    plain = predict(Echo(spec_3d()), {"PV": hu}, SPACING)
    flipped = predict(Echo(spec_3d()), {"PV": hu}, SPACING, tiling=Tiling(flips=True))
    np.testing.assert_allclose(flipped, plain, atol=1e-6)


def test_closed_form_flips_average_a_system_that_is_not_equivariant() -> None:
    class Ramp(Echo):
        def decode(self, outputs: torch.Tensor) -> torch.Tensor:
            ramp = torch.linspace(0, 1, outputs.shape[-1]).expand(outputs.shape)
            return torch.stack([1 - ramp, ramp], dim=1)

    hu = _hu((4, 8, 16))
    found = predict(Ramp(spec_3d()), {"PV": hu}, SPACING, tiling=Tiling(flips=True))
    np.testing.assert_allclose(found, 0.5, atol=1e-6)


def test_runner_takes_the_place_of_the_network_and_training_mode_returns() -> None:
    system = Echo(spec_3d()).train()
    calls = []

    def runner_for(module: nn.Module, warn):
        assert module is system

        def run(image: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
            calls.append(image.shape)
            return torch.full((1, 2, *image.shape[3:]), 0.25)

        return run

    found = predict(system, {"PV": _hu((8, 8, 8))}, SPACING, tiling=Tiling(runner_for=runner_for))
    assert calls
    assert (found == 0.25).all()
    assert system.training


def test_progress_ends_at_one() -> None:
    shares: list[float] = []
    shape = (12, 16, 16)
    predict(
        Echo(spec_2d()),
        {"PV": _hu(shape)},
        SPACING,
        liver=np.ones(shape, dtype=bool),
        tiling=Tiling(budget_bytes=1, progress=shares.append),
    )
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len(shares) == 12
