"""The shipped bundle on unseen phantoms, beside the HU threshold, with and without a phase.

    .venv/bin/python benchmarks/phantom_aims.py --patients 20 -o benchmarks/phantom_aims.json

Each patient goes through the stages with the liver that the liver network finds; the phases are
left misaligned as the phantom writes them and are not registered. Scores are per case, means over
patients, tumor-free patients included in the lesion counts.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

from hepar.errors import InputRefused
from hepar.evaluate.score import CaseScore, score_case
from hepar.evaluate.summary import summarize
from hepar.infer.bundle import default_bundle_path, load_bundle
from hepar.phantom.population import POPULATIONS
from hepar.phantom.version import NAME
from hepar.release import PhantomCase, phantom_case
from hepar.stages.liver import find_liver
from hepar.stages.tumor import find_lesions
from hepar.study import PHASE_ORDER, LesionMap, Phase
from hepar.systems.baselines.hu_threshold import HuThresholdSettings

FIRST_SEED = 910_000  # training, calibration and the demo use others
# With the rare kinds of lesion that no training patient shows.
TEST = replace(POPULATIONS["general"], rare="all")
SUBSETS = {
    "all phases": PHASE_ORDER,
    "without ART": (Phase.NC, Phase.PV, Phase.DL),
    "PV alone": (Phase.PV,),
}


def score_lesions(case: PhantomCase, found: LesionMap, seed: int) -> CaseScore:
    return score_case(
        str(seed),
        found.label,
        case.label,
        case.aligned.grid.spacing_mm,
        predicted_instances=found.instances,
        reference_instances=case.instances,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=20)
    parser.add_argument("--model", type=Path, help="model folder; the shipped one by default")
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    bundle = load_bundle(options.model or default_bundle_path())
    rows: dict[str, list[CaseScore]] = {}
    refused: list[str] = []
    begun = time.perf_counter()
    for seed in range(FIRST_SEED, FIRST_SEED + options.patients):
        case = phantom_case(seed, population=TEST)
        try:
            liver = find_liver(case.aligned, bundle.model("liver"))
        except InputRefused as refusal:
            refused.append(f"{seed}: {refusal.code}")
            continue
        for name, phases in SUBSETS.items():
            # All subsets hold PV, the reference, so the liver is the same.
            some = replace(liver, aligned=case.only(phases).aligned)
            score = score_lesions(case, find_lesions(some, bundle.model("tumor")), seed)
            rows.setdefault(f"hepar, {name}", []).append(score)
        threshold = find_lesions(liver, HuThresholdSettings())
        rows.setdefault("HU threshold, PV", []).append(score_lesions(case, threshold, seed))
        print(f"{seed} {time.perf_counter() - begun:.0f} s", flush=True)
    document = {
        "phantom": NAME,
        "model_sha256": bundle.sha256,
        "patients": options.patients,
        "first_seed": FIRST_SEED,
        "refused": refused,
        "rows": {name: summarize(cases) for name, cases in rows.items()},
    }
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    for name, summary in document["rows"].items():
        structures, lesions = summary["structures"], summary["lesions"]
        liver, tumor = (structures[n]["measures"]["dice"]["penalised"] for n in structures)
        print(
            f"{name:<26} liver {liver['mean']:.3f} tumor DPC {tumor['mean']:.3f} (n {tumor['n']})"
            f" DG {structures['tumor']['dice_global']:.3f}"
            f" recall {lesions['rules'][0]['recall']:.2f}"
            f" false/patient {lesions['false_per_patient']:.2f}"
        )


if __name__ == "__main__":
    main()
