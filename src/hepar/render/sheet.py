"""Every series of a study on one sheet: a coronal and three axial slices, or why there are none.

In the abdominal window, at true proportions, patient's right on the left, head and anterior up.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from hepar.geometry import Box, canonical
from hepar.io.ingest import Geometry, Ingest, IngestSeries
from hepar.io.refusal import WARNINGS
from hepar.render.overlay import (
    CODE,
    Picture,
    axial_plane,
    beside,
    body_window,
    coronal_plane,
    draw,
    font,
    write_text,
)
from hepar.study import Phase, Volume

PANEL_PX = 300
# Shares of the height at which axial slices are cut, from the head downwards.
LEVELS = (0.75, 0.5, 0.25)
MAX_PICTURED, MAX_EMPTY = 24, 12
_GAP_PX = 6
WIDTH_PX = (1 + len(LEVELS)) * PANEL_PX + len(LEVELS) * _GAP_PX
_EDGE_PX, _LINE_PX, _BAR_PX = 10, 24, 5
_LARGE, _SMALL = 19, 15
_EMPTY_LINES = 4

Codes = UInt8[np.ndarray, "h w"]


def series_sheet(document: Ingest, volumes: Mapping[str, Volume]) -> Picture:
    """Draw the sheet.

    Args:
        document: of the study.
        volumes: HU by series id; a series without one, or with text burned into its pixels, gets an
            empty cell with its code.

    Returns:
        One strip a series below one another, `WIDTH_PX` wide.
    """
    strips: list[Codes] = []
    if document.error:
        error = document.error
        text = f"{error.message} {error.remedy}"
        strips.append(_strip("The study is refused", "", error.code, text))
    pictured = empty = 0
    for row in document.series:
        volume = None if "W_BURNED_IN" in row.codes else volumes.get(row.id)
        if volume is None and empty < MAX_EMPTY:
            empty += 1
            strips.append(_strip(*_titles(row), *_why_empty(row)))
        elif volume is not None and pictured < MAX_PICTURED:
            pictured += 1
            strips.append(np.concatenate([_head(row), _panels(volume)]))
    more = len(document.series) - pictured - empty
    if more:
        strips.append(_strip(f"{more} more series", "", "", "They are listed in ingest.json."))
    if not strips:
        strips.append(_strip("No series", "", "", "Nothing was found in the study."))
    gap = np.full((_GAP_PX, WIDTH_PX), CODE["white"], dtype=np.uint8)
    return Picture(np.concatenate([part for strip in strips for part in (gap, strip)][1:]))


def _panels(volume: Volume) -> Codes:
    """A coronal slice through the middle of the body, and axial ones from the head downwards."""
    hu, grid = canonical(volume.array, volume.grid)
    data = (hu, np.broadcast_to(np.False_, hu.shape), np.broadcast_to(np.uint8(0), hu.shape), grid)
    levels = [round((hu.shape[0] - 1) * share) for share in LEVELS]
    window = body_window(hu, levels[0])
    for z in levels[1:]:
        window = window.union(body_window(hu, z))
    crop = Box((0, *window.start[1:]), (hu.shape[0], *window.stop[1:]))
    middle = (crop.start[1] + crop.stop[1]) // 2
    planes = [("Coronal", coronal_plane(*data, middle, crop))]
    planes += [("Axial", axial_plane(*data, z, crop)) for z in levels]
    size = (PANEL_PX, PANEL_PX)
    return beside(
        [draw(plane, size=size, title=title, contours=False) for title, plane in planes], _GAP_PX
    ).codes


def _titles(row: IngestSeries) -> tuple[str, str]:
    """What stands above a series: what it is taken for, and what it is."""
    parts = [row.id, row.status]
    if row.phase:
        name = Phase(row.phase).long_name
        parts[1:1] = [f"{name} ({row.confidence:.2f})", *(["reference"] if row.reference else [])]
    size = _size_text(row.geometry) if row.geometry else ""
    codes = ", ".join(code for code in row.codes if row.geometry or code != row.code)
    said = (row.description or row.source, size, f"{row.n_files} file(s)", codes)
    return "  \N{MIDDLE DOT}  ".join(parts), "  \N{MIDDLE DOT}  ".join(filter(None, said))


def _size_text(geometry: Geometry) -> str:
    shape = " x ".join(map(str, geometry.shape_zyx))
    spacing = " x ".join(f"{s:.2f}" for s in geometry.spacing_mm_zyx)
    return f"{shape} at {spacing} mm, {geometry.lies}"


def _why_empty(row: IngestSeries) -> tuple[str, str]:
    if "W_BURNED_IN" in row.codes:
        return "W_BURNED_IN", WARNINGS["W_BURNED_IN"].meaning
    return row.code or "", f"{row.reason} {row.remedy or ''}"


def _head(row: IngestSeries) -> Codes:
    image = Image.new("L", (WIDTH_PX, 2 * _LINE_PX + _EDGE_PX), CODE["black"])
    title, detail = _titles(row)
    _line(image, 0, title, _LARGE, "white")
    _line(image, 1, detail, _SMALL, "text")
    if row.reference:
        _bar(image, "liver")
    return np.asarray(image)


def _strip(title: str, detail: str, code: str, text: str) -> Codes:
    """A cell without pictures."""
    head = 1 + bool(detail)
    wrapped = _wrapped(text.strip(), WIDTH_PX - 4 * _EDGE_PX)
    rows = head + bool(code) + len(wrapped)
    image = Image.new("L", (WIDTH_PX, rows * _LINE_PX + 4 * _EDGE_PX), CODE["black"])
    if code:
        _bar(image, "lesion")
    _line(image, 0, title, _LARGE, "white")
    if detail:
        _line(image, 1, detail, _SMALL, "text")
    top = head * _LINE_PX + _EDGE_PX
    corners = [(_EDGE_PX, top), (WIDTH_PX - _EDGE_PX - 1, image.size[1] - _EDGE_PX - 1)]
    ImageDraw.Draw(image).rectangle(corners, outline=CODE["muted"])
    lines = [(code, "white")] if code else []
    for number, (words, color) in enumerate([*lines, *((line, "text") for line in wrapped)]):
        place = (2 * _EDGE_PX, top + _EDGE_PX + number * _LINE_PX)
        write_text(image, place, words, _SMALL, color, "lt")
    return np.asarray(image)


def _bar(image: Image.Image, color: str) -> None:
    """A mark along the left edge; colored letters would lose their color where they are blended."""
    ImageDraw.Draw(image).rectangle([(0, 0), (_BAR_PX - 1, image.size[1])], fill=CODE[color])


def _line(image: Image.Image, number: int, text: str, size: int, color: str) -> None:
    """A line of the head, cut with an ellipsis where it is too long."""
    room = WIDTH_PX - 2 * _EDGE_PX
    place = (_EDGE_PX, _EDGE_PX + number * _LINE_PX)
    write_text(image, place, _fitting(text, room, size), size, color, "lt")


def _fitting(text: str, room_px: float, size: int) -> str:
    if font(size).getlength(text) <= room_px:
        return text
    while text and font(size).getlength(f"{text}\N{HORIZONTAL ELLIPSIS}") > room_px:
        text = text[:-1]
    return f"{text.rstrip()}\N{HORIZONTAL ELLIPSIS}"


def _wrapped(text: str, room_px: float) -> list[str]:
    """Lines that fit, `_EMPTY_LINES` at most."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font(_SMALL).getlength(longer) <= room_px:
            lines[-1] = longer
        else:
            lines.append(_fitting(word, room_px, _SMALL))
    if len(lines) > _EMPTY_LINES:
        kept = f"{lines[_EMPTY_LINES - 1]}\N{HORIZONTAL ELLIPSIS}"
        lines = [*lines[: _EMPTY_LINES - 1], _fitting(kept, room_px, _SMALL)]
    return lines
