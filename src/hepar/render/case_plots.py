"""Plots of an evaluation by case: one value a case, and agreement of volumes, laid out for SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean, stdev
from typing import Literal

from hepar.render.axis import Axis, linear, logarithmic, ranks, spread, tick_text
from hepar.render.plots import (
    BOTTOM,
    CHARACTER,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Label,
    Line,
    Mark,
    Plot,
    Shape,
)

LANE, LANE_GAP = 16.0, 8.0
# Ratio of largest to smallest above which a scale is logarithmic.
WIDE = 40.0
LONGEST_LABEL = 12
ONE_SIDED = ("missed", "false")
_TILT = math.sqrt(0.5)
_LIMIT_SD = 1.96


@dataclass(frozen=True)
class Case:
    """What is plotted of one case; `second` is a lighter mark of the same unit."""

    case_id: str
    outcome: str
    value: float | None
    second: float | None = None


@dataclass(frozen=True)
class Quantity:
    """What the values are.

    Attributes:
        name: e.g. Dice.
        unit: empty for a share.
        digits: decimals worth reading.
        worst: the bad end of the scale; the best value of a `low` one is 1.
        second: name of the lighter marks.
    """

    name: str
    unit: str
    digits: int
    worst: Literal["low", "high"]
    second: str = ""

    @property
    def title(self) -> str:
        """What stands at the vertical axis."""
        names = f"{self.name} and {self.second}" if self.second else self.name
        return f"{names}, {self.unit}" if self.unit else names

    def words(self, case_id: str, name: str, value: float) -> str:
        """A value in words."""
        return f"{case_id}: {name} {value:.{self.digits}f} {self.unit}".rstrip()


def per_case(
    name: str, cases: Sequence[Case], quantity: Quantity, average: float | None = None
) -> Plot | None:
    """One value a case, the worst first; cases with one empty mask in lanes beyond the scale.

    Args:
        name: what is shown, in words.
        cases: in any order.
        quantity: what the values are.
        average: of the cases with both masks, drawn as a line.

    Returns:
        None where no case has a value and none has one empty mask.
    """
    lanes = {o: n for o in ONE_SIDED if (n := sum(c.outcome == o for c in cases))}
    aside = [c for lane in lanes for c in cases if c.outcome == lane]
    valued = [c for c in cases if c.outcome == "both" and c.value is not None]
    low = quantity.worst == "low"
    valued.sort(key=lambda c: (c.value or 0.0) * (1 if low else -1))
    order = aside + valued
    if not order:
        return None
    bottom, room = HEIGHT - BOTTOM, LANE_GAP + LANE * len(lanes) if lanes else 0.0
    values = [v for c in valued for v in (c.value, c.second) if v is not None]
    y = _value_axis(values, bottom - room * low, TOP + room * (not low), quantity)
    first = (y.start + LANE_GAP if low else TOP) + LANE / 2
    lane_y = {lane: first + k * LANE for k, lane in enumerate(lanes)}
    x = ranks(len(order), LEFT, WIDTH - RIGHT, "cases, the worst first")
    names, below = _case_labels([c.case_id for c in order], x, bottom)
    labels = [Label(LEFT - 7, at + 4, lane, "end") for lane, at in lane_y.items()]
    lines = []
    if average is not None and valued:
        level = y.at(average)
        lines.append(_level(level, WIDTH - RIGHT, "average"))
        # Sorted values leave the inner corner free, where there is room for words.
        under = level + 18 < y.start if low else level - 18 < y.end
        text = f"mean {average:.{quantity.digits}f}"
        labels.append(Label(WIDTH - RIGHT, level + (14 if under else -5), text, "end", "value"))
    return Plot(
        name,
        replace(x, ticks=()) if names else x,
        y,
        marks=tuple(
            mark for k, c in enumerate(order, 1) for mark in _marks(c, x.at(k), y, lane_y, quantity)
        ),
        lines=tuple(lines),
        labels=(*labels, *(names or _lane_counts(lanes, lane_y, x))),
        radius=_radius(len(order)),
        left_out=tuple(
            c.case_id
            for c in cases
            if c.outcome == "empty" or (c.outcome == "both" and c.value is None)
        ),
        height=HEIGHT + below,
    )


@dataclass(frozen=True)
class Volumes:
    """The two volumes of one case."""

    case_id: str
    outcome: str
    predicted_ml: float
    reference_ml: float


def bland_altman(name: str, cases: Sequence[Volumes]) -> Plot | None:
    """Mean of two volumes against their difference, with bias and limits of agreement.

    The limits are 1.96 standard deviations (n - 1) around the mean difference (Bland and Altman
    1986). Cases where both masks are empty agree on nothing and are left out.

    Args:
        name: what is shown, in words.
        cases: in any order.

    Returns:
        None where no case has a volume.
    """
    kept = [c for c in cases if c.predicted_ml > 0 or c.reference_ml > 0]
    if not kept:
        return None
    middle = [(c.predicted_ml + c.reference_ml) / 2 for c in kept]
    gap = [c.predicted_ml - c.reference_ml for c in kept]
    bias = mean(gap)
    margin = _LIMIT_SD * stdev(gap) if len(gap) > 1 else None
    levels = [bias] if margin is None else [bias - margin, bias, bias + margin]
    right, bottom = WIDTH - 58.0, HEIGHT - BOTTOM
    wide = max(middle) > WIDE * min(middle)
    scale = partial(logarithmic, most=8) if wide else linear
    x = scale(middle, LEFT, right, "mean of predicted and reference, ml")
    y = linear([0.0, *gap, *levels], bottom, TOP, "predicted minus reference, ml")
    marks = [
        Mark(
            x.at(m),
            y.at(g),
            _shape(c.outcome),
            f"{c.case_id}: predicted {c.predicted_ml:.1f} ml, reference {c.reference_ml:.1f} ml",
        )
        for c, m, g in zip(kept, middle, gap, strict=True)
    ]
    kinds = ["average"] if margin is None else ["limit", "average", "limit"]
    lines = [_level(y.at(v), right, kind) for v, kind in zip(levels, kinds, strict=True)]
    if y.low < 0 < y.high:
        lines.insert(0, _level(y.at(0), right, "zero"))
    # SVG grows downwards, so the upper limit comes first.
    heights = spread([y.at(v) for v in reversed(levels)], 13.0)
    labels = [
        Label(right + 5, at + 4, signed(v), "start", "value" if v == bias else "tick")
        for v, at in zip(reversed(levels), heights, strict=True)
    ]
    return Plot(
        name,
        x,
        y,
        marks=tuple(marks),
        lines=tuple(lines),
        labels=tuple(labels),
        radius=_radius(len(kept)),
        left_out=tuple(c.case_id for c in cases if c not in kept),
        limits=(bias, *((None, None) if margin is None else (bias - margin, bias + margin))),
    )


def signed(value: float) -> str:
    """A difference with its sign and three digits that count."""
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 2) if value else 1.0
    text = tick_text(value, max(step, 0.001))
    return f"+{text}" if value > 0 else text


def _marks(
    case: Case, x: float, y: Axis, lane_y: Mapping[str, float], quantity: Quantity
) -> list[Mark]:
    if case.outcome in lane_y:
        words = f"{case.case_id}: {case.outcome}"
        return [Mark(x, lane_y[case.outcome], _shape(case.outcome), words)]
    shown: tuple[tuple[str, float | None, Shape], ...] = (
        (quantity.name, case.value, "dot"),
        (quantity.second, case.second, "light"),
    )
    return [
        Mark(x, y.at(value), shape, quantity.words(case.case_id, name, value))
        for name, value, shape in shown
        if value is not None
    ]


def _lane_counts(lanes: Mapping[str, int], lane_y: Mapping[str, float], x: Axis) -> list[Label]:
    """How many lie in each lane, after the last of them, where there is room."""
    found, rank = [], 0
    for lane, n in lanes.items():
        rank += n
        at = x.at(rank) + 8
        if at + CHARACTER * len(str(n)) < x.end:
            found.append(Label(at, lane_y[lane] + 4, str(n), "start", "value"))
    return found


def _value_axis(values: Sequence[float], start: float, end: float, quantity: Quantity) -> Axis:
    """Shares reach up to 1, distances down to 0 unless they are too far apart."""
    if quantity.worst == "low":
        floor = [0.0] if min(values, default=0.0) < 0.5 else []
        return linear([*values, *floor, 1.0], start, end, quantity.title, within=(0.0, 1.0))
    positive = [v for v in values if v > 0] or [1.0]
    if max(positive) > WIDE * min(positive):
        return logarithmic(positive, start, end, quantity.title)
    return linear([0.0, *positive], start, end, quantity.title)


def _level(y: float, right: float, kind: str) -> Line:
    return Line.through([(LEFT, y), (right, y)], kind)


def _shape(outcome: str) -> Shape:
    return "missed" if outcome == "missed" else "false" if outcome == "false" else "dot"


def _radius(n: int) -> float:
    return 3.6 if n <= 60 else 2.6 if n <= 300 else 1.8


def _case_labels(names: Sequence[str], x: Axis, bottom: float) -> tuple[list[Label], float]:
    """Names below the axis and the room they take: level, tilted, or none where they do not fit."""
    slot = (x.end - x.start) / len(names)
    # The end of a name tells cases apart more often than its beginning.
    short = [n if len(n) <= LONGEST_LABEL else "…" + n[1 - LONGEST_LABEL :] for n in names]
    longest = CHARACTER * max(map(len, short))
    at = [x.at(k) for k in range(1, len(names) + 1)]
    if longest + CHARACTER <= slot:
        return [Label(p, bottom + 16, s, "middle") for p, s in zip(at, short, strict=True)], 0.0
    if slot < 15.0:
        return [], 0.0
    tilted = [
        Label(p + 3, bottom + 11, s, "end", angle=-45) for p, s in zip(at, short, strict=True)
    ]
    return tilted, _TILT * longest - 4.0
