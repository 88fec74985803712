"""DICOM structured report (SR): measurements of segments by template TID 1500.

Comprehensive 3D SR. A group of measurements (TID 1411) refers to one segment of a Segmentation
object by its number and carries the segment's tracking id and UID.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from hepar.io.dicom_codes import CT, DEVICE, LIVER
from hepar.io.dicom_origin import Origin
from hepar.io.dicom_source import SourceImages

SERIES_NUMBER = 9002


@dataclass(frozen=True)
class Number:
    """A measured number with its name and its unit, both coded."""

    name: Code
    value: float
    unit: Code


@dataclass(frozen=True)
class Group:
    """What is said of one segment.

    Attributes:
        segment: its number in the Segmentation object.
        tracking_id: of the segment.
        tracking_uid: of the segment.
        finding: coded, what it is.
        numbers: measured of it.
        words: questions and their answers, both coded.
    """

    segment: int
    tracking_id: str
    tracking_uid: str
    finding: Code
    numbers: tuple[Number, ...]
    words: tuple[tuple[Code, Code], ...]


def write_sr(path: Path, groups: Sequence[Group], seg: Dataset, origin: Origin) -> None:
    """Write one Comprehensive 3D SR, preliminary and unverified.

    Args:
        path: of the file.
        groups: at least one.
        seg: the Segmentation object whose segments they measure.
        origin: what it is made from.
    """
    maker = origin.maker
    observer = sr.ObserverContext(
        observer_type=sr.CodedConcept(DEVICE.value, DEVICE.scheme_designator, DEVICE.meaning),
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=maker.uid,
            name=maker.name,
            manufacturer_name=maker.name,
            model_name=f"{maker.name} {maker.version}",
            serial_number=maker.serial,
        ),
    )
    algorithm = sr.AlgorithmIdentification(
        name=maker.name,
        version=maker.version,
        parameters=[f"{name}: {value}" for name, value in maker.parameters.items()],
        manufacturer=maker.name,
    )
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=CT,
        imaging_measurements=[_content(group, seg, origin.source, algorithm) for group in groups],
    )
    made = sr.Comprehensive3DSR(
        evidence=[*origin.images(), seg],
        content=report,
        is_complete=True,
        is_final=False,
        is_verified=False,
        **origin.said("report", SERIES_NUMBER, "hepar: measurements of liver and lesions"),
    )
    made.save_as(path, enforce_file_format=True)


def read_sr(path: Path) -> tuple[Group, ...]:
    """What a report of this kind says of each segment, in its order.

    Args:
        path: of the file.

    Raises:
        ValueError: it is no report of TID 1500 on single segments, or contradicts itself.
    """
    data = pydicom.dcmread(path)
    for element in data.iterall():
        if element.keyword == "MeasuredValueSequence":
            _same_in_text_and_binary(element.value[0])
    content = sr.Comprehensive3DSR.from_dataset(data).content
    if not isinstance(content, sr.MeasurementReport):
        raise ValueError("not a report of TID 1500")
    return tuple(_group(found) for found in content.get_volumetric_roi_measurement_groups())


def _content(
    group: Group, seg: Dataset, source: SourceImages, algorithm: sr.AlgorithmIdentification
) -> sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=group.tracking_uid, identifier=group.tracking_id
        ),
        referenced_segment=sr.ReferencedSegment(
            sop_class_uid=seg.SOPClassUID,
            sop_instance_uid=seg.SOPInstanceUID,
            segment_number=group.segment,
            source_series=sr.SourceSeriesForSegmentation(source.series_uid),
        ),
        finding_type=group.finding,
        finding_sites=[sr.FindingSite(anatomic_location=LIVER)],
        algorithm_id=algorithm,
        measurements=[
            sr.Measurement(name=number.name, value=number.value, unit=number.unit)
            for number in group.numbers
        ],
        qualitative_evaluations=[
            sr.QualitativeEvaluation(name=name, value=value) for name, value in group.words
        ],
    )


def _group(found: sr.VolumetricROIMeasurementsAndQualitativeEvaluations) -> Group:
    segment, finding = found.referenced_segment, found.finding_type
    numbers = segment.referenced_segment_numbers if segment else None
    if numbers is None or len(numbers) != 1 or finding is None:
        raise ValueError("a group that does not say what single segment it measures")
    return Group(
        segment=int(numbers[0]),
        tracking_id=str(found.tracking_identifier),
        tracking_uid=str(found.tracking_uid),
        finding=_code(finding),
        numbers=tuple(
            Number(_code(one.name), float(one.value), _code(one.unit))
            for one in found.get_measurements()
        ),
        words=tuple(
            (_code(one.name), _code(one.value)) for one in found.get_qualitative_evaluations()
        ),
    )


def _same_in_text_and_binary(measured: Dataset) -> None:
    """highdicom reads the binary number alone, people are shown the text."""
    binary = measured.get("FloatingPointValue")
    if binary is not None and float(measured.NumericValue) != float(binary):
        raise ValueError("a number with two values")


def _code(concept: Any) -> Code:
    # highdicom declares the value of an evaluation as a number; it is a code.
    return Code(str(concept.value), str(concept.scheme_designator), str(concept.meaning))
