"""What is said of lesions that were given and not found: in findings, table and page."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from given_masks import measured, on_source
from hepar.stages.diagnose import TUMOR_FREE, diagnose, given_probabilities
from hepar.stages.report import compose, write_report
from hepar.study import AlignedStudy, Diagnosis, LesionDiagnosis, LesionMap, LiverCase
from liver_case import liver_case


@pytest.fixture(scope="module")
def patient() -> tuple[AlignedStudy, LiverCase, LesionMap]:
    case, lesions = liver_case(shape=(24, 75, 100))
    return case.aligned, case, lesions


@pytest.fixture(scope="module")
def written(patient, tmp_path_factory) -> Path:
    aligned, _, truth = patient
    label = on_source(truth.label, aligned)
    case, lesions = measured(aligned, label, label)
    folder = tmp_path_factory.mktemp("given")
    findings = compose(case, lesions, diagnose(case, lesions, None), {"hepar": "0"})
    write_report(findings, case, lesions, folder, probabilities=True)
    return folder


def test_closed_form_nothing_written_claims_a_confidence(written):
    assert not (written / "tumor_probability.nii.gz").exists()
    findings = json.loads((written / "findings.json").read_text())
    assert [lesion["confidence"] for lesion in findings["lesions"]] == [None, None]
    assert findings["diagnosis"]["patient"] == {}
    assert set(findings["given"]) == {"liver", "tumor"}
    header = nib.load(written / "segmentation.nii.gz").header
    assert bytes(header["descrip"]).startswith(b"hepar 0 given masks research use only")
    with (written / "lesions.csv").open(newline="") as stream:
        assert [row["confidence"] for row in csv.DictReader(stream)] == ["", ""]
    page = (written / "report.html").read_text()
    assert "2 lesions were given" in page
    assert "none has a detection confidence" in page
    assert ".confidence" not in "".join(part for part in page.split() if "lesions." in part)
    assert "What the patient probably has" not in page


def test_closed_form_the_page_says_what_a_patient_with_given_lesions_has(patient, tmp_path):
    aligned, _, truth = patient
    label = on_source(truth.label, aligned)
    case, lesions = measured(aligned, label, label)
    chances = {"hcc": 0.82, "fnh": 0.18}
    judged = tuple(
        LesionDiagnosis(lesion_id=k, probabilities=chances, label="hcc", abstained=False)
        for k in (1, 2)
    )
    diagnosis = Diagnosis(lesions=judged, patient=given_probabilities(judged))
    write_report(compose(case, lesions, diagnosis, {"hepar": "0"}), case, lesions, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert 'value="0.82" data-key="diagnosis.patient.hcc"' in page
    assert "taking every given lesion for one" in page
    assert "detection confidence &times;" not in page


def test_closed_form_a_label_map_without_tumor_says_so(patient, tmp_path):
    aligned, case, _ = patient
    label = on_source(case.liver.astype(np.uint8), aligned)
    after, lesions = measured(aligned, label, label)
    diagnosis = diagnose(after, lesions, None)
    assert (lesions.lesions, lesions.tumor_burden, diagnosis.patient) == ((), 0.0, {})
    findings = compose(after, lesions, diagnosis, {"hepar": "0"})
    write_report(findings, after, lesions, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "No lesion was given in the liver." in page
    assert "may be missed" not in page


def test_closed_form_a_patient_has_what_the_named_lesions_are(patient):
    _, case, truth = patient
    judged = [
        LesionDiagnosis(
            lesion_id=k, probabilities={"hcc": p, "fnh": 1 - p}, label="hcc", abstained=open_left
        )
        for k, (p, open_left) in enumerate(((0.7, False), (0.6, False), (0.9, True)), 1)
    ]
    assert given_probabilities(tuple(judged)) == {"hcc": 0.7, "fnh": 0.4}
    given = replace(truth, given="label 2 of a label map", probability=None)
    assert TUMOR_FREE not in diagnose(case, given, None).patient
    assert diagnose(case, given, None).groups == {}
