"""What a patient gets from a typed system: lesions of their types, LiverMax, and words for both."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from aligned_cases import aligned_study, ellipsoid
from fake_systems import PaintedTypes
from hepar.errors import InputRefused
from hepar.geometry import Grid
from hepar.infer.bundle import Model, export_part, write_bundle
from hepar.infer.calibrate import TumorCalibration, fit_types, temper_types
from hepar.infer.lesion_map import lesions_from_types, type_chances, type_means
from hepar.lesion_evidence import PICTURED
from hepar.preprocess import liver_box
from hepar.recipe import parse_recipe
from hepar.render.page import evidence, headline, render_page
from hepar.render.pictures import report_figures
from hepar.stages.diagnose import NOT_SURE, TUMOR_FREE, diagnose
from hepar.stages.report import compose
from hepar.stages.tumor import find_lesions, look, with_outline
from hepar.study import LESION_TYPES, Diagnosis, Findings, LesionMap, LiverCase, PhaseReading
from hepar.systems import table

SPACING = (3.0, 2.0, 2.0)
GRID = Grid.axial((28, 64, 64), SPACING)
MIDDLE = tuple(float(v) for v in GRID.index_to_world((np.array(GRID.shape) - 1) / 2))
RADII_MM = (38.0, 55.0, 55.0)
HCC, ICC, CYST = 10, 20, 60


def patient(
    *lesions: tuple[int, tuple[float, float, float], float],
    liver_hu: int = 90,
    radii_mm: tuple[float, float, float] = RADII_MM,
) -> LiverCase:
    """A liver whose HU are the map of `PaintedTypes`; lesions: HU, offset (x, y, z) mm, radius."""
    organ = ellipsoid(GRID, MIDDLE, radii_mm)
    hu = np.where(organ, liver_hu, 0).astype(np.int16)
    for value, offset, radius in lesions:
        center = tuple(a + b for a, b in zip(MIDDLE, offset, strict=True))
        hu[ellipsoid(GRID, center, (radius,) * 3)] = value
    box = liver_box(organ, GRID, 10.0)
    assert box is not None
    aligned = aligned_study({"PV": hu}, GRID)
    reading = PhaseReading(aligned.reference, 1.0, "stated", "s0")
    aligned = replace(aligned, phased=replace(aligned.phased, readings=(reading,)))
    return LiverCase(aligned, organ, box, float(organ.sum()) * GRID.voxel_ml)


def found(case: LiverCase, **calibration: float) -> tuple[LiverCase, LesionMap, Diagnosis]:
    liver, lesions = find_lesions(case, Model("tumor", PaintedTypes(), calibration))
    return liver, lesions, diagnose(liver, lesions, None)


def report(case: LiverCase, lesions: LesionMap, diagnosis: Diagnosis) -> tuple[Findings, str]:
    findings = compose(case, lesions, diagnosis, {"hepar": "0"})
    return findings, render_page(findings, (), (), {})


def test_closed_form_a_cyst_that_touches_a_tumor_stays_a_cyst():
    case = patient((HCC, (-12, 0, 0), 12.0), (CYST, (8, 0, 0), 9.0))
    _, lesions, diagnosis = found(case)
    assert [d.label for d in diagnosis.lesions] == ["hcc", "cyst"]
    assert not any(d.abstained for d in diagnosis.lesions)
    assert diagnosis.lesions[0].probabilities["hcc"] == pytest.approx(1.0, abs=1e-6)
    assert diagnosis.method == "network"
    assert diagnosis.patient["hcc"] == diagnosis.patient["cyst"] == 1.0
    assert diagnosis.patient["fnh"] == 0.0
    assert diagnosis.groups == {"malignant": 1.0, "benign": 1.0}
    touching = lesions.instances[:, 32]
    assert {1, 2} <= set(np.unique(touching))


def test_closed_form_types_within_one_piece_are_shares_of_its_voxels():
    """Tumors of two types that touch are one lesion, whose probabilities are the voxels' shares."""
    case = patient((HCC, (-8, 0, 0), 12.0), (ICC, (8, 0, 0), 10.0))
    hu = case.aligned.volumes[case.aligned.reference].array
    share = float((hu == HCC).sum() / ((hu == HCC) | (hu == ICC)).sum())
    _, lesions, diagnosis = found(case, type_threshold=0.9)
    assert len(lesions.lesions) == 1
    only = diagnosis.lesions[0]
    assert only.probabilities["hcc"] == pytest.approx(share, abs=1e-6)
    assert only.probabilities["icc"] == pytest.approx(1 - share, abs=1e-6)
    assert (only.label, only.abstained, only.reason) == ("uncertain", True, NOT_SURE)
    (seen,) = lesions.types.maps
    middle = case.aligned.volumes[case.aligned.reference].array[case.box.slices][14]
    assert seen.dtype == np.float16
    np.testing.assert_array_equal(seen, middle == HCC)
    cold = found(case, type_temperature=0.5)[2].lesions[0]
    odds = (share / (1 - share)) ** 2
    assert cold.probabilities["hcc"] == pytest.approx(odds / (1 + odds), abs=1e-6)


def test_closed_form_the_report_shows_where_the_network_sees_each_type():
    case = patient((HCC, (-12, 0, 0), 12.0), (CYST, (8, 0, 0), 9.0))
    liver, lesions, diagnosis = found(case)
    figures = report_figures(liver, lesions)
    maps = [figure for figure in figures if figure.of_type]
    assert [(m.lesion_id, m.of_type) for m in maps] == [(1, "hcc"), (2, "cyst")]
    assert figures[-2:] == tuple(maps)
    pngs = {figure.name: figure.picture.png() for figure in figures}
    findings = compose(liver, lesions, diagnosis, {})
    html = render_page(findings, (), figures, pngs)
    assert "Where the network sees HCC:" in html
    assert "Where the network sees cyst:" in html
    assert html.count("<img ") == len(figures)


def test_closed_form_a_lesion_at_the_edge_of_the_liver_is_whole():
    """Half of it hangs out of the coarse mask; the network's own outline holds all of it."""
    case = patient((30, (50, 0, 0), 10.0))
    liver, lesions, diagnosis = found(case)
    truth = case.aligned.volumes[case.aligned.reference].array == 30
    assert (truth & ~case.liver).sum() > 0.2 * truth.sum()
    np.testing.assert_array_equal(lesions.instances > 0, truth)
    assert liver.liver[truth].all()
    assert diagnosis.lesions[0].label == "metastasis"
    assert report(liver, lesions, diagnosis)[0].lesions[0].features


def test_closed_form_sixty_lesions():
    steps = (-33.0, -21.0, -9.0, 3.0, 15.0, 27.0)
    places = [(x, y, z) for z in (-18.0, 0.0, 18.0) for y in steps for x in steps]
    kept = [p for p in places if np.hypot(p[0], p[1]) < 44][:60]
    case = patient(*((10 * (1 + k % 8), p, 4.2) for k, p in enumerate(kept)))
    _, lesions, diagnosis = found(case)
    assert len(lesions.lesions) == len(diagnosis.lesions) == 60
    hu = case.aligned.volumes[case.aligned.reference].array
    for lesion, judged in zip(lesions.lesions, diagnosis.lesions, strict=True):
        painted = set(hu[lesions.instances == lesion.id].tolist())
        assert {10 * (1 + LESION_TYPES.index(judged.label))} == painted
    assert len(lesions.types.maps) == PICTURED
    findings, html = report(case, lesions, diagnosis)
    assert html.count('class="mark ') >= 60 * 8
    assert headline(findings).startswith("60 lesions were found.")
    assert "a rare type or none of the seven" in html


def test_closed_form_no_lesion_still_has_a_patient():
    """Below the threshold nothing is reported; LiverMax says what was suspected."""
    case = patient((87, (0, 0, 0), 10.0))
    liver, lesions, diagnosis = found(case)
    assert lesions.lesions == diagnosis.lesions == ()
    assert diagnosis.patient[TUMOR_FREE] == 1.0
    assert diagnosis.patient["other"] == pytest.approx(0.3, abs=1e-3)
    assert diagnosis.groups == {"malignant": 0.0, "benign": 0.0}
    findings, html = report(liver, lesions, diagnosis)
    assert "No lesion was found in the liver." in html
    assert "anywhere in the liver" in html
    assert "&ldquo;No lesion&rdquo;" not in html
    assert Findings.model_validate_json(findings.model_dump_json()) == findings


def test_closed_form_no_liver():
    """What was taken for a small liver, and is none to the network, is refused."""
    with pytest.raises(InputRefused) as refused:
        found(patient(liver_hu=0, radii_mm=(20.0, 25.0, 25.0)))
    assert refused.value.code == "E_NO_LIVER"


def test_closed_form_threshold_and_smallest_volume_come_from_the_calibration():
    case = patient((80, (0, 0, 0), 12.0), (84, (26, 0, 0), 8.0), (HCC, (-26, 0, 0), 4.0))
    assert len(found(case, min_volume_ml=0.0)[1].lesions) == 3
    assert len(found(case, min_volume_ml=0.0, threshold=0.7)[1].lesions) == 2
    assert len(found(case, min_volume_ml=1.0)[1].lesions) == 2


def test_oracle_type_chances_are_renormalized_means():
    generator = np.random.default_rng(2)
    types = generator.dirichlet(np.ones(10), (3, 4, 5)).transpose(3, 0, 1, 2).astype(np.float16)
    instances = generator.integers(0, 4, (3, 4, 5)).astype(np.uint16)
    instances[instances == 2] = 0
    instances[0, 0, 0] = 3
    chances = type_chances(types, instances, 2.0)
    for number in (1, 3):
        rows = [types[:, i, j, k] for i, j, k in np.argwhere(instances == number)]
        means = [sum(float(row[1 + t]) for row in rows) / len(rows) for t in range(8)]
        np.testing.assert_allclose(type_means(types, instances)[number - 1], means)
        roots = [np.sqrt(m) for m in means]
        for t, name in enumerate(LESION_TYPES):
            assert chances[number - 1][name] == pytest.approx(roots[t] / sum(roots))
    assert chances[1] == pytest.approx(dict.fromkeys(LESION_TYPES, 1 / 8))


def test_oracle_the_temperature_undoes_overconfidence():
    generator = np.random.default_rng(4)
    right = generator.dirichlet(np.full(8, 0.2), 3000)
    truth = np.array([generator.choice(8, p=row) for row in right])
    shown = temper_types(right, 0.5)
    temperature, threshold = fit_types(shown, truth, precision=0.8)
    assert temperature == pytest.approx(2.0, rel=0.1)
    chances = temper_types(shown, temperature)
    answered = chances.max(axis=1) >= threshold
    assert (chances.argmax(axis=1) == truth)[answered].mean() >= 0.8
    assert 0.2 < answered.mean() < 1.0


def test_closed_form_evidence_in_words_gives_a_shared_reason_once():
    case = patient((HCC, (0, 0, 0), 14.0))
    lesion = compose(*found(case), {}).lesions[0]
    said = evidence(lesion)
    assert ("At least 10 mm", "The long axis measures 29 mm.") in said.present
    reasons = dict(said.open)
    assert reasons["There is no arterial phase."] == (
        "Nonrim arterial hyperenhancement",
        "Rim arterial hyperenhancement",
        "Peripheral nodular enhancement",
    )


def test_property_a_bundle_of_lidia_goes_the_whole_way(tmp_path):
    """Untrained weights: what they see is nothing, but every stage takes it."""
    torch.manual_seed(0)
    levels = {
        "channels": (4, 6, 8, 8),
        "strides": ((1, 2, 2), (2, 2, 2), (2, 2, 2)),
        "kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
        "memory_levels": (3, 2, 1),
    }
    queries = {"queries": 8, "width": 12, "heads": 2, "feedforward": 16, "contrast_width": 6}
    seen_at = {"spacing_mm": SPACING, "patch": (16, 64, 64)}
    recipe = parse_recipe(
        {
            "name": "lidia-tiny",
            "system": {"name": "lidia", **seen_at, **levels, **queries},
            "data": {"kind": "cohort", "path": "cohort.csv"},
            "schedule": {"steps": 1},
        }
    )
    calibration = {"threshold": 0.05, "type_temperature": 2.0, "type_threshold": 0.4}
    state = table.build(recipe.system).state_dict()
    export_part(recipe, state, calibration, tmp_path / "part")
    parts = {"tumor": tmp_path / "part"}
    model = write_bundle(tmp_path / "lidia", parts, name="lidia", version="1").model("tumor")
    case = patient((HCC, (0, 0, 0), 14.0), radii_mm=(40.4, 62.0, 62.0))
    seen = look(case, model)
    assert seen.types is not None
    assert (seen.types.dtype, seen.types.shape) == (np.float16, (10, *case.box.shape))
    np.testing.assert_allclose(seen.types[1:9].sum(0, dtype=np.float32), seen.tumor, atol=4e-3)
    liver = with_outline(case, seen)
    point = TumorCalibration.model_validate(dict(model.calibration))
    lesions = lesions_from_types(liver, seen.types, seen.tumor, point)
    assert lesions.types is not None
    assert (lesions.types.temperature, lesions.types.threshold) == (2.0, 0.4)
    assert len(lesions.types.lesions) == len(lesions.lesions)
    diagnosis = diagnose(liver, lesions, None)
    assert set(diagnosis.patient) == {TUMOR_FREE, *LESION_TYPES}
    assert report(liver, lesions, diagnosis)[0].diagnosis.method == "network"
