"""Plots of rates between 0 and 1, laid out for SVG: recall by size, FROC, ROC and reliability."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hepar.render.axis import Axis, shares
from hepar.render.plots import (
    BOTTOM,
    CHARACTER,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Bar,
    Label,
    Line,
    Mark,
    Plot,
)

SIDE = 214.0
_KEY_X = LEFT + SIDE + 16
_COUNT_ROOM = 20.0
_MOST_DOTS = 60
_FROC_EXPONENTS = (-3, 3)


def recall_by_size(name: str, bins: Sequence[Mapping[str, Any]]) -> Plot | None:
    """Recall of each size of lesion as a bar with its interval, and how many of how many.

    Args:
        name: what is shown, in words.
        bins: `low_ml`, `high_ml` (None: open), `found`, `total`, `recall`, `interval`, by size.

    Returns:
        None without bins.
    """
    if not bins:
        return None
    bottom = HEIGHT - BOTTOM - 14
    y = shares(bottom, TOP, "recall")
    slot = (WIDTH - LEFT - RIGHT) / len(bins)
    width = min(56.0, 0.6 * slot)
    bars, labels = [], []
    for k, found in enumerate(bins):
        middle = LEFT + (k + 0.5) * slot
        size, total = _size(found["low_ml"], found["high_ml"]), found["total"]
        words = f"{found['found']} of {total}" if total else "none"
        labels += [
            Label(middle, bottom + 16, size, "middle", "word"),
            Label(middle, bottom + 30, words, "middle"),
        ]
        if found["recall"] is None:
            continue
        top, ends = y.at(found["recall"]), found.get("interval")
        title = f"{size} ml: {words}, recall {found['recall']:.3f}"
        whisker = None if ends is None else (y.at(ends[0]), y.at(ends[1]))
        bars.append(Bar(middle - width / 2, top, width, bottom - top, title, whisker))
    x = Axis(0, len(bins), LEFT, WIDTH - RIGHT, (), "volume of the reference lesion, ml")
    return Plot(name, x, y, bottom, bars=tuple(bars), labels=tuple(labels))


def froc(name: str, points: Sequence[Mapping[str, float]]) -> Plot | None:
    """Recall against false lesions per patient, whose axis doubles from tick to tick.

    Args:
        name: what is shown, in words.
        points: `threshold`, `false_per_patient`, `recall`; no false lesion lies on the left edge.

    Returns:
        None without points.
    """
    if not points:
        return None
    ordered = sorted(points, key=lambda p: -p["threshold"])
    most = max(p["false_per_patient"] for p in points)
    low, high = _FROC_EXPONENTS
    high = max(high, math.ceil(math.log2(most))) if most > 0 else high
    step = math.ceil((high - low) / 8)
    ticks = tuple((2.0**k, _power(k)) for k in range(low, high + 1, step))
    x = Axis(2.0**low, 2.0**high, LEFT, WIDTH - RIGHT, ticks, "false lesions per patient", log=True)
    y = shares(HEIGHT - BOTTOM, TOP, "recall")
    at = [(x.at(p["false_per_patient"]), y.at(p["recall"])) for p in ordered]
    marks = [
        Mark(
            *position,
            "dot",
            f"threshold {p['threshold']:.3g}: recall {p['recall']:.3f} at "
            f"{p['false_per_patient']:.3f} false lesions per patient",
        )
        for p, position in zip(ordered, at, strict=True)
    ]
    shown = tuple(marks) if len(marks) <= _MOST_DOTS else ()
    return Plot(name, x, y, marks=shown, lines=(Line.through(at, "rate"),), radius=2.8)


def roc(
    name: str,
    curves: Mapping[str, Sequence[Sequence[float]]],
    keys: Mapping[str, tuple[str, str, str]],
) -> Plot | None:
    """Sensitivity against false positive rate, one line a class, with a key beside.

    Args:
        name: what is shown, in words.
        curves: class -> (false positive rate, sensitivity) points.
        keys: class -> (kind of line, name, area in words), in the order of the key.

    Returns:
        None where no class of `keys` has a curve.
    """
    drawn = [key for key in keys if curves.get(key)]
    if not drawn:
        return None
    x = shares(LEFT, LEFT + SIDE, "1 \N{MINUS SIGN} specificity")
    y = shares(TOP + SIDE, TOP, "sensitivity")
    lines = [_diagonal(x, y)]
    labels = [Label(WIDTH - 4, TOP + 8, "AUC", "end")]
    for k, key in enumerate(drawn):
        kind, words, area = keys[key]
        height = TOP + 28 + 19 * k
        lines += [
            Line.through([(x.at(a), y.at(b)) for a, b in curves[key]], f"rate {kind}"),
            Line.through([(_KEY_X, height), (_KEY_X + 20, height)], f"rate {kind}"),
        ]
        labels += [
            Label(_KEY_X + 26, height + 4, words, "start", "word"),
            Label(WIDTH - 4, height + 4, area, "end", "value"),
        ]
    return Plot(
        name, x, y, y.start, lines=tuple(lines), labels=tuple(labels), height=y.start + BOTTOM
    )


def reliability(name: str, bins: Sequence[Mapping[str, Any]]) -> Plot | None:
    """Observed share against mean probability, a bar and a dot a bin, its count above.

    Args:
        name: what is shown, in words.
        bins: `low`, `high`, `n`, `mean_probability`, `observed`.

    Returns:
        None where every bin is empty.
    """
    filled = [b for b in bins if b["n"] and b["observed"] is not None]
    if not filled:
        return None
    x = shares(LEFT, WIDTH - RIGHT, "probability said")
    y = shares(HEIGHT - BOTTOM, TOP + _COUNT_ROOM, "share that came true")
    bars, marks, labels = [], [], [Label(LEFT - 7, TOP + 8, "n", "end")]
    for b in filled:
        left, right, top = x.at(b["low"]), x.at(b["high"]), y.at(b["observed"])
        words = f"{b['low']:.2f} to {b['high']:.2f}: said {b['mean_probability']:.3f}, "
        words += f"came true {b['observed']:.3f}, n {b['n']}"
        bars.append(Bar(left + 1, top, max(right - left - 2, 1.0), y.start - top, words))
        marks.append(Mark(x.at(b["mean_probability"]), top, "dot", words))
        if CHARACTER * len(str(b["n"])) <= right - left:
            labels.append(Label((left + right) / 2, TOP + 8, str(b["n"]), "middle"))
    return Plot(
        name,
        x,
        y,
        marks=tuple(marks),
        lines=(_diagonal(x, y),),
        bars=tuple(bars),
        labels=tuple(labels),
    )


def _diagonal(x: Axis, y: Axis) -> Line:
    return Line.through([(x.at(0), y.at(0)), (x.at(1), y.at(1))], "chance")


def _size(low: float, high: float | None) -> str:
    if high is None:
        return f"\N{GREATER-THAN OR EQUAL TO} {low:g}"
    return f"{low:g} to {high:g}" if low > 0 else f"< {high:g}"


def _power(k: int) -> str:
    return f"{2**k}" if k >= 0 else f"1/{2**-k}"
