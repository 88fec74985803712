"""Sharpness-aware steps: the gradient uphill, what is put back, what is skipped, resuming."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from blob_source import BlobSource
from hepar.data.augment import Augmentation
from hepar.data.sampling import batches
from hepar.recipe import Recipe, load_recipe, parse_recipe, recipe_hash, row_hash
from hepar.systems.base import Batch
from hepar.systems.lidia.settings import LidiaSettings
from hepar.systems.lidia.system import Lidia
from hepar.systems.sam_urim.system import SamUrim
from hepar.systems.table import build
from hepar.train.checkpoint import read_tensors
from hepar.train.loop import train
from hepar.train.repeatable import mixed_seed
from hepar.train.schedule import learning_rate, optimizer
from hepar.train.sharpness import kept_buffers, sharpen

SMOKE = Path(__file__).resolve().parents[1] / "recipes" / "sam_urim" / "smoke.yaml"
RHO = 0.05
A = torch.tensor([[3.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]], dtype=torch.float64)
START = torch.tensor([1.0, -2.0, 0.7], dtype=torch.float64)


@pytest.fixture(autouse=True)
def one_thread():
    """Sums over threads may round differently on a busy machine with another number of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Quadratic(nn.Module):
    """`w' A w / 2` of weights in two parameters; counts its passes and keeps a bank of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(START[:1].clone()), nn.Parameter(START[1:].clone())
        self.idle = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.register_buffer("passes", torch.zeros(1))
        self.bank_frozen = False
        self.seen: list[tuple[float, bool]] = []

    def forward(self) -> torch.Tensor:
        self.seen.append((float(self.passes), self.bank_frozen))
        self.passes += 1
        w = torch.cat([self.first, self.second])
        return 0.5 * w @ A @ w

    def gradient(self) -> torch.Tensor:
        return torch.cat([self.first.grad, self.second.grad])


def scaled(enabled: bool) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=enabled)


def first_pass(model: nn.Module, scaler: torch.amp.GradScaler, loss) -> list[torch.Tensor]:
    before = kept_buffers(model)
    scaler.scale(loss()).backward()
    return before


@pytest.mark.parametrize("fp16", [False, True], ids=["plain", "scaled"])
def test_closed_form_gradient_of_a_quadratic(fp16):
    """At w + rho A w / |A w| it is A w + rho A A w / |A w|, and the weights have not moved."""
    model, scaler = Quadratic(), scaled(fp16)
    before = first_pass(model, scaler, model)
    sharpen(model, model, before, scaler, RHO)
    uphill = A @ START
    expected = uphill + RHO * A @ uphill / uphill.norm()
    torch.testing.assert_close(model.gradient() / scaler.get_scale(), expected, rtol=1e-12, atol=0)
    assert torch.equal(torch.cat([model.first, model.second]), START)
    assert model.idle.grad is None
    # The second pass sees the buffers of the first, and leaves those that the first left.
    assert model.seen == [(0.0, False), (0.0, True)]
    assert float(model.passes) == 1.0
    assert not model.bank_frozen


def test_property_weights_come_back_bit_for_bit_whatever_they_are():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(2, 3, 3), nn.BatchNorm3d(3), nn.Conv3d(3, 1, 3))
    model = model.to(memory_format=torch.channels_last_3d)
    for parameter in model.parameters():
        parameter.data *= 10.0 ** torch.randint(-8, 8, parameter.shape)
    x, scaler = torch.randn(2, 2, 6, 6, 6), scaled(False)
    known = {name: value.clone() for name, value in model.state_dict().items()}
    before = first_pass(model, scaler, lambda: model(x).square().mean())
    left = {name: value.clone() for name, value in model.state_dict().items()}
    old = [p.grad.clone() for p in model.parameters()]
    sharpen(model, lambda: model(x).square().mean(), before, scaler, 10.0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, left[name]), name
        assert torch.equal(value, known[name]) == ("running" not in name and "num" not in name)
    assert any(not torch.equal(p.grad, g) for p, g in zip(model.parameters(), old, strict=True))


@pytest.mark.parametrize("bad", [1, 2])
@pytest.mark.parametrize("fp16", [False, True], ids=["plain", "scaled"])
def test_property_a_bad_pass_leaves_the_weights_and_a_gradient_that_is_refused(bad, fp16):
    model, scaler, calls = Quadratic(), scaled(fp16), []
    descent = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss() -> torch.Tensor:
        calls.append(1)
        # The first one's gradient is not finite; the second's value alone.
        factor = torch.tensor(math.inf if len(calls) == bad == 1 else 1.0)
        return model() * factor + (math.inf if len(calls) == bad == 2 else 0.0)

    before = first_pass(model, scaler, loss)
    sharpen(model, loss, before, scaler, RHO)
    assert len(calls) == bad
    assert not torch.isfinite(model.gradient()).all()
    if fp16:
        scaler.unscale_(descent)
        scaler.step(descent)
        scaler.update()
        assert scaler.get_scale() == 2.0**9
    assert torch.equal(torch.cat([model.first, model.second]), START)
    assert float(model.passes) == 1.0


def test_property_nothing_moves_where_an_exception_ends_the_pass():
    model, scaler = Quadratic(), scaled(False)
    before = first_pass(model, scaler, model)

    def fails() -> torch.Tensor:
        assert not torch.equal(torch.cat([model.first, model.second]), START)
        raise MemoryError

    with pytest.raises(MemoryError):
        sharpen(model, fails, before, scaler, RHO)
    assert torch.equal(torch.cat([model.first, model.second]), START)
    assert not model.bank_frozen


def test_property_the_bank_of_lidia_takes_the_lesions_of_a_batch_once():
    """And the second pass is compared with the bank that the first was compared with."""
    torch.manual_seed(0)
    small = {
        "patch": (8, 8, 8),
        "channels": (4, 6),
        "strides": ((2, 2, 2),),
        "kernels": ((3, 3, 3),) * 2,
        "memory_levels": (1,),
        **dict.fromkeys(("width", "contrast_width", "bank"), 12),
        **dict.fromkeys(("queries", "heads", "feedforward"), 4),
        "points": 64,
    }
    model, scaler = Lidia(LidiaSettings(**small)), scaled(False)
    label = torch.zeros((2, 8, 8, 8), dtype=torch.long)
    label[:, 2:5, 2:5, 2:5] = 1
    present = torch.ones((2, 4), dtype=torch.bool)
    data = Batch(torch.rand(2, 4, 1, 8, 8, 8), present, label, label > 0, label)
    banks = []

    def loss() -> torch.Tensor:
        torch.manual_seed(3)
        banks.append({name: value.clone() for name, value in model.named_buffers()})
        return model.loss(model(data.image, data.present), model.targets(data))

    before = first_pass(model, scaler, loss)
    left = {name: value.clone() for name, value in model.named_buffers()}
    sharpen(model, loss, before, scaler, RHO)
    assert banks[0].keys() == banks[1].keys()
    assert all(torch.equal(banks[0][name], banks[1][name]) for name in banks[0])
    now = dict(model.named_buffers())
    assert all(torch.equal(now[name], left[name]) for name in left)
    assert any(not torch.equal(now[name], banks[0][name]) for name in left)


def smoke(rho: float | None, *changes: str) -> Recipe:
    keys = ("validate_every=0", "steps=3", "checkpoint_every=2", "precision=fp32")
    plain = ("system.base_width=8", *(f"schedule.{key}" for key in keys))
    given = "null" if rho is None else str(rho)
    return load_recipe(SMOKE, (*plain, f"schedule.sharpness_rho={given}", *changes))


def by_hand(recipe: Recipe) -> dict[str, torch.Tensor]:
    """The run written out: two gradients a step, or one; a clipped step of the optimizer."""
    schedule = recipe.schedule
    torch.manual_seed(mixed_seed(recipe.seed, 0, 0))
    model = build(recipe.system).to(memory_format=torch.channels_last).train()
    descent = optimizer(schedule, model)
    finish = Augmentation(
        recipe.augment, model.input_spec, seed=recipe.seed, device=torch.device("cpu")
    )
    data = batches(
        BlobSource(model.input_spec),
        batch_size=schedule.batch_size,
        start=0,
        stop=schedule.steps,
        finish=finish,
        workers=0,
    )
    for step, batch in enumerate(data):
        descent.param_groups[0]["lr"] = learning_rate(schedule, step)

        def backward(step=step, batch=batch) -> None:
            torch.manual_seed(mixed_seed(recipe.seed, 1, step))
            descent.zero_grad()
            outputs = model(batch.image, batch.present)
            model.loss(outputs, model.targets(batch)).backward()

        backward()
        if schedule.sharpness_rho is not None:
            state = {name: value.clone() for name, value in model.state_dict().items()}
            moving = [p for p in model.parameters() if p.grad is not None]
            norm = float(torch.stack([p.grad.norm() for p in moving]).norm())
            for parameter in moving:
                parameter.data.add_(parameter.grad, alpha=schedule.sharpness_rho / (norm + 1e-12))
            backward()
            model.load_state_dict(state)
        nn.utils.clip_grad_norm_(
            [p for p in model.parameters() if p.grad is not None], schedule.clip_norm
        )
        descent.step()
    return model.state_dict()


@pytest.mark.parametrize("rho", [None, RHO])
def test_oracle_runs_are_those_written_out_bit_for_bit(rho, tmp_path):
    recipe = smoke(rho, "schedule.clip_norm=0.5")
    train(recipe, tmp_path, source=BlobSource(build(recipe.system).input_spec), workers=0)
    found = read_tensors(tmp_path / "last.safetensors")[0]
    for name, value in by_hand(recipe).items():
        assert torch.equal(found[f"model.{name}"], value), name


def test_property_a_killed_run_resumes_to_the_same_bytes_and_draws_twice_the_same(
    tmp_path, monkeypatch
):
    drawn, loss = [], SamUrim.loss

    def drawing(self, outputs, targets):
        drawn.append(float(torch.rand(())))
        return loss(self, outputs, targets)

    monkeypatch.setattr(SamUrim, "loss", drawing)
    recipe = smoke(RHO, "schedule.steps=4", "schedule.validate_every=3")
    # The first step is skipped, and needs no second pass to be.
    source = BlobSource(build(recipe.system).input_spec, bad=frozenset({0}))
    done = train(recipe, tmp_path / "unbroken", source=source, workers=0)
    assert done.skipped_steps == 1
    assert drawn[1::2] == drawn[2::2]
    assert len(set(drawn)) == 4

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "killed", source=source, workers=0, progress=killed)
    assert read_tensors(tmp_path / "killed" / "last.safetensors")[1]["step"] == 2
    train(recipe, tmp_path / "killed", source=source, workers=0)
    for name in ("last.safetensors", "best.safetensors"):
        left, whole = (tmp_path / run / name for run in ("killed", "unbroken"))
        assert left.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ("nnunet", ("7d221d5362d36283", "75a6da94399ed141")),
        ("dpcnet", ("070c6e6a66f81cdf", "9e3c9b3a96385f5d")),
        ("sam_urim", ("9d421d64d386b809", "989b4df960b822e4")),
    ],
)
def test_regression_hashes_of_recipes_from_before_are_what_they_were(system, expected):
    def tree(**schedule) -> dict:
        return {
            "name": "a",
            "system": {"name": system, "preset": "toy"},
            "data": {"kind": "phantom"},
            "schedule": {"steps": 1, **schedule},
        }

    old = parse_recipe(tree())
    assert (recipe_hash(old)[:16], row_hash(old)[:16]) == expected
    new = parse_recipe(tree(sharpness_rho=RHO))
    assert recipe_hash(new) != recipe_hash(old)
    assert row_hash(new) != row_hash(old)
