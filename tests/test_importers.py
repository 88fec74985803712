"""Published data sets become cohorts: what is read, what is repaired, what is refused and why."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path, PurePosixPath

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hepar import prepare as preparing
from hepar.cli import main
from hepar.data.cohort import read_case, read_cohort
from hepar.data.cohort_cases import CohortCases
from hepar.data.folds import assign_folds, draw_validation
from hepar.data.importers.folder import find_cases as find_folders
from hepar.data.importers.ircad import find_case, role_of
from hepar.data.importers.label_names import label_values, roles_of
from hepar.data.importers.loading import load_case, read_image
from hepar.data.importers.placing import doubts, place
from hepar.errors import InputRefused, UsageError
from hepar.geometry import Grid, canonical
from hepar.io.archive import Caps, unpack
from hepar.io.nifti import read_label, read_nifti, write_nifti
from hepar.prepare import prepare
from hepar.recipe import load_recipe
from hepar.recipe_data import CohortData
from hepar.study import Phase, Volume
from hepar.systems.sam_urim.settings import SamUrimSettings
from hepar.systems.table import build
from hepar.train.loop import train
from small_cohorts import (
    GRID,
    ORIGIN_MM,
    SHAPE,
    SPACING_MM,
    small_hu,
    small_label,
    write_folders,
    write_lits,
    write_msd,
    write_nnunet,
)

ROOT = Path(__file__).resolve().parents[1]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def refusals(document: dict) -> dict[str, str]:
    return {c["case_id"]: c["code"] for c in document["cases"] if c["status"] == "refused"}


def same_voxels(path: Path, expected: np.ndarray) -> None:
    volume = read_nifti(path)
    assert volume.grid.is_close(GRID)
    np.testing.assert_array_equal(volume.array, expected)


@pytest.mark.parametrize(
    ("layout", "write", "name", "column", "seed"),
    [
        ("lits", write_lits, "volume-{}", "pv", 1),
        ("msd", write_msd, "liver_{}", "pv", 1),
        ("nnunet", write_nnunet, "case{}", "art", 11),
    ],
)
def test_closed_form_a_layout_imports_voxel_for_voxel(layout, write, name, column, seed, tmp_path):
    write(tmp_path / "source", range(4))
    document = prepare(tmp_path / "source", layout, tmp_path / "cohort", folds=2)
    assert (document["used"], document["refused"]) == (4, 0)
    cases = read_cohort(tmp_path / "cohort" / "cohort.csv", need=("label", "fold"))
    assert [c.case_id for c in cases] == [name.format(n) for n in range(4)]
    assert sorted(c.fold for c in cases) == [0, 0, 1, 1]
    assert {c.reference for c in cases} == {"PV"}
    same_voxels(cases[1].images[column.upper()], small_hu(seed))
    images, label, liver = read_case(cases[1], ("ART", "PV"))
    np.testing.assert_array_equal(label.array, small_label())
    assert label.array.dtype == np.uint8
    np.testing.assert_array_equal(liver, small_label() > 0)
    assert set(images) == ({"ART", "PV"} if layout == "nnunet" else {"PV"})
    written = json.loads((tmp_path / "cohort" / "prepare.json").read_text())
    assert written["cases"] == document["cases"]
    voxel_ml = np.prod(SPACING_MM) / 1000
    assert written["cases"][0]["liver_ml"] == pytest.approx((small_label() > 0).sum() * voxel_ml)
    assumed = any("W_PHASE_ASSUMED" in w for w in written["cases"][0]["warnings"])
    assert assumed == (layout != "nnunet")


def test_closed_form_folders_with_dicom_masks_types_and_a_table(tmp_path):
    write_folders(tmp_path / "source", range(4))
    document = prepare(tmp_path / "source", "folder", tmp_path / "cohort", folds=2)
    assert refusals(document) == {}
    rows = table(tmp_path / "cohort" / "cohort.csv")
    assert [row["patient_id"] for row in rows] == [f"patient {n}" for n in range(4)]
    assert [row["type"] for row in rows] == ["hcc", "metastasis"] * 2
    assert [row["age"] for row in rows] == ["50", "51", "52", "53"]
    for fold in ("0", "1"):
        assert {r["type"] for r in rows if r["fold"] == fold} == {"hcc", "metastasis"}
    lesions = table(tmp_path / "cohort" / "lesions.csv")
    assert lesions[1] == {"case_id": "patient 1", "lesion_id": "3", "type": "metastasis"}
    cases = read_cohort(tmp_path / "cohort" / "cohort.csv", need=("label", "fold", "instances"))
    same_voxels(cases[2].images["PV"], small_hu(1005))
    same_voxels(cases[2].images["ART"], small_hu(1004, shift=2))
    assert cases[2].instances is not None
    np.testing.assert_array_equal(read_label(cases[2].instances).array == 3, small_label() == 2)


def test_closed_form_a_prepared_cohort_trains(tmp_path):
    write_nnunet(tmp_path / "source", range(2))
    prepare(tmp_path / "source", "nnunet", tmp_path / "cohort", folds=2)
    recipe = load_recipe(
        ROOT / "recipes" / "sam_urim" / "smoke.yaml",
        (
            f"data={{kind: cohort, path: {tmp_path / 'cohort' / 'cohort.csv'}, fold: 1}}",
            "schedule.steps=1",
            "schedule.warmup=0",
        ),
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result = train(recipe, tmp_path / "run", cache_dir=tmp_path / "cache", workers=0)
    torch.set_num_threads(threads)
    assert (result.steps, result.skipped_steps) == (1, 0)
    assert result.weights.exists()


# --- 3D-IRCADb-01


def write_ircad(folder: Path, numbers: range, *, masks: str = "folder") -> Path:
    """Patients with two tumors, a cyst, and something nobody knows; masks are 0 and 255."""
    label = small_label()
    one, two = label == 2, np.zeros(SHAPE, bool)
    two[6, 11:14, 9:12] = True
    cyst, unknown = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    cyst[3, 22:27, 18:21] = True
    unknown[2, 8:12, 20:24] = True
    liver = (label > 0) & ~two & ~cyst
    structures = {
        "liver": liver,
        "livertumor01": one,
        "livertumor2": two,
        "liverkyste": cyst,
        "metastasectomie": unknown,
        "spleen": unknown,
    }
    for n in numbers:
        place = folder / f"3Dircadb1.{n}"
        write_ircad_series(place / "PATIENT_DICOM", small_hu(n + 300), f"{n}")
        for name, mask in structures.items():
            part = place / "MASKS_DICOM" / name
            write_ircad_series(part, 255 * mask.astype(np.int16), f"{n}{name}")
        if masks == "zip":
            with zipfile.ZipFile(place / "MASKS_DICOM.zip", "w", zipfile.ZIP_DEFLATED) as packed:
                for path in sorted((place / "MASKS_DICOM").rglob("*")):
                    packed.write(path, path.relative_to(place))
            with tarfile.open(place / "PATIENT_DICOM.tar.xz", "w:xz") as packed_too:
                packed_too.add(place / "PATIENT_DICOM", "PATIENT_DICOM")
            shutil.rmtree(place / "MASKS_DICOM")
            shutil.rmtree(place / "PATIENT_DICOM")
    return folder


def write_ircad_series(folder: Path, array: np.ndarray, seed: str) -> None:
    from hepar.io.dicom_write import write_dicom_series

    files = write_dicom_series(
        folder, Volume(array, GRID), description="", series_number=1, uid_seed=seed, tags=False
    )
    for n, path in enumerate(files):
        dataset = pydicom.dcmread(path)
        dataset.PatientID = ""
        dataset.RescaleIntercept = 0
        # As in the original files: signed HU, no padding said.
        dataset.PixelRepresentation = 1
        dataset.RescaleSlope = 1
        dataset.PixelData = array[n].astype(np.int16).tobytes()
        dataset.save_as(folder / f"image_{n}")
        path.unlink()


@pytest.mark.parametrize("masks", ["folder", "zip"])
def test_closed_form_ircad_unites_tumors_and_ignores_cysts(masks, tmp_path):
    write_ircad(tmp_path / "source", range(1, 12, 10), masks=masks)
    document = prepare(tmp_path / "source", "ircad", tmp_path / "cohort", folds=2)
    assert [c["case_id"] for c in document["cases"]] == ["3Dircadb1.1", "3Dircadb1.11"]
    assert refusals(document) == {}
    row = table(tmp_path / "cohort" / "cohort.csv")[0]
    label = read_label(tmp_path / "cohort" / row["label"]).array
    ids = read_label(tmp_path / "cohort" / row["instances"]).array
    ignore = read_label(tmp_path / "cohort" / row["ignore"]).array > 0
    assert [int((ids == i).sum()) for i in (1, 2)] == [int((small_label() == 2).sum()), 9]
    np.testing.assert_array_equal(label == 2, ids > 0)
    assert int((label > 0).sum()) == int((small_label() > 0).sum()) + 5 * 3 - 4 * 3
    assert (label[ignore] == 1).all()
    # The cyst, and what of the unknown structure lies in the liver.
    assert int(ignore.sum()) == 5 * 3 + 2 * 2
    assert any("metastasectomie" in w for w in document["cases"][0]["warnings"])
    left = [p.name for p in (tmp_path / "cohort").rglob("*") if "DICOM" in p.name]
    assert left == []
    assert not any(p.name.startswith(".") for p in (tmp_path / "cohort").iterdir())


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("liver", "liver"),
        *((n, "tumor") for n in ("livertumor", "livertumors", "livertumor07", "livertumor1")),
        *((n, "cyst") for n in ("liverkyst", "liverkyste", "livercyst", "Liver_Cyst01")),
        *((n, "doubtful") for n in ("tumor", "metastasectomie", "Hyperplasie", "liverabcess")),
        *((n, None) for n in ("leftsurretumor", "venacava", "gallbladder", "skin", "Stones")),
    ],
)
def test_closed_form_structures_of_ircad_by_name(name, role):
    assert role_of(name) == role


def test_property_masks_are_placed_by_position_not_by_order(tmp_path):
    folder = write_ircad(tmp_path, range(1, 2)) / "3Dircadb1.1"
    expected = load_case(find_case(folder, tmp_path / "work"))
    # Names in another order than positions: position and name contradict.
    for path in sorted((folder / "MASKS_DICOM" / "liver").iterdir()):
        number = int(path.name.removeprefix("image_"))
        path.rename(path.with_name(f"other_{SHAPE[0] - number}"))
    again = load_case(find_case(folder, tmp_path / "work"))
    np.testing.assert_array_equal(again.label, expected.label)
    for path in sorted((folder / "MASKS_DICOM" / "liver").iterdir()):
        number = int(path.name.removeprefix("other_"))
        path.rename(path.with_name(f"image_{number - 1}"))
    with pytest.raises(InputRefused, match="contradict"):
        load_case(find_case(folder, tmp_path / "work"))
    (folder / "MASKS_DICOM" / "liver" / "image_3").unlink()
    with pytest.raises(InputRefused) as caught:
        load_case(find_case(folder, tmp_path / "work"))
    assert caught.value.code == "E_MASK_SLICES"


@pytest.fixture(scope="module")
def patient(real_data, tmp_path_factory):
    """3D-IRCADb-01 patient 1 as found, its parts unpacked, and its voxels."""
    folder = real_data / "ircad01" / "3Dircadb1.1"
    if not folder.is_dir():
        pytest.skip(f"3D-IRCADb-01 patient 1 is not at {folder}")
    case = find_case(folder, tmp_path_factory.mktemp("ircad"))
    return case, load_case(case)


def test_oracle_patient_1_measures_what_its_publishers_drew(patient):
    _, loaded = patient
    grid = loaded.images[Phase.PV].grid
    assert grid.shape == (129, 512, 512)
    sizes = np.bincount(loaded.instances.ravel())[1:] * grid.voxel_ml
    printed = [f"{v:.1f}" for v in sorted(sizes)[::-1]]
    assert printed == ["84.4", "10.1", "7.5", "3.7", "2.7", "2.5", "0.4"]
    assert f"{loaded.ignore.sum() * grid.voxel_ml:.1f}" == "0.1"
    assert f"{(loaded.label > 0).sum() * grid.voxel_ml:.1f}" == "1489.4"
    assert not [w for w in loaded.warnings if not w.startswith("W_PHASE_ASSUMED")]


def test_oracle_patient_1_equals_a_reading_by_file_names(patient):
    """Slice by slice with pydicom alone, each mask file beside the image file of its name."""
    case, loaded = patient
    files = read_image(case.images[Phase.PV]).files
    first = case.truth["liver"][0].path.parent

    def mask(name: str) -> np.ndarray:
        return np.stack([pydicom.dcmread(first / name / f.name).pixel_array > 0 for f in files])

    instances = np.zeros(loaded.label.shape, np.int32)
    for number in range(1, 8):
        instances[mask(f"livertumor{number:02d}")] = number
    plain, cyst = mask("liver"), mask("liverkyst")
    # The published liver already holds its tumors and the cyst.
    assert not (((instances > 0) | cyst) & ~plain).any()
    truth = np.where(instances > 0, 2, plain | cyst).astype(np.uint8)
    np.testing.assert_array_equal(loaded.label, truth)
    np.testing.assert_array_equal(loaded.instances, instances)
    np.testing.assert_array_equal(loaded.ignore, cyst & (instances == 0))


# --- Verdicts


def test_property_a_bad_case_is_refused_and_the_others_go_on(tmp_path):
    source = write_lits(tmp_path / "source", range(7))
    batch = [source / f"Training Batch {1 + n % 2}" for n in range(7)]
    write_nifti(batch[0] / "volume-0.nii", small_hu(0), Grid.axial(SHAPE, (1.0, 1.0, 1.0)))
    write_nifti(batch[0] / "segmentation-0.nii", small_label(), Grid.axial(SHAPE, (1.0, 1.0, 1.0)))
    (batch[1] / "segmentation-1.nii").unlink()
    strange = small_label()
    strange[0, 0, 0] = 3
    write_nifti(batch[2] / "segmentation-2.nii", strange, GRID)
    write_nifti(batch[3] / "volume-3.nii", small_label().astype(np.int16), GRID)
    moved = Grid.axial(SHAPE, SPACING_MM, (-70.0, -60.0, 20.0))
    write_nifti(batch[4] / "segmentation-4.nii", 0 * small_label(), moved)
    write_nifti(source / "test-volume-3.nii", small_hu(90), GRID)
    write_nifti(source / "volume-5.nii", small_hu(5), GRID)
    document = prepare(source, "lits", tmp_path / "cohort")
    assert refusals(document) == {
        "test-volume-3": "E_NO_TRUTH",
        "volume-0": "E_PLACEHOLDER_GEOMETRY",
        "volume-1": "E_NO_TRUTH",
        "volume-2": "E_LABEL_VALUES",
        "volume-3": "E_HU_IMPLAUSIBLE",
        "volume-4": "E_GRID_MISMATCH",
        "volume-5": "E_CASE_FILES",
    }
    assert all(c["reason"] and c["remedy"] for c in document["cases"] if c["status"] == "refused")
    (case,) = read_cohort(tmp_path / "cohort" / "cohort.csv")
    assert case.case_id == "volume-6"
    assert {p.name for p in (tmp_path / "cohort").iterdir()} == {
        "cohort.csv",
        "prepare.json",
        "volume-6",
    }


def test_property_a_scan_that_is_there_twice_is_used_once(tmp_path):
    source = write_lits(tmp_path / "source", range(2))
    turned = np.ascontiguousarray(small_hu(0)[:, ::-1])
    write_nifti(source / "volume-9.nii", turned, GRID)
    write_nifti(source / "segmentation-9.nii", small_label()[:, ::-1].copy(), GRID)
    document = prepare(source, "lits", tmp_path / "cohort")
    assert refusals(document) == {"volume-9": "E_LEAKAGE"}


def test_property_scans_of_another_cohort_are_excluded(tmp_path):
    write_msd(tmp_path / "msd", range(1, 3))
    prepare(tmp_path / "msd", "msd", tmp_path / "test")
    write_lits(tmp_path / "lits", range(4))
    document = prepare(
        tmp_path / "lits", "lits", tmp_path / "cohort", exclude=tmp_path / "test" / "cohort.csv"
    )
    assert refusals(document) == {"volume-1": "E_LEAKAGE", "volume-2": "E_LEAKAGE"}
    assert "liver_1" in document["cases"][1]["reason"]


@pytest.mark.parametrize("existing", [False, True])
def test_property_without_a_usable_case_nothing_is_left(existing, tmp_path):
    source = tmp_path / "source"
    write_nifti(source / "volume-1.nii", small_hu(1), GRID)
    out = tmp_path / "deep" / "cohort"
    if existing:
        out.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputRefused) as caught:
        prepare(source, "lits", out)
    assert caught.value.code == "E_NO_CASES"
    assert "volume-1: E_NO_TRUTH" in caught.value.message
    assert sorted(tmp_path.rglob("*")) == before


def test_property_a_cohort_is_not_written_over_another_or_into_its_source(tmp_path):
    source = write_lits(tmp_path / "source", range(1))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("mine")
    for out in (tmp_path / "full", source / "cohort", source):
        with pytest.raises(UsageError) as caught:
            prepare(source, "lits", out)
        assert caught.value.code == "E_OUTPUT_PATH"
    with pytest.raises(UsageError, match="1 folds"):
        prepare(source, "lits", tmp_path / "cohort", folds=1)


@pytest.mark.parametrize("layout", ["folder", "nnunet", "lits", "msd", "ircad"])
def test_property_a_source_of_another_layout_is_refused(layout, tmp_path):
    (tmp_path / "source").mkdir()
    with pytest.raises(InputRefused) as caught:
        prepare(tmp_path / "source", layout, tmp_path / "cohort")
    assert caught.value.code == "E_CASE_FILES"
    assert not (tmp_path / "cohort").exists()


def test_closed_form_a_decathlon_file_of_four_dimensions_is_refused(tmp_path):
    source = write_msd(tmp_path / "source", range(2))
    four = np.stack([small_hu(0)] * 2, axis=-1).transpose(2, 1, 0, 3)
    nib.save(
        nib.Nifti1Image(four, np.diag([-3.0, -3.0, 5.0, 1.0])), source / "imagesTr/liver_0.nii.gz"
    )
    document = json.loads((source / "dataset.json").read_text())
    document["training"].append(
        {"image": "../../liver_9.nii.gz", "label": "./labelsTr/liver_9.nii.gz"}
    )
    (source / "dataset.json").write_text(json.dumps(document))
    document = prepare(source, "msd", tmp_path / "cohort")
    assert refusals(document) == {"liver_0": "E_NDIM", "training-2": "E_CASE_FILES"}


@pytest.mark.parametrize(
    ("labels", "roles", "dropped"),
    [
        ({"background": 0, "liver": 1, "tumor": 2}, {"liver": (1,), "tumor": (2,)}, []),
        ({"0": "background", "1": "liver", "2": "cancer"}, {"liver": (1,), "tumor": (2,)}, []),
        ({"background": 0, "liver": [1, 2], "tumor": 2}, {"liver": (1, 2), "tumor": (2,)}, []),
        ({"background": 0, "whole liver": [1, 2, 3], "lesion": [2, 3], "cyst": 1}, None, []),
        (
            {"background": 0, "liver": 1, "liver tumour": 2, "cyst": 3, "ignore": 4, "spleen": 5},
            {"liver": (1,), "tumor": (2,), "cyst": (3,), "ignore": (4,)},
            ["spleen"],
        ),
    ],
)
def test_closed_form_label_names(labels, roles, dropped):
    found, other = roles_of(label_values(labels))
    assert other == dropped
    if roles:
        assert found == roles


@pytest.mark.parametrize(
    ("labels", "code"),
    [
        ({"0": "background", "1": "Vessel", "2": "Tumour"}, "E_NO_LIVER_TRUTH"),
        ({"background": 0, "liver": 1}, "E_NO_TUMOR_TRUTH"),
        ({"background": 0, "liver": 1, "tumor": 2, "portal vein": 3}, "E_LABEL_NAMES"),
        ({"background": 0, "liver": [1, 2], "tumor": 2, "necrosis": 2}, "E_LABEL_NAMES"),
        ({"background": 1, "liver": 0, "tumor": 2}, "E_LABEL_NAMES"),
        ({"liver": {"a": 1}}, "E_LABEL_NAMES"),
        ({}, "E_LABEL_NAMES"),
        (None, "E_LABEL_NAMES"),
    ],
)
def test_property_labels_that_are_not_understood_are_refused(labels, code):
    with pytest.raises(InputRefused) as caught:
        roles_of(label_values(labels))
    assert caught.value.code == code


def test_property_channels_are_phases_or_refused(tmp_path):
    one = write_nnunet(tmp_path / "one", range(1), channels={"0": "CT"})
    document = prepare(one, "nnunet", tmp_path / "cohort")
    assert list(document["cases"][0]["phases"]) == ["PV"]
    assert "W_PHASE_ASSUMED" in document["cases"][0]["warnings"][0]
    for number, channels in enumerate(({"0": "CT", "1": "PV"}, {"0": "art", "1": "late arterial"})):
        two = write_nnunet(tmp_path / f"two{number}", range(1), channels=channels)
        with pytest.raises(InputRefused) as caught:
            prepare(two, "nnunet", tmp_path / "refused")
        assert caught.value.code == "E_CASE_FILES"


def test_closed_form_a_test_folder_of_nnunet_is_the_test_split(tmp_path):
    source = write_nnunet(tmp_path / "source", range(3), channels={"0": "PV"})
    for folder, name in (("images", "case2_0000"), ("labels", "case2")):
        (source / f"{folder}Ts").mkdir()
        (source / f"{folder}Tr" / f"{name}.nii.gz").rename(
            source / f"{folder}Ts" / f"{name}.nii.gz"
        )
    prepare(source, "nnunet", tmp_path / "cohort", folds=2)
    rows = table(tmp_path / "cohort" / "cohort.csv")
    assert [(r["split"], r["fold"] == "") for r in rows] == [
        ("", False),
        ("", False),
        ("test", True),
    ]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda p: (p / "liver.nii.gz").unlink(), "E_NO_LIVER_TRUTH"),
        (lambda p: (p / "tumour.nii.gz").unlink(), "E_NO_TUMOR_TRUTH"),
        (lambda p: shutil.copy(p / "art.nii.gz", p / "arterial.nii.gz"), "E_CASE_FILES"),
        (lambda p: shutil.copy(p / "art.nii.gz", p / "scan.nii.gz"), "E_CASE_FILES"),
        (lambda p: shutil.copy(p / "liver.nii.gz", p / "label.nii.gz"), "E_CASE_FILES"),
        (lambda p: shutil.copy(p / "liver.nii.gz", p / "nc_liver.nii.gz"), "E_CASE_FILES"),
        (lambda p: write_nifti(p / "liver.nii.gz", small_hu(1), GRID), "E_LABEL_VALUES"),
        (lambda p: (p / "instances.nii.gz").unlink(), "E_LESION_TABLE"),
        (lambda p: next((p / "portal venous").iterdir()).unlink(), None),
    ],
)
def test_property_a_patient_folder_with_a_mistake_is_refused(change, code, tmp_path):
    source = write_folders(tmp_path / "source", range(2))
    change(source / "patient 0")
    document = prepare(source, "folder", tmp_path / "cohort")
    assert list(refusals(document)) == ["patient 0"]
    if code:
        assert refusals(document) == {"patient 0": code}


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("patients.csv", "patient_id,fold\npatient 0,1\n", "E_COHORT"),
        ("patients.csv", "name\na\n", "E_COHORT"),
        ("patients.csv", "patient_id,age\npatient 0,1\npatient 0,2\n", "E_COHORT"),
        ("lesions.csv", "case_id,lesion_id,type\npatient 0,3,cancer\n", "E_LESION_TABLE"),
        ("lesions.csv", "case_id,lesion_id,type\nnobody,3,hcc\n", "E_LESION_TABLE"),
        ("lesions.csv", "case_id,lesion_id\npatient 0,3\n", "E_LESION_TABLE"),
    ],
)
def test_property_a_table_with_a_mistake_is_refused(name, text, code, tmp_path):
    source = write_folders(tmp_path / "source", range(1))
    (source / name).write_text(text)
    with pytest.raises(InputRefused) as caught:
        prepare(source, "folder", tmp_path / "cohort")
    assert caught.value.code == code


def test_property_a_patient_with_several_cases_stays_in_one_fold(tmp_path):
    source = write_lits(tmp_path / "source", range(6))
    lines = [f"volume-{n},P{n // 2},{'test' if n == 5 else ''}" for n in range(6)]
    (source / "patients.csv").write_text("\n".join(["case_id,patient_id,split", *lines, "x,y,"]))
    document = prepare(source, "lits", tmp_path / "cohort", folds=2)
    rows = table(tmp_path / "cohort" / "cohort.csv")
    folds = [row["fold"] for row in rows]
    assert folds[0] == folds[1] != folds[2] == folds[3]
    assert [(r["split"], r["fold"]) for r in rows[4:]] == [("test", "")] * 2
    assert any("W_PATIENT_ABSENT" in w for w in document["warnings"])


@given(
    kinds=st.lists(st.sampled_from(["hcc", "cyst", ""]), min_size=1, max_size=40),
    folds=st.integers(2, 6),
    seed=st.integers(0, 9),
)
def test_property_folds_are_even_within_each_stratum(kinds, folds, seed):
    strata = {f"p{i}": kind for i, kind in enumerate(kinds)}
    dealt = assign_folds(strata, folds, seed)
    assert dealt == assign_folds(dict(reversed(strata.items())), folds, seed)
    for kind in {*kinds, None}:
        counts = [
            sum(f == fold and kind in (None, strata[p]) for p, f in dealt.items())
            for fold in range(folds)
        ]
        assert max(counts) - min(counts) <= 1


@given(
    patients=st.lists(st.text("abc", min_size=1, max_size=4), min_size=2, max_size=40, unique=True),
    data=st.data(),
    seed=st.integers(0, 9),
)
def test_property_validation_patients_are_drawn_from_the_seed_alone(patients, data, seed):
    count = data.draw(st.integers(1, len(patients) - 1))
    drawn = draw_validation(patients, count, seed)
    assert len(drawn) == count
    assert drawn < {*patients}
    assert drawn == draw_validation(reversed(patients), count, seed)


def test_property_every_patient_is_drawn_as_often():
    """The mean of 400 draws of 20 of 131 within five standard deviations of its expectation."""
    patients = [f"p{n}" for n in range(131)]
    drawn = [draw_validation(patients, 20, seed) for seed in range(400)]
    counts = np.array([sum(p in chosen for chosen in drawn) for p in patients])
    share = 20 / 131
    assert abs(counts - 400 * share).max() < 5 * np.sqrt(400 * share * (1 - share))


def test_closed_form_a_cohort_is_split_in_training_and_validation(tmp_path):
    source = write_msd(tmp_path / "source", range(6))
    (source / "patients.csv").write_text(
        "case_id,patient_id,split\nliver_0,A,\nliver_1,A,\nliver_4,B,test\nliver_5,B,\n"
    )
    document = prepare(source, "msd", tmp_path / "cohort", validation=1, seed=1)
    assert [document[key] for key in ("validation", "folds", "seed")] == [1, 0, 1]
    rows = table(tmp_path / "cohort" / "cohort.csv")
    assert {row["fold"] for row in rows} == {""}
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row["patient_id"], set()).add(row["split"])
    assert splits.pop("B") == {"test"}
    assert sorted(split for kinds in splits.values() for split in kinds) == [
        *("train", "train"),
        "validation",
    ]
    CohortCases(
        CohortData(path=tmp_path / "cohort" / "cohort.csv"),
        build(SamUrimSettings(phases=("PV",), fusion="none")).input_spec,
        cache_dir=None,
    )


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"validation": 2}, "2 validation patients of 2 leave none to train on"),
        ({"validation": -1}, "-1 validation patients"),
        ({"validation": 1, "folds": 3}, "1 validation patients and 3 folds"),
    ],
)
def test_errors_of_a_split_leave_nothing(asked, words, tmp_path):
    source = write_msd(tmp_path / "source", range(2))
    with pytest.raises(UsageError, match=words) as caught:
        prepare(source, "msd", tmp_path / "cohort", **asked)
    assert caught.value.code == "E_USAGE"
    assert not (tmp_path / "cohort").exists()


# --- Masks whose header contradicts the image


def relabel(grid: Grid) -> Volume:
    return Volume(small_label(), grid)


IMAGE = Volume(small_hu(0), GRID)


def test_closed_form_a_mask_in_another_order_of_voxels_is_turned():
    flipped = Grid(
        SHAPE,
        SPACING_MM,
        (ORIGIN_MM[0] + 3.0 * (SHAPE[2] - 1), ORIGIN_MM[1], ORIGIN_MM[2]),
        (0.0, 0.0, -1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0),
    )
    there = Volume(np.ascontiguousarray(small_label()[:, :, ::-1]), flipped)
    turned = Grid(
        SHAPE,
        SPACING_MM,
        flipped.origin_mm,
        tuple(float(v) for v in (GRID.matrix * [1.0, 1.0, -1.0]).ravel()),
    )
    found, warning = place(replace(there, grid=turned), IMAGE, "mask")
    np.testing.assert_array_equal(found, small_label())
    assert warning is not None
    assert "W_LABEL_TURNED" in warning


@pytest.mark.parametrize("unit", [1.0, 10.0, 0.1])
@pytest.mark.parametrize("signs", [(1, 1, 1), (1, -1, -1), (1, 1, -1), (1, -1, 1)])
def test_property_a_header_wrong_in_signs_or_unit_is_undone(signs, unit):
    """The voxels are in the image's order; the header says otherwise, about the same origin."""
    spacing = tuple(unit * s for s in SPACING_MM)
    origin = tuple(-v for v in ORIGIN_MM)
    direction = tuple(float(v) for v in (GRID.matrix * signs).ravel())
    found, warning = place(relabel(Grid(SHAPE, spacing, origin, direction)), IMAGE, "mask")
    np.testing.assert_array_equal(found, small_label())
    assert warning is not None
    assert "W_LABEL_AFFINE" in warning


def test_property_flipped_voxels_under_a_header_of_another_origin_are_flipped_back():
    direction = tuple(float(v) for v in (GRID.matrix * (1, 1, -1)).ravel())
    stored = np.ascontiguousarray(small_label()[:, :, ::-1])
    found, warning = place(
        Volume(stored, Grid(SHAPE, SPACING_MM, ORIGIN_MM, direction)), IMAGE, "m"
    )
    np.testing.assert_array_equal(found, small_label())
    assert warning is not None
    assert "flipped as its header says" in warning


def test_property_what_is_ambiguous_is_refused():
    mirrored = Grid(SHAPE, SPACING_MM, ORIGIN_MM, tuple((GRID.matrix * (1, 1, -1)).ravel()))
    other_spacing = Grid.axial(SHAPE, (5.0, 3.0, 2.9), ORIGIN_MM)
    far = Grid.axial(SHAPE, SPACING_MM, (0.0, 0.0, 0.0))
    smaller = Grid.axial((9, 40, 48), SPACING_MM, ORIGIN_MM)
    symmetric = np.zeros(SHAPE, np.uint8)
    symmetric[3:6, 12:20, 14:34] = 1
    middle = np.where(symmetric, 100, -900).astype(np.int16)
    cases = [
        (Volume(symmetric, mirrored), Volume(middle, GRID)),
        (relabel(other_spacing), IMAGE),
        (Volume(np.roll(small_label(), 12, 2), far), IMAGE),
        (Volume(small_label()[1:], smaller), IMAGE),
    ]
    for mask, image in cases:
        with pytest.raises(InputRefused) as caught:
            place(mask, image, "mask")
        assert caught.value.code == "E_GRID_MISMATCH"


def test_closed_form_a_mirrored_patient_is_told():
    def said(hu: np.ndarray, label: np.ndarray) -> list[str]:
        return [w.split(":")[0] for w in doubts(Volume(hu, GRID), label)]

    hu, label = small_hu(0), small_label()
    assert said(hu, label) == []
    assert said(hu[:, :, ::-1].copy(), label[:, :, ::-1].copy()) == ["W_LIVER_SIDE"]
    assert said(hu[:, ::-1].copy(), label[:, ::-1].copy()) == ["W_FRONT_BACK"]
    assert said(hu + np.int16(400), label) == ["W_LIVER_HU", "W_FRONT_BACK"] or said(
        hu + np.int16(400), label
    ) == ["W_LIVER_HU"]


# --- Alignment


def test_closed_form_centers_meet_and_no_voxel_changes(tmp_path):
    write_folders(tmp_path / "source", range(2))
    for align in ("liver_center", "tumor_center"):
        document = prepare(tmp_path / "source", "folder", tmp_path / align, align=align)
        case = read_cohort(tmp_path / align / "cohort.csv")[0]
        assert case.metadata["alignment"] == align
        art = read_nifti(case.images["ART"])
        np.testing.assert_array_equal(art.array, small_hu(1000, shift=2))
        # The arterial phase was drawn two voxels further to Left and Posterior.
        moved = np.array(art.grid.origin_mm) - np.array(ORIGIN_MM)
        np.testing.assert_allclose(moved, (-6.0, -6.0, 0.0), atol=1e-4)
        same_voxels(case.images["PV"], small_hu(1001))
        told = any("W_ALIGNMENT_USES_TRUTH" in w for w in document["warnings"])
        assert told == (align == "tumor_center")
        assert any("W_PHASE_MOVED" in w for w in document["cases"][0]["warnings"])


def test_property_tumor_centers_need_masks_of_every_phase(tmp_path):
    source = write_folders(tmp_path / "source", range(2))
    (source / "patient 0" / "art_label.nii.gz").unlink()
    document = prepare(source, "folder", tmp_path / "cohort", align="tumor_center")
    assert refusals(document) == {"patient 0": "E_ALIGN_MASKS"}
    write_nifti(source / "patient 1" / "art_label.nii.gz", 0 * small_label(), GRID)
    with pytest.raises(InputRefused, match="mask is empty"):
        prepare(source, "folder", tmp_path / "other", align="tumor_center")


def test_closed_form_liver_centers_without_masks_are_those_hepar_finds(tmp_path, monkeypatch):
    source = write_folders(tmp_path / "source", range(1))
    (source / "patient 0" / "art_label.nii.gz").unlink()

    def found(self, volume: Volume, phase: Phase) -> np.ndarray:
        return canonical(volume.array, volume.grid)[0] > 70

    monkeypatch.setattr(preparing._Aligner, "_found_liver", found)
    document = prepare(source, "folder", tmp_path / "cohort", align="liver_center")
    art = read_nifti(tmp_path / "cohort" / "patient_0" / "art.nii.gz")
    moved = np.array(art.grid.origin_mm) - np.array(ORIGIN_MM)
    livers = [small_hu(1001) > 70, small_hu(1000, shift=2) > 70]
    pv, art_center = (np.argwhere(m).mean(axis=0) * SPACING_MM for m in livers)
    np.testing.assert_allclose(moved, (pv - art_center)[::-1], atol=1e-3)
    assert any("hepar's own" in w for w in document["cases"][0]["warnings"])


def test_closed_form_registered_phases_lie_on_the_reference(tmp_path):
    write_folders(tmp_path / "source", range(1))
    prepare(tmp_path / "source", "folder", tmp_path / "cohort", align="registered")
    (case,) = read_cohort(tmp_path / "cohort" / "cohort.csv", need=("label",))
    same_voxels(case.images["PV"], small_hu(1001))
    assert read_nifti(case.images["ART"]).grid.is_close(GRID)
    assert case.label is not None
    np.testing.assert_array_equal(read_label(case.label).array, small_label())


# --- Archives


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in members.items():
            packed.writestr(name, data)
    return path


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "C:\\evil", "..\\evil"])
def test_property_no_member_leaves_its_folder(name, tmp_path):
    archive = zipped(tmp_path / "a.zip", {name: b"x"})
    with pytest.raises(InputRefused) as caught:
        unpack(archive, tmp_path / "out")
    assert caught.value.code == "E_ARCHIVE"
    packed = tmp_path / "a.tar.gz"
    with tarfile.open(packed, "w:gz") as stream:
        info = tarfile.TarInfo(name)
        info.size = 1
        stream.addfile(info, io.BytesIO(b"x"))
    with pytest.raises(InputRefused) as caught:
        unpack(packed, tmp_path / "out")
    assert caught.value.code == "E_ARCHIVE"
    assert not list(tmp_path.rglob("evil"))


def test_property_links_and_doubles_are_refused(tmp_path):
    packed = tmp_path / "a.tar"
    with tarfile.open(packed, "w") as stream:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        stream.addfile(info)
    with pytest.raises(InputRefused, match="no plain file"):
        unpack(packed, tmp_path / "out")
    with tarfile.open(packed, "w") as stream:
        for _ in range(2):
            stream.addfile(tarfile.TarInfo("same"), io.BytesIO(b""))
    with pytest.raises(InputRefused, match="twice"):
        unpack(packed, tmp_path / "out")


def test_property_archives_are_read_under_caps(tmp_path):
    archive = zipped(tmp_path / "a.zip", {f"m/{n}": bytes(10_000) for n in range(20)})
    for caps, code in (
        (Caps(entries=19), "E_ARCHIVE"),
        (Caps(total_bytes=100_000), "E_BOMB"),
        (Caps(ratio=2.0, free_bytes=0), "E_BOMB"),
    ):
        with pytest.raises(InputRefused) as caught:
            unpack(archive, tmp_path / f"{caps.entries}-{caps.total_bytes}-{caps.ratio}", caps=caps)
        assert caught.value.code == code
        # Members that are not wanted count too.
        with pytest.raises(InputRefused):
            unpack(archive, tmp_path / "none", caps=caps, wanted=lambda member: False)
    unpack(archive, tmp_path / "out", wanted=lambda member: member == PurePosixPath("m/3"))
    assert [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()] == ["3"]
    archive.write_bytes(archive.read_bytes()[:400])
    with pytest.raises(InputRefused) as caught:
        unpack(archive, tmp_path / "other")
    assert caught.value.code == "E_CORRUPT"


# --- The command


def test_closed_form_the_command_says_what_became_of_each_case(tmp_path, capsys):
    source = write_folders(tmp_path / "source", range(2))
    (source / "patient 1" / "liver.nii.gz").unlink()
    arguments = ["prepare", str(source), "--format", "folder", "-q", "--align", "tumor_center"]
    main([*arguments, "-o", str(tmp_path / "a")])
    out, err = capsys.readouterr()
    assert "1 cases, 1 refused" in out
    assert "patient 1: refused: E_NO_LIVER_TRUTH" in out
    assert "W_ALIGNMENT_USES_TRUTH" in err
    main([*arguments, "-o", str(tmp_path / "b"), "--json"])
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["used"], document["refused"]) == (1, 1)
    assert str(tmp_path) not in out
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "-o", str(tmp_path / "b")])
    assert caught.value.code == 2


def test_property_the_same_source_gives_the_same_cohort(tmp_path):
    source = write_folders(tmp_path / "source", range(3))
    for name in ("a", "b"):
        prepare(source, "folder", tmp_path / name, folds=2, seed=3)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*z"))
    assert files
    for file in (*files, "cohort.csv", "lesions.csv"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_closed_form_a_folder_of_one_unnamed_image_is_portal_venous(tmp_path):
    write_nifti(tmp_path / "p" / "scan.nii.gz", small_hu(0), GRID)
    write_nifti(tmp_path / "p" / "liver_seg.nii.gz", small_label(), GRID)
    write_nifti(tmp_path / "p" / "liver_tumor_seg.nii.gz", small_label() // 2, GRID)
    (case,) = find_folders(tmp_path, tmp_path)
    assert list(case.images) == [Phase.PV]
    assert "W_PHASE_ASSUMED" in case.warnings[0]
    np.testing.assert_array_equal(load_case(case).label, small_label())
