"""DICOM Segmentation (SEG): masks on the images of a series, written by highdicom and read back.

BINARY, because viewers and archives of all ages show it, and without overlap, because several
refuse or misdraw segments that share pixels: the liver leaves out the lesions in it, as label 1 of
`segmentation.nii.gz` does. Empty frames are left out; each frame names the image it lies on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
from highdicom.seg import Segmentation, SegmentDescription
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from hepar.io.dicom_codes import ALGORITHM
from hepar.io.dicom_origin import Origin
from hepar.io.dicom_source import SourceImages, renumbered

SERIES_NUMBER = 9001


@dataclass(frozen=True)
class Segment:
    """One segment; its number is its place in the list, from 1.

    Attributes:
        label: for people, at most 64 characters.
        category: coded, e.g. an anatomical structure.
        kind: coded, what it is.
        tracking_id: its name across objects.
        tracking_uid: the same as a UID.
        color: red, green, blue, 0 to 255.
        region: coded, the organ it lies in.
        given: somebody drew it, or gave it; no algorithm of ours found it.
    """

    label: str
    category: Code
    kind: Code
    tracking_id: str
    tracking_uid: str
    color: tuple[int, int, int]
    region: Code | None = None
    given: bool = False


def make_seg(labels: NDArray[Any], segments: Sequence[Segment], origin: Origin) -> Segmentation:
    """Make one Segmentation object.

    Args:
        labels: `(n, rows, columns)` on the images of the origin's source, 0 or the number of a
            segment.
        segments: at least one; a segment without pixels stays in the list.
        origin: what it is made from.

    Returns:
        The object.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: a header of the source holds what an
            object may not hold; the message may quote it.
    """
    maker, source = origin.maker, origin.source
    algorithm = hd.AlgorithmIdentificationSequence(
        name=maker.name,
        family=ALGORITHM,
        version=maker.version,
        source=maker.name,
        parameters=maker.parameters,
    )
    own = {str(image.SOPInstanceUID) for image in source.images}
    every = origin.of_study().images()
    further = [image for image in every if str(image.SOPInstanceUID) not in own]
    made = Segmentation(
        source_images=list(source.images),
        pixel_array=labels,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _description(number, segment, algorithm) for number, segment in enumerate(segments, 1)
        ],
        content_label="LIVER_LESIONS",
        content_description="Liver and lesions, research use only",
        further_source_images=further or None,
        **origin.said("segmentation", SERIES_NUMBER, "hepar: liver and lesions"),
    )
    renumbered(made, [source, *origin.further])
    return made


def read_seg(path: Path, source: SourceImages, shape: tuple[int, ...]) -> NDArray[np.uint16]:
    """The labels of a Segmentation object on the images of a series.

    Read by pydicom alone, so that what highdicom wrote is not judged by highdicom.

    Args:
        path: of the file.
        source: the images.
        shape: `(n, rows, columns)` of the images.

    Returns:
        0, or the number of a segment, by the image that each frame names.

    Raises:
        ValueError: a frame names none of the images, lies elsewhere than the image that it names,
            or shares a pixel with another.
    """
    data = pydicom.dcmread(path)
    at = {place: index for index, place in enumerate(source.places)}
    positions = _positions(source)
    labels = np.zeros(shape, dtype=np.uint16)
    frames = data.pixel_array.reshape(-1, *shape[1:])
    shared = data.SharedFunctionalGroupsSequence[0]
    for frame, group in zip(frames, data.PerFrameFunctionalGroupsSequence, strict=True):

        def macro(name: str, own: Dataset = group) -> Dataset:
            return (own if name in own else shared)[name].value[0]

        named = macro("DerivationImageSequence").SourceImageSequence
        places = [
            (str(item.ReferencedSOPInstanceUID), int(item.get("ReferencedFrameNumber", 1)))
            for item in named
        ]
        found = [at[place] for place in places if place in at]
        if len(found) != 1:
            raise ValueError(f"a frame lies on {len(found)} images of the series")
        position = macro("PlanePositionSequence").ImagePositionPatient
        if not np.allclose(position, positions[found[0]], atol=1e-4):
            raise ValueError("a frame lies elsewhere than its image")
        number = int(macro("SegmentIdentificationSequence").ReferencedSegmentNumber)
        plane, inside = labels[found[0]], frame > 0
        if plane[inside].any():
            raise ValueError("segments overlap")
        plane[inside] = number
    return labels


def _positions(source: SourceImages) -> list[Any]:
    if len(source.images) == len(source.places):
        return [image.ImagePositionPatient for image in source.images]
    groups = source.images[0].PerFrameFunctionalGroupsSequence
    return [group.PlanePositionSequence[0].ImagePositionPatient for group in groups]


def _description(
    number: int, segment: Segment, algorithm: hd.AlgorithmIdentificationSequence
) -> SegmentDescription:
    kinds = hd.seg.SegmentAlgorithmTypeValues
    return SegmentDescription(
        segment_number=number,
        segment_label=segment.label,
        segmented_property_category=segment.category,
        segmented_property_type=segment.kind,
        algorithm_type=kinds.MANUAL if segment.given else kinds.AUTOMATIC,
        algorithm_identification=None if segment.given else algorithm,
        tracking_uid=segment.tracking_uid,
        tracking_id=segment.tracking_id,
        anatomic_regions=None if segment.region is None else [segment.region],
        display_color=hd.color.CIELabColor.from_rgb(*segment.color),
    )
