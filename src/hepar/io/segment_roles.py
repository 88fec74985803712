"""What a segment of a DICOM Segmentation is: liver, lesion, another thing, or impossible to tell.

Its codes are believed first. Many programs leave them at `Tissue`; then the words of the label
tell, and a word that is not known keeps a label from being understood. Codes and words that
contradict each other tell nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from enum import StrEnum

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from hepar.io import dicom_codes as codes
from hepar.io.privacy import public_name

_LIVER_WORDS = "liver hepar hepatic leber foie higado fegato"
_LESION_WORDS = """
lesion lesions laesion laesionen lasion lasionen tumor tumors tumour tumours tumoren tumeur mass
masses nodule nodules neoplasm neoplasms cancer carcinoma hcc icc cca cholangiocarcinoma metastasis
metastases metastase metastasen met mets cyst cysts zyste zysten hemangioma hemangiomas haemangioma
haemangiomas fnh adenoma adenomas
"""
# Beside the liver, or in a lesion: alone they are other things, with a lesion's word no lesion.
_ELSEWHERE_WORDS = """
kidney kidneys renal spleen splenic pancreas pancreatic lung lungs bone bones rib ribs spine
vertebra vertebrae muscle fat skin body heart aorta vena cava vein veins artery arteries vessel
vessels portal gallbladder bile duct ducts stomach bowel colon duodenum esophagus adrenal node nodes
ascites necrosis necrotic edema thrombus ablation resection margin bed background air
"""
# What a label of the liver may say besides.
_NEUTRAL_WORDS = """
mask seg segment segmentation label roi organ tissue parenchyma whole total full manual edited
corrected final new copy auto automatic normal healthy of the
"""
# Between the liver's word and a lesion's: the organ, with or without its lesions.
_JOINING_WORDS = """
with without and plus minus including incl excluding excl no non healthy normal mit ohne und avec
sans et con sin
"""
_LIVER, _LESION, _ELSEWHERE, _NEUTRAL, _JOINING = (
    frozenset(words.split())
    for words in (
        *(_LIVER_WORDS, _LESION_WORDS, _ELSEWHERE_WORDS),
        *(_NEUTRAL_WORDS, _JOINING_WORDS),
    )
)
_RUN = re.compile(r"[^\W\d_]+")
_LETTERS_OR_DIGITS = re.compile(r"[^\W\d_]+|\d+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")

_LESION_KINDS = (
    codes.LESION,
    *(code for name, code in codes.TYPES.items() if name != "uncertain"),
    Code("4147007", "SCT", "Mass"),
    Code("27925004", "SCT", "Nodule"),
    Code("108369006", "SCT", "Neoplasm"),
    Code("M-80000", "SRT", "Neoplasm"),
    Code("86049000", "SCT", "Neoplasm, Primary"),
    Code("14799000", "SCT", "Neoplasm, Secondary"),
    Code("367651003", "SCT", "Malignant neoplasm"),
)
# What programs write where nobody chose anything.
_NOTHING = Code("", "", "")
_UNSAID = (
    _NOTHING,
    codes.ANATOMICAL_STRUCTURE,
    codes.ABNORMAL_STRUCTURE,
    Code("85756007", "SCT", "Tissue"),
    Code("113343008", "SCT", "Organ"),
    Code("123037004", "SCT", "Body structure"),
)
# Older names of the scheme that pydicom knows as SRT.
_SCHEMES: Mapping[str, str] = {"SNM3": "SRT", "99SDM": "SRT"}


class Role(StrEnum):
    """What a segment is to hepar."""

    LIVER = "liver"
    LESION = "lesion"
    OTHER = "other"
    UNCLEAR = "unclear"


def role_of(segment: Dataset) -> Role:
    """What an item of a SegmentSequence describes.

    A lesion that is coded as one of another organ's is unclear: it may lie in the liver as well.
    """
    said = role_in_words(str(segment.get("SegmentLabel", "")))
    kind = _code(segment, "SegmentedPropertyTypeCodeSequence")
    abnormal = _code(segment, "SegmentedPropertyCategoryCodeSequence") == codes.ABNORMAL_STRUCTURE
    if kind in _UNSAID:
        region = _code(segment, "AnatomicRegionSequence")
        lesion = abnormal and region == codes.LIVER and said is Role.UNCLEAR
        return Role.LESION if lesion else said
    if kind == codes.LIVER and not abnormal:
        return Role.UNCLEAR if said is Role.LESION else Role.LIVER
    if kind in _LESION_KINDS:
        region = _code(segment, "AnatomicRegionSequence")
        elsewhere = region not in (_NOTHING, codes.LIVER)
        return Role.UNCLEAR if elsewhere or said in (Role.LIVER, Role.OTHER) else Role.LESION
    if abnormal:
        return Role.LESION if said is Role.LESION else Role.UNCLEAR
    return Role.UNCLEAR if said in (Role.LIVER, Role.LESION) else Role.OTHER


def role_in_words(label: str) -> Role:
    """What a label says, in English and some words of other languages."""
    words = set(_words(label))
    liver, lesion = bool(words & _LIVER), bool(words & _LESION)
    if words & _ELSEWHERE:
        return Role.UNCLEAR if lesion else Role.OTHER
    if lesion:
        return Role.LIVER if liver and words & _JOINING else Role.LESION
    known = _LIVER | _NEUTRAL
    return Role.LIVER if liver and all(w in known or len(w) == 1 for w in words) else Role.UNCLEAR


def public_label(label: str) -> str:
    """A label with every word hidden that might name a person."""
    known = _LIVER | _LESION | _ELSEWHERE | _NEUTRAL | _JOINING

    def shown(match: re.Match[str]) -> str:
        words = _words(match[0])
        return match[0] if words and known.issuperset(words) else public_name(match[0])

    return _LETTERS_OR_DIGITS.sub(shown, label)


def _words(text: str) -> list[str]:
    parts = [part for run in _RUN.findall(text) for part in _CAMEL.split(run)]
    plain = (unicodedata.normalize("NFKD", part) for part in parts)
    return ["".join(c for c in one if not unicodedata.combining(c)).lower() for one in plain]


def _code(item: Dataset, keyword: str) -> Code:
    """The first code of a sequence, or `_NOTHING`."""
    try:
        found = item[keyword].value[0]
        scheme = str(found.CodingSchemeDesignator)
        return Code(str(found.CodeValue), _SCHEMES.get(scheme, scheme), "")
    except (AttributeError, IndexError, KeyError, TypeError):
        return _NOTHING
