"""Stage 6: which part of the liver is tumor; from probability to lesions, once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hepar.geometry import Box, Grid
from hepar.infer.bundle import Model
from hepar.infer.calibrate import TumorCalibration, temper
from hepar.infer.components import fill_holes, largest
from hepar.infer.lesion_map import lesions_from_probability, lesions_from_types
from hepar.infer.refine import USUAL_ML, no_liver, refined_liver
from hepar.infer.tiling import Tiling, predict
from hepar.infer.uncertainty import BothAnswers, both_answers, uncertainty
from hepar.preprocess import AIR_HU, working_grid
from hepar.resampling import resample
from hepar.study import PHASE_ORDER, LesionMap, LiverCase, Volume
from hepar.systems.base import InputSpec, System
from hepar.systems.baselines.hu_threshold import HuThresholdSettings, hu_threshold

# How far beyond the liver mask a system that sees the surroundings may draw a lesion.
REACH_MM = 3.0
# What is smaller than a liver and agrees less with the system that redraws it, is none.
MIN_AGREEMENT = 0.7
_DISAGREE = (
    "W_LIVER_OUTLINE: the two networks disagree about the liver; the coarse mask is kept, and "
    "lesions need a second look"
)


@dataclass(frozen=True)
class Evidence:
    """What a method saw in a liver, on the reference voxels of the liver's box.

    Attributes:
        tumor: `(z, y, x)` calibrated probability of tumor, zero where no lesion may lie.
        liver: `(z, y, x)` the organ, tumors included, as the method outlines it; None for a
            method that does not, or whose outline is not to be believed.
        warnings: `W_CODE: words`.
        uncertainty: `(z, y, x)` doubts, zero where no lesion may lie: of the answer, and, from a
            system that refines its answer, of the one before. Empty when not asked for.
        types: `(10, z, y, x)` float16 of a typed system: background, `LESION_TYPES`, liver, as it
            gave them; zero where no lesion may lie. None of other methods.
    """

    tumor: NDArray[np.float32]
    liver: NDArray[np.bool_] | None
    warnings: tuple[str, ...] = ()
    uncertainty: tuple[NDArray[np.float32], ...] = ()
    types: NDArray[np.float16] | None = None

    def within(self, box: Box) -> Evidence:
        """What was seen in a part of the box."""
        part = box.slices
        return replace(
            self,
            tumor=self.tumor[part],
            liver=None if self.liver is None else self.liver[part],
            uncertainty=tuple(doubts[part] for doubts in self.uncertainty),
            types=None if self.types is None else self.types[(slice(None), *part)],
        )


def find_lesions(
    case: LiverCase,
    method: Model | HuThresholdSettings,
    *,
    tiling: Tiling | None = None,
    uncertainty: bool = False,
) -> tuple[LiverCase, LesionMap]:
    """Find and measure the lesions of a liver.

    Args:
        case: the liver and its registered phases.
        method: a system with `tumor`, or the types of lesions, among its classes; or, chosen
            explicitly, the HU threshold.
        tiling: memory, device, speed.
        uncertainty: also say where the system doubts its answer (`infer/uncertainty.py`); the HU
            threshold has no doubts.

    Returns:
        The liver, its border redrawn where the system names the liver too (never that of a given
        one), and its lesions numbered from the largest; all arrays on the reference grid, the
        probability on the liver box.
        `Lesion.box_zyx` counts voxels of the (axial) reference grid. Warnings: `W_MISSING_PHASE`,
        `W_LIVER_OUTLINE`, `W_MEMORY`.

    Raises:
        InputRefused: `E_PHASES_REQUIRED`: the system cannot do without an absent phase.
            `E_NO_LIVER`: what was taken for a small liver is none to the system that redraws it.
    """
    if isinstance(method, HuThresholdSettings):
        calibration = TumorCalibration(min_volume_ml=method.min_volume_ml)
    else:
        calibration = TumorCalibration.model_validate(dict(method.calibration))
    evidence = look(case, method, tiling=tiling, uncertainty=uncertainty)
    refined = with_outline(case, evidence)
    if evidence.types is None:
        found = lesions_from_probability(refined, evidence.tumor, calibration)
    else:
        found = lesions_from_types(refined, evidence.types, evidence.tumor, calibration)
    after, before = (*evidence.uncertainty, None, None)[:2]
    return refined, replace(
        found,
        warnings=found.warnings + evidence.warnings,
        uncertainty=after,
        uncertainty_before=before,
    )


def look(
    case: LiverCase,
    method: Model | HuThresholdSettings,
    *,
    tiling: Tiling | None = None,
    uncertainty: bool = False,
) -> Evidence:
    """What a method sees, before any threshold on tumor; see `find_lesions`."""
    box_grid = case.aligned.grid.crop(case.box)
    coarse = case.liver[case.box.slices]
    if isinstance(method, HuThresholdSettings):
        tumor = _threshold_probability(case, box_grid, method)
        tumor[~coarse] = 0.0
        return Evidence(tumor, None)
    spec = cast(System, method.system).input_spec
    room = _room(case, spec)
    if room != case.box:
        wide = look(replace(case, box=room), method, tiling=tiling, uncertainty=uncertainty)
        return wide.within(case.box.relative_to(room))
    told: list[str] = []
    tiling = replace(tiling or Tiling(), warn=told.append)
    seen = _network_evidence(case, box_grid, method, tiling, uncertainty)
    region = seen.liver
    if region is None:
        region = _search_region(coarse, box_grid, 0.0 if spec.needs_liver else REACH_MM)
    for found in (seen.tumor, *seen.uncertainty, *(() if seen.types is None else seen.types)):
        found[~region] = 0.0
    warnings = _missing(case, spec)
    if seen.liver is None and _outlines(case, spec):
        warnings = (*warnings, _DISAGREE)
    return replace(seen, warnings=(*warnings, *told))


def _room(case: LiverCase, spec: InputSpec) -> Box:
    """The voxels that a system looks at: the liver's box, or as much more as it wants around it."""
    crop = spec.liver_crop
    if crop is None:
        return case.box
    grid = case.aligned.grid
    wanted = (spec.spacing_mm or grid.spacing_mm)[1:]
    y, x = (
        int(np.ceil(crop.pad_px * want / have))
        for want, have in zip(wanted, grid.spacing_mm[1:], strict=True)
    )
    around = Box.around(case.liver, (0, y, x))
    return case.box if around is None else case.box.union(around)


def _missing(case: LiverCase, spec: InputSpec) -> tuple[str, ...]:
    """One warning of the phases that the system could use and does not have."""
    present = [p for p in PHASE_ORDER if p in case.aligned.volumes and p.value in spec.phases]
    missing = [p for p in PHASE_ORDER if p not in case.aligned.volumes and p.value in spec.phases]
    if not missing:
        return ()
    had, lacked = (", ".join(p.long_name for p in phases) for phases in (present, missing))
    return (
        f"W_MISSING_PHASE: of the {len(spec.phases)} phases that the tumor network knows it had "
        f"{had} alone and not {lacked}; nothing stands in for them, and what shows only there "
        "may be missed",
    )


def _outlines(case: LiverCase, spec: InputSpec) -> bool:
    """Whether a system sees beyond the liver mask and redraws it, unless somebody gave it."""
    return "liver" in spec.class_names and not spec.needs_liver and not case.given


def with_outline(case: LiverCase, evidence: Evidence) -> LiverCase:
    """The case with the liver as the method outlines it, unchanged where it does not."""
    if evidence.liver is None:
        return case
    liver = np.zeros_like(case.liver)
    liver[case.box.slices] = evidence.liver
    liver_ml = float(evidence.liver.sum()) * case.aligned.grid.voxel_ml
    return replace(case, liver=liver, liver_ml=liver_ml)


def _search_region(liver: NDArray[np.bool_], grid: Grid, reach_mm: float) -> NDArray[np.bool_]:
    if reach_mm == 0.0:
        return liver
    distance = ndimage.distance_transform_edt(~liver, sampling=grid.spacing_mm)
    return np.asarray(distance <= reach_mm)


def _on(volume: Volume, box: Box, box_grid: Grid, target: Grid) -> NDArray[np.int16]:
    """HU of the liver box on a working grid, rounded as the training cache rounds them."""
    if target.is_close(box_grid):
        return volume.array[box.slices]
    found = resample(volume.array[box.slices], box_grid, target, fill=AIR_HU)
    return np.asarray(np.rint(found).astype(np.int16))


def _liver_on(case: LiverCase, box_grid: Grid, target: Grid) -> NDArray[np.bool_]:
    if target.is_close(box_grid):
        return case.liver[case.box.slices]
    share = resample(case.liver[case.box.slices].astype(np.uint8), box_grid, target)
    return np.asarray(share >= 0.5)


def _network_evidence(
    case: LiverCase, box_grid: Grid, model: Model, tiling: Tiling | None, doubts: bool
) -> Evidence:
    """What a network sees on the voxels of the liver box, in or out of the liver."""
    spec = cast(System, model.system).input_spec
    calibration = TumorCalibration.model_validate(dict(model.calibration))
    target = working_grid(box_grid, spec.spacing_mm)
    hu: dict[str, NDArray[np.int16]] = {
        phase.value: _on(volume, case.box, box_grid, target)
        for phase, volume in case.aligned.volumes.items()
        if phase.value in spec.phases
    }
    liver = _liver_on(case, box_grid, target)
    outlines = _outlines(case, spec)
    organ = ("liver",) if outlines else ()
    tumors = tuple(spec.class_names[k] for k in spec.tumor_classes)
    wanted = spec.class_names if doubts or spec.typed else (*tumors, *organ)
    found = predict(
        BothAnswers(model.system) if doubts and spec.refines else model.system,
        hu,
        target.spacing_mm,
        liver=liver,
        classes=None if doubts else wanted,
        tiling=tiling,
    )
    tumor = found[[wanted.index(name) for name in tumors]].sum(axis=0)
    outline = None
    if outlines:
        outline = _outline(liver, tumor + found[wanted.index("liver")], target, box_grid)
    maps = [temper(tumor, calibration.temperature)]
    if doubts:
        answers = both_answers(found) if spec.refines else (found,)
        maps += [uncertainty(answer, calibration.temperature) for answer in answers]
    inside = liver if spec.needs_liver else None
    maps = [_on_reference(one, target, box_grid, inside) for one in maps]
    types = None
    if spec.typed:
        parts = (_on_reference(one, target, box_grid, inside).astype(np.float16) for one in found)
        types = np.stack(tuple(parts))
    return Evidence(maps[0], outline, uncertainty=tuple(maps[1:]), types=types)


def _on_reference(
    probability: NDArray[np.float32],
    source: Grid,
    box_grid: Grid,
    seen: NDArray[np.bool_] | None,
) -> NDArray[np.float32]:
    """`_back`, where the network did not look at those voxels themselves."""
    if source.is_close(box_grid):
        return probability
    return _back(probability, source, box_grid, seen)


def _outline(
    coarse: NDArray[np.bool_], organ: NDArray[np.float32], source: Grid, box_grid: Grid
) -> NDArray[np.bool_] | None:
    """The liver on the voxels of its box, in one piece and without holes."""
    refined, agreement = refined_liver(coarse, organ, source.spacing_mm)
    liver_ml = float(coarse.sum()) * source.voxel_ml
    if agreement < MIN_AGREEMENT and liver_ml < USUAL_ML[0]:
        detail = f"of {liver_ml:.0f} ml taken for it the finer network recognizes little"
        raise no_liver("tumor", f"{detail} (Dice {agreement:.2f})")
    if refined is None:
        return None
    return fill_holes(largest(_back(refined, source, box_grid, None) >= 0.5))


def _back(
    probability: NDArray[np.float32],
    source: Grid,
    box_grid: Grid,
    seen: NDArray[np.bool_] | None,
) -> NDArray[np.float32]:
    """Bring a probability to the reference voxels.

    Voxels that a system did not see carry no evidence, so they must not pull down the border of a
    lesion at the liver's surface: the mean is over the seen ones.
    """
    if seen is not None:
        probability = np.where(seen, probability, np.float32(0))
    fine = resample(probability, source, box_grid, antialias=False)
    if seen is not None:
        share = resample(seen.astype(np.uint8), source, box_grid, antialias=False)
        np.divide(fine, np.maximum(share, 0.25, out=share), out=fine)
    return np.clip(fine, 0.0, 1.0, out=fine)


def _threshold_probability(
    case: LiverCase, box_grid: Grid, settings: HuThresholdSettings
) -> NDArray[np.float32]:
    target = working_grid(box_grid, settings.spacing_mm)
    reference = case.aligned.volumes[case.aligned.reference]
    hu = _on(reference, case.box, box_grid, target)
    liver = _liver_on(case, box_grid, target)
    mask = hu_threshold(hu, liver, target.spacing_mm, settings)
    return _back(mask.astype(np.float32), target, box_grid, liver)
