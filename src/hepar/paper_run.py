"""One run of a row of a paper's table: its recipes, its name, and the result that is kept of it.

A row is called by its recipe, or `recipe+liver` where the row of another recipe, the first stage,
finds the livers that it looks at, or `recipe@ART.PV` where it is shown these phases alone. What is
trained knows nothing of either: all kinds of a recipe's runs share one folder of weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hepar.errors import HeparError, UsageError
from hepar.evaluate.printed import Printed, parts_of, read_printed
from hepar.evaluate.run_result import RunResult
from hepar.recipe import Recipe, load_recipe, row_hash

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
            fold in turn where there is none, or its validation patients where there are no folds.
        holdout: `cohort.csv` of another cohort, all of which is tested instead.
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
    holdout: Path | None = None
    seeds: tuple[int, ...] = SEEDS
    rows: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    device: str = "cpu"
    progress: Callable[[str], None] = field(default=lambda text: None)
    note: Callable[[str], None] = field(default=lambda text: None)

    @property
    def runs(self) -> Path:
        """Folder of what is trained."""
        return self.out / "runs"

    @property
    def cache(self) -> Path:
        """Folder of prepared cases and of livers that a first stage found."""
        return self.out / "cache"

    @property
    def results(self) -> Path:
        """Folder of results and tables; a hold-out cohort has one of its own."""
        return self.out / f"holdout-{self.holdout_name}" if self.holdout else self.out

    @property
    def holdout_name(self) -> str:
        """What the hold-out cohort is called: its folder, or its table where that has a name."""
        if self.holdout is None:
            return ""
        path = self.holdout.resolve()
        return path.parent.name if path.name == "cohort.csv" else path.stem


def papers(system: str) -> Printed:
    """What a system's paper printed.

    Raises:
        UsageError: `E_SUBJECT`.
    """
    path = _checkout() / "papers" / f"{system}.yaml"
    if not path.exists():
        raise unknown("system", system, [p.stem for p in sorted(path.parent.glob("*.yaml"))])
    return read_printed(path)


def recipe_of(job: Job, recipe: str, seed: int, fold: int | None) -> Recipe:
    """A recipe at the job's scale, on its cohort."""
    folder = _checkout() / "recipes" / job.system
    own = [
        f"data.path={job.cohort}",
        f"seed={seed}",
        f"data.fold={'null' if fold is None else fold}",
    ]
    base = folder / "scale" / f"{job.scale}.yaml"
    return load_recipe(folder / f"{recipe}.yaml", (*job.overrides, *own), base=base)


def run_name(row: str, scale: str, seed: int, fold: int | None) -> str:
    """Of the result of a run, and, of a row that is a recipe alone, of the folder it trains in."""
    return f"{row}-{scale}-{seed}" + ("" if fold is None else f"-fold{fold}")


def run_hash(job: Job, row: str, seed: int, fold: int | None) -> str:
    """SHA-256 of what makes a run: its recipe, its first stage's, and the phases it is shown."""
    recipe, liver, phases = parts_of(row)
    own = row_hash(recipe_of(job, recipe, seed, fold))
    if phases:
        return shown_hash(own, phases)
    if not liver:
        return own
    return pair_hash(own, row_hash(recipe_of(job, liver, seed, fold)))


def pair_hash(own: str, first: str) -> str:
    """SHA-256 of a row in the livers of another, from the hashes of both."""
    return hashlib.sha256(f"{own} in the livers of {first}".encode()).hexdigest()


def shown_hash(own: str, phases: Sequence[str]) -> str:
    """SHA-256 of a row that is shown some phases only, from its own hash."""
    return hashlib.sha256(f"{own} shown {' '.join(phases)}".encode()).hexdigest()


def result_path(job: Job, row: str, seed: int, fold: int | None) -> Path:
    """Where the result of a run lies."""
    return job.results / f"{run_name(row, job.scale, seed, fold)}.json"


def kept_result(
    job: Job, row: str, seed: int, fold: int | None, cohort_sha256: str | None = None
) -> RunResult | None:
    """The result of a run, if it is of these recipes and, where one is asked for, of this cohort.

    Returns:
        None where the run is not finished.

    Raises:
        UsageError: `E_RESULT`: it is the result of something else.
    """
    path = result_path(job, row, seed, fold)
    if not path.exists():
        return None
    result = RunResult.read(path)
    for what, kept, asked in (
        ("recipe", result.recipe_sha256, run_hash(job, row, seed, fold)),
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


def kept_seeds(job: Job, row: str) -> list[int]:
    """Seeds of which any result lies in the folder, whichever the job asks for."""
    start = f"{row}-{job.scale}-"
    names = (path.stem.removeprefix(start) for path in job.results.glob(f"{start}*.json"))
    return sorted({int(name.split("-")[0]) for name in names})


def unknown(what: str, name: str, known: Iterable[str]) -> HeparError:
    """The refusal of a name that is not among the known ones."""
    return UsageError(
        "E_SUBJECT",
        "reproduce",
        f"there is no {what} {name!r}.",
        f"Use one of: {', '.join(known)}.",
    )


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
