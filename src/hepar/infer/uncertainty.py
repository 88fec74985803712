"""How much a network doubts its own answer: one minus M_conf of its class probabilities.

M_conf is Eq. 3 of Zhang Y. et al., MICCAI 2021 (`systems/sam_urim/uncertain_region_inpainting.py`):
1 - exp(1 - p1 / p2), p1 and p2 the largest and the second largest probability. It is taken of
probabilities that were averaged over windows and mirrors, and so once for each voxel.

Differs from the paper: the paper uses M_conf inside the network only. The map shown is that of the
answer given, and, for a network with URIM, that of the answer before inpainting. The M_conf after
the last max pooling, which is a dilation of the first, says how far confidence has spread, not what
the network doubts in the end.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hepar.systems.base import Refining
from hepar.systems.sam_urim.uncertain_region_inpainting import MAX_GAP

INITIAL = "initial "


def uncertainty(
    probability: Float[np.ndarray, "k *shape"], temperature: float = 1.0
) -> Float[np.ndarray, "*shape"]:
    """`exp(1 - (p1 / p2)^(1/T))`, which is 1 - M_conf: 1 for a tie, 0.18 at log odds of 1, then 0.

    Args:
        probability: of two classes or more; a voxel where all are 0 was not seen and has no doubt.
        temperature: T of the calibration. With two classes this is the doubt of the tempered
            probability; with more, all logits are divided by T (Guo et al., ICML 2017).

    Returns:
        float32 in [0, 1]; no NaN, p2 = 0 included.
    """
    best, second = np.full((2, *probability.shape[1:]), np.float32(0))
    for one in probability:
        np.maximum(second, np.minimum(one, best), out=second)
        np.maximum(best, one, out=best)
    floor = np.finfo(np.float32).tiny
    # The quotient as a gap of logits: clamped, it can neither overflow nor divide by zero.
    gap = np.log(np.maximum(best, floor)) - np.log(np.maximum(second, floor))
    found = np.exp(-np.expm1(np.minimum(gap / np.float32(temperature), np.float32(MAX_GAP))))
    found[best == 0] = 0.0
    return np.asarray(found, dtype=np.float32)


class BothAnswers(nn.Module):
    """A `Refining` system as one that gives both its answers, so that one pass averages both.

    Its further classes are the initial ones but the first, which is what they leave: voxels that
    tiling does not show to a network then have an initial answer too, the first class.

    Args:
        system: with `input_spec.refines`; it is kept, not copied.
    """

    def __init__(self, system: nn.Module) -> None:
        super().__init__()
        self.system = system
        spec = cast(Refining, system).input_spec
        names = (*spec.class_names, *(INITIAL + name for name in spec.class_names[1:]))
        self.input_spec = replace(spec, class_names=names)
        self.train(system.training)

    def forward(self, image: Float[Tensor, "b p c *spatial"], present: Bool[Tensor, "b p"]) -> Any:
        """As the system's."""
        return cast(Refining, self.system).forward(image, present)

    def decode(self, outputs: Any) -> Float[Tensor, "b k *spatial"]:
        """Probabilities of the final answer, then those of the initial one without its first."""
        system = cast(Refining, self.system)
        return torch.cat([system.decode(outputs), system.initial(outputs)[:, 1:]], dim=1)


def both_answers(
    found: Float[np.ndarray, "k *shape"],
) -> tuple[Float[np.ndarray, "c *shape"], Float[np.ndarray, "c *shape"]]:
    """Final and initial probabilities out of what tiling made of `BothAnswers`, K each."""
    classes = (len(found) + 1) // 2
    others = found[classes:]
    first = np.maximum(1 - others.sum(axis=0, keepdims=True), 0).astype(np.float32)
    return found[:classes], np.concatenate([first, others])
