"""Prepared arrays, made once: on disk under the hash of what they are made from, or in memory.

The key is everything the arrays depend on; whoever changes how they are made changes a version in
the key. A process verifies each file when it first asks for it, and then reads of its arrays what
it looks at (`array_file`): a file that is cut short, has one other byte, or was written in an older
layout is made again, which is logged as `W_CACHE_REBUILT`. Of processes that want the same arrays
at once, one makes them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hepar.data.array_file import Arrays, Mapped, Stamp, map_arrays, stamp, write_arrays
from hepar.errors import ResourceExhausted
from hepar.io.atomic import one_process

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
        folder: where files lie, of which arrays are read-only maps; None keeps arrays in memory.
        memory_bytes: arrays kept in memory without a folder, the least recently used going first.
    """

    def __init__(self, folder: Path | None, *, memory_bytes: int = 512 * 2**20) -> None:
        self.folder = folder
        self.memory_bytes = memory_bytes
        self._kept: OrderedDict[str, Arrays] = OrderedDict()
        self._maps: OrderedDict[str, Mapped] = OrderedDict()
        self._verified: dict[str, Stamp] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()

    def get(self, parts: Mapping[str, Any], make: Callable[[], Arrays]) -> Arrays:
        """The arrays of a key, made if need be; threads asking for the same key make it once.

        Args:
            parts: everything the arrays depend on, as JSON data.
            make: a pure function of `parts`.

        Raises:
            ResourceExhausted: `E_OUTPUT_WRITE`, they cannot be written, or not read again.
        """
        key = content_key(parts)
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if self.folder is None:
                return self._from_memory(key, make)
            return self._from_disk(key, self.folder / key[:2] / f"{key}.safetensors", make)

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
            found = map_arrays(path, self._verified.get(key)) or _made(path, make)
        with self._guard:
            self._verified[key] = found.stamp
            self._maps[key] = found
            self._maps.move_to_end(key)
            while len(self._maps) > MOST_MAPS:
                self._maps.popitem(last=False)  # closed when nobody holds its arrays
        return found.arrays


def _made(path: Path, make: Callable[[], Arrays]) -> Mapped:
    """What another process has made while this one waited for it, or this one makes now."""
    with one_process(path.parent):
        found = map_arrays(path)
        if found is None:
            if path.exists():
                LOG.warning(
                    "W_CACHE_REBUILT: the prepared case %s is damaged or of an older layout "
                    "and is made again",
                    path.name,
                )
            write_arrays(path, make())
            found = map_arrays(path)
    if found is None:
        raise ResourceExhausted(
            "E_OUTPUT_WRITE",
            "cache",
            f"{path.name} was written and cannot be read again as it was written.",
            "Give a cache folder on a disk that is intact and whose files can be mapped.",
        )
    return found
