"""The ResNet family as trunks whose stages are called one at a time.

He et al., Deep residual learning, CVPR 2016 (BasicBlock, Bottleneck); Xie et al., Aggregated
residual transformations, CVPR 2017 (ResNeXt: grouped 3x3, "32x4d"); Gao et al., Res2Net, TPAMI 2019
(Bottle2neck: a hierarchy of 3x3 convolutions inside one block, "26w x 4s").
Parameter names are torchvision's (`conv1`, `bn1`, `layer1.0.conv1`, `layer1.0.downsample.0`), and
those of Res2Net's authors (`layer1.0.convs.0`, `layer1.0.bns.0`), so that published weights load as
they are. As there, a bottleneck strides in its 3x3 ("v1.5"). Res2Net comes as first published and
as "v1b": a stem of three 3x3 convolutions, and shortcuts that average before they project.

Differs from the paper: no classifier. `stem_stride=2` leaves out the max pooling (ours).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
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
        width_per_group: channels of one group, or of one split, at 64 planes.
        splits: of a Bottle2neck.
        deep_stem: three 3x3 convolutions instead of one 7x7.
        average_down: a shortcut that strides averages, then projects.
    """

    block: Literal["basic", "bottleneck", "bottle2neck"]
    depths: tuple[int, int, int, int]
    planes: tuple[int, int, int, int] = (64, 128, 256, 512)
    groups: int = 1
    width_per_group: int = 64
    splits: int = 4
    deep_stem: bool = False
    average_down: bool = False

    @property
    def channels(self) -> tuple[int, ...]:
        """Output channels of the four stages."""
        expansion = 1 if self.block == "basic" else 4
        return tuple(expansion * p for p in self.planes)

    def of_width(self, base: int) -> TrunkPlan:
        """The same member with another stem width, all others in proportion.

        Raises:
            ValueError: a width that its groups do not divide.
        """
        a, b, c, d = (p * base // self.planes[0] for p in self.planes)
        planes = (a, b, c, d)
        if planes[0] * self.width_per_group < 64:
            raise ValueError(f"a base width of {base} leaves a group without channels")
        return replace(self, planes=planes)


TRUNKS = {
    "resnet10": TrunkPlan("basic", (1, 1, 1, 1), planes=(32, 64, 128, 256)),
    "resnet50": TrunkPlan("bottleneck", (3, 4, 6, 3)),
    "resnext50": TrunkPlan("bottleneck", (3, 4, 6, 3), groups=32, width_per_group=4),
    "res2net50_v1": TrunkPlan("bottle2neck", (3, 4, 6, 3), width_per_group=26),
    "res2net50": TrunkPlan(
        "bottle2neck", (3, 4, 6, 3), width_per_group=26, deep_stem=True, average_down=True
    ),
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
        self.downsample = _shortcut(in_channels, planes, stride, plan)

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
        self.downsample = _shortcut(in_channels, out_channels, stride, plan)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """`relu(F(x) + shortcut(x))`."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out)) + shortcut)


class Bottle2neck(nn.Module):
    """1x1 to splits x_1..x_s, a hierarchy of 3x3 over them, 1x1 to four times the planes.

    `y_1 = K_1(x_1)`, `y_i = K_i(x_i + y_(i-1))`, `y_s = x_s` (Gao et al., Fig. 2b with the
    untransformed split last, as their code). The first block of a stage, whose splits change size,
    takes `y_i = K_i(x_i)` and averages 3x3 for the last split.
    """

    def __init__(self, in_channels: int, planes: int, stride: int, plan: TrunkPlan) -> None:
        super().__init__()
        width, out_channels = planes * plan.width_per_group // 64, 4 * planes
        self.width = width
        # The shape changes in the first block of every stage: its stride, or at least its channels.
        self.first = in_channels != out_channels
        self.conv1 = nn.Conv2d(in_channels, width * plan.splits, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width * plan.splits)
        self.convs = nn.ModuleList(
            nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
            for _ in range(plan.splits - 1)
        )
        self.bns = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(plan.splits - 1))
        self.conv3 = nn.Conv2d(width * plan.splits, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AvgPool2d(3, stride, padding=1) if self.first else nn.Identity()
        self.downsample = _shortcut(in_channels, out_channels, stride, plan)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """`relu(F(x) + shortcut(x))`."""
        shortcut = x if self.downsample is None else self.downsample(x)
        *splits, last = self.relu(self.bn1(self.conv1(x))).split(self.width, dim=1)
        done: list[Tensor] = []
        for split, conv, norm in zip(splits, self.convs, self.bns, strict=True):
            given = split if self.first or not done else split + done[-1]
            done.append(self.relu(norm(conv(given))))
        out = torch.cat([*done, self.pool(last)], dim=1)
        return self.relu(self.bn3(self.conv3(out)) + shortcut)


class ResNetTrunk(nn.Module):
    """Five convolution blocks, B1..B5, called as `stage(1..5, x)`.

    The stages are separate calls because a network may change the features between them.

    Args:
        plan: a member of `TRUNKS`.
        in_channels: channels of the image.
        stem_stride: 4 as published, 2 without the max pooling.

    Attributes:
        stem_channels: output channels of the stem.
        channels: output channels of B2..B5.
        total_stride: input pixels to one pixel of B5 along an axis.
    """

    def __init__(self, plan: TrunkPlan, in_channels: int, stem_stride: StemStride = 4) -> None:
        super().__init__()
        self.channels = plan.channels
        self.total_stride = 8 * stem_stride
        stem = plan.planes[0]
        self.stem_channels = stem
        self.conv1 = _stem(plan, in_channels)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if stem_stride == 4 else nn.Identity()
        incoming = (stem, *plan.channels[:-1])
        self.layer1 = _stage(plan, 0, incoming[0], stride=1)
        self.layer2 = _stage(plan, 1, incoming[1], stride=2)
        self.layer3 = _stage(plan, 2, incoming[2], stride=2)
        self.layer4 = _stage(plan, 3, incoming[3], stride=2)
        init_he(self)

    def stem(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """B1 before its pooling, at half the size of the image."""
        return self.relu(self.bn1(self.conv1(x)))

    def stage(self, block: int, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """B1 (convolution, BatchNorm, ReLU, pooling) or B2..B5, by the number of the block."""
        if block == 1:
            return self.maxpool(self.stem(x))
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
    first = next(name for name in own if name.startswith("conv1.") and name.endswith("weight"))
    channels, stem = own[first].shape[1], given[first]
    if channels != stem.shape[1]:
        repeated = stem.mean(dim=1, keepdim=True).expand(-1, channels, -1, -1)
        given[first] = repeated * (stem.shape[1] / channels)
    wrong = [n for n, value in given.items() if value.shape != own[n].shape]
    if wrong:
        n = wrong[0]
        raise ValueError(f"{n} is {tuple(given[n].shape)}, not {tuple(own[n].shape)}")
    trunk.load_state_dict({**own, **given})


def _stem(plan: TrunkPlan, in_channels: int) -> nn.Module:
    """The stride-2 convolution of the image, or three small ones."""
    stem = plan.planes[0]
    if not plan.deep_stem:
        return nn.Conv2d(in_channels, stem, 7, stride=2, padding=3, bias=False)
    return nn.Sequential(
        nn.Conv2d(in_channels, stem // 2, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(stem // 2),
        nn.ReLU(inplace=True),
        nn.Conv2d(stem // 2, stem // 2, 3, padding=1, bias=False),
        nn.BatchNorm2d(stem // 2),
        nn.ReLU(inplace=True),
        nn.Conv2d(stem // 2, stem, 3, padding=1, bias=False),
    )


def _shortcut(
    in_channels: int, out_channels: int, stride: int, plan: TrunkPlan
) -> nn.Sequential | None:
    """A 1x1 projection where the shape changes, otherwise the identity."""
    if stride == 1 and in_channels == out_channels:
        return None
    if not plan.average_down:
        return nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
            nn.BatchNorm2d(out_channels),
        )
    return nn.Sequential(
        nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def _stage(plan: TrunkPlan, index: int, in_channels: int, stride: int) -> nn.Sequential:
    kinds = {"basic": BasicBlock, "bottleneck": Bottleneck, "bottle2neck": Bottle2neck}
    block = kinds[plan.block]
    planes, out_channels = plan.planes[index], plan.channels[index]
    first = block(in_channels, planes, stride, plan)
    rest = [block(out_channels, planes, 1, plan) for _ in range(plan.depths[index] - 1)]
    return nn.Sequential(first, *rest)
