"""The multi-phase tumor network: size, presence, small lesions, loss, learning, names."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hepar.systems.base import Batch, System
from hepar.systems.baselines.multiphase_unet3d.settings import MultiphaseUnet3dSettings
from hepar.systems.baselines.multiphase_unet3d.system import (
    MultiphaseUnet3d,
    Targets,
    lesion_weights,
)

PHASES = ("NC", "ART", "PV", "DL")


def tiny(**changes) -> MultiphaseUnet3d:
    torch.manual_seed(0)
    settings = MultiphaseUnet3dSettings.preset("tiny").model_copy(update=changes)
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


def pair(c: int, d: int) -> int:
    """Two 3x3x3 convolutions without bias from c to d to d, two norms with scale and shift."""
    return 27 * d * (c + d) + 4 * d


def test_closed_form_parameter_count() -> None:
    encoder = pair(16, 16) + pair(16, 32) + pair(32, 64) + pair(64, 128)
    decoder = pair(128 + 64, 64) + pair(64 + 32, 32) + pair(32 + 16, 16)
    stem = 8 * 16 + 16 + 4 * 16
    count = sum(p.numel() for p in MultiphaseUnet3d(MultiphaseUnet3dSettings()).parameters())
    assert count == stem + encoder + decoder + 16 * 3 + 3 == 1_467_011


@pytest.mark.parametrize("filling", [7.0, math.nan, math.inf])
@pytest.mark.parametrize("kept", [(2,), (0, 3), (1, 2, 3)])
def test_property_an_absent_phase_changes_nothing_and_equals_its_channels_deleted(filling, kept):
    system, data = tiny().eval(), batch()
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
    assert torch.equal(got, plain)
    torch.testing.assert_close(got, deleted)
    assert not torch.allclose(got, system(data.image, data.present))


def test_closed_form_lesion_weights() -> None:
    label = torch.ones((2, 8, 8, 8), dtype=torch.long)
    label[0, 0, 0, 0:2] = 2
    label[0, 4:8, 0:4, 0:4] = 2
    label[0, 1, 1, 2] = 2  # touches the pair by a corner: one lesion of three voxels
    label[1, 0, 0, 0] = -1
    weight = lesion_weights(label, 0.01, 0.32, 3.0)
    expected = torch.ones(label.shape)
    expected[0][(label[0] == 2) & (torch.arange(8)[:, None, None] < 4)] = 3.0  # sqrt(32 / 3) > 3
    torch.testing.assert_close(weight, expected)  # 64 voxels are not small
    middle = lesion_weights(label, 0.01, 0.12, 3.0)
    assert float(middle[0, 0, 0, 0]) == pytest.approx(2.0)
    assert (lesion_weights(label, 0.01, 0.0, 3.0) == 1).all()


def test_oracle_loss() -> None:
    system = tiny()
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 2, 3, 4))
    label = rng.integers(-1, 3, size=(2, 2, 3, 4))
    weight = rng.uniform(1, 4, size=label.shape)
    entropy = total = 0.0
    overlap, sizes = np.zeros(3), np.zeros(3)
    for b, z, y, x in np.ndindex(*label.shape):
        row, k = logits[b, :, z, y, x], label[b, z, y, x]
        if k < 0:
            continue
        p = np.exp(row) / np.exp(row).sum()
        entropy -= weight[b, z, y, x] * math.log(p[k])
        total += weight[b, z, y, x]
        overlap[k] += p[k]
        sizes += p
        sizes[k] += 1
    dice = [(2 * overlap[k] + 1) / (sizes[k] + 1) for k in (1, 2)]
    expected = entropy / total + 1 - sum(dice) / 2
    targets = Targets(torch.from_numpy(label), torch.from_numpy(weight).float())
    got = system.loss(torch.from_numpy(logits), targets)
    assert got.item() == pytest.approx(expected, rel=1e-6)


def test_property_every_parameter_gets_gradient() -> None:
    system, data = tiny(), batch()
    system.loss(system(data.image, data.present), system.targets(data)).backward()
    silent = [n for n, p in system.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_property_decode_gives_probabilities_of_named_classes() -> None:
    system, data = tiny(), batch()
    assert isinstance(system, System)
    assert system.input_spec.class_names == ("background", "liver", "tumor")
    assert not system.input_spec.needs_liver
    with torch.no_grad():
        decoded = system.decode(system(data.image, data.present).bfloat16())
    assert decoded.dtype == torch.float32
    torch.testing.assert_close(decoded.sum(1), torch.ones(1, 16, 16, 16))


def test_regression_overfits_one_case() -> None:
    system, data = tiny(), batch()
    optimizer = torch.optim.AdamW(system.parameters(), lr=2e-2)
    for _ in range(80):
        optimizer.zero_grad()
        loss = system.loss(system(data.image, data.present), system.targets(data))
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = system.decode(system(data.image, data.present)).argmax(1)
    overlap = ((found == 2) & (data.label == 2)).sum()
    assert 2 * overlap / ((found == 2).sum() + (data.label == 2).sum()) > 0.9


def test_regression_state_dict_keys() -> None:
    keys = set(tiny().state_dict())
    assert {"mix.weight", "mix.bias", "presence.weight", "trunk.head.weight"} <= keys
    blocks = {f"trunk.{part}.{i}" for part, n in (("encoder", 2), ("decoder", 1)) for i in range(n)}
    assert {".".join(key.split(".")[:3]) for key in keys if "coder" in key} == blocks
