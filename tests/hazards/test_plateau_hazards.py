"""Runs that end on a plateau, cut short anywhere: the table is `docs/hazards.md`."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import SPEC, tiny_recipe, tiny_train, use_tiny_net

from blob_source import BlobSource
from hepar.errors import Interrupted
from hepar.train import checkpoint
from hepar.train.checkpoint import read_tensors, write_tensors
from hepar.train.plateau import Plateau
from hepar.train.recovery import LAST

KEPT = (LAST, "best.safetensors")
# Validations at steps of their own, between checkpoints; two samples a step.
PLATEAU = (
    *("schedule.lr_schedule=plateau", "schedule.validate_every=2", "schedule.steps=60"),
    *("schedule.plateau_patience=2", "schedule.plateau_min_delta=0.03", "schedule.precision=fp32"),
    *("schedule.lr=0.05", "schedule.ema_decay=0.5"),
)


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
def whole(one_thread, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_net(patch.setattr)
        result = tiny_train(out, *PLATEAU)
    assert result.steps == read_tensors(out / LAST)[1]["step"]
    return out


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def validations(out: Path) -> list[dict]:
    return [line for line in lines(out) if "validation" in line]


def reduced_at(out: Path) -> list[int]:
    """Steps whose validation reduced the learning rate, as the steps after them show."""
    log = lines(out)
    return [a["step"] for a, b in itertools.pairwise(log) if b["lr"] < 0.5 * a["lr"]]


class Killed(BaseException):
    """As sudden as SIGKILL for everything that catches `Exception`."""


class Cut(BlobSource):
    """Dies, or is told to stop, at one sample."""

    def __init__(self, at: int, *, dies: bool) -> None:
        super().__init__(SPEC)
        self.at, self.dies = at, dies

    def sample(self, epoch, index):
        if epoch * len(self) + index == self.at:
            if self.dies:
                raise Killed
            signal.raise_signal(signal.SIGTERM)
        return super().sample(epoch, index)


def test_oracle_TR02_a_run_follows_its_losses_to_the_end_of_the_last_plateau(whole):
    schedule = tiny_recipe(*PLATEAU).schedule
    log, state = validations(whole), Plateau()
    for number, line in enumerate(log, start=1):
        assert line["step"] == 2 * number
        assert not state.finished
        # The newest validation has its say in the steps after it.
        np.testing.assert_allclose(line["lr"], 0.05 * 0.1**state.reductions)
        state = state.after(line["validation"]["loss"], schedule)
    assert state.finished
    header = read_tensors(whole / LAST)[1]
    assert Plateau(**header["plateau"]) == state
    assert header["step"] == header["scored"] == log[-1]["step"] < schedule.steps
    assert len(reduced_at(whole)) == 2
    assert len(log) > 3 * schedule.plateau_patience  # some of them improved
    best = read_tensors(whole / "best.safetensors")[1]
    assert best["step"] == header["best_step"]
    assert best["score"]["dice"] == max(line["validation"]["dice"] for line in log)


def test_property_TR02_a_run_that_has_ended_does_nothing_more(whole, tmp_path):
    out = Path(shutil.copytree(whole, tmp_path / "ended"))
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    result = tiny_train(out, *PLATEAU, source=Cut(0, dies=True))
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert result.steps == lines(out)[-1]["step"]
    # All the time that the run took, though this call took none.
    np.testing.assert_allclose(result.seconds, sum(line["seconds"] for line in lines(out)))
    assert result.seconds > 0


def assert_same(out: Path, whole: Path) -> None:
    for name in KEPT:
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    scores = [[line["validation"] for line in validations(folder)] for folder in (out, whole)]
    assert scores[0] == scores[1]
    assert reduced_at(out) == reduced_at(whole)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.full)])
@pytest.mark.parametrize("dies", [True, False], ids=["killed", "stopped"])
@pytest.mark.parametrize("place", ["before", "at", "after", "between", "last", "end"])
def test_property_TR02_a_run_cut_short_ends_on_the_same_plateau(
    place, dies, workers, whole, tmp_path
):
    """At the batches around both reductions, between them, and up to the last batch of all."""
    first, second = reduced_at(whole)
    end = lines(whole)[-1]["step"]
    step = {
        "before": first - 1,
        "at": first,
        "after": first + 1,
        "between": (first + second) // 2,
        "last": second + 1,
        "end": end - 1,
    }[place]
    with pytest.raises(Killed if dies else Interrupted):
        tiny_train(tmp_path, *PLATEAU, source=Cut(2 * step, dies=dies), workers=workers)
    tiny_train(tmp_path, *PLATEAU, workers=2 - workers)
    assert_same(tmp_path, whole)


@pytest.mark.parametrize("back", [1, 2])
def test_property_TR02_a_kill_while_the_end_is_written_is_made_up_for(
    back, whole, tmp_path, monkeypatch
):
    """In the last file that the run writes, or the one before: after the plateau was found."""
    save, names = checkpoint.save_file, []

    def counted(tensors, path, metadata):
        names.append(path)
        save(tensors, path, metadata=metadata)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", counted)
        tiny_train(tmp_path / "counted", *PLATEAU)
    fatal = len(names) - back + 1
    names.clear()

    def dies(tensors, path, metadata):
        counted(tensors, path, metadata)
        if len(names) == fatal:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", dies)
        with pytest.raises(Killed):
            tiny_train(tmp_path / "cut", *PLATEAU)
    assert not read_tensors(tmp_path / "cut" / LAST)[1]["plateau"]["finished"]
    tiny_train(tmp_path / "cut", *PLATEAU)
    assert_same(tmp_path / "cut", whole)


def test_regression_TR02_checkpoints_from_before_there_were_plateaus_go_on(tmp_path):
    tiny_train(tmp_path / "whole")
    with pytest.raises(Killed):
        tiny_train(tmp_path / "old", source=Cut(31, dies=True))
    for path in (tmp_path / "old").glob("*.safetensors"):
        tensors, header = read_tensors(path)
        header.pop("plateau", None)
        write_tensors(path, tensors, header)
    tiny_train(tmp_path / "old")
    for name in KEPT:
        ours, theirs = (tmp_path / folder / name for folder in ("old", "whole"))
        assert ours.read_bytes() == theirs.read_bytes()


def test_property_TR02_the_time_of_a_run_is_that_of_all_its_calls(tmp_path):
    with pytest.raises(Interrupted):
        tiny_train(tmp_path, source=Cut(43, dies=False))
    before = sum(line["seconds"] for line in lines(tmp_path))
    result = tiny_train(tmp_path)
    assert len({line["step"] for line in lines(tmp_path)}) == len(lines(tmp_path))
    assert 0 < before < result.seconds
    np.testing.assert_allclose(result.seconds, sum(line["seconds"] for line in lines(tmp_path)))
    assert tiny_train(tmp_path).seconds == result.seconds
