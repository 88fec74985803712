"""The ResNet family: published counts, torchvision's names, stages one at a time."""

from __future__ import annotations

import itertools

import pytest
import torch

import loops
from hepar.networks.resnet import TRUNKS, Bottle2neck, ResNetTrunk, load_published


def _on_meta(name: str, in_channels: int = 3, stem_stride: int = 4) -> ResNetTrunk:
    with torch.device("meta"):
        return ResNetTrunk(TRUNKS[name], in_channels, stem_stride)


@pytest.mark.parametrize(
    ("name", "in_channels", "parameters"),
    [
        # torchvision's resnext50_32x4d and resnet50 without their 2,049,000 of classifier
        ("resnext50", 3, 25_028_904 - 2_049_000),
        ("resnext50", 6, 22_989_312),
        ("resnet50", 3, 25_557_032 - 2_049_000),
        ("resnet10", 3, 1_230_240),
        ("res2net50", 3, 23_669_352),
        ("res2net50_v1", 3, 23_650_120),
    ],
)
def test_closed_form_parameters(name, in_channels, parameters):
    trunk = _on_meta(name, in_channels)
    assert sum(p.numel() for p in trunk.parameters()) == parameters


@pytest.mark.parametrize("stem_stride", [2, 4])
@pytest.mark.parametrize("name", sorted(TRUNKS))
def test_closed_form_shapes(name, stem_stride):
    trunk = _on_meta(name, stem_stride=stem_stride)
    outputs = trunk(torch.empty(2, 3, 128, 64, device="meta"))
    for i, (x, channels) in enumerate(zip(outputs, trunk.channels, strict=True)):
        scale = stem_stride * 2**i
        assert x.shape == (2, channels, 128 // scale, 64 // scale)
    assert trunk.total_stride == scale


def test_regression_names_are_torchvisions():
    keys = set(_on_meta("resnext50").state_dict())
    # 53 convolutions, 53 BatchNorms of five entries, as in torchvision without fc
    assert len(keys) == 53 + 5 * 53
    assert {
        "conv1.weight",
        "bn1.num_batches_tracked",
        "layer1.0.downsample.0.weight",
        "layer1.0.downsample.1.running_mean",
        "layer2.3.conv3.weight",
        "layer3.5.bn2.bias",
        "layer4.2.conv2.weight",
    } <= keys
    assert _on_meta("resnext50").layer4[2].conv2.weight.shape == (1024, 32, 3, 3)
    basic = set(_on_meta("resnet10").state_dict())
    assert {"layer1.0.conv2.weight", "layer4.0.downsample.0.weight"} <= basic
    assert "layer1.0.downsample.0.weight" not in basic


def test_closed_form_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    trunk = ResNetTrunk(TRUNKS["resnet10"], 2, stem_stride=2)
    x = torch.randn(2, 2, 32, 32)
    sum(y.square().sum() for y in trunk(x)).backward()
    missing = [n for n, p in trunk.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing


def test_property_stages_one_at_a_time_are_the_trunk():
    torch.manual_seed(1)
    trunk = ResNetTrunk(TRUNKS["resnet10"], 1).eval()
    x = torch.randn(1, 1, 64, 64)
    whole = trunk(x)
    y = trunk.stage(1, x)
    for block, expected in zip((2, 3, 4, 5), whole, strict=True):
        y = trunk.stage(block, y)
        assert torch.equal(y, expected)


# ---- Res2Net -----------------------------------------------------------------------------------


def test_regression_names_are_those_of_res2nets_authors():
    keys = set(_on_meta("res2net50").state_dict())
    assert {
        "conv1.0.weight",
        "conv1.1.running_var",
        "conv1.6.weight",
        "bn1.weight",
        "layer1.0.conv1.weight",
        "layer1.0.convs.2.weight",
        "layer1.0.bns.0.bias",
        "layer1.0.conv3.weight",
        "layer1.0.downsample.1.weight",
        "layer1.0.downsample.2.bias",
        "layer4.2.bns.2.num_batches_tracked",
    } <= keys
    assert not any(key.startswith("layer1.0.conv2") for key in keys)
    assert _on_meta("res2net50").layer4[0].convs[0].weight.shape == (208, 208, 3, 3)
    plain = set(_on_meta("res2net50_v1").state_dict())
    assert {"conv1.weight", "layer1.0.downsample.0.weight"} <= plain


def _numbers(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _mean_of(x, kernel, stride, padding, count_outside):
    """Average pooling of one sample; windows end with the image."""
    channels, height, width = x.shape
    rows = range(-padding, height + padding - kernel + 1 if padding else height, stride)
    columns = range(-padding, width + padding - kernel + 1 if padding else width, stride)
    out = torch.zeros(channels, len(rows), len(columns), dtype=torch.float64)
    for c, (a, y), (b, z) in itertools.product(
        range(channels), enumerate(rows), enumerate(columns)
    ):
        window = itertools.product(range(y, y + kernel), range(z, z + kernel))
        inside = [x[c, i, j] for i, j in window if 0 <= i < height and 0 <= j < width]
        out[c, a, b] = sum(map(float, inside)) / (kernel**2 if count_outside else len(inside))
    return out


@pytest.mark.parametrize("name", ["res2net50", "res2net50_v1"])
@pytest.mark.parametrize(("in_channels", "stride"), [(5, 2), (5, 1), (16, 1)])
@torch.no_grad()
def test_oracle_res2net_block_is_the_hierarchy_of_its_splits(name, in_channels, stride):
    torch.manual_seed(0)
    block = Bottle2neck(in_channels, 4, stride, TRUNKS[name]).double().eval()
    for norm in (m for m in block.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        norm.weight.normal_()
        norm.bias.normal_()
    x = _numbers(in_channels, 5, 6)
    first = in_channels != 16
    out = loops.norm(loops.conv(x, block.conv1.weight), block.bn1).clamp(min=0)
    splits = out.split(1)  # 4 planes of 26 / 64: one channel each
    done = []
    for k in range(3):
        given = splits[k] if first or k == 0 else splits[k] + done[-1]
        y = loops.norm(loops.conv(given, block.convs[k].weight, stride=stride), block.bns[k])
        done.append(y.clamp(min=0))
    done.append(_mean_of(splits[3], 3, stride, 1, count_outside=True) if first else splits[3])
    out = loops.norm(loops.conv(torch.cat(done), block.conv3.weight), block.bn3)
    if not first:
        shortcut = x
    elif name == "res2net50":
        pooled = _mean_of(x, stride, stride, 0, count_outside=False)
        shortcut = loops.norm(loops.conv(pooled, block.downsample[1].weight), block.downsample[2])
    else:
        shortcut = loops.norm(
            loops.conv(x, block.downsample[0].weight, stride=stride), block.downsample[1]
        )
    torch.testing.assert_close(block(x[None])[0], (out + shortcut).clamp(min=0))


def test_property_published_weights_of_three_channels_fit_a_stem_of_one():
    torch.manual_seed(1)
    plan = TRUNKS["res2net50"].of_width(16)
    # In double: a sum of weights rounds differently from a sum of products, by machine.
    given, taken = ResNetTrunk(plan, 3).eval().double(), ResNetTrunk(plan, 1).eval().double()
    load_published(taken, {**given.state_dict(), "fc.weight": torch.zeros(1000, 512)})
    x = torch.rand(1, 1, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(taken.stem(x), given.stem(x.repeat(1, 3, 1, 1)))
    torch.testing.assert_close(taken(x)[-1], given(x.repeat(1, 3, 1, 1))[-1])
