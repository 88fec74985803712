"""Tumor patches from prepared cases: the order of an epoch, and the liver mask that is seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

from hepar.data.patches import draw_patch, whole_case
from hepar.data.prepared_case import PreparedCase
from hepar.data.sampling import Sample, ValidationCase
from hepar.data.type_balance import TypeBalance
from hepar.errors import UsageError
from hepar.geometry import Grid
from hepar.recipe_data import LiverMask, PatchSettings
from hepar.resampling import resample
from hepar.systems.base import InputSpec

GROUP = 8
_DRAW, _ORDER = 1, 2


@runtime_checkable
class CaseProvider(Protocol):
    """Gives prepared cases. Must be safe to call from several threads."""

    @property
    def n_train(self) -> int:
        """Training cases."""
        ...

    @property
    def n_validation(self) -> int:
        """Held-out cases."""
        ...

    def train_case(self, index: int, epoch: int) -> PreparedCase:
        """A training case; may look different from epoch to epoch."""
        ...

    def train_name(self, index: int) -> str:
        """Name of a training case, known before it is prepared."""
        ...

    def train_types(self, index: int) -> frozenset[str]:
        """Types of a training case's lesions, for systems that tell them apart."""
        ...

    def fingerprint(self) -> str:
        """Hash of everything outside the recipe that decides the cases."""
        ...

    def validation_case(self, index: int) -> PreparedCase:
        """A held-out case."""
        ...


class CaseSource:
    """A `SampleSource` over prepared cases.

    An epoch draws `samples_per_case` patches of every case. Cases come in groups whose patches
    alternate, so that a batch mixes patients while only a group lies in memory. Where types are
    balanced, a patch around a lesion comes from another case instead (`TypeBalance`).

    Raises:
        UsageError: `E_RECIPE`, the system knows neither liver nor tumor, or settings of typed
            lesions are for a system without types.
    """

    def __init__(
        self, cases: CaseProvider, settings: PatchSettings, spec: InputSpec, *, seed: int
    ) -> None:
        liver = tuple(n for n, name in enumerate(spec.class_names) if name == "liver")
        self.target_classes = spec.tumor_classes or liver
        if not self.target_classes:
            raise UsageError(
                "E_RECIPE",
                "train",
                f"the system knows {', '.join(spec.class_names)}, the data teach liver and tumor.",
                "Choose a system with a class named tumor or liver, or other data.",
            )
        self.cases, self.settings, self.spec, self.seed = cases, settings, spec, seed
        asked = settings.type_balance or settings.ignore_lesions_below_voxels > 0
        if asked and not (spec.typed and spec.dims == 3):
            raise UsageError(
                "E_RECIPE",
                "train",
                "data.type_balance and data.ignore_lesions_below_voxels need a 3D system that "
                "tells types of lesions apart.",
                "Leave them out, or choose such a system.",
            )
        self._balance = TypeBalance(cases, settings, seed=seed) if settings.type_balance else None

    def __len__(self) -> int:
        """Samples in an epoch."""
        return self.cases.n_train * self.settings.samples_per_case

    def sample(self, epoch: int, index: int) -> Sample:
        """The sample of (seed, epoch, index)."""
        number, kind = self._choice(epoch, index)
        case = self.cases.train_case(number, epoch)
        return draw_patch(case, self.spec, self.settings, self._rng(epoch, index), kind)

    def case_of(self, epoch: int, index: int) -> str:
        """Name of the case that a sample is drawn from."""
        return self.cases.train_name(self._choice(epoch, index)[0])

    def fingerprint(self) -> str:
        """Hash of everything outside the recipe that decides the samples."""
        return self.cases.fingerprint()

    def _rng(self, epoch: int, index: int) -> np.random.Generator:
        return np.random.default_rng([_DRAW, self.seed, epoch, index])

    def _choice(self, epoch: int, index: int) -> tuple[int, str | None]:
        """The case of a sample, and the type of the lesion it is drawn around, where that is set.

        Whether it is one around a lesion is what `draw_patch` finds: the first number of the same
        generator.
        """
        if self._balance is not None and self._rng(epoch, index).random() < self._balance.share:
            return self._balance.choice(epoch, index)
        return self._number(epoch, index), None

    def _number(self, epoch: int, index: int) -> int:
        order = np.random.default_rng([_ORDER, self.seed, epoch]).permutation(self.cases.n_train)
        block, within = divmod(index, GROUP * self.settings.samples_per_case)
        group = order[block * GROUP : (block + 1) * GROUP]
        return int(group[within % len(group)])

    def validation(self) -> Iterator[ValidationCase]:
        """The held-out cases, every phase shown."""
        for index in range(self.cases.n_validation):
            yield whole_case(self.cases.validation_case(index), self.spec)


def imperfect_liver(
    liver: Bool[np.ndarray, "z y x"],
    spacing_mm: tuple[float, float, float],
    settings: LiverMask,
    rng: np.random.Generator,
) -> Bool[np.ndarray, "z y x"]:
    """A liver mask as a network would draw it: the border moved by a smooth random field.

    Args:
        liver: the true mask.
        spacing_mm: (z, y, x).
        settings: how far, and over what length the error changes.
        rng: explicit generator.
    """
    if (settings.bias_mm == 0 and settings.jitter_mm == 0) or not liver.any():
        return liver.copy()
    depth_mm = ndimage.distance_transform_edt(liver, sampling=spacing_mm)
    depth_mm -= ndimage.distance_transform_edt(~liver, sampling=spacing_mm)
    z, y, x = liver.shape
    fine = Grid.axial((z, y, x), spacing_mm)
    coarse = fine.with_spacing((settings.length_mm,) * 3)
    field = resample(rng.normal(size=coarse.shape), coarse, fine, antialias=False)
    field *= settings.jitter_mm / max(float(field.std()), 1e-6)
    return np.asarray(depth_mm + field + settings.bias_mm > 0)
