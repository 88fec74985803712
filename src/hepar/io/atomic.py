"""Files and folders that appear whole or not at all.

Everything is written beside its destination under a name of ours, flushed to the disk, and renamed;
a rename within one folder is atomic. A process killed in between leaves a temporary whose name
holds its machine and process id, and the next write to that folder sweeps it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from hepar.errors import ResourceExhausted, UsageError

_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
# What only writing can meet.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# A report with its masks and pictures takes a few MiB; a disk this full is about to fail anyway.
MIN_FREE_BYTES = 64 * 2**20
_TEMPORARY = re.compile(r"^\.hepar-tmp-(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}-")


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path to write to; it becomes `path` when the block ends well.

    The temporary lies in the folder of `path` and ends in its name, so that writers which look at
    the suffix (`.nii.gz`) see the right one. When the block raises, or writes nothing, `path`
    stays as it was. Missing parent folders are made, and removed again after a failure.

    Args:
        path: destination; an existing file is replaced.

    Raises:
        ResourceExhausted: `E_OUTPUT_WRITE`, the folder cannot be written or the disk is full.
    """
    target = Path(path)
    made = _make_parents(target)
    temporary = _temporary_beside(target)
    try:
        with _typed(target, _FULL):
            yield temporary
        with _typed(target):
            _sync(temporary)
            os.replace(temporary, target)
            _sync_folder(target.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        _remove_folders(made)
        raise


@contextmanager
def staged_folder(out: Path | str) -> Iterator[Path]:
    """Yield a temporary folder; its files appear in `out` when the block ends well.

    Where `out` is new it appears by one rename. Where it exists, each file is moved over its
    namesake atomically and other files in `out` stay. When the block raises, `out` is as it was:
    parents made for it are removed too.

    Args:
        out: the folder wanted.

    Raises:
        UsageError: `E_OUTPUT_PATH`, `out` is a file.
        ResourceExhausted: `E_OUTPUT_WRITE`, the folder cannot be written or the disk is full.
    """
    target = Path(out)
    if target.exists() and not target.is_dir():
        raise _is_a_file(target)
    made = _make_parents(target)
    temporary = _temporary_beside(target)
    try:
        with _typed(target):
            temporary.mkdir()
        with _typed(target, _FULL):
            yield temporary
        with _typed(target):
            _publish(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        _remove_folders(made)
        raise


@contextmanager
def private_folder() -> Iterator[Path]:
    """Yield an empty temporary folder that this user alone may enter; it is removed afterwards.

    One that a killed process left behind is removed when the next one is made, or by
    `sweep_private`.

    Raises:
        ResourceExhausted: `E_OUTPUT_WRITE`, there is no room for it.
    """
    folder = _temporary_beside(Path(tempfile.gettempdir()) / "private")
    with _typed(folder):
        folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep_private() -> int:
    """Remove private folders that processes of this machine left when they died; how many."""
    return sweep(Path(tempfile.gettempdir()))


def check_writable(out: Path | str) -> None:
    """Find out that results cannot be written before they are computed.

    Args:
        out: folder that is to be written; what is made for the test is removed again.

    Raises:
        UsageError: `E_OUTPUT_PATH`, it is a file.
        ResourceExhausted: `E_OUTPUT_WRITE`, it cannot be written or its disk is all but full.
    """
    target = Path(out)
    with _typed(target):
        if target.exists() and not target.is_dir():
            raise _is_a_file(target)
    made = _make_parents(target / target.name)
    probe = _temporary_beside(target / "probe")
    try:
        with _typed(target):
            probe.write_bytes(b"hepar")
            free = shutil.disk_usage(target).free
            if free < MIN_FREE_BYTES:
                raise OSError(errno.ENOSPC, f"only {free / 2**20:.0f} MiB of the disk are free")
    finally:
        with suppress(OSError):
            probe.unlink()
        _remove_folders(made)


@contextmanager
def one_process(folder: Path) -> Iterator[None]:
    """Let one process at a time, or thread, into this block for a folder; the others wait.

    The lock is the system's own and ends with the process that holds it. Where there are none (some
    network file systems, not POSIX) nobody waits: what is written inside has to be atomic anyway.

    Args:
        folder: made if absent; gets an empty file `.lock`, which stays.
    """
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        with suppress(OSError, ImportError):
            import fcntl  # POSIX alone has it

            stream = stack.enter_context((folder / ".lock").open("ab"))
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def sweep(folder: Path) -> int:
    """Remove temporaries that processes of this machine left in `folder` when they died.

    Returns:
        How many were removed.
    """
    swept = 0
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            match = _TEMPORARY.match(entry.name)
            if not match or match["host"] != _HOST or _alive(int(match["pid"])):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with suppress(OSError):
                    os.unlink(entry.path)
            swept += 1
    return swept


def _is_a_file(target: Path) -> UsageError:
    return UsageError(
        "E_OUTPUT_PATH", "output", f"{target.name} is a file.", "Name a folder with -o."
    )


def _temporary_beside(target: Path) -> Path:
    sweep(target.parent)
    # A file name holds at most 255 bytes; the end is kept because it is the suffix.
    name = target.name.encode()[-120:].decode(errors="ignore")
    return target.parent / f".hepar-tmp-{_HOST}-{os.getpid()}-{secrets.token_hex(4)}-{name}"


def _publish(temporary: Path, target: Path) -> None:
    for root, folders, files in os.walk(temporary):
        for name in files:
            _sync(Path(root) / name)
        for name in folders:
            _sync_folder(Path(root) / name)
    _sync_folder(temporary)
    if not target.exists():
        os.rename(temporary, target)
        _sync_folder(target.parent)
        return
    for root, _, files in os.walk(temporary):
        place = target / Path(root).relative_to(temporary)
        place.mkdir(exist_ok=True)
        for name in sorted(files):
            os.replace(Path(root) / name, place / name)
        _sync_folder(place)
    shutil.rmtree(temporary, ignore_errors=True)


def _make_parents(target: Path) -> list[Path]:
    missing = []
    folder = target.parent
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    with _typed(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_folders(made: list[Path]) -> None:
    for folder in made:
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def _typed(target: Path, errors: frozenset[int] | None = None) -> Iterator[None]:
    """Errors of the system as `E_OUTPUT_WRITE`; of a block that also does other work, `errors`."""
    try:
        yield
    except OSError as error:
        if errors is not None and error.errno not in errors:
            raise
        raise ResourceExhausted(
            "E_OUTPUT_WRITE",
            "output",
            f"{target.name} cannot be written: {error.strerror or error}.",
            "Check that the folder may be written to and that the disk has room.",
        ) from error


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    # Elsewhere than on POSIX a folder cannot be opened, and the rename alone has to do.
    if os.name == "posix":
        _sync(path)
