"""What lies at a path that is to be scored: for each case its label map, lesions, types, patient.

Either side may be

- one label map (`.nii`, `.nii.gz`);
- a folder of them, named by case; beside them, if there are any: `instances/CASE.nii.gz` (lesion
  ids), `lesions.csv` (`case_id, lesion_id, type`, and `confidence` of predicted lesions) and
  `patients.csv` (`case_id, patient_id`, and a probability in a column of each lesion type);
- what `hepar segment` left, or a folder of such folders, named by case;
- a cohort: `cohort.csv` or its folder, with `lesions.csv` beside it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hepar.data.cohort import is_test, read_cohort
from hepar.errors import InputRefused
from hepar.evaluate.lesion_case import UNCERTAIN
from hepar.io.spreadsheet import read_table
from hepar.study import LESION_TYPES, Findings

_SUFFIXES = (".nii.gz", ".nii")
_RUN_LABEL = "segmentation.nii.gz"


@dataclass(frozen=True)
class LesionTable:
    """What is said of the lesions of one case.

    Attributes:
        types: type by lesion id.
        confidence: by lesion id; empty where none is given.
    """

    types: dict[int, str] = field(default_factory=dict)
    confidence: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CaseSource:
    """One side of one case.

    Attributes:
        case_id: name of the case.
        patient_id: whose case it is.
        label: 0 background, 1 liver, 2 tumor.
        instances: lesion ids.
        liver: a further liver mask.
        lesions: types and confidences; None where nothing is said of them.
        probabilities: of having each lesion type; None where nothing is said.
        test: whether a cohort's row belongs to its test split.
    """

    case_id: str
    patient_id: str
    label: Path
    instances: Path | None = None
    liver: Path | None = None
    lesions: LesionTable | None = None
    probabilities: Mapping[str, float] | None = None
    test: bool = False


def find_sources(path: Path) -> dict[str, CaseSource]:
    """The cases at a path, by name.

    Raises:
        InputRefused: `E_NO_IMAGE` where there is nothing to score, `E_COHORT`, or `E_LESION_TABLE`
            for a table of lesions or patients that cannot be used.
    """
    if not path.exists():
        raise _nothing(f"{path} does not exist.")
    if path.suffix == ".csv":
        return _cohort(path)
    if path.is_file():
        name = _stem(path)
        if name is None:
            raise _nothing(f"{path.name} is no NIfTI file.")
        return {name: CaseSource(name, name, path)}
    if (path / "cohort.csv").is_file():
        return _cohort(path / "cohort.csv")
    if (path / _RUN_LABEL).is_file():
        return {path.name: _run(path, path.name)}
    runs = {f.name: _run(f, f.name) for f in sorted(path.iterdir()) if (f / _RUN_LABEL).is_file()}
    return runs or _label_maps(path)


def _nothing(message: str) -> InputRefused:
    return InputRefused(
        "E_NO_IMAGE",
        "evaluate",
        message,
        "Give a label map, a folder of them, folders that `hepar segment` left, or a cohort.csv.",
    )


def _stem(path: Path) -> str | None:
    for suffix in _SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return None


def _label_maps(folder: Path) -> dict[str, CaseSource]:
    files = {name: f for f in sorted(folder.iterdir()) if f.is_file() and (name := _stem(f))}
    if not files:
        raise _nothing(f"{folder} holds no label map.")
    parts = {n: f for f in sorted(folder.glob("instances/*")) if (n := _stem(f))}
    lesions = read_lesions(folder / "lesions.csv")
    patients = _read_patients(folder / "patients.csv")
    found = {}
    for name, file in files.items():
        patient_id, probabilities = patients.get(name, (name, None))
        found[name] = CaseSource(
            name,
            patient_id,
            file,
            instances=parts.get(name),
            # In a table that exists, a case without a row has no lesion.
            lesions=None if lesions is None else lesions.get(name, LesionTable()),
            probabilities=probabilities,
        )
    return found


def _run(folder: Path, name: str) -> CaseSource:
    """What `hepar segment` left."""
    lesions = read_lesions(folder / "lesions.csv")
    instances = folder / "lesions.nii.gz"
    return CaseSource(
        name,
        name,
        folder / _RUN_LABEL,
        instances=instances if instances.is_file() else None,
        lesions=None if lesions is None else lesions.get("", LesionTable()),
        probabilities=_stated(folder / "findings.json"),
    )


def _stated(path: Path) -> dict[str, float] | None:
    """What a run said of its patient; a type it did not mention has 0.

    None where lesions were found and none was judged: the model has no classifier.
    """
    if not path.is_file():
        return None
    try:
        findings = Findings.model_validate_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _refuse_table(path, str(error).split("\n")[0]) from None
    judged = findings.diagnosis.lesions
    if judged and not any(lesion.probabilities for lesion in judged):
        return None
    return {kind: findings.diagnosis.patient.get(kind, 0.0) for kind in LESION_TYPES}


def _cohort(path: Path) -> dict[str, CaseSource]:
    lesions = read_lesions(path.parent / "lesions.csv")
    found = {}
    for case in read_cohort(path, need=("label",)):
        assert case.label is not None
        found[case.case_id] = CaseSource(
            case.case_id,
            case.patient_id,
            case.label,
            instances=case.instances,
            liver=case.liver,
            lesions=None if lesions is None else lesions.get(case.case_id, LesionTable()),
            test=is_test(case),
        )
    return found


def read_lesions(path: Path) -> dict[str, LesionTable] | None:
    """Types and confidences of lesions by case; the case is "" where the table has no `case_id`.

    Returns:
        None where there is no such file.

    Raises:
        InputRefused: `E_LESION_TABLE`, with the line.
    """
    rows = _rows(path, ("lesion_id", "type"))
    if rows is None:
        return None
    tables: dict[str, LesionTable] = defaultdict(LesionTable)
    for number, row in enumerate(rows, start=2):
        table = tables[row.get("case_id", "")]
        try:
            lesion = int(row["lesion_id"])
            confidence = float(row["confidence"]) if row.get("confidence") else None
        except ValueError as error:
            raise _refuse_table(path, f"line {number}: {error}") from None
        kind = row["type"]
        if kind and kind not in (*LESION_TYPES, UNCERTAIN):
            raise _refuse_table(path, f"line {number}: {kind!r} is no lesion type")
        if lesion < 1 or lesion in table.types:
            raise _refuse_table(path, f"line {number}: lesion {lesion} again, or below 1")
        table.types[lesion] = kind or UNCERTAIN
        if confidence is not None:
            table.confidence[lesion] = confidence
    return dict(tables)


def _read_patients(path: Path) -> dict[str, tuple[str, dict[str, float] | None]]:
    """Patient and type probabilities by case."""
    found: dict[str, tuple[str, dict[str, float] | None]] = {}
    for number, row in enumerate(_rows(path, ("case_id",)) or [], start=2):
        given = {kind: row[kind] for kind in LESION_TYPES if row.get(kind)}
        try:
            probabilities = {kind: float(text) for kind, text in given.items()}
        except ValueError as error:
            raise _refuse_table(path, f"line {number}: {error}") from None
        if given and len(given) < len(LESION_TYPES):
            missing = ", ".join(kind for kind in LESION_TYPES if kind not in given)
            raise _refuse_table(path, f"line {number}: no probability of {missing}")
        if not all(0.0 <= p <= 1.0 for p in probabilities.values()):
            raise _refuse_table(path, f"line {number}: a probability outside 0 to 1")
        case = row["case_id"]
        found[case] = (row.get("patient_id") or case, probabilities or None)
    return found


def _rows(path: Path, required: tuple[str, ...]) -> list[dict[str, str]] | None:
    if not path.is_file():
        return None
    try:
        columns, rows = read_table(path)
    except ValueError as error:
        raise _refuse_table(path, str(error)) from None
    missing = [name for name in required if name not in columns]
    if missing:
        raise _refuse_table(path, f"no column {', '.join(missing)}")
    return rows


def _refuse_table(path: Path, problem: str) -> InputRefused:
    return InputRefused(
        "E_LESION_TABLE",
        "evaluate",
        f"{path.name}: {problem}.",
        "lesions.csv has case_id, lesion_id, type (and confidence); patients.csv has case_id, "
        f"patient_id and a probability of each of {', '.join(LESION_TYPES)}.",
    )
