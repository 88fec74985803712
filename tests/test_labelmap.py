"""Label maps as anatomies: codes, dome, warps, looks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from hepar.errors import InputRefused
from hepar.phantom.deform import Bulge, Warp, draw_warp, smooth_field, source_points_mm
from hepar.phantom.dome import complete_dome, ends_in_liver
from hepar.phantom.labelmap import (
    CONTEXT_OF_TISSUE,
    NOT_SCANNED,
    Template,
    anatomy_of,
    context_label,
    template_from_masks,
    tissue_of,
)
from hepar.phantom.liver_tubes import add_tubes
from hepar.phantom.masses import Scene, add_arms, add_masses, limit_field
from hepar.phantom.recolor import degrade, draw_look, paint_tissue, recolor
from hepar.phantom.tissue import LIVER_TISSUES, Tissue
from hepar.systems.baselines.context_unet3d.settings import CONTEXT_CLASSES

REAL = Path(__file__).parents[2] / "shared" / "data" / "totalsegmentator_example_ct"
SPACING = (6.0, 6.0, 6.0)
STILL = Warp((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (), (), 0)


def small_patient() -> Template:
    """A torso cut off inside the liver: cylinder of fat and muscle, spine, liver, spleen, lung."""
    z, y, x = np.mgrid[:24, :40, :48]
    round_body = ((y - 20) / 17.0) ** 2 + ((x - 24) / 22.0) ** 2
    hu = np.where(round_body < 1, -100, -1000)
    hu[(round_body < 0.8)] = 50
    organs = {
        "liver": ((z - 26) / 14.0) ** 2 + ((y - 18) / 10.0) ** 2 + ((x - 15) / 10.0) ** 2 < 1,
        "spleen": ((z - 22) / 10.0) ** 2 + ((y - 22) / 6.0) ** 2 + ((x - 36) / 5.0) ** 2 < 1,
        "vertebrae_T12": ((y - 31) / 3.0) ** 2 + ((x - 24) / 3.0) ** 2 < 1,
        "aorta": ((y - 26) / 1.5) ** 2 + ((x - 26) / 1.5) ** 2 < 1,
        "kidney_left": ((z - 8) / 7.0) ** 2 + ((y - 26) / 4.0) ** 2 + ((x - 34) / 4.0) ** 2 < 1,
    }
    organs["spleen"] &= ~organs["liver"]
    hu[organs["liver"]], hu[organs["spleen"]] = 60, 45
    hu[organs["vertebrae_T12"]] = 300
    return template_from_masks(organs, hu.astype(np.int16), SPACING)


def warped(template: Template, warp: Warp, shape: tuple[int, int, int]) -> np.ndarray:
    at = source_points_mm(warp, shape, template.spacing_mm)
    at /= np.asarray(template.spacing_mm, dtype=np.float32).reshape(3, 1, 1, 1)
    return ndimage.map_coordinates(template.tissue, at, order=0, mode="constant", cval=0)


def test_closed_form_organ_names() -> None:
    assert tissue_of("kidney_cyst_left") == Tissue.FLUID
    assert tissue_of("kidney_left") == Tissue.KIDNEY_CORTEX
    assert tissue_of("portal_vein_and_splenic_vein") == Tissue.PORTAL_VEIN
    assert tissue_of("rib_left_7") == Tissue.BONE
    assert tissue_of("brain") is None


def test_closed_form_every_tissue_has_a_class() -> None:
    assert set(CONTEXT_OF_TISSUE) == set(Tissue)
    assert set(CONTEXT_OF_TISSUE.values()) == set(CONTEXT_CLASSES)


def test_property_template_keeps_masks_and_names_the_rest_by_hu() -> None:
    template = small_patient()
    assert (template.tissue[template.liver] == Tissue.LIVER).all()
    assert template.tissue[5, 4, 24] == Tissue.FAT
    assert template.tissue[5, 20, 10] == Tissue.MUSCLE
    assert template.tissue[5, 0, 0] == Tissue.AIR
    label = context_label(template.tissue, template.liver, CONTEXT_CLASSES)
    assert ((label == CONTEXT_CLASSES.index("liver")) == template.liver).all()
    anatomy = anatomy_of(template, texture_seed=1)
    assert np.isin(anatomy.tissue[anatomy.liver], LIVER_TISSUES).all()


def test_property_bad_label_maps_are_refused() -> None:
    hu = np.zeros((4, 4, 4), dtype=np.int16)
    with pytest.raises(InputRefused, match="no liver voxel") as refusal:
        template_from_masks({"spleen": np.ones((4, 4, 4), bool)}, hu, SPACING)
    assert refusal.value.code == "E_NO_LIVER"
    with pytest.raises(InputRefused) as refusal:
        template_from_masks({"liver": np.ones((4, 4, 5), bool)}, hu, SPACING)
    assert refusal.value.code == "E_LABEL_SHAPE"


@pytest.mark.parametrize("seed", range(3))
def test_property_dome_closes_the_liver(seed: int) -> None:
    template = small_patient()
    assert ends_in_liver(template)
    whole = complete_dome(template, np.random.default_rng(seed))
    n = len(template.tissue)
    assert not ends_in_liver(whole)
    assert (whole.tissue[:n] == template.tissue).all()
    assert ndimage.label(whole.liver)[1] == 1
    area = whole.liver[n - 1 :].sum((1, 2))
    assert (np.diff(area) <= 0).all(), "the dome narrows upwards"
    added = whole.tissue[n:]
    assert (added == Tissue.LUNG).any()
    assert (added == Tissue.HEART).any()
    assert (whole.hu[n:][added == Tissue.LIVER] == NOT_SCANNED).all()
    assert complete_dome(whole, np.random.default_rng(0)) is whole


def test_closed_form_warp_identity_scale_and_bulge() -> None:
    template = small_patient()
    shape = template.tissue.shape
    middle = tuple((n - 1) / 2 * s for n, s in zip(shape, SPACING, strict=True))
    still = Warp(middle, *(getattr(STILL, n) for n in ("angles_rad", "scale")), (), (), 0)
    assert (warped(template, still, shape) == template.tissue).all()
    larger = Warp(middle, STILL.angles_rad, (1.0, 1.25, 1.0), (), (), 0)
    at = source_points_mm(larger, shape, SPACING)
    assert np.ptp(at[1]) == pytest.approx((shape[1] - 1) * SPACING[1] / 1.25, rel=1e-5)
    swollen = Warp(middle, STILL.angles_rad, STILL.scale, (), (Bulge(middle, 30.0, 0.5),), 0)
    near = np.abs(source_points_mm(swollen, (3, 3, 3), (1.0, 1.0, 1.0))[0, :, 1, 1] - middle[0])
    assert near == pytest.approx([0.5, 0.0, 0.5], abs=1e-2)


def test_closed_form_quarter_turn() -> None:
    turn = Warp((0.0, 0.0, 0.0), (np.pi / 2, 0.0, 0.0), STILL.scale, (), (), 0)
    at = source_points_mm(turn, (1, 3, 1), (1.0, 10.0, 1.0))
    expected = np.array([[0, 0, -10], [0, 0, 0], [0, 0, 10]])
    np.testing.assert_allclose(at[:, 0, :, 0].T, expected, atol=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_property_warp_keeps_labels_and_the_liver_whole(seed: int) -> None:
    template = complete_dome(small_patient(), np.random.default_rng(seed))
    points = np.argwhere(template.liver) * np.asarray(SPACING)
    rng = np.random.default_rng(seed)
    z, y, x = points.mean(0)
    warp = draw_warp(rng, (z, y, x), points)
    codes = warped(template, warp, (64, 64, 64))
    assert set(np.unique(codes)) <= set(np.unique(template.tissue))
    liver = codes == Tissue.LIVER
    pieces, _ = ndimage.label(liver)
    assert np.bincount(pieces.ravel())[1:].max() > 0.99 * liver.sum()
    volume = liver.sum() / template.liver.sum()
    assert 0.3 < volume < 4.0
    # One to one: the map's Jacobian determinant stays positive inside the liver.
    at = source_points_mm(warp, (64, 64, 64), SPACING)
    jacobian = np.stack([np.stack(np.gradient(a), -1) for a in at], -2) / 6.0
    assert (np.linalg.det(jacobian)[liver] > 0).mean() > 0.995


def test_property_smooth_field_is_smooth_centered_and_seeded() -> None:
    fields = smooth_field(np.random.default_rng(1), (32, 32, 32), (5.0,) * 3, 40.0, components=8)
    again = smooth_field(np.random.default_rng(1), (32, 32, 32), (5.0,) * 3, 40.0, components=8)
    assert (fields == again).all()
    assert abs(fields.mean()) < 0.1
    assert 0.25 < fields.std() < 0.55
    assert np.abs(np.diff(fields, axis=1)).max() < 0.4


def test_property_looks_move_organs_and_keep_texture() -> None:
    template = small_patient()
    rng = np.random.default_rng(3)
    look = draw_look(rng, wild=0.0)
    inside = ndimage.binary_erosion(template.liver, iterations=3)
    painted = paint_tissue(template.tissue, look, SPACING)
    assert abs(painted[inside].mean() - look.mean_hu[Tissue.LIVER]) < 10
    native = np.zeros(len(look.mean_hu), dtype=np.float32)
    native[Tissue.LIVER] = 60
    grain = rng.normal(0, 20, template.tissue.shape)
    moved = recolor(template.hu + grain, template.tissue, native, look, SPACING)
    assert abs(moved[inside].mean() - look.mean_hu[Tissue.LIVER]) < 10
    assert np.corrcoef(moved[inside], grain[inside])[0, 1] > 0.8
    again = degrade(moved.copy(), look, SPACING)
    assert (again == degrade(moved.copy(), look, SPACING)).all()
    assert np.isfinite(again).all()


def scene() -> Scene:
    template = small_patient()
    label = context_label(template.tissue, template.liver, CONTEXT_CLASSES)
    hu = template.hu.astype(np.float32)
    return Scene(hu.copy(), label.copy(), template.tissue, template.liver, SPACING)


def test_property_masses_leave_the_liver_label_alone() -> None:
    before = scene()
    changed_inside = changed_outside = 0
    for seed in range(40):
        after = scene()
        add_masses(after, np.random.default_rng(seed), liver_hu=60.0)
        assert ((after.label == 1) == before.liver).all()
        changed = after.hu != before.hu
        changed_inside += (changed & before.liver).sum()
        changed_outside += (changed & ~before.liver).sum()
        assert (after.label[changed & ~before.liver] == 0).all()
        assert not changed[np.isin(before.tissue, (Tissue.AIR, Tissue.BONE))].any()
    assert changed_inside > 100
    assert changed_outside > 50


def test_property_arms_lie_in_air_and_limits_are_air() -> None:
    before, after = scene(), scene()
    add_arms(after, np.random.default_rng(0), bone=8, muscle=9)
    changed = after.hu != before.hu
    assert changed.any()
    assert np.isin(before.tissue[changed], (Tissue.AIR, Tissue.TABLE)).all()
    cut = 0
    for seed in range(10):
        limited = scene()
        limit_field(limited, np.random.default_rng(seed))
        gone = (limited.hu == -1000) & (before.hu != -1000)
        assert (limited.label[gone] == 0).all()
        cut += bool(gone.any())
    assert 2 <= cut <= 9


def test_property_tubes_stay_inside_the_liver() -> None:
    template = small_patient()
    grown = add_tubes(template, np.random.default_rng(0))
    changed = grown.tissue != template.tissue
    assert changed.any()
    assert template.liver[changed].all()
    assert np.isin(grown.tissue[changed], (Tissue.PORTAL_VEIN, Tissue.HEPATIC_VEIN)).all()


def test_regression_real_label_map() -> None:
    if not REAL.is_dir():
        pytest.skip(f"no real label map at {REAL}")
    from hepar.data.organ_bank import read_label_map

    template = read_label_map(REAL)
    voxel_ml = np.prod(template.spacing_mm) / 1000
    assert template.liver.sum() * voxel_ml == pytest.approx(1123, abs=5)
    # The liver lies on the patient's right (small x), the spleen on the left, both near the top.
    liver = np.argwhere(template.liver).mean(0)
    spleen = np.argwhere(template.tissue == Tissue.SPLEEN).mean(0)
    assert liver[2] < spleen[2]
    assert liver[0] > template.tissue.shape[0] / 2
    whole = complete_dome(template, np.random.default_rng(0))
    assert 1400 < whole.liver.sum() * voxel_ml < 2200
