"""What a run leaves behind, one test or more a case of `docs/hazards.md`."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from canary_study import (
    LESION_MM,
    LIVER_MM,
    SHAPE,
    ball,
    canary_run,
    grid_of,
    hu_at,
    places,
    run,
)

import hepar.io.atomic
import hepar.pipeline
from hepar.errors import ResourceExhausted
from hepar.geometry import flip_lps_ras
from hepar.infer.bundle import default_bundle_path, load_bundle
from hepar.io.atomic import check_writable
from hepar.io.nifti import write_nifti
from hepar.provenance import code_sha256, sha256_file


def stored(path: Path, affine: np.ndarray, order: tuple[int, ...] = (0, 1, 2)) -> Path:
    """The body as a header with this RAS affine `(x, y, z)` stores it."""
    shape = SHAPE[::-1]
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    world = (index @ affine[:3, :3].T + affine[:3, 3]) * [-1, -1, 1]
    made = nib.Nifti1Image(hu_at(world), affine)
    made.set_sform(affine, 1)
    made.set_qform(affine if abs(np.linalg.det(affine[:3, :3])) > 0 else None, 1)
    path.parent.mkdir(exist_ok=True)
    nib.save(made, path)
    return path


def affine_of(turn: str) -> np.ndarray:
    """The RAS affine of the usual grid, turned."""
    affine = flip_lps_ras(grid_of().affine)[:, [2, 1, 0, 3]]
    size = np.array(SHAPE[::-1]) - 1
    if turn == "flipped":
        for axis in (0, 2):
            affine[:3, 3] += affine[:3, axis] * size[axis]
            affine[:3, axis] *= -1
    elif turn == "oblique":
        angle = np.deg2rad(12)
        rotation = np.array(
            [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
        )
        center = affine @ np.array([*(size / 2), 1])
        affine[:3, :3] = rotation @ affine[:3, :3]
        affine[:3, 3] = center[:3] - affine[:3, :3] @ (size / 2)
    return affine


@pytest.mark.parametrize("turn", ["usual", "flipped", "oblique"])
def test_oracle_OU01_masks_lie_on_the_file_they_came_from(tmp_path, turn):
    path = stored(tmp_path / "study" / "pv.nii.gz", affine_of(turn))
    found = run(tmp_path / "out", "segment", path, "-o", tmp_path / "out")
    assert found.code == 0, found.said
    source = nib.load(path)
    for name in ("segmentation.nii.gz", "lesions.nii.gz"):
        made = nib.load(found.out / name)
        assert made.get_data_dtype() == np.uint8
        assert made.shape == source.shape
        for affine in (made.get_sform(), made.get_qform()):
            corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(source.shape) - 1)
            gap = corners @ (affine - source.affine)[:3, :3].T + (affine - source.affine)[:3, 3]
            assert np.abs(gap).max() < 1e-3
        assert np.abs(made.affine - source.affine).max() < 1e-4
        assert int(made.header["sform_code"]) == int(made.header["qform_code"]) == 1
    # In the right place too, not only under the right header.
    label = np.asarray(nib.load(found.out / "segmentation.nii.gz").dataobj)
    index = np.stack(np.meshgrid(*map(np.arange, label.shape), indexing="ij"), axis=-1)
    world = (index @ source.affine[:3, :3].T + source.affine[:3, 3]) * [-1, -1, 1]
    truth = ball(world, LESION_MM, 14)
    assert 2 * (truth & (label == 2)).sum() / (truth.sum() + (label == 2).sum()) > 0.7
    np.testing.assert_array_equal(label > 0, ball(world, LIVER_MM, 50))


def test_oracle_OU01_masks_of_a_sheared_file_lie_on_its_voxels(tmp_path):
    affine = affine_of("usual")
    affine[1, 2] += 1.3
    path = stored(tmp_path / "study" / "pv.nii.gz", affine)
    image = nib.load(path)
    image.set_qform(None, 0)
    nib.save(image, path)
    found = run(tmp_path / "out", "segment", path, "-o", tmp_path / "out", "--probabilities")
    assert found.code == 0, found.said
    assert "W_SHEAR" in found.said
    source = nib.load(path)
    for made in map(nib.load, sorted(found.out.glob("*.nii.gz"))):
        assert made.shape == source.shape
        assert np.abs(made.affine - source.affine).max() < 1e-4
        assert int(made.header["qform_code"]) == 0  # a qform cannot hold it
    label = np.asarray(nib.load(found.out / "segmentation.nii.gz").dataobj)
    index = np.stack(np.meshgrid(*map(np.arange, label.shape), indexing="ij"), axis=-1)
    world = (index @ affine[:3, :3].T + affine[:3, 3]) * [-1, -1, 1]
    liver = ball(world, LIVER_MM, 50)
    assert 2 * (liver & (label > 0)).sum() / (liver.sum() + (label > 0).sum()) > 0.98
    lesions = np.asarray(nib.load(found.out / "lesions.nii.gz").dataobj)
    for lesion in json.loads((found.out / "findings.json").read_text())["lesions"]:
        (low, high), inside = lesion["box_zyx"], np.argwhere(lesion["id"] == lesions.T)
        assert (inside.min(axis=0) >= low).all()
        assert (inside.max(axis=0) < high).all()
        assert (inside.max(axis=0) - inside.min(axis=0) + 3 >= np.subtract(high, low)).all()


def test_property_OU07_every_output_is_tied_to_model_code_settings_and_input():
    out = canary_run().out
    record = json.loads((out / "run.json").read_text())
    findings = json.loads((out / "findings.json").read_text())
    model = load_bundle(default_bundle_path()).sha256
    assert record["hashes"]["model"] == findings["provenance"]["hashes"]["model"] == model
    assert record["code_sha256"] == findings["provenance"]["code_sha256"] == code_sha256()
    assert set(record["hashes"]) == {"model", "settings", "input"}
    assert record["hashes"] == findings["provenance"]["hashes"]
    # Each file is named by its hash; page, masks and JSON name the model themselves.
    left = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} - {"run.json"}
    assert record["files"] == {name: sha256_file(out / name) for name in left}
    page = (out / "report.html").read_text()
    assert all(digest in page for digest in (*record["hashes"].values(), code_sha256()))
    for name in out.glob("*.nii.gz"):
        text = bytes(nib.load(name).header["descrip"]).decode()
        assert model[:16] in text
        assert record["hepar"] in text
    for warning in findings["warnings"]:
        assert warning.split(":")[0] in page


def test_property_OU07_the_digest_of_the_input_tells_studies_apart(tmp_path):
    grid = grid_of()
    hu = hu_at(places(grid))
    digests = []
    for name in ("one", "same", "other"):
        if name == "other":
            hu[0, 0, 0] += 1
        write_nifti(tmp_path / name / "pv.nii.gz", hu, grid)
        found = run(
            tmp_path / f"{name} out", "segment", tmp_path / name, "-o", tmp_path / f"o{name}"
        )
        assert found.code == 0, found.said
        record = json.loads((tmp_path / f"o{name}" / "run.json").read_text())
        digests.append(record["hashes"]["input"])
    assert digests[0] == digests[1] != digests[2]
    with (tmp_path / "oone" / "lesions.csv").open(newline="") as one:
        assert list(csv.DictReader(one))


def _read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if os.getuid() == 0:  # whom no mode stops, but a file system that cannot be written does
        return Path("/proc/hepar-out")
    (tmp_path / "locked").mkdir(mode=0o555)
    return tmp_path / "locked" / "out"


def _full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        hepar.io.atomic.shutil, "disk_usage", lambda path: usage._replace(free=1000)
    )
    return tmp_path / "new" / "out"


def _missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "out"


@pytest.mark.parametrize("place", [_read_only, _full, _missing])
def test_property_OU08_an_output_that_cannot_be_written_is_found_out_first(
    tmp_path, monkeypatch, place
):
    study = tmp_path / "study"
    write_nifti(study / "pv.nii.gz", hu_at(places(grid_of())), grid_of())
    out = place(tmp_path, monkeypatch)
    before = sorted(tmp_path.rglob("*"))

    def too_late(*args: object, **kwargs: object) -> None:
        raise AssertionError("the study was read before the output was tried")

    monkeypatch.setattr(hepar.pipeline, "read_study", too_late)
    found = run(out, "segment", study, "-o", out)
    assert found.code == 12, found.said
    assert "E_OUTPUT_WRITE" in found.said
    assert sorted(tmp_path.rglob("*")) == before


def test_property_OU08_trying_an_output_changes_nothing(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "note").write_text("mine")
    for name in ("there", "new/deep/out"):
        check_writable(tmp_path / name)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["note", "there"]
    (tmp_path / "x").write_text("")
    with pytest.raises(ResourceExhausted):
        check_writable(tmp_path / "x" / "out")
