"""Stage 1 for images that are in memory already: volumes by phase in place of files."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hepar.errors import UsageError
from hepar.io.hounsfield import implausible, to_int16
from hepar.io.refusal import refuse
from hepar.study import PHASE_ORDER, Phase, Series, SeriesVerdict, Study, Volume

Images = Mapping[Phase, Volume] | Mapping[str, Volume]


def study_of(volumes: Images) -> Study:
    """A study of volumes whose phases are known.

    Args:
        volumes: HU of any real type by phase, or by its name (`nc`, `art`, `pv`, `dl`); each on
            its own grid.

    Returns:
        One series a phase, int16 HU, its phase assigned as `--phase` does.

    Raises:
        UsageError: `E_USAGE`, a name is no phase; `E_PHASE_TWICE`.
        InputRefused: `E_NO_IMAGE`, `E_DTYPE`, `E_NONFINITE`, `E_HU_IMPLAUSIBLE`.
    """
    named: dict[Phase, Volume] = {}
    for key, volume in volumes.items():
        phase = _phase(str(key))
        if phase in named:
            raise UsageError(
                "E_PHASE_TWICE", "read", f"{phase.long_name} is given twice.", "Give each once."
            )
        named[phase] = volume
    if not named:
        raise refuse("E_NO_IMAGE", "No volume was given.")
    ordered = [phase for phase in PHASE_ORDER if phase in named]
    series = tuple(_series(f"s{n}", p, named[p]) for n, p in enumerate(ordered, start=1))
    return Study(series, tuple(one.verdict for one in series))


def _phase(name: str) -> Phase:
    try:
        return Phase(name.upper())
    except ValueError:
        raise UsageError(
            "E_USAGE", "read", f"{name!r} is no phase.", "Name them nc, art, pv and dl."
        ) from None


def _series(series_id: str, phase: Phase, volume: Volume) -> Series:
    """A volume as a usable series."""
    name = f"the {phase.long_name} volume"
    if volume.array.dtype.kind not in "iuf":
        raise refuse("E_DTYPE", f"{name.capitalize()} is of {volume.array.dtype}.")
    if volume.array.dtype.kind == "f" and not np.isfinite(volume.array).all():
        raise refuse("E_NONFINITE", f"{name.capitalize()} holds NaN or Inf.")
    hu = to_int16(volume.array, name)
    doubt = implausible(hu)
    if doubt is not None:
        raise refuse("E_HU_IMPLAUSIBLE", f"{name.capitalize()}: {doubt}.")
    depth, rows, columns = volume.grid.shape
    reason = f"{depth} x {rows} x {columns} voxels"
    verdict = SeriesVerdict(series_id, "array", "usable", reason, None, phase.long_name)
    return Series(Volume(hu, volume.grid), verdict, assigned=phase)
