"""DPC-Net, Fig. 2: a pyramid of features, refined where they count and in what counts.

Zhang Y. et al., Decoupled Pyramid Correlation Network for Liver Tumor Segmentation from CT Images,
2022. The baseline, each module and the attention methods of Table 4 are this system with other
settings. Choices where the paper is silent, and differences: papers/dpcnet.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hepar.losses import cross_entropy, squared_dice
from hepar.networks.blocks import at_least_float32, parameters_of
from hepar.networks.unet3d import Down, Norm, PyramidUNet3d
from hepar.systems.base import Batch, InputSpec
from hepar.systems.dpcnet.attention_baselines import (
    AttentionGate,
    DeepAttentiveFeatures,
    trilinear,
)
from hepar.systems.dpcnet.semantic_correlation import (
    LiteralSemanticCorrelation,
    SemanticCorrelation,
)
from hepar.systems.dpcnet.settings import CLASSES, DpcnetSettings
from hepar.systems.dpcnet.spatial_correlation import LiteralSpatialCorrelation, SpatialCorrelation
from hepar.systems.presence import PresentPairs
from hepar.systems.sam_urim.spatial_aggregation import SpatialAggregation, modulate

Features = Sequence[Float[Tensor, "b _ _ _ _"]]
Logits = list[Float[Tensor, "b k _ _ _"]]

BACKBONES: dict[str, tuple[Norm, Down]] = {"unet3d": ("batch", "max"), "pfe": ("instance", "conv")}


@dataclass(frozen=True)
class Outputs:
    """Logits of every head, finest level first.

    Attributes:
        raw: of the backbone's levels; of the finest alone without deep supervision.
        spa: of F_i^spa, i = 1 .. L-1; empty without SpaCor.
        sem: of F_i^sem, i = 0 .. L-2; empty without SemCor.
        daf: of deep attentive features, the final ones last; empty without.
    """

    raw: Logits
    spa: Logits
    sem: Logits
    daf: Logits


class Dpcnet(nn.Module):
    """The network of Fig. 2.

    | paper | code | shape, for an image of Z x Y x X |
    |---|---|---|
    | F_i, i = 0 .. L-1 | `PyramidUNet3d.forward` | b, C_i, Z/2^i, Y/2^i, X/2^i |
    | F_i^spa | `SpatialCorrelation.forward` | as F_i |
    | F_i^sem | `SemanticCorrelation.forward` | as F_i |
    | A_i^m, A_i^v | within these | b, 1, Z/2^(i-1), ...; b, C_i |
    | p_i^c | softmax of `Outputs` | b, K, Z/2^i, Y/2^i, X/2^i |

    K is 3: background, liver, tumor. L is 4: the levels of the decoder.

    Args:
        settings: all switches.
    """

    def __init__(self, settings: DpcnetSettings) -> None:
        super().__init__()
        self.settings = settings
        self.input_spec = InputSpec(
            dims=3,
            phases=settings.phases,
            class_names=CLASSES,
            windows_hu=(settings.window_hu,),
            slice_offsets_mm=(0.0,),
            spacing_mm=settings.spacing_mm,
            patch=settings.patch,
            stride=settings.stride,
            needs_liver=False,
            window=settings.patch,
            uniform_windows=settings.uniform_windows,
            whole_windows=True,
        )
        widths, k = settings.pyramid, len(CLASSES)
        norm, down = BACKBONES[settings.backbone]
        self.backbone = PyramidUNet3d(1, settings.channels, norm=norm, down=down)
        several = settings.channels if len(settings.phases) > 1 else ()
        self.sams = nn.ModuleList(
            SpatialAggregation(len(settings.phases), c, settings.sam_width, dims=3) for c in several
        )
        supervised = settings.deep_supervision or settings.refines
        self.heads = nn.ModuleList(
            nn.Conv3d(c, k, 1) for c in (widths if supervised else widths[:1])
        )
        self.spa, self.spa_heads = nn.ModuleList(), nn.ModuleList()
        self.sem, self.sem_heads = nn.ModuleList(), nn.ModuleList()
        literal = settings.correlation == "literal"
        if settings.spacor != "none":
            spatial = LiteralSpatialCorrelation if literal else SpatialCorrelation
            for finer, c in pairwise(widths):
                self.spa.append(spatial(c, finer, settings.spacor))
                self.spa_heads.append(nn.Conv3d(c, k, 1))
        if settings.semcor != "none":
            semantic = LiteralSemanticCorrelation if literal else SemanticCorrelation
            for c, coarser in pairwise(widths):
                module = semantic(c, coarser, settings.semcor)
                self.sem.append(module)
                self.sem_heads.append(nn.Conv3d(module.channels, k, 1))
        self.gates, self.daf = nn.ModuleList(), None
        channels = settings.channels
        if settings.attention == "ag":
            self.gates.extend(AttentionGate(c, below) for c, below in pairwise(channels[1:]))
        if settings.attention == "daf":
            self.daf = DeepAttentiveFeatures(channels[1:], channels[0], k)

    def targets(self, batch: Batch) -> Int[Tensor, "b z y x"]:
        """Labels; those of coarser levels are picked from them in the loss."""
        return batch.label.long()

    def forward(self, image: Float[Tensor, "b p c z y x"], present: Bool[Tensor, "b p"]) -> Outputs:
        """Logits of every head.

        Raises:
            ValueError: wrong number of phases or channels, a sample without any phase, or a size
                that is not a multiple of the stride.
        """
        skips = self._encode(image, present)
        features = self.backbone.decoder(skips, self._gate if self.gates else None)
        raw = features[: len(self.settings.pyramid)]
        spa, sem = self._refine(raw)
        return Outputs(
            raw=_answers(self.heads, raw),
            spa=_answers(self.spa_heads, spa),
            sem=_answers(self.sem_heads, sem),
            daf=[] if self.daf is None else self.daf([*features[1:], skips[-1]]),
        )

    def loss(self, outputs: Outputs, targets: Int[Tensor, "b z y x"]) -> Float[Tensor, ""]:
        """Eq. 13, `W_i = 1 / (2^i L)`; of one head alone its own loss.

        Nine heads of deep attentive features count as much as the backbone's one, each a ninth.
        """
        if len(self.heads) == 1:
            total = self._loss(outputs.raw[0], targets)
            shares = [self._loss(logits, targets) / len(outputs.daf) for logits in outputs.daf]
            return sum(shares, start=total)
        levels = len(self.settings.pyramid)
        weights = [1.0 / (2**i * levels) for i in range(levels)]
        terms = [
            *zip(weights, outputs.raw, strict=True),
            *zip(weights[1:], outputs.spa, strict=False),
            *zip(weights[:-1], outputs.sem, strict=False),
        ]
        weighted = [weight * self._loss(logits, targets) for weight, logits in terms]
        return sum(weighted[1:], start=weighted[0])

    def decode(self, outputs: Outputs) -> Float[Tensor, "b k z y x"]:
        """Probabilities of the classes at image resolution, float32."""
        size = outputs.raw[0].shape[2:]
        chosen = [trilinear(at_least_float32(logits), size) for logits in self._final(outputs)]
        return (sum(chosen[1:], start=chosen[0]) / len(chosen)).float().softmax(dim=1)

    def _final(self, outputs: Outputs) -> Logits:
        """Whose mean is the answer; the paper does not say.

        F_0^sem is what the last module makes of the finest level. SpaCor makes nothing of it: where
        it is the last, its levels answer together with the finest that there is.
        """
        if outputs.daf:
            return outputs.daf[-1:]
        if self.settings.final == "average":
            return [*outputs.raw, *outputs.spa, *outputs.sem]
        if self.settings.order == "sem_first":
            return [outputs.sem[0], *outputs.spa]
        if outputs.sem:
            return outputs.sem[:1]
        return [outputs.raw[0], *outputs.spa]

    def _encode(self, image: Tensor, present: Tensor) -> list[Tensor]:
        """Features of every level of the encoder, of each sample; pixels become z-scores."""
        settings = self.settings
        if image.shape[1:3] != (len(settings.phases), 1) or present.shape != image.shape[:2]:
            raise ValueError(
                f"expected phases {settings.phases} of one channel, got an image of "
                f"{tuple(image.shape)} and presence of {tuple(present.shape)}"
            )
        pairs = PresentPairs(present)
        low, high = settings.window_hu
        x = pairs.gather(image) * ((high - low) / settings.std_hu)
        x = x + (low - settings.mean_hu) / settings.std_hu
        self.backbone.check(x)
        if not self.sams:
            return self.backbone.encoder(x)
        last = len(self.sams) - 1

        def fuse(level: int, seen: Tensor) -> tuple[Tensor, Tensor]:
            fused = self.sams[level](seen, pairs)
            return fused, seen if level == last else modulate(seen, fused, pairs)

        return self.backbone.encoder(x, fuse)

    def _gate(self, level: int, skip: Tensor, below: Tensor) -> Tensor:
        """The skip of a level; that of the finest stays as it is."""
        return skip if level == 0 else self.gates[level - 1](skip, below)

    def _refine(self, raw: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """F_i^spa, i = 1 .. L-1, and F_i^sem, i = 0 .. L-2; empty without their module."""
        if self.settings.order == "sem_first":
            sem = self._semantic(raw, raw)
            return self._spatial([*sem, raw[-1]]), sem
        spa = self._spatial(raw)
        return spa, self._semantic([raw[0], *(spa or raw[1:])], raw)

    def _spatial(self, features: list[Tensor]) -> list[Tensor]:
        found: list[Tensor] = []
        for module, finer, coarse in zip(self.spa, features, features[1:], strict=False):
            recursive = self.settings.spa_recursive and found
            found.append(module(coarse, found[-1] if recursive else finer))
        return found

    def _semantic(self, features: list[Tensor], raw: list[Tensor]) -> list[Tensor]:
        weighed = raw if self.settings.sem_input == "raw" else features
        return [
            module(features[i], features[i + 1], weighed[i]) for i, module in enumerate(self.sem)
        ]

    def _loss(
        self, logits: Float[Tensor, "b k _ _ _"], label: Int[Tensor, "b z y x"]
    ) -> Float[Tensor, ""]:
        """Eq. 10 to 12 at the level of the logits."""
        seen = at_level(label, logits.shape[2:])
        settings = self.settings
        parts = []
        if settings.loss != "dice":
            parts.append(cross_entropy(logits, seen))
        if settings.loss != "ce":
            joint, background = settings.dice == "joint", settings.dice_background
            parts.append(squared_dice(logits, seen, joint=joint, background=background))
        return sum(parts[1:], start=parts[0])


def _answers(heads: nn.ModuleList, features: Features) -> Logits:
    return [head(f) for head, f in zip(heads, features, strict=False)]


def at_level(label: Int[Tensor, "b z y x"], size: Sequence[int]) -> Int[Tensor, "b _ _ _"]:
    """Labels at the size of a coarser level: the nearest, of two equally near the later one."""
    steps = [have // want for have, want in zip(label.shape[1:], size, strict=True)]
    z, y, x = (slice(step // 2, None, step) for step in steps)
    return label[:, z, y, x]


def module_parameters(model: Dpcnet) -> dict[str, int]:
    """Parameters of each part, by the names of the paper."""
    parts: dict[str, nn.Module | None] = {
        "backbone": model.backbone,
        "sams": model.sams,
        "heads": model.heads,
        "spacor": model.spa,
        "spacor_heads": model.spa_heads,
        "semcor": model.sem,
        "semcor_heads": model.sem_heads,
        "attention_gates": model.gates,
        "deep_attentive_features": model.daf,
    }
    return parameters_of(parts)
