"""A study on a network's working grid and the answer back on its own voxels, slab by slab.

Floats are never held at the study's own spacing but for a slab, and HU of the working grid only as
far as windows still reach.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int16
from numpy.typing import NDArray

from hepar.geometry import Box, Grid
from hepar.preprocess import AIR_HU
from hepar.resampling import PartSampler

# Voxels that are resampled at a time, on the finer grid.
_STEP_VOXELS = 4_000_000


class HuOnGrid:
    """HU at the voxels of another grid, rounded as the training cache rounds them.

    It is read from the first slice to the last: slices before those asked for last are forgotten,
    and made again where they are asked for all the same.

    Args:
        hu: `(z, y, x)` at the voxels of `source`; it is kept, not copied.
        source: grid of `hu`.
        target: grid wanted, its axes those of `source`.
        box: voxels of `target` that will be asked for; all of them when None.
    """

    def __init__(
        self, hu: Int16[np.ndarray, "z y x"], source: Grid, target: Grid, box: Box | None = None
    ) -> None:
        if hu.shape != source.shape:
            raise ValueError(f"HU {hu.shape} are not on their grid {source.shape}")
        self._hu = hu
        self._sampler = PartSampler(source, target)
        self._box = box or Box.full(target.shape)
        self._first = self._box.start[0]
        self._held: NDArray[np.int16] = np.empty((0, *self._box.shape[1:]), np.int16)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole target."""
        return self._sampler.target.shape

    def __getitem__(self, part: tuple[slice, slice, slice]) -> Int16[np.ndarray, "z y x"]:
        """The voxels of a box, given as three slices with both ends."""
        box = self._box
        if any(
            s.start < a or s.stop > b for s, a, b in zip(part, box.start, box.stop, strict=True)
        ):
            raise IndexError(f"{part} lies beyond {box}")
        self._make(part[0].start, part[0].stop)
        moved = (
            slice(s.start - a, s.stop - a)
            for s, a in zip(part, (self._first, *box.start[1:]), strict=True)
        )
        return self._held[tuple(moved)]

    def _make(self, first: int, stop: int) -> None:
        end = self._first + len(self._held)
        if first < self._first or first > end:
            self._held, end = self._held[:0], first
        elif stop > end:
            self._held = self._held[first - self._first :]
        else:
            return
        self._first = first
        wanted = Box((end, *self._box.start[1:]), (stop, *self._box.stop[1:]))
        parts = [
            np.rint(hu).astype(np.int16)
            for _, hu in _sampled(self._hu, self._sampler, wanted, AIR_HU)
        ]
        self._held = np.concatenate([self._held, *parts])


def mask_on(mask: Bool[np.ndarray, "z y x"], source: Grid, target: Grid) -> NDArray[np.bool_]:
    """A mask at the voxels of another grid: those of which half or more is in it."""
    found = np.zeros(target.shape, dtype=bool)
    inside = Box.around(mask)
    sampler = PartSampler(source, target)
    wanted = None if inside is None else sampler.reached(inside)
    if wanted is None:
        return found
    for box, share in _sampled(mask.view(np.uint8), sampler, wanted, 0.0):
        found[box.slices] = share >= 0.5
    return found


def _sampled(
    array: NDArray[Any], sampler: PartSampler, wanted: Box, fill: float
) -> Iterator[tuple[Box, NDArray[np.float32]]]:
    """A box of the target in slabs along z."""
    whole = sampler.needs(wanted)
    share = max(1.0, whole.shape[0] / wanted.shape[0])
    rows = max(1, int(_STEP_VOXELS / (share * whole.shape[1] * whole.shape[2])))
    for part in _layers(wanted, rows):
        needed = sampler.needs(part)
        yield part, sampler.part(array[needed.slices], needed, part, fill=fill)


def _layers(box: Box, rows: int) -> Iterator[Box]:
    """A box in slabs along z of so many slices."""
    for first in range(box.start[0], box.stop[0], rows):
        yield Box((first, *box.start[1:]), (min(first + rows, box.stop[0]), *box.stop[1:]))


class BackOnto:
    """Slabs of a working grid turned, as they come, into slabs of the study's own voxels.

    The numbers are those of `resample(whole, source, target, antialias=False)` to the last bit.

    Args:
        source: the working grid.
        box: the voxels of it that the slabs hold.
        target: the study's grid.
        outside: `(k,)` values of the channels beyond the box.
        certain: voxels that are made only of voxels whose first channel is above this are left out
            as far as a box can tell; None leaves out nothing.
    """

    def __init__(
        self,
        source: Grid,
        box: Box,
        target: Grid,
        outside: Float32[np.ndarray, " k"],
        certain: float | None = None,
    ) -> None:
        self._certain = certain
        self._sampler = PartSampler(source, target, antialias=False)
        self._outside, self._slabs = outside, box
        # With one voxel of what lies around the box: the second tap beyond its border.
        start = tuple(max(0, a - 1) for a in box.start)
        stop = tuple(min(n, b + 1) for n, b in zip(source.shape, box.stop, strict=True))
        self._box = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
        region = self._sampler.reached(box)
        assert region is not None, "a working grid covers the study"
        self.region = region
        self._next = region.start[0]
        self._first = self._box.start[0]
        self._held = self._around(box.start[0] - self._first)

    def add(
        self, slab: Float32[np.ndarray, "k z y x"]
    ) -> Iterator[tuple[Box, Float32[np.ndarray, "k z2 y2 x2"]]]:
        """Take the next slab and give away what it makes certain.

        Args:
            slab: all of the box in the plane, the slices after those of the slab before.

        Yields:
            A box of the target and the channels in it. Boxes follow one another along z and, but
            for what is left out, cover `region` once the last slab was taken.
        """
        rows = self._around(slab.shape[1])
        _, y, x = self._slabs.relative_to(self._box).slices
        rows[:, :, y, x] = slab
        self._held = np.concatenate([self._held, rows], axis=1)
        end = self._first + self._held.shape[1]
        if end == self._slabs.stop[0] < self._box.stop[0]:
            self._held = np.concatenate([self._held, self._around(1)], axis=1)
            end += 1
        ready = self._ready(end)
        for part in _layers(ready, max(1, _STEP_VOXELS // int(np.prod(ready.shape[1:])))):
            inner = part if self._certain is None else self._uncertain(part)
            if inner is not None:
                yield inner, self._sample(inner)
        self._next = ready.stop[0]
        if self._next < self.region.stop[0]:
            first = self._needs(self._next, self._next + 1).start[0]
            self._held = self._held[:, first - self._first :].copy()
            self._first = first

    def _around(self, rows: int) -> NDArray[np.float32]:
        """Slices of nothing but what lies outside."""
        shape = (len(self._outside), rows, *self._box.shape[1:])
        return np.broadcast_to(self._outside[:, None, None, None], shape).copy()

    def _needs(self, first: int, stop: int) -> Box:
        region = self.region
        return self._sampler.needs(Box((first, *region.start[1:]), (stop, *region.stop[1:])))

    def _ready(self, end: int) -> Box:
        """What needs no slice from `end` on."""
        stop = self._next
        while stop < self.region.stop[0] and self._needs(stop, stop + 1).stop[0] <= end:
            stop += 1
        (_, *a), (_, *b) = self.region.start, self.region.stop
        return Box((self._next, a[0], a[1]), (stop, b[0], b[1]))

    def _uncertain(self, part: Box) -> Box | None:
        """The voxels of a part that need any whose first channel is not above `certain`."""
        needed = self._sampler.needs(part)
        seen = self._held[0][self._local(needed)]
        doubt = Box.around(seen <= self._certain)
        if doubt is None:
            return None
        z, y, x = needed.start
        (a, b, c), (d, e, f) = doubt.start, doubt.stop
        reached = self._sampler.reached(Box((z + a, y + b, x + c), (z + d, y + e, x + f)))
        if reached is None:
            return None
        low = [max(a, b) for a, b in zip(part.start, reached.start, strict=True)]
        high = [min(a, b) for a, b in zip(part.stop, reached.stop, strict=True)]
        if any(a >= b for a, b in zip(low, high, strict=True)):
            return None
        return Box((low[0], low[1], low[2]), (high[0], high[1], high[2]))

    def _local(self, needed: Box) -> tuple[slice, ...]:
        """Where a box of the source lies in what is held."""
        origin = (self._first, *self._box.start[1:])
        return tuple(
            slice(a - o, b - o) for a, b, o in zip(needed.start, needed.stop, origin, strict=True)
        )

    def _sample(self, part: Box) -> NDArray[np.float32]:
        needed = self._sampler.needs(part)
        local = self._local(needed)
        return np.stack([self._sampler.part(one[local], needed, part) for one in self._held])
