"""Cases of the catalogue about values and files: PX and FI."""

from __future__ import annotations

import os
import random
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from hazard_case import Case, lone
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    ExplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    MRImageStorage,
    SecondaryCaptureImageStorage,
    generate_uid,
)
from synthetic_dicom import Scene, Storage, enhanced, save, stack
from transfer_syntaxes import COMPRESSORS

_SIGNED_HU = Storage(signed=True, intercept=0.0)
_ONE = 5  # The image of the twelve that is damaged.
_NO_RESCALE = ("RescaleSlope", "RescaleIntercept")


@contextmanager
def _as_it_is() -> Iterator[None]:
    """What pydicom says of values that are meant to be invalid is no news."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def slope_per_slice(folder: Path) -> Scene:
    """RescaleSlope changes from slice to slice."""
    return lone(stack(storage=lambda k: Storage(slope=(1.0, 0.5, 0.25)[k % 3])), folder)


def intercept_per_slice(folder: Path) -> Scene:
    """RescaleIntercept changes from slice to slice."""
    return lone(stack(storage=lambda k: Storage(intercept=-1024.0 if k % 2 else -1000.0)), folder)


def _without_rescale(folder: Path, storage: Storage) -> Scene:
    slices = stack(storage=storage)
    for one in slices:
        for keyword in _NO_RESCALE:
            delattr(one.data, keyword)
    return lone(slices, folder)


def signed_without_rescale(folder: Path) -> Scene:
    """HU stored as they are, without rescale tags."""
    return _without_rescale(folder, _SIGNED_HU)


def unsigned_without_intercept(folder: Path) -> Scene:
    """HU + 1024, and nothing says so."""
    return _without_rescale(folder, Storage())


def twelve_bits_signed(folder: Path) -> Scene:
    """Two's complement of 12 bits."""
    return lone(stack(storage=Storage(signed=True, bits=12, intercept=0.0)), folder)


def declared_padding(folder: Path) -> Scene:
    """PixelPaddingValue -2000 outside the circle."""
    storage = Storage(signed=True, intercept=0.0, pad=-2000)
    return lone(stack(storage=storage, PixelPaddingValue=-2000), folder)


def undeclared_padding(folder: Path) -> Scene:
    """-3024 HU outside the circle, undeclared."""
    return lone(stack(storage=Storage(signed=True, pad=-2000)), folder)


def intercept_of_minus_32768(folder: Path) -> Scene:
    """An intercept that wraps 16-bit sums."""
    return lone(stack(storage=Storage(intercept=-32768.0)), folder)


def slope_is_no_number(folder: Path) -> Scene:
    """One RescaleSlope that is text."""
    slices = stack()
    paths = save(slices, folder)
    content = paths[3].read_bytes()
    at = content.index(b"\x28\x00\x53\x10DS") + 8
    paths[3].write_bytes(content[:at] + b"na" + content[at + 2 :])
    return Scene([slices])


def slope_zero(folder: Path) -> Scene:
    """RescaleSlope 0."""
    return lone(stack(RescaleSlope="0"), folder)


def monochrome1(folder: Path) -> Scene:
    """An inverted display."""
    return lone(stack(PhotometricInterpretation="MONOCHROME1"), folder)


def jpeg_ls_of_twelve_bits_signed(folder: Path) -> Scene:
    """JPEG-LS of signed values."""
    slices = stack(storage=Storage(signed=True, bits=12, intercept=0.0))
    for one in slices:
        COMPRESSORS["JPEG-LS"](one.data)
    return lone(slices, folder)


def half_a_frame(folder: Path) -> Scene:
    """One RLE frame that ends in its middle."""
    slices = stack()
    for one in slices:
        COMPRESSORS["RLE"](one.data)
    data = slices[_ONE].data
    frame = next(generate_frames(data.PixelData, number_of_frames=1))
    data.PixelData = encapsulate([frame[: len(frame) // 2 // 2 * 2]])
    return lone(slices, folder)


def unknown_syntax(folder: Path) -> Scene:
    """One file of a transfer syntax that does not exist."""
    slices = stack()
    path = save(slices, folder)[_ONE]
    known = b"1.2.840.10008.1.2.1\x00"
    path.write_bytes(path.read_bytes().replace(known, b"1.2.840.10008.1.2.9\x00", 1))
    return Scene([slices])


def screenshots(folder: Path) -> Scene:
    """A windowed 8-bit copy, as secondary captures."""
    slices = stack()
    for one in slices:
        data = one.data
        gray = np.clip((one.hu.astype(float) + 160) / 400 * 255, 0, 255).astype(np.uint8)
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        data.BitsAllocated = data.BitsStored = 8
        data.HighBit, data.PixelData = 7, gray.tobytes()
        for keyword in _NO_RESCALE:
            delattr(data, keyword)
    return lone(slices, folder)


def _cut(folder: Path, keep: slice) -> Scene:
    slices = stack()
    path = save(slices, folder)[_ONE]
    path.write_bytes(path.read_bytes()[keep])
    return Scene([slices])


def cut_pixels(folder: Path) -> Scene:
    """One file ends within its pixels."""
    return _cut(folder, slice(None, -2000))


def cut_header(folder: Path) -> Scene:
    """One file ends within its header."""
    return _cut(folder, slice(300))


def junk(folder: Path) -> Scene:
    """Files that are no DICOM."""
    scene = lone(stack(), folder)
    (folder / "README.txt").write_text("hi")
    (folder / "Thumbs.db").write_bytes(random.Random(0).randbytes(5000))
    (folder / ".DS_Store").write_bytes(bytes(100))
    return scene


def no_preamble(folder: Path) -> Scene:
    """Files without the first 132 bytes."""
    slices = stack()
    for path in save(slices, folder):
        path.write_bytes(path.read_bytes()[132:])
    return Scene([slices])


def mr(folder: Path) -> Scene:
    """An MR series."""
    return lone(stack(Modality="MR", SOPClassUID=MRImageStorage), folder)


def chinese_names(folder: Path) -> Scene:
    """Text in GB18030."""
    slices = stack(SpecificCharacterSet="GB18030")
    for one in slices:
        one.data.PatientName, one.data.SeriesDescription = "张^三", "肝脏增强"
    return lone(slices, folder)


def path_as_uid(folder: Path) -> Scene:
    """A SeriesInstanceUID that is a path."""
    slices = stack()
    for one in slices:
        one.data.SeriesDescription = "../../evil;rm -rf"
    with _as_it_is():
        for one in slices:
            one.data.SeriesInstanceUID = "../../../tmp/evil"
        return lone(slices, folder)


def matrix_lies(folder: Path) -> Scene:
    """One file declares 65535 x 65535 pixels."""
    slices = stack()
    slices[_ONE].data.Rows = slices[_ONE].data.Columns = 65535
    return lone(slices, folder)


def enhanced_shuffled(folder: Path) -> Scene:
    """Enhanced CT with its frames in no order."""
    slices = stack()
    save([enhanced(slices)], folder)
    return Scene([slices])


def nested(folder: Path) -> Scene:
    """A file whose sequences nest 300 deep, beside a series."""
    scene = lone(stack(), folder)
    body = b""
    for _ in range(300):
        opened = struct.pack(
            "<HH2sHIHHI", 0x40, 0xA730, b"SQ", 0, 2**32 - 1, 0xFFFE, 0xE000, 2**32 - 1
        )
        body = opened + body + struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    (folder / "deep.dcm").write_bytes(_head(b"1.2.840.10008.1.2.1\0") + body)
    return scene


def _head(syntax: bytes) -> bytes:
    """Preamble and meta header of a bare file."""
    element = struct.pack("<HH2sH", 2, 0x10, b"UI", len(syntax)) + syntax
    length = struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(element))
    return bytes(128) + b"DICM" + length + element


def deflate_bomb(folder: Path) -> Scene:
    """A deflated file that inflates a thousandfold, beside a series."""
    scene = lone(stack(), folder)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, 200 << 20))
    packed += b"".join(packer.compress(bytes(1 << 20)) for _ in range(200)) + packer.flush()
    (folder / "bomb.dcm").write_bytes(_head(b"1.2.840.10008.1.2.1.99") + packed)
    return scene


def program_in_preamble(folder: Path) -> Scene:
    """A preamble that makes the file a program."""
    slices = stack()
    for one in slices:
        one.data.preamble = b"MZ".ljust(128, b"\0")
    return lone(slices, folder)


def links_and_pipes(folder: Path) -> Scene:
    """Links to another patient and to a system file, and a pipe nobody writes to."""
    scene = lone(stack(), folder)
    elsewhere = folder.parent / f"{folder.name}-elsewhere"
    other = stack(3, study="1.2.99", series="1.2.99.1")
    for one in other:
        one.data.PatientID = "OTHER"
    for k, path in enumerate(save(other, elsewhere)):
        (folder / f"link{k}.dcm").symlink_to(path)
    (folder / "folder").symlink_to(elsewhere, target_is_directory=True)
    (folder / "a.dcm").symlink_to("/etc/passwd")
    os.mkfifo(folder / "b.dcm")
    return scene


def escaping_directory(folder: Path) -> Scene:
    """A DICOMDIR that names a file outside the folder."""
    scene = lone(stack(), folder)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["DICOMDIR"])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))  # type: ignore[arg-type]
    record = Dataset()
    record.OffsetOfTheNextDirectoryRecord = record.OffsetOfReferencedLowerLevelDirectoryEntity = 0
    record.RecordInUseFlag, record.DirectoryRecordType = 0xFFFF, "IMAGE"
    with _as_it_is():
        record.ReferencedFileID = ["..", "..", "etc", "passwd"]
        data.FileSetID, data.DirectoryRecordSequence = "SYNTH", Items([record])
        data.save_as(folder / "DICOMDIR", enforce_file_format=True)
    return scene


FILE_CASES = (
    Case("PX01", "HANDLE", "", slope_per_slice),
    Case("PX02", "HANDLE", "", intercept_per_slice),
    Case("PX03", "HANDLE", "W_NO_RESCALE", signed_without_rescale),
    Case("PX04", "ERROR", "E_HU_IMPLAUSIBLE", unsigned_without_intercept, "refused"),
    Case("PX05", "HANDLE", "", twelve_bits_signed),
    Case("PX06", "HANDLE", "", declared_padding),
    Case("PX07", "HANDLE", "", undeclared_padding),
    Case("PX08", "HANDLE", "", intercept_of_minus_32768),
    Case("PX09", "ERROR", "E_BAD_RESCALE", slope_is_no_number, "refused"),
    Case("PX10", "ERROR", "E_BAD_RESCALE", slope_zero, "refused"),
    Case("PX11", "HANDLE", "W_MONOCHROME1", monochrome1),
    Case("PX14", "HANDLE", "", jpeg_ls_of_twelve_bits_signed),
    Case("PX15", "ERROR", "E_DECODE", half_a_frame, "refused"),
    Case("PX16", "ERROR", "E_UNSUPPORTED_TS", unknown_syntax, "refused"),
    Case("PX18", "ERROR", "E_NOT_CT", screenshots, "refused"),
    Case("FI01", "ERROR", "E_TRUNCATED", cut_pixels, "refused"),
    Case("FI02", "ERROR", "E_TRUNCATED", cut_header, "refused"),
    Case("FI04", "HANDLE", "", junk),
    Case("FI05", "WARN", "W_NO_PREAMBLE", no_preamble),
    Case("FI07", "ERROR", "E_WRONG_MODALITY", mr, "refused"),
    Case("FI08", "HANDLE", "", chinese_names),
    Case("FI10", "REJECT", "E_BAD_UID", path_as_uid, "refused"),
    Case("FI11", "ERROR", "E_TRUNCATED", matrix_lies, "refused"),
    Case("FI13", "HANDLE", "", enhanced_shuffled),
    Case("FI14", "ERROR", "E_MALFORMED", nested, "set aside"),
    Case("FI15", "REJECT", "E_BOMB", deflate_bomb, "set aside"),
    Case("FI16", "HANDLE", "", program_in_preamble),
    Case("FI17", "HANDLE", "", links_and_pipes),
    Case("FI18", "ERROR", "E_DICOMDIR", escaping_directory, "refused"),
)
