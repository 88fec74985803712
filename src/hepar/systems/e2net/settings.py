"""Every switch of E2Net, torch-free, so that recipes can be read without a network."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PhaseName = Literal["NC", "ART", "PV", "DL"]
PHASES: tuple[PhaseName, ...] = ("NC", "ART", "PV", "DL")
STRIDE = 32
Count = Annotated[int, Field(ge=1)]
# A YAML list is a list: lax for the container alone, each member stays strict.
Sequence = Field(strict=False)


class E2netSettings(BaseModel):
    """Tang Y. et al., MICCAI 2020. Defaults are the paper's second stage.

    Attributes:
        stage: 1 finds the liver on whole slices; 2 sees slices through the box around their liver
            and finds liver and tumor.
        phases: the model's phases, an ordered subset of NC, ART, PV, DL; several are fused by SAM
            on F2..F5 and by their mean on F1 (ours).
        window_hu: intensity window scaled to [-1, 1] inside the network.
        slice_offsets: context slices counted in slices; None uses `slice_offsets_mm`.
        slice_offsets_mm: context slices at distances in mm; `(0.0,)` as published.
        context: how context slices are used (ours): `features` encodes each by itself and fuses
            their compressed features along z; `channels` gives them to the stem side by side.
        spacing_mm: (z, y, x); None works on the case's own, as published. A z finer than the case's
            leaves its slices alone.
        slice_patch: (y, x) pixels that stage 1 trains on, cut at random.
        box_patch: (y, x) pixels that a liver box is resized to in stage 2.
        train_pad_px: (least, most) pixels that training adds on each side of a liver box.
        pad_px: pixels added at use; the paper is silent, this is the middle of training's.
        backbone: a trunk of `networks.resnet`.
        base_width: channels of the trunk's first stage; None as published.
        stem_channels: a single slice is repeated so many times for the stem; 3 fits published
            weights.
        width: channels of compressed features and of all that follows.
        decoder_convs: convolutions of a level of the decoder.
        separable: every 3x3 behind the trunk is depthwise separable (ours).
        edge_branch: a second branch predicts edges, its features joined to those of the first.
        edge_target: what the edge branch learns: the binary `edge`, the `distance` map within the
            mask, or the map as literally printed, which is 1 over the whole background.
        dcff: deep cross feature fusion between the branches.
        dcff_down: how a finer map is brought to a coarser size.
        shared_encoder: one trunk for both branches.
        iou_smooth: of the IoU loss, in pixels; 0 as printed.
        edge_weight: of the edge term of Eq. 3.
        pyramid_width: of SAM, where there are several phases.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: Literal["e2net"] = "e2net"
    stage: Literal[1, 2] = 2

    phases: Annotated[tuple[PhaseName, ...], Sequence] = ("PV",)
    window_hu: Annotated[tuple[float, float], Sequence] = (-100.0, 240.0)
    slice_offsets: Annotated[tuple[int, ...], Sequence, Field(min_length=1)] | None = None
    slice_offsets_mm: Annotated[tuple[float, ...], Sequence, Field(min_length=1)] = (0.0,)
    context: Literal["channels", "features"] = "channels"
    spacing_mm: Annotated[tuple[float, float, float], Sequence] | None = None
    slice_patch: Annotated[tuple[Count, Count], Sequence] = (448, 448)
    box_patch: Annotated[tuple[Count, Count], Sequence] = (256, 256)
    train_pad_px: Annotated[tuple[int, int], Sequence] = (10, 60)
    pad_px: Annotated[int, Field(ge=0)] = 35

    backbone: Literal["res2net50", "res2net50_v1", "resnet50", "resnet10"] = "res2net50"
    base_width: Count | None = None
    stem_channels: Literal[1, 3] = 3
    width: Count = 32
    decoder_convs: Literal[1, 2] = 2
    separable: bool = False

    edge_branch: bool = True
    edge_target: Literal["edge", "distance", "distance_literal"] = "distance"
    dcff: bool = True
    dcff_down: Literal["max", "mean"] = "max"
    shared_encoder: bool = False

    iou_smooth: Annotated[float, Field(ge=0.0)] = 1.0
    edge_weight: Annotated[float, Field(ge=0.0)] = 4.0
    pyramid_width: Count = 16

    @model_validator(mode="after")
    def _consistent(self) -> E2netSettings:
        ordered = tuple(phase for phase in PHASES if phase in self.phases)
        if not self.phases or self.phases != ordered:
            raise ValueError(f"phases must be an ordered subset of {PHASES}, got {self.phases}")
        if self.dcff and not self.edge_branch:
            raise ValueError("dcff fuses two branches: it needs edge_branch")
        if any(size % STRIDE for size in (*self.slice_patch, *self.box_patch)):
            raise ValueError(f"slice_patch and box_patch must be multiples of {STRIDE}")
        if not 0 <= self.train_pad_px[0] <= self.train_pad_px[1]:
            raise ValueError(f"train_pad_px must be (least, most), got {self.train_pad_px}")
        if self.context == "features" and self.slices == 1:
            raise ValueError("context features needs more than one slice")
        return self

    @property
    def slices(self) -> int:
        """Slices of the context, the center included."""
        return len(self.slice_offsets_mm if self.slice_offsets is None else self.slice_offsets)

    @property
    def patch(self) -> tuple[int, int]:
        """Pixels that the network trains on."""
        return self.slice_patch if self.stage == 1 else self.box_patch

    @property
    def class_names(self) -> tuple[str, ...]:
        """Background first."""
        return ("background", "liver") if self.stage == 1 else ("background", "liver", "tumor")

    @classmethod
    def preset(cls, name: str) -> E2netSettings:
        """A named configuration of `PRESETS`.

        Raises:
            KeyError: no such preset.
        """
        return cls.model_validate(PRESETS[name])


_R2UNET: dict[str, object] = {"edge_branch": False, "dcff": False}
# A slice of 512 pixels as one of 128: liver boxes and their margins are a quarter as wide.
_SMALL: dict[str, object] = {
    "slice_patch": (128, 128),
    "box_patch": (128, 128),
    "train_pad_px": (3, 15),
    "pad_px": 9,
}
_CONTEXT: dict[str, object] = {"slice_offsets": (-1, 0, 1), "context": "features"}
_LITE: dict[str, object] = {
    "backbone": "resnet10",
    "stem_channels": 1,
    "shared_encoder": True,
    "separable": True,
}
PRESETS: dict[str, dict[str, object]] = {
    # Fig. 2 (c), separate encoders.
    "paper": {},
    "shared": {"shared_encoder": True},
    # Fig. 2 (b).
    "no_dcff": {"dcff": False},
    # Fig. 2 (a) with two outputs, Table 3 "Baseline (2nd stage)".
    "baseline": _R2UNET,
    # Fig. 2 (a), the first stage.
    "stage1": {"stage": 1, **_R2UNET},
    "stage1_e2net": {"stage": 1},
    # Res2Net as first published instead of v1b.
    "v1": {"backbone": "res2net50_v1"},
    # The published widths on 128 x 128 pixels, for comparisons on one GPU.
    "reduced": _SMALL,
    # A quarter of every width on 128 x 128 pixels, for comparisons without a GPU.
    "toy": {"base_width": 16, "width": 8, **_SMALL},
    # Future work named by the paper: neighboring slices, ...
    "context": _CONTEXT,
    # ... and a network for embedded use.
    "lite": _LITE,
    "lite_stage1": {"stage": 1, **_LITE, **_R2UNET},
    "multiphase": {"phases": PHASES},
}
