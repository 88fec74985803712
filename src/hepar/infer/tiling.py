"""From a case on a working grid to probabilities, under a memory budget.

Two-dimensional systems see the slices that hold liver; three-dimensional ones the whole volume, or
windows blended by a Gaussian. Nothing here knows a network beyond `InputSpec`, `forward` and
`decode`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from hepar.errors import InputRefused, ResourceExhausted
from hepar.geometry import Box
from hepar.infer.windows import padded_size, windows
from hepar.preprocess import slice_context, slice_input, window
from hepar.systems.base import InputSpec, System

log = logging.getLogger(__name__)

Runner = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Tiling:
    """How a network is run.

    Attributes:
        budget_bytes: memory that activations may take; sets batch and window sizes.
        device: `cpu`, `cuda`, `mps`.
        flips: average over the four in-plane mirror images.
        bf16: bfloat16 autocast. Off unless a Dice gate has passed.
        overlap: share of a window covered by its neighbor along each axis (3D).
        runner_for: makes a faster stand-in for `decode(forward(image, present))` from the system,
            or None to keep eager PyTorch; see `infer.openvino`.
        progress: called with the done share in [0, 1].
    """

    budget_bytes: int = 1 << 30
    device: str = "cpu"
    flips: bool = False
    bf16: bool = False
    overlap: float = 0.5
    runner_for: Callable[[nn.Module], Runner] | None = None
    progress: Callable[[float], None] | None = None


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
        ResourceExhausted: `E_MEMORY`: not even the smallest piece fits the machine.
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
    network = _Network(system, tiling)
    was_training = system.training
    system.eval()
    try:
        if spec.dims == 2:
            _predict_slices(scene, network, box, keep, output)
        else:
            _predict_volume(scene, network, box, keep, output)
    except torch.cuda.OutOfMemoryError as error:
        raise ResourceExhausted(
            "E_MEMORY",
            "infer",
            f"the device ran out of memory with a budget of {tiling.budget_bytes >> 20} MiB",
            "lower the memory budget, or use --device cpu",
        ) from error
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
    if spec.needs_liver and liver is None:
        raise ValueError("this system needs a liver mask")
    z, y, x = shape
    return _Scene(spec, volumes, liver, spacing_mm, (z, y, x))


class _Network:
    """The system with everything about speed and memory around it."""

    def __init__(self, system: nn.Module, tiling: Tiling) -> None:
        self.tiling = tiling
        self.device = torch.device(tiling.device)
        self.module = system.to(self.device)
        self.stride = cast(System, system).input_spec.stride
        self._fast = tiling.runner_for(system) if tiling.runner_for is not None else None

    def _decode(self, image: Tensor, present: Tensor) -> Tensor:
        if self._fast is not None:
            return self._fast(image, present)
        system = cast(System, self.module)
        return system.decode(system.forward(image, present))

    @torch.inference_mode()
    def __call__(
        self, image: Float[Tensor, "b p c *spatial"], present: Bool[Tensor, "b p"]
    ) -> Float[Tensor, "b k *spatial"]:
        """Probabilities at the size of `image`, padded to the stride on the way."""
        sizes = image.shape[3:]
        padding: list[int] = []
        for size in reversed(sizes):
            padding += [0, -size % self.stride]
        image = nn.functional.pad(image, padding).to(self.device)
        present = present.to(self.device)
        kind = self.device.type
        context = torch.autocast(kind, torch.bfloat16) if self.tiling.bf16 else nullcontext()
        mirrors: list[tuple[int, ...]] = [()]
        if self.tiling.flips:
            mirrors += [(-1,), (-2,), (-2, -1)]
        total: Tensor | None = None
        with context:
            for dims in mirrors:
                found = self._decode(image.flip(dims) if dims else image, present).float()
                found = found.flip(dims) if dims else found
                total = found if total is None else total + found
        assert total is not None
        mean = total / len(mirrors)
        return mean[(slice(None), slice(None), *(slice(0, size) for size in sizes))].cpu()

    def cost_bytes(self, image: Tensor, present: Tensor) -> int:
        """Activations of one sample, measured by running it: outputs of all modules together.

        That is more than lives at once, which makes up for what functions allocate.
        """
        total = 0

        def count(_module: nn.Module, _inputs: Any, outputs: Any) -> None:
            nonlocal total
            for value in outputs if isinstance(outputs, tuple | list) else (outputs,):
                if isinstance(value, Tensor):
                    total += value.numel() * value.element_size()

        leaves = [m for m in self.module.modules() if not any(True for _ in m.children())]
        hooks = [module.register_forward_hook(count) for module in leaves]
        fast, self._fast = self._fast, None
        try:
            self(image, present)
        finally:
            self._fast = fast
            for hook in hooks:
                hook.remove()
        return max(total, image.numel() * 4)


def _report(network: _Network, done: int, total: int) -> None:
    if network.tiling.progress is not None:
        network.tiling.progress(done / total)


def _slice_image(scene: _Scene, z: int, box: Box) -> NDArray[np.float32]:
    """`(p, c, y, x)` of one slice; absent phases are zeros."""
    spec = scene.spec
    _, rows, columns = box.slices
    image = np.zeros((len(scene.hu), spec.channels, *box.shape[1:]), dtype=np.float32)
    mask = None if scene.mask is None else scene.mask[:, rows, columns]
    context = slice_context(spec, scene.shape[0], z, scene.spacing_mm[0])
    for p, volume in enumerate(scene.hu):
        if volume is not None:
            hu = volume[:, rows, columns]
            image[p] = slice_input(hu, context, windows_hu=spec.windows_hu, liver=mask)
    return image


def _predict_slices(
    scene: _Scene, network: _Network, box: Box, keep: list[int], output: NDArray[np.float32]
) -> None:
    indices = list(range(box.start[0], box.stop[0]))
    if scene.liver is not None:
        indices = [z for z in indices if scene.liver[z].any()]
    present = torch.from_numpy(scene.present)
    batch = 1
    if len(indices) > 1:
        # A small corner tells the cost of a pixel without paying for a whole slice.
        side = tuple(min(size, 2 * network.stride) for size in box.shape[1:])
        corner = torch.zeros((1, len(scene.hu), scene.spec.channels, *side))
        cost = network.cost_bytes(corner, present[None]) / padded_size(side, network.stride)
        cost *= padded_size(box.shape[1:], network.stride)
        batch = max(1, min(len(indices), int(network.tiling.budget_bytes // max(cost, 1.0)), 32))
    _, rows, columns = box.slices
    for start in range(0, len(indices), batch):
        chosen = indices[start : start + batch]
        image = torch.from_numpy(np.stack([_slice_image(scene, z, box) for z in chosen]))
        found = network(image, present.expand(len(chosen), -1)).numpy()
        for z, probabilities in zip(chosen, found, strict=True):
            output[:, z, rows, columns] = probabilities[keep]
        _report(network, start + len(chosen), len(indices))


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
    scene: _Scene, network: _Network, box: Box, keep: list[int], output: NDArray[np.float32]
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
        found = network(image, present)[0].numpy()
        output[region] += found[keep] * weight
        _report(network, done, len(pieces))


def _window_size(
    scene: _Scene, network: _Network, box: Box, present: Tensor
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
