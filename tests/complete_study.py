"""What every 2D baseline that needs all phases is held to: presence, gradients, keys, training."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from torch import nn

from hepar.errors import InputRefused
from hepar.infer.tiling import predict
from hepar.systems.base import Batch, System

SOME = torch.tensor([[True, False], [False, True], [True, True], [True, False]])


def disc_batch(size: int, samples: int = 4, phases: int = 2, channels: int = 3) -> Batch:
    """Noise with one brighter or darker disc a sample, another contrast in each phase."""
    generator = torch.Generator().manual_seed(3)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    margin = size // 3
    center = torch.randint(margin, size - margin, (samples, 2), generator=generator)
    distance = ((y - center[:, 0, None, None]) ** 2 + (x - center[:, 1, None, None]) ** 2).sqrt()
    label = (distance < size / 5).long()
    contrast = torch.linspace(-0.3, 0.3, phases).view(1, phases, 1, 1, 1)
    noise = 0.05 * torch.randn(samples, phases, channels, size, size, generator=generator)
    image = (0.5 + contrast * label[:, None, None] + noise).clamp(0, 1)
    present = torch.ones(samples, phases, dtype=torch.bool)
    return Batch(image=image, present=present, label=label, liver=torch.ones_like(label).bool())


def settle(model: nn.Module) -> None:
    """BatchNorm statistics and attention gains that are not at their start."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0.0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.5)


def check_needs_every_phase(model) -> None:
    """As published: said in the input spec, refused by the network."""
    assert isinstance(model, System)
    assert model.input_spec.needs_all_phases
    with pytest.raises(InputRefused) as refused:
        predict(model, {"PV": np.zeros((2, 64, 64), np.int16)}, (1.0, 1.0, 1.0))
    assert refused.value.code == "E_PHASES_REQUIRED"
    batch = disc_batch(64)
    with pytest.raises(ValueError, match="needs all of"):
        model(batch.image, SOME)
    with pytest.raises(ValueError, match="phases"):
        model(batch.image[:, :1], batch.present[:, :1])
    with pytest.raises(ValueError, match="multiples of"):
        model(batch.image[..., :40, :], batch.present)


def check_absent_phases_change_nothing(model, *, train: bool) -> None:
    """With presence channels, whatever an absent phase holds: loss, gradients, statistics."""
    assert not model.input_spec.needs_all_phases
    settle(model)
    model.train(train)
    batch = disc_batch(64)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    results = []
    for fill in (0.0, 7.0, float("nan"), float("inf")):
        model.load_state_dict(start)
        model.zero_grad()
        image = batch.image.clone()
        image[~SOME] = fill
        image.requires_grad_()
        outputs = model(image, SOME)
        model.loss(outputs, model.targets(batch)).backward()
        assert not image.grad[~SOME].any()
        found = {name: p.grad.clone() for name, p in model.named_parameters()}
        found |= {f"state {name}": value.clone() for name, value in model.state_dict().items()}
        results.append({**found, "probabilities": model.decode(outputs)})
    for other in results[1:]:
        assert [n for n, value in results[0].items() if not torch.equal(value, other[n])] == []
    assert all(torch.isfinite(value).all() for value in results[0].values())
    with torch.no_grad():  # an absent phase is not a present phase of zeros
        zeros = model.eval()(batch.image * SOME[:, :, None, None, None], batch.present)
        absent = model(batch.image, SOME)
    assert (zeros - absent).abs().max() > 1e-6
    with pytest.raises(ValueError, match="no phase"):
        model(batch.image, torch.zeros_like(SOME))


def check_every_parameter_gets_gradient(model) -> None:
    """After the first step, where gains start at 0 (`settle`)."""
    settle(model)
    batch = disc_batch(64)
    model.loss(model(batch.image, batch.present), model.targets(batch)).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def check_bfloat16(model) -> None:
    """Convolutions in bfloat16; loss and probabilities in float32."""
    settle(model)
    batch = disc_batch(64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(batch.image, batch.present)
        loss = model.loss(outputs, model.targets(batch))
    loss.backward()
    assert outputs.dtype == torch.bfloat16  # the autocast was on
    assert loss.dtype == torch.float32
    probabilities = model.decode(outputs)
    assert probabilities.dtype == torch.float32
    assert probabilities.shape == (4, 2, 64, 64)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(4, 64, 64))
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def keys_hash(model: nn.Module) -> tuple[int, str]:
    """How many entries the state dict has, and a hash of their names and shapes."""
    listing = "\n".join(f"{k} {tuple(v.shape)}" for k, v in model.state_dict().items())
    return len(model.state_dict()), hashlib.sha256(listing.encode()).hexdigest()[:16]


def dice_after_overfitting(model, *, steps: int, lr: float = 3e-3, size: int = 64) -> float:
    """Dice of the discs of one batch after training on it."""
    batch = disc_batch(size)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(steps):
        loss = model.loss(model(batch.image, batch.present), model.targets(batch))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 12.0)
        optimizer.step()
    with torch.no_grad():
        found = model.decode(model(batch.image, batch.present)).argmax(1)
    overlap = ((found == 1) & (batch.label == 1)).sum()
    return float(2 * overlap / ((found == 1).sum() + (batch.label == 1).sum()))
