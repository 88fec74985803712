"""nnU-Net: its counts, z-scores, loss of levels, presence, learning."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

import complete_study as complete
from hepar.errors import InputRefused, UsageError
from hepar.infer.network import Tiling
from hepar.infer.tiling import predict
from hepar.recipe import Schedule, parse_recipe
from hepar.systems.base import Batch, System
from hepar.systems.baselines.nnunet.planning import topology, widths
from hepar.systems.baselines.nnunet.settings import PRESETS, NnunetSettings
from hepar.systems.baselines.nnunet.system import Nnunet, level_weights, module_parameters
from hepar.systems.planned_settings import PHASES
from hepar.train.schedule import optimizer

NETWORKS = json.loads(Path(__file__).with_name("nnunet_plans.json").read_text())["networks"]
TINY = {
    "spacing_mm": (3.0, 2.0, 2.0),
    "patch": (8, 16, 16),
    "channels": (4, 6, 8, 8),
    "strides": ((1, 2, 2), (2, 2, 2), (2, 2, 2)),
    "kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
}
TWO = {
    "phases": ("ART", "PV"),
    "window_hu": ((-50.0, 250.0), (0.0, 200.0)),
    "mean_hu": (80.0, 100.0),
    "std_hu": (40.0, 25.0),
}


def tiny(**changes) -> Nnunet:
    torch.manual_seed(0)
    return Nnunet(NnunetSettings(**TINY | changes))


def batch(samples: int = 2, phases: int = 1) -> Batch:
    """A liver with a dark tumor in noise."""
    generator = torch.Generator().manual_seed(1)
    label = torch.zeros((samples, *TINY["patch"]), dtype=torch.long)
    label[:, 1:7, 2:14, 2:14] = 1
    label[0, 2:6, 4:10, 4:10] = 2
    image = 0.1 * torch.rand((samples, phases, 1, *TINY["patch"]), generator=generator)
    image += 0.3 + (0.4 * (label > 0) - 0.3 * (label == 2))[:, None, None]
    return Batch(image, torch.ones((samples, phases), dtype=torch.bool), label, label > 0)


FUSIONS = ("hemis", "convlstm", "ifm")
TYPED = {"phases": PHASES, "classes": "types", "coarsest_head": True}


def typed_batch() -> Batch:
    """A liver with a metastasis and a cyst, whose phases are not all there."""
    data = batch(phases=4)
    label = torch.where(data.label == 1, 9, 0)
    label[0, 2:6, 4:10, 4:10] = 3
    label[1, 2:6, 6:12, 6:12] = 6
    image = data.image + (0.5 * (label == 3) - 0.2 * (label == 6))[:, None, None]
    present = torch.tensor([[True, True, True, False], [False, True, True, True]])
    return Batch(image, present, label, data.liver)


def of_plan(network: dict) -> NnunetSettings:
    """Settings of a network whose parameters nnU-Net's own code counted."""
    strides = [tuple(step) for step in network["strides"]]
    z, y, x = (4 * math.prod(step[axis] for step in strides) for axis in range(3))
    return NnunetSettings(
        patch=(z, y, x),
        channels=tuple(network["channels"]),
        strides=tuple(strides),
        kernels=tuple(tuple(kernel) for kernel in network["kernels"]),
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_oracle_parameters_are_those_of_plain_conv_unet(name):
    """All but the head of the coarsest level, which nnU-Net has and never trains."""
    network = NETWORKS[name]
    with torch.device("meta"):
        count = sum(p.numel() for p in Nnunet(of_plan(network)).parameters())
    assert count == network["total"] - network["heads, coarsest first"][0]


def counted(settings: NnunetSettings) -> dict[str, int]:
    """Convolutions with bias, norms of two numbers a channel, and a head for all levels but one."""

    def block(c: int, d: int, kernel) -> int:
        return math.prod(kernel) * c * d + d + 2 * d

    def pair(c: int, d: int, kernel) -> int:
        return block(c, d, kernel) + block(d, d, kernel)

    channels, kernels, phases = settings.channels, settings.kernels, len(settings.phases)
    ins = (phases, *channels[:-1])
    fine, width = channels[:-1], channels[0]
    ups = zip(channels[1:], fine, settings.strides, strict=True)
    encoder = list(map(pair, ins, channels, kernels))
    own = phases * pair(1, width, kernels[0])
    join = block(2 * width, width, kernels[0])
    gates = math.prod(kernels[0]) * 2 * width * 4 * width + 4 * width
    stems = {"ifm": own + join, "hemis": own + join, "convlstm": own + gates}
    supervised = fine if settings.coarsest_head else fine[: max(1, len(fine) - 1)]
    k = {"tumor": 3, "types": 10}[settings.classes]
    stem = {} if settings.fusion == "channels" else {"stem": stems[settings.fusion]}
    return stem | {
        "encoder": sum(encoder[1:] if stem else encoder),
        "decoder": sum(math.prod(step) * c * d + d for c, d, step in ups)
        + sum(pair(2 * d, d, kernel) for d, kernel in zip(fine, kernels, strict=False)),
        "heads": sum(k * d + k for d in supervised),
    }


def test_closed_form_parameters_and_published_count():
    assert NETWORKS["six levels"]["total"] == 31_196_399
    for name in PRESETS:
        settings = NnunetSettings.preset(name)
        with torch.device("meta"):
            found = module_parameters(Nnunet(settings))
            alone = {"deep_supervision": False, "coarsest_head": False, "classes": "tumor"}
            plain = Nnunet(settings.model_copy(update=alone))
        assert found == counted(settings)
        assert module_parameters(plain)["heads"] == 3 * settings.channels[0] + 3
        large = settings.channels[0] == 32 and "lidia" not in name
        assert (sum(found.values()) == 31_196_399 - (3 * 320 + 3)) == large


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("lidia", 31_203_762),
        ("lidia_hemis", 31_203_762 - 30_432 + 170_208),
        ("lidia_convlstm", 31_203_762 - 30_432 + 336_128),
        ("lidia_ifm", 31_203_762 - 30_432 + 170_208),
    ],
)
def test_closed_form_parameters_of_the_fusions_of_lidia(name, total):
    settings = NnunetSettings.preset(name)
    with torch.device("meta"):
        model = Nnunet(settings)
    assert sum(p.numel() for p in model.parameters()) == total
    assert [head.out_channels for head in model.heads] == [10] * 5
    assert model.input_spec.needs_all_phases == (name == "lidia")
    assert settings.phases == (PHASES[:3] if name == "lidia" else PHASES)
    if name == "lidia_ifm":
        # What the encoder of LIDIA counts, its stem included.
        parts = module_parameters(model)
        assert parts["stem"] + parts["encoder"] == 14_166_624


@pytest.mark.parametrize("name", [name for name in PRESETS if "lidia" not in name])
def test_closed_form_presets_are_what_the_planner_makes_of_their_patch(name):
    settings = NnunetSettings.preset(name)
    found = topology(settings.spacing_mm or (2.47, 1.9, 1.9), settings.patch)
    assert (found.patch, found.strides, found.kernels) == (
        settings.patch,
        settings.strides,
        settings.kernels,
    )
    share = 32 // settings.channels[0]
    assert settings.channels == tuple(n // share for n in widths(len(settings.channels)))
    assert NnunetSettings.model_validate_json(settings.model_dump_json()) == settings


def test_closed_form_z_scores_are_those_of_each_phase():
    model = tiny(**TWO)
    assert model.input_spec.windows_hu == ((-50.0, 250.0),)
    hu = torch.tensor([-50.0, 0.0, 100.0, 200.0, 250.0])
    image = ((hu + 50) / 300).view(1, 1, 1, 1, 1, 5).expand(1, 2, 1, 1, 1, 5)
    found = model.z_scores(image)[0, :, 0, 0, 0]
    torch.testing.assert_close(found[0], (hu - 80) / 40)
    torch.testing.assert_close(found[1], torch.tensor([-4.0, -4.0, 0.0, 4.0, 4.0]))
    assert not set(model.state_dict()) & {"low", "high", "mean", "std"}
    alike = NnunetSettings(**TINY, phases=("ART", "PV"))
    assert alike.windows_hu == ((-17.0, 201.0),) * 2
    assert (alike.means_hu, alike.stds_hu) == ((99.4,) * 2, (39.36,) * 2)
    again = NnunetSettings.model_validate_json(model.settings.model_dump_json())
    assert again == model.settings


def test_closed_form_weights_of_levels():
    assert level_weights(5) == pytest.approx((8 / 15, 4 / 15, 2 / 15, 1 / 15))
    assert level_weights(2) == level_weights(1) == level_weights(1, coarsest=True) == (1.0,)
    assert level_weights(3, coarsest=True) == pytest.approx((4 / 7, 2 / 7, 1 / 7))
    assert len(tiny(coarsest_head=True).heads) == 3
    model = tiny()
    assert model.weights == pytest.approx((2 / 3, 1 / 3))
    assert [tuple(x.shape) for x in model(batch().image, batch().present)] == [
        (2, 3, 8, 16, 16),
        (2, 3, 8, 8, 8),
    ]
    assert len(tiny(deep_supervision=False).heads) == 1


def test_oracle_targets_are_the_nearest_voxels():
    model = tiny(channels=(4, 6, 8, 8, 8), strides=(*TINY["strides"], (1, 2, 2)), patch=(8, 16, 16),
                 kernels=(*TINY["kernels"], (3, 3, 3)))  # fmt: skip
    data = batch()
    label = torch.randint(-1, 3, data.label.shape, generator=torch.Generator().manual_seed(2))
    found = model.targets(Batch(data.image, data.present, label, data.liver))
    assert [tuple(x.shape) for x in found] == [(2, 8, 16, 16), (2, 8, 8, 8), (2, 4, 4, 4)]
    for target in found:
        expected = functional.interpolate(
            label[:, None].float(), target.shape[1:], mode="nearest-exact"
        )
        assert torch.equal(target, expected[:, 0].long())


@pytest.mark.parametrize("batch_dice", [True, False])
def test_oracle_loss_is_the_sum_over_levels_of_a_float64_loop(batch_dice):
    model = tiny(batch_dice=batch_dice)
    generator = torch.Generator().manual_seed(4)
    sizes = [(2, 3, 4, 4, 4), (2, 3, 4, 2, 2)]
    outputs = [torch.randn(size, generator=generator) for size in sizes]
    targets = [
        torch.randint(-1, 3, (2, *size[2:]), generator=generator, dtype=torch.long)
        for size in sizes
    ]
    total = 0.0
    for weight, logits, label in zip((2 / 3, 1 / 3), outputs, targets, strict=True):
        p = torch.softmax(logits.double(), 1).numpy()
        y = label.numpy()
        known = y != -1
        b, z, yy, x = np.nonzero(known)
        entropy = -np.log(p[b, y[known], z, yy, x]).mean()
        volumes = [[0, 1]] if batch_dice else [[0], [1]]
        ratios = []
        for rows in volumes:
            for k in (1, 2):
                overlap = sum(float(p[r, k][y[r] == k].sum()) for r in rows)
                sizes_sum = sum(float(p[r, k][known[r]].sum() + (y[r] == k).sum()) for r in rows)
                ratios.append((2 * overlap + 1e-5) / (sizes_sum + 1e-5))
        total += weight * (entropy + 1 - np.mean(ratios))
    found = model.loss(outputs, targets)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(total, rel=1e-5)


def test_property_ignored_voxels_change_nothing():
    model, data = tiny(deep_supervision=False).double(), batch()
    label = data.label.clone()
    label[:, :, 8:] = -1
    logits = torch.randn((2, 3, *TINY["patch"]), dtype=torch.float64, requires_grad=True)
    loss = model.loss([logits], [label])
    loss.backward()
    assert not logits.grad[..., 8:, :].any()
    assert logits.grad[..., :8, :].any()
    cut = model.loss([logits[..., :8, :]], [label[:, :, :8]])
    assert loss.item() == pytest.approx(cut.item(), rel=1e-12)
    nothing = model.loss([logits], [torch.full_like(label, -1)])
    nothing.backward()
    assert torch.isfinite(logits.grad).all()
    assert nothing.item() == pytest.approx(0.0, abs=1e-9)


def test_property_decode_gives_probabilities_under_bfloat16_too():
    model, data = tiny().eval(), batch()
    with torch.no_grad():
        exact = model.decode(model(data.image, data.present))
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(data.image, data.present)
        rough = model.decode(outputs)
    for found in (exact, rough):
        assert found.dtype == torch.float32
        assert found.shape == (2, 3, *TINY["patch"])
        torch.testing.assert_close(found.sum(1), torch.ones(2, *TINY["patch"]))
    assert 0 < float((exact - rough).abs().max()) < 0.05
    loss = model.loss(outputs, model.targets(data))
    assert loss.dtype == torch.float32


def test_property_needs_every_phase():
    model = tiny(**TWO)
    assert isinstance(model, System)
    assert model.input_spec.needs_all_phases
    with pytest.raises(InputRefused) as refused:
        predict(model, {"PV": np.zeros((8, 16, 16), np.int16)}, (3.0, 2.0, 2.0))
    assert refused.value.code == "E_PHASES_REQUIRED"
    data = batch(phases=2)
    present = data.present.clone()
    present[1, 0] = False
    with pytest.raises(ValueError, match="needs all of"):
        model(data.image, present)
    with pytest.raises(ValueError, match="phases"):
        model(data.image[:, :1], data.present[:, :1])
    with pytest.raises(ValueError, match="multiples of"):
        model(data.image[..., :12], data.present)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_property_a_stem_takes_any_phases(fusion):
    """Absent phases change nothing, and nor does who else is in the batch."""
    model, data = tiny(**TYPED, fusion=fusion).eval(), typed_batch()
    spec = model.input_spec
    assert not spec.needs_all_phases
    assert spec.typed
    assert spec.tumor_classes == tuple(range(1, 9))
    dirty = torch.where(data.present[..., None, None, None, None], data.image, torch.nan)
    with torch.no_grad():
        found = model.decode(model(dirty, data.present))
        assert torch.equal(found, model.decode(model(data.image, data.present)))
        for n in range(2):
            alone = model.decode(model(dirty[n : n + 1], data.present[n : n + 1]))
            torch.testing.assert_close(found[n : n + 1], alone, rtol=0, atol=1e-5)
        one = predict(model, {"PV": np.zeros((8, 16, 16), np.int16)}, (3.0, 2.0, 2.0))
    assert one.shape == (10, 8, 16, 16)
    with pytest.raises(ValueError, match="no phase at all"):
        model(data.image, torch.zeros_like(data.present))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_property_every_parameter_of_a_stem_and_of_the_coarsest_head_gets_gradient(fusion):
    model, data = tiny(**TYPED, fusion=fusion), typed_batch()
    model.loss(model(data.image, data.present), model.targets(data)).backward()
    idle = {
        id(part.bias)
        for block in model.modules()
        if isinstance(block, torch.nn.Sequential)
        for part in block
        if isinstance(part, torch.nn.Conv3d)
    }
    for name, parameter in model.named_parameters():
        assert (parameter.grad.abs().max() > 1e-6) == (id(parameter) not in idle), name


def test_regression_overfits_one_batch_of_types():
    model, data = tiny(**TYPED, fusion="ifm", channels=(8, 12, 16, 16)), typed_batch()
    steps = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(40):
        steps.zero_grad()
        model.loss(model(data.image, data.present), model.targets(data)).backward()
        steps.step()
    with torch.no_grad():
        found = model.decode(model(data.image, data.present)).argmax(1)
    for k in (3, 6, 9):
        both = ((found == k) & (data.label == k)).sum()
        assert 2 * both / ((found == k).sum() + (data.label == k).sum()) > 0.9


def test_property_predicts_a_volume_of_any_size():
    hu = np.random.default_rng(0).integers(-100, 200, (7, 37, 21)).astype(np.int16)
    found = predict(tiny().eval(), {"PV": hu}, (3.0, 2.0, 2.0))
    assert found.shape == (3, 7, 37, 21)
    np.testing.assert_allclose(found.astype(np.float64).sum(0), 1.0, atol=2e-3)


def test_property_thin_windows_are_padded_by_no_more_than_their_axis_needs():
    """Slices of a plan like this are not followed by twice as many of nothing."""
    model = tiny().eval()
    assert (model.input_spec.stride, model.input_spec.axis_strides) == (8, (4, 8, 8))
    seen = []
    model.trunk.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape[2:])))
    hu = np.random.default_rng(0).integers(-100, 200, (12, 16, 16)).astype(np.int16)
    predict(model, {"PV": hu}, (3.0, 2.0, 2.0), tiling=Tiling(overlap=0.5))
    assert seen == [(8, 16, 16)] * 2


def test_property_every_parameter_gets_gradient():
    model, data = tiny(**TWO), batch(phases=2)
    model.loss(model(data.image, data.present), model.targets(data)).backward()
    assert all(p.grad is not None for p in model.parameters())
    # An instance norm takes away what the bias of the convolution before it adds.
    idle = {
        id(conv.bias)
        for name, conv in model.named_modules()
        if isinstance(conv, torch.nn.Conv3d) and "levels" in name
    }
    assert len(idle) == 2 * 7
    for name, parameter in model.named_parameters():
        assert (parameter.grad.abs().max() > 1e-6) == (id(parameter) not in idle), name


def test_regression_frozen_state_dict_keys():
    assert complete.keys_hash(tiny()) == (66, "290e50cb92b45149")
    assert complete.keys_hash(tiny(**TYPED, fusion="ifm")) == (96, "8d9685dc9b047349")


def test_regression_overfits_one_batch():
    model, data = tiny(channels=(8, 12, 16, 16)), batch()
    chosen = Schedule(optimizer="nesterov", lr=0.05, momentum=0.9, steps=30)
    steps = optimizer(chosen, model)
    assert steps.param_groups[0]["nesterov"]
    for _ in range(chosen.steps):
        steps.zero_grad()
        model.loss(model(data.image, data.present), model.targets(data)).backward()
        steps.step()
    with torch.no_grad():
        found = model.decode(model(data.image, data.present)).argmax(1)
    for k in (1, 2):
        both = ((found == k) & (data.label == k)).sum()
        assert 2 * both / ((found == k).sum() + (data.label == k).sum()) > 0.9


@pytest.mark.parametrize(
    "wrong",
    [
        {"patch": (8, 16, 12)},
        {"channels": (4, 6, 8)},
        {"kernels": ((2, 3, 3), *TINY["kernels"][1:])},
        {"phases": ("PV", "ART")},
        {"dice": "joint"},
        {"fusion": "early"},
        {"coarsest_head": True, "deep_supervision": False},
        {"window_hu": (200.0, 0.0)},
        {"window_hu": ()},
        {"window_hu": ((0.0, 200.0), (0.0, 200.0))},
        {"std_hu": 0.0},
        {"mean_hu": (0.0, 1.0)},
    ],
)
def test_property_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        NnunetSettings(**TINY | wrong)


def test_property_nesterov_needs_a_momentum():
    tree = {
        "name": "a",
        "system": {"name": "nnunet", "preset": "toy"},
        "data": {"kind": "phantom"},
        "schedule": {"steps": 1, "optimizer": "nesterov", "momentum": 0.0},
    }
    with pytest.raises(UsageError, match="momentum"):
        parse_recipe(tree)
