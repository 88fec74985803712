"""`hepar reproduce`: the rows of a paper's table, trained, scored and set beside what it printed.

A run is (row, scale, seed, fold). What is finished is `OUT/<run>.json` and is not done again, what
was begun in `OUT/runs` goes on where it stopped, and several of these commands may work on one
folder side by side: each run is done by the first that takes its lock.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from hepar.data.cache import file_hash
from hepar.data.cohort import CohortCase, is_test, read_cohort
from hepar.errors import HeparError, UsageError
from hepar.evaluate.printed import Printed, PrintedTable, Runs, differences, read_printed, tabulate
from hepar.evaluate.run_result import RunResult
from hepar.io.atomic import atomic_path
from hepar.provenance import code_sha256, device_name
from hepar.recipe import CohortData, Recipe, load_recipe, row_hash
from hepar.score_cohort import scored_cases
from hepar.systems.table import build
from hepar.train.checkpoint import read_tensors
from hepar.train.loop import BEST, train

LOG = logging.getLogger(__name__)
SCALES = ("toy", "reduced", "full")
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Job:
    """What is to be reproduced, and where.

    Attributes:
        system: folder of `recipes/` and file of `papers/`.
        cohort: `cohort.csv`.
        scale: one of `SCALES`.
        out: folder for results, runs and tables.
        fold: test patients of a cohort without a test split; None takes its test split, or every
            fold in turn where there is none.
        seeds: of training.
        rows: recipes to run; empty for all of the table.
        overrides: `a.b=c`, for every recipe.
        device: where networks run.
        progress: told what begins.
        note: told how far it is.
    """

    system: str
    cohort: Path
    scale: str
    out: Path
    fold: int | None = None
    seeds: tuple[int, ...] = SEEDS
    rows: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    device: str = "cpu"
    progress: Callable[[str], None] = field(default=lambda text: None)
    note: Callable[[str], None] = field(default=lambda text: None)


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
        InputRefused: the cohort cannot be used.
    """
    printed = papers(job.system)
    if table not in printed.tables:
        raise _unknown("table", table, printed.tables)
    recipes = list(dict.fromkeys(row.recipe for row in printed.tables[table].rows if row.recipe))
    if unknown := set(job.rows) - set(recipes):
        raise _unknown("row", ", ".join(sorted(unknown)), recipes)
    cases = read_cohort(job.cohort, need=("label",))
    sha256 = cohort_hash(job.cohort, cases)
    folds = _folds(job, cases)
    # Seeds outside, so that a table that is interrupted has every row once before any row twice.
    for seed in job.seeds:
        for recipe in job.rows or recipes:
            for fold in folds:
                run(job, recipe, seed, fold, cases, sha256)
    return write_table(job, printed, table, folds)


def run(
    job: Job,
    row: str,
    seed: int,
    fold: int | None,
    cases: Sequence[CohortCase],
    cohort_sha256: str,
) -> RunResult | None:
    """One run: trained, scored and kept; None while another process is at it.

    Args:
        job: what and where.
        row: recipe.
        seed: of training.
        fold: of the test patients.
        cases: of the cohort.
        cohort_sha256: of the cohort.
    """
    recipe = recipe_of(job, row, seed, fold)
    name = run_name(row, job.scale, seed, fold)
    path = job.out / f"{name}.json"
    sha256 = row_hash(recipe)
    if path.exists():
        return _checked(path, sha256, cohort_sha256)
    with _alone(job.out / "runs" / name) as mine:
        if not mine or path.exists():
            LOG.info("%s is being run by another process", name)
            return None
        job.progress(f"train {name}")
        trained = train(
            recipe,
            job.out / "runs" / name,
            device=job.device,
            cache_dir=job.out / "cache",
            progress=lambda done, total, entry: job.note(f"step {done} of {total}"),
        )
        job.progress(f"test {name}")
        began = time.monotonic()
        system = build(recipe.system)
        system.load_state_dict(read_tensors(job.out / "runs" / name / BEST)[0])
        test = [c for c in cases if (is_test(c) if fold is None else c.fold == fold)]
        data = cast(CohortData, recipe.data)
        scored = tuple(scored_cases(test, system, data, job.device, job.note))
        result = RunResult(
            system=job.system,
            row=row,
            scale=job.scale,
            seed=seed,
            fold=fold,
            recipe_sha256=sha256,
            cohort_sha256=cohort_sha256,
            weights_sha256=file_hash(trained.weights),
            code=code_sha256(),
            device=device_name(job.device),
            parameters=sum(p.numel() for p in system.parameters()),
            steps=trained.steps,
            train_seconds=round(trained.seconds, 1),
            test_seconds=round(time.monotonic() - began, 1),
            alignment=_alignment(cases),
            cases=scored,
        )
        result.write(path)
    return result


def papers(system: str) -> Printed:
    """What a system's paper printed.

    Raises:
        UsageError: `E_SUBJECT`.
    """
    path = _checkout() / "papers" / f"{system}.yaml"
    if not path.exists():
        known = [p.stem for p in sorted(path.parent.glob("*.yaml"))]
        raise _unknown("system", system, known)
    return read_printed(path)


def recipe_of(job: Job, row: str, seed: int, fold: int | None) -> Recipe:
    """The recipe of a run."""
    folder = _checkout() / "recipes" / job.system
    own = [
        f"data.path={job.cohort}",
        f"seed={seed}",
        f"data.fold={'null' if fold is None else fold}",
    ]
    base = folder / "scale" / f"{job.scale}.yaml"
    return load_recipe(folder / f"{row}.yaml", (*job.overrides, *own), base=base)


def run_name(row: str, scale: str, seed: int, fold: int | None) -> str:
    """Of the folder and the result of a run."""
    return f"{row}-{scale}-{seed}" + ("" if fold is None else f"-fold{fold}")


def cohort_hash(path: Path, cases: Sequence[CohortCase]) -> str:
    """Of the cases' names, splits, folds and files, wherever the cohort lies."""
    sha = hashlib.sha256()
    for case in cases:
        files = {**case.images, "liver": case.liver, "label": case.label}
        found = [(name, file_hash(file)) for name, file in sorted(files.items()) if file]
        who = (case.case_id, case.patient_id, case.fold, is_test(case), case.reference)
        sha.update(repr((who, found)).encode())
    return sha.hexdigest()


def write_table(job: Job, printed: Printed, table: str, folds: Sequence[int | None]) -> Path:
    """Write a table from the results there are: Markdown, CSV, and differences of rows."""
    shown: PrintedTable = printed.tables[table]
    runs, notes = finished(job, shown, folds)
    made = tabulate(shown, runs, notes)
    text = made.markdown() + "\n" + differences(shown, runs)
    path = job.out / f"{table}-{job.scale}.md"
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
    for row in dict.fromkeys(row.recipe for row in table.rows if row.recipe):
        seeds = []
        for seed in _seeds(job, row):
            parts = [_kept(job, row, seed, fold) for fold in folds]
            whole = [part for part in parts if part is not None]
            if len(whole) == len(parts):
                found += whole
                seeds.append(tuple(case for part in whole for case in part.cases))
        if seeds:
            runs[row] = tuple(seeds)
    return runs, _notes(job, found)


def _seeds(job: Job, row: str) -> list[int]:
    start = f"{row}-{job.scale}-"
    names = (path.stem.removeprefix(start) for path in job.out.glob(f"{start}*.json"))
    return sorted({int(name.split("-")[0]) for name in names})


def _kept(job: Job, row: str, seed: int, fold: int | None) -> RunResult | None:
    """A finished run; None where it is not finished."""
    path = job.out / f"{run_name(row, job.scale, seed, fold)}.json"
    if not path.exists():
        return None
    return _checked(path, row_hash(recipe_of(job, row, seed, fold)))


def _notes(job: Job, found: Sequence[RunResult]) -> tuple[str, ...]:
    if not found:
        return ()
    steps = sorted({result.steps for result in found})
    cohorts = sorted({result.cohort_sha256[:12] for result in found})
    seconds = sum(result.train_seconds + result.test_seconds for result in found)
    notes = [
        f"Scale {job.scale}: {', '.join(map(str, steps))} steps, {len(found)} runs of "
        f"{seconds / 60:.0f} minutes in all, cohort {', '.join(cohorts)}.",
    ]
    if len(cohorts) > 1:
        notes.append("**Rows were scored on different cohorts and cannot be compared.**")
    if any(result.alignment == "tumor_center" for result in found):
        notes.append(
            "**Phases are aligned by the tumors' centers, as in the paper: at test time this uses "
            "the truth, and the figures are better than any that could be had without it.**"
        )
    return tuple(notes)


def _folds(job: Job, cases: Sequence[CohortCase]) -> tuple[int | None, ...]:
    """The test folds that make a row: the split, the fold asked for, or all of them."""
    if job.fold is not None:
        return (job.fold,)
    if any(is_test(case) for case in cases):
        return (None,)
    folds = sorted({case.fold for case in cases if case.fold is not None})
    if len(folds) < 2:
        raise UsageError(
            "E_COHORT",
            "reproduce",
            f"{job.cohort.name} has neither a test split nor folds.",
            "Fill its column fold, or split with train, validation and test.",
        )
    return tuple(folds)


def _alignment(cases: Sequence[CohortCase]) -> str:
    ways = {case.metadata.get("alignment") or "none" for case in cases}
    return "tumor_center" if "tumor_center" in ways else ", ".join(sorted(ways))


def _checked(path: Path, recipe_sha256: str, cohort_sha256: str | None = None) -> RunResult:
    """A result, if it is of this recipe and, where one is asked for, of this cohort."""
    result = RunResult.read(path)
    for what, kept, asked in (
        ("recipe", result.recipe_sha256, recipe_sha256),
        ("cohort", result.cohort_sha256, cohort_sha256),
    ):
        if asked is not None and kept != asked:
            raise UsageError(
                "E_RESULT",
                "reproduce",
                f"{path.name} is the result of another {what}.",
                "Take another --out folder, or remove the result and its run.",
            )
    return result


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether this process may work in a folder; its lock is let go when it ends, however."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _checkout() -> Path:
    folder = Path(__file__).resolve().parents[2]
    if not (folder / "recipes").is_dir():
        raise UsageError(
            "E_RECIPE",
            "reproduce",
            "recipes/ and papers/ are not beside this installation of hepar.",
            "Install hepar from its source folder, with pip install -e.",
        )
    return folder


def _unknown(what: str, name: str, known: Any) -> HeparError:
    return UsageError(
        "E_SUBJECT",
        "reproduce",
        f"there is no {what} {name!r}.",
        f"Use one of: {', '.join(known)}.",
    )
