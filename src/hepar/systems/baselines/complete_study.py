"""What the 2D networks that need every phase have in common: input, loss, probabilities.

MC-FCN, MW-UNet and PA-ResSeg have an encoder for each phase and no way to lack one. As published
they refuse a sample without every phase. With `presence_channel` (ours) an absent phase is an image
of zeros, and each phase has one more channel: 1 where it is there, 0 where it is not.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hepar.losses import cross_entropy, soft_dice
from hepar.systems.base import Batch, InputSpec
from hepar.systems.baselines.complete_study_settings import CompleteStudySettings
from hepar.systems.presence import with_presence


class CompleteStudySystem(nn.Module):
    """A `System` but for its layers and `forward`; logits have the resolution of the image.

    Args:
        settings: of the system.

    Attributes:
        phase_channels: input channels of one phase's encoder.
    """

    class_weights: Tensor | None

    def __init__(self, settings: CompleteStudySettings) -> None:
        super().__init__()
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
            needs_all_phases=not settings.presence_channel,
        )
        self.phase_channels = self.input_spec.channels + settings.presence_channel
        self.adds_dice = settings.loss == "ce_dice"
        weights = settings.class_weights
        self.register_buffer(
            "class_weights", None if weights is None else torch.tensor(weights), persistent=False
        )

    def phase_images(
        self, image: Float[Tensor, "b p c h w"], present: Bool[Tensor, "b p"]
    ) -> list[Float[Tensor, "b c2 h w"]]:
        """The image that each phase's encoder sees.

        Raises:
            ValueError: wrong shapes, a size that is not a multiple of `input_spec.stride`, a sample
                without any phase, or, without presence channels, one that lacks a phase.
        """
        self._check(image, present)
        if self.input_spec.needs_all_phases:
            return list(image.unbind(1))
        return list(with_presence(image, present).unbind(1))

    def targets(self, batch: Batch) -> Int[Tensor, "b h w"]:
        """The label."""
        return batch.label

    def loss(
        self, outputs: Float[Tensor, "b k h w"], targets: Int[Tensor, "b h w"]
    ) -> Float[Tensor, ""]:
        """Cross-entropy, `ce_dice` with 1 - soft Dice added, in float32; -1 is ignored."""
        loss = cross_entropy(outputs, targets, class_weights=self.class_weights)
        return loss + soft_dice(outputs, targets) if self.adds_dice else loss

    def decode(self, outputs: Float[Tensor, "b k h w"]) -> Float[Tensor, "b k h w"]:
        """Probabilities, float32."""
        return outputs.float().softmax(dim=1)

    def _check(self, image: Tensor, present: Tensor) -> None:
        phases, stride = self.input_spec.phases, self.input_spec.stride
        if image.shape[1] != len(phases) or present.shape != image.shape[:2]:
            raise ValueError(
                f"expected {len(phases)} phases {phases}, got an image of "
                f"{tuple(image.shape)} and presence of {tuple(present.shape)}"
            )
        if image.shape[-2] % stride or image.shape[-1] % stride:
            raise ValueError(
                f"image of {tuple(image.shape[-2:])} pixels: both sizes must be multiples of "
                f"{stride}; pad before the network"
            )
        # Read once as Python values: one synchronization a forward pass, constants when traced.
        table: list[list[bool]] = present.tolist()
        if not all(any(row) for row in table):
            raise ValueError("a sample has no phase at all")
        if self.input_spec.needs_all_phases and not all(all(row) for row in table):
            raise ValueError(
                f"this network needs all of {phases}; presence_channel: true makes one that does "
                "not"
            )
