"""DPC-Net: the paper's counts, its modules and losses against loops, other attention, training."""

from __future__ import annotations

import hashlib
import itertools
import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import loops
from hepar.infer.describe import describe_system
from hepar.systems.base import Batch, System
from hepar.systems.dpcnet.attention_baselines import AttentionGate, DeepAttentiveFeatures
from hepar.systems.dpcnet.semantic_correlation import (
    LiteralSemanticCorrelation,
    SemanticCorrelation,
)
from hepar.systems.dpcnet.settings import PRESETS, DpcnetSettings
from hepar.systems.dpcnet.spatial_correlation import (
    LiteralSpatialCorrelation,
    SpatialCorrelation,
    spatial_abstraction,
)
from hepar.systems.dpcnet.system import Dpcnet, Outputs, at_level

BARE = {"backbone": "unet3d", "spacor": "none", "semcor": "none", "deep_supervision": False}
ROWS = {
    "baseline": BARE,
    "semcor": {"backbone": "unet3d", "spacor": "none"},
    "semcor-max": {"backbone": "unet3d", "spacor": "none", "semcor": "max"},
    "spacor": {"backbone": "unet3d", "semcor": "none"},
    "spa-sem-avg": {"backbone": "unet3d", "spacor": "avg"},
    "sem-spa": {"backbone": "unet3d", "order": "sem_first"},
    "pfe": {"spacor": "none", "semcor": "none"},
    "dpcnet": {},
    "recursive": {"spa_recursive": True},
    "raw": {"sem_input": "raw"},
    "literal": {"correlation": "literal", "levels": 2},
    "average": {"final": "average"},
    "loss-ce": {"loss": "ce"},
    "loss-dice": {"loss": "dice", "dice": "per_class", "dice_background": False},
    "ag": {**BARE, "attention": "ag"},
    "daf": {**BARE, "attention": "daf"},
    "multiphase": {"phases": ("NC", "ART", "PV", "DL"), "sam_width": 2},
}
SMALL = {"width": 4, "stages": 4, "patch": (16, 16, 16), "spacing_mm": (5.0, 4.0, 4.0)}


def _small(row: str, seed: int = 0, **changes) -> Dpcnet:
    """A row of the paper at a tiny size, norms not at their start."""
    torch.manual_seed(seed)
    model = Dpcnet(DpcnetSettings(**(SMALL | ROWS[row] | changes)))
    with torch.no_grad():
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm3d)):
            norm.running_mean.normal_(0.0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    return model


def _batch(model: Dpcnet, samples: int = 2, size: int = 16, seed: int = 0) -> Batch:
    """A bright liver with a dark tumor a sample, noise around."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.arange(size) - size / 2 + 0.5
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    far, near = (z**2 + y**2 + x**2).sqrt(), (z**2 + (y - 2) ** 2 + (x + 2) ** 2).sqrt()
    label = (far < 0.42 * size).long() + (near < 0.22 * size).long()
    label = label.expand(samples, -1, -1, -1)
    phases = len(model.settings.phases)
    shade = torch.tensor([0.2, 0.7, 0.4])[label][:, None, None].expand(-1, phases, -1, -1, -1, -1)
    noise = 0.05 * torch.randn(shade.shape, generator=generator)
    present = torch.ones((samples, phases), dtype=torch.bool)
    return Batch((shade + noise).clamp(0, 1), present, label, label > 0)


# ---- counts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("baseline", 22_581_283),
        ("pfe", 17_244_876),
        ("paper", 17_767_489),
        ("spa_sem", 23_105_249),
        ("ag", 22_581_283 + 1_035_779),
        ("daf", 22_581_283 + 671_863),
        ("six_stages", 32_712_719 + 1_255_364 + 299_968 + 3_768),
    ],
)
def test_closed_form_parameters_of_the_paper(preset, parameters):
    with torch.device("meta"):
        model = Dpcnet(DpcnetSettings.preset(preset))
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_closed_form_parts_as_hepar_info_names_them():
    parts = describe_system("dpcnet", "paper")["modules"]
    assert parts == {
        "backbone": 17_244_876 - 1_452,
        "heads": 1_452,
        "spacor": 434_115,
        "spacor_heads": 1_353,
        "semcor": 86_464,
        "semcor_heads": 681,
    }
    literal = describe_system("dpcnet", "literal_l3")["modules"]
    assert (literal["spacor"], literal["semcor"]) == (430_626, 87_808)
    assert describe_system("dpcnet", "ag")["modules"]["attention_gates"] == 1_035_779
    assert describe_system("dpcnet", "daf")["modules"]["deep_attentive_features"] == 671_863


@pytest.mark.parametrize("preset", PRESETS)
def test_property_every_preset_builds_and_survives_json(preset):
    settings = DpcnetSettings.preset(preset)
    assert DpcnetSettings.model_validate_json(settings.model_dump_json()) == settings
    with torch.device("meta"):
        assert isinstance(Dpcnet(settings), System)


# ---- equations -----------------------------------------------------------------------------------


def _leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.01 * x)


def _squeezed(u: Tensor, finer: Tensor, squeeze: str) -> Tensor:
    """T_i of Eq. 5, voxel by voxel over the channels of the concatenation."""
    found = torch.zeros(1, *u.shape[1:], dtype=torch.float64)
    for at in itertools.product(*(range(n) for n in u.shape[1:])):
        column = [float(c) for c in (*u[(slice(None), *at)], *finer[(slice(None), *at)])]
        parts = {"avg": [sum(column) / len(column)], "max": [max(column)]}
        parts["both"] = parts["avg"] + parts["max"]
        found[(0, *at)] = sum(parts[squeeze])
    return found


def _sigmoid(x: Tensor) -> Tensor:
    values = [1 / (1 + math.exp(-v)) for v in x.flatten().tolist()]
    return torch.tensor(values, dtype=torch.float64).view(x.shape)


@pytest.mark.parametrize("squeeze", ["avg", "max", "both"])
def test_oracle_spacor_is_equations_4_to_6(squeeze):
    torch.manual_seed(0)
    module = SpatialCorrelation(3, 2, squeeze).double()
    coarse = torch.randn(2, 3, 1, 2, 2, dtype=torch.float64)
    finer = torch.randn(2, 2, 2, 4, 4, dtype=torch.float64)
    found = module(coarse, finer).detach()
    for sample in range(2):
        u = loops.doubled(coarse[sample], module.up)
        hidden = _leaky(
            loops.conv3d(
                _squeezed(u, finer[sample], squeeze), module.hidden.weight, module.hidden.bias
            )
        )
        attention = loops.conv3d(hidden, module.attention.weight, module.attention.bias)
        weighed = _sigmoid(attention) * loops.conv3d(u, module.g.weight, module.g.bias)
        # As the text has it: back to the level's channels, then to its size.
        back = loops.conv3d(weighed, module.back.weight, module.back.bias)
        mean = back.reshape(3, 1, 2, 2, 2, 2, 2).mean(dim=(2, 4, 6))
        torch.testing.assert_close(found[sample], mean, atol=1e-10, rtol=0)


def test_oracle_literal_spacor_is_equations_4_to_6():
    torch.manual_seed(0)
    module = LiteralSpatialCorrelation(3, 2, "both").double()
    coarse = torch.randn(1, 3, 1, 2, 2, dtype=torch.float64)
    finer = torch.randn(1, 2, 2, 4, 4, dtype=torch.float64)
    # g after the up-sampling, where Eq. 6 has it.
    g = loops.conv3d(loops.trilinear(coarse[0]), module.g.weight, module.g.bias)
    h = _squeezed(g, finer[0], "both")
    for layer in (module.hidden1, module.hidden2):
        h = _leaky(loops.conv3d(h, layer.weight, layer.bias))
    weighed = _sigmoid(loops.conv3d(h, module.attention.weight, module.attention.bias)) * g
    expected = loops.conv3d(weighed, module.back.weight, module.back.bias, stride=2)
    torch.testing.assert_close(module(coarse, finer)[0].detach(), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("squeeze", ["avg", "max", "both"])
@pytest.mark.parametrize("widths", [(3, 3), (5, 2)])
def test_oracle_abstraction_without_concatenation_has_its_values_and_gradients(squeeze, widths):
    torch.manual_seed(0)
    parts = [torch.randn(2, w, 4, 5, 6, requires_grad=True) for w in widths]
    joined = torch.cat(parts, dim=1)
    mean, most = joined.mean(dim=1, keepdim=True), joined.amax(dim=1, keepdim=True)
    literal = {"avg": mean, "max": most, "both": mean + most}[squeeze]
    weight = torch.randn_like(literal)
    expected = torch.autograd.grad((literal * weight).sum(), parts)
    found = spatial_abstraction(*parts, squeeze)
    torch.testing.assert_close(found, literal, atol=1e-6, rtol=0)
    for a, b in zip(torch.autograd.grad((found * weight).sum(), parts), expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def _perceptron(x: list[float], layers: nn.Sequential) -> list[float]:
    for layer in layers:
        if isinstance(layer, nn.Linear):
            rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
            x = [b + sum(w * v for w, v in zip(row, x, strict=True)) for row, b in rows]
        else:
            x = [v if v > 0 else 0.01 * v for v in x]
    return x


def _mean_max(x: Tensor) -> tuple[list[float], list[float]]:
    voxels = [channel.flatten().tolist() for channel in x]
    return [sum(v) / len(v) for v in voxels], [max(v) for v in voxels]


@pytest.mark.parametrize("squeeze", ["avg", "max", "both"])
def test_oracle_semcor_is_equations_7_to_9(squeeze):
    torch.manual_seed(0)
    module = SemanticCorrelation(2, 3, squeeze).double()
    fine, raw = torch.randn(2, 1, 2, 4, 4, 4, dtype=torch.float64)
    coarse = torch.randn(1, 3, 2, 2, 2, dtype=torch.float64)
    of_fine, of_coarse = _mean_max(fine[0]), _mean_max(coarse[0])
    answers = [
        _perceptron(a + b, module.perceptron) for a, b in zip(of_fine, of_coarse, strict=True)
    ]
    chosen = {"avg": answers[:1], "max": answers[1:], "both": answers}[squeeze]
    attention = [sum(column) for column in zip(*chosen, strict=True)]
    for weighed in (fine, raw):
        expected = torch.stack(
            [weighed[0, c] / (1 + math.exp(-a)) for c, a in enumerate(attention)]
        )
        found = module(fine, coarse, weighed)[0].detach()
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("squeeze", ["avg", "max", "both"])
def test_oracle_literal_semcor_is_equations_7_to_9(squeeze):
    torch.manual_seed(0)
    module = LiteralSemanticCorrelation(2, 3, squeeze).double()
    fine = torch.randn(1, 2, 2, 4, 4, dtype=torch.float64)
    coarse = torch.randn(1, 3, 1, 2, 2, dtype=torch.float64)
    aligned = loops.conv3d(fine[0], module.align.weight, module.align.bias)
    (mean_a, max_a), (mean_b, max_b) = _mean_max(aligned), _mean_max(coarse[0])
    descriptors = {"avg": mean_a + mean_b, "max": max_a + max_b}
    descriptors["both"] = descriptors["avg"] + descriptors["max"]
    attention = _perceptron(descriptors[squeeze], module.perceptron)
    expected = torch.zeros(3, 2, 4, 4, dtype=torch.float64)
    for at in itertools.product(range(2), range(4), range(4)):
        mapped = _perceptron(aligned[(slice(None), *at)].tolist(), nn.Sequential(module.g))
        for c, a in enumerate(attention):
            expected[(c, *at)] = mapped[c] / (1 + math.exp(-a))
    found = module(fine, coarse, fine)[0].detach()
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def _head_loss(logits: Tensor, label: Tensor, settings: DpcnetSettings) -> float:
    """Eq. 10 to 12, voxel by voxel."""
    entropy, counted = 0.0, 0
    first = 0 if settings.dice_background else 1
    overlap, size = [0.0] * 3, [0.0] * 3
    for b, *at in itertools.product(*(range(n) for n in label.shape)):
        truth = int(label[(b, *at)])
        if truth < 0:
            continue
        scores = logits[(b, slice(None), *at)].tolist()
        total = sum(math.exp(s) for s in scores)
        entropy -= scores[truth] - math.log(total)
        counted += 1
        for c in range(first, 3):
            p, g = math.exp(scores[c]) / total, float(truth == c)
            overlap[c] += g * p
            size[c] += g * g + p * p
    if settings.dice == "joint":
        dice = 1 - 2 * sum(overlap) / (sum(size) + 1e-5)
    else:
        ratios = [2 * overlap[c] / (size[c] + 1e-5) for c in range(first, 3)]
        dice = 1 - sum(ratios) / len(ratios)
    parts = {"ce": entropy / max(counted, 1), "dice": dice}
    return parts["ce"] + parts["dice"] if settings.loss == "both" else parts[settings.loss]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dice": "per_class", "dice_background": False},
        {"dice": "per_class"},
        {"loss": "ce"},
        {"loss": "dice", "dice_background": False},
    ],
)
def test_oracle_the_loss_is_equations_10_to_13(changes):
    settings = DpcnetSettings(**(SMALL | changes | {"levels": 3}))
    model = Dpcnet(settings)
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(-1, 3, (2, 4, 4, 4), generator=generator)
    sizes = [(4, 4, 4), (2, 2, 2), (1, 1, 1)]
    raw, spa, sem = (
        [torch.randn(2, 3, *size, generator=generator).double() for size in sizes] for _ in range(3)
    )
    found = model.loss(Outputs(raw, spa[1:], sem[:-1], []), label)
    expected = 0.0
    for kind, levels in ((raw, (0, 1, 2)), (spa, (1, 2)), (sem, (0, 1))):
        for i in levels:
            picked = label[:, *(slice(2**i // 2, None, 2**i) for _ in range(3))]
            expected += _head_loss(kind[i], picked, settings) / (2**i * 3)
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_closed_form_losses_of_one_head_and_of_deep_attentive_features():
    model = _small("daf")
    label = torch.randint(0, 3, (1, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    raw, daf = torch.randn(1, 3, 4, 4, 4).double(), torch.randn(9, 1, 3, 2, 2, 2).double()
    found = model.loss(Outputs([raw], [], [], list(daf)), label)
    coarse = label[:, 1::2, 1::2, 1::2]
    nine = sum(_head_loss(logits, coarse, model.settings) for logits in daf) / 9
    expected = _head_loss(raw, label, model.settings) + nine
    assert float(found.detach()) == pytest.approx(expected, rel=1e-12)


def test_closed_form_labels_of_a_coarser_level_are_picked():
    label = torch.arange(64).reshape(1, 4, 4, 4)
    assert torch.equal(at_level(label, (4, 4, 4)), label)
    assert at_level(label, (2, 2, 2)).flatten().tolist() == [21, 23, 29, 31, 53, 55, 61, 63]


# ---- attention baselines -------------------------------------------------------------------------


def test_oracle_attention_gate():
    torch.manual_seed(0)
    gate = AttentionGate(2, 3).double().eval()
    skip = torch.randn(1, 2, 2, 4, 4, dtype=torch.float64)
    signal = torch.randn(1, 3, 1, 2, 2, dtype=torch.float64)
    theta = torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    for o, y, x in itertools.product(range(2), range(2), range(2)):
        block = skip[0, :, 0:2, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
        theta[o, 0, y, x] = float((gate.theta.weight[o].detach() * block).sum())
    phi = loops.conv3d(signal[0], gate.phi.weight, gate.phi.bias)
    joined = (theta + phi).clamp(min=0)
    attention = loops.trilinear(_sigmoid(loops.conv3d(joined, gate.psi.weight, gate.psi.bias)))
    x = attention * skip[0]
    for part, act in ((gate.w, False), (gate.combine, True)):
        x = loops.conv3d(x, part[0].weight, part[0].bias)
        x = x / math.sqrt(1 + part[1].eps)
        x = x.clamp(min=0) if act else x
    torch.testing.assert_close(gate(skip, signal)[0].detach(), x, atol=1e-10, rtol=0)


def test_closed_form_deep_attentive_features_answer_nine_times_at_one_size():
    model = DeepAttentiveFeatures((4, 8, 8, 16), 4, 3)
    features = [torch.randn(1, c, *(16 >> i,) * 3) for i, c in enumerate((4, 8, 8, 16))]
    assert [tuple(f.shape) for f in model(features)] == [(1, 3, 16, 16, 16)] * 9
    # An attention of zeros hides the fusion from the refinement, not the level itself.
    with torch.no_grad():
        for attention in model.attentions:
            attention[-2].weight.zero_()
            attention[-2].bias.fill_(-1e4)
    before = model(features)
    with torch.no_grad():
        model.fuse[0].weight.normal_()
    torch.testing.assert_close(model(features)[-1], before[-1])


def test_property_gates_stand_on_every_skip_but_the_finest():
    model = _small("ag").eval()
    batch = _batch(model)
    assert len(model.gates) == model.settings.stages - 2
    before = model.decode(model(batch.image, batch.present))
    with torch.no_grad():
        for gate in model.gates:
            gate.psi.weight.zero_()
            gate.psi.bias.fill_(-1e4)
    assert not torch.allclose(model.decode(model(batch.image, batch.present)), before)


# ---- the whole -----------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS)
def test_closed_form_every_row_runs_and_every_parameter_gets_a_gradient(row):
    model = _small(row).train()
    batch = _batch(model)
    outputs = model(batch.image, batch.present)
    loss = model.loss(outputs, model.targets(batch))
    loss.backward()
    assert torch.isfinite(loss)
    idle = [name for name, p in model.named_parameters() if p.grad is None]
    assert not idle
    found = model.decode(outputs)
    assert found.dtype == torch.float32
    assert found.shape == (2, 3, 16, 16, 16)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2, 16, 16, 16))


def test_closed_form_what_answers():
    one = {"backbone": "unet3d"}
    outputs = Outputs(*([torch.full((1, 3, 1, 1, 1), float(k))] for k in range(3)), daf=[])
    heads = {
        ("raw",): BARE,
        ("sem",): one,
        ("raw", "spa"): {**one, "semcor": "none"},
        ("sem", "spa"): {**one, "order": "sem_first"},
        ("raw", "spa", "sem"): {"final": "average"},
    }
    for names, changes in heads.items():
        model = Dpcnet(DpcnetSettings(**(SMALL | changes)))
        shown = {name: getattr(outputs, name) for name in names}
        given = Outputs(
            raw=outputs.raw,
            spa=shown.get("spa", []),
            sem=shown.get("sem", []),
            daf=[],
        )
        assert model._final(given) == [*itertools.chain(*(getattr(outputs, n) for n in names))]


def test_closed_form_the_backbone_sees_z_scores():
    model = _small("pfe", window_hu=(-100.0, 300.0), mean_hu=80.0, std_hu=40.0)
    seen = []
    model.backbone.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    hu = torch.tensor([-100.0, 80.0, 120.0, 300.0])
    image = ((hu + 100) / 400).repeat(16 * 16 * 4).reshape(1, 1, 1, 16, 16, 16)
    model(image, torch.ones(1, 1, dtype=torch.bool))
    torch.testing.assert_close(seen[0][0, 0, 0, 0, :4], torch.tensor([-4.5, 0.0, 1.0, 5.5]))


@pytest.mark.parametrize("fill", [0.0, 5.0, math.nan, math.inf])
def test_property_absent_phases_change_nothing(fill):
    model = _small("multiphase").train()
    batch = _batch(model)
    present = torch.tensor([[True, False, True, True], [False, True, False, False]])
    image = batch.image.masked_fill(~present[:, :, None, None, None, None], fill)
    zeros = batch.image.masked_fill(~present[:, :, None, None, None, None], 0.0)
    statistics = {k: v.clone() for k, v in model.state_dict().items()}
    found = model(image, present).sem[0]
    after = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(statistics)
    torch.testing.assert_close(found, model(zeros, present).sem[0], rtol=0, atol=0)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, after[name], rtol=0, atol=0)


def test_property_an_absent_phase_is_the_network_without_it():
    model = _small("multiphase").eval()
    batch = _batch(model, samples=1)
    present = torch.tensor([[False, False, True, False]])
    alone = _small("dpcnet").eval()
    own = {k: v for k, v in model.state_dict().items() if not k.startswith("sams")}
    alone.load_state_dict(own)
    # One phase has all the weight: SAM gives back what it was given.
    found = model.decode(model(batch.image, present))
    expected = alone.decode(alone(batch.image[:, 2:3], torch.ones(1, 1, dtype=torch.bool)))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 2, 1, 16, 16, 16), "phases"),
        ((1, 1, 2, 16, 16, 16), "phases"),
        ((1, 1, 1, 16, 12, 16), "mult"),
    ],
)
def test_errors_wrong_shapes_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        _small("pfe")(torch.zeros(shape), torch.ones(shape[:2], dtype=torch.bool))


def test_property_bfloat16_keeps_losses_in_float32():
    model = _small("dpcnet")
    batch = _batch(model)
    exact = model.loss(model(batch.image, batch.present), model.targets(batch))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(batch.image, batch.present)
        loss = model.loss(outputs, model.targets(batch))
    assert outputs.raw[0].dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)


def test_regression_keys_of_the_published_network():
    with torch.device("meta"):
        keys = "\n".join(sorted(Dpcnet(DpcnetSettings()).state_dict()))
    assert hashlib.sha256(keys.encode()).hexdigest()[:16] == "82a4b498a7ee9ee4"


def test_regression_dpcnet_overfits_one_batch():
    model = _small("dpcnet", width=6, dice="per_class", dice_background=False).train()
    batch = _batch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(model(batch.image, batch.present), model.targets(batch)).backward()
        optimizer.step()
    found = model.decode(model(batch.image, batch.present)).argmax(dim=1)
    for k in (1, 2):
        both = ((found == k) & (batch.label == k)).sum()
        dice = 2 * both / ((found == k).sum() + (batch.label == k).sum())
        assert dice > 0.9


@pytest.mark.parametrize(
    "wrong",
    [
        {"phases": ("PV", "ART")},
        {"phases": ()},
        {"window_hu": (100.0, 0.0)},
        {"patch": (20, 16, 16)},
        {"levels": 4},
        {"attention": "ag"},
        {**BARE, "attention": "daf", "phases": ("ART", "PV")},
        {"order": "sem_first", "semcor": "none"},
        {"order": "sem_first", "correlation": "literal"},
        {"std_hu": 0.0},
        {"spacor": "median"},
    ],
)
def test_errors_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        DpcnetSettings(**(SMALL | wrong))
