"""Phases that do not lie where their headers say, one test or more a case of `docs/hazards.md`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch

from hepar.data.phantoms import grid_of
from hepar.geometry import Box, Displacement, Grid
from hepar.infer.bundle import Bundle, default_bundle_path, load_bundle
from hepar.infer.measure import measure_lesion
from hepar.phantom.anatomy import Anatomy, anatomy
from hepar.phantom.scanner import Painted, paint
from hepar.resampling import resample
from hepar.stages import alignment, liver_alignment
from hepar.stages import register as stage
from hepar.stages.liver import find_liver
from hepar.stages.register import register
from hepar.stages.tumor import find_lesions
from hepar.study import (
    AlignedStudy,
    Phase,
    PhasedStudy,
    PhaseReading,
    Series,
    SeriesVerdict,
    Study,
    Volume,
)

SEED = 920_006


@pytest.fixture(autouse=True)
def _small_working_grids(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Registration at 8 mm and on one thread: two seconds instead of twenty."""
    monkeypatch.setattr(alignment, "_WORKING_VOXELS", 30_000)
    monkeypatch.setattr(liver_alignment, "_VOXELS", 20_000)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(default_bundle_path())


@pytest.fixture(scope="module")
def patient() -> Anatomy:
    return anatomy(SEED, spacing_mm=(5.0, 3.0, 3.0))


@pytest.fixture(scope="module")
def scan(patient: Anatomy) -> Painted:
    return paint(patient, SEED, phases=("ART", "PV"))


def study(fixed: Volume, moving: Volume, frames: tuple[str, str] = ("", "")) -> PhasedStudy:
    """A portal venous and an arterial phase, with a frame of reference each where one is named."""
    volumes = {Phase.ART: moving, Phase.PV: fixed}
    series, readings = [], []
    for (phase, volume), frame in zip(volumes.items(), reversed(frames), strict=True):
        verdict = SeriesVerdict(phase.value, phase.value, "usable", "read whole")
        tags = {"FrameOfReferenceUID": frame} if frame else {}
        series.append(Series(volume, verdict, tags))
        readings.append(PhaseReading(phase, 1.0, "stated", phase.value))
    grids = {phase: volume.grid for phase, volume in volumes.items()}
    return PhasedStudy(volumes, tuple(readings), Study(tuple(series), ()), grids)


def codes(aligned: AlignedStudy) -> list[str]:
    return [warning.split(":")[0] for warning in aligned.warnings]


def moved(grid: Grid, x: float, y: float, z: float) -> Grid:
    a, b, c = grid.origin_mm
    return replace(grid, origin_mm=(a + x, b + y, c + z))


def used_map(monkeypatch: pytest.MonkeyPatch) -> list[Displacement | None]:
    """The displacements by which phases are sampled from now on."""
    used: list[Displacement | None] = []

    def spy(*args: object, displacement: Displacement | None = None, **kwargs: object) -> object:
        used.append(displacement)
        return resample(*args, displacement=displacement, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(stage, "resample", spy)
    return used


def test_property_RG01_other_field_spacing_and_matrix_lie_by_world_and_the_rest_is_flagged(
    bundle, patient, scan
):
    """The upper part of the liver only, on finer slices and coarser pixels off the center."""
    grid = grid_of(patient)
    rows = np.flatnonzero(patient.liver.any(axis=(1, 2)))
    first = int(rows[0] + 0.3 * len(rows))
    start = grid.index_to_world(np.array([first, 4.0, 6.0]))
    other = Grid.axial(
        (int((grid.shape[0] - first) * 5 / 4), 55, 68), (4.0, 3.2, 3.3), tuple(map(float, start))
    )
    art = np.rint(resample(scan.hu["ART"], grid, other, fill=-1024)).astype(np.int16)
    aligned = register(
        study(Volume(scan.hu["PV"], grid), Volume(art, other)), bundle.model("liver")
    )
    found, record = aligned.volumes[Phase.ART], aligned.registration[0]
    assert found.grid == aligned.grid == grid
    index = other.world_to_index(
        grid.index_to_world(np.argwhere(np.ones(grid.shape, bool)).astype(float))
    )
    seen = ((index > 0.5) & (index < np.asarray(other.shape) - 1.5)).all(axis=1)
    seen = seen.reshape(grid.shape)
    soft = seen & patient.liver
    far = np.abs(found.array[soft].astype(float) - scan.hu["ART"][soft])
    assert np.median(far) < 15  # noise of one interpolation; tissues differ by more
    share = float((seen & patient.liver).sum() / patient.liver.sum())
    assert 0.5 < share < 0.9
    assert record.liver_coverage == pytest.approx(share, abs=0.08)
    assert "W_PHASE_COVERAGE" in codes(aligned)
    assert f"{100 * record.liver_coverage:.0f} % of the liver" in " ".join(aligned.warnings)
    # Outside the field of view a lesion has no arterial HU at all, instead of that of air.
    below = np.zeros(grid.shape, bool)
    below[: first - 3] = patient.liver[: first - 3]
    volumes = {phase.value: volume.array for phase, volume in aligned.volumes.items()}
    lesion = measure_lesion(1, below, Box.full(grid.shape), grid, volumes, {}, below * 1.0)
    assert set(lesion.hu) == {"PV"}


def test_property_RG01_a_phase_that_misses_most_of_the_liver_is_left_out(bundle, patient, scan):
    grid = grid_of(patient)
    rows = np.flatnonzero(patient.liver.any(axis=(1, 2)))
    last = int(rows[0] + 0.25 * len(rows))
    low = Grid.axial((last, *grid.shape[1:]), grid.spacing_mm, grid.origin_mm)
    aligned = register(
        study(Volume(scan.hu["PV"], grid), Volume(scan.hu["ART"][:last], low)),
        bundle.model("liver"),
    )
    assert set(aligned.volumes) == {Phase.PV}
    assert aligned.registration[0].liver_coverage < 0.5
    note = next(w for w in aligned.warnings if w.startswith("W_PHASE_COVERAGE"))
    assert "left out" in note


def test_property_RG02_a_phase_two_meters_away_is_left_out_and_one_phase_does_the_work(
    bundle, patient, scan
):
    grid = grid_of(patient)
    fixed = Volume(scan.hu["PV"], grid)
    away = Volume(scan.hu["ART"], moved(grid, 0, 0, 2000))
    aligned = register(study(fixed, away), bundle.model("liver"))
    assert codes(aligned) == ["W_REG_REJECTED", "W_PHASE_COVERAGE"]
    assert set(aligned.volumes) == {Phase.PV}
    assert aligned.registration[0].method == "rejected"
    # What follows sees only these volumes: the study is that of the one phase.
    alone = register(PhasedStudy({Phase.PV: fixed}, (), Study((), ()), {Phase.PV: grid}))
    assert aligned.volumes[Phase.PV] is alone.volumes[Phase.PV] is fixed


@pytest.mark.full
def test_property_RG02_the_masks_are_those_of_one_phase(bundle, patient, scan):
    grid = grid_of(patient)
    fixed = Volume(scan.hu["PV"], grid)
    away = Volume(scan.hu["ART"], moved(grid, 0, 0, 2000))
    labels = []
    for volumes in ({Phase.PV: fixed, Phase.ART: away}, {Phase.PV: fixed}):
        grids = {phase: volume.grid for phase, volume in volumes.items()}
        aligned = register(PhasedStudy(volumes, (), Study((), ()), grids), bundle.model("liver"))
        case = find_liver(aligned, bundle.model("liver"))
        labels.append(find_lesions(case, bundle.model("tumor"))[1].label)
    np.testing.assert_array_equal(*labels)
    assert (labels[0] > 0).any()


@pytest.mark.parametrize(
    "axis",
    [pytest.param(0, marks=pytest.mark.full), pytest.param(1, marks=pytest.mark.full), 2],
)
@pytest.mark.parametrize("liver", [True, False])
def test_property_RG04_a_flipped_phase_is_rejected(bundle, patient, scan, axis, liver):
    grid = grid_of(patient)
    fixed = Volume(scan.hu["PV"], grid)
    flipped = Volume(np.ascontiguousarray(np.flip(scan.hu["PV"], axis)), grid)
    aligned = register(study(fixed, flipped), bundle.model("liver") if liver else None)
    record = aligned.registration[0]
    assert record.method == "rejected", record
    assert codes(aligned)[0] == "W_REG_REJECTED"
    assert record.mean_displacement_mm == 0.0
    if Phase.ART in aligned.volumes:
        np.testing.assert_array_equal(aligned.volumes[Phase.ART].array, flipped.array)


def test_closed_form_RG04_a_far_or_folding_map_is_refused():
    """61 mm is no breathing; a Jacobian determinant of -0.5 in the upper half is no anatomy."""
    grid = Grid.axial((24, 24, 24), (5.0, 5.0, 5.0))
    body = np.ones(grid.shape, dtype=bool)
    far = np.zeros((3, *grid.shape), np.float32)
    far[0] = 61.0
    turned = np.zeros_like(far)
    turned[2] = (-1.5 * np.maximum(np.arange(24) * 5.0 - 60.0, 0))[:, None, None]
    volume = Volume(np.zeros(grid.shape, np.int16), grid)
    evidence = stage._Evidence(
        Phase.ART, volume, alignment.Body(body, grid), None, None, 0.2, 1.0, None
    )
    for field, words in ((far, "implausible"), (turned, "folds")):
        displacement = Displacement(field, grid)
        found = alignment.Map(
            "convexadam",
            displacement,
            0.5,
            float(np.linalg.norm(field, axis=0).mean()),
            alignment.folding(displacement, body),
        )
        assert words in str(stage._objection(found, None, evidence))
    fine = alignment.Map("rigid", Displacement(far / 10, grid), 0.5, 6.1, 0.0)
    assert stage._objection(fine, None, evidence) is None


def test_property_RG05_another_frame_of_reference_is_registered_not_assumed(
    bundle, patient, scan, monkeypatch
):
    """The same scanner coordinates 300 mm apart: another frame says nothing, the same one does."""
    grid = grid_of(patient)
    fixed = Volume(scan.hu["PV"], grid)
    shift = np.array([25.0, -40.0, 300.0])
    moving = Volume(scan.hu["ART"], moved(grid, *shift))
    used = used_map(monkeypatch)
    aligned = register(study(fixed, moving, ("1.2.3", "1.2.4")), bundle.model("liver"))
    points = grid.index_to_world(np.argwhere(patient.liver).astype(float))
    found = used[0].at(points)
    errors = np.linalg.norm(found - shift, axis=1)
    assert errors.mean() < 3.0  # a pixel
    assert "frames of reference differ" in aligned.registration[0].reason
    assert aligned.warnings == ()
    same = register(study(fixed, moving, ("1.2.3", "1.2.3")), bundle.model("liver"))
    assert set(same.volumes) == {Phase.PV}


def test_property_RG05_what_cannot_be_registered_between_frames_is_left_out(bundle, patient, scan):
    grid = grid_of(patient)
    noise = np.random.default_rng(1).normal(0, 120, grid.shape)
    moving = Volume(np.rint(noise).astype(np.int16), grid)
    fixed = Volume(scan.hu["PV"], grid)
    apart = register(study(fixed, moving, ("1.2.3", "1.2.4")))
    assert set(apart.volumes) == {Phase.PV}
    assert "frame of reference" in apart.warnings[0]
    assert set(register(study(fixed, moving)).volumes) == {Phase.PV, Phase.ART}


def test_property_RG06_one_and_two_threads_give_the_same_transform(
    bundle, patient, scan, monkeypatch
):
    grid = grid_of(patient)
    phased = study(Volume(scan.hu["PV"], grid), Volume(scan.hu["ART"], moved(grid, 6, -4, 11)))
    used = used_map(monkeypatch)
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    try:
        for threads in (1, 2):
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
            torch.set_num_threads(threads)
            register(phased, bundle.model("liver"))
            assert torch.get_num_threads() == threads
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
    one, two = (np.asarray(field.field_mm, dtype=np.float64) for field in used)
    assert np.abs(one).max() > 5.0
    assert np.abs(one - two).max() <= 1e-6


def test_property_without_time_the_first_map_is_used_and_said(bundle, patient, scan):
    grid = grid_of(patient)
    phased = study(Volume(scan.hu["PV"], grid), Volume(scan.hu["ART"], moved(grid, 6, -4, 11)))
    aligned = register(phased, bundle.model("liver"), budget_s=0.0)
    assert codes(aligned) == ["W_REG_TIME"]
    assert aligned.registration[0].method == "rigid"
    assert aligned.registration[0].liver_overlap_after > 0.9
