"""A batch with poisoned studies that is killed again and again, and what it left."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from batch_engine import command, started, write_studies
from hepar.batch.job import RECORD

TIMEOUT_S = 10
# What poisoned studies do, and the code that each gets.
POISON = {
    "refuse": "E_NO_LIVER",
    "refuse the command": "E_DICOM_SOURCE",
    "refuse in no words": "E_MALFORMED",
    "segfault": "E_WORKER_DIED",
    "abort": "E_WORKER_DIED",
    "exit": "E_WORKER_DIED",
    "leave": "E_WORKER_DIED",
    "interrupt": "E_WORKER_DIED",
    "kill": "E_WORKER_DIED",
    "hang": "E_TIMEOUT",
    "stop": "E_TIMEOUT",
    "orphan": "E_TIMEOUT",
    "bug": "E_INTERNAL",
    "recursion": "E_INTERNAL",
    "chatter": "E_INTERNAL",
    "in the way": "E_INTERNAL",
    "vanish": "E_INTERNAL",
    "full disk": "E_OUTPUT_WRITE",
    "memory": "E_MEMORY",
    "too large": "E_MEMORY",
}


@dataclass(frozen=True)
class Scale:
    """What a night is made of.

    Attributes:
        names: of the studies.
        poison: what each poisoned one does.
        once: what others do the first time.
        kills: SIGKILLs at random moments, of the command or one of its workers.
    """

    names: tuple[str, ...]
    poison: Mapping[str, str]
    once: Mapping[str, str] = field(default_factory=dict)
    kills: int = 0

    @property
    def sound(self) -> set[str]:
        """Studies that can be segmented."""
        return set(self.names) - set(self.poison)

    def of(self, order: str) -> str:
        """The study that does this."""
        return next(name for name, own in self.poison.items() if own == order)


SHORT = Scale(
    tuple(f"study {number:03d}" for number in range(50)),
    {
        f"study {5 + 10 * k:03d}": order
        for k, order in enumerate(("refuse", "segfault", "hang", "exit", "bug"))
    },
    {"study 010": "kill", "study 020": "kill parent", "study 036": "kill"},
)
WHOLE = Scale(
    tuple(f"study {number:03d}" for number in range(200)),
    {f"study {4 + 10 * k:03d}": order for k, order in enumerate(POISON)},
    kills=10,
)


@dataclass(frozen=True)
class Night:
    """A batch that was killed and begun again until it ended by itself.

    Attributes:
        scale: what it was made of.
        source, out, notes: its folders.
        codes: exit codes of its commands; all but the last were killed.
        before: at each kill, the file number and time of each record, and how many studies had
            been begun.
        document: what the last command said.
    """

    scale: Scale
    source: Path
    out: Path
    notes: Path
    codes: tuple[int, ...]
    before: tuple[tuple[dict[str, tuple[int, int]], int], ...]
    document: dict


def records(out: Path) -> dict[str, tuple[int, int]]:
    """File number and time of the record of each result."""
    found = {p.parent.name: p.stat() for p in out.glob(f"[!.]*/{RECORD}")}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in found.items()}


def run_night(folder: Path, scale: Scale, seed: int = 0) -> Night:
    """Run a night in a folder."""
    orders = {name: f"once {order}" for name, order in scale.once.items()}
    written = dict.fromkeys(scale.names, "") | dict(scale.poison) | orders
    source = write_studies(folder / "in", written)
    out, notes = folder / "out", folder / "notes"
    asked = (source, out, notes, "--workers", 2, "--timeout", TIMEOUT_S)
    draw = random.Random(seed)
    codes: list[int] = []
    before = []
    running = command(*asked)
    moments = sorted(draw.sample(range(2, len(scale.names) - 2), scale.kills))
    while True:
        if moments and running.poll() is None:
            if len(started(notes)) < moments[0]:
                time.sleep(0.02)
                continue
            moments.pop(0)
            time.sleep(draw.uniform(0, 0.3))
            victim = draw.choice([running.pid, draw.choice([running.pid, *_children(running.pid)])])
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
            if victim != running.pid:
                before.append((records(out), len(started(notes))))
                continue
        said, complaint = running.communicate()
        codes.append(running.returncode)
        if running.returncode != -signal.SIGKILL:
            break
        before.append((records(out), len(started(notes))))
        running = command(*asked)
    assert said, complaint  # it ended by itself and told what became of every study
    return Night(scale, source, out, notes, tuple(codes), tuple(before), json.loads(said))


def _children(pid: int) -> list[int]:
    """Processes that a process started."""
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
