"""Who is trained on and who is tested: a test split, folds, validation patients, another cohort."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hepar.data.cache import file_hash
from hepar.data.cohort import CohortCase, is_test, read_cohort
from hepar.data.leakage import shared_scans
from hepar.data.lesion_table import read_lesion_types
from hepar.errors import InputRefused, UsageError

Types = Mapping[str, Mapping[int, str]]
Tested = Literal["test", "folds", "validation", "holdout"]
_MAX_LISTED = 8


@dataclass(frozen=True)
class Protocol:
    """Whom a row of a table is trained and tested on.

    Attributes:
        tested: which patients are tested: those whose `split` is `test`, each fold in turn, those
            whose `split` is `validation`, on whom weights are chosen too, or another cohort.
        cases: the cohort that is trained on.
        folds: held out in training, a run each; None goes by the column `split`.
        holdout: every case of the other cohort; empty without one.
        sha256: of all that decides figures, wherever the cohorts lie.
        types: of the lesions of the cohort that is tested, by case and lesion id; None where they
            decide no figure.
    """

    tested: Tested
    cases: tuple[CohortCase, ...]
    folds: tuple[int | None, ...]
    holdout: tuple[CohortCase, ...]
    sha256: str
    types: Types | None = None

    def test_cases(self, fold: int | None) -> tuple[CohortCase, ...]:
        """The cases that a run is tested on."""
        if self.tested == "holdout":
            return self.holdout
        if self.tested == "validation":
            return tuple(case for case in self.cases if _is_validation(case))
        return tuple(c for c in self.cases if (is_test(c) if fold is None else c.fold == fold))

    @property
    def alignment(self) -> str:
        """How phases of tested cases were aligned; `tumor_center` if any was by the truth."""
        cases = self.holdout or self.cases
        ways = {case.metadata.get("alignment") or "none" for case in cases}
        return "tumor_center" if "tumor_center" in ways else ", ".join(sorted(ways))

    def refuse_shared(self) -> None:
        """Refuse a hold-out cohort that holds scans of those trained or chosen on.

        Raises:
            InputRefused: `E_LEAKAGE`, naming the cases.
        """
        seen = tuple(case for case in self.cases if not is_test(case))
        shared = shared_scans(self.holdout, seen)
        if not shared:
            return
        names = list(dict.fromkeys(f"{s.case} is {s.other_case}" for s in shared))
        more = f"; and {len(names) - _MAX_LISTED} more" if names[_MAX_LISTED:] else ""
        raise InputRefused(
            "E_LEAKAGE",
            "reproduce",
            f"{len({s.case for s in shared})} of {len(self.holdout)} hold-out cases are among "
            f"those trained or chosen on: {'; '.join(names[:_MAX_LISTED])}{more}.",
            "Prepare the training cohort without them: hepar prepare SOURCE --exclude HOLDOUT.",
        )


def read_protocol(
    cohort: Path, fold: int | None = None, holdout: Path | None = None, *, typed: bool = False
) -> Protocol:
    """Read who is trained on and who is tested.

    Args:
        cohort: `cohort.csv`.
        fold: held out instead of what the cohort says.
        holdout: `cohort.csv` of the cohort to test on.
        typed: whether types of lesions decide figures too, so that the hash holds them.

    Raises:
        UsageError: `E_COHORT`: the cohort says neither.
        InputRefused: a cohort, or its `lesions.csv` where types are asked for, cannot be read.
    """
    need = ("label", "instances") if typed else ("label",)
    cases = read_cohort(cohort, need=need)
    others = () if holdout is None else read_cohort(holdout, need=need)
    tested, folds = _plan(cohort.name, cases, fold, holdout is not None)
    types = _types_beside(cohort, typed)
    sha256 = cohort_hash(cases, types)
    if None in folds and tested != "test":
        # Hashes of cohorts with a test split are older than this one, and hold no validation.
        chosen = [case.case_id for case in cases if _is_validation(case)]
        sha256 = _joined(sha256, repr(chosen))
    if others and holdout is not None:
        types = _types_beside(holdout, typed)
        sha256 = _joined(sha256, cohort_hash(others, types))
    return Protocol(tested, cases, folds, others, sha256, types)


def _types_beside(cohort: Path, typed: bool) -> Types | None:
    return read_lesion_types(cohort.parent / "lesions.csv", "reproduce") if typed else None


def cohort_hash(cases: Sequence[CohortCase], types: Types | None = None) -> str:
    """Of the cases' names, test split, folds and files, wherever the cohort lies.

    Args:
        cases: of a cohort.
        types: by case and lesion id; where given, they and the maps of lesions are part of it.
    """
    sha = hashlib.sha256()
    for case in cases:
        files = {**case.images, "liver": case.liver, "label": case.label}
        if types is not None:
            files["instances"] = case.instances
        found = [(name, file_hash(file)) for name, file in sorted(files.items()) if file]
        who = (case.case_id, case.patient_id, case.fold, is_test(case), case.reference)
        sha.update(repr((who, found)).encode())
        if types is not None:
            sha.update(repr(sorted(types.get(case.case_id, {}).items())).encode())
    return sha.hexdigest()


def _plan(
    name: str, cases: Sequence[CohortCase], fold: int | None, apart: bool
) -> tuple[Tested, tuple[int | None, ...]]:
    """Who is tested, and the folds that make a row: the one asked for, or what the cohort says."""
    if fold is not None:
        return ("holdout" if apart else "folds"), (fold,)
    validation = any(_is_validation(case) for case in cases)
    if apart:
        if validation:
            return "holdout", (None,)
        raise _refuse(
            f"{name} does not say on whom weights are chosen.",
            "Fill its column split with train and validation, or give a fold with --fold.",
        )
    if any(is_test(case) for case in cases):
        return "test", (None,)
    folds = sorted({case.fold for case in cases if case.fold is not None})
    if len(folds) > 1:
        return "folds", tuple(folds)
    if validation:
        return "validation", (None,)
    raise _refuse(
        f"{name} has neither a test split nor folds.",
        "Fill its column fold, or split with train, validation and test.",
    )


def _is_validation(case: CohortCase) -> bool:
    return case.metadata.get("split", "").lower() == "validation"


def _joined(*hashes: str) -> str:
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _refuse(message: str, remedy: str) -> UsageError:
    return UsageError("E_COHORT", "reproduce", message, remedy)
