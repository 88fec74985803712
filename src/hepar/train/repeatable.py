"""What makes a step repeatable: seeds that are functions of the step, and fixed kernels."""

from __future__ import annotations

import os

import numpy as np
import torch


def mixed_seed(seed: int, purpose: int, step: int) -> int:
    """A 63-bit seed of its own for each (seed, purpose, step)."""
    words = np.random.SeedSequence([seed, purpose, step]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


class Deterministic:
    """Within this block the device is asked for repeatable kernels; CPU kernels already are.

    Args:
        device: where training runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def __enter__(self) -> None:
        self.before = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.benchmark,
        )
        if self.cuda:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.backends.cudnn.benchmark = False

    def __exit__(self, *_: object) -> None:
        torch.use_deterministic_algorithms(self.before[0], warn_only=self.before[1])
        torch.backends.cudnn.benchmark = self.before[2]
