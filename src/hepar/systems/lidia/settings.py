"""Every switch of LIDIA's network, torch-free, so that recipes can be read without a network."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hepar.study import LESION_TYPES
from hepar.systems.planned_settings import (
    PHASES,
    Count,
    PhaseName,
    PlannedSettings,
    Positive,
    Sequence,
    Sizes,
)

CLASSES = ("background", *LESION_TYPES, "liver")
TypeName = Literal[
    "hcc", "icc", "metastasis", "hemangioma", "fnh", "cyst", "calcification", "other"
]
NonNegative = Annotated[float, Field(ge=0.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class LidiaSettings(PlannedSettings):
    """Huang W. et al., LIDIA, MICCAI 2024. Defaults are the paper's whole network.

    LiverMax and sharpness-aware minimization are none of its switches: the one reads the map that
    it gives, the other belongs to the schedule.

    Attributes:
        phases: fused by the stem.
        fusion: how (Table 2): phases as channels (`early`), `hemis`, `convlstm`, or `ifm`.
        share_conv: IFM has one convolution for all its steps; False gives each its own.
        queries: how many masks are answered.
        width: channels of the pixel decoder, the queries and the masks.
        heads: of attention.
        feedforward: hidden channels of the transformer's perceptrons.
        layers: of the transformer decoder; the i-th attends to `memory_levels[i mod 3]`.
        memory_levels: levels of the encoder whose features of the pixel decoder queries attend to.
        cls_loss: of the classes of all queries: focal, or cross-entropy in which "no object"
            counts `no_object_weight` (Mask2Former).
        focal_gamma: exponent of the focal loss.
        no_object_weight: of the cross-entropy.
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
        points: voxels that a mask is compared at.
        oversample: candidates for each of these, of which the most uncertain are taken.
        uncertain_share: of the points.
        fg_sample_ratio: share of the points drawn inside the true mask.
    """

    name: Literal["lidia"] = "lidia"

    phases: Annotated[tuple[PhaseName, ...], Sequence] = PHASES
    spacing_mm: Annotated[tuple[Positive, Positive, Positive], Sequence] | None = (2.47, 1.9, 1.9)
    patch: Sizes = (64, 128, 128)

    fusion: Literal["early", "hemis", "convlstm", "ifm"] = "ifm"
    share_conv: bool = True
    queries: Count = 50
    width: Annotated[int, Field(ge=6)] = 64
    heads: Count = 8
    feedforward: Count = 512
    layers: Count = 3
    memory_levels: Annotated[tuple[Count, ...], Sequence, Field(min_length=1)] = (4, 3, 2)

    cls_loss: Literal["ce", "focal"] = "focal"
    focal_gamma: NonNegative = 2.0
    no_object_weight: Positive = 0.1
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
    points: Annotated[int, Field(ge=4)] = 12544
    oversample: Annotated[float, Field(ge=1.0)] = 3.0
    uncertain_share: Share = 0.75
    fg_sample_ratio: Share = 0.0002

    @model_validator(mode="after")
    def _network_agrees(self) -> LidiaSettings:
        if self.width % 2 or self.width % self.heads:
            raise ValueError(f"width {self.width} must be even, and a multiple of heads")
        if max(self.memory_levels) >= len(self.channels):
            raise ValueError(f"memory_levels {self.memory_levels} of {len(self.channels)} levels")
        if self.uncertain_share + self.fg_sample_ratio > 1.0:
            raise ValueError("uncertain_share and fg_sample_ratio are shares of the same points")
        return self

    @classmethod
    def preset(cls, name: str) -> LidiaSettings:
        """A named configuration of `PRESETS`.

        Raises:
            KeyError: no such preset.
        """
        return cls.model_validate(PRESETS[name])


# Patch and levels of nnU-Net's plans for such phantoms (`nnunet/settings.py`). Few steps see few
# small lesions: more than two points are drawn inside each.
_PHANTOMS: dict[str, object] = {"spacing_mm": None, "fg_sample_ratio": 0.05}
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
    "reduced": {
        "patch": (32, 128, 128),
        "channels": (16, 32, 64, 128, 160, 160),
        "strides": ((2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)),
        "width": 32,
        "heads": 4,
        "feedforward": 256,
        "contrast_width": 64,
        **_PHANTOMS,
    },
    # A quarter, for tests and comparisons without a GPU.
    "toy": {
        "patch": (32, 64, 64),
        "channels": (8, 16, 32, 64, 80),
        "strides": ((2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)),
        "kernels": ((3, 3, 3),) * 5,
        "width": 16,
        "heads": 2,
        "feedforward": 128,
        "contrast_width": 32,
        "points": 3136,
        **_PHANTOMS,
    },
}
