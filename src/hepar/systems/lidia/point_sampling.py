"""Masks compared at a sample of voxels: the uncertain ones, some inside the mask, others anywhere.

Kirillov A. et al.: PointRend, CVPR 2020, section 3.1 and its supplement (over-sampling of uncertain
points); Mask2Former, CVPR 2022, section 3.3. The foreground-enhanced sampling of LIDIA, MICCAI
2024, section 2.2, is that of PLAN, Yan K. et al., MICCAI 2023.

Everything is drawn from torch's global generator, which training reseeds from (seed, step).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Points:
    """How voxels are drawn.

    Attributes:
        count: P, for each mask.
        oversample: candidates for each point, of which the most uncertain are taken.
        uncertain_share: of the points, taken among the candidates.
        fg_sample_ratio: of the points, drawn inside the true mask without replacement.
    """

    count: int = 12544
    oversample: float = 3.0
    uncertain_share: float = 0.75
    fg_sample_ratio: float = 0.0002


def random_points(counted: Int[Tensor, "k"], *shape: int) -> Int[Tensor, "..."]:
    """Voxels drawn with replacement among those that count."""
    return counted[torch.randint(len(counted), shape, device=counted.device)]


@torch.no_grad()
def mask_points(
    logits: Float[Tensor, "m n"],
    truth: Bool[Tensor, "m n"],
    counted: Int[Tensor, "k"],
    points: Points,
) -> Int[Tensor, "m p"]:
    """Voxels at which each mask is compared with its truth.

    The first `uncertain_share` are the candidates whose logits are nearest to 0; then come those
    inside the mask, as many as it has; the rest lie anywhere.

    Args:
        logits: of the masks.
        truth: their voxels.
        counted: numbers of the voxels that count.
        points: how many of which.
    """
    uncertain = int(points.uncertain_share * points.count)
    inside = int(points.fg_sample_ratio * points.count)
    candidates = random_points(counted, len(logits), int(points.oversample * points.count))
    doubt = logits.gather(1, candidates).abs()
    nearest = doubt.topk(uncertain, dim=1, largest=False).indices
    others = random_points(counted, len(logits), points.count - uncertain)
    for row in range(len(logits) if inside else 0):
        voxels = truth[row].nonzero().flatten()
        order = torch.randperm(len(voxels), device=voxels.device)[:inside]
        others[row, : len(order)] = voxels[order]
    return torch.cat([candidates.gather(1, nearest), others], dim=1)


def mask_losses(
    logits: Float[Tensor, "m p"], truth: Float[Tensor, "m p"]
) -> tuple[Float[Tensor, "m"], Float[Tensor, "m"]]:
    """Binary cross-entropy, the mean over points, and Dice of each mask.

    `1 - (2 sum p g + 1) / (sum p + sum g + 1)`; `p` is the sigmoid of the logits.
    """
    entropy = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    p = logits.sigmoid()
    dice = 1.0 - (2.0 * (p * truth).sum(1) + 1.0) / (p.sum(1) + truth.sum(1) + 1.0)
    return entropy.mean(dim=1), dice
