"""Uncertain region inpainting module (URIM): confident pixels repaint uncertain neighbors.

Zhang Y. et al., MICCAI 2021, section 2.2, Fig. 2 (b), Eq. 3 and 4.

    M_conf = 1 - exp(1 - S_max / S_min)                    (3)
    x'     = (W^T (X * M_conf)) / sum(M_conf) + b          (4)   LC-Conv, 3x3
    M_conf <- maxpool3x3(M_conf)                           after each of four LC-Conv

The module is a plug: any network that has decision features and initial logits can end in it, in
two dimensions as published or in three, where windows are 3x3x3. The paper plugs it into three 2D
networks ("Robustness Validation").

Differs from the paper: Eq. 3 is computed from the logits. With two classes S_max / S_min = exp(d),
d the gap of the logits, so M = -expm1(-expm1(d)): the same value, without the quotient whose
gradient is NaN once S_min underflows (d of about 20 in float32). With more than two classes the
two largest scores are compared, as in AFB-URR (Liang et al., NeurIPS 2020), from which the paper
takes its map: a negligible third class would otherwise make every pixel confident.

Where the paper is silent: the input is [softmax scores, decision features]; BatchNorm and ReLU
follow each LC-Conv; a window with no confidence at all gives b; the bias is added after the
normalization, as Eq. 4 reads; gradients flow through M (`detach_conf`).

Of the 3D form nothing is published; it is Eq. 3 and 4 with 27 voxels where the paper has 9 pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hepar.networks.blocks import at_least_float32, full_precision, init_he

MAX_GAP = 10.0
"""Logit gaps beyond this have M == 1 in float64; the clamp keeps exp(exp(d)) finite."""
EMPTY_WINDOW = 1e-6
_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_AVERAGE_POOL: dict[int, Callable[..., Tensor]] = {2: F.avg_pool2d, 3: F.avg_pool3d}
_MAX_POOL: dict[int, Callable[..., Tensor]] = {2: F.max_pool2d, 3: F.max_pool3d}


def confidence(logits: Float[Tensor, "b k *spatial"]) -> Float[Tensor, "b 1 *spatial"]:
    """Eq. 3 in its stable form, float32 at least: 0 for a tie, slope 1 there, 1 from d = 3.

    Args:
        logits: of two classes or more.
    """
    with full_precision(logits):
        best = at_least_float32(logits).topk(2, dim=1).values
        gap = (best[:, :1] - best[:, 1:]).clamp(max=MAX_GAP)
        return -torch.expm1(-torch.expm1(gap))


class LocalConfidenceConv(nn.Module):
    """LC-Conv, Eq. 4: a convolution over 3x3(x3) that reads each pixel as far as it is trusted.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        dims: 2 or 3.
        window_norm: `sum` divides by the sum of M over the window; `mean` by its mean over nine
            (27), the same up to the BatchNorm that follows.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        dims: Literal[2, 3] = 2,
        window_norm: Literal["sum", "mean"] = "sum",
    ) -> None:
        super().__init__()
        self.conv = _CONV[dims](in_channels, out_channels, 3, padding=1, bias=False)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.gain = 3**dims if window_norm == "mean" else 1

    def forward(
        self, x: Float[Tensor, "b c *spatial"], m: Float[Tensor, "b 1 *spatial"]
    ) -> Float[Tensor, "b c2 *spatial"]:
        """Zero padding of X and of M: at a border only real pixels count."""
        scale = inverse_window_sum(m) * self.gain
        numerator = self.conv(x * m.to(x.dtype))
        return torch.addcmul(self.bias.view(1, -1, *(1 for _ in x.shape[2:])), numerator, scale)


def inverse_window_sum(m: Float[Tensor, "b 1 *spatial"]) -> Float[Tensor, "b 1 *spatial"]:
    """`1 / sum(M)` over 3x3(x3) windows, 0 where the sum is not above `EMPTY_WINDOW`."""
    dims = m.ndim - 2
    with full_precision(m):
        pooled = _AVERAGE_POOL[dims](m, 3, stride=1, padding=1, count_include_pad=True)
        total = pooled * 3**dims
        # where() after a clamped division: the branch not taken has a finite gradient too.
        return torch.where(total > EMPTY_WINDOW, total.clamp(min=EMPTY_WINDOW).reciprocal(), 0.0)


@dataclass(frozen=True)
class Inpainted:
    """What URIM returns.

    Attributes:
        logits: final logits.
        confidence_before: M_conf of the initial logits.
        confidence_after: M_conf after the last max pooling.
    """

    logits: Float[Tensor, "b k *spatial"]
    confidence_before: Float[Tensor, "b 1 *spatial"]
    confidence_after: Float[Tensor, "b 1 *spatial"]


class UncertainRegionInpainting(nn.Module):
    """Four LC-Conv layers and a 1x1 head, on top of any decoder.

    Args:
        classes: K.
        features: channels of the decision features.
        dims: 2 for slices, 3 for volumes.
        width: channels of the LC-Conv layers.
        final_concat: the head sees the refined features beside the input.
        window_norm: see `LocalConfidenceConv`.
        detach_conf: no gradient through M_conf. Without it 1 / sum(M) passes on gradients of the
            order of 1 / d, so the initial classifier must not start near 0.
        dropout: after layers 2 to 4.
    """

    def __init__(
        self,
        classes: int,
        features: int,
        *,
        dims: Literal[2, 3] = 2,
        width: int = 128,
        final_concat: bool = True,
        window_norm: Literal["sum", "mean"] = "sum",
        detach_conf: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        incoming = classes + features
        self.convs = nn.ModuleList(
            LocalConfidenceConv(
                incoming if i == 0 else width, width, dims=dims, window_norm=window_norm
            )
            for i in range(4)
        )
        self.norms = nn.ModuleList(_NORM[dims](width) for _ in range(4))
        self.dropout = nn.Dropout(dropout)
        self.head = _CONV[dims](width + incoming if final_concat else width, classes, 1)
        self.dims = dims
        self.final_concat = final_concat
        self.detach_conf = detach_conf
        init_he(self)

    def forward(
        self, logits: Float[Tensor, "b k *spatial"], features: Float[Tensor, "b f *spatial"]
    ) -> Inpainted:
        """Initial logits and decision features to refined logits."""
        before = confidence(logits.detach() if self.detach_conf else logits)
        scores = logits.softmax(dim=1)
        x0 = torch.cat([scores.to(features.dtype), features], dim=1)
        x, m = x0, before
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = F.relu(norm(conv(x, m).to(x0.dtype)))
            if i > 0:
                x = self.dropout(x)
            m = _MAX_POOL[self.dims](m, 3, stride=1, padding=1)
        head_input = torch.cat([x, x0], dim=1) if self.final_concat else x
        return Inpainted(self.head(head_input), before, m)
