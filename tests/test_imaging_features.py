"""Imaging features on painted spheres: what is there is found, what is hidden is not denied."""

from __future__ import annotations

import numpy as np
import pytest

from hepar.geometry import Box, Grid
from hepar.infer.lesion_regions import lesion_regions
from hepar.infer.lesion_view import Measured, visible
from hepar.infer.liver_noise import LiverNoise, liver_noise
from hepar.infer.measure import measure_lesions
from hepar.lesion_evidence import FEATURES, ImagingFeature
from hepar.study import Lesion

LIVER = {"NC": 55.0, "ART": 65.0, "PV": 110.0, "DL": 90.0}
FLAT = dict.fromkeys(LIVER, 40.0)
GRID = Grid.axial((20, 64, 64), (3.0, 1.0, 1.0))
MIDDLE_MM = (30.0, 32.0, 32.0)


def distance_mm(grid: Grid, center_mm: tuple[float, ...]) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    return np.linalg.norm(index * np.array(grid.spacing_mm) - center_mm, axis=-1)


def paint(
    body: dict[str, float],
    *,
    radius_mm: float = 13.0,
    rim: dict[str, float] | None = None,
    rim_mm: float = 3.0,
    grid: Grid = GRID,
    noise_hu: float = 3.0,
    center_mm: tuple[float, ...] = MIDDLE_MM,
    only: tuple[str, ...] = ("NC", "ART", "PV", "DL"),
    organ_mm: float = 200.0,
    misplaced: tuple[str, ...] = (),
    nodules: int = 0,
) -> dict[str, ImagingFeature]:
    """Features of a sphere in a liver: a body, and a rim inside it or the first wedges of one."""
    generator = np.random.default_rng(3)
    away = distance_mm(grid, center_mm)
    lesion = away <= radius_mm
    shell = lesion & (away > radius_mm - rim_mm)
    if nodules:
        rows, columns = np.indices(grid.shape[1:])
        turn = np.arctan2(rows * grid.spacing_mm[1] - center_mm[1], columns - center_mm[2])
        shell &= (np.floor((turn + np.pi) / (2 * np.pi) * 8).astype(int) % 8 < nodules)[None]
    organ = distance_mm(grid, MIDDLE_MM) <= organ_mm
    volumes = {}
    for phase in only:
        hu = np.where(organ, LIVER[phase], -80.0)
        hu[lesion] = body[phase]
        if rim is not None:
            hu[shell] = rim[phase]
        hu += generator.normal(0, noise_hu, grid.shape)
        volumes[phase] = np.rint(hu).astype(np.int16)
    found = measure_lesions(
        lesion.astype(np.uint16),
        organ | lesion,
        grid,
        volumes,
        lesion.astype(np.float32),
        misplaced=misplaced,
    )
    assert tuple(f.name for f in found[0].features) == FEATURES
    return {feature.name: feature for feature in found[0].features}


def present(features: dict[str, ImagingFeature]) -> set[str]:
    return {name for name, feature in features.items() if feature.state == "present"}


HCC = {"NC": 50.0, "ART": 105.0, "PV": 95.0, "DL": 70.0}
METASTASIS = {"NC": 40.0, "ART": 45.0, "PV": 60.0, "DL": 60.0}


@pytest.mark.parametrize(
    ("painted", "expected"),
    [
        ({"body": HCC}, {"nonrim_aphe", "washout"}),
        (
            {"body": HCC, "rim": {**HCC, "PV": 150.0, "DL": 130.0}, "rim_mm": 2.0},
            {"nonrim_aphe", "washout", "capsule"},
        ),
        ({"body": METASTASIS, "rim": {**METASTASIS, "ART": 100.0}}, {"rim_aphe"}),
        (
            {"body": METASTASIS, "rim": {**METASTASIS, "ART": 140.0}, "nodules": 3},
            {"peripheral_nodular"},
        ),
        ({"body": dict.fromkeys(LIVER, 6.0)}, {"fluid"}),
        ({"body": dict.fromkeys(LIVER, 350.0)}, {"calcification"}),
        ({"body": dict(LIVER)}, set()),
    ],
    ids=["hcc", "capsule", "rim", "nodules", "cyst", "calcium", "liver"],
)
def test_closed_form_a_painted_sphere_has_the_features_painted(painted, expected):
    assert present(paint(**painted)) == expected | {"size_10_mm"}


def test_closed_form_numbers_are_the_painted_ones_within_their_uncertainty():
    found = paint(HCC, noise_hu=6.0)
    aphe, washout = found["nonrim_aphe"].numbers, found["washout"].numbers
    assert abs(aphe["art_contrast_hu"] - 40.0) < 3 * aphe["art_contrast_u_hu"] < 6.0
    assert abs(aphe["art_rise_hu"] - 55.0) < 3 * aphe["art_rise_u_hu"] < 8.0
    assert abs(washout["pv_contrast_hu"] + 15.0) < 3 * washout["pv_contrast_u_hu"] < 8.0
    assert abs(washout["dl_contrast_hu"] + 20.0) < 3 * washout["dl_contrast_u_hu"] < 8.0
    size = found["size_10_mm"].numbers
    assert abs(size["long_axis_mm"] - 26.0) < 3 * size["long_axis_u_mm"]


def test_closed_form_what_was_dark_from_the_beginning_does_not_wash_out():
    found = paint(METASTASIS)["washout"]
    assert found.state == "absent"
    assert found.reason == "Darker than the liver by 20 HU from the arterial phase on."


def test_closed_form_what_fills_in_later_was_not_washed_out():
    filling = {"NC": 40.0, "ART": 66.0, "PV": 92.0, "DL": 105.0}
    found = paint(filling)["washout"]
    assert (found.state, found.numbers["pv_contrast_hu"] < -10) == ("absent", True)
    assert paint({**filling, "DL": 85.0})["washout"].state == "present"


def test_closed_form_peripheral_washout_is_none():
    ring = {**LIVER, "ART": 95.0, "PV": 80.0, "DL": 60.0}
    assert paint({**LIVER, "ART": 95.0}, rim=ring)["washout"].state == "absent"


def test_closed_form_missing_phases_are_said_not_denied():
    found = paint(HCC, only=("NC", "PV"))
    for name in ("nonrim_aphe", "rim_aphe", "peripheral_nodular"):
        assert found[name].state == "not_assessable"
        assert found[name].reason == "There is no arterial phase."
    assert found["washout"].reason == "One enhanced phase alone shows no washout."
    assert paint(HCC, only=("NC", "ART"))["capsule"].state == "not_assessable"
    moved = paint(HCC, misplaced=("ART",))["nonrim_aphe"]
    assert (moved.state, moved.reason) == (
        "not_assessable",
        "The arterial phase could not be registered.",
    )


def test_closed_form_a_small_lesion_has_no_rim_to_tell():
    found = paint(METASTASIS, radius_mm=3.0, rim={**METASTASIS, "ART": 100.0}, rim_mm=1.0)
    for name in ("rim_aphe", "capsule", "peripheral_nodular"):
        assert found[name].state == "not_assessable"
        assert "too small" in found[name].reason
    assert found["size_10_mm"].state == "absent"


def test_closed_form_noise_that_could_hide_it_forbids_an_absent():
    """Iso-dense: with quiet images certainly not enhancing, with loud ones nobody knows."""
    same = dict(LIVER)
    assert paint(same, radius_mm=5.0)["nonrim_aphe"].state == "absent"
    loud = paint(same, radius_mm=5.0, noise_hu=300.0)["nonrim_aphe"]
    assert loud.state == "not_assessable"
    assert loud.numbers["art_contrast_u_hu"] > 12.5


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (5.0, 0.7, 0.7), (2.5, 1.2, 0.9)])
def test_property_features_do_not_hang_on_the_voxels(spacing_mm):
    size = tuple(round(d / s) for d, s in zip((60.0, 60.0, 60.0), spacing_mm, strict=True))
    grid = Grid.axial(size, spacing_mm)
    ring = {**HCC, "PV": 150.0, "DL": 130.0}
    found = paint(HCC, rim=ring, rim_mm=2.5, grid=grid, center_mm=(30.0, 30.0, 30.0))
    assert present(found) == {"size_10_mm", "nonrim_aphe", "washout", "capsule"}


def test_closed_form_the_fat_beside_the_liver_is_no_part_of_a_border():
    """Half of the sphere hangs out of the organ; only the half in liver can show a capsule."""
    found = paint(
        HCC,
        rim={**HCC, "PV": 150.0, "DL": 130.0},
        rim_mm=2.0,
        radius_mm=10.0,
        center_mm=(30.0, 32.0, 54.0),
        organ_mm=24.0,
    )
    assert {"nonrim_aphe", "washout", "capsule"} <= present(found)
    plain = paint(HCC, radius_mm=10.0, center_mm=(30.0, 32.0, 54.0), organ_mm=24.0)
    assert plain["capsule"].state == "absent"


def test_oracle_depth_is_the_distance_to_the_nearest_border_pixel():
    generator = np.random.default_rng(0)
    grid = Grid.axial((3, 14, 15), (4.0, 1.5, 1.5))
    mask = generator.random(grid.shape) > 0.45
    mask[:, [0, -1]] = mask[:, :, [0, -1]] = False
    box = Box.around(mask)
    assert box is not None
    found = lesion_regions(mask[box.slices], box, np.ones_like(mask), mask, grid)
    whole = np.zeros_like(mask)
    whole[found.box.slices] = found.whole
    np.testing.assert_array_equal(whole, mask)
    for z, y, x in np.ndindex(mask.shape):
        others = np.argwhere(mask[z] != mask[z, y, x])
        nearest = float(np.hypot(*((others - (y, x)) * 1.5).T).min())
        expected = (1 if mask[z, y, x] else -1) * (nearest - 0.75)
        assert found.depth_mm[z, y, x] == pytest.approx(expected)


def test_oracle_noise_of_white_noise_falls_with_the_root_of_the_volume():
    generator = np.random.default_rng(1)
    grid = Grid.axial((40, 96, 96), (2.0, 1.0, 1.0))
    volume = np.rint(generator.normal(100, 20, grid.shape)).astype(np.int16)
    found = liver_noise({"PV": volume}, np.ones(grid.shape, dtype=bool), grid)["PV"]
    assert len(found.volume_ml) == 4
    for ml, sd_hu in zip(found.volume_ml, found.sd_hu, strict=True):
        assert sd_hu == pytest.approx(20 / np.sqrt(ml / grid.voxel_ml), rel=0.2)
    between = LiverNoise((1.0, 4.0), (8.0, 4.0))
    assert between.of(2.0) == pytest.approx(np.sqrt(32.0))
    assert [between.of(0.1), between.of(50.0)] == pytest.approx([8.0, 4.0])


@pytest.mark.parametrize(
    ("hu", "u", "state"),
    [
        (12.0, 5.0, "present"),
        (12.0, 7.0, "absent"),
        (9.0, 1.0, "absent"),
        (9.0, 13.0, "not_assessable"),
        (-30.0, 13.0, "absent"),
        (40.0, 13.0, "present"),
    ],
)
def test_closed_form_what_counts_as_visible(hu, u, state):
    assert visible(Measured(hu, u)) == state


def test_regression_lesions_written_before_the_features_are_read():
    old = {
        "id": 1,
        "volume_ml": 1.0,
        "long_axis_mm": 10.0,
        "short_axis_mm": 8.0,
        "centroid_mm": (0.0, 0.0, 0.0),
        "box_zyx": ((0, 0, 0), (1, 1, 1)),
        "hu": {},
        "hu_std": {},
        "liver_hu": {},
        "confidence": 0.5,
    }
    assert Lesion.model_validate(old).features == ()
