"""R2UNet: Res2Net features, compressed to few channels each, and a decoder like U-Net's.

Tang Y. et al., E2Net, MICCAI 2020, section 2, "Coarse Liver Segmentation", Fig. 2 (a). It is the
first stage, and either branch of the second.

Where the paper is silent: BatchNorm and ReLU after every convolution; two convolutions a level of
the decoder (`decoder_convs`); bilinear up-sampling; the output has half the size of the image, its
logits are up-sampled. Res2Net is v1b, without pre-training.

Beyond the paper: several phases, a trunk for all of them, fused by SAM on F2..F5 (with its feedback
into the trunk) and by their mean on F1; neighboring slices, encoded each by itself and fused along
z where their features have few channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hepar.networks.blocks import ConvNormAct, SeparableConvNormAct, init_he, resize_to
from hepar.networks.resnet import TRUNKS, ResNetTrunk
from hepar.systems.e2net.deep_cross_feature_fusion import Conv
from hepar.systems.e2net.settings import E2netSettings
from hepar.systems.presence import PresentPairs
from hepar.systems.sam_urim.spatial_aggregation import SpatialAggregation, modulate

SCALES = 5


def conv3x3(settings: E2netSettings) -> Conv:
    """What every 3x3 behind the trunk is."""
    return SeparableConvNormAct if settings.separable else partial(ConvNormAct, kernel=3)


class Encoder(nn.Module):
    """F1..F5 of a slice: the trunk, its phases fused.

    Args:
        settings: backbone, phases, context.

    Attributes:
        channels: C_1..C_5.
    """

    def __init__(self, settings: E2netSettings) -> None:
        super().__init__()
        plan = TRUNKS[settings.backbone]
        if settings.base_width is not None:
            plan = plan.of_width(settings.base_width)
        self.apart = settings.context == "features"
        side_by_side = 1 if self.apart else settings.slices
        self.repeats = settings.stem_channels if side_by_side == 1 else 1
        self.trunk = ResNetTrunk(plan, side_by_side * self.repeats)
        self.channels = (self.trunk.stem_channels, *self.trunk.channels)
        phases = len(settings.phases)
        self.sams = nn.ModuleList(
            SpatialAggregation(phases, c, settings.pyramid_width)
            for c in (self.trunk.channels if phases > 1 else ())
        )

    def forward(
        self, image: Float[Tensor, "b p c h w"], present: Bool[Tensor, "b p"]
    ) -> list[Float[Tensor, "n _ _ _"]]:
        """F1 (half the size of the image) to F5 (a thirty-second).

        With context `features` each slice is a sample of its own: n is b times the slices.
        """
        pairs = PresentPairs(present, copies=image.shape[2] if self.apart else 1)
        if self.apart:
            image = image.transpose(1, 2).flatten(0, 1).unsqueeze(2)
        # Scaled to [-1, 1], as the paper's.
        x = 2.0 * pairs.gather(image) - 1.0
        x = self.trunk.stem(x.repeat(1, self.repeats, 1, 1))
        features = [_mean(x, pairs)]
        x = self.trunk.maxpool(x)
        for level in range(2, SCALES + 1):
            x = self.trunk.stage(level, x)
            if not self.sams:
                features.append(x)
                continue
            fused = self.sams[level - 2](x, pairs)
            features.append(fused)
            if level < SCALES:
                x = modulate(x, fused, pairs)
        return features


def _mean(x: Float[Tensor, "n c h w"], pairs: PresentPairs) -> Float[Tensor, "b c h w"]:
    """The mean over the phases that a sample has."""
    if pairs.phases == 1:
        return x
    of_phase = [pairs.spread(f, p, fill=0.0) for p, f in enumerate(pairs.split(x)) if len(f)]
    held = pairs.present.sum(dim=1).view(-1, 1, 1, 1)
    return sum(of_phase[1:], start=of_phase[0]) / held


class Compression(nn.Module):
    """1x1, then 3x3, to few channels at each scale; context slices fused along z.

    Args:
        channels: of F1..F5.
        settings: `width`, `separable`, `context`.
    """

    def __init__(self, channels: Sequence[int], settings: E2netSettings) -> None:
        super().__init__()
        width, conv = settings.width, conv3x3(settings)
        self.levels = nn.ModuleList(
            nn.Sequential(ConvNormAct(c, width, 1), conv(width, width)) for c in channels
        )
        self.slices = settings.slices if settings.context == "features" else 1
        # A convolution over all slices of the context and 1 x 1 pixels.
        self.along_z = nn.ModuleList(
            ConvNormAct(self.slices * width, width, 1) for _ in channels if self.slices > 1
        )

    def forward(
        self, features: Sequence[Float[Tensor, "n _ _ _"]]
    ) -> list[Float[Tensor, "b c _ _"]]:
        """Compressed features of each sample; `n` counts its context slices too."""
        found = [level(f) for level, f in zip(self.levels, features, strict=True)]
        if self.slices == 1:
            return found
        stacked = [f.reshape(-1, self.slices * f.shape[1], *f.shape[2:]) for f in found]
        return [fuse(f) for fuse, f in zip(self.along_z, stacked, strict=True)]


class Decoder(nn.Module):
    """`d_5 = f_5`, `d_i = K..K [f_i, up(d_(i+1))]`: all of one width.

    Args:
        settings: `width`, `decoder_convs`, `separable`.
    """

    def __init__(self, settings: E2netSettings) -> None:
        super().__init__()
        width, conv = settings.width, conv3x3(settings)
        self.levels = nn.ModuleList(
            nn.Sequential(
                conv(2 * width, width),
                *(conv(width, width) for _ in range(settings.decoder_convs - 1)),
            )
            for _ in range(SCALES - 1)
        )

    def forward(self, features: Sequence[Float[Tensor, "b c _ _"]]) -> Float[Tensor, "b c h w"]:
        """D at the size of F1.

        Args:
            features: of the five scales, finest first.
        """
        d = features[-1]
        for level, f in zip(reversed(self.levels), reversed(features[:-1]), strict=True):
            d = level(torch.cat([f, resize_to(d, (f.shape[-2], f.shape[-1]))], dim=1))
        return d


class R2UNet(nn.Module):
    """Compression, decoder and head of one branch; its trunk may be another's too.

    Args:
        channels: of F1..F5.
        settings: see there.
        outputs: channels of the head, a yes or no each.
    """

    def __init__(self, channels: Sequence[int], settings: E2netSettings, outputs: int) -> None:
        super().__init__()
        self.compress = Compression(channels, settings)
        self.decoder = Decoder(settings)
        self.head = nn.Conv2d(settings.width, outputs, 1)
        init_he(self)
