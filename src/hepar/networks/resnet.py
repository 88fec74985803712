"""The ResNet family as trunks whose stages are called one at a time.

He et al., Deep residual learning, CVPR 2016 (BasicBlock, Bottleneck); Xie et al., Aggregated
residual transformations, CVPR 2017 (ResNeXt: grouped 3x3, "32x4d").
Parameter names are torchvision's (`conv1`, `bn1`, `layer1.0.conv1`, `layer1.0.downsample.0`), so
that its weights load as they are. As there, a bottleneck strides in its 3x3 ("v1.5").

Differs from the paper: no classifier. `stem_stride=2` leaves out the max pooling (ours).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from hepar.networks.blocks import init_he

StemStride = Literal[2, 4]


@dataclass(frozen=True)
class TrunkPlan:
    """One member of the family.

    Attributes:
        block: residual block.
        depths: blocks in each of the four stages.
        planes: inner width of each stage before grouping; the first is the stem's width.
        groups: groups of the 3x3 of a bottleneck.
        width_per_group: channels of one group at 64 planes.
    """

    block: Literal["basic", "bottleneck"]
    depths: tuple[int, int, int, int]
    planes: tuple[int, int, int, int] = (64, 128, 256, 512)
    groups: int = 1
    width_per_group: int = 64

    @property
    def channels(self) -> tuple[int, ...]:
        """Output channels of the four stages."""
        expansion = 4 if self.block == "bottleneck" else 1
        return tuple(expansion * p for p in self.planes)

    def of_width(self, base: int) -> TrunkPlan:
        """The same member with another stem width, all others in proportion.

        Raises:
            ValueError: a width that its groups do not divide.
        """
        a, b, c, d = (p * base // self.planes[0] for p in self.planes)
        planes = (a, b, c, d)
        if planes[0] * self.width_per_group < 64:
            raise ValueError(f"a base width of {base} leaves the groups without channels")
        return replace(self, planes=planes)


TRUNKS = {
    "resnet10": TrunkPlan("basic", (1, 1, 1, 1), planes=(32, 64, 128, 256)),
    "resnet50": TrunkPlan("bottleneck", (3, 4, 6, 3)),
    "resnext50": TrunkPlan("bottleneck", (3, 4, 6, 3), groups=32, width_per_group=4),
}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, in_channels: int, planes: int, stride: int, plan: TrunkPlan) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _shortcut(in_channels, planes, stride)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """`relu(F(x) + shortcut(x))`."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + shortcut)


class Bottleneck(nn.Module):
    """1x1, grouped 3x3, 1x1 to four times the planes, and a shortcut."""

    def __init__(self, in_channels: int, planes: int, stride: int, plan: TrunkPlan) -> None:
        super().__init__()
        width = planes * plan.width_per_group // 64 * plan.groups
        out_channels = 4 * planes
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, groups=plan.groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """`relu(F(x) + shortcut(x))`."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out)) + shortcut)


class ResNetTrunk(nn.Module):
    """Five convolution blocks, B1..B5, called as `stage(1..5, x)`.

    The stages are separate calls because a network may change the features between them.

    Args:
        plan: a member of `TRUNKS`.
        in_channels: channels of the image.
        stem_stride: 4 as published, 2 without the max pooling.

    Attributes:
        channels: output channels of B2..B5.
        total_stride: input pixels to one pixel of B5 along an axis.
    """

    def __init__(self, plan: TrunkPlan, in_channels: int, stem_stride: StemStride = 4) -> None:
        super().__init__()
        self.channels = plan.channels
        self.total_stride = 8 * stem_stride
        stem = plan.planes[0]
        self.conv1 = nn.Conv2d(in_channels, stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if stem_stride == 4 else nn.Identity()
        incoming = (stem, *plan.channels[:-1])
        self.layer1 = _stage(plan, 0, incoming[0], stride=1)
        self.layer2 = _stage(plan, 1, incoming[1], stride=2)
        self.layer3 = _stage(plan, 2, incoming[2], stride=2)
        self.layer4 = _stage(plan, 3, incoming[3], stride=2)
        init_he(self)

    def stage(self, block: int, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """B1 (conv 7x7, BatchNorm, ReLU, pooling) or B2..B5, by the number of the block."""
        if block == 1:
            return self.maxpool(self.relu(self.bn1(self.conv1(x))))
        stages = {2: self.layer1, 3: self.layer2, 4: self.layer3, 5: self.layer4}
        return stages[block](x)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Sequence[Float[Tensor, "n _ _ _"]]:
        """Outputs of B2..B5 with nothing in between."""
        x = self.stage(1, x)
        outputs = []
        for block in (2, 3, 4, 5):
            x = self.stage(block, x)
            outputs.append(x)
        return outputs


def load_published(trunk: ResNetTrunk, state: Mapping[str, Tensor]) -> None:
    """Take over the weights of a torchvision ResNet of the same plan, by name.

    The classifier (`fc.*`) is left out. An image of other than three channels gets the mean of the
    three filters on each, scaled so that an image repeated in all channels gives what it gave.

    Args:
        trunk: changed in place.
        state: names and values as in torchvision's files.

    Raises:
        ValueError: a name is missing, unknown, or has another shape; nothing is changed.
    """
    own = trunk.state_dict()
    given = {name: value for name, value in state.items() if not name.startswith("fc.")}
    # Files older than PyTorch 0.4.1 have no such counters.
    missing = [n for n in own if n not in given and not n.endswith("num_batches_tracked")]
    unknown = [n for n in given if n not in own]
    if missing or unknown:
        raise ValueError(f"missing: {missing[:3] or 'none'}, unknown: {unknown[:3] or 'none'}")
    channels = own["conv1.weight"].shape[1]
    stem = given["conv1.weight"]
    if channels != stem.shape[1]:
        repeated = stem.mean(dim=1, keepdim=True).expand(-1, channels, -1, -1)
        given["conv1.weight"] = repeated * (stem.shape[1] / channels)
    wrong = [n for n, value in given.items() if value.shape != own[n].shape]
    if wrong:
        n = wrong[0]
        raise ValueError(f"{n} is {tuple(given[n].shape)}, not {tuple(own[n].shape)}")
    trunk.load_state_dict({**own, **given})


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """A 1x1 projection where the shape changes, otherwise the identity."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
    )


def _stage(plan: TrunkPlan, index: int, in_channels: int, stride: int) -> nn.Sequential:
    block = BasicBlock if plan.block == "basic" else Bottleneck
    planes, out_channels = plan.planes[index], plan.channels[index]
    first = block(in_channels, planes, stride, plan)
    rest = [block(out_channels, planes, 1, plan) for _ in range(plan.depths[index] - 1)]
    return nn.Sequential(first, *rest)
