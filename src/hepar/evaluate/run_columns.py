"""The columns of the papers' tables: figures of many runs, from what was kept of each of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hepar.evaluate.policy import counted
from hepar.evaluate.run_ratio import ratio
from hepar.evaluate.run_result import CaseResult, LiverResult, PatientScore, ServerResult
from hepar.evaluate.score import MEASURES
from hepar.evaluate.tables import Column, Measured, Run, measure
from hepar.evaluate.type_columns import TYPE_COLUMNS, tells_types, type_figure

COLUMNS = {
    "liver_dpc": Column("liver_dpc", "liver DPC", "%", 1, "higher"),
    "liver_dg": Column("liver_dg", "liver DG", "%", 1, "higher"),
    "dpc": Column("dpc", "DPC", "%", 1, "higher"),
    "dg": Column("dg", "DG", "%", 1, "higher"),
    "burden": Column("burden", "burden RMSE", "", 3, "lower"),
    "liver_asd": Column("liver_asd", "liver ASD", "mm", 1, "lower"),
    "voe": Column("voe", "VOE", "%", 1, "lower"),
    "rvd": Column("rvd", "RVD", "%", 1, "zero"),
    "asd": Column("asd", "ASD", "mm", 1, "lower"),
    "rmsd": Column("rmsd", "RMSD", "mm", 1, "lower"),
    "hd95": Column("hd95", "HD95", "mm", 1, "lower"),
    "rvd_share": Column("rvd_share", "RVD", "", 2, "zero"),
    "liver_rvd": Column("liver_rvd", "liver RVD", "", 3, "zero"),
    "liver_hd": Column("liver_hd", "liver HD", "mm", 1, "lower"),
    "lesion_rvd": Column("lesion_rvd", "lesion RVD", "", 3, "zero"),
    "lesion_asd": Column("lesion_asd", "lesion ASD", "mm", 3, "lower"),
    "lesion_hd": Column("lesion_hd", "lesion HD", "mm", 3, "lower"),
    "precision50": Column("precision50", "precision at 50 %", "", 3, "higher"),
    "recall50": Column("recall50", "recall at 50 %", "", 3, "higher"),
    "asd_both": Column("asd_both", "ASD both", "mm", 1, "lower"),
    "recall": Column("recall", "lesions found", "%", 1, "higher"),
    "false": Column("false", "false a patient", "", 2, "lower"),
    "cyst": Column("cyst", "DPC cyst", "%", 1, "higher"),
    "fnh": Column("fnh", "DPC FNH", "%", 1, "higher"),
    "hcc": Column("hcc", "DPC HCC", "%", 1, "higher"),
    "hemangioma": Column("hemangioma", "DPC hemangioma", "%", 1, "higher"),
    "metastasis": Column("metastasis", "DPC metastases", "%", 1, "higher"),
    "dice": Column("dice", "Dice", "", 3, "higher"),
} | TYPE_COLUMNS
"""Every measure of the papers' tables that runs are scored by, in the order of printing."""

NOTES = (
    "**DPC, VOE, RVD, ASD, RMSD**: of tumor, by case, tumor-free cases left out where nothing is "
    "marked in them. A missed patient counts as Dice 0, VOE 1, RVD -1 and its image's diagonal "
    "in mm, a false alarm in a tumor-free one as Dice 0, VOE 1 and the diagonal: the papers do not "
    "say what they did. **ASD both** leaves such cases out.",
    "**DG**: Dice of all voxels of all cases. **lesions found**: share of all true lesions, "
    "**false a patient**: false lesions, tumor-free patients counted too; both by "
    "one-to-one matching of components.",
)

LIVER_NOTES = (
    "**liver**: the organ, tumors included, as the row itself found it; an empty one counts as an "
    "empty tumor mask does. **burden RMSE**: root mean square over cases of the error of tumor "
    "volume / liver volume, by seed, then averaged; where no liver was found its burden is 0. "
    "**-**: the row does not look for it.",
)

SERVER_NOTES = (
    "**lesion RVD, ASD, HD**: means over detected lesions of all cases, as the LiTS server takes "
    "them, never to be compared with figures of whole cases; **at 50 %**: components whose "
    "intersection over union exceeds one half, as its rules say (not with its known faults).",
)

LIVER_COLUMNS = ("liver_dpc", "liver_dg", "burden", "liver_asd", "liver_rvd", "liver_hd")
SERVER_COLUMNS = {"lesion_rvd": "rvd", "lesion_asd": "assd_mm", "lesion_hd": "msd_mm"}
SERVER_COUNTS = {
    "precision50": ("tp_predicted", "n_predicted"),
    "recall50": ("tp_reference", "n_reference"),
}
_LIVER_MEASURED = {
    "liver_dpc": "dice",
    "liver_asd": "assd_mm",
    "liver_rvd": "rvd",
    "liver_hd": "hd_mm",
}
_MEASURED = {
    "dpc": "dice",
    "dice": "dice",
    "voe": "voe",
    "rvd": "rvd",
    "rvd_share": "rvd",
    "asd": "assd_mm",
    "rmsd": "rmsd_mm",
    "hd95": "hd95_mm",
}
_TYPES = ("cyst", "fnh", "hcc", "hemangioma", "metastasis")


def is_scored(
    runs: Sequence[Sequence[CaseResult]], column: str, score: PatientScore | None = None
) -> bool:
    """Whether runs looked for what a column is of: liver, tumor, both for the burden, or types.

    Nor is a column scored by results that are older than it.
    """
    cases = [case for run in runs for case in run]
    if column in TYPE_COLUMNS:
        return tells_types(cases, column, score)
    if column in (*SERVER_COLUMNS, *SERVER_COUNTS) and any(c.server is None for c in cases):
        return False
    if column == "hd95" and any(c.hd95_mm is None and c.outcome == "both" for c in cases):
        return False
    if column in ("liver_rvd", "liver_hd"):
        livers = [c.liver for c in cases if c.liver is not None]
        name = _LIVER_MEASURED[column]
        if any(getattr(liver, name) is None for liver in livers if liver.outcome == "both"):
            return False
    liver, tumor = all(c.liver is not None for c in cases), all(c.tumor for c in cases)
    if column == "burden":
        return liver and tumor
    return liver if column in LIVER_COLUMNS else tumor


def case_values(result: Sequence[CaseResult], column: str) -> Run:
    """The value of each case under a column that is a mean over cases.

    Raises:
        KeyError: the column is a ratio of sums (`dg`, `recall`), or there is none of that name.
        ValueError: a column of the liver, which was given.
    """
    if column in _LIVER_MEASURED:
        return {c.case_id: _liver_value(c, column) for c in result}
    if column in _TYPES:
        dice = case_values(result, "dpc")
        return {c.case_id: dice[c.case_id] for c in result if c.type == column}
    if column == "false":
        return {c.case_id: float(c.false) for c in result}
    if column == "asd_both":
        return {c.case_id: c.assd_mm for c in result}
    name = _MEASURED[column]
    kind = MEASURES[name]
    return {c.case_id: counted(kind, getattr(c, name), c.outcome, c.diagonal_mm) for c in result}


def _liver_value(case: CaseResult, column: str) -> float | None:
    liver, name = _liver(case), _LIVER_MEASURED[column]
    return counted(MEASURES[name], getattr(liver, name), liver.outcome, case.diagonal_mm)


def _liver(case: CaseResult) -> LiverResult:
    if case.liver is None:
        raise ValueError(f"{case.case_id}: the liver was given, not found")
    return case.liver


def _server(case: CaseResult) -> ServerResult:
    if case.server is None:
        raise ValueError(f"{case.case_id}: lesions were not measured as the challenge does")
    return case.server


def figure(
    runs: Sequence[Sequence[CaseResult]], column: str, score: PatientScore | None = None
) -> Measured | None:
    """One cell of a table: a column over the cases of all seeds.

    Args:
        runs: test cases of each seed, the same cases in each.
        column: key of `COLUMNS`.
        score: how patients are scored, for columns of what they have.

    Returns:
        None where the runs do not look for what the column is of, or no case has the type.
    """
    if not is_scored(runs, column, score):
        return None
    if column in TYPE_COLUMNS:
        return type_figure(runs, column, score)
    patients = {c.case_id: c.patient_id for c in runs[0]}
    if column == "dg":
        return ratio(runs, lambda c: 2 * c.overlap, lambda c: c.predicted + c.reference)
    if column == "liver_dg":
        voxels = (
            lambda c: 2 * _liver(c).overlap,
            lambda c: _liver(c).predicted + _liver(c).reference,
        )
        return ratio(runs, *voxels)
    if column == "burden":
        return ratio(runs, lambda c: c.burden_error**2, lambda c: 1, np.sqrt)
    if column == "recall":
        return ratio(runs, lambda c: c.found, lambda c: c.lesions)
    if column in SERVER_COLUMNS:
        name = SERVER_COLUMNS[column]
        return ratio(
            runs,
            lambda c: sum(getattr(one, name) for one in _server(c).detected),
            lambda c: len(_server(c).detected),
        )
    if column in SERVER_COUNTS:
        top, bottom = SERVER_COUNTS[column]
        return ratio(
            runs, lambda c: getattr(_server(c), top), lambda c: getattr(_server(c), bottom)
        )
    values = [case_values(run, column) for run in runs]
    return measure(values, patients) if values[0] else None
