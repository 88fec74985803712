"""The attention methods that DPC-Net is compared with (Table 4), on the same 3D U-Net.

`AttentionGate`: Schlemper et al., Attention gated networks, Medical Image Analysis 2019, section
3.1, Fig. 2: a coarser feature says where a skip connection counts. Gates at the skips of 64, 128
and 256 channels, the signal of each from the level below it; the paper of DPC-Net does not say
which, and these have the printed +1.02M within 1.5 %.

`DeepAttentiveFeatures`: Wang et al., Deep attentive features for prostate segmentation (DAF),
IEEE TMI 2019, section III, Fig. 2: features of single levels and their fusion refine each other.
The width that comes nearest to the printed +0.68M (-1.2 %) is a quarter of theirs; levels are those
of the decoder and its bottleneck, so that no part of the U-Net is idle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

DILATIONS = (1, 6, 12, 18)


def trilinear(x: Float[Tensor, "b c z y x"], size: Sequence[int]) -> Float[Tensor, "b c _ _ _"]:
    """Up-sampled without aligned corners, as voxels lie."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return functional.interpolate(x, size=tuple(size), mode="trilinear", align_corners=False)


class AttentionGate(nn.Module):
    """sigma(psi(relu(theta x + phi g))), up-sampled, times the skip; then a 1x1x1 each.

    Args:
        channels: of the skip; the gating signal has `gating`.
        gating: of the level below.
    """

    def __init__(self, channels: int, gating: int) -> None:
        super().__init__()
        self.theta = nn.Conv3d(channels, channels, 2, 2, bias=False)
        self.phi = nn.Conv3d(gating, channels, 1)
        self.psi = nn.Conv3d(channels, 1, 1)
        self.w = nn.Sequential(nn.Conv3d(channels, channels, 1), nn.BatchNorm3d(channels))
        self.combine = nn.Sequential(
            nn.Conv3d(channels, channels, 1), nn.BatchNorm3d(channels), nn.ReLU(inplace=True)
        )

    def forward(
        self, skip: Float[Tensor, "b c z y x"], signal: Float[Tensor, "b d z2 y2 x2"]
    ) -> Float[Tensor, "b c z y x"]:
        """The gated skip; the signal is half as large along every axis."""
        joined = functional.relu(self.theta(skip) + self.phi(signal))
        attention = trilinear(torch.sigmoid(self.psi(joined)), skip.shape[2:])
        return self.combine(self.w(attention * skip))


def _unit(in_channels: int, out_channels: int, kernel: int, *, act: bool = True) -> list[nn.Module]:
    layers: list[nn.Module] = [
        nn.Conv3d(in_channels, out_channels, kernel, padding=kernel // 2),
        nn.GroupNorm(max(1, out_channels // 4), out_channels),
    ]
    return [*layers, nn.PReLU()] if act else layers


class DeepAttentiveFeatures(nn.Module):
    """From the features of four levels to nine answers, all at the size of the finest.

    Args:
        channels: of the four levels, finest first.
        width: of all that follows.
        classes: K.
    """

    def __init__(self, channels: Sequence[int], width: int, classes: int) -> None:
        super().__init__()
        levels = len(channels)
        self.laterals = nn.ModuleList(nn.Sequential(*_unit(c, width, 1)) for c in channels)
        self.fuse = nn.Sequential(
            *_unit(levels * width, width, 1), *_unit(width, width, 3), *_unit(width, width, 3)
        )
        self.attentions = nn.ModuleList(
            nn.Sequential(
                *_unit(2 * width, width, 1),
                *_unit(width, width, 3),
                nn.Conv3d(width, width, 3, padding=1),
                nn.Sigmoid(),
            )
            for _ in channels
        )
        self.refines = nn.ModuleList(
            nn.Sequential(
                *_unit(2 * width, width, 1), *_unit(width, width, 3), *_unit(width, width, 3)
            )
            for _ in channels
        )
        self.join = nn.Sequential(*_unit(levels * width, width, 1))
        # Dilated within slices alone, as published.
        self.pyramid = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(width, width, 3, padding=(1, r, r), dilation=(1, r, r)),
                nn.GroupNorm(max(1, width // 4), width),
            )
            for r in DILATIONS
        )
        self.gather = nn.Sequential(*_unit(len(DILATIONS) * width, width, 1, act=False))
        self.single_heads = nn.ModuleList(nn.Conv3d(width, classes, 1) for _ in channels)
        self.refined_heads = nn.ModuleList(nn.Conv3d(width, classes, 1) for _ in channels)
        self.head = nn.Conv3d(width, classes, 1)

    def forward(
        self, features: Sequence[Float[Tensor, "b _ _ _ _"]]
    ) -> list[Float[Tensor, "b k z y x"]]:
        """Logits of single levels, of refined levels, and last the final ones."""
        size = features[0].shape[2:]
        # A head commutes with up-sampling, but norms do not: laterals are made first.
        single: list[Any] = [
            trilinear(lateral(f), size) for lateral, f in zip(self.laterals, features, strict=True)
        ]
        fused = self.fuse(torch.cat(single, dim=1))
        refined = []
        for f, attention, refine in zip(single, self.attentions, self.refines, strict=True):
            weight = attention(torch.cat([f, fused], dim=1))
            refined.append(refine(torch.cat([f, weight * fused], dim=1)))
        joined = self.join(torch.cat(refined, dim=1))
        found = self.gather(torch.cat([branch(joined) for branch in self.pyramid], dim=1))
        return [
            *(head(f) for head, f in zip(self.single_heads, single, strict=True)),
            *(head(f) for head, f in zip(self.refined_heads, refined, strict=True)),
            self.head(found),
        ]
