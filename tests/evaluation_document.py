"""Documents of `hepar evaluate` with numbers as a fair network would earn them, from a seed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hepar.study import LESION_TYPES

POLICIES = ("penalised", "paper", "lits")
OUTCOMES = ("both", "missed", "false", "empty")
SHARES = {"dice": 0.0, "surface_dice": 0.0, "voe": 1.0}
DISTANCES = ("assd_mm", "rmsd_mm", "hd_mm", "hd95_mm")
DIAGONAL_MM, LITS_LARGE = 512.3, 9001.0
RULES = {
    "one to one, IoU >= 0.1": 1.0,
    "LiTS, IoU > 0": 0.97,
    "LiTS, IoU > 0.5": 0.62,
    "LiTS server, IoU > 0.5": 0.58,
    "PLAN, Dice >= 0.2": 0.9,
}
SIZES_ML = ((0.0, 1.0, 0.41), (1.0, 5.0, 0.72), (5.0, 20.0, 0.9), (20.0, None, 0.98))
Rng = np.random.Generator


def evaluation_document(
    n: int, *, lesions: bool = False, types: bool = False, seed: int = 0, **changed: Any
) -> dict[str, Any]:
    """A document of n cases; several cases have some of every outcome of the tumor."""
    rng = np.random.default_rng(seed)
    cases = [_case(rng, k, n > 1, lesions) for k in range(n)]
    free = [c for c in cases if c["tumor_reference_ml"] == 0]
    clear = sum(c["tumor_predicted_ml"] == 0 for c in free)
    share = clear / len(free) if free else None
    return {
        "schema_version": "1",
        "hepar_version": "0.2.0",
        "predictions": "runs/context_unet3d/test",
        "truth": "cohorts/external",
        "n_cases": n,
        "n_patients": n,
        "tolerance_mm": 2.0,
        "policy": "penalised",
        "structures": {name: _structure(cases, name) for name in ("liver", "tumor")},
        "tumor_burden": {"rmse": 0.02143, "max_error": 0.0917, "n": n, "n_undefined": 0},
        "lesions": _lesions(rng, cases) if lesions else None,
        "types": _types(rng, n) if types else None,
        "specificity": {
            "tumor_free_patients": len(free),
            "without_finding": clear,
            "specificity": share,
            "interval": _around(share, len(free)),
        },
        "cases": cases,
        "warnings": ["W_LIVER_MISSED: 3 cases predicted without a liver"] if n > 1 else [],
    } | changed


def _around(share: float | None, n: int) -> list[float] | None:
    if share is None:
        return None
    half = 0.9 / math.sqrt(n)
    return [max(0.0, share - half), min(1.0, share + half)]


def _case(rng: Rng, k: int, varied: bool, lesions: bool) -> dict[str, Any]:
    case: dict[str, Any] = {"case_id": f"case_{k:04d}", "patient_id": f"case_{k:04d}"}
    outcome = str(rng.choice(OUTCOMES, p=(0.82, 0.07, 0.05, 0.06))) if varied else "both"
    case |= _masks(rng, "liver", "both") | _masks(rng, "tumor", outcome)
    case["diagonal_mm"] = DIAGONAL_MM
    if lesions:
        case["lesions_reference"] = int(rng.geometric(0.35)) if outcome in ("both", "missed") else 0
        case["lesions_found"] = (
            int(rng.binomial(case["lesions_reference"], 0.75)) if outcome == "both" else 0
        )
        case["lesions_false"] = int(rng.poisson(0.6)) if outcome in ("both", "false") else 0
        case["lesions_predicted"] = case["lesions_found"] + case["lesions_false"]
    return case


def _masks(rng: Rng, name: str, outcome: str) -> dict[str, Any]:
    liver = name == "liver"
    reference = float(rng.normal(1600, 250)) if liver else float(rng.lognormal(2.6, 1.6))
    dice = float(rng.beta(60, 3)) if liver else float(rng.beta(4, 1.6))
    predicted = reference * math.exp(float(rng.normal(0.01, 0.7 * (1 - dice))))
    assd_mm = (1 - dice) * (25 if liver else 12) * float(rng.lognormal(0, 0.35))
    facts: dict[str, float | None] = {
        "dice": dice,
        "voe": 1 - dice / (2 - dice),
        "rvd": (predicted - reference) / reference,
        "surface_dice": dice ** float(rng.uniform(0.8, 1.4)),
        "assd_mm": assd_mm,
        "rmsd_mm": 1.6 * assd_mm,
        "hd_mm": 9.0 * assd_mm,
        "hd95_mm": 4.1 * assd_mm * float(rng.lognormal(0, 0.3)),
        "predicted_ml": predicted if outcome in ("both", "false") else 0.0,
        "reference_ml": reference if outcome in ("both", "missed") else 0.0,
        "false_ml": 0.1 * predicted,
    }
    if outcome != "both":
        facts |= dict.fromkeys(("dice", "voe", "rvd", "surface_dice", *DISTANCES))
    if outcome in ("missed", "false"):
        facts |= {"dice": 0.0, "voe": 1.0, "surface_dice": 0.0}
    if outcome == "missed":
        facts["rvd"] = -1.0
    return {f"{name}_outcome": outcome, **{f"{name}_{key}": v for key, v in facts.items()}}


def _structure(cases: list[dict[str, Any]], name: str) -> dict[str, Any]:
    outcomes = [c[f"{name}_outcome"] for c in cases]
    measures: dict[str, Any] = {}
    for key in (*SHARES, "rvd", "rvd_abs", *DISTANCES):
        raw = [c[f"{name}_{key.removesuffix('_abs')}"] for c in cases]
        values = [abs(v) if key == "rvd_abs" and v is not None else v for v in raw]
        measures[key] = {p: _mean(key, values, outcomes, p) for p in POLICIES}
    return {
        "outcomes": {outcome: outcomes.count(outcome) for outcome in OUTCOMES},
        "measures": measures,
        "dice_global": 0.9613 if name == "liver" else 0.8127,
    }


def _mean(key: str, values: list[float | None], outcomes: list[str], policy: str) -> dict[str, Any]:
    both = [v for v, o in zip(values, outcomes, strict=True) if o == "both"]
    sided = [o for o in outcomes if o in ("missed", "false")]
    if key in SHARES:
        worst = [SHARES[key]] * len(sided)
    elif policy == "lits":
        worst = [LITS_LARGE] * len(sided)
    elif key.startswith("rvd"):
        worst = [1.0 if key == "rvd_abs" else -1.0] * sided.count("missed")
    else:
        worst = [DIAGONAL_MM] * len(sided) if policy == "penalised" else []
    cap = key == "rvd_abs" and policy == "penalised"
    kept = np.array([min(v, 1.0) if cap else v for v in both] + worst, dtype=float)
    n = len(kept)
    drawn = np.random.default_rng(n).integers(max(n, 1), size=(200, n))
    return {
        "mean": float(kept.mean()) if n else None,
        "std": float(kept.std(ddof=1)) if n > 1 else None,
        "interval": np.quantile(kept[drawn].mean(1), (0.025, 0.975)).tolist() if n > 1 else None,
        "n": n,
        "n_missed": len(worst),
        "n_undefined": len(values) - n,
        "n_capped": sum(v > 1.0 for v in both) if cap else 0,
        "detected_mean": float(np.mean(both)) if both else None,
        "n_detected": len(both),
    }


def _lesions(rng: Rng, cases: list[dict[str, Any]]) -> dict[str, Any]:
    n, found, false = (
        sum(c[f"lesions_{key}"] for c in cases) for key in ("reference", "found", "false")
    )
    free = [c for c in cases if c["tumor_reference_ml"] == 0]
    outcomes = ["both"] * found + ["missed"] * (n - found)
    missed = [None] * (n - found)
    per_lesion = {
        "dice": [*rng.beta(5, 2, found).tolist(), *missed],
        "assd_mm": [*rng.gamma(2, 1, found).tolist(), *missed],
    }
    thresholds = np.linspace(0.95, 0.05, 19).tolist()
    return {
        "rules": [_rule(name, n, int(kept * found), found + false) for name, kept in RULES.items()],
        "false_per_patient": false / len(cases),
        "false_per_patient_interval": [0.8 * false / len(cases), 1.2 * false / len(cases)],
        "tumor_free_patients": len(free),
        "false_in_tumor_free": sum(c["lesions_false"] for c in free),
        "by_size": [_of_size(rng, n // 4, *size) for size in SIZES_ML],
        "froc": {
            "points": [
                {
                    "threshold": t,
                    "false_per_patient": 6.0 * (1 - t) ** 2.2,
                    "recall": 0.9 - 0.6 * t**3,
                }
                for t in thresholds
            ],
            "recall_at": {f"{2.0**k:g}": 0.36 + 0.08 * (k + 3) for k in range(-3, 4)},
        },
        "per_lesion": {
            key: {p: _mean(key, values, outcomes, p) for p in POLICIES}
            for key, values in per_lesion.items()
        },
        "classes": _classes(rng),
    }


def _rule(name: str, n_reference: int, found: int, n_predicted: int) -> dict[str, Any]:
    recall = found / n_reference if n_reference else None
    precision = found / n_predicted if n_predicted else None
    defined = bool(recall and precision)
    return {
        "name": name,
        "n_reference": n_reference,
        "n_predicted": n_predicted,
        "tp_reference": found,
        "tp_predicted": found,
        "recall": recall,
        "precision": precision,
        "f1": 2 / (1 / recall + 1 / precision) if defined else None,
        "recall_interval": _around(recall, n_reference),
        "precision_interval": _around(precision, n_predicted),
    }


def _of_size(rng: Rng, total: int, low: float, high: float | None, recall: float) -> dict[str, Any]:
    found = int(rng.binomial(total, recall))
    share = found / total if total else None
    return {
        "low_ml": low,
        "high_ml": high,
        "found": found,
        "total": total,
        "recall": share,
        "interval": _around(share, total),
    }


def _classes(rng: Rng) -> dict[str, Any]:
    often = np.array([40, 8, 30, 20, 9, 25, 0, 2])
    confusion = rng.poisson(often[:, None] * (0.04 + 0.6 * np.eye(8)))
    missed, false = rng.poisson(0.1 * often), rng.poisson(0.08 * often)
    n, n_reference = int(confusion.sum()), int(confusion.sum() + missed.sum())
    return {
        "names": list(LESION_TYPES),
        "confusion": confusion.tolist(),
        "missed": missed.tolist(),
        "false": false.tolist(),
        "accuracy": int(np.trace(confusion)) / n,
        "n": n,
        "accuracy_missed_wrong": int(np.trace(confusion)) / n_reference,
        "n_reference": n_reference,
    }


def _types(rng: Rng, n: int) -> dict[str, Any]:
    curves: dict[str, Any] = {}
    areas: dict[str, dict[str, Any]] = {}
    for k, name in enumerate((*LESION_TYPES, "malignant", "benign")):
        chance = 0.0 if name == "calcification" else 0.4 if k >= 8 else 0.2
        positive = rng.random(n) < chance
        score = rng.normal(positive * (0.8 + 0.25 * (k % 5)), 0.7)
        areas[name], curves[name] = _curve(positive, score)
    types = {name: areas[name] for name in LESION_TYPES}
    groups = {name: areas[name] for name in ("malignant", "benign")}
    bins = [_bin(k / 10, (k + 1) / 10, 0 if k == 6 else 44 - 4 * k) for k in range(10)]
    return {
        "score": "probability",
        "n_patients": n,
        "auc": types,
        "groups": groups,
        "auc_8": _mean_auc(types),
        "auc_2": _mean_auc(groups),
        "sensitivity_at_specificity": {
            "0.9": {k: None if v["auc"] is None else 0.8 * v["auc"] for k, v in areas.items()}
        },
        "roc": curves,
        "calibration": {
            "ece": 0.0431,
            "brier": 0.1174,
            "n": sum(b["n"] for b in bins),
            "bins": bins,
        },
    }


def _curve(positive: np.ndarray, score: np.ndarray) -> tuple[dict[str, Any], list[list[float]]]:
    order = positive[np.argsort(-score)]
    n_positive, n_negative = int(order.sum()), int((~order).sum())
    counts = {"n_positive": n_positive, "n_negative": n_negative}
    if not n_positive or not n_negative:
        return {"auc": None, "interval": None} | counts, []
    across, up = np.cumsum(~order) / n_negative, np.cumsum(order) / n_positive
    points = [[0.0, 0.0], *np.stack([across, up], axis=1).tolist()]
    area = float(np.mean(score[positive][:, None] > score[~positive][None]))
    return {"auc": area, "interval": _around(area, len(order))} | counts, points


def _bin(low: float, high: float, n: int) -> dict[str, Any]:
    middle = (low + high) / 2
    return {
        "low": low,
        "high": high,
        "n": n,
        "mean_probability": middle if n else None,
        "observed": middle**1.3 if n else None,
    }


def _mean_auc(areas: dict[str, dict[str, Any]]) -> dict[str, Any]:
    defined = [v["auc"] for v in areas.values() if v["auc"] is not None]
    value = float(np.mean(defined)) if defined else None
    return {
        "value": value,
        "interval": _around(value, 100),
        "n_defined": len(defined),
        "undefined": [name for name, v in areas.items() if v["auc"] is None],
    }
