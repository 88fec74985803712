"""MC-FCN: one fully convolutional network a phase, joined before the classifier.

Sun C. et al.: Automatic segmentation of liver tumors from multiphase contrast-enhanced CT images
based on FCNs, Artificial Intelligence in Medicine 83, 2017, on Long et al., Fully convolutional
networks for semantic segmentation, CVPR 2015 (FCN-8s, Fig. 3). Compared with in Zhang Y. et al.,
MICCAI 2021 (SAM + URIM), Tables 1 and 2: it "simply concatenated multi-phase features before the
classification layer of FCN".

| FCN | code | shape, C = base width |
|---|---|---|
| pool3 of phase p | `FcnStream.forward`, first | b, 4C, H/8, W/8 |
| pool4 of phase p | `FcnStream.forward`, second | b, 8C, H/16, W/16 |
| fc7 of phase p | `FcnStream.forward`, third | b, D, H/32, W/32 |
| input of a score layer | `forward`, `joined` | phases times as many channels |
| score layers | `classifiers` | b, K, same size |
| FCN-8s | `forward` | b, K, H, W |

Differs from the paper: of its text only the abstract was at hand ("we trained one network for each
phase of the CT images and fused their high-layer features together"); the rest is our reading of
the sentence above and of the FCN it names. The original is said to have three phases; the default
is the two of the comparison. All streams are trained at once. The loss is cross-entropy, as in the
comparison.

Where the sources are silent: VGG-16 as the trunk of each stream, not shared; all three score layers
of FCN-8s see all phases. A 1x1 classifier of concatenated features is the sum of a 1x1 classifier a
phase: the phases meet in a sum of scores, and nowhere before.

Differs from FCN: BatchNorm after every convolution, because nothing is pre-trained; "same" padding
in place of a border of 100 pixels and crops; bilinear up-sampling, which FCN's deconvolutions start
from. In the other presets the head is narrower.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hepar.networks.blocks import ConvNormAct, init_he, parameters_of, resize_to
from hepar.systems.baselines.complete_study import CompleteStudySystem
from hepar.systems.baselines.mc_fcn.settings import McFcnSettings

GROWTH = (1, 2, 4, 8, 8)
"""Width of each stage in units of the first."""


class FcnStream(nn.Module):
    """The FCN of one phase, up to the inputs of its score layers.

    Args:
        in_channels: channels of the image.
        settings: `base_width`, `depths`, `head_width`, `head_kernel`, `dropout`.

    Attributes:
        channels: of the three outputs.
    """

    def __init__(self, in_channels: int, settings: McFcnSettings) -> None:
        super().__init__()
        widths = [settings.base_width * growth for growth in GROWTH]
        incoming = (in_channels, *widths[:-1])
        self.stages = nn.ModuleList(
            _stage(before, width, depth)
            for before, width, depth in zip(incoming, widths, settings.depths, strict=True)
        )
        head = settings.head_width
        self.head = nn.Sequential(
            ConvNormAct(widths[-1], head, settings.head_kernel),
            nn.Dropout(settings.dropout),
            ConvNormAct(head, head, 1),
            nn.Dropout(settings.dropout),
        )
        self.channels = (widths[2], widths[3], head)
        init_he(self)

    def forward(self, x: Float[Tensor, "b c h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        """pool3, pool4 and fc7, finest first."""
        pooled = []
        for stage in self.stages:
            x = stage(x)
            pooled.append(x)
        return [pooled[2], pooled[3], self.head(x)]


class McFcn(CompleteStudySystem):
    """The network.

    Args:
        settings: all switches.
    """

    def __init__(self, settings: McFcnSettings) -> None:
        super().__init__(settings)
        phases = len(settings.phases)
        streams = [FcnStream(self.phase_channels, settings) for _ in range(phases)]
        self.streams = nn.ModuleList(streams)
        self.classifiers = nn.ModuleList(
            nn.Conv2d(phases * channels, len(settings.class_names), 1)
            for channels in streams[0].channels
        )

    def forward(
        self, image: Float[Tensor, "b p c h w"], present: Bool[Tensor, "b p"]
    ) -> Float[Tensor, "b k h w"]:
        """Logits: scores of fc7, doubled in size and added to those of pool4, and so to pool3.

        Raises:
            ValueError: see `phase_images`.
        """
        images = self.phase_images(image, present)
        features = [stream(x) for stream, x in zip(self.streams, images, strict=True)]
        joined = [torch.cat(maps, dim=1) for maps in zip(*features, strict=True)]
        fine, middle, coarse = (
            classifier(x) for classifier, x in zip(self.classifiers, joined, strict=True)
        )
        scores = middle + resize_to(coarse, _size(middle))
        scores = fine + resize_to(scores, _size(fine))
        return resize_to(scores, _size(image))


def module_parameters(model: McFcn) -> dict[str, int]:
    """Parameters of each part."""
    parts = {"streams": model.streams, "classifiers": model.classifiers}
    return parameters_of(parts)


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]


def _stage(in_channels: int, width: int, depth: int) -> nn.Sequential:
    """3x3 convolutions and 2x2 max pooling."""
    incoming = (in_channels, *[width] * (depth - 1))
    return nn.Sequential(*(ConvNormAct(c, width, 3) for c in incoming), nn.MaxPool2d(2))
