"""Whether a mask lies on its image, and the mistakes of headers that can be undone without doubt.

A mask on the image's voxels is taken as it is. One that lies at the same place in another order of
voxels is turned. One of the same shape whose affine differs in signs or in a unit alone is
ambiguous (were the voxels flipped, or only the header?), and then the image decides: the border
of the mask must lie on edges of the image in one way of reading it, and not in the other. Anything
else is refused.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int16, Integer
from numpy.typing import NDArray
from scipy import ndimage

from hepar.data.cohort import SAME_VOXELS
from hepar.geometry import Array, Box, Grid, canonical, uncanonical
from hepar.io.refusal import refuse
from hepar.study import LIVER, TUMOR, Volume

TOL_MM = 0.1
_UNITS = (1.0, 10.0, 1000.0)
_LIVER_HU = (-30.0, 250.0)
# Share of a right mask's voxels that have a liver's HU, tumors, vessels and noise included, and how
# much less its border must lie on edges in a wrong reading of it.
_MIN_SHARE = 0.8
_MIN_EDGE_RATIO = 1.3
_EDGE_HU = (-150, 250)
_MAX_SLICES = 40
_BODY_HU, _BONE_HU = -300, 300
_MIN_BONE_SHARE = 0.005
_MIN_OFF_MM = 10.0
_USUAL_LIVER_HU = (-20.0, 250.0)


def place(mask: Volume, image: Volume, name: str) -> tuple[NDArray[np.integer], str | None]:
    """A mask on the voxels of its image.

    Args:
        mask: labels, as read.
        image: HU.
        name: of the mask's file, for messages.

    Returns:
        Labels `(z, y, x)` on the image's voxels, and a `W_CODE: words` if anything was done.

    Raises:
        InputRefused: `E_GRID_MISMATCH`.
    """
    near_mm = SAME_VOXELS * min(image.grid.spacing_mm)
    if mask.grid.is_close(image.grid, tol_mm=near_mm):
        return mask.array, None
    turned, there = canonical(mask.array, mask.grid)
    _, target = canonical(image.array, image.grid)
    if there.is_close(target, tol_mm=near_mm):
        text = f"W_LABEL_TURNED: {name} holds its voxels in another order than the image"
        return np.ascontiguousarray(uncanonical(turned, image.grid)), text
    if mask.grid.shape == image.grid.shape:
        found = _repaired(mask, image, name)
        if found is not None:
            return found
    raise refuse("E_GRID_MISMATCH", f"{name} {_difference(mask.grid, image.grid)}.", "prepare")


def _repaired(mask: Volume, image: Volume, name: str) -> tuple[NDArray[np.integer], str] | None:
    """The mask by the one reading of its header that the image bears out, or None."""
    ratio = np.asarray(mask.grid.spacing_mm) / np.asarray(image.grid.spacing_mm)
    units = [f for unit in _UNITS for f in (unit, 1 / unit) if np.allclose(ratio, f, rtol=1e-3)]
    signs = _signs(mask.grid, image.grid)
    if not units or signs is None or not _same_origin(mask.grid, image.grid, units[0]):
        return None
    flipped = mask.array[tuple(slice(None, None, int(sign)) for sign in signs)]
    readings = [("as it is stored", mask.array)]
    if any(sign < 0 for sign in signs):
        readings.append(("flipped as its header says", flipped))
    edges = [edge_ratio(image.array, reading > 0) for _, reading in readings]
    best = int(np.argmax(edges))
    how, array = readings[best]
    share = liver_share(image.array, array > 0)
    if share < _MIN_SHARE:
        return None
    if len(readings) > 1 and edges[best] < _MIN_EDGE_RATIO * max(min(edges), 1.0):
        return None
    what = "unit" if units[0] != 1.0 else "signs or origin"
    return np.ascontiguousarray(array), (
        f"W_LABEL_AFFINE: the affine of {name} differs from the image's in its {what}; taken "
        f"{how}, so that {100 * share:.0f} % of it has a liver's HU"
    )


def _signs(one: Grid, other: Grid) -> tuple[int, int, int] | None:
    """The axes along which two directions are opposite; None where they differ otherwise."""
    cosines = (one.matrix * other.matrix).sum(axis=0)
    if np.abs(np.abs(cosines) - 1).max() > 1e-3:
        return None
    z, y, x = (1 if c > 0 else -1 for c in cosines)
    return z, y, x


def _same_origin(one: Grid, other: Grid, unit: float) -> bool:
    """Whether two origins are the same but for signs and a unit."""
    a, b = (np.abs(np.asarray(grid.origin_mm)) for grid in (one, other))
    return any(bool(np.allclose(a, factor * b, atol=TOL_MM)) for factor in (1.0, unit))


def edge_ratio(hu: Int16[Array, "z y x"], mask: Bool[Array, "z y x"]) -> float:
    """How much steeper the image is on a mask's border than inside it, in the slices it covers.

    Returns:
        Mean in-plane gradient on the border over that inside: about 1 for a mask that lies
        anywhere, 2 and more for one that follows an organ; 0 for one with no inside.
    """
    slices = np.flatnonzero(mask.any(axis=(1, 2)))
    on_border, inside = [], []
    for z in slices[:: max(1, len(slices) // _MAX_SLICES)]:
        plane = np.clip(hu[z], *_EDGE_HU).astype(np.float32)
        steepness = ndimage.gaussian_gradient_magnitude(plane, 1.0)
        shrunk = ndimage.binary_erosion(mask[z])
        on_border.append(steepness[mask[z] & ~shrunk])
        inside.append(steepness[ndimage.binary_erosion(shrunk)])
    if not slices.size or not np.concatenate(inside).size:
        return 0.0
    return float(np.concatenate(on_border).mean() / max(np.concatenate(inside).mean(), 1e-3))


def liver_share(hu: Int16[Array, "z y x"], mask: Bool[Array, "z y x"]) -> float:
    """Share of a mask's voxels whose HU a liver may have; 0 for an empty mask."""
    values = hu[mask]
    if not values.size:
        return 0.0
    return float(((values > _LIVER_HU[0]) & (values < _LIVER_HU[1])).mean())


def _difference(mask: Grid, image: Grid) -> str:
    if mask.shape != image.shape:
        return f"has {mask.shape} voxels, its image {image.shape}"
    sizes = [" x ".join(f"{s:.3g}" for s in grid.spacing_mm) for grid in (mask, image)]
    far = mask.distance_mm(image)
    return f"lies up to {far:.1f} mm from its image (voxels of {sizes[0]} and {sizes[1]} mm)"


def doubts(image: Volume, label: Integer[Array, "z y x"]) -> tuple[str, ...]:
    """What makes an orientation or the HU of a labelled image doubtful.

    A liver lies on the right of the body's middle and the spine behind it, unless the image was
    mirrored by whoever stored it (or the patient has situs inversus).

    Args:
        image: HU.
        label: 0 background, 1 liver, 2 tumor, on the image.

    Returns:
        `W_LIVER_SIDE`, `W_FRONT_BACK`, `W_LIVER_HU`, `W_TUMOR_OUTSIDE_LIVER`.
    """
    hu, grid = canonical(image.array, image.grid)
    mask = canonical(label > 0, image.grid)[0]
    found = []
    parenchyma = float(np.median(image.array[label > 0]))
    if not _USUAL_LIVER_HU[0] < parenchyma < _USUAL_LIVER_HU[1]:
        found.append(f"W_LIVER_HU: the median of the liver is {parenchyma:.0f} HU")
    if apart := tumor_apart(label):
        found.append(
            f"W_TUMOR_OUTSIDE_LIVER: {apart} voxels of tumor touch no liver; they are trained on "
            "and scored as tumor all the same"
        )
    slices = np.flatnonzero(mask.any(axis=(1, 2)))
    slices = slices[:: max(1, len(slices) // _MAX_SLICES)]
    part = hu[slices]
    body, bone = part > _BODY_HU, part > _BONE_HU
    _, dy, dx = grid.spacing_mm
    if body.any():
        middle = _center(body)
        off_mm = (_center(mask[slices])[2] - middle[2]) * dx
        if off_mm > _MIN_OFF_MM:
            found.append(
                f"W_LIVER_SIDE: the liver lies {off_mm:.0f} mm to the left of the body's middle; "
                "the image may be mirrored"
            )
        front_mm = (middle[1] - _center(bone)[1]) * dy if bone.mean() > _MIN_BONE_SHARE else 0.0
        if front_mm > _MIN_OFF_MM:
            found.append(
                f"W_FRONT_BACK: bone lies {front_mm:.0f} mm in front of the body's middle; the "
                "image may be flipped or the patient prone"
            )
    return tuple(found)


def tumor_apart(label: Integer[Array, "z y x"]) -> int:
    """Voxels of tumor in parts of a label map that hold no liver voxel and touch none."""
    box = Box.around(label > 0)
    if box is None or not (label == TUMOR).any():
        return 0
    inside = label[box.slices]
    parts, _ = ndimage.label(inside > 0, np.ones((3, 3, 3)))
    with_liver = np.unique(parts[inside == LIVER])
    return int(np.count_nonzero((inside == TUMOR) & ~np.isin(parts, with_liver)))


def _center(mask: Bool[Array, "z y x"]) -> tuple[float, float, float]:
    """Mean index of a mask that is not empty."""
    total = float(mask.sum())
    axes = ((1, 2), (0, 2), (0, 1))
    z, y, x = (
        float((mask.sum(axis=others) * np.arange(size)).sum()) / total
        for others, size in zip(axes, mask.shape, strict=True)
    )
    return z, y, x
