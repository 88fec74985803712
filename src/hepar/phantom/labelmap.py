"""A real patient's label map as an anatomy: organ masks in, tissue codes and liver out.

Organ names follow TotalSegmentator (both its versions). Voxels of the body that no mask claims are
named by their HU: fat, muscle, gas.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, UInt8
from scipy import ndimage

from hepar.errors import InputRefused
from hepar.phantom.anatomy import Anatomy
from hepar.phantom.tissue import LIVER_TISSUES, Tissue

# HU of voxels that the scan did not reach; painting gives them a value.
NOT_SCANNED = -32768

# First prefix that fits wins, so the special names come before the general ones.
ORGAN_TISSUES: tuple[tuple[str, Tissue], ...] = (
    ("liver", Tissue.LIVER),
    ("spleen", Tissue.SPLEEN),
    ("kidney_cyst", Tissue.FLUID),
    ("kidney", Tissue.KIDNEY_CORTEX),
    ("heart", Tissue.HEART),
    ("atrial_appendage", Tissue.HEART),
    ("pulmonary", Tissue.HEART),
    ("lung", Tissue.LUNG),
    ("trachea", Tissue.LUNG),
    ("stomach", Tissue.STOMACH),
    ("esophagus", Tissue.BOWEL),
    ("duodenum", Tissue.BOWEL),
    ("small_bowel", Tissue.BOWEL),
    ("colon", Tissue.BOWEL),
    ("urinary_bladder", Tissue.FLUID),
    ("gallbladder", Tissue.GALLBLADDER),
    ("pancreas", Tissue.PANCREAS),
    ("adrenal", Tissue.PANCREAS),
    ("prostate", Tissue.MUSCLE),
    ("thyroid", Tissue.MUSCLE),
    ("aorta", Tissue.AORTA),
    ("iliac_artery", Tissue.AORTA),
    ("common_carotid", Tissue.AORTA),
    ("subclavian", Tissue.AORTA),
    ("brachiocephalic_trunk", Tissue.AORTA),
    ("inferior_vena_cava", Tissue.CAVA),
    ("superior_vena_cava", Tissue.CAVA),
    ("iliac_vena", Tissue.CAVA),
    ("brachiocephalic_vein", Tissue.CAVA),
    ("portal_vein", Tissue.PORTAL_VEIN),
    ("vertebra", Tissue.BONE),
    ("rib", Tissue.BONE),
    ("sacrum", Tissue.BONE),
    ("sternum", Tissue.BONE),
    ("costal_cartilage", Tissue.BONE),
    ("hip", Tissue.BONE),
    ("femur", Tissue.BONE),
    ("humerus", Tissue.BONE),
    ("scapula", Tissue.BONE),
    ("clavicula", Tissue.BONE),
    ("skull", Tissue.BONE),
    ("gluteus", Tissue.MUSCLE),
    ("autochthon", Tissue.MUSCLE),
    ("iliopsoas", Tissue.MUSCLE),
    ("spinal_cord", Tissue.MUSCLE),
)

# Context classes of `systems.baselines.context_unet3d`, by name, for each tissue outside the liver.
CONTEXT_OF_TISSUE: Mapping[Tissue, str] = {
    Tissue.AIR: "other",
    Tissue.FAT: "fat",
    Tissue.MUSCLE: "muscle",
    Tissue.BONE: "bone",
    Tissue.LUNG: "lung",
    Tissue.HEART: "heart",
    Tissue.LIVER: "liver",
    Tissue.SPLEEN: "spleen",
    Tissue.KIDNEY_CORTEX: "kidney",
    Tissue.KIDNEY_MEDULLA: "kidney",
    Tissue.STOMACH: "gut",
    Tissue.BOWEL: "gut",
    Tissue.BOWEL_GAS: "gut",
    Tissue.GALLBLADDER: "other",
    Tissue.PANCREAS: "other",
    Tissue.AORTA: "vessels",
    Tissue.CAVA: "vessels",
    Tissue.PORTAL_VEIN: "vessels",
    Tissue.HEPATIC_VEIN: "vessels",
    Tissue.SKIN: "muscle",
    Tissue.FLUID: "other",
    Tissue.MASS: "other",
    Tissue.TABLE: "other",
    Tissue.CORTICAL_BONE: "bone",
    Tissue.GUT_WALL: "gut",
    Tissue.MYOCARDIUM: "heart",
    Tissue.PERFUSION: "liver",
}


@dataclass(frozen=True)
class Template:
    """An anatomy to be deformed and painted again and again.

    Attributes:
        tissue: uint8 (z, y, x) `Tissue` codes, axes as `Grid.axial`.
        liver: bool (z, y, x), the whole organ with the vessels inside it.
        hu: int16 (z, y, x) of the real scan, `NOT_SCANNED` where it holds nothing; None for a
            procedural anatomy.
        spacing_mm: (z, y, x).
    """

    tissue: UInt8[np.ndarray, "z y x"]
    liver: Bool[np.ndarray, "z y x"]
    hu: Int[np.ndarray, "z y x"] | None
    spacing_mm: tuple[float, float, float]


def tissue_of(organ: str) -> Tissue | None:
    """The tissue of an organ by its mask's name, or None for a name that is not known."""
    for prefix, tissue in ORGAN_TISSUES:
        if organ.startswith(prefix):
            return tissue
    return None


def largest_component(mask: Bool[np.ndarray, "z y x"]) -> Bool[np.ndarray, "z y x"]:
    """The largest face-connected piece of a mask; an empty mask stays empty."""
    pieces, n = ndimage.label(mask)
    if n <= 1:
        return mask
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return pieces == sizes.argmax()


def body_mask(hu: Int[np.ndarray, "z y x"]) -> Bool[np.ndarray, "z y x"]:
    """The patient without the table: the largest dense piece, its holes filled slice by slice."""
    dense = ndimage.binary_opening(hu > -300, iterations=1)
    body = largest_component(dense)
    return np.stack([ndimage.binary_fill_holes(plane) for plane in body])


def template_from_masks(
    organs: Mapping[str, Bool[np.ndarray, "_ _ _"]],
    hu: Int[np.ndarray, "z y x"],
    spacing_mm: tuple[float, float, float],
) -> Template:
    """Organ masks and the scan they belong to, as tissue codes.

    Args:
        organs: mask by organ name, axes as `Grid.axial`; names without a tissue are ignored.
        hu: the scan on the same voxels.
        spacing_mm: (z, y, x).

    Raises:
        InputRefused: `E_NO_LIVER` without a liver voxel, `E_LABEL_SHAPE` for a mask of another
            shape.
    """
    for name, mask in organs.items():
        if mask.shape != hu.shape:
            raise InputRefused(
                "E_LABEL_SHAPE",
                "labelmap",
                f"mask {name} has shape {mask.shape}, the scan {hu.shape}",
                "Give masks on the scan's own voxels.",
            )
    liver = organs.get("liver")
    if liver is None or not liver.any():
        raise InputRefused(
            "E_NO_LIVER",
            "labelmap",
            f"no liver voxel in {len(organs)} organ masks",
            "Give a folder of organ masks that holds liver.nii.gz.",
        )
    body = body_mask(hu)
    tissue = np.full(hu.shape, Tissue.AIR, dtype=np.uint8)
    near = ndimage.binary_dilation(body, iterations=3)
    tissue[~near & (hu > -500)] = Tissue.TABLE
    tissue[near & ~body & (hu > -500)] = Tissue.SKIN
    tissue[body] = Tissue.MUSCLE
    tissue[body & (hu < -25)] = Tissue.FAT
    tissue[body & (hu < -250)] = Tissue.BOWEL_GAS
    for name, mask in sorted(organs.items()):
        code = tissue_of(name)
        if code is not None:
            tissue[mask] = code
    tissue[(tissue == Tissue.BOWEL) & (hu < -300)] = Tissue.BOWEL_GAS
    tissue[(tissue == Tissue.STOMACH) & (hu < -300)] = Tissue.BOWEL_GAS
    liver = largest_component(liver)
    tissue[liver] = Tissue.LIVER
    _split_kidneys(tissue, spacing_mm)
    return Template(tissue, liver, hu.astype(np.int16), spacing_mm)


def _split_kidneys(
    tissue: UInt8[np.ndarray, "z y x"], spacing_mm: tuple[float, float, float]
) -> None:
    """Kidneys deeper than 8 mm become medulla, in place: the two enhance at different times."""
    kidney = tissue == Tissue.KIDNEY_CORTEX
    if kidney.any():
        depth = ndimage.distance_transform_edt(kidney, sampling=spacing_mm)
        tissue[kidney & (depth > 8.0)] = Tissue.KIDNEY_MEDULLA


def context_table(class_names: tuple[str, ...]) -> UInt8[np.ndarray, " tissue"]:
    """Class index of each tissue code, for indexing with a tissue map.

    Args:
        class_names: names of the classes, as in `InputSpec.class_names`.
    """
    table = np.zeros(max(Tissue) + 1, dtype=np.uint8)
    for tissue, name in CONTEXT_OF_TISSUE.items():
        table[tissue] = class_names.index(name)
    return table


def context_label(
    tissue: UInt8[np.ndarray, "z y x"],
    liver: Bool[np.ndarray, "z y x"],
    class_names: tuple[str, ...],
) -> UInt8[np.ndarray, "z y x"]:
    """Class index of each voxel; whatever lies inside the liver is liver."""
    label = context_table(class_names)[tissue]
    label[liver] = class_names.index("liver")
    return label


def template_of(anatomy: Anatomy) -> Template:
    """A procedural anatomy as a template."""
    return Template(anatomy.tissue, anatomy.liver, None, anatomy.spacing_mm)


def anatomy_of(template: Template, texture_seed: int) -> Anatomy:
    """A template as a lesion-free anatomy, to be painted by `phantom.scanner.paint`."""
    inside = np.isin(template.tissue, LIVER_TISSUES)
    tissue = np.where(template.liver & ~inside, np.uint8(Tissue.LIVER), template.tissue)
    empty = np.zeros(tissue.shape, dtype=np.uint8)
    return Anatomy(
        tissue=tissue.astype(np.uint8),
        liver=template.liver,
        instances=empty,
        parts=empty,
        lesions=(),
        spacing_mm=template.spacing_mm,
        texture_seed=texture_seed,
    )
