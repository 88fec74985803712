"""What a plot is made of: marks, lines, bars and words at positions of an SVG.

Plots are laid out in Python and drawn by a page's template, so that all markup is escaped in one
place.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from hepar.render.axis import Axis

WIDTH, HEIGHT = 440.0, 252.0
LEFT, RIGHT, TOP, BOTTOM = 54.0, 16.0, 24.0, 40.0
# Width of a letter of the widest common screen font at the size of a tick.
CHARACTER = 7.0

Shape = Literal["dot", "light", "missed", "false"]


@dataclass(frozen=True)
class Mark:
    """A value at a position, with the words shown when the pointer rests on it."""

    x: float
    y: float
    shape: Shape
    title: str


@dataclass(frozen=True)
class Line:
    """A polyline as an SVG `points` attribute."""

    points: str
    kind: str

    @classmethod
    def through(cls, positions: Iterable[tuple[float, float]], kind: str) -> Line:
        """A line from position to position."""
        return cls(" ".join(f"{x:.1f},{y:.1f}" for x, y in positions), kind)


@dataclass(frozen=True)
class Bar:
    """A bar that stands on the horizontal axis; `ends` are those of its whisker."""

    x: float
    y: float
    width: float
    height: float
    title: str
    ends: tuple[float, float] | None = None


@dataclass(frozen=True)
class Label:
    """Words in the plot."""

    x: float
    y: float
    text: str
    anchor: Literal["start", "middle", "end"]
    kind: str = "tick"
    angle: int = 0


@dataclass(frozen=True)
class Plot:
    """Positions in SVG units.

    Attributes:
        name: what is shown, in words.
        x: horizontal axis.
        y: vertical axis, growing upwards.
        bottom: where the frame ends; below `y.start` where there is a lane for misses.
        radius: of a dot.
        left_out: cases without a value.
        limits: bias and lower and upper limit of agreement.
    """

    name: str
    x: Axis
    y: Axis
    bottom: float = HEIGHT - BOTTOM
    marks: tuple[Mark, ...] = ()
    lines: tuple[Line, ...] = ()
    bars: tuple[Bar, ...] = ()
    labels: tuple[Label, ...] = ()
    radius: float = 3.4
    left_out: tuple[str, ...] = ()
    limits: tuple[float, float | None, float | None] | None = None
    width: float = WIDTH
    height: float = HEIGHT

    def shaped(self, shape: Shape) -> tuple[Mark, ...]:
        """Marks of one shape."""
        return tuple(mark for mark in self.marks if mark.shape == shape)
