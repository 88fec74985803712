"""Which query answers for which segment: segments of a typed label, and the Hungarian matching.

Cheng B. et al.: Mask2Former, CVPR 2022, and MaskFormer, NeurIPS 2021, section 3.2; Carion N. et
al.: DETR, ECCV 2020, section 3.1. LIDIA, MICCAI 2024, matches as these do.

| Mask2Former | code | shape |
|---|---|---|
| c_i^gt, m_i^gt | `Segments` | M; M, N |
| -p(c_j^gt) + L_mask | `matching_cost` | Q, M |
| sigma | `Match` | two of min(Q, M) |

Each lesion is a segment, and so are the background and the liver without its lesions, so that the
semantic map is complete. With fewer queries than segments, the segments that would cost most stay
without one.

Where the paper is silent: masks are compared at voxels, where their truth is known, not between
them; voxels that are ignored are never drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from hepar.losses import IGNORED

# Takes the place of a cost that is not finite, so that there is a matching: the loss of such
# masks is not finite either, and says so.
WORST = 1e6


@dataclass(frozen=True)
class Segments:
    """What the queries of a sample have to find; N voxels in all.

    Attributes:
        classes: of each segment.
        masks: its voxels.
        counted: numbers of the voxels that are not ignored.
    """

    classes: Int[Tensor, "m"]
    masks: Bool[Tensor, "m n"]
    counted: Int[Tensor, "k"]


@dataclass(frozen=True)
class MatchWeights:
    """What the terms of the matching cost count."""

    mask: float = 5.0
    dice: float = 5.0
    cls: float = 5.0


@dataclass(frozen=True)
class Match:
    """Queries and their segments, side by side."""

    queries: Int[Tensor, "s"]
    segments: Int[Tensor, "s"]


def segments(
    label: Int[Tensor, "z y x"],
    instances: Int[Tensor, "z y x"],
    *,
    types: Sequence[int],
    regions: Sequence[int],
) -> Segments:
    """One segment for each region that is there, then one for each lesion.

    Args:
        label: class of each voxel, -1 ignored.
        instances: number of the lesion of each voxel, 0 for none.
        types: classes of lesions; a lesion has the one that most of its voxels have.
        regions: classes that are one segment, however many pieces they have.
    """
    flat, number = label.flatten().long(), instances.flatten()
    number = torch.where(torch.isin(flat, flat.new_tensor(list(types))), number, 0)
    classes = [region for region in regions if (flat == region).any()]
    masks = [flat == region for region in classes]
    for lesion in number.unique().tolist():
        if lesion == 0:
            continue
        mask = number == lesion
        classes.append(int(flat[mask].bincount().argmax()))
        masks.append(mask)
    return Segments(
        torch.tensor(classes, dtype=torch.long, device=flat.device),
        torch.stack(masks) if masks else flat.new_zeros((0, len(flat)), dtype=torch.bool),
        (flat != IGNORED).nonzero().flatten(),
    )


def matching_cost(
    classes: Float[Tensor, "q k1"],
    masks: Float[Tensor, "q p"],
    of_segments: Int[Tensor, "m"],
    truth: Float[Tensor, "m p"],
    weights: MatchWeights,
) -> Float[Tensor, "q m"]:
    """`mask * BCE + dice * Dice - cls * p(class of the segment)` of every query and segment.

    BCE is the mean over points, Dice `1 - (2 sum p g + 1) / (sum p + sum g + 1)`.

    Args:
        classes: logits, "no object" last.
        masks: logits at points that all masks share.
        of_segments: class of each segment.
        truth: 1 where a point lies in a segment.
        weights: of the terms.
    """
    for_yes, for_no = functional.softplus(-masks), functional.softplus(masks)
    entropy = (for_yes @ truth.T + for_no @ (1.0 - truth).T) / masks.shape[1]
    p = masks.sigmoid()
    overlap = 2.0 * (p @ truth.T) + 1.0
    dice = 1.0 - overlap / (p.sum(dim=1, keepdim=True) + truth.sum(dim=1) + 1.0)
    probability = classes.softmax(dim=-1)[:, of_segments]
    return weights.mask * entropy + weights.dice * dice - weights.cls * probability


def assign(cost: Float[Tensor, "q m"]) -> Match:
    """The assignment of least cost (Kuhn, 1955); what is not finite costs as much as anything."""
    known = torch.nan_to_num(cost, nan=WORST, posinf=WORST, neginf=WORST).clamp(max=WORST)
    rows, columns = linear_sum_assignment(known.double().cpu().numpy())
    return Match(
        torch.as_tensor(rows, dtype=torch.long, device=cost.device),
        torch.as_tensor(columns, dtype=torch.long, device=cost.device),
    )
