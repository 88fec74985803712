"""Stage 6: which part of the liver is tumor; from probability to lesions, once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hepar.geometry import Box, Grid
from hepar.infer.bundle import Model
from hepar.infer.calibrate import TumorCalibration, lesion_chance, temper
from hepar.infer.components import Component, components, fill_holes, largest
from hepar.infer.measure import liver_hu, measure_lesion
from hepar.infer.refine import USUAL_ML, no_liver, refined_liver
from hepar.infer.tiling import Tiling, predict
from hepar.infer.uncertainty import BothAnswers, both_answers, uncertainty
from hepar.preprocess import AIR_HU, working_grid
from hepar.resampling import resample
from hepar.study import LIVER, PHASE_ORDER, TUMOR, LesionMap, LiverCase, Volume
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
    """

    tumor: NDArray[np.float32]
    liver: NDArray[np.bool_] | None
    warnings: tuple[str, ...] = ()
    uncertainty: tuple[NDArray[np.float32], ...] = ()

    def within(self, box: Box) -> Evidence:
        """What was seen in a part of the box."""
        part = box.slices
        return replace(
            self,
            tumor=self.tumor[part],
            liver=None if self.liver is None else self.liver[part],
            uncertainty=tuple(doubts[part] for doubts in self.uncertainty),
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
        method: a system with `tumor` among its classes, or, chosen explicitly, the HU threshold.
        tiling: memory, device, speed.
        uncertainty: also say where the system doubts its answer (`infer/uncertainty.py`); the HU
            threshold has no doubts.

    Returns:
        The liver, its border redrawn where the system names the liver too, and its lesions numbered
        from the largest; all arrays on the reference grid, the probability on the liver box.
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
    found = lesions_from_probability(refined, evidence.tumor, calibration)
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
    (tumor, *doubts), outline = _network_probability(case, box_grid, method, tiling, uncertainty)
    region = outline
    if region is None:
        region = _search_region(coarse, box_grid, 0.0 if spec.needs_liver else REACH_MM)
    for found in (tumor, *doubts):
        found[~region] = 0.0
    warnings = _missing(case, spec)
    if outline is None and _outlines(spec):
        warnings = (*warnings, _DISAGREE)
    return Evidence(tumor, outline, (*warnings, *told), tuple(doubts))


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


def _outlines(spec: InputSpec) -> bool:
    """Whether a system sees beyond the liver mask and says where the liver is."""
    return "liver" in spec.class_names and not spec.needs_liver


def with_outline(case: LiverCase, evidence: Evidence) -> LiverCase:
    """The case with the liver as the method outlines it, unchanged where it does not."""
    if evidence.liver is None:
        return case
    liver = np.zeros_like(case.liver)
    liver[case.box.slices] = evidence.liver
    liver_ml = float(evidence.liver.sum()) * case.aligned.grid.voxel_ml
    return replace(case, liver=liver, liver_ml=liver_ml)


def lesions_from_probability(
    case: LiverCase, probability: NDArray[np.float32], calibration: TumorCalibration
) -> LesionMap:
    """Threshold, connect, number and measure.

    Args:
        case: the liver.
        probability: `(z, y, x)` on the liver box, calibrated, zero where no lesion may lie.
        calibration: threshold and smallest volume.
    """
    grid = case.aligned.grid
    mask = fill_holes(probability >= calibration.threshold)
    labels, found = components(mask, max(1.0, calibration.min_volume_ml / grid.voxel_ml - 1e-9))
    if calibration.min_peak > 0:
        found = tuple(
            part
            for part in found
            if probability[part.box.slices][labels[part.box.slices] == part.label].max()
            >= calibration.min_peak
        )
    inside = _numbered(labels, found)
    tumor = inside > 0
    liver = case.liver[case.box.slices] | tumor
    volumes = {
        phase.value: volume.array[case.box.slices] for phase, volume in case.aligned.volumes.items()
    }
    box_grid = grid.crop(case.box)
    parenchyma = liver_hu(volumes, liver, tumor, box_grid)
    lesions = []
    for number, component in enumerate(found, 1):
        local = component.box
        measured = measure_lesion(
            number,
            inside[local.slices] == number,
            local,
            box_grid,
            volumes,
            parenchyma,
            probability[local.slices],
        )
        placed = _shift(local, case.box)
        update: dict[str, Any] = {"box_zyx": (placed.start, placed.stop)}
        if calibration.confidence is not None:
            peak = np.array([probability[local.slices][inside[local.slices] == number].max()])
            volume = np.array([measured.volume_ml])
            update["confidence"] = float(lesion_chance(calibration.confidence, peak, volume)[0])
        lesions.append(measured.model_copy(update=update))
    label = case.liver.astype(np.uint8) * np.uint8(LIVER)
    label[case.box.slices][liver] = LIVER
    label[case.box.slices][tumor] = TUMOR
    instances = np.zeros(grid.shape, dtype=np.uint16)
    instances[case.box.slices] = inside
    burden = float(tumor.sum()) / max(1, int(np.count_nonzero(label)))
    return LesionMap(probability, label, instances, tuple(lesions), burden)


def _numbered(
    labels: NDArray[np.unsignedinteger], found: tuple[Component, ...]
) -> NDArray[np.uint16]:
    """Component labels renamed to 1..K in the order of `found`, everything else 0."""
    names = np.zeros(int(labels.max()) + 1, dtype=np.uint16)
    for number, component in enumerate(found[: np.iinfo(np.uint16).max], 1):
        names[component.label] = number
    return names[labels]


def _shift(local: Box, outer: Box) -> Box:
    z, y, x = outer.start
    a, b = local.start, local.stop
    return Box((a[0] + z, a[1] + y, a[2] + x), (b[0] + z, b[1] + y, b[2] + x))


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


def _network_probability(
    case: LiverCase, box_grid: Grid, model: Model, tiling: Tiling | None, doubts: bool
) -> tuple[list[NDArray[np.float32]], NDArray[np.bool_] | None]:
    """On the voxels of the liver box: calibrated tumor probability, then doubts; and the liver."""
    spec = cast(System, model.system).input_spec
    calibration = TumorCalibration.model_validate(dict(model.calibration))
    target = working_grid(box_grid, spec.spacing_mm)
    hu: dict[str, NDArray[np.int16]] = {
        phase.value: _on(volume, case.box, box_grid, target)
        for phase, volume in case.aligned.volumes.items()
        if phase.value in spec.phases
    }
    liver = _liver_on(case, box_grid, target)
    outlines = _outlines(spec)
    wanted = ("tumor", "liver") if outlines else ("tumor",)
    found = predict(
        BothAnswers(model.system) if doubts and spec.refines else model.system,
        hu,
        target.spacing_mm,
        liver=liver,
        classes=None if doubts else wanted,
        tiling=tiling,
    )
    names = spec.class_names if doubts else wanted
    seen = {name: found[names.index(name)] for name in wanted}
    outline = _outline(liver, seen["tumor"] + seen["liver"], target, box_grid) if outlines else None
    maps = [temper(seen["tumor"], calibration.temperature)]
    if doubts:
        answers = both_answers(found) if spec.refines else (found,)
        maps += [uncertainty(answer, calibration.temperature) for answer in answers]
    if not target.is_close(box_grid):
        inside = liver if spec.needs_liver else None
        maps = [_back(one, target, box_grid, inside) for one in maps]
    return maps, outline


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
