"""Which phases of which sample exist, and how batches of only the existing ones are made.

Absent (sample, phase) pairs never enter a trunk: the present pairs are gathered into one batch,
`n` pairs ordered by phase and then by sample, so that the pairs of a phase lie side by side.
Values are selected, never multiplied by a mask, so that nothing an absent phase holds, NaN
included, reaches an output, a gradient or a BatchNorm statistic.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class PresentPairs:
    """The present (sample, phase) pairs of a batch.

    Args:
        present: which phases of which sample exist.
        copies: rows that stand for each sample, side by side: its slices, each by itself.

    Attributes:
        present: the table itself, a row for each copy.
        batch: samples.
        phases: phases of the model.
        counts: samples that hold each phase.

    Raises:
        ValueError: a sample without any phase.
    """

    def __init__(self, present: Bool[Tensor, "b p"], copies: int = 1) -> None:
        # Read once as Python values: one synchronization a forward pass, constants when traced.
        table: list[list[bool]] = [row for row in present.tolist() for _ in range(copies)]
        empty = [sample for sample, row in enumerate(table) if not any(row)]
        if empty:
            raise ValueError(f"samples {empty} of {len(table)} have no phase at all")
        self.present = present if copies == 1 else present.repeat_interleave(copies, dim=0)
        self.batch, self.phases = self.present.shape
        members = [
            [sample for sample in range(self.batch) if table[sample][phase]]
            for phase in range(self.phases)
        ]
        self.counts = [len(samples) for samples in members]
        self._members = [torch.tensor(m, dtype=torch.long, device=present.device) for m in members]

    def gather(self, x: Float[Tensor, "b p *rest"]) -> Float[Tensor, "n *rest"]:
        """The present pairs as one batch."""
        return torch.cat([self.of_phase(x[:, phase], phase) for phase in range(self.phases)])

    def split(self, pairs: Float[Tensor, "n *rest"]) -> Sequence[Float[Tensor, "_ *rest"]]:
        """The pairs of each phase; views."""
        return pairs.split(self.counts)

    def of_phase(self, x: Float[Tensor, "b *rest"], phase: int) -> Float[Tensor, "m *rest"]:
        """The samples that hold a phase."""
        if self.counts[phase] == self.batch:
            return x
        return x.index_select(0, self._members[phase])

    def spread(
        self, x: Float[Tensor, "m *rest"], phase: int, *, fill: float
    ) -> Float[Tensor, "b *rest"]:
        """The inverse of `of_phase`: samples without the phase are filled."""
        if self.counts[phase] == self.batch:
            return x
        whole = x.new_full((self.batch, *x.shape[1:]), fill)
        return whole.index_copy(0, self._members[phase], x)

    def replace(
        self, whole: Float[Tensor, "b *rest"], x: Float[Tensor, "m *rest"], phase: int
    ) -> Float[Tensor, "b *rest"]:
        """`whole` with other values for the samples that hold a phase."""
        if self.counts[phase] == self.batch:
            return x
        return whole.index_copy(0, self._members[phase], x)

    def repeat(self, x: Float[Tensor, "b *rest"]) -> Float[Tensor, "n *rest"]:
        """What belongs to a sample, once for each of its pairs."""
        return torch.cat([self.of_phase(x, phase) for phase in range(self.phases)])


def with_presence(
    image: Float[Tensor, "b p c *spatial"], present: Bool[Tensor, "b p"]
) -> Float[Tensor, "b p c2 *spatial"]:
    """Absent phases as zeros, and one more channel a phase: 1 where it is there, 0 where not.

    Ours: how a network that cannot lack a phase as published is given one that is absent.
    """
    there = present.reshape(*present.shape, *([1] * (image.ndim - 2)))
    # Selected, not multiplied: what an absent phase holds may be NaN.
    known = image.masked_fill(~there, 0.0)
    return torch.cat([known, there.to(image.dtype).expand(-1, -1, 1, *image.shape[3:])], dim=2)
