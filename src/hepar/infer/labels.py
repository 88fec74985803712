"""From a study on its own voxels to labels on them, in memory that does not grow with its slices.

What is held besides the study and its labels: the HU and probabilities of as many slices of the
working grid as a window has, one slab of probabilities on the study's voxels, and, where a liver
mask is given, that mask on the working grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float16, Int16, UInt8
from numpy.typing import NDArray
from torch import nn

from hepar.geometry import Box, Grid
from hepar.infer.network import Tiling
from hepar.infer.on_grid import BackOnto, HuOnGrid, mask_on
from hepar.infer.scene import Scene, running, scene_of, seen_box, shown_box, spec_of
from hepar.infer.sweep import sweep
from hepar.preprocess import working_grid

_MOST = 0.5 + 1e-3  # with room for the rounding of a mean
Decide = Callable[[Float[np.ndarray, "k z y x"]], NDArray[np.uint8]]


def most_likely(probability: Float[np.ndarray, "k z y x"]) -> UInt8[np.ndarray, "z y x"]:
    """The class of the largest probability; of equal ones the first."""
    best, label = probability[0].copy(), np.zeros(probability.shape[1:], np.uint8)
    for number, one in enumerate(probability[1:], 1):
        more = one > best
        label[more] = number
        np.maximum(best, one, out=best)
    return label


def predict_labels(
    system: nn.Module,
    hu: Mapping[str, Int16[np.ndarray, "z y x"]],
    grid: Grid,
    *,
    liver: Bool[np.ndarray, "z y x"] | None = None,
    classes: Sequence[str] | None = None,
    decide: Decide = most_likely,
    tiling: Tiling | None = None,
) -> UInt8[np.ndarray, "z y x"]:
    """Labels of a study on its own voxels, from a 3D system that works on any grid.

    The same as `tiling.predict` on the working grid, `resampling.resample` of its probabilities
    onto the voxels and `decide`, without ever holding the probabilities of the whole study.

    Args:
        system: a `System` with three dimensions.
        hu: of each phase, on `grid`.
        grid: of the study.
        liver: on `grid`, where it is known; windows without liver are then background.
        classes: names of the classes that are decided between; all of them when None.
        decide: from probabilities in the order of `classes` to labels, voxel by voxel. It must give
            0 where the first class is certain.
        tiling: memory, device and speed.

    Returns:
        One label a voxel of `grid`.

    Raises:
        HeparError: as `tiling.predict`.
        ValueError: the system is a 2D one, or phases and liver do not lie on `grid`.
    """
    labels = np.zeros(grid.shape, np.uint8)
    # A mean of probabilities above one half is above one half: no other class is likelier.
    certain = _MOST if decide is most_likely else None
    for part, found in _parts(system, hu, grid, liver, classes, certain, tiling or Tiling()):
        labels[part.slices] = decide(found)
    return labels


def predict_map(
    system: nn.Module,
    hu: Mapping[str, Int16[np.ndarray, "z y x"]],
    grid: Grid,
    *,
    liver: Bool[np.ndarray, "z y x"] | None = None,
    tiling: Tiling | None = None,
) -> Float16[np.ndarray, "k z y x"]:
    """Probabilities of every class on the study's own voxels, from a 3D system.

    As `predict_labels` before it decides, kept in half precision: 20 bytes a voxel of ten classes.
    Where the system does not look, the first class is certain.

    Args:
        system: a `System` with three dimensions.
        hu: of each phase, on `grid`.
        grid: of the study.
        liver: on `grid`, where it is known.
        tiling: memory, device and speed.

    Raises:
        HeparError, ValueError: as `predict_labels`.
    """
    found = np.zeros((len(spec_of(system).class_names), *grid.shape), np.float16)
    found[0] = 1.0
    for box, part in _parts(system, hu, grid, liver, None, None, tiling or Tiling()):
        found[(slice(None), *box.slices)] = part
    return found


def _parts(
    system: nn.Module,
    hu: Mapping[str, Int16[np.ndarray, "z y x"]],
    grid: Grid,
    liver: Bool[np.ndarray, "z y x"] | None,
    classes: Sequence[str] | None,
    certain: float | None,
    tiling: Tiling,
) -> Iterator[tuple[Box, Float[np.ndarray, "k z y x"]]]:
    """Probabilities of box after box of the study's voxels; see `predict_labels`.

    Elsewhere, and where the first class has a probability above `certain`, it is certain.
    """
    spec = spec_of(system)
    if spec.dims != 3:
        raise ValueError("labels are made slab by slab of 3D systems only")
    if any(volume.shape != grid.shape for volume in hu.values()):
        raise ValueError("phases must lie on the study's grid")
    names = tuple(classes) if classes is not None else spec.class_names
    keep = [spec.class_names.index(name) for name in names]
    target = working_grid(grid, spec.spacing_mm)
    same = target.is_close(grid)
    seen = liver if liver is None or same else mask_on(liver, grid, target)
    box = seen_box(spec, seen, target.shape, target.spacing_mm, tiling)
    known: dict[str, Any] = {name: volume for name, volume in hu.items() if name in spec.phases}
    if not same:
        shown = None if box is None else shown_box(spec, box, target.shape)
        known = {name: HuOnGrid(volume, grid, target, shown) for name, volume in known.items()}
    case = scene_of(spec, known, seen, target.spacing_mm)
    if box is None:
        return
    outside = np.equal(keep, 0).astype(np.float32)
    back = None if same else BackOnto(target, box, grid, outside, certain)
    with running(system, tiling) as network:
        for first, slab in sweep(case, network, box, keep):
            where = Box((first, *box.start[1:]), (first + slab.shape[1], *box.stop[1:]))
            _hide(case, where, keep, slab)
            yield from iter([(where, slab)]) if back is None else back.add(slab)


def _hide(case: Scene, part: Box, keep: Sequence[int], slab: NDArray[np.float32]) -> None:
    """Where a system must not look, the first class is certain."""
    if case.mask is not None:
        for one, number in zip(slab, keep, strict=True):
            one[~case.mask[part.slices]] = 1.0 if number == 0 else 0.0
