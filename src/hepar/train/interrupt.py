"""SIGTERM and SIGINT while training: noted, and obeyed where a checkpoint can be written."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Within this block the first signal to stop is noted; a second one acts as it did before.

    Python lets only the main thread handle signals: elsewhere this does nothing, and whoever owns
    the process decides.

    Attributes:
        signum: the signal that came; None before one.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.signum is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for name in SIGNALS:
                # None stands for a handler that was not set from Python and cannot be set again.
                self._before[name] = signal.signal(name, self._note) or signal.SIG_DFL
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        self.signum = signum
        self._restore()

    def _restore(self) -> None:
        while self._before:
            name, handler = self._before.popitem()
            signal.signal(name, handler)
