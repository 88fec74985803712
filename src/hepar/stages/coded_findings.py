"""The findings in coded words: every number of the lesion table, by segment, for DICOM output."""

from __future__ import annotations

from collections.abc import Sequence

from pydicom.sr.coding import Code

from hepar.io import dicom_codes as words
from hepar.io.dicom_codes import own
from hepar.io.refusal import WARNINGS
from hepar.io.seg import Segment
from hepar.io.sr import Group, Number
from hepar.render.template import FEATURE_NAMES, TYPE_NAMES
from hepar.study import Findings, Lesion, LesionDiagnosis, Phase

_AXES = {"X": "to the left", "Y": "to posterior", "Z": "to superior"}
_LONGEST_NAME, _LONGEST_MEANING = 16, 64


def coded_findings(findings: Findings, segments: Sequence[Segment]) -> tuple[Group, ...]:
    """One group of numbers a segment.

    Args:
        findings: the numbers, as `findings.json` holds them.
        segments: the liver, and each lesion in the order of the findings; numbered from 1.

    Returns:
        The liver's group, which says of the patient what is no single lesion's, and the lesions'.
    """
    named = {d.lesion_id: d for d in findings.diagnosis.lesions}
    contents = [(words.LIVER, _of_patient(findings), _words_of_patient(findings))]
    for lesion in findings.lesions:
        diagnosis = named.get(lesion.id)
        said = _words_of_lesion(lesion, diagnosis)
        contents.append((words.LESION, _of_lesion(lesion, diagnosis), said))
    return tuple(
        Group(number, segment.tracking_id, segment.tracking_uid, finding, tuple(numbers), said)
        for number, (segment, (finding, numbers, said)) in enumerate(
            zip(segments, contents, strict=True), start=1
        )
    )


def _of_patient(findings: Findings) -> list[Number]:
    liver = own("LIVER_VOLUME", "Volume of the liver, its lesions included")
    numbers = [
        Number(liver, findings.liver_ml, words.MILLILITER),
        Number(own("TUMOR_VOLUME", "Volume of all lesions"), findings.tumor_ml, words.MILLILITER),
        Number(
            own("TUMOR_BURDEN", "Tumor burden: volume of all lesions / volume of the liver"),
            findings.tumor_burden,
            words.NO_UNIT,
        ),
        Number(words.NUMBER_OF_LESIONS, float(len(findings.lesions)), words.NO_UNIT),
    ]
    chances = {**findings.diagnosis.patient, **findings.diagnosis.groups}
    for name, value in chances.items():
        shown = TYPE_NAMES.get(name, name)
        code = _own("PT", name, f"Probability in the patient: {shown}")
        numbers.append(Number(code, value, words.NO_UNIT))
    return numbers


def _words_of_patient(findings: Findings) -> tuple[tuple[Code, Code], ...]:
    summary = words.WITH_FINDINGS if findings.lesions else words.WITHOUT_FINDINGS
    codes = dict.fromkeys(warning.partition(":")[0] for warning in findings.warnings)
    warned = ((words.WARNING, own(code, _title(code))) for code in codes)
    return ((words.SUMMARY, summary), *warned)


def _of_lesion(lesion: Lesion, diagnosis: LesionDiagnosis | None) -> list[Number]:
    numbers = [
        Number(words.VOLUME, lesion.volume_ml, words.MILLILITER),
        Number(words.LONG_AXIS, lesion.long_axis_mm, words.MILLIMETER),
        Number(words.SHORT_AXIS, lesion.short_axis_mm, words.MILLIMETER),
    ]
    for (axis, where), value in zip(_AXES.items(), lesion.centroid_mm, strict=True):
        code = own(f"CENTROID_{axis}", f"Centroid, {axis.lower()} {where}")
        numbers.append(Number(code, value, words.MILLIMETER))
    for key, meaning, values in (
        ("MEAN", "Mean attenuation", lesion.hu),
        ("SD", "Standard deviation of attenuation", lesion.hu_std),
        ("LIVER", "Median attenuation of the liver", lesion.liver_hu),
    ):
        for phase, value in values.items():
            code = own(f"HU_{key}_{phase}", f"{meaning}, {Phase(phase).long_name} phase")
            numbers.append(Number(code, value, words.HOUNSFIELD))
    for key, meaning, change in (
        ("WASH_IN", "Wash-in: arterial - non-contrast", lesion.wash_in_hu),
        ("WASHOUT", "Washout: fall of the contrast to the liver", lesion.washout_hu),
    ):
        if change is not None:
            numbers.append(Number(own(key, meaning), change, words.HOUNSFIELD))
    if lesion.confidence is not None:
        code = own("CONFIDENCE", "Confidence of the detection")
        numbers.append(Number(code, lesion.confidence, words.NO_UNIT))
    for name, value in diagnosis.probabilities.items() if diagnosis else ():
        code = _own("P", name, f"Probability of the type: {TYPE_NAMES.get(name, name)}")
        numbers.append(Number(code, value, words.NO_UNIT))
    return numbers


def _words_of_lesion(
    lesion: Lesion, diagnosis: LesionDiagnosis | None
) -> tuple[tuple[Code, Code], ...]:
    label = "uncertain" if diagnosis is None or diagnosis.abstained else diagnosis.label
    features = (
        (
            _own("F", feature.name, FEATURE_NAMES.get(feature.name, feature.name)),
            words.STATES[feature.state],
        )
        for feature in lesion.features
    )
    return ((words.MORPHOLOGY, words.TYPES[label]), *features)


def _own(kind: str, name: str, meaning: str) -> Code:
    """A name of our own; highdicom 0.28 cannot read groups with names of more than 16 letters."""
    return own(f"{kind}_{name.upper().replace('-', '_')}"[:_LONGEST_NAME], meaning)


def _title(code: str) -> str:
    notice = WARNINGS.get(code)
    return (notice.title if notice else code)[:_LONGEST_MEANING]
