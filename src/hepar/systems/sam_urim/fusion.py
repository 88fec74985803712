"""The fusions that the paper compares SAM with, plugged into the same network.

Zhang Y. et al., MICCAI 2021, Table 1 (lower half) and Table 3: "all the fusion modules are plugged
into the proposed network except that the feature aggregation module is replaced".

| row | what it is | code | streams guided (Eq. 2) |
|---|---|---|---|
| SP | the primary phase alone | `Single` | no |
| FLF-add (MP) | A = sum_p F_p | `Addition` | no |
| MW | A = sum_p a_p F_p, a_p trainable scalars of a level | `ModalityWeighting` | yes |
| PA | 1x1 of the phase attention of PA-ResSeg | `PhaseAttentionFusion` | yes |
| SAM | Eq. 1 | `spatial_aggregation.SpatialAggregation` | yes |
| ILF | phases side by side as channels of one stream | `system.SamUrim`, no module | no |
| DLF | decision features of a decoder a phase | `system.DecisionFusion` | no |

Differs from the paper: any number of phases. `Addition` and `ModalityWeighting` leave absent phases
out of their sums.

Where the paper is silent: MW and PA keep the feedback of Eq. 2, because only the aggregation is
replaced; FLF-add is described as "simply adding" and has none. The scalars of MW start at 1/P and
are not normalized (`mw_softmax`). The phase attention ends with C/2 channels for two phases; a 1x1
convolution brings them to C, as the network around it needs.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hepar.networks.blocks import init_he
from hepar.systems.baselines.pa_resseg.phase_attention import PhaseAttention
from hepar.systems.presence import PresentPairs
from hepar.systems.sam_urim.settings import SamUrimSettings
from hepar.systems.sam_urim.spatial_aggregation import SpatialAggregation

GUIDED = ("sam", "mw", "pa")
"""Fusions whose aggregated features guide the streams by Eq. 2."""


class Single(nn.Module):
    """One phase: its features are the aggregated ones."""

    def forward(
        self, features: Float[Tensor, "n c h w"], pairs: PresentPairs
    ) -> Float[Tensor, "b c h w"]:
        """`A = F`."""
        return features


class Addition(nn.Module):
    """FLF-add: `A = sum_p F_p`."""

    def forward(
        self, features: Float[Tensor, "n c h w"], pairs: PresentPairs
    ) -> Float[Tensor, "b c h w"]:
        """The sum over the phases that a sample has."""
        spread = [
            pairs.spread(f, p, fill=0.0) for p, f in enumerate(pairs.split(features)) if len(f)
        ]
        return sum(spread[1:], start=spread[0])


class ModalityWeighting(nn.Module):
    """MW (Wu et al., ICIP 2019): `A = sum_p a_p F_p` with one trainable scalar a phase.

    Args:
        phases: P.
        softmax: the scalars go through a softmax over the phases that a sample has.
    """

    def __init__(self, phases: int, *, softmax: bool = False) -> None:
        super().__init__()
        self.softmax = softmax
        start = torch.zeros(phases) if softmax else torch.full((phases,), 1.0 / phases)
        self.weight = nn.Parameter(start)

    def forward(
        self, features: Float[Tensor, "n c h w"], pairs: PresentPairs
    ) -> Float[Tensor, "b c h w"]:
        """The weighted sum over the phases that a sample has."""
        total = None
        for phase, f in enumerate(pairs.split(features)):
            if not len(f):
                continue
            share = self.shares(pairs)[:, phase].to(f.dtype).view(-1, 1, 1, 1)
            part = pairs.of_phase(share, phase) * f
            spread = pairs.spread(part, phase, fill=0.0)
            total = spread if total is None else total + spread
        assert total is not None
        return total

    def shares(self, pairs: PresentPairs) -> Float[Tensor, "b p"]:
        """The weight of each phase of each sample, 0 for an absent one."""
        present = pairs.present.to(self.weight.device)
        if not self.softmax:
            return self.weight * present
        return self.weight.float().masked_fill(~present, float("-inf")).softmax(dim=1)


class PhaseAttentionFusion(nn.Module):
    """PA (Xu et al., Medical Physics 2021): phase attention, then 1x1 to C. Needs every phase.

    Args:
        phases: P.
        primary: which of them is segmented, and attends to itself.
        channels: C.
        pa_sum_axis: see `PhaseAttention`.
    """

    def __init__(
        self,
        phases: int,
        primary: int,
        channels: int,
        *,
        pa_sum_axis: Literal["last", "first"],
    ) -> None:
        super().__init__()
        self.primary = primary
        self.attention = PhaseAttention(channels, others=phases - 1, pa_sum_axis=pa_sum_axis)
        self.project = nn.Conv2d(self.attention.out_channels, channels, 1)
        init_he(self)

    def forward(
        self, features: Float[Tensor, "n c h w"], pairs: PresentPairs
    ) -> Float[Tensor, "b c h w"]:
        """Attention of the primary phase to itself, of the others to the primary one."""
        parts = list(pairs.split(features))
        reference = parts.pop(self.primary)
        found: Tensor = self.project(self.attention(reference, *parts))
        return found


def fusion(
    settings: SamUrimSettings, channels: int
) -> SpatialAggregation | Single | Addition | ModalityWeighting | PhaseAttentionFusion:
    """The aggregation of one level of the encoder.

    Args:
        settings: `fusion` and its switches.
        channels: C of the level.
    """
    phases = len(settings.phases)
    if settings.fusion == "sam":
        return SpatialAggregation(
            phases,
            channels,
            settings.pyramid_width,
            branch_relu=settings.branch_relu,
            pre_softmax=settings.pre_softmax,
        )
    if settings.fusion == "add":
        return Addition()
    if settings.fusion == "mw":
        return ModalityWeighting(phases, softmax=settings.mw_softmax)
    if settings.fusion == "pa":
        return PhaseAttentionFusion(
            phases,
            settings.primary,
            channels,
            pa_sum_axis=settings.pa_sum_axis,
        )
    return Single()
