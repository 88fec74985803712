"""The tumor stage: lesions in millimeters, milliliters, HU, at the right place in the patient."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from aligned_cases import aligned_study, ellipsoid, oblique_grid
from fake_systems import Echo, spec_2d, spec_3d
from hepar.errors import InputRefused
from hepar.geometry import Box, Grid
from hepar.infer.bundle import Model
from hepar.infer.calibrate import (
    CaseSweep,
    SweptLesions,
    TumorCalibration,
    case_score,
    choose_operating_point,
    fit_confidence,
    fit_temperature,
    lesion_chance,
    sweep_case,
    temper,
)
from hepar.infer.lesion_map import lesions_from_probability
from hepar.infer.measure import feret_axes_mm, lesion_core, liver_hu
from hepar.infer.refine import refined_liver
from hepar.infer.tiling import Tiling
from hepar.preprocess import liver_box
from hepar.stages.tumor import find_lesions
from hepar.study import LesionMap, LiverCase
from hepar.systems.baselines.hu_threshold import HuThresholdSettings

SHAPE, SPACING = (30, 90, 100), (3.0, 1.5, 1.5)
CENTERS = ((-16.0, 8.0, -4.0), (20.0, -10.0, 6.0))  # LPS mm from the middle of the grid
RADII = ((15.0, 12.0, 18.0), (9.0, 7.5, 7.5))  # z, y, x mm


def _case(grid: Grid, phases: tuple[str, ...] = ("NC", "ART", "PV")) -> tuple[LiverCase, list]:
    middle = grid.index_to_world((np.array(grid.shape) - 1) / 2)
    liver = ellipsoid(grid, tuple(middle), (38.0, 60.0, 65.0))
    lesions = [
        ellipsoid(grid, tuple(middle + np.array(c)), r) for c, r in zip(CENTERS, RADII, strict=True)
    ]
    values = {"NC": (0, 20), "ART": (0, 95), "PV": (0, 70), "DL": (0, 60)}
    parenchyma = {"NC": 2, "ART": 4, "PV": 8, "DL": 6}
    volumes = {}
    for phase in phases:
        hu = np.full(grid.shape, -80, dtype=np.int16)
        hu[liver] = parenchyma[phase]
        for lesion in lesions:
            hu[lesion] = values[phase][1]
        volumes[phase] = hu
    box = liver_box(liver, grid, 10.0)
    assert box is not None
    aligned = aligned_study(volumes, grid)
    return LiverCase(aligned, liver, box, float(liver.sum()) * grid.voxel_ml), lesions


def _model(**calibration: float) -> Model:
    spec = spec_2d(
        phases=("ART", "PV", "DL"), windows_hu=((10.0, 60.0),), spacing_mm=(2.0, 2.0, 2.0)
    )
    return Model("tumor", Echo(spec), calibration)


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize(
    "grid", [Grid.axial(SHAPE, SPACING), oblique_grid(SHAPE, SPACING)], ids=["axial", "oblique"]
)
def test_closed_form_two_ellipsoids(grid: Grid) -> None:
    case, truth = _case(grid)
    found = find_lesions(case, _model(threshold=0.5))[1]
    middle = grid.index_to_world((np.array(grid.shape) - 1) / 2)
    assert [lesion.id for lesion in found.lesions] == [1, 2]
    for lesion, mask, center, radii in zip(found.lesions, truth, CENTERS, RADII, strict=True):
        assert _dice(found.instances == lesion.id, mask) > 0.9
        # World positions: array axes run anywhere, the patient does not turn.
        np.testing.assert_allclose(lesion.centroid_mm, middle + np.array(center), atol=0.5)
        assert lesion.volume_ml == pytest.approx(4 / 3 * np.pi * np.prod(radii) / 1000, rel=0.08)
        assert lesion.long_axis_mm == pytest.approx(2 * max(radii[1:]), abs=1.5)
        assert lesion.short_axis_mm == pytest.approx(2 * min(radii[1:]), abs=2.0)
        assert lesion.volume_ml == pytest.approx(
            (found.instances == lesion.id).sum() * grid.voxel_ml
        )
        box = Box(*lesion.box_zyx)
        assert (found.instances[box.slices] == lesion.id).sum() == (
            found.instances == lesion.id
        ).sum()
        assert 0.5 <= lesion.confidence <= 1


def test_closed_form_hu_wash_in_and_washout() -> None:
    case, _ = _case(Grid.axial(SHAPE, SPACING))
    lesion = find_lesions(case, _model())[1].lesions[0]
    assert lesion.hu == {"NC": 20, "ART": 95, "PV": 70}  # the border voxels are not in it
    assert lesion.hu_std == {"NC": 0, "ART": 0, "PV": 0}
    assert lesion.liver_hu == {"NC": 2, "ART": 4, "PV": 8}
    assert lesion.wash_in_hu == 75
    assert lesion.washout_hu == (95 - 4) - (70 - 8)
    late, _ = _case(Grid.axial(SHAPE, SPACING), ("ART", "PV", "DL"))
    lesion = find_lesions(late, _model())[1].lesions[0]
    assert lesion.washout_hu == (95 - 4) - (60 - 6)  # delayed before portal venous
    assert lesion.wash_in_hu is None
    lone, _ = _case(Grid.axial(SHAPE, SPACING), ("PV",))
    assert find_lesions(lone, _model())[1].lesions[0].washout_hu is None


def test_labels_instances_and_burden_agree() -> None:
    case, _ = _case(Grid.axial(SHAPE, SPACING))
    found = find_lesions(case, _model())[1]
    np.testing.assert_array_equal(found.label == 2, found.instances > 0)
    np.testing.assert_array_equal(found.label > 0, case.liver | (found.instances > 0))
    assert found.label.dtype == np.uint8
    assert found.instances.dtype == np.uint16
    assert found.tumor_burden == pytest.approx((found.label == 2).sum() / (found.label > 0).sum())
    assert found.probability.shape == case.box.shape
    assert sum(lesion.volume_ml for lesion in found.lesions) == pytest.approx(
        (found.label == 2).sum() * case.aligned.grid.voxel_ml
    )


def test_property_memory_budget_changes_nothing() -> None:
    case, _ = _case(Grid.axial(SHAPE, SPACING))
    plain = find_lesions(case, _model())[1]
    tight = find_lesions(case, _model(), tiling=Tiling(budget_bytes=1))[1]
    np.testing.assert_allclose(plain.probability, tight.probability, atol=1e-5)
    np.testing.assert_array_equal(plain.label, tight.label)


def test_slices_without_liver_and_absent_phases_never_reach_the_network() -> None:
    case, _ = _case(Grid.axial(SHAPE, SPACING), ("PV",))
    model = _model()
    find_lesions(case, model)
    sent = model.system.seen[1:]
    slices = np.flatnonzero(case.liver.any(axis=(1, 2)))
    assert sum(image[0] for image, _ in sent) <= len(slices) + 1  # 3 mm slices stay 3 mm
    assert all(present.tolist() == [[False, True, False]] * image[0] for image, present in sent)


def test_nothing_outside_the_liver_for_a_system_that_needs_it() -> None:
    case, _ = _case(Grid.axial(SHAPE, SPACING))
    for volume in case.aligned.volumes.values():
        volume.array[~case.liver] = 95
    found = find_lesions(case, _model())[1]
    assert len(found.lesions) >= 2
    assert not (found.label[~case.liver] > 0).any()


def test_a_system_that_sees_the_surroundings_reaches_a_little_beyond() -> None:
    case, truth = _case(Grid.axial(SHAPE, SPACING), ("PV",))
    case.aligned.volumes["PV"].array[:] = 60
    spec = spec_3d(class_names=("background", "tumor"), needs_liver=False)
    found = find_lesions(case, Model("tumor", Echo(spec), {}))[1]
    beyond = (found.label == 2) & ~case.liver
    assert beyond.any()
    assert (found.label == 2).sum() < 1.3 * case.liver.sum()
    assert len(truth) == 2


class Outliner(Echo):
    """Names liver where it is bright and tumor where it is brighter."""

    def decode(self, outputs):
        tumor = (outputs > 0.3).float()
        liver = (outputs > 0.01).float() - tumor
        return torch.stack([1 - liver - tumor, liver, tumor], dim=1)


def test_a_system_that_names_the_liver_redraws_its_border() -> None:
    case, _ = _case(Grid.axial(SHAPE, SPACING), ("PV",))
    whole = case.liver.copy()
    names = ("background", "liver", "tumor")
    model = Model("tumor", Outliner(spec_3d(class_names=names, needs_liver=False)), {})
    case.aligned.volumes["PV"].array[~whole] = -80
    # The coarse mask lost a rim of a voxel and took in a part of the surroundings.
    coarse = ndimage.binary_erosion(whole)
    coarse |= np.roll(whole, 4, axis=2) & ~whole & (np.arange(SHAPE[0]) < 15)[:, None, None]
    wrong = replace(case, liver=coarse, liver_ml=1.0)
    redrawn, found = find_lesions(wrong, model)
    assert 0.86 < _dice(coarse, whole) < 0.95
    assert _dice(redrawn.liver, whole) > 0.99
    assert redrawn.liver_ml == pytest.approx(whole.sum() * case.aligned.grid.voxel_ml, rel=0.01)
    np.testing.assert_array_equal(found.label > 0, redrawn.liver)
    assert len(found.lesions) == 2
    assert not found.warnings


def test_an_outline_that_is_no_liver_is_not_believed() -> None:
    case, _ = _case(Grid.axial(SHAPE, SPACING), ("PV",))
    case.aligned.volumes["PV"].array[:] = -80  # nothing is bright
    names = ("background", "liver", "tumor")
    model = Model("tumor", Outliner(spec_3d(class_names=names, needs_liver=False)), {})
    kept, found = find_lesions(case, model)
    np.testing.assert_array_equal(kept.liver, case.liver)
    assert [text.split(":")[0] for text in found.warnings] == ["W_LIVER_OUTLINE"]
    assert not found.lesions


def test_a_small_liver_that_the_finer_network_does_not_know_is_refused() -> None:
    case, _ = _case(Grid.axial(SHAPE, SPACING), ("PV",))
    names = ("background", "liver", "tumor")
    model = Model("tumor", Outliner(spec_3d(class_names=names, needs_liver=False)), {})
    part = case.liver.copy()
    part[: SHAPE[0] // 2] = False
    case.aligned.volumes["PV"].array[~part] = -80
    small = replace(case, liver=part, liver_ml=300.0)
    assert find_lesions(small, model)[0].liver_ml == pytest.approx(300.0, rel=0.1)
    case.aligned.volumes["PV"].array[:] = -80
    with pytest.raises(InputRefused) as refusal:
        find_lesions(small, model)
    assert refusal.value.code == "E_NO_LIVER"


def test_calibration_decides() -> None:
    case, _ = _case(Grid.axial(SHAPE, SPACING))
    assert len(find_lesions(case, _model(min_volume_ml=5.0))[1].lesions) == 1
    none = find_lesions(case, _model(min_volume_ml=500.0))[1]
    assert none.lesions == ()
    assert none.tumor_burden == 0
    assert set(np.unique(none.label)) == {0, 1}
    strict = find_lesions(case, _model(threshold=0.95))[1]
    loose = find_lesions(case, _model(threshold=0.2))[1]
    assert (strict.label == 2).sum() < (loose.label == 2).sum()


def test_required_phase() -> None:
    case, _ = _case(Grid.axial(SHAPE, SPACING), ("PV",))
    spec = spec_2d(phases=("ART", "PV"), needs_all_phases=True)
    with pytest.raises(InputRefused) as caught:
        find_lesions(case, Model("tumor", Echo(spec), {}))[1]
    assert caught.value.code == "E_PHASES_REQUIRED"


def test_hu_threshold_when_chosen() -> None:
    grid = Grid.axial(SHAPE, SPACING)
    case, truth = _case(grid, ("PV",))
    hu = case.aligned.volumes["PV"].array
    hu[case.liver] = 110
    for lesion in truth:
        hu[lesion] = 60
    found = find_lesions(case, HuThresholdSettings())[1]
    assert len(found.lesions) == 2
    assert _dice(found.label == 2, truth[0] | truth[1]) > 0.85


def _measure(mask: np.ndarray, grid: Grid) -> LesionMap:
    case = LiverCase(
        aligned_study({"PV": np.zeros(grid.shape, dtype=np.int16)}, grid),
        np.ones(grid.shape, dtype=bool),
        Box.full(grid.shape),
        1.0,
    )
    return lesions_from_probability(case, mask.astype(np.float32), TumorCalibration())


def test_lesions_are_numbered_by_volume_and_touching_corners_are_one() -> None:
    grid = Grid.axial((12, 30, 30), (2.0, 2.0, 2.0))
    mask = np.zeros(grid.shape, dtype=bool)
    mask[1:4, 1:4, 1:4] = True  # 0.216 ml
    mask[4:9, 4:9, 4:9] = True  # touches its corner
    mask[1:10, 15:25, 15:25] = True  # 7.2 ml, with a hole
    mask[5, 20, 20] = False
    mask[11, 29, 0] = True  # 0.008 ml, below the smallest
    found = _measure(mask, grid)
    assert [round(lesion.volume_ml, 3) for lesion in found.lesions] == [7.2, 1.216]
    assert found.instances[2, 2, 2] == found.instances[8, 8, 8] == 2
    assert found.instances[5, 20, 20] == 1
    assert found.instances[11, 29, 0] == 0
    assert found.lesions[0].box_zyx == ((1, 15, 15), (10, 25, 25))


@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    dy=st.sampled_from([0.5, 0.8, 2.0]),
    dx=st.sampled_from([0.5, 0.9]),
)
def test_closed_form_feret_of_a_box(height: int, width: int, dy: float, dx: float) -> None:
    mask = np.zeros((3, 40, 40), dtype=bool)
    mask[1, 4 : 4 + height, 6 : 6 + width] = True
    mask[2, 4, 6] = True  # a smaller slice does not matter
    long_axis, short_axis = feret_axes_mm(mask, (5.0, dy, dx))
    h, w = height * dy, width * dx
    # Between middles of pixel edges: corners are cut by half a pixel.
    expected = max(np.hypot(h, w - dx), np.hypot(h - dy, w))
    assert long_axis == pytest.approx(expected)
    assert min(h, w) * 0.5 - 1e-9 <= short_axis <= long_axis + 1e-9


@pytest.mark.parametrize("angle_deg", [0.0, 30.0, 45.0, 77.0])
def test_closed_form_feret_of_a_turned_ellipse(angle_deg: float) -> None:
    y, x = np.mgrid[:120, :140] * 1.0
    y, x = (y - 60.2) * 0.7, (x - 70.4) * 0.7
    a = np.deg2rad(angle_deg)
    along, across = x * np.cos(a) + y * np.sin(a), -x * np.sin(a) + y * np.cos(a)
    disk = (along / 30) ** 2 + (across / 18) ** 2 <= 1
    mask = np.stack([disk & (x > 0), disk, disk & (y > 0)])
    long_axis, short_axis = feret_axes_mm(mask, (5.0, 0.7, 0.7))
    assert long_axis == pytest.approx(60, abs=0.7)
    assert short_axis == pytest.approx(36, abs=1.0)


def test_closed_form_single_voxel() -> None:
    mask = np.zeros((1, 3, 3), dtype=bool)
    mask[0, 1, 1] = True
    assert feret_axes_mm(mask, (5.0, 0.8, 0.8)) == pytest.approx((0.8, 0.8))


def test_core_shrinks_by_what_the_lesion_can_spare() -> None:
    big = np.ones((7, 9, 9), dtype=bool)
    flat = np.ones((1, 9, 9), dtype=bool)
    tiny = np.ones((2, 2, 2), dtype=bool)
    assert lesion_core(big).sum() == 5 * 7 * 7
    assert lesion_core(flat).sum() == 7 * 7
    assert lesion_core(tiny).sum() == 8


def test_liver_hu_ignores_vessels_lesions_and_what_was_not_scanned() -> None:
    grid = Grid.axial((20, 60, 60), (3.0, 1.5, 1.5))
    liver = np.zeros(grid.shape, dtype=bool)
    liver[2:18, 5:55, 5:55] = True
    noise = np.random.default_rng(0).normal(0, 8, grid.shape)
    hu = (np.where(liver, 100, -100) + noise).astype(np.int16)
    tumor = np.zeros_like(liver)
    tumor[5:15, 10:30, 10:40] = True
    hu[tumor] = 40
    hu[:, 40:46, 10:50] = 220  # a large vein
    arterial = np.full(grid.shape, -1024, dtype=np.int16)
    found = liver_hu({"PV": hu, "ART": arterial}, liver, tumor, grid)
    assert found == {"PV": pytest.approx(100, abs=2)}


def test_closed_form_temperature() -> None:
    p = np.array([0.1, 0.5, 0.9], dtype=np.float32)
    np.testing.assert_allclose(temper(p, 1.0), p)
    odds = (p / (1 - p)) ** 0.5
    np.testing.assert_allclose(temper(p, 2.0), odds / (1 + odds), rtol=1e-5)
    generator = np.random.default_rng(1)
    logit = generator.normal(0, 2, 40_000)
    truth = generator.random(40_000) < 1 / (1 + np.exp(-logit))
    overconfident = 1 / (1 + np.exp(-3 * logit))
    assert fit_temperature(overconfident, truth) == pytest.approx(3.0, rel=0.05)


def test_operating_point_drops_noise_and_counts_tumor_free_patients() -> None:
    truth = np.zeros((10, 20, 20), dtype=np.uint8)
    truth[2:5, 4:8, 4:8] = 1
    probability = np.where(truth, 0.6, 0.2).astype(np.float32)
    probability[1, 15:17, 15] = 0.9  # 0.2 ml of noise
    sick = sweep_case(probability, truth, 0.1)
    quiet = np.full(truth.shape, 0.2, dtype=np.float32)
    quiet[3:5, 3:5, 3] = 0.58  # 0.4 ml, surer than chance
    well = sweep_case(quiet, np.zeros_like(truth), 0.1)
    chosen, score = choose_operating_point([sick, well])
    assert score == pytest.approx(1.0)
    # The outline is taken at one half, and what peaks below 0.6 is dropped as a whole.
    assert (chosen.threshold, chosen.min_peak) == (pytest.approx(0.5), pytest.approx(0.6))
    assert chosen.min_volume_ml == pytest.approx(0.35)
    alone, _ = choose_operating_point([sick])
    assert (alone.threshold, alone.min_peak) == (pytest.approx(0.5), 0.0)
    with pytest.raises(ValueError, match="at least one"):
        choose_operating_point([])


def test_closed_form_case_score_is_half_voxels_half_lesions() -> None:
    truth = np.zeros((4, 10, 20), dtype=np.uint8)
    truth[0:2, 0:4, 0:4] = 1  # 32 voxels
    truth[0, 8, 8:12] = 2  # 4 voxels
    probability = np.zeros(truth.shape, np.float32)
    probability[0:2, 0:4, 0:3] = 0.8  # 24 of lesion 1, IoU 0.75
    probability[3, 9, 19] = 0.7  # a false voxel
    swept = sweep_case(probability, truth, 0.1, (0.5, 0.75))
    dice = 2 * 24 / (25 + 36)
    assert case_score(swept, 0, 0.0) == pytest.approx(0.5 * (dice + 2 / 4))
    without = 0.5 * (2 * 24 / (24 + 36) + 2 / 3)
    assert case_score(swept, 1, 0.0) == pytest.approx(without)
    assert case_score(swept, 0, 0.2) == pytest.approx(without)  # too small
    assert case_score(swept, 0, 0.0, 0.75) == pytest.approx(without)  # too unsure
    free = sweep_case(probability, np.zeros_like(truth), 0.1, (0.5,))
    assert case_score(free, 0, 0.0) == pytest.approx(0.5 * (1 / 3.5 + 1 / 3))


def test_closed_form_confidence_is_the_share_of_real_lesions() -> None:
    rng = np.random.default_rng(0)
    peak, volume = rng.uniform(0.5, 0.999, 4000), rng.lognormal(0.0, 1.0, 4000)
    logit = -1.0 + 0.8 * np.log(peak / (1 - peak)) + 0.5 * np.log(volume)
    real = rng.random(4000) < 1 / (1 + np.exp(-logit))
    swept = SweptLesions(volume, volume * real, peak, real[:, None])
    point = TumorCalibration(threshold=0.5, min_volume_ml=0.0)
    fitted = fit_confidence([CaseSweep(1.0, 1, (swept,))], point, (0.5,))
    assert fitted == pytest.approx((-1.0, 0.8, 0.5), abs=0.12)
    chance = lesion_chance(fitted, peak, volume)
    for low, high in ((0.0, 0.4), (0.4, 0.7), (0.7, 1.0)):
        group = (chance >= low) & (chance < high)
        assert chance[group].mean() == pytest.approx(real[group].mean(), abs=0.05)
    alike = SweptLesions(volume, volume, peak, np.ones((4000, 1), bool))
    assert fit_confidence([CaseSweep(1.0, 1, (alike,))], point, (0.5,)) is None


def test_a_calibrated_confidence_is_what_is_reported() -> None:
    case = _case(Grid.axial(SHAPE, SPACING))[0]
    probability = np.zeros(case.box.shape, np.float32)
    probability[2:6, 4:10, 4:10] = 0.75
    plain = TumorCalibration(threshold=0.5)
    weights = (0.2, 1.0, -0.3)
    found = lesions_from_probability(
        case, probability, plain.model_copy(update={"confidence": weights})
    )
    volume = found.lesions[0].volume_ml
    expected = 1 / (1 + np.exp(-(0.2 + np.log(3.0) - 0.3 * np.log(volume))))
    assert found.lesions[0].confidence == pytest.approx(expected, rel=1e-5)
    assert lesions_from_probability(case, probability, plain).lesions[0].confidence > 0.7


def test_lesions_whose_peak_is_low_are_dropped_whole() -> None:
    case = _case(Grid.axial(SHAPE, SPACING))[0]
    probability = np.zeros(case.box.shape, np.float32)
    probability[2:6, 4:10, 4:10] = 0.5
    probability[3, 6, 6] = 0.9
    probability[2:6, 4:10, 14:18] = 0.6
    every = lesions_from_probability(case, probability, TumorCalibration(threshold=0.4))
    sure = TumorCalibration(threshold=0.4, min_peak=0.8)
    kept = lesions_from_probability(case, probability, sure)
    assert (len(every.lesions), len(kept.lesions)) == (2, 1)
    assert kept.lesions[0].volume_ml == every.lesions[0].volume_ml


def test_closed_form_the_liver_is_redrawn_within_eight_millimeters() -> None:
    spacing = (2.0, 2.0, 2.0)
    coarse = np.zeros((30, 40, 40), bool)
    coarse[10:20, 10:30, 10:30] = True
    organ = np.where(coarse, 0.9, 0.1).astype(np.float32)
    organ[10:20, 10:30, 30:33] = 0.95  # a missed rim of 6 mm
    organ[10:20, 10:30, 33] = 0.9  # 8 mm away and less sure
    organ[10:20, 10:30, 10] = 0.2  # a slice too many
    organ[0:4, 0:4, 0:4] = 1.0  # far away: another organ
    organ[14:16, 18:22, 18:22] = 0.0  # deep inside: a lesion that was not recognized
    refined, agreement = refined_liver(coarse, organ, spacing)
    fine = organ >= 0.5
    fine[0:4, 0:4, 0:4] = False  # beyond 8 mm
    both, sizes = np.count_nonzero(coarse & fine), np.count_nonzero(coarse) + fine.sum()
    assert agreement == pytest.approx(2 * both / sizes)
    expected = coarse.copy()
    expected[10:20, 10:30, 30:33], expected[10:20, 10:30, 10] = True, False
    np.testing.assert_array_equal(refined >= 0.5, expected)
    for x, signed_mm in ((30, -2.0), (31, -4.0), (29, 2.0), (27, 6.0)):
        belief = 1 / (1 + math.exp(-signed_mm / 3.0))
        assert refined[15, 20, x] == pytest.approx((organ[15, 20, x] + belief) / 2, rel=1e-6)
    nothing = np.zeros_like(organ)
    assert refined_liver(coarse, nothing, spacing) == (None, 0.0)
    assert refined_liver(np.zeros_like(coarse), nothing, spacing) == (None, 0.0)
