"""The procedural phantom: determinism, anatomy, lesions, enhancement and painting."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from hepar.errors import UsageError
from hepar.phantom.anatomy import Anatomy, anatomy, label_map
from hepar.phantom.enhancement import tissue_hu
from hepar.phantom.motion import Motion, pull
from hepar.phantom.reconstruction import NOISE_SD_HU
from hepar.phantom.scanner import PHASES, Session, paint
from hepar.phantom.tissue import Tissue
from hepar.phantom.version import NAME, fingerprint
from hepar.study import LESION_TYPES

FROZEN = "bfe6d88035dac687e2d0223d12a37d6346e3f1849eb4505282bb60009e6dc8a9"
COARSE_MM = (6.0, 6.0, 6.0)
SEEDS = tuple(range(12))


@pytest.fixture(scope="module")
def patients() -> dict[int, Anatomy]:
    return {seed: anatomy(seed, spacing_mm=COARSE_MM) for seed in SEEDS}


@pytest.fixture(scope="module")
def patient_with_lesions(patients: dict[int, Anatomy]) -> Anatomy:
    return next(p for p in patients.values() if len(p.lesions) > 1)


def voxel_ml(patient: Anatomy) -> float:
    return float(np.prod(patient.spacing_mm)) / 1000


def centroid_mm(patient: Anatomy, mask: np.ndarray) -> np.ndarray:
    return np.argwhere(mask).mean(axis=0) * np.asarray(patient.spacing_mm) + np.asarray(
        patient.origin_mm
    )


# Property: what a seed fixes.


def test_property_same_seed_same_bytes_and_another_seed_differs(
    patients: dict[int, Anatomy],
) -> None:
    again = anatomy(3, spacing_mm=COARSE_MM)
    first = patients[3]
    for name in ("tissue", "liver", "instances", "parts"):
        assert getattr(again, name).tobytes() == getattr(first, name).tobytes()
    assert again.lesions == first.lesions
    shape = (30, 40, 50)
    one, other = (anatomy(s, shape=shape, spacing_mm=COARSE_MM) for s in (3, 4))
    assert one.tissue.shape == shape
    assert (one.tissue != other.tissue).mean() > 0.02


def test_property_painting_is_a_function_of_anatomy_and_seed(
    patient_with_lesions: Anatomy,
) -> None:
    first, again = paint(patient_with_lesions, 5), paint(patient_with_lesions, 5)
    other = paint(patient_with_lesions, 6)
    assert first.times_s == again.times_s
    for phase in PHASES:
        assert first.hu[phase].dtype == np.int16
        assert first.hu[phase].tobytes() == again.hu[phase].tobytes()
        assert (first.hu[phase] != other.hu[phase]).mean() > 0.5


@pytest.mark.parametrize("misalignment_mm", [0.0, 3.0])
@pytest.mark.parametrize("phases", [("PV",), ("DL", "NC"), ("PV", "ART", "NC", "DL")])
def test_property_subset_and_order_of_phases_change_no_voxel(
    patient_with_lesions: Anatomy, phases: tuple[str, ...], misalignment_mm: float
) -> None:
    whole = paint(patient_with_lesions, 9, misalignment_mm=misalignment_mm)
    part = paint(patient_with_lesions, 9, phases=phases, misalignment_mm=misalignment_mm)
    assert tuple(part.hu) == phases
    for phase in phases:
        assert part.hu[phase].tobytes() == whole.hu[phase].tobytes()
        assert part.times_s[phase] == whole.times_s[phase]


def test_property_painting_leaves_the_anatomy_alone(patient_with_lesions: Anatomy) -> None:
    before = patient_with_lesions.tissue.tobytes(), patient_with_lesions.instances.tobytes()
    paint(patient_with_lesions, 1, misalignment_mm=2.0)
    assert before == (
        patient_with_lesions.tissue.tobytes(),
        patient_with_lesions.instances.tobytes(),
    )


@pytest.mark.parametrize("seed", [1, 5])
def test_property_a_finer_grid_shows_the_same_patient(seed: int) -> None:
    coarse = anatomy(seed, spacing_mm=(5.0, 5.0, 5.0))
    fine = anatomy(seed, field="liver", spacing_mm=(2.5, 2.5, 2.5))
    ml = [float(a.liver.sum()) * voxel_ml(a) for a in (coarse, fine)]
    assert ml[0] == pytest.approx(ml[1], rel=0.05)
    shift = centroid_mm(coarse, coarse.liver) - centroid_mm(fine, fine.liver)
    assert np.abs(shift).max() < 1.5
    gall = [centroid_mm(a, a.tissue == Tissue.GALLBLADDER) for a in (coarse, fine)]
    assert np.abs(gall[0] - gall[1]).max() < 4


def test_property_liver_field_holds_the_whole_liver() -> None:
    patient = anatomy(2, field="liver", spacing_mm=(4.0, 4.0, 4.0))
    border = np.ones(patient.liver.shape, bool)
    border[1:-1, 1:-1, 1:-1] = False
    assert patient.liver.any()
    assert not (patient.liver & border).any()


# Closed form: a patient is a patient.


def test_closed_form_liver_and_organ_volumes_are_plausible(
    patients: dict[int, Anatomy],
) -> None:
    liver = [p.liver.sum() * voxel_ml(p) for p in patients.values()]
    assert min(liver) > 700
    assert max(liver) < 2600
    assert max(liver) > 1.4 * min(liver)
    ranges = {
        Tissue.SPLEEN: (50, 400),
        Tissue.PANCREAS: (20, 120),
        Tissue.AORTA: (20, 200),
        Tissue.STOMACH: (20, 600),
    }
    for tissue, (low, high) in ranges.items():
        middle = np.median([(p.tissue == tissue).sum() * voxel_ml(p) for p in patients.values()])
        assert low < middle < high, tissue


def test_closed_form_orientation(patients: dict[int, Anatomy]) -> None:
    for patient in patients.values():
        liver = centroid_mm(patient, patient.liver)
        body = centroid_mm(patient, patient.tissue == Tissue.MUSCLE)
        spleen = centroid_mm(patient, patient.tissue == Tissue.SPLEEN)
        heart = patient.tissue == Tissue.MYOCARDIUM
        middle = (
            np.abs(
                np.arange(patient.tissue.shape[2]) * patient.spacing_mm[2] + patient.origin_mm[2]
            )
            < 20
        )
        spine = np.zeros(patient.tissue.shape, bool)
        spine[:, :, middle] = patient.tissue[:, :, middle] == Tissue.CORTICAL_BONE
        assert liver[2] < body[2] - 15 < spleen[2]
        # A scan that ends inside the liver shows no heart.
        assert not heart.any() or centroid_mm(patient, heart)[0] > liver[0] + 30
        assert centroid_mm(patient, spine)[1] > liver[1] + 15
        lung = centroid_mm(patient, patient.tissue == Tissue.LUNG)
        assert lung[0] > liver[0]


def test_closed_form_every_liver_is_one_piece_with_vessels(patients: dict[int, Anatomy]) -> None:
    for patient in patients.values():
        inside = patient.tissue[patient.liver]
        for vessel in (Tissue.PORTAL_VEIN, Tissue.HEPATIC_VEIN):
            assert 0.001 < (inside == vessel).mean() < 0.08
        assert not np.isin(inside, [Tissue.CAVA, Tissue.GALLBLADDER, Tissue.FAT]).any()


# Lesions.


def test_property_lesions_lie_in_the_liver_and_match_their_specs(
    patients: dict[int, Anatomy],
) -> None:
    seen = set()
    for patient in patients.values():
        ids = [spec.id for spec in patient.lesions]
        assert ids == list(range(1, len(ids) + 1))
        assert set(np.unique(patient.instances)) - {0} == set(ids)
        assert not ((patient.instances > 0) & ~patient.liver).any()
        assert ((patient.parts > 0) == (patient.instances > 0)).all()
        assert (patient.tissue[patient.instances > 0] == Tissue.LIVER).all()
        labels = label_map(patient.liver, patient.instances)
        assert ((labels == 2) == (patient.instances > 0)).all()
        assert ((labels > 0) == patient.liver).all()
        seen |= {spec.type for spec in patient.lesions}
    assert seen <= set(LESION_TYPES)
    assert len(seen) >= 4


# Enhancement and scanner.


def test_closed_form_painted_means_are_the_drawn_ones(patients: dict[int, Anatomy]) -> None:
    for seed in (1, 2):
        patient = anatomy(seed, field="liver", shape=(40, 64, 64), spacing_mm=(4.0, 2.5, 2.5))
        painted = paint(patient, seed)
        session = Session.draw(patient, seed)
        # The slice profile brings something of what lies above and below into a tilted aorta.
        for tissue, tolerance in ((Tissue.LIVER, 4.0), (Tissue.AORTA, 16.0)):
            mask = (patient.tissue == tissue) & (patient.instances == 0) & (patient.share == 0)
            core = mask.copy()
            for axis in range(3):
                core &= np.roll(mask, 1, axis) & np.roll(mask, -1, axis)
            for phase in PHASES:
                expected = tissue_hu(session.contrast, painted.times_s[phase])[tissue]
                assert painted.hu[phase][core].mean() == pytest.approx(expected, abs=tolerance)


def test_closed_form_noise_has_the_drawn_sd() -> None:
    shape = (16, 64, 64)
    fluid = np.full(shape, Tissue.FLUID, np.uint8)
    empty = np.zeros(shape, np.uint8)
    patient = Anatomy(
        fluid, empty > 0, empty, empty, (), (2.5, 1.5, 1.5), texture_seed=3, field="liver"
    )
    for seed in range(3):
        drawn = Session.draw(patient, seed).reconstruction.noise_sd_hu
        assert NOISE_SD_HU[0] <= drawn <= NOISE_SD_HU[1]
        measured = paint(patient, seed, phases=("PV",)).hu["PV"].std()
        assert measured == pytest.approx(drawn, rel=0.3)


def test_property_misalignment_moves_other_phases_but_not_the_truth(
    patient_with_lesions: Anatomy,
) -> None:
    still = paint(patient_with_lesions, 4)
    moved = paint(patient_with_lesions, 4, misalignment_mm=4.0)
    assert moved.hu["PV"].tobytes() == still.hu["PV"].tobytes()
    assert np.abs(moved.hu["ART"].astype(int) - still.hu["ART"]).mean() > 5
    assert (moved.label == still.label).all()


def test_property_hu_stay_in_the_scanner_range(patients: dict[int, Anatomy]) -> None:
    for patient in list(patients.values())[:4]:
        hu = paint(patient, 0, phases=("ART",)).hu["ART"]
        assert hu.min() >= -3024
        assert hu.max() <= 3071
        air = hu[patient.tissue == Tissue.AIR]
        # The rest is padding outside the scan circle.
        assert abs(np.median(air[air > -1200]) + 1000) < 30


def test_errors_name_what_is_wrong(patient_with_lesions: Anatomy) -> None:
    with pytest.raises(UsageError, match="portal"):
        paint(patient_with_lesions, 0, phases=("portal",))
    with pytest.raises(UsageError, match="pelvis"):
        anatomy(0, field="pelvis")
    with pytest.raises(UsageError, match="positive"):
        anatomy(0, shape=(0, 4, 4))


# Motion and artifacts.


def test_oracle_pull_against_scipy() -> None:
    rng = np.random.default_rng(1)
    image = rng.normal(size=(9, 14, 11)).astype(np.float32)
    field = rng.uniform(-6, 6, (3, 9, 14, 11)).astype(np.float32)
    spacing = (2.5, 1.5, 1.2)
    place = np.stack(np.meshgrid(*(np.arange(n) for n in image.shape), indexing="ij"))
    place = place + field / np.asarray(spacing).reshape(3, 1, 1, 1)
    expected = ndimage.map_coordinates(image, place, order=1, mode="nearest")
    np.testing.assert_allclose(pull(image, field, spacing), expected, atol=2e-5)


def test_property_breathing_moves_organs_and_leaves_the_wall(
    patient_with_lesions: Anatomy,
) -> None:
    still = paint(patient_with_lesions, 4)
    moved = paint(patient_with_lesions, 4, breathing_mm=18.0)
    assert moved.hu["PV"].tobytes() == still.hu["PV"].tobytes()
    field = moved.displacement_mm["ART"]
    length = np.sqrt((field**2).sum(axis=0))
    inside = patient_with_lesions.liver
    assert 10 < np.median(length[inside]) < 20
    assert length.max() <= 25
    bone = patient_with_lesions.tissue == Tissue.CORTICAL_BONE
    assert (length[bone] == 0).all()
    assert "PV" not in moved.displacement_mm
    assert not still.displacement_mm


def test_property_mishaps_spoil_one_phase_of_some_visits() -> None:
    rng = np.random.default_rng(0)
    drawn = [Motion.draw(rng, PHASES) for _ in range(600)]
    assert 0.06 < np.mean([bool(m.moved) for m in drawn]) < 0.15
    assert 0.08 < np.mean([bool(m.streaked) for m in drawn]) < 0.17
    assert {m.moved for m in drawn} == {"", *PHASES}


def test_property_the_other_scanner_is_noisier_and_softer(patients: dict[int, Anatomy]) -> None:
    one = patients[2]
    home = [Session.draw(one, s).reconstruction for s in range(60)]
    away = [Session.draw(one, s, "external").reconstruction for s in range(60)]
    for name in ("noise_sd_hu", "kernel_mm", "thickness_mm"):
        here, there = (np.mean([getattr(r, name) for r in rows]) for rows in (home, away))
        assert there > 1.1 * here
    with pytest.raises(UsageError, match="elsewhere"):
        paint(one, 0, scanner="elsewhere")


def test_regression_phantom_1_is_frozen() -> None:
    """Another fingerprint is another phantom: name it, and rerun what depended on this one."""
    assert NAME == "phantom-1"
    assert fingerprint() == FROZEN
