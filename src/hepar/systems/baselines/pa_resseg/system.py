"""PA-ResSeg: a residual encoder a phase, phase attention at six scales, all scales up to the image.

Xu Y., Cai M., Lin L., Zhang Y. et al.: PA-ResSeg: A phase attention residual network for liver
tumor segmentation from multiphase CT images, Medical Physics 2021, and the authors' code,
csying/PA-ResSeg (`network/resnet.py`, read for facts; nothing is copied). Compared with in Zhang Y.
et al., MICCAI 2021 (SAM + URIM), Tables 1 and 2.

| authors' code | code | shape, scale s = 1..6, n = base width |
|---|---|---|
| encoder of PV, of ART | `encoders[p]` | b, (n, 2n, 4n, 8n, 8n, 8n)_s, H/2^(s-1), W/2^(s-1) |
| fusion with phase attention | `heads[s - 1]` | b, P/4 times as many channels, same size |
| up-sampling | `ups[s - 1]` | b, 16, H, W |
| final layers | `final` | b, 96, H, W, then b, K, H, W |

Differs from the paper: its text was not at hand; the network is that of the code. Any number of
phases: the reference is PV (else DL, ART, NC), the others follow in the order NC, ART, DL. The
code's sum over the attention makes its channel scale a constant; kept, with a switch
(`phase_attention.py`). The code takes probabilities from 0.6 up as tumor; ours are left to the
stage that chooses operating points.

Where the sources are silent or disagree: `paper` has n = 32 and one slice, 18.18 M parameters; the
authors' training script sets n = 64 and images of three channels (preset `official`). Initial
weights are PyTorch's, the loss is cross-entropy, both as in the code.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hepar.networks.blocks import parameters_of
from hepar.systems.baselines.complete_study import CompleteStudySystem
from hepar.systems.baselines.pa_resseg.phase_attention import PhaseAttention
from hepar.systems.baselines.pa_resseg.settings import PaRessegSettings

GROWTH = (1, 2, 4, 8, 8, 8)
"""Width of each scale in units of the first."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, a 1x1 where the width changes.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(in_channels, out_channels),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """`relu(F(x) + shortcut(x))`."""
        return F.relu(self.body(x) + self.shortcut(x))


class Encoder(nn.Module):
    """Six scales: two convolutions, then five times max pooling and two residual blocks.

    Args:
        in_channels: channels of the image.
        base: channels of the first scale.
    """

    def __init__(self, in_channels: int, base: int) -> None:
        super().__init__()
        widths = [base * growth for growth in GROWTH]
        scales = [nn.Sequential(_conv(in_channels, base), _conv(base, base))]
        scales += [
            nn.Sequential(ResidualBlock(before, width), ResidualBlock(width, width))
            for before, width in pairwise(widths)
        ]
        self.scales = nn.ModuleList(scales)

    def forward(self, x: Float[Tensor, "b c h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        """Features of every scale, finest first."""
        features = []
        for number, scale in enumerate(self.scales):
            x = scale(F.max_pool2d(x, 2) if number else x)
            features.append(x)
        return features


class PaResseg(CompleteStudySystem):
    """The network.

    Args:
        settings: all switches.
    """

    def __init__(self, settings: PaRessegSettings) -> None:
        super().__init__(settings)
        base, up = settings.base_width, settings.up_width
        phases = len(settings.phases)
        self.reference = settings.phases.index(settings.reference)
        self.encoders = nn.ModuleList(Encoder(self.phase_channels, base) for _ in range(phases))
        self.heads = nn.ModuleList(
            PhaseAttention(base * growth, others=phases - 1, pa_sum_axis=settings.pa_sum_axis)
            for growth in GROWTH
        )
        heads = cast("list[PhaseAttention]", list(self.heads))
        self.ups = nn.ModuleList(
            _up(head.out_channels, up, doublings) for doublings, head in enumerate(heads)
        )
        width = up * len(GROWTH)
        self.final = nn.Sequential(
            _conv(width, width), nn.Conv2d(width, len(settings.class_names), 1)
        )

    def forward(
        self, image: Float[Tensor, "b p c h w"], present: Bool[Tensor, "b p"]
    ) -> Float[Tensor, "b k h w"]:
        """Logits.

        Raises:
            ValueError: see `phase_images`.
        """
        images = self.phase_images(image, present)
        features = [encoder(x) for encoder, x in zip(self.encoders, images, strict=True)]
        features.insert(0, features.pop(self.reference))
        scales = [
            up(head(*maps))
            for up, head, maps in zip(
                self.ups, self.heads, zip(*features, strict=True), strict=True
            )
        ]
        return self.final(torch.cat(scales, dim=1))


def module_parameters(model: PaResseg) -> dict[str, int]:
    """Parameters of each part."""
    parts = {
        "encoders": model.encoders,
        "phase_attention": model.heads,
        "up": model.ups,
        "final": model.final,
    }
    return parameters_of(parts)


def _conv(in_channels: int, out_channels: int) -> nn.Sequential:
    """3x3 convolution with a bias, which the authors kept, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def _up(in_channels: int, width: int, doublings: int) -> nn.Sequential:
    """A scale to `width` channels at full size: deconvolutions that halve the width as they go."""
    if doublings == 0:
        return _conv(in_channels, width)
    layers: list[nn.Module] = []
    for step in reversed(range(doublings)):
        out_channels = width * 2**step
        layers += [
            nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        ]
        in_channels = out_channels
    return nn.Sequential(*layers)
