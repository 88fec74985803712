"""Training: repeatable, resumable bit for bit, unmoved by a bad batch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from blob_source import BlobSource
from hepar.data.sampling import batches, positions
from hepar.errors import HeparError, ModelIntegrityError, ResourceExhausted, UsageError
from hepar.recipe import Schedule, load_recipe
from hepar.systems.table import build
from hepar.train.checkpoint import (
    pack_optimizer,
    read_tensors,
    starting_model,
    unpack_optimizer,
    write_tensors,
)
from hepar.train.loop import train
from hepar.train.schedule import learning_rate

ROOT = Path(__file__).resolve().parents[1]
TOY = ROOT / "recipes" / "sam_urim" / "smoke.yaml"
QUICK = ("schedule.validate_every=0", "schedule.checkpoint_every=2")


@pytest.fixture(autouse=True)
def one_thread():
    """Sums over threads may round differently on a busy machine with another number of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def recipe():
    return load_recipe(TOY, QUICK)


@pytest.fixture(scope="module")
def spec(recipe):
    return build(recipe.system).input_spec


@pytest.fixture(scope="module")
def unbroken(recipe, spec, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    result = train(recipe, out, source=BlobSource(spec), workers=0)
    torch.set_num_threads(before)
    assert result.steps == recipe.schedule.steps
    return out


def test_property_runs_repeat_whatever_the_workers(recipe, spec, unbroken, tmp_path):
    train(recipe, tmp_path, source=BlobSource(spec), workers=2)
    for name in ("last.safetensors", "best.safetensors"):
        assert (tmp_path / name).read_bytes() == (unbroken / name).read_bytes()


def test_property_another_seed_gives_other_weights(recipe, spec, unbroken, tmp_path):
    other = recipe.model_copy(update={"seed": 1})
    train(other, tmp_path, source=BlobSource(spec), workers=0)
    ours, theirs = (load_file(p / "best.safetensors") for p in (tmp_path, unbroken))
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from blob_source import BlobSource
from hepar.recipe import load_recipe
from hepar.systems.table import build
from hepar.train import checkpoint
from hepar.train.loop import train
recipe = load_recipe(Path(sys.argv[1]), sys.argv[3:])
write, calls = checkpoint.save_file, []
def dies_writing(tensors, path, metadata):
    calls.append(path)
    write(tensors, path, metadata=metadata)
    if len(calls) == 2:
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
if KILL_AT is None:
    checkpoint.save_file = dies_writing
source = BlobSource(build(recipe.system).input_spec, kill_at=KILL_AT)
train(recipe, Path(sys.argv[2]), source=source, workers=0)
"""


@pytest.mark.parametrize("kill_at", [7, None], ids=["between checkpoints", "while writing one"])
def test_regression_killed_run_resumes_to_the_same_bytes(recipe, spec, unbroken, tmp_path, kill_at):
    script = KILLED.replace("KILL_AT", repr(kill_at))
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", script, str(TOY), str(tmp_path), *QUICK],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert read_tensors(tmp_path / "last.safetensors")[1]["step"] == 2
    train(recipe, tmp_path, source=BlobSource(spec), workers=1)
    for name in ("last.safetensors", "best.safetensors"):
        assert (tmp_path / name).read_bytes() == (unbroken / name).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in unbroken.iterdir())
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == [recipe.schedule.steps]


def test_property_a_bad_batch_is_skipped_and_leaves_no_trace(recipe, spec, tmp_path):
    result = train(recipe, tmp_path, source=BlobSource(spec, bad=frozenset({2, 6})), workers=0)
    assert result.skipped_steps == 2
    tensors, header = read_tensors(tmp_path / "last.safetensors")
    assert header["streak"] == 0
    assert all(bool(torch.isfinite(t).all()) for t in tensors.values() if t.is_floating_point())


def test_property_bad_batches_to_the_end_stop_the_run(recipe, spec, tmp_path):
    longer = recipe.model_copy(update={"schedule": recipe.schedule.model_copy(update={"steps": 9})})
    source = BlobSource(spec, bad=frozenset(range(6, 18)))
    with pytest.raises(UsageError) as caught:
        train(longer, tmp_path, source=source, workers=1)
    assert caught.value.code == "E_NAN_LOSS"
    tensors, header = read_tensors(tmp_path / "last.safetensors")
    assert (header["step"], header["skipped"]) == (6, 3)
    assert all(bool(torch.isfinite(t).all()) for t in tensors.values() if t.is_floating_point())


def test_property_folder_of_another_recipe_is_refused(recipe, spec, unbroken):
    other = recipe.model_copy(update={"seed": 5})
    before = (unbroken / "last.safetensors").read_bytes()
    with pytest.raises(UsageError) as caught:
        train(other, unbroken, source=BlobSource(spec))
    assert caught.value.code == "E_CONFIG_CHANGED"
    assert (unbroken / "last.safetensors").read_bytes() == before


def test_property_damaged_checkpoint_is_a_typed_error(recipe, spec, unbroken, tmp_path):
    whole = (unbroken / "last.safetensors").read_bytes()
    (tmp_path / "last.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelIntegrityError) as caught:
        train(recipe, tmp_path, source=BlobSource(spec))
    assert caught.value.code == "E_CKPT_CORRUPT"


def test_property_fp16_on_cpu_is_refused(recipe, spec, tmp_path):
    schedule = recipe.schedule.model_copy(update={"precision": "fp16"})
    with pytest.raises(HeparError, match="CUDA"):
        train(recipe.model_copy(update={"schedule": schedule}), tmp_path, source=BlobSource(spec))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RAdam]
)
def test_property_optimizer_state_survives_a_file(optimizer, tmp_path):
    def make():
        torch.manual_seed(0)
        layer = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        options = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
        return layer, optimizer(layer.parameters(), lr=0.1, **options)

    def go(layer, opt, seeds):
        for seed in seeds:
            torch.manual_seed(seed)
            opt.zero_grad()
            layer(torch.randn(2, 3, 8, 8)).square().sum().backward()
            opt.step()
        return layer.weight.detach().clone()

    layer, opt = make()
    go(layer, opt, [1, 2])
    tensors, scalars = pack_optimizer(opt)
    write_tensors(tmp_path / "o.safetensors", tensors, {"scalars": scalars})
    weights = {name: value.clone() for name, value in layer.state_dict().items()}
    expected = go(layer, opt, [3, 4])
    fresh, fresh_opt = make()
    fresh.load_state_dict(weights)
    stored, header = read_tensors(tmp_path / "o.safetensors")
    unpack_optimizer(fresh_opt, stored, header["scalars"])
    assert torch.equal(go(fresh, fresh_opt, [3, 4]), expected)


def test_closed_form_learning_rates():
    def rates(**options):
        schedule = Schedule(lr=1.0, steps=10, **options)
        return [learning_rate(schedule, step) for step in range(10)]

    assert rates(lr_schedule="constant") == [1.0] * 10
    stepped = rates(lr_schedule="step", lr_every=4)
    np.testing.assert_allclose(stepped, [1] * 4 + [0.1] * 4 + [0.01] * 2)
    poly = rates(lr_schedule="poly", lr_power=0.9)
    np.testing.assert_allclose(poly, [(1 - s / 10) ** 0.9 for s in range(10)])
    cosine = rates(lr_schedule="cosine", warmup=2)
    np.testing.assert_allclose(cosine[:3], [1 / 3, 2 / 3, 1.0])
    np.testing.assert_allclose(cosine[6], 0.5)


def test_property_positions_visit_every_sample_once_an_epoch():
    seen = [at for step in range(6) for at in positions(4, 2, step)]
    assert seen == [(epoch, index) for epoch in range(3) for index in range(4)]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_property_batches_come_in_order(spec, workers):
    source = BlobSource(spec)
    stream = batches(
        source, batch_size=2, start=3, stop=9, finish=lambda b, _v, _w: b, workers=workers
    )
    for step, batch in zip(range(3, 9), stream, strict=True):
        for row, at in enumerate(positions(6, 2, step)):
            np.testing.assert_array_equal(batch.image[row].numpy(), source.sample(*at).image)


def test_property_a_failing_source_ends_the_stream(spec):
    class Broken(BlobSource):
        def sample(self, epoch, index):
            raise ValueError("no such case")

    with pytest.raises(ResourceExhausted, match="no such case"):
        list(
            batches(
                Broken(spec), batch_size=1, start=0, stop=4, finish=lambda b, _v, _w: b, workers=2
            )
        )


def test_closed_form_a_run_can_start_from_the_weights_of_another(recipe, unbroken):
    weights = unbroken / "best.safetensors"
    schedule = recipe.schedule.model_copy(update={"initial_weights": weights})
    model = starting_model(recipe.model_copy(update={"schedule": schedule}))
    expected, _ = read_tensors(weights)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
