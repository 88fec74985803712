"""The contract between a paper's network and everything around it.

A `System` is a pure `torch.nn.Module`: no device, file, phase name or logger inside. Training sees
`targets`, `forward` and `loss`; tiling sees `decode`; nothing else is known of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor

from hepar.study import LESION_TYPES


@dataclass(frozen=True)
class LiverCrop:
    """Each slice is seen through the box around its liver, resized to the patch.

    Attributes:
        train_pad_px: (least, most) pixels that training adds on a side, drawn for each of the four.
        pad_px: pixels added on every side at use.
    """

    train_pad_px: tuple[int, int]
    pad_px: int


@dataclass(frozen=True)
class InputSpec:
    """What a system wants to see.

    Attributes:
        dims: 2 for slices with context, 3 for volumes.
        phases: ordered subset of `("NC", "ART", "PV", "DL")`.
        class_names: names of the channels that `decode` returns, background first.
        windows_hu: one (low, high) window for each intensity channel; 2D systems repeat it for each
            slice of the context.
        slice_offsets_mm: 2D only: offsets of the context slices along z, in mm; `(0.0,)` for none.
        spacing_mm: (z, y, x) working spacing; `None` keeps the case's own.
        patch: spatial size of a training patch, (y, x) or (z, y, x).
        stride: spatial sizes given to `forward` must be multiples of this.
        axis_strides: of each axis, where they differ; `stride` is then the largest of them.
        needs_liver: voxels outside the liver mask are set to the lower bound of the window.
        needs_all_phases: the network cannot lack a phase (`E_PHASES_REQUIRED`).
        window: 3D only: the largest window at use, (z, y, x); None takes the largest that memory
            holds. A network whose norms look at the whole window wants about what it was trained
            on.
        slice_offsets: 2D only: offsets of the context slices counted in slices, whatever their
            distance; None uses `slice_offsets_mm`.
        refines: the system is a `Refining`: it answers twice, and the first answer can be asked.
        liver_crop: 2D only: slices are seen through the box around their liver; None for whole
            ones. A slice without liver is not looked at.
        uniform_windows: 3D only: every window that covers a voxel counts the same; without, one
            counts the more the nearer its middle is.
        whole_windows: 3D only: a window has its size, whatever the memory budget, even where the
            volume is smaller, which then goes on as it ends, as in training.
    """

    dims: Literal[2, 3]
    phases: tuple[str, ...]
    class_names: tuple[str, ...]
    windows_hu: tuple[tuple[float, float], ...]
    slice_offsets_mm: tuple[float, ...]
    spacing_mm: tuple[float, float, float] | None
    patch: tuple[int, ...]
    stride: int
    needs_liver: bool
    needs_all_phases: bool = False
    window: tuple[int, int, int] | None = None
    axis_strides: tuple[int, ...] | None = None
    slice_offsets: tuple[int, ...] | None = None
    refines: bool = False
    liver_crop: LiverCrop | None = None
    uniform_windows: bool = False
    whole_windows: bool = False

    @property
    def tumor_classes(self) -> tuple[int, ...]:
        """Channels of `decode` that are tumor: `tumor`, or one for each type of lesion."""
        # Of the liver network `other` is all that is no organ.
        wanted = LESION_TYPES if self.typed else ("tumor",)
        return tuple(n for n, name in enumerate(self.class_names) if name in wanted)

    @property
    def typed(self) -> bool:
        """Whether tumor is told apart by type: each of `study.LESION_TYPES` is a class."""
        return set(LESION_TYPES) <= set(self.class_names)

    @property
    def slices(self) -> int:
        """Slices of the context, the center included."""
        return len(self.slice_offsets_mm if self.slice_offsets is None else self.slice_offsets)

    @property
    def channels(self) -> int:
        """Channels of one phase: context slices x windows."""
        return self.slices * len(self.windows_hu)


@dataclass(frozen=True)
class Batch:
    """One training batch, on the training device, after augmentation.

    Attributes:
        image: scaled to [0, 1] by the windows of `InputSpec`; absent phases hold anything.
        present: which phases of which sample exist.
        label: class index; -1 is ignored by losses and scores. Of a typed system each lesion has
            the class of its type.
        liver: voxels that count as liver.
        instances: of a typed system: 0 where no lesion is, else a number that a lesion does not
            share with another one of its sample, in no order; None of other systems.
    """

    image: Float[Tensor, "b p c *spatial"]
    present: Bool[Tensor, "b p"]
    label: Int[Tensor, "b *spatial"]
    liver: Bool[Tensor, "b *spatial"]
    instances: Int[Tensor, "b *spatial"] | None = None


@runtime_checkable
class System(Protocol):
    """A trainable method. Implementations are `torch.nn.Module`s."""

    input_spec: InputSpec

    def targets(self, batch: Batch) -> Any:
        """Everything the loss needs, made from the batch on its device."""
        ...

    def forward(self, image: Float[Tensor, "b p c *spatial"], present: Bool[Tensor, "b p"]) -> Any:
        """Network outputs, logits at the resolution the loss expects."""
        ...

    def loss(self, outputs: Any, targets: Any) -> Float[Tensor, ""]:
        """Scalar training loss in float32."""
        ...

    def decode(self, outputs: Any) -> Float[Tensor, "b k *spatial"]:
        """Float32 probabilities at input resolution, averageable over windows."""
        ...


@runtime_checkable
class Refining(System, Protocol):
    """A system whose last step refines an answer that it already had (`InputSpec.refines`)."""

    def initial(self, outputs: Any) -> Float[Tensor, "b k *spatial"]:
        """As `decode`, of the answer before the refinement."""
        ...


@runtime_checkable
class Diagnosing(System, Protocol):
    """A system that says of a whole window which types the patient has.

    Of the windows of a case the highest score counts: one without the lesion knows nothing of it.
    """

    def patient(self, outputs: Any) -> Float[Tensor, "b 8"]:
        """Probability of having each of `study.LESION_TYPES`."""
        ...
