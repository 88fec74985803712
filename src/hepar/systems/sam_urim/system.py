"""SAM + URIM, Fig. 1: mutually guided encoder, decoder, uncertain region inpainting.

Zhang Y. et al., Multi-phase Liver Tumor Segmentation with Spatial Aggregation and Uncertain Region
Inpainting, MICCAI 2021. Choices where the paper is silent, and differences: papers/sam_urim.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hepar.losses import cross_entropy, soft_dice
from hepar.networks.blocks import ConvNormAct, at_least_float32, parameters_of, resize_to
from hepar.networks.resnet import TRUNKS, ResNetTrunk, load_published
from hepar.networks.unet2d import UNetTrunk
from hepar.systems.base import Batch, InputSpec
from hepar.systems.presence import PresentPairs, with_presence
from hepar.systems.sam_urim.fusion import GUIDED, fusion
from hepar.systems.sam_urim.settings import SamUrimSettings
from hepar.systems.sam_urim.spatial_aggregation import modulate
from hepar.systems.sam_urim.uncertain_region_inpainting import UncertainRegionInpainting

LEVELS = (2, 3, 4, 5)
"""Blocks of the encoder after which the phases are aggregated."""


@dataclass(frozen=True)
class Outputs:
    """Everything the network says, at the resolution of A2.

    Attributes:
        init_logits: of the decoder.
        final_logits: of URIM; the initial ones in a model without it.
        confidence_before: M_conf of the initial logits; None without URIM.
        confidence_after: M_conf after the last inpainting step; None without URIM.
    """

    init_logits: Float[Tensor, "b k h w"]
    final_logits: Float[Tensor, "b k h w"]
    confidence_before: Float[Tensor, "b 1 h w"] | None
    confidence_after: Float[Tensor, "b 1 h w"] | None


class SamUrim(nn.Module):
    """The network of Fig. 1 for any number of phases, any of them absent.

    For an image of H x W and a stem stride s (4 as published; 2 in `lite`):

    | paper | code | shape |
    |---|---|---|
    | B_p^(1) | `trunks[.].stage(1, .)` | n, C1, H/s, W/s |
    | F_p, i = 2..5 | `trunks[.].stage(i, .)` | n, C_i, H/(s 2^(i-2)), W/(s 2^(i-2)) |
    | F'_p | `descriptors` | b, 2P, as F_p |
    | w_p^(0), w_p | `SpatialAggregation.weights` | b, C_i, as F_p |
    | F_Aggr, Eq. 1 | `SpatialAggregation.forward` | b, C_i, as F_p |
    | F_p^(m), Eq. 2 | `modulate` | n, C_i, as F_p |
    | decision features | `Decoder.forward`, first | b, D, H/s, W/s |
    | S_i (before softmax) | `Outputs.init_logits` | b, K, H/s, W/s |
    | M_conf, Eq. 3 | `confidence` | b, 1, H/s, W/s |
    | LC-Conv, Eq. 4 | `LocalConfidenceConv` | b, 128, H/s, W/s |
    | final prediction | `Outputs.final_logits` | b, K, H/s, W/s |

    n counts the present (sample, phase) pairs of the batch.

    Args:
        settings: all switches.
    """

    class_weights: Tensor | None

    def __init__(self, settings: SamUrimSettings) -> None:
        super().__init__()
        self.settings = settings
        self.input_spec = InputSpec(
            dims=2,
            phases=settings.phases,
            class_names=settings.class_names,
            windows_hu=(settings.window_hu,),
            slice_offsets_mm=settings.slice_offsets_mm,
            spacing_mm=settings.spacing_mm,
            patch=settings.patch,
            stride=settings.stride,
            needs_liver=settings.needs_liver,
            needs_all_phases=settings.needs_all_phases,
            slice_offsets=settings.slice_offsets,
            refines=settings.urim,
        )
        streams = 1 if settings.shared_encoder or settings.fusion == "ilf" else self.n_phases
        self.trunks = nn.ModuleList(_trunk(settings, self.in_channels) for _ in range(streams))
        channels = cast("ResNetTrunk", self.trunks[0]).channels
        # Named for the paper's module, whatever a row puts in its place.
        self.sams = nn.ModuleDict(
            {str(level): fusion(settings, c) for level, c in zip(LEVELS, channels, strict=True)}
        )
        if settings.fusion == "dlf":
            self.decoder: Decoder | DecisionFusion = DecisionFusion(channels, settings)
        else:
            self.decoder = Decoder(channels, settings)
        self.urim = _urim(settings) if settings.urim else None
        weights = settings.class_weights
        self.register_buffer(
            "class_weights", None if weights is None else torch.tensor(weights), persistent=False
        )

    @property
    def n_phases(self) -> int:
        """P."""
        return len(self.settings.phases)

    @property
    def in_channels(self) -> int:
        """Channels of a trunk's image."""
        one = self.input_spec.channels + self.settings.presence_channel
        return one * self.n_phases if self.settings.fusion == "ilf" else one

    def load_trunk(self, state: Mapping[str, Tensor]) -> None:
        """Start every trunk from published weights; see `networks.resnet.load_published`.

        Raises:
            ValueError: they do not fit, or the backbone has none.
        """
        for trunk in self.trunks:
            if not isinstance(trunk, ResNetTrunk):
                raise ValueError(f"there are no published weights of a {self.settings.backbone}")
            load_published(trunk, state)

    def targets(self, batch: Batch) -> Int[Tensor, "b h w"]:
        """The label at full resolution."""
        return batch.label

    def forward(self, image: Float[Tensor, "b p c h w"], present: Bool[Tensor, "b p"]) -> Outputs:
        """Logits of the primary phase.

        Raises:
            ValueError: wrong number of phases, a sample without any, or a size that is not a
                multiple of `input_spec.stride`.
        """
        self._check(image, present)
        if self.settings.presence_channel:
            image, present = with_presence(image, present), torch.ones_like(present)
        if self.settings.fusion == "ilf":
            image, present = image.flatten(1, 2).unsqueeze(1), present[:, :1]
        pairs = PresentPairs(present)
        if isinstance(self.decoder, DecisionFusion):
            features, init_logits = self.decoder(self.streams(pairs.gather(image), pairs))
        else:
            features, init_logits = self.decoder(self.encode(pairs.gather(image), pairs))
        if self.urim is None:
            return Outputs(init_logits, init_logits, None, None)
        refined = self.urim(init_logits, features)
        return Outputs(
            init_logits, refined.logits, refined.confidence_before, refined.confidence_after
        )

    def encode(
        self, x: Float[Tensor, "n c h w"], pairs: PresentPairs
    ) -> list[Float[Tensor, "b _ _ _"]]:
        """Mutually guided encoder: A2..A5 of the present pairs."""
        x = self._block(1, x, pairs)
        aggregated = []
        for level in LEVELS:
            x = self._block(level, x, pairs)
            a = self.sams[str(level)](x, pairs)
            aggregated.append(a)
            # Nothing reads the modulated features of B5.
            if level != LEVELS[-1] and self.settings.fusion in GUIDED:
                x = modulate(x, a, pairs)
        return aggregated

    def streams(
        self, x: Float[Tensor, "n c h w"], pairs: PresentPairs
    ) -> list[list[Float[Tensor, "b _ _ _"]]]:
        """DLF: the features of B2..B5 of each phase, which know nothing of each other."""
        x = self._block(1, x, pairs)
        levels = []
        for level in LEVELS:
            x = self._block(level, x, pairs)
            levels.append(pairs.split(x))
        return [list(of_phase) for of_phase in zip(*levels, strict=True)]

    def loss(self, outputs: Outputs, targets: Int[Tensor, "b h w"]) -> Float[Tensor, ""]:
        """`L_init + L_final`, equal weights, logits up-sampled to the label; -1 is ignored."""
        heads = [outputs.init_logits]
        if self.urim is not None:
            heads.append(outputs.final_logits)
        return torch.stack([self._segmentation_loss(logits, targets) for logits in heads]).sum()

    def decode(self, outputs: Outputs) -> Float[Tensor, "b k h w"]:
        """Probabilities of the final logits at image resolution, float32."""
        return self._probability(outputs.final_logits)

    def initial(self, outputs: Outputs) -> Float[Tensor, "b k h w"]:
        """As `decode`, of the initial logits: what URIM was given."""
        return self._probability(outputs.init_logits)

    def _probability(self, logits: Float[Tensor, "b k h w"]) -> Float[Tensor, "b k h2 w2"]:
        height, width = logits.shape[-2:]
        stride = self.settings.decision_stride
        return resize_to(logits.float(), (height * stride, width * stride)).softmax(dim=1)

    def _segmentation_loss(
        self, logits: Float[Tensor, "b k h w"], label: Int[Tensor, "b h2 w2"]
    ) -> Float[Tensor, ""]:
        full = resize_to(at_least_float32(logits), (label.shape[-2], label.shape[-1]))
        loss = cross_entropy(full, label, class_weights=self.class_weights)
        return loss + soft_dice(full, label) if self.settings.loss == "ce_dice" else loss

    def _block(
        self, number: int, x: Float[Tensor, "n _ _ _"], pairs: PresentPairs
    ) -> Float[Tensor, "n _ _ _"]:
        """A block of the shared trunk on all pairs, or of each phase's own trunk on its pairs."""
        trunks = cast("list[ResNetTrunk | UNetTrunk]", list(self.trunks))
        if len(trunks) == 1:
            return trunks[0].stage(number, x)
        parts = zip(trunks, pairs.split(x), strict=True)
        return torch.cat([trunk.stage(number, part) for trunk, part in parts if len(part)])

    def _check(self, image: Tensor, present: Tensor) -> None:
        phases, stride = len(self.settings.phases), self.settings.stride
        if image.shape[1] != phases or present.shape != image.shape[:2]:
            raise ValueError(
                f"expected {phases} phases {self.settings.phases}, got an image of "
                f"{tuple(image.shape)} and presence of {tuple(present.shape)}"
            )
        if self.input_spec.needs_all_phases and not bool(present.all()):
            raise ValueError(f"fusion {self.settings.fusion} needs all of {self.settings.phases}")
        if image.shape[-2] % stride or image.shape[-1] % stride:
            raise ValueError(
                f"image of {tuple(image.shape[-2:])} pixels: both sizes must be multiples of "
                f"{stride}; pad before the network"
            )


class DecisionFeatures(nn.Module):
    """Features of four levels to decision features at the resolution of A2.

    `literal`: up-sample, 3x3 to D, at the resolution of A2. `project_first`: 1x1 to D at native
    size, up-sample. Then both concatenate and convolve 3x3 to D. The two are different networks: a
    1x1 commutes with bilinear up-sampling, a 3x3 does not.

    Args:
        channels: of A2..A5.
        settings: `decoder`, `decoder_width`, `dropout_features`.
    """

    def __init__(self, channels: Sequence[int], settings: SamUrimSettings) -> None:
        super().__init__()
        width = settings.decoder_width
        self.up_first = settings.decoder == "literal"
        kernel = 3 if self.up_first else 1
        self.project = nn.ModuleList(ConvNormAct(c, width, kernel) for c in channels)
        self.fuse = ConvNormAct(width * len(channels), width, 3)
        self.drop_features = nn.Dropout(settings.dropout_features)

    def features(self, levels: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b d h w"]:
        """Decision features."""
        size = (levels[0].shape[-2], levels[0].shape[-1])
        same = []
        for a, project in zip(levels, self.project, strict=True):
            same.append(
                project(resize_to(a, size)) if self.up_first else resize_to(project(a), size)
            )
        found: Tensor = self.drop_features(self.fuse(torch.cat(same, dim=1)))
        return found


class Decoder(DecisionFeatures):
    """Aggregated features to decision features and initial logits: 3x3 D, 1x1 to K.

    Args:
        channels: of A2..A5.
        settings: as `DecisionFeatures`, and `dropout_head`, `class_names`.
    """

    def __init__(self, channels: Sequence[int], settings: SamUrimSettings) -> None:
        super().__init__(channels, settings)
        width = settings.decoder_width
        self.refine = ConvNormAct(width, width, 3)
        self.drop_head = nn.Dropout(settings.dropout_head)
        self.classifier = nn.Conv2d(width, len(settings.class_names), 1)

    def forward(
        self, aggregated: Sequence[Float[Tensor, "b _ _ _"]]
    ) -> tuple[Float[Tensor, "b d h w"], Float[Tensor, "b k h w"]]:
        """Decision features and initial logits, at the resolution of A2."""
        features = self.features(aggregated)
        return features, self.classifier(self.drop_head(self.refine(features)))


class DecisionFusion(nn.Module):
    """DLF, Table 1: a decoder a phase, their decision features concatenated before the classifier.

    Args:
        channels: of B2..B5.
        settings: as `Decoder`.
    """

    def __init__(self, channels: Sequence[int], settings: SamUrimSettings) -> None:
        super().__init__()
        width, phases = settings.decoder_width, len(settings.phases)
        self.decoders = nn.ModuleList(DecisionFeatures(channels, settings) for _ in range(phases))
        self.fuse = ConvNormAct(phases * width, width, 3)
        self.drop_head = nn.Dropout(settings.dropout_head)
        self.classifier = nn.Conv2d(width, len(settings.class_names), 1)

    def forward(
        self, streams: Sequence[Sequence[Float[Tensor, "b _ _ _"]]]
    ) -> tuple[Float[Tensor, "b d h w"], Float[Tensor, "b k h w"]]:
        """Fused decision features and initial logits, from the four levels of each phase."""
        decoders = cast("list[DecisionFeatures]", list(self.decoders))
        of_phases = [d.features(levels) for d, levels in zip(decoders, streams, strict=True)]
        features = self.fuse(torch.cat(of_phases, dim=1))
        return features, self.classifier(self.drop_head(features))


def module_parameters(model: SamUrim) -> dict[str, int]:
    """Parameters of each part, by the names of the paper's table."""
    parts: dict[str, nn.Module | None] = {"trunk": model.trunks}
    parts |= {f"sam{level}": model.sams[str(level)] for level in LEVELS}
    parts |= {"decoder": model.decoder, "urim": model.urim}
    return parameters_of(parts)


def _trunk(settings: SamUrimSettings, in_channels: int) -> ResNetTrunk | UNetTrunk:
    if settings.backbone == "unet":
        return UNetTrunk(in_channels, settings.base_width or 64)
    plan = TRUNKS[settings.backbone]
    if settings.base_width is not None:
        plan = plan.of_width(settings.base_width)
    return ResNetTrunk(plan, in_channels, settings.stem_stride)


def _urim(settings: SamUrimSettings) -> UncertainRegionInpainting:
    return UncertainRegionInpainting(
        classes=len(settings.class_names),
        features=settings.decoder_width,
        width=settings.urim_width,
        final_concat=settings.final_concat,
        window_norm=settings.window_norm,
        detach_conf=settings.detach_conf,
        dropout=settings.dropout_urim,
    )
