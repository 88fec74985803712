"""The tissue map that the painters of a patient share, and the distances later ones respect."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hepar.phantom.shapes import Frame, View
from hepar.phantom.tissue import Tissue


@dataclass
class Canvas:
    """The tissue map being painted.

    Attributes:
        frame: the grid and its canonical coordinates.
        tissue: uint8 (z, y, x) `Tissue` codes, painted in place.
        cavity: distance to the inside of the muscle wall, mm, negative inside.
        dome: distance above the diaphragm, mm.
        liver: distance to the liver, mm; far outside until the liver is painted.
        leanness: 0 obese .. 1 thin; a thin patient's organs touch, an obese one's lie in fat.
    """

    frame: Frame
    tissue: np.ndarray
    cavity: np.ndarray
    dome: np.ndarray
    liver: np.ndarray
    leanness: float = 0.5

    def put(self, view: View, inside: np.ndarray, tissue: Tissue, over: tuple[Tissue, ...]) -> None:
        """Set `tissue` where `inside`, only over the named tissues (all when empty)."""
        target = self.tissue[view.slices]
        if over:
            allowed = np.zeros(256, bool)
            allowed[list(over)] = True
            inside = inside & allowed[target]
        target[inside] = tissue
