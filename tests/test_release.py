"""What is chosen on phantoms before weights ship."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hepar import release
from hepar.phantom.anatomy import anatomy
from hepar.recipe import load_recipe
from hepar.study import LESION_TYPES, PHASE_ORDER, Phase

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
