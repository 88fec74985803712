"""The enhancement curve of a lesion beside its liver, laid out for an SVG of fixed size.

Only geometry is worked out here; the page's template draws it, so that all markup is escaped in one
place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hepar.study import PHASE_ORDER, Lesion

WIDTH, HEIGHT = 380.0, 216.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, 14.0, 14.0, 30.0
_STEPS = (5, 10, 20, 50, 100, 200, 500)


@dataclass(frozen=True)
class Dot:
    """A measured value on the curve; `low` and `high` are the ends of its whisker."""

    x: float
    y: float
    value: float
    text_y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Curve:
    """Positions in SVG units.

    Attributes:
        slots: (x, phase, measured) of all four phases.
        ticks: (y, HU) of the grid lines.
        lesion: dots of the lesion, whiskers of one SD.
        liver: dots of the liver.
    """

    slots: tuple[tuple[float, str, bool], ...]
    ticks: tuple[tuple[float, int], ...]
    lesion: tuple[Dot, ...]
    liver: tuple[Dot, ...]
    width: float = WIDTH
    height: float = HEIGHT
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    bottom: float = HEIGHT - _BOTTOM

    @staticmethod
    def points(dots: tuple[Dot, ...]) -> str:
        """Dots as an SVG `points` attribute."""
        return " ".join(f"{dot.x:.1f},{dot.y:.1f}" for dot in dots)


def enhancement_curve(lesion: Lesion) -> Curve:
    """Lay out one lesion's curve; phases that were not measured leave a gap."""
    width = (WIDTH - _LEFT - _RIGHT) / len(PHASE_ORDER)
    x = {str(p): _LEFT + (k + 0.5) * width for k, p in enumerate(PHASE_ORDER)}
    spans = [(hu - s, hu + s) for p, hu in lesion.hu.items() for s in [lesion.hu_std.get(p, 0.0)]]
    values = [v for span in spans for v in span] + list(lesion.liver_hu.values())
    low, high = (min(values), max(values)) if values else (0.0, 100.0)
    step = next((s for s in _STEPS if (high - low) / s <= 5), _STEPS[-1])
    first, last = math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1)

    def y(hu: float) -> float:
        share = (hu / step - first) / (last - first)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _BOTTOM - _TOP)

    def dots(
        hu: dict[str, float], other: dict[str, float], std: dict[str, float]
    ) -> tuple[Dot, ...]:
        found = []
        for phase in (str(p) for p in PHASE_ORDER if str(p) in hu):
            value, at = hu[phase], y(hu[phase])
            above = value >= other.get(phase, -math.inf)
            # A whisker the text would cross pushes it aside; the label goes away from the other.
            text_y = max(_TOP - 3, at - 9) if above else min(HEIGHT - _BOTTOM - 3, at + 17)
            spread = std.get(phase)
            ends = (None, None) if spread is None else (y(value - spread), y(value + spread))
            found.append(Dot(x[phase], at, value, text_y, *ends))
        return tuple(found)

    return Curve(
        slots=tuple((at, phase, phase in lesion.hu) for phase, at in x.items()),
        ticks=tuple((y(k * step), k * step) for k in range(first, last + 1)),
        lesion=dots(lesion.hu, lesion.liver_hu, lesion.hu_std),
        liver=dots(lesion.liver_hu, lesion.hu, {}),
    )
