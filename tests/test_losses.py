"""Losses against hand-worked values, float64 loops and PyTorch."""

from __future__ import annotations

import math

import pytest
import torch

from hepar.losses import binary_cross_entropy, cross_entropy, focal, soft_dice, soft_iou


def _random(seed: int, shape: tuple[int, ...] = (2, 3, 4, 5)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    label = torch.randint(-1, shape[1], (shape[0], *shape[2:]), generator=generator)
    return logits, label


@pytest.mark.parametrize("weights", [None, (0.5, 1.0, 3.0)])
def test_oracle_cross_entropy_is_a_loop_over_the_voxels_that_count(weights):
    logits, label = _random(0)
    total, norm = 0.0, 0.0
    for b, y, x in ((b, y, x) for b in range(2) for y in range(4) for x in range(5)):
        k = int(label[b, y, x])
        if k < 0:
            continue
        scores = logits[b, :, y, x].tolist()
        w = 1.0 if weights is None else weights[k]
        total -= w * (scores[k] - math.log(sum(math.exp(s) for s in scores)))
        norm += w
    class_weights = None if weights is None else torch.tensor(weights)
    found = cross_entropy(logits, label, class_weights=class_weights)
    assert found.item() == pytest.approx(total / norm, rel=1e-12)


@pytest.mark.parametrize("per_sample", [False, True])
def test_oracle_soft_dice_is_a_loop_over_the_voxels_that_count(per_sample):
    logits, label = _random(1)
    probability = logits.softmax(1)
    groups = [[0], [1]] if per_sample else [[0, 1]]
    scores = []
    for group in groups:
        for k in (1, 2):
            overlap = size = 0.0
            for b, y, x in ((b, y, x) for b in group for y in range(4) for x in range(5)):
                if label[b, y, x] < 0:
                    continue
                p, t = float(probability[b, k, y, x]), float(label[b, y, x] == k)
                overlap, size = overlap + p * t, size + p + t
            scores.append((2 * overlap + 1.0) / (size + 1.0))
    expected = 1.0 - sum(scores) / len(scores)
    assert soft_dice(logits, label, per_sample=per_sample).item() == pytest.approx(expected)


def test_closed_form_even_scores_cost_log_k():
    label = torch.tensor([[[0, 1], [2, -1]]])
    assert cross_entropy(torch.zeros(1, 3, 2, 2), label).item() == pytest.approx(math.log(3))


def test_closed_form_dice_of_sure_predictions():
    label = torch.tensor([[[0, 1, 1, 0]]])
    right = torch.stack([100.0 * (label == 0), 100.0 * (label == 1)], dim=1)
    assert soft_dice(right, label).item() == pytest.approx(0.0, abs=1e-6)
    # Everything called foreground: 2*2 + 1 over 4 + 2 + 1.
    everything = torch.stack([torch.zeros(1, 1, 4), torch.full((1, 1, 4), 100.0)], dim=1)
    assert soft_dice(everything, label).item() == pytest.approx(1 - 5 / 7)
    # Nothing there and nothing found is a full score.
    nothing = torch.zeros_like(label)
    assert soft_dice(-everything, nothing).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("loss", [cross_entropy, soft_dice])
def test_property_ignored_voxels_do_not_matter(loss):
    logits, label = _random(2)
    other = torch.where((label < 0).unsqueeze(1), 50.0 * torch.ones_like(logits), logits)
    assert torch.equal(loss(logits, label), loss(other, label))
    logits.requires_grad_()
    loss(logits, torch.full_like(label, -1)).backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))
    assert loss(logits, torch.full_like(label, -1)).item() == 0.0


@pytest.mark.parametrize("loss", [cross_entropy, soft_dice])
def test_property_float32_under_autocast(loss):
    logits, label = _random(3, (1, 2, 64, 64))
    expected = loss(logits.bfloat16().double(), label)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(logits.bfloat16(), label)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


# ---- several channels, a yes or no each ---------------------------------------------------------


def _channels(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    target = torch.rand(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    counted = torch.rand(2, 4, 5, generator=generator) > 0.3
    return logits, target, counted


def test_oracle_binary_cross_entropy_is_a_loop_with_soft_targets():
    logits, target, counted = _channels(4)
    total, number = 0.0, 0
    for b, y, x in counted.nonzero().tolist():
        for k in range(3):
            p, g = 1 / (1 + math.exp(-float(logits[b, k, y, x]))), float(target[b, k, y, x])
            total -= g * math.log(p) + (1 - g) * math.log(1 - p)
            number += 1
    found = binary_cross_entropy(logits, target, counted).item()
    assert found == pytest.approx(total / number, rel=1e-12)


@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_oracle_soft_iou_is_a_loop_a_channel_and_image(smooth):
    logits, target, counted = _channels(5)
    scores = []
    for b in range(2):
        for k in range(3):
            both = either = smooth
            for _, y, x in (at for at in counted.nonzero().tolist() if at[0] == b):
                p, g = 1 / (1 + math.exp(-float(logits[b, k, y, x]))), float(target[b, k, y, x])
                both, either = both + g * p, either + g + p - g * p
            scores.append(both / either)
    found = soft_iou(logits, target, counted, smooth=smooth).item()
    assert found == pytest.approx(1 - sum(scores) / len(scores), rel=1e-12)


def test_closed_form_losses_of_an_empty_mask():
    nothing = torch.zeros(1, 1, 10, 10)
    every = torch.ones(1, 10, 10, dtype=torch.bool)
    for p in (1e-8, 0.1, 0.5):
        logits = torch.full((1, 1, 10, 10), math.log(p / (1 - p)), requires_grad=True)
        loss = soft_iou(logits, nothing, every)
        assert loss.item() == pytest.approx(1 - 1 / (100 * p + 1), abs=1e-5)
        loss.backward()
        assert (logits.grad > 0).all()  # what is predicted there is pushed down
        literal = logits.detach().clone().requires_grad_()
        loss = soft_iou(literal, nothing, every, smooth=0.0)
        loss.backward()
        assert loss.item() == 1.0
        assert not literal.grad.any()
        bce = binary_cross_entropy(logits, nothing, every).item()
        assert bce == pytest.approx(-math.log(1 - p), abs=1e-6)
    # Not even 0 / 0, where no probability is left at all.
    gone = torch.full((1, 1, 10, 10), -200.0, requires_grad=True)
    loss = soft_iou(gone, nothing, every, smooth=0.0)
    loss.backward()
    assert loss.item() == 1.0
    assert torch.isfinite(gone.grad).all()


@pytest.mark.parametrize("loss", [binary_cross_entropy, soft_iou])
def test_property_pixels_that_do_not_count_do_not_matter(loss):
    logits, target, counted = _channels(6)
    shown = counted.unsqueeze(1)
    other = torch.where(shown, logits, 50.0 * torch.ones_like(logits))
    assert torch.equal(loss(logits, target, counted), loss(other, target, counted))
    assert torch.equal(loss(logits, target, counted), loss(logits, target * shown, counted))
    logits.requires_grad_()
    none = loss(logits, target, torch.zeros_like(counted))
    none.backward()
    assert none.item() == 0.0
    assert not logits.grad.any()


@pytest.mark.parametrize("loss", [binary_cross_entropy, soft_iou])
def test_property_several_channels_in_float32_under_autocast(loss):
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(1, 2, 64, 64, generator=generator).bfloat16()
    target = (torch.rand(1, 2, 64, 64, generator=generator) > 0.9).float()
    counted = torch.ones(1, 64, 64, dtype=torch.bool)
    expected = loss(logits.double(), target.double(), counted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(logits, target, counted)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_oracle_focal_is_a_loop_over_the_places_that_count(gamma):
    logits, label = _random(5, (2, 4, 6))
    total, count = 0.0, 0
    for b, i in ((b, i) for b in range(2) for i in range(6)):
        k = int(label[b, i])
        if k < 0:
            continue
        scores = [math.exp(s) for s in logits[b, :, i].tolist()]
        p = scores[k] / sum(scores)
        total -= (1 - p) ** gamma * math.log(p)
        count += 1
    assert 0 < count < 12
    assert focal(logits, label, gamma=gamma).item() == pytest.approx(total / count, rel=1e-12)


def test_closed_form_focal_of_sure_and_of_ignored_places():
    label = torch.tensor([[0, 1, -1]])
    logits = torch.tensor([[[200.0, 0.0, 1.0], [0.0, 0.0, 9.0]]], requires_grad=True)
    loss = focal(logits, label)
    loss.backward()
    # The first is sure, of the second one half is missing, the third does not count.
    assert loss.item() == pytest.approx(0.25 * math.log(2) / 2)
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[..., 2].any()
    assert focal(logits, torch.full_like(label, -1)).item() == 0.0
    with torch.autocast("cpu", torch.bfloat16):
        assert focal(logits.bfloat16(), label).dtype == torch.float32
