"""What a paper printed, and which recipe each of its rows is: `papers/<system>.yaml`, read."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from hepar import strict_yaml
from hepar.errors import UsageError
from hepar.evaluate.run_columns import (
    COLUMNS,
    LIVER_COLUMNS,
    LIVER_NOTES,
    NOTES,
    SERVER_COLUMNS,
    SERVER_COUNTS,
    SERVER_NOTES,
    case_values,
    figure,
    is_scored,
)
from hepar.evaluate.run_result import CaseResult
from hepar.evaluate.tables import Row, Table, versus

OURS = ("asd_both", "recall", "false")
"""Columns that every table gets beside the paper's."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PrintedRow(_Strict):
    """A row of a table.

    Attributes:
        name: as the paper calls it.
        recipe: `recipes/<system>/<recipe>.yaml`; empty for a row quoted from the literature.
        liver: recipe of the first stage, which finds the liver that this one looks at; empty where
            the cohort's own liver is given.
        paper: figures exactly as printed, in the order of the table's columns; empty where the
            row is ours.
        against: the row it is compared with, instead of the table's baseline.
    """

    name: str
    recipe: str = ""
    liver: str = ""
    paper: tuple[str, ...] = ()
    against: str | None = None

    @property
    def run(self) -> str:
        """What its runs are called: `recipe` or `recipe+liver`; empty for a quoted row."""
        return f"{self.recipe}+{self.liver}" if self.liver else self.recipe


def stages_of(run: str) -> tuple[str, str]:
    """Recipe of a run, and of its first stage, which is empty where it has none."""
    recipe, _, liver = run.partition("+")
    return recipe, liver


class PrintedTable(_Strict):
    """A table of the paper.

    Attributes:
        title: as a heading.
        columns: keys of `run_columns.COLUMNS`, in the paper's order.
        baseline: the row that all others are compared with.
        rows: in the paper's order.
        notes: for readers.
    """

    title: str
    columns: tuple[str, ...]
    baseline: str | None = None
    rows: tuple[PrintedRow, ...]
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> PrintedTable:
        unknown = set(self.columns) - set(COLUMNS)
        if unknown:
            raise ValueError(f"there are no columns {sorted(unknown)}")
        names = [row.name for row in self.rows]
        for row in self.rows:
            if row.paper and len(row.paper) != len(self.columns):
                raise ValueError(f"row {row.name} has {len(row.paper)} figures")
            if row.liver and not row.recipe:
                raise ValueError(f"row {row.name} has a first stage and no recipe")
            if (row.against or row.name) not in names:
                raise ValueError(f"row {row.name} is compared with {row.against}")
        if (self.baseline or names[0]) not in names:
            raise ValueError(f"there is no row {self.baseline}")
        return self


class Printed(_Strict):
    """What is known of a paper's experiments.

    Attributes:
        paper: the reference.
        cohort: what its figures were measured on.
        tables: by the name that `hepar reproduce` takes.
    """

    paper: str
    cohort: str
    tables: dict[str, PrintedTable]

    @model_validator(mode="after")
    def _two_stages(self) -> Printed:
        """A first stage sees whole images, or runs could wait for each other forever."""
        rows = [row for table in self.tables.values() for row in table.rows if row.liver]
        if both := {row.recipe for row in rows} & {row.liver for row in rows}:
            raise ValueError(f"{sorted(both)} find livers and have a first stage")
        return self


def read_printed(path: Path) -> Printed:
    """Read what a paper printed.

    Raises:
        UsageError: `E_RECIPE`, naming what is wrong.
    """
    try:
        return Printed.model_validate(strict_yaml.read(path))
    except (ValueError, ValidationError) as error:
        raise UsageError(
            "E_RECIPE", "reproduce", f"{path.name}: {error}", "Correct the table of the paper."
        ) from None


# `PrintedRow.run` -> test cases of each seed.
Runs = dict[str, tuple[tuple[CaseResult, ...], ...]]


def tabulate(printed: PrintedTable, runs: Runs, notes: tuple[str, ...] = ()) -> Table:
    """The table with our figures where a recipe was run.

    Args:
        printed: the paper's.
        runs: what a row's runs are called -> test cases of each seed; absent where not run.
        notes: of this reproduction.
    """
    livers = _shows_livers(printed)
    extra = (*(("liver_asd",) if livers else ()), *OURS)
    keys = tuple(dict.fromkeys((*printed.columns, *extra)))
    rows = []
    for row in printed.rows:
        said = dict(zip(printed.columns, row.paper, strict=False))
        found = runs.get(row.run)
        ours = {} if found is None else {key: figure(found, key) for key in keys}
        rows.append(Row(row.name, said, ours, quoted=not row.recipe))
    columns = tuple(COLUMNS[key] for key in keys)
    standing = (*NOTES, *LIVER_NOTES) if livers else NOTES
    if set(printed.columns) & {*SERVER_COLUMNS, *SERVER_COUNTS}:
        standing = (*standing, *SERVER_NOTES)
    return Table(printed.title, columns, tuple(rows), (*standing, *printed.notes, *notes))


def _shows_livers(printed: PrintedTable) -> bool:
    return any(key in LIVER_COLUMNS for key in printed.columns)


def differences(printed: PrintedTable, runs: Runs) -> str:
    """Every row less the one it is compared with, in Dice per case and in false lesions."""
    parts = []
    pairs: dict[str, list[PrintedRow]] = {}
    for row in printed.rows:
        other = row.against or (printed.baseline if row.name != printed.baseline else None)
        if other is not None and row.run in runs:
            pairs.setdefault(other, []).append(row)
    columns = (*(("liver_dpc",) if _shows_livers(printed) else ()), "dpc", "false")
    for other, rows in pairs.items():
        base = next(row.run for row in printed.rows if row.name == other)
        if base not in runs:
            continue
        patients = {c.case_id: c.patient_id for c in runs[base][0]}
        for key in columns:
            every = {other: base} | {row.name: row.run for row in rows}
            chosen = {name: run for name, run in every.items() if is_scored(runs[run], key)}
            if other not in chosen or len(chosen) < 2:
                continue
            values = {n: [case_values(r, key) for r in runs[which]] for n, which in chosen.items()}
            parts.append(versus(COLUMNS[key], values, other, patients).markdown())
    return "\n".join(parts)
