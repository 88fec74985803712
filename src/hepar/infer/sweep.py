"""Blended 3D windows in the order of z: what no later window covers is given away at once.

So float maps are never longer than a window, however many slices a study has.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from hepar.geometry import Box
from hepar.infer.network import Network
from hepar.infer.scene import Scene, overhang
from hepar.infer.windows import padded_size, windows

log = logging.getLogger(__name__)

Slab = tuple[int, Float[np.ndarray, "k z y x"]]


@dataclass(frozen=True)
class _Cut:
    """How the box is cut along one axis.

    Attributes:
        starts: of the windows, on the working grid; below 0 where a window is longer than it.
        weights: of each window's voxels that lie inside the box.
        size: of a window.
    """

    starts: list[int]
    weights: list[NDArray[np.float32]]
    size: int


def sweep(scene: Scene, network: Network, box: Box, keep: list[int]) -> Iterator[Slab]:
    """Probabilities of a box, in slabs along z that follow one another.

    A window without liver, where the liver is known, is background with certainty and is not run.
    `tiling.counted` is told of both kinds.

    Args:
        scene: the case.
        network: what answers.
        box: voxels that are looked at.
        keep: classes to give.

    Yields:
        The first slice of a slab and `(k, z, y, x)` of its voxels of the box, to be used before the
        next one is asked for.
    """
    cuts = _cuts(scene, network, box)
    present = torch.from_numpy(scene.present)[None]
    depth = min(cuts[0].size, box.shape[0])
    held = np.zeros((len(keep), depth, *box.shape[1:]), dtype=np.float32)
    across = list(product(*(range(len(cut.starts)) for cut in cuts[1:])))
    counts, total = [0, 0], len(across) * len(cuts[0].starts)
    for row, first in enumerate(cuts[0].starts):
        first = max(first, box.start[0])
        for piece in across:
            ran = _add(scene, network, box, keep, present, cuts, (row, *piece), held)
            counts[ran] += 1
            if ran and network.tiling.progress is not None:
                network.tiling.progress(sum(counts) / total)
        last = row == len(cuts[0].starts) - 1
        done = box.stop[0] - first if last else cuts[0].starts[row + 1] - first
        yield first, held[:, :done]
        held[:, : depth - done] = held[:, done:].copy()
        held[:, depth - done :] = 0.0
    if network.tiling.counted is not None:
        network.tiling.counted(counts[1], counts[0])


def _add(
    scene: Scene,
    network: Network,
    box: Box,
    keep: list[int],
    present: Tensor,
    cuts: list[_Cut],
    piece: tuple[int, ...],
    held: NDArray[np.float32],
) -> bool:
    """Add one weighted window to what is held from its first slice on; whether it was run."""
    start = [cut.starts[i] for cut, i in zip(cuts, piece, strict=True)]
    stop = [first + cut.size for first, cut in zip(start, cuts, strict=True)]
    part = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
    inside = tuple(
        slice(max(a, lo), min(b, hi))
        for a, b, lo, hi in zip(start, stop, box.start, box.stop, strict=True)
    )
    z, y, x = (cut.weights[i] for cut, i in zip(cuts, piece, strict=True))
    weight = z[:, None, None] * y[:, None] * x
    rows, columns = (
        slice(s.start - box.start[a], s.stop - box.start[a]) for a, s in enumerate(inside[1:], 1)
    )
    region = (slice(None), slice(0, len(z)), rows, columns)
    if scene.liver is not None and not scene.liver[inside].any():
        held[region] += weight * np.equal(keep, 0)[:, None, None, None]
        return False
    image = torch.from_numpy(scene.image(part))[None]
    found = _piece(network, image, present)[0, keep].numpy()
    own = tuple(slice(s.start - a, s.stop - a) for s, a in zip(inside, start, strict=True))
    held[region] += found[(slice(None), *own)] * weight
    return True


def _cuts(scene: Scene, network: Network, box: Box) -> list[_Cut]:
    tiling, spec = network.tiling, scene.spec
    size = _window_size(scene, network, box)
    cuts = []
    for axis in range(3):
        length, first = box.shape[axis], box.start[axis]
        starts, weights = windows(
            length, size[axis], tiling.overlap, network.stride, uniform=spec.uniform_windows
        )
        lead = overhang(size[axis], length)
        cuts.append(_Cut([first + start - lead for start in starts], weights, size[axis]))
    return cuts


def _piece(
    network: Network, image: Float[Tensor, "b p c z y x"], present: Tensor
) -> Float[Tensor, "b k z y x"]:
    """Probabilities of a window; of two that overlap by half of it where it takes too much memory.

    Only the window that does not fit is cut, along its longest axis, and blended like any other:
    what was computed before stays. A network that looks far, or normalizes over what it sees, gives
    other numbers for it.
    """
    shape, stride = image.shape[3:], network.stride
    axis = int(np.argmax(shape))
    # Three quarters keep more of the context than a half, at the same work for the same memory.
    shares = (shape[axis] * 3 // 4, shape[axis] // 2)
    sizes = (-(-share // stride) * stride for share in shares)
    size = next((size for size in sizes if size < shape[axis]), shape[axis])
    smallest = size == shape[axis]
    found = None
    if smallest or network.may_fit(image):
        found = network.attempt(image, present, smallest=smallest)
    if found is not None:
        return found
    starts, weights = windows(shape[axis], size, 0.5, stride)
    network.tell(
        "smaller windows went through, so outlines differ somewhat from those of a run with enough"
    )
    total: Tensor | None = None
    for start, weight in zip(starts, weights, strict=True):
        part = _piece(network, image.narrow(3 + axis, start, size), present)
        if total is None:
            total = part.new_zeros((*part.shape[:2], *shape))
        bell = torch.from_numpy(weight).reshape([-1 if a == axis else 1 for a in range(3)])
        total.narrow(2 + axis, start, size).add_(part * bell)
    assert total is not None
    return total


def _window_size(scene: Scene, network: Network, box: Box) -> tuple[int, int, int]:
    """The largest window the system wants if it fits the budget, else the largest that does."""
    spec, stride = scene.spec, network.stride
    if spec.whole_windows:
        z, y, x = spec.window or spec.patch
        return z, y, x
    side = tuple(2 * stride for _ in range(3))
    corner = torch.zeros((1, len(scene.hu), len(spec.windows_hu), *side))
    present: Any = torch.from_numpy(scene.present)[None]
    voxel_bytes = network.cost_bytes(corner, present) / padded_size(side, stride)
    budget = network.tiling.budget_bytes

    def fits(shape: Sequence[int]) -> bool:
        return padded_size(shape, stride) * voxel_bytes <= budget

    limit = spec.window or box.shape
    most = tuple(min(w, b) for w, b in zip(limit, box.shape, strict=True))
    if fits(most):
        return most[0], most[1], most[2]
    chosen = tuple(min(p, b) for p, b in zip(spec.patch, most, strict=True))
    for factor in (1.25, 1.5, 2.0, 2.5, 3.0, 4.0):
        grown = tuple(
            min(int(p * factor) // stride * stride or stride, b)
            for p, b in zip(spec.patch, most, strict=True)
        )
        if fits(grown):
            chosen = grown
    if not fits(chosen):
        log.warning("a window of %s takes more than the memory budget", chosen)
    z, y, x = chosen
    return z, y, x
