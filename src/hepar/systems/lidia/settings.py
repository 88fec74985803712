"""Every switch of LIDIA's network, torch-free, so that recipes can be read without a network."""

from __future__ import annotations

from typing import Annotated, Literal

from hepar.systems.lidia.query_settings import (
    CLASSES,
    REDUCED,
    TOY,
    NonNegative,
    QuerySettings,
)
from hepar.systems.planned_settings import PHASES, Count, PhaseName, Positive, Sequence

__all__ = ["CLASSES", "PRESETS", "LidiaSettings"]

TypeName = Literal[
    "hcc", "icc", "metastasis", "hemangioma", "fnh", "cyst", "calcification", "other"
]


class LidiaSettings(QuerySettings):
    """Huang W. et al., LIDIA, MICCAI 2024. Defaults are the paper's whole network.

    LiverMax and sharpness-aware minimization are none of its switches: the one reads the map that
    it gives, the other belongs to the schedule.

    Attributes:
        phases: fused by the stem.
        fusion: how (Table 2): phases as channels (`early`), `hemis`, `convlstm`, or `ifm`.
        share_conv: IFM has one convolution for all its steps; False gives each its own.
        cls_loss: of the classes of all queries: focal, or cross-entropy in which "no object"
            counts `no_object_weight` (Mask2Former).
        focal_gamma: exponent of the focal loss.
        contrast: asymmetric contrastive learning (`acl`), the same with Eq. 4 for every class
            (`supcon`), or none.
        contrast_width: channels of z.
        contrast_heads: whose queries z is of: the `last` prediction's, or `all` predictions'.
        temperature: tau of Eq. 4 and 5.
        bank: lesions that the memory bank holds.
        rare_types: those that Eq. 5 is for.
        others_as_negatives: whether rare lesions stand in the denominator of Eq. 4, where A is "the
            set of all contrastive samples".
        seg_weight, cls_weight, contrast_weight: lambda 1 to 3 of Eq. 6.
        match_mask, match_dice, match_class: weights of the matching cost.
    """

    name: Literal["lidia"] = "lidia"

    phases: Annotated[tuple[PhaseName, ...], Sequence] = PHASES
    fusion: Literal["early", "hemis", "convlstm", "ifm"] = "ifm"
    share_conv: bool = True
    cls_loss: Literal["ce", "focal"] = "focal"
    focal_gamma: NonNegative = 2.0
    contrast: Literal["none", "supcon", "acl"] = "acl"
    contrast_width: Count = 128
    contrast_heads: Literal["last", "all"] = "last"
    temperature: Positive = 0.1
    bank: Count = 1024
    rare_types: Annotated[tuple[TypeName, ...], Sequence] = ("other",)
    others_as_negatives: bool = True

    seg_weight: NonNegative = 5.0
    cls_weight: NonNegative = 5.0
    contrast_weight: NonNegative = 0.01
    match_mask: NonNegative = 5.0
    match_dice: NonNegative = 5.0
    match_class: NonNegative = 5.0

    @classmethod
    def preset(cls, name: str) -> LidiaSettings:
        """A named configuration of `PRESETS`.

        Raises:
            KeyError: no such preset.
        """
        return cls.model_validate(PRESETS[name])


PRESETS: dict[str, dict[str, object]] = {
    # Table 3, last row. Spacing and patch are silent: those of nnU-Net's low resolution of LiTS,
    # of half the depth.
    "paper": {},
    # Table 1, "Mask2Former", which is "+Focal" of Table 3: no delayed phase, no contrast. PLAN's
    # Mask2Former draws no points inside the masks.
    "mask2former": {
        "phases": ("NC", "ART", "PV"),
        "fusion": "early",
        "contrast": "none",
        "fg_sample_ratio": 0.0,
    },
    # Half of every width on phantoms, for comparisons on one GPU.
    "reduced": {**REDUCED, "contrast_width": 64},
    # A quarter, for tests and comparisons without a GPU.
    "toy": {**TOY, "contrast_width": 32},
}
