"""A scan is known again whatever was done to its storage, and no other scan is taken for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hepar.data.cohort import read_cohort
from hepar.data.leakage import Fingerprint, fingerprint, shared_scans, slice_digest
from hepar.geometry import Grid
from hepar.io.nifti import write_nifti
from hepar.study import Volume
from small_cohorts import GRID, SHAPE, small_hu


def printed(hu: np.ndarray, grid: Grid = GRID) -> Fingerprint:
    return fingerprint(Volume(hu, Grid(hu.shape, grid.spacing_mm, grid.origin_mm, grid.direction)))


@given(
    seed=st.integers(0, 5),
    flips=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    offset=st.integers(-200, 2000),
)
def test_property_flips_and_offsets_change_nothing(seed, flips, offset):
    hu = small_hu(seed)
    axes = [axis for axis, flip in enumerate(flips) if flip]
    other = np.flip(hu, axes) + np.int16(offset)
    assert printed(other) == printed(hu)
    assert printed(other).digest == printed(hu).digest


@given(seed=st.integers(0, 5), offset=st.integers(-100, 100))
def test_property_padding_and_clipped_air_change_nothing(seed, offset):
    hu = small_hu(seed)
    padded = hu.copy()
    padded[hu < -900] = -3024
    clipped = np.maximum(hu + np.int16(offset), np.int16(-980))
    assert printed(padded) == printed(hu)
    assert printed(clipped) == printed(hu)


def test_property_spacing_position_and_turns_change_nothing():
    hu = small_hu(1)
    anywhere = Grid.axial(SHAPE, (1.0, 1.0, 1.0))
    assert fingerprint(Volume(hu, anywhere)) == printed(hu)
    assert printed(np.rot90(hu, 1, (1, 2)).copy()) == printed(hu)
    # Stored as sagittal slices, with a header that says so.
    sagittal = Grid(
        (SHAPE[2], SHAPE[0], SHAPE[1]),
        (3.0, 5.0, 3.0),
        GRID.origin_mm,
        (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0),
    )
    assert fingerprint(Volume(hu.transpose(2, 0, 1).copy(), sagittal)) == printed(hu)


@pytest.mark.parametrize("other", [1, 2, 3])
def test_property_other_patients_share_nothing(other):
    assert printed(small_hu(0)).share(printed(small_hu(other))) == 0


def test_property_a_little_noise_is_another_scan_and_a_part_is_the_same():
    hu = small_hu(0)
    noisy = hu + np.random.default_rng(1).integers(-1, 2, SHAPE).astype(np.int16)
    assert printed(noisy).share(printed(hu)) == 0
    assert printed(hu[3:8]).share(printed(hu)) == 1
    changed = hu.copy()
    changed[:4] += np.random.default_rng(2).integers(0, 9, changed[:4].shape).astype(np.int16)
    assert printed(changed).share(printed(hu)) == 0.6


def test_closed_form_what_holds_no_tissue_says_nothing():
    empty = np.full((20, 20), -1024, np.int16)
    assert slice_digest(empty) is None
    assert slice_digest(np.where(np.eye(20) > 0, 50, empty).astype(np.int16)) is None
    few = np.random.default_rng(0).integers(0, 5, (20, 20)).astype(np.int16)
    assert slice_digest(few) is None
    nothing = printed(np.full(SHAPE, -1024, np.int16))
    assert nothing.slices == ()
    assert nothing.share(nothing) == 0


def cohort(folder: Path, scans: dict[str, np.ndarray]) -> Path:
    for name, hu in scans.items():
        write_nifti(folder / f"{name}.nii.gz", hu, GRID)
    lines = [f"{name},{name},{name}.nii.gz" for name in scans]
    path = folder / "cohort.csv"
    path.write_text("\n".join(["case_id,patient_id,pv", *lines]) + "\n")
    return path


def test_closed_form_two_cohorts_that_share_a_scan(tmp_path):
    one = cohort(tmp_path / "one", {"a": small_hu(0), "b": small_hu(1)})
    flipped = np.flip(small_hu(1), (0, 2)) + np.int16(24)
    two = cohort(tmp_path / "two", {"x": small_hu(7), "y": flipped})
    (found,) = shared_scans(read_cohort(one), read_cohort(two))
    assert (found.case, found.phase, found.other_case, found.other_phase) == ("b", "PV", "y", "PV")
    assert found.share == 1.0
    assert shared_scans(read_cohort(one), read_cohort(one)[:0]) == ()
