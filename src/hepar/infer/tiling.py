"""From a case on a working grid to probabilities, under a memory budget.

Two-dimensional systems see the slices that hold liver, whole or through the box around it;
three-dimensional ones the whole volume, or windows blended by a Gaussian. Nothing here knows a
network beyond `InputSpec`, `forward` and `decode`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from hepar.errors import InputRefused
from hepar.geometry import Box
from hepar.infer.network import Network, OutOfMemory, Runner, Tiling
from hepar.infer.windows import padded_size, windows
from hepar.preprocess import Plane, resized, slice_box, slice_context, slice_input, window
from hepar.systems.base import InputSpec, System

log = logging.getLogger(__name__)

__all__ = ["Runner", "Tiling", "predict"]


@dataclass(frozen=True)
class _Scene:
    """One case as the network sees it: volumes in the order of the system's phases."""

    spec: InputSpec
    hu: tuple[NDArray[Any] | None, ...]
    liver: NDArray[np.bool_] | None
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]

    @property
    def present(self) -> NDArray[np.bool_]:
        return np.array([volume is not None for volume in self.hu])

    @property
    def mask(self) -> NDArray[np.bool_] | None:
        """The liver when voxels outside it must not be seen."""
        return self.liver if self.spec.needs_liver else None


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
    spec = cast(System, system).input_spec
    scene = _scene(spec, hu, liver, spacing_mm)
    names = tuple(classes) if classes is not None else spec.class_names
    keep = [spec.class_names.index(name) for name in names]
    output = np.zeros((len(keep), *scene.shape), dtype=np.float32)
    output[[k for k, c in enumerate(keep) if c == 0]] = 1.0
    box = Box.full(scene.shape)
    if liver is not None:
        # A few pixels beyond the liver, so that it does not touch the padding of convolutions.
        rim = spec.stride // 2 if spec.needs_liver else 0
        around = Box.around(liver, (0 if spec.dims == 2 else rim, rim, rim))
        if around is None:
            return output
        if spec.needs_liver:
            box = around
        elif spec.dims == 2:
            box = Box((around.start[0], 0, 0), (around.stop[0], *scene.shape[1:]))
    network = Network(system, tiling)
    was_training = system.training
    system.eval()
    try:
        if spec.dims == 2:
            _predict_slices(scene, network, box, keep, output)
        else:
            _predict_volume(scene, network, box, keep, output)
    except OutOfMemory as error:
        raise network.exhausted() from error
    finally:
        system.train(was_training)
    if scene.mask is not None:
        for k, c in enumerate(keep):
            output[k][~scene.mask] = 1.0 if c == 0 else 0.0
    return output


def _scene(
    spec: InputSpec,
    hu: Mapping[str, NDArray[Any]],
    liver: NDArray[np.bool_] | None,
    spacing_mm: tuple[float, float, float],
) -> _Scene:
    volumes = tuple(hu.get(phase) for phase in spec.phases)
    known = [volume for volume in volumes if volume is not None]
    if not known or (spec.needs_all_phases and len(known) < len(volumes)):
        missing = [p for p in spec.phases if p not in hu]
        raise InputRefused(
            "E_PHASES_REQUIRED",
            "infer",
            f"the model needs {'all' if spec.needs_all_phases else 'one'} of "
            f"{', '.join(spec.phases)}; missing: {', '.join(missing)}",
            "give the missing phase with --phase, or choose a model that works without it",
        )
    shape = known[0].shape
    if any(volume.shape != shape for volume in known) or (
        liver is not None and liver.shape != shape
    ):
        raise ValueError("phases and liver must lie on one grid")
    if (spec.needs_liver or spec.liver_crop is not None) and liver is None:
        raise ValueError("this system needs a liver mask")
    z, y, x = shape
    return _Scene(spec, volumes, liver, spacing_mm, (z, y, x))


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


def _view(scene: _Scene, z: int, box: Box) -> _View:
    """The whole box of a slice, or what surrounds its liver, resized."""
    crop = scene.spec.liver_crop
    _, *plane = box.slices
    if crop is None or scene.liver is None:
        return _View((plane[0], plane[1]), (box.shape[1], box.shape[2]))
    found = slice_box(scene.liver[z], (crop.pad_px,) * 4)
    assert found is not None
    return _View(found, (scene.spec.patch[0], scene.spec.patch[1]))


def _slice_image(scene: _Scene, z: int, view: _View) -> NDArray[np.float32]:
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
    scene: _Scene, network: Network, box: Box, keep: list[int], output: NDArray[np.float32]
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


def _volume_image(scene: _Scene, box: Box) -> NDArray[np.float32]:
    """`(p, c, z, y, x)` of a box; absent phases are zeros."""
    spec = scene.spec
    image = np.zeros((len(scene.hu), len(spec.windows_hu), *box.shape), dtype=np.float32)
    for p, volume in enumerate(scene.hu):
        if volume is None:
            continue
        for c, limits in enumerate(spec.windows_hu):
            image[p, c] = window(volume[box.slices], limits)
            if scene.mask is not None:
                image[p, c] *= scene.mask[box.slices]
    return image


def _predict_volume(
    scene: _Scene, network: Network, box: Box, keep: list[int], output: NDArray[np.float32]
) -> None:
    present = torch.from_numpy(scene.present)[None]
    size = _window_size(scene, network, box, present)
    starts, weights = zip(
        *(
            windows(box.shape[axis], size[axis], network.tiling.overlap, network.stride)
            for axis in range(3)
        ),
        strict=True,
    )
    output[(slice(None), *box.slices)] = 0.0
    pieces = list(product(*(range(len(axis)) for axis in starts)))
    for done, piece in enumerate(pieces, 1):
        start = [box.start[a] + starts[a][piece[a]] for a in range(3)]
        stop = [min(start[a] + size[a], box.stop[a]) for a in range(3)]
        part = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
        z, y, x = (weights[a][piece[a]] for a in range(3))
        weight = z[:, None, None] * y[:, None] * x
        region = (slice(None), *part.slices)
        if scene.liver is not None and not scene.liver[part.slices].any():
            output[region] += weight * np.equal(keep, 0)[:, None, None, None]
            continue
        image = torch.from_numpy(_volume_image(scene, part))[None]
        output[region] += _piece(network, image, present)[0, keep].numpy() * weight
        _report(network, done, len(pieces))


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


def _window_size(
    scene: _Scene, network: Network, box: Box, present: Tensor
) -> tuple[int, int, int]:
    """The largest window the system wants if it fits the budget, else the largest that does."""
    stride, patch = network.stride, scene.spec.patch
    side = tuple(2 * stride for _ in range(3))
    corner = torch.zeros((1, len(scene.hu), len(scene.spec.windows_hu), *side))
    voxel_bytes = network.cost_bytes(corner, present) / padded_size(side, stride)
    budget = network.tiling.budget_bytes

    def fits(shape: Sequence[int]) -> bool:
        return padded_size(shape, stride) * voxel_bytes <= budget

    limit = scene.spec.window or box.shape
    most = tuple(min(w, b) for w, b in zip(limit, box.shape, strict=True))
    if fits(most):
        return most[0], most[1], most[2]
    chosen = tuple(min(p, b) for p, b in zip(patch, most, strict=True))
    for factor in (1.25, 1.5, 2.0, 2.5, 3.0, 4.0):
        grown = tuple(
            min(int(p * factor) // stride * stride or stride, b)
            for p, b in zip(patch, most, strict=True)
        )
        if fits(grown):
            chosen = grown
    if not fits(chosen):
        log.warning("a window of %s takes more than the memory budget", chosen)
    z, y, x = chosen
    return z, y, x
