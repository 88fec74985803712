"""A training run of milliseconds a step: everything of a real one but the size of its network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blob_source import BlobSource
from fake_systems import spec_2d
from hepar.recipe import Recipe, load_recipe
from hepar.systems.base import Batch
from hepar.train import loop
from hepar.train.loop import TrainResult

ROOT = Path(__file__).resolve().parents[2]
TOY = ROOT / "recipes" / "sam_urim" / "smoke.yaml"
SPEC = spec_2d(spacing_mm=(8.0, 5.0, 5.0))


class TinyNet(nn.Module):
    """Batch statistics, dropout and a few weights: whatever a resumed run could get wrong."""

    input_spec = SPEC

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, image: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        found = torch.relu(self.norm(self.first(image[:, :, 0])))
        return self.last(torch.dropout(found, 0.2, self.training))

    def targets(self, batch: Batch) -> torch.Tensor:
        return batch.label

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, targets, ignore_index=-1)

    def decode(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.softmax(dim=1)


def use_tiny_net(replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """Let the loop train `TinyNet` in the place of a recipe's system."""
    replace(loop, "starting_model", lambda _recipe: TinyNet())


def tiny_recipe(*overrides: str) -> Recipe:
    """24 steps of two samples; checkpoints, validations and log lines at steps of their own."""
    settings = (
        *("schedule.steps=24", "schedule.checkpoint_every=3", "schedule.validate_every=8"),
        *("schedule.ema_decay=0.9", "schedule.lr=0.01"),
    )
    return load_recipe(TOY, (*settings, *overrides))


def tiny_train(out: Path, *overrides: str, **options: Any) -> TrainResult:
    """Train `TinyNet` on blobs."""
    options = {"source": BlobSource(SPEC), "workers": 0, **options}
    return loop.train(tiny_recipe(*overrides), out, **options)
