"""Weights as bytes: float16 on disk, float32 in use, and nothing loaded that does not fit."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from hepar.errors import ModelIntegrityError

FETCH = "copy the model folder again from where it came, or install hepar again"
_HEADER_LIMIT = 16 << 20
_MAX_TENSORS = 100_000


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
    """Refuse a safetensors header that cannot describe the bytes after it, before any is used.

    Args:
        data: the whole file.
        where: its name, for messages.

    Raises:
        ModelIntegrityError: `E_SAFETENSORS`: a header larger than the file or than 16 MiB, more
            than 100,000 tensors, offsets out of range, or tensors that overlap.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(_HEADER_LIMIT, len(data) - 8):
        raise malformed(f"{where} has a header of {length} bytes in a file of {len(data)}")
    # Counted as text: what is made of so many entries takes seconds.
    count = data.count(b"data_offsets", 8, 8 + length)
    if count > _MAX_TENSORS:
        raise malformed(f"{where} names {count} tensors")
    try:
        header = json.loads(data[8 : 8 + length])
        entries = {k: v for k, v in header.items() if k != "__metadata__"}
        spans = sorted((int(a), int(b)) for a, b in (v["data_offsets"] for v in entries.values()))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise malformed(f"{where} has a header that cannot be read: {error}") from error
    end = 0
    for begin, stop in spans:
        if begin < end or stop < begin or stop > len(data) - 8 - length:
            raise malformed(f"{where} places a tensor at {begin} to {stop}, out of its range")
        end = stop


def malformed(message: str) -> ModelIntegrityError:
    """The error for a file that no safetensors writer made."""
    return ModelIntegrityError("E_SAFETENSORS", "bundle", message, FETCH)


def parse_tensors(data: bytes, where: str) -> dict[str, Tensor]:
    """Tensors of a safetensors file, floating point as float32 and finite."""
    check_header(data, where)
    try:
        tensors = load_tensors(data)
    except Exception as error:  # the reader's own exceptions share no base class with ours
        raise malformed(f"{where} is not a safetensors file: {error}") from error
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
