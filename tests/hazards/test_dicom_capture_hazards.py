"""`--captures`: a picture a lesion in the study, for viewers that show neither SEG nor SR."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from canary_study import LESION_MM, run, write_study
from dicom_case import found_in, read_series
from synthetic_dicom import enhanced, save, stack
from test_dicom_output_hazards import anatomy, healthy
from test_privacy_hazards import leaks

import hepar.stages.dicom_out
from hepar.errors import HeparError
from hepar.render.overlay import COLORS
from hepar.stages.dicom_out import write_dicom


@pytest.fixture(scope="module")
def captured(tmp_path_factory):
    """The command over the study of every canary."""
    base = tmp_path_factory.mktemp("captures")
    write_study(base / "study")
    return run(base / "out", "segment", base / "study", "-o", base / "out", "--captures")


def test_property_OU02_a_capture_a_lesion_names_the_patient_and_its_image(captured):
    assert captured.code == 0, captured.said
    assert not (captured.out / "seg.dcm").exists()
    lesions = json.loads((captured.out / "findings.json").read_text())["lesions"]
    paths = sorted((captured.out / "captures").iterdir())
    assert [path.name for path in paths] == [f"lesion_{one['id']:02d}.dcm" for one in lesions]
    images = [pydicom.dcmread(p) for p in (captured.out.parent / "study" / "portal").iterdir()]
    by_uid = {image.SOPInstanceUID: image for image in images}
    for path in paths:
        data = pydicom.dcmread(path)
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID"):
            assert data[keyword].value == images[0][keyword].value
        assert (data.SeriesNumber, data.BurnedInAnnotation) == (9003, "NO")
        assert data.SeriesInstanceUID != images[0].SeriesInstanceUID
        assert "research use only" in data.SeriesDescription
        assert f"Lesion {int(path.stem[-2:])}, axial" in data.DerivationDescription
        (source,) = data.SourceImageSequence
        image = by_uid[source.ReferencedSOPInstanceUID]
        assert source.ReferencedSOPClassUID == image.SOPClassUID
        # The ball is largest at its middle.
        assert abs(float(image.ImagePositionPatient[2]) - LESION_MM[2]) <= 5
        colors = {tuple(color) for color in data.pixel_array.reshape(-1, 3).tolist()}
        assert set(COLORS.values()) <= colors
    assert {f"captures/{path.name}" for path in paths} <= set(
        json.loads((captured.out / "run.json").read_text())["files"]
    )


def test_property_PR01_a_capture_names_the_patient_in_its_header_alone(captured):
    places = {leak.split(" in ")[1].split(":")[0] for leak in leaks(captured)}
    assert places == {path.name for path in (captured.out / "captures").iterdir()}


def made(tmp_path: Path, truth=anatomy, *, images=None, name: str = "out") -> tuple[Path, ...]:
    study = tmp_path / "study"
    if not study.exists():
        save(stack(12) if images is None else images, study)
    case, lesions, findings = found_in(read_series(study), truth)
    out = tmp_path / name
    out.mkdir()
    return write_dicom(findings, case, lesions, out, objects=False, captures=True)


def test_property_OU07_the_same_result_has_the_same_uids_and_another_has_others(tmp_path):
    def uids(paths: tuple[Path, ...]) -> list[tuple[str, str]]:
        found = map(pydicom.dcmread, paths)
        return [(data.SOPInstanceUID, data.SeriesInstanceUID) for data in found]

    first, again = uids(made(tmp_path)), uids(made(tmp_path, name="again"))
    other = uids(made(tmp_path, lambda world: np.minimum(anatomy(world), 2), name="other"))
    assert first == again
    assert len({sop for sop, _ in first}) == len(first) == 2
    assert len({series for _, series in first}) == 1
    assert not {sop for sop, _ in first} & {sop for sop, _ in other}


def test_property_OU03_without_lesions_there_is_no_capture(tmp_path):
    assert made(tmp_path, healthy) == ()
    assert list((tmp_path / "out").iterdir()) == []


def test_property_OU02_a_capture_that_does_not_read_back_the_same_is_refused(tmp_path, monkeypatch):
    plain = hepar.stages.dicom_out.write_capture

    def broken(path: Path, *args):
        plain(path, *args)
        data = pydicom.dcmread(path)
        data.PixelData = data.PixelData[:-1] + bytes([data.PixelData[-1] ^ 1])
        data.save_as(path)

    monkeypatch.setattr(hepar.stages.dicom_out, "write_capture", broken)
    with pytest.raises(HeparError) as refusal:
        made(tmp_path)
    assert refusal.value.code == "E_DICOM_READBACK"


@pytest.mark.parametrize("build", [lambda: stack(12), lambda: [enhanced(stack(12))]])
def test_oracle_OU02_dciodvfy_finds_no_error_in_captures(tmp_path, build):
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy is not installed: make system")
    for path in made(tmp_path, images=build()):
        said = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
        lines = (said.stdout + said.stderr).splitlines()
        assert any(line.startswith("SCImage") for line in lines)
        assert [line for line in lines if line.startswith("Error")] == []
