"""HU of each part of a lesion as a function of time since injection."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hepar.phantom.circulation import Circulation, at_time, compartments, weights
from hepar.phantom.enhancement import Contrast
from hepar.phantom.lesion_kinds import CENTER_TIMES_S, KINDS, Centers, Part
from hepar.phantom.lesions import LesionSpec

PART_COUNT = len(Part)
SHIFTS = 5  # draws a lesion: unenhanced, all enhancement, and that at 35, 70, 180 s
_NECROSIS: Centers = (24, 27, 30, 32)


def lesion_hu(spec: LesionSpec, contrast: Contrast, time_s: float, shift: np.ndarray) -> np.ndarray:
    """Mean HU of every part of a lesion at a time.

    Args:
        spec: the lesion.
        contrast: the patient's response.
        time_s: since injection.
        shift: (SHIFTS,) standard normal draws of this lesion.

    Returns:
        float32 (n parts,); parts the kind does not have hold its body's value.
    """
    kind = KINDS[spec.kind]
    now = at_time(compartments(contrast.circulation), time_s)
    if spec.kind == "hemangioma":
        return _hemangioma(spec, contrast, time_s, shift, now).astype(np.float32)
    centers = dict(kind.centers)
    for name in spec.traits:
        if name in kind.traits:
            centers |= kind.traits[name].centers
    if "necrosis" in spec.traits:
        centers[Part.CORE] = _NECROSIS
    return _parts_hu(centers, kind.sd_hu, shift, now).astype(np.float32)


def _parts_hu(
    centers: Mapping[Part, Centers], sd_hu: float, shift: np.ndarray, now: np.ndarray
) -> np.ndarray:
    """Compartments fitted to each part's centers, moved by what is this lesion's own."""
    hu = np.zeros(PART_COUNT)
    for part in Part:
        nc, *enhanced = centers.get(part, centers[Part.BODY])
        rises = np.asarray(enhanced) - nc
        if rises.any():
            # What hardly enhances varies little: fluid and clot are alike in all patients.
            own = sd_hu * min(1.0, float(np.abs(rises).max()) / 25)
            rises = rises * np.exp(0.12 * shift[1]) + own * (0.45 * shift[1] + 0.9 * shift[2:])
            rise = float(weights(tuple(np.round(rises, 1)), CENTER_TIMES_S) @ now)
        else:
            rise = 0.0
        hu[part] = nc + (0.45 if rises.any() else 1.0) * sd_hu * shift[0] + rise
    return hu


def _hemangioma(
    spec: LesionSpec, contrast: Contrast, time_s: float, shift: np.ndarray, now: np.ndarray
) -> np.ndarray:
    """Nodules follow the blood, body and center fill inward: 0.5-0.8 of the blood at 70 s."""
    blood, prompt = now[0], now[1]
    pool = 0.3 * blood + 0.7 * prompt
    base = 42 + 4 * shift[0]
    output = contrast.circulation.cardiac_output
    # Filling begins at 20 s; a time constant of 46 s fills the body to 0.6 of the blood at 70 s.
    pace = float(np.exp(0.3 * shift[1])) / output
    since = max(time_s - 20.0, 0.0)
    level = float(np.clip(0.9 + 0.05 * shift[2], 0.8, 1.0))
    fill = {
        Part.NODULE: level * (1 - np.exp(-since / 6.0)),
        Part.BODY: level * (1 - np.exp(-since / (46.0 * pace))),
        Part.CORE: level * (1 - np.exp(-max(since - 15.0, 0.0) / (110.0 * pace))),
    }
    if "flash" in spec.traits:
        fill = dict.fromkeys(fill, 0.95 * (1 - np.exp(-since / 8.0)))
    if "thrombosed" in spec.traits:
        fill[Part.CORE] = 0.05
    return np.array([base + pool * fill.get(part, fill[Part.BODY]) for part in Part])


def reference_curve(kind: str, part: Part, times_s: np.ndarray) -> np.ndarray:
    """HU of a part in the reference patient, for figures and tests, float64 (n,)."""
    contrast = Contrast(Circulation(), np.zeros(0), np.zeros(0))
    spec = LesionSpec(1, KINDS[kind].type, (0, 0, 0), (10, 10, 10), 0, 0.0, 1.0, kind=kind)
    still = np.zeros(SHIFTS)
    return np.array([lesion_hu(spec, contrast, float(t), still)[part] for t in times_s])
