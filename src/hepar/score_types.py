"""A case scored by a system that tells types apart: its lesions, and what the patient has.

The system looks at the whole image and finds the liver itself. One map of its probabilities gives
everything: outlines, lesions with a type each, and every score of the patient that a table may ask
for, so that rows which differ in the score alone share one run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from jaxtyping import Integer, UInt8
from torch import Tensor, nn

from hepar.data.cohort import CohortCase, read_instances
from hepar.data.whole_case import on_label
from hepar.errors import UsageError
from hepar.evaluate.lits_lesions import server_lesions
from hepar.evaluate.run_result import CaseResult, PatientScore, TypedResult
from hepar.evaluate.score import score_case
from hepar.geometry import Grid
from hepar.infer.labels import predict_map
from hepar.infer.tiling import Tiling
from hepar.infer.typed_lesions import typed_lesions
from hepar.study import LESION_TYPES, TUMOR, Phase, Volume
from hepar.systems.base import Diagnosing, InputSpec, System
from hepar.systems.lidia.livermax import livermax, mask_size


def typed_result(
    case: CohortCase,
    types: Mapping[int, str],
    system: nn.Module,
    tiling: Tiling,
    phases: Collection[str] = (),
) -> CaseResult:
    """A case segmented and scored on the voxels of its label.

    Args:
        case: of a cohort, with any phase that the system may see.
        types: of its lesions, by the ids of its map `instances`.
        system: trained, 3D, with the classes of `study.LESION_TYPES` and `liver`.
        tiling: memory, device and speed.
        phases: all that the system is shown; any when empty.

    Raises:
        UsageError: `E_RECIPE`: the system does not work on whole volumes.
        InputRefused: as `data.cohort.read_instances`.
    """
    volumes, label, liver = on_label(case, cast(System, system).input_spec, phases)
    return score_volumes(
        system,
        volumes,
        label.grid,
        Truth(
            case_id=case.case_id,
            patient_id=case.patient_id,
            kind=case.metadata.get("primary") or case.metadata.get("type") or "",
            label=np.where(label.array == TUMOR, TUMOR, liver).astype(np.uint8),
            instances=read_instances(case, label, types),
            types=types,
        ),
        tiling,
    )


@dataclass(frozen=True)
class Truth:
    """What is known of a case.

    Attributes:
        case_id, patient_id: whose it is.
        kind: leading type of the patient, empty where nobody says.
        label: 0 background, 1 liver, 2 tumor.
        instances: lesion ids, 0 elsewhere.
        types: of the lesions, by id.
    """

    case_id: str
    patient_id: str
    kind: str
    label: UInt8[np.ndarray, "z y x"]
    instances: Integer[np.ndarray, "z y x"]
    types: Mapping[int, str]


def score_volumes(
    system: nn.Module,
    volumes: Mapping[Phase, Volume],
    grid: Grid,
    truth: Truth,
    tiling: Tiling,
) -> CaseResult:
    """Volumes segmented and scored, as `typed_result`.

    Args:
        system: as there.
        volumes: of the phases that it is shown, on one grid.
        grid: of volumes and truth.
        truth: what is known.
        tiling: memory, device and speed.

    Raises:
        UsageError: as there.
    """
    _check(cast(System, system).input_spec)
    branch = PatientBranch(cast(Diagnosing, system)) if isinstance(system, Diagnosing) else None
    hu = {phase.value: volume.array for phase, volume in volumes.items()}
    probability = predict_map(system, hu, grid, tiling=replace(tiling, watch=branch))
    found = typed_lesions(probability, grid.spacing_mm)
    scores: dict[PatientScore, dict[str, float]] = {
        "livermax": livermax(probability, found.liver),
        "mask_size": mask_size(found.types, found.volumes_ml),
    }
    if branch is not None:
        scores["plan"] = branch.scores
    score = score_case(
        truth.case_id,
        found.label,
        truth.label,
        grid.spacing_mm,
        patient_id=truth.patient_id,
        predicted_instances=found.instances,
        reference_instances=truth.instances,
        predicted_types=dict(enumerate(found.types, 1)),
        reference_types=truth.types,
    )
    assert score.lesions is not None
    lits = server_lesions(found.label, truth.label, grid.spacing_mm, score.lesions.lits)
    return CaseResult.of(
        score,
        truth.kind,
        found_liver=True,
        lesions=lits,
        typed=TypedResult.of(score.lesions, scores),
    )


class PatientBranch:
    """What a system's patient branch says of a case: of its windows, the highest of each type.

    Called with the outputs of each window (`Tiling.watch`).
    """

    def __init__(self, system: Diagnosing) -> None:
        self._system = system
        self._highest: Tensor | None = None

    def __call__(self, outputs: Any) -> None:
        """Take what the system said of one more window."""
        said = self._system.patient(outputs).detach().float().amax(dim=0).cpu()
        self._highest = said if self._highest is None else self._highest.maximum(said)

    @property
    def scores(self) -> dict[str, float]:
        """Type -> score; 0 before any window was looked at."""
        values = [0.0] * len(LESION_TYPES) if self._highest is None else self._highest.tolist()
        return dict(zip(LESION_TYPES, values, strict=True))


def _check(spec: InputSpec) -> None:
    if spec.dims != 3 or spec.needs_liver or spec.class_names[1:] != (*LESION_TYPES, "liver"):
        raise UsageError(
            "E_RECIPE",
            "reproduce",
            f"a system with {spec.dims} dimensions and the classes {', '.join(spec.class_names)} "
            "cannot be scored by types of lesions.",
            "Use a 3D system that needs no liver mask and has a class for each type, and liver.",
        )
