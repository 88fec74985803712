"""Score the main job on 3D-IRCADb-01 patient 1: a test, never a tool for training or choosing.

    .venv/bin/python benchmarks/real_case.py DATA

DATA holds `3Dircadb1.1` in its original layout (PATIENT_DICOM and MASKS_DICOM as folders or
archives). Runs `hepar segment` on the DICOM folder as a user would, scores it on the scanner's own
voxels beside the HU threshold (inside the predicted and the true liver), and appends date, commit,
weights hash and every score to `real_case.jsonl`. Tumor truth is the union of livertumor01-07; the
cyst is an ignore region. Liver truth includes tumors and cyst.
"""

from __future__ import annotations

import argparse
import datetime
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from hepar.data.importers.ircad import find_case
from hepar.data.importers.loading import LoadedCase, load_case
from hepar.evaluate.score import CaseScore, score_case
from hepar.io.nifti import read_label
from hepar.study import Phase
from hepar.systems.baselines.hu_threshold import hu_threshold

LOG = Path(__file__).with_name("real_case.jsonl")


def commit() -> str:
    run = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return run.stdout.strip() or "unknown"


def compact(score: CaseScore, reference_ml: dict[int, float]) -> dict[str, Any]:
    """Rounded scores and the volumes of the lesions that were found and missed."""
    row = {
        key: round(value, 4) if isinstance(value, float) else value
        for key, value in score.row().items()
        if key not in ("case_id", "patient_id", "diagonal_mm")
    }
    row["found_ml"] = sorted(round(reference_ml[r], 1) for _, r, _ in score.match.pairs)[::-1]
    row["missed_ml"] = sorted(round(reference_ml[r], 1) for r in score.match.missed)[::-1]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder 3Dircadb1.1")
    parser.add_argument("--out", type=Path, help="keep the run's results here")
    parser.add_argument("--model", type=Path, help="model folder; the shipped one by default")
    parser.add_argument("--note", default="", help="why this entry was made")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        case = find_case(options.data, work / "unpacked")
        out = options.out or work / "out"
        patient = str(case.images[Phase.PV])
        command = [sys.executable, "-m", "hepar.cli", "segment", patient, "-o", str(out)]
        if options.model:
            command += ["--model", str(options.model)]
        begun = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - begun
        peak_gb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        entry = score(out, load_case(case))
    entry = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "note": options.note,
        "seconds": round(seconds, 1),
        "peak_rss_gb": round(peak_gb, 2),
        **entry,
    }
    with LOG.open("a") as stream:
        stream.write(json.dumps(entry) + "\n")
    print(json.dumps(entry, indent=2))


def score(out: Path, patient: LoadedCase) -> dict[str, Any]:
    image, truth, instances = patient.images[Phase.PV], patient.label, patient.instances
    assert instances is not None
    spacing_mm = image.grid.spacing_mm
    predicted = read_label(out / "segmentation.nii.gz")
    if not predicted.grid.is_close(image.grid):
        raise SystemExit("the segmentation does not lie on the source voxels")
    ids = read_label(out / "lesions.nii.gz").array
    voxels = np.bincount(instances.ravel())
    sizes = {i: float(n) * image.grid.voxel_ml for i, n in enumerate(voxels) if i}

    def against(label: np.ndarray, found: np.ndarray | None = None) -> dict[str, Any]:
        result = score_case(
            "ircad01",
            label,
            truth,
            spacing_mm,
            predicted_instances=found,
            reference_instances=instances.astype(np.int32),
            ignore=patient.ignore,
        )
        return compact(result, sizes)

    def threshold(organ: np.ndarray) -> np.ndarray:
        found = hu_threshold(image.array, organ, spacing_mm)
        return np.where(found, 2, organ).astype(np.uint8)

    run = json.loads((out / "run.json").read_text())
    return {
        "weights_sha256": run["hashes"]["model"],
        "hepar": against(predicted.array, ids),
        "hu_threshold_predicted_liver": against(threshold(predicted.array > 0)),
        "hu_threshold_true_liver": against(threshold(truth > 0)),
    }


if __name__ == "__main__":
    main()
