"""Optimizer, and its learning rate as a pure function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from hepar.recipe import Schedule


def learning_rate(schedule: Schedule, step: int) -> float:
    """The learning rate of a step.

    Args:
        schedule: the recipe's schedule.
        step: 0 .. schedule.steps - 1.
    """
    if step < schedule.warmup:
        return schedule.lr * (step + 1) / (schedule.warmup + 1)
    done = (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup)
    if schedule.lr_schedule == "step":
        return schedule.lr * schedule.lr_factor ** (step // schedule.lr_every)
    if schedule.lr_schedule == "poly":
        return schedule.lr * (1.0 - done) ** schedule.lr_power
    if schedule.lr_schedule == "cosine":
        return schedule.lr * 0.5 * (1.0 + math.cos(math.pi * done))
    return schedule.lr


def optimizer(schedule: Schedule, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a schedule, over all parameters."""
    s = schedule
    if s.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(), lr=s.lr, momentum=s.momentum, weight_decay=s.weight_decay
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[s.optimizer]
    return kind(model.parameters(), lr=s.lr, weight_decay=s.weight_decay)
