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
        fixed = features.detach()
        drawn = [random_points(t.counted, points.count) if len(t.counted) else t.counted
                 for t in targets]  # fmt: skip
        at_points = [of[:, at] for of, at in zip(fixed, drawn, strict=True)]
        embeddings = [at_least_float32(masks) for masks in queries.masks]
        cls, matches, voxels = [], [], []
        for logits, masks in zip(queries.classes, embeddings, strict=True):
            scores = at_least_float32(logits)
            found = [
                match(scores[n].detach(), masks[n].detach() @ at_points[n], t, at, weights)
                for n, (t, at) in enumerate(zip(targets, drawn, strict=True))
            ]
            label = class_targets(found, targets, *scores.shape[1:])
            cls.append(cls_loss(scores.movedim(-1, 1), label))
            matches.append(found)
            voxels.append([
                compared_at(masks[n].detach(), fixed[n], f, t, points)
                for n, (f, t) in enumerate(zip(found, targets, strict=True))
            ])  # fmt: skip
        seg = segmentation(embeddings, features, matches, targets, voxels)
    return QueryLoss(seg, torch.stack(cls).sum(), matches)


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
    masks: Sequence[Float[Tensor, "b q c"]],
    features: Float[Tensor, "b c n"],
    matches: Sequence[Sequence[Match]],
    targets: Sequence[Segments],
    voxels: Sequence[Sequence[Int[Tensor, "_ p"]]],
) -> Float[Tensor, ""]:
    """L_seg, summed over predictions: of each the mean over matched masks, 0 where there is none.

    Features of a sample are gathered once, at the voxels of all its masks and predictions: each
    gathering by itself would cost a gradient as large as the features, which are whole volumes.

    Args:
        masks: embeddings of each prediction.
        features: that masks are products with.
        matches: of each prediction, of each sample.
        targets: of each sample.
        voxels: of each prediction, of each sample with a match: where its masks are compared.
    """
    losses: list[list[Tensor]] = [[] for _ in masks]
    for n, (of_sample, target) in enumerate(zip(features.unbind(), targets, strict=True)):
        every = torch.cat([of[n].flatten() for of in voxels])
        gathered = of_sample.gather(1, every.expand(len(of_sample), -1))
        parts = gathered.split([of[n].numel() for of in voxels], dim=1)
        for i, (part, at) in enumerate(zip(parts, (of[n] for of in voxels), strict=True)):
            found = matches[i][n]
            embedded = masks[i][n, found.queries]
            logits = torch.einsum("mc,cmp->mp", embedded, part.unflatten(1, at.shape))
            truth = target.masks[found.segments].gather(1, at)
            entropy, dice = mask_losses(logits, truth.to(logits))
            losses[i].append(entropy + dice)
    together = [torch.cat(of) for of in losses]
    means = [of.mean() if len(of) else masks[i].sum() * 0.0 for i, of in enumerate(together)]
    return torch.stack(means).sum()


@torch.no_grad()
def compared_at(
    masks: Float[Tensor, "q c"],
    features: Float[Tensor, "c n"],
    match: Match,
    target: Segments,
    points: Points,
) -> Int[Tensor, "m p"]:
    """Voxels at which the matched masks of one prediction and sample are compared."""
    if not len(match.queries):
        return match.queries.new_zeros((0, points.count))
    logits = masks[match.queries] @ features
    return mask_points(logits, target.masks[match.segments], target.counted, points)
