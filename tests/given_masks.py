"""Masks as a person would give them, on the voxels of a file, and what is measured in them."""

from __future__ import annotations

import numpy as np

from hepar.geometry import uncanonical
from hepar.io.given_masks import read_given
from hepar.stages.given import given_lesions, given_liver
from hepar.study import AlignedStudy, LesionMap, LiverCase, Volume


def on_source(array: np.ndarray, aligned: AlignedStudy) -> Volume:
    """An array of the reference grid on the voxels of its file."""
    return Volume(uncanonical(array, aligned.source_grid), aligned.source_grid)


def measured(aligned: AlignedStudy, liver: Volume, tumor: Volume) -> tuple[LiverCase, LesionMap]:
    """A liver and its lesions, given as volumes."""
    given = read_given(liver, tumor)
    assert given.liver is not None
    return given_lesions(given_liver(aligned, given.liver), given)
