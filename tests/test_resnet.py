"""The ResNet family: published counts, torchvision's names, stages one at a time."""

from __future__ import annotations

import pytest
import torch

from hepar.networks.resnet import TRUNKS, ResNetTrunk


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
