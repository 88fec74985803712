"""What is chosen on phantoms before weights ship."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hepar import release
from hepar.geometry import Box, Grid
from hepar.infer.bundle import Model, default_bundle_path, load_bundle
from hepar.phantom.anatomy import anatomy
from hepar.recipe import dump_recipe, load_recipe
from hepar.stages.tumor import Evidence
from hepar.study import LESION_TYPES, PHASE_ORDER, LiverCase, Phase, Volume
from hepar.systems.table import build
from hepar.train.checkpoint import write_tensors

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.fixture(autouse=True)
def _coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    def coarse(seed: int, **wanted):
        return anatomy(seed, spacing_mm=(6.0, 4.0, 4.0), **wanted)

    monkeypatch.setattr(release, "anatomy", coarse)


def test_closed_form_a_phantom_case_has_only_the_phases_asked_for():
    case = release.phantom_case(3).only((Phase.NC, Phase.DL))
    assert tuple(case.aligned.volumes) == (Phase.NC, Phase.DL)
    assert case.aligned.reference is Phase.DL
    assert case.label.shape == case.aligned.grid.shape == case.instances.shape
    assert set(np.unique(case.instances)) - {0} == set(case.types)


def test_property_subsets_of_phases_are_fixed_by_the_seed_and_never_empty():
    drawn = [release._some_phases(seed) for seed in range(60)]
    assert drawn == [release._some_phases(seed) for seed in range(60)]
    assert all(subset for subset in drawn)
    assert {len(subset) for subset in drawn} == {1, 2, 3, 4}
    assert any(Phase.PV not in subset for subset in drawn)
    assert all(set(subset) <= set(PHASE_ORDER) for subset in drawn)


def test_closed_form_curves_of_lesions_are_hu_and_contrast_in_four_phases():
    found = list(release.lesion_curves(range(20, 26), lambda message: None))
    assert found
    for features, kind in found:
        assert features.shape == (4, 2)
        assert np.isfinite(features).all()
        assert kind in LESION_TYPES


def test_closed_form_a_shipped_recipe_names_anatomies_without_their_folders():
    loaded = load_recipe(
        RECIPES / "liver" / "coarse.yaml", ["data.anatomies=[/home/me/secret/one]"]
    )
    assert release._without_paths(loaded).data.anatomies == (Path("one"),)
    tumor = load_recipe(
        RECIPES / "sam_urim" / "lite.yaml",
        [
            "schedule.initial_weights=/home/me/secret/best.safetensors",
            "data.bank=/home/me/a.bank",
        ],
    )
    shipped = release._without_paths(tumor)
    assert shipped.schedule.initial_weights == Path("best.safetensors")
    assert shipped.data == tumor.data.model_copy(update={"bank": Path("a.bank")})
    shapes = load_recipe(
        RECIPES / "tumor" / "multiphase.yaml", ["data.anatomies=[/home/me/secret/one]"]
    )
    assert release._without_paths(shapes).data.anatomies == (Path("one"),)


@pytest.mark.parametrize("typed", [True, False])
def test_closed_form_types_are_calibrated_on_what_was_marked_of_true_lesions(monkeypatch, typed):
    """Both lesions are right each time, so the temperature goes to its least, and one is missed."""
    grid = Grid.axial((6, 16, 16), (3.0, 2.0, 2.0))
    instances = np.zeros(grid.shape, dtype=np.uint8)
    instances[1:4, 2:6, 2:6], instances[1:4, 9:13, 9:13], instances[5, :2, :2] = 1, 2, 3
    types = np.zeros((10, *grid.shape), dtype=np.float16)
    types[-1] = 1.0
    for number, shares in ((1, {"hcc": 0.5, "icc": 0.3}), (2, {"cyst": 0.6, "other": 0.3})):
        types[:, instances == number] = 0
        for name, share in shares.items():
            types[1 + LESION_TYPES.index(name), instances == number] = share
    tumor = types[1:-1].sum(axis=0, dtype=np.float32)
    volumes = {phase: Volume(np.zeros(grid.shape, np.int16), grid) for phase in PHASE_ORDER}
    named = {1: "hcc", 2: "cyst", 3: "fnh"}
    aligned = release.aligned_phases(volumes)
    case = release.PhantomCase(aligned, (instances > 0).astype(np.uint8), instances, named)
    liver = LiverCase(aligned, np.ones(grid.shape, dtype=bool), Box.full(grid.shape), 1.0)
    seen = Evidence(tumor, None, types=types if typed else None)
    monkeypatch.setattr(release, "phantom_case", lambda seed: case)
    monkeypatch.setattr(release, "find_liver", lambda aligned, model, tiling: liver)
    monkeypatch.setattr(release, "look", lambda case, model, tiling: seen)
    model = Model("tumor", torch.nn.Identity())
    found = release.calibrate_tumor(
        model, model, patients=2, device="cpu", progress=lambda message: None
    )
    if typed:
        assert found["type_temperature"] == pytest.approx(0.1, rel=0.01)
        odds = (0.5 / 0.3) ** 10
        assert found["type_threshold"] == pytest.approx(odds / (1 + odds), rel=1e-2)
    else:
        assert (found["type_temperature"], found["type_threshold"]) == (1.0, 0.5)


def test_property_a_tumor_run_is_released_behind_the_shipped_liver_network(monkeypatch, tmp_path):
    recipe = load_recipe(
        RECIPES / "lidia" / "ifm.yaml", (), base=RECIPES / "lidia" / "scale" / "toy.yaml"
    )
    system = build(recipe.system)
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(dump_recipe(recipe))
    write_tensors(run / "best.safetensors", system.state_dict(), {})
    chosen = {"threshold": 0.4, "type_temperature": 2.0}
    monkeypatch.setattr(release, "calibrate_tumor", lambda *a, **known: chosen)
    bundle = release.release(
        default_bundle_path(),
        run,
        tmp_path / "mine",
        version="1",
        card=None,
        calibration_patients=1,
        classifier_patients=1,
    )
    shipped = load_bundle(default_bundle_path())
    assert set(bundle.manifest.parts) == {"liver", "tumor"}  # types need no classifier
    assert bundle.model("liver").sha256 == shipped.model("liver").sha256
    assert bundle.calibration("liver") == shipped.calibration("liver")
    assert bundle.calibration("tumor") == chosen
    assert bundle.model("tumor").system.input_spec.typed
