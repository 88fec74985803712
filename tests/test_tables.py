"""Result tables: what is rendered, what is read back, and how seeds and cases are averaged."""

from __future__ import annotations

import csv
import io
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hepar.evaluate.statistics import PairedDifference, compare, correct, mean_of_cases
from hepar.evaluate.tables import Column, Differences, Measured, Row, Table, measure, versus

DPC = Column("dpc", "DPC", "%")
ASD = Column("asd_mm", "ASD", "mm", digits=2, better="lower")
RVD = Column("rvd", "RVD", better="zero")
TEXT = st.text(st.sampled_from("ab |\\*`<~_\n\r\",;'\t"), min_size=1, max_size=12)


def lines_of(markdown: str) -> list[list[str]]:
    """The cells of a pipe table as GitHub reads them."""
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    # A backslash takes the next character with it, so an escaped pipe does not divide cells.
    split = [re.findall(r"\|((?:\\.|[^|\\])*)(?=\|)", row) for row in rows]
    return [[re.sub(r"\\(.)", r"\1", cell.strip()) for cell in row] for row in split]


def records_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def number(text: str) -> float | None:
    return float(text) if text else None


def table() -> Table:
    full = Measured(0.612, 0.2009, (0.55, 0.673), 58, 2, 0, 3)
    partly = Measured(3.14159, 1.0, (2.0, 4.126), 50, 10, 4, 3)
    return Table(
        "Table 1",
        (DPC, ASD, RVD),
        (
            Row("PLAN", {"dpc": "77.3 ± 12.1", "asd_mm": None}, quoted=True),
            Row("SAM", {"dpc": 0.7910, "asd_mm": 5}, {"dpc": full, "asd_mm": partly}),
            Row("lone", {}, {"rvd": Measured(-0.04, None, None, 1, 0, 0, 1)}),
            Row("blank", {}, {"dpc": Measured(None, None, None, 0, 60, 0, 1)}),
            Row("URIM", {"dpc": 0.80125, "asd_mm": 2.81}),
        ),
        ("Sixty phantoms.",),
    )


# Rendering.


def test_closed_form_a_table_is_read_at_once():
    header, rule, *rows = lines_of(table().markdown())
    assert header == [
        *("row", "DPC, % ↑ paper", "DPC, % ↑ ours", "ASD, mm ↓ paper", "ASD, mm ↓ ours"),
        *("RVD → 0 paper", "RVD → 0 ours", "cases", "seeds", "undefined"),
    ]
    assert rule[0].strip("-") == ""
    assert [cell.strip("-") for cell in rule[1:]] == [":"] * 9
    assert rows == [
        ["PLAN", "77.3 ± 12.1", "quoted", "-", "quoted", "-", "quoted", "", "", ""],
        [
            *("SAM", "79.1", "61.2 ± 20.1 [55.0, 67.3]", "5.00", "3.14 ± 1.00 [2.00, 4.13]"),
            *("-", "not run", "60", "3", "DPC 2, ASD 10 (+4 in some seeds)"),
        ],
        ["lone", "-", "not run", "-", "not run", "-", "0.0", "1", "1", "0"],
        ["blank", "-", "undefined", "-", "not run", "-", "not run", "60", "1", "DPC 60"],
        ["URIM", "80.125", "not run", "2.81", "not run", "-", "not run", "", "", ""],
    ]


def test_regression_markdown_to_the_letter():
    row = Row("U-Net*", {"rvd": -0.051}, {"rvd": Measured(0.25, 0.5, (-0.04, 1), 7, 0, 0, 2)})
    lines = Table("One", (RVD,), (row,), ("A | note.",)).markdown().splitlines()
    assert lines[:6] == [
        "### One",
        "",
        "| row     | RVD → 0 paper |         RVD → 0 ours | cases | seeds | undefined |",
        "| ------- | ------------: | -------------------: | ----: | ----: | --------: |",
        r"| U-Net\* |        -0.051 | 0.2 ± 0.5 [0.0, 1.0] |     7 |     2 |         0 |",
        "",
    ]
    assert all(line.startswith("- ") for line in lines[6:])
    assert lines[-1] == "- A | note."
    legend = "\n".join(lines[6:])
    for said in ("own cohort", "a reference, not a target", "95 % bootstrap", "by patient"):
        assert said in legend
    for word in ("paper", "ours", "undefined", "quoted", "not run"):
        assert f"**{word}**" in legend


@given(TEXT, TEXT, TEXT)
def test_property_any_text_stays_in_its_cell(name, title, printed):
    column = Column("k", title, "mm")
    made = Table("t", (column,), (Row(name, {"k": printed}), Row("last")))
    header, _, first, last = lines_of(made.markdown())
    assert [len(row) for row in (header, first, last)] == [6, 6, 6]
    flat = " ".join(f"{title}, mm ↑ paper".split())
    assert header[1] == flat
    assert first[:2] == [" ".join(name.split()), " ".join(printed.split())]
    widths = {len(line) for line in made.markdown().splitlines() if line.startswith("|")}
    assert len(widths) == 1


# Machine-readable.


def test_oracle_csv_is_read_back_equal():
    made = table()
    records = records_of(made.csv())
    assert len(records) == len(made.rows) * len(made.columns)
    by_key = {(r["row"], r["column"]): r for r in records}
    for row in made.rows:
        for column in made.columns:
            record, printed = by_key[row.name, column.key], row.paper.get(column.key)
            measured = row.ours.get(column.key)
            assert record["unit"] == column.unit
            assert (record["paper_text"] or number(record["paper"])) == printed
            state = "quoted" if row.quoted else "run" if measured else "not run"
            assert record["status"] == state
            if measured is None:
                measured = Measured(None, None, None, 0, 0, 0, 0)
            interval = (number(record["low"]), number(record["high"]))
            assert interval == (measured.interval or (None, None))
            for name in ("value", "std", "n", "n_undefined", "n_partly", "seeds"):
                assert number(record[name]) == getattr(measured, name)


@given(TEXT, TEXT, st.floats(allow_nan=False, allow_infinity=False))
def test_property_csv_keeps_any_text_and_every_bit(name, printed, value):
    measured = Measured(value, value / 3, (value, value), 1, 0, 0, 1)
    row = Row(name, {"dpc": printed, "rvd": value}, {"dpc": measured})
    first, second = records_of(Table("t", (DPC, RVD), (row,)).csv())
    assert (first["row"], first["paper_text"]) == (name, printed)
    assert float(first["value"]) == float(first["low"]) == float(second["paper"]) == value
    assert float(first["std"]) == value / 3


def test_closed_form_tables_refuse_what_they_would_lose():
    run = {"dpc": Measured(0.5, None, None, 1, 0, 0, 1)}
    for rows, said in (
        ((Row("a"), Row("a")), "repeat"),
        ((Row("a", {"dice": 0.1}),), "no column"),
        ((Row("a", {}, {"dice": None}),), "no column"),
        ((Row("a", {}, run, quoted=True),), "quoted and has results"),
    ):
        with pytest.raises(ValueError, match=said):
            Table("t", (DPC,), rows)
    with pytest.raises(ValueError, match="repeat"):
        Table("t", (DPC, DPC), ())
    assert Table("t", (DPC,), ()).csv() == ""


# From scores to figures.


@given(st.integers(0, 10_000))
def test_oracle_measure_averages_seeds_then_cases_and_resamples_patients(seed):
    rng = np.random.default_rng(seed)
    cases = [f"c{k}" for k in range(14)]
    patients = {case: f"p{k // 2}" for k, case in enumerate(cases)} | {"other": "p9"}
    runs = [
        {case: None if rng.random() < 0.3 else float(rng.random()) for case in cases}
        for _ in range(3)
    ]
    runs[0] |= {"c0": 0.5, "c5": 0.25, "c9": None}
    runs[1]["c9"] = runs[2]["c9"] = None
    means, partly = {}, 0
    for case in cases:
        defined = [run[case] for run in runs if run[case] is not None]
        partly += len(defined) in (1, 2)
        means[case] = sum(defined) / len(defined) if defined else None
    kept = [v for v in means.values() if v is not None]
    found = measure(runs, patients, seed=seed)
    expected = mean_of_cases(
        [means[case] for case in cases], [patients[case] for case in cases], seed=seed
    )
    assert found.value == pytest.approx(sum(kept) / len(kept))
    assert found.std == pytest.approx(np.std(kept, ddof=1))
    assert found.interval == pytest.approx(expected.interval)
    assert (found.n, found.n_undefined) == (len(kept), 14 - len(kept))
    assert (found.n_partly, found.seeds) == (partly, 3)


def test_closed_form_measure_by_hand():
    """Case b: the mean of 0.2 and 0.4; case c only in the second seed; case d in none."""
    runs = [
        {"a": 1.0, "b": 0.2, "c": None, "d": None},
        {"d": None, "c": 0.6, "b": 0.4, "a": 1.0},
    ]
    patients = {"a": "p", "b": "p", "c": "p", "d": "q"}
    found = measure(runs, patients)
    assert found.value == pytest.approx(1.9 / 3)
    assert found.std == pytest.approx(np.std([1.0, 0.3, 0.6], ddof=1))
    # One patient is left.
    assert found.interval is None
    assert (found.n, found.n_undefined, found.n_partly, found.seeds) == (3, 1, 1, 2)
    for wrong in ([], [{"a": 1.0}, {"b": 1.0}]):
        with pytest.raises(ValueError, match="no run, or runs of different cases"):
            measure(wrong, patients)
    with pytest.raises(ValueError, match="NaN"):
        measure([{"a": float("nan")}], patients)
    with pytest.raises(KeyError, match="e"):
        measure([{"e": 1.0}], patients)


# Against a baseline.


def some_runs(shift: float, noise: float = 0.02) -> list[dict[str, float | None]]:
    rng = np.random.default_rng(7)
    base = rng.random(20)
    return [
        {f"c{k}": float(base[k] + shift + noise * rng.normal()) for k in range(20)}
        for _ in range(2)
    ]


def test_oracle_versus_pairs_seed_means_with_the_baseline_and_corrects():
    runs = {"plain": some_runs(0.0), "far": some_runs(0.2), "near": some_runs(0.001, 0.05)}
    runs["far"][0]["c3"] = None
    runs["near"][0]["c4"] = runs["near"][1]["c4"] = None
    # The order of cases in a run is nothing.
    runs["near"] = [dict(reversed(run.items())) for run in runs["near"]]
    patients = {f"c{k}": f"p{k // 2}" for k in range(20)}
    found = versus(DPC, runs, "plain", patients, seed=3)

    def mean(name: str, case: str) -> float | None:
        defined = [run[case] for run in runs[name] if run[case] is not None]
        return sum(defined) / len(defined) if defined else None

    base = [mean("plain", case) for case in patients]
    for name in ("far", "near"):
        own = [mean(name, case) for case in patients]
        assert found.rows[name] == compare(own, base, [*patients.values()], seed=3)
    assert found.p_t == correct([found.rows[name].p_t for name in ("far", "near")])
    assert found.p_wilcoxon == correct([found.rows[name].p_wilcoxon for name in ("far", "near")])
    assert (found.verdict("far"), found.verdict("near")) == ("better", "not distinguishable")
    assert (found.rows["far"].n_undefined, found.rows["near"].n_undefined) == (0, 1)
    by_rate = versus(DPC, runs, "plain", patients, method="benjamini-hochberg")
    assert "Benjamini" in by_rate.markdown()
    with pytest.raises(KeyError, match="none"):
        versus(DPC, runs, "none", patients)
    runs["far"] = [{"c0": 1.0}]
    with pytest.raises(ValueError, match="different cases"):
        versus(DPC, runs, "plain", patients)


def differences(column: Column, *figures: PairedDifference) -> Differences:
    rows = {f"r{k}": figure for k, figure in enumerate(figures)}
    p_t, p_wilcoxon = (correct([getattr(f, p) for f in figures]) for p in ("p_t", "p_wilcoxon"))
    return Differences(column, "base", rows, p_t, p_wilcoxon)


@pytest.mark.parametrize(
    ("column", "above", "below"),
    [(DPC, "better", "worse"), (ASD, "worse", "better"), (RVD, "higher", "lower")],
)
def test_closed_form_verdicts_need_the_interval_and_the_corrected_p(column, above, below):
    def of(low: float, high: float, p_t: float) -> PairedDifference:
        return PairedDifference((low + high) / 2, (low, high), p_t, 0.5, 0.1, 9, 9, 0)

    made = differences(
        column,
        of(0.1, 0.2, 0.001),
        of(-0.2, -0.1, 0.001),
        # Times two after Holm, for the other that is as large.
        of(0.1, 0.2, 0.03),
        of(-0.1, 0.2, 0.04),
        PairedDifference(None, None, None, None, None, 0, 0, 9),
    )
    verdicts = [made.verdict(name) for name in made.rows]
    assert verdicts == [above, below, "not distinguishable", "not distinguishable", "not compared"]


def test_closed_form_differences_are_rendered_and_read_back():
    made = differences(
        DPC,
        PairedDifference(0.0321, (0.01, 0.0549), 0.0002, 0.021, 0.0256, 40, 44, 3),
        PairedDifference(-0.02, (-0.05, 0.0), 0.06, 0.04, 0.0301, 40, 44, 3),
        PairedDifference(None, None, None, None, None, 0, 0, 47),
    )
    markdown = made.markdown()
    header, _, *rows = lines_of(markdown)
    assert markdown.startswith("### DPC: every row less base\n")
    assert header == [
        *("row", "DPC, % points ↑", "95 % interval", "detectable", "p t test", "p Wilcoxon"),
        *("patients", "left out", "verdict"),
    ]
    assert rows == [
        ["r0", "+3.2", "[+1.0, +5.5]", "2.6", "< 0.001", "0.042", "40", "3", "better"],
        ["r1", "-2.0", "[-5.0, +0.0]", "3.0", "0.060", "0.042", "40", "3", "not distinguishable"],
        ["r2", "undefined", "", "", "", "", "0", "47", "not compared"],
    ]
    assert "corrected for 2 tests after Holm" in markdown
    for record, (name, figure) in zip(records_of(made.csv()), made.rows.items(), strict=True):
        assert (record["row"], record["baseline"], record["column"]) == (name, "base", "dpc")
        assert (record["correction"], record["verdict"]) == ("holm", made.verdict(name))
        interval = (number(record["low"]), number(record["high"]))
        assert interval == (figure.interval or (None, None))
        for key in ("mean", "p_t", "p_wilcoxon", "detectable", "n", "n_cases", "n_undefined"):
            assert number(record[key]) == getattr(figure, key)
        corrected = (number(record["p_t_corrected"]), number(record["p_wilcoxon_corrected"]))
        k = [*made.rows].index(name)
        assert corrected == (made.p_t.p_values[k], made.p_wilcoxon.p_values[k])
