"""From samples to training batches: the protocol every data source obeys, and the loader.

A source is a pure function of (seed, epoch, index): it holds no position and no generator. Hence
resuming at a step, any number of workers and any prefetching depth give the same batches.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from hepar.systems.base import Batch


@dataclass(frozen=True)
class Sample:
    """One training patch or one piece of a validation case.

    Attributes:
        image: windowed to [0, 1] by the `InputSpec`; not yet masked by `visible` (that happens
            after augmentation), so that a shifted phase brings real neighbors in. Absent
            phases hold zeros.
        present: which phases exist; at least one.
        label: index into `InputSpec.class_names`; -1 is ignored by losses and scores.
        liver: voxels that count as liver, as a liver stage would have predicted them.
        visible: where each channel shows the image (context slices have their own liver);
            None when nothing is masked.
    """

    image: Float32[np.ndarray, "p c *spatial"]
    present: Bool[np.ndarray, " p"]
    label: Int64[np.ndarray, "*spatial"]
    liver: Bool[np.ndarray, "*spatial"]
    visible: Bool[np.ndarray, "c *spatial"] | None = None


@dataclass(frozen=True)
class ValidationCase:
    """A held-out patient cut into pieces that together cover it once.

    Attributes:
        case_id: name in logs.
        pieces: slices (2D) or blocks (3D) of one shape, never overlapping in what they score:
            voxels that belong to another piece or to padding carry label -1.
        voxel_ml: volume of one voxel.
    """

    case_id: str
    pieces: tuple[Sample, ...]
    voxel_ml: float


@runtime_checkable
class SampleSource(Protocol):
    """Where samples come from. Must be safe to call from several threads.

    Attributes:
        target_class: the class name whose Dice decides which checkpoint is best.
    """

    target_class: str

    def __len__(self) -> int:
        """Samples in an epoch."""
        ...

    def sample(self, epoch: int, index: int) -> Sample:
        """The sample of (seed, epoch, index), the same at every call."""
        ...

    def validation(self) -> Iterable[ValidationCase]:
        """The held-out cases, in a fixed order; may be called many times."""
        ...


def collate(samples: Iterable[Sample]) -> tuple[Batch, Bool[Tensor, "b c *spatial"] | None]:
    """Stack samples of one shape into CPU tensors: a batch, and where its channels are visible.

    Absent phases are set to zero here, whatever the source left in them.
    """
    samples = tuple(samples)
    image = torch.from_numpy(np.stack([s.image for s in samples]).astype(np.float32, copy=False))
    present = torch.from_numpy(np.stack([s.present for s in samples]))
    absent = ~present.reshape(*present.shape, *([1] * (image.ndim - 2)))
    batch = Batch(
        image=image.masked_fill_(absent, 0.0),
        present=present,
        label=torch.from_numpy(np.stack([s.label for s in samples]).astype(np.int64, copy=False)),
        liver=torch.from_numpy(np.stack([s.liver for s in samples]).astype(bool, copy=False)),
    )
    masks = [s.visible for s in samples if s.visible is not None]
    return batch, torch.from_numpy(np.stack(masks)) if len(masks) == len(samples) else None


def positions(length: int, batch_size: int, step: int) -> list[tuple[int, int]]:
    """The (epoch, index) pairs of a step; epochs follow one another without a remainder."""
    numbers = range(step * batch_size, (step + 1) * batch_size)
    return [divmod(number, length) for number in numbers]


Finish = Callable[[Batch, Tensor | None, list[tuple[int, int]]], Batch]


def batches(
    source: SampleSource,
    *,
    batch_size: int,
    start: int,
    stop: int,
    finish: Finish,
    workers: int = 1,
) -> Iterator[Batch]:
    """Yield the batches of steps `start` to `stop`, in order.

    Args:
        source: where samples come from.
        batch_size: samples a step.
        start: first step.
        stop: one past the last step.
        finish: transfer to the device, augmentation and masking; runs beside the sampling.
        workers: threads that prepare batches ahead of the consumer; 0 prepares them in line.
            Painting and filtering release the interpreter lock, so that threads overlap the step.
    """

    def build(step: int) -> Batch:
        where = positions(len(source), batch_size, step)
        return finish(*collate(source.sample(epoch, index) for epoch, index in where), where)

    if workers == 0:
        yield from map(build, range(start, stop))
        return
    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="hepar-data")
    pending: deque[Future[Batch]] = deque()
    with contextlib.ExitStack() as stack:
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        for step in range(start, stop):
            pending.append(pool.submit(build, step))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
