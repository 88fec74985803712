"""Memory and time of SAM's streamed softmax over phases against the plain stacked one.

    .venv/bin/python benchmarks/phase_streaming.py -o benchmarks/phase_streaming.json
    python benchmarks/phase_streaming.py --device cuda -o OUT/phase_streaming.json

Stacked: every response map, softmax over the stack, products, sum, differentiated by autograd as it
stands. Streamed: what `SpatialAggregation` does. Same weights, same input, 512 x 512, batch 1, the
presets `paper` and `lite`, two and four phases; `sam` is the first aggregation alone (A2 of the
paper: 256 channels of 128 x 128 a phase), `network` all of it. Each figure comes from a process of
its own. Peak: the largest resident memory while the steps run, less that before the first of them
(the weights), on CUDA the allocator's. Time: median of the passes after a first one. On CUDA also
the share of the rate of a bfloat16 matrix product that was measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hepar.systems.base import Batch
from hepar.systems.presence import PresentPairs
from hepar.systems.sam_urim.settings import PHASES, SamUrimSettings
from hepar.systems.sam_urim.spatial_aggregation import (
    SpatialAggregation,
    descriptors,
    softmax_over_phases,
)
from hepar.systems.sam_urim.system import SamUrim

SIDE = 512


def stacked(self: SpatialAggregation, features: Tensor, pairs: PresentPairs) -> Tensor:
    """Eq. 1 as it reads."""
    d = descriptors(features, pairs)
    maps = [m(pairs.of_phase(d, p)) for p, m in enumerate(self.mappings)]
    weights = softmax_over_phases(maps)
    products = [w * f for w, f in zip(weights, pairs.split(features), strict=True)]
    return sum(products[1:], start=products[0]).to(features.dtype)


def settings(preset: str, phases: int) -> SamUrimSettings:
    """A preset for so many phases at the paper's size."""
    chosen = ("ART", "PV") if phases == 2 else PHASES
    tree = SamUrimSettings.preset(preset).model_dump()
    return SamUrimSettings.model_validate(tree | {"phases": chosen, "patch": (SIDE, SIDE)})


class Resident:
    """Peak resident memory of this process since `reset`, in bytes (Linux)."""

    def reset(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self.before = self._field("VmRSS")

    def peak(self) -> int:
        return self._field("VmHWM") - self.before

    @staticmethod
    def _field(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


class Allocated(Resident):
    """The same of the CUDA allocator."""

    def reset(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self.before = torch.cuda.memory_allocated()

    def peak(self) -> int:
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - self.before


def measure(
    case: str, preset: str, phases: int, way: str, mode: str, device: str, repeats: int
) -> dict[str, Any]:
    """One figure: memory and time of a training step or of a slice."""
    torch.manual_seed(0)
    if way == "stacked":
        SpatialAggregation.forward = stacked  # type: ignore[method-assign]
    chosen = settings(preset, phases)
    network: Any = SamUrim(chosen).to(device, memory_format=torch.channels_last)
    present = torch.ones(1, phases, dtype=torch.bool, device=device)
    image = torch.rand(1, phases, 3, SIDE, SIDE, device=device)
    label = torch.randint(0, 2, (1, SIDE, SIDE), device=device)
    batch = Batch(image, present, label, label.bool())
    pairs = PresentPairs(present)
    network.train(mode == "step")
    sam = network.sams["2"]
    side = SIDE // chosen.decision_stride
    channels = sam.mappings[0].fuse.out_channels
    maps = torch.rand(phases, channels, side, side, device=device)
    maps = maps.contiguous(memory_format=torch.channels_last)

    def once() -> None:
        low = torch.autocast(device, torch.bfloat16, enabled=device == "cuda")
        with torch.set_grad_enabled(mode == "step"), low:
            if case == "sam":
                loss = sam(maps.detach().requires_grad_(mode == "step"), pairs).float().sum()
            else:
                outputs = network(batch.image, present)
                loss = network.loss(outputs, network.targets(batch))
        if mode == "step":
            loss.backward()
            network.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()

    memory = Allocated() if device == "cuda" else Resident()
    seconds: list[float] = []
    memory.reset()
    once()
    for _ in range(repeats):
        begun = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - begun)
    peak = memory.peak()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        sam(maps, pairs) if case == "sam" else network(batch.image, present)
    # The backward pass of a convolution costs two forward ones; what is repeated is not counted.
    gflop = counter.get_total_flops() / 1e9 * (3 if mode == "step" else 1)
    return {
        "peak_mib": round(peak / 2**20, 1),
        "seconds": round(median(seconds), 4),
        "gflop": round(gflop, 1),
    }


def matrix_tflops() -> float:
    """Rate of a bfloat16 matrix product on this GPU."""
    a = torch.rand(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for _ in range(3):
        a @ a
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(20):
        a @ a
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (time.perf_counter() - begun) / 1e12


def compared(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every combination, either way."""
    rows = []
    for case in options.cases.split(","):
        for preset in ("paper", "lite"):
            for phases in (2, 4):
                for mode in ("step", "slice"):
                    found = {}
                    for way in ("stacked", "streamed"):
                        words = [case, preset, str(phases), way, mode]
                        found[way] = child(words, options)
                    row = {"case": case, "preset": preset, "phases": phases, "mode": mode, **found}
                    for what in ("peak_mib", "seconds"):
                        plain, ours = found["stacked"][what], found["streamed"][what]
                        row[f"{what}_ratio"] = round(ours / max(plain, 1e-9), 3)
                    rows.append(row)
                    print(json.dumps(row), flush=True)
    return rows


def child(words: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """One measurement in a process of its own."""
    command = [sys.executable, __file__, "--device", options.device, "--one", *words]
    command += ["--repeats", str(options.repeats)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cases", default="sam,network")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--one", nargs=5)
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args()
    if options.one:
        case, preset, phases, way, mode = options.one
        document = measure(case, preset, int(phases), way, mode, options.device, options.repeats)
        print(json.dumps(document))
        return
    cuda = options.device == "cuda"
    document = {
        "command": "benchmarks/phase_streaming.py " + " ".join(sys.argv[1:]),
        "machine": torch.cuda.get_device_name()
        if cuda
        else f"{os.cpu_count()} cores, {platform.machine()}",
        "torch": torch.__version__,
        "precision": "bf16 autocast" if cuda else "fp32",
        "rows": compared(options),
    }
    if cuda:
        document["bf16_matrix_tflops"] = round(matrix_tflops(), 1)
        for row in document["rows"]:
            for way in ("stacked", "streamed"):
                rate = row[way]["gflop"] / row[way]["seconds"] / 1e3
                row[way]["share_of_matrix_rate"] = round(rate / document["bf16_matrix_tflops"], 4)
    text = json.dumps(document, indent=1) + "\n"
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
