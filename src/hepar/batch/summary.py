"""What became of a batch, as `batch.json` and `batch.csv`: a row a study, in the order of names."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hepar.batch.job import Job
from hepar.batch.ledger import Row
from hepar.batch.plan import Again, Plan
from hepar.io.atomic import atomic_path

COLUMNS = (
    *("study", "folder", "state", "code", "message", "remedy", "seconds", "lesions"),
    *("tumor_burden", "attempts"),
)


def document_of(todo: Plan, rows: Mapping[str, Row], part: str) -> dict[str, Any]:
    """The content of `batch.json`.

    Args:
        todo: the batch, or a part of it.
        rows: of the ledger, by folder.
        part: what stands behind `batch` in the names of its files.
    """
    studies = [_study(job, rows.get(job.folder)) for job in todo.jobs]
    studies += [_study_again(again) for again in todo.again]
    studies.sort(key=lambda study: study["study"])
    states = [study["state"] for study in studies]
    counts = {state: states.count(state) for state in ("done", "failed", "duplicate")}
    return {
        "schema_version": "1",
        "table": f"batch{part}.csv",
        "counts": {**counts, "open": len(states) - sum(counts.values())},
        "notes": list(todo.notes),
        "studies": studies,
    }


def _study(job: Job, row: Row | None) -> dict[str, Any]:
    study: dict[str, Any] = dict.fromkeys(COLUMNS)
    study |= {"study": job.name, "folder": job.folder, "state": row.state if row else "queued"}
    if row is not None:
        study |= {"code": row.code, "message": row.message, "remedy": row.remedy}
        study |= {"seconds": row.seconds, "lesions": row.lesions, "tumor_burden": row.burden}
        study["attempts"] = row.attempts
    return study


def _study_again(again: Again) -> dict[str, Any]:
    study: dict[str, Any] = dict.fromkeys(COLUMNS)
    code, _, message = again.twin.note.partition(": ")
    study |= {"study": again.name, "folder": again.folder, "state": "duplicate"}
    study |= {"code": code, "message": message}
    if (error := again.twin.error) is not None:
        study |= {"folder": None, "state": "failed"}
        study |= {"code": error.code, "message": error.message, "remedy": error.remedy}
    return study


def write_summary(out: Path, document: Mapping[str, Any]) -> None:
    """Write `batch.json` and `batch.csv`, each whole or not at all.

    Args:
        out: folder of the batch.
        document: from `document_of`.
    """
    table = out / document["table"]
    with atomic_path(table.with_suffix(".json")) as temporary:
        temporary.write_text(_text(document), encoding="utf-8", newline="\n")
    with (
        atomic_path(table) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as stream,
    ):
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(document["studies"])


def _text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
