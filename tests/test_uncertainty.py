"""The map of doubt: its values, its place in the patient, and that nobody pays for it unasked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from aligned_cases import aligned_study, ellipsoid
from fake_systems import Echo, spec_2d, spec_3d
from hepar.geometry import Grid
from hepar.infer import openvino as door
from hepar.infer.bundle import Model
from hepar.infer.calibrate import temper
from hepar.infer.tiling import Tiling, predict
from hepar.infer.uncertainty import BothAnswers, both_answers, uncertainty
from hepar.preprocess import liver_box
from hepar.render.overlay import CODE
from hepar.render.pictures import report_figures
from hepar.stages.report import compose, write_report
from hepar.stages.tumor import find_lesions
from hepar.study import Diagnosis, LiverCase
from hepar.systems.baselines.hu_threshold import HuThresholdSettings
from hepar.systems.baselines.multiphase_unet3d.settings import MultiphaseUnet3dSettings
from hepar.systems.baselines.multiphase_unet3d.system import MultiphaseUnet3d
from hepar.systems.sam_urim.settings import SamUrimSettings
from hepar.systems.sam_urim.system import SamUrim
from hepar.systems.sam_urim.uncertain_region_inpainting import confidence
from liver_case import liver_case

PHASES = ("NC", "ART", "PV", "DL")
ALL = torch.ones(1, 4, dtype=torch.bool)


# ---- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probabilities", "value"),
    [
        ((0.5, 0.5), 1.0),
        ((0.4, 0.4, 0.2), 1.0),
        ((0.6, 0.4), np.exp(-0.5)),
        ((0.25, 0.75), np.exp(-2.0)),
        ((0.3, 0.1, 0.6), np.exp(-1.0)),  # the two largest, whatever the third
        ((1.0, 0.0), 0.0),
        ((0.0, 1.0, 0.0), 0.0),
        ((0.999, 0.001), 0.0),
        ((0.0, 0.0), 0.0),  # not seen
    ],
)
def test_closed_form_values(probabilities, value):
    found = uncertainty(np.array(probabilities, dtype=np.float32).reshape(-1, 1, 1))
    assert found.dtype == np.float32
    assert found.shape == (1, 1)
    assert found.item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_oracle_the_map_is_one_minus_the_confidence_of_the_logits(classes):
    generator = torch.Generator().manual_seed(classes)
    logits = 2 * torch.randn(1, classes, 7, 8, 9, generator=generator, dtype=torch.float64)
    expected = 1 - confidence(logits)[0, 0].numpy()
    found = uncertainty(logits.softmax(1)[0].numpy().astype(np.float32))
    np.testing.assert_allclose(found, expected, atol=2e-6)


@given(
    arrays.arrays(np.float32, (3, 4, 5), elements=st.floats(0, 1, width=32)),
    st.floats(0.1, 10.0),
)
def test_property_in_the_unit_interval_without_nan(probability, temperature):
    found = uncertainty(probability, temperature)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert ((found >= 0) & (found <= 1)).all()
    np.testing.assert_array_equal(found, uncertainty(probability[::-1], temperature))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_closed_form_with_two_classes_it_is_the_doubt_of_the_tempered_probability(temperature):
    tumor = np.linspace(0.01, 0.99, 99, dtype=np.float32)
    tempered = temper(tumor, temperature)
    found = uncertainty(np.stack([1 - tumor, tumor]), temperature)
    expected = uncertainty(np.stack([1 - tempered, tempered]))
    np.testing.assert_allclose(found, expected, atol=1e-5)


# ---- through tiling ------------------------------------------------------------------------------


def _lite(**changes: object) -> SamUrim:
    torch.manual_seed(0)
    small = {"pyramid_width": 2, "decoder_width": 8, "urim_width": 8, "patch": (32, 32)}
    settings = SamUrimSettings.preset("lite").model_dump() | small | changes
    return SamUrim(SamUrimSettings(**settings)).eval()


def _tiny(**changes: object) -> MultiphaseUnet3d:
    torch.manual_seed(0)
    update = {"urim": True, "urim_width": 4} | changes
    return MultiphaseUnet3d(
        MultiphaseUnet3dSettings.preset("tiny").model_copy(update=update)
    ).eval()


def test_oracle_an_untiled_pass_is_the_confidence_of_its_logits():
    system = _tiny()
    rng = np.random.default_rng(0)
    hu = {p: rng.integers(-100, 200, (16, 16, 16)).astype(np.int16) for p in PHASES}
    final, first = both_answers(predict(BothAnswers(system), hu, (4.0, 4.0, 4.0)))
    windows = system.input_spec.windows_hu
    image = np.stack(
        [
            np.stack([np.clip((hu[p] - low) / (high - low), 0, 1) for low, high in windows])
            for p in system.input_spec.phases
        ]
    )
    with torch.no_grad():
        outputs = system(torch.from_numpy(image).float()[None], ALL)
    for found, logits in ((final, outputs.final), (first, outputs.initial)):
        np.testing.assert_allclose(uncertainty(found), 1 - confidence(logits)[0, 0], atol=1e-4)
    assert np.abs(uncertainty(final) - uncertainty(first)).max() > 0.01


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("make", [_lite, _tiny])
def test_property_both_answers_are_averaged_like_one(make, flips):
    """The final answer is the same as alone, the first one sums to 1, mirrored or not."""
    system = make()
    shape = (6, 40, 32) if system.input_spec.dims == 2 else (18, 40, 32)
    rng = np.random.default_rng(1)
    hu = {"PV": rng.integers(-100, 200, shape).astype(np.int16)}
    liver = np.zeros(shape, dtype=bool)
    liver[1:5, 4:14, 3:12] = True
    tiling = Tiling(flips=flips, budget_bytes=8 << 20)
    spacing = (2.5, 1.5, 1.5)
    alone = predict(system, hu, spacing, liver=liver, tiling=tiling)
    system.train()
    found = predict(BothAnswers(system), hu, spacing, liver=liver, tiling=tiling)
    assert system.training  # left as it was
    final, first = both_answers(found)
    np.testing.assert_allclose(final, alone, atol=1e-5)
    np.testing.assert_allclose(first.sum(0), 1.0, atol=1e-5)
    if system.input_spec.needs_liver:
        assert (uncertainty(first)[~liver] == 0).all()
        assert (uncertainty(final)[~liver] == 0).all()


def test_oracle_openvino_gives_both_answers(monkeypatch):
    """Of the 3D network; the 2D one cannot be traced through the type checks of a test run."""
    pytest.importorskip("openvino", reason="the extra [fast] is not installed")
    compiled = []
    original = door._compile
    monkeypatch.setattr(
        door, "_compile", lambda *given: compiled.append(original(*given)) or compiled[-1]
    )
    system, shape = _tiny(), (16, 16, 16)
    rng = np.random.default_rng(2)
    hu = {p: rng.integers(-100, 200, shape).astype(np.int16) for p in PHASES}
    liver = np.ones(shape, dtype=bool)
    both = BothAnswers(system)
    runner = door.OpenVino()

    def answer(runner_for):
        tiling = Tiling(runner_for=runner_for)
        return predict(both, hu, (2.5, 1.5, 1.5), liver=liver, tiling=tiling)

    # The first study passes the gate, the second has OpenVINO's answers.
    eager, first, fast = answer(None), answer(runner), answer(runner)
    np.testing.assert_allclose(first, eager, atol=1e-5)
    assert compiled
    assert all(one is not None for one in compiled)
    np.testing.assert_allclose(fast, eager, atol=1e-3)


# ---- through the stage ---------------------------------------------------------------------------

GRID = Grid.axial((24, 60, 64), (3.0, 1.5, 1.5))


def _case() -> tuple[LiverCase, np.ndarray]:
    middle = GRID.index_to_world((np.array(GRID.shape) - 1) / 2)
    liver = ellipsoid(GRID, tuple(middle), (30.0, 38.0, 40.0))
    lesion = ellipsoid(GRID, tuple(middle), (15.0, 14.0, 14.0))
    hu = np.full(GRID.shape, -80, dtype=np.int16)
    hu[liver], hu[lesion] = 0, 100
    rim = ellipsoid(GRID, tuple(middle), (19.0, 18.0, 18.0)) & ~lesion
    hu[rim] = 50
    box = liver_box(liver, GRID, 10.0)
    assert box is not None
    case = LiverCase(
        aligned_study({"PV": hu}, GRID), liver, box, float(liver.sum()) * GRID.voxel_ml
    )
    return case, rim


class Hesitant(Echo):
    """Says first that everything is a tie, then what `Echo` says."""

    def initial(self, outputs: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.full_like(outputs, 0.5)] * 2, dim=1)


def test_closed_form_doubt_lies_where_the_image_is_between():
    case, rim = _case()
    model = Model("tumor", Echo(spec_2d(phases=("PV",), stride=4)), {})
    found = find_lesions(case, model, uncertainty=True)[1]
    assert found.uncertainty is not None
    assert found.uncertainty_before is None
    assert found.uncertainty.dtype == np.float32
    expected = rim[case.box.slices].astype(np.float32)
    np.testing.assert_allclose(found.uncertainty, expected, atol=1e-5)


def test_closed_form_doubt_before_and_after_and_none_outside():
    case, rim = _case()
    spec = spec_2d(phases=("PV",), stride=4, spacing_mm=(3.0, 2.0, 2.0), refines=True)
    found = find_lesions(case, Model("tumor", Hesitant(spec), {}), uncertainty=True)[1]
    inside = case.liver[case.box.slices]
    assert found.uncertainty is not None
    assert found.uncertainty_before is not None
    np.testing.assert_allclose(found.uncertainty_before[inside], 1.0, atol=1e-5)
    for one in (found.uncertainty, found.uncertainty_before):
        assert one.shape == case.box.shape
        assert not one[~inside].any()
    middle = rim[case.box.slices]
    assert found.uncertainty[middle].mean() > 0.5 > 0.1 > found.uncertainty[inside & ~middle].mean()


class Counting(Hesitant):
    """Counts how often the first answer is asked for."""

    asked = 0

    def initial(self, outputs: torch.Tensor) -> torch.Tensor:
        Counting.asked += 1
        return super().initial(outputs)


def test_property_nothing_is_computed_unasked_and_nothing_else_changes():
    case, _ = _case()
    model = Model("tumor", Counting(spec_2d(phases=("PV",), stride=4, refines=True)), {})
    plain = find_lesions(case, model)[1]
    assert Counting.asked == 0
    assert plain.uncertainty is None
    assert plain.uncertainty_before is None
    asked = find_lesions(case, model, uncertainty=True)[1]
    assert Counting.asked > 0
    np.testing.assert_array_equal(plain.probability, asked.probability)
    np.testing.assert_array_equal(plain.label, asked.label)
    assert plain.lesions == asked.lesions
    threshold = find_lesions(case, HuThresholdSettings(), uncertainty=True)[1]
    assert threshold.uncertainty is None


def test_closed_form_a_temperature_softens_the_map_with_the_probability():
    case, _ = _case()
    case.aligned.volumes["PV"].array[case.liver] = 75
    system = Echo(spec_3d(class_names=("background", "tumor"), needs_liver=True, stride=4))
    maps = [
        find_lesions(case, Model("tumor", system, {"temperature": t}), uncertainty=True)[1]
        for t in (1.0, 2.0)
    ]
    inside = case.liver[case.box.slices]
    for found, ratio in zip(maps, (3.0, 3.0**0.5), strict=True):
        np.testing.assert_allclose(found.uncertainty[inside], np.exp(1 - ratio), atol=1e-5)
        odds = found.probability[inside] / (1 - found.probability[inside])
        np.testing.assert_allclose(odds, ratio, rtol=1e-4)


# ---- on disk -------------------------------------------------------------------------------------


def _written(folder: Path, *, before: bool, probabilities: bool) -> None:
    """A report whose maps are the first lesion, and its half."""
    case, lesions = liver_case(shape=(20, 60, 80))
    one = (lesions.instances[case.box.slices] == 1).astype(np.float32)
    lesions = replace(
        lesions,
        uncertainty=one if probabilities else None,
        uncertainty_before=one / 2 if before and probabilities else None,
    )
    folder.mkdir()
    findings = compose(case, lesions, Diagnosis(lesions=(), patient={}), {"hepar": "0"})
    write_report(findings, case, lesions, folder, probabilities=probabilities)


@pytest.mark.parametrize("before", [False, True])
def test_oracle_the_maps_lie_on_the_voxels_of_the_segmentation(tmp_path, before):
    _written(tmp_path / "out", before=before, probabilities=True)
    ids, label, found = (
        nibabel.load(tmp_path / "out" / f"{name}.nii.gz")
        for name in ("lesions", "segmentation", "uncertainty")
    )
    np.testing.assert_array_equal(found.affine, label.affine)
    assert found.get_data_dtype() == np.float32
    np.testing.assert_array_equal(found.get_fdata() == 1, np.asarray(ids.dataobj) == 1)
    path = tmp_path / "out" / "uncertainty_before.nii.gz"
    assert path.exists() is before
    if before:
        np.testing.assert_array_equal(nibabel.load(path).get_fdata(), found.get_fdata() / 2)
    assert (tmp_path / "out" / "overlay" / "uncertainty.png").exists()
    assert "uncertainty" in (tmp_path / "out" / "report.html").read_text().lower()


def test_property_no_map_and_no_picture_without_the_flag(tmp_path):
    _written(tmp_path / "out", before=True, probabilities=False)
    assert not list((tmp_path / "out").rglob("*uncertainty*"))


@pytest.mark.parametrize("n_lesions", [0, 1])
def test_closed_form_the_picture_shows_the_slice_and_one_panel_a_map(n_lesions):
    case, lesions = liver_case(shape=(20, 60, 80), n_lesions=n_lesions)
    assert "uncertainty" not in {figure.name for figure in report_figures(case, lesions)}
    doubt = np.zeros(case.box.shape, dtype=np.float32)
    doubt[case.box.shape[0] // 2, 10:20, 10:20] = 1.0
    widths = []
    for before in (None, doubt):
        found = replace(lesions, uncertainty=doubt, uncertainty_before=before)
        figures = {figure.name: figure for figure in report_figures(case, found)}
        codes = figures["uncertainty"].picture.codes
        assert (codes > CODE["lesion"]).any() or n_lesions
        widths.append(figures["uncertainty"].panels)
    assert widths == [2, 3]


def test_property_an_absent_second_answer_is_told_by_the_spec():
    assert not _lite(urim=False).input_spec.refines
    assert _lite().input_spec.refines
    assert not _tiny(urim=False).input_spec.refines
    assert not spec_2d().refines
