"""Sharpness-aware minimization: the gradient of a step is taken a little uphill of the weights.

Foret P. et al.: Sharpness-Aware Minimization for Efficiently Improving Generalization, ICLR 2021,
Algorithm 1 with p = 2; LIDIA, MICCAI 2024, Table 3, "+SAM".

    e = rho g(w) / (||g(w)||_2 + 1e-12)     over all parameters together (Eq. 2)
    w <- w - lr step(g(w + e))              with whatever optimizer there is (Eq. 3)

Both gradients are of one function: the same batch, everything random drawn from the same seed, and
buffers as they were before the first, which is the pass that counts for BatchNorm's statistics and
for memory banks. Weights come back bit for bit. A gradient that is not finite, of either pass, is
left in place for whoever takes the step, and refuses it.

Where LIDIA is silent: rho is the recipe's, and only the second gradient is clipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

TINY = 1e-12


def kept_buffers(model: nn.Module) -> list[Tensor]:
    """Copies of a model's buffers, for `put_back`."""
    return [buffer.clone() for buffer in model.buffers()]


def put_back(model: nn.Module, kept: Sequence[Tensor]) -> None:
    """Give a model's buffers the values that they had."""
    for buffer, value in zip(model.buffers(), kept, strict=True):
        buffer.copy_(value)


def sharpen(
    model: nn.Module,
    loss: Callable[[], Tensor],
    before: Sequence[Tensor],
    scaler: torch.amp.GradScaler,
    rho: float,
) -> None:
    """Put the gradient at `w + e` in the place of that at `w`.

    Args:
        model: its gradients are those of the scaled loss at `w`, and again afterwards, at `w + e`.
        loss: the same loss, computed again with the weights of the moment. A model with an
            attribute `bank_frozen` has it set meanwhile.
        before: buffers as they were before the first pass.
        scaler: of the loss; gradients stay scaled.
        rho: the length of e.
    """
    climbed = [p for p in model.parameters() if p.grad is not None]
    gradients = [p.grad for p in climbed if p.grad is not None]
    scale = scaler.get_scale()
    norm = float(torch.stack([g.norm() for g in gradients]).norm()) / scale
    if not math.isfinite(norm):
        return
    after = kept_buffers(model)
    put_back(model, before)
    with moved(climbed, gradients, rho / scale / (norm + TINY)), frozen_bank(model):
        model.zero_grad(set_to_none=True)
        again = loss()
        scaler.scale(again).backward()
    put_back(model, after)
    if not torch.isfinite(again.detach()):
        for parameter in climbed:
            parameter.grad = torch.full_like(parameter, math.nan)


@contextmanager
def moved(parameters: Sequence[Tensor], along: Sequence[Tensor], by: float) -> Iterator[None]:
    """Within this block each parameter is moved by so many times its direction."""
    origin = [p.detach().clone() for p in parameters]
    try:
        with torch.no_grad():
            for parameter, direction in zip(parameters, along, strict=True):
                parameter.add_(direction, alpha=by)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, origin, strict=True):
                parameter.copy_(value)


@contextmanager
def frozen_bank(model: nn.Module) -> Iterator[None]:
    """Within this block the memory bank of a model that has one takes nothing in."""
    keeper: Any = model
    known = getattr(model, "bank_frozen", None)
    if known is None:
        yield
        return
    keeper.bank_frozen = True
    try:
        yield
    finally:
        keeper.bank_frozen = known
