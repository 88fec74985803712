"""What lesions are and what patients have: the shipped diagnosis beside bundles of typed systems.

    python benchmarks/diagnosis.py COHORT --holdout OTHER --beside lidia=BUNDLE \\
        -o benchmarks/diagnosis.json --work WORK

The test patients of COHORT, then all of OTHER, whose rare kinds of lesion no training shows. Every
bundle is given the true liver and the phases as they lie, finds its own lesions, and says what it
says in the product: `find_lesions`, `diagnose`. A patient is scored by what is said of each type,
and again without abstention: by the surest lesion of each, named or not. Of lesions that were found
there are, besides, the share that was named, of the named those named rightly, and of lesions of
kinds that no training shows those called by the name of a known type; rare kinds are counted one by
one. A bundle is better where the 95 % interval of a paired difference, by patient, leaves out zero.
Finished patients are kept in WORK.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from hepar.data.cohort import CohortCase, read_instances
from hepar.data.protocol import Protocol, read_protocol
from hepar.evaluate.run_auc import MEANS, auc_difference, scored_patients
from hepar.evaluate.run_result import CaseResult, TypedResult
from hepar.evaluate.score import score_case
from hepar.evaluate.statistics import percentile_interval
from hepar.evaluate.type_columns import type_figure
from hepar.infer.bundle import Bundle, default_bundle_path, load_bundle
from hepar.infer.tiling import Tiling
from hepar.phantom.lesion_kinds import KINDS
from hepar.score_cohort import liver_case
from hepar.stages.diagnose import diagnose
from hepar.stages.tumor import find_lesions
from hepar.study import LESION_TYPES, TUMOR, Diagnosis, LesionMap
from hepar.systems.base import System

SHIPPED = "shipped"
SAID, FORCED = "as said", "without abstention"
NAMED = ("left open", "a known type")
OF_LESIONS = ("precision", "sensitivity", "accuracy")


@dataclass(frozen=True)
class Verdict:
    """One bundle on one patient.

    Attributes:
        results: scored by what is said, and without abstention.
        lesions: of each found lesion its true type, its true kind, and the name it was given.
    """

    results: Mapping[str, CaseResult]
    lesions: tuple[tuple[str, str, str], ...]

    def plain(self) -> dict[str, Any]:
        """JSON data."""
        results = {how: r.model_dump(mode="json") for how, r in self.results.items()}
        return {"results": results, "lesions": self.lesions}

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Verdict:
        """What `plain` made."""
        results = {
            how: CaseResult.model_validate_json(json.dumps(r)) for how, r in data["results"].items()
        }
        return cls(results, tuple((a, b, c) for a, b, c in data["lesions"]))


def judge(
    case: CohortCase, bundle: Bundle, types: Mapping[int, str], kinds: Mapping[int, str]
) -> Verdict:
    """Let a bundle look at a patient."""
    model = bundle.model("tumor")
    liver, label = liver_case(case, cast(System, model.system).input_spec, 10.0)
    refined, found = find_lesions(liver, model, tiling=Tiling())
    said = diagnose(refined, found, bundle.classifier())
    instances = read_instances(case, label, types)
    truth = np.where(label.array == TUMOR, TUMOR, liver.liver).astype(np.uint8)
    score = score_case(
        case.case_id,
        found.label,
        truth,
        label.grid.spacing_mm,
        patient_id=case.patient_id,
        predicted_instances=found.instances,
        reference_instances=instances,
        predicted_types={j.lesion_id: likeliest(j.probabilities) for j in said.lesions},
        reference_types=types,
    )
    assert score.lesions is not None
    named = {j.lesion_id: j.label for j in said.lesions}
    pairs = tuple((types[r], kinds[r], named[p]) for p, r, _ in score.lesions.match.pairs)
    results = {
        how: CaseResult.of(
            score, "", typed=TypedResult.of(score.lesions, {"livermax": chances(found, said, how)})
        )
        for how in (SAID, FORCED)
    }
    return Verdict(results, pairs)


def likeliest(probabilities: Mapping[str, float]) -> str:
    """The type that a lesion would be called without abstention."""
    return max(LESION_TYPES, key=lambda name: probabilities.get(name, 0.0))


def chances(found: LesionMap, said: Diagnosis, how: str) -> dict[str, float]:
    """Of each type, that the patient has it."""
    if how == SAID or said.method == "network":
        return {name: said.patient.get(name, 0.0) for name in LESION_TYPES}
    sure = {lesion.id: lesion.confidence for lesion in found.lesions}
    of_type = {
        name: [sure[j.lesion_id] * j.probabilities.get(name, 0.0) for j in said.lesions]
        for name in LESION_TYPES
    }
    return {name: max(values, default=0.0) for name, values in of_type.items()}


def verdicts(
    protocol: Protocol, bundles: Mapping[str, Bundle], kinds: Mapping[str, Any], work: Path
) -> dict[str, list[Verdict]]:
    """What every bundle says of every test patient."""
    work.mkdir(parents=True, exist_ok=True)
    told: dict[str, list[Verdict]] = {name: [] for name in bundles}
    cases = protocol.test_cases(None)
    for number, case in enumerate(cases, 1):
        for name, bundle in bundles.items():
            kept = work / f"{case.case_id}-{bundle.sha256[:12]}.json"
            if not kept.exists():
                types = protocol.types.get(case.case_id, {})
                made = judge(case, bundle, types, kinds.get(case.case_id, {}))
                kept.write_text(json.dumps(made.plain()))
            told[name].append(Verdict.read(json.loads(kept.read_text())))
        print(f"{case.case_id} ({number} of {len(cases)})", flush=True)
    return told


def figures(told: Mapping[str, Sequence[Verdict]]) -> dict[str, Any]:
    """Scores of every bundle, and differences from the shipped one."""
    known = {name for name, kind in KINDS.items() if kind.seen}
    out: dict[str, Any] = {}
    for name, found in told.items():
        row: dict[str, Any] = {}
        for how in (SAID, FORCED):
            cases = [verdict.results[how] for verdict in found]
            for figure in (*MEANS, *(OF_LESIONS if how == FORCED else ())):
                cell = type_figure([cases], figure, "livermax")
                row[f"{figure}, {how}"] = {"value": cell.value, "interval": cell.interval}
        lesions = [one for verdict in found for one in verdict.lesions]
        named = [(true, said) for true, _, said in lesions if said in LESION_TYPES]
        unseen = [said for _, kind, said in lesions if kind not in known]
        row["lesions found"] = len(lesions)
        row["named"] = len(named)
        row["named rightly"] = sum(true == said for true, said in named)
        row["of unseen kinds"] = len(unseen)
        row["of these called by a known type"] = sum(
            said in LESION_TYPES and said != "other" for said in unseen
        )
        row["rare kinds"] = rare_kinds(lesions)
        if name != SHIPPED:
            row["minus shipped"] = {
                f"{mean}, {how}": difference(found, told[SHIPPED], mean, how)
                for mean in MEANS
                for how in (SAID, FORCED)
            }
        out[name] = row
    return out


def rare_kinds(lesions: Sequence[tuple[str, str, str]]) -> dict[str, dict[str, int]]:
    """Of each kind that is `other`: how many were found, and what they were called."""
    counts: dict[str, dict[str, int]] = {}
    for true, kind, said in sorted(lesions):
        if true == "other":
            row = counts.setdefault(kind, dict.fromkeys(("found", "other", *NAMED), 0))
            row["found"] += 1
            row[said if said == "other" else NAMED[said in LESION_TYPES]] += 1
    return counts


def difference(
    ours: Sequence[Verdict], theirs: Sequence[Verdict], mean: str, how: str
) -> dict[str, Any]:
    """Of a mean AUC, with its interval over patients drawn for both."""
    one, other = (
        scored_patients([[verdict.results[how] for verdict in found]], "livermax")
        for found in (ours, theirs)
    )
    n, value, drawn = auc_difference(one, other, MEANS[mean])
    interval = percentile_interval(drawn, len(drawn)) if drawn else None
    return {"patients": n, "value": value[0] if value else None, "interval": interval}


def kinds_of(cohort: Path) -> dict[str, dict[int, str]]:
    """Kind of each lesion, by case and id."""
    found: dict[str, dict[int, str]] = defaultdict(dict)
    with (cohort.parent / "lesions.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found[row["case_id"]][int(row["lesion_id"])] = row["kind"]
    return found


def main() -> None:
    """Look at all patients and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--holdout", type=Path)
    parser.add_argument("--beside", action="append", default=[], metavar="NAME=BUNDLE")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bundles = {SHIPPED: load_bundle(default_bundle_path())}
    for text in arguments.beside:
        name, _, path = text.partition("=")
        bundles[name] = load_bundle(Path(path))
    out: dict[str, Any] = {"bundles": {name: b.sha256 for name, b in bundles.items()}}
    for title, holdout in (("internal", None), ("external", arguments.holdout)):
        if title == "external" and holdout is None:
            continue
        tested = arguments.cohort if holdout is None else holdout
        protocol = read_protocol(arguments.cohort, None, holdout, typed=True)
        out[title] = figures(
            verdicts(protocol, bundles, kinds_of(tested), arguments.work / title)
        ) | {"cohort": protocol.sha256, "patients": len(protocol.test_cases(None))}
    arguments.out.write_text(json.dumps(out, indent=2) + "\n")


if __name__ == "__main__":
    main()
