"""The iterative fusion module and the fusions it is compared with: equations, counts, presence."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hepar.systems.lidia.iterative_fusion import build_stem

FUSIONS = ("ifm", "hemis", "convlstm")
SIZE = (3, 4, 5)
MIXED = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0]], dtype=torch.bool)


def stem(fusion: str, phases: int = 4, width: int = 3, **changes):
    torch.manual_seed(0)
    built = build_stem(fusion, phases, width, **changes).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in built.parameters():
        # Biases and norms that begin at 0 and 1 would hide mistakes.
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data += 0.3 * noise
    return built


def images(samples: int = 4, phases: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn((samples, phases, 1, *SIZE), generator=generator, dtype=torch.float64)


def conv(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """A padded 3x3x3 convolution of (c, z, y, x), offset by offset."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (1, 1)))
    out = np.zeros((len(weight), *x.shape[1:])) + bias[:, None, None, None]
    for dz, dy, dx in np.ndindex(3, 3, 3):
        part = padded[:, dz : dz + SIZE[0], dy : dy + SIZE[1], dx : dx + SIZE[2]]
        for k in range(len(weight)):
            for c in range(len(x)):
                out[k] += weight[k, c, dz, dy, dx] * part[c]
    return out


def blocks(x: np.ndarray, layers: torch.nn.Sequential) -> np.ndarray:
    """Convolution, instance norm, leaky ReLU, as often as the layers say."""
    numbers = [{k: v.numpy() for k, v in layer.state_dict().items()} for layer in layers]
    for first in range(0, len(layers), 3):
        x = conv(x, numbers[first]["weight"], numbers[first]["bias"])
        for c in range(len(x)):
            scaled = (x[c] - x[c].mean()) / np.sqrt(x[c].var() + 1e-5)
            x[c] = scaled * numbers[first + 1]["weight"][c] + numbers[first + 1]["bias"][c]
        x = np.where(x > 0, x, 0.01 * x)
    return x


def of_each_phase(built, image: torch.Tensor, row) -> list[tuple[int, np.ndarray]]:
    """Eq. 1 for the phases of one sample."""
    return [(p, blocks(image[p].numpy(), built.features[p])) for p in range(4) if row[p]]


@pytest.mark.parametrize("share_conv", [True, False])
def test_oracle_iterative_fusion_is_equations_1_and_2(share_conv):
    built, image = stem("ifm", share_conv=share_conv), images()
    found = built(image, MIXED).detach().numpy()
    for sample, row in enumerate(MIXED.tolist()):
        h = None
        for phase, feature in of_each_phase(built, image[sample], row):
            if h is None:
                h = feature
                continue
            merge = built.merge[0 if share_conv else phase - 1]
            h = blocks(np.concatenate([h, feature]), merge)
        np.testing.assert_allclose(found[sample], h, atol=1e-10)


def test_oracle_hemis_takes_mean_and_variance():
    built, image = stem("hemis"), images()
    found = built(image, MIXED).detach().numpy()
    for sample, row in enumerate(MIXED.tolist()):
        features = [feature for _, feature in of_each_phase(built, image[sample], row)]
        mean = sum(features) / len(features)
        variance = np.zeros_like(mean)
        for feature in features:
            if len(features) > 1:
                variance += (feature - mean) ** 2 / (len(features) - 1)
        expected = blocks(np.concatenate([mean, variance]), built.merge)
        np.testing.assert_allclose(found[sample], expected, atol=1e-10)


def test_oracle_convlstm_follows_its_gates():
    built, image = stem("convlstm"), images()
    found = built(image, MIXED).detach().numpy()
    weight, bias = (built.gates.state_dict()[name].numpy() for name in ("weight", "bias"))
    for sample, row in enumerate(MIXED.tolist()):
        h, c = np.zeros((3, *SIZE)), np.zeros((3, *SIZE))
        for _, feature in of_each_phase(built, image[sample], row):
            i, f, o, g = conv(np.concatenate([feature, h]), weight, bias).reshape(4, 3, *SIZE)
            i, f, o = (1 / (1 + np.exp(-gate)) for gate in (i, f, o))
            c = f * c + i * np.tanh(g)
            h = o * np.tanh(c)
        np.testing.assert_allclose(found[sample], h, atol=1e-10)


def test_oracle_early_fusion_is_one_stage_of_all_phases():
    built, image = stem("early", phases=3), images(phases=3)
    assert built.needs_all_phases
    found = built(image, torch.ones((4, 3), dtype=torch.bool)).detach().numpy()
    for sample in range(4):
        expected = blocks(image[sample, :, 0].numpy(), built.features)
        np.testing.assert_allclose(found[sample], expected, atol=1e-10)
    with pytest.raises(ValueError, match="needs all of"):
        built(image, MIXED[:, :3])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_property_absent_phases_change_nothing(fusion):
    """What they hold, NaN included, and whoever else is in the batch."""
    built, image = stem(fusion), images()
    image.requires_grad_()
    assert not built.needs_all_phases
    dirty = torch.where(MIXED[..., None, None, None, None], image, torch.nan)
    found = built(dirty, MIXED)
    assert torch.equal(found, built(image, MIXED))
    found.square().sum().backward()
    assert not image.grad[~MIXED].any()
    for sample in range(4):
        assert image.grad[sample, MIXED[sample]].flatten(1).any(1).all()
        alone = built(dirty[sample : sample + 1], MIXED[sample : sample + 1])
        torch.testing.assert_close(found[sample : sample + 1], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_property_only_present_phases_are_computed(fusion):
    built, image, seen = stem(fusion), images(), []
    for phase, part in enumerate(built.features):
        part.register_forward_pre_hook(lambda _, x, phase=phase: seen.append((phase, len(x[0]))))
    built(image, MIXED)
    assert seen == [(0, 2), (1, 3), (2, 3), (3, 2)]
    seen.clear()
    built(image[:1], torch.tensor([[False, False, True, False]]))
    assert seen == [(2, 1)]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_property_one_phase_alone_is_enough(fusion):
    built, image = stem(fusion), images(1)
    answers = []
    for phase in range(4):
        present = torch.zeros((1, 4), dtype=torch.bool)
        present[0, phase] = True
        answers.append(built(image, present))
        assert torch.isfinite(answers[-1]).all()
        if fusion == "ifm":
            assert torch.equal(answers[-1], built.features[phase](image[:, phase]))
    assert not torch.allclose(answers[0], answers[1])


@pytest.mark.parametrize(
    ("fusion", "matters"), [("ifm", True), ("convlstm", True), ("hemis", False)]
)
def test_property_order_of_phases(fusion, matters):
    """With the same F for every phase, time counts for IFM and ConvLSTM, and not for HeMIS."""
    built, image = stem(fusion), images(1)
    for part in built.features[1:]:
        part.load_state_dict(built.features[0].state_dict())
    present = torch.ones((1, 4), dtype=torch.bool)
    forth, back = built(image, present), built(image.flip(1), present)
    assert (not torch.allclose(forth, back, atol=1e-3)) == matters
    assert torch.allclose(forth, back, atol=1e-10) != matters


@pytest.mark.parametrize("fusion", FUSIONS)
def test_property_every_parameter_gets_gradient(fusion):
    built = stem(fusion, share_conv=False) if fusion == "ifm" else stem(fusion)
    # Of instance norm the sum is constant; its square, weighted, is not.
    weight = torch.arange(float(np.prod(SIZE)), dtype=torch.float64).view(SIZE)
    (built(images(), MIXED) * weight).square().sum().backward()
    for name, parameter in built.named_parameters():
        assert parameter.grad is not None, name
        idle = name.endswith((".0.bias", ".3.bias"))  # taken away by the norm that follows
        assert (parameter.grad.abs().max() > 1e-6) == (not idle), name


@pytest.mark.parametrize("fusion", FUSIONS)
def test_property_mixed_presence_works_in_bfloat16(fusion):
    built, image = stem(fusion, width=8).float(), images().float()
    exact = built(image, MIXED).detach()
    with torch.autocast("cpu", torch.bfloat16):
        rough = built(image, MIXED).detach().float()
    assert rough.shape == exact.shape == (4, 8, *SIZE)
    assert 0 < float((rough - exact).abs().mean()) < 0.1


def test_closed_form_parameters():
    """Two convolutions with bias and norm a phase; 64 to 32 once, or 64 to 128 gates."""
    first, second = 27 * 32 + 32 + 64, 27 * 32 * 32 + 32 + 64
    join, gates = 27 * 64 * 32 + 32 + 64, 27 * 64 * 128 + 128
    counts = {
        ("ifm", 4): 4 * (first + second) + join,
        ("hemis", 4): 4 * (first + second) + join,
        ("convlstm", 4): 4 * (first + second) + gates,
        ("early", 3): 27 * 3 * 32 + 32 + 64 + second,
    }
    assert list(counts.values()) == [170_208, 170_208, 336_128, 30_432]
    for (fusion, phases), count in counts.items():
        built = build_stem(fusion, phases, 32)
        assert sum(p.numel() for p in built.parameters()) == count
    own = build_stem("ifm", 4, 32, share_conv=False)
    assert sum(p.numel() for p in own.parameters()) == 170_208 + 2 * join
    flat = build_stem("ifm", 4, 32, kernel=(1, 3, 3))
    assert flat(torch.zeros(1, 4, 1, 2, 4, 4), MIXED[:1]).shape == (1, 32, 2, 4, 4)
    assert sum(p.numel() for p in build_stem("ifm", 1, 32).parameters()) == first + second


def test_property_wrong_input_is_refused():
    built = stem("ifm")
    with pytest.raises(ValueError, match="no phase at all"):
        built(images(1), torch.zeros((1, 4), dtype=torch.bool))
    with pytest.raises(ValueError, match="expected 4 phases, got 3"):
        built(images(1, 3), torch.ones((1, 3), dtype=torch.bool))
