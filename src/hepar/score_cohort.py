"""A cohort's patients segmented within their true livers, and scored.

Reading, registration and the liver are given by the cohort; what is left is what a paper's table
compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import numpy as np
from torch import nn

from hepar.data.cohort import CohortCase, read_case
from hepar.errors import UsageError
from hepar.evaluate.run_result import CaseResult
from hepar.evaluate.score import score_case
from hepar.infer.bundle import Model
from hepar.infer.tiling import Tiling
from hepar.preprocess import AIR_HU, liver_box
from hepar.recipe import CohortData
from hepar.resampling import resample
from hepar.stages.tumor import look
from hepar.study import AlignedStudy, LiverCase, Phase, PhasedStudy, Study, Volume
from hepar.systems.base import InputSpec, System


def scored_cases(
    cases: Sequence[CohortCase],
    system: nn.Module,
    data: CohortData,
    device: str,
    note: Callable[[str], None],
) -> Iterator[CaseResult]:
    """Every case segmented within its liver mask and scored on the reference phase's voxels.

    Args:
        cases: of a cohort.
        system: trained.
        data: of its recipe.
        device: where it runs.
        note: told how far it is.
    """
    spec = cast(System, system).input_spec
    tiling = Tiling(device=device)
    for number, case in enumerate(cases):
        note(f"{case.case_id} ({number + 1} of {len(cases)})")
        liver, label = liver_case(case, spec, data.margin_mm)
        tumor = look(liver, Model("tumor", system), tiling=tiling).tumor >= 0.5
        box = liver.box.slices
        truth = label.array[box]
        predicted = (truth > 0).astype(np.uint8)
        predicted[tumor] = 2
        score = score_case(
            case.case_id, predicted, truth, label.grid.spacing_mm, patient_id=case.patient_id
        )
        yield CaseResult.of(score, case.metadata.get("primary") or case.metadata.get("type") or "")


def liver_case(case: CohortCase, spec: InputSpec, margin_mm: float) -> tuple[LiverCase, Volume]:
    """A cohort's case as the stages know it, its liver the true one, and its label.

    Raises:
        UsageError: `E_NO_LIVER`, the mask is empty.
    """
    images, label, liver = read_case(case, (*spec.phases, case.reference))
    box = liver_box(liver, label.grid, margin_mm)
    if box is None:
        raise UsageError(
            "E_NO_LIVER",
            "reproduce",
            f"case {case.case_id}: the liver mask is empty.",
            "Give a liver column, or labels with 1 for liver.",
        )
    volumes = {Phase(name): _onto(volume, label) for name, volume in images.items()}
    phased = PhasedStudy(volumes, (), Study((), ()), dict.fromkeys(volumes, label.grid))
    aligned = AlignedStudy(volumes, Phase(case.reference), phased, ())
    return LiverCase(aligned, liver, box, float(liver.sum()) * label.grid.voxel_ml), label


def _onto(volume: Volume, label: Volume) -> Volume:
    if volume.grid.is_close(label.grid):
        return Volume(volume.array, label.grid)
    moved = resample(volume.array, volume.grid, label.grid, fill=AIR_HU)
    return Volume(np.rint(moved).astype(np.int16), label.grid)
