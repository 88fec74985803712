"""`hepar evaluate` on files: what either side may be, what is refused, what is left."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from hepar.cli import main
from hepar.errors import InputRefused
from hepar.evaluate.files import evaluate
from hepar.evaluate.score import score_case
from hepar.geometry import Grid
from hepar.io.nifti import write_nifti
from hepar.study import LESION_TYPES
from masks import ball

SPACING = (2.0, 1.0, 1.0)
GRID = Grid.axial((12, 32, 32), SPACING)


def case(shift: int = 0, second: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Labels and lesion ids: a liver with a lesion of about 0.5 ml, and perhaps a smaller one."""
    liver = ball(GRID.shape, (12, 16, 16), 10, SPACING)
    ids = ball(GRID.shape, (12, 12 + shift, 12), 5, SPACING).astype(np.uint8)
    if second:
        ids[ball(GRID.shape, (12, 22, 22), 3, SPACING)] = 2
    return np.where(ids > 0, 2, liver).astype(np.uint8), ids


def write_side(folder: Path, shifts: dict[str, int], *, types: bool, second: bool = True) -> Path:
    """A folder of label maps with lesion ids and, if wanted, tables."""
    rows, patients = [], []
    for k, (name, shift) in enumerate(shifts.items()):
        label, ids = case(shift, second)
        write_nifti(folder / f"{name}.nii.gz", label, GRID)
        write_nifti(folder / "instances" / f"{name}.nii.gz", ids, GRID)
        kinds = [LESION_TYPES[k % 8], "cyst"][: 2 if second else 1]
        rows += [
            {"case_id": name, "lesion_id": i + 1, "type": kind, "confidence": 0.9 - 0.1 * i}
            for i, kind in enumerate(kinds)
        ]
        said = {t: 0.8 if t in kinds else 0.1 for t in LESION_TYPES}
        patients.append({"case_id": name, "patient_id": f"p{k // 2}", **said})
    if types:
        for name, table in (("lesions", rows), ("patients", patients)):
            with (folder / f"{name}.csv").open("w", newline="") as stream:
                writer = csv.DictWriter(stream, list(table[0]))
                writer.writeheader()
                writer.writerows(table)
    return folder


@pytest.fixture(scope="module")
def sides(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("sides")
    names = ["a", "b", "c", "d"]
    truth = write_side(root / "truth", dict.fromkeys(names, 0), types=True)
    found = write_side(
        root / "found", {n: k for k, n in enumerate(names)}, types=True, second=False
    )
    return found, truth


def test_closed_form_a_folder_with_lesions_and_types(sides, tmp_path, capsys):
    found, truth = sides
    main(["evaluate", str(found), str(truth), "--types", "-o", str(tmp_path / "out"), "-q"])
    left = {p.name for p in (tmp_path / "out").iterdir()}
    assert left == {"scores.json", "cases.csv", "lesions.csv", "evaluation.html"}
    document = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert (document["n_cases"], document["n_patients"]) == (4, 2)
    for row, shift in zip(document["cases"], range(4), strict=True):
        expected = score_case("x", case(shift, False)[0], case()[0], SPACING)
        assert row["tumor_dice"] == expected.structures["tumor"].overlap.dice
        assert (row["lesions_reference"], row["lesions_found"]) == (2, 1)
    ours = document["lesions"]["rules"][0]
    assert (ours["recall"], ours["precision"]) == (0.5, 1.0)
    assert document["lesions"]["froc"]["points"][-1]["recall"] == 0.5
    assert document["lesions"]["classes"]["accuracy"] == 1.0
    assert document["types"]["score"] == "probability"
    with (tmp_path / "out" / "cases.csv").open() as stream:
        assert [r["case_id"] for r in csv.DictReader(stream)] == ["a", "b", "c", "d"]
    shown = capsys.readouterr().out
    assert "4 case(s) of 2 patient(s)" in shown
    assert "one to one, IoU >= 0.1" in shown


def test_closed_form_the_truth_against_itself_is_perfect(sides):
    _, truth = sides
    document = evaluate(truth, truth, types=True).document
    for structure in document["structures"].values():
        means = {m: policies["penalised"]["mean"] for m, policies in structure["measures"].items()}
        assert means == {m: float(m.endswith("dice")) for m in means}
    assert {rule["recall"] for rule in document["lesions"]["rules"]} == {1.0}
    assert document["tumor_burden"]["rmse"] == 0.0
    assert document["warnings"] == []


def test_closed_form_single_files_and_json(sides, capsys):
    found, truth = sides
    main(["evaluate", str(found / "b.nii.gz"), str(truth / "a.nii.gz"), "-q", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert (document["n_cases"], document["lesions"], document["types"]) == (1, None, None)


def test_closed_form_results_of_segment_and_a_cohort(tmp_path):
    label, ids = case()
    for name in ("a", "b", "c"):
        write_nifti(tmp_path / "runs" / name / "segmentation.nii.gz", label, GRID)
        write_nifti(tmp_path / "runs" / name / "lesions.nii.gz", ids, GRID)
    write_nifti(
        tmp_path / "cohort" / "tumor.nii.gz", np.where(ids > 0, 2, 0).astype(np.uint8), GRID
    )
    write_nifti(tmp_path / "cohort" / "liver.nii.gz", (label > 0).astype(np.uint8), GRID)
    write_nifti(tmp_path / "cohort" / "pv.nii.gz", label.astype(np.int16), GRID)
    (tmp_path / "cohort" / "cohort.csv").write_text(
        "case_id,patient_id,pv,label,liver,split\n"
        "a,p,pv.nii.gz,tumor.nii.gz,liver.nii.gz,test\n"
        "b,p,pv.nii.gz,tumor.nii.gz,liver.nii.gz,test\n"
        "train,q,pv.nii.gz,tumor.nii.gz,liver.nii.gz,train\n"
    )
    document = evaluate(tmp_path / "runs", tmp_path / "cohort", lesions=True).document
    assert (document["n_cases"], document["n_patients"]) == (2, 1)
    assert [w.split(":")[0] for w in document["warnings"]] == ["W_SPLIT", "W_NO_TRUTH"]
    assert document["structures"]["liver"]["measures"]["dice"]["penalised"]["mean"] == 1.0
    with pytest.raises(InputRefused) as refusal:
        evaluate(tmp_path / "runs", tmp_path / "cohort", types=True)
    assert refusal.value.code == "E_NO_TYPES"


def test_closed_form_the_same_voxels_stored_the_other_way_round(tmp_path):
    label, _ = case(3)
    write_nifti(tmp_path / "a.nii.gz", label, GRID)
    image = nib.load(tmp_path / "a.nii.gz")
    turned = nib.as_closest_canonical(image)
    nib.save(turned, tmp_path / "turned.nii")
    assert not np.allclose(turned.affine, image.affine)
    document = evaluate(tmp_path / "turned.nii", tmp_path / "a.nii.gz").document
    assert document["cases"][0]["tumor_dice"] == document["cases"][0]["liver_dice"] == 1.0


def moved(grid: Grid, mm: float) -> Grid:
    return Grid(grid.shape, grid.spacing_mm, (mm, 0.0, 0.0), grid.direction)


@pytest.mark.parametrize(
    ("label", "grid", "code", "words"),
    [
        (case()[0], moved(GRID, 3.5), "E_GRID_MISMATCH", "3.50 mm apart"),
        (case()[0][:10], GRID.axial((10, 32, 32), SPACING), "E_LABEL_SHAPE", "4.00 mm apart"),
        (case()[0], GRID.axial(GRID.shape, (2.0, 1.0, 1.1)), "E_GRID_MISMATCH", "3.10 mm"),
        (case()[0] + 1, GRID, "E_LABEL_VALUES", "label 3"),
    ],
)
def test_closed_form_maps_that_cannot_be_compared(tmp_path, capsys, label, grid, code, words):
    write_nifti(tmp_path / "truth.nii.gz", case()[0], GRID)
    write_nifti(tmp_path / "found.nii.gz", label, grid)
    command = ["evaluate", str(tmp_path / "found.nii.gz"), str(tmp_path / "truth.nii.gz")]
    with pytest.raises(SystemExit) as stop:
        main([*command, "-o", str(tmp_path / "out"), "-q"])
    shown = capsys.readouterr().err
    assert stop.value.code == 10
    assert code in shown
    assert words in shown
    assert "remedy" in shown
    assert not (tmp_path / "out").exists()


def test_closed_form_what_is_missing_is_refused(sides, tmp_path):
    found, truth = sides
    only = tmp_path / "only"
    write_nifti(only / "a.nii.gz", case()[0], GRID)
    write_nifti(only / "z.nii.gz", case()[0], GRID)
    for pair in ((only, truth), (tmp_path / "none", truth), (found, tmp_path)):
        with pytest.raises(InputRefused) as refusal:
            evaluate(*pair)
        assert refusal.value.code == "E_NO_IMAGE"


@pytest.mark.parametrize(
    "text",
    [
        "case_id,lesion_id,type\na,1,lymphoma\n",
        "case_id,lesion_id,type\na,one,hcc\n",
        "case_id,lesion_id,type\na,1,hcc\na,1,icc\n",
        "case_id,type\na,hcc\n",
        "case_id,lesion_id,type\na,2,hcc\n",
    ],
)
def test_closed_form_a_wrong_table_of_lesions_is_refused(tmp_path, text):
    truth = write_side(tmp_path / "truth", {"a": 0}, types=True)
    (truth / "lesions.csv").write_text(text)
    with pytest.raises(InputRefused) as refusal:
        evaluate(truth, truth, types=True)
    assert refusal.value.code == "E_LESION_TABLE"


@pytest.fixture(scope="module")
def patient_1(real_data, tmp_path_factory):
    """Truth of 3D-IRCADb-01 patient 1: instances of seven tumors, liver, spacing."""
    pydicom = pytest.importorskip("pydicom")
    masks = real_data / "ircad01" / "3Dircadb1.1" / "MASKS_DICOM.zip"
    if not masks.is_file():
        pytest.skip(f"{masks.name} is not there")
    folder = tmp_path_factory.mktemp("ircad")
    with zipfile.ZipFile(masks) as archive:
        wanted = [
            m for m in archive.infolist() if "livertumor" in m.filename or "/liver/" in m.filename
        ]
        for member in wanted:
            archive.extract(member, folder)

    def stack(name: str) -> np.ndarray:
        files = [p for p in folder.rglob(f"{name}/*") if p.is_file()]
        files.sort(key=lambda p: int(p.name.split("_")[-1]))
        return np.stack([pydicom.dcmread(p).pixel_array > 0 for p in files])

    liver = stack("liver")
    instances = np.zeros(liver.shape, np.uint8)
    for number in range(1, 8):
        instances[stack(f"livertumor{number:02d}")] = number
    return instances, liver, (1.6, 0.57, 0.57)


@pytest.mark.full
def test_closed_form_patient_1_against_itself_and_grown_by_two_millimeters(patient_1):
    instances, liver, spacing = patient_1
    truth = np.where(instances > 0, 2, liver).astype(np.uint8)
    perfect = score_case("1", truth, truth, spacing, reference_instances=instances)
    for structure in perfect.structures.values():
        assert (structure.overlap.dice, structure.surface_dice) == (1.0, 1.0)
        assert structure.surface.hd_mm == 0.0
    tumor = instances > 0
    grown = ndimage.distance_transform_edt(~tumor, sampling=spacing) <= 2.0
    large = np.where(grown, 2, liver).astype(np.uint8)
    found = score_case("1", large, truth, spacing, lesions=False).structures["tumor"]
    diagonal_mm = float(np.linalg.norm(spacing))
    assert 0.5 < found.surface.forth.max_mm <= 2.0 + diagonal_mm
    assert found.overlap.dice == 2 * tumor.sum() / (tumor.sum() + grown.sum())


@pytest.mark.full
def test_closed_form_patient_1_with_each_lesion_removed(patient_1):
    instances, liver, spacing = patient_1
    truth = np.where(instances > 0, 2, liver).astype(np.uint8)
    present = [n for n in range(1, 8) if (instances == n).any()]
    assert len(present) == 7
    for gone in present:
        kept = np.where(instances == gone, 0, instances)
        label = np.where(kept > 0, 2, liver).astype(np.uint8)
        match = score_case(
            "1",
            label,
            truth,
            spacing,
            predicted_instances=kept,
            reference_instances=instances,
        ).match
        assert (match.recall, match.precision, match.missed) == (6 / 7, 1.0, (gone,))
