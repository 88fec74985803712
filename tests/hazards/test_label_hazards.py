"""What a label map may do to training and scoring, one test or more a case of `docs/hazards.md`."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from hepar.data.cohort import read_cohort
from hepar.data.cohort_cases import CohortCases
from hepar.data.importers.placing import tumor_apart
from hepar.errors import InputRefused
from hepar.evaluate.files import evaluate
from hepar.geometry import Grid, flip_lps_ras
from hepar.io.nifti import read_label, write_nifti
from hepar.prepare import prepare
from hepar.recipe_data import CohortData
from hepar.systems.base import InputSpec
from small_cohorts import GRID, ORIGIN_MM, SHAPE, SPACING_MM, small_hu, small_label, write_lits

SPEC = InputSpec(
    dims=2,
    phases=("PV",),
    class_names=("background", "tumor"),
    windows_hu=((-70.0, 180.0),),
    slice_offsets_mm=(0.0,),
    spacing_mm=(5.0, 3.0, 3.0),
    patch=(32, 32),
    stride=16,
    needs_liver=True,
)


def save_label(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Labels `(z, y, x)` as another program writes them: any type, any affine."""
    ras = flip_lps_ras(GRID.affine)[:, [2, 1, 0, 3]] if affine is None else affine
    nib.save(nib.Nifti1Image(values.transpose(2, 1, 0), ras), path)
    return path


def own_affine() -> np.ndarray:
    return flip_lps_ras(GRID.affine)[:, [2, 1, 0, 3]]


def prepared(tmp_path: Path, label: Path | None = None, hu: np.ndarray | None = None) -> dict:
    """The verdict on a case whose label, or image, was replaced, beside a sound one."""
    source = write_lits(tmp_path / "source", range(2))
    (place,) = source.rglob("segmentation-1.nii")
    if label is not None:
        place.write_bytes(label.read_bytes())
    if hu is not None:
        write_nifti(place.with_name("volume-1.nii"), hu, GRID)
    document = prepare(source, "lits", tmp_path / "cohort")
    cases = {case["case_id"]: case for case in document["cases"]}
    assert cases["volume-0"]["status"] == "used"
    return cases["volume-1"]


def test_property_LB01_labels_that_are_almost_whole_are_rounded(tmp_path):
    path = save_label(tmp_path / "l.nii", (small_label() * 0.99999).astype(np.float32))
    np.testing.assert_array_equal(read_label(path).array, small_label())
    assert prepared(tmp_path, path)["status"] == "used"
    made = read_label(next((tmp_path / "cohort" / "volume-1").glob("*label*"))).array
    np.testing.assert_array_equal(made, small_label())


@pytest.mark.parametrize(("factor", "shown"), [(10.921457, "10.9215"), (0.5, "0.5")])
def test_property_LB02_labels_that_are_not_whole_are_refused_with_a_histogram(
    tmp_path, factor, shown
):
    path = save_label(tmp_path / "l.nii", (small_label() * factor).astype(np.float32))
    verdict = prepared(tmp_path, path)
    assert verdict["code"] == "E_LABEL_VALUES"
    count = int((small_label() == 1).sum())
    assert f"{shown} in {count}" in verdict["reason"]


@pytest.mark.parametrize("strange", [255, 25])
def test_property_LB03_an_unknown_label_is_refused_with_a_histogram(tmp_path, strange):
    label = small_label()
    label[0, 0, 0] = strange
    path = save_label(tmp_path / "l.nii", label)
    verdict = prepared(tmp_path, path)
    assert verdict["code"] == "E_LABEL_VALUES"
    assert f"{strange} in 1 voxels" in verdict["reason"]
    with pytest.raises(InputRefused) as caught:
        evaluate(path, path)
    assert caught.value.code == "E_LABEL_VALUES"


def test_property_LB05_a_label_off_its_image_is_refused(tmp_path):
    affine = own_affine()
    affine[0, 3] += 5
    path = save_label(tmp_path / "l.nii", small_label(), affine)
    assert prepared(tmp_path, path)["code"] == "E_GRID_MISMATCH"
    with pytest.raises(InputRefused) as caught:
        evaluate(path, save_label(tmp_path / "t.nii", small_label()))
    assert caught.value.code == "E_GRID_MISMATCH"
    # A little beyond a tenth of a voxel is too far, wherever masks are read.
    with pytest.raises(InputRefused) as caught:
        cohort_of(tmp_path / "far", Grid.axial(SHAPE, SPACING_MM, near(0.31))).train_case(0, 0)
    assert caught.value.code == "E_GRID_MISMATCH"
    cohort_of(tmp_path / "near", Grid.axial(SHAPE, SPACING_MM, near(0.29))).train_case(0, 0)


def near(by_mm: float) -> tuple[float, float, float]:
    return ORIGIN_MM[0] + by_mm, ORIGIN_MM[1], ORIGIN_MM[2]


def cohort_of(
    folder: Path, grid: Grid = GRID, label: np.ndarray | None = None, hu: np.ndarray | None = None
) -> CohortCases:
    """Two cases to train on and one held out; the first with another label or image."""
    rows = ["case_id,patient_id,pv,label,fold"]
    for n in range(3):
        own = n == 0
        write_nifti(folder / f"{n}.nii", small_hu(n) if hu is None or not own else hu, GRID)
        values = small_label() if label is None or not own else label
        write_nifti(folder / f"{n}-label.nii", values, grid if own else GRID)
        rows.append(f"case{n},P{n},{n}.nii,{n}-label.nii,{int(n == 2)}")
    (folder / "cohort.csv").write_text("\n".join(rows) + "\n")
    return CohortCases(CohortData(path=folder / "cohort.csv", fold=1), SPEC, cache_dir=None)


def test_property_LB06_affines_that_differ_by_rounding_are_the_same(tmp_path):
    affine = own_affine()
    affine[:3] += 1e-4 * np.random.default_rng(0).random((3, 4))
    path = save_label(tmp_path / "l.nii", small_label(), affine)
    verdict = prepared(tmp_path, path)
    assert verdict["status"] == "used"
    assert verdict["warnings"] == prepared(tmp_path / "plain")["warnings"]
    evaluate(path, save_label(tmp_path / "t.nii", small_label()))


def test_property_LB08_tumor_far_from_the_liver_is_counted(tmp_path):
    label = small_label()
    label[0:3, 0:3, 0:3] = 2
    assert tumor_apart(label) == 27
    assert tumor_apart(small_label()) == 0
    touching = small_label()
    touching[1, 10:12, 8:10] = 2  # on the liver's first slice from below
    assert tumor_apart(touching) == 0
    verdict = prepared(tmp_path, save_label(tmp_path / "l.nii", label))
    assert verdict["status"] == "used"
    (said,) = [w for w in verdict["warnings"] if w.startswith("W_TUMOR_OUTSIDE_LIVER: ")]
    assert "27 voxels" in said


@pytest.mark.parametrize("what", ["image", "label"])
def test_property_LB09_a_blank_image_or_label_is_no_training_case(tmp_path, what):
    blank = np.full(SHAPE, -1000, np.int16) if what == "image" else None
    empty = np.zeros(SHAPE, np.uint8) if what == "label" else None
    label = save_label(tmp_path / "l.nii", empty) if empty is not None else None
    assert prepared(tmp_path, label, blank)["code"] == "E_LABEL_EMPTY"
    with pytest.raises(InputRefused) as caught:
        cohort_of(tmp_path / "own", label=empty, hu=blank).train_case(0, 0)
    assert caught.value.code == "E_LABEL_EMPTY"
    assert "case0" in caught.value.message


def test_property_LB10_a_copy_under_another_name_is_no_held_out_case(tmp_path):
    cases = cohort_of(tmp_path)
    cases.fingerprint()
    (tmp_path / "2.nii").write_bytes((tmp_path / "0.nii").read_bytes())
    with pytest.raises(InputRefused) as caught:
        cohort_of_files(tmp_path).fingerprint()
    assert caught.value.code == "E_LEAKAGE"
    assert "case0" in caught.value.message
    assert "case2" in caught.value.message


def cohort_of_files(folder: Path) -> CohortCases:
    return CohortCases(CohortData(path=folder / "cohort.csv", fold=1), SPEC, cache_dir=None)


def test_property_LB10_a_patient_in_two_folds_is_refused(tmp_path):
    cohort_of(tmp_path)
    table = tmp_path / "cohort.csv"
    table.write_text(table.read_text().replace("P2", "P0"))
    with pytest.raises(InputRefused) as caught:
        read_cohort(table)
    assert caught.value.code == "E_LEAKAGE"


def test_property_LB10_a_scan_stored_anew_is_found_when_a_cohort_is_made(tmp_path):
    source = write_lits(tmp_path / "source", range(2))
    other = small_hu(0)[::-1, :, ::-1].copy()
    write_nifti(source / "volume-7.nii.gz", other, GRID)
    write_nifti(source / "segmentation-7.nii.gz", small_label()[::-1, :, ::-1].copy(), GRID)
    document = prepare(source, "lits", tmp_path / "cohort")
    codes = {case["case_id"]: case.get("code") for case in document["cases"]}
    assert codes["volume-7"] == "E_LEAKAGE"
    assert json.loads((tmp_path / "cohort" / "prepare.json").read_text())["refused"] == 1
