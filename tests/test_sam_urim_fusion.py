"""The fusions of SAM + URIM's comparison: loops, streaming against stacking, absent phases."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import loops
from hepar.systems.base import Batch
from hepar.systems.presence import PresentPairs
from hepar.systems.sam_urim.fusion import Addition, ModalityWeighting, PhaseAttentionFusion
from hepar.systems.sam_urim.settings import SamUrimSettings
from hepar.systems.sam_urim.spatial_aggregation import (
    SpatialAggregation,
    descriptors,
    normalized,
    softmax_over_phases,
    stream,
)
from hepar.systems.sam_urim.system import Decoder, SamUrim, module_parameters
from test_sam_urim import ALL, SOME, _disc_batch

ROWS = {
    "sp": {"phases": ("PV",), "fusion": "none", "urim": False},
    "add": {"fusion": "add", "urim": False},
    "sam": {"urim": False},
    "sam_urim": {},
    "ilf": {"fusion": "ilf"},
    "dlf": {"fusion": "dlf"},
    "mw": {"fusion": "mw"},
    "mw-softmax": {"fusion": "mw", "mw_softmax": True},
    "pa": {"fusion": "pa"},
    "pa-first": {"fusion": "pa", "pa_sum_axis": "first"},
    "resnet50": {"backbone": "resnet50"},
    "unet": {"backbone": "unet"},
    "unet-add": {"backbone": "unet", "fusion": "add", "urim": False},
    "two trunks": {"shared_encoder": False},
}
NEEDS_ALL = ("ilf", "dlf", "pa")


def small(row: str, seed: int = 0, **changes) -> SamUrim:
    """A row of the comparison, small, its BatchNorm statistics not at their start."""
    torch.manual_seed(seed)
    sizes = {"base_width": 16, "pyramid_width": 2, "decoder_width": 8, "urim_width": 8}
    sizes |= {"patch": (64, 64)}
    model = SamUrim(SamUrimSettings(**(sizes | ROWS[row] | changes)))
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0.0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):  # starts at 0, where attention does nothing
                parameter.fill_(0.7)
    return model


def shaken(module: nn.Module) -> nn.Module:
    """BatchNorm statistics and weights away from where they begin, in float64, for use."""
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return module.double().eval()


# ---- closed form: counts -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "millions"),
    [("sp", 34.78), ("add", 34.78), ("sam", 39.26), ("sam_urim", 40.00), ("resnet50", 40.53)],
)
def test_closed_form_totals_of_rows_with_the_literal_decoder(row, millions):
    with torch.device("meta"):
        parts = module_parameters(SamUrim(SamUrimSettings(decoder="literal", **ROWS[row])))
    assert round(sum(parts.values()) / 1e6, 2) == millions


def test_closed_form_what_fusions_add():
    def parts(row: str) -> dict[str, int]:
        with torch.device("meta"):
            return module_parameters(SamUrim(SamUrimSettings(decoder="literal", **ROWS[row])))

    assert parts("ilf")["trunk"] == 22_989_312
    assert [parts("mw")[f"sam{i}"] for i in (2, 3, 4, 5)] == [2, 2, 2, 2]
    # A 3x3 to C/4 and a 3x3 within C/4 a phase, each with BatchNorm, two gammas, 1x1 to C.
    for level, c in zip((2, 3, 4, 5), (256, 512, 1024, 2048), strict=True):
        quarter = c // 4
        phase = 9 * c * quarter + 9 * quarter**2 + 4 * quarter
        assert parts("pa")[f"sam{level}"] == 2 * phase + 2 + 2 * quarter * c + c
    one = parts("add")["decoder"] - (9 * 256 * 256 + 512) - (2 * 256 + 2)
    assert parts("dlf")["decoder"] == 2 * one + (9 * 512 * 256 + 512) + (2 * 256 + 2)


# ---- streaming ---------------------------------------------------------------------------------


def stacked(sam: SpatialAggregation, features, pairs):
    """Eq. 1 as it reads: all response maps side by side, softmax over phases, sum."""
    d = descriptors(features, pairs)
    maps, held = [], []
    for phase, f in enumerate(pairs.split(features)):
        if len(f):
            response = sam.mappings[phase](pairs.of_phase(d, phase))
            maps.append(pairs.spread(response, phase, fill=float("-inf")))
            held.append(pairs.spread(f, phase, fill=0.0))
    weights = softmax_over_phases(maps)
    return sum(w * f for w, f in zip(weights, held, strict=True))


@pytest.mark.parametrize("present", [ALL[:, :2], ALL, SOME, ALL[:, :1]])
@pytest.mark.parametrize("switches", [{}, {"branch_relu": True, "pre_softmax": "sigmoid"}])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_oracle_streaming_is_the_stacked_softmax(present, switches, training, dtype):
    # Sums of another order: in float32 a gradient is exact to its own last digits.
    near = {"rtol": 1e-6, "atol": 1e-6 if dtype == torch.float64 else 5e-5}
    results = []
    for way in (stacked, lambda sam, f, pairs: sam(f, pairs)):
        torch.manual_seed(20)
        sam = SpatialAggregation(present.shape[1], 8, "C/4", **switches).train(training).to(dtype)
        pairs = PresentPairs(present)
        features = torch.randn(sum(pairs.counts), 8, 6, 5, dtype=dtype, requires_grad=True)
        out = way(sam, features, pairs)
        (out * torch.randn(out.shape).to(dtype)).sum().backward()
        grads = {name: p.grad for name, p in sam.named_parameters()}
        results.append((out, features.grad, grads, dict(sam.named_buffers())))
    (out, grad, grads, buffers), (out2, grad2, grads2, buffers2) = results
    torch.testing.assert_close(out2, out, rtol=1e-6, atol=1e-6)  # in float32 too
    torch.testing.assert_close(grad2, grad, **near)
    for name, expected in grads.items():
        found = grads2[name]
        if expected is None or found is None:
            assert expected is None or not expected.any(), name
            assert found is None or not found.any(), name
            continue
        torch.testing.assert_close(found, expected, **near, msg=name)
    for name, expected in buffers.items():  # the repeated map leaves the statistics alone
        torch.testing.assert_close(buffers2[name], expected, msg=name)


def test_oracle_streaming_gradients_by_finite_differences():
    torch.manual_seed(21)
    sam = SpatialAggregation(3, 4, 2).double().eval()
    pairs = PresentPairs(torch.tensor([[True, True, True], [False, True, False]]))
    features = torch.randn(sum(pairs.counts), 4, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: sam(f, pairs), (features,))


def test_property_streaming_is_stable_for_any_response():
    sam = SpatialAggregation(3, 2, 1)
    pairs = PresentPairs(torch.ones(1, 3, dtype=torch.bool))
    features = torch.randn(3, 2, 2, 2, requires_grad=True)
    with torch.no_grad():
        for mapping, bias in zip(sam.mappings, (1e4, -1e4, 0.0), strict=True):
            mapping.fuse.bias.fill_(bias)
    out = sam(features, pairs)
    out.sum().backward()
    torch.testing.assert_close(out, features[:1].detach())  # one weight is 1, the others 0
    assert torch.isfinite(features.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in sam.parameters())


def test_property_streaming_computes_in_float32_under_autocast():
    torch.manual_seed(22)
    sam = SpatialAggregation(2, 8, 4)
    pairs = PresentPairs(ALL[:, :2])
    features = torch.randn(4, 8, 6, 6, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = features.bfloat16()
        aggregated, total = stream(sam, low, descriptors(low, pairs), pairs)
        out = sam(low, pairs)
    assert total.dtype == torch.float32
    assert aggregated.dtype == out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    low, features.grad = features.grad, None
    sam(features, pairs).square().sum().backward()
    similarity = torch.cosine_similarity(low.flatten(), features.grad.flatten(), dim=0)
    assert similarity > 0.999


def test_property_no_phase_stack_is_kept_for_the_backward_pass():
    """Bytes saved on the way grow by the features of a phase, not by a response map as well."""

    def saved(phases: int, way) -> int:
        torch.manual_seed(23)
        sam = SpatialAggregation(phases, 32, 1)
        pairs = PresentPairs(torch.ones(1, phases, dtype=torch.bool))
        features = torch.randn(phases, 32, 16, 16, requires_grad=True)
        kept: dict[int, int] = {}

        def pack(x):
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            way(sam, features, pairs)
        return sum(kept.values()) - features.untyped_storage().nbytes()

    one_map = 32 * 16 * 16 * 4
    streamed = [saved(p, lambda sam, f, pairs: sam(f, pairs)) for p in (2, 6)]
    plain = [saved(p, stacked) for p in (2, 6)]
    assert streamed[1] - streamed[0] < one_map
    assert plain[1] - plain[0] > 4 * one_map


def test_property_a_repeated_norm_is_the_same_and_learns_nothing():
    torch.manual_seed(24)
    norm = nn.BatchNorm2d(3).train()
    x = torch.randn(4, 3, 5, 5)
    expected = norm(x)
    before = [b.clone() for b in norm.buffers()]
    torch.testing.assert_close(normalized(x, norm, again=True), expected)
    assert all(torch.equal(a, b) for a, b in zip(norm.buffers(), before, strict=True))
    torch.testing.assert_close(normalized(x, norm.eval(), again=True), norm(x))


# ---- oracle: the other fusions -----------------------------------------------------------------


@torch.no_grad()
def test_oracle_addition_and_modality_weighting_with_absent_phases():
    torch.manual_seed(25)
    present = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])
    pairs = PresentPairs(present)
    image = torch.randn(3, 3, 2, 3, 2, dtype=torch.float64)
    weighting = ModalityWeighting(3).double()
    torch.testing.assert_close(weighting.weight, torch.full((3,), 1 / 3).double())
    weighting.weight.copy_(torch.tensor([0.3, -0.7, 1.9]))
    normalizing = ModalityWeighting(3, softmax=True).double()
    normalizing.weight.copy_(torch.tensor([0.3, -0.7, 1.9]))
    features = pairs.gather(image)
    found = [fuse(features, pairs) for fuse in (Addition(), weighting, normalizing)]
    for b, c, y, x in itertools.product(range(3), range(2), range(3), range(2)):
        held = [p for p in range(3) if present[b, p]]
        total = sum(math.exp(float(weighting.weight[p])) for p in held)
        sums = [0.0, 0.0, 0.0]
        for p in held:
            value, a = float(image[b, p, c, y, x]), float(weighting.weight[p])
            sums = [sums[0] + value, sums[1] + a * value, sums[2] + math.exp(a) / total * value]
        for way, expected in zip(found, sums, strict=True):
            assert float(way[b, c, y, x]) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def loop_affinity(x, y):
    """`softmax_j(max_k E_ik - E_ij)`, `E_ij = sum x_i y_j`."""
    n = len(x)
    e = [[float((x[i] * y[j]).sum()) for j in range(n)] for i in range(n)]
    rows = []
    for i in range(n):
        powers = [math.exp(max(e[i]) - e[i][j] - (max(e[i]) - min(e[i]))) for j in range(n)]
        rows.append([p / sum(powers) for p in powers])
    return rows


@pytest.mark.parametrize("axis", ["last", "first"])
@torch.no_grad()
def test_oracle_phase_attention_in_the_network(axis):
    """PV attends to itself, ART is scaled by channel; 1x1 from C/2 to C."""
    torch.manual_seed(26)
    fuse = shaken(PhaseAttentionFusion(2, primary=1, channels=8, pa_sum_axis=axis))
    head = fuse.attention
    head.intra.gamma.fill_(0.6)
    head.inter[0].gamma.fill_(-0.4)
    pairs = PresentPairs(torch.ones(1, 2, dtype=torch.bool))
    art, pv = 0.3 * torch.randn(2, 8, 3, 4, dtype=torch.float64)

    def layer(x, block):
        return loops.norm(loops.conv(x, block[0].weight), block[1]).clamp(min=0)

    x, y = layer(pv, head.reduce[0]), layer(art, head.reduce[1])
    a = loop_affinity(x, x)
    first = torch.stack(
        [0.6 * sum(a[i][j] * x[j] for j in range(len(x))) + x[i] for i in range(len(x))]
    )
    a = loop_affinity(y, x)
    sums = [sum(row) for row in a] if axis == "last" else [sum(col) for col in zip(*a, strict=True)]
    if axis == "last":
        assert sums == pytest.approx([1.0] * len(sums))
    second = torch.stack([-0.4 / (1 + math.exp(-s)) * v + v for s, v in zip(sums, y, strict=True)])
    both = torch.cat([layer(first, head.refine[0]), layer(second, head.refine[1])])
    expected = loops.conv(both, fuse.project.weight, fuse.project.bias)
    found = fuse(torch.stack([art, pv]), pairs)
    torch.testing.assert_close(found[0], expected)


@torch.no_grad()
def test_oracle_input_level_fusion_is_one_stream_of_all_channels():
    model = small("ilf").double().eval()
    image = torch.rand(2, 2, 3, 64, 64, dtype=torch.float64)
    found = model(image, ALL[:, :2])
    x = model.trunks[0]
    x = x.maxpool(
        x.relu(
            x.bn1(
                F.conv2d(
                    torch.cat([image[:, 0], image[:, 1]], 1), x.conv1.weight, stride=2, padding=3
                )
            )
        )
    )
    levels = []
    for name in ("layer1", "layer2", "layer3", "layer4"):
        x = getattr(model.trunks[0], name)(x)
        levels.append(x)
    features, logits = model.decoder(levels)
    torch.testing.assert_close(found.init_logits, logits)
    torch.testing.assert_close(found.final_logits, model.urim(logits, features).logits)
    # The first convolution adds what each phase's own channels give.
    weight = model.trunks[0].conv1.weight
    parts = [
        loops.conv(image[0, p, :, :6, :6], weight[:4, 3 * p : 3 * p + 3], stride=2)[:, :2, :2]
        for p in range(2)
    ]
    whole = F.conv2d(image[:1].flatten(1, 2), weight[:4], stride=2, padding=3)
    torch.testing.assert_close(parts[0] + parts[1], whole[0, :, :2, :2])


@torch.no_grad()
def test_oracle_decision_level_fusion_is_two_networks_until_their_features():
    model = small("dlf").double().eval()
    image = torch.rand(1, 2, 3, 32, 32, dtype=torch.float64)
    found = model(image, ALL[:1, :2])
    features = []
    for phase, decoder in enumerate(model.decoder.decoders):
        levels = model.trunks[0](image[:, phase])
        features.append(decoder.features(levels))
    block = model.decoder.fuse
    joined = torch.cat(features, 1)[0]
    expected = loops.norm(loops.conv(joined, block[0].weight), block[1]).clamp(min=0)
    logits = loops.conv(expected, model.decoder.classifier.weight, model.decoder.classifier.bias)
    torch.testing.assert_close(found.init_logits[0], logits)


@torch.no_grad()
def test_oracle_addition_has_no_feedback_and_weighting_has():
    image = torch.rand(1, 2, 3, 64, 64, dtype=torch.float64)
    pairs = PresentPairs(ALL[:1, :2])
    for row in ("add", "mw"):
        model = small(row).double().eval()
        trunk = model.trunks[0]
        found = model.encode(pairs.gather(image), pairs)
        art, pv = (trunk.stage(1, image[:, p]) for p in range(2))
        for level, a in zip((2, 3, 4, 5), found, strict=True):
            art, pv = trunk.stage(level, art), trunk.stage(level, pv)
            shares = (1.0, 1.0) if row == "add" else model.sams[str(level)].weight.tolist()
            expected = shares[0] * art + shares[1] * pv
            torch.testing.assert_close(a, expected)
            if row == "mw":
                art, pv = (art + expected) / 2, (pv + expected) / 2


# ---- property: phases --------------------------------------------------------------------------


@pytest.mark.parametrize("row", ["sam_urim", "add", "mw", "mw-softmax", "unet", "two trunks"])
@torch.no_grad()
def test_property_what_an_absent_phase_holds_changes_nothing(row):
    model = small(row, phases=("NC", "ART", "PV", "DL")).eval()
    image = torch.rand(2, 4, 3, 32, 32)
    expected = model(image, SOME)
    for junk in (float("nan"), float("inf"), 1e9):
        spoiled = image.masked_fill(~SOME[:, :, None, None, None], junk)
        found = model(spoiled, SOME)
        assert torch.equal(found.final_logits, expected.final_logits)
        assert torch.equal(found.init_logits, expected.init_logits)


@pytest.mark.parametrize("row", NEEDS_ALL)
def test_property_rows_that_need_every_phase_refuse_or_say_so(row):
    model = small(row)
    assert model.input_spec.needs_all_phases
    present = torch.tensor([[True, True], [False, True]])
    with pytest.raises(ValueError, match=rf"fusion {row} needs all of"):
        model(torch.rand(2, 2, 3, 32, 32), present)
    ours = small(row, presence_channel=True).eval()
    assert not ours.input_spec.needs_all_phases
    image = torch.rand(2, 2, 3, 32, 32)
    spoiled = image.clone()
    spoiled[1, 0] = float("nan")
    with torch.no_grad():
        expected = ours(image, present).final_logits
        assert torch.equal(ours(spoiled, present).final_logits, expected)
        assert not torch.equal(ours(image, ALL[:, :2]).final_logits[1], expected[1])


def _permuted(model: SamUrim, order: list[int]) -> SamUrim:
    """The model whose phase i has the weights of phase `order[i]`."""
    other = SamUrim(model.settings)
    other.load_state_dict(model.state_dict())
    n = len(order)
    channels = [2 * p + k for p in order for k in range(2)]
    with torch.no_grad():
        if model.settings.fusion == "ilf":
            weight = model.trunks[0].conv1.weight
            other.trunks[0].conv1.weight.copy_(
                torch.cat([weight[:, 3 * p : 3 * p + 3] for p in order], dim=1)
            )
        for i, p in enumerate(order if len(model.trunks) == n else []):
            other.trunks[i].load_state_dict(model.trunks[p].state_dict())
        if model.settings.fusion == "dlf":
            for i, p in enumerate(order):
                other.decoder.decoders[i].load_state_dict(model.decoder.decoders[p].state_dict())
            weight = model.decoder.fuse[0].weight
            parts = weight.chunk(n, dim=1)
            other.decoder.fuse[0].weight.copy_(torch.cat([parts[p] for p in order], dim=1))
        for level in model.sams:
            old, new = model.sams[level], other.sams[level]
            if model.settings.fusion == "mw":
                new.weight.copy_(old.weight[order])
            if model.settings.fusion != "sam":
                continue
            for i, p in enumerate(order):
                new.mappings[i].load_state_dict(old.mappings[p].state_dict())
                for name in ("local3", "local5", "global7"):
                    conv = getattr(new.mappings[i], name)[0]
                    conv.weight.copy_(getattr(old.mappings[p], name)[0].weight[:, channels])
                pool = old.mappings[p].global_pool.weight
                new.mappings[i].global_pool.weight.copy_(pool[:, channels])
    return other.eval()


@pytest.mark.parametrize("row", ["sam_urim", "add", "mw", "ilf", "dlf", "two trunks"])
def test_property_phases_permuted_with_their_weights_change_nothing(row):
    model = small(row, phases=("NC", "ART", "PV", "DL")).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("sams.2.weight", "sams.3.weight")):
                parameter.uniform_()
    image = torch.rand(2, 4, 3, 32, 32, dtype=torch.float64)
    present = ALL if row in NEEDS_ALL else SOME
    order = [2, 0, 3, 1]
    other = _permuted(model.float(), order).double()
    with torch.no_grad():
        expected = model.double()(image, present)
        found = other(image[:, order], present[:, order])
        unpermuted = other(image, present)
    torch.testing.assert_close(found.final_logits, expected.final_logits, rtol=1e-6, atol=1e-8)
    if row != "add":  # whose phases have no weights of their own
        assert not torch.allclose(unpermuted.final_logits, expected.final_logits)


@torch.no_grad()
def test_property_phase_attention_permutes_its_other_phases():
    torch.manual_seed(27)
    fuse = shaken(PhaseAttentionFusion(3, primary=2, channels=8, pa_sum_axis="first"))
    head = fuse.attention
    for part in (head.intra, *head.inter):
        part.gamma.uniform_()
    other = PhaseAttentionFusion(3, primary=2, channels=8, pa_sum_axis="first").double().eval()
    other.load_state_dict(fuse.state_dict())
    twin = other.attention
    for old, new in ((1, 2), (2, 1)):
        twin.reduce[new].load_state_dict(head.reduce[old].state_dict())
        twin.refine[new].load_state_dict(head.refine[old].state_dict())
        twin.inter[new - 1].load_state_dict(head.inter[old - 1].state_dict())
    weight = fuse.project.weight
    swapped = [weight[:, :2], weight[:, 4:6], weight[:, 2:4]]
    other.project.weight.copy_(torch.cat(swapped, dim=1))
    pairs = PresentPairs(torch.ones(1, 3, dtype=torch.bool))
    x = torch.randn(3, 8, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(other(x[[1, 0, 2]], pairs), fuse(x, pairs))


# ---- the system --------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS)
def test_closed_form_every_parameter_of_every_row_gets_a_gradient(row):
    model = small(row)
    phases = len(model.settings.phases)
    batch = _disc_batch(0, size=64, samples=2, phases=phases)
    outputs = model(batch.image, batch.present)
    model.loss(outputs, model.targets(batch)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        # The BatchNorm behind an LC-Conv takes its bias away again; the paper has both.
        assert parameter.grad.any() or name.startswith("urim.convs"), name
    with torch.no_grad():
        probability = model.eval().decode(model(batch.image, batch.present))
    assert probability.shape == (2, 2, 64, 64)
    assert probability.dtype == torch.float32


@pytest.mark.full
@pytest.mark.parametrize("row", ["dlf", "pa", "unet"])
def test_regression_rows_overfit_one_batch(row):
    torch.manual_seed(0)
    model = small(row, pyramid_width=4, decoder_width=32, urim_width=16)
    batch: Batch = _disc_batch(2, size=64, samples=4, phases=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(40):
        loss = model.loss(model(batch.image, batch.present), model.targets(batch))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 12.0)
        optimizer.step()
    with torch.no_grad():
        found = model.decode(model(batch.image, batch.present)).argmax(1)
    overlap = ((found == 1) & (batch.label == 1)).sum()
    assert 2 * overlap / ((found == 1).sum() + (batch.label == 1).sum()) > 0.9


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fusion": "none"}, "takes one phase"),
        ({"fusion": "add", "presence_channel": True}, "no presence_channel"),
        ({"backbone": "unet", "patch": (24, 24)}, "multiples of 16"),
    ],
)
def test_property_contradictions_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        SamUrimSettings(**changes)


def test_property_slices_by_index_and_by_distance():
    by_index = SamUrimSettings.preset("paper")
    with torch.device("meta"):
        spec = SamUrim(by_index).input_spec
        lite = SamUrim(SamUrimSettings.preset("lite")).input_spec
    assert (spec.slice_offsets, spec.slices, spec.channels) == ((-1, 0, 1), 3, 3)
    assert (lite.slice_offsets, lite.slice_offsets_mm) == (None, (-2.5, 0.0, 2.5))


def test_property_a_decoder_is_the_same_network_under_any_fusion():
    with torch.device("meta"):
        keys = {
            row: set(SamUrim(SamUrimSettings(**ROWS[row])).decoder.state_dict())
            for row in ("add", "sam_urim", "mw", "pa", "ilf")
        }
    assert len(set(map(frozenset, keys.values()))) == 1
    with torch.device("meta"):
        assert isinstance(SamUrim(SamUrimSettings()).decoder, Decoder)
