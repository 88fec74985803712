"""The organs around the liver, found by the shipped coarse network on a synthetic patient."""

from __future__ import annotations

import numpy as np
import pytest

from fake_systems import Echo, spec_3d
from hepar.data.phantoms import grid_of
from hepar.geometry import Grid, uncanonical
from hepar.infer.bundle import Model, default_bundle_path, load_bundle
from hepar.infer.organs import Organs, find_organs
from hepar.phantom.anatomy import anatomy
from hepar.phantom.scanner import paint
from hepar.phantom.tissue import Tissue
from hepar.resampling import resample
from hepar.study import Volume

PARTS = {
    "liver": (Tissue.LIVER, Tissue.PERFUSION, Tissue.HEPATIC_VEIN, Tissue.PORTAL_VEIN),
    "spleen": (Tissue.SPLEEN,),
    "kidney": (Tissue.KIDNEY_CORTEX, Tissue.KIDNEY_MEDULLA),
}


@pytest.fixture(scope="module")
def model() -> Model:
    return load_bundle(default_bundle_path()).model("liver")


@pytest.fixture(scope="module")
def patient() -> tuple[dict[str, Volume], Volume]:
    body = anatomy(980_900, spacing_mm=(5.0, 3.0, 3.0))
    grid = grid_of(body)
    scan = paint(body, 980_900, phases=("NC", "PV"))
    return {p: Volume(hu, grid) for p, hu in scan.hu.items()}, Volume(body.tissue, grid)


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


@pytest.mark.parametrize("phase", ["NC", "PV"])
def test_oracle_organs_are_where_the_phantom_has_them(patient, model, phase) -> None:
    volumes, truth = patient
    found = find_organs(volumes[phase], model)
    tissue = resample(truth.array, truth.grid, found.grid, order=0)
    for name, codes in PARTS.items():
        assert _dice(found.mask(name), np.isin(tissue, [int(c) for c in codes])) > 0.7, name


def test_property_orientation_of_the_scan_does_not_matter(patient, model) -> None:
    volume = patient[0]["PV"]
    axial = find_organs(volume, model)
    # Slices from head to feet, rows to the right.
    z, y, _ = volume.grid.shape
    corner = volume.grid.index_to_world(np.array([z - 1.0, y - 1.0, 0.0]))
    flipped = Grid(
        volume.grid.shape,
        volume.grid.spacing_mm,
        (float(corner[0]), float(corner[1]), float(corner[2])),
        (0.0, 0.0, 1.0, 0.0, -1.0, 0.0, -1.0, 0.0, 0.0),
    )
    turned = find_organs(Volume(uncanonical(volume.array, flipped), flipped), model)
    assert turned.grid.is_close(axial.grid)
    for name, mask in axial.masks.items():
        np.testing.assert_array_equal(turned.mask(name), mask)


def test_property_an_organ_without_a_name_is_empty() -> None:
    grid = Grid.axial((8, 16, 16), (5.0, 5.0, 5.0))
    volume = Volume(np.full(grid.shape, 90, np.int16), grid)
    found = find_organs(volume, Model("liver", Echo(spec_3d(spacing_mm=(5.0, 5.0, 5.0))), {}))
    assert isinstance(found, Organs)
    assert set(found.masks) == {"liver"}
    assert found.mask("liver").all()
    assert not found.mask("kidney").any()
