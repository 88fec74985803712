"""The fingerprint of a cohort's training cases: shapes, spacings, and the HU of their foreground.

Isensee et al., nnU-Net, Nature Methods 2021, Methods ("Dataset fingerprint").

Differs from nnU-Net: it draws as many foreground voxels of every case with replacement, 100 million
in all, and takes percentiles of those. Here each case's histogram of whole HU counts the same,
which is what the draw comes to: nothing is random, and memory holds one case and 65,536 bins a
phase. Voxels around a case whose value is 0 are not cut off: air is -1000 HU, and 0 is water.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64
from numpy.typing import NDArray

from hepar.data.cohort import CohortCase, is_test, read_case, read_cohort
from hepar.data.cohort_cases import CohortCases
from hepar.errors import InputRefused
from hepar.preprocess import AIR_HU
from hepar.recipe_data import CohortData
from hepar.resampling import resample
from hepar.study import PHASE_ORDER
from hepar.systems.base import InputSpec
from hepar.systems.baselines.nnunet.planning import Fingerprint, Intensity, Sizes, Spacing

LOWEST_HU, BINS = -(2**15), 2**16
LOW, HIGH = 0.005, 0.995

Progress = Callable[[int, int, str], None]


def plannable(path: Path, fold: int | None) -> tuple[tuple[str, ...], CohortData]:
    """The phases that every case outside the test split has, and who is held out.

    Args:
        path: `cohort.csv`.
        fold: held out; None takes those whose `split` is `validation`, or without any of them the
            first fold.

    Raises:
        InputRefused: `E_COHORT` as `read_cohort`, or no phase is there in every case.
    """
    cases = [case for case in read_cohort(path, need=("label",)) if not is_test(case)]
    phases = [str(p) for p in PHASE_ORDER if cases and all(str(p) in c.images for c in cases)]
    if not phases:
        raise InputRefused(
            "E_COHORT",
            "cohort",
            f"{path.name}: no phase is there in every case that may be trained on.",
            "Leave out the cases that lack the phase you want, or fill its column.",
        )
    folds = sorted({case.fold for case in cases if case.fold is not None})
    named = any(case.metadata.get("split", "").lower() == "validation" for case in cases)
    if fold is None and not named and folds:
        fold = folds[0]
    return tuple(phases), CohortData(path=path, fold=fold, margin_mm=None)


def fingerprint(
    data: CohortData, phases: tuple[str, ...], *, progress: Progress | None = None
) -> Fingerprint:
    """Read a cohort's training cases one after another, held-out and test patients never.

    Args:
        data: which cohort, and who is held out.
        phases: ordered; each case has all of them.
        progress: told the number of the case, of how many, and its name.

    Returns:
        Shapes and spacings of the reference phase; HU where the label is liver or tumor.

    Raises:
        InputRefused: `E_COHORT`, also where no training case has foreground; as `read_case`.
    """
    cases = _trained(data, phases)
    shapes: list[Sizes] = []
    spacings: list[Spacing] = []
    histograms = [np.zeros(BINS) for _ in phases]
    for number, case in enumerate(cases):
        if progress is not None:
            progress(number, len(cases), case.case_id)
        images, label, _ = read_case(case, phases)
        shapes.append(label.grid.shape)
        spacings.append(label.grid.spacing_mm)
        foreground = label.array > 0
        if not foreground.any():
            continue
        for histogram, phase in zip(histograms, phases, strict=True):
            volume = images[phase]
            hu = volume.array
            if not volume.grid.is_close(label.grid):
                hu = resample(hu, volume.grid, label.grid, fill=AIR_HU)
            histogram += frequencies(hu, foreground)
    if not histograms[0].any():
        raise InputRefused(
            "E_COHORT",
            "cohort",
            f"{data.path.name}: no training case has a voxel of liver or tumor.",
            "Give labels with 1 for liver and 2 for tumor.",
        )
    return Fingerprint(
        tuple(shapes), tuple(spacings), phases, tuple(intensity(h) for h in histograms)
    )


def frequencies(
    hu: NDArray[np.integer] | NDArray[np.floating], foreground: Bool[np.ndarray, "z y x"]
) -> Float64[np.ndarray, " bins"]:
    """How often each whole HU occurs in some voxels, summing to 1.

    Args:
        hu: `(z, y, x)`.
        foreground: at least one voxel.
    """
    values = np.rint(hu[foreground]).astype(np.int64) - LOWEST_HU
    counts = np.bincount(values.clip(0, BINS - 1), minlength=BINS)
    return counts / counts.sum()


def intensity(histogram: Float64[np.ndarray, " bins"]) -> Intensity:
    """Percentiles 0.5 and 99.5, mean and standard deviation of a histogram of whole HU."""
    hu = np.arange(LOWEST_HU, LOWEST_HU + BINS, dtype=np.float64)
    share = histogram / histogram.sum()
    cumulated = np.cumsum(share)
    # Sums of shares end a rounding error beside 1.
    low, high = (hu[np.searchsorted(cumulated, q - 1e-12)] for q in (LOW, HIGH))
    mean = float(share @ hu)
    return Intensity(float(low), float(high), mean, float(np.sqrt(share @ (hu - mean) ** 2)))


def _trained(data: CohortData, phases: Iterable[str]) -> tuple[CohortCase, ...]:
    """The very cases that a run would be trained on."""
    spec = InputSpec(
        dims=3,
        phases=tuple(phases),
        class_names=("background", "liver", "tumor"),
        windows_hu=((-1.0, 1.0),),
        slice_offsets_mm=(0.0,),
        spacing_mm=None,
        patch=(1, 1, 1),
        stride=1,
        needs_liver=False,
        needs_all_phases=True,
    )
    return CohortCases(data, spec, cache_dir=None).train
