"""What speaks for what a lesion is: features measured in the images, and a typed system's view."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

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
    """

    lesions: tuple[dict[str, float], ...]
    patient: dict[str, float] = field(default_factory=dict)
    threshold: float = 0.0
    temperature: float = 1.0
