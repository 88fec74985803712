"""Faults while a study is segmented, one test or more a case of `docs/hazards.md`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from tiny_training import ROOT, tiny_recipe

from aligned_cases import aligned_study
from fake_systems import Echo, spec_2d, spec_3d
from hepar.cli import main
from hepar.data.phantoms import grid_of
from hepar.errors import HeparError, InputRefused, ModelIntegrityError, ResourceExhausted
from hepar.evaluate.sources import find_sources
from hepar.geometry import Grid
from hepar.infer import sweep as sweep_module
from hepar.infer import tiling as tiling_module
from hepar.infer.bundle import Bundle, default_bundle_path, load_bundle
from hepar.infer.network import Network
from hepar.infer.tiling import Tiling, predict
from hepar.io.nifti import write_nifti
from hepar.io.stale import set_aside
from hepar.phantom.anatomy import anatomy
from hepar.phantom.scanner import paint
from hepar.pipeline import Pipeline
from hepar.stages.harmonize import harmonize
from hepar.stages.liver import find_liver
from hepar.stages.phases import assign_phases
from hepar.stages.read import read_study
from hepar.stages.register import register
from hepar.stages.report import RESULTS
from hepar.stages.tumor import find_lesions
from hepar.study import AlignedStudy, Phase
from hepar.systems.table import build

SEED = 920_006
SPACING = (2.0, 1.0, 1.0)
# Of the liver and the tumor, where windows had to be cut: the networks normalize over a window.
# Measured 0.9875 and 0.9587; halves instead of three quarters gave a tumor of 0.9189.
LASTING_DICE = (0.98, 0.93)
MIB = 1 << 20


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(default_bundle_path())


@pytest.fixture(scope="module")
def patient() -> tuple[np.ndarray, np.ndarray, Grid]:
    """HU of the portal venous phase, the true liver, and where they lie."""
    body = anatomy(SEED, spacing_mm=(5.0, 3.0, 3.0))
    return paint(body, SEED).hu["PV"], body.liver, grid_of(body)


@pytest.fixture(scope="module")
def aligned(patient) -> AlignedStudy:
    hu, _, grid = patient
    return aligned_study({"PV": hu}, grid)


def label_of(bundle: Bundle, aligned: AlignedStudy, tiling: Tiling) -> tuple[np.ndarray, tuple]:
    """What the two networks make of a study, and every warning."""
    case = find_liver(aligned, bundle.model("liver"), tiling=tiling)
    refined, lesions = find_lesions(case, bundle.model("tumor"), tiling=tiling)
    return lesions.label, refined.warnings + lesions.warnings


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def cylinder(radius_mm: float, hu: float, *, bone_mm: float = 0, fat_mm: float = 0) -> np.ndarray:
    """A cylinder of one tissue along z with noise, in a ring of bone and one of fat."""
    _, y, x = np.indices((50, 128, 128))
    far_mm = np.hypot((y - 64) * 2.5, (x - 64) * 2.5)
    image = np.where(far_mm < radius_mm, hu, -1000.0)
    image[(far_mm < radius_mm) & (far_mm > radius_mm - bone_mm)] = 1000
    image[(far_mm >= radius_mm) & (far_mm < radius_mm + fat_mm)] = -100
    image += np.random.default_rng(0).normal(0, 8, image.shape)
    return np.clip(np.rint(image), -1024, 3000).astype(np.int16)


OBJECTS = {
    "head": lambda: cylinder(90, 40, bone_mm=8),
    "head in skin": lambda: cylinder(85, 40, bone_mm=8, fat_mm=5),
    "leg": lambda: cylinder(70, 60, fat_mm=12),
    "water": lambda: cylinder(110, 0),
    "large and fat": lambda: cylinder(130, 60, fat_mm=20),
}


@pytest.mark.parametrize("name", list(OBJECTS))
def test_property_IN01_an_object_without_a_liver_is_refused(name, tmp_path, capsys):
    hu = OBJECTS[name]()
    write_nifti(tmp_path / "scan.nii.gz", hu, Grid.axial(hu.shape, (4.0, 2.5, 2.5)))
    code, out, err = run(
        capsys, "segment", tmp_path / "scan.nii.gz", "-o", tmp_path / "out", "-q", "-d", "cpu"
    )
    assert (code, out) == (10, "")
    assert "E_NO_LIVER" in err
    assert [p.name for p in tmp_path.iterdir()] == ["scan.nii.gz"]


def test_property_IN01_air_is_refused_before_a_network_runs(patient, tmp_path, capsys):
    hu, _, grid = patient
    write_nifti(tmp_path / "scan.nii.gz", np.full_like(hu, -1000), grid)
    code, _, err = run(capsys, "segment", tmp_path / "scan.nii.gz", "-o", tmp_path / "out", "-q")
    assert code == 10
    assert "E_HU_IMPLAUSIBLE" in err
    assert [p.name for p in tmp_path.iterdir()] == ["scan.nii.gz"]


ERRORS = {
    "cuda": torch.cuda.OutOfMemoryError("CUDA out of memory"),
    "cpu": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    "numpy": MemoryError(),
}


def ends_memory(patch: pytest.MonkeyPatch, error: BaseException, at: int, most: int = 0) -> list:
    """Memory ends at the n-th piece, and on every larger one than `most` voxels; 0 for none."""
    decode, sizes = Network._decode, []

    def limited(self, image, present):
        sizes.append(int(np.prod(image.shape[3:])) * image.shape[0])
        if len(sizes) == at + 1 or 0 < most < sizes[-1]:  # the first only measures the cost
            raise error
        return decode(self, image, present)

    patch.setattr(Network, "_decode", limited)
    return sizes


@pytest.mark.parametrize("kind", list(ERRORS))
def test_property_IN03_windows_are_halved_where_memory_ends(kind, monkeypatch):
    hu = np.random.default_rng(0).integers(-50, 150, (24, 40, 48)).astype(np.int16)
    system = Echo(spec_3d(patch=(16, 32, 32)))
    told: list[str] = []
    settings = Tiling(budget_bytes=1, warn=told.append)
    whole = predict(system, {"PV": hu}, SPACING, tiling=settings)
    assert not told
    with monkeypatch.context() as patch:
        ends_memory(patch, ERRORS[kind], 3)
        found = predict(system, {"PV": hu}, SPACING, tiling=settings)
    np.testing.assert_allclose(found, whole, atol=1e-5)
    assert [w.split(":")[0] for w in told] == ["W_MEMORY"]
    with monkeypatch.context() as patch:
        sizes = ends_memory(patch, ERRORS[kind], 3, most=5000)
        found = predict(system, {"PV": hu}, SPACING, tiling=settings)
    np.testing.assert_allclose(found, whole, atol=1e-5)
    assert sum(size > 5000 for size in sizes) <= 8  # two attempts a size, not two a piece
    assert len(told) == 2


@pytest.mark.parametrize("kind", list(ERRORS))
def test_property_IN03_batches_are_halved_where_memory_ends(kind, monkeypatch):
    shape = (20, 16, 16)
    hu = np.random.default_rng(1).integers(-50, 150, shape).astype(np.int16)
    liver, system, told = np.ones(shape, bool), Echo(spec_2d()), []
    settings = Tiling(warn=told.append)
    whole = predict(system, {"PV": hu}, SPACING, liver=liver)
    with monkeypatch.context() as patch:
        sizes = ends_memory(patch, ERRORS[kind], 99, most=3 * 256)
        found = predict(system, {"PV": hu}, SPACING, liver=liver, tiling=settings)
    np.testing.assert_array_equal(found, whole)
    assert max(sizes) == 20 * 256
    assert sizes.count(2 * 256) == 10
    assert len(told) == 1
    assert "nothing changed" in told[0]


@pytest.mark.parametrize("dims", [2, 3])
def test_property_IN03_only_the_smallest_piece_is_a_refusal(dims, monkeypatch):
    shape = (12, 24, 24)
    hu = np.zeros(shape, np.int16)
    system = Echo(spec_2d() if dims == 2 else spec_3d())
    sizes = ends_memory(monkeypatch, ERRORS["cuda"], 1, most=1)
    with pytest.raises(ResourceExhausted) as caught:
        predict(system.train(), {"PV": hu}, SPACING, liver=np.ones(shape, bool))
    assert (caught.value.code, caught.value.exit_code) == ("E_MEMORY", 12)
    assert system.training
    assert sizes


def test_property_IN03_another_runtime_error_is_not_taken_for_memory():
    class Broken(Echo):
        def forward(self, image, present):
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        predict(Broken(spec_3d()), {"PV": np.zeros((8, 8, 8), np.int16)}, SPACING)


def test_property_IN03_the_cpu_takes_over_from_an_accelerator(monkeypatch):
    """The device `meta` stands for one: it has no memory at all."""

    class Stays(Echo):
        def to(self, device):
            return self

    hu = np.random.default_rng(0).integers(-50, 150, (24, 40, 48)).astype(np.int16)
    settings = {"budget_bytes": 1, "overlap": 0.5}
    whole = predict(Echo(spec_3d()), {"PV": hu}, SPACING, tiling=Tiling(**settings))
    decode, told, devices = Network._decode, [], []

    def limited(self, image, present):
        devices.append(image.device.type)
        if image.device.type != "cpu":
            raise ERRORS["cuda"]
        return decode(self, image, present)

    monkeypatch.setattr(Network, "_decode", limited)
    tiling = Tiling(**settings, device="meta", warn=told.append)
    found = predict(Stays(spec_3d()), {"PV": hu}, SPACING, tiling=tiling)
    np.testing.assert_array_equal(found, whole)
    assert devices.count("meta") == 2
    assert len(told) == 1
    assert "the CPU took over" in told[0]


@pytest.mark.full
@pytest.mark.parametrize(
    ("lasting", "least"), [(False, (1.0, 1.0)), (True, LASTING_DICE)], ids=["once", "lasting"]
)
def test_regression_IN03_the_shipped_networks_finish(lasting, least, bundle, aligned, monkeypatch):
    """Memory that ends at the first piece; and windows that never fit, at 0.6 of their size."""
    settings = Tiling(budget_bytes=64 * MIB)
    whole, warnings = label_of(bundle, aligned, settings)
    assert not [w for w in warnings if w.startswith("W_MEMORY")]
    decode, sizes, failed = Network._decode, {}, []

    def ends(self, image, present):
        seen = sizes.setdefault(id(self.module), [])
        seen.append(image.numel())
        # The first only measures the cost, the second is a whole window.
        if len(seen) > 1 and (seen[-1] > 0.6 * seen[1] if lasting else len(seen) == 2):
            failed.append(1)
            raise ERRORS["cpu"]
        return decode(self, image, present)

    monkeypatch.setattr(Network, "_decode", ends)
    found, warnings = label_of(bundle, aligned, settings)
    assert len(failed) >= 2
    assert [w for w in warnings if w.startswith("W_MEMORY")]
    scores = dice(found > 0, whole > 0), dice(found == 2, whole == 2)
    print(f"IN03 {'lasting' if lasting else 'once'}: Dice liver {scores[0]:.5f}, {scores[1]:.5f}")
    assert scores[0] >= least[0]
    assert scores[1] >= least[1]


@pytest.mark.parametrize("dims", [2, 3])
def test_property_IN04_an_output_that_is_not_finite_is_refused(dims):
    system = Echo(spec_2d() if dims == 2 else spec_3d())
    with torch.no_grad():
        system.weight[0] = float("nan")
    hu = np.full((8, 16, 16), 50, np.int16)
    with pytest.raises(ModelIntegrityError) as caught:
        predict(system, {"PV": hu}, SPACING, liver=np.ones(hu.shape, bool))
    assert (caught.value.code, caught.value.exit_code) == ("E_NONFINITE_OUTPUT", 13)


@pytest.mark.parametrize("part", ["liver", "tumor"])
def test_property_IN04_nothing_is_written(part, patient, tmp_path):
    hu, _, grid = patient
    write_nifti(tmp_path / "pv.nii.gz", hu, grid)
    fresh = load_bundle(default_bundle_path())
    with torch.no_grad():
        next(iter(fresh.model(part).system.parameters())).view(-1)[0] = float("nan")
    with pytest.raises(ModelIntegrityError) as caught:
        Pipeline(fresh).segment(None, tmp_path / "out", stated={Phase.PV: tmp_path / "pv.nii.gz"})
    assert caught.value.code == "E_NONFINITE_OUTPUT"
    assert [p.name for p in tmp_path.iterdir()] == ["pv.nii.gz"]


def damaged_model(folder: Path, part: str, at: float) -> Path:
    shutil.copytree(default_bundle_path(), folder)
    path = folder / part / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 1
    path.write_bytes(bytes(data))
    return folder


@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("part", ["liver", "tumor", "diagnose"])
def test_property_IN05_a_flipped_byte_of_the_weights_is_refused(part, at, tmp_path, capsys):
    model = damaged_model(tmp_path / "model", part, at)
    write_nifti(tmp_path / "a.nii.gz", np.zeros((4, 4, 4), np.int16), Grid.axial((4,) * 3, SPACING))
    code, out, err = run(
        capsys, "segment", tmp_path / "a.nii.gz", "-o", tmp_path / "out", "--model", model, "-q"
    )
    assert (code, out) == (13, "")
    assert "E_MODEL_HASH" in err
    assert f"{part}/weights.safetensors" in err
    assert not (tmp_path / "out").exists()


def contents(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def earlier_results(out: Path) -> dict[str, bytes]:
    for name in RESULTS:
        path = out / name if name != "overlay" else out / name / "lesion-1.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"earlier {name}")
    return contents(out)


def test_property_IN06_a_failed_run_never_shows_earlier_results(tmp_path, capsys, caplog):
    out = tmp_path / "out"
    before = earlier_results(out)
    (out / "notes.txt").write_text("the user's own")
    model = damaged_model(tmp_path / "model", "tumor", 0.5)
    write_nifti(tmp_path / "a.nii.gz", np.zeros((4, 4, 4), np.int16), Grid.axial((4,) * 3, SPACING))
    arguments = ("segment", tmp_path / "a.nii.gz", "-o", out, "--model", model, "-q")
    for _ in range(2):  # the second failure finds nothing left to move
        code, _, err = run(capsys, *arguments)
        assert (code, "E_MODEL_HASH" in err) == (13, True)
        assert "E_STALE" in caplog.text
        assert sorted(p.name for p in out.iterdir()) == ["notes.txt", "stale"]
        (place,) = (out / "stale").iterdir()
        kept = contents(place)
        why = json.loads(kept.pop("why.json"))
        assert (why["code"], kept) == ("E_STALE", before)
        assert "E_MODEL_HASH" in why["message"]
    with pytest.raises(HeparError):  # and no score is made of them
        find_sources(out)


@pytest.mark.full
def test_property_IN06_a_refused_study_counts_too(tmp_path, patient, bundle):
    hu, _, grid = patient
    out = tmp_path / "out"
    write_nifti(tmp_path / "pv.nii.gz", hu, grid)
    pipeline, stated = Pipeline(bundle), {Phase.PV: tmp_path / "pv.nii.gz"}
    pipeline.segment(None, out, stated=stated, probabilities=True)
    good = contents(out)
    air = np.full_like(hu, -1000)
    write_nifti(tmp_path / "air.nii.gz", air, grid)
    with pytest.raises(InputRefused):
        pipeline.segment(tmp_path / "air.nii.gz", out)
    (place,) = (out / "stale").iterdir()
    assert {name: data for name, data in contents(place).items() if name != "why.json"} == good
    pipeline.segment(None, out, stated=stated)
    asked_for = ("tumor_prob", "uncertainty", "seg.dcm", "sr.dcm", "viewer.html")
    unwritten = {p for p in RESULTS if p.startswith(asked_for)}
    assert set(RESULTS) - {p.name for p in out.iterdir()} == unwritten
    pipeline.segment(None, out, stated=stated)  # supersedes the one before, not the stale one
    assert [p.name for p in (out / "stale").iterdir()] == [place.name]


def test_property_IN06_a_success_removes_what_it_supersedes(tmp_path):
    earlier_results(tmp_path)
    with set_aside(tmp_path, RESULTS):
        (tmp_path / "findings.json").write_text("new")
    assert contents(tmp_path) == {"findings.json": b"new"}
    assert [p.name for p in tmp_path.iterdir()] == ["findings.json"]


def test_property_IN06_a_killed_run_shows_nothing_and_loses_nothing(tmp_path):
    before = earlier_results(tmp_path)
    code = (
        "import os, signal, sys; from hepar.io.stale import set_aside\n"
        "with set_aside(sys.argv[1], sys.argv[2:]): os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), *RESULTS],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert [p.name for p in tmp_path.iterdir()] == ["stale"]
    (place,) = (tmp_path / "stale").iterdir()
    kept = contents(place)
    assert "has not finished" in kept.pop("why.json").decode()
    assert kept == before


@pytest.mark.full
def test_regression_IN08_repeats_threads_and_the_order_of_windows(bundle, aligned, monkeypatch):
    settings = Tiling(budget_bytes=64 * MIB)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first, *again = (label_of(bundle, aligned, settings)[0] for _ in range(3))
        assert all(np.array_equal(first, other) for other in again)
        torch.set_num_threads(2)
        two = label_of(bundle, aligned, settings)[0]
        torch.set_num_threads(1)
        with monkeypatch.context() as patch:
            order = sweep_module.product
            patch.setattr(sweep_module, "product", lambda *axes: reversed(list(order(*axes))))
            backwards = label_of(bundle, aligned, settings)[0]
    finally:
        torch.set_num_threads(threads)
    body = first > 0
    for other in (two, backwards):
        differ = np.count_nonzero(first != other) / np.count_nonzero(body | (other > 0))
        print(f"IN08 share of the liver's voxels that differ: {differ:.2e}")
        assert differ <= 1e-4


def test_regression_IN08_slices_one_or_four_at_a_time():
    torch.manual_seed(0)
    system = build(tiny_recipe().system).eval()
    rng = np.random.default_rng(0)
    hu = {p: rng.integers(-50, 150, (12, 32, 32)).astype(np.int16) for p in ("ART", "PV")}
    liver = np.ones((12, 32, 32), bool)
    decode, sizes = Network._decode, []

    def counted(self, image, present):
        sizes.append(len(image))
        return decode(self, image, present)

    def at_most(count: int) -> np.ndarray:
        sizes.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Network, "_decode", counted)
            patch.setattr(Network, "cost_bytes", lambda *_: 1.0)
            patch.setattr(tiling_module, "padded_size", lambda *_: 1)
            found = predict(system, hu, (8.0, 5.0, 5.0), liver=liver, tiling=Tiling(count))
        assert sizes == [count] * (12 // count)
        return found[-1]

    one, four = at_most(1), at_most(4)
    threshold = float(np.median(one))
    assert ((one > threshold) == (four > threshold)).mean() >= 0.9999
    np.testing.assert_allclose(one, four, atol=1e-5)


def blobs(liver: np.ndarray, grid: Grid, share: float) -> np.ndarray:
    field = np.random.default_rng(3).normal(size=liver.shape)
    field = ndimage.gaussian_filter(field, [6 / s for s in grid.spacing_mm])
    return liver & (field > np.quantile(field[liver], 1 - share))


def strange(name: str, patient) -> np.ndarray:
    hu, liver, grid = patient
    rng = np.random.default_rng(0)
    made = {
        "noise": lambda: rng.normal(0, 300, hu.shape),
        "weak noise": lambda: rng.normal(0, 100, hu.shape),
        "inverted": lambda: -hu.astype(float),
        "inverted, shifted": lambda: 100.0 - hu,
        "low dose": lambda: hu + rng.normal(0, 80, hu.shape),
        "Lipiodol, 1 % at +400 HU": lambda: hu + 400.0 * blobs(liver, grid, 0.01),
        "Lipiodol, 5 % at +800 HU": lambda: hu + 800.0 * blobs(liver, grid, 0.05),
        "dense liver": lambda: hu + 250.0 * liver,
        "100 HU too low": lambda: hu - 100.0,
        "200 HU too high": lambda: hu + 200.0,
        "water": lambda: cylinder(110, 0),
    }[name]()
    return np.clip(np.rint(made), -1024, 32767).astype(np.int16)


@pytest.mark.parametrize(
    "name",
    [
        *("noise", "weak noise", "inverted", "inverted, shifted", "low dose", "dense liver"),
        *("Lipiodol, 1 % at +400 HU", "Lipiodol, 5 % at +800 HU"),
        *("100 HU too low", "200 HU too high", "water"),
    ],
)
def test_regression_IN09_what_no_network_was_made_for_is_warned_of(name, patient, bundle):
    hu = strange(name, patient)
    grid = Grid.axial(hu.shape, patient[2].spacing_mm)
    verdict = judged(aligned_study({"PV": hu}, grid), bundle)
    assert verdict == "E_NO_LIVER" if name == "water" else verdict in ("E_NO_LIVER", "W_OOD")


def judged(study: AlignedStudy, bundle: Bundle) -> str:
    """`E_NO_LIVER`, `W_OOD`, or nothing said."""
    try:
        case = find_liver(study, bundle.model("liver"))
    except InputRefused as refusal:
        return refusal.code
    return "W_OOD" if any(w.startswith("W_OOD: ") for w in case.warnings) else ""


@pytest.mark.full
@pytest.mark.parametrize("patients", [2, 20], ids=["two", "twenty"])
def test_regression_IN09_phantom_patients_are_not_warned_of(patients, bundle):
    for seed in range(700_000, 700_000 + patients):
        body = anatomy(seed, spacing_mm=(5.0, 3.0, 3.0))
        study = aligned_study(dict(paint(body, seed).hu), grid_of(body))
        assert judged(study, bundle) == "", seed


@pytest.mark.parametrize(
    "name",
    [
        "kits_00072_arterial_partial/series.tar.xz",
        "acrin_flt_breast_001_abdomen/series.tar.gz",
        "totalsegmentator_example_ct/example_ct_sm.nii.gz",
        "totalsegmentator_example_ct_dicom",
    ],
)
def test_regression_IN09_real_scans_are_not_warned_of(name, real_data, bundle, tmp_path):
    source = real_data / name
    if not source.exists():
        pytest.skip(f"{source} is not here")
    if ".tar" in name:
        with tarfile.open(source) as archive:
            archive.extractall(tmp_path, filter="data")
        source = tmp_path
    assert judged(register(harmonize(assign_phases(read_study(source)))), bundle) == ""


def test_property_IN09_the_warning_is_a_finding(patient, bundle, tmp_path):
    """It is in findings.json and on the page, where the reader of the masks sees it."""
    hu, liver, grid = patient
    dense = np.clip(hu + 800 * blobs(liver, grid, 0.05), -1024, 3000).astype(np.int16)
    write_nifti(tmp_path / "pv.nii.gz", dense, grid)
    findings = Pipeline(bundle).segment(
        None, tmp_path / "out", stated={Phase.PV: tmp_path / "pv.nii.gz"}
    )
    assert any(w.startswith("W_OOD") for w in findings.warnings)
    assert "W_OOD" in (tmp_path / "out" / "report.html").read_text()
