"""The viewer in a browser: a click leads to the lesion, which is drawn where the CT shows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from browser import Tab, browser
from hepar.render.viewer import SCRIPTS
from hepar.stages.report import write_report
from hepar.study import Findings
from liver_case import LESION_HU, SOURCE_SPACING_MM, liver_case
from test_viewer import findings_of, tilted_case
from web_client import served, zipped

pytestmark = pytest.mark.full

GREEN, ORANGE = (45, 212, 191), (255, 122, 26)


@dataclass(frozen=True)
class Opened:
    """A viewer in a tab, and what it shows."""

    tab: Tab
    findings: Findings
    folder: Path


@pytest.fixture(scope="module")
def tab(tmp_path_factory) -> Iterator[Tab]:
    if not SCRIPTS[0].is_file():
        pytest.skip("NiiVue was not fetched: `make viewer` does it where npm is")
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


def written(folder: Path, case, lesions) -> Findings:
    findings = findings_of(case, lesions)
    write_report(findings, case, lesions, folder, viewer=True)
    return findings


@pytest.fixture(scope="module")
def opened(tab, tmp_path_factory) -> Opened:
    """Two lesions in a liver on the patient's right, without noise."""
    folder = tmp_path_factory.mktemp("viewer")
    findings = written(folder, *liver_case(noise_hu=0.0))
    tab.open(f"file://{folder}/viewer.html")
    return Opened(tab, findings, folder)


def cross_hair(tab: Tab) -> list[float]:
    """LPS in mm, as the page says it."""
    return [float(v) for v in tab.ask("document.getElementById('place').dataset.lps").split()]


def said_hu(tab: Tab) -> list[float]:
    words = tab.ask("[...document.querySelectorAll('figcaption span')].map(s => s.textContent)")
    return [float(word.removesuffix(" HU").replace("\N{MINUS SIGN}", "-")) for word in words]


def pane(tab: Tab, number: int) -> np.ndarray:
    """What is seen of a pane: `(rows, columns, 3)` float."""
    left, top, width, height = (round(v) for v in tab.place(f"figure:nth-of-type({number})"))
    return tab.picture()[top : top + height, left : left + width].astype(float)


def like(picture: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Pixels of a hue, however bright."""
    hue = np.array(color) - np.mean(color)
    seen = picture - picture.mean(axis=2, keepdims=True)
    length = np.linalg.norm(seen, axis=2)
    return (seen @ hue > 0.95 * np.linalg.norm(hue) * length) & (length > 25)


@pytest.mark.parametrize(("number", "how"), [(2, "click"), (1, "key"), (2, "key"), (1, "click")])
def test_closed_form_a_row_leads_to_its_lesion(opened, number, how):
    row = f"tbody tr:nth-of-type({number})"
    if how == "click":
        opened.tab.click(f"{row} td.num")
    else:
        opened.tab.ask(f"document.querySelector('{row} button').focus()")
        opened.tab.press("Enter")
    center = opened.findings.lesions[number - 1].centroid_mm
    half = np.array(SOURCE_SPACING_MM[::-1]) / 2
    assert (np.abs(np.subtract(cross_hair(opened.tab), center)) <= half + 0.06).all()
    assert opened.tab.ask(f"document.querySelector('{row}').getAttribute('aria-current')") == "true"
    hu = list(LESION_HU[number - 1].values())
    assert np.abs(np.subtract(said_hu(opened.tab), hu)).max() <= 1


def test_oracle_a_lesion_is_drawn_where_the_ct_shows_it(opened):
    opened.tab.click("tbody tr:nth-of-type(2)")
    with_labels = pane(opened.tab, 1)
    rows, columns = np.nonzero(like(with_labels, ORANGE))
    assert like(with_labels, GREEN).sum() > 100
    assert len(rows) > 100
    # Without labels the cyst is the dark place in the liver of the CT.
    opened.tab.click("#liver")
    opened.tab.click("#lesions")
    plain = pane(opened.tab, 1)
    opened.tab.click("#liver")
    opened.tab.click("#lesions")
    assert not like(plain, ORANGE).any()
    assert not like(plain, GREEN).any()
    gray = plain.mean(axis=2)
    inside = np.zeros(gray.shape, dtype=bool)
    inside[rows.min() - 20 : rows.max() + 20, columns.min() - 20 : columns.max() + 20] = True
    bright = np.median(gray[inside])
    dark = np.nonzero(inside & (gray < bright - 15) & (plain.std(axis=2) < 5))
    for seen, drawn in zip(dark, (rows, columns), strict=True):
        assert abs((seen.min() + seen.max()) / 2 - (drawn.min() + drawn.max()) / 2) < 4
        assert abs(np.ptp(seen) - np.ptp(drawn)) < 8


def test_closed_form_the_patients_right_is_on_the_left(opened):
    """Lesion 1 lies to the right and in front of lesion 2; the spine behind and to the left."""
    at = []
    for number in (1, 2):
        opened.tab.click(f"tbody tr:nth-of-type({number})")
        picture = pane(opened.tab, 3)
        at.append([np.mean(one) for one in np.nonzero(like(picture, ORANGE))])
    centers = [lesion.centroid_mm for lesion in opened.findings.lesions]
    assert centers[0][0] < centers[1][0]
    assert centers[0][1] < centers[1][1]
    assert at[0][1] < at[1][1]
    assert at[0][0] < at[1][0]
    spine = np.nonzero(picture.min(axis=2) > 250)
    assert spine[0].mean() > picture.shape[0] / 2
    assert spine[1].mean() > picture.shape[1] / 2


def test_closed_form_panes_scroll_together_and_share_the_window(opened):
    tab = opened.tab
    tab.click("tbody tr:nth-of-type(1)")
    before = cross_hair(tab)
    x, y, width, height = tab.place("figure:nth-of-type(2) canvas")
    at = {"x": x + width / 2, "y": y + height / 2}
    tab.call("Input.dispatchMouseEvent", type="mouseWheel", deltaX=0, deltaY=100, **at)
    tab.picture()
    after = cross_hair(tab)
    assert abs(after[2] - before[2]) == pytest.approx(SOURCE_SPACING_MM[0], abs=0.02)
    tab.ask("(w => { w.selectedIndex = 1; w.onchange(); })(document.getElementById('window'))")
    # HU of the liver in NC, ART, PV and DL in a window of 15 to 165.
    tab.click("#liver")
    tab.click("#lesions")
    for number, hu in enumerate((55, 70, 112, 92), start=1):
        gray = np.median(pane(tab, number)[230:270, 200:250])
        assert gray == pytest.approx(255 * (hu - 15) / 150, abs=6)
    tab.click("#liver")
    tab.click("#lesions")


def test_closed_form_the_page_asks_for_nothing(opened):
    outside = [one for one in opened.tab.requests if not one.startswith(("data:", "blob:"))]
    assert {one for one in outside if one.startswith("file:")} == set(outside)
    assert all(one.endswith("/viewer.html") for one in outside)
    assert opened.tab.complaints == []


def test_oracle_a_tilted_scan_keeps_its_places(tab, tmp_path):
    case, lesions = tilted_case()
    findings = written(tmp_path, case, lesions)
    tab.open(f"file://{tmp_path}/viewer.html")
    grid = case.aligned.grid
    for number, lesion in enumerate(findings.lesions, start=1):
        tab.click(f"tbody tr:nth-of-type({number})")
        apart = np.subtract(cross_hair(tab), lesion.centroid_mm)
        assert (np.abs(grid.matrix.T @ apart) <= np.array(grid.spacing_mm) / 2 + 0.06).all()
        z, y, x = np.rint(grid.world_to_index(np.array(cross_hair(tab)))).astype(int)
        hu = [volume.array[z, y, x] for volume in case.aligned.volumes.values()]
        assert np.abs(np.subtract(said_hu(tab), hu)).max() <= 1
        assert lesions.instances[z, y, x] == number


def test_closed_form_the_web_door_shows_the_same(tab, opened, tmp_path):
    with served(tmp_path) as server, server.client() as ann:
        identifier = ann.post("/studies", content=zipped(a=b"1")).json()["id"]
        place = tmp_path / "server" / "uploads" / identifier
        (place / "study.zip").unlink()
        (place / "study").mkdir()
        (place / "study" / "order.txt").write_text(f"give {opened.folder}")
        links = server.until(ann, identifier)["links"]
        assert links["viewer"] == f"/studies/{identifier}/viewer"
        assert ann.get("/studies/0/viewer").status_code == 404
        tab.complaints.clear()
        tab.visit(server.said[0].removeprefix("Open "))
        tab.wait("document.title === 'hepar: studies'")
        for way in ("viewer", "report"):
            tab.visit(server.url)
            tab.wait("document.title === 'hepar: studies'")
            tab.click(f"a[href='{links[way]}']")
            if way == "report":  # its link leads there too, out of a page that runs no script
                tab.wait("document.querySelector('a[href=\"viewer.html\"]')")
                tab.ask("document.querySelector('a[href=\"viewer.html\"]').scrollIntoView()")
                tab.click("a[href='viewer.html']")
            tab.wait("location.pathname.endsWith('/viewer')")
            tab.settle()
            tab.click("tbody tr:nth-of-type(2)")
            center = opened.findings.lesions[1].centroid_mm
            beside = np.abs(np.subtract(cross_hair(tab), center)).max()
            assert beside <= SOURCE_SPACING_MM[0] / 2 + 0.06
            assert np.abs(np.subtract(said_hu(tab), list(LESION_HU[1].values()))).max() <= 1
        assert tab.complaints == []
