"""The lesions of a set of cases: a set worked by hand, slow loops, and what must not matter."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage

from hepar.evaluate.detection import RULES, SIZES_ML, summarize_lesions
from hepar.evaluate.froc import froc
from hepar.evaluate.lesion import DetectionCounts, components, match_lesions
from hepar.evaluate.lesion_case import LesionCase, lesion_case
from hepar.evaluate.lesion_classes import classify_lesions
from hepar.evaluate.surface import surface_distances
from hepar.study import LESION_TYPES

SHAPE = (6, 16, 20)
ML = (10.0, 10.0, 10.0)  # a voxel of one milliliter
OURS, LITS_ANY, LITS, SERVER, PLAN = range(5)


def liver(*lesions: tuple[slice, slice, slice]) -> np.ndarray:
    labels = np.ones(SHAPE, np.uint8)
    for lesion in lesions:
        labels[lesion] = 2
    return labels


def cube(corner: tuple[int, int, int], size: tuple[int, int, int]) -> tuple[slice, slice, slice]:
    z, y, x = (slice(a, a + n) for a, n in zip(corner, size, strict=True))
    return z, y, x


EIGHT = cube((0, 0, 0), (2, 2, 2))
ONE = cube((0, 0, 10), (1, 1, 1))
BIG, TWO_THIRDS = cube((0, 5, 5), (3, 3, 3)), cube((0, 5, 5), (2, 3, 3))
TWO = cube((4, 10, 10), (1, 1, 2))
NOWHERE = cube((4, 0, 16), (2, 2, 2))


def worked_set() -> list[LesionCase]:
    """Patient a brings two cases, b has no tumor, c has one and no finding."""
    both = components(liver(EIGHT, NOWHERE) == 2)
    first, second = int(both[EIGHT].max()), int(both[NOWHERE].max())
    nothing = {"predicted": liver(), "spacing_mm": ML, "scores": {}}
    return [
        lesion_case(
            "1", "a", liver(EIGHT, NOWHERE), liver(EIGHT, ONE), ML, scores={first: 0.9, second: 0.7}
        ),
        lesion_case("2", "a", liver(TWO_THIRDS), liver(BIG), ML, scores={1: 0.7}),
        lesion_case("3", "b", liver(NOWHERE), liver(), ML, scores={1: 0.95}),
        lesion_case("4", "c", reference=liver(TWO), **nothing),
    ]


def test_closed_form_every_figure_of_a_set_worked_by_hand():
    got = summarize_lesions(worked_set())
    json.dumps(got, allow_nan=False)
    for k, rule in enumerate(RULES):
        counts = got["rules"][k]
        assert counts["name"] == rule.name
        assert (counts["n_reference"], counts["n_predicted"]) == (4, 4)
        assert (counts["tp_reference"], counts["tp_predicted"]) == (2, 2)
        assert counts["recall"] == counts["precision"] == counts["f1"] == 0.5
    assert got["false_per_patient"] == pytest.approx(2 / 3)
    assert (got["tumor_free_patients"], got["false_in_tumor_free"]) == (1, 1)
    sizes = [
        (b["low_ml"], b["high_ml"], b["found"], b["total"], b["recall"]) for b in got["by_size"]
    ]
    assert sizes == [
        (0.0, 1.0, 0, 0, None),
        (1.0, 5.0, 0, 2, 0.0),  # the lesion of exactly 1 ml is here
        (5.0, 20.0, 1, 1, 1.0),
        (20.0, None, 1, 1, 1.0),
    ]
    assert got["by_size"][0]["interval"] is None
    assert got["by_size"][1]["interval"] == [0.0, pytest.approx(0.65762, abs=1e-5)]  # Wilson
    dice = got["per_lesion"]["dice"]["penalised"]
    assert dice["mean"] == pytest.approx((1 + 36 / 45) / 4)
    assert (dice["n"], dice["n_missed"], dice["n_detected"]) == (4, 2, 2)
    assert dice["detected_mean"] == pytest.approx(0.9)
    distance = got["per_lesion"]["assd_mm"]
    # 18 and 26 surface voxels; 10 mm off lie the 9 of the missing slice, and the predicted one that
    # is the center of the true cube and so not on its surface.
    detected = (0 + 100 / (18 + 26)) / 2
    assert distance["penalised"]["detected_mean"] == pytest.approx(detected)
    diagonal = math.sqrt(60**2 + 160**2 + 200**2)
    assert distance["penalised"]["mean"] == pytest.approx((2 * detected + 2 * diagonal) / 4)
    assert distance["paper"]["mean"] == pytest.approx(detected)
    assert distance["paper"]["n_undefined"] == 2
    assert got["classes"] is None


def test_closed_form_froc_worked_by_hand():
    curve = summarize_lesions(worked_set())["froc"]
    assert curve["points"] == [
        {"threshold": 0.95, "false_per_patient": 1 / 3, "recall": 0.0},
        {"threshold": 0.9, "false_per_patient": 1 / 3, "recall": 0.25},
        {"threshold": 0.7, "false_per_patient": 2 / 3, "recall": 0.5},  # two scores of 0.7
    ]
    assert curve["recall_at"] == {
        "0.125": 0.0,
        "0.25": 0.0,
        "0.5": 0.25,
        "1": 0.5,
        "2": 0.5,
        "4": 0.5,
        "8": 0.5,
    }


def test_closed_form_a_rate_that_is_met_exactly_counts():
    cases = worked_set()
    twice = [dataclasses.replace(cases[2], case_id=f"b{k}", patient_id=f"b{k}") for k in range(2)]
    found = dataclasses.replace(cases[1], scores={1: 0.95})
    at = froc([found, *twice, *worked_set()[3:]])["recall_at"]
    assert (at["0.25"], at["0.5"]) == (0.0, 0.5), "2 false lesions of 4 patients"


def test_closed_form_froc_is_none_where_it_cannot_be_drawn():
    cases = worked_set()
    assert froc([dataclasses.replace(cases[0], scores=None), *cases[1:]]) is None
    no_finding = dataclasses.replace(cases[3], scores=None)
    assert froc([*cases[:3], no_finding]) == froc(cases)
    assert froc([no_finding]) is None
    assert froc(cases[2:3]) is None, "no lesion to recall"
    assert set(froc(cases[3:])["recall_at"].values()) == {0.0}


def scene(seed: int) -> dict[str, np.ndarray]:
    """A truth, and a prediction that is moved, loses some lesions and has some of its own."""
    rng = np.random.default_rng(seed)
    truth, other = (ndimage.gaussian_filter(n, 1.2) > 0.17 for n in rng.normal(size=(2, 8, 22, 26)))
    kept = components(truth)
    lost = rng.random(int(kept.max()) + 1) < 0.2
    found = np.roll(truth & ~lost[kept], 1, axis=1) | (other & (rng.random(other.shape) < 0.4))
    return {"predicted": found.astype(np.uint8) + 1, "reference": truth.astype(np.uint8) + 1}


def scored_case(seed: int, **changes) -> LesionCase:
    maps = scene(seed)
    count = int(components(maps["predicted"] == 2).max())
    scores = np.random.default_rng(seed).integers(0, 5, count) / 5  # many equal scores
    every = {
        "case_id": str(seed),
        "patient_id": str(seed // 2),
        "spacing_mm": (4.0, 3.0, 2.0),
        **maps,
        "scores": {p + 1: float(s) for p, s in enumerate(scores)},
    }
    return lesion_case(**(every | changes))


def test_oracle_froc_equals_scoring_the_images_again_at_every_threshold():
    seeds = range(4)
    curve = froc([scored_case(seed) for seed in seeds])
    assert len(curve["points"]) == 5
    for point in curve["points"]:
        found = false = total = 0
        for seed in seeds:
            maps = scene(seed)
            ids = components(maps["predicted"] == 2)
            for p, score in scored_case(seed).scores.items():
                if score < point["threshold"]:
                    ids[ids == p] = 0
            match = match_lesions(ids, components(maps["reference"] == 2), 1.0)
            found += len(match.pairs)
            false += len(match.false)
            total += len(match.pairs) + len(match.missed)
        assert point["recall"] == found / total
        assert point["false_per_patient"] == false / 2
    for rate, recall in curve["recall_at"].items():
        below = [p["recall"] for p in curve["points"] if p["false_per_patient"] <= float(rate)]
        assert recall == max([0.0, *below])


@pytest.mark.parametrize("seed", range(20, 26))
def test_property_recall_and_false_lesions_rise_as_the_threshold_falls(seed):
    cases = [scored_case(seed), scored_case(seed + 10)]
    points = froc(cases)["points"]
    for key, direction in {"threshold": -1, "recall": 1, "false_per_patient": 1}.items():
        assert all(direction * d >= 0 for d in np.diff([point[key] for point in points]))
    every = [counts(case)[OURS] for case in cases]
    found, total = sum(c.tp_reference for c in every), sum(c.n_reference for c in every)
    assert points[-1]["recall"] == found / total


def test_property_order_of_cases_changes_nothing():
    cases = [scored_case(seed) for seed in range(6)]
    assert summarize_lesions(cases[::-1]) == summarize_lesions(cases)
    assert summarize_lesions(cases[3:] + cases[:3]) == summarize_lesions(cases)


def counts(case: LesionCase) -> list[DetectionCounts]:
    return [rule.count(case) for rule in RULES]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("axis", range(3))
def test_property_flips_change_nothing_but_the_servers_numbers(seed, axis):
    straight = scored_case(seed, scores=None)
    maps = {name: np.flip(m, axis) for name, m in scene(seed).items()}
    flipped = scored_case(seed, scores=None, **maps)
    for k in (OURS, LITS_ANY, LITS, PLAN):
        assert counts(flipped)[k] == counts(straight)[k], RULES[k].name
    assert sorted(flipped.assd_mm.values()) == pytest.approx(sorted(straight.assd_mm.values()))


def test_property_flips_change_the_servers_numbers():
    differ = 0
    for seed in range(5):
        maps = {name: m[:, :, ::-1] for name, m in scene(seed).items()}
        flipped = scored_case(seed, scores=None, **maps)
        differ += counts(flipped)[SERVER] != counts(scored_case(seed, scores=None))[SERVER]
    assert differ > 0


def rounded(document: dict) -> dict:
    """To nine digits: sums in another order."""
    return json.loads(json.dumps(document), parse_float=lambda text: round(float(text), 9))


@pytest.mark.parametrize("seed", range(6))
def test_property_numbers_of_lesions_mean_nothing(seed):
    maps = scene(seed)
    rng = np.random.default_rng(seed)
    ids = {side: components(maps[side] == 2) for side in maps}
    new = {s: rng.permutation(np.arange(1, 2 * int(m.max()) + 1)) for s, m in ids.items()}

    def case(number: dict[str, np.ndarray]) -> LesionCase:
        def typed(side):
            return {int(number[side][i]): LESION_TYPES[i % 8] for i in range(ids[side].max())}

        tables = {s: np.concatenate([[0], number[s]]).astype(np.int32) for s in number}
        return scored_case(
            seed,
            predicted_instances=tables["predicted"][ids["predicted"]],
            reference_instances=tables["reference"][ids["reference"]],
            scores={p: (k % 7) / 7 for k, p in enumerate(number["predicted"].tolist())},
            predicted_types=typed("predicted"),
            reference_types=typed("reference"),
        )

    one = summarize_lesions([case({s: np.arange(1, m.max() + 1) for s, m in ids.items()})])
    two = summarize_lesions([case(new)])
    assert one["classes"]["n"] > 0
    assert rounded(one) == rounded(two)


@pytest.mark.parametrize("seed", range(30, 34))
@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_property_a_larger_voxel_scales_lengths_and_volumes_only(seed, factor):
    small = scored_case(seed)
    large = scored_case(seed, spacing_mm=(4.0 * factor, 3.0 * factor, 2.0 * factor))
    assert counts(large)[:PLAN] == counts(small)[:PLAN], "PLAN alone has sizes in mm^3"
    assert froc([large]) == froc([small])
    assert large.diagonal_mm == pytest.approx(factor * small.diagonal_mm)
    assert large.assd_mm == pytest.approx({r: factor * d for r, d in small.assd_mm.items()})
    volumes = {r: factor**3 * v for r, v in small.match.reference_ml.items()}
    assert large.match.reference_ml == pytest.approx(volumes)


@pytest.mark.parametrize("seed", range(40, 48))
def test_property_one_more_missed_lesion_never_raises_recall(seed):
    maps = {name: np.pad(m, 3) for name, m in scene(seed).items()}
    before = scored_case(seed, **maps)
    maps["reference"][:2, :2, :2] = 2
    after = scored_case(seed, **maps)
    for k in (OURS, LITS_ANY, LITS, PLAN):
        a, b = counts(before)[k], counts(after)[k]
        assert b == dataclasses.replace(a, n_reference=a.n_reference + 1), RULES[k].name


@pytest.mark.parametrize("seed", range(4))
def test_property_a_perfect_prediction_scores_1_everywhere(seed):
    truth = scene(seed)["reference"]
    ids = components(truth == 2)
    types = {i: LESION_TYPES[i % 8] for i in range(1, int(ids.max()) + 1)}
    case = scored_case(
        seed,
        predicted=truth,
        scores=dict.fromkeys(types, 0.5),
        predicted_types=types,
        reference_types=types,
        spacing_mm=ML,
    )
    got = summarize_lesions([case, dataclasses.replace(case, case_id="again", patient_id="other")])
    for rule in got["rules"]:
        assert rule["recall"] == rule["precision"] == rule["f1"] == 1.0, rule["name"]
        assert rule["recall_interval"] == rule["precision_interval"] == [1.0, 1.0]
    assert got["false_per_patient"] == 0.0
    assert all(b["recall"] in (1.0, None) for b in got["by_size"])
    assert got["froc"]["points"] == [{"threshold": 0.5, "false_per_patient": 0.0, "recall": 1.0}]
    assert set(got["froc"]["recall_at"].values()) == {1.0}
    assert got["classes"]["accuracy"] == got["classes"]["accuracy_missed_wrong"] == 1.0
    for policy in ("penalised", "paper", "lits"):
        assert got["per_lesion"]["dice"][policy]["mean"] == 1.0
        assert got["per_lesion"]["assd_mm"][policy]["mean"] == 0.0


@pytest.mark.parametrize(
    ("predicted", "reference", "recall", "precision", "f1"),
    [
        (liver(), liver(), None, None, None),
        (liver(), liver(BIG), 0.0, None, 0.0),
        (liver(BIG), liver(), None, 0.0, 0.0),
        (liver(BIG), liver(TWO), 0.0, 0.0, 0.0),
    ],
)
def test_closed_form_empty_maps(predicted, reference, recall, precision, f1):
    got = summarize_lesions([lesion_case("1", "a", predicted, reference, ML)])
    for k in (OURS, LITS_ANY, LITS, PLAN):
        rule = got["rules"][k]
        assert (rule["recall"], rule["precision"], rule["f1"]) == (recall, precision, f1)
    server = got["rules"][SERVER]
    assert (server["recall"], server["precision"], server["f1"]) == (0.0, 0.0, 0.0)
    assert got["tumor_free_patients"] == (reference.max() < 2)
    json.dumps(got, allow_nan=False)


def test_closed_form_no_cases():
    got = summarize_lesions([])
    json.dumps(got, allow_nan=False)
    assert got["rules"][OURS]["recall"] is None
    assert got["false_per_patient"] is None
    assert got["tumor_free_patients"] == 0
    assert got["per_lesion"]["dice"]["penalised"]["n"] == 0


def test_closed_form_intervals_resample_patients_and_not_cases():
    found = lesion_case("f", "a", liver(BIG), liver(BIG), ML)
    missed = lesion_case("m", "b", liver(NOWHERE), liver(BIG), ML)
    cases = [
        dataclasses.replace(case, case_id=f"{case.case_id}{k}")
        for case in (found, missed)
        for k in range(10)
    ]
    got = summarize_lesions(cases)
    # A quarter of the draws holds patient a twice and as many patient b.
    assert got["rules"][OURS]["recall_interval"] == [0.0, 1.0]
    assert got["rules"][OURS]["precision_interval"] == [0.0, 1.0]
    assert (got["false_per_patient"], got["false_per_patient_interval"]) == (5.0, [0.0, 10.0])
    assert got["per_lesion"]["dice"]["penalised"]["interval"] == [0.0, 1.0]
    one = summarize_lesions([found])
    assert one["rules"][OURS]["recall_interval"] is None


def test_closed_form_a_patient_is_tumor_free_in_every_case():
    with_tumor = lesion_case("1", "a", liver(NOWHERE), liver(BIG), ML)
    without = lesion_case("2", "a", liver(NOWHERE), liver(), ML)
    assert without.tumor_free
    assert summarize_lesions([with_tumor, without])["tumor_free_patients"] == 0
    alone = summarize_lesions([dataclasses.replace(without, patient_id="b"), with_tumor])
    assert (alone["tumor_free_patients"], alone["false_in_tumor_free"]) == (1, 1)


def test_closed_form_sizes_cover_every_volume_once():
    assert all(a[1] == b[0] for a, b in pairwise(SIZES_ML))
    assert (SIZES_ML[0][0], SIZES_ML[-1][1]) == (0.0, None)


def test_closed_form_row_of_a_case():
    assert worked_set()[0].row() == {
        "lesions_reference": 2,
        "lesions_found": 1,
        "lesions_predicted": 2,
        "lesions_false": 1,
    }


def test_closed_form_rows_of_every_lesion():
    found = components(liver(EIGHT, NOWHERE) == 2)
    right, wrong = int(found[EIGHT].max()), int(found[NOWHERE].max())
    case = lesion_case(
        "1",
        "a",
        liver(EIGHT, NOWHERE),
        liver(EIGHT, ONE),
        ML,
        scores={right: 0.9, wrong: 0.7},
        predicted_types={right: "hcc"},
        reference_types={1: "hcc", 2: "cyst"},
    )
    truth = components(liver(EIGHT, ONE) == 2)
    rows = {row["outcome"]: row for row in case.rows()}
    assert [row["outcome"] for row in case.rows()].count("false") == len(rows) - 2 == 1
    nothing = dict.fromkeys(rows["found"])
    who = {"case_id": "1", "patient_id": "a"}
    eight, one = int(truth[EIGHT].max()), int(truth[ONE].max())
    types = {1: "hcc", 2: "cyst"}
    of_eight = {"reference_id": eight, "reference_ml": 8.0, "reference_type": types[eight]}
    of_one = {"reference_id": one, "reference_ml": 1.0, "reference_type": types[one]}
    of_right = {"predicted_id": right, "predicted_ml": 8.0, "predicted_type": "hcc"}
    of_wrong = {"predicted_id": wrong, "predicted_ml": 8.0, "confidence": 0.7}
    perfect = {"confidence": 0.9, "iou": 1.0, "dice": 1.0, "assd_mm": 0.0}
    assert rows["found"] == {**who, "outcome": "found", **of_eight, **of_right, **perfect}
    assert rows["missed"] == nothing | {**who, "outcome": "missed", **of_one}
    assert rows["false"] == nothing | {**who, "outcome": "false", **of_wrong}
    assert list(rows["missed"]) == list(rows["false"]) == list(rows["found"])


def test_closed_form_ignored_voxels_are_neither_found_nor_false():
    ignore = np.zeros(SHAPE, bool)
    ignore[NOWHERE] = ignore[EIGHT] = True  # inside the lesion it changes nothing
    case = lesion_case("1", "a", liver(EIGHT, NOWHERE), liver(EIGHT), ML, ignore=ignore)
    assert counts(case)[OURS] == counts(case)[PLAN] == DetectionCounts(1, 1, 1, 1)
    assert counts(case)[LITS] == DetectionCounts(1, 2, 1, 1), "it sees labels only"
    elsewhere = lesion_case("1", "a", liver(EIGHT, ONE), liver(EIGHT), ML, ignore=ignore)
    assert counts(elsewhere)[OURS] == counts(elsewhere)[PLAN] == DetectionCounts(1, 2, 1, 1)
    healthy = lesion_case("1", "a", liver(NOWHERE), liver(), ML, ignore=ignore, scores={1: 0.5})
    assert healthy.tumor_free
    assert healthy.match.false == ()
    last = froc([healthy, *worked_set()])["points"][-1]
    assert last == {"threshold": 0.5, "false_per_patient": 2 / 3, "recall": 0.5}


def test_closed_form_what_is_ignored_beside_the_lesions_is_part_of_the_overlap():
    ignore = np.zeros(SHAPE, bool)
    ignore[cube((0, 0, 0), (2, 8, 12))] = True
    inside = liver(cube((0, 0, 0), (2, 2, 6)))
    case = lesion_case("1", "a", inside, liver(), ML, ignore=ignore)
    assert case.overlaps.reference == {1: 2 * 8 * 12}
    assert case.overlaps.shared == {(1, 1): 2 * 2 * 6}


def test_closed_form_instances_count_where_the_labels_have_no_tumor():
    ids = np.zeros(SHAPE, np.uint16)
    ids[EIGHT], ids[NOWHERE] = 3, 7
    case = lesion_case(
        "1", "a", liver(), liver(), ML, predicted_instances=ids, reference_instances=ids
    )
    assert case.overlaps.shared == {(3, 3): 8, (7, 7): 8}
    assert case.lits.predicted == case.lits.reference == {}


def test_closed_form_plan_keeps_touching_lesions_of_two_types_apart():
    ids = np.zeros(SHAPE, np.int32)
    ids[0:2, 0:2, 0:2], ids[0:2, 0:2, 2:4] = 1, 2
    labels = liver(cube((0, 0, 0), (2, 2, 4)))
    maps = {"predicted_instances": ids, "reference_instances": ids}

    def plan(types: dict[int, str] | None) -> DetectionCounts:
        case = lesion_case(
            "1", "a", labels, labels, ML, predicted_types=types, reference_types=types, **maps
        )
        assert counts(case)[OURS] == DetectionCounts(2, 2, 2, 2)
        assert counts(case)[LITS] == DetectionCounts(1, 1, 1, 1)
        return counts(case)[PLAN]

    assert plan({1: "hcc", 2: "cyst"}) == DetectionCounts(2, 2, 2, 2)
    assert plan({1: "hcc", 2: "hcc"}) == DetectionCounts(1, 1, 1, 1)
    assert plan(None) == DetectionCounts(1, 1, 1, 1)


def test_oracle_distances_of_pairs_equal_those_on_the_whole_image():
    checked = 0
    for seed in range(4):
        case, maps = scored_case(seed), scene(seed)
        found, truth = components(maps["predicted"] == 2), components(maps["reference"] == 2)
        for p, r, _ in case.match.pairs:
            whole = surface_distances(found == p, truth == r, (4.0, 3.0, 2.0))
            assert case.assd_mm[r] == pytest.approx(whole.assd_mm, rel=1e-6)
            touched = np.argwhere(truth == r)
            checked += bool((touched == 0).any())
        assert set(case.assd_mm) == {r for _, r, _ in case.match.pairs}
    assert checked > 0, "no lesion lies at the border of the image"


def test_closed_form_confusion_worked_by_hand():
    slots = [cube((1, 2, 3 * k), (2, 2, 2)) for k in range(6)]
    truth, found = np.zeros((2, *SHAPE), np.int32)
    for k, slot in enumerate(slots[:5]):
        truth[slot] = k + 1
    for k, slot in enumerate([*slots[:4], slots[5]]):
        found[slot] = 10 * (k + 1)
    case = lesion_case(
        "1",
        "a",
        (found > 0).astype(np.uint8) + 1,
        (truth > 0).astype(np.uint8) + 1,
        ML,
        predicted_instances=found,
        reference_instances=truth,
        # right, wrong, uncertain, without a type; 50 is false
        predicted_types={10: "hcc", 20: "cyst", 30: "uncertain", 50: "fnh"},
        reference_types={1: "hcc", 2: "hcc", 3: "hcc", 4: "cyst", 5: "other"},
    )
    got = classify_lesions([case])
    hcc, cyst, fnh, other = (LESION_TYPES.index(n) for n in ("hcc", "cyst", "fnh", "other"))
    confusion = np.zeros((8, 8), int)
    confusion[hcc, hcc] = confusion[hcc, cyst] = 1
    assert got["names"] == list(LESION_TYPES)
    assert got["confusion"] == confusion.tolist()
    assert got["uncertain"] == [1 if k in (hcc, cyst) else 0 for k in range(8)]
    assert got["missed"] == [int(k == other) for k in range(8)]
    assert got["false"] == [int(k == fnh) for k in range(8)]
    assert (got["accuracy"], got["n"]) == (1 / 4, 4)
    assert (got["accuracy_missed_wrong"], got["n_reference"]) == (1 / 5, 5)
    untyped = dataclasses.replace(case, reference_types={1: "hcc", 5: "other"})
    assert (classify_lesions([untyped])["n"], classify_lesions([untyped])["n_reference"]) == (1, 2)
    nameless = dataclasses.replace(case, predicted_types={})
    assert classify_lesions([nameless])["false_uncertain"] == 1
    assert classify_lesions([nameless])["accuracy"] == 0.0
    for side in ("predicted_types", "reference_types"):
        lacking = dataclasses.replace(case, **{side: None})
        assert classify_lesions([lacking]) is None
        assert classify_lesions([]) is None
    healthy = lesion_case("2", "b", liver(), liver(), ML)
    assert classify_lesions([case, healthy]) == got
    no_pairs = dataclasses.replace(healthy, predicted_types={}, reference_types={})
    assert classify_lesions([no_pairs])["accuracy"] is None


def test_property_maps_may_lie_on_disk(tmp_path):
    maps = scene(5)
    on_disk = {}
    for name, values in maps.items():
        on_disk[name] = np.memmap(tmp_path / name, values.dtype, "w+", shape=values.shape)
        on_disk[name][...] = values
    assert scored_case(5, **on_disk) == scored_case(5)


def test_closed_form_what_does_not_fit_is_refused():
    a = liver(BIG)
    with pytest.raises(ValueError, match="differ in shape"):
        lesion_case("1", "a", a, a, ML, ignore=np.zeros((1, 2, 3), bool))
    for scores in ({}, {1: math.nan}):
        with pytest.raises(ValueError, match=r"\[1\] have no finite score"):
            lesion_case("1", "a", a, a, ML, scores=scores)
    with pytest.raises(ValueError, match="no lesion types"):
        lesion_case("1", "a", a, a, ML, predicted_types={1: "HCC"})
    with pytest.raises(ValueError, match="no lesion types"):
        lesion_case("1", "a", a, a, ML, reference_types={1: "uncertain"})
