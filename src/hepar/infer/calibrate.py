"""Operating points chosen on validation cases: threshold, smallest lesion, temperature.

Pure functions of arrays. What they choose is stored in `calibration.json` beside the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Integer
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage, optimize, special

from hepar.systems.baselines.enhancement_classifier import answering_threshold

# A tumor-free patient with this much false tumor, or this many false lesions, scores one half.
FALSE_ML_HALF, FALSE_LESIONS_HALF = 1.0, 1.0
MIN_IOU = 0.1  # of a found lesion, as `evaluate.lesion` counts; that file needs more packages
THRESHOLDS = tuple(round(0.2 + 0.05 * i, 2) for i in range(15))
MIN_PEAKS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99)
# Nothing smaller than a ball of 4.6 mm, a few voxels that the next reconstruction would not show.
MIN_VOLUMES_ML = (0.05, 0.1, 0.2, 0.35, 0.5, 1.0)


class _Calibration(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class TumorCalibration(_Calibration):
    """How the tumor probability becomes lesions.

    Attributes:
        threshold: smallest calibrated probability of a tumor voxel.
        min_volume_ml: smaller lesions are dropped.
        min_peak: lesions whose highest probability is lower are dropped, so that what is reported
            and how generously it is outlined are chosen apart.
        temperature: logits are divided by it before the threshold.
        type_temperature: of a typed system: its types' log-probabilities are divided by it.
        type_threshold: below this highest probability of a type a lesion is left unnamed.
        confidence: (a, b, c) of the chance that a reported lesion is real,
            `1 / (1 + exp(-(a + b logit(peak) + c ln(volume in ml))))`; None: not calibrated.
    """

    threshold: float = Field(default=0.5, gt=0.0, lt=1.0)
    min_volume_ml: float = Field(default=0.1, ge=0.0)
    min_peak: float = Field(default=0.0, ge=0.0, le=1.0)
    temperature: float = Field(default=1.0, gt=0.0)
    type_temperature: float = Field(default=1.0, gt=0.0)
    type_threshold: float = Field(default=0.5, ge=0.0)
    confidence: tuple[float, float, float] | None = None


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


def temper_types(weight: Float[np.ndarray, "n k"], temperature: float) -> Float[np.ndarray, "n k"]:
    """Probabilities of k types in proportion to `weight ** (1 / temperature)` (Guo et al. 2017).

    A row without any weight says nothing and gives every type the same.
    """
    logits = np.log(np.maximum(np.asarray(weight, dtype=np.float64), 1e-12)) / temperature
    return np.asarray(special.softmax(logits, axis=1))


def fit_types(
    weight: Float[np.ndarray, "n k"], truth: Int[np.ndarray, " n"], precision: float = 0.9
) -> tuple[float, float]:
    """Temperature and threshold of the types of lesions, from lesions whose type is known.

    The temperature minimizes the mean negative log-likelihood; the threshold answers for the most
    lesions while at least `precision` of the answers are right, as that of the enhancement curve.

    Args:
        weight: mean probability of each type over each lesion.
        truth: index of the type of each.
        precision: share of the answers that must be right.
    """
    rows = np.arange(len(truth))

    def loss(log_temperature: float) -> float:
        chances = temper_types(weight, float(np.exp(log_temperature)))
        return float(-np.log(np.maximum(chances[rows, truth], 1e-12)).mean())

    found = optimize.minimize_scalar(loss, bounds=(np.log(0.1), np.log(10.0)), method="bounded")
    temperature = float(np.exp(found.x))
    chances = temper_types(weight, temperature)
    right = chances.argmax(axis=1) == truth
    return temperature, answering_threshold(chances.max(axis=1), right, precision)


@dataclass(frozen=True)
class SweptLesions:
    """The predicted lesions of one case at one threshold.

    Attributes:
        volume_ml: of each.
        hit_ml: the part of each that is true tumor.
        peak: highest probability of each.
        found: (n predicted, n true), which overlap with an IoU of at least 0.1.
    """

    volume_ml: Float[np.ndarray, " n"]
    hit_ml: Float[np.ndarray, " n"]
    peak: Float[np.ndarray, " n"]
    found: Bool[np.ndarray, "n t"]


@dataclass(frozen=True)
class CaseSweep:
    """One validation case at every threshold: enough to score any operating point.

    Attributes:
        truth_ml: true tumor.
        n_lesions: true lesions.
        at: predicted lesions for each threshold.
    """

    truth_ml: float
    n_lesions: int
    at: tuple[SweptLesions, ...]


def sweep_case(
    probability: Float[np.ndarray, "z y x"],
    instances: Integer[np.ndarray, "z y x"],
    voxel_ml: float,
    thresholds: Sequence[float] = THRESHOLDS,
) -> CaseSweep:
    """Lesions of one case at each threshold.

    Args:
        probability: tumor, already tempered and zero outside the liver.
        instances: ids of the true lesions, 0 elsewhere.
        voxel_ml: volume of a voxel.
        thresholds: probabilities to try.
    """
    ids, true = np.unique(instances, return_inverse=True)
    if ids[0] != 0:
        ids, true = np.concatenate([[0], ids]), true + 1
    true = true.reshape(instances.shape)
    sizes_true = np.bincount(true.ravel(), minlength=len(ids))[1:]
    swept = []
    for threshold in thresholds:
        labels, count = ndimage.label(probability >= threshold, structure=np.ones((3, 3, 3)))
        inside = labels > 0
        pairs = labels[inside].astype(np.int64) * len(ids) + true[inside]
        table = np.bincount(pairs, minlength=(count + 1) * len(ids)).reshape(count + 1, len(ids))
        shared, sizes = table[1:, 1:], table[1:].sum(axis=1)
        union = sizes[:, None] + sizes_true[None] - shared
        peak = ndimage.maximum(probability, labels, np.arange(1, count + 1)) if count else []
        swept.append(
            SweptLesions(
                volume_ml=sizes * voxel_ml,
                hit_ml=shared.sum(axis=1) * voxel_ml,
                peak=np.asarray(peak, np.float64),
                found=shared >= MIN_IOU * union,
            )
        )
    return CaseSweep(float(sizes_true.sum()) * voxel_ml, len(sizes_true), tuple(swept))


def case_score(case: CaseSweep, index: int, min_volume_ml: float, min_peak: float = 0.0) -> float:
    """Half for voxels, half for lesions, so that small lesions are not given up for large ones.

    With tumor: the mean of Dice and of the lesions' F1, (found true + right predicted) / (true +
    predicted). Without: the mean of 1 / (1 + false ml) and 1 / (1 + false lesions).

    Args:
        case: its sweep.
        index: of the threshold.
        min_volume_ml: smaller lesions are dropped.
        min_peak: lesions with a lower peak are dropped.
    """
    lesions = case.at[index]
    kept = (lesions.volume_ml >= min_volume_ml) & (lesions.peak >= min_peak)
    predicted, count = float(lesions.volume_ml[kept].sum()), int(kept.sum())
    if case.n_lesions == 0:
        volume = FALSE_ML_HALF / (FALSE_ML_HALF + predicted)
        return 0.5 * (volume + FALSE_LESIONS_HALF / (FALSE_LESIONS_HALF + count))
    dice = 2 * float(lesions.hit_ml[kept].sum()) / (predicted + case.truth_ml)
    found = lesions.found[kept]
    right = int(found.any(axis=0).sum()) + int(found.any(axis=1).sum())
    return 0.5 * (dice + right / (case.n_lesions + count))


def choose_operating_point(
    cases: Sequence[CaseSweep],
    thresholds: Sequence[float] = THRESHOLDS,
    min_volumes_ml: Sequence[float] = MIN_VOLUMES_ML,
    min_peaks: Sequence[float] = MIN_PEAKS,
    temperature: float = 1.0,
) -> tuple[TumorCalibration, float]:
    """The threshold, smallest volume and lowest peak with the best mean score over cases.

    Scores within 0.002 of the best count as equal; among them the smallest volume, then the
    threshold nearest to one half, then the lowest peak win, so that small lesions are not given
    up for noise.

    Returns:
        The operating point and its mean score.
    """
    if not cases:
        raise ValueError("calibration needs at least one validation case")
    points = [
        (volume, abs(threshold - 0.5), peak, row)
        for volume in min_volumes_ml
        for row, threshold in enumerate(thresholds)
        for peak in min_peaks
    ]
    scores = [
        float(np.mean([case_score(case, row, volume, peak) for case in cases]))
        for volume, _, peak, row in points
    ]
    best = max(scores)
    good = [point for point, score in zip(points, scores, strict=True) if score >= best - 0.002]
    volume, _, peak, row = min(good)
    chosen = TumorCalibration(
        threshold=thresholds[row],
        min_volume_ml=volume,
        min_peak=peak,
        temperature=temperature,
    )
    return chosen, scores[points.index(min(good))]


def lesion_chance(
    confidence: tuple[float, float, float],
    peak: Float[np.ndarray, " n"],
    volume_ml: Float[np.ndarray, " n"],
) -> NDArray[np.float64]:
    """The chance that lesions are real; see `TumorCalibration.confidence`."""
    return 1.0 / (1.0 + np.exp(-_evidence(peak, volume_ml) @ np.asarray(confidence)))


def fit_confidence(
    cases: Sequence[CaseSweep],
    point: TumorCalibration,
    thresholds: Sequence[float] = THRESHOLDS,
) -> tuple[float, float, float] | None:
    """Logistic regression of whether a reported lesion is real on its peak and volume.

    The slopes have a normal prior of standard deviation 1: a few lesions give mild ones.

    Args:
        cases: sweeps of calibration patients.
        point: their operating point.
        thresholds: those of the sweeps.

    Returns:
        None where only real or only false lesions are reported.
    """
    row = list(thresholds).index(point.threshold)
    evidence, real = [], []
    for case in cases:
        found = case.at[row]
        kept = (found.volume_ml >= point.min_volume_ml) & (found.peak >= point.min_peak)
        evidence.append(_evidence(found.peak[kept], found.volume_ml[kept]))
        real.append(found.found[kept].any(axis=1))
    x, y = np.concatenate(evidence), np.concatenate(real)
    if y.all() or not y.any():
        return None
    sign = np.where(y, 1.0, -1.0)

    def loss(weights: NDArray[np.float64]) -> float:
        misfit = np.logaddexp(0.0, -sign * (x @ weights)).sum()
        return float(misfit + 0.5 * (weights[1:] ** 2).sum())

    a, b, c = optimize.minimize(loss, np.zeros(3)).x
    return float(a), float(b), float(c)


def _evidence(
    peak: Float[np.ndarray, " n"], volume_ml: Float[np.ndarray, " n"]
) -> NDArray[np.float64]:
    safe = np.clip(np.asarray(peak, np.float64), 1e-4, 1 - 1e-4)
    volume = np.maximum(np.asarray(volume_ml, np.float64), 1e-3)
    return np.stack([np.ones_like(safe), np.log(safe / (1 - safe)), np.log(volume)], axis=1)
