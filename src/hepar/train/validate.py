"""Held-out cases through the network as it is: Dice a case, and what is marked where nothing is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hepar.data.augment import Augmentation
from hepar.data.sampling import SampleSource, ValidationCase, collate
from hepar.systems.base import InputSpec


@dataclass(frozen=True)
class Score:
    """Validation of one set of weights.

    Attributes:
        dice: mean Dice of the target class over cases that hold it; None without such a case.
        n_defined: cases in that mean.
        n_missed: of these, cases of which no voxel was found.
        false_ml: mean volume marked in cases that do not hold the target; None without such a case.
    """

    dice: float | None
    n_defined: int
    n_missed: int
    false_ml: float | None


@torch.no_grad()
def validate(
    model: nn.Module,
    source: SampleSource,
    spec: InputSpec,
    *,
    batch_size: int,
    device: torch.device,
    autocast: torch.autocast,
    stopped: Callable[[], bool] = lambda: False,
) -> Score | None:
    """Score a system on a source's held-out cases.

    Args:
        model: a `System`; left in the mode it was in.
        source: gives the cases and the class that counts.
        spec: the system's input.
        batch_size: pieces at a time.
        device: where `model` is.
        autocast: precision of the forward pass.
        stopped: asked before each case.

    Returns:
        None when it was stopped before the last case.
    """
    mode = model.training
    model.eval()
    prepare = Augmentation(None, spec, seed=0, device=device)
    target = spec.class_names.index(source.target_class)
    dice: list[float] = []
    missed, false_ml = 0, []
    for case in source.validation():
        if stopped():
            model.train(mode)
            return None
        overlap, predicted, true = _count(
            model, case, prepare, target, batch_size, spec.needs_liver, autocast
        )
        if true:
            dice.append(2 * overlap / (predicted + true))
            missed += overlap == 0
        else:
            false_ml.append(predicted * case.voxel_ml)
    model.train(mode)
    return Score(
        dice=sum(dice) / len(dice) if dice else None,
        n_defined=len(dice),
        n_missed=missed,
        false_ml=sum(false_ml) / len(false_ml) if false_ml else None,
    )


def _count(
    model: Any,
    case: ValidationCase,
    prepare: Augmentation,
    target: int,
    batch_size: int,
    inside_liver: bool,
    autocast: torch.autocast,
) -> tuple[int, int, int]:
    """Voxels of the target: found, marked, true."""
    totals = torch.zeros(3, dtype=torch.int64)
    for first in range(0, len(case.pieces), batch_size):
        batch = prepare(*collate(case.pieces[first : first + batch_size]), [])
        with autocast:
            outputs = model(batch.image, batch.present)
        marked = model.decode(outputs).argmax(dim=1) == target
        if inside_liver:
            marked &= batch.liver
        marked &= batch.label >= 0
        truth = batch.label == target
        totals += torch.stack([(marked & truth).sum(), marked.sum(), truth.sum()]).cpu()
    overlap, predicted, true = (int(v) for v in totals)
    return overlap, predicted, true
