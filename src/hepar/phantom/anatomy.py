"""A synthetic patient as arrays of tissue codes, whose truth is known.

A seed is a patient: shapes are analytic in millimeters (`shapes`), so any field, spacing and
number of voxels shows the same one. Slices are sampled finer than they are thick, and a voxel keeps
the two tissues that fill most of it. What depends on contrast or scanner is drawn by
`scanner.paint`, never here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, UInt8, UInt16
from scipy import ndimage

from hepar.errors import UsageError
from hepar.phantom.lesion_kinds import Part
from hepar.phantom.lesion_shape import rasterize, retract, wedge_mask
from hepar.phantom.lesions import LesionSpec, Wedge, draw_lesions, draw_lone_wedge
from hepar.phantom.liver import LIVER_HIGH, LIVER_LOW, LiverShape, liver_distance, paint_liver
from hepar.phantom.organs import paint_organs
from hepar.phantom.partial_volume import Mixture, mix, subslices
from hepar.phantom.population import POPULATIONS, Population
from hepar.phantom.shapes import Bend, Frame, Triple
from hepar.phantom.tissue import LIVER_TISSUES, Tissue
from hepar.phantom.torso import Torso, paint_torso

SPACING_MM: dict[str, Triple] = {"abdomen": (3.0, 1.5, 1.5), "liver": (2.5, 1.5, 1.5)}
LIVER_MARGIN_MM = 12.0
ABDOMEN_MARGIN_MM = (42.0, 9.0, 9.0)
ARMS_MM = 55.0
CUT_SHARE = 0.05
COARSE_MM = 5.0
TISSUE_COUNT, PART_COUNT = len(Tissue), len(Part)
VOLUME_RANGE_ML = (800.0, 2450.0)
_VESSEL_POINTS = 230
_ISLAND_ML = 2.0


@dataclass(frozen=True)
class Anatomy:
    """A patient before any contrast or scanner: what `paint` needs and what the truth is.

    Axes as `Grid.axial`: z to Superior, y to Posterior, x to the patient's Left.

    Attributes:
        tissue: uint8 (z, y, x) `Tissue` codes; under a lesion the liver's own code.
        liver: bool (z, y, x), the whole organ with its vessels and lesions.
        instances: uint8 (z, y, x) lesion ids, 0 elsewhere.
        parts: uint8 (z, y, x) `Part` codes inside lesions, 0 elsewhere.
        lesions: one spec an id, ids 1..K.
        spacing_mm: (z, y, x).
        texture_seed: draws what is fixed in the patient but finer than the tissue map.
        origin_mm: (z, y, x) of voxel (0, 0, 0) in the patient's frame.
        steatosis: 0 none .. 1 severe; lowers the liver's HU.
        cirrhosis: 0 none .. 1 severe; nodular texture and surface.
        arms: 0 raised .. 1 beside the body, which streaks the scan.
        second: uint16 (z, y, x) code (see `codes`) of a voxel's second tissue; None: pure voxels.
        share: uint8 (z, y, x) its share, in 255ths, at most a half.
        field: `abdomen` or `liver`.
        cavity: bool (z, y, x), inside the muscle wall: what breathing moves; None: unknown.
    """

    tissue: UInt8[np.ndarray, "z y x"]
    liver: Bool[np.ndarray, "z y x"]
    instances: UInt8[np.ndarray, "z y x"]
    parts: UInt8[np.ndarray, "z y x"]
    lesions: tuple[LesionSpec, ...]
    spacing_mm: Triple
    texture_seed: int
    origin_mm: Triple = (0.0, 0.0, 0.0)
    steatosis: float = 0.0
    cirrhosis: float = 0.0
    arms: float = 0.0
    second: UInt16[np.ndarray, "z y x"] | None = None
    share: UInt8[np.ndarray, "z y x"] | None = None
    field: str = "abdomen"
    cavity: Bool[np.ndarray, "z y x"] | None = None


@dataclass(frozen=True)
class _Patient:
    """Everything drawn for a seed before a grid is chosen."""

    torso: Torso
    bend: Bend
    liver: LiverShape
    cloud_mm: np.ndarray
    lesions: tuple[LesionSpec, ...]
    wedges: tuple[Wedge, ...]
    liver_low_mm: np.ndarray
    liver_high_mm: np.ndarray
    ascites: float
    steatosis: float
    cut: float


def anatomy(
    seed: int,
    *,
    field: str = "abdomen",
    shape: tuple[int, int, int] | None = None,
    spacing_mm: Triple | None = None,
    population: Population = POPULATIONS["general"],
) -> Anatomy:
    """The patient of a seed, sampled on a grid.

    Args:
        seed: the patient; the same on every grid.
        field: `abdomen` is centered on the body at the liver's height, `liver` on the liver's
            box; without a shape they cover body and liver with a margin, except that one abdomen
            in twenty begins or ends inside the liver.
        shape: voxels (z, y, x); the field keeps its center and is cropped or widened.
        spacing_mm: (z, y, x); 3 x 1.5 x 1.5 for the abdomen, 2.5 x 1.5 x 1.5 for the liver.
        population: how often each disease; the same seed is another patient in another one.

    Raises:
        UsageError: E_RECIPE for an unknown field, an empty shape or a spacing not above zero.
    """
    if field not in SPACING_MM:
        raise UsageError(
            "E_RECIPE", "phantom", f"unknown field {field!r}", "use 'abdomen' or 'liver'"
        )
    spacing = spacing_mm or SPACING_MM[field]
    if min(spacing) <= 0 or (shape is not None and min(shape) <= 0):
        raise UsageError(
            "E_RECIPE",
            "phantom",
            f"shape {shape} and spacing_mm {spacing} must be positive",
            "give three positive voxel counts and three positive spacings (z, y, x)",
        )
    patient = _draw_patient(seed, population)
    frame = _frame(patient, field, shape, spacing)
    count = subslices(spacing[0])
    fine = _sample(patient, frame.finer(count), seed, field)
    mixture, lesions = _settle(mix(fine.mixture, count), fine.lesions)
    tissue, instances, parts = from_codes(mixture.first)
    filled = fine.liver.reshape(-1, count, *tissue.shape[1:]).mean(axis=1) >= 0.5
    liver = (filled & np.isin(tissue, [int(t) for t in LIVER_TISSUES])) | (instances > 0)
    return Anatomy(
        tissue=tissue,
        liver=liver,
        instances=instances,
        parts=parts,
        lesions=lesions,
        spacing_mm=spacing,
        texture_seed=seed,
        origin_mm=frame.origin_mm,
        steatosis=patient.steatosis,
        cirrhosis=patient.liver.cirrhosis,
        arms=patient.torso.arms,
        second=mixture.second,
        share=mixture.share,
        field=field,
        cavity=fine.cavity[count // 2 :: count],
    )


def label_map(
    liver: Bool[np.ndarray, "z y x"], instances: UInt8[np.ndarray, "z y x"]
) -> UInt8[np.ndarray, "z y x"]:
    """uint8 (z, y, x): 0 background, 1 liver, 2 tumor."""
    return np.where(instances > 0, 2, liver).astype(np.uint8)


def codes(
    tissue: UInt8[np.ndarray, "z y x"],
    instances: UInt8[np.ndarray, "z y x"],
    parts: UInt8[np.ndarray, "z y x"],
) -> UInt16[np.ndarray, "z y x"]:
    """One code a voxel: its tissue, or behind all tissues its lesion's id and part."""
    code = tissue.astype(np.uint16)
    inside = instances > 0
    code[inside] = lesion_code(instances[inside].astype(np.uint16), parts[inside])
    return code


def lesion_code(number: np.ndarray, part: np.ndarray | int) -> np.ndarray:
    """Codes of a lesion's part."""
    return np.asarray(TISSUE_COUNT + (number - 1) * PART_COUNT + part, dtype=np.uint16)


def from_codes(
    code: UInt16[np.ndarray, "z y x"],
) -> tuple[UInt8[np.ndarray, "z y x"], UInt8[np.ndarray, "z y x"], UInt8[np.ndarray, "z y x"]]:
    """Tissue (liver under a lesion), lesion ids and parts of a code map."""
    lesion = code >= TISSUE_COUNT
    tissue = np.where(lesion, Tissue.LIVER, code).astype(np.uint8)
    behind = np.where(lesion, code - np.uint16(TISSUE_COUNT), 0)
    instances = np.where(lesion, behind // PART_COUNT + 1, 0).astype(np.uint8)
    return tissue, instances, np.where(lesion, behind % PART_COUNT, 0).astype(np.uint8)


@dataclass(frozen=True)
class _Fine:
    """A patient on fine slices: codes, the whole liver, and the lesions that own a voxel."""

    mixture: Mixture
    liver: np.ndarray
    cavity: np.ndarray
    lesions: tuple[LesionSpec, ...]


def _sample(patient: _Patient, frame: Frame, seed: int, field: str) -> _Fine:
    canvas = paint_torso(frame, patient.torso, np.random.default_rng([seed, 21]))
    paint_liver(canvas, patient.liver, patient.cloud_mm, seed)
    paint_organs(
        canvas,
        seed,
        ascites=patient.ascites,
        cirrhosis=patient.liver.cirrhosis,
        resection=patient.liver.resection,
    )
    if field == "abdomen":
        _paint_table(canvas.tissue, frame, patient)
    tissue = canvas.tissue
    liver = np.isin(tissue, [int(t) for t in LIVER_TISSUES]) & (canvas.liver < 0)
    _drop_islands(tissue, liver, float(np.prod(frame.spacing_mm)) / 1000)
    for spec in patient.lesions:
        dent = retract(spec, liver, frame.spacing_mm, frame.origin_mm)
        if dent is not None:
            tissue[dent], liver[dent] = Tissue.FAT, False
    for wedge in patient.wedges:
        mask = wedge_mask(wedge, tissue == Tissue.LIVER, frame.spacing_mm, frame.origin_mm)
        tissue[mask & liver] = Tissue.PERFUSION
    found = rasterize(patient.lesions, liver, frame.spacing_mm, frame.origin_mm)
    first = codes(tissue, found.instances, found.parts)
    # In a margin the minority is liver inside the lesion, and the lesion's body outside it.
    body = lesion_code(np.maximum(found.fringe, 1).astype(np.uint16), int(Part.BODY))
    second = np.where(found.fringe > 0, np.where(found.instances > 0, Tissue.LIVER, body), first)
    mixture = Mixture(first, second.astype(np.uint16), found.mixed)
    return _Fine(mixture, liver, canvas.cavity < 0, found.specs)


def _settle(
    mixture: Mixture, lesions: tuple[LesionSpec, ...]
) -> tuple[Mixture, tuple[LesionSpec, ...]]:
    """Drop the lesions that fill most of no voxel, and number the others 1..K."""
    _, instances, _ = from_codes(mixture.first)
    alive = np.flatnonzero(np.bincount(instances.ravel(), minlength=len(lesions) + 1)[1:])
    if len(alive) == len(lesions):
        return mixture, lesions
    table = np.arange(TISSUE_COUNT + len(lesions) * PART_COUNT, dtype=np.uint16)
    gone = np.ones(len(table), bool)
    gone[:TISSUE_COUNT] = False
    for number, index in enumerate(alive):
        old = slice(TISSUE_COUNT + index * PART_COUNT, TISSUE_COUNT + (index + 1) * PART_COUNT)
        table[old] = TISSUE_COUNT + number * PART_COUNT + np.arange(PART_COUNT)
        gone[old] = False
    lost = gone[mixture.second]
    first = table[mixture.first]
    settled = Mixture(
        first,
        np.where(lost, first, table[mixture.second]),
        np.where(lost, np.uint8(0), mixture.share),
    )
    return settled, tuple(replace(lesions[i], id=n + 1) for n, i in enumerate(alive))


def _draw_patient(seed: int, population: Population) -> _Patient:
    rng = np.random.default_rng([seed, 11])
    obesity = float(rng.beta(*population.obesity))
    stature = rng.uniform(0.92, 1.08)
    width = stature * rng.uniform(0.96, 1.04)
    # Canonical = patient * scale, so a large patient has a scale below one.
    scale = (1 / stature, 1 / (stature * rng.uniform(0.95, 1.05)), 1 / width)
    bend = Bend.draw(rng, scale)
    torso = Torso.draw(rng, obesity)
    cirrhosis = float(rng.uniform(0.3, 1.0)) if rng.random() < population.cirrhosis else 0.0
    fat = float(0.1 + 0.9 * rng.beta(1.2, 2.2))
    steatosis = fat if rng.random() < population.steatosis else 0.0
    wet = rng.random() < (0.35 if cirrhosis > 0 else 0.04)
    shape = LiverShape.draw(rng, cirrhosis)
    frame = _coarse_frame(bend)
    view = frame.whole()
    cavity, dome = torso.cavity_depth(view), torso.dome_distance(view)
    for _ in range(4):
        inside = liver_distance(frame, view, shape, cavity, dome, seed) < 0
        volume_ml = float(inside.sum()) * COARSE_MM**3 / 1000
        if VOLUME_RANGE_ML[0] <= volume_ml <= VOLUME_RANGE_ML[1]:
            break
        shape = shape.resized(1.08 if volume_ml < VOLUME_RANGE_ML[0] else 0.93)
    where = np.argwhere(inside)
    spots = where[rng.integers(len(where), size=_VESSEL_POINTS)]
    cloud = np.stack([axis[tuple(spots.T)] for axis in (frame.z, frame.y, frame.x)], axis=1)
    origin = np.asarray(frame.origin_mm)
    lesion_rng = np.random.default_rng([seed, 12])
    lesions = draw_lesions(inside, frame.spacing_mm, frame.origin_mm, lesion_rng, population)
    lone = draw_lone_wedge(inside, frame.spacing_mm, frame.origin_mm, lesion_rng)
    wedges = [spec.wedge() for spec in lesions] + [lone]
    return _Patient(
        torso=torso,
        bend=bend,
        liver=shape,
        cloud_mm=cloud.astype(np.float64),
        lesions=lesions,
        wedges=tuple(wedge for wedge in wedges if wedge is not None),
        liver_low_mm=origin + where.min(axis=0) * COARSE_MM,
        liver_high_mm=origin + where.max(axis=0) * COARSE_MM,
        ascites=float(rng.uniform(0.1, 1.0)) if wet else 0.0,
        steatosis=steatosis,
        # A scan that begins in the liver (above zero) or ends in it: by how much of its height.
        cut=float(rng.uniform(0.1, 0.3) * rng.choice((-1, 1))) if rng.random() < CUT_SHARE else 0.0,
    )


def _coarse_frame(bend: Bend) -> Frame:
    reach = bend.amplitude_mm + 10
    low = [v / s - reach for v, s in zip(LIVER_LOW, bend.scale, strict=True)]
    high = [v / s + reach for v, s in zip(LIVER_HIGH, bend.scale, strict=True)]
    shape = tuple(int(np.ceil((b - a) / COARSE_MM)) for a, b in zip(low, high, strict=True))
    spacing = (COARSE_MM, COARSE_MM, COARSE_MM)
    return Frame(shape, spacing, (low[0], low[1], low[2]), bend)  # type: ignore[arg-type]


def _frame(
    patient: _Patient, field: str, shape: tuple[int, int, int] | None, spacing_mm: Triple
) -> Frame:
    low, high = patient.liver_low_mm, patient.liver_high_mm
    if field == "liver":
        low, high = low - LIVER_MARGIN_MM, high + LIVER_MARGIN_MM
    else:
        front, back, half_width = patient.torso.skin_box_mm()
        fixed, scale = patient.bend.fixed_mm[1], patient.bend.scale
        body_low = np.array([low[0], fixed + (front - fixed) / scale[1], -half_width / scale[2]])
        body_high = np.array([high[0], fixed + (back - fixed) / scale[1], half_width / scale[2]])
        margin = np.asarray(ABDOMEN_MARGIN_MM)
        margin[2] += ARMS_MM * (patient.torso.arms > 0)
        low, high = body_low - margin, body_high + margin
        cut = patient.cut * (patient.liver_high_mm[0] - patient.liver_low_mm[0])
        low[0], high[0] = low[0] + (cut > 0) * (margin[0] + cut), high[0] + min(cut, 0)
        high[0] -= (cut < 0) * margin[0]
    spacing = np.asarray(spacing_mm)
    size = np.ceil((high - low) / spacing).astype(int) if shape is None else np.asarray(shape)
    origin = (low + high) / 2 - (size - 1) / 2 * spacing
    return Frame(
        (int(size[0]), int(size[1]), int(size[2])),
        spacing_mm,
        (float(origin[0]), float(origin[1]), float(origin[2])),
        patient.bend,
    )


def _drop_islands(tissue: np.ndarray, liver: np.ndarray, voxel_ml: float) -> None:
    """Turn specks of liver that the cuts left loose into fat, in place."""
    components, count = ndimage.label(liver)
    if count < 2:
        return
    sizes = np.bincount(components.ravel()) * voxel_ml
    small = sizes < _ISLAND_ML
    small[0] = False
    small[int(np.argmax(sizes[1:])) + 1] = False
    loose = small[components]
    liver[loose] = False
    tissue[loose] = Tissue.FAT


def _paint_table(tissue: np.ndarray, frame: Frame, patient: _Patient) -> None:
    """A thin, slightly hollow table top under the back, straight in patient millimeters."""
    _, back, _ = patient.torso.skin_box_mm()
    fixed, scale = patient.bend.fixed_mm[1], patient.bend.scale
    y, x = frame.axes_mm[1][:, None], frame.axes_mm[2][None, :]
    top = fixed + (back - fixed) / scale[1] + 4 - 0.0009 * x**2
    board = (y > top) & (y < top + 3) & (np.abs(x) < 210)
    area = np.broadcast_to(board, tissue.shape) & (tissue == Tissue.AIR)
    tissue[area] = Tissue.TABLE
