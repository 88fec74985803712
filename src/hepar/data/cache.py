"""Prepared arrays, made once: on disk under the hash of what they are made from, newest in memory.

The key is everything the arrays depend on; whoever changes how they are made changes a version in
the key. A damaged file is made again.
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
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from hepar.io.atomic import atomic_path

LOG = logging.getLogger(__name__)
Arrays = dict[str, np.ndarray]


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
            arrays = self._read(key)
            if arrays is None:
                arrays = make()
                self._write(key, arrays)
            self._keep(key, arrays)
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

    def _read(self, key: str) -> Arrays | None:
        path = self._path(key)
        if path is None or not path.exists():
            return None
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError):
            LOG.warning("prepared case %s is damaged and is made again", path.name)
            return None

    def _write(self, key: str, arrays: Arrays) -> None:
        path = self._path(key)
        if path is not None:
            with atomic_path(path) as temporary:
                save_file({k: np.ascontiguousarray(a) for k, a in arrays.items()}, temporary)
