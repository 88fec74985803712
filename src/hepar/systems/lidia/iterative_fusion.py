"""Iterative fusion module (IFM): phases join one another in the order of time, whichever exist.

Huang W. et al.: LIDIA, MICCAI 2024, section 2.2, and the fusions of its Table 2, each as the stem
that takes the place of the first stage of an encoder.

| paper | code | shape |
|---|---|---|
| x^p | `image[:, p]` | b, 1, z, y, x |
| F_p, two blocks of convolution, instance norm, leaky ReLU | `features[p]` | m_p, C, z, y, x |
| h^p = F_p(x^p) (Eq. 1) | `extract` | m_p, C, z, y, x |
| F_conv, one block (Eq. 2) | `IterativeFusion.merge` | m, 2C -> m, C |
| h_k^fuse | `fused` in `IterativeFusion.forward` | b, C, z, y, x |

| row of Table 2 | stem | h^p become one by |
|---|---|---|
| Baseline nnU-Net | `EarlyFusion` | none: phases are channels of one F, and all are needed |
| HeMIS (Havaei et al., MICCAI 2016) | `HemisFusion` | mean and variance over phases, one block |
| ConvLSTM (Shi et al., NeurIPS 2015) | `ConvLstmFusion` | gates of one convolution, the last h |
| IFM | `IterativeFusion` | Eq. 2 |

Instance norm looks at one sample, so that a sample of a batch is fused as it would be alone. Absent
phases are not computed.

Differs from the paper: any subset of the phases; Eq. 2 begins with the first phase that a sample
has, which is the non-contrast one in the paper.

Where the paper is silent: Eq. 2 carries no index at F_conv, so that its weights are those of every
step (`share_conv`; without, each phase but the first has its own). HeMIS divides its variance by
n - 1, and one phase has none; the fusions compared with see the same F_p. The ConvLSTM begins with
zeros, has no peepholes, as many hidden channels as C, and biases that begin at zero.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hepar.networks.blocks import at_least_float32
from hepar.networks.unet3d import ConvBlocks, Sizes, begin_convolutions
from hepar.systems.presence import PresentPairs

Fusion = Literal["early", "hemis", "convlstm", "ifm"]
Volume = Float[Tensor, "_ c z y x"]


class EarlyFusion(nn.Module):
    """Phases are channels of one F; none may be absent.

    Args:
        phases: P.
        width: C.
        kernel: of the convolutions, (z, y, x).
    """

    needs_all_phases = True

    def __init__(self, phases: int, width: int, kernel: Sizes) -> None:
        super().__init__()
        self.features = ConvBlocks(phases, width, "instance", kernel)

    def forward(
        self, image: Float[Tensor, "b p 1 z y x"], present: Bool[Tensor, "b p"]
    ) -> Float[Tensor, "b c z y x"]:
        """Features of all phases together.

        Raises:
            ValueError: a sample lacks a phase.
        """
        # Read once as Python values: one synchronization a forward pass, constants when traced.
        if not all(all(row) for row in present.tolist()):
            raise ValueError(f"early fusion needs all of its {present.shape[1]} phases")
        return self.features(image.squeeze(2))


class PhaseFeatures(nn.Module):
    """F_p of every phase (Eq. 1), and a way to make one of them, which a subclass says.

    Args:
        phases: P.
        width: C.
        kernel: of the convolutions, (z, y, x).
    """

    needs_all_phases = False

    def __init__(self, phases: int, width: int, kernel: Sizes) -> None:
        super().__init__()
        self.features = nn.ModuleList(
            ConvBlocks(1, width, "instance", kernel) for _ in range(phases)
        )

    def extract(
        self, image: Float[Tensor, "b p 1 z y x"], pairs: PresentPairs, phase: int
    ) -> Float[Tensor, "m c z y x"]:
        """h^p of the samples that hold phase p (Eq. 1)."""
        if image.shape[1] != len(self.features):
            raise ValueError(f"expected {len(self.features)} phases, got {image.shape[1]}")
        return self.features[phase](pairs.of_phase(image[:, phase], phase))


class IterativeFusion(PhaseFeatures):
    """IFM: `h_{k+1} = F_conv(cat(h_k, h^p))` over the phases that a sample has (Eq. 2).

    Args:
        phases: P.
        width: C.
        kernel: of the convolutions, (z, y, x).
        share_conv: one F_conv for every step; False gives each phase but the first its own.
    """

    def __init__(
        self, phases: int, width: int, kernel: Sizes = (3, 3, 3), *, share_conv: bool = True
    ) -> None:
        super().__init__(phases, width, kernel)
        # A model of one phase has nothing to fuse.
        steps = min(1, phases - 1) if share_conv else phases - 1
        self.merge = nn.ModuleList(
            ConvBlocks(2 * width, width, "instance", kernel, blocks=1) for _ in range(steps)
        )

    def forward(
        self, image: Float[Tensor, "b p 1 z y x"], present: Bool[Tensor, "b p"]
    ) -> Float[Tensor, "b c z y x"]:
        """The last h^fuse of each sample.

        Raises:
            ValueError: a sample without any phase, or another number of phases.
        """
        pairs = PresentPairs(present)
        rows: list[list[bool]] = present.tolist()
        fused: Tensor | None = None
        for phase, count in enumerate(pairs.counts):
            if not count:
                continue
            h = self.extract(image, pairs, phase)
            if fused is None:
                fused = pairs.spread(h, phase, fill=0.0)
                continue
            begun = [any(row[:phase]) for row in rows if row[phase]]
            h = self.joined(pairs.of_phase(fused, phase), h, begun, phase)
            fused = pairs.replace(fused, h, phase)
        assert fused is not None
        return fused

    def joined(self, fused: Volume, h: Volume, begun: list[bool], phase: int) -> Volume:
        """Eq. 2 for the samples that have begun; the others begin with h^p.

        Args:
            fused: h_k of the samples that hold the phase.
            h: their h^p.
            begun: whether a sample had an earlier phase.
            phase: p, above 0.
        """
        merge = self.merge[min(phase, len(self.merge)) - 1]
        if all(begun):
            return merge(torch.cat([fused, h], dim=1))
        if not any(begun):
            return h
        at = torch.tensor([n for n, b in enumerate(begun) if b], device=h.device)
        both = torch.cat([fused, h], dim=1).index_select(0, at)
        return h.index_copy(0, at, merge(both))


class HemisFusion(PhaseFeatures):
    """HeMIS: mean and variance of h^p over the phases that a sample has, then one block.

    Args:
        phases: P.
        width: C.
        kernel: of the convolutions, (z, y, x).
    """

    def __init__(self, phases: int, width: int, kernel: Sizes) -> None:
        super().__init__(phases, width, kernel)
        self.merge = ConvBlocks(2 * width, width, "instance", kernel, blocks=1)

    def forward(
        self, image: Float[Tensor, "b p 1 z y x"], present: Bool[Tensor, "b p"]
    ) -> Float[Tensor, "b c z y x"]:
        """F of both moments; the variance of one phase is 0.

        Raises:
            ValueError: a sample without any phase, or another number of phases.
        """
        pairs = PresentPairs(present)
        held = [phase for phase, count in enumerate(pairs.counts) if count]
        found = {phase: self.extract(image, pairs, phase) for phase in held}
        n = present.sum(dim=1).to(found[held[0]].dtype).view(-1, 1, 1, 1, 1)
        mean = sum_over(found, pairs) / n
        away = {p: (h - pairs.of_phase(mean, p)).square() for p, h in found.items()}
        variance = sum_over(away, pairs) / (n - 1).clamp(min=1)
        return self.merge(torch.cat([mean, variance], dim=1))


class ConvLstmFusion(PhaseFeatures):
    """ConvLSTM over the phases that a sample has, in their order; the last hidden state.

    Args:
        phases: P.
        width: C, of h^p and of the hidden state.
        kernel: of the convolutions, (z, y, x).
    """

    def __init__(self, phases: int, width: int, kernel: Sizes) -> None:
        super().__init__(phases, width, kernel)
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.gates = nn.Conv3d(2 * width, 4 * width, kernel, padding=padding)

    def forward(
        self, image: Float[Tensor, "b p 1 z y x"], present: Bool[Tensor, "b p"]
    ) -> Float[Tensor, "b c z y x"]:
        """`c = f c + i g`, `h = o tanh(c)`, from zeros, of each phase that a sample has.

        Raises:
            ValueError: a sample without any phase, or another number of phases.
        """
        pairs = PresentPairs(present)
        state: tuple[Tensor, Tensor] | None = None
        for phase, count in enumerate(pairs.counts):
            if not count:
                continue
            x = self.extract(image, pairs, phase)
            if state is None:
                zeros = at_least_float32(x).new_zeros((pairs.batch, *x.shape[1:]))
                state = zeros, zeros
            before = [pairs.of_phase(s, phase) for s in state]
            after = self.step(x, before[0], before[1])
            hidden, cell = (pairs.replace(s, a, phase) for s, a in zip(state, after, strict=True))
            state = hidden, cell
        assert state is not None
        return state[0]

    def step(self, x: Volume, hidden: Volume, cell: Volume) -> tuple[Volume, Volume]:
        """Hidden state and cell after one phase."""
        gates = at_least_float32(self.gates(torch.cat([x, hidden], dim=1)))
        into, forget, out, new = gates.chunk(4, dim=1)
        cell = forget.sigmoid() * cell + into.sigmoid() * new.tanh()
        return out.sigmoid() * cell.tanh(), cell


def sum_over(found: dict[int, Volume], pairs: PresentPairs) -> Float[Tensor, "b c z y x"]:
    """The sum of each sample over the phases that it has."""
    spread = [pairs.spread(h, phase, fill=0.0) for phase, h in found.items()]
    return sum(spread[1:], start=spread[0])


def build_stem(
    fusion: Fusion,
    phases: int,
    width: int,
    *,
    kernel: Sizes = (3, 3, 3),
    share_conv: bool = True,
) -> nn.Module:
    """The stem of a fusion, as new.

    Args:
        fusion: a row of Table 2.
        phases: P, all that the model knows.
        width: C.
        kernel: of the convolutions, (z, y, x), odd.
        share_conv: of IFM.

    Returns:
        A module whose `forward(image, present)` gives (b, C, z, y, x) for z-scores
        (b, P, 1, z, y, x), and whose `needs_all_phases` says whether none may be absent.
    """
    stem: nn.Module
    if fusion == "ifm":
        stem = IterativeFusion(phases, width, kernel, share_conv=share_conv)
    else:
        kinds = {"early": EarlyFusion, "hemis": HemisFusion, "convlstm": ConvLstmFusion}
        stem = kinds[fusion](phases, width, kernel)
    begin_convolutions(stem)  # as the stage of an encoder that it takes the place of
    return stem
