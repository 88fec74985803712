"""The worker processes of a batch or a server: studies are handed out, the clock is watched."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from multiprocessing.connection import wait

from hepar.batch.job import Engine, Job, Outcome, failure, finished
from hepar.batch.ledger import Ledger, Row
from hepar.batch.workers import Worker
from hepar.errors import EXIT_INPUT_REFUSED, ResourceExhausted

LOG = logging.getLogger(__name__)
ATTEMPTS = 3
TIMEOUT_S = 3600.0
BEAT_S = 10.0
_POLL_S = 0.5


def enter(job: Job, ledger: Ledger) -> None:
    """Bring the ledger to what lies on the disk: a study is done, refused, or waits to be run."""
    row = ledger.row(job.folder)
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


class Crew:
    """Workers, and the studies that they do.

    Args:
        ledger: of this process.
        jobs: by folder; more may be added between steps.
        engine: how studies are segmented.
        workers: processes that segment at a time.
        timeout_s: seconds that one study may take.
        progress: told of each study that ends.
    """

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
        self.beaten = time.monotonic()

    @property
    def running(self) -> frozenset[str]:
        """Folders of the studies that a worker is at."""
        return frozenset(worker.job.folder for worker in self.workers if worker.job is not None)

    def step(self) -> None:
        """Hand out what waits, and hear what became of the rest, for half a second at most."""
        self._hand_out()
        self._listen()
        self._watch()
        if time.monotonic() - self.beaten > BEAT_S:
            self.ledger.beat()
            self.beaten = time.monotonic()

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
