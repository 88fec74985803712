"""LIDIA: the paper's counts, presence of phases, the memory bank, learning, and what is refused."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

import complete_study as complete
from hepar.infer.describe import describe_system
from hepar.recipe import parse_recipe
from hepar.study import LESION_TYPES
from hepar.systems.base import Batch, System
from hepar.systems.lidia.settings import PRESETS, LidiaSettings
from hepar.systems.lidia.system import Lidia, lesion_queries
from hepar.systems.table import build

TINY = {
    "spacing_mm": (3.0, 2.0, 2.0),
    "patch": (8, 16, 16),
    "channels": (4, 6, 8, 8),
    "strides": ((1, 2, 2), (2, 2, 2), (2, 2, 2)),
    "kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "memory_levels": (3, 2, 1),
    "queries": 8,
    "width": 12,
    "heads": 2,
    "feedforward": 16,
    "contrast_width": 6,
    "bank": 8,
    "points": 256,
    "fg_sample_ratio": 0.05,
}
# Table 3 from "Baseline" to "+ACL", but for LiverMax, which is not the network's, and other rows.
ROWS = {
    "baseline": {"phases": ("NC", "ART", "PV"), "fusion": "early", "contrast": "none",
                 "cls_loss": "ce"},
    "focal": {"phases": ("NC", "ART", "PV"), "fusion": "early", "contrast": "none"},
    "ifm": {"contrast": "none"},
    "acl": {},
    "supcon": {"contrast": "supcon"},
    "hemis": {"fusion": "hemis"},
    "convlstm": {"fusion": "convlstm"},
    "all": {"contrast_heads": "all", "others_as_negatives": False},
}  # fmt: skip
HCC, CYST, OTHER, LIVER = 1, 6, 8, 9


def tiny(**changes) -> Lidia:
    torch.manual_seed(0)
    return Lidia(LidiaSettings(**TINY | changes))


def batch(phases: int = 4, seed: int = 1) -> Batch:
    """Two livers in noise: three lesions and one, an HCC in each."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.zeros((2, *TINY["patch"]), dtype=torch.long)
    label[:, 1:7, 2:14, 2:14] = LIVER
    lesions = [(0, HCC, 2, 3, 3), (0, CYST, 3, 9, 9), (0, OTHER, 2, 3, 10), (1, HCC, 3, 8, 6)]
    instances = torch.zeros_like(label)
    for number, (n, kind, z, y, x) in enumerate(lesions):
        at = (n, slice(z, z + 3), slice(y, y + 4), slice(x, x + 4))
        label[at], instances[at] = kind, 7 * number + 3
    shade = torch.zeros(10)
    shade[[LIVER, HCC, CYST, OTHER]] = torch.tensor([0.5, 0.8, 0.3, 0.65])
    slope = torch.zeros(10)
    slope[[HCC, OTHER]] = torch.tensor([-0.1, 0.1])
    time = torch.arange(phases).view(1, phases, 1, 1, 1, 1)
    image = shade[label][:, None, None] + time * slope[label][:, None, None]
    image = image + 0.05 * torch.randn(image.shape, generator=generator)
    present = torch.ones((2, phases), dtype=torch.bool)
    return Batch(image.clamp(0, 1), present, label, label > 0, instances)


def loss_of(model: Lidia, data: Batch) -> torch.Tensor:
    torch.manual_seed(5)
    return model.loss(model(data.image, data.present), model.targets(data))


# ---- counts --------------------------------------------------------------------------------------


def test_closed_form_parameters_of_the_paper():
    found = describe_system("lidia", "paper")
    assert found["modules"] == {
        "stem": 170_208,
        "encoder_with_stem": 14_166_624,
        "pixel_decoder": 1_269_184,
        "transformer_decoder": 319_243,
        "projection": 12_480,
    }
    # The stem is counted in the encoder; the projection belongs to the total.
    assert found["parameters"] == 15_767_531 == sum(found["modules"].values()) - 170_208
    assert found["classes"] == ["background", *LESION_TYPES, "liver"]
    compared = describe_system("lidia", "mask2former")
    assert compared["parameters"] == 15_615_275
    assert "projection" not in compared["modules"]


@pytest.mark.parametrize("preset", PRESETS)
def test_property_every_preset_builds_and_survives_json(preset):
    settings = LidiaSettings.preset(preset)
    assert LidiaSettings.model_validate_json(settings.model_dump_json()) == settings
    tree = {"name": "a", "system": {"name": "lidia", "preset": preset},
            "data": {"kind": "phantom"}, "schedule": {"steps": 1}}  # fmt: skip
    assert parse_recipe(tree).system == settings
    with torch.device("meta"):
        model = build(settings)
    assert isinstance(model, System)
    assert model.input_spec.typed
    assert model.input_spec.tumor_classes == tuple(range(1, 9))
    assert model.input_spec.needs_all_phases == (preset == "mask2former")
    assert next(iter(PRESETS)) == "paper"


# ---- presence ------------------------------------------------------------------------------------

SOME = torch.tensor([[True, False, True, False], [False, True, True, True]])


@pytest.mark.parametrize("row", ["acl", "hemis", "convlstm"])
def test_property_absent_phases_change_nothing(row):
    model, data = tiny(**ROWS[row]), batch()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    results = []
    for fill in (0.0, math.nan, math.inf):
        model.load_state_dict(start)
        model.zero_grad()
        image = data.image.clone()
        image[~SOME] = fill
        given = Batch(image, SOME, data.label, data.liver, data.instances)
        loss_of(model, given).backward()
        found = {n: p.grad.clone() for n, p in model.named_parameters()}
        found |= {f"state {n}": v.clone() for n, v in model.state_dict().items()}
        results.append(found)
    assert all(torch.isfinite(value).all() for value in results[0].values())
    for other in results[1:]:
        assert [n for n, value in results[0].items() if not torch.equal(value, other[n])] == []


def test_property_a_mixed_batch_is_its_samples_alone():
    model, data = tiny().eval(), batch()
    with torch.no_grad():
        together = model.decode(model(data.image, SOME))
        for n in range(2):
            alone = model.decode(model(data.image[n : n + 1], SOME[n : n + 1]))
            torch.testing.assert_close(together[n : n + 1], alone, atol=1e-5, rtol=1e-4)
        # ... and without the channels of the absent phases in the network at all.
        kept = LidiaSettings(**TINY, phases=("NC", "PV"))
        less = Lidia(kept).eval()
        state = {k: v for k, v in model.state_dict().items() if "stem.features" not in k}
        for new, old in ((0, 0), (1, 2)):
            own = model.stem.features[old].state_dict()
            state |= {f"stem.features.{new}.{k}": v for k, v in own.items()}
        less.load_state_dict(state)
        found = less.decode(less(data.image[:1, [0, 2]], torch.ones(1, 2, dtype=torch.bool)))
        torch.testing.assert_close(together[:1], found, atol=1e-5, rtol=1e-4)


def test_property_early_fusion_needs_every_phase():
    model, data = tiny(**ROWS["focal"]), batch(phases=3)
    assert model.input_spec.needs_all_phases
    with pytest.raises(ValueError, match="needs all of"):
        model(data.image, SOME[:, :3])


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 2, 1, 8, 16, 16), "phases"), ((1, 4, 1, 8, 12, 16), "multiples of")],
)
def test_property_wrong_shapes_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        tiny()(torch.zeros(shape), torch.ones(shape[:2], dtype=torch.bool))


# ---- loss ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS)
def test_property_every_row_runs_and_every_parameter_gets_a_gradient(row):
    model = tiny(**ROWS[row]).train()
    data = batch(len(model.settings.phases))
    outputs = model(data.image, data.present)
    loss = model.loss(outputs, model.targets(data))
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    # An instance norm takes away what the bias of the convolution before it adds, and a softmax
    # what the bias of all keys does.
    idle = {n for n, _ in model.named_parameters() if n.endswith("key.bias")}
    normed = [m for part in (model.stem, model.encoder) for m in part.modules()]
    if row != "convlstm":
        ids = {id(m.bias) for m in normed if isinstance(m, nn.Conv3d)}
        idle |= {n for n, p in model.named_parameters() if id(p) in ids}
        weak = [n for n, p in model.named_parameters()
                if n not in idle and not p.grad.abs().max() > 1e-7]  # fmt: skip
        assert weak == []
    assert all(p.grad is not None for p in model.parameters())
    found = model.decode(outputs)
    assert (found.dtype, tuple(found.shape)) == (torch.float32, (2, 10, *TINY["patch"]))
    torch.testing.assert_close(found.sum(1), torch.ones(2, *TINY["patch"]))


def test_closed_form_the_loss_is_equation_6():
    terms = {"seg_weight": 5.0, "cls_weight": 5.0, "contrast_weight": 0.01}
    data = batch()
    alone = {}
    for name in terms:
        model = tiny(**dict.fromkeys(terms, 0.0) | {name: 1.0})
        alone[name] = float(loss_of(model, data).detach())
    assert min(abs(value) for value in alone.values()) > 1e-3
    total = sum(weight * alone[name] for name, weight in terms.items())
    assert float(loss_of(tiny(), data).detach()) == pytest.approx(total, rel=1e-5)


def test_closed_form_lesions_are_the_matched_queries_of_types():
    z = torch.arange(2 * 4).view(2, 4, 1).float()
    queries = [torch.tensor([3, 0, 1]), torch.tensor([2, 1])]
    classes = [torch.tensor([0, HCC, OTHER]), torch.tensor([LIVER, CYST])]
    lesions, types = lesion_queries(z, queries, classes)
    assert lesions.flatten().tolist() == [0.0, 1.0, 5.0]
    assert types.tolist() == [HCC, OTHER, CYST]


def test_property_the_bank_is_pushed_in_training_only_and_not_while_frozen():
    model, data = tiny(), batch()
    assert (model.contrast.bank_label == -1).all()
    for training, frozen, pushed in ((False, False, 0), (True, True, 0), (True, False, 4)):
        model.train(training)
        model.bank_frozen = frozen
        loss_of(model, data)
        assert int((model.contrast.bank_label != -1).sum()) == pushed
    assert sorted(model.contrast.bank_label[:4].tolist()) == [HCC, HCC, CYST, OTHER]
    assert {"contrast.bank_z", "contrast.bank_label"} <= set(model.state_dict())
    again = tiny()
    again.load_state_dict(model.state_dict())
    assert float(loss_of(again, data).detach()) == float(loss_of(model, data).detach())


def test_property_rare_types_are_those_of_the_settings():
    assert tiny().contrast.rare == (OTHER,)
    assert tiny(rare_types=("calcification", "other")).contrast.rare == (7, 8)
    assert tiny(contrast="supcon").contrast.rare == ()
    assert tiny(contrast="none").contrast is None


def test_property_a_batch_without_instances_is_refused():
    data = batch()
    bare = Batch(data.image, data.present, data.label, data.liver)
    with pytest.raises(ValueError, match="instances"):
        tiny().targets(bare)


def test_property_a_patch_without_lesions_trains_masks_and_classes():
    model, data = tiny().train(), batch()
    label = torch.where(data.label > 0, LIVER, 0)
    given = Batch(data.image, data.present, label, data.liver, torch.zeros_like(label))
    loss_of(model, given).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert (model.contrast.bank_label == -1).all()


def test_property_bfloat16_keeps_losses_in_float32():
    model, data = tiny().eval(), batch()
    exact = loss_of(model, data)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(data.image, data.present)
        targets = model.targets(data)
    torch.manual_seed(5)
    loss = model.loss(outputs, targets)
    assert outputs.queries.features.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=0.05)
    assert model.decode(outputs).dtype == torch.float32


# ---- the whole -----------------------------------------------------------------------------------


def test_closed_form_the_stem_sees_z_scores_of_clipped_hu():
    model = tiny(window_hu=(-100.0, 300.0), mean_hu=80.0, std_hu=40.0)
    seen = []
    model.stem.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    hu = torch.tensor([-100.0, 80.0, 120.0, 300.0]).repeat(4 * 8 * 16 * 4)
    model(((hu + 100) / 400).view(1, 4, 1, 8, 16, 16), torch.ones(1, 4, dtype=torch.bool))
    torch.testing.assert_close(seen[0][0, 3, 0, 0, 0, :4], torch.tensor([-4.5, 0.0, 1.0, 5.5]))


def test_regression_frozen_state_dict_keys():
    assert complete.keys_hash(tiny()) == (181, "f3fa7064356a6b39")


def test_regression_overfits_one_batch():
    model, data = tiny(channels=(6, 8, 12, 12), width=24, bank=16).train(), batch()
    optimizer = torch.optim.RAdam(model.parameters(), lr=6e-3)
    for _ in range(90):
        optimizer.zero_grad()
        model.loss(model(data.image, data.present), model.targets(data)).backward()
        optimizer.step()
    with torch.no_grad():
        found = model.decode(model(data.image, data.present)).argmax(1)
    dice = {}
    for k in (HCC, CYST, OTHER, LIVER):
        both = ((found == k) & (data.label == k)).sum()
        dice[k] = float(2 * both / ((found == k).sum() + (data.label == k).sum()))
    assert min(dice.values()) > 0.8, dice


@pytest.mark.parametrize(
    "wrong",
    [
        {"phases": ("PV", "ART")},
        {"patch": (8, 16, 12)},
        {"width": 10, "heads": 4},
        {"memory_levels": (4, 3, 2)},
        {"memory_levels": ()},
        {"uncertain_share": 0.99},
        {"rare_types": ("lymphoma",)},
        {"fusion": "sam"},
        {"temperature": 0.0},
        {"points": 1},
        {"oversample": 0.5},
    ],
)
def test_property_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        LidiaSettings(**TINY | wrong)


def test_property_types_of_the_settings_are_those_of_the_study():
    every = LidiaSettings(**TINY, rare_types=LESION_TYPES)
    assert every.rare_types == LESION_TYPES
    assert [*itertools.chain(("background",), LESION_TYPES, ("liver",))] == list(
        tiny().input_spec.class_names
    )
