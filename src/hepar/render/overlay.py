"""Slices with contours, as a radiologist looks at them: patient's right on the left of the image.

Pictures are palette PNGs (gray levels and a few colors), which keeps a report small. Masks are
interpolated before they are outlined, so that contours are smooth at twice the scan's resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from hepar.geometry import Box, Grid
from hepar.preprocess import window

WINDOW_HU = (-135.0, 215.0)  # level 40, width 350: the abdominal window
GRAYS = 200
# Palette: gray levels, on which text is blended, and above them the colors of the contours. Cyan
# and orange stay apart for the color-blind.
COLORS = {"liver": (45, 212, 191), "lesion": (255, 122, 26)}
CODE = {
    "black": 0,
    "muted": 150,
    "text": 182,
    "white": GRAYS - 1,
    "liver": GRAYS,
    "lesion": GRAYS + 1,
}
_MARGIN_MM = 15.0
# Above the contours: a ramp of heat, in colors that no contour has.
HEAT_LEVELS, HEAT_FROM = 48, 0.05
HEAT = ((0.0, (62, 18, 120)), (0.5, (205, 45, 165)), (1.0, (255, 226, 246)))


@dataclass(frozen=True)
class Plane:
    """One slice of the patient, ready to be drawn.

    Attributes:
        hu: `(rows, columns)`; rows run down the image.
        liver: mask of the same shape.
        lesions: lesion ids of the same shape.
        spacing_mm: of rows and columns.
        place: where the slice lies, in words.
        labels: what is written at the left and right edge.
        heat: values in [0, 1] of the same shape, painted from `HEAT_FROM` on; None for none.
    """

    hu: Integer[np.ndarray, "h w"]
    liver: Bool[np.ndarray, "h w"]
    lesions: Integer[np.ndarray, "h w"]
    spacing_mm: tuple[float, float]
    place: str
    labels: tuple[str, str] = ("R", "L")
    heat: Float[np.ndarray, "h w"] | None = None


@dataclass(frozen=True)
class Picture:
    """A drawn image: palette codes `(rows, columns)`."""

    codes: UInt8[np.ndarray, "h w"]
    caption: str = ""

    def png(self) -> bytes:
        """The image as a PNG file."""
        image = Image.fromarray(self.codes)
        image.putpalette(_palette())
        stream = BytesIO()
        image.save(stream, "PNG")
        return stream.getvalue()

    def rgb(self) -> UInt8[np.ndarray, "h w 3"]:
        """Red, green and blue of every pixel."""
        palette = np.frombuffer(_palette(), dtype=np.uint8).reshape(-1, 3)
        return np.asarray(palette[self.codes])


def axial_plane(
    hu: Integer[np.ndarray, "z y x"],
    liver: Bool[np.ndarray, "z y x"],
    lesions: Integer[np.ndarray, "z y x"],
    grid: Grid,
    index: int,
    crop: Box | None = None,
) -> Plane:
    """An axial slice seen from the feet: anterior up, patient's right on the left.

    Args:
        hu: on `grid`, which runs to Superior, Posterior and Left.
        liver: on `grid`.
        lesions: ids on `grid`.
        grid: axial.
        index: slice.
        crop: the part of the slice to show; all of it by default.
    """
    _, rows, columns = (crop or Box.full(grid.shape)).slices
    center = (np.array([index, *(n / 2 for n in grid.shape[1:])])).astype(np.float64)
    z_mm = float(grid.index_to_world(center)[2])
    return Plane(
        hu[index, rows, columns],
        liver[index, rows, columns],
        lesions[index, rows, columns],
        (grid.spacing_mm[1], grid.spacing_mm[2]),
        f"slice {index + 1} of {grid.shape[0]}, z {z_mm:.1f} mm",
    )


def coronal_plane(
    hu: Integer[np.ndarray, "z y x"],
    liver: Bool[np.ndarray, "z y x"],
    lesions: Integer[np.ndarray, "z y x"],
    grid: Grid,
    index: int,
    crop: Box | None = None,
) -> Plane:
    """A coronal slice seen from the front: head up, patient's right on the left."""
    levels, _, columns = (crop or Box.full(grid.shape)).slices
    center = np.array([grid.shape[0] / 2, index, grid.shape[2] / 2], dtype=np.float64)
    y_mm = float(grid.index_to_world(center)[1])
    upright = slice(None, None, -1)
    return Plane(
        hu[levels, index, columns][upright],
        liver[levels, index, columns][upright],
        lesions[levels, index, columns][upright],
        (grid.spacing_mm[0], grid.spacing_mm[2]),
        f"coronal, y {y_mm:.1f} mm",
    )


def draw(
    plane: Plane,
    *,
    size: tuple[int, int],
    title: str = "",
    name_lesions: bool = False,
    contours: bool = True,
) -> Picture:
    """Draw a slice with its contours, as large as fits into `size` at the right proportions.

    Args:
        plane: what to draw.
        size: (rows, columns) of the picture in pixels; what the slice leaves stays black.
        title: written top left.
        name_lesions: write each lesion's id beside it.
        contours: draw liver and lesions.
    """
    height_mm, width_mm = (n * s for n, s in zip(plane.hu.shape, plane.spacing_mm, strict=True))
    scale = min(size[0] / height_mm, size[1] / width_mm)
    inner = (max(1, round(height_mm * scale)), max(1, round(width_mm * scale)))
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    codes = np.full(size, CODE["black"], dtype=np.uint8)
    area = codes[top : top + inner[0], left : left + inner[1]]
    area[...] = _gray(plane.hu, inner)
    if plane.heat is not None:
        _paint(area, plane.heat)
    thickness = max(1, round(min(size) / 240))
    if contours:
        area[outline(enlarge(plane.liver, inner), thickness)] = CODE["liver"]
        for number in np.unique(plane.lesions[plane.lesions > 0]):
            area[outline(enlarge(plane.lesions == number, inner), thickness)] = CODE["lesion"]
    text = max(11, round(min(size) / 20))
    image = Image.fromarray(codes)
    if name_lesions and contours:
        _name_lesions(image, plane.lesions, (top, left), inner, text)
    _annotate(image, plane, title, scale, text)
    return Picture(np.asarray(image), caption=plane.place)


def beside(pictures: Sequence[Picture], gap: int = 6) -> Picture:
    """Pictures of one height in a row, with a white gap."""
    height = pictures[0].codes.shape[0]
    bar = np.full((height, gap), CODE["white"], dtype=np.uint8)
    parts = [p for picture in pictures for p in (bar, picture.codes)][1:]
    return Picture(np.concatenate(parts, axis=1), caption=pictures[0].caption)


def above_words(picture: Picture, lines: Sequence[str]) -> Picture:
    """A picture with lines of text below it, cut where they are longer than it is wide."""
    height, size = 22, 14
    width = picture.codes.shape[1]
    foot = Image.fromarray(np.full((height * len(lines) + 6, width), CODE["black"], np.uint8))
    for number, line in enumerate(lines):
        write_text(foot, (8, 3 + number * height), line, size, "text", "lt")
    return Picture(np.concatenate([picture.codes, np.asarray(foot)]), picture.caption)


def outline(mask: Bool[np.ndarray, "h w"], thickness: int = 1) -> Bool[np.ndarray, "h w"]:
    """The inner border of a mask: what erosion takes away."""
    padded = np.pad(mask, thickness, mode="edge")
    cross = ndimage.generate_binary_structure(2, 1)
    core = ndimage.binary_erosion(padded, cross, iterations=thickness, border_value=1)
    inside = (slice(thickness, -thickness),) * 2
    return np.asarray(mask & ~core[inside])


def lesion_window(box: Box, grid: Grid, at_least_mm: float = 90.0) -> Box:
    """A square part of the axial slice around a lesion, large enough to see where it lies.

    Args:
        box: the lesion's box.
        grid: its grid.
        at_least_mm: shortest side; twice the lesion and a margin where that is more.
    """
    extents = [n * s for n, s in zip(box.shape, grid.spacing_mm, strict=True)]
    side_mm = max(at_least_mm, 1.8 * max(extents[1:]) + 2 * _MARGIN_MM)
    start, stop = [0], [grid.shape[0]]
    for axis in (1, 2):
        size = grid.shape[axis]
        width = min(size, max(1, round(side_mm / grid.spacing_mm[axis])))
        first = round((box.start[axis] + box.stop[axis] - width) / 2)
        first = min(max(0, first), size - width)
        start.append(first)
        stop.append(first + width)
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def body_window(hu: Integer[np.ndarray, "z y x"], index: int, air_hu: int = -400) -> Box:
    """The part of an axial slice that the body fills; all of it where there is none."""
    labels, count = ndimage.label(ndimage.binary_opening(hu[index] > air_hu, iterations=2))
    full = Box.full((hu.shape[0], hu.shape[1], hu.shape[2]))
    if not count:
        return full
    body = labels == np.argmax(np.bincount(labels.ravel())[1:]) + 1
    found = Box.around(body[None], (0, 4, 4))
    return Box((0, *found.start[1:]), (hu.shape[0], *found.stop[1:])) if found else full


@cache
def _palette() -> bytes:
    grays = [(v, v, v) for v in (round(255 * k / (GRAYS - 1)) for k in range(GRAYS))]
    stops = [stop for stop, _ in HEAT]
    levels = np.linspace(0, 1, HEAT_LEVELS)
    channels = [np.interp(levels, stops, [color[k] for _, color in HEAT]) for k in range(3)]
    heat = np.rint(np.stack(channels, axis=1)).astype(int).tolist()
    return bytes(int(channel) for color in [*grays, *COLORS.values(), *heat] for channel in color)


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The typeface of every picture, at a size in pixels."""
    return ImageFont.load_default(size)


def _gray(hu: Integer[np.ndarray, "h w"], size: tuple[int, int]) -> UInt8[np.ndarray, "a b"]:
    image = Image.fromarray(window(hu, WINDOW_HU))
    resized = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC))
    return np.asarray(np.rint(np.clip(resized, 0, 1) * (GRAYS - 1)), dtype=np.uint8)


def _paint(area: UInt8[np.ndarray, "a b"], heat: Float[np.ndarray, "h w"]) -> None:
    """Heat over a picture, opaque from `HEAT_FROM` on."""
    image = Image.fromarray(heat.astype(np.float32))
    size = (area.shape[1], area.shape[0])
    values = np.clip(np.asarray(image.resize(size, Image.Resampling.BILINEAR)), 0, 1)
    hot = values >= HEAT_FROM
    levels = np.rint(values[hot] * (HEAT_LEVELS - 1)).astype(np.uint8)
    area[hot] = GRAYS + len(COLORS) + levels


def enlarge(mask: Bool[np.ndarray, "h w"], size: tuple[int, int]) -> Bool[np.ndarray, "a b"]:
    """A mask at another size, with the stairs of its border rounded; small parts never vanish."""
    if not mask.any() or mask.all():
        return np.full(size, bool(mask.any()))
    distance = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
    smooth = ndimage.gaussian_filter(distance, 0.8, mode="nearest")
    parts, count = ndimage.label(mask)
    kept = np.unique(parts[mask & (smooth > 0.25)])
    for lost in set(range(1, count + 1)) - set(kept.tolist()):
        near = ndimage.binary_dilation(parts == lost, iterations=2)
        smooth = np.where(near, np.maximum(smooth, distance), smooth)
    image = Image.fromarray(smooth.astype(np.float32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC)) > 0


def write_text(
    image: Image.Image, at: tuple[float, float], text: str, size: int, color: str, anchor: str
) -> None:
    """Write on a picture, in a color of `CODE`, with a black rim."""
    ImageDraw.Draw(image).text(
        at,
        text,
        fill=CODE[color],
        font=font(size),
        anchor=anchor,
        stroke_width=max(1, size // 10),
        stroke_fill=CODE["black"],
    )


def _name_lesions(
    image: Image.Image,
    lesions: Integer[np.ndarray, "h w"],
    corner: tuple[int, int],
    inner: tuple[int, int],
    size: int,
) -> None:
    """Write each id to the upper right of its lesion."""
    for number in np.unique(lesions[lesions > 0]):
        rows, columns = np.nonzero(lesions == number)
        # On the circle through the box's edges, at half past one.
        up = (rows.max() + rows.min() + 1) / 2 - 0.36 * (np.ptp(rows) + 1)
        right = (columns.max() + columns.min() + 1) / 2 + 0.36 * (np.ptp(columns) + 1)
        y = corner[0] + up / lesions.shape[0] * inner[0] - size / 6
        x = corner[1] + right / lesions.shape[1] * inner[1] + size / 6
        write_text(image, (x, y), str(int(number)), size, "white", "ls")


def _annotate(image: Image.Image, plane: Plane, title: str, scale: float, size: int) -> None:
    width, height = image.size
    edge = size // 2
    if title:
        write_text(image, (edge, edge), title, size, "white", "lt")
    write_text(image, (edge, height / 2), plane.labels[0], size, "text", "lm")
    write_text(image, (width - edge, height / 2), plane.labels[1], size, "text", "rm")
    write_text(image, (edge, height - edge), plane.place, size * 4 // 5, "muted", "ls")
    bar_mm = 50.0 if 50.0 * scale < width / 3 else 20.0
    right, bottom = width - edge, height - edge
    ends = [(right - bar_mm * scale, bottom), (right, bottom)]
    thick = max(2, size // 8)
    ImageDraw.Draw(image).line(ends, fill=CODE["black"], width=thick + 4)
    ImageDraw.Draw(image).line(ends, fill=CODE["white"], width=thick)
    middle = right - bar_mm * scale / 2
    write_text(image, (middle, bottom - size // 3), f"{bar_mm:.0f} mm", size * 4 // 5, "text", "ms")
