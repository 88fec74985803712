"""Stage 7: say what each lesion probably is, and what the patient probably has.

No network runs here. Of a typed system the tumor stage hands over what its map says of each lesion
and of the liver; for other systems the enhancement curve decides. Either abstains rather than
guesses.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np

from hepar.evaluate.patient import group_scores
from hepar.lesion_evidence import TypeEvidence
from hepar.study import LESION_TYPES, Diagnosis, Lesion, LesionDiagnosis, LesionMap, LiverCase
from hepar.systems.baselines.enhancement_classifier import (
    UNCERTAIN,
    EnhancementClassifier,
    curve_features,
    judge,
)

logger = logging.getLogger(__name__)

TUMOR_FREE = "tumor-free"
NOT_SURE = "the network is not sure enough of any one type"


def diagnose(
    case: LiverCase, lesions: LesionMap, classifier: EnhancementClassifier | None
) -> Diagnosis:
    """Judge every lesion, and the patient.

    Args:
        case: the patient; only the phases that were acquired count.
        lesions: measured lesions; their `types`, where a typed system found them, decide.
        classifier: of the enhancement curve, for other systems; None when the model has none, and
            every lesion is then `uncertain`.

    Returns:
        A judgement for each lesion, and the patient's probabilities: LiverMax of a typed system,
        else `patient_probabilities`. Of given lesions, `given_probabilities`.
    """
    if lesions.types is not None:
        judged = by_network(lesions, lesions.types)
        patient = {TUMOR_FREE: _tumor_free(lesions), **lesions.types.patient}
    else:
        judged = by_curve(case, lesions, classifier)
        given = bool(lesions.given)
        patient = given_probabilities(judged) if given else patient_probabilities(lesions, judged)
    open_left = bool(lesions.given) and any(j.abstained for j in judged)
    logger.info("%d of %d lesions named", sum(not j.abstained for j in judged), len(judged))
    return Diagnosis(
        lesions=judged,
        patient=patient,
        groups={} if open_left else _groups(patient),
        method="curve" if lesions.types is None else "network",
    )


def by_network(lesions: LesionMap, seen: TypeEvidence) -> tuple[LesionDiagnosis, ...]:
    """Judge every lesion by what a typed system saw in its voxels."""
    judged = []
    for lesion, chances in zip(lesions.lesions, seen.lesions, strict=True):
        best = seen.likeliest(lesion.id)
        unsure = chances[best] < seen.threshold
        judged.append(
            LesionDiagnosis(
                lesion_id=lesion.id,
                probabilities=dict(chances),
                label=UNCERTAIN if unsure else best,
                abstained=unsure,
                reason=NOT_SURE if unsure else "",
            )
        )
    return tuple(judged)


def by_curve(
    case: LiverCase, lesions: LesionMap, classifier: EnhancementClassifier | None
) -> tuple[LesionDiagnosis, ...]:
    """Judge every lesion by its enhancement curve."""
    found = lesions.lesions
    if classifier is None:
        reason = "this model has no classifier of lesions"
        return tuple(
            LesionDiagnosis(
                lesion_id=lesion.id,
                probabilities={},
                label=UNCERTAIN,
                abstained=True,
                reason=reason,
            )
            for lesion in found
        )
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
    return tuple(
        LesionDiagnosis(
            lesion_id=lesion.id,
            probabilities=judgement.probabilities,
            label=judgement.label,
            abstained=judgement.abstained,
            reason=judgement.reason,
        )
        for lesion, judgement in zip(found, judge(classifier, features), strict=True)
    )


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
    patient = {TUMOR_FREE: _tumor_free(lesions)}
    for lesion, judgement in zip(lesions.lesions, judged, strict=True):
        named = {UNCERTAIN: 1.0} if judgement.abstained else judgement.probabilities
        for name, chance in named.items():
            patient[name] = max(patient.get(name, 0.0), _sure(lesion) * chance)
    return patient


def given_probabilities(judged: tuple[LesionDiagnosis, ...]) -> dict[str, float]:
    """What the patient has if every given lesion is one: of each type, its highest probability.

    Nobody estimated whether the lesions are real, so nothing is said of a patient without lesions,
    nor a number of those left unnamed.
    """
    patient: dict[str, float] = {}
    for judgement in judged:
        for name, chance in () if judgement.abstained else judgement.probabilities.items():
            patient[name] = max(patient.get(name, 0.0), chance)
    return patient


def _sure(lesion: Lesion) -> float:
    """The probability that a found lesion is real."""
    assert lesion.confidence is not None
    return lesion.confidence


def _tumor_free(lesions: LesionMap) -> float:
    """The probability that even the surest lesion is not real."""
    return 1.0 - max((_sure(lesion) for lesion in lesions.lesions), default=0.0)


def _groups(patient: Mapping[str, float]) -> dict[str, float]:
    """Of malignant and benign types, the most probable one counts; `other` is in neither group.

    Empty where a lesion was left unnamed, or none was found to be named: a lesion that may be of
    any type must not read as malignant or benign with probability 0.
    """
    if UNCERTAIN in patient or not set(LESION_TYPES) & set(patient):
        return {}
    return group_scores({name: patient.get(name, 0.0) for name in LESION_TYPES}, "max")
