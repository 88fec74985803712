"""Enhancement over time: circulation, compartments, tissue and lesion curves, scan times."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hepar.phantom.circulation import (
    COMPARTMENTS,
    DELAY_S,
    FIRST_PASS,
    INJECTION_S,
    RETURN,
    Circulation,
    at_time,
    compartments,
    weights,
)
from hepar.phantom.enhancement import Contrast, draw_time_s, tissue_hu
from hepar.phantom.lesion_enhancement import SHIFTS, lesion_hu, reference_curve
from hepar.phantom.lesion_kinds import CENTER_TIMES_S, KINDS, Part
from hepar.phantom.lesions import LesionSpec
from hepar.phantom.tissue import Tissue

REFERENCE_TIMES_S = np.array([0.0, 35.0, 70.0, 180.0])


def reference_contrast() -> Contrast:
    zeros = np.zeros(len(Tissue))
    return Contrast(Circulation(), baseline_hu=zeros, gain=zeros + 1)


@pytest.mark.parametrize(
    ("tissue", "expected"),
    [
        (Tissue.LIVER, (55, 65, 110, 95)),
        (Tissue.AORTA, (40, 300, 160, 120)),
        (Tissue.PORTAL_VEIN, (40, 110, 175, 125)),
        (Tissue.HEPATIC_VEIN, (40, 50, 165, 125)),
        (Tissue.SPLEEN, (48, 120, 130, 105)),
        (Tissue.KIDNEY_CORTEX, (32, 170, 190, 170)),
        (Tissue.KIDNEY_MEDULLA, (32, 60, 170, 190)),
        (Tissue.MUSCLE, (55, 58, 65, 65)),
        (Tissue.FAT, (-100, -100, -100, -100)),
    ],
)
def test_closed_form_reference_patient_meets_the_centers(
    tissue: Tissue, expected: tuple[int, ...]
) -> None:
    contrast = reference_contrast()
    drawn = [float(tissue_hu(contrast, t)[tissue]) for t in (0.0, 35.0, 70.0, 180.0)]
    assert drawn == pytest.approx(expected, abs=5)


def test_property_contrast_reaches_aorta_before_portal_before_hepatic_veins() -> None:
    contrast = reference_contrast()
    times = np.arange(5.0, 90.0, 1.0)
    curves = np.stack([tissue_hu(contrast, float(t)) for t in times])
    order = (Tissue.AORTA, Tissue.PORTAL_VEIN, Tissue.HEPATIC_VEIN)
    arrival = [times[np.argmax(curves[:, code] > 85)] for code in order]
    assert arrival[0] < arrival[1] < arrival[2]


def test_closed_form_phase_times() -> None:
    rng = np.random.default_rng(0)
    windows = {"ART": (20, 40.1), "PV": (60, 90), "DL": (120, 300)}
    for phase, (low, high) in windows.items():
        drawn = np.array([draw_time_s(rng, phase) for _ in range(500)])
        assert 0.85 < ((drawn >= low) & (drawn <= high)).mean() <= 1.0
    assert draw_time_s(rng, "NC") == 0.0


def slow_chain(chambers: int, decay_s: float, delay_s: float) -> list[float]:
    area, response = 0.0, []
    for t in range(601):
        s = t - delay_s
        value = s ** (chambers - 1) * math.exp(-s / decay_s) if s >= 0 else 0.0
        response.append(value)
        area += value
    return [value / area for value in response]


def slow_through(curve: list[float], bed: list[float]) -> list[float]:
    return [sum(curve[t - u] * bed[u] for u in range(t + 1)) for t in range(len(curve))]


def test_oracle_aorta_is_the_injection_through_chambers_and_back() -> None:
    box = [min(max(INJECTION_S - t, 0.0), 1.0) for t in range(601)]
    injection = [value / sum(box) for value in box]
    bolus = slow_through(injection, slow_chain(4, 4.37, DELAY_S))
    back = [sum(h * math.exp(-t / d) for h, d in RETURN) for t in range(601)]
    again = slow_through(bolus, back)
    aorta = [FIRST_PASS * b + r for b, r in zip(bolus, again, strict=True)]
    table = compartments(Circulation())
    np.testing.assert_allclose(table[0], aorta, rtol=1e-9, atol=1e-9)
    fast = slow_through(aorta, slow_chain(1, 16.0, 3.0))
    np.testing.assert_allclose(table[COMPARTMENTS.index("fast")], fast, rtol=1e-9, atol=1e-9)


def test_closed_form_dose_scales_and_cardiac_output_delays() -> None:
    reference = compartments(Circulation())
    double = compartments(Circulation(iodine=2.0))
    np.testing.assert_allclose(double, 2 * reference, rtol=1e-12)
    weak = compartments(Circulation(cardiac_output=0.7))
    blood = COMPARTMENTS.index("blood")
    assert weak[blood].argmax() > reference[blood].argmax()
    assert weak[blood].max() > reference[blood].max()
    assert (reference >= 0).all()
    assert np.abs(reference[:, 0]).max() < 0.5


def test_property_weights_are_never_negative_and_meet_what_they_can() -> None:
    basis = compartments(Circulation())[:, [35, 70, 180]]
    for rises in ((47.0, 47.0, 24.0), (12.0, 25.0, 20.0), (75.0, 65.0, 48.0), (22.0, 57.0, 64.0)):
        found = weights(rises, CENTER_TIMES_S)
        assert (found >= 0).all()
        assert found @ basis == pytest.approx(rises, abs=1.5)
    assert (weights((-5.0, -20.0, -15.0), CENTER_TIMES_S) <= 0).all()


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "hemangioma"])
def test_closed_form_lesion_parts_meet_their_centers(kind: str) -> None:
    for part, centers in KINDS[kind].centers.items():
        assert reference_curve(kind, part, REFERENCE_TIMES_S) == pytest.approx(centers, abs=8)


def test_closed_form_hemangioma_fills_from_its_edge() -> None:
    contrast = reference_contrast()
    pool = np.array([tissue_hu(contrast, t)[Tissue.AORTA] for t in REFERENCE_TIMES_S]) - 40
    nodule, body, core = (
        reference_curve("hemangioma", part, REFERENCE_TIMES_S) - 42
        for part in (Part.NODULE, Part.BODY, Part.CORE)
    )
    assert 0.5 <= body[2] / pool[2] <= 0.8
    assert (nodule[1:] >= body[1:]).all()
    assert (body[1:] >= core[1:]).all()
    assert 0.7 * pool[1] < nodule[1] < 1.05 * pool[1]
    assert core[3] > 0.6 * pool[3]


def test_property_delayed_phase_parts_pairs_that_portal_venous_does_not() -> None:
    """ICC and metastasis, HCC without early washout and adenoma: alike at 70 s, apart at 180 s."""
    pairs = (("icc", "metastasis", Part.BODY), ("hcc", "adenoma", Part.BODY))
    for a, b, part in pairs:
        first, second = (reference_curve(kind, part, REFERENCE_TIMES_S) for kind in (a, b))
        gap = np.abs(first - second)
        assert gap[:3].max() < 15
        assert gap[3] > 18


def test_property_a_lesion_keeps_its_own_shift_in_every_phase() -> None:
    contrast = reference_contrast()
    spec = LesionSpec(1, "hcc", (0, 0, 0), (10, 10, 10), 0, 0.0, 1.0)
    still, bright = np.zeros(SHIFTS), np.array([0.0, 1.0, 1.0, 1.0, 1.0])
    for time_s in (32.0, 71.0, 190.0):
        plain = lesion_hu(spec, contrast, time_s, still)[Part.BODY]
        assert lesion_hu(spec, contrast, time_s, bright)[Part.BODY] > plain + 6
    assert lesion_hu(spec, contrast, 0.0, bright)[Part.BODY] == pytest.approx(48)


def test_closed_form_curves_are_read_between_seconds() -> None:
    table = compartments(Circulation())
    np.testing.assert_allclose(at_time(table, 40.5), (table[:, 40] + table[:, 41]) / 2)
    np.testing.assert_allclose(at_time(table, 1e4), table[:, 600])
