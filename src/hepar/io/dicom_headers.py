"""What a DICOM file says about itself, before its pixels are touched.

Files are found by their first bytes, not by name. A file that claims to be DICOM and cannot be read
is never passed over: it may be a slice, so it is reported as damaged.
"""

from __future__ import annotations

import logging
import math
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

log = logging.getLogger(__name__)

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
_FACTS = (
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "ImageType",
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "BitsAllocated",
    "NumberOfFrames",
    "PixelSpacing",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "InstanceNumber",
    "TemporalPositionIdentifier",
    "TriggerTime",
    "StudyDate",
)
_DIRECTORY = "1.2.840.10008.1.3.10"
_UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
_HEAD_BYTES = 4096
_MAX_INFLATED_BYTES = 512 * 2**20
_MAX_INFLATION = 64


@dataclass(frozen=True)
class Header:
    """One image file's header; None or an empty string where the tag is absent or unreadable.

    Attributes:
        patient: PatientID, PatientName, PatientBirthDate, normalized for comparison only.
        pixel_spacing_mm: between rows, between columns.
        position_mm: ImagePositionPatient, LPS.
        orientation: ImageOrientationPatient.
        times: sort keys for splitting one series into its passes, by keyword.
        tags: evidence for the contrast phase, by keyword.
        damage: why the file cannot be whole, if so.
    """

    path: Path
    sop_class: str
    sop_uid: str
    modality: str
    series_uid: str
    study_uid: str
    frame_of_reference: str
    patient: tuple[str, str, str]
    image_type: tuple[str, ...]
    rows: int
    columns: int
    samples: int
    frames: int
    syntax: str
    pixel_spacing_mm: tuple[float, ...] | None
    position_mm: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    instance: int
    times: Mapping[str, str]
    tags: Mapping[str, str]
    damage: str | None = None


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


@dataclass
class Scan:
    """Headers of every DICOM file found, what is damaged, and how many files are something else."""

    headers: list[Header] = field(default_factory=list)
    damaged: list[Damaged] = field(default_factory=list)
    other: int = 0


def walk_files(root: Path) -> Iterator[Path]:
    """Regular files below `root` in a fixed order; links, devices and hidden files are left out.

    Links are not followed, so that nothing outside the folder is read.
    """
    for folder, folders, names in os.walk(root, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder) / name
            if name.startswith("."):
                continue
            try:
                if stat.S_ISREG(path.lstat().st_mode):
                    yield path
            except OSError:
                continue


def scan_files(paths: Iterable[Path]) -> Scan:
    """Read the header of each DICOM file among `paths`."""
    scan = Scan()
    for path in paths:
        found = read_header(path)
        if isinstance(found, Header):
            scan.headers.append(found)
        elif isinstance(found, Damaged):
            scan.damaged.append(found)
        else:
            scan.other += 1
    log.debug("%d DICOM files, %d others", len(scan.headers), scan.other)
    return scan


def read_header(path: Path) -> Header | Damaged | None:
    """One file's header, or how it is damaged, or None when it is not a DICOM image or object."""
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError as error:
        return Damaged(path, "E_TRUNCATED", f"cannot be read ({error.strerror})", True)
    marked = head[128:132] == b"DICM"
    if not marked and not _starts_like_dataset(head):
        return None
    try:
        if DeflatedExplicitVRLittleEndian.encode() in head and _is_bomb(path):
            return Damaged(path, "E_BOMB", "inflates far beyond an image", False)
        wanted: list[Any] = [*_FACTS, *EVIDENCE]
        data = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=wanted)
        return _header(path, data, marked)
    except RecursionError:
        return Damaged(path, "E_MALFORMED", "nests sequences too deeply", False)
    except (EOFError, InvalidDicomError, zlib.error) as error:
        return Damaged(path, "E_TRUNCATED", f"ends inside its header ({error})", True)
    except Exception as error:
        # pydicom raises many types on malformed bytes; each means the same here.
        if not marked:
            return None
        kind = type(error).__name__
        return Damaged(path, "E_MALFORMED", f"has a header that cannot be parsed ({kind})", True)


def _starts_like_dataset(head: bytes) -> bool:
    """Whether bytes without the DICM mark begin with a group 2 or 8 element of sane length."""
    if len(head) < 16 or head[:2] not in (b"\x02\x00", b"\x08\x00"):
        return False
    if head[4:6].isalpha() and head[4:6].isupper():
        return True
    return int.from_bytes(head[2:4], "little") <= 0x70 and int.from_bytes(head[4:8], "little") < 256


def _is_bomb(path: Path) -> bool:
    """Whether the deflated part of a file inflates beyond any image, counted without keeping it."""
    raw = path.read_bytes()
    start = 132 + 12 + int.from_bytes(raw[140:144], "little") if len(raw) > 144 else len(raw)
    limit = min(_MAX_INFLATED_BYTES, max(2**24, _MAX_INFLATION * len(raw)))
    inflater, total, data = zlib.decompressobj(-zlib.MAX_WBITS), 0, raw[start:]
    while data and not inflater.eof:
        total += len(inflater.decompress(data, 2**20))
        if total > limit:
            return True
        data = inflater.unconsumed_tail
    return False


def _header(path: Path, data: Dataset, marked: bool) -> Header | Damaged | None:
    meta = getattr(data, "file_meta", None) or Dataset()
    sop_class = _text(data, "SOPClassUID") or _text(meta, "MediaStorageSOPClassUID")
    modality = _text(data, "Modality").upper()
    series_uid = _text(data, "SeriesInstanceUID")
    if sop_class == _DIRECTORY:
        return None
    if not series_uid and not (modality and sop_class):
        if not marked:
            return None
        return Damaged(path, "E_TRUNCATED", "ends before it names its series", True)
    syntax = _text(meta, "TransferSyntaxUID")
    rows, columns = _integer(data, "Rows"), _integer(data, "Columns")
    samples, frames = _integer(data, "SamplesPerPixel") or 1, _integer(data, "NumberOfFrames") or 1
    date = _text(data, "AcquisitionDate") or _text(data, "StudyDate")
    clock = _text(data, "AcquisitionTime")
    declared = rows * columns * samples * frames * (_integer(data, "BitsAllocated") // 8)
    damage = None
    if syntax in _UNCOMPRESSED and path.stat().st_size < declared:
        damage = f"{path.name} holds fewer bytes than its {rows} x {columns} image needs"
    return Header(
        path=path,
        sop_class=sop_class,
        sop_uid=_text(data, "SOPInstanceUID") or _text(meta, "MediaStorageSOPInstanceUID"),
        modality=modality,
        series_uid=series_uid,
        study_uid=_text(data, "StudyInstanceUID"),
        frame_of_reference=_text(data, "FrameOfReferenceUID"),
        patient=(
            _text(data, "PatientID").casefold(),
            " ".join(_text(data, "PatientName").replace("^", " ").casefold().split()),
            _text(data, "PatientBirthDate"),
        ),
        image_type=tuple(part.upper() for part in _text(data, "ImageType").split("\\")),
        rows=rows,
        columns=columns,
        samples=samples,
        frames=frames,
        syntax=syntax or (ImplicitVRLittleEndian if not marked else ""),
        pixel_spacing_mm=_floats(data, "PixelSpacing", 2),
        position_mm=_floats(data, "ImagePositionPatient", 3),
        orientation=_floats(data, "ImageOrientationPatient", 6),
        instance=_integer(data, "InstanceNumber"),
        times={
            "AcquisitionNumber": _text(data, "AcquisitionNumber"),
            "TemporalPositionIdentifier": _text(data, "TemporalPositionIdentifier"),
            "TriggerTime": _text(data, "TriggerTime"),
            "AcquisitionTime": _text(data, "AcquisitionDateTime") or (clock and date + clock),
            "ContentTime": _text(data, "ContentTime"),
        },
        tags={key: text for key in EVIDENCE if (text := _text(data, key))},
        damage=damage,
    )


def _text(data: Dataset, keyword: str) -> str:
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


def _integer(data: Dataset, keyword: str) -> int:
    try:
        return int(float(_text(data, keyword) or 0))
    except (ValueError, OverflowError):
        return 0


def _floats(data: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    try:
        values = tuple(float(part) for part in _text(data, keyword).split("\\"))
    except ValueError:
        return None
    if len(values) != count or not all(math.isfinite(v) for v in values):
        return None
    return values
