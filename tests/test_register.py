"""Registration: known displacements are found, aligned pairs stay, garbage is rejected."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from scipy import ndimage

from hepar.geometry import Displacement, Grid, canonical
from hepar.resampling import resample
from hepar.stages import alignment
from hepar.stages.estimates import deform
from hepar.stages.harmonize import harmonize
from hepar.stages.register import register
from hepar.study import AlignedStudy, Phase, PhasedStudy, Study, Volume

GRID = Grid.axial((48, 64, 64), (4.0, 4.0, 4.0), (-120.0, -90.0, -300.0))


@pytest.fixture(autouse=True)
def _small_working_grid(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Registration at 5 mm and on one thread: a second instead of ten."""
    monkeypatch.setattr(alignment, "_WORKING_VOXELS", 100_000)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class _Ellipsoid:
    center: tuple[float, float, float]
    radii: tuple[float, float, float]
    hu: dict[str, float]

    def holds(self, points: np.ndarray) -> np.ndarray:
        """Which `(z, y, x)` index points lie inside."""
        scaled = (points - np.asarray(self.center)) / np.asarray(self.radii)
        return (scaled**2).sum(axis=-1) <= 1


@cache
def _organs() -> list[_Ellipsoid]:
    """Body, liver, spleen, kidneys, spine, aorta and a cloud of small vessels."""
    rng = np.random.default_rng(3)
    organs = [
        _Ellipsoid((24, 32, 32), (60, 26, 30), {"ART": -90, "PV": -90}),
        _Ellipsoid((24, 32, 32), (60, 23, 27), {"ART": 50, "PV": 60}),
        _Ellipsoid((28, 28, 20), (15, 14, 12), {"ART": 70, "PV": 115}),
        _Ellipsoid((30, 36, 50), (9, 7, 6), {"ART": 140, "PV": 120}),
        _Ellipsoid((16, 40, 22), (8, 5, 5), {"ART": 180, "PV": 160}),
        _Ellipsoid((16, 40, 44), (8, 5, 5), {"ART": 180, "PV": 160}),
        _Ellipsoid((24, 46, 32), (60, 5, 5), {"ART": 250, "PV": 250}),
        _Ellipsoid((24, 38, 34), (60, 2.5, 2.5), {"ART": 300, "PV": 150}),
    ]
    for _ in range(40):
        center = tuple(float(v) for v in rng.uniform((16, 17, 11), (40, 39, 30)))
        radius = float(rng.uniform(1.5, 2.5))
        hu = {"ART": 100.0, "PV": 165.0} if rng.random() < 0.6 else {"ART": 10.0, "PV": 40.0}
        organs.append(_Ellipsoid(center, (radius,) * 3, hu))
    return organs


def _paint(
    phase: str, grid: Grid, displacement: Displacement | None = None, noise: float = 8.0
) -> np.ndarray:
    """HU of the phantom on any grid; a voxel at y shows the anatomy at y + displacement(y)."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    world = grid.index_to_world(index.astype(float))
    if displacement is not None:
        world = world + displacement.at(world)
    points = GRID.world_to_index(world)
    hu = np.full(grid.shape, -1000.0)
    for organ in _organs():
        near = (np.abs(points[..., 0] - organ.center[0]) <= organ.radii[0]).any(axis=(1, 2))
        first, last = np.flatnonzero(near)[[0, -1]] if near.any() else (0, -1)
        part = slice(first, last + 1)
        hu[part][organ.holds(points[part])] = organ.hu[phase]
    hu = ndimage.gaussian_filter(hu, 0.6)
    seed = {"ART": 1, "PV": 2}[phase]
    hu += np.random.default_rng(seed).normal(0, noise, grid.shape)
    return np.rint(hu).clip(-1024, 3071).astype(np.int16)


def _breathing(amplitude_mm: float, shift_mm: tuple[float, float, float]) -> Displacement:
    """A smooth displacement in LPS mm over the phantom."""
    grid = GRID.with_spacing((8.0, 8.0, 8.0))
    rng = np.random.default_rng(11)
    field = np.stack([ndimage.gaussian_filter(rng.normal(size=grid.shape), 4) for _ in range(3)])
    field *= amplitude_mm / np.linalg.norm(field, axis=0).mean()
    field += np.reshape(shift_mm, (3, 1, 1, 1))
    return Displacement(field.astype(np.float32), grid)


def _phased(moving: Volume, fixed: Volume) -> PhasedStudy:
    volumes = {Phase.ART: moving, Phase.PV: fixed}
    grids = {phase: volume.grid for phase, volume in volumes.items()}
    return harmonize(PhasedStudy(volumes, (), Study((), ()), grids))


@cache
def _fixed() -> Volume:
    return Volume(_paint("PV", GRID), GRID)


def _errors_mm(
    monkeypatch: pytest.MonkeyPatch, motion: Displacement, **flags: str
) -> tuple[np.ndarray, np.ndarray, AlignedStudy]:
    """Target registration errors before and after, at points inside the liver."""
    used: list[Displacement | None] = []

    def spy(*args: object, displacement: Displacement | None = None, **kwargs: object) -> object:
        used.append(displacement)
        return resample(*args, displacement=displacement, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("hepar.stages.register.resample", spy)
    aligned = register(_phased(Volume(_paint("ART", GRID, motion), GRID), _fixed()))
    index = np.argwhere(np.ones(GRID.shape, dtype=bool)).astype(float)
    points = GRID.index_to_world(index[_organs()[2].holds(index)])
    truth = np.zeros_like(points)
    for _ in range(30):  # the moving point y that shows the anatomy of x: y + motion(y) = x
        truth = -motion.at(points + truth)
    assert len(used) <= 1, "the moving volume is interpolated once"
    found = used[0].at(points) if used and used[0] is not None else np.zeros_like(points)
    return (
        np.linalg.norm(truth, axis=1),
        np.linalg.norm(truth - found, axis=1),
        aligned,
    )


def test_oracle_known_displacement_is_found_through_changed_contrast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = torch.random.get_rng_state()
    before, after, aligned = _errors_mm(monkeypatch, _breathing(5.0, (2.0, -3.0, 9.0)))
    record = aligned.registration[0]
    assert before.mean() > 8.0
    assert after.mean() < 4.0  # a voxel
    assert np.quantile(after, 0.95) < 6.0  # a voxel and a half
    assert record.method == "convexadam"
    assert record.similarity_after > record.similarity_before + 0.05
    assert record.folding_fraction < 0.01
    assert record.mean_displacement_mm == pytest.approx(before.mean(), rel=0.4)
    assert aligned.warnings == ()
    assert torch.equal(torch.random.get_rng_state(), state), "no global randomness is consumed"


@pytest.mark.parametrize("gone", ["convexAdam", "both"])
def test_fallbacks_when_packages_are_missing(monkeypatch: pytest.MonkeyPatch, gone: str) -> None:
    for name in list(sys.modules):
        if name.startswith("convexAdam"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "convexAdam", None)
    if gone == "both":
        monkeypatch.setitem(sys.modules, "SimpleITK", None)
    before, after, aligned = _errors_mm(monkeypatch, _breathing(0.5, (4.0, -6.0, 10.0)))
    record = aligned.registration[0]
    if gone == "both":
        assert record.method == "identity"
        assert "no registration method is available" in record.reason
        np.testing.assert_array_equal(after, before)
    else:
        assert record.method in {"affine", "rigid"}
        assert after.mean() < 4.0 < before.mean()


def test_convexadam_that_fails_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Displacement:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(alignment, "deform", broken)
    _, after, aligned = _errors_mm(monkeypatch, _breathing(0.5, (4.0, -6.0, 10.0)))
    assert aligned.registration[0].method in {"affine", "rigid"}
    assert after.mean() < 4.0


def test_oracle_convexadam_displacement_is_zyx_voxels_from_fixed_to_moving() -> None:
    """The package's axis order, unit, sign and scale, on which `deform` relies."""
    rng = np.random.default_rng(0)
    texture = ndimage.gaussian_filter(rng.normal(size=(56, 64, 72)), 2.0).astype(np.float32)
    fixed, moving = texture[12:44, 12:52, 12:60], texture[9:41, 14:54, 7:55]
    grid = Grid.axial(fixed.shape, (4.0, 3.0, 2.0))
    filters = list(warnings.filters)
    field = deform(fixed * 100, moving * 100, grid, None).field_mm
    assert list(warnings.filters) == filters, "the package's own filter change is undone"
    inner = field[:, 8:-8, 8:-8, 8:-8].reshape(3, -1)
    # fixed[i] = moving[i + (3, -2, 5)]; LPS (x, y, z) mm.
    np.testing.assert_allclose(np.median(inner, axis=1), (10.0, -6.0, 12.0), atol=0.5)


def test_aligned_pair_is_not_made_worse() -> None:
    moving = Volume(_paint("ART", GRID), GRID)
    aligned = register(_phased(moving, _fixed()))
    record = aligned.registration[0]
    assert record.method == "identity"
    assert aligned.warnings == ()
    np.testing.assert_array_equal(aligned.volumes[Phase.ART].array, moving.array)


@pytest.mark.parametrize("smooth", [0.0, 3.0])
def test_garbage_is_rejected_and_left_at_world_coordinates(smooth: float) -> None:
    noise = np.random.default_rng(5).normal(size=GRID.shape)
    noise = ndimage.gaussian_filter(noise, smooth)
    moving = Volume(np.rint(120 * noise / noise.std()).astype(np.int16), GRID)
    aligned = register(_phased(moving, _fixed()))
    record = aligned.registration[0]
    assert record.method == "rejected"
    assert record.similarity_after == record.similarity_before
    assert [w.split(":")[0] for w in aligned.warnings] == ["W_REG_REJECTED"]
    np.testing.assert_array_equal(aligned.volumes[Phase.ART].array, moving.array)


def test_folding_map_is_rejected_for_the_simpler_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "folding", lambda displacement, body: 0.02)
    moving = Volume(_paint("ART", GRID, _breathing(0.5, (4.0, -6.0, 10.0))), GRID)
    record = register(_phased(moving, _fixed())).registration[0]
    assert record.method == "rejected"
    assert "folds" in record.reason


def test_closed_form_folding_fraction() -> None:
    body = np.ones(GRID.shape, dtype=bool)
    z = np.arange(GRID.shape[0]) * 4.0
    field = np.zeros((3, *GRID.shape), np.float32)
    field[2] = (-1.5 * np.maximum(z - 96.0, 0))[:, None, None]  # upper half: dz'/dz = -0.5
    assert alignment.folding(Displacement(field, GRID), body) == pytest.approx(0.5, abs=0.05)
    assert alignment.folding(Displacement(field * 0.6, GRID), body) == 0.0


def test_flipped_and_oblique_scan_is_aligned_by_world_coordinates() -> None:
    """No registration is left to do after world coordinates; the grids differ in everything."""
    angle = np.deg2rad(12.0)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    # Array axes: Inferior, Right, Anterior, then turned about z.
    matrix = turn @ np.array([[0, -1, 0], [0, 0, -1], [-1, 0, 0]], dtype=float)
    shape, spacing = (60, 84, 84), np.array([3.5, 3.4, 3.4])
    center = GRID.index_to_world((np.asarray(GRID.shape) - 1) / 2)
    origin = center - matrix @ (spacing * (np.asarray(shape) - 1) / 2)
    grid = Grid(shape, tuple(spacing), tuple(origin), tuple(matrix.ravel()))
    moving = Volume(_paint("ART", grid), grid)
    aligned = register(_phased(moving, _fixed()))
    truth = _paint("ART", GRID, noise=0.0)
    inside = ndimage.binary_erosion(truth > -950, iterations=3)
    residual = np.abs(aligned.volumes[Phase.ART].array[inside].astype(float) - truth[inside])
    assert np.median(residual) < 8
    assert aligned.volumes[Phase.ART].grid == aligned.volumes[Phase.PV].grid == aligned.grid
    assert aligned.registration[0].mean_displacement_mm < 2.0
    turned, _ = canonical(moving.array, grid)
    assert not np.array_equal(turned.shape, GRID.shape)


def test_one_phase_passes_untouched() -> None:
    volume = _fixed()
    phased = PhasedStudy({Phase.PV: volume}, (), Study((), ()), {Phase.PV: GRID})
    aligned = register(phased)
    assert aligned.volumes[Phase.PV] is volume
    assert [r.method for r in aligned.registration] == ["reference"]
    assert aligned.source_grid == GRID


def test_partial_coverage_is_said_and_air_outside() -> None:
    cut = Grid.axial((18, 64, 64), GRID.spacing_mm, (-120.0, -90.0, -300.0 + 4.0 * 20))
    moving = Volume(_paint("ART", cut), cut)
    aligned = register(_phased(moving, _fixed()))
    record = aligned.registration[0]
    assert record.coverage == pytest.approx(18 / 48, abs=0.06)
    assert "W_PHASE_COVERAGE" in [w.split(":")[0] for w in aligned.warnings]
    art = aligned.volumes[Phase.ART].array
    assert (art[:14] == -1024).all()
    assert (art[44:] == -1024).all()
    assert np.abs(art[24:34].astype(float) - _paint("ART", GRID)[24:34]).mean() < 40


def test_scans_that_share_nothing_are_rejected() -> None:
    far = Grid.axial((20, 64, 64), GRID.spacing_mm, (-120.0, -90.0, 900.0))
    aligned = register(_phased(Volume(np.zeros(far.shape, np.int16), far), _fixed()))
    assert aligned.registration[0].method == "rejected"
    assert aligned.registration[0].coverage == 0.0
    assert [w.split(":")[0] for w in aligned.warnings] == ["W_REG_REJECTED", "W_PHASE_COVERAGE"]
    assert all("left out" in w for w in aligned.warnings)
    assert set(aligned.volumes) == {Phase.PV}


def test_constant_regions_keep_their_value_exactly() -> None:
    """One linear interpolation of a constant is that constant; an int16 in between would not be."""
    motion = _breathing(4.0, (2.0, 3.0, 8.0))
    moving = _paint("ART", GRID, motion, noise=0.0)
    moving[ndimage.binary_erosion(moving == 50, iterations=1)] = 51
    aligned = register(_phased(Volume(moving, GRID), _fixed()))
    out = aligned.volumes[Phase.ART].array
    assert aligned.registration[0].method == "convexadam"
    assert out.dtype == np.int16
    assert set(np.unique(out)) <= set(range(-1024, int(moving.max()) + 1))
    assert (out == 51).sum() > 0.8 * (moving == 51).sum()
