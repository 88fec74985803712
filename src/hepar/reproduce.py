"""`hepar reproduce`: the rows of a paper's table, trained, scored and set beside what it printed.

A run is (row, scale, seed, fold). What is finished is `OUT/<run>.json` and is not done again, what
was begun in `OUT/runs` goes on where it stopped, and several of these commands may work on one
folder side by side: each run is done by the first that takes its lock. Results on a hold-out cohort
lie in a folder of their own, `OUT/holdout-NAME`; what they were trained is shared.
"""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import cast

from torch import nn

from hepar.data.cache import ArrayCache, file_hash
from hepar.data.protocol import Protocol, read_protocol
from hepar.evaluate.printed import (
    Printed,
    PrintedTable,
    Runs,
    differences,
    parts_of,
    tabulate,
)
from hepar.evaluate.run_result import RunResult
from hepar.infer.openvino import Precision
from hepar.io.atomic import atomic_path
from hepar.paper_run import (
    Job,
    kept_result,
    kept_seeds,
    papers,
    recipe_of,
    result_path,
    run_hash,
    run_name,
    unknown,
)
from hepar.provenance import code_sha256, device_name
from hepar.recipe import Recipe
from hepar.recipe_data import CohortData
from hepar.score_cohort import FirstStage, scored_cases
from hepar.systems.table import build
from hepar.train.checkpoint import read_tensors
from hepar.train.loop import TrainResult, train

LOG = logging.getLogger(__name__)


def reproduce(job: Job, table: str) -> Path:
    """Run what is missing of a table, and write it as far as it is done.

    Args:
        job: what and where.
        table: of `papers/<system>.yaml`.

    Returns:
        The Markdown file of the table; its figures lie beside it as CSV.

    Raises:
        UsageError: `E_SUBJECT`: no such system, table or row; `E_RESULT`: a result of another
            recipe or cohort has the name of a run.
        InputRefused: a cohort cannot be used; `E_LEAKAGE`: the hold-out holds scans trained on.
    """
    printed = papers(job.system)
    if table not in printed.tables:
        raise unknown("table", table, printed.tables)
    rows = [row for row in printed.tables[table].rows if row.recipe]
    recipes = list(dict.fromkeys(row.recipe for row in rows))
    if strange := set(job.rows) - set(recipes):
        raise unknown("row", ", ".join(sorted(strange)), recipes)
    wanted = list(dict.fromkeys(r.run for r in rows if not job.rows or r.recipe in job.rows))
    typed = any(row.score for row in rows)
    protocol = read_protocol(job.cohort, job.fold, job.holdout, typed=typed)
    # Seeds first, so that a table that is interrupted has every row once before any row twice.
    runs = list(product(job.seeds, wanted, protocol.folds))
    kept = [kept_result(job, row, seed, fold, protocol.sha256) for seed, row, fold in runs]
    if protocol.holdout and None in kept:
        job.progress("look for scans that are also trained on")
        protocol.refuse_shared()
    for seed, row, fold in runs:
        run(job, row, seed, fold, protocol)
    return write_table(job, printed, table, protocol.folds)


def run(
    job: Job,
    row: str,
    seed: int,
    fold: int | None,
    protocol: Protocol,
) -> RunResult | None:
    """One run: trained, scored and kept; None while another process is at it.

    Args:
        job: what and where.
        row: `recipe`; `recipe+liver`, whose first stage is trained too where it is missing; or
            `recipe@PHASES`.
        seed: of training.
        fold: held out in training.
        protocol: who is trained on and tested.
    """
    if kept := kept_result(job, row, seed, fold, protocol.sha256):
        return kept
    own, liver, phases = parts_of(row)
    recipe = recipe_of(job, own, seed, fold)
    path = result_path(job, row, seed, fold)
    name = run_name(row, job.scale, seed, fold)
    with _alone(job.runs / run_name(own, job.scale, seed, fold)) as mine:
        if not mine or path.exists():
            LOG.info("%s is being run by another process", name)
            return None
        trained = _trained(job, own, recipe, seed, fold)
        first = _first_stage(job, liver, seed, fold) if liver else None
        job.progress(f"test {name}")
        began = time.monotonic()
        system = _network(recipe, trained)
        test = protocol.test_cases(fold)
        data = cast(CohortData, recipe.data)
        # What was trained in bf16 is asked in bf16.
        precision: Precision = "bf16" if recipe.schedule.precision == "bf16" else "f32"
        scored = tuple(
            scored_cases(
                test,
                system,
                data,
                job.device,
                job.note,
                first,
                protocol.types,
                phases,
                precision=precision,
            )
        )
        result = RunResult(
            system=job.system,
            row=row,
            scale=job.scale,
            seed=seed,
            fold=fold,
            recipe_sha256=run_hash(job, row, seed, fold),
            cohort_sha256=protocol.sha256,
            weights_sha256=file_hash(trained.weights),
            code=code_sha256(),
            device=device_name(job.device),
            parameters=sum(p.numel() for p in system.parameters()),
            steps=trained.steps,
            train_seconds=round(trained.seconds, 1),
            test_seconds=round(time.monotonic() - began, 1),
            alignment=protocol.alignment,
            tested=protocol.tested,
            liver_weights_sha256=None if first is None else first.weights_sha256,
            cases=scored,
        )
        result.write(path)
    return result


def _trained(job: Job, own: str, recipe: Recipe, seed: int, fold: int | None) -> TrainResult:
    """The training of a recipe, gone on with or finished already."""
    name = run_name(own, job.scale, seed, fold)
    job.progress(f"train {name}")
    return train(
        recipe,
        job.runs / name,
        device=job.device,
        cache_dir=job.cache,
        progress=lambda done, total, entry: job.note(f"step {done} of {total}"),
    )


def _first_stage(job: Job, liver: str, seed: int, fold: int | None) -> FirstStage:
    """What finds the livers of a run; trained first where it is not, or by who is at it now."""
    recipe = recipe_of(job, liver, seed, fold)
    with _alone(job.runs / run_name(liver, job.scale, seed, fold), wait=True):
        trained = _trained(job, liver, recipe, seed, fold)
    return FirstStage(
        name=liver,
        system=_network(recipe, trained),
        settings=recipe.system.model_dump(mode="json"),
        weights_sha256=file_hash(trained.weights),
        cache=ArrayCache(job.cache, memory_bytes=0),
        device=job.device,
    )


def _network(recipe: Recipe, trained: TrainResult) -> nn.Module:
    system = build(recipe.system)
    system.load_state_dict(read_tensors(trained.weights)[0])
    return system


def write_table(job: Job, printed: Printed, table: str, folds: Sequence[int | None]) -> Path:
    """Write a table from the results there are: Markdown, CSV, and differences of rows."""
    shown: PrintedTable = printed.tables[table]
    runs, notes = finished(job, shown, folds)
    made = tabulate(shown, runs, notes)
    text = made.markdown() + "\n" + differences(shown, runs)
    path = job.results / f"{table}-{job.scale}.md"
    for file, content in ((path, text), (path.with_suffix(".csv"), made.csv())):
        with atomic_path(file) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return path


def finished(
    job: Job, table: PrintedTable, folds: Sequence[int | None]
) -> tuple[Runs, tuple[str, ...]]:
    """Test cases of every finished seed of every row, and what a reader has to know of them.

    Seeds are those whose results lie in the folder, whichever this job was asked for.
    """
    runs: Runs = {}
    found: list[RunResult] = []
    for row in dict.fromkeys(row.run for row in table.rows if row.recipe):
        seeds = []
        for seed in kept_seeds(job, row):
            parts = [kept_result(job, row, seed, fold) for fold in folds]
            whole = [part for part in parts if part is not None]
            if len(whole) == len(parts):
                found += whole
                seeds.append(tuple(case for part in whole for case in part.cases))
        if seeds:
            runs[row] = tuple(seeds)
    return runs, _notes(job, found)


def _notes(job: Job, found: Sequence[RunResult]) -> tuple[str, ...]:
    if not found:
        return ()
    steps = sorted({result.steps for result in found})
    cohorts = sorted({result.cohort_sha256[:12] for result in found})
    # Rows that differ in their first stage alone were trained once.
    trained = {result.weights_sha256: result.train_seconds for result in found}
    seconds = sum(trained.values()) + sum(result.test_seconds for result in found)
    notes = [
        f"Scale {job.scale}: {', '.join(map(str, steps))} steps, {len(found)} runs of "
        f"{seconds / 60:.0f} minutes in all, cohort {', '.join(cohorts)}.",
    ]
    if len(cohorts) > 1 and _same_truth(found):
        notes.append(
            "The files of these cohorts differ, their patients, lesions and true tumor volumes do "
            "not: synthetic cohorts of one seed do so by single voxels of 1 HU between processors."
        )
    elif len(cohorts) > 1:
        notes.append("**Rows were scored on different cohorts and cannot be compared.**")
    if any(result.alignment == "tumor_center" for result in found):
        notes.append(
            "**Phases are aligned by the tumors' centers, as in the paper: at test time this uses "
            "the truth, and the figures are better than any that could be had without it.**"
        )
    if any(result.tested == "validation" for result in found):
        notes.append(
            "**Tested on the validation patients, on whom weights were chosen too: figures are "
            "better than on patients who had no say in that.**"
        )
    if job.holdout is not None:
        notes.append(
            f"Tested on every case of another cohort, {job.holdout_name}; none of its scans is "
            "among those that were trained or chosen on."
        )
    return tuple(notes)


def _same_truth(found: Sequence[RunResult]) -> bool:
    """Whether results have the same cases, with as many voxels of tumor and lesions in each."""
    truths = {
        (run.fold, tuple(sorted((c.case_id, c.reference, c.lesions) for c in run.cases)))
        for run in found
    }
    return len(truths) == len({run.fold for run in found})


@contextmanager
def _alone(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether this process may work in a folder; its lock is let go when it ends, however.

    Args:
        folder: made where it is missing.
        wait: until another process that works there has ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
