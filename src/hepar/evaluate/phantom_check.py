"""How hard the phantom is, before any network is trained: five measurements with bounds.

A phantom whose tumors a threshold finds teaches a network nothing that a clinic needs, and one that
no statistic of its voxels tells apart cannot be learned from. Patients come from seeds that nobody
trains on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from hepar.evaluate.criterion import Criterion, mean_criterion
from hepar.evaluate.patient import MeanAuc, PatientAuc, patient_auc
from hepar.evaluate.phantom_measure import (
    SPACING_MM,
    PatientMeasure,
    Triple,
    measure,
    nearest_phase,
)
from hepar.evaluate.phantom_voxels import LinearDiscriminant, Moments, held_out_dice
from hepar.evaluate.statistics import bootstrap
from hepar.phantom.scanner import PHASES
from hepar.study import LESION_TYPES

FIRST_SEED = 800_000
_FOLDS = 5
_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
_PV = PHASES.index("PV")


@dataclass(frozen=True)
class PhantomCheck:
    """All figures of a set of phantoms.

    Attributes:
        n_patients: measured.
        seed: of the first patient; the others follow.
        spacing_mm: (z, y, x) of the liver's field.
        seconds: wall-clock time.
        criteria: figures with bounds first, then information.
    """

    n_patients: int
    seed: int
    spacing_mm: Triple
    seconds: float
    criteria: tuple[Criterion, ...]

    @property
    def met(self) -> bool:
        """Whether every bound is kept."""
        return all(c.met is not False for c in self.criteria)

    def document(self) -> dict[str, Any]:
        """The check as plain data for JSON."""
        return {
            "n_patients": self.n_patients,
            "seed": self.seed,
            "spacing_mm": list(self.spacing_mm),
            "seconds": round(self.seconds, 1),
            "met": self.met,
            "criteria": [c.document() for c in self.criteria],
        }

    def markdown(self) -> str:
        """The check as a Markdown table."""
        lines = [
            f"{self.n_patients} phantom patients, seeds from {self.seed}, "
            f"{' x '.join(f'{s:g}' for s in self.spacing_mm)} mm (z, y, x), "
            f"{self.seconds:.0f} s.",
            "",
            "| measured | value | 95 % interval | bound | met | n |",
            "|---|---|---|---|---|---|",
            *(c.row() for c in self.criteria),
        ]
        return "\n".join(lines) + "\n"


def check(
    n_patients: int = 100,
    *,
    seed: int = FIRST_SEED,
    progress: Callable[[str], None] = lambda message: None,
    processes: int = 1,
    spacing_mm: Triple = SPACING_MM,
) -> PhantomCheck:
    """Make, scan and measure patients.

    Args:
        n_patients: how many.
        seed: of the first; the others follow. The default range is never trained on.
        progress: told after every patient.
        processes: measuring at a time; a patient takes about 3 s of one core.
        spacing_mm: (z, y, x) of the liver's field; the bounds are meant for the default.

    Raises:
        ValueError: fewer than one patient or process.
    """
    if n_patients < 1 or processes < 1:
        raise ValueError(f"{n_patients} patients in {processes} processes")
    began = time.perf_counter()
    patients = []
    for patient in _measured(range(seed, seed + n_patients), spacing_mm, processes):
        patients.append(patient)
        progress(f"phantom {patient.seed} measured, {len(patients)} of {n_patients}")
    return PhantomCheck(
        n_patients=n_patients,
        seed=seed,
        spacing_mm=spacing_mm,
        criteria=criteria(patients),
        seconds=time.perf_counter() - began,
    )


def criteria(patients: Sequence[PatientMeasure]) -> tuple[Criterion, ...]:
    """Every figure of measured patients, those with bounds first."""
    found = [
        *_contrast(patients),
        *_thresholds(patients),
        *_voxel_discriminant(patients),
        *_lesion_discriminant(patients),
        _phases(patients),
    ]
    return tuple(sorted(found, key=lambda c: c.met is None))


def _measured(seeds: Sequence[int], spacing_mm: Triple, processes: int) -> Iterator[PatientMeasure]:
    work = partial(measure, spacing_mm=spacing_mm)
    if processes == 1:
        yield from map(work, seeds)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        with _one_thread_each():
            done = pool.map(work, seeds)
        yield from done


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Workers started inside multiply matrices on one thread each.

    The phantom's matrices are small, and waiting for a second thread made a patient take three
    times as long on two busy cores. A pool starts its workers while it is handed its tasks.
    """
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _contrast(patients: Sequence[PatientMeasure]) -> list[Criterion]:
    """Lesions that noise hides, as counts a patient over lesions a patient."""
    visible = [
        np.array([abs(s.contrast_hu) >= p.noise_sd_hu for s in p.lesions], bool).reshape(
            -1, len(PHASES)
        )
        for p in patients
    ]
    lesions = np.array([len(v) for v in visible])

    def share(name: str, hits: list[Any], low: float | None) -> Criterion:
        counts = np.array([np.count_nonzero(h) for h in hits])
        value, interval = bootstrap(
            len(patients),
            lambda i: float(counts[i].sum() / lesions[i].sum()) if lesions[i].any() else None,
        )
        return Criterion(name, value, low, None, interval, int(lesions.sum()), "lesions")

    noise = float(np.median([p.noise_sd_hu[_PV] for p in patients]))
    return [
        share("lesions below the noise SD in PV", [~v[:, _PV] for v in visible], 0.30),
        share("lesions visible in exactly one phase", [v.sum(axis=1) == 1 for v in visible], 0.15),
        share("lesions visible in no phase", [~v.any(axis=1) for v in visible], None),
        Criterion("median noise SD in PV, HU", noise, None, None, None, len(patients), "patients"),
    ]


def _thresholds(patients: Sequence[PatientMeasure]) -> list[Criterion]:
    """Best Dice of any threshold inside the true liver, chosen with the truth."""
    dice = [p.best_dice for p in patients if p.best_dice is not None]
    oracle = "dark or bright, chosen by the truth"
    return [
        mean_criterion(
            "best threshold on smoothed PV, DPC", [d[_PV, 0] for d in dice], oracle, high=0.50
        ),
        mean_criterion("best threshold on plain PV, DPC", [d[_PV, 1] for d in dice], oracle),
        mean_criterion(
            "best threshold on any smoothed phase, DPC", [d[:, 0].max() for d in dice], oracle
        ),
        mean_criterion(
            "best threshold on any plain phase, DPC", [d[:, 1].max() for d in dice], oracle
        ),
    ]


def _voxel_discriminant(patients: Sequence[PatientMeasure]) -> list[Criterion]:
    """Dice of linear discriminants on the HU of one voxel.

    The bounds hold for smoothed HU as they are; that the liver's own HU differ between patients is
    part of what is hard.
    """
    ill = [(p.voxels, p.parenchyma_hu) for p in patients if p.voxels is not None]
    smooth, plain = ([voxels[k] for voxels, _ in ill] for k in (0, 1))
    relative = [voxels[0].relative_to(center_hu) for voxels, center_hu in ill]
    name, fitted = "voxel-wise discriminant on", "4-phase LDA, other half of the patients"
    return [
        mean_criterion(
            f"{name} smoothed HU, DPC", held_out_dice(smooth), fitted, low=0.40, high=0.65
        ),
        mean_criterion(f"{name} plain HU, DPC", held_out_dice(plain), fitted),
        mean_criterion(
            f"{name} smoothed HU less the liver's, DPC", held_out_dice(relative), fitted
        ),
    ]


def _lesion_discriminant(patients: Sequence[PatientMeasure]) -> list[Criterion]:
    reference, scores = type_scores(patients)

    def auc_of(index: Int[np.ndarray, " n"]) -> PatientAuc:
        return patient_auc(reference[index], scores[index])

    n = len(patients)
    whole = auc_of(np.arange(n))

    def note(mean: MeanAuc) -> str:
        missing = f"; undefined: {', '.join(mean.undefined)}" if mean.undefined else ""
        return f"4-phase LDA, true masks{missing}"

    value, interval = bootstrap(n, lambda i: auc_of(i).auc_8.value)
    value_2, interval_2 = bootstrap(n, lambda i: auc_of(i).auc_2.value)
    return [
        Criterion(
            "AUC-8 of lesion means", value, 0.75, 0.88, interval, n, "patients", note(whole.auc_8)
        ),
        Criterion(
            "AUC-2 of lesion means",
            value_2,
            None,
            None,
            interval_2,
            n,
            "patients",
            note(whole.auc_2),
        ),
        *(
            Criterion(f"AUC of {name}", v, None, None, None, whole.n_positive[name], "positive")
            for name, v in whole.by_class.items()
        ),
    ]


def type_scores(
    patients: Sequence[PatientMeasure],
) -> tuple[Float[np.ndarray, "n 8"], Float[np.ndarray, "n 8"]]:
    """Reference volumes and scores of every type by linear discriminants on lesion means.

    Five folds by patient; class shares come from training. A patient's score of a type is the
    highest posterior among its lesions, 0 without lesions.

    Returns:
        mm^3 and posteriors, one row a patient, one column each of `LESION_TYPES`.
    """
    owner = np.array([k for k, p in enumerate(patients) for _ in p.lesions], dtype=np.int64)
    lesions = [lesion for p in patients for lesion in p.lesions]
    kind = np.array([LESION_TYPES.index(lesion.type) for lesion in lesions], dtype=np.int64)
    rows = np.array([lesion.mean_hu for lesion in lesions]).reshape(-1, len(PHASES))
    reference = np.zeros((len(patients), len(LESION_TYPES)))
    np.add.at(reference, (owner, kind), [lesion.volume_mm3 for lesion in lesions])
    scores = np.zeros_like(reference)
    for fold in range(_FOLDS):
        held = owner % _FOLDS == fold
        train = Moments.of(rows[~held], kind[~held], len(LESION_TYPES))
        # Too few lesions to fit on leave the fold without an opinion.
        if held.any() and train.count.sum() > np.count_nonzero(train.count):
            chances = LinearDiscriminant.fit(train).posterior(rows[held])
            np.maximum.at(scores, owner[held], chances)
    return reference, scores


def _phases(patients: Sequence[PatientMeasure]) -> Criterion:
    right = [
        float(np.mean([a == b for a, b in zip(nearest_phase(p.organs_hu), PHASES, strict=True)]))
        for p in patients
    ]
    value, interval = bootstrap(len(right), lambda i: float(np.take(right, i).mean()))
    n = len(right) * len(PHASES)
    return Criterion(
        "phases named by the nearest organ centers", value, 0.80, 0.95, interval, n, "scans"
    )
