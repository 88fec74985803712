"""JPEG Lossless and JPEG-LS by GDCM, which SimpleITK brings along under permissive licenses.

pydicom's own decoder for them is under the GPL. GDCM is given one frame in a file without patient,
geometry or rescale, so that it returns the stored values and nothing else.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    UID,
    SecondaryCaptureImageStorage,
)

from hepar.io.atomic import private_folder

SYNTAXES = frozenset(UID(f"1.2.840.10008.1.2.4.{number}") for number in (57, 70, 80, 81))
_KEPT = (
    *("SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated"),
    *("BitsStored", "HighBit", "PixelRepresentation"),
)
_UID = "1.2.826.0.1.3680043.8.498.1"
# GDCM's tables are global: threads that read at once have waited for one another forever.
_ONE_AT_A_TIME = threading.Lock()


def decode_frame(data: Dataset, frame: int) -> NDArray[Any]:
    """Stored values `(y, x)` of a frame.

    Args:
        data: with encapsulated pixels in one of `SYNTAXES`.
        frame: from 0.

    Raises:
        RuntimeError, ValueError: it cannot be decoded.
    """
    with _ONE_AT_A_TIME:
        import SimpleITK as sitk  # noqa: N813

    packed = get_frame(data.PixelData, frame, number_of_frames=int(data.get("NumberOfFrames") or 1))
    bare = Dataset()
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = data.file_meta.TransferSyntaxUID
    bare.file_meta.MediaStorageSOPClassUID = bare.SOPClassUID = SecondaryCaptureImageStorage
    bare.file_meta.MediaStorageSOPInstanceUID = bare.SOPInstanceUID = UID(_UID)
    bare.Modality = "OT"
    for keyword in _KEPT:
        setattr(bare, keyword, data[keyword].value)
    bare.PhotometricInterpretation = "MONOCHROME2"
    bare.PixelData = encapsulate([packed])
    bare["PixelData"].VR = "OB"
    with private_folder() as folder:
        path = folder / "frame.dcm"
        bare.save_as(path, enforce_file_format=True)
        with _ONE_AT_A_TIME:
            image = sitk.ReadImage(str(path), imageIO="GDCMImageIO")
    stored = sitk.GetArrayFromImage(image)
    return np.asarray(stored.reshape(stored.shape[-2:]))
