"""A patient: find the tumors, say what is in a study, show it on a synthetic one.

Nothing heavy is imported until a verb runs, so that `hepar --help` answers at once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from hepar.arguments import pick_device, stated_phases
from hepar.console import (
    complain,
    format_findings,
    format_inspection,
    inspection_rows,
    progress,
)
from hepar.errors import HeparError, UsageError
from hepar.verbs.options import Device, Json, Out, Phases, Quiet


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
    probabilities: Annotated[
        bool, arg(help="Also write the tumor probability, and where the network is unsure.")
    ] = False,
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
    from hepar.infer.bundle import default_bundle_path, load_bundle
    from hepar.stages.phases import assign_phases
    from hepar.stages.read import read_study

    with progress(quiet) as step:
        step("read")
        read = read_study(study, stated_phases(phases))
        step("tell the phases")
        refusal: HeparError | None = None
        phased = None
        try:
            phased = assign_phases(read, load_bundle(default_bundle_path()).model("liver"))
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
        complain(refusal)
        raise SystemExit(refusal.exit_code)


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
