"""How far voxels alone give a phantom's tumors away: noise, contrast, thresholds, discriminants.

What `phantom_check` measures with, on plain arrays. Nothing here learns more than a mean and a
covariance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, Num
from scipy import ndimage
from scipy.special import softmax

MAD_TO_SD = 1.4826
NEIGHBORHOOD_MM = 10.0
# Fewer voxels than this around a lesion do not tell the parenchyma's median.
FEWEST_VOXELS = 50
# Thresholds tried between the lowest and the highest score of a tumor voxel.
_THRESHOLDS = 400


def noise_sd(
    hu: Num[np.ndarray, "z y x"],
    smooth: Float[np.ndarray, "z y x"],
    parenchyma: Bool[np.ndarray, "z y x"],
) -> float:
    """Noise SD in HU: 1.4826 MAD of what a local mean leaves over of lesion-free parenchyma.

    Slow texture goes with the local mean, borders and vessels weigh little in a median. Gaussian
    means of 2.4 mm SD take 1 to 3 % of white noise with them on the grids used here.

    Args:
        hu: one phase.
        smooth: its local mean.
        parenchyma: liver tissue without vessels and lesions.

    Raises:
        ValueError: no parenchyma.
    """
    rest = hu[parenchyma] - smooth[parenchyma]
    if not rest.size:
        raise ValueError("no parenchyma to measure noise in")
    return float(MAD_TO_SD * np.median(np.abs(rest - np.median(rest))))


def around(
    lesion: Bool[np.ndarray, "z y x"],
    parenchyma: Bool[np.ndarray, "z y x"],
    spacing_mm: tuple[float, float, float],
) -> Bool[np.ndarray, "z y x"]:
    """Parenchyma within 10 mm of a lesion, or all of it where fewer than 50 voxels lie there."""
    reach = [int(np.ceil(NEIGHBORHOOD_MM / s)) for s in spacing_mm]
    where = ndimage.find_objects(lesion.astype(np.uint8))[0]
    box = tuple(slice(max(0, s.start - r), s.stop + r) for s, r in zip(where, reach, strict=True))
    distance_mm = ndimage.distance_transform_edt(~lesion[box], sampling=spacing_mm)
    near = np.zeros_like(lesion)
    near[box] = parenchyma[box] & (np.asarray(distance_mm) <= NEIGHBORHOOD_MM)
    return near if np.count_nonzero(near) >= FEWEST_VOXELS else parenchyma


def best_dice(values: Num[np.ndarray, " n"], tumor: Bool[np.ndarray, " n"]) -> float:
    """Dice of the best of all thresholds, below or above, chosen with the truth.

    Exact: every distinct value is tried as a threshold in one pass over the sorted values.

    Args:
        values: of the voxels of the liver.
        tumor: which of them are tumor, at least one.
    """
    order = np.argsort(values)
    ranked = values[order]
    hit = np.cumsum(tumor[order])
    # Equal values fall on the same side, so only the last of each may end the marked part.
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    marked, found, total = last + 1, hit[last], int(hit[-1])
    below = 2.0 * found / (marked + total)
    above = 2.0 * (total - found[:-1]) / (len(values) - marked[:-1] + total)
    return float(max(below.max(), above.max(initial=0.0)))


@dataclass(frozen=True)
class Moments:
    """Counts, sums and sums of outer products of rows, by class; two of them add up.

    Attributes:
        count: `(c,)` rows.
        total: `(c, d)`.
        square: `(c, d, d)`.
    """

    count: Float[np.ndarray, " c"]
    total: Float[np.ndarray, "c d"]
    square: Float[np.ndarray, "c d d"]

    @classmethod
    def of(
        cls, rows: Num[np.ndarray, "n d"], label: Integer[np.ndarray, " n"], classes: int
    ) -> Moments:
        """Of rows and their class, 0..classes-1."""
        parts = [rows[label == c].astype(np.float64) for c in range(classes)]
        return cls(
            np.array([float(len(part)) for part in parts]),
            np.stack([part.sum(axis=0) for part in parts]),
            np.stack([part.T @ part for part in parts]),
        )

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count, self.total + other.total, self.square + other.square
        )


@dataclass(frozen=True)
class LinearDiscriminant:
    """Gaussians with one covariance: the log posterior of class c is x . weight_c + bias_c + const.

    Attributes:
        weight: `(c, d)`; 0 for a class that was never seen.
        bias: `(c,)`; -inf for a class that was never seen.
    """

    weight: Float[np.ndarray, "c d"]
    bias: Float[np.ndarray, " c"]

    @classmethod
    def fit(cls, moments: Moments) -> LinearDiscriminant:
        """Fisher's discriminant with the pooled covariance within classes and their shares.

        Raises:
            ValueError: no row, or no more rows than classes.
        """
        seen = moments.count > 0
        spare = moments.count.sum() - np.count_nonzero(seen)
        if spare <= 0:
            raise ValueError(f"{int(moments.count.sum())} rows cannot tell a covariance")
        count = np.maximum(moments.count, 1.0)[:, None]
        mean = moments.total / count
        within = (moments.square - np.einsum("cd,ce->cde", moments.total, mean)).sum(axis=0) / spare
        # Rounding, or fewer rows than features, must not make it singular.
        within = within + 1e-9 * max(float(np.trace(within)), 1e-6) * np.eye(len(within))
        weight = np.where(seen[:, None], np.linalg.solve(within, mean.T).T, 0.0)
        bias = -0.5 * (weight * mean).sum(axis=1)
        with np.errstate(divide="ignore"):
            bias = bias + np.log(moments.count / moments.count.sum())
        return cls(weight, bias)

    def posterior(self, rows: Num[np.ndarray, "n d"]) -> Float[np.ndarray, "n c"]:
        """Probability of each class."""
        return np.asarray(softmax(rows @ self.weight.T + self.bias, axis=1), dtype=np.float64)

    def log_odds(self, rows: Num[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """Of class 1 against class 0."""
        odds = rows @ (self.weight[1] - self.weight[0]) + (self.bias[1] - self.bias[0])
        return np.asarray(odds, dtype=np.float64)


@dataclass(frozen=True)
class LiverVoxels:
    """The liver of one patient as rows, in all phases.

    Attributes:
        hu: `(n, p)` in HU / `scale`.
        tumor: `(n,)`.
        scale: HU a unit.
    """

    hu: Integer[np.ndarray, "n p"]
    tumor: Bool[np.ndarray, " n"]
    scale: float = 1.0

    def rows(self) -> Float[np.ndarray, "n p"]:
        """Features in HU."""
        return np.asarray(self.hu * np.float32(self.scale))

    def relative_to(self, center_hu: Float[np.ndarray, " p"]) -> LiverVoxels:
        """The same voxels, HU counted from a center in each phase."""
        center = np.rint(center_hu / self.scale).astype(self.hu.dtype)
        return replace(self, hu=self.hu - center)


def dice_curve(
    score: Float[np.ndarray, " n"],
    tumor: Bool[np.ndarray, " n"],
    thresholds: Float[np.ndarray, " t"],
) -> Float[np.ndarray, " t"]:
    """Dice of `score >= threshold` at ascending thresholds; 0 where nothing is marked."""
    passed = np.searchsorted(thresholds, score, side="right")
    marked, found = _at_least(passed, len(thresholds)), _at_least(passed[tumor], len(thresholds))
    return np.asarray(2.0 * found / np.maximum(marked + np.count_nonzero(tumor), 1))


def _at_least(passed: Int[np.ndarray, " n"], count: int) -> Int[np.ndarray, " t"]:
    """How many passed threshold k, from how many thresholds each passed."""
    per = np.bincount(passed, minlength=count + 1)
    return np.asarray(per[::-1].cumsum()[::-1][1:], dtype=np.int64)


def held_out_dice(cases: Sequence[LiverVoxels]) -> list[float]:
    """Dice of each case by a voxel-wise linear discriminant fitted on the other half of the cases.

    Cases of even and of odd position are the halves; the threshold is the one of best mean Dice a
    case on the half that was fitted.

    Args:
        cases: each with tumor voxels.

    Returns:
        One a case; empty below two cases.
    """
    if len(cases) < 2:
        return []
    dice = [0.0] * len(cases)
    for held in (0, 1):
        fitted = [case for k, case in enumerate(cases) if k % 2 != held]
        moments = [Moments.of(c.rows(), c.tumor.astype(np.int64), 2) for c in fitted]
        model = LinearDiscriminant.fit(sum(moments[1:], start=moments[0]))
        cut = _best_threshold(model, fitted)
        for k in range(held, len(cases), 2):
            score = model.log_odds(cases[k].rows())
            dice[k] = float(dice_curve(score, cases[k].tumor, cut)[0])
    return dice


def _best_threshold(
    model: LinearDiscriminant, cases: Sequence[LiverVoxels]
) -> Float[np.ndarray, " 1"]:
    scores = [model.log_odds(case.rows()) for case in cases]
    of_tumors = np.concatenate([s[c.tumor] for s, c in zip(scores, cases, strict=True)])
    grid = np.quantile(of_tumors, np.linspace(0, 1, _THRESHOLDS))
    curves = [dice_curve(s, c.tumor, grid) for s, c in zip(scores, cases, strict=True)]
    return np.asarray(grid[[int(np.mean(curves, axis=0).argmax())]])
