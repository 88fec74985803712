"""Whether two files hold the same scan, though one was flipped, padded, shifted or stored anew.

Public data sets hold one another's patients: LiTS and MSD Task03_Liver those of 3D-IRCADb-01, with
flipped axes and other headers. So a scan is known by its slices, and a slice by how often each HU
occurs in it, which no flip, no turn in the plane and no order of slices changes.

HU are counted from the median of the middle of the slice, which moves with any constant that was
added, and only within a window of tissue around it: padding outside the field of view and air that
was cut at -1024 lie below, so what they were replaced by does not matter. A slice that has little
tissue, or tissue of few different HU, as an empty or masked one, says nothing and is left out.
Scans are the same when half of the slices of the shorter one are among those of the other, so that
a part of a scan is known too. A resampled or smoothed copy, one whose matrix was cropped or padded,
and another scan of the same patient are not known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int16

from hepar.data.cohort import CohortCase
from hepar.geometry import Array, canonical
from hepar.study import Volume

WINDOW_HU = (-100, 200)
SAME_SHARE = 0.5
_MIN_TISSUE_SHARE = 0.02
_MIN_LEVELS = 32
_DIGEST_BYTES = 12


@dataclass(frozen=True)
class Fingerprint:
    """What is left of a scan to know it by.

    Attributes:
        slices: a digest of each slice that has tissue; sorted, each once.
    """

    slices: tuple[str, ...]

    @property
    def digest(self) -> str:
        """One hash of the whole scan."""
        return hashlib.sha256("".join(self.slices).encode()).hexdigest()

    def share(self, other: Fingerprint) -> float:
        """Share of the slices of the shorter scan that the longer has too; 0 if it has none."""
        fewer = min(len(self.slices), len(other.slices))
        return len(set(self.slices) & set(other.slices)) / fewer if fewer else 0.0


@dataclass(frozen=True)
class SharedScan:
    """A scan that two cohorts hold: names of its cases and phases, and the share of slices."""

    case: str
    phase: str
    other_case: str
    other_phase: str
    share: float


def fingerprint(volume: Volume) -> Fingerprint:
    """The fingerprint of a scan.

    Args:
        volume: HU int16 in any orientation; slices are those nearest to axial.
    """
    hu, _ = canonical(volume.array, volume.grid)
    found = {digest for plane in hu if (digest := slice_digest(plane)) is not None}
    return Fingerprint(tuple(sorted(found)))


def slice_digest(plane: Int16[Array, "y x"]) -> str | None:
    """A hash of the HU of one slice, or None where it holds too little tissue to be told apart."""
    rows, columns = plane.shape
    middle = plane[rows // 4 : rows - rows // 4, columns // 4 : columns - columns // 4].ravel()
    # The lower of two middle values, so that the median is one of the HU and moves as they do.
    half = (middle.size - 1) // 2
    relative = plane.astype(np.int32).ravel() - int(np.partition(middle, half)[half])
    low, high = WINDOW_HU
    tissue = relative[(relative >= low) & (relative < high)]
    if tissue.size < _MIN_TISSUE_SHARE * plane.size:
        return None
    counts = np.bincount(tissue - low, minlength=high - low)
    if np.count_nonzero(counts) < _MIN_LEVELS:
        return None
    return hashlib.sha256(counts.astype("<i8").tobytes()).hexdigest()[: 2 * _DIGEST_BYTES]


@dataclass
class ScanIndex:
    """Scans by their slices, to be asked whether one is known.

    Attributes:
        names: `(case, phase)` of each scan.
        sizes: how many slices each has.
    """

    names: list[tuple[str, str]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    _holders: dict[str, list[int]] = field(default_factory=dict)

    def add(self, case: str, phase: str, scan: Fingerprint) -> None:
        """Remember a scan."""
        for digest in scan.slices:
            self._holders.setdefault(digest, []).append(len(self.names))
        self.names.append((case, phase))
        self.sizes.append(len(scan.slices))

    def find(self, scan: Fingerprint) -> tuple[str, str, float] | None:
        """Case, phase and share of slices of the scan that this one is, if it is known."""
        hits: dict[int, int] = {}
        for digest in scan.slices:
            for number in self._holders.get(digest, ()):
                hits[number] = hits.get(number, 0) + 1
        shares = {n: count / min(self.sizes[n], len(scan.slices)) for n, count in hits.items()}
        best = max(shares, key=lambda n: shares[n], default=None)
        if best is None or shares[best] < SAME_SHARE:
            return None
        return (*self.names[best], shares[best])


def index_of(cases: Iterable[CohortCase]) -> ScanIndex:
    """The scans of a cohort.

    Raises:
        InputRefused: an image cannot be read.
    """
    found = ScanIndex()
    for case, phase, scan in _scans(cases):
        found.add(case, phase, scan)
    return found


def shared_scans(
    cases: Sequence[CohortCase], others: Sequence[CohortCase]
) -> tuple[SharedScan, ...]:
    """The scans that two cohorts share, in the order of the first.

    Raises:
        InputRefused: an image cannot be read.
    """
    index = index_of(others)
    found = []
    for case, phase, scan in _scans(cases):
        hit = index.find(scan)
        if hit is not None:
            found.append(SharedScan(case, phase, *hit))
    return tuple(found)


def _scans(cases: Iterable[CohortCase]) -> Iterator[tuple[str, str, Fingerprint]]:
    # A bare GPU machine imports this folder and has no reader of image files.
    from hepar.io.dicom import read_dicom
    from hepar.io.nifti import read_nifti

    for case in cases:
        for phase, path in case.images.items():
            volumes = (
                [s.volume for s in read_dicom(path)[0]] if path.is_dir() else [read_nifti(path)]
            )
            for volume in volumes:
                yield case.case_id, phase, fingerprint(volume)
