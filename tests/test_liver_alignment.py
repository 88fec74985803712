"""The liver's own alignment: measures with known values, and a gliding liver that it follows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from hepar.geometry import Displacement, Grid
from hepar.stages import alignment, liver_alignment
from hepar.stages.alignment import find_body, judged, working_pair
from hepar.stages.liver_alignment import Livers, Region, refine
from hepar.study import Volume

GRID = Grid.axial((40, 60, 60), (4.0, 4.0, 4.0))
LIVER_MM, RADIUS_MM = np.array([90.0, 110.0, 80.0]), 45.0  # LPS (x, y, z)


@pytest.fixture(autouse=True)
def _small_and_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(alignment, "_WORKING_VOXELS", 60_000)
    monkeypatch.setattr(liver_alignment, "_VOXELS", 30_000)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def ball(shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, GRID.shape), indexing="ij"), axis=-1)
    away = GRID.index_to_world(index.astype(float)) - (LIVER_MM + shift_mm)
    return np.linalg.norm(away, axis=-1) <= RADIUS_MM


def scan(shift_mm: tuple[float, float, float], contrast: float, seed: int) -> Volume:
    """A body that stays, and in it a liver with vessels that glides."""
    rng = np.random.default_rng(seed)
    hu = np.full(GRID.shape, -1000.0)
    hu[:, 6:54, 6:54] = -90.0
    hu[:, 40:48, 26:34] = 300.0
    hu[ball(shift_mm)] = 60.0
    draw = np.random.default_rng(5)
    index = np.stack(np.meshgrid(*map(np.arange, GRID.shape), indexing="ij"), axis=-1)
    world = GRID.index_to_world(index.astype(float))
    for _ in range(12):
        spot = draw.uniform(-26, 26, 3) + LIVER_MM + shift_mm
        hu[np.linalg.norm(world - spot, axis=-1) < 7.0] = 60.0 + contrast
    return Volume(np.rint(hu + rng.normal(0, 8, GRID.shape)).astype(np.int16), GRID)


def region(shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Region:
    return Region(ball(shift_mm), GRID, 60.0)


def livers(shift_mm: tuple[float, float, float], moving_grid: Grid = GRID) -> Livers:
    moving = replace(region(shift_mm), grid=moving_grid)
    scans = scan((0, 0, 0), 60, 1), scan(shift_mm, -40, 2)
    return Livers.of(scans[0], region(), Volume(scans[1].array, moving_grid), moving)


def everywhere(x: float, y: float, z: float) -> Displacement:
    grid = GRID.with_spacing((40.0, 40.0, 40.0))
    field = np.zeros((3, *grid.shape), np.float32)
    field[0], field[1], field[2] = x, y, z
    return Displacement(field, grid)


def test_closed_form_overlap_of_two_balls():
    """Balls of radius r whose centers are d apart share 1 - 3 d / 4 r + d^3 / 16 r^3 of each."""
    d, r = 20.0, RADIUS_MM
    expected = 1 - 3 * d / (4 * r) + d**3 / (16 * r**3)
    pair = livers((0.0, 0.0, d))
    assert pair.fit(None).overlap == pytest.approx(expected, abs=0.02)
    assert pair.fit(everywhere(0, 0, d)).overlap == pytest.approx(1.0, abs=0.01)
    assert pair.fit(everywhere(0, 0, d)).similarity > pair.fit(None).similarity + 0.1


def test_closed_form_coverage_is_the_share_of_the_liver_in_view():
    """A scan that begins at the liver's center shows half of it, and overlap counts there alone."""
    above = replace(GRID, origin_mm=(0.0, 0.0, 80.0))
    scans = scan((0, 0, 0), 60, 1)
    found = Livers.of(
        scans, region(), Volume(scans.array, above), Region(np.roll(ball(), -20, 0), above, 60.0)
    ).fit(None)
    assert found.coverage == pytest.approx(0.5, abs=0.06)
    assert found.overlap == pytest.approx(1.0, abs=0.02)


def test_property_a_liver_that_glides_is_followed_where_the_body_stays():
    shift = (3.0, -2.0, 14.0)
    fixed, moving = scan((0, 0, 0), 60, 1), scan(shift, -40, 2)
    pair = working_pair(fixed, moving, find_body(fixed))
    assert pair is not None
    still = Displacement(np.zeros((3, *pair.grid.shape), np.float32), pair.grid)
    body = judged("identity", pair, still, np.eye(4))
    found = refine(pair, livers(shift), body, np.eye(4), lambda: False)
    assert found is not None
    assert found.method == "identity+liver"
    points = GRID.index_to_world(np.argwhere(ball()).astype(float))
    errors = np.linalg.norm(found.displacement.at(points) - shift, axis=1)
    assert errors.mean() < 2.0  # half a voxel
    assert np.abs(found.displacement.at(np.array([[220.0, 220.0, 80.0]]))).max() < 0.01
    assert found.folding == 0.0
