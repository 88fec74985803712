"""What a network may look at: one case on its working grid, and the box of it that is looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import nn

from hepar.errors import InputRefused
from hepar.geometry import Box
from hepar.infer.network import Network, OutOfMemory, Tiling
from hepar.preprocess import window
from hepar.systems.base import InputSpec, System


@runtime_checkable
class Voxels(Protocol):
    """HU that can be cut: an array, or one that is made where it is looked at."""

    @property
    def shape(self) -> tuple[int, ...]:
        """`(z, y, x)`."""
        ...

    def __getitem__(self, part: Any, /) -> NDArray[Any]:
        """The voxels of a box."""
        ...


@dataclass(frozen=True)
class Scene:
    """One case as the network sees it.

    Attributes:
        spec: what the system wants to see.
        hu: `(z, y, x)` in the order of the system's phases; None for an absent one.
        liver: `(z, y, x)`, where it is known.
        spacing_mm: (z, y, x).
        shape: of the working grid.
    """

    spec: InputSpec
    hu: tuple[Voxels | None, ...]
    liver: NDArray[np.bool_] | None
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which phases exist."""
        return np.array([volume is not None for volume in self.hu])

    @property
    def mask(self) -> NDArray[np.bool_] | None:
        """The liver when voxels outside it must not be seen."""
        return self.liver if self.spec.needs_liver else None

    def image(self, part: Box) -> NDArray[np.float32]:
        """`(p, c, z, y, x)` of a box in 3D; absent phases are zeros.

        Beyond the volume, which a window may be longer than, it goes on as it ends; see
        `data.patches.cut`.
        """
        spec = self.spec
        pads = [
            (max(0, -first), max(0, last - n))
            for first, last, n in zip(part.start, part.stop, self.shape, strict=True)
        ]
        inside = tuple(
            slice(max(0, first), min(last, n))
            for first, last, n in zip(part.start, part.stop, self.shape, strict=True)
        )
        image = np.zeros((len(self.hu), len(spec.windows_hu), *part.shape), dtype=np.float32)
        mask = None if self.mask is None else np.pad(self.mask[inside], pads)
        for p, volume in enumerate(self.hu):
            if volume is None:
                continue
            hu = volume[inside]
            for c, limits in enumerate(spec.windows_hu):
                image[p, c] = np.pad(window(hu, limits), pads, mode="edge")
                if mask is not None:
                    image[p, c] *= mask
        return image


def scene_of(
    spec: InputSpec,
    hu: Mapping[str, Any],
    liver: NDArray[np.bool_] | None,
    spacing_mm: tuple[float, float, float],
) -> Scene:
    """A case in the order of a system's phases.

    Raises:
        InputRefused: `E_PHASES_REQUIRED`: no phase, or not every phase a system must have.
        ValueError: the grids differ, or a mask that the system needs is absent.
    """
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
    return Scene(spec, volumes, liver, spacing_mm, (z, y, x))


def seen_box(
    spec: InputSpec,
    liver: NDArray[np.bool_] | None,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    tiling: Tiling,
) -> Box | None:
    """The voxels that are looked at; None where a liver was looked for and not found.

    Args:
        spec: what the system wants to see.
        liver: on the working grid; None looks everywhere.
        shape: of the working grid.
        spacing_mm: of the working grid.
        tiling: `around_liver_mm`.
    """
    if liver is None:
        return Box.full(shape)
    # A few pixels beyond the liver, so that it does not touch the padding of convolutions.
    rim = spec.stride // 2 if spec.needs_liver else 0
    around = Box.around(liver, (0 if spec.dims == 2 else rim, rim, rim))
    if around is None or spec.needs_liver:
        return around
    if spec.dims == 2:
        return Box((around.start[0], 0, 0), (around.stop[0], *shape[1:]))
    if tiling.around_liver_mm is None:
        return Box.full(shape)
    z, y, x = (int(np.ceil(tiling.around_liver_mm / s)) for s in spacing_mm)
    wide = Box.around(liver, (z, y, x))
    assert wide is not None
    return _grown(wide, spec.window or spec.patch, shape)


def _grown(box: Box, least: tuple[int, ...], shape: tuple[int, int, int]) -> Box:
    """A box at least as long as a window wherever the volume is: what is there need not be made up.

    It grows by the same on both sides, as far as the volume goes.
    """
    start, stop = [0, 0, 0], [0, 0, 0]
    for axis, length in enumerate(least):
        first, last, n = box.start[axis], box.stop[axis], shape[axis]
        wanted = min(n, max(length, last - first))
        start[axis] = min(max(0, first - (wanted - (last - first)) // 2), n - wanted)
        stop[axis] = start[axis] + wanted
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def shown_box(spec: InputSpec, box: Box, shape: tuple[int, int, int]) -> Box:
    """The voxels that 3D windows over a box show: more than it where a whole window is longer.

    Args:
        spec: what the system wants to see.
        box: that is looked at.
        shape: of the working grid.
    """
    start, stop = list(box.start), list(box.stop)
    for axis, length in enumerate((spec.window or spec.patch) if spec.whole_windows else ()):
        lead = overhang(length, box.shape[axis])
        start[axis] = max(0, start[axis] - lead)
        stop[axis] = max(stop[axis], min(shape[axis], box.start[axis] - lead + length))
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def overhang(window: int, length: int) -> int:
    """Voxels before the first one of a box in a window that is longer: the box lies in its middle.

    As it does in training.
    """
    return max(0, window - length) // 2


@contextmanager
def running(system: nn.Module, tiling: Tiling) -> Iterator[Network]:
    """The system ready to answer, in eval mode as long as this lasts.

    Raises:
        ResourceExhausted: `E_MEMORY`: not even the smallest piece fits the machine.
    """
    network = Network(system, tiling)
    was_training = system.training
    system.eval()
    try:
        yield network
    except OutOfMemory as error:
        raise network.exhausted() from error
    finally:
        system.train(was_training)


def spec_of(system: nn.Module) -> InputSpec:
    """What a system wants to see."""
    return cast(System, system).input_spec
