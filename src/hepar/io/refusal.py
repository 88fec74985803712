"""The refusals of the reading doors: one remedy a code, so that every door says the same."""

from __future__ import annotations

from hepar.errors import InputRefused

REMEDIES: dict[str, str] = {
    "E_NO_IMAGE": "Give a CT as a DICOM folder, as .nii / .nii.gz, or as an archive of either.",
    "E_WRONG_MODALITY": "Give a CT series; MR, PET and others cannot be read as HU.",
    "E_TRUNCATED": "Copy or export the file again; it ends before its data do.",
    "E_CORRUPT": "Copy or export the file again; its checksum does not match.",
    "E_MALFORMED": "Export the file again; its header cannot be parsed.",
    "E_BOMB": "Do not use this file; it inflates far beyond any CT image.",
    "E_SLICE_GAP": "Export the series again with every slice.",
    "E_NON_UNIFORM": "Reconstruct the series with one slice distance, or resample it by true "
    "position first.",
    "E_DUPLICATE_SLICE": "Remove the wrong one of the two images, or export the series again.",
    "E_AMBIGUOUS_STACK": "Export each phase as a series of its own.",
    "E_MIXED_GEOMETRY": "Export a series in which all images share one matrix and pixel spacing.",
    "E_GANTRY_TILT": "Correct the tilt first (dcm2niix writes a corrected NIfTI) and give that.",
    "E_NO_GEOMETRY": "Export the series with ImagePositionPatient, ImageOrientationPatient and "
    "PixelSpacing; they are never guessed.",
    "E_MULTIFRAME": "Convert the enhanced (multi-frame) CT to NIfTI with dcm2niix, or export it as "
    "classic CT Image Storage.",
    "E_UNSUPPORTED_SYNTAX": "Export uncompressed, RLE or JPEG 2000, e.g. with `gdcmconv --raw`.",
    "E_DECODE": "Export the series again, uncompressed; its pixel data cannot be decoded.",
    "E_BAD_RESCALE": "Export the series again with its RescaleSlope and RescaleIntercept.",
    "E_HU_IMPLAUSIBLE": "Give the original CT in HU, not a mask and not a windowed, normalized or "
    "shifted copy.",
    "E_SEVERAL_PATIENTS": "Give one patient's folder at a time.",
    "E_TOO_FEW_SLICES": "Give a series of at least three slices that covers the liver.",
    "E_SEVERAL_SERIES": "Give the folder of exactly one series for each --phase.",
    "E_NOT_NIFTI": "Give a NIfTI file (.nii or .nii.gz).",
    "E_NDIM": "Give one 3D volume a file, or say which volume of a 4D file is which phase, from 0: "
    "--phase art=FILE.nii.gz#0 --phase pv=FILE.nii.gz#1.",
    "E_DTYPE": "Give a volume of integers or floats.",
    "E_NONFINITE": "Replace NaN and Inf before saving the volume.",
    "E_AFFINE": "Save the volume with a finite, invertible affine.",
    "E_NO_AFFINE": "Save the volume with a qform or sform (code 1 or more); orientation is never "
    "guessed.",
    "E_AFFINE_CONFLICT": "Save the volume with one affine in both qform and sform.",
    "E_UNITS": "Save the volume in millimeters and set xyzt_units accordingly.",
    "E_LABEL_VALUES": "Save the labels as non-negative integers.",
    "E_ARCHIVE": "Unpack the archive yourself, look at what is in it, and give the folder.",
    "E_CASE_FILES": "Lay the case out as its format says; README and docs/cohorts.md show each.",
    "E_NO_TRUTH": "Give a label map, or masks of liver and tumor, for every case that is to be "
    "used.",
    "E_LABEL_EMPTY": "Leave the case out, or give an image that shows the liver and a label "
    "that holds it.",
    "E_NO_LIVER_TRUTH": "Add a liver mask; a patient's tumors are looked for inside it.",
    "E_NO_TUMOR_TRUTH": "Add a tumor mask; an empty one says that the patient has no tumor.",
    "E_LABEL_NAMES": "Name the labels background, liver and tumor in dataset.json, or give the "
    "cases with `--format folder` and one mask a structure.",
    "E_GRID_MISMATCH": "Save the mask on the voxels of its image, with the image's own affine.",
    "E_PLACEHOLDER_GEOMETRY": "Take the case from MSD Task03_Liver or 3D-IRCADb-01, whose headers "
    "hold the true spacing, or write the true affine into both files.",
    "E_MASK_SLICES": "Give masks with exactly one slice for each slice of the image.",
    "E_ALIGN_MASKS": "Give masks of every phase (art_label.nii.gz, ...), or another --align.",
    "E_LEAKAGE": "Leave the case out; with it, what is tested on would be trained on.",
    "E_MEMORY": "Crop the volume, or use a machine with more memory.",
}


def refuse(code: str, message: str, stage: str = "read") -> InputRefused:
    """The refusal with a code's own remedy, to be raised by the caller."""
    return InputRefused(code, stage, message, REMEDIES[code])
