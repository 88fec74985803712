"""The coarse liver network: size, gradients, learning, absent input, frozen names."""

from __future__ import annotations

import pytest
import torch

from hepar.networks.unet3d import UNet3d
from hepar.systems.base import Batch, System
from hepar.systems.baselines.context_unet3d.settings import CONTEXT_CLASSES, ContextUnet3dSettings
from hepar.systems.baselines.context_unet3d.system import ContextUnet3d, weighted_dice


def tiny() -> ContextUnet3d:
    torch.manual_seed(0)
    return ContextUnet3d(ContextUnet3dSettings.preset("tiny"))


def batch(size: int = 16, samples: int = 1) -> Batch:
    """Blocks of constant brightness, one class each, so that intensity decides."""
    label = torch.zeros((samples, size, size, size), dtype=torch.long)
    label[:, :8, :8] = 1
    label[:, 8:, :8] = 2
    label[:, :8, 8:] = 7
    image = (label.float() / 10)[:, None, None].repeat(1, 1, 2, 1, 1, 1)
    present = torch.ones((samples, 1), dtype=torch.bool)
    return Batch(image, present, label, label == 1)


def pair(c: int, d: int) -> int:
    """Two 3x3x3 convolutions without bias from c to d to d, two norms with scale and shift."""
    return 27 * d * (c + d) + 4 * d


def test_closed_form_parameter_count() -> None:
    encoder = pair(2, 12) + pair(12, 24) + pair(24, 48) + pair(48, 96)
    decoder = pair(96 + 48, 48) + pair(48 + 24, 24) + pair(24 + 12, 12)
    count = sum(p.numel() for p in ContextUnet3d(ContextUnet3dSettings()).parameters())
    assert count == encoder + decoder + 12 * 11 + 11 == 822_215
    assert count <= 1_500_000


def test_closed_form_weighted_dice() -> None:
    # Perfect logits score zero; wholly wrong ones score one, up to the smoothing voxel.
    label = batch().label
    weights = torch.ones(len(CONTEXT_CLASSES))
    sure = 100.0 * torch.nn.functional.one_hot(label, len(CONTEXT_CLASSES)).movedim(-1, 1)
    assert weighted_dice(sure, label, weights).item() == pytest.approx(0.0, abs=1e-4)
    wrong = 100.0 * torch.nn.functional.one_hot(label + 1, len(CONTEXT_CLASSES)).movedim(-1, 1)
    assert weighted_dice(wrong, label, weights).item() > 0.99
    # Half of the only class found, nothing else marked there: Dice 2/3.
    one = torch.ones((1, 2, 4, 4), dtype=torch.long)
    logits = torch.zeros((1, 3, 2, 4, 4))
    logits[:, 1, 0], logits[:, 2, 1] = 100.0, 100.0
    expected = 1 - (2 * 16 + 1) / (16 + 32 + 1)
    assert weighted_dice(logits, one, torch.ones(3)).item() == pytest.approx(expected)


def test_property_ignored_voxels_change_nothing() -> None:
    system, data = tiny(), batch()
    outputs = system(data.image, data.present)
    label = data.label.clone()
    label[:, :, :, 8:] = -1
    loss = system.loss(outputs, label)
    changed = outputs.clone()
    changed[..., 8:] = 50.0 * torch.randn_like(changed[..., 8:])
    assert system.loss(changed, label).item() == pytest.approx(loss.item(), rel=1e-5)


def test_property_every_parameter_gets_gradient() -> None:
    system, data = tiny(), batch()
    data = Batch(torch.rand_like(data.image), data.present, data.label, data.liver)
    system.loss(system(data.image, data.present), system.targets(data)).backward()
    silent = [n for n, p in system.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_property_decode_gives_probabilities_of_named_classes() -> None:
    system, data = tiny(), batch()
    assert isinstance(system, System)
    assert system.input_spec.channels == 2
    assert system.input_spec.class_names[1] == "liver"
    with torch.no_grad():
        decoded = system.decode(system(data.image, data.present).bfloat16())
    assert decoded.dtype == torch.float32
    assert decoded.shape == (1, len(system.input_spec.class_names), 16, 16, 16)
    torch.testing.assert_close(decoded.sum(1), torch.ones(1, 16, 16, 16))


def test_property_absent_phase_never_enters() -> None:
    system, data = tiny().eval(), batch(samples=2)
    present = torch.tensor([[True], [False]])
    image = data.image.clone()
    image[1] = float("nan")
    with torch.no_grad():
        mixed = system(image, present)
        alone = system(image[:1], present[:1])
        none = system(image[1:], present[1:])
    torch.testing.assert_close(mixed[:1], alone)
    assert torch.isfinite(mixed).all()
    assert not none.any()


def test_property_size_must_fit_the_stride() -> None:
    with pytest.raises(ValueError, match="multiples of 2"):
        UNet3d(1, 2, (2, 4))(torch.zeros(1, 1, 16, 16, 15))


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
    assert (found == data.label).float().mean() > 0.97


def test_regression_state_dict_names() -> None:
    # A bundle's weights are read by these names; changing one breaks shipped models.
    block = ["conv1.weight", "norm1.weight", "norm1.bias"]
    block += [name.replace("1", "2") for name in block]
    places = ["trunk.encoder.0", "trunk.encoder.1", "trunk.decoder.0"]
    names = {f"{place}.{name}" for place in places for name in block}
    assert set(tiny().state_dict()) == names | {"trunk.head.weight", "trunk.head.bias"}
