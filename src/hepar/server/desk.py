"""The desk of a server: what is complete is done once, and anyone may ask what became of it.

    uploads/ID/            a study that a person uploaded, in one file
    results/ID/            what was found, as `hepar batch` leaves it
    ledger.sqlite          who does what, as that of a batch

All of it is told from what lies on the disk, so that a server that was killed goes on where it was.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hepar.batch.crew import Crew, enter
from hepar.batch.job import Engine, Job, Key, loaded
from hepar.batch.ledger import Ledger, Row
from hepar.batch.studies import Entry, listing_sha256
from hepar.io.atomic import sweep
from hepar.render.viewer import SCRIPTS
from hepar.server.settings import Settings
from hepar.server.spool import Spool, sync_folder

State = Literal["arriving", "incomplete", "queued", "running", "done", "failed"]
Delivered = Literal["none", "waiting", "sent", "failed"]
_Delivery = tuple[float | None, Delivered, str | None]
_UNSAID: _Delivery = (None, "none", None)
_OWNER = "owner"
_STUDY = "study"
_LEAVES = "leaves"
_SWEEP_S = 3600.0
_DAY_S = 86400.0


@dataclass(frozen=True)
class Case:
    """A study that the server knows of.

    Attributes:
        id: names it in addresses and on the disk.
        door: where it came in: `dicom`, from a node or an archive, or `upload`.
        state: `arriving`, not yet complete; `incomplete`, its sender broke off; `queued`,
            `running`; `done`, with results; `failed`, with a code.
        changed: when it came, or its last image did; seconds since the epoch.
        owner: who uploaded it; None for a study that came in by DICOM, which is everyone's.
        code, message, remedy: of the refusal, where it failed.
        lesions: how many were found.
        burden: tumor volume / liver volume.
        seconds: it took.
        delivered: whether its SEG and SR are at their receiver: `none`, there is nothing to
            deliver; `waiting`; `sent`; `failed`, and tried again later.
        delivery: what went wrong there, in words.
        files: of its results, relative to their folder.
    """

    id: str
    door: Literal["dicom", "upload"]
    state: State
    changed: float
    owner: str | None = None
    code: str | None = None
    message: str | None = None
    remedy: str | None = None
    lesions: int | None = None
    burden: float | None = None
    seconds: float | None = None
    delivered: Delivered = "none"
    delivery: str | None = None
    files: tuple[str, ...] = ()


class Desk:
    """The studies of a server. `step` is for one thread; any may ask, `accept` and `dismiss`.

    Args:
        folder: of the server.
        spool: of the same folder.
        settings: of the server.
        engine: how studies are segmented, but for what `settings` say. SEG, SR and the viewer are
            made wherever they can be.
        progress: told of each study that ends.
    """

    def __init__(
        self,
        folder: Path,
        spool: Spool,
        settings: Settings,
        engine: Engine,
        progress: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.results, self.uploads = folder / "results", folder / "uploads"
        for place in (self.results, self.uploads):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.spool, self.settings = spool, settings
        self._engine = replace(
            engine,
            captures=settings.captures,
            probabilities=settings.probabilities,
            interpolate_gaps=settings.interpolate_gaps,
            dicom=None,  # where a study's headers allow it
            viewer=SCRIPTS[0].is_file(),
        )
        self.model_sha256 = loaded(self._engine).model_sha256
        self._ledger = Ledger(folder / "ledger.sqlite")
        self._jobs: dict[str, Job] = {}
        self._entered: dict[str, float] = {}
        self._cases: Mapping[str, Case] = {}
        self._deliveries: dict[str, _Delivery] = {}
        self._swept = -_SWEEP_S
        self._crew = Crew(
            self._ledger,
            self._jobs,
            self._engine,
            settings.workers,
            settings.timeout_s,
            progress,
        )

    def step(self) -> None:
        """Look what came, hand it out, hear what became of the rest: half a second at most."""
        self._look()
        self._crew.step()
        self._tell()
        if time.monotonic() - self._swept > _SWEEP_S:
            self._swept = time.monotonic()
            self._tidy()

    def end(self) -> None:
        """Stop the workers; what they had not finished waits for the next start."""
        self._crew.end()
        sweep(self.results)
        self._ledger.close()

    def cases(self) -> tuple[Case, ...]:
        """Every study, the newest first."""
        return tuple(sorted(self._cases.values(), key=lambda c: (-c.changed, c.id)))

    def case(self, identifier: str) -> Case | None:
        """One study; None where there is none of this id."""
        found = self._cases.get(identifier)
        if found is None and _is_id(identifier):
            with suppress(FileNotFoundError):
                return self._uploaded(self.uploads / identifier)  # since the last step
        return found

    def result(self, identifier: str) -> Path | None:
        """The folder of a study's results; None where there is none yet."""
        case = self.case(identifier)
        return self.results / identifier if case is not None and case.state == "done" else None

    def waiting(self) -> int:
        """How many uploads wait, or are being done."""
        with os.scandir(self.uploads) as entries:
            cases = [self._cases.get(entry.name) for entry in entries]
        return sum(case is None or case.state in ("queued", "running") for case in cases)

    def accept(self, file: Path, suffix: str, owner: str) -> str:
        """Take an upload, which is complete.

        Args:
            file: in the spool's `incoming`, flushed to the disk; it is moved.
            suffix: of an archive or NIfTI file, as `.zip`.
            owner: who may ask for it.

        Returns:
            Its id, which nobody can guess.
        """
        identifier = secrets.token_hex(16)
        with self.spool.temporary() as folder:
            folder.mkdir(mode=0o700)
            with (folder / _OWNER).open("w", encoding="utf-8") as stream:
                stream.write(owner)
                stream.flush()
                os.fsync(stream.fileno())
            os.rename(file, folder / f"{_STUDY}{suffix}")
            sync_folder(folder)
            os.rename(folder, self.uploads / identifier)
            sync_folder(self.uploads)
        return identifier

    def note_delivery(self, case: Case, delivered: Delivered, message: str | None = None) -> None:
        """What became of a result on its way to its receiver."""
        self._deliveries[case.id] = case.changed, delivered, message

    def dismiss(self, identifier: str) -> None:
        """Remove an upload when no worker is at it, with all that is kept of it."""
        with suppress(FileNotFoundError):
            (self.uploads / identifier / _LEAVES).touch(mode=0o600)
            sync_folder(self.uploads / identifier)
        self._cases = {key: case for key, case in self._cases.items() if key != identifier}

    def _look(self) -> None:
        """Enter what is complete, and take back what is no longer."""
        running = self._crew.running
        for arrival in self.spool.arrivals():
            if arrival.key in running or self._entered.get(arrival.key) == arrival.changed:
                continue
            if arrival.settled(self.settings.quiet_s):
                self._enter(arrival.key, arrival.folder, arrival.changed)
            else:
                self._jobs.pop(arrival.key, None)
                self._entered.pop(arrival.key, None)
        for entry in os.scandir(self.uploads):
            if Path(entry.path, _LEAVES).exists():
                if entry.name not in running:
                    self.remove(entry.name)
            elif entry.name not in self._entered:
                for study in Path(entry.path).glob(f"{_STUDY}*"):
                    self._enter(entry.name, study, entry.stat().st_mtime)

    def _enter(self, identifier: str, source: Path, changed: float) -> None:
        entry = Entry(identifier, identifier.encode(), source)
        key = Key(listing_sha256(entry), self._engine.settings_sha256(), self.model_sha256)
        job = Job(identifier, identifier, self.results, source, (), entry.origin, key, self._engine)
        enter(job, self._ledger)
        self._jobs[identifier] = job
        self._entered[identifier] = changed

    def _tell(self) -> None:
        rows = self._ledger.rows()
        cases = {}
        for arrival in self.spool.arrivals():
            case = Case(arrival.key, "dicom", "arriving", arrival.changed)
            if arrival.lost and not arrival.sending:
                case = replace(case, state="incomplete")
            elif not arrival.sending and self._entered.get(arrival.key) == arrival.changed:
                case = self._with_delivery(_with_row(case, rows.get(arrival.key)))
            cases[case.id] = case
        for entry in os.scandir(self.uploads):
            with suppress(FileNotFoundError):
                case = _with_row(self._uploaded(Path(entry.path)), rows.get(entry.name))
                cases[case.id] = case
        self._cases = cases

    def _with_delivery(self, case: Case) -> Case:
        if self.settings.results_to is None or case.state != "done":
            return case
        changed, delivered, message = self._deliveries.get(case.id, _UNSAID)
        if changed != case.changed:  # nothing is said of it yet, or of the images before
            return replace(case, delivered="waiting")
        return replace(case, delivered=delivered, delivery=message)

    def _uploaded(self, folder: Path) -> Case:
        """An upload as it waits.

        Raises:
            FileNotFoundError: it is gone, or about to be.
        """
        if (folder / _LEAVES).exists():
            raise FileNotFoundError
        owner = (folder / _OWNER).read_text(encoding="utf-8")
        return Case(folder.name, "upload", "queued", folder.stat().st_mtime, owner)

    def _tidy(self) -> None:
        """Remove what was kept for long enough."""
        sweep(self.results)
        if self.settings.keep_days is None:
            return
        before = time.time() - self.settings.keep_days * _DAY_S
        for case in self.cases():
            if case.changed < before and case.state in ("done", "failed", "incomplete"):
                self.remove(case.id)

    def remove(self, identifier: str) -> None:
        """Forget a study, with all that is kept of it; only for the thread of `step`."""
        # Results first: a study that is there no more would leave nobody to remove them.
        for place in (self.results, self.spool.inbox, self.uploads):
            with self.spool.temporary() as gone, suppress(FileNotFoundError):
                os.rename(place / identifier, gone)
        for mark in self.spool.open.glob(f"{identifier}-*"):
            with suppress(FileNotFoundError):
                mark.unlink()
        self._ledger.forget(identifier)
        self._jobs.pop(identifier, None)
        self._entered.pop(identifier, None)
        self._deliveries.pop(identifier, None)
        self._cases = {key: case for key, case in self._cases.items() if key != identifier}


def _with_row(case: Case, row: Row | None) -> Case:
    if row is None:
        return case
    return replace(
        case,
        state=row.state,
        code=row.code,
        message=row.message,
        remedy=row.remedy,
        lesions=row.lesions,
        burden=row.burden,
        seconds=row.seconds,
        files=tuple(row.outputs) if row.state == "done" else (),
    )


def _is_id(text: str) -> bool:
    return len(text) == 32 and set(text) <= set("0123456789abcdef")
