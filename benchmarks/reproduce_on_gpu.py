"""Rows of a paper on a bare GPU machine: paints the cohort, trains and scores in one command.

    python benchmarks/reproduce_on_gpu.py sam_urim sp add sam sam_urim mw pa --seeds 0 -o OUT \\
        --scale reduced --minutes 9

Needs torch, numpy, scipy, einops, jaxtyping, safetensors, pyyaml, pydantic, connected-components-3d
and edt; no reader of images. The cohort is the phantom cohort of the paper, painted there by every
core (`hepar phantom --cohort SYSTEM` writes the same patients); its test patients are scored as
`hepar reproduce` scores them. OUT gets `<row>-<scale>-<seed>.json`, `scores.json` and the paper's
tables as far as rows are there. Runs lie in `--work` and resume; no run is begun that, by the
longest so far, would not end within `--minutes`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from hepar.data.cache import content_key, file_hash
from hepar.data.patches import PreparedCase, lesion_voxels, slice_contents
from hepar.data.phantom_cohort import Enrolled, draw, enroll, visit
from hepar.data.tumor_source import CaseSource
from hepar.evaluate.printed import differences, read_printed, tabulate
from hepar.evaluate.run_result import CaseResult, RunResult
from hepar.evaluate.score import score_case
from hepar.geometry import Grid
from hepar.infer.tiling import Tiling, predict
from hepar.phantom.version import fingerprint
from hepar.preprocess import liver_box
from hepar.provenance import code_sha256
from hepar.recipe import Recipe, load_recipe, row_hash
from hepar.systems.table import build
from hepar.train.checkpoint import read_tensors
from hepar.train.loop import train

ROOT = Path(__file__).resolve().parents[1]
MARGIN_MM = 12.0


def paint_one(work: tuple[Enrolled, Path]) -> None:
    """A patient's liver box, ART and PV, as one file."""
    patient, path = work
    if path.exists():
        return
    body = draw(patient)
    scan = visit(patient, body)
    grid = Grid.axial(scan.label.shape, body.spacing_mm)
    box = liver_box(scan.liver, grid, MARGIN_MM)
    assert box is not None
    inside = box.slices
    arrays = {
        "hu": np.stack([scan.hu[phase][inside] for phase in ("ART", "PV")]),
        "label": np.ascontiguousarray(scan.label[inside]),
        "liver": np.ascontiguousarray((scan.liver | (scan.label > 0))[inside]),
        "instances": np.ascontiguousarray(scan.instances[inside]),
        "spacing_mm": np.asarray(body.spacing_mm),
    }
    partial = path.with_suffix(f".{os.getpid()}")
    save_file(arrays, partial)
    partial.rename(path)


class PaintedCases:
    """A split of the painted cohort as prepared cases (a `CaseProvider`)."""

    def __init__(self, roster: list[Enrolled], folder: Path, phases: tuple[str, ...]) -> None:
        self.folder, self.phases = folder, phases
        self.train = [p for p in roster if p.split == "train"]
        self.held_out = [p for p in roster if p.split == "validation"]
        self.kept: dict[str, PreparedCase] = {}

    @property
    def n_train(self) -> int:
        return len(self.train)

    @property
    def n_validation(self) -> int:
        return len(self.held_out)

    def train_case(self, index: int, epoch: int) -> PreparedCase:
        return self.case(self.train[index])

    def validation_case(self, index: int) -> PreparedCase:
        return self.case(self.held_out[index])

    def train_name(self, index: int) -> str:
        return self.train[index].case_id

    def fingerprint(self) -> str:
        names = [[p.case_id for p in group] for group in (self.train, self.held_out)]
        return content_key({"patients": names, "phantom": fingerprint()})

    def case(self, patient: Enrolled) -> PreparedCase:
        """A patient in the system's phases."""
        if patient.case_id not in self.kept:
            found = load_file(self.folder / f"{patient.case_id}.safetensors")
            z, y, x = (float(v) for v in found["spacing_mm"])
            rows = [("ART", "PV").index(phase) for phase in self.phases]
            self.kept[patient.case_id] = PreparedCase(
                case_id=patient.case_id,
                hu=found["hu"][rows],
                present=np.ones(len(rows), bool),
                label=found["label"],
                liver=found["liver"],
                spacing_mm=(z, y, x),
                contents=slice_contents(found["label"], found["liver"]),
                lesions=lesion_voxels(found["instances"]),
            )
        return self.kept[patient.case_id]


def scored(
    roster: list[Enrolled], cases: PaintedCases, system: torch.nn.Module, device: str
) -> Iterator[CaseResult]:
    """The test patients, segmented within their livers."""
    for patient in roster:
        if patient.split != "test":
            continue
        case = cases.case(patient)
        hu = dict(zip(cases.phases, case.hu, strict=True))
        tiling = Tiling(device=device, budget_bytes=8 << 30)
        tumor = predict(
            system, hu, case.spacing_mm, liver=case.liver, classes=("tumor",), tiling=tiling
        )[0]
        predicted = case.liver.astype(np.uint8)
        predicted[(tumor >= 0.5) & case.liver] = 2
        score = score_case(case.case_id, predicted, case.label, case.spacing_mm)
        yield CaseResult.of(score, patient.primary or "")


def run(
    options: argparse.Namespace, row: str, seed: int, roster: list[Enrolled], painted: Path
) -> RunResult:
    """Train and score one row with one seed."""
    folder = ROOT / "recipes" / options.system
    recipe: Recipe = load_recipe(
        folder / f"{row}.yaml",
        (*options.overrides, f"seed={seed}", "data.fold=null"),
        base=folder / "scale" / f"{options.scale}.yaml",
    )
    system: Any = build(recipe.system)
    cases = PaintedCases(roster, painted, system.input_spec.phases)
    source = CaseSource(cases, recipe.data, system.input_spec, seed=seed)
    name = f"{row}-{options.scale}-{seed}"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    trained = train(
        recipe,
        options.work / name,
        device=device,
        source=source,
        workers=max(1, (os.cpu_count() or 2) - 2),
    )
    begun = time.monotonic()
    system.load_state_dict(read_tensors(trained.weights)[0])
    found = tuple(scored(roster, cases, system, device))
    result = RunResult(
        system=options.system,
        row=row,
        scale=options.scale,
        seed=seed,
        fold=None,
        recipe_sha256=row_hash(recipe),
        cohort_sha256=content_key(
            {"cohort": options.system, "patients": options.patients} | {"phantom": fingerprint()}
        ),
        weights_sha256=file_hash(trained.weights),
        code=code_sha256(),
        device=torch.cuda.get_device_name() if device == "cuda" else "cpu",
        parameters=sum(p.numel() for p in system.parameters()),
        steps=trained.steps,
        train_seconds=round(trained.seconds, 1),
        test_seconds=round(time.monotonic() - begun, 1),
        cases=found,
    )
    result.write(options.out / f"{name}.json")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("system")
    parser.add_argument("rows", nargs="+")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--scale", default="reduced")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--patients", type=int, default=360)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes - 40
    painted = options.work / f"{options.system}-{options.patients}"
    painted.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    roster = list(enroll(options.system, options.patients, 0))
    jobs = [(p, painted / f"{p.case_id}.safetensors") for p in roster]
    with ProcessPoolExecutor(os.cpu_count() or 1, get_context("spawn")) as pool:
        for done, _ in enumerate(pool.map(paint_one, jobs), start=1):
            if done % 60 == 0:
                print(f"painted {done} of {len(jobs)}", flush=True)
    scores, longest = [], 0.0
    for seed in options.seeds:
        for row in options.rows:
            if time.monotonic() + longest > end:
                print(f"no time left for {row} with seed {seed}", flush=True)
                continue
            begun = time.monotonic()
            result = run(options, row, seed, roster, painted)
            longest = max(longest, time.monotonic() - begun)
            tumors = [case for case in result.cases if case.reference]
            line = {
                "row": row,
                "seed": seed,
                "dice_of_tumor_cases": sum(c.dice or 0.0 for c in tumors) / max(1, len(tumors)),
                "false_lesions_a_patient": sum(c.false for c in result.cases) / len(result.cases),
                "train_seconds": result.train_seconds,
                "test_seconds": result.test_seconds,
            }
            scores.append(line)
            print(json.dumps(line), flush=True)
            (options.out / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    write_tables(options)


def write_tables(options: argparse.Namespace) -> None:
    """The paper's tables from the results in OUT."""
    runs: dict[str, list[tuple[CaseResult, ...]]] = {}
    for path in sorted(options.out.glob(f"*-{options.scale}-*.json")):
        result = RunResult.read(path)
        runs.setdefault(result.row, []).append(result.cases)
    found = {row: tuple(seeds) for row, seeds in runs.items()}
    for name, table in read_printed(ROOT / "papers" / f"{options.system}.yaml").tables.items():
        text = tabulate(table, found).markdown() + "\n" + differences(table, found)
        (options.out / f"{name}-{options.scale}.md").write_text(text)


if __name__ == "__main__":
    main()
