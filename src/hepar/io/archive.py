"""Archives from elsewhere, unpacked under caps: nothing escapes the folder, nothing inflates away.

Members are counted and their bytes measured as they are written, because an archive's own headers
may lie. Links, devices and names that leave the folder are refused.
"""

from __future__ import annotations

import errno
import lzma
import re
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import IO

from hepar.errors import InputRefused, ResourceExhausted
from hepar.io.refusal import refuse

_CHUNK = 2**20
_LOCAL_HEADER_BYTES = 30
_QUOTED = re.compile(r"""b?(['"])(?:\\.|(?!\1).)*\1""")
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)


@dataclass(frozen=True)
class Caps:
    """What an archive may hold.

    Attributes:
        entries: files and folders.
        total_bytes: after inflation.
        ratio: inflated bytes for each packed one; CT reaches 10, empty slices a hundred.
        free_bytes: below this size the ratio is not asked.
    """

    entries: int = 20_000
    total_bytes: int = 8 * 2**30
    ratio: float = 200.0
    free_bytes: int = 64 * 2**20


# Of masks, which are mostly zeros, as published data sets hold them by the thousand.
MASK_CAPS = Caps(entries=50_000, ratio=2000.0)


def is_archive(path: Path) -> bool:
    """Whether a file is named as an archive that `unpack` reads."""
    name = path.name.lower()
    return name.endswith((".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2"))


def unpack(
    archive: Path,
    out: Path,
    *,
    wanted: Callable[[PurePosixPath], bool] = lambda member: True,
    caps: Caps | None = None,
) -> None:
    """Unpack regular files of a zip or tar archive.

    Args:
        archive: `.zip` or `.tar`, plain or packed with gzip, bzip2 or xz.
        out: folder, made if absent; on a refusal it may hold some of the files.
        wanted: which members are written; the others are counted and checked all the same.
        caps: limits.

    Raises:
        ResourceExhausted: `E_OUTPUT_WRITE`, the disk is full.
        InputRefused: `E_BOMB` beyond a cap of size, or for headers that lie about it; `E_ARCHIVE`
            for a member that would leave `out`, is no plain file or has the name of another, and
            for too many of them; `E_CORRUPT` for an archive that cannot be read.
    """
    caps = caps or Caps()
    out.mkdir(parents=True, exist_ok=True)
    packed, total, names = archive.stat().st_size, 0, set[str]()
    with _typed(archive.name):
        members = _zip(archive) if archive.name.lower().endswith(".zip") else _tar(archive)
        for count, (name, size, stream) in enumerate(members, start=1):
            if count > caps.entries:
                raise refuse("E_ARCHIVE", f"{archive.name} holds more than {caps.entries} entries.")
            place = _safe(name, f"{archive.name} holds member {count}")
            if stream is not None:
                # On a disk that ignores case one would silently replace the other.
                folded = place.as_posix().casefold()
                if folded in names:
                    raise refuse("E_ARCHIVE", f"{archive.name} holds member {count} twice.")
                names.add(folded)
            if stream is None or not wanted(place):
                total += size
                _check(total, packed, caps, archive.name)
                continue
            target = out.joinpath(*place.parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            held = 0
            with target.open("xb") as written:
                while chunk := stream.read(_CHUNK):
                    held += len(chunk)
                    _check(total + held, packed, caps, archive.name)
                    if held > size:
                        raise refuse("E_BOMB", f"{archive.name} holds more than it declares.")
                    written.write(chunk)
            total += held


def _zip(archive: Path) -> Iterator[tuple[str, int, IO[bytes] | None]]:
    with zipfile.ZipFile(archive) as opened:
        _refuse_overlaps(opened, archive.name)
        for count, info in enumerate(opened.infolist(), start=1):
            # zipfile ends a name at the first NUL, whatever comes after it.
            name = info.orig_filename
            if info.is_dir():
                yield name, 0, None
                continue
            # The upper half of the attributes is the Unix mode; 0 where another system packed it.
            kind = (info.external_attr >> 16) & 0o170000
            if kind not in (0, 0o100000):
                raise refuse("E_ARCHIVE", f"{archive.name} holds member {count}, no plain file.")
            # So that everything is inflated and counted, not only as much as was declared.
            declared, info.file_size = info.file_size, sys.maxsize
            with opened.open(info) as stream:
                yield name, declared, stream


def _refuse_overlaps(opened: zipfile.ZipFile, name: str) -> None:
    """Refuse members that share packed bytes, by which a small file inflates without end."""
    spans = sorted((i.header_offset, i.compress_size) for i in opened.infolist())
    for (begin, size), (following, _) in pairwise(spans):
        if begin + _LOCAL_HEADER_BYTES + size > following:
            raise refuse("E_BOMB", f"{name} holds members that overlap.")


def _tar(archive: Path) -> Iterator[tuple[str, int, IO[bytes] | None]]:
    # Opened as a stream, so that a long list of members is never built before it is capped.
    with tarfile.open(archive, "r|*") as opened:
        for count, entry in enumerate(opened, start=1):
            if entry.isdir():
                yield entry.name, 0, None
            elif entry.isreg():
                yield entry.name, entry.size, opened.extractfile(entry)
            else:
                raise refuse("E_ARCHIVE", f"{archive.name} holds member {count}, no plain file.")


def _safe(name: str, told: str) -> PurePosixPath:
    """A member's path, if it stays inside; members are told by number, since names name people."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name or "\0" in name:
        raise refuse("E_ARCHIVE", f"{told}, which leaves its folder.")
    return path


def _check(total: int, packed: int, caps: Caps, name: str) -> None:
    if total > caps.total_bytes:
        raise refuse("E_BOMB", f"{name} inflates beyond {caps.total_bytes / 2**30:.1f} GiB.")
    if total > caps.free_bytes and total > caps.ratio * packed:
        raise refuse("E_BOMB", f"{name} inflates more than {caps.ratio:.0f} times.")


@contextmanager
def _typed(name: str) -> Iterator[None]:
    """Whatever reading an archive raises has a code."""
    try:
        yield
    except FileExistsError as error:
        raise refuse("E_ARCHIVE", f"{name} holds one file twice.") from error
    except OSError as error:
        # bz2 gives no number for a damaged stream; other numbers are about places in the archive.
        if error.errno not in _OF_THE_DISK:
            raise _corrupt(name, error) from error
        raise ResourceExhausted(
            "E_OUTPUT_WRITE",
            "read",
            f"{name} cannot be unpacked: {error.strerror}.",
            "Check that the file can be read and that the disk has room.",
        ) from error
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        lzma.LZMAError,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,  # what zipfile raises for an encrypted member
        # What both modules raise where their own headers are damaged.
        ValueError,
        ArithmeticError,
        AttributeError,
        LookupError,
    ) as error:
        raise _corrupt(name, error) from error


def _corrupt(name: str, error: Exception) -> InputRefused:
    why = _QUOTED.sub("a member", str(error))
    return refuse("E_CORRUPT", f"{name} cannot be unpacked: {why}.")
