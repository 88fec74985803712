"""Prepared arrays, made once: on disk under the hash of what they are made from, newest in memory.

The key is everything the arrays depend on; whoever changes how they are made changes a version in
the key. Each file holds a SHA-256 over the names, types, shapes and values of its arrays: a file
that is cut short, has one other byte, or was written in an older layout is made again, which is
logged as `W_CACHE_REBUILT`. Of processes that want the same arrays at once, one makes them.
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

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hepar.io.atomic import atomic_path, one_process

LOG = logging.getLogger(__name__)
Arrays = dict[str, np.ndarray]
_DIGEST = "sha256 of the arrays"


def content_key(parts: Mapping[str, Any]) -> str:
    """SHA-256 of JSON data, independent of the order of its keys."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def arrays_hash(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the names, types, shapes and values of arrays."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


class ArrayCache:
    """Named arrays by key; safe for several threads and several processes.

    Args:
        folder: where files lie; None keeps arrays in memory only.
        memory_bytes: arrays kept in memory beside that, the least recently used going first.
    """

    def __init__(self, folder: Path | None, *, memory_bytes: int = 512 * 2**20) -> None:
        self.folder = folder
        self.memory_bytes = memory_bytes
        self._kept: OrderedDict[str, Arrays] = OrderedDict()
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()

    def get(self, parts: Mapping[str, Any], make: Callable[[], Arrays]) -> Arrays:
        """The arrays of a key, made if need be; threads asking for the same key make it once.

        Args:
            parts: everything the arrays depend on, as JSON data.
            make: a pure function of `parts`.
        """
        key = content_key(parts)
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            with self._guard:
                if key in self._kept:
                    self._kept.move_to_end(key)
                    return self._kept[key]
            arrays = self._from_disk(key, make)
            self._keep(key, arrays)
        return arrays

    def _from_disk(self, key: str, make: Callable[[], Arrays]) -> Arrays:
        path = self._path(key)
        if path is None:
            return make()
        arrays = _read(path)
        if arrays is not None:
            return arrays
        with one_process(path.parent):
            # Another process may have made them while this one waited.
            arrays = _read(path)
            if arrays is None:
                if path.exists():
                    LOG.warning(
                        "W_CACHE_REBUILT: the prepared case %s is damaged or of an older layout "
                        "and is made again",
                        path.name,
                    )
                arrays = make()
                _write(path, arrays)
        return arrays

    def _keep(self, key: str, arrays: Arrays) -> None:
        with self._guard:
            self._kept[key] = arrays
            total = sum(a.nbytes for kept in self._kept.values() for a in kept.values())
            while total > self.memory_bytes and len(self._kept) > 1:
                old, dropped = self._kept.popitem(last=False)
                self._locks.pop(old, None)
                total -= sum(a.nbytes for a in dropped.values())

    def _path(self, key: str) -> Path | None:
        return None if self.folder is None else self.folder / key[:2] / f"{key}.safetensors"


def _read(path: Path) -> Arrays | None:
    """The arrays of a file; None where it is missing, damaged, or of another layout."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="np") as file:
            written = (file.metadata() or {})[_DIGEST]
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None
    return arrays if arrays_hash(arrays) == written else None


def _write(path: Path, arrays: Arrays) -> None:
    plain = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with atomic_path(path) as temporary:
        save_file(plain, temporary, metadata={_DIGEST: arrays_hash(plain)})
