"""Stage read: whole studies, as a user gives them."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from hepar.errors import InputRefused, UsageError
from hepar.geometry import Grid
from hepar.io.dicom_write import write_dicom_series
from hepar.io.nifti import write_nifti
from hepar.stages.read import read_study
from hepar.study import Phase, Volume
from small_ct import body, volume

_SHAPE = (8, 8, 10)


def _volume(seed: int = 0) -> Volume:
    """A body long enough to hold a liver."""
    return volume(seed, _SHAPE, slice_mm=5.0)


def _nifti(path: Path, seed: int = 0) -> Volume:
    v = _volume(seed)
    write_nifti(path, v.array, v.grid)
    return v


def _dicom(folder: Path, seed: int = 0, **options: object) -> Volume:
    v = _volume(seed)
    arguments: dict[str, object] = {
        "description": folder.name,
        "series_number": seed + 1,
        "study_uid": "1.2.3",
        "frame_of_reference_uid": "1.2.3.5",
        **options,
    }
    write_dicom_series(folder, v, **arguments)  # type: ignore[arg-type]
    return v


def _tree(folder: Path) -> list[tuple[str, bytes]]:
    return [(str(p), p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()]


def test_one_nifti_file(tmp_path: Path) -> None:
    v = _nifti(tmp_path / "portal.nii.gz")
    study = read_study(tmp_path / "portal.nii.gz")
    np.testing.assert_array_equal(study.series[0].volume.array, v.array)
    assert study.series[0].tags["FileName"] == "portal.nii.gz"
    assert study.series[0].verdict.source == "portal.nii.gz"
    assert study.warnings == ()


def test_a_folder_of_nifti_files_with_a_mask_among_them(tmp_path: Path) -> None:
    v = _nifti(tmp_path / "art.nii.gz", 1)
    _nifti(tmp_path / "pv.nii.gz", 2)
    write_nifti(tmp_path / "liver.nii.gz", (v.array > 0).astype(np.uint8), v.grid)
    study = read_study(tmp_path)
    assert [s.tags["FileName"] for s in study.series] == ["art.nii.gz", "pv.nii.gz"]
    refused = [s for s in study.verdicts if s.status == "refused"]
    assert [(r.source, r.code) for r in refused] == [("liver.nii.gz", "E_HU_IMPLAUSIBLE")]
    assert "label map" in refused[0].reason
    assert study.warnings[0].startswith("W_SERIES_REFUSED: ")


def test_nested_dicom_series_among_other_objects(tmp_path: Path) -> None:
    first = _dicom(tmp_path / "S1" / "art", 1)
    second = _dicom(tmp_path / "S2" / "pv", 2)
    (tmp_path / "note.txt").write_text("hello")
    study = read_study(tmp_path)
    assert [s.verdict.description for s in study.series] == ["art", "pv"]
    assert [s.verdict.series_id for s in study.series] == ["s1", "s2"]
    np.testing.assert_array_equal(study.series[0].volume.array, first.array)
    np.testing.assert_array_equal(study.series[1].volume.array, second.array)
    for series in study.series:
        assert len(series.frames.files) == 8
        assert series.verdict in study.verdicts


def test_one_dicom_file_stands_for_its_series(tmp_path: Path) -> None:
    wanted = _dicom(tmp_path / "a", 1)
    _dicom(tmp_path / "b", 2)
    for path in (tmp_path / "b").iterdir():
        shutil.move(path, tmp_path / "a" / f"b{path.name}")
    study = read_study(tmp_path / "a" / "0003.dcm")
    assert len(study.series) == len(study.verdicts) == 1
    np.testing.assert_array_equal(study.series[0].volume.array, wanted.array)


def test_explicit_phases_are_assigned_and_read_once(tmp_path: Path) -> None:
    _nifti(tmp_path / "x.nii.gz", 1)
    _dicom(tmp_path / "d", 2)
    _nifti(tmp_path / "y.nii.gz", 3)
    phases = {Phase.ART: tmp_path / "x.nii.gz", Phase.PV: tmp_path / "d"}
    study = read_study(tmp_path, phases)
    assert [s.assigned for s in study.series] == [Phase.ART, Phase.PV, None]
    assert [s.assigned for s in read_study(None, phases).series] == [Phase.ART, Phase.PV]


def test_an_explicit_phase_must_be_one_series(tmp_path: Path) -> None:
    _dicom(tmp_path / "a", 1)
    _dicom(tmp_path / "b", 2)
    with pytest.raises(InputRefused, match="E_SEVERAL_SERIES"):
        read_study(None, {Phase.PV: tmp_path})


def test_an_explicit_phase_that_is_refused_refuses_the_study(tmp_path: Path) -> None:
    _nifti(tmp_path / "good.nii.gz")
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes((tmp_path / "good.nii.gz").read_bytes()[:300])
    with pytest.raises(InputRefused, match="E_TRUNCATED"):
        read_study(tmp_path / "good.nii.gz", {Phase.ART: bad})


def test_one_path_for_two_phases_is_a_usage_error(tmp_path: Path) -> None:
    _nifti(tmp_path / "a.nii.gz")
    with pytest.raises(UsageError, match="E_PHASE_TWICE"):
        read_study(None, {Phase.ART: tmp_path / "a.nii.gz", Phase.PV: tmp_path / "a.nii.gz"})


def test_explicit_folders_of_two_patients_are_refused(tmp_path: Path) -> None:
    _dicom(tmp_path / "a", 1, patient_id="A")
    _dicom(tmp_path / "b", 2, patient_id="B", study_uid="1.2.4")
    with pytest.raises(InputRefused, match="E_MIXED_PATIENTS"):
        read_study(tmp_path / "a", {Phase.PV: tmp_path / "b"})


def test_a_refused_series_does_not_stop_the_others(tmp_path: Path) -> None:
    _dicom(tmp_path / "art", 1)
    _dicom(tmp_path / "pv", 2)
    (tmp_path / "art" / "0004.dcm").unlink()
    study = read_study(tmp_path)
    assert [s.verdict.description for s in study.series] == ["pv"]
    assert [v.code for v in study.verdicts] == ["E_SLICE_GAP", None]
    (warning,) = study.warnings
    assert warning.startswith("W_SERIES_REFUSED: s1 (art): E_SLICE_GAP")


def test_a_reformat_is_left_aside_where_an_axial_series_exists(tmp_path: Path) -> None:
    _dicom(tmp_path / "axial", 1)
    coronal = Grid(_SHAPE, (5.0, 0.8, 0.7), (0.0, 0.0, 0.0), (0, 0, 1, 1, 0, 0, 0, -1, 0))
    options = {"study_uid": "1.2.3", "frame_of_reference_uid": "1.2.3.5"}
    write_dicom_series(
        tmp_path / "cor",
        Volume(body(_SHAPE), coronal),
        description="cor",
        series_number=9,
        **options,
    )
    study = read_study(tmp_path)
    assert [s.verdict.description for s in study.series] == ["axial"]
    assert study.verdicts[1].code == "W_NON_AXIAL"
    alone = read_study(tmp_path / "cor")
    assert len(alone.series) == 1
    assert alone.warnings[0].startswith("W_NON_AXIAL")
    named = read_study(tmp_path / "axial", {Phase.PV: tmp_path / "cor"})
    assert len(named.series) == 2


def _empty(folder: Path) -> None:
    (folder / "notes.txt").write_text("hello")


def _magnetic(folder: Path) -> None:
    _dicom(folder / "mr")
    for path in (folder / "mr").iterdir():
        data = pydicom.dcmread(path)
        data.Modality = "MR"
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = pydicom.uid.MRImageStorage
        data.save_as(path)


def _cut_gzip(folder: Path) -> None:
    _nifti(folder / "a.nii.gz")
    data = (folder / "a.nii.gz").read_bytes()
    (folder / "a.nii.gz").write_bytes(data[: len(data) // 2])


def _gap(folder: Path) -> None:
    _dicom(folder / "s")
    (folder / "s" / "0003.dcm").unlink()


def _gap_beside_magnetic(folder: Path) -> None:
    _magnetic(folder)
    _dicom(folder / "s", 1)
    (folder / "s" / "0003.dcm").unlink()


def _windowed(folder: Path) -> None:
    v = volume(shape=_SHAPE)
    write_nifti(folder / "a.nii.gz", np.clip(v.array + 160, 0, 255).astype(np.int16), v.grid)


def _one_slice(folder: Path) -> None:
    _dicom(folder / "s")
    for path in sorted((folder / "s").iterdir())[1:]:
        path.unlink()


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda folder: None, "E_NO_IMAGE"),
        (_empty, "E_NO_IMAGE"),
        (_magnetic, "E_WRONG_MODALITY"),
        (_cut_gzip, "E_TRUNCATED"),
        (_gap, "E_SLICE_GAP"),
        (_gap_beside_magnetic, "E_SLICE_GAP"),
        (_windowed, "E_HU_IMPLAUSIBLE"),
        (_one_slice, "E_TOO_FEW_SLICES"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_study_without_a_usable_series_is_refused_and_untouched(
    tmp_path: Path, make: object, code: str
) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    make(folder)  # type: ignore[operator]
    before = _tree(tmp_path)
    with pytest.raises(InputRefused) as caught:
        read_study(folder)
    assert caught.value.code == code
    assert caught.value.exit_code == 10
    assert caught.value.remedy
    assert str(tmp_path) not in str(caught.value)
    assert _tree(tmp_path) == before


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="E_NO_IMAGE"):
        read_study(tmp_path / "nowhere")


def test_a_file_that_is_neither(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF" * 100)
    with pytest.raises(InputRefused, match="E_NO_IMAGE"):
        read_study(tmp_path / "a.pdf")


def test_the_refusal_lists_every_series(tmp_path: Path) -> None:
    _gap_beside_magnetic(tmp_path)
    with pytest.raises(InputRefused) as caught:
        read_study(tmp_path)
    assert "E_WRONG_MODALITY" in caught.value.message
    assert "E_SLICE_GAP" in caught.value.message


def test_two_studies_of_one_patient_are_read_with_a_warning(tmp_path: Path) -> None:
    _dicom(tmp_path / "a", 1)
    _dicom(tmp_path / "b", 2, study_uid="1.2.4")
    study = read_study(tmp_path)
    assert len(study.series) == 2
    assert study.warnings[-1].startswith("W_SEVERAL_STUDIES")


def test_the_real_small_volume(real_data: Path) -> None:
    study = read_study(real_data / "totalsegmentator_example_ct" / "example_ct.nii.gz")
    assert study.series[0].volume.grid.shape == (112, 101, 122)
    image = nib.load(real_data / "totalsegmentator_example_ct" / "example_ct.nii.gz")
    np.testing.assert_array_equal(
        study.series[0].volume.array,
        np.maximum(np.asanyarray(image.dataobj).transpose(2, 1, 0), -1024),
    )
