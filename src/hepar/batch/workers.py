"""A process that segments one study after another, and may die of any of them.

It is a process group of its own, so that what it starts ends with it; and it ends when the process
that started it does, whatever ended that one.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait

from hepar.batch.job import Engine, Job, Outcome, loaded, run_study

_READY = "ready"
_LAST_WORDS_S = 5.0
_THREADS = ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")


class Worker:
    """A worker process, seen from the process that started it.

    Args:
        engine: loaded before the first study.
        threads: for its computations, where the environment does not say; None for all there are.

    Attributes:
        job: that it works at.
        since: when it began to, or to load its engine; `time.monotonic`.
        ready: whether its engine is loaded.
        connection: readable when there is something to `hear`, its death too.
    """

    def __init__(self, engine: Engine, threads: int | None = None) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.job: Job | None = None
        self.ready = False
        self.since = time.monotonic()
        self._process = context.Process(target=_serve, args=(theirs, engine, threads))
        self._process.start()
        theirs.close()

    def give(self, job: Job) -> None:
        """A study to segment; a worker that died meanwhile will be heard of."""
        self.job, self.since = job, time.monotonic()
        with suppress(OSError):
            self.connection.send(job)

    def hear(self) -> Outcome | None:
        """What became of its study, which is no longer its own; None where it only became ready.

        Raises:
            EOFError: the process died.
        """
        try:
            told = self.connection.recv()
        except Exception as error:  # half a message of a dying process can be anything
            raise EOFError from error
        if told == _READY:
            self.ready, self.since = True, time.monotonic()
            return None
        assert isinstance(told, Outcome)
        self.job = None
        return told

    def seconds(self) -> float:
        """How long it has been at its study, or at loading its engine."""
        return time.monotonic() - self.since

    def end(self, patience_s: float = 0.0) -> str:
        """Kill it and all that it started; how it ended, in words.

        Args:
            patience_s: time to end by itself.
        """
        self._process.join(patience_s)
        code = self._process.exitcode
        pid = self._process.pid
        if pid is not None and hasattr(os, "killpg"):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()
        self.connection.close()
        if code is None:
            return "it was killed by hepar"
        if code < 0:
            return f"it was killed by {signal.Signals(-code).name}"
        return f"it ended with exit code {code}"

    def mourn(self) -> str:
        """How a worker that `hear` found dead ended, in words."""
        return self.end(_LAST_WORDS_S)


def _serve(connection: Connection, engine: Engine, threads: int | None) -> None:
    with suppress(AttributeError, OSError):  # not POSIX
        os.setpgid(0, 0)
    for signum in (signal.SIGINT, signal.SIGTERM):  # to a whole job: its parent decides
        signal.signal(signum, signal.SIG_IGN)
    os.dup2(2, 1)  # the parent's stdout is one JSON document
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for name in _THREADS if threads else ():
        os.environ.setdefault(name, str(threads))
    loaded(engine)
    connection.send(_READY)
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        connection.send(run_study(job))


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
    if hasattr(os, "getpgrp") and os.getpgrp() == os.getpid():  # not the group of a shell
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
