"""Operating points chosen on validation cases: threshold, smallest lesion, temperature.

Pure functions of arrays. What they choose is stored in `calibration.json` beside the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage, optimize

# A tumor-free patient with this much false tumor scores one half.
FALSE_ML_HALF = 1.0
THRESHOLDS = tuple(round(0.1 + 0.05 * i, 2) for i in range(17))
# Nothing smaller than a ball of 4.6 mm, a few voxels that the next reconstruction would not show.
MIN_VOLUMES_ML = (0.05, 0.1, 0.2, 0.35, 0.5, 1.0)


class _Calibration(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class TumorCalibration(_Calibration):
    """How the tumor probability becomes lesions.

    Attributes:
        threshold: smallest calibrated probability of a tumor voxel.
        min_volume_ml: smaller lesions are dropped.
        temperature: logits are divided by it before the threshold.
    """

    threshold: float = Field(default=0.5, gt=0.0, lt=1.0)
    min_volume_ml: float = Field(default=0.1, ge=0.0)
    temperature: float = Field(default=1.0, gt=0.0)


class LiverCalibration(_Calibration):
    """When a component of the liver probability is a liver.

    Attributes:
        threshold: smallest probability of a liver voxel.
        min_volume_ml: no liver of a patient is smaller.
        min_mean_probability: over the component; below it nothing was recognized.
    """

    threshold: float = Field(default=0.5, gt=0.0, lt=1.0)
    min_volume_ml: float = Field(default=150.0, ge=0.0)
    min_mean_probability: float = Field(default=0.6, ge=0.0, le=1.0)


def temper(probability: Float[np.ndarray, "*shape"], temperature: float) -> NDArray[np.float32]:
    """Divide the logit of a probability by a temperature (Guo et al. 2017, two classes)."""
    if temperature == 1.0:
        return probability.astype(np.float32, copy=False)
    safe = np.clip(probability, 1e-6, 1 - 1e-6).astype(np.float32)
    power = np.float32(1.0 / temperature)
    odds = (safe / (1 - safe)) ** power
    return (odds / (1 + odds)).astype(np.float32)


def fit_temperature(probability: Float[np.ndarray, " n"], truth: Bool[np.ndarray, " n"]) -> float:
    """The temperature that minimizes the mean negative log-likelihood.

    Args:
        probability: uncalibrated, of sampled voxels.
        truth: whether each voxel is tumor.
    """
    safe = np.clip(probability.astype(np.float64), 1e-6, 1 - 1e-6)
    signed = np.where(truth, 1.0, -1.0) * np.log(safe / (1 - safe))

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0.0, -signed / np.exp(log_temperature)).mean())

    found = optimize.minimize_scalar(loss, bounds=(np.log(0.1), np.log(10.0)), method="bounded")
    return float(np.exp(found.x))


@dataclass(frozen=True)
class CaseSweep:
    """One validation case at every threshold: enough to score any smallest volume.

    Attributes:
        truth_ml: true tumor.
        volumes_ml: for each threshold, the volume of each predicted lesion.
        hits_ml: for each threshold, the part of each predicted lesion that is true.
    """

    truth_ml: float
    volumes_ml: tuple[NDArray[np.float64], ...]
    hits_ml: tuple[NDArray[np.float64], ...]


def sweep_case(
    probability: Float[np.ndarray, "z y x"],
    truth: Bool[np.ndarray, "z y x"],
    voxel_ml: float,
    thresholds: Sequence[float] = THRESHOLDS,
) -> CaseSweep:
    """Lesions of one case at each threshold.

    Args:
        probability: tumor, already tempered and zero outside the liver.
        truth: tumor.
        voxel_ml: volume of a voxel.
        thresholds: probabilities to try.
    """
    volumes: list[NDArray[np.float64]] = []
    hits: list[NDArray[np.float64]] = []
    for threshold in thresholds:
        labels, count = ndimage.label(probability >= threshold, structure=np.ones((3, 3, 3)))
        sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        inside = np.bincount(labels[truth], minlength=count + 1)[1:]
        volumes.append(np.asarray(sizes * voxel_ml, dtype=np.float64))
        hits.append(np.asarray(inside * voxel_ml, dtype=np.float64))
    return CaseSweep(float(truth.sum()) * voxel_ml, tuple(volumes), tuple(hits))


def case_score(case: CaseSweep, index: int, min_volume_ml: float) -> float:
    """Dice of a case with tumor; 1 / (1 + false ml) of one without.

    Args:
        case: its sweep.
        index: of the threshold.
        min_volume_ml: smaller lesions are dropped.
    """
    kept = case.volumes_ml[index] >= min_volume_ml
    predicted = float(case.volumes_ml[index][kept].sum())
    if case.truth_ml == 0:
        return FALSE_ML_HALF / (FALSE_ML_HALF + predicted)
    return 2 * float(case.hits_ml[index][kept].sum()) / (predicted + case.truth_ml)


def choose_operating_point(
    cases: Sequence[CaseSweep],
    thresholds: Sequence[float] = THRESHOLDS,
    min_volumes_ml: Sequence[float] = MIN_VOLUMES_ML,
    temperature: float = 1.0,
) -> tuple[TumorCalibration, float]:
    """The threshold and smallest volume with the best mean score over cases.

    Scores within 0.002 of the best count as equal; among them the smallest volume and then the
    threshold nearest to the middle of the plateau win, so that small lesions are not given up for
    noise.

    Returns:
        The operating point and its mean score.
    """
    if not cases:
        raise ValueError("calibration needs at least one validation case")
    scores = np.array(
        [
            [np.mean([case_score(case, i, ml) for case in cases]) for ml in min_volumes_ml]
            for i in range(len(thresholds))
        ]
    )
    good = scores >= scores.max() - 0.002
    column = int(np.flatnonzero(good.any(axis=0))[0])
    rows = np.flatnonzero(good[:, column])
    row = int(rows[len(rows) // 2])
    chosen = TumorCalibration(
        threshold=thresholds[row],
        min_volume_ml=min_volumes_ml[column],
        temperature=temperature,
    )
    return chosen, float(scores[row, column])
