"""The frames of an enhanced (multi-frame) CT, each as if it were an image of its own.

What classic CT says once an image, enhanced CT says in functional groups: shared by all frames or
one a frame, which wins (PS3.3 C.7.6.16). The order of frames in the file means nothing; each has
its own place.
"""

from __future__ import annotations

from dataclasses import replace

from pydicom.dataset import Dataset

from hepar.io.dicom_headers import Damaged, Header, floats, integer, text


def frames_of(image: Header, data: Dataset) -> list[Header] | Damaged:
    """One header a frame.

    Args:
        image: what the file says of all its frames.
        data: its functional groups.

    Returns:
        The headers, or `E_MALFORMED` where there is not one functional group a frame.
    """
    shared = _first(data, "SharedFunctionalGroupsSequence")
    groups = list(data.get("PerFrameFunctionalGroupsSequence") or ())
    if len(groups) != image.frames:
        reason = f"has {image.frames} frames and functional groups for {len(groups)}"
        return Damaged(image.path, "E_MALFORMED", reason, True)
    return [_frame(image, number, shared, group) for number, group in enumerate(groups)]


def _frame(image: Header, number: int, shared: Dataset, own: Dataset) -> Header:
    def group(name: str) -> Dataset:
        return _first(own, name) if own.get(name) else _first(shared, name)

    content = group("FrameContentSequence")
    value = group("PixelValueTransformationSequence")
    kind = text(group("CTImageFrameTypeSequence"), "FrameType")
    time = text(content, "FrameAcquisitionDateTime") or text(content, "FrameReferenceDateTime")
    times = {
        **image.times,
        "AcquisitionNumber": text(content, "FrameAcquisitionNumber"),
        "StackID": text(content, "StackID"),
        "TemporalPositionIdentifier": text(content, "TemporalPositionIndex"),
        "AcquisitionTime": time or image.times["AcquisitionTime"],
    }
    return replace(
        image,
        frame=number,
        frames=1,
        sop_uid=f"{image.sop_uid}#{number + 1}",
        image_type=tuple(part.upper() for part in kind.split("\\")) if kind else image.image_type,
        pixel_spacing_mm=floats(group("PixelMeasuresSequence"), "PixelSpacing", 2),
        position_mm=floats(group("PlanePositionSequence"), "ImagePositionPatient", 3),
        orientation=floats(group("PlaneOrientationSequence"), "ImageOrientationPatient", 6),
        instance=integer(content, "InStackPositionNumber") or number + 1,
        rescale=(text(value, "RescaleSlope"), text(value, "RescaleIntercept")),
        times=times,
        tags={**image.tags, **({"AcquisitionDateTime": time} if time else {})},
    )


def _first(data: Dataset, keyword: str) -> Dataset:
    """The first item of a sequence; an empty one where there is none."""
    items = data.get(keyword)
    return items[0] if items else Dataset()
