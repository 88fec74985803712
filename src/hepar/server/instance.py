"""An image as C-STORE brings it: who it says it is, checked, and its bytes as a DICOM file."""

from __future__ import annotations

import re
import zlib
from io import BytesIO

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_file_meta_info
from pydicom.tag import BaseTag
from pydicom.uid import (
    PYDICOM_IMPLEMENTATION_UID,
    RE_VALID_UID,
    UID,
    DeflatedExplicitVRLittleEndian,
)

CANNOT_UNDERSTAND = 0xC000
OTHER_CLASS = 0xA900
_CLASS, _INSTANCE, _STUDY = (BaseTag(tag) for tag in (0x00080016, 0x00080018, 0x0020000D))
# The identifiers of an image lie near its beginning; more is not searched for them.
_SEARCHED_BYTES = 2**22


class Unacceptable(Exception):
    """An image that is not kept.

    Attributes:
        status: of the C-STORE response.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"{status:#06x}")
        self.status = status


def study_of(sop_class: str, instance_uid: str, syntax: UID, data: bytes) -> str:
    """The StudyInstanceUID of a data set that is what its C-STORE request says.

    Args:
        sop_class: AffectedSOPClassUID of the request.
        instance_uid: its AffectedSOPInstanceUID.
        syntax: the transfer syntax agreed on.
        data: the encoded data set.

    Raises:
        Unacceptable: it cannot be read, its UIDs are missing or no UIDs, or others than those of
            the request.
    """
    try:
        head = _head(data, syntax)
        found = {tag: _text(head, tag) for tag in (_CLASS, _INSTANCE, _STUDY)}
    except Exception as error:  # pydicom raises many kinds on bytes that are no data set
        raise Unacceptable(CANNOT_UNDERSTAND) from error
    study = found[_STUDY]
    if found[_INSTANCE] != instance_uid or not (is_uid(instance_uid) and is_uid(study)):
        raise Unacceptable(CANNOT_UNDERSTAND)
    if found[_CLASS] != sop_class:
        raise Unacceptable(OTHER_CLASS)
    return study


def preamble(sop_class: str, instance_uid: str, syntax: UID) -> bytes:
    """What stands before the data set in a DICOM file (PS3.10): preamble and file meta.

    Args:
        sop_class, instance_uid: of the image.
        syntax: in which its data set is encoded.
    """
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = UID(sop_class)
    meta.MediaStorageSOPInstanceUID = UID(instance_uid)
    meta.TransferSyntaxUID = syntax
    meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    stream = DicomBytesIO()
    stream.write(b"\x00" * 128 + b"DICM")
    write_file_meta_info(stream, meta)
    return stream.getvalue()


def is_uid(text: str) -> bool:
    """Whether a text is a UID by PS3.5, of two components or more."""
    return len(text) <= 64 and "." in text and re.fullmatch(RE_VALID_UID, text) is not None


def _head(data: bytes, syntax: UID) -> Dataset:
    """The identifying elements of a data set, unconverted.

    Raises:
        ValueError: it begins with elements that a data set does not have, as a file meta would.
    """
    if syntax == DeflatedExplicitVRLittleEndian:
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, _SEARCHED_BYTES)
    order = "little" if syntax.is_little_endian else "big"
    if int.from_bytes(data[:2], order) < 0x0008:  # type: ignore[arg-type]
        raise ValueError("groups below 0008")
    return read_dataset(
        BytesIO(data[:_SEARCHED_BYTES]),
        syntax.is_implicit_VR,
        syntax.is_little_endian,
        stop_when=lambda tag, vr, length: tag > _STUDY,
        specific_tags=[_CLASS, _INSTANCE, _STUDY],
    )


def _text(data: Dataset, tag: BaseTag) -> str:
    """A value as it was sent: conversion would remark on what is wrong with it."""
    value = data.get_item(tag).value if tag in data else b""
    return bytes(value or b"").rstrip(b"\x00 ").decode("ascii")
