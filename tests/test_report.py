"""The report: one set of numbers, masks on the scanner's voxels, and no way in for HTML."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hepar.geometry import Box, Grid, canonical, uncanonical
from hepar.io.nifti import read_label, read_nifti
from hepar.lesion_evidence import PICTURED
from hepar.provenance import Provenance
from hepar.render import page
from hepar.render.curve import enhancement_curve
from hepar.render.overlay import (
    CODE,
    Plane,
    axial_plane,
    body_window,
    coronal_plane,
    draw,
    enlarge,
    lesion_window,
    outline,
)
from hepar.render.page import split_warning
from hepar.render.pictures import report_figures
from hepar.stages.report import CSV_COLUMNS, box_on_source, compose, write_report
from hepar.study import Diagnosis, Findings, LesionDiagnosis, LesionMap, LiverCase
from liver_case import liver_case

FILES = {
    "findings.json",
    "ingest.json",
    "lesions.csv",
    "lesions.nii.gz",
    "report.html",
    "run.json",
    "segmentation.nii.gz",
}
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7 * 7 }} & <b>'
SMALL = (20, 60, 80)
PROVENANCE = {"hepar": "0", "device": "cpu", "hashes": {"model": "ab"}}


def judged(lesions: LesionMap) -> Diagnosis:
    chances = {"hcc": 0.8236, "fnh": 0.1764}
    return Diagnosis(
        lesions=tuple(
            LesionDiagnosis(
                lesion_id=lesion.id,
                probabilities=chances,
                label="hcc" if k == 0 else "uncertain",
                abstained=k > 0,
                reason="" if k == 0 else "its enhancement fits several types",
            )
            for k, lesion in enumerate(lesions.lesions)
        ),
        patient={"tumor-free": 0.0877, "hcc": 0.75139, "uncertain": 0.77777},
    )


def write(
    folder: Path, case: LiverCase, lesions: LesionMap, *, probabilities: bool = False
) -> Findings:
    findings = compose(case, lesions, judged(lesions), PROVENANCE)
    folder.mkdir(exist_ok=True)
    write_report(findings, case, lesions, folder, probabilities=probabilities)
    return findings


class Page(HTMLParser):
    """Tags, attributes, `<data>` elements and the text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.data: list[list[str]] = []
        self.text = ""
        self._open = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "data":
            found = dict(attrs)
            self.data.append([found["data-key"], found["value"], ""])
            self._open = True

    def handle_endtag(self, tag):
        if tag == "data":
            self._open = False

    def handle_data(self, text):
        self.text += text
        if self._open:
            self.data[-1][2] += text


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, LiverCase, LesionMap, Findings]:
    folder = tmp_path_factory.mktemp("report")
    case, lesions = liver_case()
    return folder, case, lesions, write(folder, case, lesions, probabilities=True)


def at(document, key: str):
    for part in key.split("."):
        document = document[int(part)] if isinstance(document, list) else document[part]
    return document


def test_closed_form_a_run_leaves_these_files(written, tmp_path):
    folder, case, lesions, _ = written
    files = {p.name for p in folder.iterdir() if p.is_file()}
    assert files == FILES | {"tumor_probability.nii.gz"}
    pictures = {p.name for p in (folder / "overlay").iterdir()}
    assert pictures == {
        *("axial_01.png", "axial_02.png", "axial_03.png", "coronal.png"),
        *("lesion_01.png", "lesion_02.png"),
    }
    write(tmp_path / "plain", case, lesions)
    assert {p.name for p in (tmp_path / "plain").iterdir() if p.is_file()} == FILES


def test_oracle_every_number_on_the_page_is_that_of_the_findings(written):
    folder, *_ = written
    findings = json.loads((folder / "findings.json").read_text())
    shown = Page((folder / "report.html").read_text()).data
    for key, value, text in shown:
        expected = at(findings, key)
        assert float(value) == expected, key
        plain = text.replace("\N{MINUS SIGN}", "-").replace("\N{NO-BREAK SPACE}", " ")
        if plain.endswith(" %"):
            assert float(plain[:-2]) == pytest.approx(100 * expected, rel=1e-12), key
        else:
            assert float(plain) == expected, key
    keys = {key for key, _, _ in shown}
    for k in range(2):
        for name in ("volume_ml", "long_axis_mm", "short_axis_mm", "confidence", "centroid_mm.0"):
            assert f"lesions.{k}.{name}" in keys
        assert {f"lesions.{k}.hu.{p}" for p in ("NC", "ART", "PV", "DL")} <= keys
        assert {f"lesions.{k}.wash_in_hu", f"lesions.{k}.washout_hu"} <= keys
    assert {"liver_ml", "tumor_ml", "tumor_burden", "diagnosis.patient.hcc"} <= keys
    assert {"registration.0.similarity_before", "phases.0.confidence"} <= keys


def test_oracle_the_table_holds_the_numbers_of_the_findings(written):
    folder, *_ = written
    findings = json.loads((folder / "findings.json").read_text())
    with (folder / "lesions.csv").open(newline="") as stream:
        reader = csv.DictReader(stream)
        rows = list(reader)
    assert tuple(reader.fieldnames or ()) == CSV_COLUMNS
    assert len(rows) == len(findings["lesions"])
    for row, lesion, diagnosis in zip(
        rows, findings["lesions"], findings["diagnosis"]["lesions"], strict=True
    ):
        assert int(row["lesion_id"]) == lesion["id"] == diagnosis["lesion_id"]
        for name in ("confidence", "volume_ml", "long_axis_mm", "short_axis_mm", "wash_in_hu"):
            assert float(row[name]) == lesion[name]
        for axis, value in zip("xyz", lesion["centroid_mm"], strict=True):
            assert float(row[f"centroid_{axis}_mm"]) == value
        for phase in ("NC", "ART", "PV", "DL"):
            for name in ("hu", "hu_std", "liver_hu"):
                assert float(row[f"{name}_{phase}"]) == lesion[name][phase]
        assert row["type"] == diagnosis["label"]
        assert row["abstained"] == str(diagnosis["abstained"]).lower()
        assert float(row["p_hcc"]) == diagnosis["probabilities"]["hcc"]
        assert row["p_icc"] == ""
        box = [[int(row[f"{a}_{end}"]) for a in "zyx"] for end in ("start", "stop")]
        assert box == lesion["box_zyx"]


def test_oracle_masks_lie_on_the_series_as_it_was_read(written):
    folder, case, lesions, findings = written
    source = case.aligned.source_grid
    label, instances = (read_label(folder / f"{n}.nii.gz") for n in ("segmentation", "lesions"))
    for volume in (label, instances):
        assert volume.grid.is_close(source)
        assert volume.array.dtype == np.uint8
    for lesion in findings.lesions:
        mask = instances.array == lesion.id
        assert (label.array[mask] == 2).all()
        world = label.grid.index_to_world(np.argwhere(mask).mean(axis=0))
        np.testing.assert_allclose(world, lesion.centroid_mm, atol=0.06)
        box = Box.around(mask)
        assert box is not None
        assert (box.start, box.stop) == lesion.box_zyx
    assert np.count_nonzero(label.array) == np.count_nonzero(case.liver)
    assert np.count_nonzero(label.array == 2) == np.count_nonzero(lesions.label == 2)


def test_oracle_the_probability_lies_where_the_lesions_are(written):
    folder, case, lesions, _ = written
    import nibabel as nib

    stored = nib.load(folder / "tumor_probability.nii.gz")
    assert stored.get_data_dtype() == np.float32
    values = np.asarray(stored.dataobj).transpose(2, 1, 0)
    instances = read_nifti(folder / "lesions.nii.gz").array
    np.testing.assert_array_equal(values > 0.5, instances > 0)
    assert values.max() == pytest.approx(lesions.probability.max())
    assert case.aligned.source_grid.shape == values.shape


@given(
    st.sampled_from(list(permutations(range(3)))),
    st.sampled_from(list(product((1, -1), repeat=3))),
    st.tuples(*(st.tuples(st.integers(0, 3), st.integers(1, 4)) for _ in range(3))),
)
def test_property_a_box_goes_with_its_voxels_into_any_orientation(order, signs, spans):
    """A slight tilt rides along, so that positions are not round numbers."""
    tilt = 0.05
    turn = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    matrix = turn @ np.eye(3)[:, list(order)] * signs
    source = Grid((9, 8, 7), (2.0, 0.7, 1.3), (3.1, -40.7, 11.9), tuple(matrix.ravel()))
    array, axial = canonical(np.zeros(source.shape, dtype=np.uint8), source)
    array = array.copy()
    box = Box(
        tuple(a for a, _ in spans),
        tuple(a + n for a, n in spans),
    )
    array[box.slices] = 1
    found = box_on_source(box, axial, source)
    expected = Box.around(uncanonical(array, source) > 0)
    assert found == expected


def test_property_hostile_text_stays_text(tmp_path):
    case, lesions = liver_case(
        shape=SMALL, description=HOSTILE, warnings=(f"W_X: {HOSTILE}", HOSTILE)
    )
    phased = case.aligned.phased
    readings = tuple(replace(r, reason=HOSTILE, series_id=HOSTILE) for r in phased.readings)
    records = tuple(replace(r, reason=HOSTILE, method=HOSTILE) for r in case.aligned.registration)
    aligned = replace(case.aligned, phased=replace(phased, readings=readings), registration=records)
    findings = compose(
        replace(case, aligned=aligned),
        lesions,
        Diagnosis(
            lesions=tuple(
                LesionDiagnosis(
                    lesion_id=k,
                    probabilities={HOSTILE: 0.6},
                    label=label,
                    abstained=k > 1,
                    reason=HOSTILE,
                )
                for k, label in ((1, HOSTILE), (2, "uncertain"))
            ),
            patient={HOSTILE: 0.5},
        ),
        {HOSTILE: HOSTILE, "hashes": {HOSTILE: HOSTILE}},
    )
    write_report(findings, case, lesions, tmp_path)
    found = Page((tmp_path / "report.html").read_text())
    assert not found.tags & {"script", "b", "iframe", "object", "link"}
    assert not [name for _, name, _ in found.attributes if name.startswith("on")]
    sources = [value for _, name, value in found.attributes if name in ("src", "href")]
    assert sources
    assert all(value.startswith("data:image/png;base64,") for value in sources)
    assert "49" not in found.text.split("alert(2)")[1][:12]
    assert found.text.count("<script>alert(1)</script>") >= 5


def test_closed_form_the_page_needs_nothing_else_and_is_small(written):
    folder, *_ = written
    html = (folder / "report.html").read_text()
    assert len(html.encode()) < 3_000_000
    for outside in ("http://", "https://", "url(", "@import", "file:", "<script", "<link"):
        assert outside not in html
    assert "Not a medical device" in Page(html).text
    assert str(Path.home()) not in html


def test_closed_form_warnings_are_said_in_words(tmp_path):
    case, lesions = liver_case(shape=SMALL, warnings=("W_PHASE_ASSUMED: it is read as PV",))
    cut = "W_LIVER_TRUNCATED: 14 cm2 of liver lie on the first slice"
    findings = write(tmp_path, replace(case, warnings=(cut, cut)), lesions)
    assert findings.warnings == ("W_PHASE_ASSUMED: it is read as PV", cut)
    text = Page((tmp_path / "report.html").read_text()).text
    assert "Liver cut by the field of view. 14 cm2 of liver" in text
    assert "Phase assumed. It is read as PV." in text
    assert split_warning("W_NEW_THING: a: b").title == "New thing"
    assert split_warning("plain words").text == "plain words"


@pytest.mark.parametrize("phases", [("PV",), ("NC", "ART")])
def test_closed_form_no_lesion(tmp_path, phases):
    case, lesions = liver_case(phases, n_lesions=0, shape=SMALL)
    findings = write(tmp_path, case, lesions)
    text = Page((tmp_path / "report.html").read_text()).text
    assert "No lesion was found in the liver." in text
    assert (tmp_path / "lesions.csv").read_text().splitlines() == [",".join(CSV_COLUMNS)]
    assert read_label(tmp_path / "lesions.nii.gz").array.max() == 0
    assert findings.lesions == ()
    assert len(list((tmp_path / "overlay").iterdir())) == 4


def test_closed_form_absent_phases_are_blank_not_zero(tmp_path):
    case, lesions = liver_case(("PV",), shape=SMALL)
    write(tmp_path, case, lesions)
    with (tmp_path / "lesions.csv").open(newline="") as stream:
        row = next(iter(csv.DictReader(stream)))
    assert row["hu_ART"] == row["wash_in_hu"] == ""
    assert row["hu_PV"] != ""
    keys = {key for key, _, _ in Page((tmp_path / "report.html").read_text()).data}
    assert "lesions.0.hu.PV" in keys
    assert "lesions.0.hu.ART" not in keys


def test_oracle_run_json_has_the_hash_of_every_other_file(written):
    folder, *_ = written
    recorded = json.loads((folder / "run.json").read_text())["files"]
    others = {p for p in folder.rglob("*") if p.is_file() and p.name != "run.json"}
    assert set(recorded) == {p.relative_to(folder).as_posix() for p in others}
    for name, digest in recorded.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    last = (folder / "run.json").stat().st_mtime_ns
    assert last >= max(p.stat().st_mtime_ns for p in others)


def test_property_the_same_patient_gives_the_same_files(tmp_path):
    case, lesions = liver_case(shape=SMALL)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        provenance = Provenance.begin([name], hashes={"model": "ab"})
        findings = compose(case, lesions, judged(lesions), provenance)
        write_report(findings, case, lesions, tmp_path / name, run=provenance.as_dict())
    names = {p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()}
    for name in names - {Path("run.json")}:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    runs = [json.loads((tmp_path / n / "run.json").read_text()) for n in ("a", "b")]
    assert runs[0]["files"] == runs[1]["files"]
    assert runs[0]["command"] == "a"


def test_property_findings_read_back_and_rounding_is_stable(written):
    folder, case, lesions, findings = written
    assert Findings.model_validate_json((folder / "findings.json").read_text()) == findings
    assert compose(case, lesions, findings.diagnosis, PROVENANCE) == findings
    first, raw = findings.lesions[0], lesions.lesions[0]
    assert findings.liver_ml == round(case.liver_ml, 1) != case.liver_ml
    assert (first.long_axis_mm, first.volume_ml) == (46.2, round(raw.volume_ml, 2))
    assert first.hu == {phase: round(hu, 1) for phase, hu in raw.hu.items()}


def test_closed_form_ingest_names_every_series(written):
    folder, *_ = written
    series = json.loads((folder / "ingest.json").read_text())["series"]
    assert [row["status"] for row in series] == ["usable"] * 4 + ["unused"]
    assert [row["phase"] for row in series] == ["NC", "ART", "PV", "DL", None]
    assert series[4]["code"] == "W_SERIES_UNUSED"


def test_closed_form_many_lesions_all_listed_the_largest_pictured(tmp_path, monkeypatch):
    case, lesions = liver_case(shape=SMALL)
    first = lesions.lesions[0]
    many = tuple(
        first.model_copy(update={"id": k, "volume_ml": first.volume_ml + (k % 7)})
        for k in range(1, 21)
    )
    found = replace(lesions, lesions=many)
    figures = report_figures(case, found)
    assert len(figures) <= 12
    pictured = [f.lesion_id for f in figures if f.lesion_id is not None]
    assert len(pictured) == PICTURED
    assert pictured[:2] == [6, 13]
    monkeypatch.setattr(page, "MAX_IMAGE_BYTES", sum(len(f.picture.png()) for f in figures[:6]))
    write(tmp_path, case, found)
    html = (tmp_path / "report.html").read_text()
    assert html.count("data:image/png") == 6
    assert "overlay/lesion_20.png" in html
    keys = {key for key, _, _ in Page(html).data}
    assert {f"lesions.{k}.volume_ml" for k in range(20)} <= keys


def marked(index: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, Grid]:
    """A volume with one voxel of liver, at `index`."""
    grid = Grid.axial((10, 20, 30), (4.0, 1.0, 2.0))
    liver = np.zeros(grid.shape, dtype=bool)
    liver[index] = True
    return np.zeros(grid.shape, dtype=np.int16), liver, liver.astype(np.uint8), grid


def test_closed_form_right_is_left_anterior_and_head_are_up():
    # Small x is the patient's right, small y anterior, large z the head.
    data = marked((8, 3, 2))
    axial = axial_plane(*data, 8)
    assert np.argwhere(axial.liver).tolist() == [[3, 2]]
    assert axial.labels == ("R", "L")
    assert axial.place == "slice 9 of 10, z 32.0 mm"
    coronal = coronal_plane(*data, 3)
    assert np.argwhere(coronal.liver).tolist() == [[1, 2]]
    assert coronal.place == "coronal, y 3.0 mm"


def test_closed_form_pictures_have_the_proportions_of_the_patient():
    """A square of 40 mm on voxels of 4 x 1 mm is a square on the picture."""
    mask = np.zeros((30, 120), dtype=bool)
    mask[10:20, 40:80] = True
    plane = Plane(
        np.full(mask.shape, -500, np.int16), mask, np.zeros(mask.shape, int), (4.0, 1.0), ""
    )
    drawn = draw(plane, size=(300, 500)).codes
    rows, columns = np.nonzero(drawn == CODE["liver"])
    assert drawn.shape == (300, 500)
    assert np.ptp(rows) + 1 == pytest.approx(100, abs=6)
    assert np.ptp(columns) + 1 == pytest.approx(100, abs=6)
    assert rows.mean() == pytest.approx(149.5, abs=3)
    assert columns.mean() == pytest.approx(249.5, abs=3)


def test_closed_form_outline_of_a_square():
    mask = np.zeros((9, 9), dtype=bool)
    mask[2:7, 2:7] = True
    assert outline(mask).sum() == 16
    assert outline(mask, 2).sum() == 24
    # A mask that the picture's border cuts has no contour along the border.
    assert not outline(np.ones((5, 5), dtype=bool)).any()


@given(st.integers(0, 11), st.integers(0, 11), st.integers(2, 7))
def test_property_enlarged_masks_keep_place_area_and_single_pixels(row, column, factor):
    mask = np.zeros((12, 12), dtype=bool)
    mask[row, column] = True
    big = enlarge(mask, (12 * factor, 12 * factor))
    assert big.any()
    middle = (np.argwhere(big).mean(axis=0) + 0.5) / factor
    np.testing.assert_allclose(middle, (row + 0.5, column + 0.5), atol=0.6)
    y, x = np.mgrid[:40, :40]
    disk = (y - 20) ** 2 + (x - 18) ** 2 <= 12**2
    area = enlarge(disk, (40 * factor, 40 * factor)).sum() / factor**2
    assert area == pytest.approx(disk.sum(), rel=0.05)


@given(
    st.tuples(st.integers(0, 30), st.integers(0, 40), st.integers(0, 50)),
    st.tuples(st.integers(1, 10), st.integers(1, 30), st.integers(1, 40)),
)
def test_property_the_window_holds_the_lesion_and_stays_inside(start, size):
    grid = Grid.axial((40, 70, 90), (3.0, 1.2, 1.2))
    stop = tuple(a + n for a, n in zip(start, size, strict=True))
    found = lesion_window(Box(start, stop), grid)
    for axis in (1, 2):
        assert 0 <= found.start[axis] <= start[axis]
        assert stop[axis] <= found.stop[axis] <= grid.shape[axis]


def test_closed_form_the_body_fills_the_overview():
    hu = np.full((3, 50, 60), -1000, dtype=np.int16)
    hu[:, 15:40, 20:50] = 40
    hu[:, 47, :] = 100  # the table
    found = body_window(hu, 1)
    assert (found.start, found.stop) == ((0, 11, 16), (3, 44, 54))
    assert body_window(np.full((3, 8, 8), -1000, np.int16), 0) == Box.full((3, 8, 8))


def test_property_pictures_are_small_palette_pngs_with_both_contours(written):
    folder, *_ = written
    for path in (folder / "overlay").iterdir():
        assert path.stat().st_size < 400_000
        image = Image.open(BytesIO(path.read_bytes()))
        assert image.mode == "P"
        codes = set(np.unique(np.asarray(image)).tolist())
        assert CODE["lesion"] in codes
        assert CODE["liver"] in codes
        palette = image.getpalette()
        assert palette is not None
        assert palette[3 * CODE["white"] : 3 * CODE["white"] + 3] == [255, 255, 255]


def test_closed_form_curve_goes_up_with_hu_and_leaves_gaps():
    _, lesions = liver_case(("ART", "PV"), shape=SMALL)
    lesion = lesions.lesions[0].model_copy(
        update={
            "hu": {"ART": 110.0, "PV": 90.0},
            "hu_std": {"ART": 10.0, "PV": 5.0},
            "liver_hu": {"ART": 70.0, "PV": 110.0},
        }
    )
    curve = enhancement_curve(lesion)
    assert [(phase, seen) for _, phase, seen in curve.slots] == [
        ("NC", False),
        ("ART", True),
        ("PV", True),
        ("DL", False),
    ]
    art, portal = curve.lesion
    assert art.x < portal.x
    assert art.y < portal.y  # SVG grows downwards
    assert curve.liver[1].y == pytest.approx(art.y)
    assert art.low is not None
    assert art.high is not None
    assert art.low > art.y > art.high
    (y0, hu0), (y1, hu1) = curve.ticks[0], curve.ticks[-1]
    assert y0 + (110 - hu0) * (y1 - y0) / (hu1 - hu0) == pytest.approx(art.y)
    assert hu0 <= 70
    assert hu1 >= 120
