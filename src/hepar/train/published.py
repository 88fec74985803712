"""Published weights of a trunk, as torchvision distributes them, to start a run from."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hepar.errors import UsageError
from hepar.infer.weights import check_header


def start_trunk(model: nn.Module, path: Path) -> None:
    """Load a torchvision state dict into a system's trunk.

    Args:
        model: a system with `load_trunk`.
        path: `.safetensors`, or `.pth`, of which tensors alone are read: nothing in it is run.

    Raises:
        UsageError: `E_RECIPE`: the file cannot be read or does not fit, or the system has no trunk
            with published weights.
        ModelIntegrityError: `E_SAFETENSORS`, the file's header is made up.
    """
    load: Any = getattr(model, "load_trunk", None)
    if load is None:
        raise _refuse(path, "the system has no trunk with published weights")
    try:
        load(_read(path))
    except ValueError as error:
        raise _refuse(path, str(error)) from None


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            check_header(path.read_bytes(), path.name)
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError) as error:
        raise _refuse(path, f"it cannot be read ({type(error).__name__})") from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise _refuse(path, "it is no table of names and tensors")
    return dict(state)


def _refuse(path: Path, problem: str) -> UsageError:
    return UsageError(
        "E_RECIPE",
        "train",
        f"schedule.trunk_weights {path.name}: {problem}.",
        "Give torchvision's file of the recipe's backbone.",
    )
