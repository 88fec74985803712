"""The phase-attention head of PA-ResSeg: loops of its formulas, and what its sum says."""

from __future__ import annotations

import math

import pytest
import torch

from hepar.systems.baselines.pa_resseg.phase_attention import (
    ChannelSelfAttention,
    PhaseAttention,
    PhaseChannelAttention,
    channel_affinity,
)


def _maps(count: int, channels: int = 3, *, seed: int = 0, scale: float = 1.0):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, channels, 4, 5)
    return [
        scale * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)
    ]


def _affinity(x, y):
    """One sample, written out."""
    channels = len(x)
    energy = [[float((x[i] * y[j]).sum()) for j in range(channels)] for i in range(channels)]
    rows = []
    for row in energy:
        unlike = [math.exp(max(row) - value - (max(row) - min(row))) for value in row]
        rows.append([value / sum(unlike) for value in unlike])
    return rows


def test_oracle_channel_affinity_is_a_loop():
    x, y = _maps(2)
    found = channel_affinity(x, y)
    for sample in range(2):
        expected = torch.tensor(_affinity(x[sample], y[sample]), dtype=torch.float64)
        torch.testing.assert_close(found[sample], expected)


def test_oracle_channel_self_attention_is_a_loop():
    (x,) = _maps(1)
    attention = ChannelSelfAttention().double()
    torch.testing.assert_close(attention(x), x)  # gamma starts at 0
    torch.nn.init.constant_(attention.gamma, 0.7)
    found = attention(x)
    for sample in range(2):
        weights = _affinity(x[sample], x[sample])
        for i, row in enumerate(weights):
            mixed = sum(w * x[sample, j] for j, w in enumerate(row))
            torch.testing.assert_close(found[sample, i], 0.7 * mixed + x[sample, i])


@pytest.mark.parametrize("axis", ["last", "first"])
def test_oracle_phase_channel_attention_is_a_loop(axis):
    reference, y = _maps(2)
    attention = PhaseChannelAttention(axis).double()
    torch.nn.init.constant_(attention.gamma, 0.7)
    found = attention(reference, y)
    for sample in range(2):
        weights = _affinity(y[sample], reference[sample])
        for c in range(3):
            line = weights[c] if axis == "last" else [row[c] for row in weights]
            scale = 1 / (1 + math.exp(-sum(line)))
            torch.testing.assert_close(found[sample, c], (0.7 * scale + 1) * y[sample, c])


def test_closed_form_the_last_axis_scales_every_channel_alike():
    reference, other, y = _maps(3)
    official, ours = PhaseChannelAttention("last"), PhaseChannelAttention("first")
    constant = torch.full((2, 3), 1 / (1 + math.exp(-1)), dtype=torch.float64)
    torch.testing.assert_close(official.scale(reference, y), constant)
    torch.testing.assert_close(official.scale(other, y), constant)
    assert (ours.scale(reference, y) - ours.scale(other, y)).abs().max() > 0.01


@pytest.mark.parametrize("others", [0, 1, 3])
def test_closed_form_parameters_and_shape(others):
    head = PhaseAttention(16, 6, others=others)
    phase = 9 * 16 * 6 + 2 * 6 + 9 * 6 * 6 + 2 * 6
    assert sum(p.numel() for p in head.parameters()) == (1 + others) * (phase + 1)
    assert head.out_channels == 6 * (1 + others)
    out = head(*[x.float() for x in _maps(1 + others, 16)])
    assert tuple(out.shape) == (2, head.out_channels, 4, 5)
    with pytest.raises(ValueError, match="other phases"):
        head(*[x.float() for x in _maps(2 + others, 16)])


def test_oracle_the_head_is_its_parts_reference_first():
    torch.manual_seed(0)
    head = PhaseAttention(16, others=2, pa_sum_axis="first").double().eval()
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.5)
    maps = _maps(3, 16)
    reduced = [conv(x) for conv, x in zip(head.reduce, maps, strict=True)]
    one, two = head.inter
    attended = [head.intra(reduced[0]), one(reduced[0], reduced[1]), two(reduced[0], reduced[2])]
    expected = [conv(x) for conv, x in zip(head.refine, attended, strict=True)]
    found = head(*maps)
    torch.testing.assert_close(found, torch.cat(expected, dim=1))
    assert head.out_channels == 3 * 4
    # What one phase says reaches the others only through the reference.
    changed = head(maps[0], maps[1], maps[2] + 1.0)
    torch.testing.assert_close(changed[:, :8], found[:, :8])
    changed = head(maps[0] + 1.0, maps[1], maps[2])
    assert all((changed - found)[:, i : i + 4].abs().max() > 1e-6 for i in (0, 4, 8))


def test_property_memory_format_changes_nothing():
    head = PhaseAttention(16, pa_sum_axis="first").double().eval()
    for gamma in (head.intra.gamma, head.inter[0].gamma):
        torch.nn.init.constant_(gamma, 0.5)
    maps = _maps(2, 16)
    turned = [x.contiguous(memory_format=torch.channels_last) for x in maps]
    torch.testing.assert_close(head(*turned), head(*maps))


@pytest.mark.parametrize("axis", ["last", "first"])
def test_property_bfloat16_keeps_softmax_in_float32_and_large_energies_finite(axis):
    maps = [x.float().requires_grad_() for x in _maps(2, 8, scale=100.0)]
    attention = PhaseChannelAttention(axis)
    torch.nn.init.constant_(attention.gamma, 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert channel_affinity(*[x.bfloat16() for x in maps]).dtype == torch.float32
        out = attention(*maps)
        assert torch.mm(torch.eye(2), torch.eye(2)).dtype == torch.bfloat16  # it was on
    torch.testing.assert_close(out, attention(*maps))
    out.sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in maps)
