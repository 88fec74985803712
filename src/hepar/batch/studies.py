"""Which studies a folder or a cohort holds, what their results are called, and who does which.

The list is a pure function of what lies there, so that the parts of a batch on different machines
agree on it.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hepar.errors import InputRefused, UsageError
from hepar.io.archive import is_archive
from hepar.io.spreadsheet import read_table
from hepar.provenance import sha256_json

_PHASES = ("nc", "art", "pv", "dl")
_UNSAFE = '<>:"/\\|?*'
_MAX_NAME_BYTES = 100  # of 255 that a file system takes; temporaries put more before it
# Names that Windows keeps for devices, and those of a batch's own files.
_TAKEN = frozenset(
    ["con", "prn", "aux", "nul", "stale", *(f"com{n}" for n in range(10))]
    + [f"lpt{n}" for n in range(10)]
)
_OWN_SUFFIXES = (".csv", ".json", ".sqlite", "-wal", "-shm")


@dataclass(frozen=True)
class Entry:
    """A study as it lies there.

    Attributes:
        name: as it is shown: without control and broken characters.
        raw: the bytes of its name.
        source: folder, file or archive; None for a row of a cohort.
        stated: for a row of a cohort, pairs of phase and path.
    """

    name: str
    raw: bytes
    source: Path | None
    stated: tuple[tuple[str, Path], ...] = ()

    @property
    def roots(self) -> tuple[Path, ...]:
        """Every path of it."""
        stated = tuple(path for _, path in self.stated)
        return stated if self.source is None else (self.source, *stated)

    @property
    def real_roots(self) -> tuple[Path, ...]:
        """Every path of it, links followed."""
        return tuple(Path(os.path.realpath(path)) for path in self.roots)

    @property
    def origin(self) -> str:
        """SHA-256 of where it lies: the same for one study that is listed twice."""
        paths = [os.fsencode(path).hex() for path in self.real_roots]
        return sha256_json({"paths": paths, "phases": [phase for phase, _ in self.stated]})


@dataclass(frozen=True)
class Known:
    """Whom a folder of results belongs to already.

    Attributes:
        origin: of the study.
        name: of the study.
        inputs: SHA-256 of its listing.
    """

    origin: str
    name: str
    inputs: str


def find_studies(source: Path) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
    """Find the studies of a batch.

    Args:
        source: a folder, in which each sub-folder, NIfTI file and archive is a study; or a table
            with a row a study: `case_id`, and a path for each of `nc, art, pv, dl` there is.

    Returns:
        Studies by name, and what there is to note.

    Raises:
        InputRefused: `E_NO_CASES`, no study is there; `E_COHORT`, the table cannot be used.
    """
    entries, notes = _of_folder(source) if source.is_dir() else _of_table(source)
    if not entries:
        raise InputRefused(
            "E_NO_CASES",
            "batch",
            f"{source.name} holds no study. {' '.join(notes)}".rstrip(),
            "Give a folder with a sub-folder a study; for one study there is hepar segment.",
        )
    return tuple(sorted(entries, key=lambda e: (e.raw, e.origin))), tuple(notes)


def _of_folder(folder: Path) -> tuple[list[Entry], list[str]]:
    from hepar.io.nifti import is_nifti_name  # brings numpy and nibabel

    entries, passed = [], 0
    for path in folder.iterdir():
        hidden = re.match(r"\.[^.]", path.name) is not None
        is_study = path.is_dir() or is_nifti_name(path) or is_archive(path)
        if is_study and not hidden and path.exists():
            entries.append(Entry(shown(path.name), os.fsencode(path.name), path))
        elif path.is_dir() or not hidden:  # hidden files are those of desktops
            passed += 1
    said = f"{passed} entries of {folder.name} are hidden, or no folder, NIfTI file or archive."
    return entries, [f"W_NOT_A_STUDY: {said}"] if passed else []


def _of_table(path: Path) -> tuple[list[Entry], list[str]]:
    try:
        columns, rows = read_table(path)
        if "case_id" not in columns or not set(columns) & set(_PHASES):
            raise ValueError("it needs a column case_id and one or more of nc, art, pv, dl")
        entries = [_row(row, number, path.parent) for number, row in enumerate(rows, start=2)]
    except ValueError as error:
        raise InputRefused(
            "E_COHORT",
            "batch",
            f"{path.name}: {error}.",
            "Correct the table: a row a study, paths relative to the table.",
        ) from None
    return entries, []


def _row(row: Mapping[str, str], number: int, folder: Path) -> Entry:
    stated = tuple((p.upper(), folder / row[p]) for p in _PHASES if row.get(p))
    if not row["case_id"] or not stated:
        raise ValueError(f"line {number}: case_id is empty, or no phase has an image")
    return Entry(shown(row["case_id"]), row["case_id"].encode(), None, stated)


def shown(name: str) -> str:
    """A name on one line, without control characters and what is no character at all."""
    return "".join(c if c.isprintable() else "?" for c in name)


def safe_name(name: str) -> str:
    """A name that is a folder on any system, close to the given one; others may share it."""
    text = unicodedata.normalize("NFC", name)
    text = "".join(c if c.isprintable() and c not in _UNSAFE else "_" for c in text)
    text = text.encode()[:_MAX_NAME_BYTES].decode(errors="ignore").strip(". ")
    reserved = text.partition(".")[0].lower() in _TAKEN or text.lower().endswith(_OWN_SUFFIXES)
    return f"_{text}" if reserved else text or "study"


def name_folders(
    entries: Sequence[Entry], known: Mapping[str, Known], listing: Callable[[Entry], str]
) -> tuple[str, ...]:
    """A folder of results for each study: distinct, also where case and accents do not count.

    Args:
        entries: in the order of `find_studies`, each study once.
        known: folders that have a study already. It keeps them, also where it was moved, with its
            name and files, to another place.
        listing: as `listing_sha256`.
    """
    by_origin = {one.origin: folder for folder, one in known.items()}
    here = {entry.origin for entry in entries}
    gone = {(one.name, one.inputs): f for f, one in known.items() if one.origin not in here}
    names = {name for name, _ in gone}
    kept = []
    for entry in entries:
        folder = by_origin.get(entry.origin)
        if folder is None and entry.name in names:
            folder = gone.pop((entry.name, listing(entry)), None)
        kept.append(folder)
    taken = {_alike(folder) for folder in known}
    named = []
    for entry, folder in zip(entries, kept, strict=True):
        if folder is None:
            folder = safe_name(os.fsdecode(entry.raw))
            if _alike(folder) in taken or len(entry.raw) > _MAX_NAME_BYTES:
                folder = f"{folder}-{_digest(entry.raw, entry.origin)[:8]}"
            taken.add(_alike(folder))
        named.append(folder)
    return tuple(named)


def _alike(folder: str) -> str:
    return unicodedata.normalize("NFKC", folder).casefold()


def in_part(entry: Entry, part_id: int, num_parts: int) -> bool:
    """Whether a part of a batch does a study: by a hash of its name, the same on every machine."""
    return int(_digest(entry.raw), 16) % num_parts == part_id


def _digest(raw: bytes, more: str = "") -> str:
    return hashlib.sha256(raw + more.encode()).hexdigest()


def listing_sha256(entry: Entry) -> str:
    """SHA-256 of what a study's files are called, how long they are and when they changed."""
    from hepar.io.dicom_scan import walk_files

    files: list[list[str | int]] = []
    for root in entry.roots:
        # FILE.nii.gz#1 is a volume of a 4D file.
        place = root if root.exists() else root.with_name(root.name.rpartition("#")[0] or root.name)
        for path in walk_files(place) if place.is_dir() else (place,):
            said = os.fsencode(path.relative_to(place)).hex() if path != place else root.name
            try:
                status = path.stat()
                files.append([said, status.st_size, status.st_mtime_ns])
            except OSError:
                files.append([said, -1, -1])
    return sha256_json({"files": files, "phases": [phase for phase, _ in entry.stated]})


def check_places(source: Path, out: Path, entries: Iterable[Entry]) -> None:
    """Refuse an output folder among the studies, or studies among the outputs.

    Raises:
        UsageError: `E_OUTPUT_PATH`.
    """
    place = out.resolve()
    inside = source.is_dir() and place.is_relative_to(source.resolve())
    if inside or any(r.is_relative_to(place) for e in entries for r in e.real_roots):
        raise UsageError(
            "E_OUTPUT_PATH",
            "batch",
            f"{out.name} lies in the folder of the studies, or they in it.",
            "Name a folder elsewhere with -o.",
        )
