"""LIDIA, Fig. 1: phases fused as they come, lesions as masks of queries, types kept apart.

Huang W. et al., LIDIA: Precise Liver Tumor Diagnosis on Multi-Phase Contrast-Enhanced CT via
Iterative Fusion and Asymmetric Contrastive Learning, MICCAI 2024. Mask2Former in three dimensions,
which it is compared with, and the rows of Tables 2 and 3 are this system with other settings.

Differs from nnU-Net, which it is built upon: as `baselines/nnunet/system.py` says of z-scores and
augmentation.

Where the paper is silent: background and liver are queries' targets too, as PLAN's organs are, so
that the map of classes is complete; z is of the queries that lesions were matched with. More in
the files of the parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hepar.losses import cross_entropy, focal
from hepar.networks.blocks import parameters_of
from hepar.networks.unet3d import PyramidEncoder3d, begin_convolutions
from hepar.systems.base import Batch
from hepar.systems.lidia.asymmetric_contrast import AsymmetricContrast
from hepar.systems.lidia.iterative_fusion import build_stem
from hepar.systems.lidia.mask_transformer import MaskTransformer, Queries, semantic_map
from hepar.systems.lidia.matching import MatchWeights, Segments, segments
from hepar.systems.lidia.pixel_decoder import PixelDecoder
from hepar.systems.lidia.point_sampling import Points
from hepar.systems.lidia.query_loss import QueryLoss, query_loss
from hepar.systems.lidia.settings import CLASSES, LidiaSettings
from hepar.systems.planned_network import ZScores, check_image, planned_spec

BACKGROUND, LIVER = CLASSES.index("background"), CLASSES.index("liver")


@dataclass(frozen=True)
class Outputs:
    """What the network answers.

    Attributes:
        queries: predictions of the mask transformer.
        z: of the queries of each prediction that contrastive learning sees, the last one last;
            empty without.
    """

    queries: Queries
    z: list[Float[Tensor, "b q d"]]


class Lidia(nn.Module):
    """The network of Fig. 1.

    | paper | code | shape, for a patch of Z x Y x X |
    |---|---|---|
    | x^p, p in P | `z_scores` of the image | b, 4, 1, Z, Y, X |
    | h^fuse (Eq. 1, 2) | `stem` | b, 32, Z, Y, X |
    | pixel encoder | `encoder` | b, C_i, size / strides |
    | pixel decoder | `pixel_decoder` | b, 64, size / strides; b, 64, Z, Y, X |
    | masks, classes of 50 queries | `transformer`, `Queries` | b, 50, 64; b, 50, 11 |
    | z(x) | `contrast.project` | b, 50, 128 |
    | S_j, C_j | `Segments` | M, Z Y X; M |
    | L_seg, L_focal, L_acl (Eq. 3 to 6) | `query_loss`, `contrast`, `loss` | |
    | semantic segmentation | `decode` | b, 10, Z, Y, X |

    Args:
        settings: all switches.

    Attributes:
        bank_frozen: training does not push the lesions of its batches into the memory bank: for
            another pass over the same batch.
    """

    def __init__(self, settings: LidiaSettings) -> None:
        super().__init__()
        self.settings = settings
        self.bank_frozen = False
        channels, kernels = settings.channels, settings.kernels
        self.z_scores = ZScores(settings)
        self.stem = build_stem(
            settings.fusion,
            len(settings.phases),
            channels[0],
            kernel=kernels[0],
            share_conv=settings.share_conv,
        )
        self.encoder = PyramidEncoder3d(
            None, channels, "instance", "strided", settings.strides, kernels
        )
        begin_convolutions(self.encoder)
        self.pixel_decoder = PixelDecoder(channels, settings.width, kernels)
        self.transformer = MaskTransformer(
            len(CLASSES),
            settings.width,
            queries=settings.queries,
            heads=settings.heads,
            feedforward=settings.feedforward,
            layers=settings.layers,
            levels=len(settings.memory_levels),
        )
        self.contrast: AsymmetricContrast | None = None
        if settings.contrast != "none":
            rare = settings.rare_types if settings.contrast == "acl" else ()
            self.contrast = AsymmetricContrast(
                settings.width,
                settings.contrast_width,
                settings.bank,
                rare=[CLASSES.index(name) for name in rare],
                temperature=settings.temperature,
                others_as_negatives=settings.others_as_negatives,
            )
        self.input_spec = planned_spec(
            settings, CLASSES, needs_all_phases=bool(self.stem.needs_all_phases)
        )

    def targets(self, batch: Batch) -> list[Segments]:
        """Segments of each sample.

        Raises:
            ValueError: a batch without instances.
        """
        if batch.instances is None:
            raise ValueError("lesions of the batch have no instances")
        types = self.input_spec.tumor_classes
        return [
            segments(label, instances, types=types, regions=(BACKGROUND, LIVER))
            for label, instances in zip(batch.label, batch.instances, strict=True)
        ]

    def forward(self, image: Float[Tensor, "b p 1 z y x"], present: Bool[Tensor, "b p"]) -> Outputs:
        """Predictions of all queries.

        Raises:
            ValueError: wrong shapes, a spatial size that is not a multiple of the strides, a sample
                without any phase, or one that lacks a phase under early fusion.
        """
        check_image(self.settings, image, present)
        features = self.encoder(self.stem(self.z_scores(image), present))
        pyramid, mask_features = self.pixel_decoder(features)
        memory = [pyramid[level] for level in self.settings.memory_levels]
        queries = self.transformer(memory, mask_features)
        if self.contrast is None:
            return Outputs(queries, [])
        seen = queries.states if self.settings.contrast_heads == "all" else queries.states[-1:]
        return Outputs(queries, [self.contrast.project(states) for states in seen])

    def loss(self, outputs: Outputs, targets: list[Segments]) -> Float[Tensor, ""]:
        """Eq. 6, in float32; in training the lesions of the batch go into the memory bank.

        Points are drawn anew from torch's global generator.
        """
        settings = self.settings
        found = query_loss(
            outputs.queries,
            targets,
            cls_loss=self.class_loss,
            weights=MatchWeights(settings.match_mask, settings.match_dice, settings.match_class),
            points=Points(
                settings.points,
                settings.oversample,
                settings.uncertain_share,
                settings.fg_sample_ratio,
            ),
        )
        total = settings.seg_weight * found.seg + settings.cls_weight * found.cls
        if self.contrast is None:
            return total
        return total + settings.contrast_weight * self.contrast_loss(outputs, found, targets)

    def class_loss(
        self, logits: Float[Tensor, "b k1 q"], label: Int[Tensor, "b q"]
    ) -> Float[Tensor, ""]:
        """L_focal, or the cross-entropy that it takes the place of."""
        if self.settings.cls_loss == "focal":
            return focal(logits, label, gamma=self.settings.focal_gamma)
        weights = torch.ones(len(CLASSES) + 1, device=logits.device)
        weights[-1] = self.settings.no_object_weight
        return cross_entropy(logits, label, class_weights=weights)

    def contrast_loss(
        self, outputs: Outputs, found: QueryLoss, targets: list[Segments]
    ) -> Float[Tensor, ""]:
        """L_acl of the queries that lesions were matched with, summed over predictions."""
        assert self.contrast is not None
        terms = []
        for z, matches in zip(outputs.z, found.matches[-len(outputs.z) :], strict=True):
            lesions, types = lesion_queries(z, [m.queries for m in matches], [
                t.classes[m.segments] for t, m in zip(targets, matches, strict=True)
            ])  # fmt: skip
            terms.append(self.contrast(lesions, types))
        if self.training and not self.bank_frozen:
            self.contrast.push(lesions.detach(), types)
        return torch.stack(terms).sum()

    def decode(self, outputs: Outputs) -> Float[Tensor, "b k z y x"]:
        """Probabilities of the classes of the last prediction, float32."""
        queries = outputs.queries
        return semantic_map(queries.classes[-1], queries.masks[-1], queries.features)


def lesion_queries(
    z: Float[Tensor, "b q d"],
    queries: list[Int[Tensor, "_"]],
    classes: list[Int[Tensor, "_"]],
) -> tuple[Float[Tensor, "n d"], Int[Tensor, "n"]]:
    """z and types of the matched queries of all samples whose segment is a lesion."""
    every = torch.cat([of[at] for of, at in zip(z, queries, strict=True)])
    types = torch.cat(classes)
    lesion = (types != BACKGROUND) & (types != LIVER)
    return every[lesion], types[lesion]


def module_parameters(model: Lidia) -> dict[str, int]:
    """Parameters of each part; the encoder's are with those of the stem, its first stage."""
    parts: dict[str, nn.Module | None] = {
        "stem": model.stem,
        "encoder_with_stem": nn.ModuleList([model.stem, model.encoder]),
        "pixel_decoder": model.pixel_decoder,
        "transformer_decoder": model.transformer,
        "projection": model.contrast,
    }
    return parameters_of(parts)
