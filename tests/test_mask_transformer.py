"""Pixel decoder and mask transformer: counts, attention, positions and the map against loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from hepar.systems.lidia.mask_transformer import (
    Attention,
    DecoderLayer,
    MaskTransformer,
    semantic_map,
    sine_positions,
)
from hepar.systems.lidia.pixel_decoder import PixelDecoder


def test_closed_form_parameters():
    with torch.device("meta"):
        decoder = PixelDecoder((32, 64, 128, 256, 320, 320), 64)
        transformer = MaskTransformer(10, 64)
    assert sum(p.numel() for p in decoder.parameters()) == 1_269_184
    assert sum(p.numel() for p in transformer.parameters()) == 319_243


@pytest.mark.parametrize(("width", "shares"), [(64, (20, 22, 22)), (16, (4, 6, 6)), (6, (2, 2, 2))])
def test_oracle_positions_are_sines_and_cosines_of_each_axis(width, shares):
    size = (2, 3, 1)
    found = sine_positions(size, width)
    for n, at in enumerate(itertools.product(*(range(s) for s in size))):
        expected = []
        for axis, channels in enumerate(shares):
            place = 2 * math.pi * (at[axis] + 1) / size[axis]
            for channel in range(channels):
                angle = place / 10_000 ** (2 * (channel // 2) / channels)
                expected.append(math.cos(angle) if channel % 2 else math.sin(angle))
        torch.testing.assert_close(found[n], torch.tensor(expected), atol=1e-6, rtol=0)


def _linear(x: list[float], layer: torch.nn.Linear) -> list[float]:
    rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
    return [b + sum(w * v for w, v in zip(row, x, strict=True)) for row, b in rows]


def _attend(module: Attention, query: Tensor, key: Tensor, value: Tensor, blocked) -> Tensor:
    """One sample, one product at a time."""
    q = [_linear(row, module.query) for row in query.tolist()]
    k = [_linear(row, module.key) for row in key.tolist()]
    v = [_linear(row, module.value) for row in value.tolist()]
    each = len(q[0]) // module.heads
    found = []
    for i, row in enumerate(q):
        answer = []
        for head in range(module.heads):
            span = range(head * each, (head + 1) * each)
            weights = [
                0.0 if blocked[i][j] else math.exp(sum(row[c] * k[j][c] for c in span) / each**0.5)
                for j in range(len(k))
            ]
            answer += [sum(w * v[j][c] for j, w in enumerate(weights)) / sum(weights) for c in span]
        found.append(_linear(answer, module.out))
    return torch.tensor(found, dtype=torch.float64)


def test_oracle_masked_attention():
    torch.manual_seed(0)
    module = Attention(4, 2).double()
    query, key, value = (torch.randn(2, n, 4, dtype=torch.float64) for n in (3, 5, 5))
    blocked = torch.rand(2, 3, 5) < 0.6
    blocked[:, :, 2] = False
    found = module(query, key, value, blocked)
    for n in range(2):
        expected = _attend(module, query[n], key[n], value[n], blocked[n].tolist())
        torch.testing.assert_close(found[n].detach(), expected, atol=1e-12, rtol=0)


def test_oracle_queries_look_where_their_resized_mask_is_or_everywhere():
    """The mask itself resized, voxel by voxel; the code resizes what it is made of."""
    torch.manual_seed(1)
    masks = torch.randn(1, 3, 2, dtype=torch.float64)
    features = torch.randn(1, 2, 4, 8, 8, dtype=torch.float64)
    features[:, 0] = features[:, 0].abs()
    masks[:, 2] = torch.tensor([-50.0, 0.0])  # a mask that is empty
    small = torch.nn.functional.interpolate(features, (2, 2, 4), mode="trilinear")
    found = MaskTransformer.blocked(masks, small)[0]
    logits = torch.zeros(3, 2, 2, 4, dtype=torch.float64)
    # Of an even factor the two voxels around the middle count one half each.
    taps = [[(2 * a, 2 * a + 1) for a in range(2)], [(4 * b + 1, 4 * b + 2) for b in range(2)],
            [(2 * c, 2 * c + 1) for c in range(4)]]  # fmt: skip
    for q, a, b, c in itertools.product(range(3), range(2), range(2), range(4)):
        for z, y, x in itertools.product(taps[0][a], taps[1][b], taps[2][c]):
            inner = sum(float(masks[0, q, n] * features[0, n, z, y, x]) for n in range(2))
            logits[q, a, b, c] += inner / 8
    expected = (1 / (1 + (-logits).exp()) < 0.5).flatten(1)
    assert expected[2].all()
    assert not expected[:2].all(dim=1).any()
    expected[2] = False
    assert torch.equal(found, expected)


def test_oracle_a_layer_is_cross_attention_self_attention_perceptron():
    torch.manual_seed(0)
    layer = DecoderLayer(4, 2, 6).double()
    x, where = torch.randn(2, 3, 4, dtype=torch.float64)
    memory, places = torch.randn(2, 5, 4, dtype=torch.float64)
    blocked = torch.rand(3, 5) < 0.5
    blocked[:, 0] = False

    def normed(rows: Tensor) -> Tensor:
        away = rows - rows.mean(1, keepdim=True)
        return away / (away.square().mean(1, keepdim=True) + 1e-5).sqrt()

    def perceptron(row: list[float]) -> list[float]:
        hidden = [max(0.0, h) for h in _linear(row, layer.perceptron[0])]
        return _linear(hidden, layer.perceptron[2])

    none = [[False] * 3] * 3
    y = normed(x + _attend(layer.cross, x + where, memory + places, memory, blocked.tolist()))
    y = normed(y + _attend(layer.among, y + where, y + where, y, none))
    expected = normed(y + torch.tensor([perceptron(row) for row in y.tolist()]).double())
    found = layer(x[None], where[None], memory[None], places, blocked[None])
    torch.testing.assert_close(found[0].detach(), expected, atol=1e-6, rtol=0)


def test_property_predictions_before_the_first_layer_and_after_every_one():
    torch.manual_seed(0)
    model = MaskTransformer(4, 6, queries=5, heads=1, feedforward=8, layers=4, levels=2)
    memory = [torch.randn(2, 6, 1, 2, 2), torch.randn(2, 6, 2, 4, 4)]
    features = torch.randn(2, 6, 4, 8, 8)
    seen = []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda _, given: seen.append(given[2].shape[1]))
    found = model(memory, features)
    assert seen == [4, 32, 4, 32]  # levels in turn, coarse first
    assert len(found.classes) == len(found.masks) == len(found.states) == 5
    assert found.classes[0].shape == (2, 5, 5)
    # The first prediction knows nothing of the image, the next one does.
    torch.testing.assert_close(found.classes[0][0], found.classes[0][1])
    assert (found.classes[1][0] - found.classes[1][1]).abs().max() > 1e-3


def test_oracle_the_map_is_a_sum_over_queries_without_no_object():
    torch.manual_seed(0)
    classes = 3 * torch.randn(2, 3, 4, dtype=torch.float64)
    masks = 3 * torch.randn(2, 3, 2, dtype=torch.float64)
    features = torch.randn(2, 2, 1, 2, 2, dtype=torch.float64)
    found = semantic_map(classes, masks, features)
    assert found.dtype == torch.float32
    for n, y, x in itertools.product(range(2), range(2), range(2)):
        total = [0.0] * 3
        for q in range(3):
            mask = sum(float(masks[n, q, c] * features[n, c, 0, y, x]) for c in range(2))
            scores = [math.exp(float(s)) for s in classes[n, q]]
            for k in range(3):
                total[k] += scores[k] / sum(scores) / (1 + math.exp(-mask))
        expected = torch.tensor([t / sum(total) for t in total])
        torch.testing.assert_close(found[n, :, 0, y, x], expected, atol=1e-6, rtol=0)
    # Where all queries are nowhere, nothing is divided by nothing.
    nowhere = semantic_map(classes, torch.full_like(masks, -1e4), torch.ones_like(features))
    assert not nowhere.any()


def test_closed_form_levels_of_the_pixel_decoder_have_one_width():
    torch.manual_seed(0)
    model = PixelDecoder((3, 4, 5), 6, ((1, 3, 3), (3, 3, 3), (3, 3, 3)))
    sizes = [(4, 8, 8), (4, 4, 4), (2, 2, 2)]  # the first stride leaves the slices alone
    features = [torch.randn(1, c, *size) for c, size in zip((3, 4, 5), sizes, strict=True)]
    pyramid, masks = model(features)
    assert [tuple(level.shape) for level in pyramid] == [(1, 6, *size) for size in sizes]
    assert masks.shape == (1, 6, 4, 8, 8)
    # What is coarse reaches what is fine, and nothing the other way.
    features[0] = features[0] + torch.randn_like(features[0])
    again = model(features)[0]
    assert torch.equal(again[2], pyramid[2])
    assert torch.equal(again[1], pyramid[1])
    assert not torch.equal(again[0], pyramid[0])
    features[2] = features[2] + torch.randn_like(features[2])
    assert not torch.equal(model(features)[0][0], again[0])
