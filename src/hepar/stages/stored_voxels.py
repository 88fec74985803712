"""Results on the voxels of the series that they came from, as its file has them."""

from __future__ import annotations

from hepar.geometry import Array, Grid, Lattice, uncanonical
from hepar.resampling import resample_lattice
from hepar.study import AlignedStudy, Phase, PhasedStudy, Series


def as_stored(array: Array, aligned: AlignedStudy) -> tuple[Array, Grid | Lattice]:
    """An array of the axial reference grid on the voxels of the file that it came from.

    Args:
        array: `(z, y, x)` on `aligned.grid`.
        aligned: the registered phases.

    Returns:
        The array by flips and transposes alone, or at the nearest voxels (floats: interpolated)
        where those of the file have no orthogonal axes; and where they lie.
    """
    source, stored = aligned.source_grid, stored_grid(aligned)
    turned = uncanonical(array, source)
    if isinstance(stored, Grid):
        return turned, stored
    order = 1 if array.dtype.kind == "f" else 0
    return resample_lattice(turned, source, stored, order=order, fill=0), stored


def stored_grid(aligned: AlignedStudy) -> Grid | Lattice:
    """Where the voxels of the reference series lie as its file has them."""
    series = series_of(aligned.phased, aligned.reference)
    return aligned.source_grid if series is None or series.lattice is None else series.lattice


def series_of(phased: PhasedStudy, phase: Phase) -> Series | None:
    """The series that was taken for a phase; None where there is none."""
    ids = {reading.phase: reading.series_id for reading in phased.readings}
    found = (s for s in phased.study.series if s.verdict.series_id == ids.get(phase))
    return next(found, None)


def may_show_names(aligned: AlignedStudy) -> bool:
    """Whether the scanner says that text is burned into the pixels of a series in use."""
    used = (series_of(aligned.phased, phase) for phase in aligned.volumes)
    return any(s is not None and s.tags.get("BurnedInAnnotation") == "YES" for s in used)
