"""Write a volume as a CT series, for phantoms and tests: exact positions, UIDs from a seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)
from pydicom.valuerep import format_number_as_ds

from hepar.io.atomic import staged_folder
from hepar.study import Volume

_IMPLEMENTATION = UID("1.2.826.0.1.3680043.8.498.46")


def write_dicom_series(
    folder: Path | str,
    volume: Volume,
    *,
    description: str,
    series_number: int,
    study_uid: str | None = None,
    frame_of_reference_uid: str | None = None,
    patient_id: str = "PHANTOM",
    acquisition_time: str = "120000",
    contrast: str = "",
    contrast_start: str = "",
    uid_seed: str = "0",
    tags: bool = True,
    transfer_syntax: str = ExplicitVRLittleEndian,
) -> tuple[Path, ...]:
    """Write CT Image Storage files, one a slice, all or none.

    Args:
        folder: destination; files are `0001.dcm`, `0002.dcm`, ... in the order of the z axis.
        volume: HU int16 on any orthogonal grid.
        description: SeriesDescription.
        series_number: SeriesNumber.
        study_uid: StudyInstanceUID; from `uid_seed` when absent, so give the series of one study
            one value.
        frame_of_reference_uid: as `study_uid`.
        patient_id: PatientID and PatientName.
        acquisition_time: AcquisitionTime, SeriesTime and ContentTime, `HHMMSS` or `HHMMSS.F`.
        contrast: ContrastBolusAgent; not written when empty.
        contrast_start: ContrastBolusStartTime, the start of the injection; not written when empty.
        uid_seed: names the series; the same arguments give the same UIDs.
        tags: write SeriesDescription, contrast agent, injection and distinct times; without them
            nothing in the headers tells the phase.
        transfer_syntax: explicit little endian or RLE lossless.

    Returns:
        The files, in slice order.
    """
    study = study_uid or _uid(uid_seed, "study")
    frame = frame_of_reference_uid or _uid(uid_seed, "frame of reference")
    series = _uid(uid_seed, "series", str(series_number), description)
    names = [f"{k + 1:04d}.dcm" for k in range(volume.grid.shape[0])]
    with staged_folder(folder) as staged:
        for k, name in enumerate(names):
            data = _image(volume, k, _uid(series, "image", str(k)))
            data.StudyInstanceUID, data.SeriesInstanceUID = study, series
            data.FrameOfReferenceUID = frame
            data.PatientID, data.PatientName = patient_id, patient_id
            data.SeriesNumber, data.AcquisitionNumber = series_number, 1
            clock = acquisition_time if tags else "120000"
            data.SeriesTime = data.AcquisitionTime = data.ContentTime = clock
            if tags:
                data.SeriesDescription = description
                if contrast:
                    data.ContrastBolusAgent = contrast
                if contrast_start:
                    data.ContrastBolusStartTime = contrast_start
            if transfer_syntax == RLELossless:
                data.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
            elif transfer_syntax != ExplicitVRLittleEndian:
                raise ValueError(f"cannot write the transfer syntax {transfer_syntax}")
            data.save_as(staged / name, enforce_file_format=True)
    return tuple(Path(folder) / name for name in names)


def _uid(*parts: str) -> UID:
    return generate_uid(entropy_srcs=["hepar", *parts])


def _ds(values: np.ndarray | tuple[float, ...]) -> list[str]:
    """Decimal strings of at most 16 characters, with all the digits that fit."""
    return [str(format_number_as_ds(float(value))) for value in values]


def _image(volume: Volume, k: int, sop_uid: UID) -> FileDataset:
    grid = volume.grid
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = sop_uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _IMPLEMENTATION
    data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)  # type: ignore[arg-type]
    data.SpecificCharacterSet = "ISO_IR 192"
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, sop_uid
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.Modality, data.Manufacturer = "CT", "hepar phantom"
    data.StudyDate = data.SeriesDate = data.AcquisitionDate = data.ContentDate = "20000101"
    data.StudyTime, data.StudyID, data.AccessionNumber = "115500", "1", ""
    data.ReferringPhysicianName = data.PatientBirthDate = data.PatientSex = ""
    data.PositionReferenceIndicator, data.PatientPosition, data.KVP = "", "HFS", "120"
    data.InstanceNumber = k + 1
    matrix = grid.matrix
    data.ImagePositionPatient = _ds(grid.index_to_world(np.array([k, 0.0, 0.0])))
    data.ImageOrientationPatient = _ds(np.concatenate([matrix[:, 2], matrix[:, 1]]))
    data.PixelSpacing = _ds(grid.spacing_mm[1:])
    data.SliceThickness = _ds(grid.spacing_mm[:1])[0]
    data.Rows, data.Columns = grid.shape[1], grid.shape[2]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    hu = np.asarray(volume.array[k], dtype=np.int64)
    # As scanners do: unsigned with an intercept of -1024, unless the HU do not fit.
    signed = bool(volume.array.min() < -1024)
    intercept = 0 if signed else -1024
    data.PixelRepresentation = int(signed)
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = str(intercept), "1", "HU"
    stored = (hu - intercept).astype("<i2" if signed else "<u2")
    data.PixelData = stored.tobytes()
    return data
