"""What each kind of lesion looks like: one row a kind, HU at the reference times, shape, habits.

HU are those of a lesion's parts unenhanced and at 35, 70 and 180 s in the reference patient; the
radiology they follow is cited in docs/phantom.md. Type `other` holds many rare kinds, four of which
only test patients show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum


class Part(IntEnum):
    """Which part of a lesion a voxel belongs to; painting gives each its own enhancement."""

    NONE = 0
    BODY = 1
    RIM = 2
    CORE = 3
    CAPSULE = 4
    SCAR = 5
    NODULE = 6
    MOSAIC = 7


Centers = tuple[float, float, float, float]
CENTER_TIMES_S = (35.0, 70.0, 180.0)


@dataclass(frozen=True)
class Trait:
    """A variant that some lesions of a kind have.

    Attributes:
        share: of the lesions between the two diameters.
        from_mm, to_mm: diameters at which it occurs.
        centers: HU of the parts it changes.
    """

    share: float
    from_mm: float = 0.0
    to_mm: float = 1e3
    centers: Mapping[Part, Centers] = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """One kind of lesion.

    Attributes:
        type: one of `study.LESION_TYPES`.
        centers: HU of its parts; BODY is always there. Hemangiomas follow the blood instead.
        diameter_mm: median and log SD.
        count: mean number in a patient who has it.
        sd_hu: spread between lesions.
        irregularity: range of the relative SD of the radius.
        margin_mm: range of the width over which tumor gives way to liver.
        rim: range of the rim's thickness, a share of the diameter.
        traits: see `Trait`; `wedge` shuts a portal branch, `retraction` pulls in the capsule.
        seen: False for kinds that only test patients show.
    """

    type: str
    centers: Mapping[Part, Centers]
    diameter_mm: tuple[float, float]
    count: float = 1.3
    sd_hu: float = 12.0
    irregularity: tuple[float, float] = (0.06, 0.14)
    margin_mm: tuple[float, float] = (0.0, 1.5)
    rim: tuple[float, float] = (0.1, 0.22)
    traits: Mapping[str, Trait] = field(default_factory=dict)
    seen: bool = True


P = Part
KINDS: dict[str, Kind] = {
    "hcc": Kind(
        "hcc",
        {
            P.BODY: (48, 95, 95, 72),
            P.MOSAIC: (42, 68, 78, 62),
            P.CORE: (28, 32, 36, 38),
            P.CAPSULE: (48, 66, 108, 116),
        },
        diameter_mm=(28.0, 0.75),
        count=2.4,
        sd_hu=13.0,
        margin_mm=(0.0, 5.0),
        rim=(0.03, 0.08),
        traits={
            "no_arterial": Trait(0.15, centers={P.BODY: (48, 66, 93, 74)}),
            "no_washout": Trait(0.15, centers={P.BODY: (48, 95, 108, 95)}),
            "capsule": Trait(0.5, from_mm=18),
            "mosaic": Trait(0.5, from_mm=30),
            "necrosis": Trait(0.3, from_mm=50),
            "wedge": Trait(0.25),
        },
    ),
    "icc": Kind(
        "icc",
        {P.BODY: (42, 60, 70, 84), P.RIM: (42, 80, 78, 75), P.CORE: (40, 50, 62, 92)},
        diameter_mm=(42.0, 0.5),
        count=1.2,
        irregularity=(0.14, 0.26),
        margin_mm=(2.0, 6.0),
        traits={
            "core": Trait(1.0),
            "rim": Trait(0.8),
            "retraction": Trait(0.4),
            "wedge": Trait(0.2),
        },
    ),
    "metastasis": Kind(
        "metastasis",
        {P.BODY: (40, 52, 66, 62), P.RIM: (40, 75, 68, 66), P.CORE: (38, 45, 54, 54)},
        diameter_mm=(14.0, 0.72),
        count=4.0,
        sd_hu=13.0,
        margin_mm=(0.0, 4.0),
        traits={
            "hypervascular": Trait(
                0.3,
                centers={P.BODY: (45, 100, 95, 85), P.RIM: (45, 106, 97, 86)},
            ),
            "rim": Trait(0.7),
            "core": Trait(0.5, from_mm=12),
            "necrosis": Trait(0.4, from_mm=25),
            "wedge": Trait(0.08, from_mm=20),
        },
    ),
    "hemangioma": Kind(
        "hemangioma",
        {P.BODY: (42, 55, 100, 110)},
        diameter_mm=(20.0, 0.7),
        count=1.6,
        sd_hu=6.0,
        rim=(0.12, 0.2),
        traits={
            "flash": Trait(0.4, to_mm=20),
            "thrombosed": Trait(0.12, from_mm=40),
            "wedge": Trait(0.2, to_mm=25),
        },
    ),
    "fnh": Kind(
        "fnh",
        {P.BODY: (50, 125, 115, 98), P.SCAR: (42, 70, 92, 108)},
        diameter_mm=(28.0, 0.5),
        count=1.2,
        sd_hu=13.0,
        traits={"scar": Trait(0.6, from_mm=12)},
    ),
    "cyst": Kind(
        "cyst",
        {P.BODY: (5, 5, 5, 5)},
        diameter_mm=(11.0, 0.8),
        count=2.2,
        sd_hu=6.0,
        irregularity=(0.02, 0.08),
        margin_mm=(0.0, 0.0),
    ),
    "calcification": Kind(
        "calcification",
        {P.BODY: (360, 360, 360, 360)},
        diameter_mm=(7.0, 0.45),
        count=1.5,
        sd_hu=130.0,
        irregularity=(0.15, 0.3),
        margin_mm=(0.0, 0.0),
    ),
    "abscess": Kind(
        "other",
        {P.BODY: (24, 26, 29, 30), P.RIM: (38, 76, 95, 92), P.MOSAIC: (38, 60, 80, 80)},
        diameter_mm=(38.0, 0.5),
        irregularity=(0.1, 0.22),
        margin_mm=(2.0, 5.0),
        traits={"rim": Trait(1.0), "mosaic": Trait(0.5, from_mm=25), "wedge": Trait(0.5)},
    ),
    "angiomyolipoma": Kind(
        "other",
        {P.BODY: (-32, 8, 6, 0), P.MOSAIC: (38, 112, 88, 70)},
        diameter_mm=(30.0, 0.5),
        traits={"mosaic": Trait(0.8)},
    ),
    "adenoma": Kind(
        "other",
        {P.BODY: (48, 100, 108, 92), P.MOSAIC: (36, 60, 82, 76), P.CAPSULE: (46, 66, 100, 106)},
        diameter_mm=(36.0, 0.5),
        traits={"mosaic": Trait(0.4), "capsule": Trait(0.3)},
    ),
    "neuroendocrine": Kind(
        "other",
        {P.BODY: (42, 104, 94, 80), P.RIM: (42, 122, 98, 82), P.CORE: (30, 38, 46, 48)},
        diameter_mm=(22.0, 0.6),
        count=3.0,
        margin_mm=(0.0, 3.0),
        traits={"rim": Trait(0.6), "core": Trait(0.4, from_mm=18)},
    ),
    "lymphoma": Kind(
        "other",
        {P.BODY: (44, 56, 74, 74)},
        diameter_mm=(26.0, 0.6),
        count=2.5,
        margin_mm=(1.0, 5.0),
    ),
    "hematoma": Kind(
        "other",
        {P.BODY: (54, 55, 56, 57), P.CORE: (68, 69, 70, 70)},
        diameter_mm=(36.0, 0.5),
        irregularity=(0.14, 0.28),
        margin_mm=(1.0, 4.0),
        traits={"core": Trait(0.6)},
    ),
    "hydatid": Kind(
        "other",
        {P.BODY: (12, 12, 13, 13), P.RIM: (34, 42, 46, 48), P.MOSAIC: (26, 27, 28, 28)},
        diameter_mm=(50.0, 0.4),
        sd_hu=6.0,
        irregularity=(0.03, 0.08),
        rim=(0.05, 0.09),
        traits={"rim": Trait(1.0), "mosaic": Trait(0.5)},
    ),
    "focal_fat": Kind(
        "other",
        {P.BODY: (28, 37, 78, 64)},
        diameter_mm=(24.0, 0.5),
        irregularity=(0.18, 0.32),
        margin_mm=(2.0, 6.0),
    ),
    "ablation": Kind(
        "other",
        {P.BODY: (46, 47, 49, 50), P.RIM: (44, 66, 80, 80), P.CORE: (62, 62, 63, 63)},
        diameter_mm=(34.0, 0.3),
        rim=(0.05, 0.12),
        traits={"rim": Trait(0.6), "core": Trait(0.5)},
    ),
    "angiosarcoma": Kind(
        "other",
        {P.BODY: (38, 60, 72, 80), P.NODULE: (40, 128, 124, 112), P.CORE: (30, 35, 38, 42)},
        diameter_mm=(36.0, 0.5),
        count=2.5,
        irregularity=(0.14, 0.26),
        margin_mm=(1.0, 5.0),
        traits={"nodules": Trait(1.0), "core": Trait(0.5)},
        seen=False,
    ),
    "hemangioendothelioma": Kind(
        "other",
        {P.BODY: (40, 68, 78, 82), P.RIM: (40, 60, 92, 98), P.CORE: (36, 42, 52, 62)},
        diameter_mm=(24.0, 0.5),
        count=2.5,
        traits={"rim": Trait(1.0), "core": Trait(1.0), "retraction": Trait(0.5)},
        seen=False,
    ),
    "cystadenoma": Kind(
        "other",
        {P.BODY: (14, 15, 16, 16), P.RIM: (36, 55, 75, 76), P.MOSAIC: (34, 52, 70, 72)},
        diameter_mm=(55.0, 0.4),
        sd_hu=6.0,
        rim=(0.04, 0.09),
        traits={"rim": Trait(1.0), "mosaic": Trait(0.7)},
        seen=False,
    ),
    "pseudotumor": Kind(
        "other",
        {P.BODY: (42, 66, 86, 98), P.RIM: (42, 60, 96, 108), P.CORE: (36, 42, 56, 76)},
        diameter_mm=(30.0, 0.5),
        margin_mm=(1.0, 5.0),
        traits={"rim": Trait(0.8), "core": Trait(0.5)},
        seen=False,
    ),
}
KIND_NAMES = tuple(KINDS)
OTHER_SEEN = tuple(n for n, k in KINDS.items() if k.type == "other" and k.seen)
OTHER_ALL = tuple(n for n, k in KINDS.items() if k.type == "other")
