"""Asymmetric contrastive learning (ACL): common types gather, rare lesions keep away from them.

Huang W. et al.: LIDIA, MICCAI 2024, section 2.2, Eq. 3 to 5; Khosla P. et al.: Supervised
Contrastive Learning, NeurIPS 2020, Eq. 2, which Eq. 4 is.

| paper | code | shape |
|---|---|---|
| z(x) | `AsymmetricContrast.project` | ..., D; of length 1 |
| P(x), same label as x | `alike` | n, N |
| A(x), all but x | `others` | n, N |
| A_c(x_r), the common ones | `common` | n, N |
| L(x) (Eq. 4), L(x_r) (Eq. 5) | `contrast` | n |
| memory bank | buffers `bank_z`, `bank_label` | B, D; B |

N are the n lesions of the batch and what the bank holds. An anchor without a positive, or without
a common lesion to keep away from, is left out of the mean of Eq. 3.

Where the paper is silent: the bank gives what was projected then, without a gradient, and takes the
lesions of a batch after they were used; rare lesions stand in the denominators of Eq. 4
(`others_as_negatives`). Eq. 5 may be negative: it lies within log |A_c| -+ 1 / tau.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from hepar.networks.blocks import at_least_float32, full_precision

EMPTY = -1


def contrast(
    z: Float[Tensor, "n d"],
    label: Int[Tensor, "n"],
    bank_z: Float[Tensor, "o d"],
    bank_label: Int[Tensor, "o"],
    *,
    rare: Sequence[int],
    temperature: float,
    others_as_negatives: bool = True,
) -> Float[Tensor, ""]:
    """Eq. 3 over the anchors that have someone to be compared with; 0 where there is none.

    Args:
        z: lesions of the batch, of length 1.
        label: their types.
        bank_z, bank_label: lesions of earlier batches.
        rare: types of Eq. 5; none for Eq. 4 alone.
        temperature: tau.
        others_as_negatives: whether A(x) of common anchors holds rare lesions.
    """
    every, labels = torch.cat([z, bank_z.to(z)]), torch.cat([label, bank_label])
    is_rare = torch.isin(labels, labels.new_tensor(list(rare)))
    anchor_rare = is_rare[: len(z), None]
    own = torch.eye(len(z), len(every), dtype=torch.bool, device=z.device)
    alike = (label[:, None] == labels) & ~own
    common = ~is_rare & ~own
    others = ~own if others_as_negatives else common
    among = torch.where(anchor_rare, common, others)
    valid = torch.where(is_rare[: len(z)], common.any(dim=1), alike.any(dim=1))
    # Rows without any are left out before, not after: the logarithm of an empty sum is -inf.
    similar = (z[valid] @ every.T) / temperature
    losses = similar.masked_fill(~among[valid], -math.inf).logsumexp(dim=1)
    positive = (alike & ~anchor_rare)[valid].to(similar)
    attraction = (similar * positive).sum(dim=1) / positive.sum(dim=1).clamp(min=1.0)
    losses = losses - attraction
    return losses.mean() if len(losses) else z.sum() * 0.0


class AsymmetricContrast(nn.Module):
    """The projection, and the memory bank, which lies in the state of the network.

    Args:
        width: channels of a query.
        projected: D.
        bank: B, lesions that it holds; the oldest leaves first.
        rare: types of Eq. 5; none for Eq. 4 alone.
        temperature: tau.
        others_as_negatives: see `contrast`.
    """

    bank_z: Tensor
    bank_label: Tensor
    bank_next: Tensor

    def __init__(
        self,
        width: int,
        projected: int,
        bank: int,
        *,
        rare: Sequence[int],
        temperature: float,
        others_as_negatives: bool = True,
    ) -> None:
        super().__init__()
        self.rare, self.temperature = tuple(rare), temperature
        self.others_as_negatives = others_as_negatives
        self.projection = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, projected)
        )
        self.register_buffer("bank_z", torch.zeros(bank, projected))
        self.register_buffer("bank_label", torch.full((bank,), EMPTY))
        self.register_buffer("bank_next", torch.zeros((), dtype=torch.long))

    def project(self, states: Float[Tensor, "*n c"]) -> Float[Tensor, "*n d"]:
        """z of query features, of length 1, in float32."""
        return functional.normalize(at_least_float32(self.projection(states)), dim=-1)

    def forward(self, z: Float[Tensor, "n d"], label: Int[Tensor, "n"]) -> Float[Tensor, ""]:
        """L_acl of the lesions of a batch, before they are pushed."""
        known = self.bank_label != EMPTY
        with full_precision(z):
            return contrast(
                z,
                label,
                # Copies, also where all are known: the bank moves on before the backward pass.
                self.bank_z[known],
                self.bank_label[known],
                rare=self.rare,
                temperature=self.temperature,
                others_as_negatives=self.others_as_negatives,
            )

    @torch.no_grad()
    def push(self, z: Float[Tensor, "n d"], label: Int[Tensor, "n"]) -> None:
        """The lesions of a batch take the places of the oldest, first in, first out."""
        size = len(self.bank_label)
        z, label = z[-size:], label[-size:]
        places = (self.bank_next + torch.arange(len(z), device=z.device)) % size
        self.bank_z[places] = z.to(self.bank_z)
        self.bank_label[places] = label
        self.bank_next.copy_((self.bank_next + len(z)) % size)
