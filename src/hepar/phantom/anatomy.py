"""A synthetic patient as arrays of tissue codes, whose truth is known.

A seed is a patient: shapes are analytic in millimeters (`shapes`), so any field, spacing and
number of voxels shows the same one. What depends on contrast or scanner is drawn by
`scanner.paint`, never here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8
from scipy import ndimage

from hepar.errors import UsageError
from hepar.phantom.lesions import LesionSpec, draw_lesions, rasterize
from hepar.phantom.liver import LIVER_HIGH, LIVER_LOW, LiverShape, liver_distance, paint_liver
from hepar.phantom.organs import paint_organs
from hepar.phantom.shapes import Bend, Frame, Triple
from hepar.phantom.tissue import LIVER_TISSUES, Tissue
from hepar.phantom.torso import Torso, paint_torso

SPACING_MM: dict[str, Triple] = {"abdomen": (3.0, 1.5, 1.5), "liver": (2.5, 1.5, 1.5)}
LIVER_MARGIN_MM = 12.0
ABDOMEN_MARGIN_MM = (42.0, 9.0, 9.0)
COARSE_MM = 5.0
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


@dataclass(frozen=True)
class _Patient:
    """Everything drawn for a seed before a grid is chosen."""

    torso: Torso
    bend: Bend
    liver: LiverShape
    cloud_mm: np.ndarray
    lesions: tuple[LesionSpec, ...]
    liver_low_mm: np.ndarray
    liver_high_mm: np.ndarray
    ascites: float
    steatosis: float


def anatomy(
    seed: int,
    *,
    field: str = "abdomen",
    shape: tuple[int, int, int] | None = None,
    spacing_mm: Triple | None = None,
) -> Anatomy:
    """The patient of a seed, sampled on a grid.

    Args:
        seed: the patient; the same on every grid.
        field: `abdomen` is centered on the body at the liver's height, `liver` on the liver's
            box; without a shape they cover body and liver with a margin.
        shape: voxels (z, y, x); the field keeps its center and is cropped or widened.
        spacing_mm: (z, y, x); 3 x 1.5 x 1.5 for the abdomen, 2.5 x 1.5 x 1.5 for the liver.

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
    patient = _draw_patient(seed)
    frame = _frame(patient, field, shape, spacing)
    canvas = paint_torso(frame, patient.torso, np.random.default_rng([seed, 21]))
    paint_liver(canvas, patient.liver, patient.cloud_mm, seed)
    paint_organs(canvas, seed, ascites=patient.ascites)
    if field == "abdomen":
        _paint_table(canvas.tissue, frame, patient)
    tissue = canvas.tissue
    liver = np.isin(tissue, [int(t) for t in LIVER_TISSUES]) & (canvas.liver < 0)
    _drop_islands(tissue, liver, float(np.prod(spacing)) / 1000)
    instances, parts, lesions = rasterize(patient.lesions, liver, spacing, frame.origin_mm)
    tissue[instances > 0] = Tissue.LIVER
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
    )


def label_map(anatomy: Anatomy) -> UInt8[np.ndarray, "z y x"]:
    """uint8 (z, y, x): 0 background, 1 liver, 2 tumor."""
    return np.where(anatomy.instances > 0, 2, anatomy.liver).astype(np.uint8)


def _draw_patient(seed: int) -> _Patient:
    rng = np.random.default_rng([seed, 11])
    obesity = float(rng.beta(1.6, 2.2))
    stature = rng.uniform(0.92, 1.08)
    width = stature * rng.uniform(0.96, 1.04)
    # Canonical = patient * scale, so a large patient has a scale below one.
    scale = (1 / stature, 1 / (stature * rng.uniform(0.95, 1.05)), 1 / width)
    bend = Bend.draw(rng, scale)
    torso = Torso.draw(rng, obesity)
    cirrhosis = float(rng.uniform(0.3, 1.0)) if rng.random() < 0.14 else 0.0
    steatosis = float(rng.uniform(0.2, 1.0)) if rng.random() < 0.25 else 0.0
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
    lesions = draw_lesions(
        inside, frame.spacing_mm, frame.origin_mm, np.random.default_rng([seed, 12])
    )
    return _Patient(
        torso=torso,
        bend=bend,
        liver=shape,
        cloud_mm=cloud.astype(np.float64),
        lesions=lesions,
        liver_low_mm=origin + where.min(axis=0) * COARSE_MM,
        liver_high_mm=origin + where.max(axis=0) * COARSE_MM,
        ascites=float(rng.uniform(0.1, 1.0)) if wet else 0.0,
        steatosis=steatosis,
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
        low, high = body_low - margin, body_high + margin
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
