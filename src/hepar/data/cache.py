"""Prepared arrays, made once: on disk under the hash of what they are made from, or in memory.

The key is everything the arrays depend on; whoever changes how they are made changes a version in
the key. A process reads of the arrays what it looks at. Maps of a file (`array_file`) give a slice
for a slice and are verified when a process first asks for them; chunks (`chunk_file`) give a 3D
patch for the chunks it meets and are verified each time they are read. A file that is cut short,
has one other byte, or was written in an older layout is made again, which is logged as
`W_CACHE_REBUILT`. Of processes that want the same arrays at once, one makes them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from hepar.data.array_file import Arrays, Mapped, Stamp, lost, map_arrays, stamp, write_arrays
from hepar.data.chunk_file import Chunked, ChunkedArrays, is_whole, open_chunks, write_chunks
from hepar.io.atomic import one_process

_Opened = TypeVar("_Opened", Mapped, Chunked)
LOG = logging.getLogger(__name__)
MOST_MAPS = 64  # each holds a file open, of which a process may have 256 on macOS


def content_key(parts: Mapping[str, Any]) -> str:
    """SHA-256 of JSON data, independent of the order of its keys."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ArrayCache:
    """Named arrays by key; safe for several threads and several processes.

    Args:
        folder: where files lie; None keeps arrays in memory.
        memory_bytes: arrays kept in memory without a folder, the least recently used going first.
    """

    def __init__(self, folder: Path | None, *, memory_bytes: int = 512 * 2**20) -> None:
        self.folder = folder
        self.memory_bytes = memory_bytes
        self._kept: OrderedDict[str, Arrays] = OrderedDict()
        self._maps: OrderedDict[str, Mapped] = OrderedDict()
        self._chunked: OrderedDict[str, Chunked] = OrderedDict()
        self._verified: dict[str, Stamp] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()

    def get(self, parts: Mapping[str, Any], make: Callable[[], Arrays]) -> Arrays:
        """The arrays of a key, made if need be; threads asking for the same key make it once.

        From a folder they are read-only maps of a file: a slice costs a slice.

        Args:
            parts: everything the arrays depend on, as JSON data.
            make: a pure function of `parts`.

        Raises:
            ResourceExhausted: `E_OUTPUT_WRITE`, they cannot be written, or not read again.
        """
        key = content_key(parts)
        with self._lock(key):
            if self.folder is None:
                return self._from_memory(key, make)
            return self._from_disk(key, self.folder / key[:2] / f"{key}.safetensors", make)

    def get_chunked(self, parts: Mapping[str, Any], make: Callable[[], Arrays]) -> ChunkedArrays:
        """As `get`, but volumes in a folder are kept in chunks: a 3D patch costs those it meets."""
        if self.folder is None:
            return dict(self.get(parts, make))
        key = content_key(parts)
        path = self.folder / key[:2] / f"{key}.chunks"

        def mend() -> None:
            with self._lock(key), one_process(path.parent):
                if not is_whole(path):
                    _write_again(write_chunks, path, make)

        with self._lock(key):
            with self._guard:
                found = self._chunked.get(key)
            if found is None or found.stamp != stamp(path):
                opened = functools.partial(open_chunks, path, mend)
                found = opened() or _made(opened, write_chunks, path, make)
            with self._guard:
                _keep(self._chunked, key, found)
        return found.arrays

    def _lock(self, key: str) -> threading.Lock:
        with self._guard:
            return self._locks.setdefault(key, threading.Lock())

    def _from_memory(self, key: str, make: Callable[[], Arrays]) -> Arrays:
        with self._guard:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        arrays = make()
        with self._guard:
            self._kept[key] = arrays
            total = sum(a.nbytes for kept in self._kept.values() for a in kept.values())
            while total > self.memory_bytes and len(self._kept) > 1:
                old, dropped = self._kept.popitem(last=False)
                self._locks.pop(old, None)
                total -= sum(a.nbytes for a in dropped.values())
        return arrays

    def _from_disk(self, key: str, path: Path, make: Callable[[], Arrays]) -> Arrays:
        with self._guard:
            found = self._maps.get(key)
        if found is None or found.stamp != stamp(path):
            opened = functools.partial(map_arrays, path)
            verified = self._verified.get(key)
            found = opened(verified) or _made(opened, write_arrays, path, make)
        with self._guard:
            self._verified[key] = found.stamp
            _keep(self._maps, key, found)
        return found.arrays


def _keep(opened: OrderedDict[str, _Opened], key: str, found: _Opened) -> None:
    opened[key] = found
    opened.move_to_end(key)
    while len(opened) > MOST_MAPS:
        opened.popitem(last=False)  # closed when nobody holds its arrays


def _made(
    read: Callable[[], _Opened | None],
    write: Callable[[Path, Arrays], None],
    path: Path,
    make: Callable[[], Arrays],
) -> _Opened:
    """What another process has made while this one waited for it, or this one makes now."""
    with one_process(path.parent):
        found = read()
        if found is None:
            _write_again(write, path, make)
            found = read()
    if found is None:
        raise lost(path)
    return found


def _write_again(
    write: Callable[[Path, Arrays], None], path: Path, make: Callable[[], Arrays]
) -> None:
    if path.exists():
        LOG.warning(
            "W_CACHE_REBUILT: the prepared case %s is damaged or of an older layout "
            "and is made again",
            path.name,
        )
    write(path, make())
