"""Which slices a report shows: an overview of the liver, and each lesion in every phase."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hepar.geometry import Box, key_slice
from hepar.lesion_evidence import PICTURED
from hepar.render.overlay import (
    Picture,
    axial_plane,
    beside,
    body_window,
    coronal_plane,
    draw,
    lesion_window,
)
from hepar.study import PHASE_ORDER, Lesion, LesionMap, LiverCase, Phase

N_AXIAL = 3
_OVERVIEW_PX = (400, 520)
_LESION_PX = 380
_DOUBT_PX = (360, 460)
_TYPE_PX = 260
_APART_MM = 12.0
_BEYOND_MM = 60.0


@dataclass(frozen=True)
class Figure:
    """A picture of the report.

    Attributes:
        name: of its PNG file, without suffix.
        picture: what it shows.
        caption: in words.
        lesion_id: the lesion it is about, or None for an overview.
        panels: phases, or maps, side by side.
        of_type: the type whose map it shows; empty of pictures of the patient.
    """

    name: str
    picture: Picture
    caption: str
    lesion_id: int | None = None
    panels: int = 1
    of_type: str = ""


def report_figures(case: LiverCase, lesions: LesionMap) -> tuple[Figure, ...]:
    """Overview slices, known doubt, the largest lesions, maps of their types: at most 21."""
    largest = sorted(lesions.lesions, key=lambda lesion: -lesion.volume_ml)
    return (
        *_overview(case, lesions, largest),
        *_doubt(case, lesions, largest),
        *lesion_figures(case, lesions),
        *_type_figures(case, lesions),
    )


def lesion_figures(case: LiverCase, lesions: LesionMap) -> tuple[Figure, ...]:
    """The largest lesions, each on its key slice in every phase: at most `PICTURED`."""
    largest = sorted(lesions.lesions, key=lambda lesion: -lesion.volume_ml)
    return tuple(_lesion_figure(case, lesions, one) for one in largest[:PICTURED])


def overview_slices(case: LiverCase, lesions: LesionMap, largest: list[Lesion]) -> list[int]:
    """Axial slices through the largest lesions, filled up with slices through the liver."""
    grid = case.aligned.grid
    apart = max(1, round(_APART_MM / grid.spacing_mm[0]))
    area = case.liver.sum(axis=(1, 2), dtype=np.int64)
    through_liver = np.interp(
        [0.5, 0.25, 0.75, 0.375, 0.625], np.cumsum(area) / max(1, area.sum()), np.arange(len(area))
    )
    wanted = [lesion_slice(lesions, lesion) for lesion in largest]
    wanted += [round(float(z)) for z in through_liver]
    chosen: list[int] = []
    for z in wanted:
        if len(chosen) < N_AXIAL and all(abs(z - other) >= apart for other in chosen):
            chosen.append(z)
    return sorted(chosen, reverse=True)  # from the head downwards


def lesion_slice(lesions: LesionMap, lesion: Lesion) -> int:
    """The axial slice on which a lesion is largest."""
    box = Box(*lesion.box_zyx)
    return box.start[0] + key_slice(lesions.instances[box.slices] == lesion.id)


def _overview(case: LiverCase, lesions: LesionMap, largest: list[Lesion]) -> list[Figure]:
    reference = case.aligned.volumes[case.aligned.reference]
    data = (reference.array, case.liver, lesions.instances, reference.grid)
    figures = []
    for number, z in enumerate(overview_slices(case, lesions, largest), 1):
        plane = axial_plane(*data, z, body_window(reference.array, z))
        picture = draw(plane, size=_OVERVIEW_PX, title="Axial", name_lesions=True)
        figures.append(Figure(f"axial_{number:02d}", picture, _caption(f"Axial {plane.place}")))
    if largest:
        box = Box(*largest[0].box_zyx)
        y = box.start[1] + key_slice(lesions.instances[box.slices] == largest[0].id, axis=1)
    else:
        y = key_slice(case.liver, axis=1)
    columns = body_window(reference.array, key_slice(case.liver))
    # A scan from chest to pelvis would leave little room for the liver.
    beyond = round(_BEYOND_MM / reference.grid.spacing_mm[0])
    low = max(0, case.box.start[0] - beyond)
    high = min(reference.grid.shape[0], case.box.stop[0] + beyond)
    crop = Box((low, 0, columns.start[2]), (high, reference.grid.shape[1], columns.stop[2]))
    plane = coronal_plane(*data, y, crop)
    picture = draw(plane, size=_OVERVIEW_PX, title="Coronal", name_lesions=True)
    return [*figures, Figure("coronal", picture, _caption(plane.place.capitalize()))]


def _doubt(case: LiverCase, lesions: LesionMap, largest: list[Lesion]) -> list[Figure]:
    """The liver's slice with the largest lesion, or the most doubt, beside the maps of doubt."""
    maps = {
        "Uncertainty before inpainting": lesions.uncertainty_before,
        "Uncertainty": lesions.uncertainty,
    }
    known = {title: one for title, one in maps.items() if one is not None}
    if not known:
        return []
    reference = case.aligned.volumes[case.aligned.reference]
    levels = case.box.slices[0]
    if largest:
        z = lesion_slice(lesions, largest[0])
    else:
        z = levels.start + int(known["Uncertainty"].sum(axis=(1, 2)).argmax())
    crop = Box((0, *case.box.start[1:]), (reference.grid.shape[0], *case.box.stop[1:]))
    data = (reference.array, case.liver, lesions.instances, reference.grid)
    plane = axial_plane(*data, z, crop)
    panels = [draw(plane, size=_DOUBT_PX, title=_title(case.aligned.reference, None))]
    for title, one in known.items():
        # Doubt is as thin as a contour and lies along it, so the contours stay in the first panel.
        heated = replace(plane, heat=one[z - levels.start])
        panels.append(draw(heated, size=_DOUBT_PX, title=title, contours=False))
    text = _caption(f"Uncertainty of the network, axial {plane.place}")
    return [Figure("uncertainty", beside(panels), text, panels=len(panels))]


def _lesion_figure(case: LiverCase, lesions: LesionMap, lesion: Lesion) -> Figure:
    """One lesion on its key slice in every phase, side by side."""
    grid = case.aligned.grid
    z = lesion_slice(lesions, lesion)
    crop = lesion_window(Box(*lesion.box_zyx), grid)
    panels = []
    for phase in (p for p in PHASE_ORDER if p in case.aligned.volumes):
        volume = case.aligned.volumes[phase]
        plane = axial_plane(volume.array, case.liver, lesions.instances, grid, z, crop)
        title = _title(phase, case.aligned.reference)
        panels.append(draw(plane, size=(_LESION_PX, _LESION_PX), title=title))
    return Figure(
        f"lesion_{lesion.id:02d}",
        beside(panels),
        _caption(f"Lesion {lesion.id}, axial {panels[0].caption}"),
        lesion.id,
        len(panels),
    )


def _type_figures(case: LiverCase, lesions: LesionMap) -> list[Figure]:
    """Where a typed system sees the likeliest type of each pictured lesion, on its key slice."""
    if lesions.types is None:
        return []
    reference = case.aligned.volumes[case.aligned.reference]
    data = (reference.array, case.liver, lesions.instances, reference.grid)
    figures = []
    for lesion, seen in zip(lesions.lesions, lesions.types.maps, strict=False):
        heat = np.zeros(reference.grid.shape[1:], np.float32)
        heat[case.box.slices[1:]] = seen
        crop = lesion_window(Box(*lesion.box_zyx), reference.grid)
        plane = axial_plane(*data, lesion_slice(lesions, lesion), crop)
        plane = replace(plane, heat=heat[crop.slices[1:]])
        of_type = lesions.types.likeliest(lesion.id)
        figures.append(
            Figure(
                f"lesion_{lesion.id:02d}_type",
                draw(plane, size=(_TYPE_PX, _TYPE_PX), title=""),
                _caption(f"Lesion {lesion.id}, axial {plane.place}"),
                lesion.id,
                of_type=of_type,
            )
        )
    return figures


def _caption(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def _title(phase: Phase, reference: Phase | None) -> str:
    name = phase.long_name.capitalize()
    return f"{name} (reference)" if phase == reference else name
