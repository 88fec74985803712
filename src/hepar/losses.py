"""Training losses: one function a loss, formula and source in its docstring.

Those of one class a voxel take logits and integer labels in which -1 means "ignored"; those of
several channels, each its own yes or no, take soft targets and the voxels that count. All compute
in float32 at least, autocast or not: a bfloat16 sum over a batch of voxels has two significant
digits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
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


def squared_dice(
    logits: Float[Tensor, "b k *spatial"],
    label: Int[Tensor, "b *spatial"],
    *,
    joint: bool = True,
    background: bool = True,
    smooth: float = 1e-5,
) -> Float[Tensor, ""]:
    """One minus the soft Dice with squares in the denominator, of all classes or of each.

    `L = 1 - 2 sum_ic g_ic p_ic / (sum_ic g_ic^2 + sum_ic p_ic^2 + s)`, sums over the voxels of the
    batch with a label other than -1 and, with `joint`, over the classes; otherwise a ratio for each
    class, averaged. A class that is neither there nor predicted then costs 1 and moves nothing.

    Args:
        logits: unnormalized scores; `p` is their softmax.
        label: class index, -1 ignored.
        joint: one ratio for all classes. With the background among them it says most of all, for
            `sum_ic g_ic^2` is the number of voxels.
        background: whether class 0 is one of them.
        smooth: `s`, in voxels.

    Source: Milletari et al., V-Net, 3DV 2016, section 3; Zhang Y. et al., DPC-Net, 2022, Eq. 12.
    """
    with full_precision(logits):
        scores = at_least_float32(logits).flatten(2)
        flat = label.flatten(1)
        counted = (flat != IGNORED).unsqueeze(1)
        first = 0 if background else 1
        classes = torch.arange(first, scores.shape[1], device=scores.device).view(1, -1, 1)
        truth = (flat.unsqueeze(1) == classes).to(scores)
        probability = scores.softmax(dim=1)[:, first:] * counted
        overlap = (probability * truth).sum((0, 2))
        size = truth.sum((0, 2)) + probability.square().sum((0, 2))
        if joint:
            overlap, size = overlap.sum(), size.sum()
        return 1.0 - (2.0 * overlap / (size + smooth)).mean()


def binary_cross_entropy(
    logits: Float[Tensor, "b c *spatial"],
    target: Float[Tensor, "b c *spatial"],
    counted: Bool[Tensor, "b *spatial"],
) -> Float[Tensor, ""]:
    """Mean binary cross-entropy over channels and the voxels that count.

    `L = -mean_i (g_i log p_i + (1 - g_i) log(1 - p_i))`, `p` the sigmoid of the logits; 0 (with a
    gradient of 0) when none counts. Soft targets are fine; the minimum is then their entropy.

    Args:
        logits: unnormalized scores, a yes or no each channel.
        target: `g` in [0, 1].
        counted: voxels that count, the same in every channel.

    Source: Tang et al., E2Net, MICCAI 2020, Eq. 1, which prints the sum over pixels.
    """
    with full_precision(logits):
        scores = at_least_float32(logits)
        weight = counted.unsqueeze(1).to(scores)
        total = F.binary_cross_entropy_with_logits(
            scores, target.to(scores), weight=weight, reduction="sum"
        )
        norm = weight.sum() * scores.shape[1]
        return total / norm.clamp(min=torch.finfo(scores.dtype).tiny)


def soft_iou(
    logits: Float[Tensor, "b c *spatial"],
    target: Float[Tensor, "b c *spatial"],
    counted: Bool[Tensor, "b *spatial"],
    *,
    smooth: float = 1.0,
) -> Float[Tensor, ""]:
    """One minus the soft intersection over union of each image and channel, averaged.

    `L = 1 - mean (sum_i g_i p_i + s) / (sum_i (g_i + p_i - g_i p_i) + s)`, sums over the voxels of
    an image that count, `p` the sigmoid of the logits.

    Args:
        logits: unnormalized scores, a yes or no each channel.
        target: `g` in [0, 1].
        counted: voxels that count, the same in every channel.
        smooth: `s`, in voxels. With 1 an empty target that nothing is predicted for costs 0, and
            what is predicted there has a gradient. With 0, as printed, it costs 1 whatever is
            predicted, without a gradient.

    Source: Rahman and Wang, ISVC 2016; Tang et al., E2Net, MICCAI 2020, Eq. 2, without `s`.
    """
    with full_precision(logits):
        weight = counted.unsqueeze(1).to(at_least_float32(logits))
        p = (at_least_float32(logits).sigmoid() * weight).flatten(2)
        g = (target.to(weight) * weight).flatten(2)
        both = (g * p).sum(-1)
        either = g.sum(-1) + p.sum(-1) - both
        tiny = torch.finfo(p.dtype).tiny
        return 1.0 - ((both + smooth) / (either + smooth).clamp(min=tiny)).mean()


def focal(
    logits: Float[Tensor, "b k *spatial"], label: Int[Tensor, "b *spatial"], *, gamma: float = 2.0
) -> Float[Tensor, ""]:
    """Mean focal loss of the softmax over the places that count.

    `L = -mean_i (1 - p_i)^gamma log p_i`, `p_i` the probability of the class `y_i`, over places
    with `y_i != -1`; 0 (with a gradient of 0) when none counts.

    Args:
        logits: unnormalized scores.
        label: class index, -1 ignored.
        gamma: 0 is the cross-entropy.

    Source: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, Eq. 4, of several classes.
    """
    with full_precision(logits):
        counted = (label != IGNORED).flatten()
        scores = at_least_float32(logits).movedim(1, -1).flatten(0, -2)[counted]
        log_p = scores.log_softmax(dim=-1)
        log_p = log_p.gather(1, label.long().flatten()[counted].unsqueeze(1)).squeeze(1)
        # Without cancellation where p is nearly 1; above 0, where a power below 1 has no gradient.
        miss = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)
        return -(miss**gamma * log_p).sum() / max(1, len(log_p))
