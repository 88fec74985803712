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
statistics included) sees only the samples that hold it. The softmax over phases is streamed:
phases are visited one at a time, forward and backward, so that one response map of the size of the
features is in memory instead of P (`StreamedAggregation`); values and gradients are the same.

Where the paper is silent: both mappings read the descriptors of all phases ("inter-phase"); width
of the pyramid (`width`); BatchNorm, no ReLU, on the three convolved branches (`branch_relu`);
BatchNorm and sigmoid before the softmax in the public re-implementation (`pre_softmax`), which
confine the weights of two phases to [0.27, 0.73], so off.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hepar.networks.blocks import at_least_float32, full_precision
from hepar.systems.presence import PresentPairs

CONVS: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
NORMS: dict[int, type[nn.BatchNorm2d] | type[nn.BatchNorm3d]] = {
    2: nn.BatchNorm2d,
    3: nn.BatchNorm3d,
}


class Branch(nn.Sequential):
    """A convolution of the descriptors and its BatchNorm, at one kernel size.

    Args:
        in_channels: channels of the descriptors.
        width: channels out.
        kernel: odd kernel size.
        dims: 2 or 3.
    """

    def __init__(self, in_channels: int, width: int, kernel: int, dims: Literal[2, 3] = 2) -> None:
        super().__init__(
            CONVS[dims](in_channels, width, kernel, padding=kernel // 2, bias=False),
            NORMS[dims](width),
        )

    def forward(
        self, x: Float[Tensor, "m c *s"], *, again: bool = False
    ) -> Float[Tensor, "m c2 *s"]:
        """See `normalized` for `again`."""
        conv, norm = self[0], self[1]
        return normalized(conv(x), norm, again=again)


def normalized(
    x: Float[Tensor, "m c *s"], norm: nn.Module, *, again: bool
) -> Float[Tensor, "m c *s"]:
    """BatchNorm, or a repetition of what it just did that leaves its running statistics alone."""
    if not (again and norm.training):
        return norm(x)
    weight, bias = norm.weight, norm.bias
    return F.batch_norm(x, None, None, weight, bias, training=True, eps=norm.eps)  # type: ignore[arg-type]


class PhaseMapping(nn.Module):
    """M^(p): descriptors of all phases to the initial response map of one phase.

    Args:
        phases: P.
        channels: C, of the features to be weighed.
        width: channels of each of the four branches.
        branch_relu: ReLU after each branch.
        pre_softmax: `sigmoid` adds BatchNorm and a sigmoid to the output.
        dims: 3 for volumes (ours): cubes instead of squares, those of 7 left out (343 taps).
    """

    def __init__(
        self,
        phases: int,
        channels: int,
        width: int,
        *,
        branch_relu: bool = False,
        pre_softmax: Literal["none", "sigmoid"] = "none",
        dims: Literal[2, 3] = 2,
    ) -> None:
        super().__init__()
        descriptors = 2 * phases
        self.local3 = Branch(descriptors, width, 3, dims)
        self.local5 = Branch(descriptors, width, 5, dims)
        self.global7 = Branch(descriptors, width, 7) if dims == 2 else None
        self.global_pool = CONVS[dims](descriptors, width, 1)
        self.act = nn.ReLU() if branch_relu else nn.Identity()
        branches = 4 if dims == 2 else 3
        self.fuse = CONVS[dims](branches * width, channels, 3, padding=1)
        self.bound = (
            nn.Sequential(NORMS[dims](channels), nn.Sigmoid())
            if pre_softmax == "sigmoid"
            else nn.Identity()
        )

    def forward(
        self, d: Float[Tensor, "m p2 *s"], *, again: bool = False
    ) -> Float[Tensor, "m c *s"]:
        """Initial response map `w_p^(0)`.

        Args:
            d: descriptors of the samples that hold the phase.
            again: the same map a second time, for a backward pass.
        """
        pooled = self.global_pool(d.mean(dim=tuple(range(2, d.ndim)), keepdim=True))
        # Bilinear up-sampling from 1x1 is a broadcast.
        pooled = pooled.expand(-1, -1, *d.shape[2:])
        convolved = (b for b in (self.local3, self.local5, self.global7) if b is not None)
        branches = [b(d, again=again) for b in convolved]
        response = self.fuse(self.act(torch.cat([*branches, pooled], dim=1)))
        if isinstance(self.bound, nn.Identity):
            return response
        return self.bound[1](normalized(response, self.bound[0], again=again))


class SpatialAggregation(nn.Module):
    """One SAM: features of the present pairs to the aggregated features of each sample.

    Args:
        phases: P.
        channels: C.
        width: pyramid width; `"C/4"` for a quarter of the channels.
        branch_relu: see `PhaseMapping`.
        pre_softmax: see `PhaseMapping`.
        dims: see `PhaseMapping`.
    """

    def __init__(
        self,
        phases: int,
        channels: int,
        width: int | Literal["C/4"],
        *,
        branch_relu: bool = False,
        pre_softmax: Literal["none", "sigmoid"] = "none",
        dims: Literal[2, 3] = 2,
    ) -> None:
        super().__init__()
        branch_width = channels // 4 if width == "C/4" else width
        self.mappings = nn.ModuleList(
            PhaseMapping(
                phases,
                channels,
                branch_width,
                branch_relu=branch_relu,
                pre_softmax=pre_softmax,
                dims=dims,
            )
            for _ in range(phases)
        )

    def forward(
        self, features: Float[Tensor, "n c *s"], pairs: PresentPairs
    ) -> Float[Tensor, "b c *s"]:
        """Eq. 1: `F_Aggr`."""
        d = descriptors(features, pairs)
        if not torch.is_grad_enabled():
            return stream(self, features, d, pairs)[0]
        found: Tensor = StreamedAggregation.apply(self, pairs, features, d, *self.parameters())
        return found

    def weights(
        self, features: Float[Tensor, "n c *s"], pairs: PresentPairs
    ) -> list[Float[Tensor, "b c *s"] | None]:
        """Response maps `w_p`, float32 at least, 1 in sum over the phases of a sample.

        None for a phase that no sample of the batch holds; 0 where a sample lacks the phase.
        All at once: to look at, not on the way to `forward`.
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


def stream(
    sam: SpatialAggregation,
    features: Float[Tensor, "n c *s"],
    d: Float[Tensor, "b p2 *s"],
    pairs: PresentPairs,
) -> tuple[Float[Tensor, "b c *s"], Float[Tensor, "b c *s"]]:
    """Eq. 1 phase by phase: `F_Aggr`, and log sum_p exp(w_p^(0)), float32 at least.

    With A and L over the phases seen so far, the next one takes the share
    w = exp(r) / (exp(L) + exp(r)) = sigmoid(r - L):

        A <- A + w (F_p - A),  L <- log(exp(L) + exp(r))

    Both are stable for any r, and A is always a mean of features.
    """
    aggregated = total = None
    parts = pairs.split(features)
    for phase in (p for p in range(pairs.phases) if pairs.counts[p]):
        response = sam.mappings[phase](pairs.of_phase(d, phase))
        with full_precision(response):
            r, f = at_least_float32(response), at_least_float32(parts[phase])
            if total is None or aggregated is None:
                aggregated = pairs.spread(f, phase, fill=0.0)
                total = pairs.spread(r, phase, fill=float("-inf"))
                continue
            before = pairs.of_phase(total, phase)
            mixed = torch.lerp(pairs.of_phase(aggregated, phase), f, torch.sigmoid(r - before))
            aggregated = pairs.replace(aggregated, mixed, phase)
            total = pairs.replace(total, torch.logaddexp(before, r), phase)
    assert aggregated is not None
    assert total is not None
    return aggregated.to(features.dtype), total


class StreamedAggregation(torch.autograd.Function):
    """`stream` with a backward pass that makes each response map again when its turn comes.

    Kept from the forward pass: features, descriptors, F_Aggr and L. With w_p = exp(r_p - L) and
    g = dLoss/dF_Aggr,

        dLoss/dF_p = g w_p,  dLoss/dr_p = g w_p (F_p - F_Aggr),

    and what lies before r_p is differentiated on the repeated map.
    """

    @staticmethod
    def forward(ctx: Any, sam: Any, pairs: Any, features: Tensor, d: Tensor, *_: Tensor) -> Tensor:
        """As `stream`; the parameters are given so that autograd knows of them."""
        aggregated, total = stream(sam, features, d, pairs)
        if len(features) == pairs.batch:  # one phase each: what came in must not go out as it is
            aggregated = aggregated.clone()
        ctx.sam, ctx.pairs = sam, pairs
        ctx.autocast = _autocast_of(features)
        ctx.save_for_backward(features, d, aggregated, total)
        return aggregated

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Gradients of the features, the descriptors and every parameter."""
        features, d, aggregated, total = ctx.saved_tensors
        sam, pairs = ctx.sam, ctx.pairs
        of_features = torch.empty_like(features)
        of_d = torch.zeros_like(d)
        parameters = list(sam.parameters())
        found: dict[int, Tensor] = {}
        parts = zip(pairs.split(features), pairs.split(of_features), strict=True)
        for phase, (f, of_f) in enumerate(parts):
            if not pairs.counts[phase]:
                continue
            inner = pairs.of_phase(d, phase).detach().requires_grad_()
            with torch.enable_grad(), ctx.autocast():
                response = sam.mappings[phase](inner, again=True)
            own = list(sam.mappings[phase].parameters())
            with torch.no_grad(), full_precision(g):
                weight = torch.exp(at_least_float32(response) - pairs.of_phase(total, phase))
                weight *= at_least_float32(pairs.of_phase(g, phase))
                of_f.copy_(weight)
                weight *= at_least_float32(f) - pairs.of_phase(aggregated, phase)
            grads = torch.autograd.grad(response, [inner, *own], weight.to(response.dtype))
            of_d = pairs.replace(of_d, pairs.of_phase(of_d, phase) + grads[0], phase)
            found |= {id(p): grad for p, grad in zip(own, grads[1:], strict=True)}
        return None, None, of_features, of_d, *(found.get(id(p)) for p in parameters)


def _autocast_of(x: Tensor) -> Any:
    """The autocast in force on the device of a tensor, to be entered again later."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind):
        return lambda: full_precision(x)
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return lambda: torch.autocast(kind, dtype=dtype, enabled=enabled)


def descriptors(features: Float[Tensor, "n c *s"], pairs: PresentPairs) -> Float[Tensor, "b p2 *s"]:
    """Mean and maximum over the channels of each phase, 0 for absent pairs."""
    both = torch.stack([features.mean(dim=1), features.amax(dim=1)], dim=1)
    spread = [pairs.spread(x, phase, fill=0.0) for phase, x in enumerate(pairs.split(both))]
    return torch.cat(spread, dim=1)


def softmax_over_phases(
    responses: list[Float[Tensor, "b c *s"]],
) -> list[Float[Tensor, "b c *s"]]:
    """Softmax across the list, in float32 at least whatever the autocast.

    Each sample needs one finite response at every position.
    """
    first = responses[0]
    # Stacked in memory order: a softmax over (P, b, c, h, w) would copy channels-last maps twice.
    nhwc = first.ndim == 4 and first.is_contiguous(memory_format=torch.channels_last)
    nhwc = nhwc and not first.is_contiguous()
    maps = [r.permute(0, 2, 3, 1) for r in responses] if nhwc else responses
    with full_precision(first):
        weights = at_least_float32(torch.stack(maps)).softmax(dim=0).unbind(0)
    return [w.permute(0, 3, 1, 2) for w in weights] if nhwc else list(weights)


def modulate(
    features: Float[Tensor, "n c *s"],
    aggregated: Float[Tensor, "b c *s"],
    pairs: PresentPairs,
) -> Float[Tensor, "n c *s"]:
    """Eq. 2: `F_p^(m) = (F_p + F_Aggr) / 2`, what the next block of stream p sees."""
    return 0.5 * (features + pairs.repeat(aggregated))
