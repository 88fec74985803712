"""Convolutions of single samples: the same numbers, whichever kernel makes them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hepar.infer.convolution import SingleSamples


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv3d(3, 5, 3, padding=1), (1, 3, 6, 7, 8)),
        (nn.Conv3d(3, 5, (1, 3, 3), (1, 2, 2), (0, 1, 1)), (1, 3, 6, 7, 8)),
        (nn.Conv3d(4, 4, 3, padding=(1, 6, 6), dilation=(1, 6, 6), bias=False), (1, 4, 5, 16, 16)),
        (nn.Conv3d(4, 8, 3, padding=1, groups=2), (1, 4, 6, 6, 6)),
        (nn.Conv3d(4, 2, 1), (1, 4, 6, 6, 6)),
        (nn.Conv3d(2, 2, 3, padding="same"), (1, 2, 6, 6, 6)),
        # Beyond the bound, and two samples: as PyTorch has them.
        (nn.Conv3d(8, 2, 3, padding=1), (1, 8, 40, 80, 4)),
        (nn.Conv3d(3, 5, 3, padding=1), (2, 3, 6, 7, 8)),
    ],
)
def test_oracle_convolutions_are_those_of_float64(layer, shape):
    torch.manual_seed(0)
    x = torch.randn(shape)
    with torch.inference_mode():
        with SingleSamples():
            found = layer(x)
        exact = layer.double()(x.double())
    layer.float()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, atol=1e-5, rtol=1e-5)


def test_property_only_single_small_samples_change_hands(monkeypatch):
    seen = []
    monkeypatch.setattr(
        torch.ops.aten,
        "mkldnn_convolution",
        lambda x, *rest: seen.append(tuple(x.shape)) or torch.zeros(1),
    )
    layer = nn.Conv3d(8, 2, 3, padding=1)
    with torch.inference_mode(), SingleSamples():
        for shape in ((1, 8, 8, 8, 8), (2, 8, 8, 8, 8), (1, 8, 40, 80, 4)):
            layer(torch.zeros(shape))
        layer.double()(torch.zeros(1, 8, 8, 8, 8, dtype=torch.float64))
    assert seen == [(1, 8, 8, 8, 8)]


def test_property_other_calls_and_gradients_are_left_alone():
    layer = nn.Conv3d(2, 2, 3, padding=1)
    x = torch.randn(1, 2, 6, 6, 6, requires_grad=True)
    with SingleSamples():
        found = torch.autograd.grad(layer(x).square().sum(), x)[0]
    expected = torch.autograd.grad(layer(x).square().sum(), x)[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
