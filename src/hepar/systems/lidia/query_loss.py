"""The loss of a set of queries: each prediction is matched, then its masks and classes are judged.

Mask2Former, CVPR 2022, sections 3.2 and 3.3; LIDIA, MICCAI 2024, section 2.2, L_seg and L_focal of
Eq. 6. All predictions of the mask transformer count alike; those without the last are its deep
supervision.

Where the paper is silent: the points of the matching are drawn once a sample and shared by its
queries, segments and predictions; L_seg is the mean over matched masks of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hepar.losses import IGNORED
from hepar.networks.blocks import at_least_float32, full_precision
from hepar.systems.lidia.mask_transformer import Queries
from hepar.systems.lidia.matching import Match, MatchWeights, Segments, assign, matching_cost
from hepar.systems.lidia.point_sampling import Points, mask_losses, mask_points, random_points

ClassLoss = Callable[[Float[Tensor, "b k1 q"], Int[Tensor, "b q"]], Float[Tensor, ""]]


@dataclass(frozen=True)
class QueryLoss:
    """What the queries of a batch lose.

    Attributes:
        seg: binary cross-entropy + Dice of the masks, summed over predictions.
        cls: of the classes, likewise.
        matches: of each prediction, of each sample.
    """

    seg: Float[Tensor, ""]
    cls: Float[Tensor, ""]
    matches: list[list[Match]]


def query_loss(
    queries: Queries,
    targets: Sequence[Segments],
    *,
    cls_loss: ClassLoss,
    weights: MatchWeights,
    points: Points,
) -> QueryLoss:
    """Match every prediction and judge it, in float32.

    A sample of which every voxel is ignored loses nothing.

    Args:
        queries: of the batch.
        targets: of each sample.
        cls_loss: of logits and classes, -1 ignored; queries without a segment have the class "no
            object", which is the last.
        weights: of the matching cost.
        points: how masks are sampled.
    """
    with full_precision(queries.features):
        features = at_least_float32(queries.features).flatten(2)
        drawn = [random_points(t.counted, points.count) if len(t.counted) else t.counted
                 for t in targets]  # fmt: skip
        at_points = [of[:, at].detach() for of, at in zip(features, drawn, strict=True)]
        seg, cls, matches = [], [], []
        for logits, masks in zip(queries.classes, queries.masks, strict=True):
            scores, embeddings = at_least_float32(logits), at_least_float32(masks)
            found = [
                match(scores[n].detach(), embeddings[n].detach() @ at_points[n], t, at, weights)
                for n, (t, at) in enumerate(zip(targets, drawn, strict=True))
            ]
            label = class_targets(found, targets, *scores.shape[1:])
            cls.append(cls_loss(scores.movedim(-1, 1), label))
            seg.append(segmentation(embeddings, features, found, targets, points))
            matches.append(found)
    return QueryLoss(torch.stack(seg).sum(), torch.stack(cls).sum(), matches)


def match(
    classes: Float[Tensor, "q k1"],
    masks: Float[Tensor, "q p"],
    target: Segments,
    at: Int[Tensor, "p"],
    weights: MatchWeights,
) -> Match:
    """The matching of one prediction and sample; masks are compared at given voxels."""
    truth = target.masks[:, at].to(masks)
    return assign(matching_cost(classes, masks, target.classes, truth, weights))


def class_targets(
    matches: Sequence[Match], targets: Sequence[Segments], queries: int, classes: int
) -> Int[Tensor, "b q"]:
    """Class of each query: that of its segment, or "no object"; -1 where nothing is known."""
    rows = []
    for found, target in zip(matches, targets, strict=True):
        row = target.classes.new_full((queries,), classes - 1 if len(target.counted) else IGNORED)
        row[found.queries] = target.classes[found.segments]
        rows.append(row)
    return torch.stack(rows)


def segmentation(
    masks: Float[Tensor, "b q c"],
    features: Float[Tensor, "b c n"],
    matches: Sequence[Match],
    targets: Sequence[Segments],
    points: Points,
) -> Float[Tensor, ""]:
    """L_seg of one prediction: the mean over matched masks; 0 where there is none."""
    losses = [masks.new_zeros(0)]
    for n, (found, target) in enumerate(zip(matches, targets, strict=True)):
        if not len(found.queries):
            continue
        logits = masks[n, found.queries] @ features[n]
        truth = target.masks[found.segments]
        at = mask_points(logits, truth, target.counted, points)
        entropy, dice = mask_losses(logits.gather(1, at), truth.gather(1, at).to(logits))
        losses.append(entropy + dice)
    together = torch.cat(losses)
    return together.mean() if len(together) else masks.sum() * 0.0
