"""OpenVINO in place of eager PyTorch on the CPU; the only file that imports it, when asked.

A network is converted once for each input shape, compared with eager PyTorch on random input, and
dropped with a warning when the two disagree. Conversion costs seconds, so this pays for many
studies in one process, not for one. Studies that lack a phase of the model stay with PyTorch: the
tensors without elements that stand for the absent phase crash OpenVINO 2026.4.

OpenVINO reports its use over the network by default (`openvino_telemetry`). hepar sends nothing:
that package is kept from being imported, and OpenVINO falls back to its own empty stand-in.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hepar.infer.tiling import Runner
from hepar.systems.base import System

log = logging.getLogger(__name__)

TOLERANCE = 1e-3
_Compiled = Callable[[Tensor], Tensor]


def openvino_runner(system: nn.Module) -> Runner:
    """A `Tiling.runner_for`: probabilities by OpenVINO in float32, or eager where that fails.

    Args:
        system: a `System` in eval mode on the CPU.
    """
    compiled: dict[tuple[int, ...], tuple[int, _Compiled] | None] = {}

    def eager(image: Tensor, present: Tensor) -> Tensor:
        return cast(System, system).decode(cast(System, system).forward(image, present))

    def run(
        image: Float[Tensor, "b p c *spatial"], present: Bool[Tensor, "b p"]
    ) -> Float[Tensor, "b k *spatial"]:
        if image.device.type != "cpu" or not bool(present.all()):
            return eager(image, present)
        key = tuple(image.shape[1:])
        if key not in compiled:
            found = _compile(system, image, present)
            compiled[key] = None if found is None else (image.shape[0], found)
        entry = compiled[key]
        if entry is None or image.shape[0] > entry[0]:
            return eager(image, present)
        # The last batch of a case is smaller; the shape is fixed, so it is filled up.
        count, size = image.shape[0], entry[0]
        filled = torch.cat([image, image[:1].expand(size - count, *image.shape[1:])])
        return entry[1](filled)[:count]

    return run


class _Fixed(nn.Module):
    """The system with every phase present: image to probabilities."""

    def __init__(self, system: nn.Module, present: Tensor) -> None:
        super().__init__()
        self.system = system
        self.present = present

    def forward(self, image: Tensor) -> Tensor:
        system = cast(System, self.system)
        return system.decode(system.forward(image, self.present))


def _compile(system: nn.Module, image: Tensor, present: Tensor) -> _Compiled | None:
    """The converted network, or None with a warning in the log."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError:
        log.warning("OpenVINO is not installed (pip install 'hepar[fast]'); using PyTorch")
        return None
    fixed = _Fixed(system, present).eval()
    # Tensors made in inference mode cannot be traced; random ones also test the agreement.
    with torch.inference_mode(False), torch.no_grad():
        sample = torch.rand(image.shape, generator=torch.Generator().manual_seed(0))
        fixed.present = present.clone()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the tracer's, about shapes that are meant fixed
                model = openvino.convert_model(
                    fixed, example_input=sample, input=list(sample.shape)
                )
            options = {
                "INFERENCE_PRECISION_HINT": "f32",
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            }
            compiled = openvino.compile_model(model, "CPU", options)
            found = np.asarray(compiled([sample.numpy()])[0])
            gap = float(np.abs(found - fixed(sample).numpy()).max())
        except Exception as error:  # whatever OpenVINO cannot convert, PyTorch can run
            log.warning("OpenVINO cannot run this network (%s); using PyTorch", error)
            return None
    if not gap <= TOLERANCE:
        log.warning("OpenVINO differs from PyTorch by %.1e; using PyTorch", gap)
        return None
    log.info("OpenVINO runs %s; largest difference %.1e", tuple(image.shape), gap)
    return lambda batch: torch.from_numpy(np.array(compiled([batch.contiguous().numpy()])[0]))
