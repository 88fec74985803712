"""From what an importer found to voxels: images in HU and one label map, checked together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from scipy import ndimage

from hepar.data.importers.case import ImportedCase, Mask, Role, Truth
from hepar.data.importers.lits import is_placeholder
from hepar.data.importers.placing import doubts, place
from hepar.geometry import Grid
from hepar.io.dicom import read_dicom
from hepar.io.dicom_headers import Header
from hepar.io.dicom_pixels import quiet
from hepar.io.dicom_scan import scan_files, walk_files
from hepar.io.hounsfield import implausible
from hepar.io.nifti import histogram, read_ct, read_label
from hepar.io.refusal import REMEDIES, refuse
from hepar.study import BACKGROUND, LIVER, TUMOR, Phase, Volume

_MAX_OFF_SLICE = 0.05

RoleMasks = Mapping[Role, NDArray[np.bool_]]


@dataclass(frozen=True)
class Image:
    """An image, its files in slice order where it is DICOM, and `W_CODE: words` of its file."""

    volume: Volume
    files: tuple[Path, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoadedCase:
    """The voxels of a case.

    Attributes:
        images: HU int16 by phase, each on its own voxels as stored.
        reference: the phase that the masks lie on.
        label: `(z, y, x)` uint8: 0 background, 1 liver, 2 tumor.
        instances: lesion ids, where known.
        ignore: voxels left out of scoring, where there are any.
        phase_masks: liver and tumor masks of phases that have their own, the reference included.
        warnings: `W_CODE: words`.
    """

    images: Mapping[Phase, Volume]
    reference: Phase
    label: NDArray[np.uint8]
    instances: NDArray[np.integer] | None
    ignore: NDArray[np.bool_] | None
    phase_masks: Mapping[Phase, RoleMasks]
    warnings: tuple[str, ...]


@dataclass
class _Reader:
    """Reads each label file once, and keeps what there is to say of it."""

    image: Image
    read: dict[Path, NDArray[np.integer]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def values(self, path: Path) -> NDArray[np.integer]:
        """Labels on the image's voxels."""
        if path not in self.read:
            array, warning = place(read_label(path), self.image.volume, path.name)
            self.read[path] = array
            self.warnings += [warning] if warning else []
        return self.read[path]

    def mask(self, mask: Mask) -> NDArray[np.bool_]:
        """One structure."""
        if mask.path.is_dir():
            found, warning = _dicom_mask(mask, self.image)
            self.warnings += [warning] if warning else []
            return found
        array = self.values(mask.path)
        if mask.known:
            strange = sorted(set(np.unique(array).tolist()) - set(mask.known))
            if strange:
                raise refuse(
                    "E_LABEL_VALUES",
                    f"{mask.path.name} holds {strange[0]}, and only "
                    f"{', '.join(map(str, mask.known))} have a meaning: {histogram(array)}.",
                    "prepare",
                )
        return np.isin(array, mask.values) if mask.values else array > 0

    def union(self, masks: Sequence[Mask]) -> NDArray[np.bool_]:
        """The voxels of any of some masks."""
        found = np.zeros(self.image.volume.grid.shape, dtype=bool)
        for mask in masks:
            found |= self.mask(mask)
        return found


def load_case(case: ImportedCase) -> LoadedCase:
    """Read a case and check that its parts belong together.

    Raises:
        InputRefused: an image or mask cannot be used; `E_PLACEHOLDER_GEOMETRY`;
            `E_LABEL_EMPTY`, the liver mask is empty or an image blank.
    """
    images = {phase: read_image(path) for phase, path in case.images.items()}
    reference = images[case.reference]
    if not reference.files and is_placeholder(reference.volume.grid):
        raise refuse(
            "E_PLACEHOLDER_GEOMETRY",
            f"{case.images[case.reference].name} has an identity affine: the true size of its "
            "voxels is not stored.",
            "prepare",
        )
    reader = _Reader(reference)
    roles = {role: reader.union(masks) for role, masks in case.truth.items()}
    tumor = roles["tumor"]
    liver = roles["liver"] | tumor | roles.get("cyst", np.zeros_like(tumor))
    if not liver.any():
        raise refuse("E_LABEL_EMPTY", f"The liver mask of {case.case_id} is empty.", "prepare")
    label = np.full(liver.shape, BACKGROUND, dtype=np.uint8)
    label[liver], label[tumor] = LIVER, TUMOR
    instances = _instances(case, reader, tumor)
    told = (warning for image in images.values() for warning in image.warnings)
    warnings = [*case.warnings, *told, *_instance_doubts(instances, tumor, case.lesion_types)]
    phase_masks: dict[Phase, RoleMasks] = {case.reference: {"liver": liver, "tumor": tumor}}
    for phase, truth in case.phase_truth.items():
        phase_masks[phase], said = _phase_masks(truth, images[phase])
        warnings += said
    return LoadedCase(
        images={phase: image.volume for phase, image in images.items()},
        reference=case.reference,
        label=label,
        instances=instances,
        ignore=_ignored(roles, liver, tumor),
        phase_masks=phase_masks,
        warnings=(*warnings, *reader.warnings, *doubts(reference.volume, label)),
    )


def _phase_masks(truth: Truth, image: Image) -> tuple[RoleMasks, list[str]]:
    """Liver and tumor of a phase with masks of its own, and what was done to them."""
    reader = _Reader(image)
    found: dict[Role, NDArray[np.bool_]] = {
        role: reader.union(truth[role]) for role in truth if role in ("liver", "tumor")
    }
    if "liver" in found and "tumor" in found:
        found["liver"] |= found["tumor"]
    return found, reader.warnings


def _ignored(
    roles: RoleMasks, liver: NDArray[np.bool_], tumor: NDArray[np.bool_]
) -> NDArray[np.bool_] | None:
    """What counts neither way: cysts, what nobody knows inside the liver, what was left open."""
    none = np.zeros_like(liver)
    ignored = roles.get("cyst", none) | (roles.get("doubtful", none) & liver)
    ignored = (ignored & ~tumor) | (roles.get("ignore", none) & ~tumor)
    return ignored if ignored.any() else None


def read_image(path: Path) -> Image:
    """One phase: a NIfTI file, or a folder of exactly one DICOM series.

    Raises:
        InputRefused: a code of `refusal.REMEDIES`.
    """
    if path.is_dir():
        series, verdicts = read_dicom(path)
        if len(series) > 1:
            raise refuse("E_SEVERAL_SERIES", f"{path.name} holds {len(series)} series.", "prepare")
        if not series:
            told = [v for v in verdicts if v.code in REMEDIES]
            code = str(told[0].code) if told else "E_NO_IMAGE"
            why = told[0].reason if told else "there is no CT series"
            raise refuse(code, f"{path.name}: {why}", "prepare")
        frames = series[0].frames
        # Masks drawn on images that were resampled belong to no slice of the volume.
        files = tuple(Path(f) for f in frames.files) if frames and frames.on_grid else ()
        return Image(series[0].volume, files)
    ct = read_ct(path)
    hu = ct.volume.array
    if hu.min() == hu.max():
        raise refuse(
            "E_LABEL_EMPTY", f"{path.name} is blank: every value is {hu.min()}.", "prepare"
        )
    doubt = implausible(hu)
    if doubt is not None:
        raise refuse("E_HU_IMPLAUSIBLE", f"{path.name}: {doubt}.", "prepare")
    return Image(ct.volume, warnings=tuple(f"{note} ({path.name})" for note in ct.notes))


def _dicom_mask(mask: Mask, image: Image) -> tuple[NDArray[np.bool_], str | None]:
    """A structure drawn as DICOM slices, each put on the image's slice at its position.

    Where the positions do not tell, the names of the files do, if they are those of the image.
    """
    with quiet():
        scan = scan_files(walk_files(mask.path))
    slices = scan.headers
    grid = image.volume.grid
    flat = (grid.shape[1], grid.shape[2])
    if scan.damaged or scan.other or len(slices) != grid.shape[0]:
        raise refuse(
            "E_MASK_SLICES",
            f"{mask.name} has {len(slices)} slices, its image {grid.shape[0]}.",
            "prepare",
        )
    if any((h.rows, h.columns, h.frames, h.samples) != (*flat, 1, 1) for h in slices):
        raise refuse("E_MASK_SLICES", f"{mask.name} is not of {flat} pixels.", "prepare")
    by_position = _by_position(slices, grid)
    by_name = _by_name(slices, image.files)
    if by_position and by_name and by_position != by_name:
        raise refuse(
            "E_MASK_SLICES", f"Positions and file names of {mask.name} contradict.", "prepare"
        )
    order = by_position or by_name
    if order is None:
        raise refuse("E_MASK_SLICES", f"The slices of {mask.name} cannot be placed.", "prepare")
    found = np.zeros(grid.shape, dtype=bool)
    with quiet():
        for path, z in order.items():
            found[z] = pydicom.dcmread(path).pixel_array != 0
    warning = f"W_MASK_BY_NAME: slices of {mask.name} were placed by file name"
    return found, None if by_position else warning


def _by_position(slices: Sequence[Header], grid: Grid) -> dict[Path, int] | None:
    """Slice index by file, if every slice lies exactly on one of the grid."""
    if any(h.position_mm is None for h in slices):
        return None
    index = grid.world_to_index(np.array([h.position_mm for h in slices], dtype=np.float64))
    nearest = np.rint(index)
    on_grid = np.abs(index - nearest).max() <= _MAX_OFF_SLICE and not nearest[:, 1:].any()
    rows = grid.matrix[:, [2, 1]].T.ravel()
    straight = all(
        h.orientation is not None and np.abs(np.array(h.orientation) - rows).max() < 1e-3
        for h in slices
    )
    if not on_grid or not straight or set(nearest[:, 0]) != set(range(grid.shape[0])):
        return None
    return {h.path: int(z) for h, z in zip(slices, nearest[:, 0], strict=True)}


def _by_name(slices: Sequence[Header], files: Sequence[Path]) -> dict[Path, int] | None:
    """Slice index by file, if the names are those of the image's files."""
    index = {path.name: z for z, path in enumerate(files)}
    if len(index) != len(slices) or {h.path.name for h in slices} != set(index):
        return None
    return {h.path: index[h.path.name] for h in slices}


def _instances(
    case: ImportedCase, reader: _Reader, tumor: NDArray[np.bool_]
) -> NDArray[np.integer] | None:
    """Lesion ids, where the source tells lesions apart."""
    if case.instances is not None:
        return reader.values(case.instances)
    if not case.lesion_masks:
        return None
    found = np.zeros(tumor.shape, dtype=np.uint16)
    count = 0
    for mask in case.truth["tumor"]:
        drawn = reader.mask(mask)
        if mask.name[-1:].isdigit():
            count += 1
            found[drawn] = count
            continue
        parts, number = ndimage.label(drawn, np.ones((3, 3, 3)))
        found[drawn] = parts[drawn] + count
        count += number
    return found


def _instance_doubts(
    instances: NDArray[np.integer] | None, tumor: NDArray[np.bool_], types: Mapping[int, str]
) -> list[str]:
    if instances is None:
        return []
    warnings = []
    apart = int(((instances > 0) != tumor).sum())
    if apart:
        warnings.append(f"W_INSTANCES: {apart} voxels are tumor or lesion, but not both")
    absent = sorted(set(types) - set(np.unique(instances).tolist()))
    if absent:
        raise refuse(
            "E_CASE_FILES", f"Lesion {absent[0]} has a type and is not in the instances.", "prepare"
        )
    return warnings
