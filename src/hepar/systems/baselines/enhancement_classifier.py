"""What a lesion is, from its enhancement curve alone: regularized Gaussians that can abstain.

The classical baseline: quadratic discriminant analysis whose class covariances are shrunk to the
pooled one (Friedman, "Regularized Discriminant Analysis", JASA 84:165, 1989), with a temperature
(Guo et al., "On Calibration of Modern Neural Networks", ICML 2017) and a reject option (Chow, IEEE
Trans. Inf. Theory 16:41, 1970).

A lesion is described, in each phase, by its mean HU and by its contrast to the liver. Heterogeneity
and size are left out on purpose: the spread of HU follows the scanner's noise, and the size how a
cohort was collected, so neither would carry over from phantoms to patients. Absent phases are
marginalized exactly: the Gaussian of the remaining features is the sub-vector of the mean and the
sub-matrix of the covariance. Shrinkage and floor act entry by entry, so that they commute with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import chdtri, logsumexp

PHASES = ("NC", "ART", "PV", "DL")
UNCERTAIN = "uncertain"
# Water and calcium are told by their HU; every other type needs a curve.
SINGLE_PHASE_LABELS = ("cyst", "calcification")
SINGLE_PHASE_CONFIDENCE = 0.9

Features = Float[np.ndarray, "n p 2"]


@dataclass(frozen=True)
class EnhancementClassifier:
    """Class-conditional Gaussians over (HU, contrast to the liver) in each phase.

    Attributes:
        labels: class names.
        phases: phases of the features, in order.
        mean: `(c, p, 2)` HU.
        covariance: `(c, 2p, 2p)` HU squared; rows in the order of a flattened `(p, 2)`.
        prior: `(c,)`, sums to 1.
        temperature: log-likelihoods are divided by it.
        threshold: below this highest posterior the classifier abstains.
        typical_quantile: a lesion farther from every class than this quantile of its own members
            is called unlike all of them.
    """

    labels: tuple[str, ...]
    phases: tuple[str, ...]
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    prior: NDArray[np.float64]
    temperature: float = 1.0
    threshold: float = 0.5
    typical_quantile: float = 0.999

    def as_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Everything as named arrays, for safetensors; the names as UTF-8 bytes."""
        names = json.dumps({"labels": self.labels, "phases": self.phases}).encode()
        scalars = (self.temperature, self.threshold, self.typical_quantile)
        return {
            "mean": self.mean,
            "covariance": self.covariance,
            "prior": self.prior,
            "scalars": np.array(scalars, dtype=np.float64),
            "names": np.frombuffer(names, dtype=np.uint8).copy(),
        }

    @staticmethod
    def from_arrays(arrays: Mapping[str, NDArray[np.generic]]) -> EnhancementClassifier:
        """The inverse of `as_arrays`.

        Raises:
            ValueError: arrays are missing or their shapes disagree.
        """
        wanted = {"mean", "covariance", "prior", "scalars", "names"}
        if set(arrays) != wanted:
            raise ValueError(
                f"an enhancement classifier needs {sorted(wanted)}, got {sorted(arrays)}"
            )
        names = json.loads(arrays["names"].astype(np.uint8).tobytes())
        if not isinstance(names, dict) or set(names) != {"labels", "phases"}:
            raise ValueError("names must hold labels and phases")
        labels, phases = tuple(map(str, names["labels"])), tuple(map(str, names["phases"]))
        c, p = len(labels), len(phases)
        shapes = {
            "mean": (c, p, 2),
            "covariance": (c, 2 * p, 2 * p),
            "prior": (c,),
            "scalars": (3,),
        }
        numbers = {key: np.asarray(arrays[key], dtype=np.float64) for key in shapes}
        for key, shape in shapes.items():
            if numbers[key].shape != shape or not np.isfinite(numbers[key]).all():
                raise ValueError(f"{key} must be finite numbers of the shape {shape}")
        if np.linalg.eigvalsh(numbers["covariance"]).min(initial=1.0) <= 0:
            raise ValueError("a covariance is not positive definite")
        if (numbers["prior"] <= 0).any() or numbers["scalars"][0] <= 0:
            raise ValueError("prior and temperature must be positive")
        temperature, threshold, quantile = (float(v) for v in numbers.pop("scalars"))
        return EnhancementClassifier(
            labels,
            phases,
            **numbers,
            temperature=temperature,
            threshold=threshold,
            typical_quantile=quantile,
        )


@dataclass(frozen=True)
class Judgement:
    """One lesion judged: a class, or `uncertain` with the reason for abstaining."""

    label: str
    probabilities: dict[str, float]
    abstained: bool
    reason: str


def curve_features(
    hu: Mapping[str, float], liver_hu: Mapping[str, float], phases: Sequence[str] = PHASES
) -> Float[np.ndarray, "p 2"]:
    """Mean HU and contrast to the liver in each phase; NaN where either was not measured."""
    rows = np.full((len(phases), 2), np.nan)
    for k, phase in enumerate(phases):
        if phase in hu and phase in liver_hu:
            rows[k] = hu[phase], hu[phase] - liver_hu[phase]
    return rows


def fit_enhancement_classifier(
    features: Features,
    labels: Sequence[str],
    *,
    phases: Sequence[str] = PHASES,
    prior: Mapping[str, float] | None = None,
    shrinkage: float = 20.0,
    floor_hu: float = 6.0,
) -> EnhancementClassifier:
    """Fit one Gaussian a class.

    Args:
        features: `(n, p, 2)` of `curve_features`; NaN in absent phases, which are treated as
            missing at random (expectation-maximization).
        labels: class of each row.
        phases: names of the p phases.
        prior: probability of each class; equal by default, because a training cohort's shares are
            rarely a clinic's.
        shrinkage: the pooled covariance counts as this many lesions of every class.
        floor_hu: SD added to every feature: scanner calibration and mask borders, which a phantom
            under-represents.

    Raises:
        ValueError: shapes disagree, a phase was never seen, or the prior names other classes.
    """
    rows = np.asarray(features, dtype=np.float64).reshape(len(features), 2 * features.shape[1])
    if len(labels) != len(rows) or features.shape[1] != len(phases):
        raise ValueError(f"{len(labels)} labels, {len(phases)} phases, features {features.shape}")
    if np.isnan(rows).all(axis=0).any():
        raise ValueError("a phase is absent from every training lesion")
    rows = rows[~np.isnan(rows).all(axis=1)]
    kept = [str(n) for n, r in zip(labels, features, strict=True) if not np.isnan(r).all()]
    names = tuple(sorted(set(kept)))
    weights = np.array([1.0 if prior is None else prior.get(n, 0.0) for n in names])
    if (weights <= 0).any() or (prior is not None and set(prior) != set(names)):
        raise ValueError(f"the prior must give each of {names} a positive share")
    picks = [np.array([k == name for k in kept]) for name in names]
    start = np.nanmean(rows, axis=0), np.nanvar(rows, axis=0)
    means, scatters = zip(*(_moments(rows[pick], start, floor_hu) for pick in picks), strict=True)
    counts = np.array([pick.sum() for pick in picks], dtype=np.float64)[:, None, None]
    pooled = (counts * np.stack(scatters)).sum(axis=0) / counts.sum()
    covariance = (counts * np.stack(scatters) + shrinkage * pooled) / (counts + shrinkage)
    covariance += floor_hu**2 * np.eye(rows.shape[1])
    return EnhancementClassifier(
        labels=names,
        phases=tuple(phases),
        mean=np.stack(means).reshape(len(names), len(phases), 2),
        covariance=covariance,
        prior=weights / weights.sum(),
    )


def _moments(
    rows: Float[np.ndarray, "n d"],
    start: tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]],
    floor_hu: float,
    steps: int = 200,
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
    """Maximum-likelihood mean and covariance of rows with gaps (EM); one pass without gaps."""
    seen = ~np.isnan(rows)
    if seen.all():
        centered = rows - rows.mean(axis=0)
        return rows.mean(axis=0), centered.T @ centered / len(rows)
    mean, scatter = start[0].copy(), np.diag(start[1] + floor_hu**2)
    for _ in range(steps):
        filled, extra = rows.copy(), np.zeros_like(scatter)
        for pattern in np.unique(seen, axis=0):
            a, b = np.flatnonzero(pattern), np.flatnonzero(~pattern)
            which = np.flatnonzero((seen == pattern).all(axis=1))
            known = scatter[np.ix_(a, a)] + 1e-6 * np.eye(len(a))
            gain = np.linalg.solve(known, scatter[np.ix_(a, b)])
            filled[np.ix_(which, b)] = mean[b] + (rows[np.ix_(which, a)] - mean[a]) @ gain
            left = scatter[np.ix_(b, b)] - scatter[np.ix_(b, a)] @ gain
            extra[np.ix_(b, b)] += len(which) * left
        before = mean, scatter
        mean = filled.mean(axis=0)
        centered = filled - mean
        scatter = (centered.T @ centered + extra) / len(rows)
        # Both, because the first step fills gaps with the mean and so leaves the mean alone.
        moved = np.abs(mean - before[0]).max(), np.abs(scatter - before[1]).max()
        if max(moved) < 1e-3:
            break
    return mean, scatter


def log_likelihood(
    classifier: EnhancementClassifier, features: Features
) -> tuple[Float[np.ndarray, "n c"], Float[np.ndarray, "n c"], Int[np.ndarray, " n"]]:
    """Log-density of the measured phases in each class (without 2 pi), and the distances.

    Args:
        classifier: the Gaussians.
        features: `(n, p, 2)`, NaN in absent phases.

    Returns:
        Log-densities, squared Mahalanobis distances, and the number of features each row has.
    """
    rows = np.asarray(features, dtype=np.float64).reshape(len(features), 2 * features.shape[1])
    means = classifier.mean.reshape(len(classifier.labels), -1)
    seen = ~np.isnan(rows)
    density = np.zeros((len(rows), len(means)))
    distance = np.zeros_like(density)
    for pattern in np.unique(seen, axis=0):
        a = np.flatnonzero(pattern)
        if not a.size:
            continue
        which = np.flatnonzero((seen == pattern).all(axis=1))
        for c, (mean, covariance) in enumerate(zip(means, classifier.covariance, strict=True)):
            factor = np.linalg.cholesky(covariance[np.ix_(a, a)])
            white = np.linalg.solve(factor, (rows[np.ix_(which, a)] - mean[a]).T)
            distance[which, c] = (white**2).sum(axis=0)
            log_det = 2.0 * np.log(np.diag(factor)).sum()
            density[which, c] = -0.5 * (distance[which, c] + log_det)
    return density, distance, seen.sum(axis=1)


def posterior(classifier: EnhancementClassifier, features: Features) -> Float[np.ndarray, "n c"]:
    """Calibrated class probabilities; a row without any phase gets the prior."""
    density, _, _ = log_likelihood(classifier, features)
    # The temperature tempers the evidence, not the prior.
    scores = density / classifier.temperature + np.log(classifier.prior)
    return np.asarray(np.exp(scores - logsumexp(scores, axis=1, keepdims=True)))


def every_phase_subset(
    features: Features, labels: Sequence[str], *, at_least: int = 1
) -> tuple[Float[np.ndarray, "m p 2"], list[str]]:
    """Each lesion once for every subset of its phases that has `at_least` of them."""
    present = _present(features)
    rows: list[NDArray[np.float64]] = []
    names: list[str] = []
    for keep in product((True, False), repeat=features.shape[1]):
        if sum(keep) < at_least:
            continue
        usable = (present | ~np.array(keep)).all(axis=1)
        copy = features[usable].astype(np.float64)
        copy[:, ~np.array(keep)] = np.nan
        rows.append(copy)
        names.extend(str(label) for label, use in zip(labels, usable, strict=True) if use)
    return np.concatenate(rows), names


def calibrate(
    classifier: EnhancementClassifier,
    features: Features,
    labels: Sequence[str],
    *,
    precision: float = 0.9,
) -> EnhancementClassifier:
    """Set temperature and threshold on lesions that were not used to fit.

    The temperature minimizes the negative log-likelihood over all subsets of the phases. The
    threshold is the one that answers for the most lesions (of two phases or more) while at least
    `precision` of the answers are right; where none does, the classifier always abstains.

    Args:
        classifier: fitted.
        features: `(n, p, 2)` held out.
        labels: their classes, all known to the classifier.
        precision: share of the answers that must be right.
    """
    index = {name: k for k, name in enumerate(classifier.labels)}
    rows, names = every_phase_subset(features, labels)
    truth = np.array([index[name] for name in names])
    density, _, _ = log_likelihood(classifier, rows)
    log_prior = np.log(classifier.prior)

    def loss(log_temperature: float) -> float:
        scores = density * np.exp(-log_temperature) + log_prior
        return float(np.mean(logsumexp(scores, axis=1) - scores[np.arange(len(truth)), truth]))

    best = minimize_scalar(loss, bounds=(np.log(0.2), np.log(50.0)), method="bounded")
    cooled = replace(classifier, temperature=float(np.exp(best.x)))
    several = _present(rows).sum(axis=1) > 1
    chances = posterior(cooled, rows[several])
    right = chances.argmax(axis=1) == truth[several]
    return replace(cooled, threshold=answering_threshold(chances.max(axis=1), right, precision))


def answering_threshold(
    confidence: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"], precision: float
) -> float:
    """The least confidence to answer at while a share of the answers is right.

    Args:
        confidence: highest probability of each lesion.
        right: whether it is that of its type.
        precision: share of the answers that must be right; more than 1 is returned where none is.
    """
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence = confidence[order]
    share = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    # Ties are answered together, so only the last of each may be the cut.
    last = np.append(sorted_confidence[1:] < sorted_confidence[:-1], True)
    good = np.flatnonzero((share >= precision) & last)
    return float(sorted_confidence[good[-1]]) if good.size else float(np.nextafter(1.0, 2.0))


def judge(classifier: EnhancementClassifier, features: Features) -> list[Judgement]:
    """Name each lesion, or abstain and say why."""
    chances = posterior(classifier, features)
    _, distance, size = log_likelihood(classifier, features)
    limit = chdtri(np.maximum(size, 1), 1.0 - classifier.typical_quantile)
    n_phases = _present(features).sum(axis=1)
    judged = []
    for row, near, far, phases in zip(chances, distance.min(axis=1), limit, n_phases, strict=True):
        best = int(row.argmax())
        why = _doubt(classifier, float(row[best]), best, bool(near > far), int(phases))
        probabilities = {n: float(v) for n, v in zip(classifier.labels, row, strict=True)}
        label = UNCERTAIN if why else classifier.labels[best]
        judged.append(Judgement(label, probabilities, bool(why), why))
    return judged


def _doubt(
    classifier: EnhancementClassifier, confidence: float, best: int, atypical: bool, phases: int
) -> str:
    """Why the classifier should abstain; empty when it should not."""
    if phases == 0:
        return "the lesion was not measured in any phase the classifier knows"
    if atypical:
        return "its enhancement is unlike that of any type the classifier knows"
    if phases == 1:
        clear = max(classifier.threshold, SINGLE_PHASE_CONFIDENCE)
        if classifier.labels[best] not in SINGLE_PHASE_LABELS or confidence < clear:
            return "one phase alone does not tell this type of lesion"
    if confidence < classifier.threshold:
        return "its enhancement fits several types about equally well"
    return ""


def _present(features: Features) -> Bool[np.ndarray, "n p"]:
    return np.asarray(~np.isnan(features).any(axis=2))
