"""What a DICOM file says about itself, before its pixels are touched."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.dataset import Dataset

EVIDENCE = (
    "SeriesDescription",
    "ProtocolName",
    "ImageComments",
    "ContrastBolusAgent",
    "ContrastBolusStartTime",
    "AcquisitionDateTime",
    "AcquisitionDate",
    "AcquisitionTime",
    "SeriesTime",
    "ContentTime",
    "SeriesNumber",
    "AcquisitionNumber",
    "BodyPartExamined",
    "BurnedInAnnotation",
    "Manufacturer",
    "ConvolutionKernel",
    "SliceThickness",
    "StudyDescription",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
)


@dataclass(frozen=True, kw_only=True)
class Image:
    """What decoding an image needs to know before its file is opened.

    Attributes:
        path: its file.
        rows: of its matrix.
        columns: of its matrix.
        frame: in an enhanced CT, from 0; None for a file of one image.
        rescale: slope and intercept of a frame, as text; None where the file itself has them.
        marked: whether the file begins as DICOM files must.
    """

    path: Path
    rows: int
    columns: int
    frame: int | None = None
    rescale: tuple[str, str] | None = None
    marked: bool = True


@dataclass(frozen=True, kw_only=True)
class Header(Image):
    """One image's header; None or an empty string where the tag is absent or unreadable.

    Attributes:
        patient: PatientID, PatientName, PatientBirthDate, normalized for comparison only.
        pixel_spacing_mm: between rows, between columns.
        position_mm: ImagePositionPatient, LPS.
        orientation: ImageOrientationPatient.
        times: sort keys for splitting one series into its passes, by keyword, the surest first.
        tags: evidence for the contrast phase, by keyword.
        bits: allocated for a pixel.
        damage: code and reason why the image cannot be used, if so.
    """

    sop_class: str
    sop_uid: str
    modality: str
    series_uid: str
    study_uid: str
    frame_of_reference: str
    patient: tuple[str, str, str]
    image_type: tuple[str, ...]
    samples: int
    frames: int
    syntax: str
    pixel_spacing_mm: tuple[float, ...] | None
    position_mm: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    instance: int
    times: Mapping[str, str]
    tags: Mapping[str, str]
    bits: int = 16
    damage: tuple[str, str] | None = None


@dataclass(frozen=True)
class Damaged:
    """A DICOM file whose series cannot be known.

    Attributes:
        path: the file.
        code: refusal code.
        reason: what is wrong.
        spreads: whether a slice of a series beside it may be lost in it.
    """

    path: Path
    code: str
    reason: str
    spreads: bool


@dataclass(frozen=True)
class Directory:
    """A DICOMDIR: the files it lists, as path components. Nothing is read through it."""

    path: Path
    files: tuple[tuple[str, ...], ...]


@dataclass
class Scan:
    """Headers of every DICOM file found, what is damaged, and how many files are something else."""

    headers: list[Header] = field(default_factory=list)
    damaged: list[Damaged] = field(default_factory=list)
    directories: list[Directory] = field(default_factory=list)
    other: int = 0


def text(data: Dataset, keyword: str) -> str:
    """A tag's text, `\\`-joined when it has several values; empty when absent or unreadable."""
    try:
        value = data.get(keyword)
    except Exception:
        return ""
    if value is None:
        return ""
    if isinstance(value, str) or not isinstance(value, Iterable):
        return str(value).strip().strip("\0")
    return "\\".join(str(part).strip() for part in value)


def integer(data: Dataset, keyword: str) -> int:
    """A tag as a whole number; 0 when absent or unreadable."""
    try:
        return int(float(text(data, keyword) or 0))
    except (ValueError, OverflowError):
        return 0


def floats(data: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """A tag as so many finite numbers; None when it holds anything else."""
    try:
        values = tuple(float(part) for part in text(data, keyword).split("\\"))
    except ValueError:
        return None
    if len(values) != count or not all(math.isfinite(v) for v in values):
        return None
    return values
