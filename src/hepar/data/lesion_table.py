"""`lesions.csv` of a cohort: which type each lesion has, by case and lesion id."""

from __future__ import annotations

from pathlib import Path

from hepar.errors import InputRefused
from hepar.io.spreadsheet import read_table
from hepar.study import LESION_TYPES

LESION_COLUMNS = ("case_id", "lesion_id", "type")
_MAX_LISTED = 8


def read_lesion_types(path: Path, stage: str) -> dict[str, dict[int, str]]:
    """Read types by case and lesion id; a case without lesions has no entry.

    Args:
        path: a table with the columns `case_id`, `lesion_id` and `type`; others are not looked at.
        stage: who asks, for the refusal.

    Raises:
        InputRefused: `E_LESION_TABLE`, naming the line and the column of every mistake, also where
            there is no such file: a type that is not told is not guessed.
    """
    try:
        columns, rows = read_table(path)
    except ValueError as error:
        raise bad_lesions(str(error), stage) from None
    missing = [name for name in LESION_COLUMNS if name not in columns]
    if missing:
        raise bad_lesions(f"column {', '.join(missing)} is missing", stage)
    found: dict[str, dict[int, str]] = {}
    problems = []
    for line, row in enumerate(rows, start=2):
        problem = _enter(row, found)
        if problem:
            problems.append(f"line {line}: {problem}")
    if problems:
        left = len(problems) - _MAX_LISTED
        more = f"; and {left} more" if left > 0 else ""
        raise bad_lesions("; ".join(problems[:_MAX_LISTED]) + more, stage)
    return found


def _enter(row: dict[str, str], found: dict[str, dict[int, str]]) -> str:
    """Take a row in, or say what is wrong with it."""
    case, number, kind = (row[name] for name in LESION_COLUMNS)
    if kind.lower() not in LESION_TYPES:
        return f"type {kind!r} is none of {', '.join(LESION_TYPES)}"
    if not number.isdecimal() or int(number) < 1:
        return f"lesion_id {number!r} is no whole number above 0"
    types = found.setdefault(case, {})
    if int(number) in types:
        return f"lesion_id {number} of case {case} is there twice"
    types[int(number)] = kind.lower()
    return ""


def bad_lesions(problem: str, stage: str) -> InputRefused:
    """The refusal of a table of lesions, or of the map that it speaks of."""
    return InputRefused(
        "E_LESION_TABLE",
        stage,
        f"lesions.csv: {problem}.",
        "Correct the table of lesions: a row (case_id, lesion_id, type) for each lesion of the map "
        f"`instances`, which is the tumor of `label`; types are {', '.join(LESION_TYPES)}.",
    )
