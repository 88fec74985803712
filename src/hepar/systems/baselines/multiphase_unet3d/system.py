"""Multi-phase 3D U-Net: liver and tumor in one pass over any subset of the phases.

Not from a paper: a 3D U-Net (`networks/unet3d.py`) behind a stem that mixes the phases voxel by
voxel. It sees the whole box around the liver, unmasked, and learns what lies outside the liver from
the labels; where the coarse liver mask was wrong, it can disagree.

| symbol | code | shape |
|---|---|---|
| image | `image` | (b, p, c, z, y, x), windows in [0, 1] |
| mixed phases | `mix` | (b, w, z, y, x): 1x1x1 convolution plus a bias that the presence chooses |
| logits | `forward` | (b, 3, z, y, x): background, liver, tumor |
| loss | `loss` | cross entropy, small lesions weighted up, plus 1 - soft Dice |

An absent phase is the same as a network without that phase's channels: its input is zero and its
row of the presence bias is not added. Instance norm would undo a constant presence channel; the
bias comes before a rectifier, so that it survives.

With `urim` the logits are initial ones, and a 3D URIM refines them from the features before the
head; both are trained with equal weights, as in Zhang Y. et al., MICCAI 2021. Its BatchNorm sees
whole patches, absent phases already dealt with.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from hepar.losses import IGNORED, soft_dice
from hepar.networks.blocks import at_least_float32, full_precision
from hepar.networks.unet3d import UNet3d
from hepar.systems.base import Batch, InputSpec
from hepar.systems.baselines.multiphase_unet3d.settings import MultiphaseUnet3dSettings
from hepar.systems.sam_urim.uncertain_region_inpainting import UncertainRegionInpainting

CLASSES = ("background", "liver", "tumor")
TUMOR = CLASSES.index("tumor")


@dataclass(frozen=True)
class Targets:
    """What the loss compares with.

    Attributes:
        label: class index, -1 ignored.
        weight: of each voxel in the cross entropy.
    """

    label: Int[Tensor, "b z y x"]
    weight: Float[Tensor, "b z y x"]


@dataclass(frozen=True)
class Refined:
    """Logits at input resolution of a network with URIM.

    Attributes:
        initial: of the U-Net.
        final: of URIM.
    """

    initial: Float[Tensor, "b k z y x"]
    final: Float[Tensor, "b k z y x"]


Outputs = Float[Tensor, "b k z y x"] | Refined


def lesion_weights(
    label: Int[Tensor, "b z y x"], voxel_ml: float, small_ml: float, most: float
) -> Float[Tensor, "b z y x"]:
    """1 for every voxel but those of small lesions: `min(sqrt(small_ml / volume_ml), most)`.

    A lesion is a 26-connected component of tumor within the patch. Weighting by inverse lesion size
    follows Shirokikh et al., "Universal Loss Reweighting to Balance Lesion Size Inequality in 3D
    Medical Image Segmentation", MICCAI 2020; the square root and the cap are ours.
    """
    tumor = (label == TUMOR).cpu().numpy()
    weight = np.ones(tumor.shape, np.float32)
    for mask, row in zip(tumor, weight, strict=True):
        pieces, count = ndimage.label(mask, np.ones((3, 3, 3)))
        if count == 0 or small_ml == 0:
            continue
        volume_ml = np.maximum(np.bincount(pieces.ravel()) * voxel_ml, 1e-9)
        factor = np.clip(np.sqrt(small_ml / volume_ml), 1.0, most).astype(np.float32)
        factor[0] = 1.0
        row *= factor[pieces]
    return torch.from_numpy(weight).to(label.device)


class MultiphaseUnet3d(nn.Module):
    """The multi-phase tumor system.

    Args:
        settings: phases, widths, windows, spacing.
    """

    def __init__(self, settings: MultiphaseUnet3dSettings) -> None:
        super().__init__()
        self.settings = settings
        self.input_spec = InputSpec(
            dims=3,
            phases=settings.phases,
            class_names=CLASSES,
            windows_hu=settings.windows_hu,
            slice_offsets_mm=(0.0,),
            spacing_mm=settings.spacing_mm,
            patch=settings.patch,
            stride=2 ** (len(settings.widths) - 1),
            needs_liver=False,
            window=settings.window,
            refines=settings.urim,
        )
        self.voxel_ml = float(np.prod(settings.spacing_mm)) / 1000.0
        phases, width = len(settings.phases), settings.widths[0]
        self.mix = nn.Conv3d(phases * len(settings.windows_hu), width, 1)
        self.presence = nn.Linear(phases, width, bias=False)
        self.trunk = UNet3d(width, len(CLASSES), settings.widths)
        # Gradients flow through M, so the head keeps PyTorch's start: near 0 they would explode.
        self.urim = (
            UncertainRegionInpainting(len(CLASSES), width, dims=3, width=settings.urim_width)
            if settings.urim
            else None
        )

    def targets(self, batch: Batch) -> Targets:
        """Labels, and the weight of each voxel."""
        s = self.settings
        weight = lesion_weights(batch.label, self.voxel_ml, s.small_lesion_ml, s.most_weight)
        return Targets(batch.label.long(), weight)

    def forward(self, image: Float[Tensor, "b p c z y x"], present: Bool[Tensor, "b p"]) -> Outputs:
        """Logits at input resolution; both with URIM."""
        absent = ~present[:, :, None, None, None, None]
        mixed = self.mix(image.masked_fill(absent, 0.0).flatten(1, 2))
        bias = self.presence(present.to(self.presence.weight.dtype))
        mixed = mixed + bias[:, :, None, None, None].to(mixed.dtype)
        mixed = functional.leaky_relu(mixed, 0.01)
        if self.urim is None:
            return self.trunk(mixed)
        features = self.trunk.features(mixed)
        initial = self.trunk.head(features)
        return Refined(initial, self.urim(initial, features).logits)

    def loss(self, outputs: Outputs, targets: Targets) -> Float[Tensor, ""]:
        """Weighted cross entropy plus soft Dice of liver and tumor, in float32.

        `L = sum_i w_i CE_i / sum_i w_i + 1 - mean_k Dice_k` over voxels with a label. With URIM it
        is `L_init + L_final`.
        """
        if isinstance(outputs, Refined):
            return self._loss(outputs.initial, targets) + self._loss(outputs.final, targets)
        return self._loss(outputs, targets)

    def _loss(self, raw: Float[Tensor, "b k z y x"], targets: Targets) -> Float[Tensor, ""]:
        with full_precision(raw):
            logits = at_least_float32(raw)
            entropy = functional.cross_entropy(
                logits, targets.label, ignore_index=IGNORED, reduction="none"
            )
            weight = targets.weight.to(logits) * (targets.label != IGNORED)
            mean = (entropy * weight).sum() / weight.sum().clamp(min=1.0)
            return mean + soft_dice(logits, targets.label)

    def decode(self, outputs: Outputs) -> Float[Tensor, "b k z y x"]:
        """Class probabilities, float32, of the final logits."""
        logits = outputs.final if isinstance(outputs, Refined) else outputs
        return logits.float().softmax(1)

    def initial(self, outputs: Outputs) -> Float[Tensor, "b k z y x"]:
        """As `decode`, of the logits that URIM was given."""
        logits = outputs.initial if isinstance(outputs, Refined) else outputs
        return logits.float().softmax(1)
