"""What produced a result: versions, device, seed, hashes, times. And the deterministic switch.

`Provenance.stable` says what determines the numbers and goes into `findings.json`, so that the same
input gives the same file; `Provenance.as_dict` adds times and machine for `run.json`. Paths are cut
down to their names: a folder name may hold what nobody wants in a report.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import random
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "simpleitk",
    "convexAdam",
    "connected-components-3d",
    "pydicom",
    "nibabel",
    "openvino",
)
_CHUNK = 1 << 20


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Provenance:
    """One run, from its beginning.

    Attributes:
        command: the arguments, paths cut down to their names.
        device: where networks run, e.g. `cpu`.
        seed: of everything random in the run; None where nothing is.
        hashes: SHA-256 by name, e.g. of the model.
        started: when the run began.
    """

    command: tuple[str, ...] = ()
    device: str = "cpu"
    seed: int | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)
    started: datetime = field(default_factory=_now)

    @staticmethod
    def begin(
        command: Sequence[str] | None = None,
        *,
        device: str = "cpu",
        seed: int | None = None,
        hashes: Mapping[str, str] | None = None,
    ) -> Provenance:
        """Start the record of a run; the command is this process's own by default."""
        given = sys.argv if command is None else command
        return Provenance(
            tuple(_without_folders(argument) for argument in given),
            device,
            seed,
            dict(hashes or {}),
        )

    def of_input(self, sha256: str) -> Provenance:
        """The same record with the digest of what was read."""
        return replace(self, hashes={**self.hashes, "input": sha256})

    def stable(self) -> dict[str, Any]:
        """What determines the numbers: the same for the same input, program and device."""
        return {
            "hepar": hepar_version(),
            "code_sha256": code_sha256(),
            "python": platform.python_version(),
            "packages": package_versions(),
            "device": self.device,
            "seed": self.seed,
            "hashes": dict(sorted(self.hashes.items())),
        }

    def as_dict(self, finished: datetime | None = None) -> dict[str, Any]:
        """Everything, for `run.json`.

        Args:
            finished: when the run ended; now by default.
        """
        ended = finished or _now()
        return {
            **self.stable(),
            "command": shlex.join(self.command),
            "started": self.started.isoformat(timespec="seconds"),
            "finished": ended.isoformat(timespec="seconds"),
            "seconds": round((ended - self.started).total_seconds(), 2),
            "platform": platform.platform(),
            "device_name": device_name(self.device),
            "cpu_count": os.cpu_count(),
        }


def hepar_version() -> str:
    """The installed version; `0+source` when run from an uninstalled tree."""
    try:
        return metadata.version("hepar")
    except metadata.PackageNotFoundError:
        return "0+source"


def package_versions(names: Sequence[str] = PACKAGES) -> dict[str, str | None]:
    """Installed versions, without importing the packages; None where one is absent."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def sha256_json(document: Mapping[str, Any]) -> str:
    """SHA-256 of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def sha256_tree(folder: Path, pattern: str = "*") -> str:
    """SHA-256 over the relative names and bytes of a folder's files, whatever the file order.

    Args:
        folder: searched downwards; hidden files and byte code do not count.
        pattern: glob for file names.
    """
    digest = hashlib.sha256()
    relative = (p.relative_to(folder) for p in folder.rglob(pattern) if p.is_file())
    kept = (p for p in relative if not any(n.startswith((".", "__pycache__")) for n in p.parts))
    for name in sorted(p.as_posix() for p in kept):
        digest.update(f"{name}\0{sha256_file(folder / name)}\n".encode())
    return digest.hexdigest()


@cache
def code_sha256() -> str:
    """Hash of this package's own Python files: which code ran, with or without a repository."""
    return sha256_tree(Path(__file__).parent, "*.py")


def device_name(device: str) -> str:
    """The processor's name in words, as far as it can be had without importing anything heavy."""
    torch = sys.modules.get("torch")
    if device.startswith("cuda") and torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name(device))
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def deterministic(seed: int) -> None:
    """Seed Python, numpy and torch, and ask torch for deterministic kernels.

    Own code draws from explicit generators; the global ones are seeded for libraries that use
    them. numpy and torch are imported here and not before. CUDA needs its workspace fixed before
    the first call, hence the environment variable, which a value set by the user overrules.

    Args:
        seed: non-negative.
    """
    import numpy as np

    random.seed(seed)
    np.random.seed(seed % 2**32)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def _without_folders(argument: str) -> str:
    """An argument with every path in it reduced to its last part (`--phase=art=/a/b` too)."""
    head, equals, tail = argument.rpartition("=")
    return f"{head}{equals}{Path(tail).name}" if "/" in tail or "\\" in tail else argument
