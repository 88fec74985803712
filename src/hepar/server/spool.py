"""Studies as they arrive: an image is on the disk, once, before anyone is told that it is.

    inbox/KEY/IMAGE.dcm    a study as far as it came; KEY and IMAGE are hashes of its UIDs
    open/KEY-SENDER        a sender is at it; .lost if it broke off; removed when it ended well
    incoming/              what is being written; swept at start

DICOM has no word for "this study is complete". Here a study is complete when nothing of it came for
a while, and whoever sent of it said an orderly goodbye.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from hepar.errors import InputRefused, ResourceExhausted
from hepar.io.atomic import MIN_FREE_BYTES

_CHUNK = 2**20
_LOST = ".lost"


@dataclass(frozen=True)
class Arrival:
    """A study as far as it came.

    Attributes:
        key: names it everywhere; a hash of its StudyInstanceUID.
        folder: of its images.
        changed: when the last image came, seconds since the epoch.
        sending: senders that are at it.
        lost: senders that broke off, and nobody sent it again since.
    """

    key: str
    folder: Path
    changed: float
    sending: int
    lost: int

    def settled(self, quiet_s: float) -> bool:
        """Whether it is complete as far as anyone can tell."""
        return not (self.sending or self.lost) and time.time() - self.changed >= quiet_s


class Spool:
    """The studies that have arrived; may be used by many threads, of one process.

    Args:
        folder: of the server; made if absent, for this user alone.

    Raises:
        ResourceExhausted: `E_OUTPUT_WRITE`, it cannot be written, now or later.
    """

    def __init__(self, folder: Path) -> None:
        self.inbox, self.open = folder / "inbox", folder / "open"
        self.incoming = folder / "incoming"
        self._making = threading.Lock()
        with on_the_disk():
            shutil.rmtree(self.incoming, ignore_errors=True)
            for place in (self.inbox, self.open, self.incoming):
                place.mkdir(mode=0o700, parents=True, exist_ok=True)

    def store(self, study_uid: str, instance_uid: str, parts: Iterable[bytes]) -> bool:
        """Keep an image; when this returns, a loss of power does not lose it.

        Args:
            study_uid: StudyInstanceUID.
            instance_uid: SOPInstanceUID.
            parts: of the file, in order.

        Returns:
            Whether it is new; False where the very same file was here already.

        Raises:
            InputRefused: `E_INSTANCE_DIFFERS`, other bytes are here under this UID; those stay.
            ResourceExhausted: `E_OUTPUT_WRITE`; nothing of it is kept.
        """
        folder = self.inbox / key_of(study_uid)
        place = folder / image_name(instance_uid)
        with on_the_disk(), self.temporary() as temporary:
            with temporary.open("xb") as stream:
                stream.writelines(parts)
                stream.flush()
                os.fsync(stream.fileno())
            self._make(folder)
            try:
                os.link(temporary, place)  # never over another
            except FileExistsError:
                if _same(temporary, place):
                    return False
                raise InputRefused(
                    "E_INSTANCE_DIFFERS",
                    "serve",
                    "An image with the same SOPInstanceUID and other content is here already.",
                    "Send images that were changed under new UIDs.",
                ) from None
            sync_folder(folder)
            return True

    def _make(self, folder: Path) -> None:
        """Make the folder of a study, so that it outlasts a loss of power, for all who need it."""
        with self._making:
            try:
                folder.mkdir(mode=0o700)
            except FileExistsError:
                return
            sync_folder(self.inbox)

    def add(self, study_uid: str, images: Path, sender: str) -> None:
        """Put many images of a study to what is known of it, which is not complete in between.

        Args:
            study_uid: StudyInstanceUID.
            images: a folder in `incoming` whose files are named by `image_name`; those that are
                here already stay as they are.
            sender: as in `begin`; where this process dies, until it has sent all of it again.
        """
        folder = self.inbox / key_of(study_uid)
        with on_the_disk():
            paths = sorted(images.iterdir())
            for path in paths:
                with path.open("rb") as stream:
                    os.fsync(stream.fileno())
            self.begin(study_uid, sender)
            try:
                self._make(folder)
                for path in paths:
                    with suppress(FileExistsError):
                        os.link(path, folder / path.name)
                sync_folder(folder)
            except BaseException:
                self.broke_off(study_uid, sender)
                raise
        self.end(study_uid, sender)

    @contextmanager
    def temporary(self) -> Iterator[Path]:
        """Yield a path in `incoming`, which is removed if it is still there afterwards."""
        path = self.incoming / secrets.token_hex(16)
        try:
            yield path
        finally:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            with suppress(OSError):
                path.unlink()

    def begin(self, study_uid: str, sender: str) -> None:
        """A sender is about to send of a study, which is not complete before `end`.

        Where it never ends (it broke off, or this process died) the study waits until a later
        sender of the same study ends well.

        Args:
            study_uid: StudyInstanceUID.
            sender: of letters and digits, unique.
        """
        with on_the_disk():
            (self.open / f"{key_of(study_uid)}-{sender}").touch(mode=0o600)
            sync_folder(self.open)

    def end(self, study_uid: str, sender: str) -> None:
        """A sender has sent what it had to send of a study, and said so.

        What senders owed that broke off at it before is taken to be here now.
        """
        key = key_of(study_uid)
        with on_the_disk():
            for path in self.open.glob(f"{key}-*"):
                if path.name == f"{key}-{sender}" or path.suffix == _LOST:
                    path.unlink(missing_ok=True)

    def broke_off(self, study_uid: str, sender: str) -> None:
        """A sender was lost in the middle of a study."""
        mark = self.open / f"{key_of(study_uid)}-{sender}"
        with suppress(FileNotFoundError):
            os.replace(mark, mark.with_suffix(_LOST))

    def forsake(self) -> None:
        """At start: senders of an earlier process are lost."""
        for path in self.open.iterdir():
            if path.suffix != _LOST:
                os.replace(path, path.with_suffix(_LOST))

    def arrival(self, study_uid: str) -> Arrival | None:
        """A study as far as it came; None where nothing of it did."""
        key = key_of(study_uid)
        return next((one for one in self.arrivals() if one.key == key), None)

    def arrivals(self) -> tuple[Arrival, ...]:
        """Every study that is here, in the order of their last images."""
        marks = Counter(
            (entry.name.partition("-")[0], entry.name.endswith(_LOST))
            for entry in os.scandir(self.open)
        )
        found = []
        for entry in os.scandir(self.inbox):
            key = entry.name
            with suppress(FileNotFoundError):
                changed = entry.stat().st_mtime
                sending, lost = marks[key, False], marks[key, True]
                found.append(Arrival(key, Path(entry.path), changed, sending, lost))
        return tuple(sorted(found, key=lambda one: (one.changed, one.key)))


def key_of(uid: str) -> str:
    """What a UID is called on the disk and in addresses: nothing in it can be a path."""
    return hashlib.sha256(uid.encode()).hexdigest()[:32]


def image_name(instance_uid: str) -> str:
    """The file of an image in the folder of its study."""
    return f"{key_of(instance_uid)}.dcm"


def check_room(folder: Path, wanted: int = 0) -> None:
    """Refuse to begin what the disk has no room for.

    Raises:
        ResourceExhausted: `E_OUTPUT_WRITE`.
    """
    with on_the_disk():
        free = shutil.disk_usage(folder).free
        if free < wanted + MIN_FREE_BYTES:
            raise OSError(errno.ENOSPC, f"only {free / 2**20:.0f} MiB of the disk are free")


def sync_folder(folder: Path) -> None:
    """What was renamed in a folder stays so after a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _same(one: Path, other: Path) -> bool:
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as a, other.open("rb") as b:
        while chunk := a.read(_CHUNK):
            if chunk != b.read(_CHUNK):
                return False
    return True


@contextmanager
def on_the_disk() -> Iterator[None]:
    """Say of what cannot be written what it means.

    Raises:
        ResourceExhausted: `E_OUTPUT_WRITE`.
    """
    try:
        yield
    except OSError as error:
        raise ResourceExhausted(
            "E_OUTPUT_WRITE",
            "serve",
            f"The server's folder cannot be written: {error.strerror or error}.",
            "Make room on its disk, or see that it may be written to.",
        ) from error
