"""Score what lies on disk: every case of a truth beside its prediction, and leave the results."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hepar.errors import InputRefused
from hepar.evaluate.patient_summary import TypedCase, summarize_patients
from hepar.evaluate.score import TOLERANCE_MM, CaseScore, score_case
from hepar.evaluate.sources import CaseSource, find_sources
from hepar.evaluate.structures import Labels
from hepar.evaluate.summary import summarize
from hepar.geometry import Grid, canonical
from hepar.io.nifti import read_label
from hepar.provenance import hepar_version
from hepar.study import LIVER, TUMOR, Volume

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Evaluation:
    """Scores of a set of cases.

    Attributes:
        document: plain data, the content of `scores.json`.
        cases: in the order of the document's rows.
    """

    document: dict[str, Any]
    cases: tuple[CaseScore, ...]

    def write(self, folder: Path) -> None:
        """Leave `scores.json`, `cases.csv` and, where lesions were compared, `lesions.csv`."""
        text = json.dumps(self.document, indent=2, allow_nan=False)
        (folder / "scores.json").write_text(text + "\n", encoding="utf-8")
        _write_table(folder / "cases.csv", self.document["cases"])
        rows = [row for case in self.cases if case.lesions for row in case.lesions.rows()]
        if rows:
            _write_table(folder / "lesions.csv", rows)


def evaluate(
    predictions: Path,
    truth: Path,
    *,
    lesions: bool = False,
    types: bool = False,
    tolerance_mm: float = TOLERANCE_MM,
    progress: Progress = lambda done, total, name: None,
) -> Evaluation:
    """Score every case of a truth.

    Args:
        predictions: see `sources.py` for what either side may be.
        truth: each of its cases needs a prediction of the same name, unless both sides are a single
            case. Of a cohort with a test split only that is scored.
        lesions: compare single lesions.
        types: compare lesion types and what each patient has; compares lesions too.
        tolerance_mm: of the surface Dice.
        progress: told (cases done, cases, the next one's name).

    Raises:
        InputRefused: `E_NO_IMAGE` for nothing to score or a missing prediction,
            `E_LABEL_SHAPE` or `E_GRID_MISMATCH` for maps on different voxels, `E_LABEL_VALUES`,
            `E_NO_TYPES`, `E_LESION_TABLE`, or as `find_sources`.
    """
    pairs, warnings = _pairs(find_sources(predictions), find_sources(truth))
    if types:
        _need_types(pairs)
    scores = []
    for done, (predicted, reference) in enumerate(pairs):
        progress(done, len(pairs), reference.case_id)
        scores.append(
            _score_pair(predicted, reference, lesions=lesions or types, tolerance_mm=tolerance_mm)
        )
    summary = summarize(scores)
    unsaid = [p.case_id for p, _ in pairs if p.probabilities is None]
    if types and unsaid:
        warnings.append(
            f"W_NO_PROBABILITIES: none stated in {len(unsaid)} of {len(pairs)} cases, e.g. "
            f"{unsaid[0]}; patients are scored by predicted volume."
        )
    document = {
        "schema_version": "1",
        "hepar_version": hepar_version(),
        "predictions": predictions.name,
        "truth": truth.name,
        **summary,
        "types": _types(pairs, scores) if types else None,
        "warnings": [*warnings, *summary["warnings"]],
    }
    return Evaluation(document, tuple(scores))


def _pairs(
    predictions: dict[str, CaseSource], truth: dict[str, CaseSource]
) -> tuple[list[tuple[CaseSource, CaseSource]], list[str]]:
    """Cases to score, and what was left out."""
    warnings = []
    if any(case.test for case in truth.values()):
        left = sum(not case.test for case in truth.values())
        truth = {name: case for name, case in truth.items() if case.test}
        if left:
            warnings.append(f"W_SPLIT: {left} cases outside the cohort's test split not scored.")
    if len(truth) == len(predictions) == 1:
        return list(zip(predictions.values(), truth.values(), strict=True)), warnings
    missing = [name for name in truth if name not in predictions]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if missing[3:] else "")
        raise InputRefused(
            "E_NO_IMAGE",
            "evaluate",
            f"{len(missing)} of {len(truth)} cases have no prediction: {shown}.",
            "Name predictions like the truth; an empty mask stands for no finding.",
        )
    extra = len(predictions) - len(truth)
    if extra:
        warnings.append(f"W_NO_TRUTH: {extra} predictions without a truth not scored.")
    return [(predictions[name], case) for name, case in truth.items()], warnings


def _need_types(pairs: Sequence[tuple[CaseSource, CaseSource]]) -> None:
    for side, cases in zip(("prediction", "truth"), zip(*pairs, strict=True), strict=True):
        without = [case.case_id for case in cases if case.lesions is None or not case.instances]
        if without:
            raise InputRefused(
                "E_NO_TYPES",
                "evaluate",
                f"The {side} says nothing of lesion types in {len(without)} of {len(cases)} cases, "
                f"e.g. {without[0]}.",
                "Put lesions.csv (case_id, lesion_id, type) and maps of the lesion ids beside it, "
                "or leave --types out.",
            )


def _score_pair(
    predicted: CaseSource, reference: CaseSource, *, lesions: bool, tolerance_mm: float
) -> CaseScore:
    name = reference.case_id
    truth = _label(reference, None)
    found = _label(predicted, truth.grid)
    said, known = predicted.lesions, reference.lesions
    parts = _instances(predicted, found.grid) if lesions else None
    true_parts = _instances(reference, truth.grid) if lesions else None
    confidence = said.confidence if said is not None and said.confidence else None
    if known is not None and true_parts is not None:
        untyped = set(np.unique(true_parts).tolist()) - {0} - set(known.types)
        if untyped:
            raise _bad_lesions(name, f"lesions {sorted(untyped)} of the truth have no type")
    try:
        return score_case(
            name,
            found.array,
            truth.array,
            truth.grid.spacing_mm,
            patient_id=reference.patient_id,
            tolerance_mm=tolerance_mm,
            lesions=lesions,
            predicted_instances=parts,
            reference_instances=true_parts,
            scores=confidence if parts is not None else None,
            predicted_types=said.types if said is not None and parts is not None else None,
            reference_types=known.types if known is not None and true_parts is not None else None,
        )
    except ValueError as error:
        raise _bad_lesions(name, str(error)) from error


def _bad_lesions(case_id: str, problem: str) -> InputRefused:
    return InputRefused(
        "E_LESION_TABLE", "evaluate", f"{case_id}: {problem}.", "Correct the maps or lesions.csv."
    )


def _label(source: CaseSource, on: Grid | None) -> Volume:
    """The label map, turned to axial orientation; on the same voxels as `on`."""
    volume = _axial(source.label)
    if volume.array.max() > TUMOR:
        raise InputRefused(
            "E_LABEL_VALUES",
            "evaluate",
            f"{source.case_id}: {source.label.name} holds the label {volume.array.max()}.",
            "Labels are 0 background, 1 liver, 2 tumor.",
        )
    if on is not None:
        _same_voxels(source, source.label, volume.grid, on)
    if source.liver is None:
        return volume
    liver = _axial(source.liver)
    _same_voxels(source, source.liver, liver.grid, volume.grid)
    joined = np.maximum(volume.array, (liver.array > 0) * np.uint8(LIVER))
    return Volume(joined, volume.grid)


def _instances(source: CaseSource, on: Grid) -> Labels | None:
    if source.instances is None:
        return None
    volume = _axial(source.instances)
    _same_voxels(source, source.instances, volume.grid, on)
    return volume.array


def _axial(path: Path) -> Volume:
    volume = read_label(path)
    return Volume(*canonical(volume.array, volume.grid))


def _same_voxels(source: CaseSource, path: Path, grid: Grid, expected: Grid) -> None:
    gap_mm = _corner_gap_mm(grid, expected)
    if grid.shape == expected.shape and gap_mm <= 0.1 * min(expected.spacing_mm):
        return
    raise InputRefused(
        "E_GRID_MISMATCH" if grid.shape == expected.shape else "E_LABEL_SHAPE",
        "evaluate",
        f"{source.case_id}: {path.name} has {_described(grid)}, the other map "
        f"{_described(expected)}; their corners lie up to {gap_mm:.2f} mm apart.",
        "Bring both onto the same image before scoring.",
    )


def _corner_gap_mm(a: Grid, b: Grid) -> float:
    corners = np.array(list(np.ndindex(2, 2, 2)), dtype=np.float64)
    there, here = (g.index_to_world(corners * (np.array(g.shape) - 1)) for g in (a, b))
    return float(np.linalg.norm(there - here, axis=1).max())


def _described(grid: Grid) -> str:
    shape = " x ".join(str(n) for n in grid.shape)
    spacing = " x ".join(f"{s:.4g}" for s in grid.spacing_mm)
    return f"{shape} voxels of {spacing} mm (z, y, x)"


def _types(
    pairs: Sequence[tuple[CaseSource, CaseSource]], scores: Sequence[CaseScore]
) -> dict[str, Any]:
    """What each patient has; scored by stated probabilities, else by predicted volume."""
    stated = all(predicted.probabilities is not None for predicted, _ in pairs)
    cases = []
    for (predicted, _), score in zip(pairs, scores, strict=True):
        assert score.lesions is not None
        reference_mm3, predicted_mm3 = score.lesions.volumes_mm3()
        said = predicted.probabilities if stated else predicted_mm3
        cases.append(TypedCase(score.patient_id, reference_mm3, said or {}))
    return summarize_patients(cases, "probability" if stated else "volume")


def _write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
