"""The 2D U-Net: counts, shapes of its levels, and an encoder whose levels are separate calls."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hepar.networks.unet2d import UNetDecoder, UNetTrunk


def _pair(before: int, width: int) -> int:
    """Two 3x3 convolutions without bias, each with the scale and shift of a BatchNorm."""
    return 9 * before * width + 9 * width * width + 4 * width


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("channels", "base"), [(3, 64), (1, 32), (4, 8)])
def test_closed_form_parameters(channels, base):
    with torch.device("meta"):
        trunk = UNetTrunk(channels, base)
        decoder = UNetDecoder(trunk.widths)
    widths = [base * growth for growth in (1, 2, 4, 8, 16)]
    encoder = sum(_pair(b, w) for b, w in zip([channels, *widths], widths, strict=False))
    assert _count(trunk) == encoder
    ups = sum(4 * 2 * w * w + w for w in widths[:-1])
    assert _count(decoder) == ups + sum(_pair(2 * w, w) for w in widths[:-1])


def test_closed_form_published_widths():
    with torch.device("meta"):
        trunk = UNetTrunk(1)
        whole = _count(trunk) + _count(UNetDecoder(trunk.widths))
    assert trunk.channels == (128, 256, 512, 1024)
    assert trunk.total_stride == 16
    # Ronneberger's network has 31.03 M: biases in place of BatchNorm, and a classifier.
    assert round(whole / 1e6, 2) == 31.04


def test_closed_form_sizes_of_the_levels():
    trunk = UNetTrunk(2, base=4).eval()
    x = torch.rand(1, 2, 48, 32)
    for level, (width, stride) in enumerate(zip(trunk.widths, (1, 2, 4, 8, 16), strict=True), 1):
        x = trunk.stage(level, x)
        assert tuple(x.shape) == (1, width, 48 // stride, 32 // stride)
    with pytest.raises(ValueError, match="no level 6"):
        trunk.stage(6, x)


def test_oracle_levels_in_plain_functions():
    torch.manual_seed(0)
    trunk = UNetTrunk(2, base=2).double().eval()
    decoder = UNetDecoder(trunk.widths).double().eval()
    for module in (trunk, decoder):
        for name, buffer in module.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)

    def pair(layers, x):
        for conv, norm, _ in layers:
            x = F.conv2d(x, conv.weight, padding=1)
            scale = (norm.running_var + norm.eps).rsqrt()[:, None, None]
            x = F.relu((x - norm.running_mean[:, None, None]) * scale)
        return x

    x = torch.rand(2, 2, 32, 16, dtype=torch.float64)
    maps = [pair(trunk.levels[0], x)]
    for layers in list(trunk.levels)[1:]:
        pooled = maps[-1].unfold(2, 2, 2).unfold(3, 2, 2).amax((-2, -1))
        maps.append(pair(layers, pooled))
    y = maps[-1]
    for up, layers, skip in zip(decoder.up, decoder.levels, maps[-2::-1], strict=True):
        # A 2x2 up-convolution of stride 2 writes each pixel into a square of its own.
        block = torch.einsum("ncyx,cdij->ndyixj", y, up.weight).flatten(4, 5).flatten(2, 3)
        y = pair(layers, torch.cat([skip, block + up.bias[:, None, None]], dim=1))

    found = [trunk.stage(1, x)]
    for level in (2, 3, 4, 5):
        found.append(trunk.stage(level, found[-1]))
    for one, other in zip(trunk(x), maps[1:], strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(decoder(found), y)


def test_property_every_parameter_gets_gradient():
    torch.manual_seed(0)
    trunk, decoder = UNetTrunk(1, base=4), UNetDecoder([4, 8, 16, 32, 64])
    features = [trunk.stage(1, torch.rand(2, 1, 32, 32))]
    for level in (2, 3, 4, 5):
        features.append(trunk.stage(level, features[-1]))
    decoder(features).square().mean().backward()
    for module in (trunk, decoder):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_regression_frozen_state_dict_keys():
    keys = [*UNetTrunk(1, 2).state_dict(), *UNetDecoder([2, 4, 8, 16, 32]).state_dict()]
    digest = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]
    assert (len(keys), keys[0], digest) == (116, "levels.0.0.0.weight", "cf5af68ab713b509")
