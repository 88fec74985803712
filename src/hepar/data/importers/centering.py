"""Phases moved by a pure translation, so that their livers or tumors meet the reference's.

Only origins change, so no voxel is interpolated and the move is exact. This is the registration of
the SAM + URIM paper where the center is that of the tumors: it needs the truth, at test time too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hepar.data.importers.case import Role
from hepar.data.importers.loading import LoadedCase
from hepar.geometry import Grid, canonical
from hepar.io.refusal import refuse
from hepar.study import Phase, Volume


def centered(
    loaded: LoadedCase,
    role: Role,
    find: Callable[[Volume, Phase], NDArray[np.bool_]],
) -> LoadedCase:
    """Each phase moved so that the center of its liver or tumors meets the reference's.

    Args:
        loaded: a case; where a phase has no liver mask, the liver is found in it and in the
            reference, so that both centers are of one maker.
        role: `liver` or `tumor`.
        find: the liver of a volume, `(z, y, x)` on its axial voxels.

    Raises:
        InputRefused: `E_ALIGN_MASKS`, a phase has no tumor mask, or an empty one.
    """
    reference = loaded.reference
    images, warnings = dict(loaded.images), list(loaded.warnings)
    found: dict[Phase, NDArray[np.float64]] = {}

    def center(phase: Phase, drawn: bool) -> NDArray[np.float64]:
        volume = loaded.images[phase]
        if drawn:
            return _center(loaded.phase_masks[phase][role], volume.grid, f"{phase} {role}")
        if phase not in found:
            grid = canonical(volume.array, volume.grid)[1]
            found[phase] = _center(find(volume, phase), grid, f"{phase} {role}")
        return found[phase]

    for phase, volume in loaded.images.items():
        if phase is reference:
            continue
        drawn = role in loaded.phase_masks.get(phase, {})
        if not drawn and role == "tumor":
            raise refuse("E_ALIGN_MASKS", f"The {phase} phase has no tumor mask.", "prepare")
        move = center(reference, drawn) - center(phase, drawn)
        x, y, z = (float(v) for v in np.asarray(volume.grid.origin_mm) + move)
        images[phase] = Volume(volume.array, replace(volume.grid, origin_mm=(x, y, z)))
        by = "masks" if drawn else "hepar's own liver masks"
        far = float(np.linalg.norm(move))
        warnings.append(f"W_PHASE_MOVED: {phase} by {far:.1f} mm, by {role} centers of {by}")
    return replace(loaded, images=images, warnings=tuple(warnings))


def _center(mask: NDArray[np.bool_], grid: Grid, name: str) -> NDArray[np.float64]:
    """The mean LPS position of a mask, in mm."""
    if not mask.any():
        raise refuse("E_ALIGN_MASKS", f"The {name} mask is empty.", "prepare")
    index = np.argwhere(mask).mean(axis=0)
    return grid.index_to_world(index)
