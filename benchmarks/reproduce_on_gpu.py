"""Rows of a paper on a bare GPU machine: paints the cohort, trains and scores in one command.

    python benchmarks/reproduce_on_gpu.py sam_urim sp add sam sam_urim mw pa --seeds 0 -o OUT \\
        --scale reduced --minutes 9
    python benchmarks/reproduce_on_gpu.py dpcnet baseline spa-sem pfe dpcnet --seeds 0 -o OUT
    python benchmarks/reproduce_on_gpu.py e2net stage1 baseline+stage1 dist-dcff+stage1 -o OUT
    python benchmarks/reproduce_on_gpu.py lidia base focal ifm acl lidia --seeds 0 -o OUT

Needs torch, numpy, scipy, einops, jaxtyping, safetensors, pyyaml, pydantic, connected-components-3d
and edt; no reader of images. The cohort is the phantom cohort of the paper, painted there by every
core (`hepar phantom --cohort COHORT` writes the same patients); its test patients are scored as
`hepar reproduce` scores them. `dist-dcff+stage1` is the row dist-dcff in the livers that the row
stage1 finds, which is trained first. OUT gets `<row>-<scale>-<seed>.json`, `scores.json` and the
paper's tables as far as rows are there. Runs lie in `--work` and resume; no run is begun that, by
the longest so far, would not end within `--minutes`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from hepar.data.cache import content_key, file_hash
from hepar.data.phantom_cohort import Enrolled, draw, enroll, visit
from hepar.data.prepared_case import (
    PreparedCase,
    case_of_arrays,
    foreground_voxels,
    lesion_voxels,
    slice_contents,
    typed_arrays,
)
from hepar.data.tumor_source import CaseSource
from hepar.evaluate.lits_lesions import server_lesions
from hepar.evaluate.printed import differences, read_printed, tabulate
from hepar.evaluate.run_result import CaseResult, RunResult
from hepar.evaluate.score import score_case
from hepar.geometry import Box, Grid
from hepar.infer.tiling import Tiling, predict
from hepar.paper_run import pair_hash
from hepar.phantom.version import fingerprint
from hepar.preprocess import liver_box
from hepar.provenance import code_sha256
from hepar.recipe import Recipe, load_recipe, row_hash
from hepar.score_cohort import find_both, find_organ, look_in_liver
from hepar.score_types import Truth, score_volumes
from hepar.study import LESION_TYPES, TUMOR, Phase, Volume
from hepar.systems.base import InputSpec
from hepar.systems.table import build
from hepar.train.checkpoint import read_tensors
from hepar.train.loop import train

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Painting:
    """The cohort of a paper, and what is kept of a scan.

    Attributes:
        cohort: of `hepar phantom --cohort`.
        phases: painted ones that are kept.
        margin_mm: around the liver; None keeps the whole field.
    """

    cohort: str
    phases: tuple[str, ...]
    margin_mm: float | None


PAINTINGS = {
    "sam_urim": Painting("sam_urim", ("ART", "PV"), 12.0),
    "e2net": Painting("lits", ("PV",), None),
    "dpcnet": Painting("lits", ("PV",), None),
    "lidia": Painting("lidia", ("NC", "ART", "PV", "DL"), None),
}


def paint_one(work: tuple[Enrolled, Path, Painting]) -> None:
    """What is kept of a patient, as one file."""
    patient, path, painting = work
    if path.exists():
        return
    body = draw(patient)
    scan = visit(patient, body)
    grid = Grid.axial(scan.label.shape, body.spacing_mm)
    box = Box.full(grid.shape)
    if painting.margin_mm is not None:
        box = liver_box(scan.liver, grid, painting.margin_mm) or box
    inside = box.slices
    absent = np.zeros_like(scan.label, dtype=np.int16)
    arrays = {
        "hu": np.stack([scan.hu.get(phase, absent)[inside] for phase in painting.phases]),
        "present": np.array([phase in scan.hu for phase in painting.phases]),
        "lesions": np.array(
            [[spec.id, LESION_TYPES.index(spec.type)] for spec in body.lesions], dtype=np.int32
        ).reshape(-1, 2),
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

    def __init__(
        self, roster: list[Enrolled], folder: Path, painted: tuple[str, ...], spec: InputSpec
    ) -> None:
        self.folder, self.painted, self.spec = folder, painted, spec
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

    def train_types(self, index: int) -> frozenset[str]:
        typed = self.train_case(index, 0).typed
        return frozenset() if typed is None else frozenset(typed.names)

    def fingerprint(self) -> str:
        names = [[p.case_id for p in group] for group in (self.train, self.held_out)]
        return content_key({"patients": names, "phantom": fingerprint()})

    def case(self, patient: Enrolled) -> PreparedCase:
        """A patient in the system's phases."""
        if patient.case_id not in self.kept:
            found = load_file(self.folder / f"{patient.case_id}.safetensors")
            rows = [self.painted.index(phase) for phase in self.spec.phases]
            if self.spec.typed:
                types = {int(n): LESION_TYPES[k] for n, k in found["lesions"]}
                marks = typed_arrays(found["instances"], types)
            else:
                marks = {
                    "lesions": lesion_voxels(found["instances"]),
                    "foreground": foreground_voxels(found["label"]),
                }
            arrays = {name: found[name] for name in ("label", "liver", "spacing_mm")} | marks
            arrays["hu"] = found["hu"][rows]
            arrays["contents"] = slice_contents(found["label"], found["liver"])
            self.kept[patient.case_id] = case_of_arrays(
                patient.case_id, found["present"][rows], arrays
            )
        return self.kept[patient.case_id]


def scored(
    roster: list[Enrolled],
    cases: PaintedCases,
    system: torch.nn.Module,
    device: str,
    first: torch.nn.Module | None,
) -> Iterator[CaseResult]:
    """The test patients, segmented within their livers, in two stages, or in one."""
    spec: Any = system.input_spec
    tiling = Tiling(device=device, budget_bytes=8 << 30)
    for patient in roster:
        if patient.split != "test":
            continue
        case = cases.case(patient)
        shown = zip(spec.phases, case.hu, case.present, strict=True)
        hu = {phase: array for phase, array, there in shown if there}
        grid = Grid.axial(case.label.shape, case.spacing_mm)
        volumes = {Phase(phase): Volume(array, grid) for phase, array in hu.items()}
        if spec.typed:
            truth = Truth(
                case_id=case.case_id,
                patient_id=case.case_id,
                kind=patient.primary or "",
                label=np.where(case.label == TUMOR, TUMOR, case.liver).astype(np.uint8),
                instances=case.typed.number,
                types=dict(enumerate(case.typed.names, start=1)),
            )
            yield score_volumes(system, volumes, grid, truth, tiling)
            continue
        alone = "tumor" not in spec.class_names
        whole = spec.dims == 3 and not spec.needs_liver and "liver" in spec.class_names
        if first is None and whole and not alone:
            predicted = find_both(system, volumes, grid, tiling)
        elif first is not None or alone:
            liver = find_organ(first or system, volumes, grid, tiling)
            predicted = liver.astype(np.uint8)
            if not alone:
                predicted = look_in_liver(system, volumes, grid, liver, tiling)
        else:
            tumor = predict(
                system, hu, case.spacing_mm, liver=case.liver, classes=("tumor",), tiling=tiling
            )[0]
            predicted = case.liver.astype(np.uint8)
            predicted[(tumor >= 0.5) & case.liver] = 2
        score = score_case(case.case_id, predicted, case.label, case.spacing_mm)
        yield CaseResult.of(
            score,
            patient.primary or "",
            found_liver=first is not None or alone or whole,
            looked_for_tumor=not alone,
            lesions=server_lesions(predicted, case.label, case.spacing_mm, score.lesions.lits),
        )


@dataclass(frozen=True)
class Trained:
    """A row with its weights."""

    recipe: Recipe
    system: torch.nn.Module
    weights: Path
    steps: int
    seconds: float
    cases: PaintedCases


def trained(
    options: argparse.Namespace, row: str, seed: int, roster: list[Enrolled], painted: Path
) -> Trained:
    """Train a row with a seed, or find it trained."""
    folder = ROOT / "recipes" / options.system
    recipe: Recipe = load_recipe(
        folder / f"{row}.yaml",
        (*options.overrides, f"seed={seed}", "data.fold=null"),
        base=folder / "scale" / f"{options.scale}.yaml",
    )
    system: Any = build(recipe.system)
    kept = PAINTINGS[options.system].phases
    cases = PaintedCases(roster, painted, kept, system.input_spec)
    done = train(
        recipe,
        options.work / f"{row}-{options.scale}-{seed}",
        device="cuda" if torch.cuda.is_available() else "cpu",
        source=CaseSource(cases, recipe.data, system.input_spec, seed=seed),
        workers=max(1, (os.cpu_count() or 2) - 2),
    )
    system.load_state_dict(read_tensors(done.weights)[0])
    return Trained(recipe, system, done.weights, done.steps, done.seconds, cases)


def run(
    options: argparse.Namespace, row: str, seed: int, roster: list[Enrolled], painted: Path
) -> RunResult:
    """Train and score one row, or a row in the livers of another, with one seed."""
    name, _, finder = row.partition("+")
    first = trained(options, finder, seed, roster, painted) if finder else None
    own = trained(options, name, seed, roster, painted)
    begun = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = tuple(
        scored(roster, own.cases, own.system, device, None if first is None else first.system)
    )
    hashes = [row_hash(part.recipe) for part in (own, first) if part is not None]
    result = RunResult(
        system=options.system,
        row=row,
        scale=options.scale,
        seed=seed,
        fold=None,
        recipe_sha256=hashes[0] if first is None else pair_hash(*hashes),
        cohort_sha256=content_key(
            {"cohort": options.system, "patients": options.patients} | {"phantom": fingerprint()}
        ),
        weights_sha256=file_hash(own.weights),
        code=code_sha256(),
        device=torch.cuda.get_device_name() if device == "cuda" else "cpu",
        parameters=sum(p.numel() for p in own.system.parameters()),
        steps=own.steps,
        train_seconds=round(own.seconds, 1),
        test_seconds=round(time.monotonic() - begun, 1),
        cases=found,
    )
    result.write(options.out / f"{row}-{options.scale}-{seed}.json")
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
    painting = PAINTINGS[options.system]
    roster = list(enroll(painting.cohort, options.patients, 0))
    jobs = [(p, painted / f"{p.case_id}.safetensors", painting) for p in roster]
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
            livers = [case.liver.dice or 0.0 for case in result.cases if case.liver]
            line = {
                "row": row,
                "seed": seed,
                "dice_of_livers": sum(livers) / len(livers) if livers else None,
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
