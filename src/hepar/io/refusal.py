"""What may be said of a patient: every refusal of the reading doors, every warning of a run.

One entry a code, so that every door, the page and the console say the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hepar.errors import InputRefused

Level = Literal["HANDLE", "WARN", "ERROR", "REJECT"]

REMEDIES: dict[str, str] = {
    "E_NO_IMAGE": "Give a CT as a DICOM folder, as .nii / .nii.gz, or as an archive of either.",
    "E_WRONG_MODALITY": "Give a CT series; MR, PET and others cannot be read as HU.",
    "E_TRUNCATED": "Copy or export the file again; it ends before its data do.",
    "E_CORRUPT": "Copy or export the file again; its checksum does not match.",
    "E_MALFORMED": "Export the file again; its header cannot be parsed.",
    "E_BOMB": "Do not use this file; it inflates far beyond any CT image.",
    "E_SLICE_GAP": "Export the series again with every slice; `--interpolate-gaps` makes up "
    "single lost ones, and says so.",
    "E_DUPLICATE_SLICE": "Remove the wrong one of the two images, or export the series again.",
    "E_UID_CONFLICT": "Find out which of the two images is right; a SOPInstanceUID names one.",
    "E_BAD_UID": "Do not use these files; their UIDs are no UIDs.",
    "E_DICOMDIR": "Do not use this folder; its DICOMDIR points outside of it.",
    "E_NOT_CT": "Give the original CT images, not pictures of them.",
    "E_AMBIGUOUS_STACK": "Export each phase as a series of its own.",
    "E_MIXED_MATRIX": "Export a series in which all images share one matrix and pixel spacing.",
    "E_MIXED_GEOMETRY": "Export a series whose images lie above one another, in one frame of "
    "reference.",
    "E_NO_GEOMETRY": "Export the series with ImagePositionPatient, ImageOrientationPatient and "
    "PixelSpacing; they are never guessed.",
    "E_MULTIFRAME": "Export the series as enhanced CT or as one image a file; several frames in a "
    "classic CT image have no places.",
    "E_UNSUPPORTED_TS": "Export uncompressed, RLE, JPEG Lossless, JPEG-LS or JPEG 2000, e.g. with "
    "`gdcmconv --raw`.",
    "E_DECODE": "Export the series again, uncompressed; its pixel data cannot be decoded.",
    "E_BAD_RESCALE": "Export the series again with its RescaleSlope and RescaleIntercept.",
    "E_HU_IMPLAUSIBLE": "Give the original CT in HU, not a mask and not a windowed, normalized or "
    "shifted copy.",
    "E_MIXED_PATIENTS": "Give one patient's folder at a time.",
    "E_TOO_FEW_SLICES": "Give a series of at least 8 slices and 40 mm that covers the liver.",
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
    "E_MASK_FORMAT": "Give the mask as one file, NIfTI (.nii or .nii.gz) or a DICOM Segmentation "
    "of parallel, evenly spaced frames; 3D Slicer saves either.",
    "E_MASK_SEGMENTS": "Code the segments as Liver and Lesion, or label them so (Liver, Lesion 1, "
    "Lesion 2), each voxel in one lesion at most, and take out or name what is neither.",
    "E_MASK_STUDY": "Give a Segmentation that was drawn on a series of this study; if UIDs were "
    "changed since, save the mask as NIfTI.",
    "E_MASK_VALUES": "Give a label map (0 background, 1 liver, 2 tumor), or ids of lesions (1 to "
    "65535) together with a liver mask, which holds 0 and one other value.",
    "E_MASK_EMPTY": "Give a mask that covers the organ; a label map with liver and no tumor says "
    "that there is no lesion.",
    "E_MASK_IMAGE": "Give the masks of this patient and this visit, saved with the image's affine.",
    "E_MEMORY": "Crop the volume, or use a machine with more memory.",
    "E_PHASES_UNKNOWN": "Name at least one phase, e.g. `--phase pv=PATH` (nc, art, pv, dl).",
    "E_PHASE_TWICE": "Give each phase its own file or folder.",
}

# Input that looks made to do harm; every other refusal is an ERROR.
HARMFUL = frozenset({"E_ARCHIVE", "E_BAD_UID", "E_BOMB"})


def refuse(code: str, message: str, stage: str = "read") -> InputRefused:
    """The refusal with a code's own remedy, to be raised by the caller."""
    return InputRefused(code, stage, message, REMEDIES[code])


@dataclass(frozen=True)
class Notice:
    """What a warning code says.

    Attributes:
        level: HANDLE, the result is right and nothing needs doing; WARN, a person has to look.
        title: a few words, as a heading.
        meaning: one sentence: what was found, and what became of it.
        remedy: what the user can do about it.
        stage: the stage that warns.
    """

    level: Literal["HANDLE", "WARN"]
    title: str
    meaning: str
    remedy: str
    stage: str = "read"


WARNINGS: dict[str, Notice] = {
    "W_SERIES_REFUSED": Notice(
        "WARN",
        "Series refused",
        "One series cannot be used; the others go on.",
        "See the series' own code.",
    ),
    "W_PHASE_BY_TIME": Notice(
        "HANDLE",
        "Phases told apart by time",
        "One series holds several passes; acquisition or content times tell them apart.",
        "Nothing needs doing.",
    ),
    "W_PHASE_BY_ORDER": Notice(
        "WARN",
        "Phases told apart by order",
        "Only the order of the images tells the passes of a series apart.",
        "Look at the pictures; export each phase as its own series.",
    ),
    "W_DUP_INSTANCE": Notice(
        "HANDLE",
        "Identical images",
        "Images are there twice, pixel by pixel; one of each is read.",
        "Nothing needs doing.",
    ),
    "W_DROPPED_SLICES": Notice(
        "WARN",
        "Images of another orientation",
        "A few images of the series are turned; they are left aside.",
        "Look whether they are a localizer; if not, export the series again.",
    ),
    "W_GANTRY_TILT": Notice(
        "HANDLE",
        "Gantry tilt",
        "The stack leans; its images were moved back by their positions, masks lie on that grid.",
        "Nothing needs doing.",
    ),
    "W_NON_UNIFORM": Notice(
        "WARN",
        "Resampled slice distances",
        "Slices are unevenly apart; the series was resampled by their true positions.",
        "Prefer a series with one slice distance if there is one.",
    ),
    "W_SLICE_INTERPOLATED": Notice(
        "WARN",
        "Made-up slices",
        "Single lost slices were interpolated from their neighbors, as asked for.",
        "Export the series again with every slice.",
    ),
    "W_LOSSY": Notice(
        "WARN",
        "Lossy compression",
        "The images were compressed with losses; small or faint lesions may be gone.",
        "Export them without losses.",
    ),
    "W_NO_PREAMBLE": Notice(
        "WARN",
        "No DICOM preamble",
        "The files lack the preamble; their content was read all the same.",
        "Export them as DICOM files.",
    ),
    "W_SPACING_NOISE": Notice(
        "WARN",
        "Uneven slice distances",
        "Slices lie up to 5 % of their distance off an even one; one distance is fitted to all.",
        "Export the series again if positions were rounded on the way.",
    ),
    "W_NON_AXIAL": Notice(
        "WARN",
        "Series that is not axial",
        "A coronal or sagittal series is left aside beside an axial one, and used alone.",
        "Name it with `--phase` if it is an acquisition of its own.",
    ),
    "W_NO_RESCALE": Notice(
        "HANDLE",
        "No rescale in the headers",
        "RescaleSlope or RescaleIntercept is absent; the values look like HU and are taken so.",
        "Export the series with its rescale.",
    ),
    "W_MONOCHROME1": Notice(
        "HANDLE",
        "Inverted display",
        "The images ask to be shown inverted (MONOCHROME1); HU stay as they are.",
        "Nothing needs doing.",
    ),
    "W_SHEAR": Notice(
        "HANDLE",
        "Voxels without right angles",
        "The affine is sheared; the volume was resampled by it, masks lie on the file's voxels.",
        "Nothing needs doing.",
    ),
    "W_NONFINITE": Notice(
        "WARN",
        "Values that are no numbers",
        "Below 0.1 % of the voxels are NaN or Inf; they became air.",
        "Save the volume without them.",
    ),
    "W_UNITS": Notice(
        "WARN",
        "Header not in millimeters",
        "The header names meters or microns; it was converted.",
        "Save the volume in millimeters.",
    ),
    "W_SEVERAL_STUDIES": Notice(
        "WARN",
        "Several studies",
        "The series of one patient come from several studies, perhaps of different days.",
        "Give one study at a time unless they belong together.",
    ),
    "W_BURNED_IN": Notice(
        "WARN",
        "Text in the pixels",
        "BurnedInAnnotation is YES: the images may show a name, so no preview is made of them.",
        "Export the series without annotations.",
    ),
    "W_PHASE_ASSUMED": Notice(
        "WARN",
        "Phase assumed",
        "Nothing says which phase the only series is.",
        "Name it, e.g. `--phase art=PATH`.",
        "phases",
    ),
    "W_PHASE_TAG_CONFLICT": Notice(
        "WARN",
        "Conflicting evidence for a phase",
        "Two sources name different phases; the more trusted one is followed, less sure.",
        "Name the phase, e.g. `--phase art=PATH`.",
        "phases",
    ),
    "W_PHASE_UNCERTAIN": Notice(
        "WARN",
        "Uncertain phase",
        "The evidence for a phase is weak, or text and image disagree.",
        "Name the phase, e.g. `--phase art=PATH`.",
        "phases",
    ),
    "W_MISSING_PHASE": Notice(
        "WARN",
        "Phases missing",
        "The tumor network knows phases that this study lacks; none is used twice.",
        "Give the other phases if there are any.",
        "tumor",
    ),
    "W_SERIES_UNUSED": Notice(
        "WARN",
        "Series without a phase",
        "Nothing says which phase a series is, beside series whose phase is known; it is left "
        "aside.",
        "Name it, e.g. `--phase dl=PATH`.",
        "phases",
    ),
    "W_DUPLICATE_PHASE": Notice(
        "WARN",
        "Two series of one phase",
        "One is used: more evidence, else larger coverage, softer kernel, thinner slices.",
        "Name the other with `--phase` if it is the better one.",
        "phases",
    ),
    "W_REG_REJECTED": Notice(
        "WARN",
        "Phase not registered",
        "Moving a phase onto the reference made it no better; world coordinates alone decide.",
        "Compare the phases in the report's pictures before trusting HU of that phase.",
        "register",
    ),
    "W_REG_TIME": Notice(
        "WARN",
        "Time for registration ran out",
        "What was estimated until then is used.",
        "Look at the phases in the report's pictures, or run on a quieter machine.",
        "register",
    ),
    "W_PHASE_COVERAGE": Notice(
        "WARN",
        "Phase covers only part of the body",
        "The phase does not reach everywhere that the reference does; it is empty elsewhere.",
        "Give a longer series of that phase if there is one.",
        "register",
    ),
    "W_LIVER_TRUNCATED": Notice(
        "WARN",
        "Liver cut by the field of view",
        "The liver touches the first or last slice; its volume is a lower bound.",
        "Give a series that covers the whole liver.",
        "liver",
    ),
    "W_LIVER_VOLUME": Notice(
        "WARN",
        "Unusual liver volume",
        "The liver found is smaller or larger than nearly all are.",
        "Look at its outline in the report.",
        "liver",
    ),
    "W_LIVER_STREAKS": Notice(
        "WARN",
        "Streaks through the liver",
        "Noise is drawn out from left to right, as beside arms; lesions there may be artifacts.",
        "Look at the lesions in those slices.",
        "liver",
    ),
    "W_OOD": Notice(
        "WARN",
        "A liver unlike any",
        "The liver looks like none the networks were made for; results may be worthless.",
        "Do not rely on the result.",
        "liver",
    ),
    "W_LIVER_OUTLINE": Notice(
        "WARN",
        "Doubtful outline of the liver",
        "The two networks disagree about the liver; the coarse mask is kept.",
        "Look at the outline and the lesions near it.",
        "tumor",
    ),
    "W_MASK_RESAMPLED": Notice(
        "WARN",
        "Mask from another grid",
        "A given mask lies on no phase's voxels; nearest labels were taken by world coordinates.",
        "Look whether its outline fits; better draw on the voxels of a series.",
        "given",
    ),
    "W_MASK_HU": Notice(
        "WARN",
        "Given liver of unusual HU",
        "More than a fifth of the given liver has not a liver's HU.",
        "Look whether the mask lies on the organ.",
        "given",
    ),
    "W_TUMOR_OUTSIDE_LIVER": Notice(
        "WARN",
        "Tumor outside the liver",
        "Parts of the tumor mask touch no liver; they count all the same.",
        "Look at those lesions, and correct the mask if they are none.",
        "given",
    ),
    "W_MEMORY": Notice(
        "WARN",
        "Memory ended",
        "A network ran out of memory and went on in smaller pieces.",
        "Use a machine with more memory if windows were cut.",
        "liver, tumor",
    ),
    "W_FAST_REFUSED": Notice(
        "HANDLE",
        "Fast computation refused",
        "OpenVINO drew other outlines than PyTorch; PyTorch is used.",
        "Nothing needs doing; it takes longer.",
        "liver, tumor",
    ),
}


def level_of(code: str) -> Level:
    """How grave a code is."""
    if code in WARNINGS:
        return WARNINGS[code].level
    if code.startswith("W_"):
        return "WARN"
    return "REJECT" if code in HARMFUL else "ERROR"


def remedy_of(code: str) -> str | None:
    """What the user can do about a code; None where no table knows it."""
    notice = WARNINGS.get(code)
    return notice.remedy if notice else REMEDIES.get(code)
