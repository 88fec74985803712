"""Deep cross feature fusion (DCFF): the branches of E2Net refine each other at every scale.

Tang Y. et al., E2Net, MICCAI 2020, section 2, Fig. 2 (c) and (d). For scale j of one branch, all
scales i >= j of the other:

    segmentation                                      edge
    c_i = K [down_i(F1_j), F2_i]                      c_i = K (down_i(F2_j) F1_i)
    u_5 = c_5,  u_i = K [c_i, up(u_(i+1))]            u_5 = c_5,  u_i = K (c_i up(u_(i+1)))
    F1'_j = F1_j + u_j                                F2'_j = F2_j + u_j

K is a 3x3 convolution, BatchNorm and ReLU, another one each time; both branches refine the
unrefined features of the other.

Where the paper is silent: "equal and larger scale features" are those of equal and larger index,
the coarser ones: its example uses all five for j = 1, and a finer map is not reached by
down-sampling. Down-sampling is max pooling (`down`); up-sampling bilinear.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hepar.networks.blocks import resize_to

Down = Literal["max", "mean"]
Maps = Sequence[Float[Tensor, "b c _ _"]]
Conv = Callable[[int, int], nn.Module]
"""Makes a 3x3 convolution with its BatchNorm and ReLU, of (channels in, channels out)."""


class CrossRefinement(nn.Module):
    """One branch, at every scale, refined by the other.

    Args:
        scales: how many, finest first.
        channels: of every map.
        join: `concatenate` for segmentation, `multiply` for edges.
        conv: makes K.
        down: how a finer map is brought to a coarser size.
    """

    def __init__(
        self,
        scales: int,
        channels: int,
        join: Literal["concatenate", "multiply"],
        conv: Conv,
        down: Down,
    ) -> None:
        super().__init__()
        self.join, self.down = join, down
        joined = 2 * channels if join == "concatenate" else channels
        # cross[j][i - j] makes c_i of scale j, back[j][i - j] its u_i; the coarsest has no u.
        self.cross = nn.ModuleList(
            nn.ModuleList(conv(joined, channels) for _ in range(j, scales)) for j in range(scales)
        )
        self.back = nn.ModuleList(
            nn.ModuleList(conv(joined, channels) for _ in range(j, scales - 1))
            for j in range(scales)
        )

    def forward(self, own: Maps, other: Maps) -> list[Float[Tensor, "b c _ _"]]:
        """The refined maps of the branch.

        Args:
            own: maps of the branch, finest first.
            other: maps of the other branch, of the same sizes.
        """
        return [self._scale(j, own[j], other[j:]) for j in range(len(own))]

    def _scale(self, j: int, own: Tensor, coarser: Maps) -> Float[Tensor, "b c h w"]:
        crossed, lowered = [], own
        for conv, other in zip(self.cross[j], coarser, strict=True):  # type: ignore[call-overload]
            # The maximum over a window is the maximum over the maxima of its parts, and so is the
            # mean: each size is made from the one before.
            lowered = _lowered(lowered, (other.shape[-2], other.shape[-1]), self.down)
            crossed.append(conv(self._joined(lowered, other)))
        up = crossed[-1]
        backwards = zip(reversed(self.back[j]), reversed(crossed[:-1]), strict=True)  # type: ignore[call-overload]
        for conv, c in backwards:
            up = conv(self._joined(c, resize_to(up, (c.shape[-2], c.shape[-1]))))
        return own + up

    def _joined(self, a: Tensor, b: Tensor) -> Float[Tensor, "b c2 h w"]:
        return torch.cat([a, b], dim=1) if self.join == "concatenate" else a * b


def _lowered(x: Float[Tensor, "b c h w"], size: tuple[int, int], down: Down) -> Tensor:
    if x.shape[-2:] == size:
        return x
    return F.adaptive_max_pool2d(x, size) if down == "max" else F.adaptive_avg_pool2d(x, size)


class DeepCrossFeatureFusion(nn.Module):
    """Both directions at once.

    Args:
        scales: of either branch.
        channels: of every map.
        conv: makes K.
        down: how a finer map is brought to a coarser size.
    """

    def __init__(self, scales: int, channels: int, conv: Conv, down: Down = "max") -> None:
        super().__init__()
        self.segmentation = CrossRefinement(scales, channels, "concatenate", conv, down)
        self.edge = CrossRefinement(scales, channels, "multiply", conv, down)

    def forward(
        self, f1: Maps, f2: Maps
    ) -> tuple[list[Float[Tensor, "b c _ _"]], list[Float[Tensor, "b c _ _"]]]:
        """F1' and F2' of segmentation features F1 and edge features F2, finest first."""
        return self.segmentation(f1, f2), self.edge(f2, f1)
