"""Every row's mean AUC less that of the row it is compared with: a table beside `tables.versus`.

Patients are resampled, the same ones for both rows, see `run_auc`. The p value is the bootstrap's
own: twice the smaller share of draws on one side of zero, the figure itself counted among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from hepar.evaluate.run_auc import DRAWS, MEANS, ScoredPatients, auc_difference
from hepar.evaluate.statistics import Correction, Interval, correct, percentile_interval
from hepar.evaluate.tables import Column, document

_ALPHA = 0.05
# Of a two-sided test at 0.05 with 80 % power, in standard errors.
_DETECTABLE = float(stats.norm.isf(_ALPHA / 2) + stats.norm.isf(0.2))


@dataclass(frozen=True)
class AucDifference:
    """One row less another.

    Attributes:
        value: of the patients that both were tested on; None where it is undefined.
        interval: 95 %, patients resampled.
        p: of no difference, two-sided, before any correction.
        detectable: the true difference that would be found with 80 % power.
        n: patients.
    """

    value: float | None
    interval: Interval | None
    p: float | None
    detectable: float | None
    n: int

    @classmethod
    def of(cls, row: ScoredPatients, other: ScoredPatients, column: str) -> AucDifference:
        """The difference of two rows in a column of `MEANS`."""
        n, value, drawn = auc_difference(row, other, MEANS[column])
        interval = percentile_interval(drawn, DRAWS)
        if not value or interval is None:
            return cls(value[0] if value else None, None, None, None, n)
        each = np.array(drawn)
        beyond = 1 + min(np.count_nonzero(each <= 0), np.count_nonzero(each >= 0))
        p = min(1.0, 2 * beyond / (1 + len(each)))
        return cls(value[0], interval, p, _DETECTABLE * float(each.std(ddof=1)), n)


@dataclass(frozen=True)
class AucDifferences:
    """Rows against one under one mean AUC.

    Attributes:
        column: the measure.
        baseline: name of the row compared with.
        rows: name -> row less baseline.
        p: corrected over the rows.
    """

    column: Column
    baseline: str
    rows: Mapping[str, AucDifference]
    p: Correction

    def verdict(self, name: str) -> str:
        """Better or worse only where the interval leaves 0 out and the corrected p is small."""
        found = self.rows[name]
        p = dict(zip(self.rows, self.p.p_values, strict=True))[name]
        if found.interval is None or p is None:
            return "not compared"
        low, high = found.interval
        if low <= 0 <= high or p >= _ALPHA:
            return "not distinguishable"
        return "better" if low > 0 else "worse"

    def markdown(self) -> str:
        """The table and its definitions, for GitHub."""
        header = ["row", self.column.heading, "95 % interval", "detectable", "p"]
        legend = (
            "Differences on the patients that both rows were tested on, seeds averaged; [95 % "
            f"interval of {DRAWS} bootstrap draws by patient]; other seeds may differ by more.",
            "**detectable**: the true difference that a two-sided test at 0.05 would find with "
            "80 % power, for draws as spread as these.",
            f"**p**: of the draws, {self.p.statement}.",
            "**verdict**: not distinguishable where the interval contains 0 or the corrected p is "
            f"not below {_ALPHA}.",
        )
        title = f"{self.column.title}: every row less {self.baseline}"
        body = (self._cells(*row) for row in zip(self.rows, self.p.p_values, strict=True))
        return document(title, [*header, "patients", "verdict"], body, legend)

    def _cells(self, name: str, p: float | None) -> list[str]:
        c, d = self.column, self.rows[name]
        return [
            name,
            "undefined" if d.value is None else c.show(d.value, sign=True),
            f"[{c.show(*d.interval, sign=True)}]" if d.interval else "",
            "" if d.detectable is None else c.show(d.detectable),
            "" if p is None else f"{p:.3f}",
            str(d.n),
            self.verdict(name),
        ]


def auc_versus(column: Column, rows: Mapping[str, ScoredPatients], baseline: str) -> AucDifferences:
    """Every row less the baseline in a mean AUC.

    Args:
        column: whose key is one of `MEANS`.
        rows: name -> patients.
        baseline: the row compared with, among them.
    """
    base = rows[baseline]
    found = {
        name: AucDifference.of(row, base, column.key)
        for name, row in rows.items()
        if name != baseline
    }
    return AucDifferences(column, baseline, found, correct([d.p for d in found.values()]))
