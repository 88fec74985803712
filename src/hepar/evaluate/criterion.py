"""One measured figure beside its bounds, with a bootstrap interval by patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hepar.evaluate.statistics import bootstrap


@dataclass(frozen=True)
class Criterion:
    """One measured figure; without bounds it is information.

    Attributes:
        name: what was measured.
        value: None where nothing could be measured.
        low: smallest value that is met.
        high: largest value that is met.
        interval: 95 % bootstrap interval by patient; that of an AUC-8 leans to the common types,
            because a type of few patients is absent from many draws.
        n: how many of `unit` the figure stands on.
        unit: patients, lesions or scans.
        note: what a reader has to know beside it.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    interval: tuple[float, float] | None
    n: int
    unit: str
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the value lies within its bounds; None without bounds, False without a value."""
        if self.low is None and self.high is None:
            return None
        if self.value is None:
            return False
        return (self.low is None or self.value >= self.low) and (
            self.high is None or self.value <= self.high
        )

    def document(self) -> dict[str, Any]:
        """The figure as plain data for JSON."""
        interval = None if self.interval is None else list(self.interval)
        return asdict(self) | {"interval": interval, "met": self.met}

    def row(self) -> str:
        """The figure as a row of a Markdown table: name, value, interval, bound, met, n."""
        value = "none" if self.value is None else f"{self.value:.3f}"
        interval = "" if self.interval is None else "{:.3f} to {:.3f}".format(*self.interval)
        met = {None: "", True: "yes", False: "no"}[self.met]
        name = f"{self.name} ({self.note})" if self.note else self.name
        return f"| {name} | {value} | {interval} | {_bound(self)} | {met} | {self.n} {self.unit} |"


def mean_criterion(
    name: str,
    values: Sequence[float],
    note: str = "",
    *,
    low: float | None = None,
    high: float | None = None,
) -> Criterion:
    """The mean of one value a patient."""
    each = np.asarray(values, dtype=np.float64)
    value, interval = bootstrap(len(each), lambda index: float(each[index].mean()))
    return Criterion(name, value, low, high, interval, len(each), "patients", note)


def _bound(c: Criterion) -> str:
    if c.low is not None and c.high is not None:
        return f"{c.low:.2f} to {c.high:.2f}"
    if c.low is not None:
        return f">= {c.low:.2f}"
    return "" if c.high is None else f"<= {c.high:.2f}"
