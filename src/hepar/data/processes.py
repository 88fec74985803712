"""Work in other processes that goes on when one of them is killed, and never hangs for it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from hepar.errors import ResourceExhausted

LOG = logging.getLogger(__name__)
ATTEMPTS = 3
_AHEAD = 4  # results a process may be ahead of their consumer, who need not hold all of them

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_processes(
    job: Callable[[Item], Result],
    items: Sequence[Item],
    processes: int,
    name: Callable[[Item], str],
) -> Iterator[Result]:
    """The results of a job, in the order of the items.

    A killed process (by the system when memory ends, mostly) takes the whole pool with it. What
    was not done is then started again: the item whose turn it is alone, three times at most, so
    that if it is the culprit it is named, and the rest in a new pool.

    Args:
        job: picklable, and a pure function of its item.
        items: picklable.
        processes: at a time; where none can be started the work is done in this one.
        name: of an item, for messages.

    Yields:
        One result an item.

    Raises:
        ResourceExhausted: `E_WORKER_DIED`: processes died of the named item.
    """
    place = 0
    while place < len(items):
        try:
            # Its locks live in shared memory, which may be missing or full.
            pool = ProcessPoolExecutor(min(processes, len(items) - place), get_context("spawn"))
        except OSError as error:
            LOG.warning("W_FEWER_WORKERS: no process can be started (%s)", error)
            yield from map(job, items[place:])
            return
        with pool:
            try:
                for result in _until_broken(pool, job, items[place:], _AHEAD * processes):
                    yield result
                    place += 1
            except _NoProcess as error:
                LOG.warning("W_FEWER_WORKERS: no process can be started (%s)", error)
                yield from map(job, items[place:])
                return
        if place < len(items):
            LOG.warning("W_WORKER_RESTARTED: a process died at or near %s", name(items[place]))
            yield _alone(job, items[place], name)
            place += 1


class _NoProcess(Exception):
    """The system starts no further process."""


def _submit(pool: ProcessPoolExecutor, job: Callable[[Item], Result], item: Item) -> Future[Result]:
    try:
        return pool.submit(job, item)
    except OSError as error:
        raise _NoProcess(str(error)) from error


def _until_broken(
    pool: ProcessPoolExecutor, job: Callable[[Item], Result], items: Sequence[Item], ahead: int
) -> Iterator[Result]:
    """Results in order, ending early where the pool broke."""
    waiting: deque[Future[Result]] = deque()
    upcoming = iter(items)
    try:
        while True:
            while len(waiting) < ahead and (item := next(upcoming, None)) is not None:
                waiting.append(_submit(pool, job, item))
            if not waiting:
                return
            yield waiting.popleft().result()
    except BrokenProcessPool:
        # A process that was being started when another died is not known to the pool as one to
        # end (CPython 3.11), and closing the pool would wait for it without end.
        for process in tuple((pool._processes or {}).values()):
            process.kill()
        return
    finally:
        for future in waiting:
            future.cancel()


def _alone(job: Callable[[Item], Result], item: Item, name: Callable[[Item], str]) -> Result:
    for attempt in range(1, ATTEMPTS + 1):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            try:
                return pool.submit(job, item).result()
            except BrokenProcessPool:
                LOG.warning("a process died of %s, %d of %d", name(item), attempt, ATTEMPTS)
    raise ResourceExhausted(
        "E_WORKER_DIED",
        "data",
        f"{ATTEMPTS} processes were killed one after the other while they made {name(item)}.",
        "Free memory, or use fewer processes; what is finished is kept.",
    )
