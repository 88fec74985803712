"""Roughly where the liver is in a scan of any phase: the coarse network alone, in half a second.

`register` asks it of both scans of a pair; the mask of the results is `liver.find_liver`'s.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from hepar.geometry import Grid
from hepar.infer.bundle import Model
from hepar.infer.components import largest
from hepar.infer.tiling import Tiling, predict
from hepar.preprocess import AIR_HU, working_grid
from hepar.resampling import resample
from hepar.study import Volume
from hepar.systems.base import System

_EDGE_SLICES = 8


def liver_region(
    volume: Volume, model: Model, *, tiling: Tiling | None = None
) -> tuple[NDArray[np.bool_], Grid]:
    """The largest piece of liver, as the coarse network outlines it.

    Args:
        volume: int16 HU on an axial grid.
        model: a system of one input with `liver` among its classes.
        tiling: device, memory and speed.

    Returns:
        `(z, y, x)` mask, empty where nothing looks like liver, and its grid (5 mm).

    Raises:
        HeparError: as `infer.tiling.predict`.
    """
    spec = cast(System, model.system).input_spec
    grid = working_grid(volume.grid, spec.spacing_mm)
    hu = np.rint(resample(volume.array, volume.grid, grid, fill=AIR_HU)).astype(np.int16)
    # Edge slices repeated, as in `find_liver`: beyond a scan's end there is no air.
    beyond = ((_EDGE_SLICES, _EDGE_SLICES), (0, 0), (0, 0))
    found = predict(
        model.system,
        {spec.phases[0]: np.pad(hu, beyond, mode="edge")},
        grid.spacing_mm,
        classes=("liver",),
        tiling=replace(tiling or Tiling(), warn=lambda text: None),
    )
    return largest(found[0, _EDGE_SLICES:-_EDGE_SLICES] >= 0.5), grid
