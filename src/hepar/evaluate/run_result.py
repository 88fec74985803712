"""What one training run scored on its test patients, kept as a file.

One file a (row, scale, seed, fold): every case's scores as measured, and the hashes that say what
was trained on what. A table is made of files alone (`run_columns`), so that rows may be run
anywhere, in any order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from hepar.evaluate.lesion_case import LesionCase
from hepar.evaluate.lits_lesions import ServerLesions
from hepar.evaluate.plan_detection import plan_detection
from hepar.evaluate.policy import Outcome
from hepar.evaluate.score import CaseScore, StructureScore
from hepar.evaluate.voxel import tumor_burden
from hepar.io.atomic import atomic_path
from hepar.study import LESION_TYPES


def _known_type(name: str) -> str:
    if name not in LESION_TYPES:
        raise ValueError(f"{name!r} is none of {', '.join(LESION_TYPES)}")
    return name


Count = Annotated[int, Field(ge=0)]
LesionType = Annotated[str, AfterValidator(_known_type)]
PatientScore = Literal["livermax", "mask_size", "plan"]
DIGITS = 6  # of what is written: millionths of a Dice, nanometers


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LiverResult(_Strict):
    """Scores of the liver that was found in one test case, tumors included, as measured.

    Attributes:
        outcome: which of the two masks are there.
        dice, assd_mm: None where a mask is empty and the measure is undefined.
        overlap, predicted, reference: voxels.
        rvd, hd_mm: as dice; not in results older than the columns.
    """

    outcome: Outcome
    dice: float | None
    assd_mm: float | None
    overlap: Count
    predicted: Count
    reference: Count
    rvd: float | None = None
    hd_mm: float | None = None

    @classmethod
    def of(cls, score: StructureScore) -> LiverResult:
        """What is kept of a scored liver."""
        return cls(
            outcome=score.outcome,
            overlap=score.overlap.both,
            predicted=score.overlap.predicted,
            reference=score.overlap.reference,
            **_rounded(score, ("dice", "assd_mm", "rvd", "hd_mm")),
        )


class DetectedResult(_Strict):
    """A lesion that was detected by the rule of the LiTS challenge; see `lits_lesions`."""

    dice: float
    rvd: float
    assd_mm: float
    msd_mm: float


class ServerResult(_Strict):
    """What the LiTS challenge measures of the lesions of a test case.

    Attributes:
        n_reference, n_predicted, tp_reference, tp_predicted: lesions at IoU > 0.5.
        detected: those that were found.
    """

    n_reference: Count
    n_predicted: Count
    tp_reference: Count
    tp_predicted: Count
    detected: tuple[DetectedResult, ...]

    @classmethod
    def of(cls, lesions: ServerLesions) -> ServerResult:
        """What is kept of them."""
        kept = [{k: round(v, DIGITS) for k, v in asdict(one).items()} for one in lesions.detected]
        detected = tuple(DetectedResult(**one) for one in kept)
        return cls(**asdict(lesions.counts), detected=detected)


class TypedResult(_Strict):
    """What a typed system said of a test case: its lesions' types, and what the patient has.

    Attributes:
        reference_mm3: type -> volume in the truth.
        scores: how it was scored -> type -> score: `livermax` and `plan` are probabilities,
            `mask_size` is in ml; `plan` only of systems with a patient branch.
        n_reference, n_predicted, tp_reference, tp_predicted: lesions as PLAN counts them.
        pairs: (true, predicted) type of each lesion that was found, one to one.
        missed, false: types of the other true and of the other predicted lesions.
    """

    reference_mm3: dict[LesionType, float]
    scores: dict[PatientScore, dict[LesionType, float]]
    n_reference: Count
    n_predicted: Count
    tp_reference: Count
    tp_predicted: Count
    pairs: tuple[tuple[LesionType, LesionType], ...]
    missed: tuple[LesionType, ...]
    false: tuple[LesionType, ...]

    @classmethod
    def of(
        cls, lesions: LesionCase, scores: Mapping[PatientScore, Mapping[str, float]]
    ) -> TypedResult:
        """What is kept of a case's lesions, whose types are known on both sides.

        Args:
            lesions: with types.
            scores: of the patient.
        """
        said, true = lesions.predicted_types or {}, lesions.reference_types or {}
        counts = plan_detection(lesions.plan, ignore=lesions.plan_ignore)
        return cls.model_validate(
            {
                "reference_mm3": _rounded_values(lesions.volumes_mm3()[0]),
                "scores": {how: _rounded_values(given) for how, given in scores.items()},
                "pairs": tuple((true[r], said[p]) for p, r, _ in lesions.match.pairs),
                "missed": tuple(true[r] for r in lesions.match.missed),
                "false": tuple(said[p] for p in lesions.match.false),
                **asdict(counts),
            }
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
        hd95_mm, server: not in results older than the columns.
        typed: of a system that tells types of lesions apart.
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
    hd95_mm: float | None = None
    server: ServerResult | None = None
    typed: TypedResult | None = None

    @classmethod
    def of(
        cls,
        score: CaseScore,
        kind: str,
        *,
        found_liver: bool = False,
        looked_for_tumor: bool = True,
        lesions: ServerLesions | None = None,
        typed: TypedResult | None = None,
    ) -> CaseResult:
        """What is kept of a scored case.

        Args:
            score: of a label map.
            kind: leading tumor type.
            found_liver: the liver is the method's own.
            looked_for_tumor: tumors were looked for.
            lesions: as the LiTS challenge measures them.
            typed: types of lesions, and what the patient has.
        """
        tumor = score.structures["tumor"]
        counts, matched = tumor.overlap, score.match.counts
        return cls(
            case_id=score.case_id,
            patient_id=score.patient_id,
            type=kind,
            outcome=tumor.outcome,
            overlap=counts.both,
            predicted=counts.predicted,
            reference=counts.reference,
            diagonal_mm=round(score.diagonal_mm, DIGITS),
            lesions=matched.n_reference,
            found=matched.tp_reference,
            false=matched.n_predicted - matched.tp_predicted,
            liver=LiverResult.of(score.structures["liver"]) if found_liver else None,
            tumor=looked_for_tumor,
            server=None if lesions is None else ServerResult.of(lesions),
            typed=typed,
            **_rounded(tumor, ("dice", "voe", "rvd", "assd_mm", "rmsd_mm", "hd95_mm")),
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


def _rounded_values(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, DIGITS) for name, value in values.items()}


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
