"""Stage 3: settle orientation, Hounsfield units and data type, without interpolating anything.

Afterwards every volume is int16 HU within [-1024, 3071] on an axial grid (z nearest to Superior, y
to Posterior, x to Left). `PhasedStudy.source_grids` still holds the scanner's own voxels, on which
the outputs are written.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hepar.geometry import Array, canonical
from hepar.study import Phase, PhasedStudy, Volume

MIN_HU, MAX_HU = -1024, 3071


def harmonize(phased: PhasedStudy) -> PhasedStudy:
    """Bring every phase to axial orientation and int16 HU by flips, transposes and clipping.

    Args:
        phased: volumes as read.

    Returns:
        The same study on axial grids; `source_grids` are the grids as read.
    """
    volumes: dict[Phase, Volume] = {}
    for phase, volume in phased.volumes.items():
        turned, grid = canonical(volume.array, volume.grid)
        volumes[phase] = Volume(_hounsfield(turned), grid)
    return replace(phased, volumes=volumes)


def _hounsfield(array: Array) -> NDArray[np.int16]:
    """Contiguous int16 HU; padding below air becomes air, values that are not numbers too.

    Slice by slice, so that no float copy of the whole volume is made.
    """
    output = np.empty(array.shape, dtype=np.int16)
    for index, plane in enumerate(array):
        if plane.dtype.kind == "f":
            plane = np.rint(np.nan_to_num(plane, nan=MIN_HU, posinf=MAX_HU, neginf=MIN_HU))
        output[index] = np.clip(plane, MIN_HU, MAX_HU)
    return output
