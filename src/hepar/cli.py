"""The `hepar` command: few verbs, few flags. Results go to stdout, progress to stderr.

Nothing heavy is imported until a verb runs, so that `hepar --help` answers at once.
"""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import AvoidSubcommands, FlagCreatePairsOff, Positional, UseAppendAction, arg

from hepar.arguments import pick_device, stated_phases
from hepar.console import (
    format_findings,
    format_inspection,
    format_number,
    format_prepared,
    format_scores,
    inspection_rows,
    progress,
)
from hepar.errors import EXIT_INTERNAL, HeparError, UsageError

Out = Annotated[Path, arg(aliases=["-o"], help="Folder for the results.")]
Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"], arg(aliases=["-d"], help="Where networks run.")
]
Quiet = Annotated[bool, arg(aliases=["-q"], help="No progress on stderr.")]
Json = Annotated[bool, arg(name="json", help="One JSON document on stdout.")]
Phases = Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(
        name="phase", metavar="PHASE=PATH", help="State a phase: nc, art, pv or dl, and its series."
    ),
]

Overrides = Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(name="set", metavar="KEY=VALUE", help="Change a value of the recipe: schedule.steps=50."),
]


def segment(
    study: Annotated[
        Positional[Path | None],
        arg(metavar="STUDY", help="DICOM folder, NIfTI file, or folder of either."),
    ] = None,
    /,
    *,
    out: Out,
    phases: Phases = (),
    model: Annotated[
        Path | None, arg(metavar="DIR", help="Model folder; the shipped one by default.")
    ] = None,
    probabilities: Annotated[bool, arg(help="Also write the tumor probability.")] = False,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Find the liver and every tumor of a patient, measure them, and write a report."""
    from hepar.infer.bundle import default_bundle_path, load_bundle
    from hepar.infer.tiling import Tiling
    from hepar.io.stale import set_aside
    from hepar.pipeline import Pipeline
    from hepar.stages.report import RESULTS

    stated = stated_phases(phases)
    if study is None and not stated:
        raise UsageError(
            "E_USAGE", "cli", "No study was given.", "Give a folder or file, or --phase PHASE=PATH."
        )
    # Also a model that cannot be loaded must not leave older results looking new.
    with set_aside(out, RESULTS), progress(quiet) as step:
        step("load the model")
        bundle = load_bundle(model or default_bundle_path())
        pipeline = Pipeline(bundle, Tiling(device=pick_device(device)), step)
        findings = pipeline.segment(study, out, stated=stated, probabilities=probabilities)
    if as_json:
        sys.stdout.write(findings.model_dump_json(indent=2) + "\n")
    else:
        sys.stdout.write(format_findings(findings, out))


def inspect(
    study: Annotated[
        Positional[Path],
        arg(metavar="STUDY", help="DICOM folder, NIfTI file, or folder of either."),
    ],
    /,
    *,
    phases: Phases = (),
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Say what is in a study: every series, whether it can be used and why, and its phase."""
    from hepar.stages.phases import assign_phases
    from hepar.stages.read import read_study

    with progress(quiet) as step:
        step("read")
        read = read_study(study, stated_phases(phases))
        refusal: HeparError | None = None
        phased = None
        try:
            phased = assign_phases(read)
        except HeparError as error:
            refusal = error
    rows = inspection_rows(read, phased)
    warnings = list(phased.warnings if phased else read.warnings)
    if as_json:
        document: dict[str, Any] = {"series": rows, "warnings": warnings}
        document["error"] = refusal.as_dict() if refusal else None
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        sys.stdout.write(format_inspection(rows, warnings))
    if refusal:
        _complain(refusal)
        raise SystemExit(refusal.exit_code)


def phantom(
    *,
    out: Out,
    patients: Annotated[
        int | None, arg(help="How many synthetic patients; 1, or 100 of a check.")
    ] = None,
    seed: Annotated[int, arg(help="Number of the first patient.")] = 0,
    cohort: Annotated[
        Literal["general", "sam_urim", "lidia", "lits", "external"],
        arg(help="Who is drawn, and how they are scanned."),
    ] = "general",
    formats: Annotated[
        tuple[Literal["nifti", "dicom", "dicom-stripped", "arrays", "bank"], ...],
        arg(help="What to write; bank: all anatomies in one file, to be painted later."),
    ] = ("nifti",),
    check: Annotated[
        bool, arg(help="Write no patients; measure how hard the phantom is, beside its bounds.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Write synthetic multi-phase patients with exact truth, and a cohort table of them."""
    if check:
        if cohort != "general" or seed:
            raise UsageError(
                "E_RECIPE",
                "phantom",
                "--check measures patients of its own, not those of --cohort or --seed.",
                "Leave --cohort and --seed out.",
            )
        _phantom_check(out, 100 if patients is None else patients, quiet)
        return
    from hepar.data.phantoms import write_cohort

    count = 1 if patients is None else patients
    with progress(quiet) as step:
        table = write_cohort(
            out,
            cohort,
            count,
            seed=seed,
            formats=formats,
            progress=step,
            processes=max(1, min(count, os.cpu_count() or 1)),
        )
    sys.stdout.write(f"{table}\n")


def _phantom_check(out: Path, patients: int, quiet: bool) -> None:
    from hepar.evaluate.phantom_check import check
    from hepar.io.atomic import atomic_path

    with progress(quiet) as step:
        result = check(patients, progress=step, processes=2)
    text = result.markdown()
    for name, content in (
        ("phantom_check.json", json.dumps(result.document(), indent=2) + "\n"),
        ("phantom_check.md", text),
    ):
        with atomic_path(out / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    sys.stdout.write(text)


def prepare(
    source: Annotated[Positional[Path], arg(metavar="SOURCE", help="Folder of the data set.")],
    /,
    *,
    out: Out,
    layout: Annotated[
        Literal["folder", "nnunet", "lits", "msd", "ircad"],
        arg(name="format", help="How the data set is laid out; folder: a folder a patient."),
    ],
    align: Annotated[
        Literal["none", "liver_center", "tumor_center", "registered"],
        arg(help="How phases are brought onto the reference; tumor_center uses the truth."),
    ] = "none",
    folds: Annotated[int, arg(help="Folds, by patient; 0 for none.")] = 5,
    seed: Annotated[int, arg(help="Seed of the folds.")] = 0,
    exclude: Annotated[
        Path | None, arg(metavar="COHORT", help="Refuse the scans that another cohort holds.")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make a cohort of a data set (LiTS, MSD, 3D-IRCADb-01, nnU-Net, folders) for `train`."""
    from hepar.prepare import prepare as run

    with progress(quiet) as step:
        document = run(
            source,
            layout,
            out,
            align=align,
            folds=folds,
            seed=seed,
            exclude=exclude,
            progress=step,
        )
    for warning in document["warnings"]:
        sys.stderr.write(f"hepar: {warning}\n")
    if as_json:
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        sys.stdout.write(format_prepared(document, out))


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
    system: Annotated[Positional[str], arg(metavar="SYSTEM", help="Whose paper: sam_urim.")],
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
            cohort=cohort / "cohort.csv" if cohort.is_dir() else cohort,
            scale=scale,
            out=out,
            fold=fold,
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
    preset: Annotated[str | None, arg(help="Preset of the system.")] = None,
    as_json: Json = False,
) -> None:
    """Describe the systems, one system (parameters, modules, GFLOPs), or a model folder."""
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


def demo(
    *,
    out: Out = Path("out/demo"),
    seed: Annotated[int, arg(help="Seed of the synthetic patient.")] = 900_025,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Make a synthetic patient as DICOM, segment it, and print what was found beside the truth."""
    from hepar.demo import run_demo

    with progress(quiet) as step:
        text = run_demo(out, seed=seed, device=pick_device(device), progress=step)
    sys.stdout.write(text)


VERBS: dict[str, Callable[..., None]] = {
    "segment": segment,
    "inspect": inspect,
    "phantom": phantom,
    "prepare": prepare,
    "train": train,
    "evaluate": evaluate,
    "reproduce": reproduce,
    "info": info,
    "demo": demo,
}


def main(argv: list[str] | None = None) -> None:
    """Run one verb; a refusal prints its remedy and exits with the code of its family."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        tyro.extras.subcommand_cli_from_dict(
            VERBS,
            prog="hepar",
            description="Finds and explains liver tumors in contrast CT. Not a medical device.",
            args=arguments,
            config=(AvoidSubcommands, FlagCreatePairsOff),
        )
    except HeparError as error:
        if "--json" in arguments:
            sys.stdout.write(json.dumps({"error": error.as_dict()}, indent=2) + "\n")
        _complain(error)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        sys.stderr.write("hepar: interrupted\n")
        raise SystemExit(130) from None
    except Exception:
        traceback.print_exc()
        sys.stderr.write("hepar: this is a bug of hepar; please report the lines above\n")
        raise SystemExit(EXIT_INTERNAL) from None


def _complain(error: HeparError) -> None:
    sys.stderr.write(f"hepar: {error.code}: {error.message}\n  remedy: {error.remedy}\n")


if __name__ == "__main__":
    main()
