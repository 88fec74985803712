"""Networks: train, score, reproduce a paper, describe.

Nothing heavy is imported until a verb runs, so that `hepar --help` answers at once.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from hepar.arguments import pick_device
from hepar.console import (
    format_number,
    format_scores,
    progress,
)
from hepar.errors import UsageError
from hepar.verbs.options import Device, Json, Out, Overrides, Quiet


def train(
    recipe: Annotated[Positional[Path], arg(help="Recipe, a YAML file.")],
    /,
    *,
    out: Out,
    overrides: Overrides = (),
    cache: Annotated[
        Path | None, arg(help="Folder for prepared cases; OUT/cache by default.")
    ] = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a system from a recipe; run again on the same folder to resume."""
    from hepar.recipe import load_recipe
    from hepar.train.loop import train as run

    loaded = load_recipe(recipe, overrides)
    with progress(quiet) as step:
        step(f"prepare {loaded.data.kind} cases and train")

        def show(done: int, total: int, entry: dict[str, Any]) -> None:
            step.note(f"step {done} of {total}, loss {entry['loss']}")
            if "validation" in entry:
                dice = entry["validation"]["dice"]
                step(f"train (at step {done} of {total} the validation Dice is {dice})")

        result = run(
            loaded,
            out,
            device=pick_device(device),
            cache_dir=cache or out / "cache",
            progress=show,
        )
    document = {**asdict(result), "weights": str(result.weights)}
    if as_json:
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        sys.stdout.writelines(f"{key}: {value}\n" for key, value in document.items())


def evaluate(
    predictions: Annotated[
        Positional[Path],
        arg(metavar="PRED", help="Label map (0, 1, 2), folder of them, or results of `segment`."),
    ],
    truth: Annotated[
        Positional[Path],
        arg(metavar="TRUTH", help="The same, or a cohort.csv; cases of the same names."),
    ],
    /,
    *,
    out: Annotated[
        Path | None,
        arg(
            aliases=["-o"], help="Folder for scores.json, cases.csv, lesions.csv, evaluation.html."
        ),
    ] = None,
    lesions: Annotated[bool, arg(help="Compare single lesions: found, missed, false.")] = False,
    types: Annotated[
        bool, arg(help="Compare what lesions and patients have; compares lesions too.")
    ] = False,
    tolerance_mm: Annotated[float, arg(help="Of the surface Dice.")] = 2.0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Score liver and tumor masks: overlap, volume, surface distances, lesions, patients."""
    from hepar.evaluate.files import evaluate as run
    from hepar.io.atomic import staged_folder
    from hepar.render.evaluation import render_evaluation

    if not 0 < tolerance_mm < math.inf:
        raise UsageError(
            "E_USAGE", "cli", f"A tolerance of {tolerance_mm} mm.", "Give millimeters above 0."
        )
    with progress(quiet) as step:
        step("score")
        result = run(
            predictions,
            truth,
            lesions=lesions,
            types=types,
            tolerance_mm=tolerance_mm,
            progress=lambda done, total, name: step.note(f"{name} ({done + 1} of {total})"),
        )
        if out is not None:
            step("write")
            with staged_folder(out) as folder:
                result.write(folder)
                page = render_evaluation(result.document)
                (folder / "evaluation.html").write_text(page, encoding="utf-8")
    if as_json:
        sys.stdout.write(json.dumps(result.document, indent=2) + "\n")
    else:
        sys.stdout.write(format_scores(result.document))
        if out is not None:
            sys.stdout.write(f"page: {out / 'evaluation.html'}\n")


def reproduce(
    system: Annotated[
        Positional[str], arg(metavar="SYSTEM", help="Whose paper: sam_urim, e2net, dpcnet, lidia.")
    ],
    table: Annotated[Positional[str], arg(metavar="TABLE", help="table1, table2, ...")],
    /,
    *,
    cohort: Annotated[Path, arg(help="Folder with cohort.csv, or the file.")],
    out: Out,
    scale: Annotated[
        Literal["toy", "reduced", "full"], arg(help="Minutes on a CPU, on a GPU; as published.")
    ] = "toy",
    fold: Annotated[
        int | None, arg(help="Test this fold; the test split, or every fold, by default.")
    ] = None,
    holdout: Annotated[
        Path | None, arg(metavar="COHORT", help="Test on every case of this cohort instead.")
    ] = None,
    seeds: Annotated[tuple[int, ...], arg(help="Of training.")] = (0, 1, 2),
    rows: Annotated[tuple[str, ...], arg(help="Only these recipes of the table.")] = (),
    overrides: Overrides = (),
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Train, score and tabulate the rows of a paper's table; what is done is not done again."""
    from hepar.reproduce import Job
    from hepar.reproduce import reproduce as run

    with progress(quiet) as step:
        job = Job(
            system=system,
            cohort=_table_of(cohort),
            scale=scale,
            out=out,
            fold=fold,
            holdout=None if holdout is None else _table_of(holdout),
            seeds=seeds,
            rows=rows,
            overrides=overrides,
            device=pick_device(device),
            progress=step,
            note=step.note,
        )
        path = run(job, table)
    sys.stdout.write(path.read_text(encoding="utf-8"))


def info(
    subject: Annotated[
        Positional[str | None], arg(metavar="SUBJECT", help="A system's name or a model folder.")
    ] = None,
    /,
    *,
    preset: Annotated[
        str | None, arg(help="Preset of the system, or 3d_fullres or 3d_lowres of a plan.")
    ] = None,
    plan: Annotated[
        Path | None,
        arg(metavar="COHORT", help="nnunet: plan it for this cohort, and write the recipe."),
    ] = None,
    fold: Annotated[
        int | None,
        arg(help="Of a plan: held out; by default, the validation split or the first fold."),
    ] = None,
    out: Annotated[
        Path | None, arg(aliases=["-o"], help="Of a plan: folder for the recipe.")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Describe the systems, one system (parameters, modules, GFLOPs), or a model folder."""
    if plan is not None:
        if subject != "nnunet":
            raise UsageError(
                "E_USAGE",
                "cli",
                f"--plan plans nnunet, not {subject!r}.",
                "Write it as hepar info nnunet --plan cohort.csv.",
            )
        _plan(_table_of(plan), preset or "3d_fullres", fold, out, quiet, as_json)
        return
    if fold is not None or out is not None:
        raise UsageError(
            "E_USAGE",
            "cli",
            "--fold and --out belong to a plan.",
            "Give --plan too, or leave them out.",
        )
    from hepar.infer.describe import describe

    document = describe(subject, preset)
    if as_json:
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
        return
    for key, value in document.items():
        if isinstance(value, dict):
            sys.stdout.write(f"{key}:\n")
            sys.stdout.writelines(f"  {k:<14} {format_number(v)}\n" for k, v in value.items())
        else:
            sys.stdout.write(f"{key}: {format_number(value)}\n")


def _plan(
    cohort: Path, name: str, fold: int | None, out: Path | None, quiet: bool, as_json: bool
) -> None:
    """A cohort's nnU-Net as a recipe: on stdout, or in a folder and its path on stdout."""
    from hepar.data.planned_recipe import planned_recipe
    from hepar.io.atomic import check_writable, staged_folder

    if out is not None:
        check_writable(out)
    with progress(quiet) as step:
        step("read the training cases")
        planned = planned_recipe(
            cohort,
            fold=fold,
            configuration=name,
            progress=lambda done, total, case: step.note(f"{case} ({done + 1} of {total})"),
        )
    text, file = planned.text(), f"{planned.recipe.name}.yaml"
    if out is not None:
        with staged_folder(out) as folder:
            (folder / file).write_text(text, encoding="utf-8")
        text = f"{out / file}\n"
    sys.stdout.write(json.dumps(planned.document(), indent=2) + "\n" if as_json else text)


def _table_of(path: Path) -> Path:
    return path / "cohort.csv" if path.is_dir() else path
