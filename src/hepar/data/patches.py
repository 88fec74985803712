"""From a prepared case to patches: where to cut, and the cutting.

What a network sees of a cut is made by `preprocess`, the same lines the stages call.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool

from hepar.data.prepared_case import TYPE_NUMBERS, PreparedCase, classes_of
from hepar.data.sampling import Sample, ValidationCase
from hepar.preprocess import (
    Plane,
    resized,
    resized_labels,
    slice_box,
    slice_context,
    slice_input,
    window,
)
from hepar.recipe_data import PatchSettings, PhaseDropout
from hepar.study import TUMOR
from hepar.systems.base import InputSpec

Voxel = tuple[int, int, int]


def draw_patch(
    case: PreparedCase,
    spec: InputSpec,
    settings: PatchSettings,
    rng: np.random.Generator,
    kind: str | None = None,
) -> Sample:
    """Draw one training patch.

    Ignored (-1, and no lesion) are tumor outside the predicted liver, where a system cannot see
    it, and lesions that are too small to be learned.

    Args:
        case: where from.
        spec: what the system wants to see.
        settings: how often a lesion, which phases.
        rng: consumed the same way whatever the case holds.
        kind: the type of the lesion, where the patch is one around a lesion and the case has one
            of this type; None for any.
    """
    u = rng.random(12)
    anchor: Voxel | None
    if spec.dims == 3 and settings.foreground_fraction is not None:
        anchor = _foreground_anchor(case, settings.foreground_fraction, u, kind)
    else:
        anchor = _anchor(case, spec, u, settings, kind)
    if spec.liver_crop is not None and anchor is not None:
        least, most = spec.liver_crop.train_pad_px
        above, below, left, right = (int(v) for v in rng.integers(least, most, 4, endpoint=True))
        present = drop_phases(case.present, spec, settings.phase_dropout, u[7:])
        return _through_box(case, spec, anchor[0], (above, below, left, right), present)
    start = _start(case.label.shape, spec, anchor, u[4:7])
    present = drop_phases(case.present, spec, settings.phase_dropout, u[7:])
    patch = cut(case, spec, start, _size(spec), present)
    if case.typed is not None and patch.instances is not None:
        small = 1 + np.flatnonzero(case.typed.voxels < settings.ignore_lesions_below_voxels)
        if small.size:
            patch = _ignoring(patch, np.isin(patch.instances, small))
    if spec.needs_liver and spec.tumor_classes:
        lesions = patch.instances
        tumor = patch.label == spec.tumor_classes[0] if lesions is None else lesions > 0
        patch = _ignoring(patch, tumor & ~patch.liver)
    return patch


def _ignoring(sample: Sample, where: Bool[np.ndarray, "*spatial"]) -> Sample:
    """The sample with some voxels ignored, which then are part of no lesion either."""
    instances = sample.instances
    return replace(
        sample,
        label=np.where(where, -1, sample.label),
        instances=None if instances is None else np.where(where, 0, instances),
    )


def whole_case(case: PreparedCase, spec: InputSpec) -> ValidationCase:
    """Cut a case into pieces that cover it: every slice, or blocks of the patch's size in 3D.

    A system that sees boxes around the liver gets those of the slices that have one.

    The last block along an axis is moved inside the case, because an instance norm sees padding
    as part of the image; what other blocks have scored is ignored in it.
    """
    stride = spec.stride
    shape = case.label.shape
    voxel_ml = float(np.prod(case.spacing_mm)) / 1000.0
    if spec.liver_crop is not None:
        pads = (spec.liver_crop.pad_px,) * 4
        seen = np.flatnonzero(np.asarray(case.liver).any(axis=(1, 2)))
        pieces = [_through_box(case, spec, int(z), pads, case.present) for z in seen]
        # A pixel of a patch stands for more than a voxel in a large box: for so many on average.
        areas = [case.liver[z][slice_box(case.liver[z], pads)].size for z in seen]
        voxel_ml *= sum(areas) / max(1, len(areas)) / float(np.prod(spec.patch))
    elif spec.dims == 2:
        y, x = (-(-n // stride) * stride for n in shape[1:])
        slices = [(z, 0, 0) for z in range(shape[0])]
        pieces = [cut(case, spec, at, (1, y, x), case.present, outside=-1) for at in slices]
    else:
        size = _size(spec)
        axes = [range(0, n, s) for n, s in zip(shape, size, strict=True)]
        pieces = [_block(case, spec, (z, y, x)) for z in axes[0] for y in axes[1] for x in axes[2]]
    return ValidationCase(case.case_id, tuple(pieces), voxel_ml)


def _block(case: PreparedCase, spec: InputSpec, wanted: tuple[int, int, int]) -> Sample:
    """A block that scores what lies from `wanted` on, starting earlier where the case ends."""
    size, shape = _size(spec), case.label.shape
    z, y, x = (max(0, min(at, n - s)) for at, n, s in zip(wanted, shape, size, strict=True))
    piece = cut(case, spec, (z, y, x), size, case.present, outside=-1)
    scored = tuple(slice(at - start, None) for at, start in zip(wanted, (z, y, x), strict=True))
    elsewhere = np.ones(size, bool)
    elsewhere[scored] = False
    return _ignoring(piece, elsewhere)


def cut(
    case: PreparedCase,
    spec: InputSpec,
    start: tuple[int, int, int],
    size: tuple[int, int, int],
    present: Bool[np.ndarray, " p"],
    *,
    outside: int = 0,
) -> Sample:
    """Cut a box out of a case and prepare it.

    Args:
        case: where from.
        spec: what the system wants to see.
        start: first voxel; may be negative or beyond the case.
        size: (z, y, x); 1 along z for 2D systems.
        present: phases shown; others are zero.
        outside: label of voxels beyond the case; in 3D they are always ignored (-1).
    """
    if spec.dims == 3:
        return _cut_block(case, spec, start, size, present)
    z = start[0]
    n_windows = len(spec.windows_hu)
    # A slice's context reaches along z, so 2D cuts keep the whole column: a view, not a copy.
    inside, pads = _overlap(case.label.shape, start, size)
    plane: tuple[Any, ...] = (z, *inside[1:])
    column, margin = (slice(None), *inside[1:]), pads[1:]
    context = slice_context(spec, case.label.shape[0], z, case.spacing_mm[0])
    image = np.zeros((len(present), spec.channels, *size[1:]), np.float32)
    for phase in np.flatnonzero(present):
        hu = case.hu[phase][column]
        seen = slice_input(hu, context, windows_hu=spec.windows_hu, liver=None)
        # Beyond a slice there is air, which every window shows as 0.
        image[phase] = np.pad(seen, [(0, 0), *margin])
    visible = None
    if spec.needs_liver:
        shown = np.tile(case.liver[column][context], (n_windows, 1, 1))
        visible = np.pad(shown, [(0, 0), *margin])
    label, instances = classes_of(case, plane, spec)
    return Sample(
        image=image,
        present=present,
        label=np.pad(label, margin, constant_values=outside),
        liver=np.pad(case.liver[plane], margin),
        visible=visible,
        instances=None if instances is None else np.pad(instances, margin),
    )


def _cut_block(
    case: PreparedCase, spec: InputSpec, start: Voxel, size: Voxel, present: Bool[np.ndarray, " p"]
) -> Sample:
    """A block of a volume; beyond the case it goes on as it ends, and is ignored.

    An instance norm would see slabs of air, which no study shows it. Each array is read once.
    """
    inside, pads = _overlap(case.label.shape, start, size)
    image = np.zeros((len(present), spec.channels, *size), np.float32)
    for phase in np.flatnonzero(present):
        part: tuple[Any, ...] = (phase, *inside)
        hu = _padded(case.hu[part], pads, mode="edge")
        for channel, limits in enumerate(spec.windows_hu):
            image[phase, channel] = window(hu, limits)
    label, instances = classes_of(case, inside, spec)
    liver = _padded(np.asarray(case.liver[inside]), pads)
    return Sample(
        image=image,
        present=present,
        label=_padded(label, pads, constant_values=-1),
        liver=liver,
        visible=np.repeat(liver[None], spec.channels, axis=0) if spec.needs_liver else None,
        instances=None if instances is None else _padded(instances, pads),
    )


def _padded(array: np.ndarray, pads: list[tuple[int, int]], **options: Any) -> np.ndarray:
    return np.pad(array, pads, **options) if any(map(any, pads)) else array


def _through_box(
    case: PreparedCase,
    spec: InputSpec,
    z: int,
    pad_px: tuple[int, int, int, int],
    present: Bool[np.ndarray, " p"],
) -> Sample:
    """A slice through the box around its liver, at the size of a patch.

    A slice without liver, which no stage would look at, is shown whole.
    """
    whole: Plane = (slice(None), slice(None))
    plane = slice_box(case.liver[z], pad_px) or whole
    size = (spec.patch[0], spec.patch[1])
    context = slice_context(spec, case.label.shape[0], z, case.spacing_mm[0])
    image = np.zeros((len(present), spec.channels, *size), np.float32)
    for phase in np.flatnonzero(present):
        hu = case.hu[phase][(slice(None), *plane)]
        image[phase] = resized(
            slice_input(hu, context, windows_hu=spec.windows_hu, liver=None), size
        )
    label, instances = classes_of(case, (z, *plane), spec)
    return Sample(
        image=image,
        present=present,
        label=resized_labels(label, size),
        liver=resized_labels(case.liver[z][plane], size),
        instances=None if instances is None else resized_labels(instances, size),
    )


def drop_phases(
    present: Bool[np.ndarray, " p"],
    spec: InputSpec,
    settings: PhaseDropout,
    u: np.ndarray,
) -> Bool[np.ndarray, " p"]:
    """Choose the phases a sample keeps.

    Args:
        present: phases the case has.
        spec: order of the phases.
        settings: how often, and whether the reference stays.
        u: uniform numbers: one to decide, one a phase.
    """
    if u[0] >= settings.p or spec.needs_all_phases:
        return present.copy()
    free = np.flatnonzero(present)
    if settings.keep_reference:
        order = [spec.phases.index(p) for p in ("PV", "DL", "ART", "NC") if p in spec.phases]
        reference = next(i for i in order if present[i])
        kept = {reference, *(i for i in free if i != reference and u[1 + i] < 0.5)}
    else:
        # One of the 2^n - 1 non-empty subsets, all equally likely.
        code = 1 + min(int(u[1] * (2 ** len(free) - 1)), 2 ** len(free) - 2)
        kept = {i for bit, i in enumerate(free) if code >> bit & 1}
    return np.isin(np.arange(len(present)), sorted(kept))


def _size(spec: InputSpec) -> tuple[int, int, int]:
    z, y, x = (1, *spec.patch) if spec.dims == 2 else spec.patch
    return z, y, x


def _anchor(
    case: PreparedCase,
    spec: InputSpec,
    u: np.ndarray,
    settings: PatchSettings,
    kind: str | None = None,
) -> tuple[int, int, int]:
    """A voxel that the patch must hold: of a lesion, or of a slice of liver without one.

    In 3D all lesions are equally likely, so that a large one does not hide the small; in 2D all
    slices of lesions are, so that a network sees every cut through them.
    """
    fraction = settings.lesion_fraction
    if spec.dims == 3 and u[0] < (fraction or 0.0) and len(case.lesions):
        rows = np.arange(len(case.lesions))
        if kind is not None and case.typed is not None:
            rows = _only(rows, case.typed.types, kind)
        z, y, x = (int(v) for v in case.lesions[rows[int(u[1] * len(rows))]])
        return z, y, x
    slices, lesion = _slices(case, spec, u, settings)
    numbers = np.flatnonzero(slices)
    if numbers.size == 0:
        z, y, x = (n // 2 for n in case.label.shape)
        return z, y, x
    z = int(numbers[int(u[1] * numbers.size)])
    wanted = case.label[z] == TUMOR if lesion else case.liver[z] | (case.label[z] > 0)
    ys, xs = np.nonzero(wanted if wanted.any() else np.ones_like(wanted))
    chosen = int(u[2] * ys.size)
    return z, int(ys[chosen]), int(xs[chosen])


def _foreground_anchor(
    case: PreparedCase, fraction: float, u: np.ndarray, kind: str | None = None
) -> Voxel | None:
    """A voxel of a class that the case holds, each being as likely; or none, for anywhere."""
    labels = case.foreground[:, 0]
    classes = np.unique(labels)
    if u[0] >= fraction or classes.size == 0:
        return None
    if kind is not None:
        classes = _only(classes, classes, kind)
    rows = np.flatnonzero(labels == classes[int(u[1] * classes.size)])
    z, y, x = (int(v) for v in case.foreground[rows[int(u[2] * rows.size)], 1:])
    return z, y, x


def _only(rows: np.ndarray, types: np.ndarray, kind: str) -> np.ndarray:
    """The rows of a type; all of them where there is none, as resampling may lose a lesion."""
    found = rows[types == TYPE_NUMBERS[kind]]
    return found if found.size else rows


def _slices(
    case: PreparedCase, spec: InputSpec, u: np.ndarray, settings: PatchSettings
) -> tuple[Bool[np.ndarray, " z"], bool]:
    """Slices that the anchor may lie in, and whether it is a voxel of a lesion."""
    liver, tumor = case.contents
    fraction, two = settings.lesion_fraction, spec.dims == 2
    if two and u[3] < settings.background_fraction and not liver.all():
        return ~liver, False
    if not spec.tumor_classes or fraction is None:
        return liver, False
    if u[0] < fraction and tumor.any():
        return tumor, True
    return (liver & ~tumor if two and (liver & ~tumor).any() else liver), False


def _start(shape: tuple[int, ...], spec: InputSpec, anchor: Voxel | None, u: np.ndarray) -> Voxel:
    """A patch that holds the anchor, as far inside the case as it fits; without one, any."""
    start = []
    for axis, (n, size, draw) in enumerate(zip(shape, _size(spec), u, strict=True)):
        if n <= size:
            start.append(-((size - n) // 2))
            continue
        low, high = 0, n - size
        if anchor is not None:
            low, high = max(0, anchor[axis] - size + 1), min(anchor[axis], n - size)
        start.append(low + int(draw * (high - low + 1)))
    z, y, x = start
    return (anchor[0], y, x) if spec.dims == 2 and anchor is not None else (z, y, x)


def _overlap(
    shape: tuple[int, ...], start: tuple[int, ...], size: tuple[int, ...]
) -> tuple[tuple[slice, ...], list[tuple[int, int]]]:
    """Where a box lies inside an array, and how far it sticks out on either side."""
    inside, pads = [], []
    for n, first, length in zip(shape, start, size, strict=True):
        last = first + length
        inside.append(slice(min(max(first, 0), n), min(max(last, 0), n)))
        pads.append((min(max(-first, 0), length), min(max(last - n, 0), length)))
    return tuple(inside), pads
