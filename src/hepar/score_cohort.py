"""A cohort's patients segmented and scored: within their true livers, in two stages, or in one.

Reading and registration are given by the cohort; so is the liver, unless a first stage finds it.
What is left is what a paper's table compares.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from hepar.data.cache import ArrayCache, Arrays, file_hash
from hepar.data.cohort import CohortCase
from hepar.data.protocol import Types
from hepar.data.whole_case import on_label, shows
from hepar.errors import UsageError
from hepar.evaluate.lits_lesions import server_lesions
from hepar.evaluate.run_result import CaseResult
from hepar.evaluate.score import score_case
from hepar.geometry import Box, Grid
from hepar.infer.bundle import Model
from hepar.infer.components import largest
from hepar.infer.labels import Decide, most_likely, predict_labels
from hepar.infer.openvino import OpenVino, Precision
from hepar.infer.tiling import Tiling, predict
from hepar.preprocess import AIR_HU, liver_box, working_grid
from hepar.recipe_data import CohortData
from hepar.resampling import resample
from hepar.score_types import typed_result
from hepar.stages.tumor import look
from hepar.study import (
    LIVER,
    TUMOR,
    AlignedStudy,
    LiverCase,
    Phase,
    PhasedStudy,
    Study,
    Volume,
)
from hepar.systems.base import InputSpec, System

Mask = NDArray[np.bool_]
_VERSION = 1  # of how a first stage's liver is made
_MANY = 20  # cases that pay for converting a network


@dataclass(frozen=True)
class FirstStage:
    """What finds the livers that a second stage looks at, each of them once.

    Attributes:
        name: its recipe.
        system: trained, with `liver` among its classes, seeing whole images.
        settings: of the system, as JSON data.
        weights_sha256: of its weights.
        cache: where found livers are kept.
        device: where it runs.
    """

    name: str
    system: nn.Module
    settings: Mapping[str, Any]
    weights_sha256: str
    cache: ArrayCache
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Raise UsageError `E_RECIPE` for a system that cannot find a liver."""
        spec = cast(System, self.system).input_spec
        if not _outlines(spec) or spec.liver_crop is not None:
            raise _cannot_find(self.name, spec)

    def __call__(self, case: CohortCase) -> Mask:
        """The liver of a case, `(z, y, x)` on its label's voxels; empty where none is found."""
        files = {phase: file_hash(file) for phase, file in sorted(case.images.items())}
        parts = {
            "made": "livers",
            "version": _VERSION,
            "weights": self.weights_sha256,
            "system": dict(self.settings),
            "files": files,
            "reference": case.reference,
        }
        kept = self.cache.get(parts, lambda: self._find(case))
        shape = tuple(int(n) for n in kept["shape"])
        bits = np.unpackbits(kept["liver"], count=int(np.prod(shape)))
        return bits.reshape(shape).astype(bool)

    def _find(self, case: CohortCase) -> Arrays:
        spec = cast(System, self.system).input_spec
        volumes, label, _ = on_label(case, spec)
        found = find_organ(self.system, volumes, label.grid, Tiling(device=self.device))
        return {"liver": np.packbits(found), "shape": np.array(found.shape)}


def find_organ(
    system: nn.Module, volumes: Mapping[Phase, Volume], grid: Grid, tiling: Tiling | None = None
) -> Mask:
    """The liver in whole images: what is more likely liver than not, in its largest piece.

    Args:
        system: with the class `liver`; one that tells tumors apart finds them as liver.
        volumes: on one grid.
        grid: of the volumes.
        tiling: memory and device.

    Returns:
        `(z, y, x)`; empty where nothing is found.
    """
    names = cast(System, system).input_spec.class_names
    classes = tuple(name for name in ("liver", "tumor") if name in names)

    def decide(found: NDArray[np.float32]) -> NDArray[np.uint8]:
        return (found.sum(axis=0) > 0.5).astype(np.uint8)

    return largest(_decided(system, volumes, grid, None, classes, decide, tiling) > 0)


def look_in_liver(
    system: nn.Module,
    volumes: Mapping[Phase, Volume],
    grid: Grid,
    liver: Mask,
    tiling: Tiling | None = None,
) -> NDArray[np.uint8]:
    """Liver and tumors as a second stage draws them in the liver that a first one found.

    Args:
        system: with the class `tumor`; where it has no `liver`, that of the first stage stays.
        volumes: on one grid.
        grid: of the volumes.
        liver: `(z, y, x)` as found; in an empty one nothing is looked for.
        tiling: memory and device.

    Returns:
        `(z, y, x)` label map: 0 background, 1 liver, 2 tumor.
    """
    if not liver.any():
        return np.zeros(liver.shape, np.uint8)
    outlines = "liver" in cast(System, system).input_spec.class_names
    classes = ("tumor", "liver") if outlines else ("tumor",)

    def decide(found: NDArray[np.float32]) -> NDArray[np.uint8]:
        organ = found.sum(axis=0) >= 0.5 if outlines else np.False_
        return np.where(found[0] >= 0.5, TUMOR, organ * LIVER).astype(np.uint8)

    labels = _decided(system, volumes, grid, liver, classes, decide, tiling)
    if not outlines:
        labels[liver & (labels == 0)] = LIVER
    return labels


def find_both(
    system: nn.Module, volumes: Mapping[Phase, Volume], grid: Grid, tiling: Tiling | None = None
) -> NDArray[np.uint8]:
    """Liver and tumors in whole images, by a network that needs no liver: the likeliest class.

    Args:
        system: with the classes `liver` and `tumor`.
        volumes: on one grid.
        grid: of the volumes.
        tiling: memory and device.

    Returns:
        `(z, y, x)` label map: 0 background, 1 liver, 2 tumor.
    """
    classes = ("background", "liver", "tumor")
    return _decided(system, volumes, grid, None, classes, most_likely, tiling)


def scored_cases(
    cases: Sequence[CohortCase],
    system: nn.Module,
    data: CohortData,
    device: str,
    note: Callable[[str], None],
    first: FirstStage | None = None,
    types: Types | None = None,
    phases: Collection[str] = (),
    precision: Precision = "f32",
) -> Iterator[CaseResult]:
    """Every case segmented and scored on the reference phase's voxels.

    A system without the class `tumor` is scored as a first stage: by the liver it finds. One that
    draws both and was trained on whole fields finds both in whole images, unless `first` is given.
    Any other looks at the liver that `first` finds, or without one at the cohort's own. The liver
    is scored where the system or `first` draws it. A system that tells types of lesions apart is
    scored by them too, see `score_types`.

    Args:
        cases: of a cohort; those that show none of the phases are left out.
        system: trained.
        data: of its recipe.
        device: where it runs.
        note: told how far it is.
        first: what finds the livers.
        types: of true lesions, by case and id, for a system that tells types apart.
        phases: all that the system is shown; any when empty.
        precision: of 3D systems where OpenVINO runs them, on CPUs and for many cases.

    Raises:
        UsageError: `E_NO_LIVER`: a case whose liver is given has none; `E_RECIPE`: the system finds
            neither livers nor tumors.
        InputRefused: `E_LESION_TABLE`: a lesion without a type where they are told apart.
    """
    spec = cast(System, system).input_spec
    looks_for_tumor, outlines = bool(spec.tumor_classes), _outlines(spec)
    if (not looks_for_tumor and not outlines) or (spec.typed and first is not None):
        raise _cannot_find("the system", spec)
    shown = [case for case in cases if not phases or shows(case, spec, phases)]
    tiling = Tiling(device=device)
    if spec.dims == 3 and device == "cpu" and len(shown) >= _MANY:
        # Where labels would not agree PyTorch stays.
        tiling = replace(tiling, runner_for=OpenVino(precision))
    for number, case in enumerate(shown):
        note(f"{case.case_id} ({number + 1} of {len(shown)})")
        if spec.typed:
            yield typed_result(case, (types or {}).get(case.case_id, {}), system, tiling, phases)
            continue
        if first is None and not outlines:
            maps = _in_true_liver(case, system, data, tiling, phases)
        else:
            alone = first is None and data.margin_mm is None
            maps = _in_whole_image(case, system, tiling, first, alone, phases)
        predicted, truth, spacing_mm = maps
        score = score_case(case.case_id, predicted, truth, spacing_mm, patient_id=case.patient_id)
        yield CaseResult.of(
            score,
            case.metadata.get("primary") or case.metadata.get("type") or "",
            found_liver=first is not None or outlines,
            looked_for_tumor=looks_for_tumor,
            lesions=None
            if score.lesions is None
            else server_lesions(predicted, truth, spacing_mm, score.lesions.lits),
        )


_Maps = tuple[NDArray[np.uint8], NDArray[np.uint8], tuple[float, float, float]]


def _in_true_liver(
    case: CohortCase, system: nn.Module, data: CohortData, tiling: Tiling, phases: Collection[str]
) -> _Maps:
    """Predicted and true label map of the liver's box, and its spacing."""
    liver, label = liver_case(case, cast(System, system).input_spec, data.margin_mm, phases)
    tumor = look(liver, Model("tumor", system), tiling=tiling).tumor >= 0.5
    truth = label.array[liver.box.slices]
    predicted = (truth > 0).astype(np.uint8)
    predicted[tumor] = TUMOR
    return predicted, truth, label.grid.spacing_mm


def _in_whole_image(
    case: CohortCase,
    system: nn.Module,
    tiling: Tiling,
    first: FirstStage | None,
    alone: bool,
    phases: Collection[str],
) -> _Maps:
    """Predicted and true label map of the whole image, and its spacing."""
    volumes, label, liver = on_label(case, cast(System, system).input_spec, phases)
    truth = np.where(label.array == TUMOR, TUMOR, liver).astype(np.uint8)
    spec = cast(System, system).input_spec
    if "tumor" in spec.class_names and alone and spec.liver_crop is None:
        predicted = find_both(system, volumes, label.grid, tiling)
    elif "tumor" in spec.class_names:
        seen = liver if first is None else first(case)
        predicted = look_in_liver(system, volumes, label.grid, seen, tiling)
    else:
        predicted = find_organ(system, volumes, label.grid, tiling).astype(np.uint8)
    return predicted, truth, label.grid.spacing_mm


def _outlines(spec: InputSpec) -> bool:
    """Whether a system sees beyond a liver mask and says where the liver is."""
    return "liver" in spec.class_names and not spec.needs_liver


def _cannot_find(name: str, spec: InputSpec) -> UsageError:
    needs = "needs a" if spec.needs_liver or spec.liver_crop is not None else "needs no"
    return UsageError(
        "E_RECIPE",
        "reproduce",
        f"{name} cannot find livers: its classes are {', '.join(spec.class_names)}, and it {needs} "
        "liver mask.",
        "Name a first stage that has the class liver and needs_liver: false.",
    )


def liver_case(
    case: CohortCase, spec: InputSpec, margin_mm: float | None, phases: Collection[str] = ()
) -> tuple[LiverCase, Volume]:
    """A cohort's case as the stages know it, its liver the true one, and its label.

    Args:
        case: a labelled case.
        spec: of the system.
        margin_mm: around the liver; None keeps the whole field.
        phases: all that may be seen; any when empty.

    Raises:
        UsageError: `E_NO_LIVER`, the mask is empty.
    """
    volumes, label, liver = on_label(case, spec, phases)
    if not liver.any():
        raise UsageError(
            "E_NO_LIVER",
            "reproduce",
            f"case {case.case_id}: the liver mask is empty.",
            "Give a liver column, or labels with 1 for liver.",
        )
    box = None if margin_mm is None else liver_box(liver, label.grid, margin_mm)
    phased = PhasedStudy(volumes, (), Study((), ()), dict.fromkeys(volumes, label.grid))
    aligned = AlignedStudy(volumes, Phase(case.reference), phased, ())
    volume_ml = float(liver.sum()) * label.grid.voxel_ml
    return LiverCase(aligned, liver, box or Box.full(liver.shape), volume_ml), label


def _decided(
    system: nn.Module,
    volumes: Mapping[Phase, Volume],
    grid: Grid,
    liver: Mask | None,
    classes: Sequence[str],
    decide: Decide,
    tiling: Tiling | None,
) -> NDArray[np.uint8]:
    """`(z, y, x)` of what is decided voxel by voxel, in 3D without a map of the whole image."""
    if cast(System, system).input_spec.dims == 2:
        return decide(_probabilities(system, volumes, grid, liver, classes, tiling))
    hu = {phase.value: volume.array for phase, volume in volumes.items()}
    return predict_labels(
        system, hu, grid, liver=liver, classes=tuple(classes), decide=decide, tiling=tiling
    )


def _probabilities(
    system: nn.Module,
    volumes: Mapping[Phase, Volume],
    grid: Grid,
    liver: Mask | None,
    classes: Sequence[str],
    tiling: Tiling | None,
) -> NDArray[np.float32]:
    """`(k, z, y, x)` on the voxels of `grid`, however finely the system works."""
    target = working_grid(grid, cast(System, system).input_spec.spacing_mm)
    same = target.is_close(grid)
    hu = {}
    for phase, volume in volumes.items():
        moved = volume.array
        if not same:
            found = resample(moved, grid, target, fill=AIR_HU)
            moved = np.rint(found).astype(np.int16)
        hu[phase.value] = moved
    if liver is not None and not same:
        liver = resample(liver.astype(np.uint8), grid, target) >= 0.5
    found = predict(
        system, hu, target.spacing_mm, liver=liver, classes=tuple(classes), tiling=tiling
    )
    if same:
        return found
    return np.stack([resample(one, target, grid, antialias=False) for one in found])
