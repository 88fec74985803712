"""A real patient's label map as many patients: deformed, given vessels and lesions, to be painted.

Shapes are real, every HU is synthetic (`scanner.paint`), so that a network learns where a real
liver ends without learning one scan's texture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, UInt8, UInt16
from scipy import ndimage

from hepar.geometry import Box, Grid
from hepar.phantom.anatomy import LIVER_MARGIN_MM, Anatomy, codes, lesion_code
from hepar.phantom.deform import draw_warp, source_points_mm
from hepar.phantom.dome import complete_dome
from hepar.phantom.labelmap import Template, largest_component
from hepar.phantom.lesion_kinds import Part
from hepar.phantom.lesion_shape import Rasterized, rasterize, retract, wedge_mask
from hepar.phantom.lesions import LesionSpec, Wedge, draw_lesions, draw_lone_wedge
from hepar.phantom.liver_tubes import add_tubes
from hepar.phantom.population import POPULATIONS, Population
from hepar.phantom.shapes import Triple
from hepar.phantom.tissue import LIVER_TISSUES, Tissue
from hepar.resampling import resample

COARSE_MM: Triple = (5.0, 5.0, 5.0)
# Larger than any deformed liver; the box of the liver is cut out of it.
FIELD_VOXELS = (76, 64, 72)


def warped_anatomy(
    template: Template,
    seed: int,
    *,
    spacing_mm: Triple,
    population: Population = POPULATIONS["general"],
) -> Anatomy:
    """The patient of a seed, made of a real one: a pure function of the arguments.

    Args:
        template: the real label map; its scan's HU are not used.
        seed: draws dome, vessels, deformation, lesions.
        spacing_mm: (z, y, x) of the result, whose field is the liver's box with a margin.
        population: how often each disease.

    Raises:
        ValueError: the template has no liver.
    """
    rng = np.random.default_rng([seed, 31])
    body = add_tubes(complete_dome(template, rng), rng)
    where = np.argwhere(body.liver)
    if len(where) == 0:
        raise ValueError("the template has no liver")
    size = np.asarray(body.spacing_mm)
    middle = (where.min(axis=0) + where.max(axis=0)) / 2 * size
    points = where[:: max(1, len(where) // 500)] * size
    warp = draw_warp(rng, (float(middle[0]), float(middle[1]), float(middle[2])), points)
    field = Grid.axial(FIELD_VOXELS, COARSE_MM)
    at = (
        source_points_mm(warp, FIELD_VOXELS, COARSE_MM)
        / size.astype(np.float32)[:, None, None, None]
    )
    soft = ndimage.gaussian_filter(body.liver.astype(np.float32), 0.7)
    coarse = largest_component(_sample(soft, at) >= 0.5)
    lesions = draw_lesions(coarse, COARSE_MM, (0.0, 0.0, 0.0), rng, population)
    wedges = [spec.wedge() for spec in lesions]
    wedges.append(draw_lone_wedge(coarse, COARSE_MM, (0.0, 0.0, 0.0), rng))

    box = Box.around(coarse, (1, 1, 1))
    assert box is not None
    grid, origin = _box_grid(box, spacing_mm)
    fine = np.stack([resample(axis, field, grid, antialias=False, fill=-10.0) for axis in at])
    liver = largest_component(_sample(soft, fine) >= 0.5)
    tissue = _tissue(body, fine, liver)
    _mark(tissue, liver, lesions, wedges, spacing_mm, origin)
    found = rasterize(lesions, liver, spacing_mm, origin)
    tissue[found.instances > 0] = Tissue.LIVER
    fat = float(0.1 + 0.9 * rng.beta(1.2, 2.2))
    return Anatomy(
        tissue=tissue,
        liver=liver,
        instances=found.instances,
        parts=found.parts,
        lesions=found.specs,
        spacing_mm=spacing_mm,
        texture_seed=seed,
        origin_mm=origin,
        steatosis=fat if rng.random() < population.steatosis else 0.0,
        second=_second(tissue, found),
        share=found.mixed,
        field="liver",
    )


def _mark(
    tissue: UInt8[np.ndarray, "z y x"],
    liver: Bool[np.ndarray, "z y x"],
    lesions: Sequence[LesionSpec],
    wedges: Sequence[Wedge | None],
    spacing_mm: Triple,
    origin_mm: Triple,
) -> None:
    """What lesions do to the liver around them, in place: dents, and wedges of other perfusion."""
    for spec in lesions:
        dent = retract(spec, liver, spacing_mm, origin_mm)
        if dent is not None:
            tissue[dent], liver[dent] = Tissue.FAT, False
    for wedge in wedges:
        if wedge is not None:
            mask = wedge_mask(wedge, tissue == Tissue.LIVER, spacing_mm, origin_mm)
            tissue[mask & liver] = Tissue.PERFUSION


def _second(tissue: UInt8[np.ndarray, "z y x"], found: Rasterized) -> UInt16[np.ndarray, "z y x"]:
    """The minority of each voxel: in a margin liver inside the lesion, its body outside."""
    first = codes(tissue, found.instances, found.parts)
    body = lesion_code(np.maximum(found.fringe, 1).astype(np.uint16), int(Part.BODY))
    minority = np.where(found.instances > 0, np.uint16(Tissue.LIVER), body)
    return np.where(found.fringe > 0, minority, first).astype(np.uint16)


def _box_grid(box: Box, spacing_mm: Triple) -> tuple[Grid, Triple]:
    """The grid of a box of the coarse field with the margin of phantom livers, and its origin."""
    low = np.asarray(box.start) * COARSE_MM - LIVER_MARGIN_MM
    high = (np.asarray(box.stop) - 1) * COARSE_MM + LIVER_MARGIN_MM
    z, y, x = (int(n) for n in np.ceil((high - low) / np.asarray(spacing_mm)))
    origin: Triple = (float(low[0]), float(low[1]), float(low[2]))
    return Grid.axial((z, y, x), spacing_mm, (origin[2], origin[1], origin[0])), origin


def _sample(
    volume: Float32[np.ndarray, "z y x"], at: Float32[np.ndarray, "3 ..."]
) -> Float32[np.ndarray, "..."]:
    return np.asarray(ndimage.map_coordinates(volume, at, order=1, mode="constant", cval=0.0))


def _tissue(
    body: Template, at: Float32[np.ndarray, "3 z y x"], liver: Bool[np.ndarray, "z y x"]
) -> UInt8[np.ndarray, "z y x"]:
    """Tissue codes at points of the template; the liver's border is the smooth one of `liver`."""
    inside = np.isin(body.tissue, [int(t) for t in LIVER_TISSUES])
    nearest = ndimage.distance_transform_edt(
        body.liver | np.isin(body.tissue, [Tissue.LIVER, Tissue.PERFUSION]),
        sampling=body.spacing_mm,
        return_distances=False,
        return_indices=True,
    )
    around = body.tissue[tuple(nearest)]
    outer = ndimage.map_coordinates(around, at, order=0, mode="constant", cval=int(Tissue.AIR))
    organ = np.where(body.liver & inside, body.tissue, np.uint8(Tissue.LIVER))
    inner = ndimage.map_coordinates(organ, at, order=0, mode="constant", cval=int(Tissue.LIVER))
    return np.where(liver, inner, outer).astype(np.uint8)
