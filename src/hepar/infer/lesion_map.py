"""From probabilities in the liver to lesions: thresholded, connected, numbered and measured.

Of a typed system the lesions are pieces of one type each (`typed_lesions.py`), and what its map
says of their types stays with them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float, UInt16
from numpy.typing import NDArray

from hepar.geometry import Box, key_slice
from hepar.infer.calibrate import TumorCalibration, lesion_chance, temper_types
from hepar.infer.components import Component, components, fill_holes
from hepar.infer.measure import measure_lesions
from hepar.infer.typed_lesions import typed_lesions
from hepar.lesion_evidence import PICTURED, TypeEvidence
from hepar.study import LESION_TYPES, LIVER, TUMOR, LesionMap, LiverCase
from hepar.systems.lidia.livermax import livermax


def lesions_from_probability(
    case: LiverCase, probability: Float[np.ndarray, "z y x"], calibration: TumorCalibration
) -> LesionMap:
    """Threshold, connect, number and measure.

    Args:
        case: the liver.
        probability: `(z, y, x)` on the liver box, calibrated, zero where no lesion may lie.
        calibration: threshold and smallest volume.
    """
    mask = fill_holes(probability >= calibration.threshold)
    least = max(1.0, calibration.min_volume_ml / case.aligned.grid.voxel_ml - 1e-9)
    labels, found = components(mask, least)
    peaks = [probability[p.box.slices][labels[p.box.slices] == p.label].max() for p in found]
    kept = tuple(p for p, peak in zip(found, peaks, strict=True) if peak >= calibration.min_peak)
    return measured_map(case, probability, numbered(labels, kept), calibration)


def lesions_from_types(
    case: LiverCase,
    types: Float[np.ndarray, "10 z y x"],
    probability: Float[np.ndarray, "z y x"],
    calibration: TumorCalibration,
) -> LesionMap:
    """The lesions of a typed system, and what it saw of their types.

    A voxel is lesion where the calibrated probability of any type reaches the threshold, and then
    has the likeliest of them; pieces follow from that as `typed_lesions` says.

    Args:
        case: the liver.
        types: background, `LESION_TYPES`, liver on the liver box; zero where no lesion may lie;
            float16 does.
        probability: of tumor, as for `lesions_from_probability`.
        calibration: also of the types.
    """
    grid = case.aligned.grid
    tumor = probability >= calibration.threshold
    decided = types.copy()
    decided[1:-1, ~tumor] = 0
    decided[0, tumor] = decided[-1, tumor] = 0
    found = typed_lesions(decided, grid.spacing_mm)
    names = np.zeros(len(found.types) + 1, dtype=np.uint16)
    least = calibration.min_volume_ml - 1e-9
    peaks = _peaks(probability, found.instances, len(found.types))
    kept = [
        number
        for number, (ml, peak) in enumerate(zip(found.volumes_ml, peaks, strict=True), 1)
        if ml >= least and peak >= calibration.min_peak
    ]
    names[kept] = np.arange(1, len(kept) + 1)
    instances = names[found.instances]
    evidence = TypeEvidence(
        lesions=type_chances(types, instances, calibration.type_temperature),
        patient=livermax(types, case.liver[case.box.slices] | (instances > 0)),
        threshold=calibration.type_threshold,
        temperature=calibration.type_temperature,
    )
    evidence = replace(evidence, maps=_type_maps(types, instances, evidence))
    return replace(measured_map(case, probability, instances, calibration), types=evidence)


def _type_maps(
    types: Float[np.ndarray, "10 z y x"],
    instances: UInt16[np.ndarray, "z y x"],
    evidence: TypeEvidence,
) -> tuple[Float[np.ndarray, "y x"], ...]:
    """What `TypeEvidence.maps` is."""
    return tuple(
        types[
            1 + LESION_TYPES.index(evidence.likeliest(number)), key_slice(instances == number)
        ].copy()
        for number in range(1, 1 + min(PICTURED, len(evidence.lesions)))
    )


def type_chances(
    types: Float[np.ndarray, "10 z y x"],
    instances: UInt16[np.ndarray, "z y x"],
    temperature: float = 1.0,
) -> tuple[dict[str, float], ...]:
    """Probability of each type, for each lesion: its mean over the lesion's voxels, tempered.

    The masks of a network's queries do not outlive the averaging of windows, so the lesion's own
    voxels stand in for them. Liver and background leave, and the rest sums to 1.

    Args:
        types: background, `LESION_TYPES`, liver.
        instances: 0, or the id of a lesion, from 1 on.
        temperature: of `calibrate.temper_types`.
    """
    chances = temper_types(type_means(types, instances), temperature)
    return tuple(dict(zip(LESION_TYPES, row, strict=True)) for row in chances.tolist())


def type_means(
    types: Float[np.ndarray, "10 z y x"], instances: UInt16[np.ndarray, "z y x"]
) -> Float[np.ndarray, "n 8"]:
    """Mean probability of each of `LESION_TYPES` over each lesion; zeros without voxels."""
    count = int(instances.max(initial=0))
    inside = instances > 0
    number = instances[inside]
    voxels = np.maximum(np.bincount(number, minlength=count + 1), 1)
    means = [
        np.bincount(number, one[inside].astype(np.float64), minlength=count + 1) / voxels
        for one in types[1 : 1 + len(LESION_TYPES)]
    ]
    return np.stack(means, axis=1)[1:]


def measured_map(
    case: LiverCase,
    probability: Float[np.ndarray, "z y x"] | None,
    inside: UInt16[np.ndarray, "z y x"],
    calibration: TumorCalibration | None = None,
) -> LesionMap:
    """Lesions measured, and their masks on the reference grid.

    Args:
        case: the liver.
        probability: of tumor, on the liver box; None where the lesions were given.
        inside: ids of the lesions on the liver box; given ones need not be consecutive.
        calibration: how sure a lesion is.
    """
    grid = case.aligned.grid
    tumor = inside > 0
    liver = case.liver[case.box.slices] | tumor
    volumes = {
        phase.value: volume.array[case.box.slices] for phase, volume in case.aligned.volumes.items()
    }
    records = case.aligned.registration
    misplaced = [str(r.phase) for r in records if r.method == "rejected"]
    measured = measure_lesions(
        inside, liver, grid.crop(case.box), volumes, probability, misplaced=misplaced
    )
    peaks = [] if probability is None else _peaks(probability, inside, len(measured))
    lesions = []
    for lesion in measured:
        placed = _shift(Box(*lesion.box_zyx), case.box)
        update: dict[str, Any] = {"box_zyx": (placed.start, placed.stop)}
        if peaks and calibration is not None and calibration.confidence is not None:
            volume, peak = np.array([lesion.volume_ml]), np.array([peaks[lesion.id - 1]])
            chance = lesion_chance(calibration.confidence, peak, volume)
            update["confidence"] = float(chance[0])
        lesions.append(lesion.model_copy(update=update))
    label = case.liver.astype(np.uint8) * np.uint8(LIVER)
    label[case.box.slices][liver] = LIVER
    label[case.box.slices][tumor] = TUMOR
    instances = np.zeros(grid.shape, dtype=np.uint16)
    instances[case.box.slices] = inside
    burden = float(tumor.sum()) / max(1, int(np.count_nonzero(label)))
    return LesionMap(probability, label, instances, tuple(lesions), burden)


def _peaks(
    probability: Float[np.ndarray, "z y x"], instances: UInt16[np.ndarray, "z y x"], count: int
) -> list[float]:
    """The highest probability of each lesion."""
    highest = np.zeros(count + 1, dtype=probability.dtype)
    inside = instances > 0
    np.maximum.at(highest, instances[inside], probability[inside])
    return [float(peak) for peak in highest[1:]]


def numbered(
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
