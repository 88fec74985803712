"""Which series is which phase: names, tags, timing, and what happens when nothing says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hepar.arguments import stated_phases
from hepar.errors import InputRefused, UsageError
from hepar.geometry import Grid, uncanonical
from hepar.infer.bundle import Model
from hepar.infer.phase_reading import ImageReading
from hepar.io.phase_words import phase_of_path, phase_of_text, seconds_in_text
from hepar.stages import phases as stage
from hepar.stages.harmonize import harmonize
from hepar.stages.phases import assign_phases
from hepar.study import Phase, PhasedStudy, Series, SeriesVerdict, Study, Volume


def _series(
    name: str = "",
    *,
    series_id: str = "s1",
    assigned: Phase | None = None,
    shape: tuple[int, int, int] = (6, 5, 4),
    spacing_mm: tuple[float, float, float] = (5.0, 1.0, 1.0),
    **tags: str,
) -> Series:
    volume = Volume(np.zeros(shape, np.int16), Grid.axial(shape, spacing_mm))
    verdict = SeriesVerdict(series_id, name, "usable", "read", None, name, 1)
    return Series(volume, verdict, tags, assigned)


def _study(*series: Series) -> Study:
    return Study(series, tuple(s.verdict for s in series))


@pytest.mark.parametrize(
    ("name", "phase"),
    [
        ("nc.nii.gz", Phase.NC),
        ("01_native.nii.gz", Phase.NC),
        ("CT plain.nii", Phase.NC),
        ("unenhanced", Phase.NC),
        ("PreContrast.nii.gz", Phase.NC),
        ("pre-contrast_5mm", Phase.NC),
        ("non-contrast", Phase.NC),
        ("Abdomen ohne KM 5.0", Phase.NC),
        ("Abdo sans injection", Phase.NC),
        ("native", Phase.NC),
        ("arterial_early", Phase.ART),
        ("liver_arterial_late.nii.gz", Phase.ART),
        ("art late", Phase.ART),
        ("portal_venous", Phase.PV),
        ("delayed", Phase.DL),
        ("art.nii.gz", Phase.ART),
        ("case_017_ARTERIAL_0001.nii.gz", Phase.ART),
        ("late arterial 35s", Phase.ART),
        ("late_art.nii.gz", Phase.ART),
        ("HAP 1.0", Phase.ART),
        ("Leber arteriell", Phase.ART),
        ("Foie artériel", Phase.ART),
        ("pv.nii.gz", Phase.PV),
        ("PVP", Phase.PV),
        ("portal.nii", Phase.PV),
        ("PortalVenous", Phase.PV),
        ("portal venous post contrast", Phase.PV),
        ("late portal venous", Phase.PV),
        ("Abd venous 3mm", Phase.PV),
        ("Leber portalvenös", Phase.PV),
        ("temps portal", Phase.PV),
        ("abdomen ven 70s delay", Phase.PV),
        ("dl.nii.gz", Phase.DL),
        ("Delayed 5min", Phase.DL),
        ("late", Phase.DL),
        ("equilibrium phase", Phase.DL),
        ("excretory", Phase.DL),
        ("Spätphase", Phase.DL),
        ("temps tardif", Phase.DL),
        ("study7/art/scan.nii.gz", Phase.ART),
        ("arterial_cohort/pv.nii.gz", Phase.PV),
        ("ART DL recon", Phase.ART),
        ("post.nii.gz", None),
        ("postop_CT", None),
        ("CT Abdomen with and without contrast", None),
        ("arterial portal triphasic", None),
        ("portable chest", None),
        ("intravenous contrast", None),
        ("partial", None),
        ("start", None),
        ("", None),
    ],
)
def test_closed_form_names(name: str, phase: Phase | None) -> None:
    hit = phase_of_path(name)
    assert (hit[0] if hit else None) is phase


@pytest.mark.parametrize(
    ("description", "phase"),
    [
        ("CT Abdomen w/o contrast", Phase.NC),
        ("ABD W/WO CONTRAST", None),
        ("ABD W/O and W CONTRAST", None),
        ("Abdomen arterial/venous", None),
        ("Liver W/O + ART", None),
    ],
)
def test_closed_form_descriptions_with_slashes(description: str, phase: Phase | None) -> None:
    hit = phase_of_text(description)
    assert (hit[0] if hit else None) is phase


def test_property_any_text_is_read_without_error_and_case_does_not_matter() -> None:
    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(st.text(max_size=40))
    def check(text: str) -> None:
        hit = phase_of_text(text)
        assert hit is None or hit[0] in Phase

    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(st.sampled_from(["arterial", "pv", "delayed", "native"]), st.sampled_from("_- .()/12"))
    def check_case(word: str, separator: str) -> None:
        text = f"ct{separator}{word}{separator}liver"
        assert phase_of_text(text) == phase_of_text(text.upper())
        assert phase_of_text(text) is not None

    check()
    check_case()


def test_closed_form_seconds_in_text() -> None:
    assert seconds_in_text("ABD 70s") == 70
    assert seconds_in_text("delay 35 sec") == 35
    assert seconds_in_text("5mm thick") is None
    assert seconds_in_text("35s and 70s") is None


@pytest.mark.parametrize(
    ("scan", "phase"),
    [
        ("095900", Phase.NC),
        ("100030.5", Phase.ART),
        ("100045", Phase.ART),
        ("100046", Phase.PV),
        ("100110", Phase.PV),
        ("100150", Phase.PV),
        ("100155", None),
        ("100201", Phase.DL),
        ("100500", Phase.DL),
        ("110000", None),
        ("nonsense", None),
    ],
)
def test_closed_form_timing(scan: str, phase: Phase | None) -> None:
    timed = _series("x", series_id="a", ContrastBolusStartTime="100000", AcquisitionTime=scan)
    named = _series("pv" if phase is not Phase.PV else "art", series_id="b")
    phased = assign_phases(_study(timed, named))
    by_id = {r.series_id: r.phase for r in phased.readings}
    assert by_id.get("a") is phase
    assert ("W_SERIES_UNUSED" in " ".join(phased.warnings)) == (phase is None)


def test_closed_form_timing_across_midnight() -> None:
    series = _series("x", ContrastBolusStartTime="235950", AcquisitionTime="000100")
    assert assign_phases(_study(series)).readings[0].phase is Phase.PV


def test_trust_order_and_confidences() -> None:
    user = _series("art.nii.gz", assigned=Phase.DL, SeriesDescription="portal venous")
    reading = assign_phases(_study(user)).readings[0]
    assert (reading.phase, reading.confidence) == (Phase.DL, 1.0)
    name = _series("art.nii.gz")
    assert assign_phases(_study(name)).readings[0].confidence == 0.9
    agreed = _series("art.nii.gz", SeriesDescription="Late Arterial")
    assert assign_phases(_study(agreed)).readings[0].confidence == 0.95
    tag = _series("123", SeriesDescription="PV 3mm", ProtocolName="Arterial")
    phased = assign_phases(_study(tag))
    assert (phased.readings[0].phase, phased.readings[0].confidence) == (Phase.PV, 0.85)
    agent = _series("123", ContrastBolusAgent="NONE")
    assert assign_phases(_study(agent)).readings[0].phase is Phase.NC


def test_conflict_between_text_and_timing_is_said() -> None:
    series = _series(
        "7",
        SeriesDescription="arterial",
        ContrastBolusStartTime="100000",
        AcquisitionTime="100110",
    )
    phased = assign_phases(_study(series))
    assert phased.readings[0].phase is Phase.ART
    assert phased.readings[0].confidence == pytest.approx(0.6)
    assert any(w.startswith("W_PHASE_TAG_CONFLICT: ") for w in phased.warnings)


def test_lone_series_is_the_reference_with_a_warning() -> None:
    phased = assign_phases(_study(_series("image_0001.nii.gz")))
    assert phased.reference is Phase.PV
    assert phased.readings[0].confidence == 0.2
    assert "assumed" in phased.readings[0].reason
    assert [w.split(":")[0] for w in phased.warnings] == ["W_PHASE_ASSUMED"]


def _seen(monkeypatch: pytest.MonkeyPatch, familiar: bool = True, **chances: float) -> Model:
    """Let every image be read with these probabilities."""
    given = {phase: chances.get(phase.value, 0.0) for phase in Phase}
    reading = ImageReading(given, {"aorta": 150.0}, 1.0, familiar)
    monkeypatch.setattr(stage, "_look", lambda series, model, tiling: reading)
    return Model("liver", nn.Identity())


def test_closed_form_text_and_image_are_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.85 and 0.05 a phase from the description, times the image, over their sum."""
    named = _study(_series("7", SeriesDescription="arterial"))
    reading = assign_phases(named, _seen(monkeypatch, ART=0.4, PV=0.6)).readings[0]
    assert reading.phase is Phase.ART
    assert reading.confidence == pytest.approx(0.34 / 0.37, abs=1e-3)
    assert not reading.uncertain
    assert reading.organ_hu == {"aorta": 150.0}
    # Contradicted: 0.85 x 0.04 against 0.05 x 0.96, and a conflict costs 0.25.
    phased = assign_phases(named, _seen(monkeypatch, ART=0.04, PV=0.96))
    reading = phased.readings[0]
    assert reading.phase is Phase.PV
    assert reading.confidence == pytest.approx(0.048 / 0.082 - 0.25, abs=1e-3)
    assert reading.uncertain
    assert [w.split(":")[0] for w in phased.warnings] == ["W_PHASE_TAG_CONFLICT"]
    # Not sure enough to win, still said.
    phased = assign_phases(named, _seen(monkeypatch, ART=0.09, PV=0.55, DL=0.36))
    assert phased.readings[0].phase is Phase.ART
    assert phased.readings[0].uncertain
    assert [w.split(":")[0] for w in phased.warnings] == ["W_PHASE_TAG_CONFLICT"]


def test_closed_form_the_image_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = _study(_series("7"))
    phased = assign_phases(alone, _seen(monkeypatch, DL=0.95, PV=0.05))
    assert (phased.reference, phased.readings[0].confidence) == (Phase.DL, 0.95)
    assert phased.warnings == ()
    phased = assign_phases(alone, _seen(monkeypatch, ART=0.55, PV=0.45))
    assert phased.reference is Phase.ART
    assert phased.readings[0].uncertain
    (warning,) = phased.warnings
    assert warning.startswith("W_PHASE_UNCERTAIN: ")
    assert "arterial 0.55, portal venous 0.45" in warning
    # What names no phase, or is like no scan that was ever fitted, leaves the assumption.
    for model in (
        lambda: _seen(monkeypatch, ART=0.4, PV=0.35, DL=0.25),
        lambda: _seen(monkeypatch, familiar=False, DL=1.0),
    ):
        phased = assign_phases(alone, model())
        assert phased.reference is Phase.PV
        assert [w.split(":")[0] for w in phased.warnings] == ["W_PHASE_ASSUMED"]


def test_closed_form_two_reconstructions_are_not_told_apart_by_noise_of_their_hu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The thicker one is read a little surer; the thinner is still preferred."""
    thin = _series("a", series_id="a", shape=(12, 5, 4), spacing_mm=(2.5, 1.0, 1.0))
    thick = _series("b", series_id="b")
    chance = {"a": 0.96, "b": 0.98}

    def look(series: Series, model: Model, tiling: object) -> ImageReading:
        sure = chance[series.verdict.series_id]
        given = {Phase.NC: 0.0, Phase.ART: 0.0, Phase.PV: sure, Phase.DL: 1 - sure}
        return ImageReading(given, {})

    monkeypatch.setattr(stage, "_look", look)
    phased = assign_phases(_study(thick, thin), Model("liver", nn.Identity()))
    assert [r.series_id for r in phased.readings] == ["a"]


def test_closed_form_names_for_the_flag() -> None:
    for name, phase in (
        ("ART", Phase.ART),
        ("native", Phase.NC),
        ("arterial_early", Phase.ART),
        ("arterial_late", Phase.ART),
        ("portal_venous", Phase.PV),
        ("delayed", Phase.DL),
    ):
        assert stated_phases((f"{name}=a/b.nii",)) == {phase: Path("a/b.nii")}
    for pairs in (("late=x",), ("art",), ("art=",), ("arterial_early=x", "arterial_late=y")):
        with pytest.raises(UsageError) as caught:
            stated_phases(pairs)
        assert caught.value.code == "E_USAGE"


def test_several_unknown_series_are_refused_with_a_remedy() -> None:
    with pytest.raises(InputRefused) as caught:
        assign_phases(_study(_series("a", series_id="a"), _series("b", series_id="b")))
    assert caught.value.code == "E_PHASES_UNKNOWN"
    assert "--phase pv=PATH" in caught.value.remedy
    with pytest.raises(InputRefused) as caught:
        assign_phases(_study())
    assert caught.value.code == "E_NO_IMAGE"


def test_series_without_a_phase_beside_known_ones_is_unused() -> None:
    phased = assign_phases(_study(_series("pv", series_id="a"), _series("foo", series_id="b")))
    assert set(phased.volumes) == {Phase.PV}
    verdict = next(v for v in phased.study.verdicts if v.series_id == "b")
    assert (verdict.status, verdict.code) == ("unused", "W_SERIES_UNUSED")


@pytest.mark.parametrize(
    ("other", "winner"),
    [
        ({"assigned": Phase.PV}, "b"),
        ({"shape": (40, 5, 4)}, "b"),
        ({"shape": (12, 5, 4), "spacing_mm": (2.5, 1.0, 1.0)}, "b"),
        ({"shape": (30, 5, 4), "spacing_mm": (1.0, 1.0, 1.0), "ConvolutionKernel": "B70f"}, "a"),
        ({}, "a"),
    ],
)
def test_duplicate_phase_is_settled_by_rule_in_any_order(other: dict, winner: str) -> None:
    one, two = _series("pv", series_id="a"), _series("pv", series_id="b", **other)
    for order in ((one, two), (two, one)):
        phased = assign_phases(_study(*order))
        assert [r.series_id for r in phased.readings] == [winner]
        assert any(w.startswith("W_DUPLICATE_PHASE: ") for w in phased.warnings)


def test_phases_come_in_the_fixed_order() -> None:
    names = ["dl", "art", "pv", "nc"]
    phased = assign_phases(_study(*(_series(n, series_id=n) for n in names)))
    assert list(phased.volumes) == [Phase.NC, Phase.ART, Phase.PV, Phase.DL]
    assert phased.reference is Phase.PV


def test_harmonize_flips_without_interpolation_and_keeps_the_source_grid() -> None:
    rng = np.random.default_rng(4)
    array = rng.integers(-3000, 6000, (4, 5, 6)).astype(np.int16)
    # Sagittal stack: array axes run Right, Inferior, Anterior.
    grid = Grid(array.shape, (2.0, 1.0, 0.5), (10.0, 20.0, 30.0), (-1, 0, 0, 0, 0, -1, 0, -1, 0))
    phased = PhasedStudy({Phase.PV: Volume(array, grid)}, (), _study(), {Phase.PV: grid})
    volume = harmonize(phased).volumes[Phase.PV]
    assert volume.array.dtype == np.int16
    assert volume.array.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(uncanonical(volume.array, grid), np.clip(array, -1024, 3071))
    np.testing.assert_allclose(volume.grid.matrix, Grid.axial((1, 1, 1), (1, 1, 1)).matrix)
    assert harmonize(phased).source_grids[Phase.PV] is grid


def test_harmonize_makes_int16_of_floats_and_not_a_number_into_air() -> None:
    array = np.array([[[1.6, np.nan, -np.inf, 9e9]]], dtype=np.float32)
    grid = Grid.axial(array.shape, (1.0, 1.0, 1.0))
    phased = PhasedStudy({Phase.PV: Volume(array, grid)}, (), _study(), {Phase.PV: grid})
    out = harmonize(phased).volumes[Phase.PV].array
    np.testing.assert_array_equal(out, np.array([[[2, -1024, -1024, 3071]]], np.int16))
