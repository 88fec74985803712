"""Lesions of a patient: how many, of which kind, how large, and where they fit.

Placement works on any liver mask, procedural or from a label map, in millimeters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

from hepar.phantom.lesion_kinds import KINDS, OTHER_ALL, OTHER_SEEN
from hepar.phantom.population import POPULATIONS, Population
from hepar.study import LESION_TYPES

Triple = tuple[float, float, float]
DIAMETER_MM = (3.0, 120.0)
MAX_LESIONS = 15
_COMPANIONS = ("cyst", "hemangioma", "calcification")
# Wedges without a lesion: a shut portal branch, a compressing rib, an arterioportal shunt.
LONE_WEDGE_SHARE = 0.1


@dataclass(frozen=True)
class Wedge:
    """A cone of liver fed by arteries alone, from a point to the capsule.

    Attributes:
        apex_mm: (z, y, x).
        outward: unit vector from the apex to the nearest capsule.
        length_mm: from apex to capsule.
        slope: radius gained a millimeter of length.
    """

    apex_mm: Triple
    outward: Triple
    length_mm: float
    slope: float


@dataclass(frozen=True)
class LesionSpec:
    """One lesion, in the patient's own millimeters.

    Attributes:
        id: value in the instance map, 1..K.
        type: one of `LESION_TYPES`.
        center_mm: (z, y, x) of the center in the anatomy's frame (`Anatomy.origin_mm`).
        radii_mm: semi-axes before rotation and shape noise.
        shape_seed: draws rotation, shape noise and parts.
        irregularity: relative SD of the radius over the sphere.
        rim_mm: thickness of the rim or capsule.
        traits: biological variants such as `capsule`, `no_washout`, `hypervascular`.
        kind: key of `lesion_kinds.KINDS`; the type unless it is `other`.
        margin_mm: width over which tumor gives way to liver; 0 is a sharp edge.
        outward: unit vector to the nearest capsule, where one was needed.
        depth_mm: distance from the center to that capsule.
    """

    id: int
    type: str
    center_mm: Triple
    radii_mm: Triple
    shape_seed: int
    irregularity: float
    rim_mm: float
    traits: tuple[str, ...] = ()
    kind: str = ""
    margin_mm: float = 0.0
    outward: Triple = (0.0, 0.0, 0.0)
    depth_mm: float = 0.0

    def __post_init__(self) -> None:
        if not self.kind:
            object.__setattr__(self, "kind", self.type)

    @property
    def mean_radius_mm(self) -> float:
        """Radius of the ball of the same volume."""
        return float(np.prod(self.radii_mm)) ** (1 / 3)

    def wedge(self) -> Wedge | None:
        """The perfusion wedge behind it, if it has one."""
        if "wedge" not in self.traits:
            return None
        return Wedge(self.center_mm, self.outward, self.depth_mm, 0.55)


@dataclass(frozen=True)
class _Room:
    """Where lesions may lie: voxels of a liver with their depth and nearest outside voxel."""

    spots_mm: np.ndarray
    depth_mm: np.ndarray
    capsule_mm: np.ndarray

    @classmethod
    def of(
        cls, liver: np.ndarray, spacing_mm: Triple, origin_mm: Triple, rng: np.random.Generator
    ) -> _Room:
        depth, nearest = ndimage.distance_transform_edt(
            liver, sampling=spacing_mm, return_indices=True
        )
        spacing, origin = np.asarray(spacing_mm), np.asarray(origin_mm)
        spots = np.argwhere(liver) * spacing + origin
        jitter = rng.uniform(-0.5, 0.5, spots.shape) * spacing
        capsule = nearest[:, liver].T * spacing + origin
        return cls(spots + jitter, depth[liver].astype(np.float32), capsule)

    def outward(self, index: int) -> tuple[Triple, float]:
        """Unit vector and distance from a spot to the nearest voxel outside."""
        way = self.capsule_mm[index] - self.spots_mm[index]
        length = float(np.linalg.norm(way)) or 1.0
        z, y, x = way / length
        return (float(z), float(y), float(x)), length


def draw_lesions(
    liver: Bool[np.ndarray, "z y x"],
    spacing_mm: Triple,
    origin_mm: Triple,
    rng: np.random.Generator,
    population: Population = POPULATIONS["general"],
) -> tuple[LesionSpec, ...]:
    """Draw a patient's lesions inside a liver mask.

    Args:
        liver: bool (z, y, x); a coarse mask is enough, positions are jittered within a voxel.
        spacing_mm: of the mask.
        origin_mm: (z, y, x) of its first voxel.
        rng: explicit generator.
        population: shares of diseases and of tumor-free patients.

    Returns:
        Specs with ids 1..K, largest first; they lie in the liver up to a limited exposure and do
        not overlap by more than their shape noise. A lesion that finds no room is made smaller,
        then left out.
    """
    wanted = _draw_kinds(rng, population)
    if not wanted or not liver.any():
        return ()
    room = _Room.of(liver, spacing_mm, origin_mm, rng)
    placed: list[LesionSpec] = []
    for kind, diameter in wanted:
        spec = _place(kind, diameter, room, placed, rng)
        if spec is not None:
            placed.append(replace(spec, id=len(placed) + 1))
    return tuple(placed)


def draw_lone_wedge(
    liver: Bool[np.ndarray, "z y x"],
    spacing_mm: Triple,
    origin_mm: Triple,
    rng: np.random.Generator,
) -> Wedge | None:
    """A perfusion wedge without a lesion, in 10 % of patients."""
    if rng.random() >= LONE_WEDGE_SHARE or not liver.any():
        return None
    room = _Room.of(liver, spacing_mm, origin_mm, rng)
    deep = np.flatnonzero((room.depth_mm > 12) & (room.depth_mm < 35))
    if not len(deep):
        return None
    index = int(deep[rng.integers(len(deep))])
    z, y, x = room.spots_mm[index]
    outward, length = room.outward(index)
    return Wedge((float(z), float(y), float(x)), outward, length, float(rng.uniform(0.35, 0.7)))


def _draw_kinds(rng: np.random.Generator, population: Population) -> list[tuple[str, float]]:
    if rng.random() < population.tumor_free:
        return []
    share = np.asarray(population.primary, float)
    primary = _kind_of(str(rng.choice(LESION_TYPES, p=share / share.sum())), population, rng)
    more = KINDS[primary].count - 1
    # A few patients have very many: a Poisson whose mean varies from patient to patient.
    kinds = [primary] * (1 + rng.poisson(more * rng.gamma(1.0, 1.0)))
    if rng.random() < population.companions:
        second = str(rng.choice(_COMPANIONS, p=(0.5, 0.35, 0.15)))
        kinds += [second] * (1 + rng.poisson(0.4))
    drawn = []
    for kind in kinds[:MAX_LESIONS]:
        median, log_sd = KINDS[kind].diameter_mm
        diameter = float(np.clip(median * np.exp(rng.normal(0, log_sd)), *DIAMETER_MM))
        drawn.append((kind, diameter))
    return sorted(drawn, key=lambda pair: -pair[1])


def _kind_of(lesion_type: str, population: Population, rng: np.random.Generator) -> str:
    if lesion_type != "other":
        return lesion_type
    names = OTHER_ALL if population.rare == "all" else OTHER_SEEN
    return names[int(rng.integers(len(names)))]


def _place(
    name: str, diameter_mm: float, room: _Room, placed: list[LesionSpec], rng: np.random.Generator
) -> LesionSpec | None:
    """Choose a spot deep enough and far enough from the others; shrink when there is none."""
    kind = KINDS[name]
    # A lesion may touch or indent the capsule but at most about a third of it lies outside:
    # exposed masses teach a network that anything dark beside the liver is liver.
    cover = 1.05 if rng.random() < 0.7 else 0.55
    stretch = np.exp(rng.normal(0, 0.12, 3))
    stretch /= stretch.prod() ** (1 / 3)
    irregularity = float(rng.uniform(*kind.irregularity))
    for _ in range(7):
        reach = diameter_mm / 2 * float(stretch.max()) * (1 + irregularity)
        free = room.depth_mm >= cover * diameter_mm / 2
        for other in placed:
            gap = np.linalg.norm(room.spots_mm - np.asarray(other.center_mm), axis=1)
            free &= gap > reach + max(other.radii_mm) * (1 + other.irregularity) + 2
        candidates = np.flatnonzero(free)
        if len(candidates):
            index = int(candidates[rng.integers(len(candidates))])
            z, y, x = room.spots_mm[index]
            outward, depth = room.outward(index)
            a, b, c = diameter_mm / 2 * stretch
            return LesionSpec(
                id=0,
                type=kind.type,
                center_mm=(float(z), float(y), float(x)),
                radii_mm=(float(a), float(b), float(c)),
                shape_seed=int(rng.integers(2**31)),
                irregularity=irregularity,
                rim_mm=float(np.clip(diameter_mm * rng.uniform(*kind.rim), 1.2, 10)),
                traits=_draw_traits(name, diameter_mm, rng),
                kind=name,
                # A margin wider than the lesion would leave nothing of it.
                margin_mm=float(min(rng.uniform(*kind.margin_mm), 0.35 * diameter_mm)),
                outward=outward,
                depth_mm=depth,
            )
        diameter_mm = max(diameter_mm * 0.75, DIAMETER_MM[0])
    return None


def _draw_traits(name: str, diameter_mm: float, rng: np.random.Generator) -> tuple[str, ...]:
    chosen = []
    for trait, rule in KINDS[name].traits.items():
        if rng.random() < rule.share and rule.from_mm <= diameter_mm < rule.to_mm:
            chosen.append(trait)
    return tuple(chosen)
