"""`hepar batch`: every study of a folder or a cohort, whatever happens to some of them.

Each study runs in a worker process; this one hands them out, watches the clock and keeps the
ledger. Killed at any moment, the same command goes on where it was.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from hepar.batch.job import Engine, Job, Outcome, failure, finished
from hepar.batch.ledger import Ledger, Row
from hepar.batch.plan import Plan, check, plan
from hepar.batch.summary import document_of, write_summary
from hepar.batch.workers import Worker
from hepar.errors import EXIT_INPUT_REFUSED, Interrupted, ResourceExhausted, UsageError
from hepar.io.atomic import check_writable, one_process, sweep
from hepar.train.interrupt import StopRequest

LOG = logging.getLogger(__name__)
ATTEMPTS = 3
TIMEOUT_S = 3600.0
BEAT_S = 10.0
_POLL_S = 0.5


def run_batch(
    source: Path,
    out: Path,
    engine: Engine | None = None,
    *,
    workers: int = 1,
    num_parts: int = 1,
    part_id: int = 0,
    timeout_s: float = TIMEOUT_S,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Segment every study, each into a folder of its own in `out`.

    What is done is not done again: a result counts when it was made from the same files, settings
    and model and each of its files has the hash that it was left with. A study that was refused is
    not tried again either until one of these changes; any other failure is.

    Args:
        source: folder of studies, or a cohort; see `studies.find_studies`.
        out: folder of results, ledger and summary; several processes may share it.
        engine: how studies are segmented; by the shipped model by default.
        workers: processes that segment at a time.
        num_parts, part_id: do one part of the studies; see `plan.plan`.
        timeout_s: seconds that one study may take.
        progress: told of each study that ends.

    Returns:
        The content of `batch.json`.

    Raises:
        UsageError, InputRefused, ModelIntegrityError: nothing could be begun; as `plan.plan`.
        ResourceExhausted: `E_OUTPUT_WRITE`; `E_WORKER_DIED`, no worker can be started.
        Interrupted: by SIGTERM or SIGINT; the summary says what was done.
    """
    if workers < 1 or timeout_s <= 0:
        raise UsageError(
            "E_USAGE",
            "batch",
            f"{workers} workers and a timeout of {timeout_s:g} s.",
            "Ask for one worker or more, and for more than 0 s.",
        )
    engine = engine or Engine()
    check(source, out, engine, num_parts, part_id)
    check_writable(out)
    part = "" if num_parts == 1 else f"-{part_id}-of-{num_parts}"
    with one_process(out):  # processes that share a ledger see the same list
        ledger = Ledger(out / f"ledger{part}.sqlite")
        known = ledger.known()
        todo = plan(source, out, engine, num_parts=num_parts, part_id=part_id, known=known)
        _enter(todo, ledger)
    try:
        jobs = {job.folder: job for job in todo.jobs}
        night = _Night(ledger, jobs, engine, workers, timeout_s, progress)
        with StopRequest() as stop:
            try:
                night.run(stop)
            finally:
                night.end()
                sweep(out)
                document = document_of(todo, ledger.rows(), part)
                write_summary(out, document)
    finally:
        ledger.close()
    if stop.signum is not None:
        left, of = document["counts"]["open"], len(document["studies"])
        raise Interrupted(
            stop.signum,
            "batch",
            f"The batch was stopped; {left} of {of} studies are not finished.",
            "Run the same command again: it goes on with them.",
        )
    return document


def _enter(todo: Plan, ledger: Ledger) -> None:
    """Bring the ledger to what lies on the disk."""
    rows = ledger.rows()
    for job in todo.jobs:
        row = rows.get(job.folder)
        if (outcome := finished(job)) is not None:
            if row is None or not _agrees(row, job, outcome):
                ledger.record(job, outcome)
        elif row is None or not _is_refused(row, job):
            ledger.queue(job)


def _agrees(row: Row, job: Job, outcome: Outcome) -> bool:
    """Whether the ledger says what lies there; it knows the seconds too."""
    return row.state == "done" and row.key == job.key and row.outputs == outcome.outputs


def _is_refused(row: Row, job: Job) -> bool:
    """Whether a study failed for what it is, so that another attempt would fail too."""
    refused = row.state == "failed" and row.exit_code == EXIT_INPUT_REFUSED
    return refused and row.key == job.key


class _Night:
    """The studies of a batch that wait, and the workers that do them."""

    def __init__(
        self,
        ledger: Ledger,
        jobs: Mapping[str, Job],
        engine: Engine,
        workers: int,
        timeout_s: float,
        progress: Callable[[str], None],
    ) -> None:
        self.ledger, self.jobs, self.engine = ledger, jobs, engine
        self.most, self.timeout_s, self.progress = workers, timeout_s, progress
        self.threads = max(1, (os.cpu_count() or 1) // workers) if workers > 1 else None
        self.workers: list[Worker] = []
        self.deaths = Counter[str]()
        self.false_starts = 0

    def run(self, stop: Callable[[], bool]) -> None:
        """Until nothing waits, here or in another process."""
        beaten = time.monotonic()
        while not stop():
            self._hand_out()
            if not self.ledger.waiting(self.jobs):
                return
            self._listen()
            self._watch()
            if time.monotonic() - beaten > BEAT_S:
                self.ledger.beat()
                beaten = time.monotonic()

    def end(self) -> None:
        """Kill the workers; what they had not finished waits again."""
        for worker in self.workers:
            worker.end()
        self.workers.clear()
        self.ledger.release()

    def _hand_out(self) -> None:
        idle = [worker for worker in self.workers if worker.job is None]
        while idle or len(self.workers) < self.most:
            job = self.ledger.claim(self.jobs)
            if job is None:
                return
            if not idle:
                try:
                    self.workers.append(Worker(self.engine, self.threads))
                except OSError as error:
                    self._do_with_fewer(job, error)
                    return
                idle.append(self.workers[-1])
            idle.pop().give(job)

    def _do_with_fewer(self, job: Job, error: OSError) -> None:
        """No further process can be started."""
        self.ledger.release(job.folder)
        self.most = len(self.workers)
        if not self.most:
            raise ResourceExhausted(
                "E_WORKER_DIED",
                "batch",
                f"No process can be started: {error.strerror or error}.",
                "Free memory and processes, and run the command again.",
            ) from error
        LOG.warning("W_FEWER_WORKERS: %d processes, no more can be started", self.most)

    def _listen(self) -> None:
        by_connection = {worker.connection: worker for worker in self.workers}
        if not by_connection:
            time.sleep(_POLL_S)  # another process has the last studies
            return
        for connection in wait(list(by_connection), _POLL_S):
            worker = by_connection[connection]  # type: ignore[index]
            job = worker.job
            try:
                outcome = worker.hear()
            except EOFError:
                self._bury(worker)
                continue
            self.false_starts = 0
            if outcome is not None and job is not None:
                self._finish(job, outcome)
                if outcome.exit_code not in (0, EXIT_INPUT_REFUSED):
                    # Memory or a device that failed may stay so in that process.
                    self._dismiss(worker)

    def _watch(self) -> None:
        for worker in list(self.workers):
            job = worker.job
            if job is not None and worker.seconds() > self.timeout_s:
                self._dismiss(worker)
                error = ResourceExhausted(
                    "E_TIMEOUT",
                    "batch",
                    f"It took more than {self.timeout_s:g} s and was stopped.",
                    "Give it more with --timeout and run the command again.",
                )
                self._finish(job, failure(job.folder, error, worker.seconds()))

    def _dismiss(self, worker: Worker) -> None:
        worker.end()
        self.workers.remove(worker)

    def _bury(self, worker: Worker) -> None:
        """A worker died: its study is tried again, and named after three."""
        self.workers.remove(worker)
        job, ready, seconds = worker.job, worker.ready, worker.seconds()
        how = worker.mourn()
        if not ready:
            self.false_starts += 1
            if self.false_starts >= ATTEMPTS:
                raise ResourceExhausted(
                    "E_WORKER_DIED",
                    "batch",
                    f"{ATTEMPTS} processes died before they could begin; of the last, {how}.",
                    "Free memory, or use fewer --workers, and run the command again.",
                )
        if job is None:
            return
        self.deaths[job.folder] += ready
        if self.deaths[job.folder] < ATTEMPTS:
            self.ledger.release(job.folder)
            return
        error = ResourceExhausted(
            "E_WORKER_DIED",
            "batch",
            f"{ATTEMPTS} processes died of it; of the last, {how}.",
            "SIGKILL is mostly the end of memory: use fewer --workers. Else look at its files with "
            "hepar inspect. Run the command again for another attempt.",
        )
        self._finish(job, failure(job.folder, error, seconds))

    def _finish(self, job: Job, outcome: Outcome) -> None:
        self.ledger.finish(outcome)
        left = self.ledger.waiting(self.jobs)
        said = outcome.code or f"{outcome.lesions} lesion(s)"
        took = "" if outcome.seconds is None else f" in {outcome.seconds:.1f} s"
        self.progress(f"{job.name}: {outcome.state}, {said}{took}; {left} to go")
