"""Whether a device computes what a recipe asks for, in the precision that it asks for."""

from __future__ import annotations

import logging

import torch

from hepar.errors import UsageError
from hepar.recipe import Recipe, Schedule
from hepar.systems.base import InputSpec

LOG = logging.getLogger(__name__)


def check_precision(recipe: Recipe, device: torch.device, spec: InputSpec) -> None:
    """Refuse what would fail, or would be wrong without failing; say what would be slow.

    Args:
        recipe: what is trained.
        device: where.
        spec: of its system.

    Raises:
        UsageError: `E_RECIPE`: fp16 without CUDA; or bf16 on the CPU where a level of a 3D network
            is two slices deep: the weight gradients of 3x3x3 convolutions are garbage there, often
            finite (oneDNN as of PyTorch 2.13, at every size tried of that depth and at none of
            1, 3, 4, 5 and 8).
    """
    precision = recipe.schedule.precision
    if precision == "fp16" and device.type != "cuda":
        raise _refuse(
            f"schedule.precision fp16 trains on CUDA only, the device is {device.type}.",
            "Use --set schedule.precision=bf16 or fp32.",
        )
    if precision == "bf16" and device.type == "cpu" and spec.dims == 3:
        along_z = spec.axis_strides[0] if spec.axis_strides else spec.stride
        halvings = range(along_z.bit_length())
        if any(spec.patch[0] == 2 << halving for halving in halvings):
            raise _refuse(
                f"a level of the network is two slices deep (patch {spec.patch}), where CPUs "
                "compute wrong gradients in bf16.",
                "Use --set schedule.precision=fp32, or another depth of system.patch.",
            )
    if precision == "bf16" and device.type == "cpu" and not _has_wide_vectors():
        LOG.warning(
            "bf16 is slower than fp32 on a CPU without AVX-512; --set schedule.precision=fp32"
        )


def memory_format(schedule: Schedule, device: torch.device, dims: int) -> torch.memory_format:
    """How weights and activations lie in memory: a matter of speed, and of rounding.

    Args:
        schedule: of the recipe.
        device: where it is trained.
        dims: of the network, 2 or 3.

    Returns:
        Channels last where the recipe asks for it; but in bf16 on the CPU 3D group norms take
        twice the time of a whole step for their backward pass in it (PyTorch 2.13).
    """
    slow = dims == 3 and device.type == "cpu" and schedule.precision == "bf16"
    if not schedule.channels_last or slow:
        return torch.contiguous_format
    return {2: torch.channels_last, 3: torch.channels_last_3d}[dims]


def _has_wide_vectors() -> bool:
    return "AVX512" in torch.backends.cpu.get_cpu_capability()


def _refuse(message: str, remedy: str) -> UsageError:
    return UsageError("E_RECIPE", "train", message, remedy)
