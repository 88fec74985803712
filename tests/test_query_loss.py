"""The loss of queries: segments, matching, points and the whole of it, against loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from hepar.losses import focal
from hepar.systems.lidia.mask_transformer import Queries
from hepar.systems.lidia.matching import (
    Match,
    MatchWeights,
    Segments,
    assign,
    matching_cost,
    segments,
)
from hepar.systems.lidia.point_sampling import Points, mask_losses, mask_points, random_points
from hepar.systems.lidia.query_loss import class_targets, match, query_loss

TYPES, REGIONS = range(1, 9), (0, 9)
FEW = Points(count=12, oversample=3.0, uncertain_share=0.5, fg_sample_ratio=0.25)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _entropy(logits: list[float], truth: list[float]) -> float:
    terms = [
        -math.log(_sigmoid(x)) if t else -math.log(1 - _sigmoid(x))
        for x, t in zip(logits, truth, strict=True)
    ]
    return sum(terms) / len(terms)


def _dice(logits: list[float], truth: list[float]) -> float:
    p = [_sigmoid(x) for x in logits]
    overlap = sum(a * b for a, b in zip(p, truth, strict=True))
    return 1 - (2 * overlap + 1) / (sum(p) + sum(truth) + 1)


def test_closed_form_segments_of_a_label():
    label = torch.tensor([[[0, 0, 9, 9, 1, 1, -1, 6, 6, 1, -1, -1]]])
    lesion = torch.tensor([[[0, 0, 0, 5, 7, 7, 7, 3, 3, 3, 4, 4]]])
    found = segments(label, lesion, types=TYPES, regions=REGIONS)
    # Background and liver; lesion 3, two of whose voxels are cyst and one HCC; lesion 7 without its
    # ignored voxel. Nothing is known of lesion 4, and 5 lies where the label says liver.
    assert found.classes.tolist() == [0, 9, 6, 1]
    assert [row.nonzero().flatten().tolist() for row in found.masks] == [
        [0, 1], [2, 3], [7, 8, 9], [4, 5]
    ]  # fmt: skip
    assert found.counted.tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9]
    nothing = segments(label.fill_(-1), lesion, types=TYPES, regions=REGIONS)
    assert tuple(nothing.masks.shape) == (0, 12)
    assert len(nothing.classes) == len(nothing.counted) == 0


def test_oracle_the_cost_of_matching():
    generator = torch.Generator().manual_seed(0)
    classes = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    masks = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    truth = (torch.rand(2, 7, generator=generator) < 0.4).double()
    of = torch.tensor([3, 0])
    found = matching_cost(classes, masks, of, truth, MatchWeights(5.0, 4.0, 3.0))
    for q, m in itertools.product(range(3), range(2)):
        scores = [math.exp(s) for s in classes[q].tolist()]
        expected = 5 * _entropy(masks[q].tolist(), truth[m].tolist())
        expected += 4 * _dice(masks[q].tolist(), truth[m].tolist())
        expected -= 3 * scores[int(of[m])] / sum(scores)
        assert float(found[q, m]) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)])
def test_oracle_the_assignment_is_the_best_of_all(shape):
    cost = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = assign(cost)
    few, many = sorted(shape)
    table = cost.T if shape[0] > shape[1] else cost
    best = min(
        sum(float(table[i, j]) for i, j in enumerate(chosen))
        for chosen in itertools.permutations(range(many), few)
    )
    assert len(found.queries) == len(found.segments) == few
    assert len(set(found.segments.tolist())) == len(set(found.queries.tolist())) == few
    assert float(cost[found.queries, found.segments].sum()) == pytest.approx(best, rel=1e-5)


def test_property_costs_that_are_not_finite_are_the_last_to_be_chosen():
    cost = torch.tensor([[math.nan, 1.0, 2.0], [0.0, math.inf, 5.0], [1.0, -math.inf, math.nan]])
    found = assign(cost)
    assert dict(zip(found.queries.tolist(), found.segments.tolist(), strict=True)) in (
        {0: 1, 1: 2, 2: 0},
        {0: 2, 1: 0, 2: 1},
        {0: 1, 1: 0, 2: 2},
    )
    every = assign(torch.full((4, 2), math.nan))
    assert len(every.queries) == 2


def _many(lesions: int, each: int = 4) -> Segments:
    """A liver around as many lesions as that, each of a few voxels."""
    label = torch.full((1, 1, 8 + each * lesions), 9)
    instances = torch.zeros_like(label)
    for n in range(lesions):
        at = slice(8 + each * n, 8 + each * (n + 1))
        label[..., at], instances[..., at] = n % 8 + 1, n + 1
    return segments(label, instances, types=TYPES, regions=REGIONS)


def test_property_sixty_lesions_of_fifty_queries():
    target, generator = _many(60), torch.Generator().manual_seed(0)
    assert len(target.classes) == 61
    classes = torch.randn(50, 11, generator=generator)
    masks = torch.randn(50, target.masks.shape[1], generator=generator)
    at = torch.arange(target.masks.shape[1])
    found = match(classes, masks, target, at, MatchWeights())
    assert sorted(found.queries.tolist()) == list(range(50))
    assert len(set(found.segments.tolist())) == 50
    # What is left out would not have cost less: no single exchange improves the sum.
    cost = matching_cost(classes, masks, target.classes, target.masks.float(), MatchWeights())
    left = sorted(set(range(61)) - set(found.segments.tolist()))
    assert len(left) == 11
    chosen = cost[found.queries, found.segments]
    assert (cost[found.queries][:, left] >= chosen[:, None] - 1e-5).all()
    label = class_targets([found], [target], 50, 11)
    assert not (label == 10).any()
    queries = Queries([classes[None]], [masks[None, :, :6]], [], torch.randn(1, 6, 1, 1, 248))
    loss = query_loss(queries, [target], cls_loss=focal, weights=MatchWeights(), points=FEW)
    assert torch.isfinite(loss.seg)
    assert torch.isfinite(loss.cls)


def test_oracle_shares_of_points():
    """Half are the most uncertain candidates, a quarter lies inside the mask, the rest anywhere."""
    n = 400
    counted = torch.arange(0, n, 2)  # every other voxel is ignored
    logits = torch.linspace(-4, 4, n).repeat(2, 1)
    truth = torch.zeros(2, n, dtype=torch.bool)
    truth[0, 350:360:2] = True  # five voxels
    truth[1, 380] = True  # one, where three would be drawn
    points = Points(count=20, oversample=3.0, uncertain_share=0.5, fg_sample_ratio=0.15)
    torch.manual_seed(3)
    found = mask_points(logits, truth, counted, points)
    torch.manual_seed(3)
    candidates = counted[torch.randint(len(counted), (2, 60))]
    assert found.shape == (2, 20)
    assert not (found % 2).any()
    for row in range(2):
        doubt = sorted(abs(float(logits[row, at])) for at in candidates[row])
        taken = sorted(abs(float(logits[row, at])) for at in found[row, :10])
        assert taken == pytest.approx(doubt[:10])
    inside = [truth[row, found[row, 10:]] for row in range(2)]
    assert inside[0][:3].all()
    assert len(set(found[0, 10:13].tolist())) == 3  # without replacement
    assert inside[1][:1].all()
    assert inside[1][1:].sum() <= 1
    # Without a share for them none is drawn on purpose.
    plain = Points(count=4000, oversample=1.0, uncertain_share=0.0, fg_sample_ratio=0.0)
    share = truth[0, mask_points(logits, truth, counted, plain)[0]].float().mean()
    assert float(share) == pytest.approx(5 / 200, abs=0.01)


def test_closed_form_published_points():
    points = Points()
    assert int(points.uncertain_share * points.count) == 9408
    assert int(points.fg_sample_ratio * points.count) == 2
    assert int(points.oversample * points.count) == 37_632


def test_oracle_losses_of_masks():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    truth = (torch.rand(3, 6, generator=generator) < 0.5).double()
    entropy, dice = mask_losses(logits, truth)
    for m in range(3):
        pair = logits[m].tolist(), truth[m].tolist()
        assert float(entropy[m]) == pytest.approx(_entropy(*pair), rel=1e-10)
        assert float(dice[m]) == pytest.approx(_dice(*pair), rel=1e-10)


def _queries(predictions: int, seed: int = 0) -> Queries:
    """Two samples of 4 queries over 16 voxels, 3 channels, 10 classes."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    return Queries(
        [drawn(2, 4, 11) for _ in range(predictions)],
        [drawn(2, 4, 3) for _ in range(predictions)],
        [],
        drawn(2, 3, 1, 4, 4),
    )


def _targets() -> list[Segments]:
    label = torch.zeros(2, 1, 4, 4, dtype=torch.long)
    label[:, :, 1:], label[0, 0, 2:, 2:], label[1, 0, 3, 0] = 9, 4, -1
    return [segments(one, (one == 4).long(), types=TYPES, regions=REGIONS) for one in label]


def test_oracle_the_loss_is_a_loop_over_predictions_samples_and_masks():
    queries, targets, weights = _queries(2), _targets(), MatchWeights(5.0, 5.0, 5.0)
    torch.manual_seed(7)
    found = query_loss(queries, targets, cls_loss=focal, weights=weights, points=FEW)
    torch.manual_seed(7)
    flat = queries.features.detach().flatten(2)
    shared = [random_points(t.counted, FEW.count) for t in targets]
    seg = cls = 0.0
    for classes, embeddings in zip(queries.classes, queries.masks, strict=True):
        per_mask, per_query = [], []
        best: list[dict[int, int]] = []
        logits = embeddings.detach() @ flat
        for n, target in enumerate(targets):
            of = classes[n].detach().softmax(-1)
            cost = {
                (q, m): 5 * _entropy(x := logits[n, q, shared[n]].tolist(),
                                     t := target.masks[m, shared[n]].double().tolist())
                + 5 * _dice(x, t) - 5 * float(of[q, target.classes[m]])
                for q in range(4) for m in range(len(target.classes))
            }  # fmt: skip
            m_all = range(len(target.classes))
            chosen = min(itertools.permutations(range(4), len(m_all)),
                         key=lambda c: sum(cost[q, m] for m, q in enumerate(c)))  # fmt: skip
            best.append({q: m for m, q in enumerate(chosen)})
        for n, target in enumerate(targets):
            for q in range(4):
                c = int(target.classes[best[n][q]]) if q in best[n] else 10
                p = float(classes[n, q].detach().softmax(-1)[c])
                per_query.append(-((1 - p) ** 2) * math.log(p))
            rows = sorted(best[n])
            truth = target.masks[[best[n][q] for q in rows]]
            at = mask_points(logits[n, rows], truth, target.counted, FEW)
            for row, q in enumerate(rows):
                pair = logits[n, q, at[row]].tolist(), truth[row, at[row]].double().tolist()
                per_mask.append(_entropy(*pair) + _dice(*pair))
        seg += sum(per_mask) / len(per_mask)
        cls += sum(per_query) / len(per_query)
    assert float(found.seg.detach()) == pytest.approx(seg, rel=1e-9)
    assert float(found.cls.detach()) == pytest.approx(cls, rel=1e-9)
    assert [len(m.queries) for m in found.matches[0]] == [3, 2]


def test_property_what_is_ignored_counts_in_no_loss():
    """Features of ignored voxels change nothing; a sample of nothing else loses nothing."""
    targets = _targets()
    losses = []
    for value in (0.0, 50.0):
        queries = _queries(1)
        with torch.no_grad():
            queries.features[1, :, 0, 3, 0] = value
        torch.manual_seed(0)
        loss = query_loss(queries, targets, cls_loss=focal, weights=MatchWeights(), points=FEW)
        (loss.seg + loss.cls).backward()
        assert not queries.features.grad[1, :, 0, 3, 0].any()
        losses.append((loss.seg.item(), loss.cls.item()))
    assert losses[0] == losses[1]
    empty = torch.full((1, 4, 4), -1)
    nothing = segments(empty, torch.ones_like(empty), types=TYPES, regions=REGIONS)
    queries = _queries(1)
    loss = query_loss(
        queries, [nothing, nothing], cls_loss=focal, weights=MatchWeights(), points=FEW
    )
    (loss.seg + loss.cls).backward()
    assert (loss.seg.item(), loss.cls.item()) == (0.0, 0.0)
    assert not queries.masks[0].grad.any()


def test_property_the_same_random_state_draws_the_same_points():
    queries, targets = _queries(2), _targets()
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        loss = query_loss(queries, targets, cls_loss=focal, weights=MatchWeights(), points=FEW)
        found.append(float(loss.seg.detach()))
    assert found[0] == found[1] != found[2]


def test_closed_form_queries_without_a_segment_are_no_object():
    found = Match(torch.tensor([2, 0]), torch.tensor([0, 1]))
    target = _targets()[1]
    assert class_targets([found], [target], 4, 11).tolist() == [[9, 10, 0, 10]]
