"""Axes of plots: where a value lies between two positions, and ticks that a person would choose."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_STEPS = (1, 2, 5)
_EQUAL = 1e-9
# Twelve decades cannot be read; what lies below six of them lies on the edge.
_WIDEST = 1e6


@dataclass(frozen=True)
class Axis:
    """A scale from values to SVG positions.

    Attributes:
        low: value at `start`.
        high: value at `end`.
        start: SVG position; above `end` where values grow upwards.
        end: SVG position.
        ticks: (value, text), rising.
        title: quantity with its unit.
        log: whether equal ratios are equally long.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[tuple[float, str], ...]
    title: str = ""
    log: bool = False

    def at(self, value: float) -> float:
        """The position of a value; one beyond the axis lies on its edge."""
        if self.log:
            value = max(value, self.low)
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    @property
    def marked(self) -> tuple[tuple[float, str], ...]:
        """(position, text) of every tick."""
        return tuple((self.at(value), text) for value, text in self.ticks)


def linear(
    values: Iterable[float],
    start: float,
    end: float,
    title: str = "",
    *,
    within: tuple[float, float] = (-math.inf, math.inf),
    most: int = 6,
) -> Axis:
    """An axis whose ticks are 1, 2 or 5 times a power of ten and cover the values.

    Args:
        values: what has to fit, not empty.
        start: SVG position of the low end.
        end: SVG position of the high end.
        title: quantity with its unit.
        within: what the quantity can be; matters where all values are equal.
        most: intervals between ticks, at most.
    """
    found = list(values)
    low, high = min(found), max(found)
    if high - low <= _EQUAL * max(abs(low), abs(high)):
        margin = 0.1 * max(abs(low), abs(high)) or 1.0
        low, high = max(low - margin, within[0]), min(high + margin, within[1])
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    steps = (s * power for s in (*_STEPS, 10, 20))
    step = next(s for s in steps if _count(low, high, s) <= most)
    first, last = math.floor(low / step + _EQUAL), math.ceil(high / step - _EQUAL)
    ticks = tuple((k * step, tick_text(k * step, step)) for k in range(first, last + 1))
    return Axis(first * step, last * step, start, end, ticks, title)


def logarithmic(
    values: Iterable[float], start: float, end: float, title: str = "", *, most: int = 11
) -> Axis:
    """An axis of ratios whose ends are 1, 2 or 5 times a power of ten around the positive values.

    Args:
        values: what has to fit; zeros and what is smaller than a millionth of the largest lie on
            the edge. At least one is positive.
        start: SVG position of the low end.
        end: SVG position of the high end.
        title: quantity with its unit.
        most: ticks, at most; powers of ten alone are marked where 1, 2 and 5 of each are more.
    """
    found = [value for value in values if value > 0]
    high = max(found)
    low = max(min(found), high / _WIDEST)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    decades = [10.0**k for k in exponents]
    every = [s * decade for decade in decades for s in _STEPS]
    first = max(v for v in every if v <= low * (1 + _EQUAL))
    last = min(v for v in every if v >= high * (1 - _EQUAL) and v > first)
    inside = [v for v in every if first <= v <= last]
    shown = inside if len(inside) <= most else [v for v in inside if v in decades]
    return Axis(first, last, start, end, tuple((v, f"{v:g}") for v in shown), title, log=True)


def ranks(n: int, start: float, end: float, title: str = "") -> Axis:
    """An axis of ranks 1 to n: each has a slot of its own, and whole numbers are its ticks."""
    step = next(s * 10**k for k in range(12) for s in _STEPS if n <= 6 * s * 10**k)
    shown = sorted({1, *range(step, n + 1, step)})
    return Axis(0.5, n + 0.5, start, end, tuple((r, str(r)) for r in shown), title)


def shares(start: float, end: float, title: str = "") -> Axis:
    """An axis from 0 to 1."""
    return linear((0.0, 1.0), start, end, title, most=5)


def tick_text(value: float, step: float) -> str:
    """A multiple of a step as plain digits where they are few."""
    decimals = max(0, -math.floor(math.log10(step) + _EQUAL))
    text = f"{value:.{decimals}f}"
    if abs(value) >= 1e5:
        text = f"{value:.{max(1, math.ceil(math.log10(abs(value) / step)) + 1)}g}"
    return text.replace("-", "\N{MINUS SIGN}", 1) if float(text) else text.removeprefix("-")


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Rising positions moved apart to at least `gap`, around the one in the middle."""
    moved = list(positions)
    middle = len(moved) // 2
    for k in range(middle + 1, len(moved)):
        moved[k] = max(moved[k], moved[k - 1] + gap)
    for k in range(middle - 1, -1, -1):
        moved[k] = min(moved[k], moved[k + 1] - gap)
    return moved


def _count(low: float, high: float, step: float) -> int:
    return math.ceil(high / step - _EQUAL) - math.floor(low / step + _EQUAL)
