"""Finding the DICOM files of a folder, and their headers.

Files are found by their first bytes, not by name. A file that claims to be DICOM and cannot be read
is never passed over: it may be a slice, so it is reported as damaged.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from hepar.io.dicom_frames import frames_of
from hepar.io.dicom_headers import (
    EVIDENCE,
    Damaged,
    Directory,
    Header,
    Scan,
    floats,
    integer,
    text,
)

log = logging.getLogger(__name__)

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
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "DirectoryRecordSequence",
)
ENHANCED_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
_DIRECTORY = "1.2.840.10008.1.3.10"
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
_UID = re.compile(r"[0-9.]{0,64}")
_UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
_HEAD_BYTES = 4096
# A file with such a name that is no DICOM is what is left of a slice.
_SUFFIXES = (".dcm", ".dicom", ".ima")
_MAX_INFLATED_BYTES = 512 * 2**20
_MAX_INFLATION = 64


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
        found = read_headers(path)
        if isinstance(found, list):
            scan.headers.extend(found)
        elif isinstance(found, Damaged):
            scan.damaged.append(found)
        elif isinstance(found, Directory):
            scan.directories.append(found)
        else:
            scan.other += 1
    log.debug("%d DICOM files, %d others", len(scan.headers), scan.other)
    return scan


def read_headers(path: Path) -> list[Header] | Damaged | Directory | None:
    """The header of each image in a file, or how it is damaged, or None when it is no DICOM."""
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError as error:
        return Damaged(path, "E_TRUNCATED", f"cannot be read ({error.strerror})", True)
    marked = head[128:132] == b"DICM"
    if not marked and not _starts_like_dataset(head):
        if path.suffix.lower() in _SUFFIXES:
            return Damaged(path, "E_TRUNCATED", "is named DICOM and does not begin so", True)
        return None
    try:
        if DeflatedExplicitVRLittleEndian.encode() in head and _is_bomb(path):
            return Damaged(path, "E_BOMB", "inflates far beyond an image", False)
        wanted: list[Any] = [*_FACTS, *EVIDENCE]
        data = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=wanted)
        return _headers(path, data, marked)
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


def _headers(path: Path, data: Dataset, marked: bool) -> list[Header] | Damaged | Directory | None:
    meta = getattr(data, "file_meta", None) or Dataset()
    sop_class = text(data, "SOPClassUID") or text(meta, "MediaStorageSOPClassUID")
    modality = text(data, "Modality").upper()
    series_uid = text(data, "SeriesInstanceUID")
    if sop_class == _DIRECTORY:
        return _directory(path, data)
    if not series_uid and not (modality and sop_class):
        if not marked:
            return None
        return Damaged(path, "E_TRUNCATED", "ends before it names its series", True)
    syntax = text(meta, "TransferSyntaxUID")
    rows, columns = integer(data, "Rows"), integer(data, "Columns")
    samples, frames = integer(data, "SamplesPerPixel") or 1, integer(data, "NumberOfFrames") or 1
    date = text(data, "AcquisitionDate") or text(data, "StudyDate")
    clock = text(data, "AcquisitionTime")
    declared = rows * columns * samples * frames * (integer(data, "BitsAllocated") // 8)
    uids = {key: text(data, key) for key in _UIDS}
    damage = None
    if any(not _UID.fullmatch(uid) for uid in uids.values()):
        damage = ("E_BAD_UID", f"{path.name} has a UID of other characters than digits and dots")
    elif syntax in _UNCOMPRESSED and path.stat().st_size < declared:
        reason = f"{path.name} holds fewer bytes than its {rows} x {columns} image needs"
        damage = ("E_TRUNCATED", reason)
    image = Header(
        path=path,
        sop_class=sop_class,
        sop_uid=text(data, "SOPInstanceUID") or text(meta, "MediaStorageSOPInstanceUID"),
        modality=modality,
        series_uid=series_uid,
        study_uid=text(data, "StudyInstanceUID"),
        frame_of_reference=text(data, "FrameOfReferenceUID"),
        patient=(
            text(data, "PatientID").casefold(),
            " ".join(text(data, "PatientName").replace("^", " ").casefold().split()),
            text(data, "PatientBirthDate"),
        ),
        image_type=tuple(part.upper() for part in text(data, "ImageType").split("\\")),
        rows=rows,
        columns=columns,
        samples=samples,
        frames=frames,
        syntax=syntax or (ImplicitVRLittleEndian if not marked else ""),
        pixel_spacing_mm=floats(data, "PixelSpacing", 2),
        position_mm=floats(data, "ImagePositionPatient", 3),
        orientation=floats(data, "ImageOrientationPatient", 6),
        instance=integer(data, "InstanceNumber"),
        times={
            "AcquisitionNumber": text(data, "AcquisitionNumber"),
            "StackID": "",
            "TemporalPositionIdentifier": text(data, "TemporalPositionIdentifier"),
            "TriggerTime": text(data, "TriggerTime"),
            "AcquisitionTime": text(data, "AcquisitionDateTime") or (clock and date + clock),
            "ContentTime": text(data, "ContentTime"),
        },
        tags={key: value for key in EVIDENCE if (value := text(data, key))},
        damage=damage,
        bits=integer(data, "BitsAllocated") or 16,
        marked=marked,
    )
    return frames_of(image, data) if sop_class in ENHANCED_CT else [image]


def _directory(path: Path, data: Dataset) -> Directory:
    """The files that a DICOMDIR lists."""
    listed = (text(record, "ReferencedFileID") for record in data.DirectoryRecordSequence)
    return Directory(path, tuple(tuple(name.split("\\")) for name in listed if name))
