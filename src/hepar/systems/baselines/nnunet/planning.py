"""nnU-Net's plan: from a fingerprint of the training cases to spacing, patch, network and batch.

Isensee F. et al.: nnU-Net: a self-configuring method for deep learning-based biomedical image
segmentation, Nature Methods 18, 2021, Methods ("Rule-based parameters") and Supplementary Note 2,
with the numbers of nnunetv2 2.8 where it and the paper differ: activations are counted, not
measured; a patch never exceeds the median shape; low resolution grows in steps of 3 %.

| rule | code |
|---|---|
| median spacing; 10th percentile of a thick axis | `target_spacing` |
| halve until 4 voxels are left; anisotropic kernels | `topology` |
| patch as large as the memory budget allows, batch of at least 2 | `_configuration` |
| low resolution where a patch holds less than a quarter of a case | `_low_resolution` |

Differs from nnU-Net: axes are always (z, y, x); the rules are applied with the thickest axis first,
as there, so that ties fall alike, and turned back. Of axes that exceed the median shape alike the
last is shortened (NumPy's unstable sort decides there). The 2D network and the cascade's second
stage are not planned. Volumes that cannot be halved once are refused.

Everything is a pure function, free of torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

Sizes = tuple[int, int, int]
Spacing = tuple[float, float, float]

ANISOTROPIC = 3.0  # one axis is so many times as coarse as the others, or shorter
SMALLEST = 4  # voxels of the coarsest level along an axis
BUDGET = 560_000_000  # activations of a sample in 8 GB, two samples a batch
BUDGET_GB = 8.0
LEAST_BATCH = 2
MOST_SEEN = 0.05  # of all voxels in one batch
LOWRES_BELOW = 0.25
LOWRES_STEP = 1.03
BASE_WIDTH, MOST_WIDTH = 32, 320


@dataclass(frozen=True)
class Intensity:
    """HU of the foreground in one phase.

    Attributes:
        low, high: percentiles 0.5 and 99.5.
        mean, std: of all foreground voxels.
    """

    low: float
    high: float
    mean: float
    std: float


@dataclass(frozen=True)
class Fingerprint:
    """What is known of the training cases.

    Attributes:
        shapes: voxels of each case, (z, y, x).
        spacings_mm: of each case, (z, y, x).
        phases: in the order of the network's input.
        intensities: of each phase.
    """

    shapes: tuple[Sizes, ...]
    spacings_mm: tuple[Spacing, ...]
    phases: tuple[str, ...]
    intensities: tuple[Intensity, ...]


@dataclass(frozen=True)
class Topology:
    """The levels of a U-Net.

    Attributes:
        patch: rounded up to what the levels can halve.
        strides: from each level to the next.
        kernels: of each level, one more than strides.
    """

    patch: Sizes
    strides: tuple[Sizes, ...]
    kernels: tuple[Sizes, ...]

    @property
    def divisor(self) -> Sizes:
        """Patch sizes are multiples of this."""
        z, y, x = (math.prod(step[axis] for step in self.strides) for axis in range(3))
        return z, y, x


@dataclass(frozen=True)
class Configuration:
    """One network and what it is trained on, axes (z, y, x).

    Attributes:
        name: `3d_fullres` or `3d_lowres`.
        spacing_mm: of the resampled cases.
        median_shape: of the cases at that spacing.
        patch: voxels of a training patch.
        strides, kernels: see `Topology`.
        channels: of each level, finest first.
        batch_size: patches in a step.
        batch_dice: the Dice loss is of the whole batch.
    """

    name: str
    spacing_mm: Spacing
    median_shape: Spacing
    patch: Sizes
    strides: tuple[Sizes, ...]
    kernels: tuple[Sizes, ...]
    channels: tuple[int, ...]
    batch_size: int
    batch_dice: bool


@dataclass(frozen=True)
class Plan:
    """What nnU-Net would train.

    Attributes:
        fullres: at the target spacing.
        lowres: None where a patch of `fullres` holds enough of a case.
    """

    fullres: Configuration
    lowres: Configuration | None


def plan(fingerprint: Fingerprint, *, classes: int = 3, memory_gb: float = BUDGET_GB) -> Plan:
    """The configurations for some training cases.

    Args:
        fingerprint: of the training cases.
        classes: channels of the logits, background included.
        memory_gb: of the GPU that nnU-Net plans for.

    Raises:
        ValueError: no cases, or cases too small to be halved once.
    """
    if not fingerprint.shapes or len(fingerprint.shapes) != len(fingerprint.spacings_mm):
        raise ValueError("a fingerprint needs a shape and a spacing for each case, and a case")
    shapes = np.array(fingerprint.shapes, dtype=np.int64)
    spacings = np.array(fingerprint.spacings_mm, dtype=np.float64)
    target = target_spacing(shapes, spacings)
    worst = int(np.argmax(target))
    order = [worst, *(axis for axis in range(3) if axis != worst)]
    # Python rounds halves to even, as nnU-Net does here.
    resampled = [
        [round(mm / goal * n) for mm, goal, n in zip(spacing, target, shape, strict=True)]
        for spacing, shape in zip(spacings, shapes, strict=True)
    ]
    median = np.median(np.array(resampled), axis=0)[order]
    limits = _Limits(len(shapes), classes, BUDGET * memory_gb / BUDGET_GB)
    fine = _configuration("3d_fullres", target[order], median, limits)
    coarse = _low_resolution(fine, limits)
    fine = replace(fine, batch_dice=coarse is not None)
    return Plan(_turned(fine, order), None if coarse is None else _turned(coarse, order))


def target_spacing(shapes: NDArray[np.int64], spacings: NDArray[np.float64]) -> NDArray[np.float64]:
    """The median spacing; along one thick axis of few voxels the 10th percentile.

    Args:
        shapes: `(cases, 3)` voxels.
        spacings: `(cases, 3)` mm.

    Returns:
        mm of each axis; the thick one stays the coarsest.
    """
    target = np.percentile(spacings, 50, axis=0)
    size = np.percentile(shapes, 50, axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    coarsest = float(target[others].max())
    thick = target[worst] > ANISOTROPIC * coarsest
    if thick and size[worst] * ANISOTROPIC < size[others].min():
        thin = float(np.percentile(spacings[:, worst], 10))
        target[worst] = thin if thin >= coarsest else coarsest + 1e-5
    return target


def topology(spacing_mm: Sequence[float], patch: Sequence[float]) -> Topology:
    """How a patch is halved, level by level.

    An axis is halved while 4 voxels are left of it, if its spacing is less than twice the finest
    of those that can be halved. Its kernels are 3 from the first level on where its spacing is
    less than twice the finest of all, 1 before; those of the coarsest level are 3.

    Args:
        spacing_mm: of each axis.
        patch: voxels, not necessarily whole: a median may lie between two.
    """
    at_mm, left = list(spacing_mm), list(patch)
    kernel = [1, 1, 1]
    strides, kernels = [], []
    while axes := _halved(at_mm, left):
        finest = min(at_mm)
        kernel = [3 if at_mm[axis] / finest < 2 else kernel[axis] for axis in range(3)]
        kernels.append(_sizes(kernel))
        strides.append(_sizes([2 if axis in axes else 1 for axis in range(3)]))
        for axis in axes:
            at_mm[axis] *= 2
            left[axis] = math.ceil(left[axis] / 2)
    found = Topology((1, 1, 1), tuple(strides), (*kernels, (3, 3, 3)))
    padded = [math.ceil(n / d) * d for n, d in zip(patch, found.divisor, strict=True)]
    return replace(found, patch=_sizes(padded))


def _halved(at_mm: Sequence[float], left: Sequence[float]) -> list[int]:
    """Axes that the next level halves; none where it would be the last level's business."""
    axes = [axis for axis in range(3) if left[axis] >= 2 * SMALLEST]
    finest = min((at_mm[axis] for axis in axes), default=0.0)
    axes = [axis for axis in axes if at_mm[axis] / finest < 2]
    # An axis alone is halved only if 6 voxels are left.
    if len(axes) == 1 and left[axes[0]] < 3 * SMALLEST:
        return []
    return axes


def widths(levels: int, base_width: int = BASE_WIDTH) -> tuple[int, ...]:
    """Channels of each level: doubled, at most 320."""
    return tuple(min(MOST_WIDTH, base_width * 2**level) for level in range(levels))


def activations(found: Topology, classes: int) -> int:
    """Numbers that all convolutions of a network put out for one patch.

    Two convolutions a level, on the way up a transposed one and two more; the logits.
    """
    total, size = classes * math.prod(found.patch), list(found.patch)
    channels = widths(len(found.kernels))
    for level, width in enumerate(channels):
        if level:
            steps = found.strides[level - 1]
            size = [n // step for n, step in zip(size, steps, strict=True)]
        total += (2 if level == len(found.strides) else 5) * width * math.prod(size)
    return total


@dataclass(frozen=True)
class _Limits:
    cases: int
    classes: int
    budget: float


def _configuration(
    name: str,
    spacing: Float[np.ndarray, "3"],
    median: Sequence[float] | Float[np.ndarray, "3"],
    limits: _Limits,
    case_voxels: float | None = None,
) -> Configuration:
    """Patch, levels and batch at a spacing; axes as given.

    Args:
        name: of the configuration.
        spacing: in mm.
        median: shape of the cases at that spacing.
        limits: what the batch may take.
        case_voxels: of a median case, before its shape was rounded.
    """
    aspect = 1.0 / np.asarray(spacing)
    # The volume of 256 cubed in voxels that are as wide as the spacing is fine.
    wanted = [round(v) for v in aspect * (256**3 / np.prod(aspect)) ** (1 / 3)]
    start = [min(float(a), float(b)) for a, b in zip(wanted, median, strict=True)]
    found = topology(list(spacing), start)
    if not found.strides:
        shape = " x ".join(f"{n:g}" for n in median)
        raise ValueError(f"cases of {shape} voxels are too small to be halved once")
    used = activations(found, limits.classes)
    while used > limits.budget:
        found = _smaller(found, spacing, median)
        used = activations(found, limits.classes)
    voxels = float(np.prod(np.asarray(median))) if case_voxels is None else case_voxels
    most = round(voxels * limits.cases * MOST_SEEN / math.prod(found.patch))
    batch = max(min(round(limits.budget / used * 2), most), LEAST_BATCH)
    return Configuration(
        name=name,
        spacing_mm=_spacing(spacing),
        median_shape=_spacing(median),
        patch=found.patch,
        strides=found.strides,
        kernels=found.kernels,
        channels=widths(len(found.kernels)),
        batch_size=batch,
        batch_dice=False,
    )


def _smaller(
    found: Topology,
    spacing: Float[np.ndarray, "3"],
    median: Sequence[float] | Float[np.ndarray, "3"],
) -> Topology:
    """The next smaller patch: shorter along the axis that holds most of the median shape."""
    ratios = [n / float(m) for n, m in zip(found.patch, median, strict=True)]
    axis = int(np.argsort(ratios, kind="stable")[-1])
    # A level less may be left then, and its divisor be a finer step.
    tried = list(found.patch)
    tried[axis] -= found.divisor[axis]
    patch = list(found.patch)
    patch[axis] -= topology(list(spacing), tried).divisor[axis]
    return topology(list(spacing), patch)


def _low_resolution(fine: Configuration, limits: _Limits) -> Configuration | None:
    """Coarser and coarser until a patch holds a quarter of a case; None where it does already.

    Also None where the cases would not even have half the voxels.
    """
    spacing = np.array(fine.spacing_mm)
    shape = np.array(fine.median_shape)
    whole = voxels = float(np.prod(shape))
    patch, coarse = fine.patch, None
    while math.prod(patch) / voxels < LOWRES_BELOW:
        # Fine axes first, until none is less than half as coarse as the coarsest.
        lagging = spacing.max() / spacing > 2
        spacing = np.where(lagging | ~lagging.any(), spacing * LOWRES_STEP, spacing)
        ratio = np.array(fine.spacing_mm) / spacing
        voxels = float(np.prod(ratio * shape))
        median = [round(float(n)) for n in ratio * shape]
        coarse = _configuration("3d_lowres", spacing, median, limits, voxels)
        patch = coarse.patch
    return None if coarse is None or whole / voxels < 2 else coarse


def _turned(found: Configuration, order: Sequence[int]) -> Configuration:
    """Axes back where they were."""
    back = [order.index(axis) for axis in range(3)]

    def turn(values: Sequence[int]) -> Sizes:
        return _sizes([values[axis] for axis in back])

    return replace(
        found,
        spacing_mm=_spacing([found.spacing_mm[axis] for axis in back]),
        median_shape=_spacing([found.median_shape[axis] for axis in back]),
        patch=turn(found.patch),
        strides=tuple(turn(step) for step in found.strides),
        kernels=tuple(turn(kernel) for kernel in found.kernels),
    )


def _sizes(values: Sequence[int]) -> Sizes:
    z, y, x = (int(v) for v in values)
    return z, y, x


def _spacing(values: Sequence[float] | Float[np.ndarray, "3"]) -> Spacing:
    z, y, x = (float(v) for v in values)
    return z, y, x
