"""`hepar segment --dicom`: whom its results name, what is refused first, and what is not left."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from canary_study import grid_of, hu_at, places, run, stand_ins, write_study
from dicom_case import frames_of
from test_privacy_hazards import leaks

import hepar.pipeline
import hepar.stages.dicom_out
from hepar.batch.job import Engine, run_study
from hepar.batch.plan import plan
from hepar.errors import UsageError
from hepar.io.nifti import read_label, write_nifti
from hepar.pipeline import Pipeline


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The command over the study of every canary."""
    base = tmp_path_factory.mktemp("canary")
    write_study(base / "john.doe")
    return run(base / "out", "segment", base / "john.doe", "-o", base / "out", "--dicom")


def test_property_PR01_who_the_patient_is_stands_in_the_dicom_objects_and_nowhere_else(written):
    assert written.code == 0, written.said
    objects = [pydicom.dcmread(written.out / name) for name in ("seg.dcm", "sr.dcm")]
    source = pydicom.dcmread(next((written.out.parent / "john.doe" / "portal").iterdir()))
    for keyword in (
        *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber"),
        *("StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
    ):
        assert [data[keyword].value for data in objects] == [source[keyword].value] * 2
    assert {leak.split(" in ")[1].split(":")[0] for leak in leaks(written)} == {"seg.dcm", "sr.dcm"}
    # What is copied are tags of patient and study; no path, no free text of a series.
    for name in ("seg.dcm", "sr.dcm"):
        data = (written.out / name).read_bytes().lower()
        assert b"john" not in data
        assert b"script" not in data
    record = json.loads((written.out / "run.json").read_text())
    assert {"seg.dcm", "sr.dcm"} <= set(record["files"])


def test_property_OU02_the_command_leaves_what_the_masks_say(written):
    mask = read_label(written.out / "segmentation.nii.gz")
    ids = read_label(written.out / "lesions.nii.gz").array
    expected = np.where(mask.array == 1, 1, np.where(ids > 0, ids.astype(int) + 1, 0))
    assert ((mask.array == 2) == (ids > 0)).all()
    found = np.zeros_like(expected)
    for frame in frames_of(written.out / "seg.dcm"):
        index = np.rint(mask.grid.world_to_index(frame.world_mm)).astype(int)[frame.mask]
        found[tuple(index.T)] = frame.segment
    np.testing.assert_array_equal(found, expected)


def test_property_OU02_an_edited_mask_goes_back_as_drawn_by_hand(written):
    base = written.out.parent
    mask = read_label(written.out / "segmentation.nii.gz")
    edited = mask.array.copy()
    inside = np.argwhere(edited == 1)
    z, y, x = inside[len(inside) // 2]
    edited[z : z + 2, y : y + 3, x : x + 3] = 2
    write_nifti(base / "edited.nii.gz", edited, mask.grid)
    out = base / "measured"
    found = run(out, "measure", base / "john.doe", base / "edited.nii.gz", "-o", out, "--dicom")
    assert found.code == 0, found.said
    segments = pydicom.dcmread(out / "seg.dcm").SegmentSequence
    assert {segment.SegmentAlgorithmType for segment in segments} == {"MANUAL"}
    drawn = sum(int(frame.mask.sum()) for frame in frames_of(out / "seg.dcm"))
    assert drawn == int((edited > 0).sum())
    codes = _codes(out / "sr.dcm")
    assert "LIVER_VOLUME" in codes
    assert "CONFIDENCE" not in codes


def test_property_OU02_a_seg_given_back_measures_as_the_same_masks_as_nifti(written):
    base, said = written.out.parent, []
    nifti = [written.out / "lesions.nii.gz", "--liver", written.out / "segmentation.nii.gz"]
    for name, masks in {"from seg": [written.out / "seg.dcm"], "from nifti": nifti}.items():
        found = run(base / name, "measure", base / "john.doe", *masks, "-o", base / name)
        assert found.code == 0, found.said
        assert leaks(found) == []
        said.append(json.loads((base / name / "findings.json").read_text()))
    where = "on a part of the voxels of the portal venous series, of a DICOM Segmentation"
    pieces = "a mask without ids, 1 connected piece"
    assert said[0]["given"] == {"liver": f"mask {where}", "tumor": f"{pieces}, {where}"}
    for key in said[0].keys() - {"given", "provenance"}:
        assert said[0][key] == said[1][key], key
    for name in ("segmentation", "lesions"):
        masks = [read_label(base / f"from {kind}" / f"{name}.nii.gz") for kind in ("seg", "nifti")]
        np.testing.assert_array_equal(masks[0].array, masks[1].array)


def test_property_OU02_python_leaves_the_objects_of_the_command_or_nothing(written, tmp_path):
    with stand_ins():
        pipeline = Pipeline.load(device="cpu")
        pipeline(written.out.parent / "john.doe").write(tmp_path / "out", dicom=True, captures=True)
        write_nifti(tmp_path / "pv.nii.gz", hu_at(places(grid_of())), grid_of())
        without = pipeline(tmp_path / "pv.nii.gz")
        for asked in ({"dicom": True}, {"captures": True}):
            with pytest.raises(UsageError) as refusal:
                without.write(tmp_path / "refused", **asked)
            assert refusal.value.code == "E_DICOM_SOURCE"
    assert not (tmp_path / "refused").exists()
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert {"seg.dcm", "sr.dcm", "captures/lesion_01.dcm"} <= set(record["files"])
    for name in ("seg.dcm", "sr.dcm"):
        mine, theirs = (pydicom.dcmread(at / name) for at in (tmp_path / "out", written.out))
        assert mine.SOPInstanceUID == theirs.SOPInstanceUID
        assert mine.get("PixelData") == theirs.get("PixelData")


@pytest.mark.parametrize("kind", ["nifti", "no frame of reference", "no date"])
def test_property_OU02_a_study_without_images_to_refer_to_is_refused_first(
    tmp_path, monkeypatch, kind
):
    study = tmp_path / "study"
    if kind == "nifti":
        write_nifti(study / "pv.nii.gz", hu_at(places(grid_of())), grid_of())
    elif kind == "no date":
        write_study(study, change=lambda data: setattr(data, "PatientBirthDate", "19010231"))
    else:
        write_study(study, change=lambda data: delattr(data, "FrameOfReferenceUID"))
    before = sorted(tmp_path.rglob("*"))

    def too_late(*args: object, **kwargs: object) -> None:
        raise AssertionError("something was computed first")

    monkeypatch.setattr(hepar.pipeline, "assign_phases", too_late)
    found = run(tmp_path / "out", "segment", study, "-o", tmp_path / "out", "--dicom")
    assert found.code == 2, found.said
    assert "E_DICOM_SOURCE" in found.said
    assert leaks(found) == []
    assert "--dicom" in found.said.split("remedy: ")[1]
    assert sorted(tmp_path.rglob("*")) == before


def test_property_OU02_an_archive_leaves_the_objects_of_its_folder_and_no_file(written, tmp_path):
    packed = shutil.make_archive(str(tmp_path / "study"), "zip", written.out.parent / "john.doe")
    before = {path.name for path in Path(tempfile.gettempdir()).glob(".hepar-tmp-*")}
    found = run(tmp_path / "out", "segment", packed, "-o", tmp_path / "out", "--dicom")
    assert found.code == 0, found.said
    assert {leak.split(" in ")[1].split(":")[0] for leak in leaks(found)} == {"seg.dcm", "sr.dcm"}
    for name in ("seg.dcm", "sr.dcm"):
        mine, theirs = (pydicom.dcmread(at / name) for at in (tmp_path / "out", written.out))
        assert mine.StudyInstanceUID == theirs.StudyInstanceUID
        assert mine.get("PixelData") == theirs.get("PixelData")
    assert {path.name for path in Path(tempfile.gettempdir()).glob(".hepar-tmp-*")} <= before


def test_property_OU02_a_batch_may_want_the_objects_only_where_they_can_be(written, tmp_path):
    write_nifti(tmp_path / "in" / "nifti" / "pv.nii.gz", hu_at(places(grid_of())), grid_of())
    shutil.copytree(written.out.parent / "john.doe", tmp_path / "in" / "dicom")
    with stand_ins():
        engine = Engine(dicom=None)
        jobs = plan(tmp_path / "in", tmp_path / "out", engine).jobs
        assert {run_study(job).state for job in jobs} == {"done"}
    assert (tmp_path / "out" / "dicom" / "seg.dcm").is_file()
    assert not (tmp_path / "out" / "nifti" / "seg.dcm").exists()
    assert (tmp_path / "out" / "nifti" / "report.html").is_file()


def _codes(path: Path) -> set[str]:
    every = pydicom.dcmread(path).iterall()
    return {str(item.value) for item in every if item.keyword == "CodeValue"}


def _other_number(path: Path) -> None:
    data = pydicom.dcmread(path)
    for item in data.iterall():
        if item.keyword == "NumericValue":
            item.value = "99"
            break
    data.save_as(path)


def _other_pixel(path: Path) -> None:
    data = pydicom.dcmread(path)
    pixels = bytearray(data.PixelData)
    pixels[len(pixels) // 3] ^= 16
    data.PixelData = bytes(pixels)
    data.save_as(path)


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("name", "damage"),
    [("seg.dcm", _other_pixel), ("sr.dcm", _other_number), ("seg.dcm", _cut_short)],
)
def test_property_OU02_what_does_not_read_back_the_same_is_not_left(
    tmp_path, monkeypatch, name, damage
):
    write_study(tmp_path / "study")
    plain = hepar.stages.dicom_out.write_sr

    def broken(path: Path, *args, **kwargs):
        plain(path, *args, **kwargs)
        damage(path.with_name(name))

    monkeypatch.setattr(hepar.stages.dicom_out, "write_sr", broken)
    found = run(tmp_path / "out", "segment", tmp_path / "study", "-o", tmp_path / "out", "--dicom")
    assert found.code == 14, found.said
    assert "E_DICOM_READBACK" in found.said
    assert not (tmp_path / "out").exists()
