"""PLAN: its counts, the loss of each branch, presence, learning in one stage or two."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

import complete_study as complete
from hepar.errors import InputRefused
from hepar.evaluate import patient
from hepar.infer.tiling import predict
from hepar.losses import cross_entropy, soft_dice
from hepar.recipe import parse_recipe
from hepar.study import LESION_TYPES
from hepar.systems.base import Batch, System
from hepar.systems.baselines.plan.patient_branch import (
    GROUPS,
    OUTPUTS,
    PatientBranch,
    patient_targets,
)
from hepar.systems.baselines.plan.settings import PRESETS, PlanSettings
from hepar.systems.baselines.plan.system import CLASSES, Plan, module_parameters
from hepar.systems.lidia.mask_transformer import sine_positions
from hepar.systems.lidia.point_sampling import random_points

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
    "patient_width": 12,
    "patient_heads": 2,
    "patient_feedforward": 16,
    "patient_blocks": 3,
    "patient_grid": (1, 2, 2),
    "patient_levels": (3, 1),
    "points": 256,
    "fg_sample_ratio": 0.05,
}
WEIGHTS = ("pixel_weight", "mask_weight", "class_weight", "patient_weight", "consistency_weight")
HCC, CYST, OTHER, LIVER = 1, 6, 8, 9


def tiny(**changes) -> Plan:
    torch.manual_seed(0)
    return Plan(PlanSettings(**TINY | changes))


def only(term: str, **changes) -> Plan:
    """A network whose loss is one of its terms."""
    return tiny(**{name: float(name == term) for name in WEIGHTS}, **changes)


def batch() -> Batch:
    """Two livers in noise, one with an HCC and a rare lesion, the other with a cyst."""
    generator = torch.Generator().manual_seed(1)
    label = torch.zeros((2, *TINY["patch"]), dtype=torch.long)
    label[:, 1:7, 2:14, 2:14] = LIVER
    instances = torch.zeros_like(label)
    for number, (n, kind, z, y, x) in enumerate(
        [(0, HCC, 2, 3, 3), (0, OTHER, 2, 8, 9), (1, CYST, 3, 8, 6)]
    ):
        at = (n, slice(z, z + 3), slice(y, y + 4), slice(x, x + 4))
        label[at], instances[at] = kind, number + 5
    shade = torch.zeros(10)
    shade[[LIVER, HCC, CYST, OTHER]] = torch.tensor([0.5, 0.9, 0.2, 0.7])
    image = shade[label][:, None, None].repeat(1, 3, 1, 1, 1, 1)
    image = image + 0.05 * torch.randn(image.shape, generator=generator)
    present = torch.ones((2, 3), dtype=torch.bool)
    return Batch(image.clamp(0, 1), present, label, label > 0, instances)


def loss_of(model: Plan, data: Batch) -> torch.Tensor:
    torch.manual_seed(5)
    return model.loss(model(data.image, data.present), model.targets(data))


def test_closed_form_parameters():
    """Those of Mask2Former, a convolution of 64 to 10, and four blocks of 128 channels."""
    attention, perceptron = 4 * (128 * 128 + 128), 2 * 128 * 512 + 512 + 128
    blocks = 4 * (2 * attention + perceptron + 3 * 2 * 128)
    branch = blocks + 2 * (64 * 128 + 128) + 2 * 11 * 128 + 128 + 1
    settings = PlanSettings.preset("paper")
    with torch.device("meta"):
        model = Plan(settings)
    assert module_parameters(model) == {
        "stem": 30_432,
        "encoder_with_stem": 14_026_848,
        "pixel_decoder": 1_269_184,
        "pixel_branch": 64 * 10 + 10,
        "lesion_branch": 319_243,
        "patient_branch": branch,
    }
    assert branch == 1_077_889
    assert sum(p.numel() for p in model.parameters()) == 15_615_275 + 650 + branch
    assert settings.phases == ("NC", "ART", "PV")
    assert math.prod(settings.patient_grid) == 192


@pytest.mark.parametrize("preset", PRESETS)
def test_property_every_preset_survives_json_and_builds(preset):
    settings = PlanSettings.preset(preset)
    assert PlanSettings.model_validate_json(settings.model_dump_json()) == settings
    tree = {"name": "a", "system": {"name": "plan", "preset": preset},
            "data": {"kind": "phantom"}, "schedule": {"steps": 1}}  # fmt: skip
    assert parse_recipe(tree).system == settings
    with torch.device("meta"):
        assert isinstance(Plan(settings), System)


def test_closed_form_a_patient_has_what_the_patch_holds():
    label = torch.zeros((4, 2, 3, 3), dtype=torch.long)
    label[0, 0, 0, 0], label[0, 1] = HCC, LIVER
    label[1, 1, 2, 2], label[1, 0, 1, 1] = CYST, OTHER
    label[2] = -1
    found = patient_targets(label, CLASSES)
    said = [{name for name, yes in zip(OUTPUTS, row, strict=True) if yes} for row in found.tolist()]
    assert said == [
        {"hcc", "lesion", "malignant"},
        {"cyst", "other", "lesion", "benign"},
        set(),
        set(),
    ]
    assert list(OUTPUTS)[:8] == list(LESION_TYPES)
    assert len(OUTPUTS) == 11
    assert {name: GROUPS[name] for name in patient.GROUPS} == patient.GROUPS


def test_oracle_tokens_of_the_patient_look_at_means_over_a_grid():
    torch.manual_seed(0)
    branch = PatientBranch(
        4, 12, heads=2, feedforward=8, blocks=3, levels=2, grid=(1, 2, 3)
    ).double()
    levels = [torch.randn(2, 4, 2, 4, 6).double(), torch.randn(2, 4, 4, 8, 12).double()]
    memory = []
    for level, project in zip(levels, branch.memory, strict=True):
        y, x = level.shape[3:]
        tokens = torch.zeros(2, 6, 12, dtype=torch.float64)
        for place, (j, k) in enumerate(np.ndindex(2, 3)):
            cell = level[:, :, :, j * y // 2 : (j + 1) * y // 2, k * x // 3 : (k + 1) * x // 3]
            for n in range(2):
                mean = torch.stack([cell[n, c].sum() / cell[n, c].numel() for c in range(4)])
                tokens[n, place] = project.weight @ mean + project.bias
        memory.append(tokens)
    places = sine_positions((1, 2, 3), 12).double()
    state = branch.tokens.repeat(2, 1, 1)
    looks = torch.zeros(2, 11, 6, dtype=torch.bool)
    for number in range(3):
        block = branch.blocks[number]
        state = block(state, branch.positions.repeat(2, 1, 1), memory[number % 2], places, looks)
    expected = state @ branch.head.weight[0] + branch.head.bias
    torch.testing.assert_close(branch(levels), expected, rtol=1e-10, atol=1e-12)


def test_oracle_loss_of_the_patient():
    model, data = only("patient_weight"), batch()
    outputs = model(data.image, data.present)
    truth = [{"hcc", "other", "lesion", "malignant"}, {"cyst", "lesion", "benign"}]
    total = 0.0
    for row, true in zip(outputs.patient.double().tolist(), truth, strict=True):
        for logit, name in zip(row, OUTPUTS, strict=True):
            p = 1 / (1 + math.exp(-logit))
            total -= math.log(p if name in true else 1 - p)
    assert float(loss_of(model, data).detach()) == pytest.approx(total / 22, rel=1e-5)
    found = model.patient(outputs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, outputs.patient[:, :8].sigmoid())


def test_oracle_consistency_is_the_mean_squared_difference_of_the_maps():
    model, data = tiny(), batch()
    data.label[1, :4] = -1
    with torch.no_grad():
        outputs = model(data.image, data.present)
        targets = model.targets(data)
        torch.manual_seed(3)
        found = model.consistency(outputs, targets)
        maps = model.decode(outputs).double(), outputs.pixels.double().softmax(dim=1)
    torch.manual_seed(3)
    total, count = 0.0, 0
    for n in range(2):
        for voxel in random_points(targets.segments[n].counted, 256).tolist():
            assert data.label[n].flatten()[voxel] != -1
            for c in range(10):
                lesions, pixels = (float(of[n, c].flatten()[voxel]) for of in maps)
                total, count = total + (lesions - pixels) ** 2, count + 1
    assert float(found) == pytest.approx(total / count, rel=1e-5)


def test_closed_form_loss_is_the_weighted_sum_of_its_terms():
    """Terms without points of their own, times their weights, on top of those with."""
    data, chosen = batch(), dict(zip(WEIGHTS, (2.0, 5.0, 2.0, 1.0, 0.1), strict=True))
    assert {name: getattr(PlanSettings(), name) for name in WEIGHTS} == chosen
    none = dict.fromkeys(("pixel_weight", "patient_weight", "consistency_weight"), 0.0)
    whole, rest = (float(loss_of(tiny(**of), data).detach()) for of in ({}, none))
    for name in none:
        less = float(loss_of(tiny(**{name: 0.0}), data).detach())
        # Lesions are matched first, so that each draws what it draws in the whole.
        alone = tiny(**(none | {name: 1.0}))
        term = float(loss_of(alone, data).detach()) - rest
        assert whole - less == pytest.approx(chosen[name] * term, rel=1e-2), name
    label, logits = data.label, tiny()(data.image, data.present).pixels.detach()
    pixel = cross_entropy(logits, label) + soft_dice(logits, label, smooth=1e-5, per_sample=True)
    first = float(loss_of(tiny(branches="pixel"), data).detach())
    assert first == pytest.approx(2.0 * float(pixel), rel=1e-5)


def test_property_every_parameter_gets_gradient():
    model, data = tiny(), batch()
    loss_of(model, data).backward()
    normed = {
        id(part.bias)
        for block in (*model.stem.modules(), *model.encoder.modules())
        if isinstance(block, nn.Sequential)
        for part in block
        if isinstance(part, nn.Conv3d)
    }
    for name, parameter in model.named_parameters():
        # Norms and softmaxes take away what is added everywhere.
        idle = id(parameter) in normed or name.endswith("key.bias")
        assert (parameter.grad.abs().max() > 1e-6) == (not idle), name


def test_property_the_first_stage_trains_pixels_and_the_second_goes_on_from_it():
    first, data = tiny(branches="pixel"), batch()
    loss_of(first, Batch(data.image, data.present, data.label, data.liver)).backward()
    for name, parameter in first.named_parameters():
        later = name.startswith(("transformer.", "patient_branch."))
        assert (parameter.grad is None) == later, name
    outputs = first(data.image, data.present)
    torch.testing.assert_close(first.decode(outputs), outputs.pixels.softmax(dim=1))
    with pytest.raises(ValueError, match="no answer for the patient"):
        first.patient(outputs)
    second = tiny()
    second.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="instances"):
        second.targets(Batch(data.image, data.present, data.label, data.liver))


def test_property_decode_gives_probabilities_under_bfloat16_too():
    model, data = tiny().eval(), batch()
    with torch.no_grad():
        exact = model.decode(model(data.image, data.present))
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(data.image, data.present)
        found = model.decode(outputs)
        loss = model.loss(outputs, model.targets(data))
        assert 0 < float((found - exact).abs().max()) < 0.2
    assert loss.dtype == model.patient(outputs).dtype == found.dtype == torch.float32
    assert torch.isfinite(loss)
    torch.testing.assert_close(found.sum(1), torch.ones(2, *TINY["patch"]))
    assert model.patient(outputs).shape == (2, 8)


def test_property_needs_every_phase():
    model, data = tiny(), batch()
    assert model.input_spec.needs_all_phases
    assert model.input_spec.typed
    with pytest.raises(InputRefused) as refused:
        predict(model, {"PV": np.zeros((8, 16, 16), np.int16)}, (3.0, 2.0, 2.0))
    assert refused.value.code == "E_PHASES_REQUIRED"
    present = data.present.clone()
    present[1, 0] = False
    with pytest.raises(ValueError, match="needs all of"):
        model(data.image, present)
    with pytest.raises(ValueError, match="phases"):
        model(data.image[:, :1], data.present[:, :1])
    with pytest.raises(ValueError, match="multiples of"):
        model(data.image[..., :12], data.present)


def test_property_ignored_samples_lose_nothing_for_lesions_and_pixels():
    model, data = tiny(patient_weight=0.0), batch()
    data.label[:] = -1
    loss = loss_of(model, data)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_regression_frozen_state_dict_keys():
    assert complete.keys_hash(tiny()) == (234, "2e33e8043e371bd5")


def test_regression_overfits_one_batch():
    small = {"layers": 2, "memory_levels": (2, 1), "patient_blocks": 2, "points": 128}
    model, data = tiny(channels=(6, 8, 12, 12), width=24, **small), batch()
    optimizer = torch.optim.RAdam(model.parameters(), lr=0.03)
    for _ in range(50):
        optimizer.zero_grad()
        loss = model.loss(model(data.image, data.present), model.targets(data))
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        outputs = model(data.image, data.present)
        found, pixels = model.decode(outputs).argmax(1), outputs.pixels.argmax(1)
    dice = {}
    # The pixel branch learns lesions later: its loss counts less.
    for k, of in ((HCC, found), (CYST, found), (OTHER, found), (LIVER, found), (LIVER, pixels)):
        both = ((of == k) & (data.label == k)).sum()
        dice[k, of is pixels] = float(2 * both / ((of == k).sum() + (data.label == k).sum()))
    assert min(dice.values()) > 0.8, dice
    truth = patient_targets(data.label, CLASSES)[:, :8]
    assert ((model.patient(outputs) > 0.5).float() == truth).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"phases": ("PV", "ART")},
        {"branches": "patient"},
        {"width": 10, "heads": 4},
        {"patient_width": 10, "patient_heads": 4},
        {"patient_levels": (4, 2)},
        {"memory_levels": ()},
        {"uncertain_share": 0.99},
        {"dice_weight": 5.0},
    ],
)
def test_property_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        PlanSettings(**TINY | wrong)
