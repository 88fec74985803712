"""Spatial aggregation module (SAM): each pixel and channel weighs the phases.

Zhang Y. et al., Multi-phase Liver Tumor Segmentation with Spatial Aggregation and Uncertain Region
Inpainting, MICCAI 2021, section 2.1, Fig. 2 (a), Eq. 1 and 2.

    F'_p    = [mean_c F_p, max_c F_p]                      descriptors, 2 channels a phase
    w_p^(0) = conv3x3 [conv3x3 d, conv5x5 d, conv7x7 d, up(conv1x1 GAP d)],  d = [F'_1 .. F'_P]
    w       = softmax over the phases of w^(0)
    F_Aggr  = sum_p w_p * F_p                              (1)
    F_p^(m) = (F_p + F_Aggr) / 2                           (2)

Differs from the paper: any number of phases P (the paper's future work), any of them absent in any
sample: its descriptors are 0, its weight is -inf before the softmax, and its mapping (BatchNorm
statistics included) sees only the samples that hold it.

Where the paper is silent: both mappings read the descriptors of all phases ("inter-phase"); width
of the pyramid (`width`); BatchNorm, no ReLU, on the three convolved branches (`branch_relu`);
BatchNorm and sigmoid before the softmax in the public re-implementation (`pre_softmax`), which
confine the weights of two phases to [0.27, 0.73], so off.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hepar.networks.blocks import at_least_float32, full_precision
from hepar.systems.presence import PresentPairs


class PhaseMapping(nn.Module):
    """M^(p): descriptors of all phases to the initial response map of one phase.

    Args:
        phases: P.
        channels: C, of the features to be weighed.
        width: channels of each of the four branches.
        branch_relu: ReLU after each branch.
        pre_softmax: `sigmoid` adds BatchNorm and a sigmoid to the output.
    """

    def __init__(
        self,
        phases: int,
        channels: int,
        width: int,
        *,
        branch_relu: bool = False,
        pre_softmax: Literal["none", "sigmoid"] = "none",
    ) -> None:
        super().__init__()
        descriptors = 2 * phases
        self.local3 = _branch(descriptors, width, 3)
        self.local5 = _branch(descriptors, width, 5)
        self.global7 = _branch(descriptors, width, 7)
        self.global_pool = nn.Conv2d(descriptors, width, 1)
        self.act = nn.ReLU() if branch_relu else nn.Identity()
        self.fuse = nn.Conv2d(4 * width, channels, 3, padding=1)
        self.bound = (
            nn.Sequential(nn.BatchNorm2d(channels), nn.Sigmoid())
            if pre_softmax == "sigmoid"
            else nn.Identity()
        )

    def forward(self, d: Float[Tensor, "m p2 h w"]) -> Float[Tensor, "m c h w"]:
        """Initial response map `w_p^(0)`."""
        pooled = self.global_pool(d.mean(dim=(2, 3), keepdim=True))
        # Bilinear up-sampling from 1x1 is a broadcast.
        pooled = pooled.expand(-1, -1, *d.shape[2:])
        branches = [self.local3(d), self.local5(d), self.global7(d), pooled]
        return self.bound(self.fuse(self.act(torch.cat(branches, dim=1))))


class SpatialAggregation(nn.Module):
    """One SAM: features of the present pairs to the aggregated features of each sample.

    Args:
        phases: P.
        channels: C.
        width: pyramid width; `"C/4"` for a quarter of the channels.
        branch_relu: see `PhaseMapping`.
        pre_softmax: see `PhaseMapping`.
    """

    def __init__(
        self,
        phases: int,
        channels: int,
        width: int | Literal["C/4"],
        *,
        branch_relu: bool = False,
        pre_softmax: Literal["none", "sigmoid"] = "none",
    ) -> None:
        super().__init__()
        branch_width = channels // 4 if width == "C/4" else width
        self.mappings = nn.ModuleList(
            PhaseMapping(
                phases, channels, branch_width, branch_relu=branch_relu, pre_softmax=pre_softmax
            )
            for _ in range(phases)
        )

    def forward(
        self, features: Float[Tensor, "n c h w"], pairs: PresentPairs
    ) -> Float[Tensor, "b c h w"]:
        """Eq. 1: `F_Aggr`."""
        weights = self.weights(features, pairs)
        products = [
            w * pairs.spread(f, phase, fill=0.0)
            for phase, (f, w) in enumerate(zip(pairs.split(features), weights, strict=True))
            if w is not None
        ]
        return sum(products[1:], start=products[0]).to(features.dtype)

    def weights(
        self, features: Float[Tensor, "n c h w"], pairs: PresentPairs
    ) -> list[Float[Tensor, "b c h w"] | None]:
        """Response maps `w_p`, float32 at least, 1 in sum over the phases of a sample.

        None for a phase that no sample of the batch holds; 0 where a sample lacks the phase.
        """
        d = descriptors(features, pairs)
        present = [phase for phase in range(pairs.phases) if pairs.counts[phase]]
        responses = []
        for phase in present:
            response = self.mappings[phase](pairs.of_phase(d, phase))
            responses.append(pairs.spread(response, phase, fill=float("-inf")))
        weights: list[Tensor | None] = [None] * pairs.phases
        for phase, weight in zip(present, softmax_over_phases(responses), strict=True):
            weights[phase] = weight
        return weights


def descriptors(
    features: Float[Tensor, "n c h w"], pairs: PresentPairs
) -> Float[Tensor, "b p2 h w"]:
    """Mean and maximum over the channels of each phase, 0 for absent pairs."""
    both = torch.stack([features.mean(dim=1), features.amax(dim=1)], dim=1)
    spread = [pairs.spread(x, phase, fill=0.0) for phase, x in enumerate(pairs.split(both))]
    return torch.cat(spread, dim=1)


def softmax_over_phases(
    responses: list[Float[Tensor, "b c h w"]],
) -> list[Float[Tensor, "b c h w"]]:
    """Softmax across the list, in float32 at least whatever the autocast.

    Each sample needs one finite response at every position.
    """
    first = responses[0]
    # Stacked in memory order: a softmax over (P, b, c, h, w) would copy channels-last maps twice.
    nhwc = first.is_contiguous(memory_format=torch.channels_last) and not first.is_contiguous()
    maps = [r.permute(0, 2, 3, 1) for r in responses] if nhwc else responses
    with full_precision(first):
        weights = at_least_float32(torch.stack(maps)).softmax(dim=0).unbind(0)
    return [w.permute(0, 3, 1, 2) for w in weights] if nhwc else list(weights)


def modulate(
    features: Float[Tensor, "n c h w"],
    aggregated: Float[Tensor, "b c h w"],
    pairs: PresentPairs,
) -> Float[Tensor, "n c h w"]:
    """Eq. 2: `F_p^(m) = (F_p + F_Aggr) / 2`, what the next block of stream p sees."""
    return 0.5 * (features + pairs.repeat(aggregated))


def _branch(in_channels: int, width: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, width, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(width),
    )
