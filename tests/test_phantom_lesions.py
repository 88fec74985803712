"""Lesions of the phantom: how many and where, their voxels, margins, dents, wedges and readers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from hepar.errors import UsageError
from hepar.phantom.anatomy import Anatomy, anatomy, codes, from_codes
from hepar.phantom.lesion_kinds import KINDS, OTHER_ALL, OTHER_SEEN, Part
from hepar.phantom.lesion_shape import rasterize, readers_view, retract, wedge_mask
from hepar.phantom.lesions import LesionSpec, Wedge, draw_lesions
from hepar.phantom.partial_volume import Mixture, mix, subslices
from hepar.phantom.population import POPULATIONS, population
from hepar.phantom.tissue import Tissue
from hepar.study import LESION_TYPES

COARSE_MM = (6.0, 6.0, 6.0)


def a_liver() -> np.ndarray:
    z, y, x = np.ogrid[-14:15, -14:15, -14:15]
    return (z * z + y * y + x * x) < 13**2


def ball(radius_mm: float, center_mm: tuple[float, float, float]) -> LesionSpec:
    radii = (radius_mm, radius_mm, radius_mm)
    return LesionSpec(1, "cyst", center_mm, radii, 7, 0.0, 2.0)


@pytest.mark.parametrize("irregularity", [0.0, 0.2])
def test_closed_form_lesion_volume_is_its_ellipsoid(irregularity: float) -> None:
    liver = np.ones((60, 80, 80), bool)
    spec = replace(
        ball(14.0, (45.0, 40.0, 40.0)), radii_mm=(16.0, 12.0, 14.0), irregularity=irregularity
    )
    found = rasterize((spec,), liver, (1.5, 1.0, 1.0))
    instances, kept = found.instances, found.specs
    expected = 4 / 3 * np.pi * np.prod(spec.radii_mm)
    assert len(kept) == 1
    assert (instances > 0).sum() * 1.5 == pytest.approx(expected, rel=0.03)


def test_closed_form_earlier_lesion_keeps_its_voxels_and_lost_ones_leave_the_list() -> None:
    liver = np.ones((30, 30, 30), bool)
    first, buried = ball(10.0, (15.0, 15.0, 15.0)), ball(4.0, (15.0, 15.0, 15.0))
    last = ball(3.0, (4.0, 4.0, 4.0))
    found = rasterize((first, buried, last), liver, (1.0, 1.0, 1.0))
    instances, kept = found.instances, found.specs
    assert [spec.id for spec in kept] == [1, 2]
    assert kept[1].center_mm == last.center_mm
    assert instances[15, 15, 15] == 1
    assert instances[4, 4, 4] == 2


def test_closed_form_capsule_is_outside_and_scar_inside() -> None:
    liver = np.ones((50, 50, 50), bool)
    base = ball(18.0, (25.0, 25.0, 25.0))
    hcc = replace(base, type="hcc", kind="hcc", traits=("capsule",))
    parts = rasterize((hcc,), liver, (1.0, 1.0, 1.0)).parts
    offsets = np.argwhere(parts == Part.CAPSULE) - 25.0
    assert np.linalg.norm(offsets, axis=1).min() > 15
    fnh = replace(base, type="fnh", kind="fnh", traits=("scar",))
    parts = rasterize((fnh,), liver, (1.0, 1.0, 1.0)).parts
    offsets = np.argwhere(parts == Part.SCAR) - 25.0
    assert len(offsets)
    assert np.linalg.norm(offsets, axis=1).max() < 12


def test_closed_form_a_fifth_of_patients_are_tumor_free_and_sizes_are_bounded() -> None:
    z, y, x = np.ogrid[-14:15, -14:15, -14:15]
    liver = (z * z + y * y + x * x) < 13**2
    drawn = [
        draw_lesions(liver, (6.0, 6.0, 6.0), (0.0, 0.0, 0.0), np.random.default_rng(seed))
        for seed in range(300)
    ]
    free = np.mean([not specs for specs in drawn])
    assert 0.13 < free < 0.27  # 20 % +- 3 SD of 300 draws
    assert 1 <= max(len(specs) for specs in drawn) <= 15
    specs = [spec for patient in drawn for spec in patient]
    diameters = [2 * float(np.prod(spec.radii_mm)) ** (1 / 3) for spec in specs]
    assert min(diameters) > 2.9
    assert max(diameters) < 120.1
    assert {spec.type for spec in specs} == set(LESION_TYPES)
    for patient in drawn:
        for i, a in enumerate(patient):
            for b in patient[i + 1 :]:
                apart = np.linalg.norm(np.subtract(a.center_mm, b.center_mm))
                assert apart > max(a.radii_mm) + max(b.radii_mm)


def test_closed_form_no_liver_no_lesions() -> None:
    nothing = np.zeros((4, 4, 4), bool)
    assert draw_lesions(nothing, COARSE_MM, (0.0, 0.0, 0.0), np.random.default_rng(1)) == ()


def test_closed_form_rare_kinds_are_twelve_or_more_and_four_wait_for_the_test() -> None:
    assert len(OTHER_ALL) >= 12
    assert len(set(OTHER_ALL) - set(OTHER_SEEN)) == 4
    assert {kind.type for kind in KINDS.values()} == set(LESION_TYPES)
    only_other = replace(
        POPULATIONS["general"], primary=(0, 0, 0, 0, 0, 0, 0, 1), companions=0.0, tumor_free=0.0
    )
    drawn = {
        name: {
            spec.kind
            for seed in range(120)
            for spec in draw_lesions(
                a_liver(), COARSE_MM, (0.0, 0.0, 0.0), np.random.default_rng(seed), one
            )
        }
        for name, one in (("seen", only_other), ("all", replace(only_other, rare="all")))
    }
    assert drawn["seen"] == set(OTHER_SEEN)
    assert drawn["all"] == set(OTHER_ALL)


def test_property_shares_of_a_population_are_kept() -> None:
    one_type = replace(
        POPULATIONS["sam_urim"], primary=(0, 0, 0, 0, 1, 0, 0, 0), tumor_free=0.0, companions=0.0
    )
    for seed in range(20):
        rng = np.random.default_rng(seed)
        specs = draw_lesions(a_liver(), COARSE_MM, (0.0, 0.0, 0.0), rng, one_type)
        assert specs
        assert {spec.type for spec in specs} == {"fnh"}
    with pytest.raises(UsageError, match="general"):
        population("everyone")


def test_closed_form_margin_is_half_and_half_on_the_border_and_fades_over_its_width() -> None:
    liver = np.ones((60, 60, 60), bool)
    spec = replace(ball(14.0, (30.0, 30.0, 30.0)), margin_mm=6.0)
    found = rasterize((spec,), liver, (1.0, 1.0, 1.0))
    radius = np.linalg.norm(np.argwhere(found.mixed > 0) - 30.0, axis=1)
    assert radius.min() > 14 - 3.1
    assert radius.max() < 14 + 3.1
    border = found.mixed[30, 30, [43, 44, 45]].astype(float) / 255
    assert border[1] == pytest.approx(0.5, abs=0.04)
    assert border[0] == pytest.approx(0.5 - 1 / 6, abs=0.06)
    assert (found.fringe[found.mixed > 0] == 1).all()
    sharp = rasterize((replace(spec, margin_mm=0.0),), liver, (1.0, 1.0, 1.0))
    assert not sharp.mixed.any()
    assert (sharp.instances == found.instances).all()


def test_oracle_mixture_of_subslices_against_counting() -> None:
    rng = np.random.default_rng(4)
    first = rng.integers(0, 3, (6, 4, 5)).astype(np.uint16)
    second = rng.integers(0, 3, (6, 4, 5)).astype(np.uint16)
    share = rng.integers(0, 128, (6, 4, 5)).astype(np.uint8)
    found = mix(Mixture(first, second, share), 3)
    for z in range(2):
        for y in range(4):
            for x in range(5):
                weight = dict.fromkeys(range(3), 0.0)
                for k in range(3 * z, 3 * z + 3):
                    part = share[k, y, x] / 255
                    weight[int(first[k, y, x])] += 1 - part
                    weight[int(second[k, y, x])] += part
                ranked = sorted(weight, key=lambda code: -weight[code])
                best, runner = ranked[:2]
                assert weight[int(found.first[z, y, x])] == pytest.approx(weight[best], abs=1e-6)
                expected = 255 * weight[runner] / (weight[best] + weight[runner])
                assert float(found.share[z, y, x]) == pytest.approx(expected, abs=0.51)
    assert [subslices(s) for s in (0.8, 1.6, 2.5, 5.0, 10.0)] == [1, 1, 2, 3, 3]


def test_property_codes_and_back(lesion_patient: Anatomy) -> None:
    code = codes(lesion_patient.tissue, lesion_patient.instances, lesion_patient.parts)
    tissue, instances, parts = from_codes(code)
    assert (tissue == lesion_patient.tissue).all()
    assert (instances == lesion_patient.instances).all()
    assert (parts == lesion_patient.parts).all()


@pytest.fixture(scope="module")
def lesion_patient() -> Anatomy:
    always = replace(POPULATIONS["general"], tumor_free=0.0)
    return anatomy(11, field="liver", spacing_mm=(4.0, 3.0, 3.0), population=always)


def test_property_second_tissue_and_share_fit_together(lesion_patient: Anatomy) -> None:
    assert lesion_patient.second is not None
    assert lesion_patient.share is not None
    pure = lesion_patient.share == 0
    code = codes(lesion_patient.tissue, lesion_patient.instances, lesion_patient.parts)
    assert 0.02 < (~pure).mean() < 0.5
    assert int(lesion_patient.share.max()) <= 128
    assert (lesion_patient.second[~pure] != code[~pure]).all()
    assert code.max() < len(Tissue) + len(lesion_patient.lesions) * len(Part)


def test_closed_form_retraction_dents_the_capsule_nearest_to_the_lesion() -> None:
    liver = np.zeros((60, 60, 80), bool)
    liver[:, :, 20:] = True
    near = replace(
        ball(12.0, (30.0, 30.0, 33.0)),
        traits=("retraction",),
        outward=(0.0, 0.0, -1.0),
        depth_mm=13.0,
    )
    dent = retract(near, liver, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    assert dent is not None
    where = np.argwhere(dent)
    assert (where[:, 2] >= 20).all()
    assert where[:, 2].max() == pytest.approx(23, abs=1)
    assert np.abs(where.mean(axis=0)[:2] - 30).max() < 1
    deep = replace(near, depth_mm=60.0)
    assert retract(deep, liver, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)) is None


def test_closed_form_wedge_widens_towards_the_capsule() -> None:
    liver = np.ones((60, 60, 60), bool)
    wedge = Wedge((30.0, 30.0, 40.0), (0.0, 0.0, -1.0), 38.0, 0.5)
    mask = wedge_mask(wedge, liver, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    area = mask.sum(axis=(0, 1))
    assert area[41:].sum() == 0
    assert area[5] > area[20] > area[35] > 0
    assert area[20] == pytest.approx(np.pi * 12**2, rel=0.1)


def test_property_readers_stay_within_a_millimeter_or_so_and_lose_no_lesion() -> None:
    z, y, x = np.ogrid[:40, :60, :60]
    instances = ((z - 20) ** 2 + (y - 20) ** 2 + (x - 20) ** 2 < 10**2).astype(np.uint8)
    instances[(z - 20) ** 2 + (y - 45) ** 2 + (x - 45) ** 2 < 2**2] = 2
    liver = np.ones(instances.shape, bool)
    volumes = []
    for seed in range(9):
        drawn = readers_view(instances, liver, (1.0, 1.0, 1.0), np.random.default_rng(seed))
        assert set(np.unique(drawn)) == {0, 1, 2}
        far = ndimage.distance_transform_edt(instances != 1)[drawn == 1]
        deep = ndimage.distance_transform_edt(instances == 1)[(instances == 1) & (drawn != 1)]
        assert far.max() <= 2.0
        assert deep.size == 0 or deep.max() <= 2.0
        volumes.append(int((drawn == 1).sum()))
    assert (
        min(volumes) < 0.92 * (instances == 1).sum() < 1.08 * (instances == 1).sum() < max(volumes)
    )
