"""A lesion as its features see it: means of its parts in each phase, with their uncertainty.

A difference is *visible* where it is at least `VISIBLE_HU` and more than `SURE` times its standard
uncertainty (`liver_noise.py`). Where so many uncertainties exceed `BLUR_HU`, not seeing it means
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hepar.infer.lesion_regions import LesionRegions
from hepar.infer.liver_noise import LiverNoise
from hepar.lesion_evidence import FeatureState
from hepar.study import Phase

VISIBLE_HU = 10.0
BLUR_HU = 25.0
# Of the mean of a region; of the brightest of several shells or sectors.
SURE, SURE_OF_SEVERAL = 2.0, 3.0
MIN_SECTOR_VOXELS = 4
# Darker voxels lie outside a phase's field of view (or in gas): they say nothing about a lesion.
OUTSIDE_HU = -900


@dataclass(frozen=True)
class Measured:
    """The mean of a region and its standard uncertainty, HU."""

    hu: float
    u: float

    def minus(self, other: Measured) -> Measured:
        """Difference of two independent means."""
        return Measured(self.hu - other.hu, float(np.hypot(self.u, other.u)))

    def reversed(self) -> Measured:
        """The difference the other way around."""
        return Measured(-self.hu, self.u)


def visible(difference: Measured, sure: float = SURE) -> FeatureState:
    """Whether a difference is positive, large enough to see, and more than noise."""
    blur = sure * difference.u
    if difference.hu >= VISIBLE_HU and difference.hu > blur:
        return "present"
    return "not_assessable" if blur > BLUR_HU and difference.hu > -blur else "absent"


@dataclass(frozen=True)
class LesionView:
    """One lesion as its features see it.

    Attributes:
        regions: where its parts lie.
        volumes: HU inside `regions.box` of the phases that lie where the reference does.
        liver_hu: of the parenchyma by phase.
        noise: of each phase in the liver.
        misplaced: phases that were scanned and could not be registered.
    """

    regions: LesionRegions
    volumes: Mapping[str, NDArray[np.int16]]
    liver_hu: Mapping[str, float]
    noise: Mapping[str, LiverNoise]
    misplaced: tuple[str, ...] = ()

    def usable(self, phase: str) -> bool:
        """Whether lesion and liver were measured in a phase."""
        return phase in self.volumes and phase in self.liver_hu and phase in self.noise

    def lacking(self, *phases: str) -> str:
        """Why none of some phases can be used."""
        names = " or ".join(Phase(p).long_name for p in phases)
        if set(phases) & set(self.misplaced):
            return f"the {names} phase could not be registered"
        return f"there is no {names} phase"

    def mean(self, phase: str, region: NDArray[np.bool_]) -> Measured | None:
        """Of a region; None where less than half of it was scanned."""
        values = self.volumes[phase][region]
        seen = values[values > OUTSIDE_HU]
        if seen.size < max(1, values.size / 2):
            return None
        u = self.noise[phase].of(seen.size * self.regions.voxel_ml)
        return Measured(float(seen.mean(dtype=np.float64)), u)

    def contrast(self, phase: str, region: NDArray[np.bool_]) -> Measured | None:
        """Of a region to the liver, whose own mean is as good as certain."""
        found = self.mean(phase, region)
        return None if found is None else Measured(found.hu - self.liver_hu[phase], found.u)

    def share_above(self, phase: str, region: NDArray[np.bool_], level_hu: float) -> float:
        """Share of the sectors of a region whose mean lies above a level."""
        means = list(self.sectors(phase, region).values())
        return float(np.mean([m.hu > level_hu for m in means])) if means else 0.0

    def sectors(self, phase: str, region: NDArray[np.bool_]) -> dict[int, Measured]:
        """Means of the sectors of a region that have enough voxels."""
        found = {}
        for number in np.unique(self.regions.sector[region]).tolist():
            part = region & (self.regions.sector == number)
            mean = self.mean(phase, part) if int(part.sum()) >= MIN_SECTOR_VOXELS else None
            if mean is not None:
                found[number] = mean
        return found

    def brightest(
        self, phase: str, regions: list[NDArray[np.bool_]]
    ) -> tuple[NDArray[np.bool_], Measured] | None:
        """The region with the highest mean; None where none was scanned."""
        means = [(region, self.mean(phase, region)) for region in regions]
        seen = [(region, found) for region, found in means if found is not None]
        return max(seen, key=lambda item: item[1].hu, default=None)

    def rise(self, phase: str) -> Measured | None:
        """Enhancement of the lesion itself; None without a non-contrast phase."""
        if not self.usable("NC"):
            return None
        before, after = (self.mean(p, self.regions.body) for p in ("NC", phase))
        return None if before is None or after is None else after.minus(before)
