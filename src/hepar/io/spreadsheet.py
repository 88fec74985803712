"""Tables as spreadsheets write them: CSV with commas or semicolons, with or without a BOM."""

from __future__ import annotations

import csv
from pathlib import Path


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read a table of text.

    Args:
        path: a CSV file with a header.

    Returns:
        Column names in lower case, and a dict a row; cells are stripped, absent ones empty.

    Raises:
        ValueError: the file cannot be read, is not UTF-8, or names a column twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None
    header = text.split("\n", 1)[0]
    delimiter = ";" if header.count(";") > header.count(",") else ","
    reader = csv.DictReader(text.splitlines(), delimiter=delimiter, restkey="", restval="")
    columns = [name.strip().lower() for name in reader.fieldnames or []]
    twice = sorted({name for name in columns if name and columns.count(name) > 1})
    if twice:
        raise ValueError(f"column {', '.join(twice)} is there twice")
    reader.fieldnames = columns
    rows = [{key: (value or "").strip() for key, value in row.items() if key} for row in reader]
    return columns, rows
