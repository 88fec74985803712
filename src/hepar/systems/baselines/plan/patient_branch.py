"""The patient branch of PLAN: does what is seen hold a lesion of a type, wherever it lies?

Yan K. et al.: Liver Tumor Screening and Diagnosis in CT with Pixel-Lesion-Patient Network, MICCAI
2023, the image-wise classifier: four blocks of cross-attention, 192 memory tokens of 128 channels
from the maps at strides 4 and 16, eleven outputs.

| | code | shape |
|---|---|---|
| memory tokens of a map | `PatientBranch.memory` | b, 192, 128 |
| one token for each output | `tokens`, `positions` | 11, 128 |
| blocks | `blocks` (`lidia/mask_transformer.py`) | b, 11, 128 |
| logits | `PatientBranch.forward` | b, 11 |

Where the paper is silent: each output has a token of its own, which looks at the coarser map first
and then at both in turn; a map is averaged over a grid of 4 x 6 x 8 places, which are as many as
there are tokens and as there are cells of 32 voxels in a patch of 128 x 192 x 256, so that windows
of any size have them; positions are sines; and the outputs besides the eight types are three
groups: any lesion, a malignant one, a benign one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from hepar.networks.unet3d import Sizes
from hepar.study import LESION_TYPES
from hepar.systems.lidia.mask_transformer import DecoderLayer, sine_positions

GROUPS = {
    "lesion": LESION_TYPES,
    "malignant": ("hcc", "icc", "metastasis"),
    "benign": ("hemangioma", "fnh", "cyst", "calcification"),
}
OUTPUTS: dict[str, tuple[str, ...]] = {**{name: (name,) for name in LESION_TYPES}, **GROUPS}
"""Of each output, the types of lesions that make it true; the eight types come first."""


class PatientBranch(nn.Module):
    """Tokens that look at the levels of a pixel decoder, and answer.

    Args:
        channels: of those levels.
        width: of tokens.
        heads, feedforward: of a block.
        blocks: how many; block i looks at level i mod `levels`.
        levels: how many are given.
        grid: places that each is averaged over.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        heads: int,
        feedforward: int,
        blocks: int,
        levels: int,
        grid: Sizes,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.memory = nn.ModuleList(nn.Linear(channels, width) for _ in range(levels))
        self.tokens = nn.Parameter(torch.randn(len(OUTPUTS), width))
        self.positions = nn.Parameter(torch.randn(len(OUTPUTS), width))
        self.blocks = nn.ModuleList(DecoderLayer(width, heads, feedforward) for _ in range(blocks))
        self.head = nn.Linear(width, 1)

    def forward(self, levels: Sequence[Float[Tensor, "b c _ _ _"]]) -> Float[Tensor, "b k"]:
        """Logits of `OUTPUTS`.

        Args:
            levels: of the pixel decoder, in the order in which they are looked at.
        """
        pooled = [functional.adaptive_avg_pool3d(x, self.grid) for x in levels]
        memory = [
            project(rearrange(x, "b c z y x -> b (z y x) c"))
            for project, x in zip(self.memory, pooled, strict=True)
        ]
        batch, width = len(levels[0]), self.tokens.shape[1]
        places = sine_positions(self.grid, width).to(memory[0])
        x = self.tokens.repeat(batch, 1, 1)
        where = self.positions.repeat(batch, 1, 1)
        open_ = torch.zeros((batch, len(OUTPUTS), len(places)), dtype=torch.bool, device=x.device)
        for number, block in enumerate(self.blocks):
            x = block(x, where, memory[number % len(memory)], places, open_)
        return self.head(x).squeeze(-1)


def patient_targets(
    label: Int[Tensor, "b z y x"], class_names: Sequence[str]
) -> Float[Tensor, "b k"]:
    """1 for each of `OUTPUTS` of which a sample holds a voxel, else 0.

    Args:
        label: class of each voxel, -1 ignored.
        class_names: of the classes.
    """
    rows = []
    for types in OUTPUTS.values():
        classes = label.new_tensor([class_names.index(name) for name in types])
        rows.append(torch.isin(label, classes).flatten(1).any(dim=1))
    return torch.stack(rows, dim=1).float()
