"""A source of bright blobs that needs no phantom: enough to train a toy system on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import numpy as np

from hepar.data.sampling import Sample, ValidationCase
from hepar.systems.base import InputSpec


class BlobSource:
    """Bright disks in noise; optionally NaN images, or a SIGKILL, at some sample.

    Args:
        spec: 2D input.
        length: samples an epoch.
        bad: numbers of samples (over all epochs) whose image is NaN.
        kill_at: number of the sample at which the process kills itself.
    """

    def __init__(
        self,
        spec: InputSpec,
        *,
        length: int = 6,
        bad: frozenset[int] = frozenset(),
        kill_at: int | None = None,
    ) -> None:
        self.spec, self.length, self.bad, self.kill_at = spec, length, bad, kill_at
        self.target_classes = spec.tumor_classes

    def __len__(self) -> int:
        return self.length

    def sample(self, epoch: int, index: int) -> Sample:
        number = epoch * self.length + index
        if number == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._make([epoch, index], nan=number in self.bad)

    def validation(self) -> Iterator[ValidationCase]:
        yield ValidationCase("a", tuple(self._make([99, i]) for i in range(3)), 0.01)

    def _make(self, seed: list[int], *, nan: bool = False) -> Sample:
        rng = np.random.default_rng(seed)
        y, x = np.indices(self.spec.patch)
        center = rng.uniform(8, 24, 2)
        blob = (y - center[0]) ** 2 + (x - center[1]) ** 2 < 30
        p, c = len(self.spec.phases), self.spec.channels
        image = rng.uniform(0.2, 0.4, (p, c, *self.spec.patch)) + 0.5 * blob
        return Sample(
            image=np.full_like(image, np.nan if nan else 0.0, dtype=np.float32)
            + image.astype(np.float32),
            present=np.ones(p, bool),
            label=blob.astype(np.int64),
            liver=np.ones(self.spec.patch, bool),
        )
