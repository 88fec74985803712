"""What flags mean: stated phases and the device, checked before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hepar.errors import UsageError

if TYPE_CHECKING:
    from hepar.study import Phase


def stated_phases(pairs: tuple[str, ...]) -> dict[Phase, Path]:
    """`PHASE=PATH` pairs by phase; a phase by our name or any other of `io.phase_words.NAMED`.

    Raises:
        UsageError: `E_USAGE`, a pair names no phase or no path, or a phase comes twice.
    """
    from hepar.io.phase_words import NAMED

    stated: dict[Phase, Path] = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        phase = NAMED.get(name.strip().lower())
        if not equals or phase is None or not path:
            raise UsageError(
                "E_USAGE",
                "cli",
                f"--phase {pair!r} does not name a phase and a path.",
                f"Write it as --phase art=PATH, with one of {', '.join(NAMED)}.",
            )
        if phase in stated:
            raise UsageError(
                "E_USAGE",
                "cli",
                f"--phase {name} is given twice: it is {phase.long_name}.",
                "Give each phase once.",
            )
        stated[phase] = Path(path)
    return stated


def pick_device(name: str) -> str:
    """`auto` as the best device there is.

    Raises:
        UsageError: `E_DEVICE`, there is no such device.
    """
    if name == "cpu":
        return name
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return "cuda" if available["cuda"] else "cpu"
    if not available[name]:
        raise UsageError("E_DEVICE", "cli", f"No {name} device here.", "Use --device cpu or auto.")
    return name
