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
TILING = Tiling(budget_bytes=60_000, runner_for=door.openvino_runner)


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


def test_oracle_pytorch(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("openvino", reason="the extra [fast] is not installed")
    system = Convolved()
    caplog.set_level("INFO")
    fast = predict(system, {"PV": HU}, (2.0, 1.0, 1.0), liver=LIVER, tiling=TILING)
    eager = predict(system, {"PV": HU}, (2.0, 1.0, 1.0), liver=LIVER)
    assert "OpenVINO runs" in caplog.text
    np.testing.assert_allclose(fast, eager, atol=1e-4)
    assert eager.std() > 0.01


@pytest.mark.full
def test_disagreement_falls_back_to_pytorch(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="the extra [fast] is not installed")
    monkeypatch.setattr(door, "TOLERANCE", -1.0)
    system = Convolved()
    fast = predict(system, {"PV": HU}, (2.0, 1.0, 1.0), liver=LIVER, tiling=TILING)
    eager = predict(system, {"PV": HU}, (2.0, 1.0, 1.0), liver=LIVER)
    assert "differs from PyTorch" in caplog.text
    np.testing.assert_allclose(fast, eager, atol=1e-6)


def test_without_openvino_pytorch_runs(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    found = predict(Convolved(), {"PV": HU}, (2.0, 1.0, 1.0), liver=LIVER, tiling=TILING)
    assert "not installed" in caplog.text
    assert found.shape == (2, *SHAPE)


def test_studies_that_lack_a_phase_stay_with_pytorch(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    system = Echo(spec_2d(stride=4))
    found = predict(system, {"PV": HU}, (2.0, 1.0, 1.0), liver=LIVER, tiling=TILING)
    np.testing.assert_allclose(found[1], np.clip(HU / 100, 0, 1), atol=1e-6)
    assert "OpenVINO" not in caplog.text


def test_telemetry_is_never_imported() -> None:
    pytest.importorskip("openvino", reason="the extra [fast] is not installed")
    code = (
        "import sys, torch; from hepar.infer.openvino import openvino_runner\n"
        "class S(torch.nn.Module):\n"
        "    def forward(self, i, p): return i\n"
        "    def decode(self, o): return o.flatten(1, 2)\n"
        "r = openvino_runner(S()); r(torch.zeros(1, 1, 1, 4, 4), torch.ones(1, 1, dtype=bool))\n"
        "assert 'openvino' in sys.modules\n"
        "bad = [n for n in sys.modules if n.startswith('openvino_telemetry') and sys.modules[n]]\n"
        "assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
