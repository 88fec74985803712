"""Phase attention at one scale: intra-phase and inter-phase channel attention, concatenated.

Xu Y. et al., PA-ResSeg: A phase attention residual network for liver tumor segmentation from
multiphase CT images, Medical Physics 2021, and the authors' code, csying/PA-ResSeg (facts of
`network/modules.py` and of the fusion head in `network/resnet.py`; nothing is copied). The
intra-phase part is the channel attention of Fu et al., Dual attention network, CVPR 2019.

| code of the authors | code | shape |
|---|---|---|
| features of PV, of ART | `reference`, `others` | b, C, H, W |
| reduced features | `PhaseAttention.reduce` | b, width, H, W |
| energy, attention | `channel_affinity` | b, width, width |
| channel self-attention | `ChannelSelfAttention` | b, width, H, W |
| channel scale of ART | `PhaseChannelAttention.scale` | b, width |
| fused features | `PhaseAttention.forward` | b, phases * width, H, W |

Differs from the paper: any number of other phases, each attended by the reference with weights of
its own; with one it is the published head. Softmaxes are computed in float32 under autocast.

What the authors' code does, and the switch: `attention[i, j]` is a softmax over j, and the channel
scale of i is the sum over j. That sum is 1 whatever the images, so every channel of ART is scaled
by sigmoid(1) = 0.731 and PV says nothing about ART. `pa_sum_axis='last'` is this code, the default;
`'first'` sums over i instead, which depends on both phases.
"""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from hepar.networks.blocks import ConvNormAct, at_least_float32, full_precision

SumAxis = Literal["last", "first"]


def channel_affinity(
    x: Float[Tensor, "b c h w"], y: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c c"]:
    """How unlike each channel of `x` is to the channels of `y`, as weights of sum 1 over the last.

    `E_ij = sum_hw x_i y_j`, `A_ij = softmax_j(max_k E_ik - E_ij)`, in float32 at least.
    """
    with full_precision(x):
        rows = rearrange(at_least_float32(x), "b c h w -> b c (h w)")
        columns = rearrange(at_least_float32(y), "b c h w -> b (h w) c")
        energy = torch.bmm(rows, columns)
        return (energy.amax(dim=-1, keepdim=True) - energy).softmax(dim=-1)


class ChannelSelfAttention(nn.Module):
    """Intra-phase: `gamma A x + x`, A the affinity of x with itself; gamma is trained from 0."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Attended features, float32 at least."""
        attention = channel_affinity(x, x)
        with full_precision(x):
            values = at_least_float32(x)
            attended = torch.bmm(attention, rearrange(values, "b c h w -> b c (h w)"))
            return self.gamma * attended.view(values.shape) + values


class PhaseChannelAttention(nn.Module):
    """Inter-phase: `gamma sigmoid(s) y + y`, s from the affinity of y with the reference.

    gamma is trained from 0, so that the energies have no gradient in the first step.

    Args:
        sum_axis: axis of the affinity summed over; see the top of the file.
    """

    def __init__(self, sum_axis: SumAxis) -> None:
        super().__init__()
        self.axis = -1 if sum_axis == "last" else -2
        self.gamma = nn.Parameter(torch.zeros(1))

    def scale(
        self, reference: Float[Tensor, "b c h w"], y: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c"]:
        """Factor of each channel of y, in (0, 1)."""
        return channel_affinity(y, reference).sum(dim=self.axis).sigmoid()

    def forward(
        self, reference: Float[Tensor, "b c h w"], y: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Attended features of y, float32 at least."""
        scale = rearrange(self.scale(reference, y), "b c -> b c 1 1")
        with full_precision(y):
            values = at_least_float32(y)
            return self.gamma * scale * values + values


class PhaseAttention(nn.Module):
    """The fusion head of one scale.

    Each phase: 3x3 to `width`, attention, 3x3; the reference attends to itself, every other phase
    is attended by the reference. Concatenated, the reference first.

    Args:
        channels: of each phase's features.
        width: of each phase's part of the output; a quarter of `channels` by default, as published.
        others: phases besides the reference; 0 leaves the intra-phase part.
        pa_sum_axis: see the top of the file.
    """

    def __init__(
        self,
        channels: int,
        width: int | None = None,
        *,
        others: int = 1,
        pa_sum_axis: SumAxis = "last",
    ) -> None:
        super().__init__()
        width = channels // 4 if width is None else width
        self.out_channels = (1 + others) * width
        self.reduce = nn.ModuleList(ConvNormAct(channels, width, 3) for _ in range(1 + others))
        self.intra = ChannelSelfAttention()
        self.inter = nn.ModuleList(PhaseChannelAttention(pa_sum_axis) for _ in range(others))
        self.refine = nn.ModuleList(ConvNormAct(width, width, 3) for _ in range(1 + others))

    def forward(
        self, reference: Float[Tensor, "b c h w"], *others: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c2 h w"]:
        """Fused features.

        Raises:
            ValueError: another number of phases than the head was made for.
        """
        if len(others) != len(self.inter):
            raise ValueError(f"a head for {len(self.inter)} other phases got {len(others)}")
        first, *rest = (conv(x) for conv, x in zip(self.reduce, (reference, *others), strict=True))
        attended = [self.intra(first)]
        attended += [inter(first, y) for inter, y in zip(self.inter, rest, strict=True)]
        return torch.cat([conv(x) for conv, x in zip(self.refine, attended, strict=True)], dim=1)
