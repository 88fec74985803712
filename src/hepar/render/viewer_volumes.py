"""What the viewer shows of a patient: the phases around the liver in 8 bit, labels, doubt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hepar.geometry import Grid
from hepar.io.nifti import nifti_bytes
from hepar.preprocess import liver_box
from hepar.render.overlay import HEAT_FROM, WINDOW_HU
from hepar.study import PHASE_ORDER, LesionMap, LiverCase

MARGIN_MM = 20.0
# A stored number n stands for LOWEST_HU + n * STEP_HU: fat to calcification, in steps below noise.
LOWEST_HU, STEP_HU = -200, 2
HIGHEST_HU = LOWEST_HU + 255 * STEP_HU
LABELS, UNCERTAINTY = "labels", "uncertainty"


@dataclass(frozen=True)
class ViewerVolume:
    """A volume of the page.

    Attributes:
        name: `NC`, `ART`, `PV`, `DL`, `labels` (0, 1 liver, 1 + id of a lesion) or `uncertainty`.
        nifti: content of a `.nii.gz`; all volumes of a patient lie on one grid.
    """

    name: str
    nifti: bytes


def viewer_volumes(case: LiverCase, lesions: LesionMap) -> tuple[ViewerVolume, ...]:
    """Crop every phase to the liver, on the voxels of the reference phase.

    Args:
        case: the patient.
        lesions: masks, and the network's doubt if it was asked for.

    Returns:
        The phases in the order of time, then labels, then uncertainty.
    """
    whole = case.aligned.grid
    box = liver_box(lesions.label > 0, whole, MARGIN_MM) or case.box
    grid = whole.crop(box)
    volumes = case.aligned.volumes
    made = [
        ViewerVolume(str(phase), _eight_bit(volumes[phase].array[box.slices], grid))
        for phase in PHASE_ORDER
        if phase in volumes
    ]
    instances = lesions.instances[box.slices]
    labels = np.where(instances > 0, instances + 1, lesions.label[box.slices] > 0)
    kind = np.min_scalar_type(int(labels.max(initial=0)))
    made.append(ViewerVolume(LABELS, nifti_bytes(labels.astype(kind), grid)))
    if lesions.uncertainty is not None:
        doubt = np.zeros(whole.shape, dtype=np.uint8)
        doubt[case.box.slices] = np.rint(255 * np.clip(lesions.uncertainty, 0, 1))
        packed = nifti_bytes(doubt[box.slices], grid, slope=1 / 255, shown=(HEAT_FROM, 1.0))
        made.append(ViewerVolume(UNCERTAINTY, packed))
    return tuple(made)


def _eight_bit(hu: NDArray[Any], grid: Grid) -> bytes:
    steps = np.rint((hu.astype(np.float32) - LOWEST_HU) / STEP_HU)
    stored = np.clip(steps, 0, 255).astype(np.uint8)
    return nifti_bytes(stored, grid, slope=STEP_HU, intercept=LOWEST_HU, shown=WINDOW_HU)
