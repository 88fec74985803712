"""The shipped models on fresh patients of another hospital, beside the HU threshold.

    .venv/bin/python benchmarks/phantom_external.py -o benchmarks/phantom_external.json \\
        --work WORK --beside before=PATH --few "another seed=PATH"

Patients of the `external` cohort (another scanner, other habits and diseases, the rare kinds of
lesion that training never shows), each through the stages with every subset of its phases: the
liver is found on the subset's reference phase, and every method searches the same liver. Then
tumor-free patients, and abdomens without a liver. Phases stay as far apart as the cohort leaves
them; nothing is registered. Finished patients are kept in `--work`: a killed run goes on. `--bf16`
runs every network in bfloat16: half the time where it is there, Dice of a patient +- 0.01.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hepar.data.phantom_cohort import Enrolled, draw, enroll, visit
from hepar.data.phantoms import grid_of
from hepar.errors import InputRefused
from hepar.evaluate.lesion import match_one_to_one
from hepar.evaluate.lesion_case import LesionCase, lesion_case
from hepar.evaluate.score import CaseScore, score_case
from hepar.evaluate.statistics import compare
from hepar.evaluate.summary import summarize
from hepar.infer.bundle import Bundle, default_bundle_path, load_bundle
from hepar.infer.calibrate import TumorCalibration
from hepar.infer.lesion_map import lesions_from_probability
from hepar.infer.tiling import Tiling
from hepar.phantom.anatomy import Anatomy
from hepar.phantom.tissue import LIVER_TISSUES, Tissue
from hepar.phantom.version import NAME, fingerprint
from hepar.release import PhantomCase, aligned_phases
from hepar.stages.liver import find_liver
from hepar.stages.tumor import find_lesions, look, with_outline
from hepar.study import PHASE_ORDER, AlignedStudy, LiverCase, Phase, Volume
from hepar.systems.baselines.hu_threshold import HuThresholdSettings

FIRST, FIRST_TUMOR_FREE = 1_000, 50_000
SUBSETS = tuple(
    subset for n in range(len(PHASE_ORDER), 0, -1) for subset in combinations(PHASE_ORDER, n)
)
# Everything a network could report, for curves over its confidence.
PERMISSIVE = {"threshold": 0.15, "min_volume_ml": 0.02}
THRESHOLD = "HU threshold"


@dataclass(frozen=True)
class Row:
    """One method on one subset of a patient's phases."""

    score: CaseScore
    permissive: LesionCase | None


def fresh_patients(count: int) -> list[Enrolled]:
    """Test patients of the cohort; five ninths of the enrolled are."""
    enrolled = enroll("external", -(-count * 9 // 5) + 2, FIRST)
    return [patient for patient in enrolled if patient.split == "test"][:count]


def tumor_free_patients(count: int) -> list[Enrolled]:
    """Patients without a lesion, from seeds of their own."""
    enrolled = enroll("external", count, FIRST_TUMOR_FREE)
    return [
        replace(p, primary="", population=replace(p.population, tumor_free=1.0)) for p in enrolled
    ]


def case_of(patient: Enrolled, body: Anatomy) -> PhantomCase:
    scan = visit(patient, body)
    grid = grid_of(body)
    volumes = {Phase(phase): Volume(hu, grid) for phase, hu in scan.hu.items()}
    types = {lesion.id: lesion.type for lesion in body.lesions}
    return PhantomCase(aligned_phases(volumes), scan.label, scan.instances, types)


@cache
def models(path: Path) -> Bundle:
    torch.set_num_threads(1)
    return load_bundle(path)


def rows_of(
    patient: Enrolled,
    *,
    paths: dict[str, Path],
    subsets: dict[str, list[tuple[Phase, ...]]],
    tiling: Tiling,
) -> dict[tuple[str, str], Row]:
    """Every method on every subset; a refused liver is an empty result."""
    case = case_of(patient, draw(patient))
    ours = models(next(iter(paths.values())))
    # Liver and threshold look at the reference phase alone: four of the fifteen subsets differ.
    livers: dict[Phase, LiverCase | None] = {}
    baseline: dict[Phase, Row] = {}
    rows: dict[tuple[str, str], Row] = {}
    for subset in SUBSETS:
        name, aligned = "+".join(subset), case.only(subset).aligned
        reference = aligned.reference
        if reference not in livers:
            livers[reference] = liver_of(aligned, ours, tiling)
        found = livers[reference]
        if found is None:
            empty = np.zeros(case.label.shape, np.uint8)
            for method in (*paths, THRESHOLD):
                if subset in subsets[method]:
                    rows[method, name] = Row(score(patient, case, empty, None), None)
            continue
        liver = replace(found, aligned=aligned)
        for method, path in paths.items():
            if subset in subsets[method]:
                rows[method, name] = network_row(patient, case, liver, models(path), tiling)
        if subset in subsets[THRESHOLD]:
            if reference not in baseline:
                _, lesions = find_lesions(liver, HuThresholdSettings())
                scored = score(patient, case, lesions.label, lesions.instances)
                baseline[reference] = Row(scored, None)
            rows[THRESHOLD, name] = baseline[reference]
    return rows


def liver_of(aligned: AlignedStudy, bundle: Bundle, tiling: Tiling) -> LiverCase | None:
    """The liver, or None where it is refused."""
    try:
        return find_liver(aligned, bundle.model("liver"), tiling=tiling)
    except InputRefused:
        return None


def network_row(
    patient: Enrolled, case: PhantomCase, liver: LiverCase, bundle: Bundle, tiling: Tiling
) -> Row:
    model = bundle.model("tumor")
    calibration = TumorCalibration.model_validate(dict(model.calibration))
    try:
        evidence = look(liver, model, tiling=tiling)
    except InputRefused:
        return Row(score(patient, case, np.zeros(case.label.shape, np.uint8), None), None)
    probability, liver = evidence.tumor, with_outline(liver, evidence)
    found = lesions_from_probability(liver, probability, calibration)
    scored = score(patient, case, found.label, found.instances)
    every = lesions_from_probability(liver, probability, TumorCalibration(**PERMISSIVE))
    peaks = {
        lesion.id: float(probability[every.instances[liver.box.slices] == lesion.id].max())
        for lesion in every.lesions
    }
    permissive = lesion_case(
        patient.case_id,
        patient.case_id,
        every.label,
        case.label,
        case.aligned.grid.spacing_mm,
        predicted_instances=every.instances,
        reference_instances=case.instances,
        scores=peaks,
    )
    return Row(scored, permissive)


def score(
    patient: Enrolled,
    case: PhantomCase,
    label: np.ndarray,
    instances: np.ndarray | None,
) -> CaseScore:
    return score_case(
        patient.case_id,
        label,
        case.label,
        case.aligned.grid.spacing_mm,
        predicted_instances=instances,
        reference_instances=case.instances,
    )


def without_liver(patient: Enrolled, *, path: Path) -> str:
    """What the liver and tumor stages say of an abdomen whose liver is fat."""
    body = draw(patient)
    tissue = body.tissue.copy()
    gone = body.liver | np.isin(tissue, [int(t) for t in LIVER_TISSUES])
    tissue[gone] = Tissue.FAT
    nothing = np.zeros_like(body.instances)
    bare = replace(
        body,
        tissue=tissue,
        liver=np.zeros_like(body.liver),
        instances=nothing,
        parts=nothing,
        lesions=(),
        second=None,
        share=None,
    )
    try:
        coarse = find_liver(case_of(patient, bare).aligned, models(path).model("liver"))
        found, _ = find_lesions(coarse, models(path).model("tumor"))
    except InputRefused as refusal:
        return refusal.code
    return f"{found.liver_ml:.0f} ml"


def at_equal_recall(rows: list[Row], baseline: list[Row]) -> dict[str, Any] | None:
    """False lesions of a network cut where it finds as many lesions as the baseline, paired."""
    cases = [row.permissive for row in rows]
    wanted = sum(len(row.score.match.pairs) for row in baseline)
    cuts = sorted({s for case in cases if case for s in (case.scores or {}).values()}, reverse=True)

    def found(cut: float) -> tuple[int, list[float]]:
        pairs, false = 0, []
        for case in cases:
            kept = [] if case is None else [p for p, s in (case.scores or {}).items() if s >= cut]
            match = None if case is None else match_one_to_one(case.overlaps.keep(kept))
            pairs += len(match.pairs) if match else 0
            false.append(float(len(match.false)) if match else 0.0)
        return pairs, false

    low, high = 0, len(cuts) - 1
    if high < 0 or found(cuts[high])[0] < wanted:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if found(cuts[middle])[0] >= wanted else (middle + 1, high)
    pairs, false = found(cuts[low])
    theirs = [float(len(row.score.match.false)) for row in baseline]
    difference = compare(false, theirs, [row.score.patient_id for row in rows])
    return {
        "confidence": cuts[low],
        "found": pairs,
        "baseline_found": wanted,
        "false_per_patient": float(np.mean(false)),
        "baseline_false_per_patient": float(np.mean(theirs)),
        "difference": difference.mean,
        "interval": difference.interval,
        "p_wilcoxon": difference.p_wilcoxon,
        "verdict": difference.verdict,
    }


def differences(rows: list[Row], baseline: list[Row]) -> dict[str, Any]:
    """Paired differences per patient: tumor Dice, false lesions, false ml."""
    patients = [row.score.patient_id for row in rows]
    pairs = {}
    for name, value in (
        ("tumor_dice", lambda row: penalised_dice(row.score)),
        ("false_lesions", lambda row: float(len(row.score.match.false))),
        ("false_ml", lambda row: row.score.structures["tumor"].overlap.false_ml),
    ):
        found = compare([value(r) for r in rows], [value(r) for r in baseline], patients)
        told = ("mean", "interval", "p_wilcoxon", "verdict")
        pairs[name] = {key: getattr(found, key) for key in told}
    return pairs


def penalised_dice(case: CaseScore) -> float | None:
    overlap = case.structures["tumor"].overlap
    if overlap.reference == 0 and overlap.predicted == 0:
        return None
    return overlap.dice or 0.0


def each(
    jobs: list[Enrolled], work: Path, kind: str, make: Any, processes: int
) -> Iterator[tuple[Enrolled, Any]]:
    """Results in order, made in several processes and kept in the work folder."""
    work.mkdir(parents=True, exist_ok=True)
    files = [work / f"{kind}-{patient.seed}.pickle" for patient in jobs]
    missing = [i for i, file in enumerate(files) if not file.exists()]
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        made = pool.map(make, [jobs[i] for i in missing])
        for number, (i, result) in enumerate(zip(missing, made, strict=True), 1):
            files[i].write_bytes(pickle.dumps(result))
            print(f"{kind} {number} of {len(missing)}", flush=True)
    for patient, file in zip(jobs, files, strict=True):
        yield patient, pickle.loads(file.read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=100)
    parser.add_argument("--tumor-free", type=int, default=30)
    parser.add_argument("--no-liver", type=int, default=10)
    parser.add_argument("--model", type=Path, help="model folder; the shipped one by default")
    parser.add_argument(
        "--beside", action="append", default=[], help="NAME=folder of another model"
    )
    parser.add_argument(
        "--few", action="append", default=[], help="the same, with all phases and PV alone only"
    )
    parser.add_argument("--bf16", action="store_true", help="bfloat16 in every network")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    paths = {"hepar": options.model or default_bundle_path()}
    few = [text.split("=")[0] for text in options.few]
    for text in (*options.beside, *options.few):
        name, _, path = text.partition("=")
        paths[name] = Path(path)
    some = [SUBSETS[0], (Phase.PV,)]
    subsets = {name: some if name in few else list(SUBSETS) for name in (*paths, THRESHOLD)}
    tiling = Tiling(bf16=options.bf16)
    make = partial(rows_of, paths=paths, subsets=subsets, tiling=tiling)
    document: dict[str, Any] = {
        "phantom": NAME,
        "fingerprint": fingerprint(),
        "models": {name: load_bundle(path).sha256 for name, path in paths.items()},
        "patients": options.patients,
        "bf16": options.bf16,
    }
    run = partial(each, work=options.work, processes=options.processes)
    kept = dict(run(fresh_patients(options.patients), kind="patient", make=make))
    rows = by_method(kept)
    document["rows"] = {"|".join(key): slim(row) for key, row in rows.items()}
    document["beside_threshold"] = {
        key[1]: {
            "paired": differences(row, rows[THRESHOLD, key[1]]),
            "equal_recall": at_equal_recall(row, rows[THRESHOLD, key[1]]),
        }
        for key, row in rows.items()
        if key[0] == "hepar"
    }
    document["beside_other"] = {
        other: {
            key[1]: differences(row, rows[other, key[1]])
            for key, row in rows.items()
            if key[0] == "hepar" and (other, key[1]) in rows
        }
        for other in paths
        if other != "hepar"
    }
    only = dict.fromkeys(subsets, some)
    free = partial(rows_of, paths=paths, subsets=only, tiling=tiling)
    kept = dict(run(tumor_free_patients(options.tumor_free), kind="free", make=free))
    document["tumor_free"] = {"|".join(k): slim(row) for k, row in by_method(kept).items()}
    none = partial(without_liver, path=paths["hepar"])
    jobs = tumor_free_patients(options.no_liver)
    document["without_liver"] = [said for _, said in run(jobs, kind="none", make=none)]
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    show(document)


def by_method(kept: dict[Enrolled, dict[tuple[str, str], Row]]) -> dict[tuple[str, str], list[Row]]:
    rows: dict[tuple[str, str], list[Row]] = {}
    for found in kept.values():
        for key, row in found.items():
            rows.setdefault(key, []).append(row)
    return rows


def slim(rows: list[Row]) -> dict[str, Any]:
    """The figures of a row, without its cases."""
    summary = summarize([row.score for row in rows])
    liver, tumor = (summary["structures"][name] for name in ("liver", "tumor"))
    lesions = summary["lesions"]
    return {
        "n": len(rows),
        "liver_dice": liver["measures"]["dice"]["penalised"],
        "tumor_dice": tumor["measures"]["dice"]["penalised"],
        "tumor_dice_global": tumor["dice_global"],
        "recall": lesions["rules"][0],
        "by_size": lesions["by_size"],
        "false_per_patient": lesions["false_per_patient"],
        "false_interval": lesions.get("false_per_patient_interval"),
        "false_ml": compare(
            [row.score.structures["tumor"].overlap.false_ml for row in rows],
            [0.0] * len(rows),
            [row.score.patient_id for row in rows],
        ).__dict__,
    }


def show(document: dict[str, Any]) -> None:
    for part in ("rows", "tumor_free"):
        for name, row in document[part].items():
            recall = row["recall"]["recall"] or 0
            print(
                f"{part} {name:<32} liver {row['liver_dice']['mean']:.3f}"
                f" tumor {row['tumor_dice']['mean'] or 0:.3f} recall {recall:.2f}"
                f" false/patient {row['false_per_patient']:.2f}"
                f" false ml {row['false_ml']['mean']:.1f}"
            )
    print("without liver:", document["without_liver"])


if __name__ == "__main__":
    main()
