"""Reliability of probabilities: against a loop in float64, in closed form, and by properties."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from hepar.evaluate.calibration import Reliability, ReliabilityBin, reliability

# Half of them on the edges of ten or of seven bins, the ends included.
CHANCES = st.one_of(
    st.integers(0, 10).map(lambda k: k / 10),
    st.integers(0, 7).map(lambda k: k / 7),
    st.floats(0, 1),
)
predictions = st.lists(st.tuples(CHANCES, st.booleans()), min_size=1, max_size=60).map(
    lambda rows: (np.array([r[0] for r in rows], np.float64), np.array([r[1] for r in rows], bool))
)


def slow(p: np.ndarray, y: np.ndarray, edges: list[float]) -> tuple[list[tuple], float, float]:
    """Bins as (n, mean probability, observed), ECE and MCE by one loop over bins."""
    rows, ece, mce = [], 0.0, 0.0
    for k, (low, high) in enumerate(pairwise(edges)):
        inside = [i for i, v in enumerate(p) if (v >= low if k == 0 else v > low) and v <= high]
        if not inside:
            rows.append((0, None, None))
            continue
        said = math.fsum(p[i] for i in inside) / len(inside)
        came = sum(bool(y[i]) for i in inside) / len(inside)
        rows.append((len(inside), said, came))
        ece += len(inside) / len(p) * abs(came - said)
        mce = max(mce, abs(came - said))
    return rows, ece, mce


def agrees(found: Reliability, p: np.ndarray, y: np.ndarray, edges: list[float]) -> None:
    rows, ece, mce = slow(p, y, edges)
    assert [b.n for b in found.bins] == [n for n, _, _ in rows]
    for b, (_, said, came) in zip(found.bins, rows, strict=True):
        assert b.mean_probability == (None if said is None else pytest.approx(said, abs=1e-12))
        assert b.observed == came
    assert found.ece == pytest.approx(ece, abs=1e-12)
    assert found.mce == pytest.approx(mce, abs=1e-12)


@given(predictions, st.sampled_from([1, 2, 7, 10, 15]))
def test_oracle_equal_widths_equal_a_loop(rows, n_bins):
    p, y = rows
    found = reliability(p, y, n_bins=n_bins)
    assert found.n == len(p) == sum(b.n for b in found.bins)
    assert [b.low for b in found.bins] == [k / n_bins for k in range(n_bins)]
    assert [b.high for b in found.bins] == [(k + 1) / n_bins for k in range(n_bins)]
    agrees(found, p, y, [k / n_bins for k in range(n_bins + 1)])


@given(predictions, st.integers(1, 12))
def test_oracle_equal_masses_equal_a_loop(rows, n_bins):
    p, y = rows
    found = reliability(p, y, n_bins=n_bins, bins="mass")
    ordered = sorted(p.tolist())
    cuts = {ordered[math.ceil(k * len(p) / n_bins) - 1] for k in range(1, n_bins + 1)}
    agrees(found, p, y, [0.0, *sorted(cuts)])
    assert all(b.n > 0 for b in found.bins)


def test_oracle_curve_and_brier_score_equal_scikit_learn():
    """Away from edges, where scikit-learn closes bins on the other side."""
    rng = np.random.default_rng(5)
    p = rng.random(500)
    y = rng.random(500) < p**2
    found = reliability(p, y, n_bins=8)
    observed, said = calibration_curve(y, p, n_bins=8)
    assert [b.observed for b in found.bins] == pytest.approx(observed, abs=1e-12)
    assert [b.mean_probability for b in found.bins] == pytest.approx(said, abs=1e-12)
    assert found.brier == pytest.approx(brier_score_loss(y, p), abs=1e-12)


def test_closed_form_a_cohort_worked_by_hand():
    p = np.array([0.0, 0.5, 0.5, 0.75, 1.0])
    y = np.array([0, 1, 0, 0, 1], bool)
    found = reliability(p, y, n_bins=4)
    assert found.bins == (
        ReliabilityBin(0.0, 0.25, 1, 0.0, 0.0),
        ReliabilityBin(0.25, 0.5, 2, 0.5, 0.5),
        ReliabilityBin(0.5, 0.75, 1, 0.75, 0.0),
        ReliabilityBin(0.75, 1.0, 1, 1.0, 1.0),
    )
    assert (found.ece, found.mce) == (0.75 / 5, 0.75)
    assert found.brier == (0.25 + 0.25 + 0.75**2) / 5
    empty = reliability(p[:1], y[:1], n_bins=2).bins[1]
    assert empty == ReliabilityBin(0.5, 1.0, 0, None, None)
    assert empty.gap == 0.0


@pytest.mark.parametrize("n_bins", [5, 10, 20])
def test_closed_form_an_edge_belongs_to_the_bin_below_it(n_bins):
    """Every edge as it would be written, where steps of 1 / n added up would miss some."""
    edges = np.array([float(f"{k / n_bins:.2f}") for k in range(n_bins + 1)])
    found = reliability(edges, np.zeros(n_bins + 1, bool), n_bins=n_bins)
    assert [b.n for b in found.bins] == [2, *[1] * (n_bins - 1)]


def test_closed_form_perfectly_calibrated_and_perfectly_wrong():
    p = np.array([0.25] * 4 + [0.75] * 4)
    y = np.array([1, 0, 0, 0, 1, 1, 1, 0], bool)
    good = reliability(p, y)
    assert (good.ece, good.mce, good.brier) == (0.0, 0.0, 0.25 * 0.75)
    sure = np.array([0.0, 1.0])
    right, wrong = (reliability(sure, y) for y in (sure > 0.5, sure < 0.5))
    assert (right.ece, right.mce, right.brier) == (0.0, 0.0, 0.0)
    assert (wrong.ece, wrong.mce, wrong.brier) == (1.0, 1.0, 1.0)


def test_closed_form_equal_masses_keep_equal_probabilities_together():
    p = np.array([0.0, 0.0, 0.0, 0.0, 0.2, 0.3, 0.3, 0.9])
    found = reliability(p, np.zeros(8, bool), n_bins=4, bins="mass")
    assert [(b.low, b.high, b.n) for b in found.bins] == [
        (0.0, 0.0, 4),
        (0.0, 0.3, 3),
        (0.3, 0.9, 1),
    ]
    spread = reliability(np.arange(12) / 12, np.zeros(12, bool), n_bins=4, bins="mass")
    assert [b.n for b in spread.bins] == [3, 3, 3, 3]


@pytest.mark.parametrize("chance", [math.nan, -1e-9, 1 + 1e-9, math.inf])
def test_closed_form_what_is_no_probability_is_refused(chance):
    with pytest.raises(ValueError, match="NaN or outside"):
        reliability(np.array([0.5, chance]), np.array([True, False]))


def test_closed_form_nothing_to_compare_is_refused():
    with pytest.raises(ValueError, match="0 predictions"):
        reliability(np.zeros(0), np.zeros(0, bool))
    with pytest.raises(ValueError, match="0 bins"):
        reliability(np.array([0.5]), np.array([True]), n_bins=0)


@given(predictions, st.integers(0, 100), st.sampled_from(["width", "mass"]))
def test_property_order_does_not_matter(rows, seed, bins):
    p, y = rows
    order = np.random.default_rng(seed).permutation(len(p))
    first, second = (reliability(p[i], y[i], bins=bins) for i in (np.arange(len(p)), order))
    assert [b.n for b in first.bins] == [b.n for b in second.bins]
    assert [b.observed for b in first.bins] == [b.observed for b in second.bins]
    assert first.ece == pytest.approx(second.ece, abs=1e-12)
    assert first.brier == pytest.approx(second.brier, abs=1e-12)


@given(predictions)
def test_property_one_bin_compares_the_means_and_no_finer_bins_have_less_error(rows):
    p, y = rows
    one = reliability(p, y, n_bins=1)
    gap = abs(p.mean() - y.mean())
    assert [one.ece, one.mce] == pytest.approx([gap, gap], abs=1e-12)
    for n_bins in (2, 4, 8):
        finer = reliability(p, y, n_bins=n_bins)
        assert one.ece <= finer.ece + 1e-12
        assert finer.ece <= finer.mce + 1e-12
        assert finer.ece**2 <= finer.brier + 1e-12
        one = finer
