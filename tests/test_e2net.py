"""E2Net: the paper's counts, its fusion, its edge maps and losses against loops, training."""

from __future__ import annotations

import hashlib
import itertools
import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import ndimage
from torch import nn

import loops
from hepar.infer.describe import describe_system
from hepar.networks.blocks import SeparableConvNormAct
from hepar.systems.base import Batch, System
from hepar.systems.e2net.deep_cross_feature_fusion import CrossRefinement, DeepCrossFeatureFusion
from hepar.systems.e2net.edge_distance import edge, edge_distance, squared_distance
from hepar.systems.e2net.r2unet import conv3x3
from hepar.systems.e2net.settings import PRESETS, E2netSettings
from hepar.systems.e2net.system import E2net, Outputs

ROWS = {
    "stage1": {"stage": 1, "edge_branch": False, "dcff": False},
    "stage1-e2net": {"stage": 1},
    "baseline": {"edge_branch": False, "dcff": False},
    "edge": {"edge_target": "edge", "dcff": False},
    "dist-dcff": {},
    "shared": {"shared_encoder": True},
    "context": {"slice_offsets": (-1, 0, 1), "context": "features"},
    "2.5d": {"slice_offsets": (-1, 0, 1)},
    "lite": {"stem_channels": 1, "shared_encoder": True, "separable": True},
    "multiphase": {"phases": ("NC", "ART", "PV", "DL"), "pyramid_width": 2},
}
SMALL = {
    "backbone": "resnet10",
    "base_width": 8,
    "width": 4,
    "slice_patch": (64, 64),
    "box_patch": (64, 64),
}


def _small(row: str, seed: int = 0, **changes) -> E2net:
    """A row of the paper at a tiny size, BatchNorm statistics not at their start."""
    torch.manual_seed(seed)
    model = E2net(E2netSettings(**(SMALL | ROWS[row] | changes)))
    _shake(model)
    return model


def _shake(module: nn.Module) -> None:
    with torch.no_grad():
        for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_mean.normal_(0.0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0.0, 0.2)


def _batch(model: E2net, samples: int = 2, size: int = 64, seed: int = 0) -> Batch:
    """A bright liver with a dark tumor a sample, noise around."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    shift = torch.randint(-6, 7, (samples, 2, 1, 1), generator=generator)
    far = ((y - size / 2 - shift[:, 0]) ** 2 + (x - size / 2 - shift[:, 1]) ** 2).sqrt()
    near = ((y - size / 2 - 6) ** 2 + (x - size / 2 + 4) ** 2).sqrt() + 0 * far
    label = (far < 22).long() + ((near < 7) & (far < 22)).long()
    classes = len(model.settings.class_names)
    spec = model.input_spec
    shape = (samples, len(spec.phases), spec.channels, size, size)
    shade = torch.tensor([0.2, 0.7, 0.4])[label][:, None, None]
    image = (shade + 0.05 * torch.randn(shape, generator=generator)).clamp(0, 1)
    present = torch.ones(shape[:2], dtype=torch.bool)
    return Batch(image, present, label.clamp(max=classes - 1), label > 0)


# ---- closed form: counts -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("stage1", 23_952_137),
        ("baseline", 23_952_170),
        ("paper", 48_617_302),
        ("no_dcff", 47_922_902),
        ("shared", 24_947_950),
    ],
)
def test_closed_form_parameters_of_the_paper(preset, parameters):
    with torch.device("meta"):
        model = E2net(E2netSettings.preset(preset))
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_closed_form_parts_as_hepar_info_names_them():
    found = describe_system("e2net", "paper")
    assert found["modules"] == {
        "encoder": 23_669_352,
        "segmentation": 171_648 + 111_104 + 66,
        "edge_encoder": 23_669_352,
        "edge": 171_648 + 111_104 + 66,
        "dcff_segmentation": 462_400,
        "dcff_edge": 232_000,
        "fusion": 18_562,
    }
    assert found["input"] == [1, 1, 1, 256, 256]
    assert describe_system("e2net", "v1")["modules"]["encoder"] == 23_650_120
    assert describe_system("e2net", "lite")["parameters"] < 3_000_000


def test_closed_form_one_convolution_a_level_of_the_decoder():
    with torch.device("meta"):
        model = E2net(E2netSettings.preset("baseline").model_copy(update={"decoder_convs": 1}))
    assert sum(p.numel() for p in model.segmentation.decoder.parameters()) == 73_984


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_property_every_preset_is_described_and_survives_json(preset):
    settings = E2netSettings.preset(preset)
    assert E2netSettings.model_validate_json(settings.model_dump_json()) == settings
    with torch.device("meta"):
        assert isinstance(E2net(settings), System)


# ---- oracle: deep cross feature fusion ---------------------------------------------------------


def _loop_conv(x, block):
    """3x3 convolution, BatchNorm of eval, ReLU."""
    return loops.norm(loops.conv(x, block[0].weight), block[1]).clamp(min=0)


def _loop_pool(x, factor, kind):
    channels, height, width = x.shape
    out = torch.zeros(channels, height // factor, width // factor, dtype=torch.float64)
    for c, y, z in itertools.product(*map(range, out.shape)):
        window = x[c, y * factor : (y + 1) * factor, z * factor : (z + 1) * factor]
        values = window.flatten().tolist()
        out[c, y, z] = max(values) if kind == "max" else sum(values) / len(values)
    return out


def _loop_double(x):
    """Bilinear to twice the size; corners are not aligned."""
    channels, height, width = x.shape
    out = torch.zeros(channels, 2 * height, 2 * width, dtype=torch.float64)
    for c, y, z in itertools.product(*map(range, out.shape)):
        total = 0.0
        ys, zs = (max(0.0, (v + 0.5) / 2 - 0.5) for v in (y, z))
        for yy, zz in itertools.product((int(ys), int(ys) + 1), (int(zs), int(zs) + 1)):
            share = (1 - abs(ys - yy)) * (1 - abs(zs - zz))
            total += share * float(x[c, min(yy, height - 1), min(zz, width - 1)])
        out[c, y, z] = total
    return out


def _loop_dcff(module, own, other, kind):
    """The formulas of `deep_cross_feature_fusion`, for one sample."""

    def joined(a, b):
        return torch.cat([a, b]) if module.join == "concatenate" else a * b

    refined = []
    scales = len(own)
    for j in range(scales):
        crossed = {}
        for i in range(j, scales):
            lowered = _loop_pool(own[j], 2 ** (i - j), kind)
            crossed[i] = _loop_conv(joined(lowered, other[i]), module.cross[j][i - j])
        u = crossed[scales - 1]
        for i in reversed(range(j, scales - 1)):
            u = _loop_conv(joined(crossed[i], _loop_double(u)), module.back[j][i - j])
        refined.append(own[j] + u)
    return refined


@pytest.mark.parametrize("down", ["max", "mean"])
@torch.no_grad()
def test_oracle_dcff_is_the_formula_scale_by_scale(down):
    torch.manual_seed(1)
    conv = conv3x3(E2netSettings())
    module = DeepCrossFeatureFusion(3, 2, conv, down).double().eval()
    _shake(module)
    sizes = ((8, 4), (4, 2), (2, 1))
    f1 = [torch.randn(1, 2, *size, dtype=torch.float64) for size in sizes]
    f2 = [torch.randn(1, 2, *size, dtype=torch.float64) for size in sizes]
    one, two = [f[0] for f in f1], [f[0] for f in f2]
    refined1, refined2 = module(f1, f2)
    for found, expected in zip(
        refined1, _loop_dcff(module.segmentation, one, two, down), strict=True
    ):
        torch.testing.assert_close(found[0], expected)
    for found, expected in zip(refined2, _loop_dcff(module.edge, two, one, down), strict=True):
        torch.testing.assert_close(found[0], expected)


@pytest.mark.parametrize("join", ["concatenate", "multiply"])
def test_property_dcff_gradients_are_right(join):
    torch.manual_seed(2)
    module = CrossRefinement(2, 2, join, conv3x3(E2netSettings()), "mean").double().eval()
    _shake(module)
    maps = [torch.rand(1, 2, s, s, dtype=torch.float64, requires_grad=True) for s in (4, 2, 4, 2)]
    assert torch.autograd.gradcheck(lambda *m: tuple(module(m[:2], m[2:])), maps)


def test_property_dcff_looks_at_own_and_coarser_scales_only():
    torch.manual_seed(3)
    module = DeepCrossFeatureFusion(3, 4, conv3x3(E2netSettings())).eval()
    _shake(module)
    f1, f2 = ([torch.randn(1, 4, s, s) for s in (8, 4, 2)] for _ in range(2))
    before = module(f1, f2)[0]
    changed = module(f1, [torch.randn(1, 4, 8, 8), *f2[1:]])[0]
    assert not torch.equal(changed[0], before[0])
    assert torch.equal(changed[1], before[1])
    assert torch.equal(changed[2], before[2])


# ---- oracle: edge targets ----------------------------------------------------------------------


def _direct_edge(mask):
    height, width = mask.shape
    found = torch.zeros_like(mask)
    for y, x in itertools.product(range(height), range(width)):
        if mask[y, x]:
            around = itertools.product((y - 1, y, y + 1), (x - 1, x, x + 1))
            inside = [(a, b) for a, b in around if 0 <= a < height and 0 <= b < width]
            found[y, x] = any(not mask[a, b] for a, b in inside)
    return found


def _direct_map(mask, literal):
    border = [tuple(p) for p in _direct_edge(mask).nonzero().tolist()]
    height, width = mask.shape
    n = torch.zeros(height, width, dtype=torch.float64)
    pixels = list(itertools.product(range(height), range(width)))
    for y, x in pixels if border else ():
        n[y, x] = float(mask[y, x]) * min(math.hypot(y - a, x - b) for a, b in border)
    if n.max() > 0:
        n = n / n.max()
    if literal:
        return 1 - n
    return (1 - n) * mask if border else torch.zeros_like(n)


def _masks() -> dict[str, torch.Tensor]:
    y, x = torch.meshgrid(torch.arange(16), torch.arange(12), indexing="ij")
    generator = torch.Generator().manual_seed(0)
    one = torch.zeros(16, 12, dtype=torch.bool)
    one[7, 5] = True
    line = torch.zeros(16, 12, dtype=torch.bool)
    line[3, 2:9] = True
    disc = (y - 8) ** 2 + (x - 6) ** 2 < 26
    return {
        "empty": torch.zeros(16, 12, dtype=torch.bool),
        "full": torch.ones(16, 12, dtype=torch.bool),
        "one pixel": one,
        "line": line,
        "disc": disc,
        "two": disc & (y != 8) | one.roll(6, 0),
        "cut by the border": (y - 2) ** 2 + x**2 < 40,
        "half": x < 6,
        "speckles": torch.rand(16, 12, generator=generator) > 0.5,
    }


@pytest.mark.parametrize("name", sorted(_masks()))
def test_oracle_edge_and_distance_map_by_direct_definition(name):
    mask = _masks()[name]
    assert torch.equal(edge(mask), _direct_edge(mask))
    for literal in (False, True):
        found = edge_distance(mask, literal=literal)
        torch.testing.assert_close(found.double(), _direct_map(mask, literal), atol=1e-6, rtol=0)


def test_closed_form_edge_maps_of_the_masks_that_have_no_usual_one():
    masks = _masks()
    for name in ("empty", "full"):
        assert not edge(masks[name]).any()
        assert not edge_distance(masks[name]).any()
        assert (edge_distance(masks[name], literal=True) == 1).all()
    for name in ("one pixel", "line"):
        assert torch.equal(edge_distance(masks[name]), masks[name].float())
    # A liver that the box cuts: 1 at its free edge, falling to 0 at the cut.
    half = edge_distance(masks["half"])
    assert torch.allclose(half[0, :6], torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0]))
    assert not half[:, 6:].any()


def test_oracle_distance_is_scipys():
    generator = torch.Generator().manual_seed(4)
    points = torch.rand(3, 2, 40, 57, generator=generator) > torch.tensor([0.9, 0.99, 0.999]).view(
        3, 1, 1, 1
    )
    found = squared_distance(points).sqrt()
    for a, b in itertools.product(range(3), range(2)):
        expected = ndimage.distance_transform_edt(~points[a, b].numpy())
        torch.testing.assert_close(found[a, b], torch.from_numpy(expected).float())
    near = torch.from_numpy(ndimage.binary_dilation(points.numpy(), np.ones((1, 1, 9, 9))))
    part = squared_distance(points, within=near)
    assert torch.equal(part[near], found.square()[near].round())


def test_property_each_slice_and_class_is_normalized_by_itself():
    masks = torch.stack(list(_masks().values()))
    together = edge_distance(masks.view(3, 3, 16, 12)).view(9, 16, 12)
    for mask, found in zip(masks, together, strict=True):
        assert torch.equal(found, edge_distance(mask))


# ---- the system --------------------------------------------------------------------------------


@pytest.mark.parametrize("row", sorted(ROWS))
def test_closed_form_every_row_runs_and_every_parameter_gets_a_gradient(row):
    model = _small(row).train()
    batch = _batch(model)
    outputs = model(batch.image, batch.present)
    model.loss(outputs, model.targets(batch)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        # A map of 2x2 pixels under ReLU may be dead in one of a few channels of a tiny network.
        assert parameter.grad.any() or "dcff" in name or "fuse" in name, name
    probability = model.eval().decode(outputs)
    classes = len(model.settings.class_names)
    assert probability.shape == (2, classes, 64, 64)
    assert probability.dtype == torch.float32
    assert (probability >= 0).all()
    torch.testing.assert_close(probability.sum(1), torch.ones(2, 64, 64))


def test_closed_form_tumor_implies_liver():
    model = _small("dist-dcff")
    logits = torch.tensor([[2.0, 2.0, -2.0, -2.0], [1.0, -1.0, 3.0, -1.0]]).view(1, 2, 2, 2)
    flat = logits[..., :1, :1].expand(1, 2, 4, 4)
    p = model.decode(Outputs(flat, None, flat))[0, :, 0, 0]
    organ, tumor = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1))
    assert p.tolist() == pytest.approx([1 - organ, organ - tumor, tumor])
    # Sure of tumor where there is hardly liver: not a tumor.
    lost = logits[..., 1:, :1].expand(1, 2, 4, 4)
    p = model.decode(Outputs(lost, None, lost))[0, :, 0, 0]
    organ = 1 / (1 + math.exp(2))
    assert p.tolist() == pytest.approx([1 - organ, 0.0, organ])


def test_closed_form_the_loss_is_eq_3():
    torch.manual_seed(5)
    model = _small("dist-dcff", edge_weight=4.0)
    s1, e, s2 = torch.randn(3, 2, 2, 4, 4, dtype=torch.float64)
    batch = _batch(model, size=8)
    label = torch.randint(-1, 3, (2, 8, 8))
    targets = model.targets(Batch(batch.image, batch.present, label, label > 0))
    total = 0.0
    counted = (label >= 0).nonzero().tolist()
    for logits, weight in ((s1, 1.0), (s2, 1.0), (e, 4.0)):
        p = nn.functional.interpolate(logits, scale_factor=2, mode="bilinear").sigmoid()
        g = (targets.mask if weight == 1.0 else targets.edge).double()
        bce = sum(
            g[b, k, y, x] * math.log(p[b, k, y, x])
            + (1 - g[b, k, y, x]) * math.log(1 - p[b, k, y, x])
            for b, y, x in counted
            for k in range(2)
        )
        total -= weight * float(bce) / (2 * len(counted))
        if weight == 4.0:
            continue
        for b, k in itertools.product(range(2), range(2)):
            here = [(g[b, k, y, x], p[b, k, y, x]) for n, y, x in counted if n == b]
            both = sum(float(a * c) for a, c in here)
            either = sum(float(a + c - a * c) for a, c in here)
            total += (1 - (both + 1) / (either + 1)) / 4
    assert float(model.loss(Outputs(s1, e, s2), targets)) == pytest.approx(total)


def test_closed_form_targets_say_liver_with_its_tumors():
    model = _small("dist-dcff")
    label = torch.tensor([[0, 1, 2, -1]]).repeat(1, 64, 16)[:, :64, :64]
    batch = Batch(torch.rand(1, 1, 1, 64, 64), torch.ones(1, 1, dtype=torch.bool), label, label > 0)
    targets = model.targets(batch)
    assert targets.mask[0, :, 0, :4].tolist() == [[0, 1, 1, 0], [0, 0, 1, 0]]
    assert targets.counted[0, 0, :4].tolist() == [True, True, True, False]
    assert _small("baseline").targets(batch).edge is None
    binary = _small("edge").targets(batch).edge
    assert set(binary.unique().tolist()) == {0.0, 1.0}


@torch.no_grad()
def test_property_absent_phases_change_nothing_and_deleted_ones_neither():
    model = _small("multiphase").eval()
    image = torch.rand(2, 4, 1, 64, 64)
    present = torch.tensor([[True, False, True, True], [False, False, True, False]])
    known = model(image, present)
    for fill in (0.0, 7.0, float("nan")):
        other = torch.where(present.view(2, 4, 1, 1, 1), image, fill)
        for a, b in zip((known.s1, known.e, known.s2), _three(model(other, present)), strict=True):
            assert torch.equal(a, b)
    # Sample 1 holds PV alone: its first features are those of PV, not a quarter of them.
    alone = model(image[1:], present[1:])
    torch.testing.assert_close(alone.s2 / known.s2.std(), known.s2[1:] / known.s2.std())
    f1 = model.encoder(image[1:], present[1:])[0]
    torch.testing.assert_close(
        f1, model.encoder.trunk.stem(2 * image[1:, 2].repeat(1, 3, 1, 1) - 1)
    )
    with pytest.raises(ValueError, match="no phase at all"):
        model(image, torch.zeros_like(present))


def _three(outputs: Outputs) -> tuple[torch.Tensor, ...]:
    return outputs.s1, outputs.e, outputs.s2


@torch.no_grad()
def test_property_context_slices_are_encoded_each_by_itself():
    model = _small("context").eval()
    image = torch.rand(2, 1, 3, 64, 64)
    present = torch.ones(2, 1, dtype=torch.bool)
    features = model.encoder(image, present)
    assert features[0].shape[0] == 6
    alone = model.encoder(image[1:, :, 2:], present[:1])[3]
    torch.testing.assert_close(features[3][5:], alone)
    # Every slice of the context counts, at its own place.
    known = model(image, present).s2
    for order in ([1, 0, 2], [0, 2, 1], [2, 1, 0]):
        assert not torch.allclose(model(image[:, :, order], present).s2, known)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 1, 1, 64, 40), "multiples of 32"), ((1, 1, 3, 64, 64), "of 1 slices")],
)
def test_errors_wrong_shapes_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        _small("baseline")(torch.rand(shape), torch.ones(shape[:2], dtype=torch.bool))


def test_property_bfloat16_keeps_losses_in_float32():
    model = _small("dist-dcff").train()
    batch = _batch(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(batch.image, batch.present)
        loss = model.loss(outputs, model.targets(batch))
    loss.backward()
    assert outputs.s2.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert model.decode(outputs).dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_closed_form_separable_convolutions_everywhere_behind_the_trunk():
    with torch.device("meta"):
        model = E2net(E2netSettings.preset("lite"))
    behind = [m for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and "trunk" not in n]
    full = [m for m in behind if m.kernel_size == (3, 3) and m.groups == 1]
    assert not full
    assert any(isinstance(m, SeparableConvNormAct) for m in model.modules())


def test_regression_keys_of_the_published_network():
    with torch.device("meta"):
        state = E2net(E2netSettings()).state_dict()
    listing = "\n".join(f"{name} {tuple(value.shape)}" for name, value in state.items())
    assert hashlib.sha256(listing.encode()).hexdigest()[:16] == "58166dc5d2f67681"


def test_regression_e2net_overfits_one_batch():
    torch.manual_seed(0)
    model = E2net(E2netSettings(**SMALL | {"base_width": 16, "width": 8}))
    batch = _batch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(35):
        loss = model.loss(model(batch.image, batch.present), model.targets(batch))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = model.decode(model(batch.image, batch.present)).argmax(1)
    for k in (1, 2):
        overlap = ((found >= k) & (batch.label >= k)).sum()
        dice = 2 * overlap / ((found >= k).sum() + (batch.label >= k).sum())
        assert dice > 0.9, (k, float(dice))


@pytest.mark.parametrize(
    "wrong",
    [
        {"edge_branch": False},
        {"box_patch": (250, 256)},
        {"train_pad_px": (60, 10)},
        {"context": "features"},
        {"phases": ("PV", "ART")},
        {"stage": 3},
        {"edge_target": "distanse"},
    ],
)
def test_errors_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        E2netSettings(**wrong)
