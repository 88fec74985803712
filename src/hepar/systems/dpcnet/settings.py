"""Every switch of DPC-Net, torch-free, so that recipes can be read without a network."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PhaseName = Literal["NC", "ART", "PV", "DL"]
PHASES: tuple[PhaseName, ...] = ("NC", "ART", "PV", "DL")
CLASSES = ("background", "liver", "tumor")
Squeeze = Literal["none", "avg", "max", "both"]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0.0)]
# A YAML list is a list: lax for the container alone, each member stays strict.
Sequence = Field(strict=False)


class DpcnetSettings(BaseModel):
    """Zhang Y. et al., DPC-Net, 2022. Defaults are the paper's whole network.

    Attributes:
        phases: the model's phases, an ordered subset of NC, ART, PV, DL; several are fused by SAM
            on every level of the encoder (ours).
        window_hu: HU are clipped to it: 0.5 % and 99.5 % of the foreground voxels of training.
        mean_hu, std_hu: of those voxels, for the z-score.
        spacing_mm: (z, y, x); None works on the case's own.
        patch: voxels of training patches and of windows at use.
        backbone: `unet3d`, the baseline (batch norm, max pooling), or `pfe` (instance norm, leaky
            ReLU, convolutions of their own for down-sampling).
        width: channels of the finest level; each coarser one has twice as many, those of `pfe` at
            most ten times as many as the finest.
        stages: levels, the bottleneck among them.
        deep_supervision: a head on every level; always on with either module.
        spacor, semcor: which squeeze of the other dimension their attention sees; `none` leaves the
            module out.
        order: which module sees the raw features.
        correlation: what the modules are made of; the text leaves it open, and both have the
            printed parameters: `light` (a sum of descriptors into two layers) or `literal` (as the
            equations are printed, three layers).
        levels: of the decoder, from the finest on, that make the pyramid; None for all.
        spa_recursive: the finer features of SpaCor are those that it has already refined.
        sem_input: what SemCor weighs: its input (`refined`), as the text has it, or the features
            of the backbone (`raw`), as Eq. 9 prints it.
        attention: instead of the modules, those of another paper on the same backbone: attention
            gates (`ag`) or deep attentive features (`daf`).
        loss: cross-entropy, Dice, or their sum.
        dice: `joint` is Eq. 12, one ratio over all classes; `per_class` the mean of a ratio each.
        dice_background: whether background is one of these classes.
        final: the prediction: of the `last` module's finest features, or the `average` of all.
        uniform_windows: windows at use are averaged evenly, not by a Gaussian.
        sam_width: of SAM, where there are several phases.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: Literal["dpcnet"] = "dpcnet"

    phases: Annotated[tuple[PhaseName, ...], Sequence] = ("PV",)
    window_hu: Annotated[tuple[float, float], Sequence] = (-17.0, 201.0)
    mean_hu: float = 99.4
    std_hu: Positive = 39.4
    spacing_mm: Annotated[tuple[Positive, Positive, Positive], Sequence] | None = (2.47, 1.9, 1.9)
    patch: Annotated[tuple[Count, Count, Count], Sequence] = (128, 128, 128)

    backbone: Literal["unet3d", "pfe"] = "pfe"
    width: Count = 32
    stages: Annotated[int, Field(ge=3)] = 5
    deep_supervision: bool = True
    spacor: Squeeze = "both"
    semcor: Squeeze = "both"
    order: Literal["spa_first", "sem_first"] = "spa_first"
    correlation: Literal["light", "literal"] = "light"
    levels: Annotated[int, Field(ge=2)] | None = None
    spa_recursive: bool = False
    sem_input: Literal["refined", "raw"] = "refined"
    attention: Literal["none", "ag", "daf"] = "none"

    loss: Literal["ce", "dice", "both"] = "both"
    dice: Literal["joint", "per_class"] = "joint"
    dice_background: bool = True
    final: Literal["last", "average"] = "last"
    uniform_windows: bool = False
    sam_width: Count = 8

    @model_validator(mode="after")
    def _consistent(self) -> DpcnetSettings:
        ordered = tuple(phase for phase in PHASES if phase in self.phases)
        if not self.phases or self.phases != ordered:
            raise ValueError(f"phases must be an ordered subset of {PHASES}, got {self.phases}")
        if self.window_hu[0] >= self.window_hu[1]:
            raise ValueError(f"window_hu must be (low, high), got {self.window_hu}")
        if any(size % self.stride for size in self.patch):
            raise ValueError(f"patch must be multiples of {self.stride}, got {self.patch}")
        if self.levels is not None and self.levels > self.stages - 1:
            raise ValueError(f"levels {self.levels}: the decoder has {self.stages - 1}")
        if self.attention != "none" and (self.refines or len(self.phases) > 1):
            raise ValueError("attention stands instead of spacor and semcor, on one phase")
        if self.order == "sem_first" and "none" in (self.spacor, self.semcor):
            raise ValueError("an order needs both modules")
        if self.correlation == "literal" and self.order == "sem_first":
            raise ValueError("literal SemCor changes the channels that SpaCor would see")
        return self

    @property
    def refines(self) -> bool:
        """Whether either module is there."""
        return (self.spacor, self.semcor) != ("none", "none")

    @property
    def channels(self) -> tuple[int, ...]:
        """Of each level, finest first, the bottleneck last: 32 to 512, or to 320."""
        most = 10 * self.width if self.backbone == "pfe" else self.width << self.stages
        return tuple(min(self.width << level, most) for level in range(self.stages))

    @property
    def stride(self) -> int:
        """Voxels of the image to one of the bottleneck."""
        return int(2 ** (self.stages - 1))

    @property
    def pyramid(self) -> tuple[int, ...]:
        """Channels of the features that the modules see, finest first."""
        return self.channels[:-1][: self.levels]

    @classmethod
    def preset(cls, name: str) -> DpcnetSettings:
        """A named configuration of `PRESETS`.

        Raises:
            KeyError: no such preset.
        """
        return cls.model_validate(PRESETS[name])


_UNET3D: dict[str, object] = {"backbone": "unet3d"}
_BARE: dict[str, object] = {"spacor": "none", "semcor": "none"}
_BASELINE: dict[str, object] = {**_UNET3D, **_BARE, "deep_supervision": False}
# Few steps: Eq. 12 says most of the background, and no tumor would be marked.
_PHANTOMS: dict[str, object] = {"spacing_mm": None, "dice": "per_class", "dice_background": False}
PRESETS: dict[str, dict[str, object]] = {
    # Table 2, last row: PFE with both modules.
    "paper": {},
    "pfe": _BARE,
    # Tables 1 to 4, "Baseline".
    "baseline": _BASELINE,
    "spacor": {**_UNET3D, "semcor": "none"},
    "semcor": {**_UNET3D, "spacor": "none"},
    "spa_sem": _UNET3D,
    "ag": {**_BASELINE, "attention": "ag"},
    "daf": {**_BASELINE, "attention": "daf"},
    # The equations as they are printed, on three levels.
    "literal_l3": {**_UNET3D, "correlation": "literal", "levels": 3},
    # "A 5-level contracting and expanding path and a bottleneck": outside the printed overhead.
    "six_stages": {"stages": 6},
    # Half of every width on phantoms, for comparisons on one GPU.
    "reduced": {"width": 16, "patch": (32, 128, 128), **_PHANTOMS},
    # A quarter, for comparisons without a GPU.
    "toy": {"width": 8, "patch": (32, 64, 64), **_PHANTOMS},
    # Future work named by the paper: several phases.
    "multiphase": {"phases": PHASES},
}
