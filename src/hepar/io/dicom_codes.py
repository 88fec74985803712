"""The coded words of DICOM output: SNOMED CT, DICOM and UCUM where they have one, else our own.

Codes of scheme `99HEPAR` name what no public scheme says in one word, as a mean attenuation in one
contrast phase; `docs/dicom.md` lists them. Types are morphologies: what is seen, not a diagnosis.
"""

from __future__ import annotations

from pydicom.sr.coding import Code

SCHEME = "99HEPAR"


def own(value: str, meaning: str) -> Code:
    """A code of our own scheme."""
    return Code(value, SCHEME, meaning)


ANATOMICAL_STRUCTURE = Code("91723000", "SCT", "Anatomical Structure")
ABNORMAL_STRUCTURE = Code("49755003", "SCT", "Morphologically Abnormal Structure")
LIVER = Code("10200004", "SCT", "Liver")
LESION = Code("52988006", "SCT", "Lesion")
CT = Code("25045-6", "LN", "CT unspecified body region")
ALGORITHM = Code("123110", "DCM", "Artificial Intelligence")
DEVICE = Code("121007", "DCM", "Device")
SEGMENTED = Code("113076", "DCM", "Segmentation")
SOURCE_IMAGE = Code("121322", "DCM", "Source image for image processing operation")

MILLILITER = Code("ml", "UCUM", "milliliter")
MILLIMETER = Code("mm", "UCUM", "millimeter")
HOUNSFIELD = Code("[hnsf'U]", "UCUM", "Hounsfield unit")
NO_UNIT = Code("1", "UCUM", "no units")

VOLUME = Code("118565006", "SCT", "Volume")
LONG_AXIS = Code("103339001", "SCT", "Long axis")
SHORT_AXIS = Code("103340004", "SCT", "Short axis")
NUMBER_OF_LESIONS = Code("246206008", "SCT", "Number of lesions")

# The summary of a detection, in the words of CAD: an empty result is a result.
SUMMARY = Code("111017", "DCM", "CAD Processing and Findings Summary")
WITH_FINDINGS = Code("111242", "DCM", "All algorithms succeeded; with findings")
WITHOUT_FINDINGS = Code("111241", "DCM", "All algorithms succeeded; without findings")

# Not `Finding` (121071): within a group that is the type of the finding itself.
MORPHOLOGY = Code("116676008", "SCT", "Associated morphology")
TYPES = {
    "hcc": Code("25370001", "SCT", "Hepatocellular carcinoma"),
    "icc": Code("70179006", "SCT", "Cholangiocarcinoma"),
    "metastasis": Code("128462008", "SCT", "Metastasis"),
    "hemangioma": Code("400210000", "SCT", "Hemangioma"),
    "fnh": own("FNH", "Focal nodular hyperplasia"),
    "cyst": Code("367643001", "SCT", "Cyst"),
    "calcification": Code("18115005", "SCT", "Pathologic calcification"),
    "other": own("OTHER", "A rare type, or none of the seven"),
    "uncertain": Code("82334004", "SCT", "Indeterminate"),
}
STATES = {
    "present": Code("52101004", "SCT", "Present"),
    "absent": Code("272519000", "SCT", "Absent"),
    "not_assessable": own("NOT_ASSESSABLE", "Cannot be assessed"),
}
WARNING = own("WARNING", "Warning of the analysis")
