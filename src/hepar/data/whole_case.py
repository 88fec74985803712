"""A cohort's case as it is scored: its images on the voxels of its label."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from hepar.data.cohort import CohortCase, read_case
from hepar.preprocess import AIR_HU
from hepar.resampling import resample
from hepar.study import Phase, Volume
from hepar.systems.base import InputSpec


def shows(case: CohortCase, spec: InputSpec, phases: Collection[str] = ()) -> bool:
    """Whether a case has any phase that a system knows, of `phases` where they are named."""
    return bool(set(case.images) & set(spec.phases) & set(phases or spec.phases))


def on_label(
    case: CohortCase, spec: InputSpec, phases: Collection[str] = ()
) -> tuple[dict[Phase, Volume], Volume, NDArray[np.bool_]]:
    """A case's images on its label's voxels, the label, and the liver (tumor included).

    Args:
        case: a labelled case.
        spec: of the system, whose phases are read; so is the reference, which masks lie on.
        phases: all that may be seen; any when empty.

    Raises:
        InputRefused: as `data.cohort.read_case`.
    """
    images, label, liver = read_case(case, (*spec.phases, case.reference))
    seen = {name: volume for name, volume in images.items() if not phases or name in phases}
    return {Phase(name): _onto(volume, label) for name, volume in seen.items()}, label, liver


def _onto(volume: Volume, label: Volume) -> Volume:
    if volume.grid.is_close(label.grid):
        return Volume(volume.array, label.grid)
    moved = resample(volume.array, volume.grid, label.grid, fill=AIR_HU)
    return Volume(np.rint(moved).astype(np.int16), label.grid)
