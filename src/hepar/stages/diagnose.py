"""Stage 7: say what each lesion probably is, and what the patient probably has.

It reads measurements only; no network runs here. Until a learned system fills the place, the
enhancement curve decides, and the classifier abstains rather than guesses.
"""

from __future__ import annotations

import logging

import numpy as np

from hepar.study import Diagnosis, LesionDiagnosis, LesionMap, LiverCase
from hepar.systems.baselines.enhancement_classifier import (
    UNCERTAIN,
    EnhancementClassifier,
    curve_features,
    judge,
)

logger = logging.getLogger(__name__)

TUMOR_FREE = "tumor-free"


def diagnose(
    case: LiverCase, lesions: LesionMap, classifier: EnhancementClassifier | None
) -> Diagnosis:
    """Judge every lesion by its enhancement curve, and the patient by the lesions.

    Args:
        case: the patient; only the phases that were acquired count.
        lesions: measured lesions.
        classifier: None when the model has none; every lesion is then `uncertain`.

    Returns:
        A judgement for each lesion, and the patient's probabilities (`patient_probabilities`).
    """
    found = lesions.lesions
    if classifier is None:
        reason = "this model has no classifier of lesions"
        judged = tuple(
            LesionDiagnosis(
                lesion_id=lesion.id,
                probabilities={},
                label=UNCERTAIN,
                abstained=True,
                reason=reason,
            )
            for lesion in found
        )
        return Diagnosis(lesions=judged, patient=patient_probabilities(lesions, judged))
    acquired = {str(phase) for phase in case.aligned.volumes}
    rows = [
        curve_features(
            {p: v for p, v in lesion.hu.items() if p in acquired},
            lesion.liver_hu,
            classifier.phases,
        )
        for lesion in found
    ]
    features = np.stack(rows) if rows else np.empty((0, len(classifier.phases), 2))
    judged = tuple(
        LesionDiagnosis(
            lesion_id=lesion.id,
            probabilities=judgement.probabilities,
            label=judgement.label,
            abstained=judgement.abstained,
            reason=judgement.reason,
        )
        for lesion, judgement in zip(found, judge(classifier, features), strict=True)
    )
    logger.info("%d of %d lesions named", sum(not j.abstained for j in judged), len(judged))
    return Diagnosis(lesions=judged, patient=patient_probabilities(lesions, judged))


def patient_probabilities(
    lesions: LesionMap, judged: tuple[LesionDiagnosis, ...]
) -> dict[str, float]:
    """What the patient has, from the lesions.

    A type's probability is the highest over the lesions that were named, of the probability that
    the lesion is real (its confidence) times that it is of the type. `uncertain` is the same over
    the lesions left unnamed, and `tumor-free` the probability that the surest lesion is not real.
    The maximum is taken instead of 1 - prod(1 - p) because lesions of one patient, and the errors
    made on them, are anything but independent: ten lesions at 0.1 each must not add up to 0.65.
    The entries are therefore separate statements and do not sum to 1.
    """
    patient = {TUMOR_FREE: 1.0}
    for lesion, judgement in zip(lesions.lesions, judged, strict=True):
        patient[TUMOR_FREE] = min(patient[TUMOR_FREE], 1.0 - lesion.confidence)
        named = {UNCERTAIN: 1.0} if judgement.abstained else judgement.probabilities
        for name, chance in named.items():
            patient[name] = max(patient.get(name, 0.0), lesion.confidence * chance)
    return patient
