"""Weights as bytes: float16 on disk, float32 in use, and nothing loaded that does not fit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from hepar.errors import ModelIntegrityError

FETCH = "copy the model folder again from where it came, or install hepar again"
_HEADER_LIMIT = 4 << 20


def to_half(value: Tensor) -> Tensor:
    """Float16 where that holds the values; integers and out-of-range tensors as they are."""
    value = value.detach().cpu().contiguous()
    if not value.is_floating_point():
        return value
    half = value.to(torch.float16)
    lost = (half == 0) & (value.abs() > 1e-30)
    if not torch.isfinite(half).all() or lost.float().mean() > 0.01:
        return value.to(torch.float32)
    return half


def check_header(data: bytes, where: str) -> None:
    """Refuse a safetensors header larger than the file or than any of ours."""
    header = int.from_bytes(data[:8], "little")
    if len(data) < 8 or header > min(_HEADER_LIMIT, len(data) - 8):
        raise damaged(f"{where} has a header of {header} bytes in a file of {len(data)}")


def parse_tensors(data: bytes, where: str) -> dict[str, Tensor]:
    """Tensors of a safetensors file, floating point as float32 and finite."""
    check_header(data, where)
    try:
        tensors = load_tensors(data)
    except Exception as error:  # the reader's own exceptions share no base class with ours
        raise damaged(f"{where} is not a safetensors file: {error}") from error
    found = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    for key, value in found.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise damaged(f"{where} holds values that are not finite in {key!r}")
    return found


def load_exactly(system: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """`load_state_dict` that says in words what differs."""
    wanted = {k: tuple(v.shape) for k, v in system.state_dict().items()}
    given = {k: tuple(v.shape) for k, v in tensors.items()}
    problems = [f"missing {k!r}" for k in wanted if k not in given]
    problems += [f"unexpected {k!r}" for k in given if k not in wanted]
    problems += [
        f"{k!r} is {given[k]}, expected {wanted[k]}"
        for k in wanted
        if k in given and given[k] != wanted[k]
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise damaged(f"{where} does not fit its recipe: {'; '.join(problems[:3])}{more}")
    system.load_state_dict(dict(tensors))


def damaged(message: str) -> ModelIntegrityError:
    """The error for weights that cannot be used."""
    return ModelIntegrityError("E_MODEL_WEIGHTS", "bundle", message, FETCH)
