"""The structured report beside the findings, the UIDs of both objects, and headers that are odd."""

from __future__ import annotations

import json

import highdicom as hd
import numpy as np
import pydicom
import pytest
from dicom_case import CHANCES, PROVENANCE, found_in, frames_of, read_series, write_case
from synthetic_dicom import enhanced, save, stack
from test_dicom_output_hazards import anatomy, healthy

from hepar.errors import UsageError
from hepar.io.dicom_codes import SCHEME, TYPES
from hepar.lesion_evidence import FEATURES, ImagingFeature
from hepar.render.template import FEATURE_NAMES
from hepar.stages.dicom_out import check_sources, write_dicom
from hepar.study import LESION_TYPES, LesionDiagnosis


def numbers_of(group) -> dict[str, float]:
    return {m.name.value: float(m.value) for m in group.get_measurements()}


def test_oracle_OU02_the_report_holds_every_number_of_the_findings(tmp_path):
    save(stack(12), tmp_path / "study")
    found = write_case(tmp_path / "study", anatomy, tmp_path / "out")
    document = json.loads(found.findings.model_dump_json())
    groups = hd.sr.srread(found.sr).content.get_volumetric_roi_measurement_groups()
    liver, *lesions = map(numbers_of, groups)
    assert liver == {
        "LIVER_VOLUME": document["liver_ml"],
        "TUMOR_VOLUME": document["tumor_ml"],
        "TUMOR_BURDEN": document["tumor_burden"],
        "246206008": 2,
        "PT_TUMOR_FREE": 0.1,
        "PT_HCC": 0.751,
    }
    assert len(lesions) == len(document["lesions"]) == 2
    for numbers, lesion in zip(lesions, document["lesions"], strict=True):
        expected = {
            "118565006": lesion["volume_ml"],
            "103339001": lesion["long_axis_mm"],
            "103340004": lesion["short_axis_mm"],
            "WASHOUT": lesion["washout_hu"],
            "CONFIDENCE": lesion["confidence"],
        }
        expected |= {f"CENTROID_{a}": v for a, v in zip("XYZ", lesion["centroid_mm"], strict=True)}
        for key, name in (("MEAN", "hu"), ("SD", "hu_std"), ("LIVER", "liver_hu")):
            expected |= {f"HU_{key}_{phase}": value for phase, value in lesion[name].items()}
        expected |= {f"P_{name.upper()}": round(value, 3) for name, value in CHANCES.items()}
        assert numbers == expected
    morphology = hd.sr.CodedConcept("116676008", "SCT", "Associated morphology")
    said = [g.get_qualitative_evaluations(morphology) for g in groups]
    assert [[e.value.value for e in one] for one in said] == [[], ["25370001"], ["82334004"]]


def test_oracle_OU02_report_and_segmentation_refer_to_each_other(tmp_path):
    save(stack(12), tmp_path / "study")
    found = write_case(tmp_path / "study", anatomy, tmp_path / "out")
    seg = hd.seg.segread(found.seg)
    groups = hd.sr.srread(found.sr).content.get_volumetric_roi_measurement_groups()
    for number, group in zip(seg.segment_numbers, groups, strict=True):
        description = seg.get_segment_description(number)
        assert group.tracking_uid == description.tracking_uid
        assert group.tracking_identifier == description.tracking_id
        referenced = group.referenced_segment
        assert referenced.referenced_sop_instance_uid == seg.SOPInstanceUID
        assert list(referenced.referenced_segment_numbers) == [number]
    assert len({group.tracking_uid for group in groups}) == 3
    evidence = pydicom.dcmread(found.sr).CurrentRequestedProcedureEvidenceSequence[0]
    uids = {
        str(item.ReferencedSOPInstanceUID)
        for one in evidence.ReferencedSeriesSequence
        for item in one.ReferencedSOPSequence
    }
    sources = {str(uid) for frame in frames_of(found.seg) for uid, _ in frame.sources}
    assert sources | {str(seg.SOPInstanceUID)} <= uids


def _uids(found) -> list[str]:
    seg, sr = pydicom.dcmread(found.seg), pydicom.dcmread(found.sr)
    return [
        *(seg.SOPInstanceUID, seg.SeriesInstanceUID, sr.SOPInstanceUID, sr.SeriesInstanceUID),
        *(segment.TrackingUID for segment in seg.SegmentSequence),
    ]


def test_property_OU07_a_rerun_keeps_its_uids_and_another_result_never_shares_them(tmp_path):
    save(stack(12), tmp_path / "study")
    model = {**PROVENANCE, "hashes": {**PROVENANCE["hashes"], "model": "e" * 64}}
    runs = {
        "first": (anatomy, PROVENANCE),
        "again": (anatomy, {**PROVENANCE, "device": "cuda"}),
        "model": (anatomy, model),
        "masks": (healthy, PROVENANCE),
    }
    uids = {
        name: _uids(write_case(tmp_path / "study", truth, tmp_path / name, provenance=provenance))
        for name, (truth, provenance) in runs.items()
    }
    assert uids.pop("again") == uids["first"]
    everything = [uid for one in uids.values() for uid in one]
    assert len(set(everything)) == len(everything)


def test_closed_form_every_word_fits_its_code(tmp_path):
    """Names of at most 16 letters, none twice, and every type and feature has one."""
    assert set(LESION_TYPES) < set(TYPES)
    assert set(FEATURES) == set(FEATURE_NAMES)
    save(stack(12), tmp_path / "study")
    case, lesions, findings = found_in(read_series(tmp_path / "study"), anatomy)
    features = tuple(ImagingFeature(name=f, state="present", reason="") for f in FEATURES)
    chances = dict.fromkeys(LESION_TYPES, 0.125)
    update = {
        "lesions": tuple(one.model_copy(update={"features": features}) for one in findings.lesions),
        "diagnosis": findings.diagnosis.model_copy(
            update={
                "patient": {**chances, "uncertain": 0.5, "tumor-free": 0.1},
                "groups": {"malignant": 0.4, "benign": 0.2},
                "lesions": tuple(
                    LesionDiagnosis(lesion_id=k, probabilities=chances, label=t, abstained=False)
                    for k, t in ((1, "calcification"), (2, "other"))
                ),
            }
        ),
    }
    findings = findings.model_copy(update=update)
    (tmp_path / "out").mkdir()
    _, sr = write_dicom(findings, case, lesions, tmp_path / "out")
    for group in hd.sr.srread(sr).content.get_volumetric_roi_measurement_groups():
        numbers = [m.name for m in group.get_measurements()]
        words = [e.name for e in group.get_qualitative_evaluations()]
        names = [name.value for name in numbers + words]
        assert len(set(names)) == len(names)
        assert max(map(len, names)) <= 16
        own = [n for n in numbers + words if n.scheme_designator == SCHEME]
        assert all(n.value == n.value.upper() for n in own)
        if group is not None and "P_CYST" in names:
            assert len(names) == 3 + 3 + 3 * 2 + 1 + 1 + 8 + 1 + 8


def test_property_OU02_odd_headers_still_make_valid_objects(tmp_path):
    """No birth date, no thickness, orientations that differ in the last digit, another charset."""
    images = stack(12)
    for k, one in enumerate(images):
        for keyword in ("PatientBirthDate", "StudyID", "SliceThickness"):
            delattr(one.data, keyword)
        one.data.SpecificCharacterSet = "GB18030"
        one.data.PatientName = "Wang^XiaoDong=\u738b^\u5c0f\u4e1c"
        one.data.ImageOrientationPatient = [1, 0, 0, 0, 1, f"{1e-6 * (k % 3):.6f}"]
    save(images, tmp_path / "study")
    found = write_case(tmp_path / "study", anatomy, tmp_path / "out")
    for path in (found.seg, found.sr):
        data = pydicom.dcmread(path)
        assert str(data.PatientName) == "Wang^XiaoDong=\u738b^\u5c0f\u4e1c"
        assert data.PatientBirthDate == ""
    shared = pydicom.dcmread(found.seg).SharedFunctionalGroupsSequence[0]
    assert float(shared.PixelMeasuresSequence[0].SliceThickness) == pytest.approx(5)


def test_property_OU02_a_phase_of_another_study_is_evidence_but_no_source_of_the_seg(tmp_path):
    for number, study in ((1, "1.2.9"), (2, "1.2.3")):
        images = stack(12, series=f"1.2.3.{number}", study=study, SeriesNumber=number)
        save(images, tmp_path / "study" / str(number))
    series = read_series(tmp_path / "study")
    check_sources(series)
    found = write_case(tmp_path / "study", anatomy, tmp_path / "out")
    seg, sr = pydicom.dcmread(found.seg), pydicom.dcmread(found.sr)
    (used,) = seg.ReferencedSeriesSequence
    assert used.SeriesInstanceUID == "1.2.3.2"
    assert seg.StudyInstanceUID == sr.StudyInstanceUID == "1.2.3"
    other = sr.PertinentOtherEvidenceSequence[0]
    assert other.StudyInstanceUID == "1.2.9"
    assert np.sum([frame.mask.sum() for frame in frames_of(found.seg)]) > 0


def test_property_OU02_several_enhanced_files_of_one_series_are_refused(tmp_path):
    images = [enhanced([one]) for one in stack(12)]
    save(images, tmp_path / "study")
    with pytest.raises(UsageError) as refused:
        check_sources(read_series(tmp_path / "study"))
    assert refused.value.code == "E_DICOM_SOURCE"
    assert "several multi-frame files" in refused.value.message
