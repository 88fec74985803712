"""Every switch of SAM + URIM, torch-free, so that recipes can be read without a network."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PhaseName = Literal["NC", "ART", "PV", "DL"]
PHASES: tuple[PhaseName, ...] = ("NC", "ART", "PV", "DL")
NEEDS_ALL = ("ilf", "dlf", "pa")
"""Fusions that, as published, cannot lack a phase."""
Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]
# A YAML list is a list: lax for the container alone, each member stays strict.
Sequence = Field(strict=False)


class SamUrimSettings(BaseModel):
    """Zhang Y. et al., MICCAI 2021. Defaults are the paper's where it speaks.

    Attributes:
        phases: the model's phases, an ordered subset of NC, ART, PV, DL.
        window_hu: intensity window scaled to [0, 1].
        slice_offsets: context slices along z counted in slices, as the paper's "three adjacent
            slices" (0.5 or 0.7 mm apart there); None uses `slice_offsets_mm`.
        slice_offsets_mm: context slices at distances in mm, the same in thin and thick slices.
        spacing_mm: (z, y, x); None works on the case's own.
        patch: (y, x) pixels of a training patch.
        needs_liver: voxels outside the liver are set to the lower bound of the window.
        class_names: background first.
        backbone: a trunk of `networks.resnet`, or the encoder of `networks.unet2d`.
        base_width: channels of the trunk's first convolution; None as published.
        stem_stride: 4 as published; 2 leaves out the trunk's max pooling (ours).
        shared_encoder: one trunk for all phases ("Siamese"); False gives each phase its own.
        fusion: `sam`, or what the paper compares it with, see `fusion.py`; `none` for one phase.
        pa_sum_axis: of PA, see `PhaseAttention`: `last` is the authors' code, a constant.
        mw_softmax: normalize the scalars of MW.
        presence_channel: each phase carries a channel that says whether it is there, and absent
            ones enter as zeros (ours): how ILF, DLF and PA can lack a phase.
        pyramid_width: channels of each branch of a SAM mapping, or a quarter of its features.
        pre_softmax: what is applied to the response maps before the softmax over phases.
        branch_relu: ReLU after each branch of the pyramid.
        decoder: `project_first` (1x1 at native size, then up) or `literal` (up, then 3x3).
        decoder_width: channels of the decoder and of the decision features.
        urim: False decodes the initial logits (Table 3, "+SAM").
        urim_width: channels of the LC-Conv layers.
        final_concat: the head sees refined and input features.
        window_norm: LC-Conv divides by the sum of M in the window, or by its mean over nine.
        detach_conf: no gradient through M_conf.
        dropout_features: on the decision features.
        dropout_head: before the initial classifier.
        dropout_urim: after LC-Conv 2 to 4.
        loss: cross-entropy as published, or with a soft Dice term (ours).
        class_weights: of the cross-entropy.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: Literal["sam_urim"] = "sam_urim"

    phases: Annotated[tuple[PhaseName, ...], Sequence] = ("ART", "PV")
    window_hu: Annotated[tuple[float, float], Sequence] = (-70.0, 180.0)
    slice_offsets: Annotated[tuple[int, ...], Sequence, Field(min_length=1)] | None = None
    slice_offsets_mm: Annotated[tuple[float, ...], Sequence, Field(min_length=1)] = (-0.5, 0.0, 0.5)
    spacing_mm: Annotated[tuple[float, float, float], Sequence] | None = None
    patch: Annotated[tuple[int, int], Sequence] = (512, 512)
    needs_liver: bool = True
    class_names: Annotated[tuple[str, ...], Sequence, Field(min_length=2)] = ("background", "tumor")

    backbone: Literal["resnext50", "resnet50", "resnet10", "unet"] = "resnext50"
    base_width: Annotated[int, Field(ge=1)] | None = None
    stem_stride: Literal[2, 4] = 4
    shared_encoder: bool = True

    fusion: Literal["sam", "add", "mw", "pa", "ilf", "dlf", "none"] = "sam"
    pa_sum_axis: Literal["last", "first"] = "last"
    mw_softmax: bool = False
    presence_channel: bool = False

    pyramid_width: Annotated[int, Field(ge=1)] | Literal["C/4"] = 16
    pre_softmax: Literal["none", "sigmoid"] = "none"
    branch_relu: bool = False

    decoder: Literal["project_first", "literal"] = "project_first"
    decoder_width: Annotated[int, Field(ge=1)] = 256

    urim: bool = True
    urim_width: Annotated[int, Field(ge=1)] = 128
    final_concat: bool = True
    window_norm: Literal["sum", "mean"] = "sum"
    detach_conf: bool = False

    dropout_features: Dropout = 0.0
    dropout_head: Dropout = 0.0
    dropout_urim: Dropout = 0.0

    loss: Literal["ce", "ce_dice"] = "ce"
    class_weights: Annotated[tuple[float, ...], Sequence] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> SamUrimSettings:
        ordered = tuple(phase for phase in PHASES if phase in self.phases)
        if not self.phases or self.phases != ordered:
            raise ValueError(f"phases must be an ordered subset of {PHASES}, got {self.phases}")
        if self.class_weights is not None and len(self.class_weights) != len(self.class_names):
            raise ValueError(
                f"class_weights has {len(self.class_weights)} entries for "
                f"{len(self.class_names)} classes"
            )
        if self.fusion == "none" and len(self.phases) > 1:
            raise ValueError(f"fusion none takes one phase, not {self.phases}")
        if self.presence_channel and self.fusion not in NEEDS_ALL:
            raise ValueError(f"fusion {self.fusion} leaves absent phases out; no presence_channel")
        if any(size < 1 or size % self.stride for size in self.patch):
            raise ValueError(f"patch {self.patch} must be multiples of {self.stride}")
        return self

    @property
    def stride(self) -> int:
        """Image sizes must be multiples of this, in pixels."""
        return 8 * self.decision_stride

    @property
    def decision_stride(self) -> int:
        """Pixels of the image to one of A2, of the decision features and of the logits."""
        return 2 if self.backbone == "unet" else self.stem_stride

    @property
    def primary(self) -> int:
        """The phase that is segmented: PV, else DL, else ART, else NC."""
        return next(self.phases.index(p) for p in ("PV", "DL", "ART", "NC") if p in self.phases)

    @property
    def needs_all_phases(self) -> bool:
        """Whether an absent phase must be refused."""
        return self.fusion in NEEDS_ALL and len(self.phases) > 1 and not self.presence_channel

    @classmethod
    def preset(cls, name: str) -> SamUrimSettings:
        """A named configuration of `PRESETS`.

        Raises:
            KeyError: no such preset.
        """
        return cls.model_validate(PRESETS[name])


_ADJACENT = {"slice_offsets": (-1, 0, 1)}
PRESETS: dict[str, dict[str, object]] = {
    # ResNeXt-50 with the pyramid width that the one public re-implementation uses.
    "paper": {"pyramid_width": "C/4", **_ADJACENT},
    # The same with narrow pyramids: 40 M parameters (literal decoder) instead of 136 M.
    "w16": {"pyramid_width": 16, **_ADJACENT},
    # The published network on 128 x 128 pixels, for comparisons on one GPU.
    "reduced": {"pyramid_width": 16, "patch": (128, 128), **_ADJACENT},
    # A quarter of every width on 128 x 128 pixels, for comparisons without a GPU.
    "toy": {
        "base_width": 16,
        "pyramid_width": 4,
        "decoder_width": 64,
        "urim_width": 32,
        "patch": (128, 128),
        **_ADJACENT,
    },
    # About 2 M parameters, four phases, for laptops.
    "lite": {
        "phases": PHASES,
        "backbone": "resnet10",
        "stem_stride": 2,
        "pyramid_width": 4,
        "decoder_width": 64,
        "urim_width": 64,
        "slice_offsets_mm": (-2.5, 0.0, 2.5),
        "spacing_mm": (2.5, 1.5, 1.5),
        "patch": (128, 128),
        "loss": "ce_dice",
    },
}
