"""E2Net, Fig. 2: segmentation and edge branches that refine each other, and their fusion.

Tang Y. et al., E2Net: An Edge Enhanced Network for Accurate Liver and Tumor Segmentation on CT
Scans, MICCAI 2020. Both stages are this system (`settings.stage`); without its edge branch it is
R2UNet. Choices where the paper is silent, and differences: papers/e2net.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hepar.losses import binary_cross_entropy, soft_iou
from hepar.networks.blocks import at_least_float32, init_he, parameters_of, resize_to
from hepar.networks.resnet import load_published
from hepar.systems.base import Batch, InputSpec, LiverCrop
from hepar.systems.e2net.deep_cross_feature_fusion import DeepCrossFeatureFusion
from hepar.systems.e2net.edge_distance import edge, edge_distance
from hepar.systems.e2net.r2unet import SCALES, Encoder, R2UNet, conv3x3
from hepar.systems.e2net.settings import STRIDE, E2netSettings

HEAD_STRIDE = 2
"""Pixels of the image to one of F1 and of the logits."""


@dataclass(frozen=True)
class Outputs:
    """Everything the network says, at half the size of the image.

    Attributes:
        s1: logits of the segmentation branch, a channel each for liver and tumor (liver alone in
            stage 1).
        e: logits of the edge branch; None without it.
        s2: logits of the fusion, the final ones; None without an edge branch.
    """

    s1: Float[Tensor, "b k h w"]
    e: Float[Tensor, "b k h w"] | None
    s2: Float[Tensor, "b k h w"] | None

    @property
    def final(self) -> Float[Tensor, "b k h w"]:
        """The logits that are decoded."""
        return self.s1 if self.s2 is None else self.s2


@dataclass(frozen=True)
class Targets:
    """What the loss compares with, at the size of the image.

    Attributes:
        mask: g_m: liver (tumor included) and tumor.
        edge: g_e of either; None without an edge branch.
        counted: pixels with a label.
    """

    mask: Float[Tensor, "b k h w"]
    edge: Float[Tensor, "b k h w"] | None
    counted: Bool[Tensor, "b h w"]


class E2net(nn.Module):
    """The network of Fig. 2 (c); (b) without `dcff`; (a) without `edge_branch`.

    | paper | code | shape, for an image of H x W |
    |---|---|---|
    | F^i, i = 1..5 | `Encoder.forward` | b, C_i, H/2^i, W/2^i |
    | F_1^i, F_2^i | `R2UNet.compress` | b, 32, H/2^i, W/2^i |
    | F'_1^i, F'_2^i | `DeepCrossFeatureFusion.forward` | as F_1^i, F_2^i |
    | s^1, e, s^2 (before sigmoid) | `Outputs.s1`, `.e`, `.s2` | b, K, H/2, W/2 |
    | g_m, g_e | `Targets.mask`, `.edge` | b, K, H, W |

    K is 2, liver and tumor; 1 in stage 1.

    Args:
        settings: all switches.
    """

    def __init__(self, settings: E2netSettings) -> None:
        super().__init__()
        self.settings = settings
        crop = LiverCrop(settings.train_pad_px, settings.pad_px) if settings.stage == 2 else None
        self.input_spec = InputSpec(
            dims=2,
            phases=settings.phases,
            class_names=settings.class_names,
            windows_hu=(settings.window_hu,),
            slice_offsets_mm=settings.slice_offsets_mm,
            spacing_mm=settings.spacing_mm,
            patch=settings.patch,
            stride=STRIDE,
            needs_liver=False,
            slice_offsets=settings.slice_offsets,
            liver_crop=crop,
        )
        outputs, width, conv = len(settings.class_names) - 1, settings.width, conv3x3(settings)
        self.encoder = Encoder(settings)
        self.segmentation = R2UNet(self.encoder.channels, settings, outputs)
        self.edge_encoder = None
        self.edge = self.dcff = self.fuse = None
        if settings.edge_branch:
            if not settings.shared_encoder:
                self.edge_encoder = Encoder(settings)
            self.edge = R2UNet(self.encoder.channels, settings, outputs)
            self.fuse = nn.Sequential(conv(2 * width, width), nn.Conv2d(width, outputs, 1))
            init_he(self.fuse)
        if settings.dcff:
            self.dcff = DeepCrossFeatureFusion(SCALES, width, conv, settings.dcff_down)
            init_he(self.dcff)

    def load_trunk(self, state: Mapping[str, Tensor]) -> None:
        """Start every trunk from published weights; see `networks.resnet.load_published`.

        Raises:
            ValueError: they do not fit.
        """
        for encoder in (self.encoder, self.edge_encoder):
            if encoder is not None:
                load_published(encoder.trunk, state)

    def targets(self, batch: Batch) -> Targets:
        """Masks, and the edge map of the settings, made slice by slice on the batch's device."""
        counted = batch.label >= 0
        mask = torch.stack([batch.label >= k for k in range(1, len(self.settings.class_names))], 1)
        kind = self.settings.edge_target
        if self.edge is None:
            found = None
        elif kind == "edge":
            found = edge(mask).float()
        else:
            found = edge_distance(mask, literal=kind == "distance_literal")
        return Targets(mask.float(), found, counted)

    def forward(self, image: Float[Tensor, "b p c h w"], present: Bool[Tensor, "b p"]) -> Outputs:
        """Logits of both branches and of their fusion.

        Raises:
            ValueError: wrong number of phases or channels, a sample without any phase, or a size
                that is not a multiple of 32.
        """
        self._check(image, present)
        seen = self.encoder(image, present)
        f1 = self.segmentation.compress(seen)
        if self.edge is None or self.fuse is None:
            return Outputs(self.segmentation.head(self.segmentation.decoder(f1)), None, None)
        if self.edge_encoder is not None:
            seen = self.edge_encoder(image, present)
        f2 = self.edge.compress(seen)
        if self.dcff is not None:
            f1, f2 = self.dcff(f1, f2)
        d1, d2 = self.segmentation.decoder(f1), self.edge.decoder(f2)
        s2 = self.fuse(torch.cat([d1, d2], dim=1))
        return Outputs(self.segmentation.head(d1), self.edge.head(d2), s2)

    def loss(self, outputs: Outputs, targets: Targets) -> Float[Tensor, ""]:
        """Eq. 3: IoU and BCE of s1 and s2, and four times the BCE of e; `l_1st` without edges."""
        total = self._mask_loss(outputs.s1, targets)
        if outputs.s2 is None or outputs.e is None or targets.edge is None:
            return total
        total = total + self._mask_loss(outputs.s2, targets)
        e = _full(outputs.e)
        return total + self.settings.edge_weight * binary_cross_entropy(
            e, targets.edge, targets.counted
        )

    def decode(self, outputs: Outputs) -> Float[Tensor, "b k h w"]:
        """Probabilities of the classes at image resolution, float32.

        A yes or no each for liver and tumor become classes that exclude each other: tumor is what
        is tumor and liver, liver what is liver and not tumor.
        """
        organ, *tumor = _full(outputs.final.float()).sigmoid().unbind(dim=1)
        if not tumor:
            return torch.stack([1.0 - organ, organ], dim=1)
        both = torch.minimum(organ, tumor[0])
        return torch.stack([1.0 - organ, organ - both, both], dim=1)

    def _mask_loss(self, logits: Float[Tensor, "b k h w"], targets: Targets) -> Float[Tensor, ""]:
        full, counted = _full(logits), targets.counted
        iou = soft_iou(full, targets.mask, counted, smooth=self.settings.iou_smooth)
        return iou + binary_cross_entropy(full, targets.mask, counted)

    def _check(self, image: Tensor, present: Tensor) -> None:
        phases, channels = len(self.settings.phases), self.input_spec.channels
        if image.shape[1:3] != (phases, channels) or present.shape != image.shape[:2]:
            raise ValueError(
                f"expected {phases} phases {self.settings.phases} of {channels} slices, got an "
                f"image of {tuple(image.shape)} and presence of {tuple(present.shape)}"
            )
        if image.shape[-2] % STRIDE or image.shape[-1] % STRIDE:
            raise ValueError(
                f"image of {tuple(image.shape[-2:])} pixels: both sizes must be multiples of "
                f"{STRIDE}; pad before the network"
            )


def _full(logits: Float[Tensor, "b k h w"]) -> Float[Tensor, "b k h2 w2"]:
    """Logits at the size of the image."""
    size = (HEAD_STRIDE * logits.shape[-2], HEAD_STRIDE * logits.shape[-1])
    return resize_to(at_least_float32(logits), size)


def module_parameters(model: E2net) -> dict[str, int]:
    """Parameters of each part, by the names of the paper."""
    parts: dict[str, nn.Module | None] = {
        "encoder": model.encoder.trunk,
        "sams": model.encoder.sams,
        "segmentation": model.segmentation,
        "edge_encoder": None if model.edge_encoder is None else model.edge_encoder.trunk,
        "edge_sams": None if model.edge_encoder is None else model.edge_encoder.sams,
        "edge": model.edge,
        "dcff_segmentation": None if model.dcff is None else model.dcff.segmentation,
        "dcff_edge": None if model.dcff is None else model.dcff.edge,
        "fusion": model.fuse,
    }
    return parameters_of(parts)
