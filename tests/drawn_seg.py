"""DICOM Segmentations as other programs leave them: any order, type, code and label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage, generate_uid

from hepar.geometry import Grid

LABEL_MAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"
TISSUE = ("85756007", "SCT")
LIVER, LESION = ("10200004", "SCT"), ("52988006", "SCT")
ORGAN, ABNORMAL = ("91723000", "SCT"), ("49755003", "SCT")


@dataclass(frozen=True)
class Drawn:
    """A segment.

    Attributes:
        mask: `(z, y, x)` of bools, or of shares in [0, 1] where it is fractional.
        label: SegmentLabel.
        kind: code of what it is; None for none.
        category: code of what kind of thing it is.
        region: code of the organ it lies in.
    """

    mask: np.ndarray
    label: str
    kind: tuple[str, str] | None = TISSUE
    category: tuple[str, str] = TISSUE
    region: tuple[str, str] | None = None


def write_seg(
    path: Path,
    segments: Sequence[Drawn],
    grid: Grid,
    *,
    kind: str = "BINARY",
    order: Sequence[int] | None = None,
    spacing_mm: float | None = 0.0,
    lean_mm: float = 0.0,
    **tags: Any,
) -> Path:
    """Write a Segmentation; planes without pixels have no frame.

    Args:
        path: of the file.
        segments: numbered from 1.
        grid: of their masks; its first axis counts the frames.
        kind: SegmentationType.
        order: of all frames; shuffled by default.
        spacing_mm: SpacingBetweenSlices, 0 for that of the grid, None for none.
        lean_mm: how far each plane is shifted along its columns against the one before.
        **tags: values to set last, by keyword.
    """
    frames = _frames(segments, kind)
    shuffled = np.random.default_rng(3).permutation(len(frames)) if order is None else order
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    label_map = kind == "LABELMAP"
    data.SOPClassUID = LABEL_MAP_STORAGE if label_map else SegmentationStorage
    data.SOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    meta.MediaStorageSOPClassUID = data.SOPClassUID
    meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.Modality, data.SegmentationType = "SEG", kind
    data.StudyInstanceUID, data.FrameOfReferenceUID = "1.2.3", "1.2.3.5"
    data.Rows, data.Columns = grid.shape[1:]
    bits = 1 if kind == "BINARY" else 8
    data.BitsAllocated = data.BitsStored = bits
    data.HighBit, data.PixelRepresentation, data.SamplesPerPixel = bits - 1, 0, 1
    data.PhotometricInterpretation = "MONOCHROME2"
    if kind == "FRACTIONAL":
        data.MaximumFractionalValue, data.SegmentationFractionalType = 200, "OCCUPANCY"
    data.SegmentSequence = [_segment(number, one) for number, one in enumerate(segments, 1)]
    data.SharedFunctionalGroupsSequence = [_shared(grid, spacing_mm)]
    groups, pixels = [], []
    for index in shuffled:
        plane, number, frame = frames[index]
        corner = grid.index_to_world(np.array([plane, plane * lean_mm / grid.spacing_mm[1], 0.0]))
        group = Dataset()
        group.PlanePositionSequence = [Dataset()]
        group.PlanePositionSequence[0].ImagePositionPatient = [f"{v:.6f}" for v in corner]
        if number:
            group.SegmentIdentificationSequence = [Dataset()]
            group.SegmentIdentificationSequence[0].ReferencedSegmentNumber = number
        groups.append(group)
        pixels.append(frame)
    data.PerFrameFunctionalGroupsSequence = groups
    data.NumberOfFrames = len(groups)
    flat = np.concatenate([frame.ravel() for frame in pixels])
    raw = np.packbits(flat, bitorder="little") if kind == "BINARY" else flat
    data.PixelData = raw.tobytes() + b"\0" * (raw.size % 2)
    for keyword, value in tags.items():
        setattr(data, keyword, value)
    data.save_as(path, enforce_file_format=True)
    return path


def _frames(segments: Sequence[Drawn], kind: str) -> list[tuple[int, int, np.ndarray]]:
    """Plane, segment number and pixels of each frame."""
    numbered = list(enumerate(segments, 1))
    if kind == "LABELMAP":
        labels = np.zeros(segments[0].mask.shape, np.uint8)
        for number, one in numbered:
            labels[one.mask > 0] = number
        return [(z, 0, plane) for z, plane in enumerate(labels) if plane.any()]
    full = 1 if kind == "BINARY" else 200
    return [
        (z, number, np.rint(plane * full).astype(np.uint8))
        for number, one in numbered
        for z, plane in enumerate(one.mask.astype(np.float64))
        if plane.any()
    ]


def _segment(number: int, one: Drawn) -> Dataset:
    item = Dataset()
    item.SegmentNumber, item.SegmentLabel = number, one.label
    item.SegmentAlgorithmType = "MANUAL"
    item.SegmentedPropertyCategoryCodeSequence = [_code(one.category)]
    if one.kind is not None:
        item.SegmentedPropertyTypeCodeSequence = [_code(one.kind)]
    if one.region is not None:
        item.AnatomicRegionSequence = [_code(one.region)]
    return item


def _code(code: tuple[str, str]) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = code
    item.CodeMeaning = "as coded"
    return item


def _shared(grid: Grid, spacing_mm: float | None) -> Dataset:
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    columns = grid.matrix
    directions = [*columns[:, 2], *columns[:, 1]]
    orientation.ImageOrientationPatient = [f"{v:.6f}" for v in directions]
    measures.PixelSpacing = list(grid.spacing_mm[1:])
    if spacing_mm is not None:
        measures.SpacingBetweenSlices = spacing_mm or grid.spacing_mm[0]
    measures.SliceThickness = "5" if spacing_mm is not None else ""
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    return shared
