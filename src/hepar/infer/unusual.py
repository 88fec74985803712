"""Whether a scan and the liver found in it look like anything the networks were made for.

A network answers on noise and on a bucket of water as it does on a patient. Four measures that need
no network say when its answer stands on nothing it knows: the liver's median HU in its phase, its
noise, its share of very dense voxels (Lipiodol, metal, forgotten scaling), and how much of what
surrounds the mask has the liver's own HU, which a real border does not leave.

Measured inside what the shipped liver network found, at voxels of 2.5 to 5 mm x 1.5 to 3 mm, in 28
patients of phantom-1 (112 scans) and the five real scans of `docs/real_ct.md` (0.6 to 3 mm in
plane):

| | phantoms, min to max | real, min to max | limit |
|---|---|---|---|
| median HU | NC 8-60, ART 26-95, PV 68-136, DL 63-108 | 46-121 | `USUAL_HU` |
| noise, HU | 6-24 | 7-10 | 40 |
| denser than 300 HU | 0-0.1 % | 0-0.02 % | 0.5 % |
| surroundings within 15 HU (24 patients) | NC 8-21 %, PV 2-11 % | 5-12 % | 60 % |

None of the 28 patients and none of the five scans is warned of: on phantoms a false alarm rate
below 10.2 % of patients with 95 % confidence, on real ones unknown. What is not seen: HU at half
their scale, whose liver still lies between the limits, and anything outside the liver.
`docs/hazards.md` has the figures of what is seen.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Integer
from scipy import ndimage

from hepar.study import Phase

# Of the liver's median. Below lie severe steatosis and a wrong intercept, above iron, contrast that
# no liver takes up, and a wrong scale.
USUAL_HU = {
    Phase.NC: (-25.0, 95.0),
    Phase.ART: (-10.0, 170.0),
    Phase.PV: (15.0, 200.0),
    Phase.DL: (15.0, 200.0),
}
NOISE_HU = 40.0
DENSE_HU = 300
DENSE_SHARE = 0.005
# Of what lies around the mask, the share that has its HU.
SAME_HU = 15.0
SAME_SHARE = 0.6
SHELL_MM = (3.0, 9.0)
_SMOOTH_MM = 3.0
_COARSE_MM = 2.0
_MARGIN_MM = 4.0
_ENOUGH = 200
_NOT_SCANNED_HU = -1000


def unusual(
    hu: Integer[np.ndarray, "z y x"],
    liver: Bool[np.ndarray, "z y x"],
    spacing_mm: tuple[float, float, float],
    phase: Phase,
) -> tuple[str, ...]:
    """What is unusual about a liver in one phase, each as words with the figure.

    Args:
        hu: of the liver's box.
        liver: the mask in it.
        spacing_mm: (z, y, x).
        phase: decides what HU are usual.
    """
    values = hu[liver]
    values = values[values > _NOT_SCANNED_HU]  # a phase may show a part of the liver only
    if values.size < _ENOUGH:
        return ()
    found = []
    median, (low, high) = float(np.median(values)), USUAL_HU[phase]
    if not low <= median <= high:
        found.append(f"its median is {median:.0f} HU (usual: {low:.0f} to {high:.0f})")
    dense = float((values > DENSE_HU).mean())
    if dense > DENSE_SHARE:
        found.append(f"{100 * dense:.1f} % of it is denser than {DENSE_HU} HU")
    noise = noise_hu(hu, liver, spacing_mm)
    if noise is not None and noise > NOISE_HU:
        found.append(f"its noise is {noise:.0f} HU (usual: below {NOISE_HU:.0f})")
    return tuple(found)


def noise_hu(
    hu: Integer[np.ndarray, "z y x"],
    liver: Bool[np.ndarray, "z y x"],
    spacing_mm: tuple[float, float, float],
) -> float | None:
    """Standard deviation of the noise, from differences of neighbors along the rows.

    The median of |differences| is unmoved by vessels and lesions. Noise that is correlated between
    neighbors comes out smaller than it is.

    Args:
        hu: of the liver's box.
        liver: the mask in it.
        spacing_mm: (z, y, x).

    Returns:
        HU, or None where too little lies away from the border.
    """
    steps = max(1, round(_MARGIN_MM / spacing_mm[1]))
    inside = ndimage.binary_erosion(liver, np.ones((1, 3, 3), bool), iterations=steps)
    pairs = inside[:, :, 1:] & inside[:, :, :-1]
    if np.count_nonzero(pairs) < _ENOUGH:
        return None
    step = hu[:, :, 1:][pairs].astype(np.float32) - hu[:, :, :-1][pairs]
    return float(np.median(np.abs(step))) / 0.6745 / 2**0.5


def same_around(
    hu: Integer[np.ndarray, "z y x"],
    liver: Bool[np.ndarray, "z y x"],
    spacing_mm: tuple[float, float, float],
) -> float:
    """How much of what lies 3 to 9 mm outside the mask has, smoothed, the liver's median HU.

    Args:
        hu: of the liver's box with its margin.
        liver: the mask in it.
        spacing_mm: (z, y, x).

    Returns:
        0 to 1, within 15 HU; 0 where nothing lies around it.
    """
    size = [max(1, round(_SMOOTH_MM / s)) for s in spacing_mm]
    smooth = ndimage.uniform_filter(hu.astype(np.float32), size)
    step = [max(1, round(_COARSE_MM / s)) for s in spacing_mm]
    coarse = (slice(None, None, step[0]), slice(None, None, step[1]), slice(None, None, step[2]))
    far_mm = ndimage.distance_transform_edt(
        ~liver[coarse], sampling=[s * k for s, k in zip(spacing_mm, step, strict=True)]
    )
    shell = smooth[coarse][(far_mm > SHELL_MM[0]) & (far_mm <= SHELL_MM[1])]
    if shell.size < _ENOUGH:
        return 0.0
    return float((np.abs(shell - np.median(hu[liver])) <= SAME_HU).mean())
