"""Result tables: what a paper printed beside what we measured, and rows against a baseline.

The paper's figures come from another cohort. They are references: what a table compares is the rows
of one column.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any, Literal

from hepar.evaluate.statistics import (
    Correction,
    Interval,
    Method,
    PairedDifference,
    compare,
    correct,
    mean_of_cases,
)

# Scores of one training seed: case id -> value, None where undefined.
Run = Mapping[str, float | None]

_ALPHA = 0.05
_ARROWS = {"higher": "↑", "lower": "↓", "zero": "→ 0"}
_LEGEND = (
    "**paper**: as the authors printed it, from their own cohort, which is not ours and mostly "
    "private: a reference, not a target. Compare the rows of a column, not paper with ours.",
    "**ours**: mean ± standard deviation over cases, every case averaged over its training seeds "
    "first, [95 % bootstrap interval of the mean, resampled by patient]; **not run**: no result "
    "yet; **quoted**: the paper quotes the row from the literature, its method is not here.",
    "**undefined**: cases without a value in any seed, left out of the mean.",
    "↑ higher is better, ↓ lower is better, → 0 nearer to zero is better.",
)


@dataclass(frozen=True)
class Column:
    """One measure.

    Attributes:
        key: name in the mappings of a row, and in CSV.
        title: for readers.
        unit: `%` is a fraction everywhere but in Markdown, where it is multiplied by 100.
        digits: decimals of our figures in Markdown.
        better: which direction is; `zero` is for signed errors.
    """

    key: str
    title: str
    unit: str = ""
    digits: int = 1
    better: Literal["higher", "lower", "zero"] = "higher"

    @property
    def heading(self) -> str:
        """Title, unit and direction."""
        return f"{self.title}{self.unit and f', {self.unit}'} {_ARROWS[self.better]}"

    def show(self, *values: float, sign: bool = False) -> str:
        """Values of ours, rounded."""
        form = f"{'+' if sign else '-'}z.{self.digits}f"
        return ", ".join(format(self._scaled(v), form) for v in values)

    def quote(self, value: float | str | None) -> str:
        """A paper's figure: text as it is, a number with `digits` decimals or all that it has."""
        if value is None or isinstance(value, str):
            return value or "-"
        return max(self.show(value), f"{self._scaled(value):.10g}", key=len)

    def _scaled(self, value: float) -> float:
        return 100 * value if self.unit == "%" else value


@dataclass(frozen=True)
class Measured:
    """A figure of ours, see `measure`.

    Attributes:
        value: mean over cases; None where every case is undefined.
        std: over cases.
        interval: 95 % of the mean, by patient.
        n: cases in the mean.
        n_undefined: cases undefined in every seed, left out.
        n_partly: cases in the mean that are undefined in some seeds.
        seeds: training seeds averaged.
    """

    value: float | None
    std: float | None
    interval: Interval | None
    n: int
    n_undefined: int
    n_partly: int
    seeds: int


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        name: as the paper calls it.
        paper: column key -> number in the column's own unit (a fraction under `%`), or text exactly
            as printed; None or absent where the paper has none.
        ours: column key -> figure; absent where it is not run, None where it cannot have one.
        quoted: the paper quotes the row from the literature, and it has no code here.
    """

    name: str
    paper: Mapping[str, float | str | None] = field(default_factory=dict)
    ours: Mapping[str, Measured | None] = field(default_factory=dict)
    quoted: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of a paper's table, `paper | ours` side by side under every measure.

    Attributes:
        title: of the table.
        columns: measures.
        rows: methods, in the paper's order.
        notes: what a reader has to know beside the standing definitions; one line each, Markdown.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise ValueError for repeated names, figures of no column, results of a quoted row."""
        keys = [c.key for c in self.columns]
        for names in (keys, [r.name for r in self.rows]):
            if len(set(names)) < len(names):
                raise ValueError(f"names repeat: {names}")
        for row in self.rows:
            if unknown := ({*row.paper} | {*row.ours}) - {*keys}:
                raise ValueError(f"row {row.name} has figures of no column: {sorted(unknown)}")
            if row.quoted and row.ours:
                raise ValueError(f"row {row.name} is quoted and has results")

    def markdown(self) -> str:
        """The table and its definitions, for GitHub."""
        pairs = [f"{c.heading} {side}" for c in self.columns for side in ("paper", "ours")]
        header = ["row", *pairs, "cases", "seeds", "undefined"]
        return document(self.title, header, map(self._cells, self.rows), (*_LEGEND, *self.notes))

    def csv(self) -> str:
        """One line a row and column, unrounded; a fraction under `%` stays one."""
        return _csv(_record(row, column) for row in self.rows for column in self.columns)

    def _cells(self, row: Row) -> list[str]:
        pairs = [(c.quote(row.paper.get(c.key)), _ours(row, c)) for c in self.columns]
        run = [(c.title, m) for c in self.columns if (m := row.ours.get(c.key))]
        undefined = [
            f"{title} {m.n_undefined}" + (f" (+{m.n_partly} in some seeds)" if m.n_partly else "")
            for title, m in run
            if m.n_undefined or m.n_partly
        ]
        return [
            row.name,
            *chain(*pairs),
            _shared([(title, str(m.n + m.n_undefined)) for title, m in run]),
            _shared([(title, str(m.seeds)) for title, m in run]),
            ", ".join(undefined) or ("0" if run else ""),
        ]


def measure(
    runs: Sequence[Run], patients: Mapping[str, str], *, seed: int | None = None
) -> Measured:
    """One figure of a method from its scores by training seed and case.

    A case's value is its mean over the seeds in which it is defined; a case that no seed defines is
    left out. The figure is the mean of the cases' values, each case counting once, and its standard
    deviation is over the same values (n - 1): the spread of cases, smaller than that of one seed's.
    The interval resamples patients, each with all of their cases (`mean_of_cases`); it describes
    the choice of patients, not that of seeds.

    Args:
        runs: one a training seed.
        patients: case id -> patient id; may name more cases.
        seed: of the bootstrap; the number of patients by default.

    Raises:
        KeyError: a case without a patient.
        ValueError: no run, runs of different cases, or a NaN.
    """
    values = _seed_means(runs)
    mean = mean_of_cases([*values.values()], [patients[case] for case in values], seed=seed)
    undefined = [[run[case] for run in runs].count(None) for case in values]
    return Measured(
        value=mean.mean,
        std=mean.std,
        interval=mean.interval,
        n=mean.n,
        n_undefined=mean.n_undefined,
        n_partly=sum(0 < u < len(runs) for u in undefined),
        seeds=len(runs),
    )


@dataclass(frozen=True)
class Differences:
    """Rows less a baseline row under one measure.

    Attributes:
        column: the measure.
        baseline: name of the row compared with.
        rows: name -> paired difference, row - baseline.
        p_t, p_wilcoxon: corrected over the rows.
    """

    column: Column
    baseline: str
    rows: Mapping[str, PairedDifference]
    p_t: Correction
    p_wilcoxon: Correction

    def verdict(self, name: str) -> str:
        """Whether the row is better or worse than the baseline, or higher or lower for `zero`.

        Not distinguishable where the interval contains 0 or the corrected p of the t test is not
        below 0.05: among many rows one interval soon leaves 0 out by chance.
        """
        verdict = self.rows[name].verdict
        p = {row: p_t for row, p_t, _ in self._corrected()}[name]
        if verdict in ("higher", "lower") and (p is None or p >= _ALPHA):
            return "not distinguishable"
        if verdict.startswith("not") or self.column.better == "zero":
            return verdict
        return "better" if verdict == self.column.better else "worse"

    def markdown(self) -> str:
        """The table and its definitions, for GitHub."""
        heading = self.column.heading.replace(", %", ", % points")
        tests = ["95 % interval", "detectable", "p t test", "p Wilcoxon"]
        header = ["row", heading, *tests, "patients", "left out", "verdict"]
        legend = (
            "Differences on the same cases, averaged within a patient, then over patients; "
            "[95 % bootstrap interval by patient]; other training seeds may differ by more.",
            "**detectable**: the true difference that a two-sided paired t test at 0.05 would find "
            "with 80 % power, for differences as spread as these.",
            f"**p**: paired t test and Wilcoxon signed-rank test, each {self.p_t.statement}.",
            "**left out**: cases undefined in either row.",
            "**verdict**: not distinguishable where the interval contains 0 or the corrected p of "
            f"the t test is not below {_ALPHA}.",
        )
        title = f"{self.column.title}: every row less {self.baseline}"
        return document(title, header, (self._cells(*r) for r in self._corrected()), legend)

    def csv(self) -> str:
        """One line a row, unrounded; a fraction under `%` stays one."""
        return _csv(
            {"row": name, "baseline": self.baseline, "column": self.column.key}
            | _flat(self.rows[name])
            | {"p_t_corrected": p_t, "p_wilcoxon_corrected": p_wilcoxon}
            | {"correction": self.p_t.method, "verdict": self.verdict(name)}
            for name, p_t, p_wilcoxon in self._corrected()
        )

    def _corrected(self) -> list[tuple[str, float | None, float | None]]:
        return [*zip(self.rows, self.p_t.p_values, self.p_wilcoxon.p_values, strict=True)]

    def _cells(self, name: str, *corrected: float | None) -> list[str]:
        c, d = self.column, self.rows[name]
        return [
            name,
            "undefined" if d.mean is None else c.show(d.mean, sign=True),
            f"[{c.show(*d.interval, sign=True)}]" if d.interval else "",
            "" if d.detectable is None else c.show(d.detectable),
            *("" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}" for p in corrected),
            *(str(d.n), str(d.n_undefined), self.verdict(name)),
        ]


def versus(
    column: Column,
    runs: Mapping[str, Sequence[Run]],
    baseline: str,
    patients: Mapping[str, str],
    *,
    method: Method = "holm",
    seed: int | None = None,
) -> Differences:
    """Every row less the baseline, seeds averaged within a case first (`measure`, `compare`).

    Args:
        column: the measure.
        runs: row name -> runs, one a training seed.
        baseline: the row compared with, in `runs`.
        patients: case id -> patient id; may name more cases.
        method: correction of the p values for the number of rows.
        seed: of the bootstrap; the number of patients by default.

    Raises:
        KeyError: no baseline, or a case without a patient.
        ValueError: as `measure`, or rows of different cases.
    """
    values = {name: _seed_means(each) for name, each in runs.items()}
    base = values.pop(baseline)
    if any(own.keys() != base.keys() for own in values.values()):
        raise ValueError("rows of different cases cannot be paired; an undefined case is None")
    owners = [patients[case] for case in base]
    rows = {
        name: compare([own[case] for case in base], [*base.values()], owners, seed=seed)
        for name, own in values.items()
    }
    return Differences(
        column=column,
        baseline=baseline,
        rows=rows,
        p_t=correct([d.p_t for d in rows.values()], method),
        p_wilcoxon=correct([d.p_wilcoxon for d in rows.values()], method),
    )


def _seed_means(runs: Sequence[Run]) -> dict[str, float | None]:
    if not runs or any(run.keys() != runs[0].keys() for run in runs):
        raise ValueError("no run, or runs of different cases; an undefined case is None")
    defined = {case: [v for run in runs if (v := run[case]) is not None] for case in runs[0]}
    return {case: sum(each) / len(each) if each else None for case, each in defined.items()}


def _record(row: Row, column: Column) -> dict[str, Any]:
    printed, measured = row.paper.get(column.key), row.ours.get(column.key)
    is_text = isinstance(printed, str)
    return {
        "row": row.name,
        "column": column.key,
        "unit": column.unit,
        "status": "quoted" if row.quoted else "run" if column.key in row.ours else "not run",
        "paper": None if is_text else printed,
        "paper_text": printed if is_text else None,
    } | _flat(measured or Measured(None, None, None, 0, 0, 0, 0))


def _ours(row: Row, column: Column) -> str:
    measured = row.ours.get(column.key)
    if measured is None:
        return "quoted" if row.quoted else "-" if column.key in row.ours else "not run"
    if measured.value is None:
        return "undefined"
    std = "" if measured.std is None else f" ± {column.show(measured.std)}"
    interval = f" [{column.show(*measured.interval)}]" if measured.interval else ""
    return f"{column.show(measured.value)}{std}{interval}"


def _shared(by_title: Sequence[tuple[str, str]]) -> str:
    """One text where all measures agree, else each with its measure."""
    texts = {text for _, text in by_title}
    return texts.pop() if len(texts) == 1 else ", ".join(map(" ".join, by_title))


def _flat(figure: Measured | PairedDifference) -> dict[str, Any]:
    fields = asdict(figure)
    low, high = fields.pop("interval") or (None, None)
    return fields | {"low": low, "high": high}


def _csv(records: Iterable[Mapping[str, Any]]) -> str:
    """Records with the same fields; nothing at all without records."""
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    for k, record in enumerate(records):
        writer.writerows([record.values()] if k else [record, record.values()])
    return out.getvalue()


def document(title: str, header: list[str], body: Iterable[list[str]], notes: Iterable[str]) -> str:
    """A heading, a pipe table padded to equal widths, and a list of notes."""
    rows = [[_escaped(cell) for cell in row] for row in (header, *body)]
    widths = [max(3, *map(len, cells)) for cells in zip(*rows, strict=True)]
    # Names to the left, figures to the right.
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    lines = [
        f"| {' | '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])} |"
        for row in (rows[0], rule, *rows[1:])
    ]
    listed = [f"- {_one_line(note)}" for note in notes]
    return "\n".join([f"### {_one_line(title)}", "", *lines, "", *listed, ""])


def _escaped(text: str) -> str:
    """As a reader shall see it, whatever Markdown would make of it in a cell."""
    return re.sub(r"([\\|*`<~])", r"\\\1", _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.split())
