"""Cohorts: synthetic patients, and data sets as they are published.

Nothing heavy is imported until a verb runs, so that `hepar --help` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from hepar.console import (
    format_prepared,
    progress,
)
from hepar.errors import UsageError
from hepar.verbs.options import Json, Out, Quiet


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
    validation: Annotated[
        int, arg(help="Split into train and this many validation patients instead of folds.")
    ] = 0,
    seed: Annotated[int, arg(help="Seed of the folds, or of that split.")] = 0,
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
            validation=validation,
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
