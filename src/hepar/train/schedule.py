"""Optimizer, its learning rate as a pure function of step and reductions, and epochs as steps."""

from __future__ import annotations

import math

import torch
from torch import nn

from hepar.recipe import Recipe, Schedule


def learning_rate(schedule: Schedule, step: int, reductions: int = 0) -> float:
    """The learning rate of a step.

    Args:
        schedule: the recipe's schedule.
        step: 0 .. schedule.steps - 1.
        reductions: plateaus before that step; 0 under every schedule but `plateau`.
    """
    reduced = schedule.lr * schedule.lr_factor**reductions
    if step < schedule.warmup:
        return reduced * (step + 1) / (schedule.warmup + 1)
    done = (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup)
    if schedule.lr_schedule == "step":
        return schedule.lr * schedule.lr_factor ** (step // schedule.lr_every)
    if schedule.lr_schedule == "poly":
        return schedule.lr * (1.0 - done) ** schedule.lr_power
    if schedule.lr_schedule == "cosine":
        return schedule.lr * 0.5 * (1.0 + math.cos(math.pi * done))
    return reduced


def in_steps(recipe: Recipe, samples: int) -> Recipe:
    """The recipe with a schedule counted in steps.

    Args:
        recipe: counted in either.
        samples: in an epoch; its last step may reach into the next one.

    Returns:
        `steps`, `warmup`, `lr_every` and `validate_every` as that many epochs of steps (so that
        `validate_every: 1` validates after each epoch); `checkpoint_every` is in steps in either.
    """
    schedule = recipe.schedule
    if schedule.counted_in == "steps":
        return recipe
    epoch = -(-samples // schedule.batch_size)
    names = ("steps", "warmup", "lr_every", "validate_every")
    counted = {name: epoch * getattr(schedule, name) for name in names}
    changed = schedule.model_copy(update={"counted_in": "steps", **counted})
    return recipe.model_copy(update={"schedule": changed})


def optimizer(schedule: Schedule, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a schedule, over all parameters."""
    s = schedule
    if s.optimizer in ("sgd", "nesterov"):
        return torch.optim.SGD(
            model.parameters(),
            lr=s.lr,
            momentum=s.momentum,
            weight_decay=s.weight_decay,
            nesterov=s.optimizer == "nesterov",
        )
    if s.optimizer == "radam":
        # Liu et al., ICLR 2020: their own code decays weights apart from the gradient.
        return torch.optim.RAdam(
            model.parameters(),
            lr=s.lr,
            weight_decay=s.weight_decay,
            decoupled_weight_decay=True,
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[s.optimizer]
    return kind(model.parameters(), lr=s.lr, weight_decay=s.weight_decay)
