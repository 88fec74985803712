"""From samples to training batches: the protocol every data source obeys, and the loader.

A source is a pure function of (seed, epoch, index): it holds no position and no generator. Hence
resuming at a step, any number of workers and any prefetching depth give the same batches.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from hepar.errors import HeparError, ResourceExhausted
from hepar.systems.base import Batch

LOG = logging.getLogger(__name__)
ATTEMPTS = 3
_POLL_S = 0.2


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
        instances: of a typed system the number of the lesion that a voxel belongs to; 0 for none,
            and where the label is ignored. None of other systems.
    """

    image: Float32[np.ndarray, "p c *spatial"]
    present: Bool[np.ndarray, " p"]
    label: Int64[np.ndarray, "*spatial"]
    liver: Bool[np.ndarray, "*spatial"]
    visible: Bool[np.ndarray, "c *spatial"] | None = None
    instances: Int64[np.ndarray, "*spatial"] | None = None


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
        target_classes: the classes of the system that count as one, whose Dice decides which
            checkpoint is best.
    """

    target_classes: tuple[int, ...]

    def __len__(self) -> int:
        """Samples in an epoch."""
        ...

    def sample(self, epoch: int, index: int) -> Sample:
        """The sample of (seed, epoch, index), the same at every call."""
        ...

    def validation(self) -> Iterable[ValidationCase]:
        """The held-out cases, in a fixed order; may be called many times."""
        ...


@runtime_checkable
class KnowsItsCases(Protocol):
    """What a source may offer beside: names for messages, and a hash of what it draws from."""

    def case_of(self, epoch: int, index: int) -> str:
        """Name of the case that a sample is drawn from."""
        ...

    def fingerprint(self) -> str:
        """Hash of everything outside the recipe that decides the samples: files and their cases."""
        ...


def fingerprint(source: SampleSource) -> str:
    """A hash of what a source draws from; of its size alone where it says no more."""
    if isinstance(source, KnowsItsCases):
        return source.fingerprint()
    return hashlib.sha256(f"{len(source)} samples".encode()).hexdigest()


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
        instances=_stacked([s.instances for s in samples]),
    )
    return batch, _stacked([s.visible for s in samples])


def _stacked(parts: Sequence[np.ndarray | None]) -> Tensor | None:
    """What every sample has, as one tensor; None where one of them lacks it."""
    there = [part for part in parts if part is not None]
    return torch.from_numpy(np.stack(there)) if len(there) == len(parts) else None


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
    stopped: Callable[[], bool] = lambda: False,
) -> Generator[Batch, None, None]:
    """Yield the batches of steps `start` to `stop`, in order.

    Args:
        source: where samples come from.
        batch_size: samples a step.
        start: first step.
        stop: one past the last step.
        finish: transfer to the device, augmentation and masking; runs beside the sampling.
        workers: threads that prepare batches ahead of the consumer; 0 prepares them in line.
            Painting and filtering release the interpreter lock, so that threads overlap the step.
            At most as many as there are processors; fewer where the system refuses to start them.
        stopped: asked while waiting; once it says yes the stream ends early.

    Raises:
        ResourceExhausted: `E_WORKER_DIED`, naming the case: its sample could not be prepared.
    """

    def build(step: int) -> Batch:
        where = positions(len(source), batch_size, step)
        return finish(*collate(_sample(source, epoch, index) for epoch, index in where), where)

    steps = range(start, stop)
    pool, workers = _pool(min(workers, os.cpu_count() or 1, len(steps)))
    if pool is None:
        for step in steps:
            if stopped():
                return
            yield build(step)
        return
    pending: deque[Future[Batch]] = deque()
    with contextlib.ExitStack() as stack:
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        for step in (*steps, *[None] * 2 * workers):
            if step is not None:
                pending.append(pool.submit(build, step))
            if pending and (step is None or len(pending) > 2 * workers):
                batch = _wait(pending.popleft(), stopped)
                if batch is None:
                    return
                yield batch


def _sample(source: SampleSource, epoch: int, index: int) -> Sample:
    """A sample; what the machine could not give is asked for again before it is an error."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return source.sample(epoch, index)
        except HeparError:
            raise  # it already says what is wrong and where
        except Exception as error:
            passing = isinstance(error, OSError | MemoryError) and attempt < ATTEMPTS
            name = f"sample {index} of epoch {epoch}"
            if isinstance(source, KnowsItsCases):
                name = f"{source.case_of(epoch, index)} ({name})"
            LOG.debug("%s", name, exc_info=True)
            if not passing:
                raise ResourceExhausted(
                    "E_WORKER_DIED",
                    "train",
                    f"{name} could not be prepared: {type(error).__name__}: {error}",
                    "Check the case's files, or leave it out; training then goes on from its last "
                    "checkpoint.",
                ) from error
            LOG.warning("%s could not be prepared and is tried again: %s", name, error)
    raise AssertionError("unreachable")


def _pool(workers: int) -> tuple[ThreadPoolExecutor | None, int]:
    """A pool with all its threads started, as many of them as the system allows."""
    while workers > 0:
        pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="hepar-data")
        # Each job holds its thread until the last has one; else one thread would take them all.
        go, started = threading.Event(), 0
        try:
            for _ in range(workers):
                pool.submit(go.wait)
                started += 1
        except RuntimeError as error:
            LOG.warning("W_FEWER_WORKERS: %s; %d of %d started", error, started, workers)
        go.set()
        if started == workers:
            return pool, workers
        pool.shutdown(wait=True, cancel_futures=True)
        workers = started
    return None, 0


def _wait(future: Future[Batch], stopped: Callable[[], bool]) -> Batch | None:
    """The batch, or None when a stop was asked for before it came."""
    while not wait([future], timeout=_POLL_S).done:
        if stopped():
            return None
    return future.result()
