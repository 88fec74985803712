"""Contrast phases told from the image alone: the classifier fitted, and measured, on phantoms.

    .venv/bin/python benchmarks/phase_recognition.py fit -o src/hepar/infer/phases.json
    .venv/bin/python benchmarks/phase_recognition.py test -o benchmarks/phase_recognition.json
    .venv/bin/python benchmarks/phase_recognition.py real DATA -o benchmarks/phase_recognition.json

Every patient gives four scans, and of every scan a part of 6 to 12 cm along z that shows some
liver, because scans of less than the abdomen exist. Voxels are 5 x 2.5 x 2.5 or 4 x 3 x 3 mm, the
scanner `home` or `external`, by turns. Seeds: fitting from 980000, temperature from 985000, test
from 990000. DATA holds real scans whose phase is known otherwise; nothing was chosen on them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import numpy as np
import torch

from hepar.data.phantoms import grid_of
from hepar.geometry import Box
from hepar.infer.bundle import Model, default_bundle_path, load_bundle
from hepar.infer.organ_hu import organ_hu
from hepar.infer.organs import find_organs
from hepar.infer.phase_reading import (
    calibrate_phase_classifier,
    default_phase_classifier,
    fit_phase_classifier,
)
from hepar.phantom.anatomy import anatomy
from hepar.phantom.scanner import paint
from hepar.stages.read import read_study
from hepar.study import PHASE_ORDER, Phase, Volume

FIT_SEED, CALIBRATION_SEED, TEST_SEED = 980_000, 985_000, 990_000
SPACINGS_MM = ((5.0, 2.5, 2.5), (4.0, 3.0, 3.0))
SCANNERS = ("home", "home", "external")
CUT_MM = (60.0, 120.0)


@dataclass(frozen=True)
class Scan:
    """What was measured in one phantom scan: phase as named, seconds after injection, HU."""

    seed: int
    phase: str
    time_s: float
    cut: bool
    hu: dict[str, float]


def scans(seed: int, model: Model) -> Iterator[Scan]:
    """Four scans of a patient, whole and cut."""
    body = anatomy(seed, spacing_mm=SPACINGS_MM[seed % 2])
    painted = paint(body, seed, scanner=SCANNERS[seed % 3])
    grid = grid_of(body)
    part = _part(body.liver, grid.spacing_mm[0], seed)
    for phase in PHASE_ORDER:
        whole = Volume(painted.hu[phase], grid)
        cut = Volume(whole.array[part.slices], grid.crop(part))
        for volume in (whole, cut):
            values = organ_hu(volume, find_organs(volume, model))
            yield Scan(seed, str(phase), painted.times_s[phase], volume is cut, values)


def _part(liver: np.ndarray, spacing_z_mm: float, seed: int) -> Box:
    """A stack of slices whose middle shows liver."""
    rng = np.random.default_rng([seed, 7])
    z = int(rng.choice(np.flatnonzero(liver.any(axis=(1, 2)))))
    half = round(rng.uniform(*CUT_MM) / spacing_z_mm / 2)
    start = max(0, z - half)
    return Box((start, 0, 0), (min(liver.shape[0], z + half + 1), *liver.shape[1:]))


def measured(seeds: range, model: Model, keep: Path | None) -> list[Scan]:
    """Scans of many patients; `keep` holds those measured before, one a line."""
    known: dict[int, list[Scan]] = {}
    if keep is not None and keep.exists():
        for line in keep.read_text().splitlines():
            scan = Scan(**json.loads(line))
            known.setdefault(scan.seed, []).append(scan)
    found: list[Scan] = []
    for seed in seeds:
        if seed not in known:
            known[seed] = list(scans(seed, model))
            if keep is not None:
                with keep.open("a") as stream:
                    stream.writelines(json.dumps(asdict(scan)) + "\n" for scan in known[seed])
        found += known[seed]
    return found


def well_timed(scan: Scan) -> bool:
    """Within the times the phantom means for a phase (`hepar.phantom.enhancement.draw_time_s`)."""
    low, high = {"NC": (0, 0), "ART": (20, 40), "PV": (60, 90), "DL": (120, 300)}[scan.phase]
    return low <= scan.time_s <= high


def fit(options: argparse.Namespace, model: Model) -> None:
    """Fit, calibrate, and write the coefficients."""
    begin = range(FIT_SEED, FIT_SEED + options.patients)
    fitted = measured(begin, model, options.keep)
    more = range(CALIBRATION_SEED, CALIBRATION_SEED + options.patients // 2)
    held_out = measured(more, model, options.keep)
    classifier = fit_phase_classifier(
        [s.hu for s in fitted], [Phase(s.phase) for s in fitted], [s.time_s for s in fitted]
    )
    classifier = calibrate_phase_classifier(
        classifier, [s.hu for s in held_out], [Phase(s.phase) for s in held_out]
    )
    classifier = classifier.model_copy(update={"liver_sha256": model.sha256})
    rows = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in classifier.model_dump().items()]
    options.out.write_text("{\n" + ",\n".join(rows) + "\n}\n")


def test(options: argparse.Namespace, model: Model) -> None:
    """Score the shipped coefficients on patients that neither fit nor calibration saw."""
    found = measured(range(TEST_SEED, TEST_SEED + options.patients), model, options.keep)
    result = {
        "seeds": [TEST_SEED, TEST_SEED + options.patients - 1],
        "liver_sha256": model.sha256,
        "temperature": default_phase_classifier().temperature,
        "whole scans": report([s for s in found if not s.cut]),
        "parts of 6 to 12 cm": report([s for s in found if s.cut]),
    }
    write(options.out, "phantoms", result)


def report(found: list[Scan]) -> dict[str, Any]:
    """Well-timed scans, badly timed ones, and both together."""
    parts = {
        "well timed": [s for s in found if well_timed(s)],
        "badly timed": [s for s in found if not well_timed(s)],
        "all": found,
    }
    return {name: score(part) for name, part in parts.items()}


def score(found: list[Scan]) -> dict[str, Any]:
    """Accuracy, confusion (row: as named, column: as read), calibration and every error.

    A scan that shows too few organs has no reading, and counts as an error.
    """
    classifier = default_phase_classifier()
    readings = [classifier.read(scan.hu) for scan in found]
    names = [str(phase) for phase in PHASE_ORDER]
    confusion = {name: dict.fromkeys([*names, "none"], 0) for name in names}
    pairs: list[tuple[float, bool]] = []
    errors = []
    for scan, reading in zip(found, readings, strict=True):
        told = "none" if reading is None else str(reading.phase)
        confusion[scan.phase][told] += 1
        if reading is not None:
            pairs.append((reading.confidence, told == scan.phase))
        if told != scan.phase:
            sure = None if reading is None else round(reading.confidence, 3)
            errors.append({**asdict(scan), "read": told, "confidence": sure})
    chance, right = np.array([c for c, _ in pairs]), np.array([r for _, r in pairs])
    hits = int(right.sum())
    return {
        "n": len(found),
        "accuracy": round(hits / len(found), 4),
        "right": hits,
        "unfamiliar": sum(r is not None and not r.familiar for r in readings),
        "mean_confidence": round(float(chance.mean()), 4),
        "wrong_with_0.9_or_more": sum(c >= 0.9 and not r for c, r in pairs),
        **bins(chance, right),
        "confusion": confusion,
        "errors": errors,
    }


def bins(chance: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """Expected calibration error over ten bins of confidence, and the bins that hold scans."""
    edges = np.linspace(0, 1, 11)
    which = np.clip(np.digitize(chance, edges) - 1, 0, 9)
    rows, error = [], 0.0
    for k in range(10):
        inside = which == k
        if inside.any():
            sure, hit = float(chance[inside].mean()), float(right[inside].mean())
            error += abs(sure - hit) * float(inside.mean())
            row = {"from": round(float(edges[k]), 1), "n": int(inside.sum())}
            rows.append(row | {"confidence": round(sure, 3), "accuracy": round(hit, 3)})
    return {"ece": round(error, 4), "reliability": rows}


REAL = {
    "kits_00072_arterial_partial/series.tar.xz": "described as arterial, upper liver only",
    "acrin_flt_breast_001_abdomen/series.tar.gz": "unenhanced",
    "totalsegmentator_example_ct/example_ct.nii.gz": "unenhanced",
    "totalsegmentator_example_ct_dicom": "contrast, phase not stated",
    "ircad01/3Dircadb1.1/PATIENT_DICOM.tar.xz": "portal venous by the HU of its vessels",
}


def real(options: argparse.Namespace, model: Model) -> None:
    """Read the phase of real scans; nothing is chosen on them."""
    rows = []
    for name, known in REAL.items():
        with tempfile.TemporaryDirectory() as folder:
            source = options.data / name
            if ".tar" in name:
                with tarfile.open(source) as archive:
                    archive.extractall(folder, filter="data")
                source = Path(folder)
            for series in read_study(source).series:
                begun = time.perf_counter()
                values = organ_hu(series.volume, find_organs(series.volume, model))
                seconds = time.perf_counter() - begun
                reading = default_phase_classifier().read(values)
                row: dict[str, Any] = {"scan": name, "known": known, "hu": values}
                if reading is not None:
                    chances = {str(p): round(v, 3) for p, v in reading.probabilities.items()}
                    row |= {"read": str(reading.phase), "probabilities": chances}
                    row["familiar"] = reading.familiar
                rows.append(row | {"seconds": round(seconds, 1)})
    write(options.out, "real scans", {"n": len(rows), "scans": rows})


def write(path: Path, key: str, result: dict[str, Any]) -> None:
    document = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**document, key: result}, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["fit", "test", "real"])
    parser.add_argument("data", type=Path, nargs="?", help="folder of the real scans")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--patients", type=int, default=0, help="60 to fit, 50 to test")
    parser.add_argument("--keep", type=Path, help="JSON lines of scans measured before, extended")
    options = parser.parse_args()
    options.patients = options.patients or (50 if options.what == "test" else 60)
    torch.set_num_threads(1)
    model = load_bundle(default_bundle_path()).model("liver")
    {"fit": fit, "test": test, "real": real}[options.what](options, model)


if __name__ == "__main__":
    main()
