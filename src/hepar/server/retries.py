"""Work with other machines, which may be down: tried again, later each time, and never our end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hepar.errors import HeparError

LOG = logging.getLogger(__name__)
_MOST_S = 600.0
_PATIENCE_S = 5.0


class PeerFailed(Exception):
    """Another machine did not do what it was asked for.

    Args:
        message: what happened, without a name, an id or a UID.
        down: whether it would fail at anything else too.
    """

    def __init__(self, message: str, *, down: bool = False) -> None:
        super().__init__(message)
        self.down = down


class Retries:
    """When what failed is tried again: each time after twice the pause, ten minutes at most.

    Args:
        first_s: pause after the first failure, seconds.
    """

    def __init__(self, first_s: float) -> None:
        self._first_s = first_s
        self._failed: dict[str, tuple[float, float]] = {}

    def due(self, key: str) -> bool:
        """Whether it is time to try."""
        return time.monotonic() >= self._failed.get(key, (0.0, 0.0))[1]

    def failed(self, key: str) -> float:
        """It failed; the pause until the next attempt, seconds."""
        before = self._failed.get(key, (0.0, 0.0))[0]
        pause = min(2 * before or self._first_s, _MOST_S)
        self._failed[key] = pause, time.monotonic() + pause
        return pause

    def succeeded(self, key: str) -> None:
        """It need not be tried again."""
        self._failed.pop(key, None)


@contextmanager
def repeated(step: Callable[[], None], every_s: float, code: str) -> Iterator[None]:
    """Do something over and over in a thread of its own while the body runs.

    Whatever it raises is one line of the log, and the next attempt comes later.

    Args:
        step: what to do.
        every_s: pause between, seconds.
        code: of the warning.
    """
    ended = threading.Event()
    retries = Retries(every_s)

    def work() -> None:
        pause = 0.0
        while not ended.wait(pause):
            try:
                step()
            except Exception as error:
                pause = retries.failed(code)
                LOG.warning("%s: %s; again in %.3g s", code, _said(error), pause)
            else:
                pause = every_s
                retries.succeeded(code)

    thread = threading.Thread(target=work, name=code, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_PATIENCE_S)


def _said(error: Exception) -> str:
    """What may be told of an error: that of a library might quote a patient's data."""
    if isinstance(error, PeerFailed | HeparError):
        return str(error)
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__  # without the path
    return f"{type(error).__name__}, which is a bug of hepar"
