"""The command: every kind of bad input as a user meets it, and the small verbs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest

from command import run
from hepar.geometry import Grid
from hepar.infer.bundle import default_bundle_path
from hepar.io.dicom_write import write_dicom_series
from hepar.io.nifti import read_label, read_nifti, write_nifti
from small_ct import volume


def dicom_study(folder: Path, name: str = "a", **options: object) -> tuple[Path, ...]:
    settings: dict = {"description": "liver", "series_number": 1, "uid_seed": name} | options
    scan = volume(shape=(8, 8, 10), slice_mm=5.0)
    return write_dicom_series(folder / name, scan, **settings)


def no_image(folder: Path) -> Path:
    (folder / "notes.txt").write_text("nothing to see")
    return folder


def magnetic_resonance(folder: Path) -> Path:
    for path in dicom_study(folder):
        dataset = pydicom.dcmread(path)
        dataset.Modality = "MR"
        dataset.save_as(path)
    return folder


def truncated_gzip(folder: Path) -> Path:
    whole = folder / "scan.nii.gz"
    scan = volume()
    write_nifti(whole, scan.array, scan.grid)
    data = whole.read_bytes()
    whole.write_bytes(data[: len(data) // 2])
    return whole


def missing_slice(folder: Path) -> Path:
    dicom_study(folder)[2].unlink()
    return folder


def phases_unknown(folder: Path) -> Path:
    dicom_study(folder, "a", description="abdomen", tags=False)
    dicom_study(folder, "b", description="abdomen", series_number=2, tags=False)
    return folder


@pytest.mark.parametrize(
    ("build", "code"),
    [
        (no_image, "E_NO_IMAGE"),
        (magnetic_resonance, "E_WRONG_MODALITY"),
        (truncated_gzip, "E_TRUNCATED"),
        (missing_slice, "E_SLICE_GAP"),
        (phases_unknown, "E_PHASES_UNKNOWN"),
    ],
)
def test_closed_form_a_bad_study_is_refused_and_leaves_nothing(build, code, tmp_path, capsys):
    study = tmp_path / "study"
    study.mkdir()
    source = build(study)
    before = sorted(p.name for p in tmp_path.rglob("*"))
    exit_code, out, err = run(capsys, "segment", source, "-o", tmp_path / "new" / "out", "-q")
    assert (exit_code, out) == (10, "")
    assert code in err
    assert "remedy: " in err
    assert sorted(p.name for p in tmp_path.rglob("*")) == before
    exit_code, out, _ = run(capsys, "segment", source, "-o", tmp_path / "out", "--json", "-q")
    assert json.loads(out)["error"]["code"] == code
    assert str(tmp_path) not in err.replace(str(source), "")


def test_closed_form_unknown_phases_name_the_flag(tmp_path, capsys):
    phases_unknown(tmp_path)
    _, _, err = run(capsys, "segment", tmp_path, "-o", tmp_path / "out", "-q")
    assert "--phase" in err.split("remedy:")[1]


def test_closed_form_inspect_tells_every_series_even_when_refused(tmp_path, capsys):
    phases_unknown(tmp_path)
    exit_code, out, _ = run(capsys, "inspect", tmp_path, "--json", "-q")
    document = json.loads(out)
    assert exit_code == 10
    assert len(document["series"]) == 2
    assert document["error"]["code"] == "E_PHASES_UNKNOWN"


def test_closed_form_a_model_with_a_wrong_hash_is_refused(tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(default_bundle_path(), model)
    weights = model / "tumor" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    scan = volume()
    write_nifti(tmp_path / "scan.nii.gz", scan.array, scan.grid)
    exit_code, _, err = run(
        capsys, "segment", tmp_path / "scan.nii.gz", "-o", tmp_path / "out", "--model", model, "-q"
    )
    assert exit_code == 13
    assert "E_MODEL_HASH" in err
    assert not (tmp_path / "out").exists()


def test_closed_form_a_label_of_another_shape_is_refused(tmp_path, capsys):
    a, b = Grid.axial((4, 5, 6), (2.0, 1.0, 1.0)), Grid.axial((4, 5, 7), (2.0, 1.0, 1.0))
    write_nifti(tmp_path / "a.nii.gz", np.zeros(a.shape, np.uint8), a)
    write_nifti(tmp_path / "b.nii.gz", np.zeros(b.shape, np.uint8), b)
    exit_code, _, err = run(
        capsys,
        "evaluate",
        tmp_path / "a.nii.gz",
        tmp_path / "b.nii.gz",
        "-o",
        tmp_path / "out",
        "-q",
    )
    assert exit_code == 10
    assert "E_LABEL_SHAPE" in err
    assert not (tmp_path / "out").exists()


def test_closed_form_a_label_elsewhere_in_the_patient_is_refused_in_mm(tmp_path, capsys):
    a, b = (Grid.axial((4, 5, 6), (2.0, 1.0, 1.0), (x, 0.0, 0.0)) for x in (0.0, 7.5))
    for name, grid in (("a", a), ("b", b)):
        write_nifti(tmp_path / f"{name}.nii.gz", np.zeros(grid.shape, np.uint8), grid)
    exit_code, _, err = run(capsys, "evaluate", tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", "-q")
    assert exit_code == 10
    assert "E_GRID_MISMATCH" in err
    assert "7.50 mm" in err


def test_closed_form_a_typo_in_a_recipe_is_a_usage_error(tmp_path, capsys):
    source = Path(__file__).parents[1] / "recipes" / "sam_urim" / "lite.yaml"
    broken = tmp_path / "broken.yaml"
    broken.write_text(source.read_text().replace("batch_size:", "batchsize:"))
    exit_code, _, err = run(capsys, "train", broken, "-o", tmp_path / "run", "-q")
    assert exit_code == 2
    assert "E_RECIPE" in err
    assert "batch_size" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("pair", ["art", "liver=a.nii", "art="])
def test_closed_form_a_wrong_phase_argument_is_a_usage_error(pair, tmp_path, capsys):
    exit_code, _, err = run(capsys, "segment", "-o", tmp_path / "out", "--phase", pair, "-q")
    assert exit_code == 2
    assert "E_USAGE" in err


def test_closed_form_info_gives_the_published_parameter_counts(capsys):
    _, out, _ = run(capsys, "info", "sam_urim", "--preset", "w16", "--json")
    document = json.loads(out)
    assert document["modules"] == {
        "trunk": 22_979_904,
        "sam2": 306_400,
        "sam3": 601_824,
        "sam4": 1_192_672,
        "sam5": 2_374_368,
        "decoder": 3_935_746,
        "urim": 741_894,
    }
    assert document["parameters"] == sum(document["modules"].values())
    assert document["gflops"] > 100


def test_property_a_written_phantom_reads_back_alike_in_every_format(tmp_path, capsys, monkeypatch):
    from hepar.data import phantom_cohort
    from hepar.phantom.anatomy import anatomy

    monkeypatch.setattr(
        phantom_cohort,
        "anatomy",
        lambda seed, **_: anatomy(seed, shape=(16, 48, 64), spacing_mm=(10, 6, 6)),
    )
    exit_code, out, _ = run(
        capsys,
        "phantom",
        "-o",
        tmp_path,
        "--seed",
        3,
        "-q",
        "--formats",
        "nifti",
        "dicom",
        "arrays",
    )
    assert exit_code == 0
    assert Path(out.strip()) == tmp_path / "cohort.csv"
    case = tmp_path / "phantom-000003"
    _, listed, _ = run(capsys, "inspect", case / "dicom", "--json", "-q")
    series = json.loads(listed)["series"]
    assert sorted(row["phase"] for row in series) == ["ART", "DL", "NC", "PV"]
    image, label = read_nifti(case / "art.nii.gz"), read_label(case / "label.nii.gz")
    assert image.grid.is_close(label.grid)
    assert set(np.unique(label.array)) <= {0, 1, 2}
    _, scores, _ = run(
        capsys, "evaluate", case / "label.nii.gz", case / "label.nii.gz", "--json", "-q"
    )
    liver = json.loads(scores)["structures"]["liver"]["measures"]
    assert liver["dice"]["penalised"]["mean"] == 1.0


def test_closed_form_a_bug_of_ours_exits_with_14(monkeypatch, capsys):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("hepar.infer.describe.describe", broken)
    exit_code, _, err = run(capsys, "info")
    assert exit_code == 14
    assert "boom" in err


def test_closed_form_the_module_runs_as_a_command():
    result = subprocess.run(
        [sys.executable, "-m", "hepar.cli", "segment"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2


def test_training_on_anatomies_that_are_not_there_leaves_nothing(tmp_path, capsys):
    recipe = Path(__file__).parents[1] / "recipes" / "tumor" / "multiphase.yaml"
    anatomies = f"data.anatomies=[{tmp_path / 'nowhere'}]"
    exit_code, _, err = run(capsys, "train", recipe, "-o", tmp_path / "run", "--set", anatomies)
    assert exit_code == 10
    assert "E_NO_LIVER" in err
    assert list(tmp_path.iterdir()) == []
