"""What speaks for what a lesion is: features measured in the images, and a typed system's view."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

FEATURES = (
    "size_10_mm",
    "nonrim_aphe",
    "washout",
    "capsule",
    "rim_aphe",
    "peripheral_nodular",
    "fluid",
    "calcification",
)
# Of how many lesions, from the largest on, pictures are shown.
PICTURED = 8
FeatureState = Literal["present", "absent", "not_assessable"]


class Record(BaseModel):
    """Plain data that is written down: frozen, no unknown fields, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ImagingFeature(Record):
    """One imaging feature of a lesion, as measured (`infer/imaging_features.py`).

    Attributes:
        name: one of `FEATURES`.
        state: `not_assessable` where a phase, voxels or quiet images are wanting.
        numbers: what the state stands on, by name with its unit; `_u` marks a standard uncertainty.
        reason: one sentence.
    """

    name: str
    state: FeatureState
    numbers: dict[str, float] = {}
    reason: str


@dataclass(frozen=True)
class TypeEvidence:
    """What a typed system saw of the types: all that `diagnose` needs of its map.

    Attributes:
        lesions: probability of each type, by lesion in their order; sums to 1.
        patient: highest probability of each type in the liver (LiverMax).
        threshold: below this highest probability a lesion is left unnamed.
        temperature: that the probabilities of the lesions were tempered by.
        maps: `(y, x)` float16 on the liver box, of the first `PICTURED` lesions: the map of a
            lesion's likeliest type, as the network gave it, on the lesion's `key_slice`.
    """

    lesions: tuple[dict[str, float], ...]
    patient: dict[str, float] = field(default_factory=dict)
    threshold: float = 0.0
    temperature: float = 1.0
    maps: tuple[NDArray[np.float16], ...] = ()

    def likeliest(self, lesion_id: int) -> str:
        """The type that speaks loudest for a lesion, named or not; of equals the first."""
        chances = self.lesions[lesion_id - 1]
        return max(chances, key=chances.__getitem__)
