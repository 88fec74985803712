"""What a paper printed, and which recipe each of its rows is: `papers/<system>.yaml`, read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from hepar import strict_yaml
from hepar.errors import UsageError
from hepar.evaluate.auc_differences import auc_versus
from hepar.evaluate.run_auc import scored_patients
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
from hepar.evaluate.run_result import CaseResult, PatientScore
from hepar.evaluate.tables import Row, Table, versus
from hepar.evaluate.type_columns import TYPE_COLUMNS, TYPE_NOTES, patients_note

OURS = ("asd_both", "recall", "false")
"""Columns that every table gets beside the paper's."""
Phase = Literal["NC", "ART", "PV", "DL"]


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
        score: how patients are scored, for columns of what they have; rows that differ in it alone
            share their runs.
        phases: all that the system is shown at test, whatever it was trained on; any when empty.
    """

    name: str
    recipe: str = ""
    liver: str = ""
    paper: tuple[str, ...] = ()
    against: str | None = None
    score: PatientScore | None = None
    phases: tuple[Phase, ...] = ()

    @property
    def run(self) -> str:
        """What its runs are called: `recipe`, `recipe+liver`, `recipe@ART.PV`; empty if quoted."""
        first = f"+{self.liver}" if self.liver else ""
        shown = f"@{'.'.join(self.phases)}" if self.phases else ""
        return f"{self.recipe}{first}{shown}"


class RunParts(NamedTuple):
    """What a run's name says.

    Attributes:
        recipe: of what is trained.
        liver: recipe of the first stage; empty where there is none.
        phases: all that is shown at test; any when empty.
    """

    recipe: str
    liver: str
    phases: tuple[str, ...]


def parts_of(run: str) -> RunParts:
    """The parts of a name that `PrintedRow.run` made."""
    trained, _, shown = run.partition("@")
    recipe, _, liver = trained.partition("+")
    return RunParts(recipe, liver, tuple(shown.split(".")) if shown else ())


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
            if row.phases and (not row.recipe or row.liver):
                raise ValueError(f"row {row.name} has phases and a first stage, or no recipe")
            if row.recipe and set(self.columns) & set(TYPE_COLUMNS) and row.score is None:
                raise ValueError(f"row {row.name} does not say how patients are scored")
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
        ours = {} if found is None else {key: figure(found, key, row.score) for key in keys}
        rows.append(Row(row.name, said, ours, quoted=not row.recipe))
    columns = tuple(COLUMNS[key] for key in keys)
    standing = (*NOTES, *LIVER_NOTES) if livers else NOTES
    if set(printed.columns) & {*SERVER_COLUMNS, *SERVER_COUNTS}:
        standing = (*standing, *SERVER_NOTES)
    if set(printed.columns) & set(TYPE_COLUMNS):
        standing = (*standing, *TYPE_NOTES, *_who_has_what(printed, runs))
    return Table(printed.title, columns, tuple(rows), (*standing, *printed.notes, *notes))


def _shows_livers(printed: PrintedTable) -> bool:
    return any(key in LIVER_COLUMNS for key in printed.columns)


def _who_has_what(printed: PrintedTable, runs: Runs) -> tuple[str, ...]:
    """A note for each set of tested patients."""
    notes: dict[str, list[str]] = {}
    for row in printed.rows:
        if row.score and row.run in runs and is_scored(runs[row.run], "auc8", row.score):
            notes.setdefault(patients_note(runs[row.run], row.score), []).append(row.name)
    if len(notes) == 1:
        return (f"Patients: {next(iter(notes))}",)
    return tuple(f"Patients of {', '.join(names)}: {note}" for note, names in notes.items())


def differences(printed: PrintedTable, runs: Runs) -> str:
    """Every row less the one it is compared with: Dice per case, false lesions, AUC-8."""
    parts = []
    pairs: dict[str, list[PrintedRow]] = {}
    for row in printed.rows:
        other = row.against or (printed.baseline if row.name != printed.baseline else None)
        if other is not None and row.run in runs:
            pairs.setdefault(other, []).append(row)
    columns = (*(("liver_dpc",) if _shows_livers(printed) else ()), "dpc", "false")
    for other, rows in pairs.items():
        base = next(row for row in printed.rows if row.name == other)
        if base.run not in runs:
            continue
        # Of rows that differ in the patients' score alone the outlines are the same.
        drawn = [row for row in rows if row.run != base.run]
        for key in columns:
            parts += _paired(key, [base, *drawn], runs)
        if "auc8" in printed.columns:
            parts += _paired_auc([base, *rows], runs)
    return "\n".join(parts)


def _paired(key: str, rows: Sequence[PrintedRow], runs: Runs) -> list[str]:
    """Rows less the first of them in a column that cases have values of; nothing of one row."""
    base = rows[0]
    chosen = {row.name: row.run for row in rows if is_scored(runs[row.run], key)}
    if base.name not in chosen or len(chosen) < 2:
        return []
    patients = {c.case_id: c.patient_id for run in chosen.values() for c in runs[run][0]}
    # A row that is shown some phases only has no value of a case without any of them.
    absent = dict.fromkeys(patients if any(row.phases for row in rows) else ())
    values = {
        name: [{**absent, **case_values(run, key)} for run in runs[which]]
        for name, which in chosen.items()
    }
    return [versus(COLUMNS[key], values, base.name, patients).markdown()]


def _paired_auc(rows: Sequence[PrintedRow], runs: Runs) -> list[str]:
    """Rows less the first of them in AUC-8; nothing of one row."""
    scored = {
        row.name: scored_patients(runs[row.run], row.score)
        for row in rows
        if row.score is not None and is_scored(runs[row.run], "auc8", row.score)
    }
    if rows[0].name not in scored or len(scored) < 2:
        return []
    return [auc_versus(COLUMNS["auc8"], scored, rows[0].name).markdown()]
