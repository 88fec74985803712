"""A plain 3D U-Net: two convolutions a level, instance norm, max pooling, nearest upsampling.

Source: Cicek et al., "3D U-Net: Learning Dense Volumetric Segmentation from Sparse Annotation",
MICCAI 2016, Fig. 2.

Differs from the paper: instance norm instead of batch norm (batches of one or two), padded
convolutions, widths given by the caller, nearest upsampling instead of transposed convolution
(no checkerboard, fewer parameters).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


def instance_norm(channels: int) -> nn.GroupNorm:
    """Instance norm with scale and shift, as group norm of one channel a group.

    The same function, but on CPU PyTorch computes it without the copies of its instance norm: a
    training step takes 0.66 s of CPU time instead of 0.76 s.
    """
    return nn.GroupNorm(channels, channels)


class ConvPair(nn.Module):
    """Two 3x3x3 convolutions, each followed by instance norm and leaky ReLU.

    Args:
        in_channels: channels of the input.
        out_channels: channels of both convolutions.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm1 = instance_norm(out_channels)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = instance_norm(out_channels)

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b d z y x"]:
        """Same spatial size, `out_channels` channels."""
        x = functional.leaky_relu(self.norm1(self.conv1(x)), 0.01)
        return functional.leaky_relu(self.norm2(self.conv2(x)), 0.01)


class UNet3d(nn.Module):
    """Encoder and decoder with skip connections; logits at input resolution.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the logits.
        widths: channels of each level, finest first; `len(widths) - 1` halvings.

    Spatial sizes must be multiples of `stride` and leave more than one voxel at the coarsest level,
    where instance norm needs a variance.
    """

    def __init__(self, in_channels: int, out_channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.stride = 2 ** (len(widths) - 1)
        ins = [in_channels, *widths[:-1]]
        self.encoder = nn.ModuleList(
            ConvPair(before, width) for before, width in zip(ins, widths, strict=True)
        )
        self.decoder = nn.ModuleList(
            ConvPair(fine + coarse, fine) for fine, coarse in pairwise(widths)
        )
        self.head = nn.Conv3d(widths[0], out_channels, 1)

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b k z y x"]:
        """Logits of every class; raises as `features` does."""
        return self.head(self.features(x))

    def features(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b w z y x"]:
        """What the head sees: the finest level of the decoder, `widths[0]` channels.

        Raises:
            ValueError: a spatial size is not a multiple of `stride`.
        """
        if any(size % self.stride for size in x.shape[2:]):
            raise ValueError(f"spatial sizes {tuple(x.shape[2:])} not multiples of {self.stride}")
        skips = []
        for level, block in enumerate(self.encoder):
            x = block(x if level == 0 else functional.max_pool3d(x, 2))
            skips.append(x)
        x = skips.pop()
        for block in reversed(self.decoder):
            x = functional.interpolate(x, scale_factor=2, mode="nearest")
            x = block(torch.cat([skips.pop(), x], dim=1))
        return x
