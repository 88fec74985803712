"""A patient: find the tumors, say what is in a study, show it on a synthetic one.

Nothing heavy is imported until a verb runs, so that `hepar --help` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from hepar.arguments import pick_device, refuse_own_results, stated_phases
from hepar.console import complain, format_findings, format_inspection, progress, unlogged
from hepar.errors import InputRefused, UsageError
from hepar.verbs.options import (
    Captures,
    Device,
    Dicom,
    Gaps,
    Json,
    LiverMask,
    Model,
    Out,
    Phases,
    Probabilities,
    Quiet,
    Viewer,
)

if TYPE_CHECKING:
    from hepar.io.ingest import Ingest
    from hepar.study import Study

# What `inspect -o` leaves.
INSPECTED = ("ingest.json", "series.png")
_STUDY = "DICOM folder, NIfTI file, folder of either, or a zip or tar archive of them."


def segment(
    study: Annotated[
        Positional[Path | None],
        arg(metavar="STUDY", help=_STUDY),
    ] = None,
    /,
    *,
    out: Out,
    phases: Phases = (),
    interpolate_gaps: Gaps = False,
    liver: LiverMask = None,
    tumor: Annotated[
        Path | None,
        arg(
            metavar="MASK",
            help="Lesions that are known: NIfTI (ids, 0 and 1, a label map) or DICOM SEG.",
        ),
    ] = None,
    model: Model = None,
    probabilities: Probabilities = False,
    dicom: Dicom = False,
    captures: Captures = False,
    viewer: Viewer = False,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Find the liver and every tumor of a patient, measure them, and write a report."""
    from hepar.infer.bundle import default_bundle_path, load_bundle
    from hepar.infer.tiling import Tiling
    from hepar.io.given_masks import read_given
    from hepar.io.stale import set_aside
    from hepar.pipeline import Pipeline
    from hepar.stages.report import RESULTS

    stated = stated_phases(phases)
    if study is None and not stated:
        raise UsageError(
            "E_USAGE", "cli", "No study was given.", "Give a folder or file, or --phase PHASE=PATH."
        )
    if tumor is not None and probabilities:
        raise UsageError(
            "E_USAGE", "cli", "A given tumor has no probability.", "Drop --probabilities."
        )
    refuse_own_results(out, (liver, tumor))
    given = read_given(liver, tumor)
    # Also a model that cannot be loaded must not leave older results looking new, and no sheet of
    # another study may stay beside these.
    with set_aside(out, (*RESULTS, "series.png")), progress(quiet) as step:
        step("load the model")
        bundle = load_bundle(model or default_bundle_path())
        tiling = Tiling(device=pick_device(device))
        pipeline = Pipeline(bundle, tiling, step, interpolate_gaps)
        findings = pipeline.segment(
            study,
            out,
            stated=stated,
            probabilities=probabilities,
            given=given,
            dicom=dicom,
            captures=captures,
            viewer=viewer,
        )
    if as_json:
        sys.stdout.write(findings.model_dump_json(indent=2) + "\n")
    else:
        sys.stdout.write(format_findings(findings, out))


def inspect(
    study: Annotated[
        Positional[Path],
        arg(metavar="STUDY", help=_STUDY),
    ],
    /,
    *,
    out: Annotated[
        Path | None,
        arg(aliases=["-o"], metavar="DIR", help="Folder for ingest.json and series.png."),
    ] = None,
    phases: Phases = (),
    interpolate_gaps: Gaps = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Say what is in a study: every series, whether it can be used and why, and its phase."""
    from hepar.infer.bundle import default_bundle_path, load_bundle
    from hepar.io.ingest import ingest, listing
    from hepar.io.privacy import scrub
    from hepar.stages.phases import assign_phases
    from hepar.stages.read import read_study

    stated = stated_phases(phases)
    refusal: InputRefused | None = None
    read = phased = None
    with progress(quiet) as step, unlogged():
        step("read")
        try:
            read = read_study(study, stated, interpolate_gaps=interpolate_gaps)
            step("tell the phases")
            phased = assign_phases(read, load_bundle(default_bundle_path()).model("liver"))
        except InputRefused as error:
            refusal = error
            refusal.message = scrub(error.message, [str(study), *phases])
        document = ingest(read, phased, error=refusal, files=listing(study, stated))
        if out is not None:
            step("draw the series")
            _leave_inspection(document, read, out)
    if as_json:
        sys.stdout.write(document.model_dump_json(indent=2) + "\n")
    else:
        sys.stdout.write(format_inspection(document))
    if refusal:
        complain(refusal)
        raise SystemExit(refusal.exit_code)


def _leave_inspection(document: Ingest, study: Study | None, out: Path) -> None:
    """Write what `INSPECTED` names."""
    from hepar.io.atomic import staged_folder
    from hepar.io.stale import set_aside
    from hepar.render.sheet import series_sheet

    if (out / "run.json").exists():
        # They would be half of one study and half of another.
        raise UsageError(
            "E_OUTPUT_PATH", "output", f"{out.name} holds results of a run.", "Name another folder."
        )
    volumes = {s.verdict.series_id: s.volume for s in study.series} if study else {}
    with set_aside(out, INSPECTED), staged_folder(out) as staged:
        text = document.model_dump_json(indent=2) + "\n"
        (staged / "ingest.json").write_text(text, encoding="utf-8", newline="\n")
        (staged / "series.png").write_bytes(series_sheet(document, volumes).png())


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
