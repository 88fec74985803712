"""The main job with the shipped model, on a small synthetic patient written as DICOM."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hepar.data.phantoms import grid_of, write_patient
from hepar.errors import InputRefused
from hepar.evaluate.score import score_case
from hepar.geometry import Grid, canonical
from hepar.infer.bundle import default_bundle_path, load_bundle
from hepar.io.nifti import read_label, write_nifti
from hepar.phantom.anatomy import Anatomy, anatomy
from hepar.phantom.scanner import Painted, paint
from hepar.pipeline import Pipeline
from hepar.stages import alignment, liver_alignment
from hepar.study import Findings, Phase

SEED = 920_006
LEAVES = {
    "segmentation.nii.gz",
    "lesions.nii.gz",
    "findings.json",
    "lesions.csv",
    "report.html",
    "ingest.json",
    "run.json",
    "overlay",
}


@pytest.fixture(scope="module", autouse=True)
def _small_working_grids() -> Iterator[None]:
    """Registration on coarse grids: what its maps are worth is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alignment, "_WORKING_VOXELS", 60_000)
        patch.setattr(liver_alignment, "_VOXELS", 40_000)
        yield


@pytest.fixture(scope="module")
def patient() -> Anatomy:
    return anatomy(SEED, spacing_mm=(5.0, 3.0, 3.0))


@pytest.fixture(scope="module")
def scan(patient: Anatomy) -> Painted:
    return paint(patient, SEED)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(load_bundle(default_bundle_path()))


@pytest.fixture(scope="module")
def run(
    patient: Anatomy, scan: Painted, pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Findings]:
    folder = tmp_path_factory.mktemp("study")
    write_patient(folder / "case", patient, scan, case_id="case", formats=("dicom",))
    findings = pipeline.segment(folder / "case" / "dicom", folder / "out")
    return folder, findings


def test_regression_the_shipped_model_finds_liver_and_tumor(run, patient, scan):
    folder, findings = run
    predicted = read_label(folder / "out" / "segmentation.nii.gz")
    score = score_case("case", predicted.array, scan.label, patient.spacing_mm)
    assert score.structures["liver"].overlap.dice > 0.9
    assert score.structures["tumor"].overlap.dice > 0.5
    assert findings.liver_ml == pytest.approx(patient.liver.sum() * 0.045, rel=0.15)


def test_closed_form_a_run_leaves_every_file_on_the_source_voxels(run, patient):
    folder, findings = run
    out = folder / "out"
    assert {p.name for p in out.iterdir()} == LEAVES
    assert list((out / "overlay").glob("*.png"))
    for name in ("segmentation.nii.gz", "lesions.nii.gz"):
        assert read_label(out / name).grid.is_close(grid_of(patient))
    written = json.loads((out / "findings.json").read_text())
    assert written == json.loads(findings.model_dump_json())
    with (out / "lesions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(r["volume_ml"]) for r in rows] == [v["volume_ml"] for v in written["lesions"]]
    ids = read_label(out / "lesions.nii.gz").array
    assert set(np.unique(ids)) - {0} == {v["id"] for v in written["lesions"]}
    assert json.loads((out / "run.json").read_text())["hashes"]["model"]


def test_property_a_mirrored_and_turned_series_gives_the_same_masks(run, patient, scan, pipeline):
    """The same patient stored with other axes: masks lie on those voxels, in the same places."""
    folder, findings = run
    grid = grid_of(patient)
    turned = scan.hu["PV"].transpose(0, 2, 1)[::-1, :, ::-1]
    columns = grid.matrix[:, [0, 2, 1]] * [-1, 1, -1]
    corner = grid.index_to_world(np.array([grid.shape[0] - 1.0, grid.shape[1] - 1.0, 0.0]))
    other = Grid(
        turned.shape,
        (grid.spacing_mm[0], grid.spacing_mm[2], grid.spacing_mm[1]),
        tuple(float(v) for v in corner),
        tuple(float(v) for v in columns.ravel()),
    )
    back, back_grid = canonical(turned, other)
    assert back_grid.is_close(grid)
    assert np.array_equal(back, scan.hu["PV"])
    write_nifti(folder / "pv.nii.gz", scan.hu["PV"], grid)
    write_nifti(folder / "turned.nii.gz", turned, other)
    for name in ("pv", "turned"):
        pipeline.segment(None, folder / name, stated={Phase.PV: folder / f"{name}.nii.gz"})
    plain = read_label(folder / "pv" / "segmentation.nii.gz")
    mirrored = read_label(folder / "turned" / "segmentation.nii.gz")
    assert mirrored.grid.is_close(other)
    assert np.array_equal(canonical(mirrored.array, mirrored.grid)[0], plain.array)
    assert findings.reference == "PV"


def test_closed_form_a_study_without_a_liver_is_refused_and_leaves_nothing(
    scan, patient, pipeline, tmp_path
):
    above = int(np.flatnonzero(patient.liver.any(axis=(1, 2)))[-1]) + 2
    chest = np.concatenate([scan.hu["PV"][above:][::turn] for turn in (1, -1)])
    assert chest.shape[0] >= 8
    grid = Grid.axial(chest.shape, patient.spacing_mm)
    write_nifti(tmp_path / "chest.nii.gz", chest, grid)
    with pytest.raises(InputRefused) as refusal:
        pipeline.segment(tmp_path / "chest.nii.gz", tmp_path / "out")
    assert refusal.value.code == "E_NO_LIVER"
    assert {p.name for p in tmp_path.iterdir()} == {"chest.nii.gz"}


def test_property_a_phase_less_still_works_and_is_said(run, scan, patient, pipeline, tmp_path):
    grid = grid_of(patient)
    for phase in ("NC", "PV"):
        write_nifti(tmp_path / f"{phase.lower()}.nii.gz", scan.hu[phase], grid)
    findings = pipeline.segment(tmp_path, tmp_path / "out")
    assert [p.phase for p in findings.phases] == ["NC", "PV"]
    assert all(set(lesion.hu) == {"NC", "PV"} for lesion in findings.lesions)
