"""A plain 2D U-Net, its encoder a trunk whose levels are called one at a time.

Source: Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation",
MICCAI 2015, Fig. 1: five levels of two 3x3 convolutions, 2x2 max pooling, 2x2 up-convolutions of
stride 2, and concatenation.

Differs from the paper: padded convolutions, each followed by BatchNorm (and so without a bias);
the width is the caller's (64 as published).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hepar.networks.blocks import ConvNormAct, init_he

GROWTH = (1, 2, 4, 8, 16)
"""Width of each level in units of the first."""


class ConvPair(nn.Sequential):
    """Two 3x3 convolutions, each followed by BatchNorm and ReLU.

    Args:
        in_channels: channels of the input.
        out_channels: channels of both convolutions.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            ConvNormAct(in_channels, out_channels, 3), ConvNormAct(out_channels, out_channels, 3)
        )


class UNetTrunk(nn.Module):
    """The encoder: five levels, called as `stage(1..5, x)`.

    The stages are separate calls because a network may change the features between them. Stage 1
    works at full resolution; every later one halves it first.

    Args:
        in_channels: channels of the image.
        base: channels of the first level; 64 as published.

    Attributes:
        widths: output channels of levels 1 to 5.
        channels: output channels of levels 2 to 5.
        total_stride: input pixels to one pixel of level 5 along an axis.
    """

    def __init__(self, in_channels: int, base: int = 64) -> None:
        super().__init__()
        self.widths = tuple(base * growth for growth in GROWTH)
        self.channels = self.widths[1:]
        self.total_stride = 2 ** (len(GROWTH) - 1)
        incoming = (in_channels, *self.widths[:-1])
        self.levels = nn.ModuleList(
            ConvPair(before, width) for before, width in zip(incoming, self.widths, strict=True)
        )
        init_he(self)

    def stage(self, level: int, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """Two convolutions (level 1), or max pooling and two convolutions (levels 2 to 5)."""
        if level not in range(1, len(GROWTH) + 1):
            raise ValueError(f"there is no level {level}: a U-Net has levels 1 to {len(GROWTH)}")
        return self.levels[level - 1](x if level == 1 else F.max_pool2d(x, 2))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Sequence[Float[Tensor, "n _ _ _"]]:
        """Outputs of levels 2 to 5 with nothing in between."""
        x = self.stage(1, x)
        outputs = []
        for level in range(2, len(GROWTH) + 1):
            x = self.stage(level, x)
            outputs.append(x)
        return outputs


class UNetDecoder(nn.Module):
    """The decoder: up-convolution, concatenation with the skip connection, two convolutions.

    Args:
        widths: channels of the levels, finest first.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        coarse, fine = widths[:0:-1], widths[-2::-1]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(before, after, 2, stride=2)
            for before, after in zip(coarse, fine, strict=True)
        )
        self.levels = nn.ModuleList(ConvPair(2 * width, width) for width in fine)
        init_he(self)

    def forward(self, features: Sequence[Float[Tensor, "n _ _ _"]]) -> Float[Tensor, "n c h w"]:
        """Features at the resolution of the finest level.

        Args:
            features: one map a level, finest first; the last is the bottleneck.
        """
        x = features[-1]
        for up, level, skip in zip(self.up, self.levels, features[-2::-1], strict=True):
            x = level(torch.cat([skip, up(x)], dim=1))
        return x
