"""Liver and lesions out of a DICOM Segmentation that somebody drew or edited, of any program.

Where a frame lies is what it says itself: in any order, with empty ones left out, along any axis.
BINARY, LABELMAP and FRACTIONAL (at one half); each lesion segment is one lesion.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from jaxtyping import Bool, UInt16
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import iter_pixels
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    SegmentationStorage,
)

from hepar.errors import InputRefused
from hepar.geometry import Grid, Lattice
from hepar.io.dicom_pixels import quiet
from hepar.io.refusal import refuse
from hepar.io.segment_roles import Role, public_label, role_of
from hepar.resampling import resample_lattice

_STAGE = "given"
_LABEL_MAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"
# Decoded without native code, which damaged data may crash.
_SYNTAXES = frozenset(
    (
        *(ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian),
        *(DeflatedExplicitVRLittleEndian, RLELossless),
    )
)
_OWN_NAME = re.compile(r"Lesion (\d{1,5})")
_MAX_VOXELS, _MAX_PLANES, _MAX_LISTED = 2**30, 4096, 12
# How far frames may lie from even distances, in distances, and how far beside a line, in pixels.
_UNEVEN, _BESIDE = 0.1, 0.25


@dataclass(frozen=True)
class DrawnOn:
    """What a Segmentation says that it belongs to.

    Attributes:
        study: StudyInstanceUID.
        frame_of_reference: FrameOfReferenceUID.
        series: SeriesInstanceUIDs of the images that it refers to.
    """

    study: str
    frame_of_reference: str
    series: frozenset[str]


@dataclass(frozen=True)
class SegMasks:
    """What a Segmentation holds of liver and lesions.

    Attributes:
        liver: the organ with all lesions; None where no segment is the liver.
        lesions: ids, 0 elsewhere: those of labels like `Lesion 3`, else in the order of segments.
        grid: where both lie: from the first to the last frame.
        drawn_on: what it belongs to.
        left_out: how many segments are neither.
    """

    liver: Bool[np.ndarray, "z y x"] | None
    lesions: UInt16[np.ndarray, "z y x"]
    grid: Grid
    drawn_on: DrawnOn
    left_out: int


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def read_seg_masks(path: Path) -> SegMasks:
    """Read liver and lesions from a Segmentation.

    Args:
        path: a DICOM file.

    Raises:
        InputRefused: `E_MASK_FORMAT`, it is no Segmentation, or its frames make no volume;
            `E_MASK_SEGMENTS`, what a segment is cannot be told, or lesions share voxels;
            `E_UNSUPPORTED_TS`, `E_MALFORMED`, as for images.
    """
    name = path.name
    with quiet():
        try:
            data = pydicom.dcmread(path)
            if data.get("SOPClassUID") not in (SegmentationStorage, _LABEL_MAP_STORAGE):
                words = f"{name} is DICOM, but no Segmentation."
                raise refuse("E_MASK_FORMAT", words, _STAGE)
            if data.file_meta.TransferSyntaxUID not in _SYNTAXES:
                words = f"{name} is compressed by {data.file_meta.TransferSyntaxUID}."
                raise refuse("E_UNSUPPORTED_TS", words, _STAGE)
            segments = {int(item.SegmentNumber): item for item in data.SegmentSequence}
            roles = _roles(segments, name)
            frames = _Frames.of(data, name)
            return _masks(data, frames, segments, roles, name)
        except InputRefused:
            raise
        except MemoryError as error:
            raise refuse("E_MEMORY", f"{name} needs too much memory.", _STAGE) from error
        except Exception as error:  # pydicom raises whatever a damaged element makes it raise
            words = f"{name} is no whole Segmentation ({type(error).__name__})."
            raise refuse("E_MALFORMED", words, _STAGE) from error


def _roles(segments: dict[int, Dataset], name: str) -> dict[int, Role]:
    """The role of each segment.

    Raises:
        InputRefused: `E_MASK_SEGMENTS`, one cannot be told, or none is liver or lesion.
    """
    roles = {number: role_of(item) for number, item in segments.items()}
    unclear = [number for number, role in roles.items() if role is Role.UNCLEAR]
    if unclear:
        words = f"Of {name} it cannot be told whether these segments are liver or lesions: "
        raise refuse("E_MASK_SEGMENTS", words + _listed(segments, unclear), _STAGE)
    if all(role is Role.OTHER for role in roles.values()):
        words = f"No segment of {name} is a liver or a lesion: {_listed(segments, list(segments))}"
        raise refuse("E_MASK_SEGMENTS", words, _STAGE)
    return roles


def _listed(segments: dict[int, Dataset], numbers: list[int]) -> str:
    """Numbers and labels of segments, with words hidden that might name somebody."""
    labels = {n: public_label(str(segments[n].get("SegmentLabel", ""))) for n in numbers}
    shown = [f'{number} "{labels[number]}"' for number in numbers[:_MAX_LISTED]]
    more = f" and {len(numbers) - _MAX_LISTED} more" if len(numbers) > _MAX_LISTED else ""
    return ", ".join(shown) + more + "."


@dataclass(frozen=True)
class _Frames:
    """Where the frames of a Segmentation lie.

    Attributes:
        planes: `(n,)` plane of each frame, from 0.
        voxels: all planes together.
    """

    planes: NDArray[np.intp]
    voxels: Grid | Lattice

    @classmethod
    def of(cls, data: Dataset, name: str) -> _Frames:
        """Find planes at one distance that every frame lies on.

        Raises:
            InputRefused: `E_MASK_FORMAT`.
        """
        groups = [_macros(data, group) for group in data.PerFrameFunctionalGroupsSequence]
        axes = np.array([group("PlaneOrientation").ImageOrientationPatient for group in groups])
        pixel = np.array([group("PixelMeasures").PixelSpacing for group in groups], dtype=float)
        corners = np.array([group("PlanePosition").ImagePositionPatient for group in groups], float)
        if max(np.ptp(axes.astype(float), axis=0).max(), np.ptp(pixel, axis=0).max()) > 1e-3:
            raise refuse("E_MASK_FORMAT", f"Frames of {name} lie askew of each other.", _STAGE)
        along, down = axes[0].astype(float).reshape(2, 3)
        normal = np.cross(along, down)
        depths = corners @ normal
        planes, step = _planes(depths, groups[0]("PixelMeasures"), name)
        first = corners[depths.argmin()]
        if planes.max() >= _MAX_PLANES or data.Rows * data.Columns * (planes.max() + 1) > (
            _MAX_VOXELS
        ):
            words = f"{name} spans {planes.max() + 1} planes of {data.Rows} x {data.Columns}."
            raise refuse("E_MASK_FORMAT", words, _STAGE)
        # A tilted gantry shifts each plane within itself against the one before.
        count = planes @ planes
        lean = (planes @ (corners - first)) / count if count else step * normal
        lean = lean - (lean @ normal) * normal
        beside = corners - first - planes[:, None] * lean
        beside -= (beside @ normal)[:, None] * normal
        if np.linalg.norm(beside, axis=1).max() > _BESIDE * pixel.min():
            raise refuse("E_MASK_FORMAT", f"Frames of {name} lie beside each other.", _STAGE)
        shape = (int(planes.max()) + 1, int(data.Rows), int(data.Columns))
        columns = np.stack([step * normal + lean, pixel[0, 0] * down, pixel[0, 1] * along], axis=1)
        if np.linalg.norm(lean) * planes.max() > _BESIDE * pixel.min():
            rows = np.concatenate([columns, first[:, None]], axis=1)
            return cls(planes, Lattice(shape, tuple(float(v) for v in rows.ravel())))
        spacing = (float(step), float(pixel[0, 0]), float(pixel[0, 1]))
        direction = np.stack([normal, down, along], axis=1)
        x, y, z = (float(v) for v in first)
        return cls(planes, Grid(shape, spacing, (x, y, z), tuple(map(float, direction.ravel()))))


def _planes(
    depths: NDArray[np.float64], measures: Dataset, name: str
) -> tuple[NDArray[np.intp], float]:
    """The plane of each depth, from 0, and the distance of planes: the stated one, if it fits.

    Raises:
        InputRefused: `E_MASK_FORMAT`, frames lie unevenly, or lack planes without saying so.
    """
    there, which = np.unique(np.round(depths, 3), return_inverse=True)
    stated, thick = (
        float(measures.get(keyword) or 0) for keyword in ("SpacingBetweenSlices", "SliceThickness")
    )
    steps = np.diff(there)
    if not len(steps):
        if stated or thick:
            return which, stated or thick
        raise refuse("E_MASK_FORMAT", f"{name} is one plane of no thickness.", _STAGE)
    apart = steps[steps > _UNEVEN * steps.max()]
    usual = float(np.median(apart[apart < 1.5 * apart.min()]))
    # Every second plane left out would else make each twice as thick.
    for unit in (stated, usual if usual < 1.5 * (thick or usual) else 0.0):
        if unit > 0:
            counts = np.rint(steps / unit)
            planes = np.concatenate([[0], np.cumsum(counts)])
            distance, first = np.polyfit(planes, there, 1) if planes[-1] else (unit, there[0])
            beside = np.abs(there - first - distance * planes).max()
            if max(np.abs(steps / unit - counts).max(), beside / unit) < _UNEVEN:
                return planes.astype(int)[which], float(distance)
    raise refuse("E_MASK_FORMAT", f"Frames of {name} lie at uneven distances.", _STAGE)


def _masks(
    data: Dataset, frames: _Frames, segments: dict[int, Dataset], roles: dict[int, Role], name: str
) -> SegMasks:
    ids = _ids(segments, roles)
    liver = np.zeros(frames.voxels.shape, dtype=np.bool_)
    lesions = np.zeros(frames.voxels.shape, dtype=np.uint16)
    for plane, number, mask in _drawn(data, frames):
        if roles[number] is Role.LIVER:
            liver[plane] |= mask
        elif roles[number] is Role.LESION:
            before = lesions[plane][mask]
            if (shared := before[(before > 0) & (before != ids[number])]).size:
                other = next(n for n, one in ids.items() if one == shared[0])
                listed = _listed(segments, [other, number])
                words = f"Of {name} these lesions share voxels: {listed}"
                raise refuse("E_MASK_SEGMENTS", words, _STAGE)
            lesions[plane][mask] = ids[number]
    voxels = frames.voxels
    grid = voxels if isinstance(voxels, Grid) else voxels.upright()
    if isinstance(voxels, Lattice):
        liver = resample_lattice(liver.astype(np.uint8), voxels, grid, order=0, fill=0) > 0
        lesions = resample_lattice(lesions, voxels, grid, order=0, fill=0)
    references = data.get("ReferencedSeriesSequence", ())
    drawn_on = DrawnOn(
        str(data.get("StudyInstanceUID", "")),
        str(data.get("FrameOfReferenceUID", "")),
        frozenset(str(item.SeriesInstanceUID) for item in references),
    )
    there = any(role is Role.LIVER for role in roles.values())
    left_out = sum(role is Role.OTHER for role in roles.values())
    return SegMasks(liver | (lesions > 0) if there else None, lesions, grid, drawn_on, left_out)


def _ids(segments: dict[int, Dataset], roles: dict[int, Role]) -> dict[int, int]:
    """The id of each lesion segment: the one its label says, where all say one, else its turn."""
    lesions = [number for number, role in roles.items() if role is Role.LESION]
    labels = [str(segments[number].get("SegmentLabel", "")).strip() for number in lesions]
    said = [int(own[1]) for label in labels if (own := _OWN_NAME.fullmatch(label))]
    kept = len(set(said)) == len(lesions) and all(
        0 < one <= np.iinfo(np.uint16).max for one in said
    )
    return dict(zip(lesions, said if kept else range(1, len(lesions) + 1), strict=True))


def _drawn(
    data: Dataset, frames: _Frames
) -> Iterator[tuple[int, int, Bool[np.ndarray, "rows columns"]]]:
    """Plane, segment and pixels of every frame, frame by frame."""
    kind = str(data.get("SegmentationType", ""))
    at_least = float(data.MaximumFractionalValue) / 2 if kind == "FRACTIONAL" else 0.5
    pairs = zip(frames.planes, data.PerFrameFunctionalGroupsSequence, strict=True)
    for (plane, group), pixels in zip(pairs, _pixels(data), strict=True):
        if kind == "LABELMAP":
            for number in np.unique(pixels[pixels > 0]):
                if int(number) in {int(item.SegmentNumber) for item in data.SegmentSequence}:
                    yield int(plane), int(number), pixels == number
            continue
        identified = _macros(data, group)("SegmentIdentification")
        yield int(plane), int(identified.ReferencedSegmentNumber), pixels >= at_least


def _pixels(data: Dataset) -> Iterator[NDArray[Any]]:
    """The stored values of every frame."""
    if data.BitsAllocated == 1 and data.Rows * data.Columns % 8:
        # Frames that begin inside a byte: pydicom unpacks these rightly only as a whole.
        return iter(data.pixel_array.reshape(-1, data.Rows, data.Columns))
    return iter_pixels(data)


def _macros(data: Dataset, group: Dataset) -> Any:
    """A function that gives a functional group of a frame, its own or the shared one."""
    shared = data.get("SharedFunctionalGroupsSequence") or [Dataset()]

    def macro(name: str) -> Dataset:
        keyword = f"{name}Sequence"
        found: Dataset = (group if keyword in group else shared[0])[keyword].value[0]
        return found

    return macro
