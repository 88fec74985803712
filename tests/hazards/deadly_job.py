"""A job for other processes that kills its own; imports nothing, so that they start fast."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def double(folder: Path, deaths: int, culprit: int, number: int) -> int:
    """Twice the number; the process of one number is killed the first few times."""
    if number == culprit and len(list(folder.iterdir())) < deaths:
        (folder / f"{time.monotonic_ns()}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number
