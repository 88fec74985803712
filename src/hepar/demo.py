"""`hepar demo`: a synthetic patient as DICOM through the whole pipeline, beside its truth."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hepar.console import format_findings
from hepar.data.phantoms import case_name, write_patients
from hepar.evaluate.score import CaseScore, score_case
from hepar.infer.bundle import default_bundle_path, load_bundle
from hepar.infer.tiling import Tiling
from hepar.io.nifti import read_label
from hepar.pipeline import Pipeline
from hepar.render.viewer import SCRIPTS


def run_demo(out: Path, *, seed: int, device: str, progress: Callable[[str], None]) -> str:
    """Make a patient in `out/input`, segment it into `out`, and compare.

    Args:
        out: folder.
        seed: of the patient; not among those any shipped weights were trained on.
        device: torch device.
        progress: told the stages.

    Returns:
        The lesion table beside the truth, as text.
    """
    write_patients(out / "input", [seed], formats=("dicom",), progress=progress)
    case = out / "input" / case_name(seed)
    pipeline = Pipeline(load_bundle(default_bundle_path()), Tiling(device=device), progress)
    viewer = SCRIPTS[0].is_file()
    if not viewer:
        progress("without the viewer: `make viewer` was not run, or found no npm")
    findings = pipeline.segment(case / "dicom", out, viewer=viewer)
    progress("compare with the truth")
    truth = read_label(case / "label.nii.gz")
    instances = read_label(case / "instances.nii.gz").array
    predicted = read_label(out / "segmentation.nii.gz")
    found = read_label(out / "lesions.nii.gz").array
    score = score_case(
        case_name(seed),
        predicted.array,
        truth.array,
        truth.grid.spacing_mm,
        predicted_instances=found,
        reference_instances=instances,
    )
    with (out / "input" / "lesions.csv").open(newline="") as stream:
        types = {int(row["lesion_id"]): row["type"] for row in csv.DictReader(stream)}
    return format_findings(findings, out) + format_truth(
        score, instances, types, truth.grid.voxel_ml
    )


def format_truth(
    score: CaseScore, instances: np.ndarray, types: dict[int, str], voxel_ml: float
) -> str:
    """The true lesions and what became of each."""
    matched = {reference: (found, iou) for found, reference, iou in score.match.pairs}
    lines = ["", "truth:", f"{'id':>3}{'ml':>9}  {'type':<15}found as"]
    for number in sorted(types):
        volume_ml = np.count_nonzero(instances == number) * voxel_ml
        found = "missed"
        if number in matched:
            found = f"{matched[number][0]} (IoU {matched[number][1]:.2f})"
        lines.append(f"{number:>3}{volume_ml:9.2f}  {types[number]:<15}{found}")
    if not types:
        lines.append("no lesion")
    liver, tumor = (score.structures[name].overlap.dice for name in ("liver", "tumor"))
    lines.append(
        f"liver Dice {'undefined' if liver is None else f'{liver:.3f}'}, "
        f"tumor Dice {'undefined' if tumor is None else f'{tumor:.3f}'}, "
        f"false lesions {len(score.match.false)}"
    )
    return "\n".join(lines) + "\n"
