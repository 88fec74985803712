"""Whether numbers can be HU at all, and how they are kept at rest."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hepar.io.refusal import refuse

AIR_HU = -1024
_SAMPLE_VOXELS = 4_000_000
_MIN_TISSUE_SHARE = 0.005
_MIN_DARK_SHARE = 2e-4
_MAX_DENSE_SHARE = 0.30


def to_int16(values: NDArray[Any], name: str) -> NDArray[np.int16]:
    """HU as int16: rounded, and everything below -1024 (padding outside the circle) made air.

    Args:
        values: finite HU of any real type.
        name: what is being read, for the message.

    Raises:
        InputRefused: `E_HU_IMPLAUSIBLE` above 32767.
    """
    if values.dtype == np.int16:
        return np.maximum(values, np.int16(AIR_HU))
    if values.size and values.max() > np.iinfo(np.int16).max:
        raise refuse("E_HU_IMPLAUSIBLE", f"{name} holds {values.max():.6g}, which no HU reaches.")
    if np.issubdtype(values.dtype, np.floating):
        values = np.rint(values)
    # Clipped before the cast, in the wider type: int16 would wrap.
    return np.clip(values, AIR_HU if values.dtype.kind != "u" else 0, None).astype(np.int16)


def implausible(hu: NDArray[np.int16]) -> str | None:
    """Why a volume cannot be a CT of a body in HU, or None.

    A body in HU has soft tissue or fat (-200 to 300 HU), something darker than -50 HU (fat, lung,
    air), and is not mostly denser than 700 HU. A mask, a 0-255 picture, a normalized volume, an
    intercept forgotten or applied twice, and inverted grays each break one of these.

    Args:
        hu: `(z, y, x)` int16.
    """
    step = max(1, round((hu.size / _SAMPLE_VOXELS) ** (1 / 3)))
    sample = hu[::step, ::step, ::step]
    low, high = int(sample.min()), int(sample.max())
    span = f"values run from {low} to {high}"
    if low >= 0 and high <= 255 and np.unique(sample).size <= 128:
        return f"it looks like a label map: {span}"
    if (sample < -50).mean() < _MIN_DARK_SHARE:
        return f"nothing is darker than -50 HU, as fat and air would be: {span}"
    if ((sample > -200) & (sample < 300)).mean() < _MIN_TISSUE_SHARE:
        return f"almost nothing lies between -200 and 300 HU, as soft tissue would: {span}"
    if (sample > 700).mean() > _MAX_DENSE_SHARE:
        return f"more than 30 % is denser than 700 HU: {span}"
    return None
