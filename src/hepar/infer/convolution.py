"""3D convolutions of single samples on the CPU by oneDNN, which PyTorch passes over.

For one sample whose channels, slices and rows multiply to 20480 or less PyTorch (as of 2.13) takes
a kernel without vectors, five to fifteen times as slow: the coarse levels of any 3D network, and
every level of a small one. Two samples together go to oneDNN; windows come one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_MOST = 20480


class SingleSamples(TorchFunctionMode):
    """Within this block such convolutions go to oneDNN; values differ by rounding."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The call as it is, or by oneDNN."""
        if func is torch.conv3d and len(args) == 7 and not kwargs and _passed_over(args[0]):
            x, weight, bias, *steps, groups = args
            if all(isinstance(step, tuple) for step in steps):
                stride, padding, dilation = steps
                return torch.ops.aten.mkldnn_convolution(
                    x, weight, bias, padding, stride, dilation, groups
                )
        return func(*args, **(kwargs or {}))


def _passed_over(x: Tensor) -> bool:
    return (
        x.ndim == 5
        and len(x) == 1
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.shape[1] * x.shape[2] * x.shape[3] <= _MOST
        and torch.backends.mkldnn.is_available()
    )
