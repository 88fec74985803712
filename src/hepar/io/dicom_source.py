"""What DICOM output says of the images it was made from: their headers, made fit to be referred to.

An object of ours belongs to the patient's record, so who the patient is and which study it is are
copied from here. What a header must hold for that is checked before anything is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.valuerep import format_number_as_ds

from hepar.errors import UsageError
from hepar.io.dicom_pixels import quiet
from hepar.study import Frames, Series

_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
_NEEDED_OF_IMAGES = ("SOPClassUID", "SOPInstanceUID", *_NEEDED)
# Type 2 in every object: there, but allowed to be empty.
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"),
    *("StudyDate", "StudyTime", "ReferringPhysicianName"),
)


@dataclass(frozen=True)
class SourceImages:
    """The images of one series.

    Attributes:
        images: a header an image, z index ascending; one header for an enhanced CT, whose
            functional groups are those of the series' frames alone, z index ascending.
        places: SOPInstanceUID and frame number of each slice; the number is 1 for a file of one
            image.
    """

    images: tuple[Dataset, ...]
    places: tuple[tuple[str, int], ...]

    @property
    def series_uid(self) -> str:
        """Their SeriesInstanceUID."""
        return str(self.images[0].SeriesInstanceUID)

    @property
    def study_uid(self) -> str:
        """Their StudyInstanceUID."""
        return str(self.images[0].StudyInstanceUID)


def check_uids(series: Iterable[Series]) -> None:
    """Find out that a study holds no images that can be referred to.

    Args:
        series: all that may be used.

    Raises:
        UsageError: `E_DICOM_SOURCE`, a series is no DICOM, lies in an archive, or its headers
            lack UIDs.
    """
    for one in series:
        name = f"{one.verdict.series_id} ({one.verdict.description or one.verdict.source})"
        if one.frames is None:
            raise unusable_source(
                f"{name} is a NIfTI file, or DICOM in an archive.",
                "Give a folder of DICOM files, unpacked, or leave out --dicom.",
            )
        for keyword in _NEEDED:
            if not one.tags.get(keyword):
                raise unusable_source(f"{name} has no {keyword}.")


def unusable_source(message: str, remedy: str = "") -> UsageError:
    """The refusal of a study that DICOM output cannot refer to, to be raised by the caller."""
    fallback = "Export the series again with complete, valid headers, or leave out --dicom."
    return UsageError("E_DICOM_SOURCE", "dicom_out", message, remedy or fallback)


def source_images(frames: Frames) -> SourceImages:
    """Read the headers of a series' images.

    Orientation and pixel spacing of the first image stand for all, as they do in the volume.

    Args:
        frames: where the images lie.

    Raises:
        UsageError: `E_DICOM_SOURCE`, a file is gone, its header lacks a UID, or there are several
            multi-frame files.
    """
    with quiet():
        headers = {file: _header(Path(file)) for file in dict.fromkeys(frames.files)}
    first = headers[frames.files[0]]
    if "PerFrameFunctionalGroupsSequence" in first:
        if len(headers) > 1:
            raise unusable_source(
                "A series lies in several multi-frame files.",
                "Export it as one multi-frame file or as classic images.",
            )
        _keep_frames(first, frames)
        uid = str(first.SOPInstanceUID)
        return SourceImages((first,), tuple((uid, number + 1) for number in frames.numbers))
    images = tuple(headers[file] for file in frames.files)
    thickness = _thickness(frames)
    for image in images:
        image.ImageOrientationPatient = first.ImageOrientationPatient
        image.PixelSpacing = first.PixelSpacing
        if not image.get("SliceThickness"):
            image.SliceThickness = thickness
    return SourceImages(images, tuple((str(image.SOPInstanceUID), 1) for image in images))


def renumbered(data: Dataset, sources: Sequence[SourceImages]) -> None:
    """Let references to frames count the frames of the files, not those that were kept of them.

    Args:
        data: an object with functional groups that refer to `sources`; changed in place.
        sources: what it was made from, the series that it lies on first.
    """
    numbers: dict[str, list[int]] = {}
    for source in sources:
        if "PerFrameFunctionalGroupsSequence" in source.images[0]:
            # Of several series in one file only the first is referred to.
            uid = str(source.images[0].SOPInstanceUID)
            numbers.setdefault(uid, [number for _, number in source.places])
    # Frames of several segments on one image share the item.
    for item in {id(item): item for item in _references(data)}.values():
        uid = str(item.ReferencedSOPInstanceUID)
        if uid in numbers and "ReferencedFrameNumber" in item:
            item.ReferencedFrameNumber = numbers[uid][int(item.ReferencedFrameNumber) - 1]


def _references(data: Dataset) -> Iterator[Dataset]:
    for group in data.PerFrameFunctionalGroupsSequence:
        for derivation in group.get("DerivationImageSequence", ()):
            yield from derivation.SourceImageSequence


def _header(path: Path) -> Dataset:
    try:
        data = pydicom.dcmread(path, force=True, stop_before_pixels=True)
    except OSError as error:
        raise unusable_source(
            "A file of the study can no longer be read.", "Leave the study alone during a run."
        ) from error
    for keyword in _NEEDED_OF_IMAGES:
        if not data.get(keyword):
            raise unusable_source(f"An image of the study has no {keyword}.")
    for keyword in _MAY_BE_EMPTY:
        if keyword not in data:
            setattr(data, keyword, "")
    return data


def _thickness(frames: Frames) -> str:
    """The distance of the images, where none says how thick it is."""
    steps = np.linalg.norm(np.diff(frames.origins_mm, axis=0), axis=1)
    return str(format_number_as_ds(float(np.median(steps))))


def _keep_frames(data: Dataset, frames: Frames) -> None:
    """Leave of an enhanced CT the frames of one series, with their geometry alone."""
    shared = (
        data.SharedFunctionalGroupsSequence[0]
        if data.get("SharedFunctionalGroupsSequence")
        else Dataset()
    )
    groups = [data.PerFrameFunctionalGroupsSequence[number] for number in frames.numbers]

    def macro(group: Dataset, name: str) -> Items:
        return Items([(group.get(name) or shared[name].value)[0]])

    kept = []
    for group in groups:
        item = Dataset()
        item.PlanePositionSequence = macro(group, "PlanePositionSequence")
        kept.append(item)
    common = Dataset()
    common.PlaneOrientationSequence = macro(groups[0], "PlaneOrientationSequence")
    common.PixelMeasuresSequence = macro(groups[0], "PixelMeasuresSequence")
    if not common.PixelMeasuresSequence[0].get("SliceThickness"):
        common.PixelMeasuresSequence[0].SliceThickness = _thickness(frames)
    data.SharedFunctionalGroupsSequence = Items([common])
    data.PerFrameFunctionalGroupsSequence = Items(kept)
    data.NumberOfFrames = len(kept)
