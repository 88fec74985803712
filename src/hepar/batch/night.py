"""`hepar batch`: every study of a folder or a cohort, whatever happens to some of them.

Each study runs in a worker process; this one hands them out, watches the clock and keeps the
ledger. Killed at any moment, the same command goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hepar.batch.crew import TIMEOUT_S, Crew, enter
from hepar.batch.job import Engine
from hepar.batch.ledger import Ledger
from hepar.batch.plan import check, plan
from hepar.batch.summary import document_of, write_summary
from hepar.errors import Interrupted, UsageError
from hepar.io.atomic import check_writable, one_process, sweep
from hepar.train.interrupt import StopRequest


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
        for job in todo.jobs:
            enter(job, ledger)
    try:
        jobs = {job.folder: job for job in todo.jobs}
        crew = Crew(ledger, jobs, engine, workers, timeout_s, progress)
        with StopRequest() as stop:
            try:
                while not stop() and ledger.waiting(jobs):
                    crew.step()
            finally:
                crew.end()
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
