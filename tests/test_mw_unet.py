"""MW-UNet: its counts, the weighted sum, presence, training."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

import complete_study as complete
from hepar.recipe import parse_recipe
from hepar.systems.baselines.mw_unet.settings import PRESETS, MwUnetSettings
from hepar.systems.baselines.mw_unet.system import MwUnet, module_parameters, weighted_sum
from hepar.systems.table import build


def _small(**changes) -> MwUnet:
    torch.manual_seed(0)
    return MwUnet(MwUnetSettings(**{"base_width": 4, "patch": (64, 64)} | changes))


def _parts(settings: MwUnetSettings) -> dict[str, int]:
    with torch.device("meta"):
        return module_parameters(MwUnet(settings))


@pytest.mark.parametrize(("base", "phases", "slices"), [(32, 2, 3), (16, 3, 1), (64, 4, 3)])
def test_closed_form_parameters(base, phases, slices):
    names = ("NC", "ART", "PV", "DL")[:phases]
    offsets = tuple(float(i) for i in range(slices))
    parts = _parts(MwUnetSettings(base_width=base, phases=names, slice_offsets_mm=offsets))
    widths = [base * growth for growth in (1, 2, 4, 8, 16)]

    def pair(before: int, width: int) -> int:
        return 9 * before * width + 9 * width * width + 4 * width

    encoder = sum(pair(b, w) for b, w in zip([slices, *widths], widths, strict=False))
    decoder = sum(4 * 2 * w * w + w + pair(2 * w, w) for w in widths[:-1])
    assert parts == {
        "encoders": phases * encoder,
        "decoder": decoder,
        "classifier": 2 * base + 2,
        "weights": 5 * phases,
    }


def test_closed_form_published_and_shipped_counts():
    totals = {name: sum(_parts(MwUnetSettings.preset(name)).values()) for name in PRESETS}
    assert totals == {"paper": 12_477_292, "reduced": 3_122_364, "toy": 782_116}
    wide = sum(_parts(MwUnetSettings(base_width=64)).values())
    assert (round(totals["paper"] / 1e6, 2), round(wide / 1e6, 1)) == (12.48, 49.9)


def test_oracle_weighted_sum_is_a_loop():
    generator = torch.Generator().manual_seed(0)
    maps = list(torch.randn(3, 2, 2, 3, 4, generator=generator, dtype=torch.float64))
    weights = torch.tensor([0.5, -1.5, 0.25], dtype=torch.float64)
    found = weighted_sum(maps, weights)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in found.shape)).tolist():
        place = tuple(index)
        expected = sum(float(w) * float(x[place]) for w, x in zip(weights, maps, strict=True))
        assert float(found[place]) == pytest.approx(expected, abs=1e-12)


def test_oracle_forward_fuses_every_level_and_feeds_nothing_back():
    model = _small().double().eval()
    complete.settle(model)
    with torch.no_grad():
        assert torch.equal(model.weights, torch.full((5, 2), 0.5).double())  # starts at 1/P
        model.weights.copy_(torch.randn(5, 2, generator=torch.Generator().manual_seed(2)))
    batch = complete.disc_batch(32)
    image = batch.image.double()
    found = model(image, batch.present)
    fused = [0.0] * 5
    for phase in (0, 1):
        encoder = model.encoders[phase]
        x = encoder.stage(1, image[:, phase])
        for level, features in enumerate([x, *encoder.forward(image[:, phase])]):
            fused[level] = fused[level] + model.weights[level, phase] * features
    torch.testing.assert_close(found, model.classifier(model.decoder(fused)))
    # A phase of weight 0 at every level says nothing.
    with torch.no_grad():
        model.weights[:, 0] = 0.0
    without = model(image, batch.present)
    image[:, 0] = 0.3
    torch.testing.assert_close(model(image, batch.present), without)


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
    assert complete.keys_hash(_small()) == (179, "90a7b3a71aa05dac")


def test_regression_overfits_one_batch():
    torch.manual_seed(0)
    model = MwUnet(MwUnetSettings.preset("toy"))
    assert complete.dice_after_overfitting(model, steps=25) > 0.9


def test_closed_form_inputs_of_the_presets():
    for name in PRESETS:
        settings = MwUnetSettings.preset(name)
        assert len(settings.slice_offsets_mm) == 3
        assert settings.spacing_mm is None
        assert MwUnetSettings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize("wrong", [{"patch": (100, 96)}, {"phases": ()}, {"base_width": 2}])
def test_property_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        MwUnetSettings(**wrong)


def test_property_a_recipe_builds_it():
    recipe = parse_recipe(
        {
            "name": "a",
            "system": {"name": "mw_unet", "preset": "toy", "loss": "ce_dice"},
            "data": {"kind": "phantom"},
            "schedule": {"steps": 1},
        }
    )
    assert isinstance(recipe.system, MwUnetSettings)
    assert build(recipe.system).input_spec.patch == (128, 128)
