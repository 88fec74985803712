"""The table of overlaps and one-to-one matching, against slow loops and worked by hand."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from hepar.evaluate import lesion
from hepar.evaluate.lesion import (
    DetectionCounts,
    LesionOverlaps,
    components,
    lesion_overlaps,
    match_lesions,
    match_one_to_one,
    occupied,
)
from hepar.geometry import Box


def blobs(seed: int, shape=(9, 17, 15)) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=shape)
    smooth = ndimage.gaussian_filter(noise, 1.6)
    return smooth > 0.6 * smooth.std()


def pair_of_maps(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Lesions, and the same ones moved, some lost and some new; ids of the two are unrelated."""
    mask = blobs(seed, (10, 20, 20))
    moved = np.roll(mask, 1, axis=2) ^ (
        blobs(seed + 1000, (10, 20, 20)) & blobs(seed + 2000, (10, 20, 20))
    )
    return components(mask), components(moved[:, ::-1])[:, ::-1]


def counted_by_loop(predicted, reference, voxel_mm3):
    ids_p, ids_r = (np.unique(m[m > 0]).tolist() for m in (predicted, reference))
    shared = {
        (p, r): int(((predicted == p) & (reference == r)).sum()) for p in ids_p for r in ids_r
    }
    return LesionOverlaps(
        {p: int((predicted == p).sum()) for p in ids_p},
        {r: int((reference == r).sum()) for r in ids_r},
        {pair: n for pair, n in shared.items() if n},
        voxel_mm3,
    )


@pytest.mark.parametrize("slab_voxels", [1, 1200, 2**22])
@pytest.mark.parametrize(("dtypes", "scale"), [(("u1", "i4"), 1), (("u4", "i8"), 2**20)])
def test_oracle_table_equals_counting_voxels(monkeypatch, slab_voxels, dtypes, scale):
    monkeypatch.setattr(lesion, "_SLAB_VOXELS", slab_voxels)
    for seed in range(3):
        maps = pair_of_maps(seed)
        a, b = (m.astype(kind) * scale for m, kind in zip(maps, dtypes, strict=True))
        assert lesion_overlaps(a, b, 1.5) == counted_by_loop(a, b, 1.5)
    empty = np.zeros((3, 4, 5), np.uint8)
    assert lesion_overlaps(empty, empty, 1.0) == LesionOverlaps({}, {}, {}, 1.0)


def test_property_layout_in_memory_changes_nothing():
    a, b = pair_of_maps(3)
    assert lesion_overlaps(np.asfortranarray(a), b[::1], 1.0) == lesion_overlaps(a, b, 1.0)


def test_regression_a_map_on_disk_is_read_in_slabs(tmp_path, monkeypatch):
    monkeypatch.setattr(lesion, "_SLAB_VOXELS", 2**15)
    maps = [
        np.memmap(tmp_path / name, dtype=np.int32, mode="w+", shape=(128, 128, 128))
        for name in "ab"
    ]
    maps[0][40:44, 50:60, 50:60] = 7
    maps[1][42:46, 50:60, 50:60] = 9
    tracemalloc.start()
    table = lesion_overlaps(maps[0], maps[1], 1.0)
    box = occupied(maps[0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert table.shared == {(7, 9): 200}
    assert box == Box((40, 50, 50), (44, 60, 60))
    assert peak < 2**19, "a slab holds 32 thousand voxels, the map 2 million"


def test_closed_form_what_is_no_map_of_lesions_is_refused():
    a = np.zeros((2, 3, 4), np.int32)
    with pytest.raises(ValueError, match="shapes"):
        lesion_overlaps(a, a[:1], 1.0)
    a[0, 0, 0] = -1
    with pytest.raises(ValueError, match="negative"):
        lesion_overlaps(a, np.zeros_like(a), 1.0)


def brute_force_match(predicted, reference, measure, at_least):
    pairs = []
    for p in np.unique(predicted[predicted > 0]).tolist():
        for r in np.unique(reference[reference > 0]).tolist():
            both = int(((predicted == p) & (reference == r)).sum())
            total = int((predicted == p).sum() + (reference == r).sum())
            value = both / (total - both) if measure == "iou" else 2 * both / total
            if value >= at_least:
                pairs.append((value, p, r))
    used_p, used_r, found = set(), set(), []
    for value, p, r in sorted(pairs, key=lambda t: (-t[0], t[1], t[2])):
        if p not in used_p and r not in used_r:
            used_p.add(p)
            used_r.add(r)
            found.append((p, r, value))
    return found


@pytest.mark.parametrize(("measure", "at_least"), [("iou", 0.1), ("dice", 0.2), ("iou", 0.4)])
@pytest.mark.parametrize("seed", range(5))
def test_oracle_matching_equals_a_slow_loop(seed, measure, at_least):
    a, b = pair_of_maps(seed)
    table = lesion_overlaps(a, b, 2.0)
    got = match_one_to_one(table, measure=measure, at_least=at_least)
    expected = brute_force_match(a, b, measure, at_least)
    assert expected
    assert list(got.pairs) == expected
    assert set(got.missed) == set(table.reference) - {r for _, r, _ in expected}
    assert set(got.false) == set(table.predicted) - {p for p, _, _ in expected}
    assert got.recall == len(expected) / len(table.reference)
    assert got.precision == len(expected) / len(table.predicted)
    if measure == "iou":
        assert match_lesions(a, b, 0.002, min_iou=at_least) == got


def test_closed_form_lesion_counts():
    shape = (1, 30, 30)
    truth, found = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    truth[0, 2:6, 2:6], truth[0, 20:24, 20:24], truth[0, 2:4, 20:22] = 1, 2, 3
    found[0, 2:6, 2:5], found[0, 10:12, 10:12], found[0, 2:4, 20:22] = 1, 2, 3
    match = match_lesions(found, truth, 0.5, ignore=frozenset({3}))
    assert match.pairs == ((1, 1, 12 / 16),)
    assert (match.missed, match.false) == ((2,), (2,))
    assert match.recall == match.precision == 0.5
    assert match.counts == DetectionCounts(2, 2, 1, 1)
    assert match.reference_ml == {1: 8.0, 2: 8.0}
    nothing = match_lesions(found * 0, truth * 0, 1.0)
    assert nothing.recall is None
    assert nothing.precision is None


def table(predicted: dict, reference: dict, shared: dict) -> LesionOverlaps:
    return LesionOverlaps(predicted, reference, shared, 1.0)


def test_closed_form_the_threshold_itself_is_a_match():
    tenth = table({1: 5}, {1: 6}, {(1, 1): 1})
    assert match_one_to_one(tenth).pairs == ((1, 1, 0.1),)
    fifth = table({1: 5}, {1: 5}, {(1, 1): 1})
    assert match_one_to_one(fifth, measure="dice", at_least=0.2).pairs == ((1, 1, 0.2),)
    assert match_one_to_one(table({1: 5}, {1: 7}, {(1, 1): 1})).pairs == ()


def test_closed_form_of_equal_overlaps_the_lower_ids_go_first():
    tied = table({4: 10, 2: 10}, {9: 10, 3: 10}, {(4, 9): 5, (4, 3): 5, (2, 9): 5, (2, 3): 5})
    assert [pair[:2] for pair in match_one_to_one(tied).pairs] == [(2, 3), (4, 9)]


def test_closed_form_a_prediction_on_an_ignored_lesion_is_not_false():
    mostly = table({1: 10, 2: 10, 3: 10}, {1: 100, 2: 8}, {(1, 1): 5, (2, 1): 4, (3, 2): 2})
    match = match_one_to_one(mostly, ignore=frozenset({1, 2}))
    assert (match.pairs, match.missed, match.false) == ((), (), (2,))
    assert match.counts == DetectionCounts(0, 1, 0, 0)


@st.composite
def tables(draw) -> LesionOverlaps:
    """Tables of any overlaps: each lesion holds what it shares and some more."""
    n_p, n_r = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    shared = draw(
        st.dictionaries(st.tuples(st.integers(1, n_p), st.integers(1, n_r)), st.integers(1, 9))
    )
    more = st.integers(1, 9)
    sums_p = {p: sum(n for (a, _), n in shared.items() if a == p) for p in range(1, n_p + 1)}
    sums_r = {r: sum(n for (_, b), n in shared.items() if b == r) for r in range(1, n_r + 1)}
    return table(
        {p: n + draw(more) for p, n in sums_p.items()},
        {r: n + draw(more) for r, n in sums_r.items()},
        shared,
    )


@given(tables(), st.integers(1, 6))
def test_property_one_more_prediction_never_loses_a_lesion(overlaps, added):
    fewer = match_one_to_one(overlaps.keep(predicted=set(overlaps.predicted) - {added}))
    more = match_one_to_one(overlaps)
    assert {r for _, r, _ in fewer.pairs} <= {r for _, r, _ in more.pairs}
    assert set(fewer.false) <= set(more.false)


@given(tables(), st.sets(st.integers(1, 6)), st.sets(st.integers(1, 6)))
def test_property_a_kept_part_of_the_table_is_the_table_of_that_part(overlaps, ids_p, ids_r):
    part = overlaps.keep(ids_p, ids_r)
    assert set(part.predicted) == ids_p & set(overlaps.predicted)
    assert set(part.reference) == ids_r & set(overlaps.reference)
    assert part.shared == {
        pair: n for pair, n in overlaps.shared.items() if pair[0] in ids_p and pair[1] in ids_r
    }
    assert overlaps.keep() == overlaps


def test_closed_form_components_join_diagonals_and_drop_the_small():
    mask = np.zeros((3, 5, 5), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 4, 4] = True
    labels = components(mask)
    assert labels[0, 0, 0] == labels[1, 1, 1] == 1
    assert labels[2, 4, 4] == labels.max() == 2
    small_first = np.zeros((3, 5, 5), bool)
    small_first[0, 0, 0] = small_first[2, 4, 3:] = True
    kept = components(small_first, min_voxels=2)
    assert kept[0, 0, 0] == 0
    assert kept[2, 4, 3] == kept.max() == 1
    assert components(np.zeros((2, 2, 2), bool)).max() == 0


@given(st.integers(0, 10_000))
def test_oracle_box_of_what_is_above_equals_argwhere(seed):
    values = np.random.default_rng(seed).choice(4, size=(5, 6, 7), p=[0.95, 0.03, 0.01, 0.01])
    for above in range(4):
        where = np.argwhere(values > above)
        expected = (
            Box(tuple(where.min(0).tolist()), tuple((where.max(0) + 1).tolist()))
            if len(where)
            else None
        )
        assert occupied(values, above) == expected
