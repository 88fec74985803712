"""Many patients in one command.

Nothing heavy is imported until a verb runs, so that `hepar --help` answers at once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from hepar.arguments import pick_device
from hepar.console import format_batch, progress
from hepar.errors import EXIT_BATCH_PARTLY_FAILED
from hepar.verbs.options import (
    Captures,
    Device,
    Dicom,
    Gaps,
    Json,
    Model,
    Out,
    Probabilities,
    Quiet,
    Viewer,
)


def batch(
    studies: Annotated[
        Positional[Path],
        arg(
            metavar="FOLDER|COHORT.csv",
            help="A sub-folder, NIfTI file or archive a study; or a table with a row a study.",
        ),
    ],
    /,
    *,
    out: Out,
    workers: Annotated[int, arg(help="Studies at a time, each in a process of its own.")] = 1,
    num_parts: Annotated[
        int, arg(help="Deal the studies to so many parts, as to the tasks of a job array.")
    ] = 1,
    part_id: Annotated[int, arg(help="Do this part of them, counted from 0.")] = 0,
    timeout: Annotated[
        float, arg(metavar="SECONDS", help="A study that takes longer is stopped.")
    ] = 3600.0,
    interpolate_gaps: Gaps = False,
    model: Model = None,
    probabilities: Probabilities = False,
    dicom: Dicom = False,
    captures: Captures = False,
    viewer: Viewer = False,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Segment every study of a folder or a cohort; killed or not, the same command goes on."""
    from hepar.batch.job import Engine
    from hepar.batch.night import run_batch

    engine = Engine(
        model,
        pick_device(device),
        probabilities=probabilities,
        interpolate_gaps=interpolate_gaps,
        dicom=dicom,
        captures=captures,
        viewer=viewer,
    )
    with progress(quiet) as step:
        document = run_batch(
            studies,
            out,
            engine,
            workers=workers,
            num_parts=num_parts,
            part_id=part_id,
            timeout_s=timeout,
            progress=step.tell,
        )
    if as_json:
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        sys.stdout.write(format_batch(document, out))
    if document["counts"]["failed"] or document["counts"]["open"]:
        raise SystemExit(EXIT_BATCH_PARTLY_FAILED)


def serve(
    folder: Annotated[
        Positional[Path],
        arg(metavar="FOLDER", help="What the server keeps; serve.yaml in it says how it serves."),
    ],
    /,
    *,
    model: Model = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Segment what arrives by DICOM or from a browser, until it is stopped."""
    from hepar.batch.job import Engine
    from hepar.server.serve import run_server

    with progress(quiet) as step:
        run_server(folder, Engine(model, pick_device(device)), progress=step.tell)
