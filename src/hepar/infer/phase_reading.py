"""From the HU of organs to the contrast phase, with a probability: a small mixture of t densities.

A component a window of time after the injection. A scan between two phases belongs to a window of
its own, whose scans are called by either name, so that it is read with a divided probability and
never with a sure wrong one. What was not measured is integrated out, which for these densities
means leaving its rows and columns away.

The coefficients lie in `phases.json` beside this file, not in a model folder: they describe how
organs enhance, not a network, and bundles keep their hash. `benchmarks/phase_recognition.py fit`
makes them, on phantoms, from what the shipped liver network finds in them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from hepar.infer.organ_hu import MEASURES
from hepar.study import PHASE_ORDER, Phase

COEFFICIENTS = Path(__file__).with_name("phases.json")
# Seconds after the start of the injection: from, to. Without contrast the time is 0.
WINDOWS_S = {
    "native": (-math.inf, 1.0),
    "arterial": (1.0, 42.0),
    "inflow": (42.0, 60.0),
    "portal": (60.0, 90.0),
    "late portal": (90.0, 120.0),
    "delayed": (120.0, math.inf),
}
# Fewer do not tell a phase: a liver of 60 HU alone may be anything.
MIN_MEASURES = 3
# Tails, and a widening in units of asinh(HU / 40): no real scanner, tube voltage or contrast agent
# is exactly the phantom's. Set beforehand, not fitted.
_DEGREES = 6.0
_WIDEN = 0.08
_POOLED_SCANS = 20.0
# How much farther than the farthest held-out phantom a real scan may lie.
_FARTHER = 1.5
_SCALE_HU = 40.0
_TEMPERATURES = np.geomspace(0.5, 8.0, 57)


class PhaseClassifier(BaseModel):
    """The fitted mixture.

    Attributes:
        measures: names of the features, in the order of `mean_` and `covariance`.
        windows: names of the components.
        prior: share of scans in each window.
        named: window -> share of its scans that are called each phase, in `PHASE_ORDER`.
        mean: (windows, measures), of asinh(HU / 40).
        covariance: (windows, measures, measures), widened.
        temperature: by which log densities are divided.
        farthest: squared distance a measure to the nearest component, beyond which a scan is
            like none that was fitted.
        liver_sha256: weights of the liver network inside whose masks it was measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    measures: tuple[str, ...]
    windows: tuple[str, ...]
    prior: tuple[float, ...]
    named: tuple[tuple[float, ...], ...]
    mean: tuple[tuple[float, ...], ...]
    covariance: tuple[tuple[tuple[float, ...], ...], ...]
    temperature: float = Field(default=1.0, gt=0)
    farthest: float = Field(default=math.inf, gt=0)
    liver_sha256: str = ""

    def read(self, hu: Mapping[str, float]) -> ImageReading | None:
        """The phase that a scan's organs show.

        Args:
            hu: from `organ_hu`.

        Returns:
            None where fewer than three measures were taken.
        """
        scored = self._score(hu)
        if scored is None:
            return None
        logs, distance = scored
        chances = dict(zip(PHASE_ORDER, self._chances(logs, self.temperature), strict=True))
        return ImageReading(chances, hu, distance, distance <= self.farthest)

    def _score(self, hu: Mapping[str, float]) -> tuple[NDArray[np.float64], float] | None:
        """Logs of prior times density by window, and the squared distance to the nearest."""
        seen = [k for k, name in enumerate(self.measures) if name in hu]
        if len(seen) < MIN_MEASURES:
            return None
        x = _feature(np.array([hu[self.measures[k]] for k in seen]))
        logs, distances = zip(
            *(self._component(w, x, seen) for w in range(len(self.windows))), strict=True
        )
        return np.array(logs), min(distances) / len(seen)

    def _chances(self, logs: NDArray[np.float64], temperature: float) -> list[float]:
        """Probability of every phase, in `PHASE_ORDER`."""
        weight = np.exp((logs - logs.max()) / temperature)
        return list(map(float, (weight / weight.sum()) @ np.array(self.named)))

    def _component(
        self, window: int, x: NDArray[np.float64], seen: list[int]
    ) -> tuple[float, float]:
        """Log of prior times density, and squared distance, over the measures that were taken."""
        spread = np.array(self.covariance[window])[np.ix_(seen, seen)]
        away = x - np.array(self.mean[window])[seen]
        distance = float(away @ np.linalg.solve(spread, away))
        half = (_DEGREES + len(seen)) / 2
        log_density = (
            math.lgamma(half)
            - float(np.linalg.slogdet(spread)[1]) / 2
            - half * math.log1p(distance / _DEGREES)
            - len(seen) / 2 * math.log(_DEGREES * math.pi)
            - math.lgamma(_DEGREES / 2)
        )
        return math.log(self.prior[window]) + log_density, distance


@dataclass(frozen=True)
class ImageReading:
    """What the image says of its phase.

    Attributes:
        probabilities: of every phase, summing to 1.
        hu: measure -> HU it was read from.
        distance: squared distance to the nearest component, a measure.
        familiar: the HU are like those of some phase; else the probabilities mean nothing.
    """

    probabilities: Mapping[Phase, float]
    hu: Mapping[str, float]
    distance: float = 0.0
    familiar: bool = True

    @property
    def phase(self) -> Phase:
        """The most probable one."""
        return max(PHASE_ORDER, key=lambda phase: self.probabilities[phase])

    @property
    def confidence(self) -> float:
        """Its probability."""
        return self.probabilities[self.phase]

    @property
    def evidence(self) -> str:
        """The HU in words."""
        return ", ".join(f"{MEASURES[name]} {value:.0f}" for name, value in self.hu.items()) + " HU"


def window_of(time_s: float) -> str:
    """The window a time after the start of the injection lies in; 0 is without contrast."""
    return next(name for name, (low, high) in WINDOWS_S.items() if low <= time_s < high)


def fit_phase_classifier(
    hu: Sequence[Mapping[str, float]], phases: Sequence[Phase], times_s: Sequence[float]
) -> PhaseClassifier:
    """Fit the components on scans whose time is known.

    A window's mean of a measure is over the scans that show it. Covariances are over pairs that
    show both, drawn toward the mean of all windows as far as a window has few scans, and widened.

    Args:
        hu: measures of each scan.
        phases: what each is called.
        times_s: seconds after the start of the injection.
    """
    measures = tuple(MEASURES)
    x = _feature(np.array([[one.get(name, np.nan) for name in measures] for one in hu]))
    where = np.array([window_of(time) for time in times_s])
    windows = tuple(name for name in WINDOWS_S if (where == name).sum() > 1)
    called = np.array([[phase is p for p in PHASE_ORDER] for phase in phases], dtype=np.float64)
    rows = [where == name for name in windows]
    means = [np.nanmean(x[r], axis=0) for r in rows]
    counts = np.array([r.sum() for r in rows], dtype=np.float64)
    spreads = [_covariance(x[r] - mean) for r, mean in zip(rows, means, strict=True)]
    pooled = np.average(spreads, axis=0, weights=counts)
    kept = counts / (counts + _POOLED_SCANS)
    shrunk = [k * own + (1 - k) * pooled for k, own in zip(kept, spreads, strict=True)]
    wide = [_positive(s) + np.eye(len(measures)) * _WIDEN**2 for s in shrunk]
    return PhaseClassifier(
        measures=measures,
        windows=windows,
        prior=_rounded(counts / counts.sum()),
        named=tuple(_rounded(called[r].mean(axis=0)) for r in rows),
        mean=tuple(_rounded(m) for m in means),
        covariance=tuple(tuple(_rounded(row) for row in s) for s in wide),
    )


def calibrate_phase_classifier(
    classifier: PhaseClassifier, hu: Sequence[Mapping[str, float]], phases: Sequence[Phase]
) -> PhaseClassifier:
    """Choose the temperature with the smallest log loss, and the limit of what is familiar.

    Args:
        classifier: fitted.
        hu: measures of each scan, none of them fitted.
        phases: what each is called.
    """
    scored = [
        (found, PHASE_ORDER.index(phase))
        for one, phase in zip(hu, phases, strict=True)
        if (found := classifier._score(one)) is not None
    ]

    def loss(temperature: float) -> float:
        chances = [classifier._chances(logs, temperature)[k] for (logs, _), k in scored]
        return -float(np.mean(np.log(np.maximum(chances, 1e-6))))

    best = min(_TEMPERATURES, key=loss)
    far = max(distance for (_, distance), _ in scored)
    return classifier.model_copy(
        update={"temperature": round(float(best), 3), "farthest": round(_FARTHER * far, 3)}
    )


@lru_cache(maxsize=1)
def default_phase_classifier() -> PhaseClassifier:
    """The shipped coefficients."""
    return PhaseClassifier.model_validate_json(COEFFICIENTS.read_text(encoding="utf-8"))


def _feature(hu: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bright vessels vary by tens of HU, unenhanced organs by a few: a scale for both."""
    return np.asarray(np.arcsinh(hu / _SCALE_HU))


def _covariance(away: NDArray[np.float64]) -> NDArray[np.float64]:
    known = np.isfinite(away)
    filled = np.where(known, away, 0.0)
    pairs = known.T.astype(np.float64) @ known
    return np.asarray(filled.T @ filled / np.maximum(pairs, 1.0))


def _positive(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pairs from different scans need not make a covariance: negative eigenvalues become 0."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.maximum(values, 0.0)) @ vectors.T)


def _rounded(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(round(float(v), 5) for v in values)
