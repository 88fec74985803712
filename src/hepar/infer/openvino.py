"""OpenVINO in place of eager PyTorch on the CPU; the only file that imports it, when asked.

A network is converted once for each input shape and set of phases. Before it is used it answers the
first piece of a real study that has foreground beside eager PyTorch: where the labels of a class
that either sees differ in more than `FEW_VOXELS` and agree by a Dice below `LEAST_DICE`, PyTorch is
kept and `W_FAST_REFUSED` says so. Until then the answers given are PyTorch's. Conversion costs
seconds, so this pays for many studies in one process, not for one. Networks that make tensors
without elements of an absent phase stay with PyTorch where it is absent: those crash OpenVINO
2026.4.

OpenVINO reports its use over the network by default (`openvino_telemetry`). hepar sends nothing:
that package is kept from being imported, and OpenVINO falls back to its own empty stand-in.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hepar.infer.convolution import SingleSamples
from hepar.infer.tiling import Runner
from hepar.systems.base import System

log = logging.getLogger(__name__)

# In bfloat16 the shipped networks agreed with PyTorch, in 51 windows of four phantom patients, by
# 0.9994 of the liver and more, by 0.9969 of the other organs, and by 0.9959 of tumors of 300 voxels
# and more; of smaller ones 3 voxels or fewer changed, which of 48 voxels is a Dice of 0.97.
LEAST_DICE = 0.995
FEW_VOXELS = 4
Precision = Literal["f32", "bf16"]
_Compiled = Callable[[Tensor], Tensor]
_Key = tuple[tuple[int, ...], tuple[bool, ...]]


@dataclass
class _Known:
    """What is known of one system.

    Attributes:
        state: of its weights; when they change, nothing of this holds.
        compiled: the batch size and the network by the shape of a sample and the phases it holds;
            None where that failed.
        verdicts: whether it agreed with PyTorch, by the same; none before a piece with foreground.
    """

    state: tuple[int, ...]
    compiled: dict[_Key, tuple[int, _Compiled] | None] = field(default_factory=dict)
    verdicts: dict[_Key, bool] = field(default_factory=dict)


class OpenVino:
    """A `Tiling.runner_for` that keeps what it converted for as long as it lives.

    Args:
        precision: of the computation; `bf16` is what the gate is for.
        least_dice: what the labels of each class must agree by.
    """

    def __init__(self, precision: Precision = "f32", least_dice: float = LEAST_DICE) -> None:
        self.precision: Precision = precision
        self.least_dice = least_dice
        self._known: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()

    def __call__(self, system: nn.Module, warn: Callable[[str], None]) -> Runner:
        """Probabilities by OpenVINO, or eager where that fails.

        Args:
            system: a `System` in eval mode on the CPU.
            warn: told `W_FAST_REFUSED`.
        """

        def run(
            image: Float[Tensor, "b p c *spatial"], present: Bool[Tensor, "b p"]
        ) -> Float[Tensor, "b k *spatial"]:
            fast = self._fast(system, image, present)
            if fast is None:
                return _eager(system, image, present)
            verdicts, key = self._known[system].verdicts, _key(image, present)
            if verdicts.get(key):
                return fast
            slow = _eager(system, image, present)
            found = agreement(slow, fast)
            if refused := {n: d for n, d in found.items() if d < self.least_dice}:
                verdicts[key] = False
                warn(_refused(system, self.precision, refused, self.least_dice))
            elif found:
                verdicts[key] = True
                log.info("OpenVINO runs %s in %s", tuple(image.shape), self.precision)
            return slow

        return run

    def _fast(self, system: nn.Module, image: Tensor, present: Tensor) -> Tensor | None:
        """What OpenVINO says; None where it must not or cannot be asked."""
        if image.device.type != "cpu" or not bool((present == present[:1]).all()):
            return None
        state = _state(system)
        known = self._known.get(system)
        if known is None or known.state != state:
            known = self._known[system] = _Known(state)
        key = _key(image, present)
        if known.verdicts.get(key) is False:
            return None
        if key not in known.compiled:
            made = _compile(system, image, present, self.precision)
            known.compiled[key] = None if made is None else (image.shape[0], made)
        entry = known.compiled[key]
        if entry is None or image.shape[0] > entry[0]:
            return None
        # The last batch of a case is smaller; the shape is fixed, so it is filled up.
        count, size = image.shape[0], entry[0]
        filled = torch.cat([image, image[:1].expand(size - count, *image.shape[1:])])
        return entry[1](filled)[:count]


def agreement(
    one: Float[Tensor, "b k *spatial"], other: Float[Tensor, "b k *spatial"]
) -> dict[int, float]:
    """Dice of the labels of two answers, for each class but the first that either sees.

    It counts as 1 where no more than `FEW_VOXELS` differ: of a few voxels, one is a large share.
    """
    a, b = one.argmax(1), other.argmax(1)
    found = {}
    for number in range(1, one.shape[1]):
        mine, theirs = a == number, b == number
        total = int(mine.sum()) + int(theirs.sum())
        if total:
            differ = int((mine ^ theirs).sum())
            found[number] = 1.0 if differ <= FEW_VOXELS else 1 - differ / total
    return found


def _refused(system: nn.Module, precision: Precision, found: dict[int, float], least: float) -> str:
    names = cast(System, system).input_spec.class_names
    worst = min(found, key=lambda number: found[number])
    return (
        f"W_FAST_REFUSED: OpenVINO in {precision} and PyTorch agree about {names[worst]} by a Dice "
        f"of {found[worst]:.4f} only (at least {least}); PyTorch is used"
    )


def _key(image: Tensor, present: Tensor) -> _Key:
    """What a conversion is for; all samples of a batch hold the same phases."""
    return tuple(image.shape[1:]), tuple(present[0].tolist())


def _eager(system: nn.Module, image: Tensor, present: Tensor) -> Tensor:
    with SingleSamples():
        return cast(System, system).decode(cast(System, system).forward(image, present)).float()


def _state(system: nn.Module) -> tuple[int, ...]:
    """Changes whenever weights do, at the cost of a look at each tensor."""
    tensors = [*system.parameters(), *system.buffers()]
    versions = (0 if t.is_inference() else t._version for t in tensors)
    return (*versions, *(t.data_ptr() for t in tensors))


class _Empties(TorchDispatchMode):
    """Whether anything computed within this block has no elements."""

    seen = False

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The call as it is."""
        found = func(*args, **(kwargs or {}))
        every = found if isinstance(found, tuple | list) else (found,)
        self.seen |= any(isinstance(value, Tensor) and not value.numel() for value in every)
        return found


class _Fixed(nn.Module):
    """The system with the same phases present in every sample: image to probabilities."""

    def __init__(self, system: nn.Module, present: Tensor) -> None:
        super().__init__()
        self.system = system
        self.present = present

    def forward(self, image: Tensor) -> Tensor:
        system = cast(System, self.system)
        return system.decode(system.forward(image, self.present))


def _compile(
    system: nn.Module, image: Tensor, present: Tensor, precision: Precision
) -> _Compiled | None:
    """The converted network, or None with a warning in the log."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError:
        log.warning("OpenVINO is not installed (pip install 'hepar[fast]'); using PyTorch")
        return None
    # Tensors made in inference mode cannot be traced.
    with torch.inference_mode(False), torch.no_grad():
        fixed = _Fixed(system, present.clone()).eval()
        sample = torch.rand(image.shape, generator=torch.Generator().manual_seed(0))
        if not bool(present.all()):
            with _Empties() as empties:
                fixed(sample)
            if empties.seen:
                log.info("OpenVINO cannot do without a phase of this network; using PyTorch")
                return None
        options = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the tracer's, about shapes that are meant fixed
                model = openvino.convert_model(
                    fixed, example_input=sample, input=list(sample.shape)
                )
            compiled = openvino.compile_model(model, "CPU", options)
        except Exception as error:  # whatever OpenVINO cannot convert, PyTorch can run
            log.warning("OpenVINO cannot run this network (%s); using PyTorch", error)
            return None
    return lambda batch: torch.from_numpy(np.array(compiled([batch.contiguous().numpy()])[0]))
