"""From a map of class probabilities to lesions, each of one type, and the liver around them.

Source: the post-processing of PLAN (pixel-lesion-patient network), which LIDIA builds on:

1. Each voxel has its likeliest class.
2. The liver is the largest 26-connected piece of liver and lesions that holds a liver voxel.
3. A lesion is a 26-connected piece of lesion voxels, whatever their types, and has the type of most
   of them; cysts are pieces of their own, so that a cyst beside a tumor stays a cyst.
4. A lesion whose centroid is farther than 3 mm from the liver, or that is smaller than 25 mm^3, is
   none: inside the liver it is liver, elsewhere background.

Where the source is silent: of equally frequent types the first of `LESION_TYPES` wins, and where no
voxel is liver no lesion is dropped for its place, and `TypedLesions.liver` is empty.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8, UInt16
from numpy.typing import NDArray

from hepar.infer.components import Component, components
from hepar.infer.labels import most_likely
from hepar.study import LESION_TYPES, LIVER, TUMOR

REACH_MM = 3.0
MIN_MM3 = 25.0
_LIVER_CLASS = 1 + len(LESION_TYPES)


@dataclass(frozen=True)
class TypedLesions:
    """The lesions of one case.

    Attributes:
        label: 0 background, 1 liver, 2 tumor.
        instances: 0, or the number of a lesion: 1 is the largest.
        types: one of `LESION_TYPES` for each lesion, from number 1 on.
        liver: the organ, lesions included; empty where no voxel is liver, whatever lesions are.
        volumes_ml: of each lesion.
    """

    label: UInt8[np.ndarray, "z y x"]
    instances: UInt16[np.ndarray, "z y x"]
    types: tuple[str, ...]
    liver: Bool[np.ndarray, "z y x"]
    volumes_ml: tuple[float, ...]


def typed_lesions(
    probability: Float[np.ndarray, "10 z y x"],
    spacing_mm: tuple[float, float, float],
    *,
    apart: Collection[str] = ("cyst",),
) -> TypedLesions:
    """Lesions and liver of a probability map.

    Args:
        probability: background, each of `LESION_TYPES`, liver; float16 does.
        spacing_mm: (z, y, x).
        apart: types that are never joined with others; with all of `LESION_TYPES` lesions that
            touch are told apart wherever the map does, and no type is outvoted.
    """
    classes = most_likely(probability)
    liver = _liver(classes)
    voxel_mm3 = float(np.prod(spacing_mm))
    found = [
        (piece, mask, LESION_TYPES[_majority(classes[piece.box.slices][mask])])
        for piece, mask in _pieces(classes, apart, MIN_MM3 / voxel_mm3)
        if not liver.any() or _reaches(liver, piece, mask, spacing_mm)
    ]
    found.sort(key=lambda lesion: (-lesion[0].voxels, lesion[0].box.start))
    instances = np.zeros(classes.shape, np.uint16)
    for number, (piece, mask, _) in enumerate(found, 1):
        instances[piece.box.slices][mask] = number
    label = np.where(liver, np.uint8(LIVER), np.uint8(0))
    label[instances > 0] = TUMOR
    if liver.any():
        liver |= instances > 0
    return TypedLesions(
        label=label,
        instances=instances,
        types=tuple(kind for _, _, kind in found),
        liver=liver,
        volumes_ml=tuple(piece.voxels * voxel_mm3 / 1000 for piece, _, _ in found),
    )


def _liver(classes: UInt8[np.ndarray, "z y x"]) -> Bool[np.ndarray, "z y x"]:
    """The largest piece of liver and lesions with a liver voxel; empty where none has one."""
    labels, pieces = components(classes > 0)
    for piece in pieces:
        own = labels[piece.box.slices] == piece.label
        if (classes[piece.box.slices][own] == _LIVER_CLASS).any():
            return labels == piece.label
    return np.zeros(classes.shape, np.bool_)


def _pieces(
    classes: UInt8[np.ndarray, "z y x"], apart: Collection[str], min_voxels: float
) -> Iterator[tuple[Component, NDArray[np.bool_]]]:
    """Each piece of lesion, and its mask within its own box."""
    alone = [1 + LESION_TYPES.index(name) for name in apart]
    groups = [[n] for n in alone]
    groups.append([n for n in range(1, _LIVER_CLASS) if n not in alone])
    for group in groups:
        labels, pieces = components(np.isin(classes, group), min_voxels)
        for piece in pieces:
            yield piece, labels[piece.box.slices] == piece.label


def _majority(classes: UInt8[np.ndarray, " n"]) -> int:
    """Index of the type that most voxels of a lesion have."""
    return int(np.bincount(classes, minlength=_LIVER_CLASS)[1:].argmax())


def _reaches(
    liver: Bool[np.ndarray, "z y x"],
    piece: Component,
    mask: NDArray[np.bool_],
    spacing_mm: tuple[float, float, float],
) -> bool:
    """Whether a voxel of the liver lies within 3 mm of the voxel that holds a lesion's centroid."""
    center = np.rint(np.argwhere(mask).mean(axis=0)).astype(int) + piece.box.start
    reach = (REACH_MM / np.array(spacing_mm)).astype(int)
    first, last = np.maximum(center - reach, 0), center + reach
    near = liver[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))]
    offsets_mm = (np.argwhere(near) + first - center) * spacing_mm
    return bool((np.square(offsets_mm).sum(axis=1) <= REACH_MM**2).any())
