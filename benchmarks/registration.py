"""How far registration moves the liver to where it truly is: phantom pairs whose motion is known.

    .venv/bin/python benchmarks/registration.py --pairs 30 -o benchmarks/registration.json
    .venv/bin/python benchmarks/registration.py --against OTHER/src -o FILE

A pair is a portal venous scan (3 x 1.5 x 1.5 mm) and another phase of the same synthetic patient,
who breathed in between by 0 to 25 mm; in turn both lie on one grid, or the other phase has thicker
slices and larger pixels, a smaller field off the center, a patient who lies shifted and turned on
the table, or a scan that ends early. Breathing is painted with the organs sliding along the wall,
shift and turn are in the grid of the scan, so that the truth holds exactly.

Target registration error (TRE): for up to 2000 points of the true liver, the distance between where
a point truly lies in the other phase and where the map of `register` says; before: where world
coordinates say. Points that breathing pushed out of the painted cavity or that lie outside the
other phase's field count nowhere. `worse`: a mean TRE more than 1 mm above the one before without
`W_REG_REJECTED`. Each figure comes from a process of its own, on one thread of torch; seconds are
those of `register`, memory is the largest resident memory while it runs less that before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCE = os.environ.get("HEPAR_SOURCE", str(ROOT / "src"))
sys.path.insert(0, SOURCE)

import numpy as np
import torch
from numpy.typing import NDArray

from hepar.data.phantoms import grid_of
from hepar.geometry import Displacement, Grid
from hepar.phantom.anatomy import anatomy
from hepar.phantom.scanner import paint
from hepar.resampling import resample
from hepar.study import Phase, PhasedStudy, Study, Volume

SEED = 970_000
SPACING_MM = (3.0, 1.5, 1.5)
BREATHING_MM = tuple(float(v) for v in np.linspace(0.0, 25.0, 10))
MOVED = (Phase.NC, Phase.ART, Phase.DL)
SCENES = ("same grid", "thick slices", "small field", "moved patient", "short scan")
POINTS, WORSE_MM = 2000, 1.0


def scan_grid(scene: str, grid: Grid, liver: NDArray[np.bool_], rng: np.random.Generator) -> Grid:
    """Where the other phase's voxels lie in the frame it was painted in."""
    size = np.asarray(grid.extent_mm)
    start, stop, spacing = np.zeros(3), size.copy(), np.asarray(SPACING_MM)
    if scene == "thick slices":
        spacing = np.array([5.0, 1.8, 1.8])
    elif scene == "small field":
        spacing = np.array([4.0, 1.4, 1.4])
        start, stop = np.array([0, 0.06, 0.0]) * size, np.array([1.0, 1.0, 0.88]) * size
        start[0] += rng.uniform(2, 9)
    elif scene == "short scan":
        low = np.flatnonzero(liver.any(axis=(1, 2)))[0] * SPACING_MM[0]
        start[0] = max(0.0, low - rng.uniform(0, 30))
        spacing = np.array([5.0, 1.5, 1.5])
    shape = np.maximum((stop - start) // spacing, 2).astype(int)
    origin = grid.index_to_world(start / SPACING_MM + (spacing / SPACING_MM - 1) / 2)
    z, y, x = (int(n) for n in shape)
    dz, dy, dx = (float(s) for s in spacing)
    return Grid.axial((z, y, x), (dz, dy, dx), tuple(float(v) for v in origin))


def table_move(scene: str, grid: Grid, rng: np.random.Generator) -> NDArray[np.float64]:
    """4x4 map of LPS points from the painted frame to the scanner's: the patient lies elsewhere."""
    move = np.eye(4)
    if scene != "moved patient":
        return move
    angle = np.deg2rad(rng.uniform(1.5, 4.0) * rng.choice([-1, 1]))
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    shift = rng.uniform(5, 15, 3) * rng.choice([-1, 1], 3)
    center = grid.index_to_world((np.asarray(grid.shape) - 1) / 2)
    move[:3, :3], move[:3, 3] = turn, center + shift - turn @ center
    return move


def moved_grid(grid: Grid, move: NDArray[np.float64]) -> Grid:
    """The grid whose voxels lie where a map takes the given one's."""
    return Grid.from_affine(move @ grid.affine, grid.shape)


def true_places(
    grid: Grid, field_zyx: NDArray[np.float32] | None, points: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Where the anatomy of LPS points lies after breathing, and which points can be followed."""
    if field_zyx is None:
        return points, np.ones(len(points), dtype=bool)
    motion = Displacement(np.ascontiguousarray(field_zyx[::-1]), grid)
    place = points.copy()
    for _ in range(60):  # a voxel at y shows the anatomy of y + motion(y)
        place = points - motion.at(place)
    left = np.linalg.norm(place + motion.at(place) - points, axis=1)
    # At the wall, where organs slide, motion between two voxels is neither's.
    index = np.rint(grid.world_to_index(place)).astype(int)
    inside = ((index >= 0) & (index < grid.shape)).all(axis=1)
    index = np.clip(index, 0, np.asarray(grid.shape) - 1)
    nearest = motion.field_mm[:, index[:, 0], index[:, 1], index[:, 2]].T
    steady = np.linalg.norm(nearest - motion.at(place), axis=1) < 0.5
    return place, inside & steady & (left < 0.1)


def make_pair(number: int, path: Path) -> dict[str, Any]:
    """Write one pair with its truth; what it is, as plain data."""
    phase = MOVED[number % len(MOVED)]
    breathing = BREATHING_MM[number // len(MOVED) % len(BREATHING_MM)]
    scene = SCENES[number % len(SCENES)]
    seed = SEED + number
    rng = np.random.default_rng([seed, 1])
    body = anatomy(seed, spacing_mm=SPACING_MM)
    scan = paint(body, seed, phases=(phase.value, "PV"), breathing_mm=breathing)
    grid = grid_of(body)
    target = scan_grid(scene, grid, body.liver, rng)
    move = table_move(scene, grid, rng)
    moving = np.rint(resample(scan.hu[phase.value], grid, target, fill=-1024)).astype(np.int16)
    index = np.argwhere(body.liver)
    index = index[rng.permutation(len(index))[:POINTS]]
    points = grid.index_to_world(index.astype(np.float64))
    place, followed = true_places(grid, scan.displacement_mm.get(phase.value), points)
    at = target.world_to_index(place)
    followed &= ((at >= -0.5) & (at <= np.asarray(target.shape) - 0.5)).all(axis=1)
    placed = place @ move[:3, :3].T + move[:3, 3]
    there = moved_grid(target, move)
    np.savez(
        path,
        fixed=scan.hu["PV"],
        moving=moving,
        points=points[followed],
        truth=placed[followed],
        grids=np.array([json.dumps(_grid_text(g)) for g in (grid, there)]),
        phase=phase.value,
    )
    return {
        "pair": number,
        "seed": seed,
        "phase": phase.value,
        "breathing_mm": round(breathing, 2),
        "scene": scene,
        "points": int(followed.sum()),
        "points_lost": int((~followed).sum()),
    }


def _grid_text(grid: Grid) -> list[Any]:
    return [grid.shape, grid.spacing_mm, grid.origin_mm, grid.direction]


def _grid(text: str) -> Grid:
    shape, spacing, origin, direction = json.loads(text)
    return Grid(tuple(shape), tuple(spacing), tuple(origin), tuple(direction))


def _memory_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def measure(path: Path) -> dict[str, Any]:
    """Register one pair with the package this process imports."""
    import inspect

    from hepar.infer.bundle import default_bundle_path, load_bundle
    from hepar.stages import register as stage
    from hepar.stages.harmonize import harmonize

    torch.set_num_threads(1)
    pair = np.load(path)
    fixed_grid, moving_grid = (_grid(str(text)) for text in pair["grids"])
    phase = Phase(str(pair["phase"]))
    volumes = {
        phase: Volume(pair["moving"], moving_grid),
        Phase.PV: Volume(pair["fixed"], fixed_grid),
    }
    phased = harmonize(
        PhasedStudy(volumes, (), Study((), ()), {p: v.grid for p, v in volumes.items()})
    )
    used: list[Displacement | None] = []
    plain = stage.resample

    def spy(*args: Any, displacement: Displacement | None = None, **kwargs: Any) -> Any:
        used.append(displacement)
        return plain(*args, displacement=displacement, **kwargs)

    stage.resample = spy  # type: ignore[assignment]
    known: dict[str, Any] = {}
    if "model" in inspect.signature(stage.register).parameters:
        known["model"] = load_bundle(default_bundle_path()).model("liver")
    import convexAdam.convex_adam_MIND  # noqa: F401  its import is no part of the time
    import SimpleITK  # noqa: F401

    Path("/proc/self/clear_refs").write_text("5")
    resident = _memory_mib("VmRSS")
    begun = time.perf_counter()
    aligned = stage.register(phased, **known)
    seconds = time.perf_counter() - begun
    peak = _memory_mib("VmHWM") - resident
    record = next(r for r in aligned.registration if r.phase is phase)
    points, truth = pair["points"], pair["truth"]
    found = points
    if used and used[-1] is not None:
        found = points + used[-1].at(points)
    before = np.linalg.norm(truth - points, axis=1)
    after = np.linalg.norm(truth - found, axis=1)
    return {
        "method": record.method,
        "reason": record.reason,
        "rejected": any(w.startswith("W_REG_REJECTED") for w in aligned.warnings),
        "before_mm": _spread(before),
        "after_mm": _spread(after),
        "seconds": round(seconds, 2),
        "peak_mib": round(peak, 1),
        "record": {
            key: round(value, 4) if isinstance(value, float) else value
            for key, value in vars(record).items()
            if key not in ("phase", "method", "reason")
        },
    }


def _spread(errors: NDArray[np.float64]) -> dict[str, float]:
    return {
        "mean": round(float(errors.mean()), 3),
        "median": round(float(np.median(errors)), 3),
        "p95": round(float(np.quantile(errors, 0.95)), 3),
    }


def in_process(source: Path, pair: Path) -> dict[str, Any]:
    """`measure` by another process that imports hepar from `source`."""
    environment = {**os.environ, "HEPAR_SOURCE": str(source), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--one", str(pair)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What a list of measured pairs says."""
    accepted = [r for r in rows if not r["rejected"]]

    def over(chosen: list[dict[str, Any]], when: str) -> dict[str, float]:
        means = np.array([r[when]["mean"] for r in chosen])
        p95 = np.array([r[when]["p95"] for r in chosen])
        return {
            "mean_of_means": round(float(means.mean()), 2),
            "median_of_means": round(float(np.median(means)), 2),
            "p95_of_means": round(float(np.quantile(means, 0.95)), 2),
            "largest_mean": round(float(means.max()), 2),
            "median_of_p95": round(float(np.median(p95)), 2),
        }

    seconds = [r["seconds"] for r in rows]
    worse = [
        r["pair"] for r in accepted if r["after_mm"]["mean"] > r["before_mm"]["mean"] + WORSE_MM
    ]
    methods = sorted({r["method"] for r in rows})
    return {
        "pairs": len(rows),
        "rejected": [r["pair"] for r in rows if r["rejected"]],
        "worse": worse,
        "methods": {m: sum(r["method"] == m for r in rows) for m in methods},
        "before_mm": {"all": over(rows, "before_mm"), "accepted": over(accepted, "before_mm")},
        "after_mm": {"all": over(rows, "after_mm"), "accepted": over(accepted, "after_mm")},
        "seconds": {"median": float(np.median(seconds)), "largest": max(seconds)},
        "peak_mib": {
            "median": float(np.median([r["peak_mib"] for r in rows])),
            "largest": max(r["peak_mib"] for r in rows),
        },
    }


def main() -> None:
    """Measure the pairs that are not in the file yet, then summarize all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--against", type=Path, help="src folder of another state of hepar")
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "benchmarks" / "registration.json")
    parser.add_argument("--note", help="what a reader of the figures has to know")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(measure(chosen.one)))
        return
    sources = {"here": ROOT / "src"} | ({"against": chosen.against} if chosen.against else {})
    kept = chosen.out.with_suffix(".jsonl")  # a pair a line: an interrupted run goes on
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    known = {(r["pair"], r["state"]) for r in rows}
    for number in range(chosen.pairs):
        missing = [name for name in sources if (number, name) not in known]
        if not missing:
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pair.npz"
            what = make_pair(number, path)
            for name in missing:
                rows.append({**what, "state": name, **in_process(sources[name], path)})
                with kept.open("a") as stream:
                    stream.write(json.dumps(rows[-1]) + "\n")
        print(json.dumps(rows[-1]), file=sys.stderr)
    states = {name: [r for r in rows if r["state"] == name] for name in sources}
    document = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread of torch",
        "note": chosen.note,
        "summary": {name: summary(found) for name, found in states.items()},
        "rows": sorted(rows, key=lambda r: (r["pair"], r["state"])),
    }
    chosen.out.write_text(json.dumps(document, indent=1) + "\n")
    kept.unlink(missing_ok=True)
    print(json.dumps(document["summary"], indent=1))


if __name__ == "__main__":
    main()
