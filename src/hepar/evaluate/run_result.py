"""What one training run scored on its test patients, kept as a file, and figures of many such runs.

One file a (row, scale, seed, fold): every case's scores as measured, and the hashes that say what
was trained on what. A table is made of files alone, so that rows may be run anywhere, in any order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from hepar.evaluate.policy import Outcome, counted
from hepar.evaluate.score import MEASURES, CaseScore, StructureScore
from hepar.evaluate.statistics import bootstrap
from hepar.evaluate.tables import Column, Measured, Run, measure
from hepar.evaluate.voxel import tumor_burden
from hepar.io.atomic import atomic_path

Count = Annotated[int, Field(ge=0)]
DIGITS = 6  # of what is written: millionths of a Dice, nanometers


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LiverResult(_Strict):
    """Scores of the liver that was found in one test case, tumors included, as measured.

    Attributes:
        outcome: which of the two masks are there.
        dice, assd_mm: None where a mask is empty and the measure is undefined.
        overlap, predicted, reference: voxels.
    """

    outcome: Outcome
    dice: float | None
    assd_mm: float | None
    overlap: Count
    predicted: Count
    reference: Count

    @classmethod
    def of(cls, score: StructureScore) -> LiverResult:
        """What is kept of a scored liver."""
        return cls(
            outcome=score.outcome,
            overlap=score.overlap.both,
            predicted=score.overlap.predicted,
            reference=score.overlap.reference,
            **_rounded(score, ("dice", "assd_mm")),
        )


class CaseResult(_Strict):
    """Tumor scores of one test case, as measured, and those of its liver where that was found too.

    Attributes:
        type: leading tumor type of the patient, empty where the cohort names none.
        outcome: which of the two masks are there.
        dice, voe, rvd, assd_mm, rmsd_mm: None where a mask is empty and the measure is undefined.
        overlap, predicted, reference: voxels.
        diagonal_mm: of the image.
        lesions, found, false: true lesions, those of them that were found, and lesions predicted
            where none is.
    """

    case_id: str
    patient_id: str
    type: str
    outcome: Outcome
    dice: float | None
    voe: float | None
    rvd: float | None
    assd_mm: float | None
    rmsd_mm: float | None
    overlap: Count
    predicted: Count
    reference: Count
    diagonal_mm: float
    lesions: Count
    found: Count
    false: Count
    liver: LiverResult | None = None
    tumor: bool = True

    @classmethod
    def of(
        cls,
        score: CaseScore,
        kind: str,
        *,
        found_liver: bool = False,
        looked_for_tumor: bool = True,
    ) -> CaseResult:
        """What is kept of a scored case.

        Args:
            score: of a label map.
            kind: leading tumor type.
            found_liver: the liver is the method's own.
            looked_for_tumor: tumors were looked for.
        """
        tumor = score.structures["tumor"]
        counts, lesions = tumor.overlap, score.match.counts
        return cls(
            case_id=score.case_id,
            patient_id=score.patient_id,
            type=kind,
            outcome=tumor.outcome,
            overlap=counts.both,
            predicted=counts.predicted,
            reference=counts.reference,
            diagonal_mm=round(score.diagonal_mm, DIGITS),
            lesions=lesions.n_reference,
            found=lesions.tp_reference,
            false=lesions.n_predicted - lesions.tp_predicted,
            liver=LiverResult.of(score.structures["liver"]) if found_liver else None,
            tumor=looked_for_tumor,
            **_rounded(tumor, ("dice", "voe", "rvd", "assd_mm", "rmsd_mm")),
        )

    @property
    def burden_error(self) -> float:
        """Tumor burden found less the true one, as a fraction; 0 burden where there is no liver.

        Raises:
            ValueError: the liver was given.
        """
        if self.liver is None:
            raise ValueError(f"{self.case_id}: the liver was given, not found")
        found = tumor_burden(self.predicted, self.liver.predicted)
        return found - tumor_burden(self.reference, self.liver.reference)


def _rounded(score: StructureScore, names: Sequence[str]) -> dict[str, float | None]:
    measured = score.measures()
    return {n: None if (v := measured[n]) is None else round(v, DIGITS) for n in names}


class RunResult(_Strict):
    """One finished run.

    Attributes:
        system, row, scale, seed, fold: which; a row with a first stage is `recipe+liver`; fold
            None where the cohort has a test split.
        recipe_sha256: of the recipe or both recipes, see `paper_run.run_hash`.
        cohort_sha256: of the table and every file it names, see `data.protocol`.
        tested: which patients of it are tested; None in files older than other ways than `test`
            and `folds`.
        weights_sha256: of the weights that were scored.
        liver_weights_sha256: of the first stage's; None without one.
        code: fingerprint or commit of the code, for the record.
        device: where it was trained.
        parameters: of the network.
        steps: of training.
        train_seconds, test_seconds: wall time.
        alignment: how the cohort's phases were aligned; `tumor_center` uses the truth.
        cases: test cases.
    """

    system: str
    row: str
    scale: str
    seed: Count
    fold: Count | None
    recipe_sha256: str
    cohort_sha256: str
    weights_sha256: str
    code: str
    device: str
    parameters: Count
    steps: Count
    train_seconds: float
    test_seconds: float
    alignment: str = "none"
    tested: Literal["test", "folds", "validation", "holdout"] | None = None
    liver_weights_sha256: str | None = None
    cases: tuple[CaseResult, ...]

    def write(self, path: Path) -> None:
        """Write as JSON, a case a line, whole or not at all."""
        document = self.model_dump(mode="json")
        cases = document.pop("cases")
        head = json.dumps(document, indent=1)[:-2]
        lines = ",\n".join(f"  {json.dumps(case)}" for case in cases)
        with atomic_path(path) as temporary:
            temporary.write_text(f'{head},\n "cases": [\n{lines}\n ]\n}}\n', encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> RunResult:
        """Read what `write` wrote.

        Raises:
            ValueError: it is something else.
        """
        return cls.model_validate_json(path.read_text(encoding="utf-8"))


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
    "asd_both": Column("asd_both", "ASD both", "mm", 1, "lower"),
    "recall": Column("recall", "lesions found", "%", 1, "higher"),
    "false": Column("false", "false a patient", "", 2, "lower"),
    "cyst": Column("cyst", "DPC cyst", "%", 1, "higher"),
    "fnh": Column("fnh", "DPC FNH", "%", 1, "higher"),
    "hcc": Column("hcc", "DPC HCC", "%", 1, "higher"),
    "hemangioma": Column("hemangioma", "DPC hemangioma", "%", 1, "higher"),
    "metastasis": Column("metastasis", "DPC metastases", "%", 1, "higher"),
}
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

LIVER_COLUMNS = ("liver_dpc", "liver_dg", "burden", "liver_asd")
_MEASURED = {"dpc": "dice", "voe": "voe", "rvd": "rvd", "asd": "assd_mm", "rmsd": "rmsd_mm"}
_TYPES = ("cyst", "fnh", "hcc", "hemangioma", "metastasis")


def is_scored(runs: Sequence[Sequence[CaseResult]], column: str) -> bool:
    """Whether runs looked for what a column is of: liver, tumor, or, for the burden, both."""
    cases = [case for run in runs for case in run]
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
    if column in ("liver_dpc", "liver_asd"):
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
    liver = _liver(case)
    if column == "liver_dpc":
        return counted(MEASURES["dice"], liver.dice, liver.outcome, case.diagonal_mm)
    return counted(MEASURES["assd_mm"], liver.assd_mm, liver.outcome, case.diagonal_mm)


def _liver(case: CaseResult) -> LiverResult:
    if case.liver is None:
        raise ValueError(f"{case.case_id}: the liver was given, not found")
    return case.liver


def figure(runs: Sequence[Sequence[CaseResult]], column: str) -> Measured | None:
    """One cell of a table: a column over the cases of all seeds.

    Args:
        runs: test cases of each seed, the same cases in each.
        column: key of `COLUMNS`.

    Returns:
        None where the runs do not look for what the column is of, or no case has the type.
    """
    if not is_scored(runs, column):
        return None
    patients = {c.case_id: c.patient_id for c in runs[0]}
    if column == "dg":
        return _ratio(runs, lambda c: 2 * c.overlap, lambda c: c.predicted + c.reference)
    if column == "liver_dg":
        voxels = (
            lambda c: 2 * _liver(c).overlap,
            lambda c: _liver(c).predicted + _liver(c).reference,
        )
        return _ratio(runs, *voxels)
    if column == "burden":
        return _ratio(runs, lambda c: c.burden_error**2, lambda c: 1, np.sqrt)
    if column == "recall":
        return _ratio(runs, lambda c: c.found, lambda c: c.lesions)
    values = [case_values(run, column) for run in runs]
    return measure(values, patients) if values[0] else None


def _ratio(
    runs: Sequence[Sequence[CaseResult]],
    above: Callable[[CaseResult], float],
    below: Callable[[CaseResult], float],
    of_ratio: Callable[[np.ndarray], np.ndarray] = lambda ratio: ratio,
) -> Measured:
    """A function of sums over all cases divided, averaged over seeds; patients are resampled."""
    owners = sorted({c.patient_id for c in runs[0]})
    sums = np.zeros((len(runs), 2, len(owners)))
    for run, of_run in zip(runs, sums, strict=True):
        for case in run:
            of_run[:, owners.index(case.patient_id)] += above(case), below(case)

    def statistic(chosen: np.ndarray) -> float | None:
        totals = sums[:, :, chosen].sum(axis=2)
        defined = totals[:, 1] > 0
        ratios = of_ratio(totals[defined, 0] / totals[defined, 1])
        return float(ratios.mean()) if defined.any() else None

    value, interval = bootstrap(len(owners), statistic)
    return Measured(value, None, interval, len(runs[0]), 0, 0, len(runs))
