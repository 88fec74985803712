"""The whole geometry of a sample as one resampling: affine map, elastic field and flips composed.

Positions are kept an axis at a time, in voxels. Intensities are interpolated linearly at them,
labels and masks take the nearest voxel; what moves voxels onto voxels interpolates nothing.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

KNOTS_PER_SIGMA = 2  # linear interpolation between them loses less than 5 % of the field
_REACH = 3.0  # of a Gaussian, in standard deviations


def rotation(
    angles_rad: tuple[float, float, float], spacing_mm: tuple[float, ...]
) -> NDArray[np.float64]:
    """Rotation of millimeters, as a map of voxel offsets.

    Args:
        angles_rad: around the axes z, y and x, applied in this order.
        spacing_mm: (z, y, x) of the voxels.

    Returns:
        (3, 3), in array axis order.
    """
    matrix = np.eye(3)
    for axis, angle in enumerate(angles_rad):
        a, b = (i for i in range(3) if i != axis)
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = math.cos(angle)
        turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
        matrix = turn @ matrix
    return matrix * np.asarray(spacing_mm)[None, :] / np.asarray(spacing_mm)[:, None]


def elastic_field(
    rng: np.random.Generator, shape: tuple[int, ...], alpha: float, sigma_voxels: float
) -> NDArray[np.float32]:
    """A random displacement on knots, to be interpolated linearly between the outermost voxels.

    nnU-Net draws each component as uniform noise in [-1, 1] at every voxel, smoothed by a Gaussian
    of `sigma_voxels` and multiplied by `alpha`: a Gaussian field of standard deviation
    alpha / sqrt(3) / (2 sqrt(pi) sigma)^(d/2) whose correlation falls as exp(-r^2 / (4 sigma^2)).
    This is such a field, drawn where it varies: on knots sigma / 2 apart, as normal noise smoothed
    by the same Gaussian. Other than there it does not fade towards the border of the patch.

    Args:
        rng: explicit generator.
        shape: of the patch.
        alpha, sigma_voxels: as in nnU-Net.

    Returns:
        (d, *knots), in voxels.
    """
    dims = len(shape)
    knots = [math.ceil((n - 1) * KNOTS_PER_SIGMA / sigma_voxels) + 1 if n > 1 else 1 for n in shape]
    # In knots; an axis of one voxel has none beside it, and any width will do.
    widths = [
        sigma_voxels * (k - 1) / (n - 1) if n > 1 else KNOTS_PER_SIGMA
        for k, n in zip(knots, shape, strict=True)
    ]
    margins = [math.ceil(_REACH * width) for width in widths]
    field = rng.standard_normal((dims, *(k + 2 * m for k, m in zip(knots, margins, strict=True))))
    for axis, (width, margin) in enumerate(zip(widths, margins, strict=True), start=1):
        at = np.arange(-margin, margin + 1)
        weights = np.exp(-0.5 * (at / width) ** 2)
        field = ndimage.correlate1d(field, weights / np.linalg.norm(weights), axis, mode="constant")
    inner = tuple(slice(m, m + k) for k, m in zip(knots, margins, strict=True))
    spread = alpha / math.sqrt(3.0) / (2.0 * math.sqrt(math.pi) * sigma_voxels) ** (dims / 2)
    return (spread * field[(slice(None), *inner)]).astype(np.float32)


def flips(matrix: NDArray[np.float64], shift_voxels: NDArray[np.float64]) -> tuple[int, ...] | None:
    """The spatial axes that a map flips; None where it does more than that."""
    signs = np.diag(matrix)
    if np.any(shift_voxels) or np.any(matrix != np.diag(np.sign(signs))):
        return None
    return tuple(int(axis) for axis in np.flatnonzero(signs < 0))


def positions(
    matrix: NDArray[np.float64],
    shift_voxels: NDArray[np.float64],
    displacement_voxels: NDArray[np.float32] | None,
    shape: tuple[int, ...],
    device: torch.device,
) -> Float[Tensor, "d *spatial"]:
    """Where each voxel of a sample comes from: center + matrix (x - center + u) + shift.

    Args:
        matrix: (d, d), output to input offsets from the center, in array axis order.
        shift_voxels: (d,), of the input position.
        displacement_voxels: u on knots, (d, *knots), the first and the last on the outermost
            voxels; None for zero.
        shape: of the sample.
        device: of the result.

    Returns:
        In `grid_sample`'s unit, half the sample, and in its order of axes, x first.
    """
    dims, size = len(shape), np.asarray(shape, dtype=np.float64)
    center = (size - 1) / 2
    start = center + shift_voxels - matrix @ center
    slopes, start = (2 / size)[:, None] * matrix, (2 * start + 1) / size - 1
    found = torch.empty((dims, *shape), device=device)
    steps = [torch.arange(n, dtype=torch.float32, device=device) for n in shape]
    for row, out in enumerate(reversed(found.unbind())):
        along = [
            (step * float(slopes[row, axis])).view([-1 if i == axis else 1 for i in range(dims)])
            for axis, step in enumerate(steps)
        ]
        along[0] = along[0] + float(start[row])
        torch.add(sum(along[:-1], start=torch.zeros((), device=device)), along[-1], out=out)
    if displacement_voxels is not None:
        moved = np.tensordot((2 / size)[:, None] * matrix, displacement_voxels, axes=1)[::-1]
        knots = torch.from_numpy(np.ascontiguousarray(moved, np.float32)).to(device)
        found += _between_knots(knots, shape)
    return found


def _between_knots(
    field: Float[Tensor, "d *knots"], shape: tuple[int, ...]
) -> Float[Tensor, "d *spatial"]:
    """Linear interpolation, an axis at a time: products of matrices, several times as fast."""
    for axis in reversed(range(len(shape))):
        n, k = shape[axis], field.shape[axis + 1]
        at = torch.linspace(0.0, k - 1.0, n, device=field.device)
        knots = torch.arange(k, device=field.device)
        weights = (1.0 - (at[:, None] - knots[None, :]).abs()).clamp_(min=0.0)
        lead, rest = field.shape[: axis + 1], field.shape[axis + 2 :]
        field = (weights @ field.reshape(-1, k, math.prod(rest))).reshape(*lead, n, *rest)
    return field


def shifted(
    at: Float[Tensor, "d *spatial"], shift_voxels: NDArray[np.float64]
) -> Float[Tensor, "d *spatial"]:
    """Positions so many voxels further."""
    shape = at.shape[1:]
    shift = (2 * shift_voxels / np.asarray(shape))[::-1].copy()
    return at + torch.from_numpy(shift).to(at).view(-1, *[1] * len(shape))


def linear(
    image: Float[Tensor, "n *spatial"], at: Float[Tensor, "d *spatial"]
) -> Float[Tensor, "n *spatial"]:
    """Intensities at positions, all channels at the same; 0 from outside, fading over a voxel."""
    grid = at.movedim(0, -1)[None]
    return functional.grid_sample(image[None], grid, mode="bilinear", align_corners=False)[0]


def nearest(
    masks: list[Shaped[Tensor, "*spatial"]], at: Float[Tensor, "d *spatial"]
) -> list[Shaped[Tensor, "*spatial"]]:
    """Of each mask the voxel nearest to each position; 0 from outside."""
    shape = masks[0].shape
    index = torch.zeros(shape, dtype=torch.int32, device=at.device)
    outside: Bool[Tensor, "*spatial"] = torch.zeros(shape, dtype=torch.bool, device=at.device)
    for n, where in zip(shape, reversed(at.unbind()), strict=True):
        whole = where.mul(n / 2).add_((n - 1) / 2).round_()
        outside |= whole < 0
        outside |= whole > n - 1
        index.mul_(n).add_(whole.clamp_(0, n - 1).to(torch.int32))
    index = index.view(-1)
    return [
        mask.reshape(-1).index_select(0, index).view(shape).masked_fill_(outside, 0)
        for mask in masks
    ]
