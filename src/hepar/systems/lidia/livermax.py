"""LiverMax: what a patient has, from the most convincing voxel of each type inside the liver.

Paper: Huang et al., "LIDIA: Precise Liver Tumor Diagnosis on Multi-Phase Contrast-Enhanced CT via
Iterative Fusion and Asymmetric Contrastive Learning", MICCAI 2024, section 2.2:

    score_c = max over voxels v of the liver of S_c(v)

with S the class probabilities of the whole volume, its windows averaged. What it is compared with
is the predicted volume of each type (Zhu et al., MICCAI 2019), which small lesions hardly move.

Differs from the paper: nothing that it states. Where it is silent:

- S sums to one over the classes at each voxel ("softmax output"); `renormalized=False` takes the
  map as it comes, clipped to [0, 1].
- The liver is the predicted one, lesions included (`infer.typed_lesions`). Where there is none the
  whole volume is looked at, so that a patient always has a score.
- Of a group, malignant or benign, the highest score of its types counts, and the sum of volumes:
  `evaluate.patient.group_scores`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from hepar.study import LESION_TYPES

_LEAST = 1e-6  # that a voxel's probabilities are taken to add up to


def livermax(
    probability: Float[np.ndarray, "10 z y x"],
    liver: Bool[np.ndarray, "z y x"],
    *,
    renormalized: bool = True,
) -> dict[str, float]:
    """The highest probability of each type inside the liver.

    Args:
        probability: background, each of `LESION_TYPES`, liver; float16 does.
        liver: as it was found, lesions included; where it is empty everything is looked at.
        renormalized: let the classes of each voxel sum to one.

    Returns:
        Type -> score in [0, 1], for every type.
    """
    highest = np.zeros(len(LESION_TYPES))
    looked_at = liver if liver.any() else np.ones_like(liver)
    # Slice by slice: a float32 copy of a whole map may be larger than the memory there is.
    for z in np.flatnonzero(looked_at.any(axis=(1, 2))):
        seen = probability[:, z][:, looked_at[z]].astype(np.float32)
        if renormalized:
            seen /= np.maximum(seen.sum(axis=0), _LEAST)
        highest = np.maximum(highest, seen[1 : 1 + len(LESION_TYPES)].max(axis=1))
    return dict(zip(LESION_TYPES, np.clip(highest, 0.0, 1.0).tolist(), strict=True))


def mask_size(types: Sequence[str], volumes_ml: Sequence[float]) -> dict[str, float]:
    """The predicted volume of each type, the score that LiverMax is compared with.

    Args:
        types: of each lesion.
        volumes_ml: of each lesion.

    Returns:
        Type -> ml, 0 where no lesion has the type.
    """
    lesions = list(zip(types, volumes_ml, strict=True))
    return {kind: math.fsum(ml for t, ml in lesions if t == kind) for kind in LESION_TYPES}
