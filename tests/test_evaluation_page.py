"""The page of `hepar evaluate`: the document's numbers and nothing but them, and plots in place."""

from __future__ import annotations

import math
import re
from copy import deepcopy
from html.parser import HTMLParser
from itertools import pairwise
from time import process_time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation_document import evaluation_document
from hepar.render.axis import linear, logarithmic, ranks, spread
from hepar.render.case_plots import (
    LANE,
    LANE_GAP,
    LONGEST_LABEL,
    Case,
    Quantity,
    Volumes,
    bland_altman,
    per_case,
    signed,
)
from hepar.render.evaluation import (
    WORST_CASES,
    case_sections,
    headline,
    lesion_plots,
    notes,
    render_evaluation,
    type_plots,
    worst_first,
)
from hepar.render.plots import BOTTOM, CHARACTER, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Plot
from hepar.render.rate_plots import froc, recall_by_size, reliability, roc
from hepar.study import LESION_TYPES

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7 * 7 }} & <b>'
PERCENT = {"voe", "rvd", "rvd_abs"}
# Shown both as a share and, in a tile, as a percentage.
EITHER = {"lesions.rules.0.recall", "specificity.specificity"}
MEASURES = (
    *("dice", "surface_dice", "voe", "rvd", "rvd_abs"),
    *("assd_mm", "rmsd_mm", "hd_mm", "hd95_mm"),
)
DICE = Quantity("Dice", "", 3, "low")
ASSD = Quantity("ASSD", "mm", 2, "high", second="HD95")
INNER = WIDTH - LEFT - RIGHT
FLOOR = HEIGHT - BOTTOM


class Page(HTMLParser):
    """Tags, attributes, `<data>` elements and the text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.data: list[list[str]] = []
        self.text = ""
        self._inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._inside.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "data":
            found = dict(attrs)
            self.data.append([found["data-key"], found["value"], ""])

    def handle_endtag(self, tag):
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, text):
        if self._inside and self._inside[-1] == "style":
            return
        self.text += text
        if self._inside and self._inside[-1] == "data":
            self.data[-1][2] += text


@pytest.fixture(scope="module")
def full() -> dict[str, Any]:
    return evaluation_document(12, lesions=True, types=True, seed=1)


def at(document: Any, key: str) -> Any:
    """What lies at a path whose names may hold dots, e.g. `recall_at.0.125`."""
    if not key:
        return document
    if isinstance(document, list):
        first, _, rest = key.partition(".")
        return at(document[int(first)], rest)
    name = next(n for n in sorted(document, key=len, reverse=True) if f"{key}.".startswith(f"{n}."))
    return at(document[name], key[len(name) + 1 :])


def plots_of(document: dict[str, Any]) -> list[Plot]:
    found = [panel.plot for section in case_sections(document) for panel in section.panels]
    if document["lesions"]:
        found += lesion_plots(document["lesions"]).values()
    if document["types"]:
        found += type_plots(document["types"]).values()
    return [plot for plot in found if plot is not None]


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_oracle_every_number_on_the_page_is_that_of_the_document(full):
    document = deepcopy(full)
    measures = document["structures"]["tumor"]["measures"]
    measures["rvd_abs"]["penalised"]["n_capped"] = 3
    measures["dice"]["penalised"] |= {"n": 9, "n_missed": 5, "n_undefined": 7, "n_detected": 4}
    shown = Page(render_evaluation(document)).data
    for key, value, text in shown:
        expected = at(document, key)
        assert float(value) == expected, key
        plain = text.replace("\N{MINUS SIGN}", "-")
        half = 0.5 * 10.0 ** -len(plain.partition(".")[2]) * (1 + 1e-9)
        percent = isinstance(expected, float) and not PERCENT.isdisjoint(key.split("."))
        scales = (1, 100) if key in EITHER else (100,) if percent else (1,)
        assert any(abs(float(plain) - scale * expected) <= half for scale in scales), (key, text)
    keys = {key for key, _, _ in shown}
    for s in ("liver", "tumor"):
        for measure in MEASURES:
            path = f"structures.{s}.measures.{measure}"
            parts = ("mean", "std", "interval.0", "interval.1", "n", "n_missed", "n_undefined")
            for part in (*parts, "detected_mean", "n_detected"):
                assert f"{path}.penalised.{part}" in keys
            assert {f"{path}.paper.mean", f"{path}.lits.mean"} <= keys
        assert {f"structures.{s}.outcomes.{o}" for o in ("both", "missed", "false")} <= keys
    assert "structures.tumor.measures.rvd_abs.penalised.n_capped" in keys
    assert {f"lesions.classes.confusion.{i}.{j}" for i in range(8) for j in range(8)} <= keys
    assert {f"lesions.rules.{k}.{part}" for k in range(5) for part in ("recall", "f1")} <= keys
    assert {"tumor_burden.rmse", "types.auc_8.value", "types.calibration.ece"} <= keys
    assert {
        f"lesions.froc.recall_at.{rate}" for rate in full["lesions"]["froc"]["recall_at"]
    } <= keys
    assert {f"cases.{k}.liver_hd95_mm" for k in range(12)} <= keys


def test_closed_form_capped_cases_are_said(full):
    assert "counts as 100 %" not in Page(render_evaluation(full)).text.replace("VOE as 100 %", "")
    document = deepcopy(full)
    document["structures"]["tumor"]["measures"]["rvd_abs"]["penalised"]["n_capped"] = 3
    text = one_line(Page(render_evaluation(document)).text)
    assert "|RVD| above 100 % counts as 100 % in this mean (3 cases of the tumor)" in text


def test_closed_form_the_lead_says_how_well_and_what_was_left_out():
    document = evaluation_document(1)
    for name, mean, n, undefined, missed, false in (
        ("liver", 0.9534, 40, 0, 0, 0),
        ("tumor", 0.6117, 37, 3, 4, 2),
    ):
        structure = document["structures"][name]
        structure["outcomes"] |= {"missed": missed, "false": false}
        structure["measures"]["dice"]["penalised"] |= {
            "mean": mean,
            "n": n,
            "n_undefined": undefined,
        }
    assert headline(document) == (
        "Liver Dice 0.953 over 40 cases, none missed. Tumor Dice 0.612 over 37 cases, counting "
        "4 missed and 2 false as 0; 3 left out, with no tumor in either mask."
    )


def test_closed_form_none_is_a_dash_and_absent_tumors_are_said():
    document = evaluation_document(3, seed=0)
    outcomes = {"both": 0, "missed": 0, "false": 0, "empty": 3}
    nothing = {
        **dict.fromkeys(("mean", "std", "interval", "detected_mean")),
        **dict.fromkeys(("n", "n_missed", "n_capped", "n_detected"), 0),
        "n_undefined": 3,
    }
    tumor = document["structures"]["tumor"]
    tumor |= {"outcomes": outcomes, "dice_global": None}
    tumor["measures"] = {
        m: dict.fromkeys(("penalised", "paper", "lits"), nothing) for m in MEASURES
    }
    for case in document["cases"]:
        empty = {key: None for key in case if key.startswith("tumor_") and not key.endswith("_ml")}
        case |= empty | {"tumor_outcome": "empty"}
        case |= dict.fromkeys(("tumor_predicted_ml", "tumor_reference_ml"), 0.0)
    html = render_evaluation(document)
    text = Page(html).text
    assert "No case has a tumor in either mask." in text
    assert not re.search(r"\b(None|nan|NaN|inf)\b", html)
    assert text.count("No case to draw.") == 3
    assert '<td class="num main"><span class="none">&ndash;</span></td>' in html


def test_property_hostile_text_stays_text():
    document = evaluation_document(9, lesions=True, types=True, seed=5, predictions=HOSTILE)
    document |= {
        "truth": HOSTILE,
        "hepar_version": HOSTILE,
        "warnings": [f"W_X: {HOSTILE}", HOSTILE],
    }
    for k, case in enumerate(document["cases"]):
        case |= {"case_id": f"{k} {HOSTILE}", "patient_id": HOSTILE}
    document["lesions"]["rules"][0]["name"] = HOSTILE
    document["lesions"]["classes"]["names"][2] = HOSTILE
    types = document["types"]
    types |= {"score": HOSTILE}
    types["auc"][HOSTILE] = types["auc"].pop("hcc")
    types["roc"][HOSTILE] = types["roc"].pop("hcc")
    types["auc_8"]["undefined"] = [HOSTILE]
    found = Page(render_evaluation(document))
    assert not set(found.tags) & {"script", "b", "img", "iframe", "object", "link"}
    assert not [name for _, name, _ in found.attributes if name.startswith("on")]
    assert "49" not in found.text.split("alert(2)")[1][:12]
    titles = [key for key in found.tags if key == "title"]
    assert len(titles) > 9
    # Twice each in the plots' words and once in the table, beside the other places.
    assert found.text.lower().count("<script>alert(1)</script>") >= 9 * 3 + 8
    assert "&amp;lt;" not in render_evaluation(document)


def test_closed_form_the_page_needs_nothing_else_and_prints_on_a4(full):
    html = render_evaluation(full)
    for outside in (
        "http:",
        "https:",
        "url(",
        "@import",
        "file:",
        "<script",
        "<link",
        "<img",
        "src=",
    ):
        assert outside not in html
    assert "default-src 'none'; style-src 'unsafe-inline'" in html
    assert "@page { size: A4" in html
    assert "Not a medical device" in html


def test_property_the_same_document_gives_the_same_bytes(full):
    before = deepcopy(full)
    assert render_evaluation(full) == render_evaluation(deepcopy(full))
    assert full == before


def test_closed_form_a_thousand_cases_are_fast_and_small():
    document = evaluation_document(1000, lesions=True, types=True)
    # Processor time, the better of two: other work on the machine is not counted.
    seconds = []
    for _ in range(2):
        begin = process_time()
        html = render_evaluation(document)
        seconds.append(process_time() - begin)
    assert min(seconds) < 2.0
    assert len(html.encode()) < 2_000_000
    assert html.count("<circle") > 3000


def test_closed_form_the_worst_hundred_of_many_cases_and_it_is_said():
    document = evaluation_document(201, seed=4)
    text = one_line(Page(render_evaluation(document)).text)
    assert "The worst 100 of 201 cases" in text
    rows = worst_first(document["cases"])
    assert len(rows) == WORST_CASES
    assert len(worst_first(document["cases"][:200])) == 200
    assert all(document["cases"][k] is case for k, case in rows)
    scores = [case["tumor_dice"] for _, case in rows]
    assert scores == sorted(scores)
    assert scores[0] == 0.0


def test_closed_form_of_equal_cases_the_larger_tumor_first_and_empty_ones_last():
    def case(outcome: str, dice: float | None, reference_ml: float) -> dict[str, Any]:
        return {
            "tumor_outcome": outcome,
            "tumor_dice": dice,
            "tumor_predicted_ml": 0.0,
            "tumor_reference_ml": reference_ml,
            "liver_outcome": "both",
            "liver_dice": 0.9,
        }

    cases = [
        case("empty", None, 0.0),
        case("both", 0.5, 9.0),
        case("missed", None, 1.0),
        case("missed", 0.0, 7.0),
    ]
    assert [k for k, _ in worst_first(cases)] == [3, 2, 1, 0]


def test_closed_form_what_was_not_computed_names_its_flag():
    text = Page(render_evaluation(evaluation_document(5))).text
    assert "--lesions" in text
    assert "--types" in text
    assert "FROC" not in text
    full = Page(render_evaluation(evaluation_document(5, lesions=True, types=True))).text
    assert "--lesions" not in full
    assert "--types" not in full


def test_property_optional_parts_may_be_absent(full):
    document = deepcopy(full)
    for key in ("warnings", "specificity", "tumor_burden"):
        del document[key]
    for structure in document["structures"].values():
        del structure["measures"]["surface_dice"]
        del structure["measures"]["rmsd_mm"]
    document["lesions"] |= {"froc": None, "classes": None}
    document["types"]["calibration"] = None
    text = Page(render_evaluation(document)).text
    assert "RMSD, mm" not in text
    assert "No FROC curve" in text
    assert "Brier score 0" not in text
    for key in ("lesions", "types"):
        del document[key]
    assert "--lesions" in Page(render_evaluation(document)).text


def test_closed_form_lesions_left_uncertain_have_a_column(full):
    assert "lesions.classes.uncertain.0" not in {
        k for k, _, _ in Page(render_evaluation(full)).data
    }
    document = deepcopy(full)
    document["lesions"]["classes"] |= {"uncertain": [3] * 8, "false_uncertain": 5}
    keys = {k for k, _, _ in Page(render_evaluation(document)).data}
    assert {"lesions.classes.uncertain.7", "lesions.classes.false_uncertain"} <= keys


def test_closed_form_what_to_mistrust():
    few = notes(evaluation_document(4, seed=2))
    assert few[0].startswith("With 4 patients")
    document = evaluation_document(100, seed=2)
    many = notes(document)
    sided = document["structures"]["tumor"]["measures"]["assd_mm"]["penalised"]["n_missed"]
    assert len(many) == 1
    assert f"the tumor hold {sided} cases with one empty mask" in many[0]
    document["specificity"]["tumor_free_patients"] = 0
    assert "free of tumors" in notes(document)[1]


finite = st.floats(-1e9, 1e9, allow_nan=False)


@given(st.lists(finite, min_size=1, max_size=20))
def test_property_linear_ticks_are_few_even_and_cover_the_values(values):
    axis = linear(values, 200.0, 20.0)
    ticks = [value for value, _ in axis.ticks]
    assert 2 <= len(ticks) <= 7
    np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0], rtol=1e-6)
    slack = 1e-6 * (ticks[-1] - ticks[0])
    assert ticks[0] - slack <= min(values)
    assert max(values) <= ticks[-1] + slack
    assert len({text for _, text in axis.ticks}) == len(ticks)
    places = [axis.at(v) for v in sorted(values)]
    assert all(20.0 <= p <= 200.0 for p in places)
    assert all(a >= b - 1e-6 for a, b in pairwise(places))


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=20).filter(lambda v: max(v) > 1e-6))
def test_property_logarithmic_axes_cover_a_millionth_of_the_largest(values):
    axis = logarithmic(values, 10.0, 300.0)
    kept = [v for v in values if v >= max(values) / 1e6]
    assert axis.low <= min(kept) * (1 + 1e-6)
    assert axis.high >= max(values) * (1 - 1e-6)
    assert 2 <= len(axis.ticks) <= 11
    assert axis.at(0.0) == 10.0
    assert axis.at(axis.high) == pytest.approx(300.0)
    middle = math.sqrt(axis.low * axis.high)
    assert axis.at(middle) == pytest.approx(155.0)


def test_closed_form_ticks_are_those_a_person_would_choose():
    assert [t for _, t in linear([0.0, 1.0], 0, 1).ticks] == [
        "0.0",
        "0.2",
        "0.4",
        "0.6",
        "0.8",
        "1.0",
    ]
    assert [t for _, t in linear([-40, 57], 0, 1).ticks] == [
        *("\N{MINUS SIGN}40", "\N{MINUS SIGN}20", "0", "20", "40", "60"),
    ]
    assert [v for v, _ in linear([1.0, 1.0], 0, 1, within=(0.0, 1.0)).ticks][-1] == 1.0
    assert [v for v, _ in logarithmic([0.3, 80], 0, 1).ticks] == [
        0.2,
        0.5,
        1,
        2,
        5,
        10,
        20,
        50,
        100,
    ]
    assert [t for _, t in logarithmic([0.02, 800], 0, 1).ticks] == ["0.1", "1", "10", "100", "1000"]
    assert [t for _, t in ranks(300, 0, 1).ticks] == ["1", "50", "100", "150", "200", "250", "300"]
    assert [t for _, t in ranks(1, 0, 1).ticks] == ["1"]
    assert ranks(4, 0.0, 80.0).at(2) == pytest.approx(30.0)
    axis = linear([0.0, 1.0], 200.0, 20.0)
    assert [axis.at(v) for v in (-3.0, 0.25, 7.0)] == pytest.approx([200.0, 155.0, 20.0])


def test_closed_form_crowded_words_are_moved_apart_around_the_middle():
    assert spread([10.0, 50.0, 90.0], 13) == [10.0, 50.0, 90.0]
    assert spread([48.0, 50.0, 52.0], 13) == [37.0, 50.0, 63.0]
    assert spread([50.0], 13) == [50.0]


def test_closed_form_cases_stand_by_rank_at_their_value():
    cases = [Case("a", "both", 0.8), Case("b", "both", 0.2), Case("c", "both", 0.4)]
    plot = per_case("Dice", cases, DICE, average=0.5)
    assert plot is not None
    assert [mark.title for mark in plot.marks] == [
        "b: Dice 0.200",
        "c: Dice 0.400",
        "a: Dice 0.800",
    ]
    np.testing.assert_allclose([m.x for m in plot.marks], LEFT + INNER * np.array([1, 3, 5]) / 6)
    np.testing.assert_allclose(
        [m.y for m in plot.marks], FLOOR - (FLOOR - TOP) * np.array([0.2, 0.4, 0.8])
    )
    level = f"{(FLOOR + TOP) / 2:.1f}"
    assert [line.points for line in plot.lines] == [f"{LEFT},{level} {WIDTH - RIGHT},{level}"]


def test_closed_form_misses_lie_beyond_the_scale_and_empty_cases_are_named():
    cases = [
        *(Case("a", "both", 3.0, 12.0), Case("b", "false", None), Case("c", "both", 30.0, 300.0)),
        *(Case("d", "missed", None), Case("e", "empty", None), Case("f", "both", None)),
    ]
    for quantity, sign in ((ASSD, 1), (DICE, -1)):
        scaled = [Case(c.case_id, c.outcome, c.value and c.value / 30) for c in cases]
        plot = per_case("", cases if sign == 1 else scaled, quantity)
        assert plot is not None
        order = [mark.title.partition(":")[0] for mark in plot.marks if mark.shape != "light"]
        assert order == (["d", "b", "c", "a"] if sign == 1 else ["d", "b", "a", "c"])
        assert plot.left_out == ("e", "f")
        (missed,), (false,) = plot.shaped("missed"), plot.shaped("false")
        assert false.y - missed.y == LANE
        edge = plot.y.end if sign == 1 else plot.y.start
        assert min(abs(missed.y - edge), abs(false.y - edge)) == LANE_GAP + LANE / 2
        assert TOP < missed.y < false.y < FLOOR
    plot = per_case("", cases, ASSD)
    assert plot is not None
    assert plot.y.log
    assert [mark.title for mark in plot.shaped("light")] == [
        "c: HD95 300.00 mm",
        "a: HD95 12.00 mm",
    ]
    height = plot.y.start - plot.y.end
    share = math.log(12 / plot.y.low) / math.log(plot.y.high / plot.y.low)
    assert plot.shaped("light")[1].y == pytest.approx(plot.y.start - share * height)


@pytest.mark.parametrize("n", [1, 5, 12, 24, 25, 100, 1000])
def test_property_case_names_are_written_only_where_they_fit(n):
    cases = [Case(f"patient-{k:05d}-portal", "both", 0.5) for k in range(n)]
    plot = per_case("", cases, DICE)
    assert plot is not None
    names = [label for label in plot.labels if label.text.startswith("\N{HORIZONTAL ELLIPSIS}")]
    assert len(names) == (n if n <= 24 else 0)
    assert bool(plot.x.ticks) == (n > 24)
    assert all(len(label.text) == LONGEST_LABEL for label in names)
    assert all(b.x - a.x >= 15.0 or a.angle == 0 for a, b in pairwise(names))
    for label in names:
        reach = CHARACTER * len(label.text)
        if label.angle:
            assert label.x - reach * math.sqrt(0.5) > 0
            assert label.y + reach * math.sqrt(0.5) < plot.height - 12
        else:
            assert reach < INNER / n


def test_oracle_limits_of_agreement_are_bias_and_196_sd():
    rng = np.random.default_rng(3)
    reference = rng.uniform(50, 100, 30)
    predicted = reference + rng.normal(4, 6, 30)
    cases = [
        Volumes(str(k), "both", p, r)
        for k, (p, r) in enumerate(zip(predicted.tolist(), reference.tolist(), strict=True))
    ]
    plot = bland_altman("", [*cases, Volumes("none", "empty", 0.0, 0.0)])
    assert plot is not None
    gap = predicted - reference
    margin = 1.96 * gap.std(ddof=1)
    np.testing.assert_allclose(plot.limits, [gap.mean(), gap.mean() - margin, gap.mean() + margin])
    assert plot.left_out == ("none",)
    x, y = plot.x, plot.y
    for mark, p, r in zip(plot.marks, predicted, reference, strict=True):
        across = (((p + r) / 2) - x.low) / (x.high - x.low)
        assert mark.x == pytest.approx(x.start + across * (x.end - x.start))
        up = ((p - r) - y.low) / (y.high - y.low)
        assert mark.y == pytest.approx(y.start - up * (y.start - y.end))
    heights = [float(line.points.partition(",")[2].partition(" ")[0]) for line in plot.lines]
    np.testing.assert_allclose(
        heights, [y.at(v) for v in (0.0, plot.limits[1], plot.limits[0], plot.limits[2])], atol=0.06
    )


def test_closed_form_one_volume_has_a_bias_and_no_limits_and_wide_ones_a_log_axis():
    plot = bland_altman("", [Volumes("a", "missed", 0.0, 8.0)])
    assert plot is not None
    assert plot.limits == (-8.0, None, None)
    assert [mark.shape for mark in plot.marks] == ["missed"]
    wide = bland_altman("", [Volumes("a", "both", 1.0, 1.0), Volumes("b", "both", 99.0, 101.0)])
    assert wide is not None
    assert wide.x.log
    assert (wide.x.low, wide.x.high) == (1.0, 100.0)
    assert wide.marks[0].x == LEFT
    assert signed(-0.04) == "\N{MINUS SIGN}0.040"
    assert [signed(v) for v in (0.0, 1234.5, 12.34, 1.2)] == ["0", "+1234", "+12.3", "+1.20"]


def test_closed_form_recall_by_size():
    bins = [
        {
            "low_ml": 0.0,
            "high_ml": 1.0,
            "found": 1,
            "total": 4,
            "recall": 0.25,
            "interval": [0, 0.5],
        },
        {"low_ml": 1.0, "high_ml": 5.0, "found": 0, "total": 0, "recall": None, "interval": None},
        {"low_ml": 5.0, "high_ml": None, "found": 7, "total": 7, "recall": 1.0, "interval": None},
    ]
    plot = recall_by_size("", bins)
    assert plot is not None
    words = [label.text for label in plot.labels]
    sizes = ["< 1", "1 of 4", "1 to 5", "none", "\N{GREATER-THAN OR EQUAL TO} 5", "7 of 7"]
    assert words == sizes
    small, large = plot.bars
    floor = plot.y.start
    assert small.height == pytest.approx(0.25 * (floor - TOP))
    assert small.y + small.height == pytest.approx(floor)
    assert small.ends == pytest.approx((floor, floor - 0.5 * (floor - TOP)))
    assert large.ends is None
    assert small.x + small.width / 2 == pytest.approx(LEFT + INNER / 6)
    assert large.y == pytest.approx(TOP)


def test_closed_form_froc_doubles_from_tick_to_tick():
    points = [
        {"threshold": 0.1, "false_per_patient": 8.0, "recall": 1.0},
        {"threshold": 0.9, "false_per_patient": 0.0, "recall": 0.25},
        {"threshold": 0.5, "false_per_patient": 1.0, "recall": 0.5},
    ]
    plot = froc("", points)
    assert plot is not None
    assert [text for _, text in plot.x.ticks] == ["1/8", "1/4", "1/2", "1", "2", "4", "8"]
    np.testing.assert_allclose([m.x for m in plot.marks], [LEFT, LEFT + INNER / 2, LEFT + INNER])
    np.testing.assert_allclose(
        [m.y for m in plot.marks], FLOOR - (FLOOR - TOP) * np.array([0.25, 0.5, 1.0])
    )
    flood = froc("", [{"threshold": 0.0, "false_per_patient": 900.0, "recall": 1.0}])
    assert flood is not None
    assert flood.x.high == 1024
    assert len(flood.x.ticks) <= 9
    assert froc("", []) is None


def test_closed_form_roc_draws_only_defined_classes_with_their_area():
    curves = {"hcc": [[0.0, 0.0], [0.25, 1.0], [1.0, 1.0]], "icc": [], "cyst": [[0, 0], [1, 1]]}
    keys = {
        "hcc": ("c0", "HCC", "0.875"),
        "icc": ("c1", "ICC", "-"),
        "cyst": ("c5", "Cyst", "0.500"),
    }
    plot = roc("", curves, keys)
    assert plot is not None
    x, y = plot.x, plot.y
    assert x.end - x.start == y.start - y.end
    drawn = [line for line in plot.lines if line.kind == "rate c0"]
    corner = f"{x.start + (x.end - x.start) / 4:.1f},{y.end:.1f}"
    assert drawn[0].points.split()[1] == corner
    assert [label.text for label in plot.labels] == ["AUC", "HCC", "0.875", "Cyst", "0.500"]
    assert roc("", {"icc": []}, keys) is None
    calcification = roc("", {"a": [[0, 0], [1, 1]]}, {"a": ("c6", "Calcification", "0.500")})
    assert calcification is not None
    _, word, area = calcification.labels
    assert word.x + CHARACTER * len(word.text) <= area.x - CHARACTER * len(area.text)
    document = evaluation_document(40, types=True, seed=9)
    shown = type_plots(document["types"])["ROC by type"]
    assert shown is not None
    words = {label.text for label in shown.labels}
    assert f"{document['types']['auc']['fnh']['auc']:.3f}" in words
    assert "Calcification" not in words


def test_closed_form_reliability_bins_stand_where_they_are():
    bins = [
        {"low": 0.0, "high": 0.5, "n": 30, "mean_probability": 0.2, "observed": 0.1},
        {"low": 0.5, "high": 0.99, "n": 0, "mean_probability": None, "observed": None},
        {"low": 0.99, "high": 1.0, "n": 5000, "mean_probability": 0.995, "observed": 1.0},
    ]
    plot = reliability("", bins)
    assert plot is not None
    # The last bin is too narrow for its count, which its title holds.
    assert [label.text for label in plot.labels] == ["n", "30"]
    assert plot.bars[1].title.endswith("n 5000")
    low, high = plot.marks
    assert low.x == pytest.approx(LEFT + 0.2 * INNER)
    assert low.y == pytest.approx(plot.y.start - 0.1 * (plot.y.start - plot.y.end))
    assert high.y == plot.y.end
    assert reliability("", bins[1:2]) is None


@pytest.mark.parametrize("value", [0.0, 1.0, 0.37])
def test_property_equal_values_and_no_cases_do_not_break(value):
    cases = [Case(str(k), "both", value, value) for k in range(7)]
    for quantity in (DICE, ASSD):
        plot = per_case("", cases, quantity, average=value)
        assert plot is not None
        assert len({mark.y for mark in plot.marks}) == 1
        assert len(plot.y.ticks) >= 2
        assert per_case("", [], quantity) is None
        assert per_case("", [Case("a", "empty", None)], quantity) is None
        assert per_case("", [Case("a", "missed", None)], quantity) is not None
    same = bland_altman("", [Volumes(str(k), "both", 5.0, 5.0) for k in range(4)])
    assert same is not None
    assert same.limits == (0.0, 0.0, 0.0)
    assert bland_altman("", []) is None
    assert bland_altman("", [Volumes("a", "empty", 0.0, 0.0)]) is None
    assert recall_by_size("", []) is None


@pytest.mark.parametrize("outlier", [0.0, 1e-7, 1e6, 1e12])
def test_property_outliers_stay_in_the_frame_and_the_page_renders(outlier):
    document = evaluation_document(15, seed=7)
    case = next(c for c in document["cases"] if c["tumor_outcome"] == "both")
    case |= {"tumor_assd_mm": outlier, "tumor_hd95_mm": outlier, "tumor_predicted_ml": outlier}
    for plot in plots_of(document):
        for mark in plot.marks:
            assert LEFT <= mark.x <= WIDTH - RIGHT
            assert TOP <= mark.y <= plot.bottom
    assert "nan" not in render_evaluation(document)


@pytest.mark.parametrize("n", [1, 2, 12, 300, 1000])
def test_property_words_and_marks_lie_inside_the_picture(n):
    """Width of words as in the widest common screen font."""
    document = evaluation_document(n, lesions=True, types=True, seed=n)
    plots = plots_of(document)
    assert len(plots) >= 9 if n > 2 else plots
    for plot in plots:
        for label in plot.labels:
            reach = CHARACTER * len(label.text)
            left = {"start": 0.0, "middle": reach / 2, "end": reach}[label.anchor]
            if not label.angle:
                assert label.x - left >= -1.0, label
                assert label.x - left + reach <= plot.width + 1.0, label
            assert 0 < label.y < plot.height
        for x, text in plot.x.marked:
            assert x + CHARACTER * len(text) / 2 <= plot.width + 1.0
        for _, text in plot.y.marked:
            assert CHARACTER * len(text) <= LEFT - 7
        for (a, first), (b, second) in pairwise(plot.x.marked):
            assert b - a >= CHARACTER * (len(first) + len(second)) / 2
        below = [abs(a - b) for (a, _), (b, _) in pairwise(plot.y.marked)]
        assert min(below, default=99) >= 12.0


def test_property_types_have_names_and_lines_of_their_own():
    document = evaluation_document(60, lesions=True, types=True, seed=8)
    html = render_evaluation(document)
    style = html.partition("</style>")[0]
    for k in range(len(LESION_TYPES)):
        assert re.search(rf"\.c{k} \{{ --c: #", style)
    assert "Hemangioma" in html
    assert ">hemangioma<" not in html
