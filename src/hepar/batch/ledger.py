"""The ledger of a batch: what became of each study, and which process works at it.

SQLite in WAL mode: whatever is killed, it holds the last state that was written. It says who does
what; whether a result is there is told by the result itself (`job.finished`), so that a ledger that
was lost or damaged costs nothing but the memory of failures.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hepar.batch.job import Job, Key, Outcome
from hepar.batch.studies import Known
from hepar.errors import ResourceExhausted

LOG = logging.getLogger(__name__)
# A process of another machine that has not been heard of for so long is dead. One of this machine
# is dead when it is gone.
SILENCE_S = 300.0
_BUSY_S = 60.0
_COLUMNS = {
    "folder": "TEXT PRIMARY KEY",
    "name": "TEXT",
    "origin": "TEXT",
    "inputs": "TEXT",
    "settings": "TEXT",
    "model": "TEXT",
    "state": "TEXT",
    "attempts": "INTEGER",
    "owner": "TEXT",
    "heartbeat": "REAL",
    "seconds": "REAL",
    "code": "TEXT",
    "message": "TEXT",
    "remedy": "TEXT",
    "exit_code": "INTEGER",
    "lesions": "INTEGER",
    "burden": "REAL",
    "outputs": "TEXT",
}
_UNFINISHED = "SELECT {} FROM study WHERE state IN ('queued', 'running') ORDER BY rowid"
State = Literal["queued", "running", "done", "failed"]


@dataclass(frozen=True)
class Row:
    """A study in the ledger; columns as in `Outcome`, and:

    Attributes:
        key: inputs, settings and model, as in `Key`.
        state: `queued`, `running`, `done` or `failed`.
        attempts: how often it was begun.
        owner: of the lease, while it is running.
        heartbeat: of the owner, seconds since the epoch.
    """

    folder: str
    name: str
    origin: str
    key: Key
    state: State
    attempts: int
    owner: str | None
    heartbeat: float | None
    seconds: float | None
    code: str | None
    message: str | None
    remedy: str | None
    exit_code: int
    lesions: int | None
    burden: float | None
    outputs: Mapping[str, str]


class Ledger:
    """An open ledger.

    Args:
        path: of the file; made if absent. One that is damaged is set aside, with a warning.
        owner: name of this process, as leases carry it; `owner_name` by default.

    Raises:
        ResourceExhausted: `E_OUTPUT_WRITE`, now or later: it cannot be read or written.
    """

    def __init__(self, path: Path, owner: str | None = None) -> None:
        self.owner = owner or owner_name()
        try:
            self._base = _opened(path)
        except sqlite3.OperationalError as error:  # locked, read-only, no space
            raise _unusable(error) from error

    def close(self) -> None:
        """Close the file."""
        self._base.close()

    def rows(self) -> dict[str, Row]:
        """Every study by its folder."""
        return {row.folder: row for row in map(_row, self._base.execute("SELECT * FROM study"))}

    def row(self, folder: str) -> Row | None:
        """One study; None where it is not known."""
        return self._one(folder)

    def known(self) -> dict[str, Known]:
        """Whom each folder belongs to."""
        return {f: Known(row.origin, row.name, row.key.inputs) for f, row in self.rows().items()}

    def queue(self, job: Job) -> None:
        """A study is to be run, unless a living process runs it for the same key already."""
        with self._change():
            row = self._one(job.folder)
            if row is None or row.key != job.key or not self._is_leased(row):
                again = row is not None and row.key == job.key
                self._write(job, "queued", row.attempts if again and row else 0)

    def record(self, job: Job, outcome: Outcome) -> None:
        """A study is done, or failed, without having been run by anyone now."""
        with self._change():
            row = self._one(job.folder)
            if row is None or not self._is_leased(row):
                self._write(job, outcome.state, row.attempts if row else 0, outcome)

    def claim(self, jobs: Mapping[str, Job]) -> Job | None:
        """Lease one of these studies that waits, or whose process died; None where there is none.

        Args:
            jobs: by folder; the first that can be had is taken.
        """
        with self._change():
            for found in self._base.execute(_UNFINISHED.format("*")):
                row = _row(found)
                job = jobs.get(row.folder)
                if job is not None and job.key == row.key and not self._is_leased(row):
                    self._set(
                        row.folder,
                        state="running",
                        attempts=row.attempts + 1,
                        owner=self.owner,
                        heartbeat=time.time(),
                    )
                    return job
        return None

    def waiting(self, jobs: Mapping[str, Job]) -> int:
        """How many of these studies are not finished, whoever works at them."""
        found = self._base.execute(_UNFINISHED.format("folder, inputs, settings, model"))
        keys = ((jobs[folder].key, Key(*key)) for folder, *key in found if folder in jobs)
        return sum(mine == key for mine, key in keys)

    def beat(self) -> None:
        """Tell that this process lives."""
        with self._change():
            self._base.execute(
                "UPDATE study SET heartbeat = ? WHERE owner = ? AND state = 'running'",
                (time.time(), self.owner),
            )

    def finish(self, outcome: Outcome) -> None:
        """Write down what became of a study that this process leased."""
        with self._change():
            row = self._one(outcome.folder)
            if row is not None and row.owner == self.owner:
                self._set(outcome.folder, owner=None, heartbeat=None, **_columns(outcome))

    def release(self, folder: str | None = None) -> None:
        """Give one lease of this process back, or all of them: the studies wait again."""
        with self._change():
            self._base.execute(
                "UPDATE study SET state = 'queued', owner = NULL, heartbeat = NULL"
                " WHERE owner = ? AND state = 'running' AND (? IS NULL OR folder = ?)",
                (self.owner, folder, folder),
            )

    def forget(self, folder: str) -> None:
        """A study is no longer known."""
        with self._change():
            self._base.execute("DELETE FROM study WHERE folder = ?", (folder,))

    @contextmanager
    def _change(self) -> Iterator[None]:
        try:
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._base.execute("ROLLBACK")
                raise
            self._base.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise _unusable(error) from error

    def _one(self, folder: str) -> Row | None:
        found = self._base.execute("SELECT * FROM study WHERE folder = ?", (folder,)).fetchone()
        return None if found is None else _row(found)

    def _is_leased(self, row: Row) -> bool:
        return row.state == "running" and not is_lost(row.owner, row.heartbeat)

    def _write(self, job: Job, state: State, attempts: int, outcome: Outcome | None = None) -> None:
        self._base.execute("DELETE FROM study WHERE folder = ?", (job.folder,))
        values: dict[str, Any] = {
            "folder": job.folder,
            "name": job.name,
            "origin": job.origin,
            **vars(job.key),
            "state": state,
            "attempts": attempts,
            "exit_code": 0,
            "outputs": "{}",
            **(_columns(outcome) if outcome else {}),
        }
        marks = ", ".join("?" * len(values))
        self._base.execute(
            f"INSERT INTO study ({', '.join(values)}) VALUES ({marks})", tuple(values.values())
        )

    def _set(self, folder: str, **values: Any) -> None:
        pairs = ", ".join(f"{name} = ?" for name in values)
        self._base.execute(f"UPDATE study SET {pairs} WHERE folder = ?", (*values.values(), folder))


def owner_name() -> str:
    """This process, such that no other one, before or after, has the same name."""
    return f"{_machine()}:{os.getpid()}:{_begun(os.getpid())}"


def is_lost(owner: str | None, heartbeat: float | None) -> bool:
    """Whether the process that holds a lease is dead.

    Args:
        owner: as `owner_name` gave it.
        heartbeat: when it was last heard of, seconds since the epoch.
    """
    if owner is None or heartbeat is None:
        return True
    machine, pid, begun = owner.split(":")
    if machine == _machine():
        return _begun(int(pid)) != begun
    return time.time() - heartbeat > SILENCE_S


def _machine() -> str:
    """This machine since it was started, and the space that process ids are counted in."""
    said = [socket.gethostname()]
    with suppress(OSError):
        said.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        said.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\0".join(said).encode()).hexdigest()[:16]


def _begun(pid: int) -> str:
    """When a process began, in ticks since the machine did; `alive` where only that is known."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return "gone"
        with suppress(PermissionError):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return "gone"
        return "alive"
    # After the name, which may hold anything, the state is the first field, the start the 20th.
    fields = status.rpartition(")")[2].split()
    return "gone" if fields[0] in "ZX" else fields[19]


def _unusable(error: sqlite3.Error) -> ResourceExhausted:
    return ResourceExhausted(
        "E_OUTPUT_WRITE",
        "batch",
        f"The ledger of the batch cannot be used: {error}.",
        "Check that the folder may be written to and that the disk has room.",
    )


def _opened(path: Path) -> sqlite3.Connection:
    try:
        return _connected(path)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:  # no database, or a damaged one
        LOG.warning("W_LEDGER_REBUILT: %s is damaged (%s) and is made anew", path.name, error)
        for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
            with suppress(FileNotFoundError):
                path.with_name(name).replace(path.with_name(f"{name}.damaged"))
        return _connected(path)


def _connected(path: Path) -> sqlite3.Connection:
    base = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
    try:
        base.row_factory = sqlite3.Row
        with suppress(sqlite3.OperationalError):  # a file system without shared memory
            base.execute("PRAGMA journal_mode = WAL")
        base.execute("PRAGMA synchronous = NORMAL")
        columns = ", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())
        base.execute(f"CREATE TABLE IF NOT EXISTS study ({columns})")
        found = [row["name"] for row in base.execute("PRAGMA table_info(study)")]
        healthy = base.execute("PRAGMA quick_check").fetchone()[0]
        if found != list(_COLUMNS) or healthy != "ok":
            raise sqlite3.DatabaseError(f"its table is not ours, or {healthy}")
    except BaseException:
        base.close()
        raise
    return base


def _columns(outcome: Outcome) -> dict[str, Any]:
    return {
        "state": outcome.state,
        "seconds": outcome.seconds,
        "code": outcome.code,
        "message": outcome.message,
        "remedy": outcome.remedy,
        "exit_code": outcome.exit_code,
        "lesions": outcome.lesions,
        "burden": outcome.burden,
        "outputs": json.dumps(dict(outcome.outputs)),
    }


def _row(found: sqlite3.Row) -> Row:
    values = dict(found)
    key = Key(values.pop("inputs"), values.pop("settings"), values.pop("model"))
    return Row(key=key, **{**values, "outputs": json.loads(values["outputs"])})
