"""CT series of one physical phantom: every image samples the same patient at its own place.

So a reader can be judged voxel by voxel where it says that a voxel lies, whatever order, storage or
damage it met. World positions are LPS mm; every file holds names that may never leave it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    generate_uid,
)
from pydicom.valuerep import format_number_as_ds

Points = NDArray[np.float64]
Hu = NDArray[np.int16]

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CANARIES = ("CANARY^ZZTOP", "PHI-CANARY-7731", "19010203", "ACC-CANARY-55", "DOC^CANARY")
STUDY, SERIES = "1.2.3", "1.2.3.4"
# No voxel center of the cases lies on a border, so that rounding of a position changes no value.
MARKER_MM, MARKER_RADIUS_MM = (8.15, -10.2, 30.3), 7.1
BODY_MM = (22.3, 28.4)
AIR_HU, BODY_HU, MARKER_HU = -1000, 50, 300


def phantom(world_mm: Points, marker_hu: int = MARKER_HU) -> Hu:
    """HU `(...)` at points `(..., 3)`: a body along z with one ball in it, and air."""
    x, y = world_mm[..., 0], world_mm[..., 1]
    hu = np.full(world_mm.shape[:-1], AIR_HU, dtype=np.int16)
    hu[(x / BODY_MM[0]) ** 2 + (y / BODY_MM[1]) ** 2 < 1] = BODY_HU
    far = ((world_mm - np.asarray(MARKER_MM)) ** 2).sum(axis=-1)
    hu[far < MARKER_RADIUS_MM**2] = marker_hu
    return hu


@dataclass(frozen=True)
class Place:
    """Where the pixels of one image lie.

    Attributes:
        corner_mm: center of the first pixel.
        orientation: unit vectors along a row and down a column.
        pixel_mm: distance between rows, between columns.
        matrix: rows, columns.
    """

    corner_mm: tuple[float, float, float]
    orientation: tuple[float, ...] = AXIAL
    pixel_mm: tuple[float, float] = (1.0, 1.0)
    matrix: tuple[int, int] = (64, 48)

    @property
    def normal(self) -> Points:
        """The unit vector that completes a right-handed frame."""
        normal = np.cross(self.orientation[:3], self.orientation[3:])
        return np.asarray(normal / np.linalg.norm(normal))

    def world_mm(self) -> Points:
        """Positions `(rows, columns, 3)` of every pixel."""
        down, along = np.meshgrid(*(np.arange(n) for n in self.matrix), indexing="ij")
        row, column = np.asarray(self.orientation[:3]), np.asarray(self.orientation[3:])
        steps = (
            along[..., None] * self.pixel_mm[1] * row + down[..., None] * self.pixel_mm[0] * column
        )
        return np.asarray(self.corner_mm) + steps


@dataclass(frozen=True)
class Storage:
    """How HU are kept in a file.

    Attributes:
        slope: RescaleSlope.
        intercept: RescaleIntercept.
        signed: PixelRepresentation.
        bits: BitsStored.
        pad: stored value outside the circle of reconstruction, if any.
    """

    slope: float = 1.0
    intercept: float = -1024.0
    signed: bool = False
    bits: int = 16
    pad: int | None = None

    def stored(self, hu: Hu) -> NDArray[np.uint16]:
        """Stored values as 16-bit words, two's complement within `bits`.

        Raises:
            ValueError: HU that this storage cannot hold.
        """
        values = np.rint((hu.astype(np.float64) - self.intercept) / self.slope).astype(np.int64)
        if self.pad is not None:
            values[outside_circle(hu.shape)] = self.pad
        low = -(1 << (self.bits - 1)) if self.signed else 0
        if values.min() < low or values.max() >= low + (1 << self.bits):
            raise ValueError(f"{values.min()} to {values.max()} do not fit {self}")
        mask = (1 << self.bits) - 1
        return (values & mask).astype(np.uint16)


@dataclass
class Slice:
    """One image: its file, and what a right reader makes of it.

    Attributes:
        data: the file's content.
        place: where its pixels lie.
        hu: `(rows, columns)`, padding as -1024.
    """

    data: FileDataset
    place: Place
    hu: Hu


@dataclass
class Scene:
    """What a folder holds.

    Attributes:
        volumes: images of each volume that a right reader finds, in any order.
        marker_hu: HU of the ball, a value for each volume.
    """

    volumes: list[list[Slice]]
    marker_hu: tuple[int, ...] = (MARKER_HU,)


def outside_circle(matrix: tuple[int, ...]) -> NDArray[np.bool_]:
    """Pixels outside the ellipse that touches the borders of an image."""
    y, x = np.mgrid[: matrix[0], : matrix[1]]
    half = np.asarray(matrix[:2]) / 2
    return np.asarray(((y - half[0]) / half[0]) ** 2 + ((x - half[1]) / half[1]) ** 2 > 1)


def decimal(values: Iterable[float]) -> list[str]:
    """Decimal strings with all the digits that fit."""
    return [str(format_number_as_ds(float(value))) for value in values]


def ct_slice(
    k: int,
    place: Place,
    storage: Storage | None = None,
    *,
    series: str = SERIES,
    study: str = STUDY,
    acquisition: int = 1,
    marker_hu: int = MARKER_HU,
    hu: Hu | None = None,
    **tags: Any,
) -> Slice:
    """One CT image of the phantom.

    Args:
        k: number of the image, from 0.
        place: where its pixels lie.
        storage: how its HU are kept.
        series: SeriesInstanceUID.
        study: StudyInstanceUID.
        acquisition: AcquisitionNumber.
        marker_hu: HU of the ball.
        hu: other content `(rows, columns)` than the phantom.
        **tags: values to set last, by keyword.

    Returns:
        The image, uncompressed.
    """
    storage = storage or Storage()
    content = phantom(place.world_mm(), marker_hu) if hu is None else hu
    data = _blank(generate_uid(entropy_srcs=[study, series, str((k, acquisition, marker_hu))]))
    data.StudyInstanceUID, data.SeriesInstanceUID = study, series
    data.FrameOfReferenceUID = f"{study}.9"
    data.SeriesNumber, data.AcquisitionNumber, data.InstanceNumber = 2, acquisition, k + 1
    data.ImagePositionPatient = decimal(place.corner_mm)
    data.ImageOrientationPatient = decimal(place.orientation)
    data.PixelSpacing, data.SliceThickness = decimal(place.pixel_mm), "5"
    data.Rows, data.Columns = place.matrix
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, storage.bits, storage.bits - 1
    data.PixelRepresentation = int(storage.signed)
    data.RescaleSlope, data.RescaleIntercept = decimal((storage.slope, storage.intercept))
    data.RescaleType = "HU"
    data.PixelData = storage.stored(content).tobytes()
    for keyword, value in tags.items():
        setattr(data, keyword, value)
    padded = outside_circle(content.shape) & (storage.pad is not None)
    return Slice(data, place, np.where(padded, -1024, content).astype(np.int16))


def _blank(sop_uid: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = sop_uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)  # type: ignore[arg-type]
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, sop_uid
    data.PatientName, data.PatientID, data.PatientBirthDate = CANARIES[:3]
    data.AccessionNumber, data.ReferringPhysicianName = CANARIES[3:]
    data.PatientSex, data.StudyID, data.PositionReferenceIndicator = "M", "1", ""
    data.StudyDate, data.StudyTime = "20200102", "101010"
    data.Modality, data.Manufacturer, data.KVP = "CT", "SYNTH", "120"
    data.ImageType, data.PatientPosition = ["ORIGINAL", "PRIMARY", "AXIAL"], "HFS"
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    return data


def stack(
    n: int = 12,
    step_mm: float = 5.0,
    *,
    first_mm: float = 0.0,
    depths_mm: Sequence[float] | None = None,
    orientation: tuple[float, ...] = AXIAL,
    origin_mm: tuple[float, float, float] = (-24.0, -32.0, 0.0),
    pixel_mm: tuple[float, float] = (1.0, 1.0),
    matrix: tuple[int, int] = (64, 48),
    storage: Storage | Callable[[int], Storage] | None = None,
    **options: Any,
) -> list[Slice]:
    """Images above one another along their normal.

    Args:
        n: how many.
        step_mm: distance along the normal.
        first_mm: of the first image, along the normal from `origin_mm`.
        depths_mm: distances instead of `n`, `step_mm` and `first_mm`.
        orientation: as in `Place`.
        origin_mm: corner at distance 0.
        pixel_mm: as in `Place`.
        matrix: as in `Place`.
        storage: of all images, or of each by its number.
        **options: see `ct_slice`.

    Returns:
        The images, in order.
    """
    depths = [first_mm + k * step_mm for k in range(n)] if depths_mm is None else depths_mm
    start = Place(origin_mm, orientation, pixel_mm, matrix)
    images = []
    for k, depth in enumerate(depths):
        x, y, z = (float(v) for v in np.asarray(origin_mm) + depth * start.normal)
        place = Place((x, y, z), orientation, pixel_mm, matrix)
        kept = storage(k) if callable(storage) else storage
        images.append(ct_slice(k, place, kept, **options))
    return images


def save(slices: Iterable[Slice], folder: Path, names: Sequence[str] | None = None) -> list[Path]:
    """Write images as `i0000.dcm`, ... or under other names; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k, one in enumerate(slices):
        paths.append(folder / (names[k] if names else f"i{k:04d}.dcm"))
        one.data.save_as(paths[-1], enforce_file_format=True)
    return paths


# --- Enhanced CT -----------------------------------------------------------------------------


def enhanced(slices: Sequence[Slice], seed: int | None = 1) -> Slice:
    """The images as the frames of one Enhanced CT file.

    Position, orientation, pixel measures, rescale and acquisition are each in the frame's own
    functional groups where images differ, and shared where they do not.

    Args:
        slices: uncompressed images of one matrix.
        seed: of the order of the frames; None keeps it.

    Returns:
        The file, with the place and HU of the first image given.
    """
    order = list(range(len(slices)))
    if seed is not None:
        random.Random(seed).shuffle(order)
    first = slices[0].data
    data = _blank(first.SOPInstanceUID)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = EnhancedCTImageStorage
    for keyword in (
        *("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SeriesNumber"),
        *("AcquisitionNumber", "InstanceNumber", "Rows", "Columns", "PixelRepresentation"),
        *("BitsAllocated", "BitsStored", "HighBit", "SpecificCharacterSet"),
    ):
        if keyword in first:
            setattr(data, keyword, first[keyword].value)
    data.NumberOfFrames = len(slices)
    groups = [_functional_groups(slices[k].data, k) for k in order]
    shared = Dataset()
    for name in [elem.keyword for elem in groups[0]]:
        if name != "FrameContentSequence" and all(g[name] == groups[0][name] for g in groups[1:]):
            shared[name] = groups[0][name]
            for group in groups:
                del group[name]
    data.SharedFunctionalGroupsSequence = Items([shared])
    data.PerFrameFunctionalGroupsSequence = Items(groups)
    data.PixelData = b"".join(slices[k].data.PixelData for k in order)
    return Slice(data, slices[0].place, slices[0].hu)


def _functional_groups(image: Dataset, k: int) -> Dataset:
    """The macros of one frame."""
    contents: dict[str, dict[str, Any]] = {
        "PlanePositionSequence": {"ImagePositionPatient": image.ImagePositionPatient},
        "PlaneOrientationSequence": {"ImageOrientationPatient": image.ImageOrientationPatient},
        "PixelMeasuresSequence": {"PixelSpacing": image.PixelSpacing, "SliceThickness": "5"},
        "PixelValueTransformationSequence": {
            "RescaleSlope": image.RescaleSlope,
            "RescaleIntercept": image.RescaleIntercept,
            "RescaleType": "HU",
        },
        "FrameContentSequence": {
            "StackID": "1",
            "InStackPositionNumber": k + 1,
            "DimensionIndexValues": [1, k + 1],
            "FrameAcquisitionNumber": image.AcquisitionNumber,
        },
        "CTImageFrameTypeSequence": {"FrameType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]},
    }
    group = Dataset()
    for name, values in contents.items():
        item = Dataset()
        for keyword, value in values.items():
            setattr(item, keyword, value)
        setattr(group, name, Items([item]))
    return group
