"""Semantic correlation module (SemCor): coarser features say which channels of finer ones count.

Zhang Y. et al., DPC-Net, 2022, section III.E, Fig. 3 (bottom), Eq. 7 to 9, for i = 0 .. L-2:

    X       = [F_i^spa, F_{i+1}^spa]                         concatenation over channels
    T_i     = [Avg X, Max X]                                 over space              (8)
    A_i^v   = W_2 phi(W_1 T_i)                               perceptron, leaky ReLU  (7, 8)
    F_i^sem = sigma(A_i^v) * g(F_i)                          a factor a channel      (9)

Averages and maxima of each level are taken apart: the levels differ in size, and nothing has to be
resized or concatenated but numbers.

Differs from the paper: the sigmoid is 1 / (1 + exp(-x)).

Where the paper is silent (`settings.correlation`; both give the printed +0.09M): `light`: one
perceptron of two layers for averages and for maxima, its answers added (Woo et al., CBAM, ECCV
2018, which the paper cites), g is the identity. `literal`: averages and maxima side by side, three
layers, a 1x1x1 that aligns the channels with those of the next level, g a fully connected layer.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Squeeze = Literal["avg", "max", "both"]


def averages(x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c"]:
    """Mean over space of each channel."""
    return x.mean(dim=(2, 3, 4))


def maxima(x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c"]:
    """Maximum over space of each channel."""
    return x.amax(dim=(2, 3, 4))


class SemanticCorrelation(nn.Module):
    """One SemCor of the `light` kind.

    Args:
        channels: C_i.
        coarser: C_{i+1}.
        squeeze: which squeeze of space the attention sees.
    """

    def __init__(self, channels: int, coarser: int, squeeze: Squeeze) -> None:
        super().__init__()
        self.squeeze: Squeeze = squeeze
        self.perceptron = nn.Sequential(
            nn.Linear(channels + coarser, channels),
            nn.LeakyReLU(0.01),
            nn.Linear(channels, channels),
        )
        self.channels = channels

    def forward(
        self,
        fine: Float[Tensor, "b c z y x"],
        coarse: Float[Tensor, "b d z2 y2 x2"],
        weighed: Float[Tensor, "b c z y x"],
    ) -> Float[Tensor, "b c z y x"]:
        """F_i^sem.

        Args:
            fine: what the attention sees of level i.
            coarse: of level i + 1.
            weighed: what is weighed: `fine`, or the raw features.
        """
        squeezes = {"avg": (averages,), "max": (maxima,), "both": (averages, maxima)}
        answers = [
            self.perceptron(torch.cat([of(fine), of(coarse)], dim=1))
            for of in squeezes[self.squeeze]
        ]
        attention = answers[0] if len(answers) == 1 else answers[0] + answers[1]
        return torch.sigmoid(attention)[:, :, None, None, None] * weighed


class LiteralSemanticCorrelation(nn.Module):
    """One SemCor of the `literal` kind; arguments as `SemanticCorrelation`.

    Its output has the channels of the next level.
    """

    def __init__(self, channels: int, coarser: int, squeeze: Squeeze) -> None:
        super().__init__()
        self.squeeze: Squeeze = squeeze
        self.align = nn.Conv3d(channels, coarser, 1)
        descriptors = 2 * coarser * (2 if squeeze == "both" else 1)
        self.perceptron = nn.Sequential(
            nn.Linear(descriptors, channels),
            nn.LeakyReLU(0.01),
            nn.Linear(channels, channels),
            nn.LeakyReLU(0.01),
            nn.Linear(channels, coarser),
        )
        self.g = nn.Linear(coarser, coarser)
        self.channels = coarser

    def forward(
        self,
        fine: Float[Tensor, "b c z y x"],
        coarse: Float[Tensor, "b d z2 y2 x2"],
        weighed: Float[Tensor, "b c z y x"],
    ) -> Float[Tensor, "b d z y x"]:
        """F_i^sem; see `SemanticCorrelation.forward`."""
        aligned = self.align(fine)
        found = []
        if self.squeeze != "max":
            found += [averages(aligned), averages(coarse)]
        if self.squeeze != "avg":
            found += [maxima(aligned), maxima(coarse)]
        attention = torch.sigmoid(self.perceptron(torch.cat(found, dim=1)))
        # One linear map after the other: g(align(x)) is a single 1x1x1 convolution.
        weight = self.g.weight @ self.align.weight.flatten(1)
        bias = functional.linear(cast(Tensor, self.align.bias), self.g.weight, self.g.bias)
        mapped = functional.conv3d(weighed, weight[:, :, None, None, None], bias)
        return attention[:, :, None, None, None] * mapped
