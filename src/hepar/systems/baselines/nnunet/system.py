"""nnU-Net: a plain 3D U-Net, as wide, deep and anisotropic as its plan says.

Isensee F. et al.: nnU-Net: a self-configuring method for deep learning-based biomedical image
segmentation, Nature Methods 18, 2021, Methods and Supplementary Note 2. Compared with in DPC-Net,
Table 5, and LIDIA.

| nnU-Net | code | shape |
|---|---|---|
| z-scores of clipped HU | `z_scores` | b, p, 1, z, y, x |
| first level, of any phases | `stem` (`lidia/iterative_fusion.py`) | b, C_0, z, y, x |
| features of each level of the decoder | `trunk` (`networks/unet3d.py`) | b, C_i, size / strides |
| logits of level i | `forward`, `heads` | b, K, size / strides |
| loss | `loss`: sum of w_i (CE + Dice), w_i = 1/2^i, normalized, the coarsest dropped | |

Several phases are channels of the input (early concatenation), so that none may be absent:
`E_PHASES_REQUIRED`. LIDIA's Table 2 compares fusions on it, whose stem takes the place of the first
level and any phases. Of LIDIA each type of lesion is a class.

Differs from nnU-Net: the coarsest level of the decoder, which has weight 0 there, has no head here,
or one that is trained (`coarsest_head`): LIDIA's parameters count it, and none is idle here. The
image arrives clipped and scaled to [0, 1] by the widest window of the phases, is clipped to each
phase's own, and is turned into z-scores here: augmentation comes before, not after, and changes
[0, 1]. Cases are never resampled to slices thinner than their own.
Batch, optimizer, over-sampling of foreground, augmentation and the blending of windows are the
recipe's. No ensemble, no mirroring at use, no removal of all but the largest component.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hepar.losses import cross_entropy, soft_dice
from hepar.networks.blocks import parameters_of
from hepar.networks.unet3d import PyramidUNet3d, begin_convolutions
from hepar.study import LESION_TYPES
from hepar.systems.base import Batch
from hepar.systems.baselines.nnunet.settings import NnunetSettings
from hepar.systems.lidia.iterative_fusion import build_stem
from hepar.systems.planned_network import ZScores, check_image, planned_spec

CLASSES = {
    "tumor": ("background", "liver", "tumor"),
    "types": ("background", *LESION_TYPES, "liver"),
}
Pyramid = list[Float[Tensor, "b k _ _ _"]]


class Nnunet(nn.Module):
    """The network and its loss.

    Args:
        settings: a plan.

    Attributes:
        weights: of the loss at each supervised level, finest first.
    """

    def __init__(self, settings: NnunetSettings) -> None:
        super().__init__()
        self.settings = settings
        classes = CLASSES[settings.classes]
        self.stem: nn.Module | None = None
        if settings.fusion != "channels":
            self.stem = build_stem(
                settings.fusion,
                len(settings.phases),
                settings.channels[0],
                kernel=settings.kernels[0],
            )
        self.input_spec = planned_spec(settings, classes, needs_all_phases=self.stem is None)
        self.z_scores = ZScores(settings)
        self.trunk = PyramidUNet3d(
            len(settings.phases) if self.stem is None else None,
            settings.channels,
            norm="instance",
            down="strided",
            strides=settings.strides,
            kernels=settings.kernels,
        )
        levels = len(self.trunk.widths) if settings.deep_supervision else 1
        self.weights = level_weights(levels, coarsest=settings.coarsest_head)
        widths = self.trunk.widths[: len(self.weights)]
        heads = [nn.Conv3d(width, len(classes), 1) for width in widths]
        self.heads = nn.ModuleList(heads)
        begin_convolutions(self.heads)

    def targets(self, batch: Batch) -> list[Int[Tensor, "b _ _ _"]]:
        """The label at each supervised level; of 2 voxels along an axis the second is taken."""
        # As nnU-Net, which down-samples to the nearest voxel center and rounds up.
        labels, at = [batch.label], [1, 1, 1]
        for step in self.settings.strides[: len(self.weights) - 1]:
            at = [n * s for n, s in zip(at, step, strict=True)]
            z, y, x = (slice(n // 2, None, n) for n in at)
            labels.append(batch.label[:, z, y, x])
        return labels

    def forward(self, image: Float[Tensor, "b p 1 z y x"], present: Bool[Tensor, "b p"]) -> Pyramid:
        """Logits of each supervised level, finest first.

        Raises:
            ValueError: wrong shapes, a spatial size that is not a multiple of the strides, or a
                sample that lacks a phase, without a stem, or all of them.
        """
        phases = self.settings.phases
        check_image(self.settings, image, present)
        scores = self.z_scores(image)
        if self.stem is not None:
            features = self.trunk(self.stem(scores, present))
        # Read once as Python values: one synchronization a forward pass, constants when traced.
        elif all(all(row) for row in present.tolist()):
            features = self.trunk(scores.squeeze(2))
        else:
            raise ValueError(f"this network needs all of {phases}")
        return [head(x) for head, x in zip(self.heads, features, strict=False)]

    def loss(
        self, outputs: Pyramid, targets: Sequence[Int[Tensor, "b _ _ _"]]
    ) -> Float[Tensor, ""]:
        """Weighted sum over levels of cross-entropy + 1 - soft Dice; float32, -1 is ignored.

        Raises:
            ValueError: not as many labels as logits.
        """
        smooth, per_sample = self.settings.dice_smooth, not self.settings.batch_dice
        losses = [
            weight
            * (
                cross_entropy(logits, label)
                + soft_dice(logits, label, smooth=smooth, per_sample=per_sample)
            )
            for weight, logits, label in zip(self.weights, outputs, targets, strict=True)
        ]
        return torch.stack(losses).sum()

    def decode(self, outputs: Pyramid) -> Float[Tensor, "b k z y x"]:
        """Probabilities of the finest level, float32."""
        return outputs[0].float().softmax(dim=1)


def level_weights(levels: int, *, coarsest: bool = False) -> tuple[float, ...]:
    """1/2^i of each level, the coarsest too or not, summing to 1; of a level alone it is 1."""
    raw = [0.5**level for level in range(levels if coarsest else max(1, levels - 1))]
    return tuple(weight / sum(raw) for weight in raw)


def module_parameters(model: Nnunet) -> dict[str, int]:
    """Parameters of each part."""
    parts: dict[str, nn.Module | None] = {
        "stem": model.stem,
        "encoder": model.trunk.encoder,
        "decoder": model.trunk.decoder,
        "heads": model.heads,
    }
    return parameters_of(parts)
