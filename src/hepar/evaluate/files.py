"""Score label maps on disk: one pair of files, or two folders with the same names."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hepar.errors import InputRefused
from hepar.evaluate.score import CaseScore, score_case, summarize
from hepar.io.atomic import atomic_path
from hepar.io.nifti import read_label

_SUFFIXES = (".nii.gz", ".nii")


def score_files(
    predictions: Path,
    truth: Path,
    out: Path | None,
    *,
    progress: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Score every pair and, if wanted, leave `scores.json` and `cases.csv`.

    Args:
        predictions: a label map, or a folder of them.
        truth: the same; in folders every truth needs a prediction of the same name.
        out: folder for the results.
        progress: told which case is being scored.

    Returns:
        `{"summary": ..., "cases": [...]}`.

    Raises:
        InputRefused: `E_NO_IMAGE` for nothing to score, `E_LABEL_SHAPE` or `E_GEOMETRY_MISMATCH`
            for a pair that does not lie on the same voxels.
    """
    cases = []
    for name, predicted, reference in _pairs(predictions, truth):
        progress(f"score {name}")
        cases.append(_score_pair(name, predicted, reference))
    rows = [case.row() for case in cases]
    scores = {"summary": summarize(cases), "cases": rows}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        with atomic_path(out / "cases.csv") as path, path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        with atomic_path(out / "scores.json") as path:
            path.write_text(json.dumps(scores, indent=2) + "\n")
    return scores


def _stem(path: Path) -> str | None:
    for suffix in _SUFFIXES:
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return None


def _pairs(predictions: Path, truth: Path) -> list[tuple[str, Path, Path]]:
    for path in (predictions, truth):
        if not path.exists():
            raise InputRefused(
                "E_NO_IMAGE", "evaluate", f"{path} does not exist.", "Check the path."
            )
    if truth.is_file() and predictions.is_file():
        return [(_stem(truth) or truth.name, predictions, truth)]
    if truth.is_file() or predictions.is_file():
        raise InputRefused(
            "E_NO_IMAGE",
            "evaluate",
            "One of the two is a file and the other a folder.",
            "Give two label maps, or two folders with the same file names.",
        )
    found = {_stem(p): p for p in sorted(predictions.iterdir()) if _stem(p)}
    wanted = {_stem(p): p for p in sorted(truth.iterdir()) if _stem(p)}
    missing = [name for name in wanted if name not in found]
    if not wanted or missing:
        what = f"{len(missing)} truths have no prediction, e.g. {missing[0]}" if missing else "none"
        raise InputRefused(
            "E_NO_IMAGE",
            "evaluate",
            f"Not every case can be scored: {what}.",
            "Name predictions like the truths (NAME.nii.gz); an empty mask stands for no finding.",
        )
    return [(str(name), found[name], path) for name, path in wanted.items()]


def _score_pair(name: str, predicted: Path, reference: Path) -> CaseScore:
    a, b = read_label(predicted), read_label(reference)
    if a.grid.shape != b.grid.shape:
        raise InputRefused(
            "E_LABEL_SHAPE",
            "evaluate",
            f"{name}: prediction {a.grid.shape} and truth {b.grid.shape} differ in shape.",
            "Bring both onto the same image before scoring.",
        )
    distance = a.grid.distance_mm(b.grid)
    if distance > 0.1 * min(b.grid.spacing_mm):
        raise InputRefused(
            "E_GEOMETRY_MISMATCH",
            "evaluate",
            f"{name}: prediction and truth lie up to {distance:.2f} mm apart.",
            "Bring both onto the same image before scoring.",
        )
    return score_case(name, a.array, b.array, b.grid.spacing_mm)
