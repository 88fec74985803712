"""SAM + URIM: the paper's counts, its four equations, absent phases, training."""

from __future__ import annotations

import hashlib
import itertools
import math

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import loops
from hepar.systems.base import Batch, System
from hepar.systems.presence import PresentPairs
from hepar.systems.sam_urim.settings import PHASES, SamUrimSettings
from hepar.systems.sam_urim.spatial_aggregation import (
    SpatialAggregation,
    modulate,
    softmax_over_phases,
)
from hepar.systems.sam_urim.system import Outputs, SamUrim, module_parameters
from hepar.systems.sam_urim.uncertain_region_inpainting import (
    LocalConfidenceConv,
    UncertainRegionInpainting,
    confidence,
)

ALL = torch.ones(2, 4, dtype=torch.bool)
SOME = torch.tensor([[True, False, True, True], [False, False, True, False]])


def _lite(**changes) -> SamUrimSettings:
    settings = SamUrimSettings.preset("lite").model_dump() | changes
    return SamUrimSettings(**settings)


def _small(seed: int = 0, **changes) -> SamUrim:
    """The lite network at a twentieth of its size, BatchNorm statistics not at their start."""
    torch.manual_seed(seed)
    model = SamUrim(_lite(**{"pyramid_width": 2, "decoder_width": 8, "urim_width": 8} | changes))
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0.0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return model


def _on_meta(settings: SamUrimSettings) -> dict[str, int]:
    with torch.device("meta"):
        return module_parameters(SamUrim(settings))


def _disc_batch(seed: int, size: int = 48, samples: int = 4, phases: int = 4) -> Batch:
    """Noise with one brighter or darker disc a sample, another contrast in each phase."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    center = torch.randint(14, size - 14, (samples, 2), generator=generator)
    distance = ((y - center[:, 0, None, None]) ** 2 + (x - center[:, 1, None, None]) ** 2).sqrt()
    label = (distance < 9).long()
    contrast = torch.linspace(-0.3, 0.3, phases).view(1, phases, 1, 1, 1)
    noise = 0.05 * torch.randn(samples, phases, 3, size, size, generator=generator)
    image = (0.5 + contrast * label[:, None, None] + noise).clamp(0, 1)
    present = torch.ones(samples, phases, dtype=torch.bool)
    return Batch(image=image, present=present, label=label, liver=torch.ones_like(label).bool())


# ---- closed form: counts -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "sams"),
    [
        ("w16", (306_400, 601_824, 1_192_672, 2_374_368)),
        ("paper", (1_224_064, 4_807_424, 19_052_032, 75_852_800)),
    ],
)
def test_closed_form_parts_of_the_published_network(preset, sams):
    parts = _on_meta(SamUrimSettings.preset(preset))
    assert parts == {
        "trunk": 22_979_904,
        "sam2": sams[0],
        "sam3": sams[1],
        "sam4": sams[2],
        "sam5": sams[3],
        "decoder": 3_935_746,
        "urim": 741_894,
    }


@pytest.mark.parametrize(
    ("changes", "millions"),
    [
        ({}, 40.00),
        ({"shared_encoder": False}, 62.98),
        ({"urim": False}, 39.26),
        ({"backbone": "resnet50"}, 40.53),
        ({"pyramid_width": "C/4"}, 136.46),
    ],
)
def test_closed_form_totals_with_the_literal_decoder(changes, millions):
    parts = _on_meta(SamUrimSettings(decoder="literal", **changes))
    assert parts["decoder"] == 11_800_066
    assert round(sum(parts.values()) / 1e6, 2) == millions


@pytest.mark.parametrize(("width", "millions"), [(2, 0.57), (16, 4.48), (32, 8.94)])
def test_closed_form_sum_of_the_sams_by_width(width, millions):
    parts = _on_meta(SamUrimSettings(pyramid_width=width))
    assert round(sum(parts[f"sam{i}"] for i in (2, 3, 4, 5)) / 1e6, 2) == millions


@pytest.mark.parametrize(("phases", "channels", "width"), [(1, 8, 4), (3, 16, 2), (4, 32, 4)])
def test_closed_form_a_sam_for_any_number_of_phases(phases, channels, width):
    sam = SpatialAggregation(phases, channels, width)
    pyramid = 84 * 2 * phases * width + width + 3 * 2 * width
    mapping = pyramid + 36 * width * channels + channels
    assert sum(p.numel() for p in sam.parameters()) == phases * mapping


def test_closed_form_urim():
    def count(**switches) -> int:
        with torch.device("meta"):
            urim = UncertainRegionInpainting(2, 256, **switches)
        return sum(p.numel() for p in urim.parameters())

    assert count() == 741_894
    assert count(final_concat=False) == 741_378


def test_closed_form_cost_at_the_papers_input():
    def gflops(decoder: str) -> dict[str, float]:
        with torch.device("meta"):
            model = SamUrim(SamUrimSettings(decoder=decoder))
            image = torch.empty(1, 2, 3, 512, 512)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(image, ALL[:1, :2])
        counts = counter.get_flop_counts()
        return {part: sum(counts[part].values()) / 1e9 for part in ("Global", "SamUrim.decoder")}

    literal, first = gflops("literal"), gflops("project_first")
    assert [round(literal[part]) for part in ("Global", "SamUrim.decoder")] == [518, 387]
    assert [round(first[part]) for part in ("Global", "SamUrim.decoder")] == [232, 101]


def test_closed_form_lite_has_about_two_million_parameters():
    parts = _on_meta(SamUrimSettings.preset("lite"))
    assert sum(parts.values()) == 1_917_672
    assert parts["trunk"] == 1_230_240


# ---- oracle: Eq. 1 and 2 -----------------------------------------------------------------------


def _loop_sam(sam, of_phase: dict[int, torch.Tensor], phases: int):
    """Eq. 1 and 2 for one sample: features of its present phases, `{phase: (c, h, w)}`."""
    channels, height, width = next(iter(of_phase.values())).shape
    d = torch.zeros(2 * phases, height, width, dtype=torch.float64)
    for phase, f in of_phase.items():
        for y, x in itertools.product(range(height), range(width)):
            column = f[:, y, x].tolist()
            d[2 * phase, y, x] = sum(column) / channels
            d[2 * phase + 1, y, x] = max(column)
    response = {}
    for phase in of_phase:
        m = sam.mappings[phase]
        branches = [loops.norm(loops.conv(d, b[0].weight), b[1]) for b in (m.local3, m.local5)]
        branches.append(loops.norm(loops.conv(d, m.global7[0].weight), m.global7[1]))
        gap = [sum(d[i].flatten().tolist()) / (height * width) for i in range(2 * phases)]
        pool = torch.empty(len(m.global_pool.bias), height, width, dtype=torch.float64)
        for o in range(len(pool)):
            pool[o] = float(m.global_pool.bias[o]) + sum(
                float(m.global_pool.weight[o, i]) * gap[i] for i in range(2 * phases)
            )
        branches.append(pool)
        response[phase] = loops.conv(torch.cat(branches), m.fuse.weight, m.fuse.bias)
    aggregated = torch.zeros(channels, height, width, dtype=torch.float64)
    for c, y, x in itertools.product(range(channels), range(height), range(width)):
        norm = sum(math.exp(float(r[c, y, x])) for r in response.values())
        for phase, f in of_phase.items():
            weight = math.exp(float(response[phase][c, y, x])) / norm
            aggregated[c, y, x] += weight * float(f[c, y, x])
    return aggregated, {phase: (f + aggregated) / 2 for phase, f in of_phase.items()}


@torch.no_grad()
def test_oracle_eq_1_and_2_with_absent_phases():
    torch.manual_seed(3)
    phases, channels, size = 3, 3, 4
    sam = SpatialAggregation(phases, channels, 2).double().eval()
    for norm in (n for n in sam.modules() if isinstance(n, torch.nn.BatchNorm2d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        norm.weight.normal_()
        norm.bias.normal_()
    present = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])
    image = torch.randn(3, phases, channels, size, size, dtype=torch.float64)
    pairs = PresentPairs(present)
    features = pairs.gather(image)
    aggregated = sam(features, pairs)
    modulated = modulate(features, aggregated, pairs)
    order = [(p, b) for p in range(phases) for b in range(3) if present[b, p]]
    for sample in range(3):
        held = {p: image[sample, p] for p in range(phases) if present[sample, p]}
        expected, streams = _loop_sam(sam, held, phases)
        torch.testing.assert_close(aggregated[sample], expected)
        for phase, stream in streams.items():
            torch.testing.assert_close(modulated[order.index((phase, sample))], stream)


def test_closed_form_two_phases_are_a_sigmoid():
    torch.manual_seed(4)
    a, b = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    first, second = softmax_over_phases([a, b])
    torch.testing.assert_close(first, torch.sigmoid(a - b))
    torch.testing.assert_close(second, torch.sigmoid(b - a))


def test_property_weights_sum_to_one_over_the_phases_of_a_sample():
    torch.manual_seed(5)
    sam = SpatialAggregation(4, 8, 2)
    features = torch.randn(4, 8, 6, 6)
    weights = sam.weights(features, PresentPairs(SOME))
    assert weights[1] is None
    held = [w for w in weights if w is not None]
    torch.testing.assert_close(sum(held), torch.ones(2, 8, 6, 6))
    assert not weights[0][1].any()
    assert not weights[3][1].any()
    assert (weights[2][1] == 1).all()


def test_closed_form_sigmoid_switch_confines_two_weights():
    torch.manual_seed(6)
    sam = SpatialAggregation(2, 8, 2, branch_relu=True, pre_softmax="sigmoid")
    weights = sam.weights(100 * torch.randn(4, 8, 6, 6), PresentPairs(ALL[:, :2]))
    low, high = 1 / (1 + math.e), math.e / (1 + math.e)
    assert min(w.min() for w in weights) >= low - 1e-6
    assert max(w.max() for w in weights) <= high + 1e-6


@pytest.mark.parametrize("present", [ALL, SOME])
def test_property_memory_format_changes_nothing(present):
    torch.manual_seed(7)
    sam = SpatialAggregation(4, 8, 2)
    pairs = PresentPairs(present)
    features = torch.randn(sum(pairs.counts), 8, 6, 5)
    expected = sam.eval()(features, pairs)
    packed = sam.to(memory_format=torch.channels_last)(
        features.to(memory_format=torch.channels_last), pairs
    )
    torch.testing.assert_close(packed, expected)
    maps = torch.randn(3, 2, 4, 6, 5)
    packed_maps = [m.to(memory_format=torch.channels_last) for m in maps]
    for found, weight in zip(softmax_over_phases(packed_maps), maps.softmax(0), strict=True):
        torch.testing.assert_close(found, weight)
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_oracle_encoder_is_fig_1_block_by_block():
    """Two streams written out: B1, then block -> SAM -> Eq. 2, the modulated features going on."""
    model = _small(phases=("ART", "PV"), pyramid_width=3).double().eval()
    art, pv = torch.rand(2, 2, 3, 32, 32, dtype=torch.float64)
    both = PresentPairs(torch.ones(2, 2, dtype=torch.bool))
    trunk = model.trunks[0]
    with torch.no_grad():
        found = model.encode(both.gather(torch.stack([art, pv], dim=1)), both)
        art, pv = trunk.stage(1, art), trunk.stage(1, pv)
        blocks = (trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4)
        for level, block, a in zip("2345", blocks, found, strict=True):
            art, pv = block(art), block(pv)
            d = [art.mean(1), art.amax(1), pv.mean(1), pv.amax(1)]
            to_art, to_pv = (mapping(torch.stack(d, 1)) for mapping in model.sams[level].mappings)
            w_pv = torch.sigmoid(to_pv - to_art)
            expected = w_pv * pv + (1 - w_pv) * art
            torch.testing.assert_close(a, expected)
            art, pv = (art + expected) / 2, (pv + expected) / 2


# ---- oracle: Eq. 3 and 4 -----------------------------------------------------------------------


def test_oracle_eq_3_is_the_quotient_of_the_scores():
    generator = torch.Generator().manual_seed(0)
    logits = 1.5 * torch.randn(2, 2, 3, 4, generator=generator, dtype=torch.float64)
    found = confidence(logits)
    for b, y, x in itertools.product(range(2), range(3), range(4)):
        e = [math.exp(v) for v in logits[b, :, y, x].tolist()]
        s = [v / sum(e) for v in e]
        expected = 1 - math.exp(1 - max(s) / min(s))
        assert float(found[b, 0, y, x]) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("gap", "value", "tolerance"),
    [
        (0.0, 0.0, 0.0),
        (1e-6, 1.0e-6, 1e-11),
        (0.5, 0.477, 5e-4),
        (1.0, 0.8206, 5e-5),
        (2.0, 0.9983, 5e-5),
        (3.0, 1 - 5e-9, 5e-10),
        (1e4, 1.0, 0.0),
    ],
)
def test_closed_form_confidence_of_a_gap(gap, value, tolerance):
    logits = torch.tensor([0.0, gap], dtype=torch.float64).view(1, 2, 1, 1)
    assert confidence(logits).item() == pytest.approx(value, abs=tolerance)
    assert confidence(logits.flip(1)).item() == pytest.approx(value, abs=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_property_finite_gradients_for_any_gap(dtype):
    gaps = torch.tensor([0, 1e-7, 1e-3, 0.5, 1, 3, 10, 20, 50, 88, 89, 110, 709, 1e4])
    logits = torch.stack([torch.zeros_like(gaps), gaps]).view(1, 2, 1, -1).to(dtype)
    logits.requires_grad_()
    m = confidence(logits)
    m.sum().backward()
    assert m.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.isfinite(m).all()
    assert ((m >= 0) & (m <= 1)).all()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 1, 0, 1].item() == pytest.approx(1.0, rel=1e-3)  # slope 1 at 0
    assert not logits.grad[..., gaps > 3.5].any()


def test_closed_form_more_classes_compare_the_two_largest():
    two = torch.tensor([0.3, 1.0], dtype=torch.float64).view(1, 2, 1, 1)
    three = torch.tensor([0.3, -30.0, 1.0], dtype=torch.float64).view(1, 3, 1, 1)
    torch.testing.assert_close(confidence(three), confidence(two))


@pytest.mark.parametrize("window_norm", ["sum", "mean"])
@torch.no_grad()
def test_oracle_eq_4_is_a_loop_over_windows(window_norm):
    torch.manual_seed(8)
    conv = LocalConfidenceConv(3, 2, window_norm=window_norm).double()
    conv.bias.normal_()
    x = torch.randn(1, 3, 5, 5, dtype=torch.float64)
    m = torch.rand(1, 1, 5, 5, dtype=torch.float64)
    m[0, 0, 2:, 2:] = 0.0  # windows without any confidence: (3, 3), (3, 4), (4, 3), (4, 4)
    found = conv(x, m)
    for o, y, z in itertools.product(range(2), range(5), range(5)):
        total, trust = 0.0, 0.0
        for dy, dz in itertools.product((-1, 0, 1), repeat=2):
            if 0 <= y + dy < 5 and 0 <= z + dz < 5:
                c = float(m[0, 0, y + dy, z + dz])
                trust += c
                for i in range(3):
                    w = float(conv.conv.weight[o, i, dy + 1, dz + 1])
                    total += w * float(x[0, i, y + dy, z + dz]) * c
        gain = 9 if window_norm == "mean" else 1
        expected = (gain * total / trust if trust > 0 else 0.0) + float(conv.bias[o])
        assert float(found[0, o, y, z]) == pytest.approx(expected, abs=1e-12)
    assert torch.equal(found[0, :, 3:, 3:], conv.bias.view(2, 1, 1).expand(2, 2, 2))


def test_closed_form_full_confidence_inside_is_a_ninth_of_a_convolution():
    torch.manual_seed(9)
    conv = LocalConfidenceConv(4, 3).double()
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    found = conv(x, torch.ones(1, 1, 6, 6, dtype=torch.float64))
    plain = F.conv2d(x, conv.conv.weight, padding=1)
    torch.testing.assert_close(found[..., 1:-1, 1:-1], plain[..., 1:-1, 1:-1] / 9)
    # At a corner four pixels are real, so the sum of M is four.
    torch.testing.assert_close(found[..., 0, 0], plain[..., 0, 0] / 4)


def test_property_empty_windows_have_finite_gradients():
    torch.manual_seed(10)
    conv = LocalConfidenceConv(4, 3)
    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    m = torch.zeros(1, 1, 8, 8)
    m[0, 0, 0, 0] = 1.0
    m.requires_grad_()
    y = conv(x, m)
    assert int((y != conv.bias.view(1, -1, 1, 1)).any(dim=1).sum()) == 4  # windows of the corner
    y.square().sum().backward()
    assert all(torch.isfinite(t.grad).all() for t in (x, m, conv.bias, conv.conv.weight))


def test_closed_form_confidence_spreads_one_pixel_a_layer():
    logits = torch.zeros(1, 2, 12, 12)
    logits[0, 1, 0, 0] = 5.0
    torch.manual_seed(11)
    urim = UncertainRegionInpainting(2, 4, width=4).eval()
    with torch.no_grad():
        out = urim(logits, torch.randn(1, 4, 12, 12))
    assert int((out.confidence_before > 0).sum()) == 1
    assert int((out.confidence_after > 0).sum()) == 25
    assert torch.isfinite(out.logits).all()


def test_oracle_urim_is_four_layers_each_with_a_wider_maximum():
    torch.manual_seed(15)
    urim = UncertainRegionInpainting(2, 4, width=4).double().eval()
    logits, features = torch.randn(1, 2, 9, 9).double(), torch.randn(1, 4, 9, 9).double()
    with torch.no_grad():
        found = urim(logits, features)
        m = confidence(logits)
        x0 = torch.cat([logits.softmax(1), features], dim=1)
        x = x0
        for layer in range(4):
            # Four max poolings of 3x3 are one of 9x9: layer i sees the maximum over 2i + 1.
            trust = F.max_pool2d(m, 2 * layer + 1, stride=1, padding=layer) if layer else m
            x = F.relu(urim.norms[layer](urim.convs[layer](x, trust)))
        torch.testing.assert_close(found.logits, urim.head(torch.cat([x, x0], dim=1)))
    torch.testing.assert_close(found.confidence_before, m)
    torch.testing.assert_close(found.confidence_after, F.max_pool2d(m, 9, stride=1, padding=4))


@pytest.mark.parametrize("detach", [False, True])
def test_closed_form_detach_cuts_the_gradient_through_confidence(detach):
    torch.manual_seed(12)
    urim = UncertainRegionInpainting(2, 4, width=4, detach_conf=detach)
    logits = torch.randn(1, 2, 6, 6, requires_grad=True)
    out = urim(logits, torch.randn(1, 4, 6, 6))
    assert out.confidence_before.requires_grad is not detach
    out.logits.square().sum().backward()  # the softmax scores still carry a gradient
    assert logits.grad.any()


# ---- presence ----------------------------------------------------------------------------------


def _run(model: SamUrim, image: torch.Tensor, present: torch.Tensor):
    """Outputs, gradients and buffers of one training step's forward and backward."""
    image = image.clone().requires_grad_()
    outputs = model(image, present)
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 2, (image.shape[0], *image.shape[-2:]), generator=generator)
    model.zero_grad(set_to_none=True)
    model.loss(outputs, label).backward()
    kept = {"init": outputs.init_logits, "final": outputs.final_logits, "image": image.grad}
    kept |= {f"grad {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {n: t.detach().clone() for n, t in (kept | dict(model.named_buffers())).items()}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("fill", [float("nan"), float("inf"), 1e30])
def test_property_filling_an_absent_phase_changes_nothing(fill, shared, train):
    image = torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    hole = ~SOME[:, :, None, None, None]
    results = [
        _run(
            _small(shared_encoder=shared).train(train),
            torch.where(hole, torch.tensor(value), image),
            SOME,
        )
        for value in (0.0, fill)
    ]
    assert results[0].keys() == results[1].keys()
    different = [n for n in results[0] if not torch.equal(results[0][n], results[1][n])]
    assert not different
    assert not results[1]["image"][~SOME].any()
    assert all(torch.isfinite(t).all() for t in results[1].values())


def _without_phase(state: dict[str, torch.Tensor], gone: int) -> dict[str, torch.Tensor]:
    """The weights of the same model built without one phase."""
    kept = {}
    for name, value in state.items():
        part = name.split(".")
        if part[0] == "sams":
            mapping = int(part[3])
            if mapping == gone:
                continue
            part[3] = str(mapping - (mapping > gone))
            if part[4] in ("local3", "local5", "global7", "global_pool") and value.ndim == 4:
                channels = [i for i in range(value.shape[1]) if i // 2 != gone]
                value = value[:, channels]
        if part[0] == "trunks" and any(key.startswith("trunks.1.") for key in state):
            if int(part[1]) == gone:
                continue
            part[1] = str(int(part[1]) - (int(part[1]) > gone))
        kept[".".join(part)] = value
    return kept


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("gone", [0, 1, 2, 3])
def test_property_absent_phase_is_the_model_without_its_channels(gone, shared):
    model = _small(shared_encoder=shared).eval()
    rest = tuple(p for i, p in enumerate(PHASES) if i != gone)
    smaller = _small(seed=1, shared_encoder=shared, phases=rest).eval()
    smaller.load_state_dict(_without_phase(model.state_dict(), gone))
    image = torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    present = torch.ones(2, 4, dtype=torch.bool)
    present[:, gone] = False
    held = [i for i in range(4) if i != gone]
    # The other sample may hold the phase: presence is decided for each sample.
    mixed = present.clone()
    mixed[1, gone] = True
    with torch.no_grad():
        expected = smaller(image[:, held], present[:, held])
        for found in (model(image, present), model(image, mixed)):
            torch.testing.assert_close(
                found.final_logits[0], expected.final_logits[0], rtol=1e-4, atol=1e-5
            )


def test_property_statistics_of_a_phase_absent_from_the_batch_stay():
    model = _small().train()
    before = {n: b.clone() for n, b in model.named_buffers()}
    _run(model, torch.rand(2, 4, 3, 32, 32), SOME)  # ART is in neither sample
    moved = {n for n, b in model.named_buffers() if not torch.equal(b, before[n])}
    assert not any(f".mappings.{PHASES.index('ART')}." in n for n in moved)
    assert any(f".mappings.{PHASES.index('PV')}." in n for n in moved)


def test_property_a_sample_without_any_phase_is_refused():
    present = ALL.clone()
    present[1] = False
    with pytest.raises(ValueError, match=r"samples \[1\] of 2 have no phase"):
        _small()(torch.rand(2, 4, 3, 32, 32), present)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 4, 3, 32, 40), "multiples of 16"), ((1, 3, 3, 32, 32), "expected 4 phases")],
)
def test_property_wrong_shapes_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        _small()(torch.rand(shape), torch.ones(shape[:2], dtype=torch.bool))


@pytest.mark.parametrize("phases", [PHASES[:n] for n in (1, 2, 3, 4)])
@pytest.mark.parametrize("stem_stride", [2, 4])
def test_property_runs_with_one_to_four_phases(phases, stem_stride):
    model = _small(phases=phases, stem_stride=stem_stride, patch=(64, 64)).eval()
    assert isinstance(model, System)
    image = torch.rand(2, len(phases), 3, 64, 96)
    with torch.no_grad():
        outputs = model(image, torch.ones(image.shape[:2], dtype=torch.bool))
        probability = model.decode(outputs)
    assert outputs.init_logits.shape == (2, 2, 64 // stem_stride, 96 // stem_stride)
    assert probability.shape == (2, 2, 64, 96)
    assert probability.dtype == torch.float32
    torch.testing.assert_close(probability.sum(1), torch.ones(2, 64, 96))


# ---- the system --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"decoder": "literal", "shared_encoder": False, "pre_softmax": "sigmoid"},
        {"urim": False, "pyramid_width": "C/4", "branch_relu": True},
    ],
)
def test_closed_form_every_parameter_gets_a_gradient(changes):
    model = _small(**changes)
    batch = _disc_batch(0, samples=2)
    outputs = model(batch.image, batch.present)
    model.loss(outputs, model.targets(batch)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        # The BatchNorm behind an LC-Conv takes its bias away again; the paper has both.
        assert parameter.grad.any() or name.startswith("urim.convs"), name


def test_closed_form_loss_is_the_sum_over_both_heads():
    torch.manual_seed(13)
    model = _small(loss="ce")
    init, final = torch.randn(2, 1, 2, 16, 16)
    label = torch.randint(-1, 2, (1, 32, 32))
    up = [F.interpolate(x, scale_factor=2, mode="bilinear") for x in (init, final)]
    expected = sum(F.cross_entropy(x, label, ignore_index=-1) for x in up)
    found = model.loss(Outputs(init, final, None, None), label)
    torch.testing.assert_close(found, expected)
    weighted = _small(loss="ce", class_weights=(1.0, 5.0))
    expected = sum(
        F.cross_entropy(x, label, ignore_index=-1, weight=torch.tensor([1.0, 5.0])) for x in up
    )
    torch.testing.assert_close(weighted.loss(Outputs(init, final, None, None), label), expected)
    assert "class_weights" not in weighted.state_dict()


def test_regression_keys_of_the_shipped_network():
    with torch.device("meta"):
        state = SamUrim(SamUrimSettings.preset("lite")).state_dict()
    listing = "\n".join(f"{name} {tuple(value.shape)}" for name, value in state.items())
    assert len(state) == 492
    assert hashlib.sha256(listing.encode()).hexdigest()[:16] == "e254e0842a88b35c"


def test_property_bfloat16_keeps_confidence_and_loss_in_float32():
    torch.manual_seed(14)
    model = _small().to(memory_format=torch.channels_last)
    batch = _disc_batch(1, samples=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(batch.image, batch.present)
        loss = model.loss(outputs, model.targets(batch))
    loss.backward()
    assert outputs.init_logits.dtype == torch.bfloat16  # the autocast was on
    assert outputs.confidence_before.dtype == torch.float32
    assert outputs.confidence_after.dtype == torch.float32
    assert loss.dtype == torch.float32
    assert model.decode(outputs).dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_regression_lite_overfits_one_batch():
    torch.manual_seed(0)
    model = SamUrim(SamUrimSettings.preset("lite")).to(memory_format=torch.channels_last)
    batch = _disc_batch(2, size=48, samples=4)
    batch.present[0, 1] = batch.present[1, 3] = False
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(28):
        loss = model.loss(model(batch.image, batch.present), model.targets(batch))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 12.0)
        optimizer.step()
    with torch.no_grad():
        found = model.decode(model(batch.image, batch.present)).argmax(1)
    overlap = ((found == 1) & (batch.label == 1)).sum()
    dice = 2 * overlap / ((found == 1).sum() + (batch.label == 1).sum())
    assert dice > 0.9


# ---- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"phases": ("PV", "ART")},
        {"phases": ()},
        {"phases": ("PV", "PV")},
        {"pyramid_with": 16},
        {"pyramid_width": "C/8"},
        {"urim": 1},
        {"class_weights": (1.0,)},
        {"patch": (500, 512)},
        {"dropout_head": 1.0},
    ],
)
def test_property_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        SamUrimSettings(**wrong)


@pytest.mark.parametrize("preset", ["paper", "w16", "lite"])
def test_property_settings_survive_json(preset):
    settings = SamUrimSettings.preset(preset)
    assert SamUrimSettings.model_validate_json(settings.model_dump_json()) == settings
    assert SamUrimSettings.model_validate(settings.model_dump(mode="json")) == settings


def test_closed_form_channels_are_windows_times_slices():
    with torch.device("meta"):
        model = SamUrim(_lite(slice_offsets_mm=(-5.0, -2.5, 0.0, 2.5, 5.0)))
    assert model.input_spec.channels == 5
    assert model.trunks[0].conv1.weight.shape[1] == 5
    assert model.input_spec.stride == model.trunks[0].total_stride == 16
