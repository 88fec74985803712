"""PA-ResSeg: the counts of the authors' network, its figure, presence, training."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

import complete_study as complete
from hepar.recipe import parse_recipe
from hepar.systems.baselines.pa_resseg.settings import PRESETS, PaRessegSettings
from hepar.systems.baselines.pa_resseg.system import PaResseg, module_parameters
from hepar.systems.table import build

THREE = (-0.5, 0.0, 0.5)


def _small(**changes) -> PaResseg:
    torch.manual_seed(0)
    small = {"base_width": 8, "up_width": 4, "slice_offsets_mm": THREE, "patch": (64, 64)}
    return PaResseg(PaRessegSettings(**small | changes))


def _parts(settings: PaRessegSettings) -> dict[str, int]:
    with torch.device("meta"):
        return module_parameters(PaResseg(settings))


@pytest.mark.parametrize(("base", "total"), [(16, 5_543_966), (32, 18_178_878), (64, 67_729_982)])
def test_closed_form_totals_of_the_authors_network(base, total):
    assert sum(_parts(PaRessegSettings(base_width=base)).values()) == total


@pytest.mark.parametrize(("base", "phases", "slices"), [(32, 2, 1), (16, 3, 3), (8, 1, 1)])
def test_closed_form_parts(base, phases, slices):
    names = ("NC", "ART", "PV")[-phases:]
    offsets = tuple(float(i) for i in range(slices))
    settings = PaRessegSettings(base_width=base, phases=names, slice_offsets_mm=offsets)
    n = [base * growth for growth in (1, 2, 4, 8, 8, 8)]

    def conv(before: int, width: int) -> int:
        return 9 * before * width + 3 * width  # with a bias, and BatchNorm's two

    encoder = conv(slices, n[0]) + conv(n[0], n[0])
    for before, width in pairwise(n):
        encoder += conv(before, width) + 3 * conv(width, width)
        encoder += before * width + 2 * width if before != width else 0
    heads = sum(9 * c * (c // 4) + 9 * (c // 4) ** 2 + 4 * (c // 4) + 1 for c in n)
    ups = conv(phases * n[0] // 4, 16)
    for doublings, c in enumerate(n[1:], start=1):
        widths = [phases * c // 4, *(16 * 2**i for i in reversed(range(doublings)))]
        ups += sum(16 * a * b + 2 * b for a, b in pairwise(widths))
    assert _parts(settings) == {
        "encoders": phases * encoder,
        "phase_attention": phases * heads,
        "up": ups,
        "final": conv(96, 96) + 96 * 2 + 2,
    }


def test_closed_form_presets():
    totals = {name: sum(_parts(PaRessegSettings.preset(name)).values()) for name in PRESETS}
    assert totals == {
        "paper": 18_178_878,
        "official": 67_732_286,
        "reduced": 5_544_542,
        "toy": 1_390_350,
    }
    channels = [len(PaRessegSettings.preset(name).slice_offsets_mm) for name in PRESETS]
    assert channels == [1, 3, 3, 3]
    for name in PRESETS:
        settings = PaRessegSettings.preset(name)
        assert settings.pa_sum_axis == "last"
        assert PaRessegSettings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize("axis", ["last", "first"])
def test_oracle_forward_is_the_figure_scale_by_scale(axis):
    model = _small(pa_sum_axis=axis).double().eval()
    complete.settle(model)
    batch = complete.disc_batch(64)
    image = batch.image.double()

    def scales(encoder, x):
        found = [encoder.scales[0](x)]
        for first, second in list(encoder.scales)[1:]:
            x = F.max_pool2d(found[-1], 2)
            x = F.relu(first.body(x) + first.shortcut(x))
            found.append(F.relu(second.body(x) + x))
        return found

    art, pv = (scales(e, image[:, p].clone()) for p, e in enumerate(model.encoders))
    parts = []
    for reference, other, head, up in zip(pv, art, model.heads, model.ups, strict=True):
        parts.append(up(head(reference, other)))
        assert parts[-1].shape == (4, 4, 64, 64)
    torch.testing.assert_close(model(image, batch.present), model.final(torch.cat(parts, dim=1)))


@pytest.mark.parametrize(
    ("phases", "reference"),
    [(("ART", "PV"), "PV"), (("NC", "ART", "PV", "DL"), "PV"), (("ART", "DL"), "DL")],
)
def test_closed_form_the_reference_phase_comes_first(phases, reference):
    settings = PaRessegSettings(phases=phases)
    assert settings.reference == reference
    model = _small(phases=phases)
    seen = []
    model.heads[0].register_forward_pre_hook(lambda _, maps: seen.extend(maps))
    for number, encoder in enumerate(model.encoders):
        encoder.register_forward_hook(
            lambda _, __, out, number=number: [torch.full_like(x, number) for x in out]
        )
    batch = complete.disc_batch(64, phases=len(phases))
    model(batch.image, batch.present)
    order = [int(x.flatten()[0]) for x in seen]
    rest = [i for i in range(len(phases)) if phases[i] != reference]
    assert order == [phases.index(reference), *rest]


def test_property_needs_every_phase():
    complete.check_needs_every_phase(_small())


@pytest.mark.parametrize("train", [True, False])
def test_property_an_absent_phase_changes_nothing(train):
    model = _small(presence_channel=True, pa_sum_axis="first")
    complete.check_absent_phases_change_nothing(model, train=train)


@pytest.mark.parametrize("axis", ["last", "first"])
def test_property_every_parameter_gets_gradient(axis):
    complete.check_every_parameter_gets_gradient(_small(pa_sum_axis=axis))


def test_property_gains_of_zero_leave_the_features_and_still_learn():
    model = _small()
    batch = complete.disc_batch(64)
    model.loss(model(batch.image, batch.present), model.targets(batch)).backward()
    gains = [p for n, p in model.named_parameters() if n.endswith("gamma")]
    assert len(gains) == 12
    assert all(not p.any() and p.grad.abs() > 0 for p in gains)


def test_property_bfloat16():
    complete.check_bfloat16(_small(pa_sum_axis="first"))


def test_regression_frozen_state_dict_keys():
    assert complete.keys_hash(_small()) == (606, "180e50ac4891d1fd")


def test_regression_overfits_one_batch():
    torch.manual_seed(0)
    model = PaResseg(PaRessegSettings.preset("toy"))
    assert complete.dice_after_overfitting(model, steps=25) > 0.9


@pytest.mark.parametrize(
    "wrong", [{"patch": (112, 128)}, {"pa_sum_axis": "both"}, {"phases": ("PV", "ART")}]
)
def test_property_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        PaRessegSettings(**wrong)


def test_property_a_recipe_builds_it():
    recipe = parse_recipe(
        {
            "name": "a",
            "system": {"name": "pa_resseg", "preset": "toy", "phases": ["NC", "ART", "PV"]},
            "data": {"kind": "phantom"},
            "schedule": {"steps": 1},
        }
    )
    assert isinstance(recipe.system, PaRessegSettings)
    assert len(build(recipe.system).encoders) == 3
