"""OpenVINO: the same numbers as PyTorch, silently replaced by it otherwise, and nothing sent."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from fake_systems import Echo, spec_2d
from hepar.infer import openvino as door
from hepar.infer.tiling import Tiling, predict

SHAPE = (5, 16, 16)
LIVER = np.ones(SHAPE, dtype=bool)
HU = np.random.default_rng(0).integers(-50, 150, SHAPE).astype(np.int16)


def fast_tiling(runner_for: door.OpenVino, told: list[str] | None = None) -> Tiling:
    told = [] if told is None else told
    return Tiling(budget_bytes=60_000, runner_for=runner_for, warn=told.append)


class Convolved(Echo):
    """A network with weights, on the phases that are present."""

    def __init__(self) -> None:
        super().__init__(spec_2d(stride=4, phases=("PV",)))
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(1, 8, 3, padding=1)

    def forward(self, image: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        return self.convolution(image[:, present[0]].mean((1, 2))[:, None]).mean(1)

    def decode(self, outputs: torch.Tensor) -> torch.Tensor:
        probability = outputs.sigmoid()
        return torch.stack([1 - probability, probability], dim=1)


def run(system: nn.Module, tiling: Tiling | None = None) -> np.ndarray:
    return predict(system, {"PV": HU}, (2.0, 1.0, 1.0), liver=LIVER, tiling=tiling)


@pytest.mark.parametrize(
    ("precision", "within"), [pytest.param("f32", 1e-4, marks=pytest.mark.full), ("bf16", 2e-2)]
)
def test_oracle_pytorch(precision, within, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="the extra [fast] is not installed")
    system, runner = Convolved(), door.OpenVino(precision)
    made, asked = [], []
    compiled, eager = door._compile, door._eager
    monkeypatch.setattr(door, "_compile", lambda *a: made.append(1) or compiled(*a))
    monkeypatch.setattr(door, "_eager", lambda *a: asked.append(1) or eager(*a))
    monkeypatch.setattr(door, "FEW_VOXELS", HU.size)  # the gate has its own tests
    first = run(system, fast_tiling(runner))
    assert (len(made), len(asked)) == (1, 1)  # the first piece is PyTorch's
    again = run(system, fast_tiling(runner))
    assert (len(made), len(asked)) == (1, 1)  # converted once for all studies
    plain = run(system)
    np.testing.assert_array_equal(first[:, 0], plain[:, 0])
    np.testing.assert_allclose(again, plain, atol=within)
    assert plain.std() > 0.01
    with torch.no_grad():
        system.convolution.weight.neg_()
    changed = run(system, fast_tiling(runner))
    assert (len(made), len(asked)) == (2, 2)  # other weights are another network
    np.testing.assert_allclose(changed, run(system), atol=within)


class Other(door.OpenVino):
    """Says what it is told instead of asking OpenVINO."""

    def __init__(self, change) -> None:
        super().__init__()
        self.change = change

    def _fast(self, system, image, present):
        verdicts = self._known.setdefault(system, door._Known(())).verdicts
        refused = verdicts.get(door._key(image, present)) is False
        return None if refused else self.change(door._eager(system, image, present))


def swapped(share: float):
    """The first voxels of the second class are given to the first."""

    def change(answer: torch.Tensor) -> torch.Tensor:
        answer = answer.clone()
        where = (answer[:, 1] > answer[:, 0]).nonzero()
        for b, y, x in where[: int(len(where) * share)]:
            answer[b, :, y, x] = torch.tensor([1.0, 0.0])
        return answer

    return change


@pytest.mark.parametrize(("share", "passes"), [(0.0, True), (0.008, True), (0.03, False)])
def test_property_labels_that_differ_are_refused_with_a_warning(share, passes) -> None:
    system, told = Convolved(), []
    plain = run(system)
    seen = int((plain[1] > plain[0]).sum())
    assert seen > 200
    runner = Other(swapped(share))
    run(system, fast_tiling(runner, told))
    found = run(system, fast_tiling(runner, told))
    assert [w.split(":")[0] for w in told] == ([] if passes else ["W_FAST_REFUSED"])
    if passes:
        assert (found[1] > found[0]).sum() == seen - int(share * seen) or share > 0
    else:
        assert "tumor" in told[0]
        np.testing.assert_array_equal(found, plain)


def test_closed_form_agreement() -> None:
    one, other = torch.zeros(1, 3, 30, 30), torch.zeros(1, 3, 30, 30)
    one[:, 0], other[:, 0] = 0.5, 0.5
    one[0, 1, :10], other[0, 1, 1:10] = 1.0, 1.0  # 300 and 270 voxels, 30 differ
    one[0, 2, 20, :3] = 1.0  # three voxels that the other does not see
    assert door.agreement(one, other) == {1: pytest.approx(1 - 30 / 570), 2: 1.0}
    nothing = torch.zeros_like(one)
    assert door.agreement(nothing, nothing) == {}


def test_property_nothing_is_judged_before_there_is_foreground() -> None:
    system, told = Convolved(), []
    with torch.no_grad():
        system.convolution.bias.fill_(-1000.0)
    runner = Other(lambda answer: answer)
    run(system, fast_tiling(runner, told))
    assert not runner._known[system].verdicts
    assert not told


def test_without_openvino_pytorch_runs(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    found = run(Convolved(), fast_tiling(door.OpenVino()))
    assert "not installed" in caplog.text
    assert found.shape == (2, *SHAPE)


class TwoPhases(Convolved):
    """The same convolution of each phase that is there, and their sum.

    Args:
        selects: absent phases become tensors without elements, instead of being left out.
    """

    def __init__(self, *, selects: bool) -> None:
        super().__init__()
        self.input_spec = spec_2d(stride=4)
        self.selects = selects

    def forward(self, image: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(image[:, 0, 0])
        for phase, there in enumerate(present[0].tolist()):
            held = image[:, phase].mean(1, keepdim=True)
            if self.selects:
                at = torch.arange(len(image) if there else 0)
                total = total.index_add(0, at, self.convolution(held[at]).mean(1))
            elif there:
                total = total + self.convolution(held).mean(1)
        return total


@pytest.mark.parametrize("selects", [False, True])
def test_property_each_set_of_phases_is_a_network_of_its_own(
    selects, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it makes tensors without elements, which OpenVINO does not survive."""
    pytest.importorskip("openvino", reason="the extra [fast] is not installed")
    caplog.set_level("INFO")
    monkeypatch.setattr(door, "FEW_VOXELS", HU.size)
    system, runner = TwoPhases(selects=selects), door.OpenVino()
    every = {phase: HU + 10 * n for n, phase in enumerate(system.input_spec.phases)}
    for held in (list(every)[:1], list(every)):
        study = {phase: every[phase] for phase in held}
        plain = predict(system, study, (2.0, 1.0, 1.0), liver=LIVER)
        for _ in range(2):
            tiling = fast_tiling(runner)
            found = predict(system, study, (2.0, 1.0, 1.0), liver=LIVER, tiling=tiling)
            np.testing.assert_allclose(found, plain, atol=1e-4)
        assert plain.std() > 0.01
    known = runner._known[system]
    assert len(known.compiled) == 2
    assert [made is None for made in known.compiled.values()] == [selects, False]
    assert ("cannot do without a phase" in caplog.text) == selects


def test_telemetry_is_never_imported() -> None:
    pytest.importorskip("openvino", reason="the extra [fast] is not installed")
    code = (
        "import sys, torch; from hepar.infer.openvino import OpenVino\n"
        "class S(torch.nn.Module):\n"
        "    def forward(self, i, p): return i\n"
        "    def decode(self, o): return o.flatten(1, 2)\n"
        "r = OpenVino()(S(), print); r(torch.zeros(1, 1, 1, 4, 4), torch.ones(1, 1, dtype=bool))\n"
        "assert 'openvino' in sys.modules\n"
        "bad = [n for n in sys.modules if n.startswith('openvino_telemetry') and sys.modules[n]]\n"
        "assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
