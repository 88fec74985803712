"""The columns of LIDIA's tables: what patients have, which lesions were found, and of which type.

Source: the evaluation of PLAN and LIDIA. A patient has a type whose true volume exceeds 113 mm^3;
lesions are found and false as `plan_detection` counts them; the type of a lesion is right or wrong
for those that were found, one to one (`lesion_classes`).
"""

from __future__ import annotations

from collections.abc import Sequence

from hepar.evaluate.run_auc import MEANS, auc_figure, scored_patients
from hepar.evaluate.run_ratio import ratio
from hepar.evaluate.run_result import CaseResult, PatientScore, TypedResult
from hepar.evaluate.tables import Column, Measured

_OF_TYPE = {
    "auc_hcc": ("hcc", "HCC"),
    "auc_icc": ("icc", "ICC"),
    "auc_metastasis": ("metastasis", "Meta"),
    "auc_hemangioma": ("hemangioma", "Heman"),
    "auc_fnh": ("fnh", "FNH"),
    "auc_cyst": ("cyst", "cyst"),
    "auc_calcification": ("calcification", "calc"),
    "auc_other": ("other", "others"),
}
AUC_COLUMNS = {
    **{key: Column(key, f"AUC {title}", "", 3) for key, (_, title) in _OF_TYPE.items()},
    "auc8": Column("auc8", "AUC-8", "", 3),
    "auc2": Column("auc2", "AUC-2", "", 3),
}
TYPE_COLUMNS = AUC_COLUMNS | {
    "precision": Column("precision", "precision", "", 3),
    "sensitivity": Column("sensitivity", "sensitivity", "", 3),
    "accuracy": Column("accuracy", "type accuracy", "", 4),
}

TYPE_NOTES = (
    "**AUC**: of having the type against not having it, over patients, who have it where its true "
    "volume exceeds 113 mm³; **AUC-8** is the mean over types, **AUC-2** that of malignant (HCC, "
    "ICC, metastasis) and of benign (hemangioma, FNH, cyst, calcification) against the rest. A "
    "score that never differs has 0.5; each draw of an interval leaves out types that it lacks.",
    "**precision, sensitivity**: of lesions, a hit at a component Dice of 0.2, as PLAN counts "
    "them; **type accuracy**: share of the lesions found one to one whose type is right; "
    "**Dice**: of all types as one, otherwise as DPC.",
)


def tells_types(cases: Sequence[CaseResult], column: str, score: PatientScore | None) -> bool:
    """Whether cases hold what a column is of: types, and for an AUC the score."""
    typed = [case.typed for case in cases if case.typed is not None]
    if not cases or len(typed) < len(cases):
        return False
    return column not in AUC_COLUMNS or all(score in one.scores for one in typed)


def type_figure(
    runs: Sequence[Sequence[CaseResult]], column: str, score: PatientScore | None
) -> Measured:
    """One cell: a column of `TYPE_COLUMNS` over the cases of all seeds, which hold it.

    Args:
        runs: test cases of each seed, the same cases in each.
        column: which one.
        score: how patients are scored; only of columns of AUC.
    """
    if column in AUC_COLUMNS:
        assert score is not None
        scored = scored_patients(runs, score)
        names = MEANS[column] if column in MEANS else (_OF_TYPE[column][0],)
        value, interval = auc_figure(scored, names)
        return Measured(value, None, interval, len(scored.patients), 0, 0, len(runs))
    if column == "accuracy":
        return ratio(
            runs,
            lambda c: sum(true == said for true, said in _typed(c).pairs),
            lambda c: len(_typed(c).pairs),
        )
    side = "predicted" if column == "precision" else "reference"
    return ratio(
        runs,
        lambda c: getattr(_typed(c), f"tp_{side}"),
        lambda c: getattr(_typed(c), f"n_{side}"),
    )


def patients_note(runs: Sequence[Sequence[CaseResult]], score: PatientScore) -> str:
    """Who has what among the tested patients, and which types the means leave out."""
    scored = scored_patients(runs[:1], score)
    counts = {name: scored.seeds[0][name].n_positive for name in MEANS["auc8"]}
    listed = ", ".join(f"{name} {n}" for name, n in counts.items())
    kept = scored.defined(MEANS["auc8"])
    left = [name for name in MEANS["auc8"] if name not in kept]
    said = f"of {len(scored.patients)} patients, those who have each type: {listed}"
    if not left:
        return f"{said}."
    return (
        f"{said}; **AUC-8 is the mean of {len(kept)} types: every or no patient has "
        f"{', '.join(left)}.**"
    )


def _typed(case: CaseResult) -> TypedResult:
    if case.typed is None:
        raise ValueError(f"{case.case_id}: types of lesions were not told apart")
    return case.typed
