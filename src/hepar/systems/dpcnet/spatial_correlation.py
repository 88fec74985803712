"""Spatial correlation module (SpaCor): finer features say where coarser ones count.

Zhang Y. et al., DPC-Net, 2022, section III.D, Fig. 3 (top), Eq. 4 to 6, for i = 1 .. L-1:

    X       = [up(F_i), F_{i-1}]                             concatenation
    T_i     = Avg_c X + Max_c X                              one channel             (5)
    A_i^m   = W_2 phi(W_1 T_i)                               3x3x3, leaky ReLU       (4, 5)
    F_i^spa = down(sigma(A_i^m) * g(up(F_i)))                g is 1x1x1              (6)

X is never built: the mean and the maximum over the channels of a concatenation follow from those of
its parts. The last 1x1x1 runs behind the average pooling, with which it commutes, on an eighth of
the voxels.

Differs from the paper: the sigmoid is 1 / (1 + exp(-x)); Eq. 6 prints the other sign.

Where the paper is silent (`settings.correlation`; both give the printed +0.43M): how features are
brought to the finer size and back, and how "3-layer" is counted. `light`: a transposed convolution
to C_{i-1} channels, two convolutions with C_i channels between them (three layers of neurons),
average pooling and 1x1x1 back. `literal`, on three levels: g before a trilinear up-sampling, three
convolutions with C_{i-1} channels between them, a strided 3x3x3 back.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Squeeze = Literal["avg", "max", "both"]


def spatial_abstraction(
    u: Float[Tensor, "b c z y x"], finer: Float[Tensor, "b d z y x"], squeeze: Squeeze
) -> Float[Tensor, "b 1 z y x"]:
    """T_i of Eq. 5: mean, maximum or their sum over the channels of `[u, finer]`."""
    parts = []
    if squeeze != "max":
        total = u.sum(dim=1, keepdim=True) + finer.sum(dim=1, keepdim=True)
        parts.append(total / (u.shape[1] + finer.shape[1]))
    if squeeze != "avg":
        parts.append(torch.maximum(u.amax(dim=1, keepdim=True), finer.amax(dim=1, keepdim=True)))
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


class SpatialCorrelation(nn.Module):
    """One SpaCor of the `light` kind.

    Args:
        channels: C_i.
        finer: C_{i-1}.
        squeeze: which squeeze of the channels the attention sees.
    """

    def __init__(self, channels: int, finer: int, squeeze: Squeeze) -> None:
        super().__init__()
        self.squeeze: Squeeze = squeeze
        self.up = nn.ConvTranspose3d(channels, finer, 2, 2)
        self.hidden = nn.Conv3d(1, channels, 3, padding=1)
        self.attention = nn.Conv3d(channels, 1, 3, padding=1)
        self.g = nn.Conv3d(finer, finer, 1)
        self.back = nn.Conv3d(finer, channels, 1)

    def forward(
        self, coarse: Float[Tensor, "b c z y x"], finer: Float[Tensor, "b d z2 y2 x2"]
    ) -> Float[Tensor, "b c z y x"]:
        """F_i^spa of F_i and F_{i-1}, which is twice as large along every axis."""
        u = self.up(coarse)
        squeezed = spatial_abstraction(u, finer, self.squeeze)
        attention = self.attention(functional.leaky_relu(self.hidden(squeezed), 0.01))
        return self.back(functional.avg_pool3d(torch.sigmoid(attention) * self.g(u), 2))


class LiteralSpatialCorrelation(nn.Module):
    """One SpaCor of the `literal` kind; arguments as `SpatialCorrelation`."""

    def __init__(self, channels: int, finer: int, squeeze: Squeeze) -> None:
        super().__init__()
        self.squeeze: Squeeze = squeeze
        self.g = nn.Conv3d(channels, finer, 1)
        self.hidden1 = nn.Conv3d(1, finer, 3, padding=1)
        self.hidden2 = nn.Conv3d(finer, finer, 3, padding=1)
        self.attention = nn.Conv3d(finer, 1, 3, padding=1)
        self.back = nn.Conv3d(finer, channels, 3, stride=2, padding=1)

    def forward(
        self, coarse: Float[Tensor, "b c z y x"], finer: Float[Tensor, "b d z2 y2 x2"]
    ) -> Float[Tensor, "b c z y x"]:
        """F_i^spa of F_i and F_{i-1}, which is twice as large along every axis."""
        # The 1x1x1 commutes with trilinear up-sampling: on an eighth of the voxels.
        u = functional.interpolate(
            self.g(coarse), size=finer.shape[2:], mode="trilinear", align_corners=False
        )
        h = spatial_abstraction(u, finer, self.squeeze)
        for layer in (self.hidden1, self.hidden2):
            h = functional.leaky_relu(layer(h), 0.01)
        return self.back(torch.sigmoid(self.attention(h)) * u)
