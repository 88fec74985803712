"""From a case on a working grid to probabilities, under a memory budget.

Two-dimensional systems see the slices that hold liver, whole or through the box around it;
three-dimensional ones the whole volume, or windows blended by a Gaussian. Nothing here knows a
network beyond `InputSpec`, `forward` and `decode`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import nn

from hepar.geometry import Box
from hepar.infer.network import Network, Runner, Tiling
from hepar.infer.scene import Scene, running, scene_of, seen_box, spec_of
from hepar.infer.sweep import sweep
from hepar.infer.windows import padded_size
from hepar.preprocess import Plane, resized, slice_box, slice_context, slice_input

__all__ = ["Runner", "Tiling", "predict"]


def predict(
    system: nn.Module,
    hu: Mapping[str, NDArray[Any]],
    spacing_mm: tuple[float, float, float],
    *,
    liver: NDArray[np.bool_] | None = None,
    classes: Sequence[str] | None = None,
    tiling: Tiling | None = None,
) -> Float[np.ndarray, "k z y x"]:
    """Class probabilities of a case.

    Args:
        system: a `System`; it is switched to eval mode and moved to the device.
        hu: `(z, y, x)` HU by phase name, all on one working grid. Phases the system does not know
            are ignored; those it knows and that are not here are absent.
        spacing_mm: (z, y, x) of the working grid.
        liver: `(z, y, x)`; 2D systems then see only slices with liver. Must be given when the
            system needs it: the field is cropped to it, and outside it the first class is certain.
        classes: names of the classes to return; all of them when None.
        tiling: memory, device and speed.

    Returns:
        float32 probabilities on the working grid, in the order of `classes`.

    Raises:
        InputRefused: `E_PHASES_REQUIRED`: no phase, or not every phase a system must have.
        ResourceExhausted: `E_MEMORY`: not even the smallest piece fits the machine. Where memory
            ends earlier the run goes on with less of it, which `tiling.warn` is told.
        ModelIntegrityError: `E_NONFINITE_OUTPUT`: the network gave NaN or infinity.
    """
    tiling = tiling or Tiling()
    spec = spec_of(system)
    case = scene_of(spec, hu, liver, spacing_mm)
    names = tuple(classes) if classes is not None else spec.class_names
    keep = [spec.class_names.index(name) for name in names]
    output = np.zeros((len(keep), *case.shape), dtype=np.float32)
    output[[k for k, c in enumerate(keep) if c == 0]] = 1.0
    box = seen_box(spec, liver, case.shape, spacing_mm, tiling)
    if box is None:
        return output
    with running(system, tiling) as network:
        if spec.dims == 2:
            _predict_slices(case, network, box, keep, output)
        else:
            for z, slab in sweep(case, network, box, keep):
                output[(slice(None), slice(z, z + slab.shape[1]), *box.slices[1:])] = slab
    if case.mask is not None:
        for k, c in enumerate(keep):
            output[k][~case.mask] = 1.0 if c == 0 else 0.0
    return output


def _report(network: Network, done: int, total: int) -> None:
    if network.tiling.progress is not None:
        network.tiling.progress(done / total)


@dataclass(frozen=True)
class _View:
    """How a slice is shown: which part of it, and at what size the network sees that."""

    plane: Plane
    size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.plane
        return rows.stop - rows.start, columns.stop - columns.start


def _view(scene: Scene, z: int, box: Box) -> _View:
    """The whole box of a slice, or what surrounds its liver, resized."""
    crop = scene.spec.liver_crop
    _, *plane = box.slices
    if crop is None or scene.liver is None:
        return _View((plane[0], plane[1]), (box.shape[1], box.shape[2]))
    found = slice_box(scene.liver[z], (crop.pad_px,) * 4)
    assert found is not None
    return _View(found, (scene.spec.patch[0], scene.spec.patch[1]))


def _slice_image(scene: Scene, z: int, view: _View) -> NDArray[np.float32]:
    """`(p, c, y, x)` of one slice; absent phases are zeros."""
    spec = scene.spec
    part = (slice(None), *view.plane)
    image = np.zeros((len(scene.hu), spec.channels, *view.size), dtype=np.float32)
    mask = None if scene.mask is None else scene.mask[part]
    context = slice_context(spec, scene.shape[0], z, scene.spacing_mm[0])
    for p, volume in enumerate(scene.hu):
        if volume is not None:
            seen = slice_input(volume[part], context, windows_hu=spec.windows_hu, liver=mask)
            image[p] = resized(seen, view.size)
    return image


def _predict_slices(
    scene: Scene, network: Network, box: Box, keep: list[int], output: NDArray[np.float32]
) -> None:
    indices = list(range(box.start[0], box.stop[0]))
    if scene.liver is not None:
        indices = [z for z in indices if scene.liver[z].any()]
    present = torch.from_numpy(scene.present)
    batch = 1
    if len(indices) > 1:
        size = _view(scene, indices[0], box).size
        # A small corner tells the cost of a pixel without paying for a whole slice.
        side = tuple(min(length, 2 * network.stride) for length in size)
        corner = torch.zeros((1, len(scene.hu), scene.spec.channels, *side))
        cost = network.cost_bytes(corner, present[None]) / padded_size(side, network.stride)
        cost *= padded_size(size, network.stride)
        batch = max(1, min(len(indices), int(network.tiling.budget_bytes // max(cost, 1.0)), 32))
    start = 0
    while start < len(indices):
        chosen = {z: _view(scene, z, box) for z in indices[start : start + batch]}
        image = torch.from_numpy(np.stack([_slice_image(scene, z, v) for z, v in chosen.items()]))
        shown = present.expand(len(chosen), -1)
        found = network.attempt(image, shown, smallest=len(chosen) == 1, exact=True)
        if found is None:
            batch = max(1, len(chosen) // 2)
            network.tell("fewer slices at a time went through and nothing changed")
            continue
        for (z, view), probabilities in zip(chosen.items(), found.numpy(), strict=True):
            output[(slice(None), z, *view.plane)] = resized(probabilities[keep], view.shape)
        start += len(chosen)
        _report(network, start, len(indices))
