"""Faults while training: a test a case of the hazard catalogue; the table is `docs/hazards.md`."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from tiny_training import ROOT, SPEC, tiny_recipe, tiny_train, use_tiny_net

from blob_source import BlobSource
from hepar.data.sampling import batches
from hepar.errors import HeparError, ModelIntegrityError, ResourceExhausted, UsageError
from hepar.train import checkpoint, loop
from hepar.train.checkpoint import read_tensors
from hepar.train.recovery import LAST, PREVIOUS
from hepar.train.same_run import changes

KEPT = (LAST, "best.safetensors")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Sums over more threads round differently: before any run, the unbroken one too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    use_tiny_net(monkeypatch.setattr)


@pytest.fixture(scope="module")
def unbroken(one_thread, tmp_path_factory):
    """What a run leaves that nothing happens to."""
    out = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_net(patch.setattr)
        tiny_train(out)
    return {name: (out / name).read_bytes() for name in KEPT}


def same(out: Path, unbroken: dict[str, bytes]) -> bool:
    return all((out / name).read_bytes() == content for name, content in unbroken.items())


class Killed(BaseException):
    """As sudden as SIGKILL for everything that catches `Exception`."""


class Fatal(BlobSource):
    """Dies at one sample, or in one validation."""

    def __init__(self, *, sample: int | None = None, validation: int | None = None) -> None:
        super().__init__(SPEC)
        self.fatal, self.fatal_validation, self.validations = sample, validation, 0

    def sample(self, epoch, index):
        if epoch * len(self) + index == self.fatal:
            raise Killed
        return super().sample(epoch, index)

    def validation(self):
        self.validations += 1
        if self.validations == self.fatal_validation:
            raise Killed
        yield from super().validation()


def dies_writing(monkeypatch, number: int) -> None:
    """The process dies in its n-th write of tensors, with half a file written."""
    write, calls = checkpoint.save_file, []

    def save(tensors, path, metadata):
        calls.append(path)
        write(tensors, path, metadata=metadata)
        if len(calls) == number:
            os.truncate(path, path.stat().st_size // 2)
            raise Killed

    monkeypatch.setattr(checkpoint, "save_file", save)


KILLS = [
    *(("sample", number) for number in range(1, 48, 4)),
    *(("validation", number) for number in (1, 2, 3)),
    *(("write", number) for number in range(1, 10, 2)),
]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("point", "number"), KILLS)
def test_property_TR02_a_killed_run_resumes_to_the_same_bytes(
    workers, point, number, unbroken, tmp_path, monkeypatch
):
    assert len(KILLS) >= 20
    fatal = {point: number} if point != "write" else {}
    with monkeypatch.context() as patch:
        if point == "write":
            dies_writing(patch, number)
        with pytest.raises(Killed):
            tiny_train(tmp_path, source=Fatal(**fatal), workers=workers)
    tiny_train(tmp_path, workers=2 - workers)
    assert same(tmp_path, unbroken)


SCRIPT = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
from blob_source import BlobSource
from tiny_training import SPEC, tiny_train, use_tiny_net
from hepar.errors import HeparError
import time
class Slow(BlobSource):
    def sample(self, epoch, index):
        if epoch * len(self) + index == 11:
            print("ready", flush=True)
        time.sleep(DELAY * (epoch * len(self) + index > 11))
        return super().sample(epoch, index)
use_tiny_net()
source = Slow(SPEC, kill_at=KILL_AT)
try:
    tiny_train(Path(sys.argv[1]), source=source, workers=WORKERS)
except HeparError as error:
    sys.stderr.write(str(error))
    raise SystemExit(error.exit_code) from None
"""


def start(out: Path, *, workers: int, kill_at: int | None, delay: float) -> subprocess.Popen[str]:
    script = SCRIPT.replace("KILL_AT", repr(kill_at)).replace("WORKERS", str(workers))
    folders = [ROOT / "src", ROOT / "tests", ROOT / "tests" / "hazards"]
    return subprocess.Popen(
        [sys.executable, "-c", script.replace("DELAY", str(delay)), str(out)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_property_TR02_sigkill_and_resume_give_the_same_bytes(workers, unbroken, tmp_path):
    process = start(tmp_path, workers=workers, kill_at=31, delay=0.0)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, errors
    assert (tmp_path / LAST).exists()
    tiny_train(tmp_path)
    assert same(tmp_path, unbroken)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".hepar-tmp")]


def test_property_TR03_single_bad_batches_are_skipped(tmp_path):
    result = tiny_train(tmp_path, source=BlobSource(SPEC, bad=frozenset({9, 10, 40})))
    assert (result.skipped_steps, result.steps) == (3, 24)
    assert read_tensors(tmp_path / LAST)[1]["rollbacks"] == 0
    assert_finite(tmp_path)


def assert_finite(out: Path) -> None:
    for path in out.glob("*.safetensors"):
        for name, value in read_tensors(path)[0].items():
            assert not value.is_floating_point() or torch.isfinite(value).all(), (path.name, name)


@pytest.mark.parametrize("workers", [0, 2])
def test_property_TR03_a_bad_stretch_rolls_back_once_and_goes_on(workers, tmp_path, caplog):
    # Steps 14, 15 and 16: the weights go back to the checkpoint of step 12.
    source = BlobSource(SPEC, bad=frozenset({26, 28, 30}))
    result = tiny_train(tmp_path, source=source, workers=workers)
    assert (result.steps, result.skipped_steps) == (24, 3)
    assert "W_ROLLED_BACK" in caplog.text
    assert "the weights of step 12" in caplog.text
    assert read_tensors(tmp_path / LAST)[1]["rollbacks"] == 1
    assert_finite(tmp_path)


def test_property_TR03_weights_after_going_back_are_those_of_the_checkpoint(tmp_path):
    """From step 16 on, a run that goes back and one that starts there are the same run."""
    bad = frozenset({26, 28, 30})
    tiny_train(tmp_path / "back", source=BlobSource(SPEC, bad=bad))

    class Stops(BlobSource):
        def sample(self, epoch, index):
            if epoch * len(self) + index == 32:
                raise Killed
            return super().sample(epoch, index)

    with pytest.raises(Killed):
        tiny_train(tmp_path / "killed", source=Stops(SPEC, bad=bad))
    assert read_tensors(tmp_path / "killed" / LAST)[1]["step"] == 12
    tiny_train(tmp_path / "killed", source=BlobSource(SPEC, bad=bad))
    for name in KEPT:
        ours, theirs = (tmp_path / f / name for f in ("back", "killed"))
        assert ours.read_bytes() == theirs.read_bytes()


def test_property_TR03_a_second_bad_stretch_stops_with_good_checkpoints(tmp_path):
    source = BlobSource(SPEC, bad=frozenset({14, 16, 18, 34, 36, 38}))
    with pytest.raises(UsageError) as caught:
        tiny_train(tmp_path, source=source)
    assert caught.value.code == "E_NAN_LOSS"
    assert read_tensors(tmp_path / LAST)[1]["rollbacks"] == 1
    assert_finite(tmp_path)
    # The same data lead to the same end, and nothing good is lost on the way.
    before = (tmp_path / LAST).read_bytes()
    with pytest.raises(UsageError, match="not finite"):
        tiny_train(tmp_path, source=source)
    assert (tmp_path / LAST).read_bytes() == before


def test_property_TR03_without_a_checkpoint_there_is_nothing_to_go_back_to(tmp_path):
    source = BlobSource(SPEC, bad=frozenset({0, 2, 4}))
    with pytest.raises(UsageError) as caught:
        tiny_train(tmp_path, source=source)
    assert caught.value.code == "E_NAN_LOSS"
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("every", [1, 8])
def test_property_TR03_weights_that_are_not_finite_are_never_the_best(every, tmp_path, monkeypatch):
    """Finite losses and gradients, but an update that overflows just before a validation."""
    descend = loop._Run.descend

    def overflows(self, loss, again, before):
        finite = descend(self, loss, again, before)
        if self.state.step == 16:
            with torch.no_grad():
                self.state.model.last.weight.fill_(float("inf"))
        return finite

    monkeypatch.setattr(loop._Run, "descend", overflows)
    result = tiny_train(tmp_path, f"schedule.validate_every={every}")
    assert result.steps == 24
    assert read_tensors(tmp_path / LAST)[1]["rollbacks"] == 1
    assert_finite(tmp_path)


def test_property_TR06_a_sample_that_fails_names_its_case(tmp_path):
    class Broken(BlobSource):
        def sample(self, epoch, index):
            if (epoch, index) == (1, 3):
                raise ValueError("damaged")
            return super().sample(epoch, index)

        def case_of(self, epoch, index):
            return f"patient-{index}"

        def fingerprint(self):
            return "broken"

    for workers in (0, 2):
        out = tmp_path / str(workers)
        with pytest.raises(ResourceExhausted) as caught:
            tiny_train(out, source=Broken(SPEC), workers=workers)
        assert caught.value.code == "E_WORKER_DIED"
        assert "patient-3" in caught.value.message
        assert "damaged" in caught.value.message
        assert read_tensors(out / LAST)[1]["step"] == 3  # the failing sample is of step 5


def test_property_TR06_what_passes_is_tried_again(unbroken, tmp_path, caplog):
    failures = [0]

    class Flaky(BlobSource):
        def sample(self, epoch, index):
            if (epoch, index) == (1, 3) and failures[0] < 2:
                failures[0] += 1
                raise OSError("the network drive is away")
            return super().sample(epoch, index)

    tiny_train(tmp_path, source=Flaky(SPEC), workers=2)
    assert failures == [2]
    assert "tried again" in caplog.text
    weights = read_tensors(tmp_path / "best.safetensors")[0]
    (tmp_path / "expected").write_bytes(unbroken["best.safetensors"])
    expected = read_tensors(tmp_path / "expected")[0]
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())


def test_property_TR08_a_damaged_last_checkpoint_gives_way_to_the_one_before(
    unbroken, tmp_path, caplog
):
    with pytest.raises(Killed):
        tiny_train(tmp_path, source=Fatal(sample=31))
    steps = [read_tensors(tmp_path / name)[1]["step"] for name in (LAST, PREVIOUS)]
    assert steps == [15, 12]
    data = bytearray((tmp_path / LAST).read_bytes())
    data[-5] ^= 1  # inside the values of a tensor, which safetensors does not look at
    (tmp_path / LAST).write_bytes(bytes(data))
    tiny_train(tmp_path)
    assert "W_CKPT_PREVIOUS" in caplog.text
    assert same(tmp_path, unbroken)
    assert {p.name for p in tmp_path.glob("*.safetensors")} == {*KEPT, PREVIOUS}


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "missing"])
def test_property_TR08_two_damaged_checkpoints_are_a_typed_error(damage, tmp_path):
    tiny_train(tmp_path)
    for name in (LAST, PREVIOUS):
        data = (tmp_path / name).read_bytes()
        if damage == "flip":
            at = len(data) - 9
            data = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
        (tmp_path / name).write_bytes(
            {"cut": data[: len(data) // 2], "empty": b""}.get(damage, data)
        )
    if damage == "missing":
        (tmp_path / PREVIOUS).unlink()
        (tmp_path / LAST).write_bytes(b"x" * 100)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ModelIntegrityError) as caught:
        tiny_train(tmp_path)
    assert (caught.value.code, caught.value.exit_code) == ("E_CKPT_CORRUPT", 13)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    if damage != "missing":
        assert PREVIOUS in caught.value.message


def test_property_TR08_checkpoints_without_a_digest_are_still_read(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 1)
        checkpoint.write_tensors(tmp_path / "old", {"a": torch.ones(2)}, {"step": 3})
    tensors, header = read_tensors(tmp_path / "old")
    assert (tensors["a"].sum(), header["step"]) == (2, 3)


@pytest.mark.parametrize(
    "change", ["schedule.lr=0.02", "seed=1", "data.paints=2", "system.decoder_width=16"]
)
def test_property_TR09_another_recipe_is_refused_and_named(change, tmp_path):
    tiny_train(tmp_path)
    before = (tmp_path / LAST).read_bytes()
    with pytest.raises(UsageError) as caught:
        tiny_train(tmp_path, change)
    assert caught.value.code == "E_CONFIG_CHANGED"
    assert change.split("=")[0] in caught.value.message
    assert (tmp_path / LAST).read_bytes() == before


def test_property_TR09_other_data_are_refused_unless_started_over(tmp_path):
    with pytest.raises(Killed):
        tiny_train(tmp_path, source=Fatal(sample=31))
    fewer = BlobSource(SPEC, length=5)
    log = (tmp_path / "log.jsonl").read_bytes()
    with pytest.raises(UsageError) as caught:
        tiny_train(tmp_path, source=fewer)
    assert caught.value.code == "E_CONFIG_CHANGED"
    assert read_tensors(tmp_path / LAST)[1]["step"] == 15
    assert (tmp_path / "log.jsonl").read_bytes() == log
    assert tiny_train(tmp_path, source=fewer, resume=False).steps == 24
    tiny_train(tmp_path / "fresh", source=fewer)
    assert (tmp_path / LAST).read_bytes() == (tmp_path / "fresh" / LAST).read_bytes()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_property_TR10_a_signal_ends_the_run_and_loses_nothing(
    signum, code, workers, unbroken, tmp_path
):
    process = start(tmp_path, workers=workers, kill_at=None, delay=1.0)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    sent = time.monotonic()
    process.send_signal(signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert time.monotonic() - sent < 30
    assert "E_INTERRUPTED" in errors
    assert 0 < read_tensors(tmp_path / LAST)[1]["step"] < 24
    tiny_train(tmp_path)
    assert same(tmp_path, unbroken)


class Signals(BlobSource):
    """Sends a signal to its own process at one sample, or in one validation."""

    def __init__(self, *, sample=None, validation=None, bad=frozenset()) -> None:
        super().__init__(SPEC, bad=bad)
        self.at_sample, self.at_validation, self.validations = sample, validation, 0

    def sample(self, epoch, index):
        if epoch * len(self) + index == self.at_sample:
            signal.raise_signal(signal.SIGTERM)
        return super().sample(epoch, index)

    def validation(self):
        self.validations += 1
        for case in (*super().validation(), *super().validation()):
            yield case
            if self.validations == self.at_validation:
                signal.raise_signal(signal.SIGTERM)


def test_property_TR10_a_cut_validation_is_made_up_for(tmp_path):
    """A signal between two cases of a validation, also of the last one."""
    tiny_train(tmp_path / "whole", source=Signals())
    for number in (1, 2, 3):
        out = tmp_path / str(number)
        with pytest.raises(HeparError) as caught:
            tiny_train(out, source=Signals(validation=number))
        assert (caught.value.code, caught.value.exit_code) == ("E_INTERRUPTED", 143)
        header = read_tensors(out / LAST)[1]
        assert (header["step"], header["scored"]) == (8 * number, 8 * (number - 1))
        tiny_train(out, source=Signals())
        for name in KEPT:
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        lines = [json.loads(x) for x in (out / "log.jsonl").read_text().splitlines()]
        assert [x["step"] for x in lines if "validation" in x] == [8, 16, 24]


def test_property_TR10_interrupted_runs_go_back_to_where_unbroken_ones_would(tmp_path):
    bad = frozenset({28, 30, 32})
    tiny_train(tmp_path / "whole", source=BlobSource(SPEC, bad=bad))
    for sample in (24, 26):  # after the regular checkpoint of step 12, twice in a row
        with pytest.raises(HeparError, match="SIGTERM"):
            tiny_train(tmp_path / "cut", source=Signals(sample=sample, bad=bad))
    tiny_train(tmp_path / "cut", source=BlobSource(SPEC, bad=bad))
    for name in KEPT:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_property_TR10_handlers_are_put_back(tmp_path):
    def mine(*_):
        raise AssertionError("not while training")

    before, interrupt = signal.signal(signal.SIGTERM, mine), signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(HeparError):
            tiny_train(tmp_path, source=Signals(sample=20))
        assert signal.getsignal(signal.SIGTERM) is mine
        tiny_train(tmp_path)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
    assert signal.getsignal(signal.SIGINT) is interrupt


def test_property_TR11_a_huge_worker_count_is_bounded(monkeypatch):
    names: set[str] = set()

    class Watched(BlobSource):
        def sample(self, epoch, index):
            names.add(threading.current_thread().name)
            return super().sample(epoch, index)

    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    stream = batches(
        Watched(SPEC), batch_size=1, start=0, stop=12, finish=lambda b, _v, _w: b, workers=10_000
    )
    assert len(list(stream)) == 12
    assert 1 <= len(names) <= 3


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_property_TR11_threads_that_cannot_start_are_done_without(
    allowed, unbroken, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    begin = threading.Thread.start

    def starts(thread):
        alive = sum(t.name.startswith("hepar-data") for t in threading.enumerate())
        if thread.name.startswith("hepar-data") and alive >= allowed:
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", starts)
    with caplog.at_level(logging.WARNING):
        tiny_train(tmp_path, workers=4)
    assert "W_FEWER_WORKERS" in caplog.text
    assert same(tmp_path, unbroken)


def test_closed_form_recipes_name_what_differs():
    before, after = tiny_recipe(), tiny_recipe("schedule.lr=0.5", "seed=7")
    assert changes(before, before) == []
    assert changes(before, after) == ["seed: 0 -> 7", "schedule.lr: 0.01 -> 0.5"]
    assert len(changes(before, after, most=1)) == 2
