"""Which type each found lesion was given: the confusion over matched pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hepar.evaluate.lesion_case import UNCERTAIN, LesionCase
from hepar.study import LESION_TYPES

_INDEX = {name: k for k, name in enumerate((*LESION_TYPES, UNCERTAIN))}


def classify_lesions(cases: Sequence[LesionCase]) -> dict[str, Any] | None:
    """True against predicted type of the lesions matched one to one.

    A predicted lesion that is `uncertain`, or has no type, counts as wrong: it is in the
    denominators, apart from the confusion of the 8 types (`uncertain` by true type,
    `false_uncertain`). Each true type's row of the confusion, its `uncertain` and its `missed` add
    up to its reference lesions. Reference lesions without a type, and cases without any, are left
    out.

    Returns:
        None when no case has predicted types or none has true ones.
    """
    if all(c.predicted_types is None for c in cases) or all(
        c.reference_types is None for c in cases
    ):
        return None
    n = len(LESION_TYPES)
    matched = np.zeros((n, n + 1), dtype=np.int64)
    missed = np.zeros(n, dtype=np.int64)
    false = np.zeros(n + 1, dtype=np.int64)
    for case in cases:
        if case.reference_types is None:
            continue
        truth = {r: _INDEX[name] for r, name in case.reference_types.items()}
        given = {p: _INDEX[name] for p, name in (case.predicted_types or {}).items()}
        for p, r, _ in case.match.pairs:
            if r in truth:
                matched[truth[r], given.get(p, n)] += 1
        for r in case.match.missed:
            if r in truth:
                missed[truth[r]] += 1
        for p in case.match.false:
            false[given.get(p, n)] += 1
    right, n_matched = int(np.trace(matched)), int(matched.sum())
    n_reference = n_matched + int(missed.sum())
    return {
        "names": list(LESION_TYPES),
        "confusion": matched[:, :n].tolist(),
        "uncertain": matched[:, n].tolist(),
        "missed": missed.tolist(),
        "false": false[:n].tolist(),
        "false_uncertain": int(false[n]),
        "accuracy": right / n_matched if n_matched else None,
        "n": n_matched,
        "accuracy_missed_wrong": right / n_reference if n_reference else None,
        "n_reference": n_reference,
    }
