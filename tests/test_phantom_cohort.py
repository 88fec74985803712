"""Phantom cohorts: exact shares, splits that hold, and files that read back as what was drawn."""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hepar.cli import main
from hepar.data import phantom_cohort, phantoms
from hepar.data.cohort import is_test, read_cohort
from hepar.data.cohort_cases import CohortCases
from hepar.data.phantom_bank import read_bank
from hepar.data.phantom_cohort import (
    FOLDS,
    PRESETS,
    apportion,
    case_name,
    draw,
    enroll,
    single,
    visit,
)
from hepar.data.phantoms import grid_of, write_cohort, write_patient
from hepar.data.sampling import collate
from hepar.data.sources import open_source
from hepar.errors import UsageError
from hepar.io.nifti import read_label, read_nifti
from hepar.phantom.anatomy import anatomy
from hepar.phantom.scanner import Painted, paint
from hepar.recipe_data import CohortData, PhaseDropout
from hepar.stages.phases import assign_phases
from hepar.stages.read import read_study
from hepar.study import LESION_TYPES, Phase
from hepar.systems.base import InputSpec

COARSE = (10, 40, 40)
FINE_MM = (16.0, 16.0, 16.0)
SPEC = InputSpec(
    dims=2,
    phases=("ART", "PV"),
    class_names=("background", "tumor"),
    windows_hu=((-70.0, 180.0),),
    slice_offsets_mm=(0.0,),
    spacing_mm=(20.0, 8.0, 8.0),
    patch=(16, 16),
    stride=16,
    needs_liver=True,
)


def test_closed_form_largest_remainders():
    assert apportion(7, (1, 1, 1)) == [3, 2, 2]
    assert apportion(360, (120, 40, 200)) == [120, 40, 200]
    assert apportion(1, (120, 40, 200)) == [0, 0, 1]
    assert apportion(10, (0.7, 0.2, 0.1)) == [7, 2, 1]
    assert apportion(0, (1, 2)) == [0, 0]


def test_closed_form_a_cohort_of_360_has_the_proportions_of_its_paper():
    people = enroll("sam_urim", 360, 0)
    assert Counter(p.split for p in people) == {"train": 120, "validation": 40, "test": 200}
    # 160 patients by 26/0/14/25/20/36 of 121: 34.38, 18.51, 33.06, 26.45, 47.60.
    assert Counter(p.primary for p in people if p.split == "test") == {
        "": 40,
        "hcc": 34,
        "metastasis": 19,
        "hemangioma": 33,
        "fnh": 26,
        "cyst": 48,
    }
    train = Counter(p.primary for p in people if p.split == "train")
    assert train[""] == 24
    assert Counter(p.fold for p in people) == {None: 200, **dict.fromkeys(range(FOLDS), 32)}
    assert {p.population.rare for p in people if p.split == "test" and p.primary} == {"all"}
    assert {p.population.rare for p in people if p.split != "test"} == {"seen"}


@given(
    cohort=st.sampled_from(sorted(PRESETS)),
    patients=st.integers(1, 150),
    seed=st.integers(0, 10_000),
)
def test_property_splits_and_folds_are_even_and_repeat(cohort, patients, seed):
    people = enroll(cohort, patients, seed)
    assert people == enroll(cohort, patients, seed)
    assert len({p.case_id for p in people}) == len({p.seed for p in people}) == patients
    kept = [p for p in people if p.split != "test"]
    assert all((p.fold is None) == (p.split == "test") for p in people)
    sizes = [sum(p.fold == fold for p in kept) for fold in range(FOLDS)]
    assert max(sizes) - min(sizes) <= 1
    for primary in {p.primary for p in kept}:
        held = [sum(p.fold == f and p.primary == primary for p in kept) for f in range(FOLDS)]
        assert max(held) - min(held) <= 1
    low, high = PRESETS[cohort].misalignment_mm
    assert all(low <= p.misalignment_mm <= high for p in people)


def test_property_no_two_cohorts_share_a_patient():
    seeds = [p.seed for name in PRESETS for p in enroll(name, 50, 3)]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("patients", [9, 360])
def test_closed_form_phases_of_the_presets(patients):
    for split in ("train", "validation", "test"):
        people = [p for p in enroll("lidia", patients, 0) if p.split == split]
        delayed = [Phase.DL in p.phases for p in people]
        assert sum(delayed) == apportion(len(people), (2, 1))[0]
        assert all(p.phases[:3] == (Phase.NC, Phase.ART, Phase.PV) for p in people)
    assert {p.phases for p in enroll("lits", patients, 0)} == {(Phase.PV,)}
    assert {p.population.scanner for p in enroll("external", patients, 0)} == {"external"}


def test_property_the_leading_disease_alone_can_be_drawn():
    for patient in enroll("lidia", 60, 5):
        if patient.primary:
            shares = dict(zip(LESION_TYPES, patient.population.primary, strict=True))
            assert [name for name, share in shares.items() if share] == [patient.primary]
        assert patient.population.tumor_free == float(not patient.primary)


@pytest.mark.parametrize(("cohort", "patients", "seed"), [("x", 1, 0), ("lits", 0, 0)])
def test_errors_what_cannot_be_enrolled_is_a_usage_error(cohort, patients, seed):
    with pytest.raises(UsageError) as caught:
        enroll(cohort, patients, seed)
    assert caught.value.code == "E_RECIPE"


@pytest.fixture(scope="module")
def coarse():
    """Presets on a grid that is quick to draw."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("sam_urim", "lidia"):
            patch.setitem(PRESETS, name, replace(PRESETS[name], shape=COARSE))
        yield


@pytest.fixture(scope="module")
def written(coarse, tmp_path_factory) -> Path:
    """A LiDIA cohort: four patients, in every split."""
    out = tmp_path_factory.mktemp("lidia")
    return write_cohort(out, "lidia", 4, formats=("nifti", "bank"), processes=2)


def rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("cohort", ["sam_urim", "lidia"])
def test_property_the_field_holds_the_liver_and_the_disease(coarse, cohort):
    patient = next(p for p in enroll(cohort, 6, 0) if p.primary)
    body = draw(patient)
    assert body.tissue.shape == COARSE
    assert body.spacing_mm[1] == body.spacing_mm[2]
    assert patient.primary in {s.type for s in body.lesions}
    # The field's own extent, up to the voxel it was asked on here and the one `draw` learns it on.
    asked = anatomy(
        body.texture_seed, field=body.field, spacing_mm=FINE_MM, population=patient.population
    )
    low = (np.asarray(asked.tissue.shape) - 1) * FINE_MM
    low -= (60 if cohort == "lidia" else 0, 0, 0)
    extent = np.asarray(COARSE) * body.spacing_mm
    assert (extent >= low).all()
    slack = phantom_cohort._COARSE_MM[0] + FINE_MM[0] + 1
    assert extent[0] <= low[0] + slack
    assert extent[1:].max() <= low[1:].max() + slack


def test_property_a_table_reads_as_what_was_drawn(written):
    cases = read_cohort(written, need=("liver", "label", "instances", "fold", "split"))
    people = enroll("lidia", 4, 0)
    lesions = rows(written.parent / "lesions.csv")
    for case, patient, row in zip(cases, people, rows(written), strict=True):
        assert not any(Path(row[c]).is_absolute() for c in ("nc", "pv", "label") if row[c])
        assert tuple(case.images) == tuple(str(phase) for phase in patient.phases)
        assert bool(row["dl"]) == (Phase.DL in patient.phases) == bool(row["dl_s"])
        assert (case.reference, case.fold) == ("PV", patient.fold)
        assert is_test(case) == (patient.split == "test")
        assert row["nc_s"] == "0.0"
        assert 10 < float(row["art_s"]) < float(row["pv_s"]) < 200
        assert case.liver is not None
        assert case.instances is not None
        liver, instances = read_label(case.liver), read_label(case.instances)
        assert (liver.array[instances.array > 0] == 1).all()
        assert liver.array.any()
        mine = [lesion for lesion in lesions if lesion["case_id"] == case.case_id]
        assert row["tumor_free"] == str(int(not mine)) == str(int(not patient.primary))
        for lesion in mine:
            count = (instances.array == int(lesion["lesion_id"])).sum()
            volume_ml = float(lesion["volume_ml"])
            assert volume_ml == pytest.approx(count * instances.grid.voxel_ml, abs=1e-3)
            sphere_mm3 = np.pi / 6 * float(lesion["diameter_mm"]) ** 3
            assert sphere_mm3 / 1000 == pytest.approx(volume_ml, rel=0.01)
            assert lesion["type"] in LESION_TYPES
            assert lesion["kind"]


def test_property_the_bank_and_the_table_give_the_images_again(written):
    bank = read_bank(written.parent / "anatomies.bank")
    assert len(bank) == 4
    row = rows(written)[2]
    np.testing.assert_array_equal(bank[2].tissue, draw(enroll("lidia", 4, 0)[2]).tissue)
    scan = paint(
        bank[2],
        int(row["seed"]),
        phases=tuple(row["phases"].split()),
        misalignment_mm=float(row["misalignment_mm"]),
        scanner=row["scanner"],
    )
    image = read_nifti(written.parent / row["art"])
    np.testing.assert_array_equal(image.array, scan.hu["ART"])
    assert image.grid.is_close(grid_of(bank[2]))
    assert row["art_s"] == f"{scan.times_s['ART']:.1f}"


def test_property_test_patients_are_never_prepared(written):
    people = enroll("lidia", 4, 0)
    kept = [p for p in people if p.split != "test"]
    cases = CohortCases(CohortData(path=written, fold=0), SPEC, cache_dir=None)
    used = [cases.train_case(i, 0).case_id for i in range(cases.n_train)]
    used += [cases.validation_case(i).case_id for i in range(cases.n_validation)]
    assert sorted(used) == sorted(p.case_id for p in kept)


def test_property_a_typed_system_reads_the_cohort(written, tmp_path):
    classes = ("background", *LESION_TYPES, "liver")
    spec = replace(
        SPEC,
        dims=3,
        phases=("NC", "ART", "PV", "DL"),
        class_names=classes,
        spacing_mm=None,
        patch=(8, 32, 32),
        stride=8,
        needs_liver=False,
    )
    data = CohortData(
        path=written,
        margin_mm=None,
        samples_per_case=4,
        lesion_fraction=1.0,
        type_balance=True,
        phase_dropout=PhaseDropout(p=1.0, keep_reference=False),
    )
    source = open_source(data, spec, seed=0, cache_dir=tmp_path)
    samples = [source.sample(0, n) for n in range(4)]
    for sample in samples:
        lesion = sample.instances > 0
        assert lesion.any()
        assert np.isin(sample.label[lesion], spec.tumor_classes).all()
        assert not np.isin(sample.label[~lesion], spec.tumor_classes).any()
        assert sample.present.any()
        assert not sample.image[~sample.present].any()
    again = open_source(data, spec, seed=0, cache_dir=tmp_path).sample(0, 2)
    np.testing.assert_array_equal(again.instances, samples[2].instances)
    assert collate(samples)[0].instances.shape == (4, 8, 32, 32)
    (case,) = source.validation()
    table = rows(written.parent / "lesions.csv")
    said = {row["type"] for row in table if row["case_id"] == case.case_id}
    labels = np.concatenate([piece.label.ravel() for piece in case.pieces])
    found = {classes[n] for n in np.unique(labels[labels >= 0])}
    assert found == {"background", "liver", *said}
    assert said


def test_property_a_bank_alone_writes_no_image(coarse, tmp_path):
    table = write_cohort(tmp_path, "sam_urim", 1, seed=9, formats=("bank",))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "anatomies.bank",
        "cohort.csv",
        "lesions.csv",
    ]
    (row,) = rows(table)
    assert row["case_id"] == case_name(9, "sam_urim") == "sam_urim-000009"
    assert row["phases"] == "NC ART PV DL"
    assert not row["pv"] + row["liver"] + row["pv_s"]


@pytest.fixture(scope="module")
def study(coarse, tmp_path_factory) -> tuple[Path, Painted]:
    folder = tmp_path_factory.mktemp("dicom")
    phases = (Phase.NC, Phase.ART, Phase.DL)
    patient = replace(single(2), phases=phases, preset=PRESETS["lidia"])
    body = draw(patient)
    formats = ("dicom", "dicom-stripped")
    scan = visit(patient, body)
    files = write_patient(folder, body, scan, case_id="x", formats=formats)
    assert files["art"] == "dicom/2-art"
    return folder, scan


@pytest.fixture
def dicom(study) -> Path:
    return study[0]


def headers(folder: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(p, stop_before_pixels=True) for p in sorted(folder.rglob("*.dcm"))]


@pytest.mark.parametrize("kind", ["dicom", "stripped"])
def test_oracle_one_study_has_one_study_and_one_frame(dicom, kind):
    found = headers(dicom / kind)
    assert len({h.SOPInstanceUID for h in found}) == len(found) == 3 * COARSE[0]
    assert len({h.SeriesInstanceUID for h in found}) == 3
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID"):
        assert len({h[keyword].value for h in found}) == 1


def test_oracle_headers_hold_the_true_times(study):
    dicom, scan = study
    times_s = {}
    for header in headers(dicom / "dicom"):
        assert header.SeriesDescription.startswith("Abdomen ")
        clock = str(header.AcquisitionTime)
        seconds = 3600 * int(clock[:2]) + 60 * int(clock[2:4]) + float(clock[4:]) - 12 * 3600
        if header.SeriesDescription == "Abdomen native":
            assert seconds == -120
            assert "ContrastBolusAgent" not in header
            assert "ContrastBolusStartTime" not in header
        else:
            assert header.ContrastBolusAgent
            assert str(header.ContrastBolusStartTime) == "120000"
            times_s[header.SeriesDescription] = seconds
    assert times_s["Abdomen arterial"] == pytest.approx(scan.times_s["ART"], abs=0.051)
    assert times_s["Abdomen delayed"] == pytest.approx(scan.times_s["DL"], abs=0.051)


def test_property_stripped_headers_tell_no_phase(dicom):
    found = headers(dicom / "stripped")
    for header in found:
        for keyword in ("SeriesDescription", "ContrastBolusAgent", "ContrastBolusStartTime"):
            assert keyword not in header
    assert len({h.AcquisitionTime for h in found}) == 1
    told = assign_phases(read_study(dicom / "dicom", {}))
    assert set(told.volumes) == {Phase.NC, Phase.ART, Phase.DL}
    with pytest.raises(Exception, match="phase"):
        assign_phases(read_study(dicom / "stripped", {}))


def test_closed_form_the_command_writes_the_cohort_asked_for(monkeypatch, tmp_path, capsys):
    calls = []

    def fake(out, cohort, patients, **options):
        calls.append((cohort, patients, options["seed"], options["formats"]))
        return out / "cohort.csv"

    monkeypatch.setattr(phantoms, "write_cohort", fake)
    main(["phantom", "-o", str(tmp_path), "-q"])
    words = [
        "--cohort",
        "lits",
        "--patients",
        "3",
        "--seed",
        "4",
        "--formats",
        "bank",
        "dicom-stripped",
    ]
    main(["phantom", "-o", str(tmp_path), "-q", *words])
    assert calls == [
        ("general", 1, 0, ("nifti",)),
        ("lits", 3, 4, ("bank", "dicom-stripped")),
    ]
    assert capsys.readouterr().out.split() == [str(tmp_path / "cohort.csv")] * 2


def test_closed_form_the_check_leaves_its_figures(monkeypatch, tmp_path, capsys):
    class Result:
        def document(self) -> dict[str, object]:
            return {"met": False}

        def markdown(self) -> str:
            return "| HU threshold | no |\n"

    asked = []

    def fake(n_patients, **options):
        asked.append((n_patients, options["processes"]))
        return Result()

    monkeypatch.setattr("hepar.evaluate.phantom_check.check", fake)
    main(["phantom", "--check", "-o", str(tmp_path / "new"), "-q"])
    main(["phantom", "--check", "-o", str(tmp_path), "--patients", "7", "-q"])
    assert asked == [(100, 2), (7, 2)]
    assert capsys.readouterr().out == 2 * "| HU threshold | no |\n"
    assert json.loads((tmp_path / "phantom_check.json").read_text()) == {"met": False}
    assert (tmp_path / "phantom_check.md").read_text() == "| HU threshold | no |\n"
