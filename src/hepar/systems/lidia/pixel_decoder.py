"""Pixel decoder: a feature pyramid network over an encoder, of one width at every level.

Lin T.-Y. et al.: Feature Pyramid Networks for Object Detection, CVPR 2017, with the convolutions of
Mask2Former's plain pixel decoder (Cheng B. et al., CVPR 2022) in three dimensions; LIDIA, MICCAI
2024, section 3, "Implementation Details".

| | code | shape |
|---|---|---|
| features of the encoder, level i | input | b, C_i, size / strides |
| P_i, `conv(lateral(C_i) + up(P_{i+1}))` | `PixelDecoder.forward`, first | b, C, size / strides |
| mask features | `PixelDecoder.forward`, second | b, C, size |

Where the paper is silent: an instance norm after every convolution but the last, ReLU after those
of 3x3x3 voxels, nearest neighbors on the way up.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from hepar.networks.blocks import init_he
from hepar.networks.unet3d import Sizes, instance_norm

Levels = Sequence[Float[Tensor, "b _ _ _ _"]]


def _conv(before: int, after: int, kernel: Sizes) -> list[nn.Module]:
    """A convolution without bias and the norm that would take the bias away."""
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    conv = nn.Conv3d(before, after, kernel, padding=padding, bias=False)
    return [conv, instance_norm(after)]


class PixelDecoder(nn.Module):
    """The pyramid and the features that masks are read from.

    Args:
        channels: of the encoder's levels, finest first, the bottleneck last.
        width: C, of every level of the pyramid and of the mask features.
        kernels: of each level, (z, y, x); None for 3x3x3.
    """

    def __init__(
        self, channels: Sequence[int], width: int, kernels: Sequence[Sizes] | None = None
    ) -> None:
        super().__init__()
        sizes = [(3, 3, 3)] * len(channels) if kernels is None else list(kernels)
        ins = [*[width] * (len(channels) - 1), channels[-1]]
        self.laterals = nn.ModuleList(
            nn.Sequential(*_conv(before, width, (1, 1, 1))) for before in channels[:-1]
        )
        self.outputs = nn.ModuleList(
            nn.Sequential(*_conv(before, width, kernel), nn.ReLU(inplace=True))
            for before, kernel in zip(ins, sizes, strict=True)
        )
        z, y, x = (n // 2 for n in sizes[0])
        self.mask_head = nn.Conv3d(width, width, sizes[0], padding=(z, y, x))
        init_he(self)

    def forward(
        self, features: Levels
    ) -> tuple[list[Float[Tensor, "b c _ _ _"]], Float[Tensor, "b c z y x"]]:
        """Levels of the pyramid, finest first, and mask features as fine as the finest.

        Args:
            features: of the encoder, finest first.
        """
        below = self.outputs[-1](features[-1])
        pyramid = [below]
        for level in reversed(range(len(self.laterals))):
            lateral = self.laterals[level](features[level])
            up = functional.interpolate(below, size=lateral.shape[2:], mode="nearest")
            below = self.outputs[level](lateral + up)
            pyramid.append(below)
        return pyramid[::-1], self.mask_head(below)
