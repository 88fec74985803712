"""What a plan of nnU-Net's says of a network: phases, z-scores, spacing, patch, levels."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PhaseName = Literal["NC", "ART", "PV", "DL"]
PHASES: tuple[PhaseName, ...] = ("NC", "ART", "PV", "DL")
# A YAML list is a list: lax for the container alone, each member stays strict.
Sequence = Field(strict=False)
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]
Sizes = Annotated[tuple[Count, Count, Count], Sequence]
Window = Annotated[tuple[float, float], Sequence]


class PlannedSettings(BaseModel):
    """What nnU-Net's plan fixes; a system adds its own switches.

    Attributes:
        name: the system.
        phases: the model's phases, an ordered subset of NC, ART, PV, DL.
        window_hu: (low, high), percentiles 0.5 and 99.5 of the foreground in HU, to which images
            are clipped; one for all phases, or one for each.
        mean_hu, std_hu: of the foreground, for the z-scores; likewise.
        spacing_mm: working spacing (z, y, x); None works on the case's own.
        patch: training patch and largest window at use, in voxels (z, y, x).
        channels: of each level, finest first.
        strides: from each level to the next, (z, y, x): one less than levels.
        kernels: of each level, (z, y, x).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    phases: Annotated[tuple[PhaseName, ...], Sequence] = ("PV",)
    window_hu: Window | Annotated[tuple[Window, ...], Sequence] = (-17.0, 201.0)
    mean_hu: float | Annotated[tuple[float, ...], Sequence] = 99.4
    std_hu: Positive | Annotated[tuple[Positive, ...], Sequence] = 39.36
    spacing_mm: Annotated[tuple[Positive, Positive, Positive], Sequence] | None = (1.0, 0.77, 0.77)
    patch: Sizes = (128, 128, 128)
    channels: Annotated[tuple[Count, ...], Sequence, Field(min_length=2)] = (
        *(32, 64, 128, 256, 320, 320),
    )
    strides: Annotated[tuple[Sizes, ...], Sequence] = ((2, 2, 2),) * 5
    kernels: Annotated[tuple[Sizes, ...], Sequence] = ((3, 3, 3),) * 6

    @property
    def windows_hu(self) -> tuple[tuple[float, float], ...]:
        """(low, high) of each phase."""
        first = self.window_hu[0]
        if isinstance(first, tuple):
            return self.window_hu  # type: ignore[return-value]
        return (self.window_hu,) * len(self.phases)  # type: ignore[return-value]

    @property
    def widest_window_hu(self) -> tuple[float, float]:
        """The window that images arrive in, which holds those of all phases."""
        lows, highs = zip(*self.windows_hu, strict=True)
        return min(lows), max(highs)

    @property
    def means_hu(self) -> tuple[float, ...]:
        """Mean of each phase."""
        given = self.mean_hu
        return given if isinstance(given, tuple) else (given,) * len(self.phases)

    @property
    def stds_hu(self) -> tuple[float, ...]:
        """Standard deviation of each phase."""
        given = self.std_hu
        return given if isinstance(given, tuple) else (given,) * len(self.phases)

    @property
    def divisor(self) -> tuple[int, int, int]:
        """Patch sizes are multiples of this, (z, y, x)."""
        z, y, x = (math.prod(step[axis] for step in self.strides) for axis in range(3))
        return z, y, x

    @model_validator(mode="after")
    def _phases_agree(self) -> PlannedSettings:
        ordered = tuple(phase for phase in PHASES if phase in self.phases)
        if not self.phases or self.phases != ordered:
            raise ValueError(f"phases must be an ordered subset of {PHASES}, got {self.phases}")
        if not self.window_hu:
            raise ValueError("window_hu is empty")
        for name, found in (
            ("window_hu", self.windows_hu),
            ("mean_hu", self.means_hu),
            ("std_hu", self.stds_hu),
        ):
            if len(found) != len(self.phases):
                raise ValueError(f"{name} has {len(found)} entries for {len(self.phases)} phases")
        for low, high in self.windows_hu:
            if low >= high:
                raise ValueError(f"window_hu: {low} is not below {high}")
        return self

    @model_validator(mode="after")
    def _levels_agree(self) -> PlannedSettings:
        levels = len(self.channels)
        if len(self.strides) != levels - 1 or len(self.kernels) != levels:
            raise ValueError(
                f"{levels} channels need {levels - 1} strides and {levels} kernels, got "
                f"{len(self.strides)} and {len(self.kernels)}"
            )
        if any(size % 2 == 0 for kernel in self.kernels for size in kernel):
            raise ValueError(f"kernels must be odd, got {self.kernels}")
        if any(n % d for n, d in zip(self.patch, self.divisor, strict=True)):
            raise ValueError(f"patch {self.patch} must be multiples of {self.divisor}")
        return self
