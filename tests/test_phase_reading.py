"""The phase from the HU of organs: vessels where they are, densities by hand, what is not seen."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from hepar.data.phantoms import grid_of
from hepar.infer.bundle import default_bundle_path, load_bundle
from hepar.infer.organ_hu import MEASURES, great_vessels, organ_hu
from hepar.infer.organs import Organs, find_organs
from hepar.infer.phase_reading import (
    PhaseClassifier,
    calibrate_phase_classifier,
    default_phase_classifier,
    fit_phase_classifier,
    window_of,
)
from hepar.phantom.anatomy import anatomy
from hepar.phantom.scanner import paint
from hepar.phantom.tissue import Tissue
from hepar.resampling import resample
from hepar.study import PHASE_ORDER, Phase, Volume

SEED = 980_906
ARTERIAL = {"aorta": 280.0, "cava": 70.0, "liver": 60.0, "spleen": 100.0, "kidney_cortex": 95.0}
NATIVE = {"aorta": 38.0, "cava": 37.0, "liver": 55.0, "spleen": 45.0, "kidney_cortex": 28.0}


@pytest.fixture(scope="module")
def found() -> tuple[dict[str, Volume], dict[str, Organs], np.ndarray]:
    model = load_bundle(default_bundle_path()).model("liver")
    body = anatomy(SEED, spacing_mm=(5.0, 2.5, 2.5))
    grid = grid_of(body)
    scan = paint(body, SEED, phases=("NC", "ART"))
    volumes = {phase: Volume(hu, grid) for phase, hu in scan.hu.items()}
    organs = {phase: find_organs(volume, model) for phase, volume in volumes.items()}
    return volumes, organs, resample(body.tissue, grid, organs["NC"].grid, order=0)


@pytest.mark.parametrize("phase", ["NC", "ART"])
def test_oracle_aorta_and_cava_are_the_phantoms_own(found, phase) -> None:
    _, organs, tissue = found
    for mask, code in zip(great_vessels(organs[phase]), (Tissue.AORTA, Tissue.CAVA), strict=True):
        assert (tissue[mask] == code).mean() > 0.6
        assert mask[tissue == code].mean() > 0.6


def test_oracle_hu_are_those_of_the_phantoms_tissues(found) -> None:
    volumes, organs, _ = found
    body = anatomy(SEED, spacing_mm=(5.0, 2.5, 2.5)).tissue
    for phase, volume in volumes.items():
        measured = organ_hu(volume, organs[phase])
        for name, code, within in (
            ("aorta", Tissue.AORTA, 0.15),
            ("liver", Tissue.LIVER, 0.1),
            ("spleen", Tissue.SPLEEN, 0.1),
        ):
            truth = float(np.median(volume.array[body == code]))
            assert measured[name] == pytest.approx(truth, rel=within, abs=6.0), (phase, name)
    late = organ_hu(volumes["ART"], organs["ART"])
    assert late["kidney_cortex"] > late["kidney_depth"] + 10
    assert late["spleen_mottling"] > organ_hu(volumes["NC"], organs["NC"])["spleen_mottling"]


def test_property_what_is_not_shown_is_left_out(found) -> None:
    volumes, organs, _ = found
    masks = {k: m for k, m in organs["ART"].masks.items() if k in ("liver", "spleen")}
    part = Organs(organs["ART"].grid, organs["ART"].hu, masks)
    measured = organ_hu(volumes["ART"], part)
    assert set(measured) == {"liver", "liver_vessels", "spleen", "spleen_mottling"}
    whole = organ_hu(volumes["ART"], organs["ART"])
    assert all(measured[name] == whole[name] for name in measured)


def test_closed_form_windows() -> None:
    times = {0.0: "native", 32.0: "arterial", 50.0: "inflow", 73.0: "portal", 300.0: "delayed"}
    assert {t: window_of(t) for t in times} == times


def test_oracle_probabilities_are_bayes_rule_over_multivariate_t() -> None:
    """Two windows, three measures of which the third is not seen in one of the scans."""
    rng = np.random.default_rng(1)
    spreads = [np.cov(rng.normal(size=(3, 9))) for _ in range(2)]
    means = rng.normal(size=(2, 3))
    classifier = PhaseClassifier(
        measures=("aorta", "liver", "spleen", "cava"),
        windows=("native", "arterial"),
        prior=(0.3, 0.7),
        named=((1.0, 0.0, 0.0, 0.0), (0.0, 0.6, 0.4, 0.0)),
        mean=tuple((*m, 0.0) for m in means.tolist()),
        covariance=tuple(
            (*((*row, 0.0) for row in s.tolist()), (0.0, 0.0, 0.0, 1.0)) for s in spreads
        ),
    )
    x = rng.normal(size=3)
    hu = dict(zip(("aorta", "liver", "spleen"), 40 * np.sinh(x), strict=True))
    dense = [
        prior * stats.multivariate_t(loc=m, shape=s, df=6).pdf(x)
        for prior, m, s in zip((0.3, 0.7), means, spreads, strict=True)
    ]
    native = dense[0] / sum(dense)
    reading = classifier.read(hu)
    assert reading is not None
    assert reading.probabilities[Phase.NC] == pytest.approx(native)
    assert reading.probabilities[Phase.ART] == pytest.approx(0.6 * (1 - native))
    assert reading.probabilities[Phase.PV] == pytest.approx(0.4 * (1 - native))
    assert classifier.read({"aorta": 40.0, "liver": 60.0}) is None


def test_property_shipped_coefficients_belong_to_the_shipped_liver_network() -> None:
    classifier = default_phase_classifier()
    assert classifier.measures == tuple(MEASURES)
    assert classifier.liver_sha256 == load_bundle(default_bundle_path()).model("liver").sha256
    for spread in classifier.covariance:
        assert np.linalg.eigvalsh(np.array(spread)).min() > 0


def test_property_shipped_coefficients_tell_contrast_from_none_by_few_organs() -> None:
    classifier = default_phase_classifier()
    for hu, phase in ((ARTERIAL, Phase.ART), (NATIVE, Phase.NC)):
        for left_out in ((), ("kidney_cortex", "cava")):
            reading = classifier.read({k: v for k, v in hu.items() if k not in left_out})
            assert reading is not None
            assert reading.phase is phase
            assert sum(reading.probabilities.values()) == pytest.approx(1.0, abs=1e-3)
            assert reading.familiar


def test_property_hu_of_no_patient_are_unfamiliar() -> None:
    reading = default_phase_classifier().read(
        {"aorta": -300.0, "liver": 900.0, "spleen": -200.0, "cava": 700.0}
    )
    assert reading is not None
    assert not reading.familiar


def test_property_a_scan_between_two_phases_gets_a_divided_probability() -> None:
    """Fitted on drawn HU: what is called ART or PV by turns at 50 s is read as neither surely."""
    rng = np.random.default_rng(3)
    hu, phases, times = [], [], []
    at = {0.0: (38, 37, 55), 32.0: (280, 70, 60), 50.0: (210, 110, 85), 73.0: (160, 140, 110)}
    at[195.0] = (110, 112, 90)
    for time, center in at.items():
        for k in range(24):
            values = rng.normal(center, (6, 5, 4))
            hu.append(dict(zip(("aorta", "cava", "liver"), values.tolist(), strict=True)))
            hu[-1] |= {name: 50.0 + rng.normal() for name in MEASURES if name not in hu[-1]}
            between = Phase.ART if k % 2 else Phase.PV
            of_time = {0.0: Phase.NC, 32.0: Phase.ART, 50.0: between, 73.0: Phase.PV}
            phases.append(of_time.get(time, Phase.DL))
            times.append(time)
    fitted = fit_phase_classifier(hu, phases, times)
    calibrated = calibrate_phase_classifier(fitted, hu, phases)
    for time, center in at.items():
        k = times.index(time)
        one = {**hu[k], **dict(zip(("aorta", "cava", "liver"), map(float, center), strict=True))}
        reading = calibrated.read(one)
        assert reading is not None
        if time == 50.0:
            assert 0.4 < reading.probabilities[Phase.ART] < 0.6
            assert reading.probabilities[Phase.ART] + reading.probabilities[Phase.PV] > 0.95
        else:
            assert reading.phase is phases[k]
            assert reading.confidence > 0.9
        assert set(reading.probabilities) == set(PHASE_ORDER)
