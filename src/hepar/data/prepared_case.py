"""A patient as patches are cut from it: phases, labels and lesions on one grid.

What a case carries beside its volumes says where to cut without looking through them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int16, Int32, Int64, Integer, UInt8, UInt16
from scipy import ndimage

from hepar.data.chunk_file import ChunkedArray
from hepar.study import LESION_TYPES, LIVER, TUMOR
from hepar.systems.base import InputSpec

MOST_VOXELS = 1000  # of a class, that patches may be drawn around
TYPE_NUMBERS = {name: number for number, name in enumerate(LESION_TYPES, start=1)}


@dataclass(frozen=True)
class TypedLesions:
    """The lesions of a case, told apart: what typed systems learn.

    Attributes:
        number: which lesion a voxel belongs to, 1..n; 0 for none.
        types: of each lesion its type's number in `TYPE_NUMBERS`.
        voxels: of each lesion, at least one.
    """

    number: UInt16[np.ndarray | ChunkedArray, "z y x"]
    types: UInt8[np.ndarray, " n"]
    voxels: Int32[np.ndarray, " n"]

    @property
    def names(self) -> tuple[str, ...]:
        """The type of each lesion."""
        return tuple(LESION_TYPES[number - 1] for number in self.types)


@dataclass(frozen=True)
class PreparedCase:
    """A patient's liver box, every phase on one grid at the working spacing.

    Volumes are arrays, or lie in the chunks of a file: the latter are cut by one basic slice.

    Attributes:
        case_id: name in logs.
        hu: the model's phases in order; an absent phase holds anything.
        present: which phases exist.
        label: 0 background, 1 liver, 2 tumor.
        liver: as a liver stage would have predicted it.
        spacing_mm: (z, y, x).
        contents: which slices hold liver (row 0) and tumor (row 1); see `slice_contents`.
        lesions: a voxel (z, y, x) of each lesion; see `lesion_voxels`.
        foreground: voxels (class, z, y, x) to draw patches around; see `foreground_voxels`. Classes
            are liver and tumor, of a typed system the numbers of types: only lesions count there.
        typed: lesions and their types, in the order of `lesions`; None of other systems.
    """

    case_id: str
    hu: Int16[np.ndarray | ChunkedArray, "p z y x"]
    present: Bool[np.ndarray, " p"]
    label: UInt8[np.ndarray | ChunkedArray, "z y x"]
    liver: Bool[np.ndarray | ChunkedArray, "z y x"]
    spacing_mm: tuple[float, float, float]
    contents: Bool[np.ndarray, "2 z"]
    lesions: Int32[np.ndarray, "n 3"]
    foreground: Int32[np.ndarray, "m 4"]
    typed: TypedLesions | None = None


def case_of_arrays(
    case_id: str, present: Bool[np.ndarray, " p"], arrays: Mapping[str, Any]
) -> PreparedCase:
    """A case out of what is kept of it: its volumes, and what `tables` and `typed_arrays` made."""
    z, y, x = (float(v) for v in arrays["spacing_mm"])
    typed = None
    if "instances" in arrays:
        typed = TypedLesions(arrays["instances"], arrays["types"], arrays["voxels"])
    return PreparedCase(
        case_id=case_id,
        hu=arrays["hu"],
        present=present,
        label=arrays["label"],
        liver=arrays["liver"],
        spacing_mm=(z, y, x),
        contents=arrays["contents"],
        lesions=arrays["lesions"],
        foreground=arrays["foreground"],
        typed=typed,
    )


def typed_arrays(
    instances: Integer[np.ndarray, "z y x"], types: Mapping[int, str]
) -> dict[str, np.ndarray]:
    """What is kept of the lesions of a case for a typed system.

    Args:
        instances: lesion ids, 0 elsewhere.
        types: a name of `LESION_TYPES` for each id; ids without a voxel are left out.

    Returns:
        `instances`, `types` and `voxels` as in `TypedLesions`, lesions numbered in the order of
        their ids; `lesions` and `foreground` as in `PreparedCase`.
    """
    counts = np.bincount(instances.ravel())
    ids = 1 + np.flatnonzero(counts[1:])
    numbers = np.zeros(max(1, len(counts)), np.uint16)
    numbers[ids] = np.arange(1, len(ids) + 1)
    kinds = np.array([0, *(TYPE_NUMBERS[types[int(i)]] for i in ids)], np.uint8)
    number = numbers[instances]
    return {
        "instances": number,
        "types": kinds[1:],
        "voxels": counts[ids].astype(np.int32),
        "lesions": lesion_voxels(number),
        "foreground": foreground_voxels(kinds[number], TYPE_NUMBERS.values()),
    }


def slice_contents(
    label: UInt8[np.ndarray, "z y x"], liver: Bool[np.ndarray, "z y x"]
) -> Bool[np.ndarray, "2 z"]:
    """Which slices hold liver, true or predicted, and which hold tumor."""
    return np.stack([(liver | (label > 0)).any(axis=(1, 2)), (label == TUMOR).any(axis=(1, 2))])


def lesion_voxels(instances: Integer[np.ndarray, "z y x"]) -> Int32[np.ndarray, "n 3"]:
    """For each lesion its voxel nearest to its center of mass.

    Args:
        instances: lesion ids, 0 elsewhere.
    """
    voxels = []
    for number, box in enumerate(ndimage.find_objects(instances), start=1):
        if box is not None:
            inside = np.argwhere(instances[box] == number)
            offset = ((inside - inside.mean(axis=0)) ** 2).sum(axis=1)
            voxels.append(inside[offset.argmin()] + [edge.start for edge in box])
    return np.asarray(voxels, np.int32).reshape(-1, 3)


def foreground_voxels(
    label: UInt8[np.ndarray, "z y x"], classes: Iterable[int] = (LIVER, TUMOR)
) -> Int32[np.ndarray, "m 4"]:
    """Class and place of up to `MOST_VOXELS` voxels of each class, by default liver and tumor.

    Drawn evenly, the same at every call: whoever wants a voxel of a class need not look for it.
    """
    rng = np.random.default_rng(0)
    rows = []
    for name in classes:
        found = np.flatnonzero(label == name)
        if found.size > MOST_VOXELS:
            found = np.sort(rng.choice(found, MOST_VOXELS, replace=False))
        places = np.unravel_index(found, label.shape)
        rows.append(np.stack([np.full(found.size, name), *places], axis=1))
    return np.concatenate(rows).astype(np.int32)


def class_index(label: UInt8[np.ndarray, "*spatial"], spec: InputSpec) -> np.ndarray:
    """Labels 0/1/2 as indices into the system's classes; a class it lacks is its parent."""
    names = spec.class_names
    liver = names.index("liver") if "liver" in names else 0
    tumor = names.index("tumor") if "tumor" in names else liver
    if (liver, tumor) == (1, 2):
        return label.astype(np.int64)  # a sixth of the time of looking each of them up
    return np.array([0, liver, tumor], np.int64)[label]


def classes_of(
    case: PreparedCase, part: Any, spec: InputSpec
) -> tuple[Int64[np.ndarray, "*spatial"], Int64[np.ndarray, "*spatial"] | None]:
    """What a system shall say of a part of a case, and of a typed one which lesion is where.

    Args:
        case: prepared for this system.
        part: basic slices of its volumes; each of them is read once.
        spec: classes of the system.

    Returns:
        Indices into its classes, lesions having that of their type; numbers of lesions, or None.
    """
    label = class_index(case.label[part], spec)
    if not spec.typed:
        return label, None
    if case.typed is None:
        raise ValueError(f"{case.case_id} was prepared for a system without types of lesions")
    names = [spec.class_names.index(name) for name in LESION_TYPES]
    table = np.array([0, *names], np.int64)[np.insert(case.typed.types, 0, 0)]
    number = np.asarray(case.typed.number[part]).astype(np.int64)
    return np.where(number > 0, table[number], label), number
