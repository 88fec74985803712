"""Training losses: one function a loss, formula and source in its docstring.

All take logits and integer labels in which -1 means "ignored", and compute in float32 at least,
autocast or not: a bfloat16 sum over a batch of voxels has two significant digits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hepar.networks.blocks import at_least_float32, full_precision

IGNORED = -1


def cross_entropy(
    logits: Float[Tensor, "b k *spatial"],
    label: Int[Tensor, "b *spatial"],
    *,
    class_weights: Float[Tensor, "k"] | None = None,
) -> Float[Tensor, ""]:
    """Mean cross-entropy over the voxels that count.

    `L = -sum_i w[y_i] log softmax(l_i)[y_i] / sum_i w[y_i]`, over voxels with `y_i != -1`; 0 (with
    a gradient of 0) when none counts.

    Args:
        logits: unnormalized scores.
        label: class index, -1 ignored.
        class_weights: `w`, one for each class; None for 1.

    Source: the negative log-likelihood, normalized as `torch.nn.CrossEntropyLoss`.
    """
    with full_precision(logits):
        scores = at_least_float32(logits)
        weights = None if class_weights is None else class_weights.to(scores)
        total = F.cross_entropy(
            scores, label.long(), weight=weights, ignore_index=IGNORED, reduction="sum"
        )
        counted = label != IGNORED
        if weights is None:
            norm = counted.sum().to(scores)
        else:
            norm = torch.where(counted, weights[label.clamp(min=0).long()], 0.0).sum()
        return total / norm.clamp(min=torch.finfo(scores.dtype).tiny)


def soft_dice(
    logits: Float[Tensor, "b k *spatial"],
    label: Int[Tensor, "b *spatial"],
    *,
    smooth: float = 1.0,
    per_sample: bool = False,
) -> Float[Tensor, ""]:
    """One minus the soft Dice of the foreground classes, averaged over them.

    `L = 1 - mean_k (2 sum_i p_ik y_ik + s) / (sum_i p_ik + sum_i y_ik + s)`, `k >= 1`, sums over
    voxels with a label other than -1.

    Args:
        logits: unnormalized scores; `p` is their softmax.
        label: class index, -1 ignored.
        smooth: `s`, in voxels. It makes an empty class predicted empty score 1, not 0/0.
        per_sample: Dice of each sample, then the mean; otherwise the batch is one volume, which is
            steadier when most samples hold no tumor.

    Source: Milletari et al., V-Net, 3DV 2016, section 3, with the first-power denominator of
    Drozdzal et al., DLMIA 2016.
    """
    with full_precision(logits):
        scores = at_least_float32(logits).flatten(2)
        flat = label.flatten(1)
        counted = (flat != IGNORED).unsqueeze(1)
        classes = torch.arange(1, scores.shape[1], device=scores.device).view(1, -1, 1)
        truth = (flat.unsqueeze(1) == classes).to(scores)
        probability = scores.softmax(dim=1)[:, 1:] * counted
        axes = (2,) if per_sample else (0, 2)
        overlap = (probability * truth).sum(axes)
        size = probability.sum(axes) + truth.sum(axes)
        return 1.0 - ((2.0 * overlap + smooth) / (size + smooth)).mean()
