"""When a validation loss no longer falls: the learning rate does, and in the end the run stops.

E2Net (Tang et al., MICCAI 2020) trains so: "initial learning rate of 0.01, which is divided by 10
once the validation loss is stable. After decreasing the learning rate twice, we stop training."
What "stable" means is not said there; here it is `plateau_patience` validations in a row none of
which was lower than the lowest before by more than `plateau_min_delta`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from hepar.recipe import Schedule


@dataclass(frozen=True)
class Plateau:
    """What the validations so far have decided.

    Attributes:
        reductions: times the learning rate was reduced.
        lowest: validation loss that the next must undercut; None before a finite one.
        waited: validations in a row that did not, since the last one that did or the last
            reduction.
        finished: the run has ended.
    """

    reductions: int = 0
    lowest: float | None = None
    waited: int = 0
    finished: bool = False

    def after(self, loss: float | None, schedule: Schedule) -> Plateau:
        """The state after one more validation.

        Args:
            loss: of that validation; one that is None or not finite is no improvement.
            schedule: the recipe's, `lr_schedule: plateau`.
        """
        if loss is not None and math.isfinite(loss):
            enough = math.inf if self.lowest is None else self.lowest - schedule.plateau_min_delta
            if loss < enough:
                return replace(self, lowest=loss, waited=0)
        if self.waited + 1 < schedule.plateau_patience:
            return replace(self, waited=self.waited + 1)
        if self.reductions < schedule.plateau_reductions:
            return replace(self, waited=0, reductions=self.reductions + 1)
        return replace(self, waited=self.waited + 1, finished=True)
