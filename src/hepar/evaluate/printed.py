"""What a paper printed, and which recipe each of its rows is: `papers/<system>.yaml`, read."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from hepar import strict_yaml
from hepar.errors import UsageError
from hepar.evaluate.run_result import COLUMNS, NOTES, CaseResult, case_values, figure
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
        paper: figures exactly as printed, in the order of the table's columns; empty where the
            row is ours.
        against: the row it is compared with, instead of the table's baseline.
    """

    name: str
    recipe: str = ""
    paper: tuple[str, ...] = ()
    against: str | None = None


class PrintedTable(_Strict):
    """A table of the paper.

    Attributes:
        title: as a heading.
        columns: keys of `run_result.COLUMNS`, in the paper's order.
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


# Recipe -> test cases of each seed.
Runs = dict[str, tuple[tuple[CaseResult, ...], ...]]


def tabulate(printed: PrintedTable, runs: Runs, notes: tuple[str, ...] = ()) -> Table:
    """The table with our figures where a recipe was run.

    Args:
        printed: the paper's.
        runs: recipe -> test cases of each seed; recipes without a run are absent.
        notes: of this reproduction.
    """
    keys = tuple(dict.fromkeys((*printed.columns, *OURS)))
    rows = []
    for row in printed.rows:
        said = dict(zip(printed.columns, row.paper, strict=False))
        found = runs.get(row.recipe)
        ours = {} if found is None else {key: figure(found, key) for key in keys}
        rows.append(Row(row.name, said, ours, quoted=not row.recipe))
    columns = tuple(COLUMNS[key] for key in keys)
    return Table(printed.title, columns, tuple(rows), (*NOTES, *printed.notes, *notes))


def differences(printed: PrintedTable, runs: Runs) -> str:
    """Every row less the one it is compared with, in Dice per case and in false lesions."""
    parts = []
    pairs: dict[str, list[PrintedRow]] = {}
    for row in printed.rows:
        other = row.against or (printed.baseline if row.name != printed.baseline else None)
        if other is not None and row.recipe in runs:
            pairs.setdefault(other, []).append(row)
    for other, rows in pairs.items():
        recipe = next(row.recipe for row in printed.rows if row.name == other)
        if recipe not in runs:
            continue
        patients = {c.case_id: c.patient_id for c in runs[recipe][0]}
        chosen = {other: recipe} | {row.name: row.recipe for row in rows}
        for key in ("dpc", "false"):
            values = {n: [case_values(r, key) for r in runs[which]] for n, which in chosen.items()}
            parts.append(versus(COLUMNS[key], values, other, patients).markdown())
    return "\n".join(parts)
