"""URIM as a plug: 2D as published; 3D and more classes as Eq. 3 and 4 say; in a 3D U-Net."""

from __future__ import annotations

import hashlib
import itertools
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from hepar.systems.base import Batch, Refining, System
from hepar.systems.baselines.multiphase_unet3d.settings import MultiphaseUnet3dSettings
from hepar.systems.baselines.multiphase_unet3d.system import MultiphaseUnet3d, Refined
from hepar.systems.sam_urim.settings import SamUrimSettings
from hepar.systems.sam_urim.system import SamUrim
from hepar.systems.sam_urim.uncertain_region_inpainting import (
    LocalConfidenceConv,
    UncertainRegionInpainting,
    confidence,
)

PHASES = ("NC", "ART", "PV", "DL")
ALL = torch.ones(1, 4, dtype=torch.bool)
SHIPPED = Path(__file__).resolve().parents[1] / "models" / "lite" / "tumor"


# ---- oracle: Eq. 3 and 4 in two and three dimensions ---------------------------------------------


@pytest.mark.parametrize("spatial", [(3, 4), (2, 3, 4)])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_oracle_eq_3_is_the_quotient_of_the_two_largest_scores(classes, spatial):
    generator = torch.Generator().manual_seed(0)
    logits = 1.5 * torch.randn(2, classes, *spatial, generator=generator, dtype=torch.float64)
    found = confidence(logits)
    assert found.shape == (2, 1, *spatial)
    for b in range(2):
        for at in itertools.product(*(range(n) for n in spatial)):
            e = [math.exp(v) for v in logits[(b, slice(None), *at)].tolist()]
            second, best = sorted(v / sum(e) for v in e)[-2:]
            expected = 1 - math.exp(1 - best / second)
            assert float(found[(b, 0, *at)]) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("window_norm", ["sum", "mean"])
@torch.no_grad()
def test_oracle_eq_4_in_3d_is_a_loop_over_windows_of_27(window_norm):
    torch.manual_seed(1)
    conv = LocalConfidenceConv(2, 2, dims=3, window_norm=window_norm).double()
    conv.bias.normal_()
    size = (4, 5, 4)
    x = torch.randn(1, 2, *size, dtype=torch.float64)
    m = torch.rand(1, 1, *size, dtype=torch.float64)
    m[0, 0, 1:, 2:, 1:] = 0.0  # windows without any confidence: z >= 2, y >= 3, x >= 2
    found = conv(x, m)
    for o, *at in itertools.product(range(2), *(range(n) for n in size)):
        total, trust = 0.0, 0.0
        for step in itertools.product((-1, 0, 1), repeat=3):
            there = tuple(a + d for a, d in zip(at, step, strict=True))
            if all(0 <= a < n for a, n in zip(there, size, strict=True)):
                c = float(m[(0, 0, *there)])
                trust += c
                for i in range(2):
                    w = float(conv.conv.weight[(o, i, *(d + 1 for d in step))])
                    total += w * float(x[(0, i, *there)]) * c
        gain = 27 if window_norm == "mean" else 1
        expected = (gain * total / trust if trust > 0 else 0.0) + float(conv.bias[o])
        assert float(found[(0, o, *at)]) == pytest.approx(expected, abs=1e-12)
    empty = found[0, :, 2:, 3:, 2:]
    assert torch.equal(empty, conv.bias.view(2, 1, 1, 1).expand(empty.shape))


@torch.no_grad()
def test_oracle_a_slice_between_slices_of_no_confidence_is_the_2d_slice():
    torch.manual_seed(2)
    flat, deep = LocalConfidenceConv(3, 4).double(), LocalConfidenceConv(3, 4, dims=3).double()
    deep.conv.weight[:, :, 1] = flat.conv.weight
    x = torch.randn(2, 3, 3, 6, 5, dtype=torch.float64)
    m = torch.zeros(2, 1, 3, 6, 5, dtype=torch.float64)
    m[:, :, 1].uniform_()
    torch.testing.assert_close(deep(x, m)[:, :, 1], flat(x[:, :, 1], m[:, :, 1]))


def test_closed_form_full_confidence_in_3d_is_a_27th_of_a_convolution():
    torch.manual_seed(3)
    conv = LocalConfidenceConv(2, 3, dims=3).double()
    x = torch.randn(1, 2, 5, 5, 5, dtype=torch.float64)
    found = conv(x, torch.ones(1, 1, 5, 5, 5, dtype=torch.float64))
    plain = F.conv3d(x, conv.conv.weight, padding=1)
    inner = (..., *(slice(1, -1),) * 3)
    torch.testing.assert_close(found[inner], plain[inner] / 27)
    torch.testing.assert_close(found[..., 0, 0, 0], plain[..., 0, 0, 0] / 8)  # a corner has eight


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("dims", [2, 3])
def test_oracle_four_layers_each_with_a_wider_maximum(dims, classes):
    torch.manual_seed(4)
    urim = UncertainRegionInpainting(classes, 4, dims=dims, width=4).double().eval()
    spatial = (6,) * dims
    logits = torch.randn(1, classes, *spatial).double()
    features = torch.randn(1, 4, *spatial).double()
    pool = {2: F.max_pool2d, 3: F.max_pool3d}[dims]
    with torch.no_grad():
        found = urim(logits, features)
        m = confidence(logits)
        x0 = torch.cat([logits.softmax(1), features], dim=1)
        x = x0
        for layer in range(4):
            # Four max poolings over 3 are one over 9: layer i sees the maximum over 2i + 1.
            trust = pool(m, 2 * layer + 1, stride=1, padding=layer) if layer else m
            x = F.relu(urim.norms[layer](urim.convs[layer](x, trust)))
        torch.testing.assert_close(found.logits, urim.head(torch.cat([x, x0], dim=1)))
    torch.testing.assert_close(found.confidence_before, m)
    torch.testing.assert_close(found.confidence_after, pool(m, 9, stride=1, padding=4))


def test_closed_form_parameters_in_3d():
    urim = UncertainRegionInpainting(3, 16, dims=3, width=16)
    layer = 16 + 2 * 16  # bias, BatchNorm
    convolutions = 27 * 16 * (19 + 3 * 16)
    assert sum(p.numel() for p in urim.parameters()) == convolutions + 4 * layer + 35 * 3 + 3


def test_closed_form_confidence_spreads_one_voxel_a_layer_in_3d():
    logits = torch.zeros(1, 3, 8, 8, 8)
    logits[0, 1, 0, 0, 0] = 5.0
    torch.manual_seed(5)
    urim = UncertainRegionInpainting(3, 2, dims=3, width=2).eval()
    with torch.no_grad():
        out = urim(logits, torch.randn(1, 2, 8, 8, 8))
    assert int((out.confidence_before > 0).sum()) == 1
    assert int((out.confidence_after > 0).sum()) == 125
    assert torch.isfinite(out.logits).all()


def test_property_ties_everywhere_have_finite_gradients_in_3d():
    torch.manual_seed(6)
    urim = UncertainRegionInpainting(3, 2, dims=3, width=3)
    logits = torch.zeros(2, 3, 4, 4, 4, requires_grad=True)
    features = torch.randn(2, 2, 4, 4, 4, requires_grad=True)
    urim(logits, features).logits.square().sum().backward()
    for tensor in (logits, features, *urim.parameters()):
        assert torch.isfinite(tensor.grad).all()


# ---- regression: the published 2D case -----------------------------------------------------------


def _fingerprint(state: dict[str, torch.Tensor]) -> str:
    text = "\n".join(f"{key} {tuple(value.shape)}" for key, value in state.items())
    return hashlib.sha256(text.encode()).hexdigest()


def test_regression_keys_and_shapes_of_the_shipped_networks():
    """Keys, shapes and order as they were before there was a 3D form."""
    with torch.device("meta"):
        lite = SamUrim(SamUrimSettings.preset("lite")).state_dict()
        unet = MultiphaseUnet3d(MultiphaseUnet3dSettings()).state_dict()
    layers = [f"urim.convs.{i}.{name}" for i in range(4) for name in ("bias", "conv.weight")]
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    norms = [f"urim.norms.{i}.{name}" for i in range(4) for name in norm]
    expected = [*layers, *norms, "urim.head.weight", "urim.head.bias"]
    assert [key for key in lite if key.startswith("urim")] == expected
    assert lite["urim.convs.0.conv.weight"].shape == (64, 66, 3, 3)
    known = "e254e0842a88b35ce2ed31e247754728ebce085e9f434a54536aef88e371f511"
    assert _fingerprint(lite) == known
    known = "c2b4aca3876d7c5a849a2be139e37a6475a3d96646ddbdfd72d3a3c81cbe4715"
    assert _fingerprint(unet) == known
    assert load_file(SHIPPED / "weights.safetensors").keys() == unet.keys()


def test_regression_numbers_of_the_2d_module():
    torch.manual_seed(0)
    urim = UncertainRegionInpainting(2, 3, width=4).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        found = urim(
            torch.randn(1, 2, 6, 5, generator=generator),
            torch.randn(1, 3, 6, 5, generator=generator),
        ).logits
    total = found.double().sum((0, 2, 3))
    torch.testing.assert_close(total, torch.tensor([10.8338, 0.8762]).double(), rtol=0, atol=1e-4)
    at = found[0, :, 2, 3]
    torch.testing.assert_close(at, torch.tensor([0.4294, -0.4903]), rtol=0, atol=1e-4)


# ---- the 3D U-Net with the plug ------------------------------------------------------------------


def tiny(**changes) -> MultiphaseUnet3d:
    torch.manual_seed(0)
    settings = MultiphaseUnet3dSettings.preset("tiny").model_copy(
        update={"urim": True, "urim_width": 4} | changes
    )
    return MultiphaseUnet3d(settings)


def batch(samples: int = 1, size: int = 16) -> Batch:
    """A liver with two tumors that only PV shows, in noise."""
    generator = torch.Generator().manual_seed(1)
    label = torch.zeros((samples, size, size, size), dtype=torch.long)
    label[:, 2:14, 2:14, 2:14] = 1
    label[:, 4:8, 4:8, 4:8] = 2
    label[:, 10:12, 10:12, 10:12] = 2
    image = 0.1 * torch.rand((samples, 4, 2, size, size, size), generator=generator)
    image += 0.4 * (label > 0)[:, None, None]
    image[:, 2] -= 0.3 * (label == 2)[:, None]
    return Batch(image, torch.ones((samples, 4), dtype=torch.bool), label, label > 0)


def _settled(system: MultiphaseUnet3d) -> MultiphaseUnet3d:
    """BatchNorm statistics not at their start."""
    generator = torch.Generator().manual_seed(7)
    for name, buffer in system.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
        elif name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return system.eval()


def test_property_the_plug_is_off_unless_asked_for():
    assert not MultiphaseUnet3dSettings().urim
    plain = tiny(urim=False)
    assert not plain.input_spec.refines
    assert not any("urim" in key for key in plain.state_dict())
    with_plug = tiny().state_dict()
    for key, value in plain.state_dict().items():
        assert torch.equal(with_plug[key], value), key


def test_oracle_the_plug_reads_the_features_before_the_head():
    system, data = _settled(tiny()), batch()
    plain = tiny(urim=False).eval()
    seen = []
    plain.trunk.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        outputs = system(data.image, data.present)
        initial = plain(data.image, data.present)
        final = system.urim(initial, seen[0]).logits
    torch.testing.assert_close(outputs.initial, initial)
    torch.testing.assert_close(outputs.final, final)
    torch.testing.assert_close(system.decode(outputs), final.softmax(1))
    torch.testing.assert_close(system.initial(outputs), initial.softmax(1))
    assert isinstance(system, System)
    assert isinstance(system, Refining)
    assert system.input_spec.refines


def test_closed_form_the_loss_is_that_of_both_logits():
    system, plain, data = tiny(), tiny(urim=False), batch()
    targets = system.targets(data)
    with torch.no_grad():
        outputs = system(data.image, data.present)
        both = system.loss(outputs, targets)
        apart = plain.loss(outputs.initial, targets) + plain.loss(outputs.final, targets)
    torch.testing.assert_close(both, apart)


@pytest.mark.parametrize("filling", [7.0, math.nan, math.inf])
@pytest.mark.parametrize("kept", [(2,), (0, 3), (1, 2, 3)])
def test_property_an_absent_phase_changes_nothing_and_equals_its_channels_deleted(filling, kept):
    system, data = _settled(tiny()), batch()
    present = torch.zeros((1, 4), dtype=torch.bool)
    present[:, list(kept)] = True
    image = data.image.clone()
    image[:, [i for i in range(4) if i not in kept]] = filling
    smaller = tiny(phases=tuple(PHASES[i] for i in kept)).eval()
    weights = system.state_dict()
    channels = [2 * i + c for i in kept for c in range(2)]
    weights["mix.weight"] = weights["mix.weight"][:, channels]
    weights["presence.weight"] = weights["presence.weight"][:, list(kept)]
    smaller.load_state_dict(weights)
    with torch.no_grad():
        got = system(image, present)
        plain = system(data.image, present)
        deleted = smaller(data.image[:, list(kept)], torch.ones((1, len(kept)), dtype=torch.bool))
    for name in ("initial", "final"):
        assert torch.equal(getattr(got, name), getattr(plain, name))
        torch.testing.assert_close(getattr(got, name), getattr(deleted, name))
    assert not torch.allclose(got.final, system(data.image, data.present).final)


def test_property_every_parameter_gets_gradient():
    system, data = tiny(), batch(samples=2)
    system.loss(system(data.image, data.present), system.targets(data)).backward()
    for name, parameter in system.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        # The BatchNorm behind an LC-Conv takes its bias away again; the paper has both.
        assert parameter.grad.any() or (name.startswith("urim.convs") and name.endswith("bias"))


def test_regression_state_dict_keys():
    keys = {key for key in tiny().state_dict() if key.startswith("urim.")}
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {f"urim.convs.{i}.{name}" for i in range(4) for name in ("bias", "conv.weight")}
    expected |= {f"urim.norms.{i}.{name}" for i in range(4) for name in norm}
    assert keys == expected | {"urim.head.weight", "urim.head.bias"}


def test_closed_form_the_first_gradients_are_not_blown_up_by_ties():
    """1 / sum(M) passes on gradients of 1 / d: the head must not start near zero, and does not."""

    def norm(system: MultiphaseUnet3d) -> float:
        data = batch(samples=2)
        system.loss(system(data.image, data.present), system.targets(data)).backward()
        return math.sqrt(sum(float(p.grad.square().sum()) for p in system.parameters()))

    plain = norm(tiny(urim=False))
    assert norm(tiny()) < 10 * plain
    small = tiny()
    with torch.no_grad():
        for parameter in small.trunk.head.parameters():
            parameter.mul_(1e-4)
    assert norm(small) > 10 * plain


def test_regression_overfits_one_case_in_both_answers():
    system, data = tiny(), batch()
    optimizer = torch.optim.AdamW(system.parameters(), lr=2e-2)
    for _ in range(80):
        optimizer.zero_grad()
        system.loss(system(data.image, data.present), system.targets(data)).backward()
        optimizer.step()
    with torch.no_grad():
        outputs = system(data.image, data.present)
    for found in (system.initial(outputs).argmax(1), system.decode(outputs).argmax(1)):
        overlap = ((found == 2) & (data.label == 2)).sum()
        assert 2 * overlap / ((found == 2).sum() + (data.label == 2).sum()) > 0.9


def test_property_bfloat16_outputs_decode_to_float32():
    system, data = _settled(tiny()), batch()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        outputs = system(data.image, data.present)
    assert isinstance(outputs, Refined)
    for found in (system.decode(outputs), system.initial(outputs)):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.sum(1), torch.ones(1, 16, 16, 16))
