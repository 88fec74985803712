"""MC-FCN: its counts, decision-level fusion, presence, training."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

import complete_study as complete
from hepar.recipe import parse_recipe
from hepar.systems.baselines.mc_fcn.settings import PRESETS, McFcnSettings
from hepar.systems.baselines.mc_fcn.system import McFcn, module_parameters
from hepar.systems.table import build

SMALL = {
    "base_width": 4,
    "depths": (1, 1, 2, 1, 1),
    "head_width": 8,
    "head_kernel": 3,
    "dropout": 0.0,
    "patch": (64, 64),
}


def _small(**changes) -> McFcn:
    torch.manual_seed(0)
    return McFcn(McFcnSettings(**SMALL | changes))


def _parts(settings: McFcnSettings) -> dict[str, int]:
    with torch.device("meta"):
        return module_parameters(McFcn(settings))


@pytest.mark.parametrize("phases", [1, 2, 3])
@pytest.mark.parametrize("changes", [{}, PRESETS["reduced"], SMALL])
def test_closed_form_parameters(changes, phases):
    settings = McFcnSettings(**changes | {"phases": ("NC", "ART", "PV")[:phases]})
    widths = [settings.base_width * growth for growth in (1, 2, 4, 8, 8)]
    stream, before = 0, 3
    for width, depth in zip(widths, settings.depths, strict=True):
        for _ in range(depth):
            stream += 9 * before * width + 2 * width
            before = width
    d = settings.head_width
    stream += settings.head_kernel**2 * before * d + 2 * d + d * d + 2 * d
    scored = phases * (widths[2] + widths[3] + d)
    assert _parts(settings) == {"streams": phases * stream, "classifiers": 2 * scored + 3 * 2}


def test_closed_form_published_and_shipped_counts():
    totals = {name: sum(_parts(McFcnSettings.preset(name)).values()) for name in PRESETS}
    assert totals == {"paper": 268_565_382, "reduced": 6_023_110, "toy": 378_742}
    with torch.device("meta"):
        stream = McFcn(McFcnSettings.preset("paper")).streams[0]
    # The convolutions of VGG-16 (14,714,688) hold 4,224 biases; here BatchNorm has twice as many.
    assert sum(p.numel() for p in stream.stages.parameters()) == 14_714_688 + 4_224


def test_oracle_forward_is_fcn_8s_with_scores_summed_over_the_phases():
    model = _small().double().eval()
    complete.settle(model)
    batch = complete.disc_batch(64)
    image = batch.image.double()
    scores = [0.0, 0.0, 0.0]
    for phase, stream in enumerate(model.streams):
        x, pooled = image[:, phase].clone(), []
        for stage in stream.stages:
            x = stage(x)
            pooled.append(x)
        head = stream.head(x)
        for i, maps in enumerate((pooled[2], pooled[3], head)):
            weight, bias = model.classifiers[i].weight, model.classifiers[i].bias
            own = weight[:, phase * maps.shape[1] : (phase + 1) * maps.shape[1], 0, 0]
            scores[i] = scores[i] + torch.einsum("kc,bcyx->bkyx", own, maps)
            scores[i] = scores[i] + bias[:, None, None] / 2

    def double(x, times=1):
        size = (x.shape[-2] * 2**times, x.shape[-1] * 2**times)
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    assert [tuple(s.shape[-2:]) for s in scores] == [(8, 8), (4, 4), (2, 2)]
    expected = double(double(double(scores[2]) + scores[1]) + scores[0], 3)
    torch.testing.assert_close(model(image, batch.present), expected)


def test_property_phases_meet_in_the_scores_alone():
    model = _small().double().eval()
    complete.settle(model)
    batch = complete.disc_batch(64)
    image = batch.image.double()
    other = image.clone()
    other[:, 0] = 1.0 - other[:, 0]
    both = other.clone()
    both[:, 1] = 1.0 - both[:, 1]
    second = image.clone()
    second[:, 1] = both[:, 1]

    def logits(x):
        return model(x, batch.present)

    changed = logits(other) - logits(image)
    assert changed.abs().max() > 1e-3
    torch.testing.assert_close(logits(both) - logits(second), changed)


def test_property_dropout_is_of_training_only():
    model = _small(dropout=0.5)
    batch = complete.disc_batch(64)
    with torch.no_grad():
        assert not torch.equal(model(batch.image, batch.present), model(batch.image, batch.present))
        model.eval()
        assert torch.equal(model(batch.image, batch.present), model(batch.image, batch.present))


def test_property_needs_every_phase():
    complete.check_needs_every_phase(_small())


@pytest.mark.parametrize("train", [True, False])
def test_property_an_absent_phase_changes_nothing(train):
    complete.check_absent_phases_change_nothing(_small(presence_channel=True), train=train)


def test_property_every_parameter_gets_gradient():
    complete.check_every_parameter_gets_gradient(_small())


def test_property_bfloat16():
    complete.check_bfloat16(_small())


def test_regression_frozen_state_dict_keys():
    assert complete.keys_hash(_small()) == (102, "b5900572a3d7f7c3")


def test_regression_overfits_one_batch():
    torch.manual_seed(0)
    model = McFcn(McFcnSettings.preset("toy"))
    # Scores of an eighth of the resolution: the border is blurred.
    assert complete.dice_after_overfitting(model, steps=40) > 0.85


def test_closed_form_inputs_of_the_presets():
    for name in PRESETS:
        settings = McFcnSettings.preset(name)
        assert len(settings.slice_offsets_mm) == 3
        assert settings.spacing_mm is None
        assert McFcnSettings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(
    "wrong", [{"patch": (112, 128)}, {"depths": (2, 2, 3)}, {"head_kernel": 4}]
)
def test_property_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        McFcnSettings(**wrong)


def test_property_a_recipe_builds_it():
    recipe = parse_recipe(
        {
            "name": "a",
            "system": {"name": "mc_fcn", "preset": "toy", "presence_channel": True},
            "data": {"kind": "phantom"},
            "schedule": {"steps": 1},
        }
    )
    assert isinstance(recipe.system, McFcnSettings)
    assert not build(recipe.system).input_spec.needs_all_phases
