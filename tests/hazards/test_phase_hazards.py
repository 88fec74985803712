"""Hazards of contrast phases: what the text says, what the image shows, and what is not there.

Ids are those of the hazard catalog; docs/hazards.md says what is done about each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from fake_systems import Echo, spec_3d
from hepar.data.phantoms import grid_of
from hepar.errors import InputRefused
from hepar.geometry import Grid
from hepar.infer.bundle import Bundle, Model, default_bundle_path, load_bundle
from hepar.io.dicom_write import write_dicom_series
from hepar.phantom.anatomy import anatomy
from hepar.phantom.scanner import paint
from hepar.pipeline import Pipeline
from hepar.stages.phases import assign_phases
from hepar.stages.tumor import find_lesions
from hepar.study import Phase, Series, SeriesVerdict, Study, Volume
from liver_case import liver_case

# A patient whose phases are all well timed.
SEED = 980_905


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(default_bundle_path())


@pytest.fixture(scope="module")
def scan() -> tuple[Mapping[str, np.ndarray], Grid]:
    body = anatomy(SEED, spacing_mm=(5.0, 2.5, 2.5))
    painted = paint(body, SEED)
    assert 20 <= painted.times_s["ART"] <= 40
    assert 60 <= painted.times_s["PV"] <= 90
    assert 120 <= painted.times_s["DL"] <= 300
    return painted.hu, grid_of(body)


def series(
    scan: tuple[Mapping[str, np.ndarray], Grid],
    phase: str,
    *,
    series_id: str = "s1",
    assigned: Phase | None = None,
    **tags: str,
) -> Series:
    hu, grid = scan
    verdict = SeriesVerdict(series_id, "", "usable", "read", None, "", 1)
    return Series(Volume(hu[phase], grid), verdict, tags, assigned)


def study(*members: Series) -> Study:
    return Study(members, tuple(s.verdict for s in members))


def codes(warnings: tuple[str, ...]) -> list[str]:
    return [warning.split(":")[0] for warning in warnings]


def test_property_PH06_a_native_scan_described_as_portal_venous_is_native(scan, bundle, tmp_path):
    """Through DICOM and the report: the image wins, both are recorded, the page says uncertain."""
    hu, grid = scan
    write_dicom_series(
        tmp_path / "1", Volume(hu["NC"], grid), description="PORTAL VENOUS", series_number=1
    )
    findings = Pipeline(bundle).segment(tmp_path / "1", tmp_path / "out")
    (phase,) = findings.phases
    assert findings.reference == phase.phase == "NC"
    assert phase.uncertain
    assert phase.confidence < 0.9
    assert "PORTAL VENOUS" in phase.reason
    assert "aorta" in phase.reason
    assert phase.organ_hu["aorta"] < 70
    conflicts = [w for w in findings.warnings if w.startswith("W_PHASE_TAG_CONFLICT: ")]
    assert len(conflicts) == 1
    assert "non-contrast" in conflicts[0]
    assert "portal venous" in conflicts[0]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Non-contrast (uncertain)" in page
    (row,) = json.loads((tmp_path / "out" / "ingest.json").read_text())["series"]
    assert (row["phase"], row["phase_uncertain"]) == ("NC", True)
    assert row["organ_hu"] == phase.organ_hu


@pytest.mark.parametrize(
    ("shown", "described"),
    [
        ("ART", "native"),
        pytest.param("NC", "arterial", marks=pytest.mark.full),
        pytest.param("PV", "non contrast", marks=pytest.mark.full),
        pytest.param("DL", "arterial", marks=pytest.mark.full),
    ],
)
def test_property_PH06_an_image_that_is_sure_outweighs_its_description(
    scan, bundle, shown, described
):
    one = series(scan, shown, SeriesDescription=described)
    phased = assign_phases(study(one), bundle.model("liver"))
    reading = phased.readings[0]
    assert reading.phase == shown
    assert reading.uncertain
    assert described in reading.reason
    assert codes(phased.warnings) == ["W_PHASE_TAG_CONFLICT"]


def test_property_PH06_the_user_outweighs_the_image_and_is_told(scan, bundle):
    one = series(scan, "NC", assigned=Phase.PV)
    phased = assign_phases(study(one), bundle.model("liver"))
    reading = phased.readings[0]
    assert (reading.phase, reading.confidence, reading.uncertain) == (Phase.PV, 1.0, False)
    assert codes(phased.warnings) == ["W_PHASE_TAG_CONFLICT"]
    assert "non-contrast" in phased.warnings[0]


def test_property_PH06_a_description_that_the_image_confirms_is_surer_and_not_warned_of(
    scan, bundle
):
    one = series(scan, "PV", SeriesDescription="portal venous")
    phased = assign_phases(study(one), bundle.model("liver"))
    reading = phased.readings[0]
    assert reading.phase is Phase.PV
    assert reading.confidence > 0.9
    assert not reading.uncertain
    assert phased.warnings == ()


def test_property_PH06_four_series_without_any_text_are_told_apart(scan, bundle):
    members = [
        series(scan, phase, series_id=f"s{k}") for k, phase in enumerate(("DL", "NC", "PV", "ART"))
    ]
    phased = assign_phases(study(*members), bundle.model("liver"))
    assert {r.series_id: r.phase.value for r in phased.readings} == {
        "s0": "DL",
        "s1": "NC",
        "s2": "PV",
        "s3": "ART",
    }
    with pytest.raises(InputRefused) as caught:
        assign_phases(study(*members))
    assert caught.value.code == "E_PHASES_UNKNOWN"


def test_property_PH08_a_lone_series_is_what_its_image_shows_and_not_assumed(scan, bundle):
    phased = assign_phases(study(series(scan, "DL")), bundle.model("liver"))
    assert [r.phase for r in phased.readings] == [Phase.DL]
    assert "W_PHASE_ASSUMED" not in codes(phased.warnings)


def test_property_PH08_an_image_that_shows_no_organ_leaves_the_text_alone(bundle):
    grid = Grid.axial((20, 40, 40), (5.0, 5.0, 5.0))
    noise = np.random.default_rng(0).normal(0, 300, grid.shape).astype(np.int16)
    for hu in (noise, np.zeros_like(noise), np.full_like(noise, -1000)):
        named = series(({"PV": hu}, grid), "PV", SeriesDescription="arterial")
        phased = assign_phases(study(named), bundle.model("liver"))
        assert phased.readings[0].phase is Phase.ART
        assert phased.readings[0].confidence == 0.85
    phased = assign_phases(study(series(({"PV": noise}, grid), "PV")), bundle.model("liver"))
    assert codes(phased.warnings) == ["W_PHASE_ASSUMED"]


def test_property_PH08_missing_phases_are_named_and_none_stands_in_for_them():
    spec = spec_3d(
        phases=("NC", "ART", "PV", "DL"), class_names=("background", "tumor"), needs_liver=True
    )
    system = Echo(spec)
    case, _ = liver_case(("PV",), shape=(16, 75, 100))
    _, found = find_lesions(case, Model("tumor", system))
    (warning,) = [w for w in found.warnings if w.startswith("W_MISSING_PHASE: ")]
    for name in ("non-contrast", "arterial", "delayed"):
        assert f"{name}" in warning.split("and not")[1]
    assert "portal venous" in warning.split("and not")[0]
    # Every window after those that only measure cost saw the one phase there is.
    assert all(present.tolist() == [[False, False, True, False]] for _, present in system.seen)
    case, _ = liver_case(shape=(16, 75, 100))
    _, found = find_lesions(case, Model("tumor", system))
    assert "W_MISSING_PHASE" not in codes(found.warnings)


def test_property_PH08_a_network_that_needs_every_phase_refuses_one():
    spec = spec_3d(
        phases=("ART", "PV"),
        class_names=("background", "tumor"),
        needs_liver=True,
        needs_all_phases=True,
    )
    case, _ = liver_case(("PV",), shape=(16, 75, 100))
    with pytest.raises(InputRefused) as caught:
        find_lesions(case, Model("tumor", Echo(spec)))
    assert caught.value.code == "E_PHASES_REQUIRED"
    assert "ART" in str(caught.value)
    able = Model("tumor", Echo(replace(spec, needs_all_phases=False)))
    assert codes(find_lesions(case, able)[1].warnings) == ["W_MISSING_PHASE"]
