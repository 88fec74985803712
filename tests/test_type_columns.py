"""Columns of what patients have, over seeds and rows: each figure by hand or by a loop."""

from __future__ import annotations

import numpy as np
import pytest

from hepar.evaluate import run_auc
from hepar.evaluate.auc_differences import AucDifference, auc_versus
from hepar.evaluate.patient import auc_interval, one_versus_rest, patient_auc
from hepar.evaluate.printed import PrintedRow, PrintedTable, differences, parts_of, tabulate
from hepar.evaluate.run_auc import MEANS, scored_patients
from hepar.evaluate.run_columns import COLUMNS, figure, is_scored
from hepar.evaluate.run_result import CaseResult, TypedResult
from hepar.evaluate.type_columns import patients_note
from hepar.paper_run import shown_hash
from hepar.study import LESION_TYPES

NONE = dict.fromkeys(LESION_TYPES, 0.0)


def typed(has=(), livermax=(), size=(), counts=(0, 0, 0, 0), pairs=()) -> TypedResult:
    """What is kept of a patient with some types, of 200 mm^3 each."""
    names = ("n_reference", "n_predicted", "tp_reference", "tp_predicted")
    return TypedResult(
        reference_mm3=NONE | dict.fromkeys(has, 200.0),
        scores={"livermax": NONE | dict(livermax), "mask_size": NONE | dict(size)},
        pairs=pairs,
        missed=(),
        false=(),
        **dict(zip(names, counts, strict=True)),
    )


def case(name: str, found: TypedResult | None, dice: float | None = 0.5, **changes) -> CaseResult:
    fields = {
        "case_id": name,
        "patient_id": f"P-{name}",
        "type": "",
        "outcome": "both",
        "dice": dice,
        "voe": 0.5,
        "rvd": 0.0,
        "assd_mm": 1.0,
        "rmsd_mm": 1.0,
        "hd95_mm": 2.0,
        "overlap": 5,
        "predicted": 10,
        "reference": 10,
        "diagonal_mm": 100.0,
        "lesions": 1,
        "found": 1,
        "false": 0,
        "typed": found,
    }
    return CaseResult(**(fields | changes))


def drawn(seed: int, n: int = 14, skill: float = 1.0) -> tuple[CaseResult, ...]:
    """Patients with some of three types, scored by chance and skill."""
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(99)
    cases = []
    for k in range(n):
        has = [kind for kind in ("hcc", "cyst", "other") if truth.random() < 0.5]
        scores = {
            kind: round(float(np.clip(rng.normal(0.3 + 0.2 * skill * (kind in has), 0.2), 0, 1)), 2)
            for kind in LESION_TYPES
        }
        cases.append(case(f"c{k:02d}", typed(has, scores, scores)))
    return tuple(cases)


def arrays(run) -> tuple[np.ndarray, np.ndarray]:
    ordered = sorted(run, key=lambda c: c.patient_id)
    volumes = [[c.typed.reference_mm3[kind] for kind in LESION_TYPES] for c in ordered]
    scores = [[c.typed.scores["livermax"][kind] for kind in LESION_TYPES] for c in ordered]
    return np.array(volumes), np.array(scores)


# ---- figures -----------------------------------------------------------------------------------


def test_oracle_auc_of_one_seed_is_that_of_its_patients(monkeypatch):
    monkeypatch.setattr(run_auc, "DRAWS", 60)
    run = drawn(0)
    volumes, scores = arrays(run)
    expected = patient_auc(volumes, scores)
    for column, value in (
        ("auc_hcc", expected.by_class["hcc"]),
        ("auc_other", expected.by_class["other"]),
        ("auc_fnh", None),
        ("auc8", expected.auc_8.value),
        ("auc2", expected.auc_2.value),
    ):
        assert figure([run], column, "livermax").value == pytest.approx(value, abs=1e-12), column
    problems = one_versus_rest(volumes, scores)
    interval = auc_interval({"hcc": problems["hcc"]}, draws=60, seed=len(run))
    assert figure([run], "auc_hcc", "livermax").interval == pytest.approx(interval, abs=1e-12)
    assert expected.auc_8.n_defined == 3
    assert "AUC-8 is the mean of 3 types" in patients_note([run], "livermax")


def test_closed_form_seeds_are_averaged_and_groups_scored_by_their_rule():
    # Two of four patients have a malignant lesion; seed 0 ranks all right, seed 1 all wrong.
    right = (
        case("a", typed(["hcc"], {"hcc": 0.9}, {"hcc": 1.0})),
        case("b", typed(["icc"], {"icc": 0.8}, {"icc": 1.0})),
        case("c", typed(["cyst"], {"cyst": 0.9, "hcc": 0.3}, {"hcc": 0.4, "icc": 0.4})),
        case("d", typed([], {"hcc": 0.1}, {"hcc": 0.7, "icc": 0.7})),
    )
    wrong = tuple(
        case(c.case_id, typed([k for k, v in c.typed.reference_mm3.items() if v], {"hcc": s}))
        for c, s in zip(right, (0.1, 0.2, 0.3, 0.4), strict=True)
    )
    assert figure([right], "auc_hcc", "livermax").value == 1.0
    assert figure([wrong], "auc_hcc", "livermax").value == 0.0
    assert figure([right, wrong], "auc_hcc", "livermax").value == 0.5
    both = figure([right, wrong], "auc_hcc", "livermax")
    assert (both.n, both.seeds, both.std) == (4, 2, None)
    # By the highest probability malignant is perfect. By summed volume d comes first, with 1.4:
    # of the pairs (a, c), (b, c) won and (a, d), (b, d) lost, half; benign: all tied, half.
    assert figure([right], "auc2", "livermax").value == 1.0
    assert figure([right], "auc2", "mask_size").value == 0.5


def test_closed_form_lesions_are_counted_over_cases():
    run = (
        case("a", typed(counts=(3, 2, 2, 1), pairs=(("hcc", "hcc"), ("hcc", "icc")))),
        case("b", typed(counts=(1, 3, 1, 3), pairs=(("fnh", "fnh"),)), dice=0.75),
        case("c", typed(), dice=None, outcome="missed", overlap=0, predicted=0),
    )
    values = {k: figure([run], k).value for k in ("sensitivity", "precision", "accuracy", "dice")}
    expected = {"sensitivity": 3 / 4, "precision": 4 / 5, "accuracy": 2 / 3, "dice": 1.25 / 3}
    assert values == pytest.approx(expected)
    assert values["dice"] == figure([run], "dpc").value


def test_property_columns_of_types_are_of_results_that_hold_them():
    plain = (case("a", None), case("b", typed()))
    assert not is_scored([plain], "precision")
    assert figure([plain], "auc8", "livermax") is None
    assert figure([plain[1:]], "auc8", "plan") is None
    assert is_scored([plain], "dice")
    with pytest.raises(ValueError, match="'hcv' is none of hcc, icc"):
        typed(["hcv"])
    old = plain[0].model_dump(mode="json")
    del old["typed"]
    assert CaseResult.model_validate(old) == plain[0]
    assert CaseResult.model_validate_json(plain[1].model_dump_json()) == plain[1]


# ---- rows --------------------------------------------------------------------------------------


def test_oracle_differences_resample_the_same_patients_for_every_seed_and_both_rows():
    good, poor = [drawn(1, skill=2.0), drawn(2, skill=2.0)], [drawn(3, skill=0.2)]
    found = AucDifference.of(
        scored_patients(good, "livermax"), scored_patients(poor, "livermax"), "auc8"
    )
    n = len(poor[0])
    rng = np.random.default_rng(n)
    # A few draws of the thousand, one by one.
    draws = [rng.integers(n, size=n) for _ in range(1000)]

    def auc_8(run, index):
        volumes, scores = arrays(run)
        return patient_auc(volumes[index], scores[index]).auc_8.value

    once = np.arange(n)
    value = np.mean([auc_8(run, once) for run in good]) - auc_8(poor[0], once)
    assert found.value == pytest.approx(value, abs=1e-12)
    weights = np.array([np.bincount(index, minlength=n) for index in draws[:5]])
    ours, theirs = (scored_patients(runs, "livermax") for runs in (good, poor))
    drawn_5 = ours.mean_auc(MEANS["auc8"], weights) - theirs.mean_auc(MEANS["auc8"], weights)
    by_hand = [
        np.mean([auc_8(run, index) for run in good]) - auc_8(poor[0], index) for index in draws[:5]
    ]
    np.testing.assert_allclose(drawn_5, by_hand, atol=1e-12)
    assert found.interval[0] < found.value < found.interval[1]


def test_closed_form_a_row_against_itself_and_against_another():
    scores = [{"hcc": 0.9 - 0.05 * k, "cyst": k / 20} for k in range(12)]
    perfect = tuple(
        case(f"c{k}", typed(["hcc"] if k < 5 else ["cyst"], said)) for k, said in enumerate(scores)
    )
    flipped = tuple(
        case(
            c.case_id,
            c.typed.model_copy(
                update={
                    "scores": {
                        "livermax": {kind: 1 - p for kind, p in c.typed.scores["livermax"].items()}
                    }
                }
            ),
        )
        for c in perfect
    )
    rows = {
        name: scored_patients([run], "livermax")
        for name, run in (("base", flipped), ("same", flipped), ("better", perfect))
    }
    table = auc_versus(COLUMNS["auc8"], rows, "base")
    assert (table.rows["same"].value, table.verdict("same")) == (0.0, "not distinguishable")
    assert (table.rows["better"].value, table.verdict("better")) == (1.0, "better")
    assert table.rows["same"].p == 1.0
    text = table.markdown()
    assert "AUC-8: every row less base" in text
    assert "+1.000" in text


def _table(*rows: PrintedRow) -> PrintedTable:
    return PrintedTable(title="t", columns=("auc8", "dice"), baseline=rows[0].name, rows=rows)


def test_property_rows_of_one_run_differ_in_the_score_alone():
    size = PrintedRow(name="size", recipe="r", score="mask_size")
    peak = PrintedRow(name="peak", recipe="r", score="livermax")
    assert size.run == peak.run == "r"
    run = tuple(
        case(f"c{k}", typed(["hcc"] if k % 2 else [], {"hcc": 0.5 + 0.1 * (k % 2)}, {"hcc": 1.0}))
        for k in range(8)
    )
    shown = tabulate(_table(size, peak), {"r": (run,)})
    assert [row.ours["auc8"].value for row in shown.rows] == [0.5, 1.0]
    assert shown.rows[0].ours["dice"] == shown.rows[1].ours["dice"]
    assert any("**AUC-8 is the mean of 1 types" in note for note in shown.notes)
    text = differences(_table(size, peak), {"r": (run,)})
    # The outlines are the same ones, so that only patients are compared.
    assert [line for line in text.splitlines() if line.startswith("###")] == [
        "### AUC-8: every row less size"
    ]


def test_property_rows_of_other_phases_are_compared_on_the_patients_of_both():
    full = PrintedRow(name="all", recipe="r", score="livermax")
    part = PrintedRow(name="DL", recipe="r", score="livermax", phases=("DL",))
    assert part.run == "r@DL"
    assert parts_of(part.run) == ("r", "", ("DL",))
    assert parts_of("r+liver") == ("r", "liver", ())
    assert shown_hash("h", ["DL"]) != shown_hash("h", ["PV"]) != "h"
    run = drawn(5)
    text = differences(_table(full, part), {"r": (run,), "r@DL": (run[:9],)})
    rows = [line for line in text.splitlines() if line.startswith("| DL ")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    # DPC: 9 patients, 5 cases left out; false lesions the same; AUC-8: 9 patients.
    assert [row[-3:-1] for row in cells[:2]] == [["9", "5"]] * 2
    assert cells[2][-2] == "9"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"score": None}, "does not say how patients are scored"),
        ({"phases": ("PV",), "liver": "first"}, "phases and a first stage"),
        ({"recipe": "", "phases": ("PV",)}, "or no recipe"),
        ({"phases": ("PVP",)}, "PVP"),
        ({"score": "largest"}, "livermax"),
    ],
)
def test_errors_rows_that_cannot_be(changes, words):
    fields = {"name": "a", "recipe": "r", "score": "livermax"} | changes
    with pytest.raises(ValueError, match=words):
        _table(PrintedRow(**fields))
