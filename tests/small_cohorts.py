"""Small patients on disk in the layouts of published data sets, for tests of the importers.

A body of soft tissue in air with a spine behind, a liver on its right and a tumor in it. Noise
tells one patient, phase and slice from another.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from hepar.geometry import Grid
from hepar.io.dicom_write import write_dicom_series
from hepar.io.nifti import write_nifti
from hepar.study import Volume

SHAPE = (10, 40, 48)
SPACING_MM = (5.0, 3.0, 3.0)
ORIGIN_MM = (-70.0, -60.0, 12.5)
GRID = Grid.axial(SHAPE, SPACING_MM, ORIGIN_MM)


def small_label(shift: int = 0) -> np.ndarray:
    """0 background, 1 liver, 2 tumor; moved by voxels along each axis."""
    label = np.zeros(SHAPE, np.uint8)
    label[2:8, 10:26, 8:22] = 1
    label[4:6, 14:19, 11:16] = 2
    return np.roll(label, (0, shift, shift), (0, 1, 2))


def small_hu(seed: int, shift: int = 0) -> np.ndarray:
    """HU of the patient of `small_label`."""
    rng = np.random.default_rng(seed)
    _, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    hu = rng.normal(-990, 8, SHAPE)
    body = np.broadcast_to(((y - 20) / 17) ** 2 + ((x - 24) / 21) ** 2 < 1, SHAPE)
    spine = np.broadcast_to((abs(y - 32) < 4) & (abs(x - 24) < 4), SHAPE)
    hu[body] = rng.normal(20, 18, int(body.sum()))
    hu[spine] = 500
    label = small_label(shift)
    hu[label == 1] = 110 + rng.normal(0, 18, int((label == 1).sum()))
    hu[label == 2] = 60 + rng.normal(0, 18, int((label == 2).sum()))
    return np.maximum(np.rint(hu), -1024).astype(np.int16)


def write_lits(folder: Path, numbers: range) -> Path:
    """`volume-N.nii`, `segmentation-N.nii`."""
    for n in numbers:
        part = folder / f"Training Batch {1 + n % 2}"
        write_nifti(part / f"volume-{n}.nii", small_hu(n), GRID)
        write_nifti(part / f"segmentation-{n}.nii", small_label(), GRID)
    return folder


def write_msd(folder: Path, numbers: range) -> Path:
    """`dataset.json`, `imagesTr`, `labelsTr`."""
    training = []
    for n in numbers:
        write_nifti(folder / "imagesTr" / f"liver_{n}.nii.gz", small_hu(n), GRID)
        write_nifti(folder / "labelsTr" / f"liver_{n}.nii.gz", small_label(), GRID)
        (folder / "imagesTr" / f"._liver_{n}.nii.gz").write_bytes(b"of another system")
        training.append(
            {"image": f"./imagesTr/liver_{n}.nii.gz", "label": f"./labelsTr/liver_{n}.nii.gz"}
        )
    document = {
        "name": "Liver",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "cancer"},
        "training": training,
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


def write_nnunet(folder: Path, numbers: range, *, labels=None, channels=None) -> Path:
    """`dataset.json`, `imagesTr/CASE_0000.nii.gz`, `labelsTr/CASE.nii.gz`."""
    channels = channels or {"0": "NC", "1": "late arterial", "2": "PV"}
    for n in numbers:
        for channel in channels:
            name = f"case{n}_{int(channel):04d}.nii.gz"
            write_nifti(folder / "imagesTr" / name, small_hu(10 * n + int(channel)), GRID)
        write_nifti(folder / "labelsTr" / f"case{n}.nii.gz", small_label(), GRID)
    document = {
        "channel_names": channels,
        "labels": labels or {"background": 0, "liver": 1, "tumor": 2},
        "numTraining": len(numbers),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


def write_folders(folder: Path, numbers: range) -> Path:
    """A folder a patient: PV as DICOM, arterial phase moved and with a label map of its own."""
    for n in numbers:
        place = folder / f"patient {n}"
        write_nifti(place / "art.nii.gz", small_hu(2 * n + 1000, shift=2), GRID)
        write_nifti(place / "art_label.nii.gz", small_label(shift=2), GRID)
        write_dicom_series(
            place / "portal venous",
            Volume(small_hu(2 * n + 1001), GRID),
            description="",
            series_number=1,
            uid_seed=str(n),
        )
        write_nifti(place / "liver.nii.gz", (small_label() > 0).astype(np.uint8), GRID)
        write_nifti(place / "tumour.nii.gz", (small_label() == 2).astype(np.uint8), GRID)
        write_nifti(place / "instances.nii.gz", 3 * (small_label() == 2).astype(np.uint8), GRID)
    ids = [f"patient {n}" for n in numbers]
    kinds = ["hcc", "metastasis"]
    lines = [f"{name};{kinds[i % 2]};{50 + i}" for i, name in enumerate(ids)]
    (folder / "patients.csv").write_text("\n".join(["patient_id;type;age", *lines]) + "\n")
    lines = [f"{name},3,{kinds[i % 2]}" for i, name in enumerate(ids)]
    (folder / "lesions.csv").write_text("\n".join(["case_id,lesion_id,type", *lines]) + "\n")
    return folder
