"""Which device networks run on."""

from __future__ import annotations

from hepar.errors import UsageError


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
    if not available.get(name, False):
        raise UsageError("E_DEVICE", "cli", f"No {name} device here.", "Use --device cpu or auto.")
    return name
