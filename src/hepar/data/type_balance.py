"""Patches around lesions of each type as often: which case a patch is drawn from, by type.

Most lesions of a cohort are of few types, and a rare one would be seen once in a thousand patches.
"""

from __future__ import annotations

from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np

from hepar.errors import InputRefused
from hepar.recipe_data import PatchSettings
from hepar.study import LESION_TYPES

_TYPE = 5  # keeps these draws apart from others of (seed, epoch, index)


@runtime_checkable
class KnowsTypes(Protocol):
    """What is asked of the cases."""

    @property
    def n_train(self) -> int:
        """Training cases."""
        ...

    def train_types(self, index: int) -> frozenset[str]:
        """Types of a training case's lesions."""
        ...


class TypeBalance:
    """Draws the case and the type of a patch around a lesion: a pure function of its place.

    First the type, of those that the training cases have each being as likely; then the case, of
    those that have a lesion of it each as likely; `patches.draw_patch` draws the lesion (or with
    `foreground_fraction` the voxel), of those of the type in the case each as likely.

    Args:
        cases: asked for their types when the first patch is drawn.
        settings: `share` of the patches are such ones.
        seed: the recipe's seed.
    """

    def __init__(self, cases: KnowsTypes, settings: PatchSettings, *, seed: int) -> None:
        self.cases, self.seed = cases, seed
        fraction = settings.foreground_fraction
        self.share = (settings.lesion_fraction if fraction is None else fraction) or 0.0

    @cached_property
    def holders(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Each type that a training case has, and the numbers of the cases that have it.

        Raises:
            InputRefused: `E_COHORT`, no training case has a lesion.
        """
        held = [self.cases.train_types(index) for index in range(self.cases.n_train)]
        found = tuple(
            (kind, tuple(number for number, types in enumerate(held) if kind in types))
            for kind in LESION_TYPES
            if any(kind in types for types in held)
        )
        if not found:
            raise InputRefused(
                "E_COHORT",
                "cohort",
                "data.type_balance: no training case has a lesion.",
                "Give cases with lesions, or leave data.type_balance out.",
            )
        return found

    def choice(self, epoch: int, index: int) -> tuple[int, str]:
        """The number of the case, and the type of the lesion."""
        u = np.random.default_rng([_TYPE, self.seed, epoch, index]).random(2)
        kind, numbers = self.holders[int(u[0] * len(self.holders))]
        return numbers[int(u[1] * len(numbers))], kind
