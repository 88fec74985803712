"""PLAN: one network that answers for pixels, for lesions and for the patient.

Yan K. et al.: Liver Tumor Screening and Diagnosis in CT with Pixel-Lesion-Patient Network, MICCAI
2023. Compared with in LIDIA, Table 1, as Mask2Former is, from which it differs by the branches for
pixels and for the patient.

| PLAN | code | shape, for a patch of Z x Y x X |
|---|---|---|
| encoder, early fusion | `stem`, `encoder` | b, C_i, size / strides |
| pixel decoder | `pixel_decoder` | b, 64, size / strides; b, 64, Z, Y, X |
| pixel branch | `pixel_head` | b, 10, Z, Y, X |
| lesion branch | `transformer` (`lidia/mask_transformer.py`) | b, 50, 64; b, 50, 11 |
| patient branch | `patient_branch` | b, 11 |
| loss | `loss`: 2 pixel + 5 masks + 2 classes + patient + 0.1 consistency | |

Differs from the paper: queries are learned; anchor queries, which its public configuration leaves
out, are not here. Two stages are two runs, of `branches: pixel` and of `all`, and no branch joins
within a run.

Where paper and specification are silent: the pixel branch is one convolution of 1 x 1 x 1 and has
nnU-Net's loss; classes of queries have Mask2Former's cross-entropy; an answer for the patient is
trained on what the patch holds; the two maps agree where the mean squared difference of their
probabilities is small, at voxels drawn at random (consistency begins before the patient branch
does, so that it is not of that); the patient's loss counts 1.

At use the map is that of the lesion branch, as LIDIA's. A patient is seen window by window: the
probability of a type is the largest of any window's (`Plan.patient`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from hepar.losses import cross_entropy, soft_dice
from hepar.networks.blocks import at_least_float32, full_precision, parameters_of
from hepar.networks.unet3d import PyramidEncoder3d, begin_convolutions
from hepar.study import LESION_TYPES
from hepar.systems.base import Batch
from hepar.systems.baselines.plan.patient_branch import PatientBranch, patient_targets
from hepar.systems.baselines.plan.settings import PlanSettings
from hepar.systems.lidia.iterative_fusion import build_stem
from hepar.systems.lidia.mask_transformer import MaskTransformer, Queries, semantic_map
from hepar.systems.lidia.matching import MatchWeights, Segments, segments
from hepar.systems.lidia.pixel_decoder import PixelDecoder
from hepar.systems.lidia.point_sampling import Points, random_points
from hepar.systems.lidia.query_loss import query_loss
from hepar.systems.lidia.query_settings import CLASSES
from hepar.systems.planned_network import ZScores, check_image, planned_spec

BACKGROUND, LIVER = CLASSES.index("background"), CLASSES.index("liver")


@dataclass(frozen=True)
class Outputs:
    """What the network answers.

    Attributes:
        pixels: logits of the pixel branch.
        queries: of the lesion branch; None of the first stage.
        patient: logits of the patient branch; likewise.
    """

    pixels: Float[Tensor, "b k z y x"]
    queries: Queries | None
    patient: Float[Tensor, "b o"] | None


@dataclass(frozen=True)
class Targets:
    """What the branches have to find.

    Attributes:
        label: class of each voxel, -1 ignored.
        segments: of each sample, for the queries; empty in the first stage.
        patient: 1 where a sample holds a lesion of an output, else 0.
    """

    label: Int[Tensor, "b z y x"]
    segments: list[Segments]
    patient: Float[Tensor, "b o"]


class Plan(nn.Module):
    """The network and its loss.

    Args:
        settings: all switches.
    """

    def __init__(self, settings: PlanSettings) -> None:
        super().__init__()
        self.settings = settings
        channels, kernels = settings.channels, settings.kernels
        self.z_scores = ZScores(settings)
        self.stem = build_stem("early", len(settings.phases), channels[0], kernel=kernels[0])
        self.encoder = PyramidEncoder3d(
            None, channels, "instance", "strided", settings.strides, kernels
        )
        begin_convolutions(self.encoder)
        self.pixel_decoder = PixelDecoder(channels, settings.width, kernels)
        self.pixel_head = nn.Conv3d(settings.width, len(CLASSES), 1)
        self.transformer = MaskTransformer(
            len(CLASSES),
            settings.width,
            queries=settings.queries,
            heads=settings.heads,
            feedforward=settings.feedforward,
            layers=settings.layers,
            levels=len(settings.memory_levels),
        )
        self.patient_branch = PatientBranch(
            settings.width,
            settings.patient_width,
            heads=settings.patient_heads,
            feedforward=settings.patient_feedforward,
            blocks=settings.patient_blocks,
            levels=len(settings.patient_levels),
            grid=settings.patient_grid,
        )
        self.input_spec = planned_spec(settings, CLASSES, needs_all_phases=True)

    def targets(self, batch: Batch) -> Targets:
        """Label, segments and answers of each sample.

        Raises:
            ValueError: a batch without instances, which the lesion branch needs.
        """
        found: list[Segments] = []
        if self.settings.branches == "all":
            if batch.instances is None:
                raise ValueError("lesions of the batch have no instances")
            types = self.input_spec.tumor_classes
            found = [
                segments(label, instances, types=types, regions=(BACKGROUND, LIVER))
                for label, instances in zip(batch.label, batch.instances, strict=True)
            ]
        return Targets(batch.label, found, patient_targets(batch.label, CLASSES))

    def forward(self, image: Float[Tensor, "b p 1 z y x"], present: Bool[Tensor, "b p"]) -> Outputs:
        """Answers of the branches.

        Raises:
            ValueError: wrong shapes, a spatial size that is not a multiple of the strides, or a
                sample that lacks a phase.
        """
        settings = self.settings
        check_image(settings, image, present)
        features = self.encoder(self.stem(self.z_scores(image), present))
        pyramid, mask_features = self.pixel_decoder(features)
        pixels = self.pixel_head(mask_features)
        if settings.branches == "pixel":
            return Outputs(pixels, None, None)
        queries = self.transformer([pyramid[n] for n in settings.memory_levels], mask_features)
        patient = self.patient_branch([pyramid[n] for n in settings.patient_levels])
        return Outputs(pixels, queries, patient)

    def loss(self, outputs: Outputs, targets: Targets) -> Float[Tensor, ""]:
        """The weighted sum of the branches' losses, float32.

        Points are drawn anew from torch's global generator.
        """
        s = self.settings
        pixel = cross_entropy(outputs.pixels, targets.label) + soft_dice(
            outputs.pixels, targets.label, smooth=s.dice_smooth, per_sample=True
        )
        if outputs.queries is None or outputs.patient is None:
            return s.pixel_weight * pixel
        lesion = query_loss(
            outputs.queries,
            targets.segments,
            cls_loss=self.class_loss,
            weights=MatchWeights(s.mask_weight, s.mask_weight, s.class_weight),
            points=Points(s.points, s.oversample, s.uncertain_share, s.fg_sample_ratio),
        )
        patient = functional.binary_cross_entropy_with_logits(
            outputs.patient.float(), targets.patient
        )
        terms = (
            (s.pixel_weight, pixel),
            (s.mask_weight, lesion.seg),
            (s.class_weight, lesion.cls),
            (s.patient_weight, patient),
            (s.consistency_weight, self.consistency(outputs, targets)),
        )
        return torch.stack([weight * term for weight, term in terms]).sum()

    def class_loss(
        self, logits: Float[Tensor, "b k1 q"], label: Int[Tensor, "b q"]
    ) -> Float[Tensor, ""]:
        """Cross-entropy of the queries' classes, in which "no object" counts less."""
        weights = torch.ones(len(CLASSES) + 1, device=logits.device)
        weights[-1] = self.settings.no_object_weight
        return cross_entropy(logits, label, class_weights=weights)

    def consistency(self, outputs: Outputs, targets: Targets) -> Float[Tensor, ""]:
        """Mean squared difference of the maps of both branches, at voxels drawn at random."""
        queries = outputs.queries
        assert queries is not None
        with full_precision(outputs.pixels):
            differences = [outputs.pixels.new_zeros(0).float()]
            for n, segment in enumerate(targets.segments):
                if not len(segment.counted):
                    continue
                at = random_points(segment.counted, self.settings.points)
                pixels = at_least_float32(outputs.pixels[n]).flatten(1)[:, at].softmax(dim=0)
                features = queries.features[n : n + 1].flatten(2)[..., at, None, None]
                last = queries.classes[-1][n : n + 1], queries.masks[-1][n : n + 1]
                lesions = semantic_map(*last, features)
                differences.append((pixels - lesions[0, ..., 0, 0]).square().flatten())
            every = torch.cat(differences)
            return every.mean() if len(every) else outputs.pixels.sum() * 0.0

    def decode(self, outputs: Outputs) -> Float[Tensor, "b k z y x"]:
        """Probabilities of the classes, float32: the lesion branch's, else the pixel branch's."""
        queries = outputs.queries
        if queries is None:
            return outputs.pixels.float().softmax(dim=1)
        return semantic_map(queries.classes[-1], queries.masks[-1], queries.features)

    def patient(self, outputs: Outputs) -> Float[Tensor, "b t"]:
        """Probability that what was seen holds a lesion of each of `study.LESION_TYPES`, float32.

        Of a patient who is seen in several windows, the largest of any window counts.

        Raises:
            ValueError: the first stage has no patient branch.
        """
        if outputs.patient is None:
            raise ValueError("branches pixel: there is no answer for the patient")
        return outputs.patient[:, : len(LESION_TYPES)].float().sigmoid()


def module_parameters(model: Plan) -> dict[str, int]:
    """Parameters of each part; the encoder's are with those of the stem, its first stage."""
    parts: dict[str, nn.Module | None] = {
        "stem": model.stem,
        "encoder_with_stem": nn.ModuleList([model.stem, model.encoder]),
        "pixel_decoder": model.pixel_decoder,
        "pixel_branch": model.pixel_head,
        "lesion_branch": model.transformer,
        "patient_branch": model.patient_branch,
    }
    return parameters_of(parts)
