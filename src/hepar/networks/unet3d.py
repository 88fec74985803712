"""3D U-Nets: a small one of ours, and the published ones, which give every level of their decoder.

Source: Cicek et al., "3D U-Net: Learning Dense Volumetric Segmentation from Sparse Annotation",
MICCAI 2016, Fig. 2; Isensee et al., nnU-Net, Nature Methods 2021 (`PyramidUNet3d` with its norm,
activation, and strided convolutions).

`UNet3d` differs from the paper: instance norm instead of batch norm (batches of one or two), padded
convolutions, widths given by the caller, nearest upsampling instead of transposed convolution
(no checkerboard, fewer parameters). `PyramidUNet3d` pads its convolutions too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

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


Sizes = tuple[int, int, int]
Norm = Literal["batch", "instance"]
Down = Literal["max", "conv", "strided"]
Keep = Callable[[int, Tensor], tuple[Tensor, Tensor]]
Gate = Callable[[int, Tensor, Tensor], Tensor]


class ConvBlocks(nn.Sequential):
    """Blocks of convolution (with bias), norm and activation.

    Args:
        in_channels: channels of the input.
        out_channels: channels of every convolution.
        norm: `batch` is followed by ReLU, `instance` by leaky ReLU of slope 0.01.
        kernel: of every convolution, odd, (z, y, x).
        stride: of the first.
        blocks: how many, one after the other.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm: Norm,
        kernel: Sizes = (3, 3, 3),
        stride: Sizes = (1, 1, 1),
        blocks: int = 2,
    ) -> None:
        layers: list[nn.Module] = []
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        rest: list[tuple[int, Sizes]] = [(out_channels, (1, 1, 1))] * (blocks - 1)
        for channels, step in [(in_channels, stride), *rest]:
            layers.append(nn.Conv3d(channels, out_channels, kernel, step, padding))
            if norm == "batch":
                layers += [nn.BatchNorm3d(out_channels), nn.ReLU(inplace=True)]
            else:
                layers += [instance_norm(out_channels), nn.LeakyReLU(0.01, inplace=True)]
        super().__init__(*layers)


class PyramidEncoder3d(nn.Module):
    """The contracting path and its bottleneck.

    Args:
        in_channels: channels of the input; None where a stem outside takes the place of level 0,
            whose features are then what is given.
        widths: channels of each level, finest first, the bottleneck last.
        norm: see `ConvBlocks`.
        down: from a level to the next coarser: `max` pooling, a `conv` of its own as large as its
            stride and as wide as the finer level, or the first convolution of the coarser level,
            `strided`.
        strides: voxels of a level to one of the next, (z, y, x) each.
        kernels: of each level.
    """

    def __init__(
        self,
        in_channels: int | None,
        widths: Sequence[int],
        norm: Norm,
        down: Down,
        strides: Sequence[Sizes],
        kernels: Sequence[Sizes],
    ) -> None:
        super().__init__()
        first: list[Sizes] = [(1, 1, 1)] * len(widths)
        if down == "strided":
            first[1:] = strides
        ins = [in_channels, *widths[:-1]]
        self.levels = nn.ModuleList(
            nn.Identity() if before is None else ConvBlocks(before, width, norm, kernel, step)
            for before, width, kernel, step in zip(ins, widths, kernels, first, strict=True)
        )
        ways: dict[Down, Callable[[int, Sizes], nn.Module]] = {
            "max": lambda width, step: nn.MaxPool3d(step),
            "conv": lambda width, step: nn.Conv3d(width, width, step, step),
            "strided": lambda width, step: nn.Identity(),
        }
        pairs = zip(widths, strides, strict=False)
        self.downs = nn.ModuleList(ways[down](width, step) for width, step in pairs)

    def forward(
        self, x: Float[Tensor, "n c z y x"], keep: Keep | None = None
    ) -> list[Float[Tensor, "_ _ _ _ _"]]:
        """Features of each level, finest first.

        Args:
            x: images.
            keep: given a level and its features, says what is kept of them and what the next level
                sees; None for the features themselves.
        """
        found = []
        for number, level in enumerate(self.levels):
            x = level(x)
            kept, x = (x, x) if keep is None else keep(number, x)
            found.append(kept)
            if number < len(self.downs):
                x = self.downs[number](x)
        return found


class PyramidDecoder3d(nn.Module):
    """The expanding path: transposed convolution, concatenation with the skip, two blocks.

    Args:
        widths: of the encoder.
        norm: see `ConvBlocks`.
        strides: of the encoder.
        kernels: of the encoder.
    """

    def __init__(
        self,
        widths: Sequence[int],
        norm: Norm,
        strides: Sequence[Sizes],
        kernels: Sequence[Sizes],
    ) -> None:
        super().__init__()
        self.ups = nn.ModuleList(
            nn.ConvTranspose3d(coarse, fine, step, step)
            for (fine, coarse), step in zip(pairwise(widths), strides, strict=True)
        )
        self.levels = nn.ModuleList(
            ConvBlocks(2 * width, width, norm, kernel)
            for width, kernel in zip(widths[:-1], kernels[:-1], strict=True)
        )

    def forward(
        self, skips: Sequence[Float[Tensor, "_ _ _ _ _"]], gate: Gate | None = None
    ) -> list[Float[Tensor, "_ _ _ _ _"]]:
        """Features of each level but the bottleneck's, finest first.

        Args:
            skips: of the encoder, the bottleneck last.
            gate: given a level, its skip and what lies below, says what is used of the skip.
        """
        below, found = skips[-1], []
        for number in reversed(range(len(self.levels))):
            skip = skips[number] if gate is None else gate(number, skips[number], below)
            below = self.levels[number](torch.cat([self.ups[number](below), skip], dim=1))
            found.append(below)
        return found[::-1]


class PyramidUNet3d(nn.Module):
    """A U-Net without a head: the features of every level of its decoder.

    Args:
        in_channels: channels of the input, or None: see `PyramidEncoder3d`.
        widths: channels of each level, finest first, the bottleneck last.
        norm: `batch` with ReLU, `instance` with leaky ReLU.
        down: see `PyramidEncoder3d`.
        strides: from each level to the next; None halves every axis.
        kernels: of each level; None for 3x3x3.

    Attributes:
        widths: channels of the features, finest first.
        stride: spatial sizes must be multiples of this, (z, y, x).
    """

    def __init__(
        self,
        in_channels: int | None,
        widths: Sequence[int],
        *,
        norm: Norm = "instance",
        down: Down = "strided",
        strides: Sequence[Sizes] | None = None,
        kernels: Sequence[Sizes] | None = None,
    ) -> None:
        super().__init__()
        steps = [(2, 2, 2)] * (len(widths) - 1) if strides is None else list(strides)
        sizes = [(3, 3, 3)] * len(widths) if kernels is None else list(kernels)
        if len(steps) != len(widths) - 1 or len(sizes) != len(widths):
            raise ValueError(f"{len(widths)} levels, {len(steps)} strides, {len(sizes)} kernels")
        self.widths = tuple(widths[:-1])
        self.stride = tuple(math.prod(step[axis] for step in steps) for axis in range(3))
        self.encoder = PyramidEncoder3d(in_channels, widths, norm, down, steps, sizes)
        self.decoder = PyramidDecoder3d(widths, norm, steps, sizes)
        begin_convolutions(self)

    def forward(self, x: Float[Tensor, "b c z y x"]) -> list[Float[Tensor, "b _ _ _ _"]]:
        """Features of each level of the decoder, finest first.

        Raises:
            ValueError: a spatial size is not a multiple of `stride`.
        """
        self.check(x)
        return self.decoder(self.encoder(x))

    def check(self, x: Float[Tensor, "b c z y x"]) -> None:
        """Refuse what cannot be halved.

        Raises:
            ValueError: a spatial size is not a multiple of `stride`.
        """
        if any(size % step for size, step in zip(x.shape[2:], self.stride, strict=True)):
            raise ValueError(f"spatial sizes {tuple(x.shape[2:])} not multiples of {self.stride}")


def begin_convolutions(network: nn.Module) -> None:
    """Weights of all 3D convolutions as nnU-Net begins them: He et al. (2015) for leaky ReLU."""
    for part in network.modules():
        if isinstance(part, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(part.weight, a=0.01)
            nn.init.zeros_(part.bias)  # type: ignore[arg-type]
