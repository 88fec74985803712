"""Surface metrics of a 512 x 512 x 200 case beside MedPy, surface-distance and MONAI, in one run.

    .venv/bin/python benchmarks/metrics.py -o benchmarks/metrics.json

ASD, RMSD and HD95 of a liver, and of two tumors, as label masks of the whole image: each tool from
the same boolean arrays to the three numbers (MedPy and MONAI have no RMSD: ASD and HD95 alone, so
they do less). Tools take turns, five rounds; the ratio is the median over rounds of the paired
ratios. Peak memory is measured in a process of its own for each tool, less what the process holds
with the masks loaded. The last row is ours on 512 x 512 x 1000, read from memory-mapped files.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SPACING_MM = (1.5, 0.75, 0.75)
SHAPE = (200, 512, 512)


def ball(shape: tuple[int, int, int], center: tuple[float, ...], radius_mm: float) -> np.ndarray:
    # Plane by plane, so that making the masks is not the peak of memory.
    found = np.zeros(shape, dtype=bool)
    y, x = np.ogrid[: shape[1], : shape[2]]
    plane = ((y - center[1]) * SPACING_MM[1]) ** 2 + ((x - center[2]) * SPACING_MM[2]) ** 2
    for z in range(shape[0]):
        found[z] = plane + ((z - center[0]) * SPACING_MM[0]) ** 2 <= radius_mm**2
    return found


def masks(structure: str) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and reference: a liver of 1.9 l, or two tumors of 14 and 4 ml."""
    if structure == "liver":
        a = ball(SHAPE, (100, 250, 200), 72) | ball(SHAPE, (110, 230, 290), 50)
        b = ball(SHAPE, (101, 252, 202), 71) | ball(SHAPE, (109, 233, 292), 52)
        return a, b
    a = ball(SHAPE, (100, 250, 160), 15) | ball(SHAPE, (110, 230, 300), 10)
    b = ball(SHAPE, (100, 252, 161), 14) | ball(SHAPE, (111, 232, 300), 11)
    return a, b


def hepar(a: np.ndarray, b: np.ndarray) -> None:
    from hepar.evaluate.surface import surface_distances

    found = surface_distances(a, b, SPACING_MM)
    assert found is not None
    _ = found.assd_mm, found.rmsd_mm, found.hd95_mm


def medpy(a: np.ndarray, b: np.ndarray) -> None:
    from medpy.metric.binary import assd, hd95

    assd(a, b, SPACING_MM, 2)
    hd95(a, b, SPACING_MM, 2)


def deepmind(a: np.ndarray, b: np.ndarray) -> None:
    import surface_distance

    found = surface_distance.compute_surface_distances(b, a, SPACING_MM)
    surface_distance.compute_average_surface_distance(found)
    surface_distance.compute_robust_hausdorff(found, 95)


def monai(a: np.ndarray, b: np.ndarray) -> None:
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

    pair = {"y_pred": a[None, None], "y": b[None, None], "include_background": True}
    compute_average_surface_distance(**pair, symmetric=True, spacing=SPACING_MM)
    compute_hausdorff_distance(**pair, percentile=95, spacing=SPACING_MM)


TOOLS: dict[str, Callable[[np.ndarray, np.ndarray], None]] = {
    "hepar": hepar,
    "surface-distance": deepmind,
    "MONAI": monai,
    "MedPy": medpy,
}


def rss_gb() -> float:
    """Peak resident memory; `ru_maxrss` would be inherited from the parent process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1e6
    raise SystemExit("no VmHWM in /proc/self/status")


def peak_gb(job: tuple[str, str]) -> float:
    tool, structure = job
    pair = masks(structure)
    TOOLS[tool](*(m[:8, :32, :32] | True for m in pair))  # imports
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = rss_gb()
    TOOLS[tool](*pair)
    return rss_gb() - before


def timed(structure: str, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of every tool, and its median ratio to ours in the same round."""
    pair = masks(structure)
    seconds: dict[str, list[float]] = {tool: [] for tool in TOOLS}
    for tool in TOOLS.values():
        tool(*(m[:8, :32, :32] | True for m in pair))  # imports
    for _ in range(rounds):
        for name, tool in TOOLS.items():
            begun = time.perf_counter()
            tool(*pair)
            seconds[name].append(time.perf_counter() - begun)
            print(structure, name, f"{seconds[name][-1]:.2f} s", flush=True)
    rows = {}
    for name in TOOLS:
        ratios = [t / h for t, h in zip(seconds[name], seconds["hepar"], strict=True)]
        median, ratio = statistics.median(seconds[name]), statistics.median(ratios)
        rows[name] = {"median_s": round(median, 3), "times_hepar": round(ratio, 2)}
    return rows


def mapped_case(folder: str) -> dict[str, float]:
    """Ours, everything of one 512 x 512 x 1000 case, from files."""
    from hepar.evaluate.score import score_case

    shape = (1000, 512, 512)
    maps = []
    for name, shift in (("a", 0), ("b", 3)):
        path = Path(folder) / f"{name}.npy"
        label = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
        label[100:900, 80 + shift : 430 + shift, 60:450] = 1
        label[300:340, 200 + shift : 240, 200:240] = 2
        label.flush()
        del label
        maps.append(np.load(path, mmap_mode="r"))
    begun = time.perf_counter()
    score_case("large", maps[0], maps[1], (0.8, 0.7, 0.7))
    return {"seconds": time.perf_counter() - begun, "peak_gb": rss_gb()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="0: measure only memory again")
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    document: dict[str, Any] = {"shape_zyx": SHAPE, "spacing_mm": SPACING_MM}
    if options.rounds == 0:
        document = json.loads(options.out.read_text())
    fresh = multiprocessing.get_context("spawn")
    for structure in ("liver", "tumors"):
        if options.rounds:
            document[structure] = timed(structure, options.rounds)
        for name, row in document[structure].items():
            with fresh.Pool(1) as pool:
                row["peak_gb"] = round(pool.apply(peak_gb, ((name, structure),)), 3)
            print(structure, name, row, flush=True)
    with tempfile.TemporaryDirectory() as folder, fresh.Pool(1) as pool:
        large = pool.apply(mapped_case, (folder,))
    document["memory-mapped 512 x 512 x 1000"] = {k: round(v, 2) for k, v in large.items()}
    print(large)
    options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
