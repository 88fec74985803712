"""What E2Net costs: a case in two stages, and edge targets beside the step that waits for them.

    python benchmarks/e2net_cost.py [--device cuda] [--slices 129] [-o benchmarks/e2net_cost.json]

Random weights and a synthetic scan of 512 x 512 pixels whose liver takes two thirds of its slices:
the time does not depend on what is seen. A case is stage 1 on every whole slice, its largest
component (given here: random weights find none), and stage 2 through the box of each slice of
liver, as `hepar reproduce` runs them. The paper names 12 s a case of 3D-IRCADb on a V100. Targets
are compared with one call of scipy's exact distance transform a slice and class, on the same masks.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import numpy as np
import torch
from scipy import ndimage

from hepar.infer.tiling import Tiling, predict
from hepar.systems.base import Batch
from hepar.systems.e2net.edge_distance import edge
from hepar.systems.e2net.settings import E2netSettings
from hepar.systems.e2net.system import E2net

PAIRS = {
    "paper": ("stage1", "paper"),
    "shared": ("stage1", "shared"),
    "lite": ("lite_stage1", "lite"),
}
SPACING = (1.6, 0.7, 0.7)


def scan(slices: int) -> tuple[np.ndarray, np.ndarray]:
    """HU, and a liver of 250 pixels in the middle two thirds."""
    z, y, x = np.ogrid[:slices, :512, :512]
    inside = ((z - slices / 2) / (slices / 3)) ** 2
    liver = inside + ((y - 230) / 110) ** 2 + ((x - 190) / 125) ** 2 <= 1
    hu = np.random.default_rng(0).normal(-60, 30, (slices, 512, 512))
    hu[liver] += 160
    return hu.astype(np.int16), liver


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def case(pair: str, device: str, slices: int, bf16: bool) -> dict[str, Any]:
    """Seconds of both stages."""
    hu, liver = scan(slices)
    first, second = PAIRS[pair]
    one = E2net(E2netSettings.preset(first)).eval()
    two = E2net(E2netSettings.preset(second)).eval()
    tiling = Tiling(device=device, bf16=bf16, budget_bytes=(8 if device == "cuda" else 1) << 30)
    small = {"PV": hu[: min(2, slices)]}
    predict(one, small, SPACING, classes=("liver",), tiling=tiling)
    predict(two, small, SPACING, liver=np.ones_like(liver[:2]), classes=("tumor",), tiling=tiling)
    seconds = []
    for system, where in ((one, None), (two, liver)):
        begun = time.perf_counter()
        predict(system, {"PV": hu}, SPACING, liver=where, tiling=tiling)
        synchronize(device)
        seconds.append(time.perf_counter() - begun)
    parameters = sum(p.numel() for model in (one, two) for p in model.parameters())
    return {
        "pair": pair,
        "bf16": bf16,
        "slices": slices,
        "slices_of_liver": int(liver.any(axis=(1, 2)).sum()),
        "parameters": parameters,
        "stage1_s": round(seconds[0], 2),
        "stage2_s": round(seconds[1], 2),
        "case_s": round(sum(seconds), 2),
    }


def targets(device: str, preset: str, samples: int, steps: int) -> dict[str, Any]:
    """Seconds of a training step, of its targets, and of scipy's transforms of the same masks."""
    settings = E2netSettings.preset(preset)
    model = E2net(settings).to(device).train()
    size = settings.box_patch[0]
    y, x = np.ogrid[:size, :size]
    rng = np.random.default_rng(0)
    label = np.zeros((samples, size, size), np.int64)
    for one in label:
        a, b = rng.uniform(0.3, 0.42, 2) * size
        one[((y - size / 2) / a) ** 2 + ((x - size / 2) / b) ** 2 <= 1] = 1
        at = size / 2 + rng.uniform(-0.1, 0.1, 2) * size
        one[(y - at[0]) ** 2 + (x - at[1]) ** 2 <= (rng.uniform(0.02, 0.1) * size) ** 2] = 2
    batch = Batch(
        torch.rand(samples, 1, 1, size, size, device=device),
        torch.ones(samples, 1, dtype=torch.bool, device=device),
        torch.from_numpy(label).to(device),
        torch.from_numpy(label > 0).to(device),
    )
    times: dict[str, list[float]] = {"targets": [], "step": [], "scipy": []}
    for _ in range(steps + 1):
        synchronize(device)
        begun = time.perf_counter()
        found = model.targets(batch)
        synchronize(device)
        made = time.perf_counter()
        model.loss(model(batch.image, batch.present), found).backward()
        synchronize(device)
        times["targets"].append(made - begun)
        times["step"].append(time.perf_counter() - begun)
        masks = torch.stack([batch.label >= 1, batch.label == 2], 1)
        borders = edge(masks).cpu().numpy().reshape(-1, size, size)
        begun = time.perf_counter()
        for border in borders:
            ndimage.distance_transform_edt(~border)
        times["scipy"].append(time.perf_counter() - begun)
    best = {name: min(values[1:]) for name, values in times.items()}
    return {
        "preset": preset,
        "batch": samples,
        "pixels": size,
        **{f"{name}_s": round(value, 4) for name, value in best.items()},
        "targets_share_of_step": round(best["targets"] / best["step"], 4),
        "targets_to_scipy": round(best["targets"] / best["scipy"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--slices", type=int, default=129)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS))
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args()
    cuda = options.device == "cuda"
    document: dict[str, Any] = {
        "command": "python " + " ".join(sys.argv),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "paper_case_s_on_v100": 12,
        "cases": [],
        "targets": [],
    }
    for preset in ("paper", "toy"):
        samples = options.batch if preset == "paper" else 8
        document["targets"].append(targets(options.device, preset, samples, options.steps))
        print(json.dumps(document["targets"][-1]), flush=True)
    for pair in options.pairs:
        for bf16 in (False, True):
            document["cases"].append(case(pair, options.device, options.slices, bf16))
            print(json.dumps(document["cases"][-1]), flush=True)
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
