"""Held-out cases through the network as it is: Dice a case, volume marked in vain, and the loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from hepar.data.augment import Augmentation
from hepar.data.sampling import SampleSource, ValidationCase, collate
from hepar.systems.base import InputSpec


@dataclass(frozen=True)
class Score:
    """Validation of one set of weights.

    Attributes:
        dice: mean Dice of the target classes, as one, over cases that hold them; None without such
            a case.
        n_defined: cases in that mean.
        n_missed: of these, cases of which no voxel was found.
        false_ml: mean volume marked in cases that do not hold the target; None without such a case.
        loss: mean of the training loss over all pieces; None where nobody asked, or not finite.
    """

    dice: float | None
    n_defined: int
    n_missed: int
    false_ml: float | None
    loss: float | None = None


@torch.no_grad()
def validate(
    model: nn.Module,
    source: SampleSource,
    spec: InputSpec,
    *,
    batch_size: int,
    device: torch.device,
    autocast: torch.autocast,
    with_loss: bool = False,
    stopped: Callable[[], bool] = lambda: False,
) -> Score | None:
    """Score a system on a source's held-out cases.

    Args:
        model: a `System`; left in the mode it was in.
        source: gives the cases and the classes that count.
        spec: the system's input.
        batch_size: pieces at a time.
        device: where `model` is.
        autocast: precision of the forward pass.
        with_loss: whether to ask for the system's loss, which may have side effects.
        stopped: asked before each case.

    Returns:
        None when it was stopped before the last case.
    """
    mode = model.training
    model.eval()
    prepare = Augmentation(None, spec, seed=0, device=device)
    targets = torch.zeros(len(spec.class_names), dtype=torch.bool, device=device)
    targets[list(source.target_classes)] = True
    dice: list[float] = []
    missed, false_ml = 0, []
    losses: list[float] = []
    pieces = 0
    for case in source.validation():
        if stopped():
            model.train(mode)
            return None
        (overlap, predicted, true), loss = _count(
            model, case, prepare, targets, batch_size, spec.needs_liver, autocast, with_loss
        )
        losses.append(loss)
        pieces += len(case.pieces)
        if true:
            dice.append(2 * overlap / (predicted + true))
            missed += overlap == 0
        else:
            false_ml.append(predicted * case.voxel_ml)
    model.train(mode)
    mean = math.fsum(losses) / pieces if with_loss and pieces else math.nan
    return Score(
        dice=sum(dice) / len(dice) if dice else None,
        n_defined=len(dice),
        n_missed=missed,
        false_ml=sum(false_ml) / len(false_ml) if false_ml else None,
        loss=mean if math.isfinite(mean) else None,
    )


def _count(
    model: Any,
    case: ValidationCase,
    prepare: Augmentation,
    targets: Bool[Tensor, " k"],
    batch_size: int,
    inside_liver: bool,
    autocast: torch.autocast,
    with_loss: bool,
) -> tuple[tuple[int, int, int], float]:
    """Voxels of the targets (found, marked, true), and the sum of the loss over pieces."""
    totals = torch.zeros(3, dtype=torch.int64)
    loss = 0.0
    for first in range(0, len(case.pieces), batch_size):
        batch = prepare(*collate(case.pieces[first : first + batch_size]), [])
        with autocast:
            outputs = model(batch.image, batch.present)
            learned = model.targets(batch) if with_loss else None
        if with_loss:
            # As in a training step in float32, and a mean over the pieces of the batch.
            loss += float(model.loss(outputs, learned)) * len(batch.label)
        marked = targets[model.decode(outputs).argmax(dim=1)]
        if inside_liver:
            marked &= batch.liver
        known = batch.label >= 0
        marked &= known
        truth = targets[batch.label.clamp(min=0)] & known
        totals += torch.stack([(marked & truth).sum(), marked.sum(), truth.sum()]).cpu()
    overlap, predicted, true = (int(v) for v in totals)
    return (overlap, predicted, true), loss
