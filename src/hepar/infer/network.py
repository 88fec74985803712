"""One forward pass: speed, memory, precision, and what may go wrong in it."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hepar.errors import ModelIntegrityError, ResourceExhausted
from hepar.infer.convolution import SingleSamples
from hepar.systems.base import System

log = logging.getLogger(__name__)

# How the allocators of the CPU (POSIX, Windows) and of MPS say it; CUDA has a class of its own.
_SAYS_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")

Runner = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Tiling:
    """How a network is run.

    Attributes:
        budget_bytes: memory that activations may take; sets batch and window sizes.
        device: `cpu`, `cuda`, `mps`.
        flips: average the probabilities of the four in-plane mirror images.
        flip_z: and of those turned upside down (3D): eight images with `flips`, two without.
        bf16: bfloat16 autocast. Off unless a Dice gate has passed.
        overlap: share of a window covered by its neighbor along each axis (3D).
        runner_for: makes a faster stand-in for `decode(forward(image, present))` from the system
            and `warn`, or None to keep eager PyTorch; see `infer.openvino`.
        around_liver_mm: where the liver is known, lay windows over it and so much around it, and
            call the rest background; None lays them over the whole volume and leaves out those
            without liver (3D; a system that needs the liver sees nothing else anyway).
        progress: called with the done share in [0, 1].
        counted: told how many windows were run and how many left out (3D).
        watch: shown what `forward` gave for every piece that was looked at, for what a system says
            beside `decode`, e.g. of the patient; always eager PyTorch then.
        warn: told what a reader of the result has to know, as `W_CODE: words`.
    """

    budget_bytes: int = 1 << 30
    device: str = "cpu"
    flips: bool = False
    flip_z: bool = False
    bf16: bool = False
    overlap: float = 0.5
    runner_for: Callable[[nn.Module, Callable[[str], None]], Runner] | None = None
    around_liver_mm: float | None = None
    progress: Callable[[float], None] | None = None
    counted: Callable[[int, int], None] | None = None
    watch: Callable[[Any], None] | None = None
    warn: Callable[[str], None] = log.warning


class OutOfMemory(Exception):
    """Memory ended on a piece that cannot be made smaller."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of PyTorch or numpy says that memory ended."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(s in str(error) for s in _SAYS_NO_MEMORY)


class Network:
    """The system with everything about speed and memory around it."""

    def __init__(self, system: nn.Module, tiling: Tiling) -> None:
        self.tiling = tiling
        self.device = torch.device(tiling.device)
        self.module = system.to(self.device)
        self.stride = cast(System, system).input_spec.stride
        make = tiling.runner_for if tiling.watch is None else None
        self._watch = tiling.watch
        self._fast = make(system, tiling.warn) if make is not None else None
        self._volumes = cast(System, system).input_spec.dims == 3
        self._too_large: int | None = None
        self._told: set[str] = set()

    def attempt(
        self, image: Tensor, present: Tensor, *, smallest: bool, exact: bool = False
    ) -> Tensor | None:
        """Probabilities, or None where memory ended and a smaller piece can be tried.

        First what changes nothing: the same piece again, with everything freed that can be; then,
        where an accelerator's memory ended, the same piece and all that follow on the CPU.

        Args:
            image: what the network sees.
            present: which phases exist.
            smallest: nothing smaller can be tried.
            exact: smaller pieces give the same numbers, so that they are tried before the CPU.

        Raises:
            OutOfMemory: it ended on the smallest piece.
        """
        for again in (False, True):
            found = self._try(image, present)
            if found is not None:
                if again:
                    self.tell("a second attempt went through and nothing changed")
                return found
        if self.device.type != "cpu" and (smallest or not exact):
            self.tell(f"the CPU took over from {self.device.type} and nothing but the time changed")
            self.device = torch.device("cpu")
            self.module = self.module.to(self.device)
            return self.attempt(image, present, smallest=smallest, exact=exact)
        if smallest:
            raise OutOfMemory
        self._too_large = image.numel()
        return None

    def _try(self, image: Tensor, present: Tensor) -> Tensor | None:
        try:
            return self(image, present)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        # Outside the handler, whose traceback would keep the tensors of the failed pass alive.
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def may_fit(self, image: Tensor) -> bool:
        """Whether no piece of this size or smaller has failed before."""
        return self._too_large is None or image.numel() < self._too_large

    def tell(self, how: str) -> None:
        """Warn, once a case and way, that memory ended and what was done about it."""
        if how not in self._told:
            self.tiling.warn(f"W_MEMORY: memory ended while the network ran; {how}")
        self._told.add(how)

    def exhausted(self) -> ResourceExhausted:
        """`E_MEMORY`: not even the smallest piece fits."""
        return ResourceExhausted(
            "E_MEMORY",
            "infer",
            "memory ended on the smallest piece of the volume, with a budget of "
            f"{self.tiling.budget_bytes >> 20} MiB",
            "free memory, lower the memory budget, or use --device cpu",
        )

    def _decode(self, image: Tensor, present: Tensor) -> Tensor:
        if self._fast is not None:
            return self._fast(image, present)
        system = cast(System, self.module)
        with SingleSamples() if self._volumes else nullcontext():
            outputs = system.forward(image, present)
            if self._watch is not None:
                self._watch(outputs)
            return system.decode(outputs)

    @torch.inference_mode()
    def __call__(
        self, image: Float[Tensor, "b p c *spatial"], present: Bool[Tensor, "b p"]
    ) -> Float[Tensor, "b k *spatial"]:
        """Probabilities at the size of `image`, padded to the stride on the way."""
        sizes = image.shape[3:]
        padding: list[int] = []
        strides = cast(System, self.module).input_spec.axis_strides or (self.stride,) * len(sizes)
        for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
            padding += [0, -size % stride]
        image = nn.functional.pad(image, padding).to(self.device)
        present = present.to(self.device)
        kind = self.device.type
        context = torch.autocast(kind, torch.bfloat16) if self.tiling.bf16 else nullcontext()
        mirrors: list[tuple[int, ...]] = [()]
        if self.tiling.flips:
            mirrors += [(-1,), (-2,), (-2, -1)]
        if self.tiling.flip_z and len(sizes) == 3:
            mirrors += [(-3, *dims) for dims in mirrors]
        total: Tensor | None = None
        with context:
            for dims in mirrors:
                found = self._decode(image.flip(dims) if dims else image, present).float()
                found = found.flip(dims) if dims else found
                total = found if total is None else total + found
        assert total is not None
        mean = total / len(mirrors)
        if not bool(torch.isfinite(mean).all()):
            raise ModelIntegrityError(
                "E_NONFINITE_OUTPUT",
                "infer",
                "the network gave probabilities that are not finite",
                "use another model, or float32 instead of lower precision",
            )
        return mean[(slice(None), slice(None), *(slice(0, size) for size in sizes))].cpu()

    def cost_bytes(self, image: Tensor, present: Tensor) -> int:
        """Activations of one sample, measured by running it: outputs of all modules together.

        That is more than lives at once, which makes up for what functions allocate.
        """
        total = 0

        def count(_module: nn.Module, _inputs: Any, outputs: Any) -> None:
            nonlocal total
            for value in outputs if isinstance(outputs, tuple | list) else (outputs,):
                if isinstance(value, Tensor):
                    total += value.numel() * value.element_size()

        leaves = [m for m in self.module.modules() if not any(True for _ in m.children())]
        hooks = [module.register_forward_hook(count) for module in leaves]
        fast, self._fast = self._fast, None
        watch, self._watch = self._watch, None
        try:
            self.attempt(image, present, smallest=True)
        finally:
            self._fast, self._watch = fast, watch
            for hook in hooks:
                hook.remove()
        return max(total, image.numel() * 4)
