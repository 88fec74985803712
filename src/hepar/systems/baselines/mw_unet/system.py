"""MW-UNet: one U-Net encoder a phase, features fused by a trained weight a phase and level.

Wu Y., Zhou Q., Hu H., Rong G., Li Y., Wang S.: Hepatic lesion segmentation by combining plain and
contrast-enhanced CT images with modality weighted U-Net, ICIP 2019, pp. 255-259 (the fusion of its
method section). Compared with in Zhang Y. et al., MICCAI 2021 (SAM + URIM), Tables 1 and 2, which
says that it "trained a specific weight value for each phase at multiple layers of the U-Net".

| symbol | code | shape, level i = 1..5 |
|---|---|---|
| F_ip, encoder of phase p | `encoders[p].stage(i, .)` | b, C 2^(i-1), H/2^(i-1), W/2^(i-1) |
| a_ip | `weights[i - 1, p]` | scalar, starts at 1/P |
| F_i = sum_p a_ip F_ip | `weighted_sum` | as F_ip |
| decoder | `decoder` | b, C, H, W |
| logits | `forward` | b, K, H, W |

Differs from the paper: its text was not at hand, only what SAM + URIM and later work say of it.
The phases are those of that comparison, ART and PV (the paper's title says plain and enhanced). The
loss is cross-entropy, as in the comparison.

Where the sources are silent: every level is fused, the deepest as well; the weights are free (no
softmax, no sign); encoders are not modified by what is fused; one decoder; C = 32 (the abstract of
the journal version says fewer channels and levels than U-Net's; five levels are kept); BatchNorm; 3
adjacent slices. The journal version (Medical Physics 2022: residual blocks, fusion attention) is
not this network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hepar.networks.blocks import parameters_of
from hepar.networks.unet2d import GROWTH, UNetDecoder, UNetTrunk
from hepar.systems.baselines.complete_study import CompleteStudySystem
from hepar.systems.baselines.mw_unet.settings import MwUnetSettings


def weighted_sum(
    features: Sequence[Float[Tensor, "b c h w"]], weights: Float[Tensor, "p"]
) -> Float[Tensor, "b c h w"]:
    """`F_i = sum_p a_ip F_ip`."""
    terms = [weight * x for weight, x in zip(weights.unbind(), features, strict=True)]
    return torch.stack(terms).sum(dim=0)


class MwUnet(CompleteStudySystem):
    """The network.

    Args:
        settings: all switches.
    """

    def __init__(self, settings: MwUnetSettings) -> None:
        super().__init__(settings)
        phases = len(settings.phases)
        self.encoders = nn.ModuleList(
            UNetTrunk(self.phase_channels, settings.base_width) for _ in range(phases)
        )
        self.weights = nn.Parameter(torch.full((len(GROWTH), phases), 1.0 / phases))
        self.decoder = UNetDecoder([settings.base_width * growth for growth in GROWTH])
        self.classifier = nn.Conv2d(settings.base_width, len(settings.class_names), 1)

    def forward(
        self, image: Float[Tensor, "b p c h w"], present: Bool[Tensor, "b p"]
    ) -> Float[Tensor, "b k h w"]:
        """Logits.

        Raises:
            ValueError: see `phase_images`.
        """
        encoders = cast("list[UNetTrunk]", list(self.encoders))
        streams = self.phase_images(image, present)
        fused = []
        for level, weights in enumerate(self.weights, start=1):
            streams = [e.stage(level, x) for e, x in zip(encoders, streams, strict=True)]
            fused.append(weighted_sum(streams, weights))
        return self.classifier(self.decoder(fused))


def module_parameters(model: MwUnet) -> dict[str, int]:
    """Parameters of each part."""
    parts = {"encoders": model.encoders, "decoder": model.decoder, "classifier": model.classifier}
    return parameters_of(parts) | {"weights": model.weights.numel()}
