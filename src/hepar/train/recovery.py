"""Which checkpoint a run goes on from: the last, or the one before it where that is damaged.

Two are kept, `last.safetensors` and `previous.safetensors`, never more. Those written at the steps
of `schedule.checkpoint_every` are the ones that a run whose losses stop being finite goes back to;
one that a signal caused lies in between and takes no place from them, so that an interrupted run
goes back to where an unbroken one would.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from hepar.errors import ModelIntegrityError
from hepar.train.checkpoint import TrainState, read_tensors

LOG = logging.getLogger(__name__)
LAST, PREVIOUS = "last.safetensors", "previous.safetensors"


class Checkpoints:
    """The two checkpoints of a run's folder.

    Args:
        folder: of the run.
        recipe: hash of the recipe that is trained.
        every: steps between the regular ones.
    """

    def __init__(self, folder: Path, recipe: str, every: int) -> None:
        self.last, self.previous = folder / LAST, folder / PREVIOUS
        self.recipe, self.every = recipe, every
        self._regular = False  # whether `last` is to be kept as `previous`

    def exist(self) -> bool:
        """Whether there is a checkpoint, damaged or not."""
        return self.last.exists() or self.previous.exists()

    def save(self, state: TrainState) -> None:
        """Write the state; what was the last regular checkpoint becomes the previous one."""
        if self._regular and self.last.exists():
            self.previous.unlink(missing_ok=True)
            try:
                os.link(self.last, self.previous)  # so that at no moment there is no `last`
            except OSError:  # a file system without hard links
                os.replace(self.last, self.previous)
        state.save(self.last, self.recipe)
        self._regular = state.step % self.every == 0

    def load(self, state: TrainState) -> None:
        """Restore the newest checkpoint that can be read.

        Raises:
            ModelIntegrityError: `E_CKPT_CORRUPT`: neither can be read.
            UsageError: `E_CONFIG_CHANGED`.
        """
        try:
            state.load(self.last, self.recipe)
        except ModelIntegrityError as error:
            if not self.previous.exists():
                raise
            try:
                state.load(self.previous, self.recipe)
            except ModelIntegrityError as second:
                raise ModelIntegrityError(
                    error.code,
                    error.stage,
                    f"No checkpoint can be read. {error.message} {second.message}",
                    f"Delete {LAST} and {PREVIOUS} to start from the beginning, or train into "
                    "another folder.",
                ) from None
            LOG.warning(
                "W_CKPT_PREVIOUS: %s Training goes on from %s, step %d.",
                error.message,
                PREVIOUS,
                state.step,
            )
            # The damaged one must never be kept as the one before the next.
            os.replace(self.previous, self.last)
        self._regular = state.step % self.every == 0

    def roll_back(self, state: TrainState) -> int | None:
        """Take weights and optimizer from the newest regular checkpoint; counters stay.

        Returns:
            The step of that checkpoint; None where there is none.
        """
        for path in (self.last, self.previous):
            try:
                step = int(read_tensors(path)[1]["step"])
            except ModelIntegrityError:
                continue
            if step % self.every == 0:
                state.load(path, self.recipe, counters=False)
                return step
        return None
