"""Where the organs of the upper abdomen lie, as the coarse liver network names them.

The network needs no particular phase. What it names besides the liver is context that it learned to
find the liver by: good enough to measure HU inside, too coarse to report a volume of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Bool, Float, Int16
from numpy.typing import NDArray

from hepar.geometry import Grid, canonical
from hepar.infer.bundle import Model
from hepar.infer.tiling import Tiling, predict
from hepar.preprocess import AIR_HU, working_grid
from hepar.resampling import resample
from hepar.study import Volume
from hepar.systems.base import System

_EDGE_SLICES = 8
_HIGHEST_HU = 3071


@dataclass(frozen=True)
class Organs:
    """The organs of one scan on the network's own grid (5 mm for the shipped one).

    Attributes:
        grid: axial; as fine along z as the scan allows.
        hu: `(z, y, x)` of the scan on `grid`.
        masks: organ name -> `(z, y, x)`, for every class but the first; a voxel belongs to the most
            probable one. Empty where the scan does not show the organ.
    """

    grid: Grid
    hu: Int16[np.ndarray, "z y x"]
    masks: Mapping[str, NDArray[np.bool_]]

    def mask(self, name: str) -> Bool[np.ndarray, "z y x"]:
        """An organ; empty where it is not shown or the network has no name for it."""
        found = self.masks.get(name)
        return np.zeros(self.grid.shape, dtype=bool) if found is None else found


def find_organs(volume: Volume, model: Model, tiling: Tiling | None = None) -> Organs:
    """Name the organs of a scan of any phase and orientation.

    Args:
        volume: HU; turned to axial orientation, and clipped to [-1024, 3071], where it is not.
        model: the liver model of a bundle, a system of one input.
        tiling: memory, device, speed.

    Returns:
        Masks on the system's working grid.

    Raises:
        ResourceExhausted: `E_MEMORY`, see `infer.tiling.predict`.
        ModelIntegrityError: `E_NONFINITE_OUTPUT`.
    """
    names = cast(System, model.system).input_spec.class_names
    array, grid = canonical(volume.array, volume.grid)
    axial = Volume(np.clip(array, AIR_HU, _HIGHEST_HU).astype(np.int16), grid)
    coarse, hu, found = coarse_view(axial, model, names, tiling=tiling)
    winner = found.argmax(axis=0)
    return Organs(coarse, hu, {name: winner == k for k, name in enumerate(names) if k > 0})


def coarse_view(
    volume: Volume,
    model: Model,
    classes: Sequence[str],
    *,
    phase: str | None = None,
    tiling: Tiling | None = None,
) -> tuple[Grid, Int16[np.ndarray, "z y x"], Float[np.ndarray, "k z y x"]]:
    """What the coarse network sees of an axial volume, and what it says.

    Args:
        volume: int16 HU on an axial grid.
        model: the system that looks.
        classes: whose probabilities are wanted.
        phase: of the volume; a system of one input takes any under its own name.
        tiling: memory, device, speed.

    Returns:
        The system's grid, the HU on it, and the probabilities on it in the order of `classes`.

    Raises:
        InputRefused: `E_PHASES_REQUIRED`, where the system has several inputs and not this one.
        ResourceExhausted: `E_MEMORY`.
        ModelIntegrityError: `E_NONFINITE_OUTPUT`.
    """
    spec = cast(System, model.system).input_spec
    grid = working_grid(volume.grid, spec.spacing_mm)
    hu = np.rint(resample(volume.array, volume.grid, grid, fill=AIR_HU)).astype(np.int16)
    name = spec.phases[0] if len(spec.phases) == 1 or phase is None else phase
    # Edge slices repeated: beyond a scan that ends inside the liver the network would else see the
    # air of its own padding, and give up the liver near it. Slice by slice there is no beyond.
    edge = _EDGE_SLICES if spec.dims == 3 else 0
    found = predict(
        model.system,
        {name: np.pad(hu, ((edge, edge), (0, 0), (0, 0)), mode="edge")},
        grid.spacing_mm,
        classes=classes,
        tiling=tiling,
    )
    return grid, hu, found[:, edge : edge + len(hu)]
