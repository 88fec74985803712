"""DICOM secondary captures: pictures for viewers that show neither SEG nor SR, one an object.

A capture is a picture of what was found, with no geometry and no measurement: it names the images
that it was drawn from, and words burned into it say what it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from jaxtyping import UInt8
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian

from hepar.io.dicom_codes import SEGMENTED, SOURCE_IMAGE
from hepar.io.dicom_origin import Origin

SERIES_NUMBER = 9003


@dataclass(frozen=True)
class Capture:
    """A picture and what it shows.

    Attributes:
        rgb: `(rows, columns, 3)`.
        words: how it was made, at most 1024 characters.
        places: SOPInstanceUID and frame number of the images that it was drawn from.
        names_patient: whether text in the pixels of the images may name the patient.
    """

    rgb: UInt8[np.ndarray, "h w 3"]
    words: str
    places: tuple[tuple[str, int], ...]
    names_patient: bool


def write_capture(path: Path, capture: Capture, origin: Origin, number: int) -> None:
    """Write one Secondary Capture Image, uncompressed.

    Args:
        path: of the file.
        capture: the picture.
        origin: what it is made from.
        number: InstanceNumber in the series of all captures, from 1.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: as `io.seg.make_seg`.
    """
    made = hd.sc.SCImage.from_ref_dataset(
        origin.source.images[0],
        pixel_array=np.ascontiguousarray(capture.rgb),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **origin.said("capture", SERIES_NUMBER, "hepar: lesions, research use only", number),
    )
    made.BodyPartExamined = "LIVER"
    made.BurnedInAnnotation = "YES" if capture.names_patient else "NO"
    made.DerivationDescription = capture.words
    made.DerivationCodeSequence = Items([hd.sr.CodedConcept(*SEGMENTED[:3])])
    made.SourceImageSequence = Items(_references(capture.places, origin.images()))
    made.save_as(path, enforce_file_format=True)


def read_capture(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """The picture of a capture."""
    return np.asarray(pydicom.dcmread(path).pixel_array)


def _references(places: Sequence[tuple[str, int]], images: Sequence[Dataset]) -> list[Dataset]:
    by_uid = {str(image.SOPInstanceUID): image for image in images}
    found = []
    for uid, frame in places:
        item = Dataset()
        item.ReferencedSOPClassUID = by_uid[uid].SOPClassUID
        item.ReferencedSOPInstanceUID = uid
        if "PerFrameFunctionalGroupsSequence" in by_uid[uid]:
            item.ReferencedFrameNumber = frame
        item.PurposeOfReferenceCodeSequence = Items([hd.sr.CodedConcept(*SOURCE_IMAGE[:3])])
        found.append(item)
    return found
