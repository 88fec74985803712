"""Coarse liver network with organ context: where is the liver, at 5 mm, in any phase.

Not from a paper: a 3D U-Net (`networks/unet3d.py`) on two windows of one phase, eleven classes.
The context classes are there because a network that must name spleen, heart, gut and lung does not
mistake them for liver; only channel 1 is used afterwards.

| symbol | code | shape |
|---|---|---|
| image | `image` | (b, 1, 2, z, y, x), soft-tissue and wide window in [0, 1] |
| logits | `forward` | (b, 11, z, y, x) |
| loss | `loss` | cross entropy + 1 - weighted mean soft Dice |
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from hepar.losses import cross_entropy
from hepar.networks.unet3d import UNet3d
from hepar.systems.base import Batch, InputSpec
from hepar.systems.baselines.context_unet3d.settings import CONTEXT_CLASSES, ContextUnet3dSettings


def weighted_dice(
    logits: Float[Tensor, "b k *spatial"],
    label: Int[Tensor, "b *spatial"],
    weights: Float[Tensor, " k"],
) -> Float[Tensor, ""]:
    """One minus the weighted mean soft Dice of the classes that the batch contains.

    Sums run over the whole batch, so that a crop with a sliver of liver does not dominate. Voxels
    labelled -1 count nowhere; a class without a voxel is left out of the mean, because its Dice
    would only punish noise.
    """
    known = (label >= 0).unsqueeze(1)
    probability = logits.float().softmax(1) * known
    target = functional.one_hot(label.clamp(min=0).long(), logits.shape[1]).movedim(-1, 1) * known
    axes = (0, *range(2, logits.ndim))
    size = target.sum(axes).float()
    overlap = (probability * target).sum(axes)
    dice = (2 * overlap + 1) / (probability.sum(axes) + size + 1)
    used = weights * (size > 0)
    return 1 - (dice * used).sum() / used.sum().clamp(min=1e-6)


class ContextUnet3d(nn.Module):
    """The coarse liver system.

    Args:
        settings: widths, windows, spacing.
    """

    class_weights: Tensor

    def __init__(self, settings: ContextUnet3dSettings) -> None:
        super().__init__()
        self.settings = settings
        self.input_spec = InputSpec(
            dims=3,
            phases=(settings.reference_phase,),
            class_names=CONTEXT_CLASSES,
            windows_hu=settings.windows_hu,
            slice_offsets_mm=(0.0,),
            spacing_mm=settings.spacing_mm,
            patch=settings.patch,
            stride=2 ** (len(settings.widths) - 1),
            needs_liver=False,
        )
        self.trunk = UNet3d(len(settings.windows_hu), len(CONTEXT_CLASSES), settings.widths)
        weights = torch.ones(len(CONTEXT_CLASSES))
        weights[CONTEXT_CLASSES.index("liver")] = settings.liver_weight
        self.register_buffer("class_weights", weights, persistent=False)

    def targets(self, batch: Batch) -> Int[Tensor, "b z y x"]:
        """Class index of every voxel; -1 is ignored."""
        return batch.label.long()

    def forward(
        self, image: Float[Tensor, "b p c z y x"], present: Bool[Tensor, "b p"]
    ) -> Float[Tensor, "b k z y x"]:
        """Logits; zero for a sample whose one phase is absent, which never enters the trunk."""
        # Read once as Python values: one synchronization a forward pass, constants when traced.
        known = [row[0] for row in present.tolist()]
        if all(known):
            return self.trunk(image[:, 0])
        logits = image.new_zeros((image.shape[0], len(CONTEXT_CLASSES), *image.shape[3:]))
        rows = present[:, 0]
        if any(known):
            logits[rows] = self.trunk(image[rows, 0]).to(logits.dtype)
        return logits

    def loss(
        self, outputs: Float[Tensor, "b k z y x"], targets: Int[Tensor, "b z y x"]
    ) -> Float[Tensor, ""]:
        """Cross entropy plus weighted soft Dice, in float32."""
        logits = outputs.float()
        return cross_entropy(logits, targets) + weighted_dice(logits, targets, self.class_weights)

    def decode(self, outputs: Float[Tensor, "b k z y x"]) -> Float[Tensor, "b k z y x"]:
        """Class probabilities, float32."""
        return outputs.float().softmax(1)
