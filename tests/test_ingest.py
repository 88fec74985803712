"""What the reading of a study shows to people: the document, the console, the sheet."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given
from scipy import ndimage

from aligned_cases import oblique_grid
from command import run
from hepar.console import format_inspection
from hepar.geometry import Grid, canonical, orientation_of
from hepar.io.dicom_write import write_dicom_series
from hepar.io.ingest import Ingest, ingest, listing
from hepar.io.nifti import write_nifti
from hepar.io.refusal import refuse
from hepar.render.overlay import CODE
from hepar.render.sheet import LEVELS, PANEL_PX, WIDTH_PX, series_sheet
from hepar.stages.phases import assign_phases
from hepar.stages.read import read_study
from hepar.study import Phase, Series, SeriesVerdict, Study, Volume
from small_ct import POSES, Pose, grid_of, volume

HOSTILE = "liver\x1b[31m\n</td>\u202e\ud800 \u80dd\u81d3 " + "long" * 60


def dicom(folder: Path, number: int, shape: tuple[int, int, int] = (8, 12, 14)) -> list[Path]:
    """A small series described by its folder's name."""
    return list(
        write_dicom_series(
            folder,
            volume(number, shape, slice_mm=5.0),
            description=folder.name,
            series_number=number,
            study_uid="1.2.3",
            frame_of_reference_uid="1.2.3.5",
        )
    )


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Two phases, a gap, magnetic resonance, a mask, a note: 8 + 8 + 7 + 8 + 1 + 1 files."""
    study = tmp_path / "study"
    dicom(study / "arterial", 1)
    dicom(study / "portal", 2)
    dicom(study / "delayed", 3)[4].unlink()
    for path in dicom(study / "t1", 4):
        header = pydicom.dcmread(path)
        header.Modality = "MR"
        header.save_as(path)
    scan = volume()
    write_nifti(study / "tumor.nii.gz", (scan.array > 0).astype(np.uint8), scan.grid)
    (study / "notes.txt").write_text("hello")
    return study


def test_closed_form_every_series_finding_and_file_is_told(mixed):
    files = listing(mixed)
    assert files is not None
    read = read_study(mixed)
    document = ingest(read, assign_phases(read), files=files)
    by_name = {row.description: row for row in document.series}
    assert document.outcome == "usable"
    assert {name: row.status for name, row in by_name.items()} == {
        "arterial": "usable",
        "portal": "usable",
        "delayed": "refused",
        "t1": "refused",
        "tumor.nii.gz": "refused",
    }
    assert by_name["arterial"].phase == "ART"
    assert by_name["portal"].reference
    assert document.reference is not None
    assert (document.reference.phase, document.reference.series) == ("PV", by_name["portal"].id)
    assert by_name["portal"].geometry.model_dump() == {
        "shape_zyx": (8, 12, 14),
        "spacing_mm_zyx": (5.0, 0.8, 0.7),
        "extent_mm_zyx": (40.0, 9.6, 9.8),
        "plane": "axial",
        "orientation": "SPL",
        "oblique_deg": 0.0,
    }
    found = {(f.code, f.series): f for f in document.findings}
    assert set(found) == {
        ("E_SLICE_GAP", by_name["delayed"].id),
        ("E_WRONG_MODALITY", by_name["t1"].id),
        ("E_HU_IMPLAUSIBLE", by_name["tumor.nii.gz"].id),
    }
    assert all(f.level == "ERROR" and f.remedy for f in document.findings)
    mask = found["E_HU_IMPLAUSIBLE", by_name["tumor.nii.gz"].id]
    assert mask.file_index is not None
    assert sorted(files)[mask.file_index] == "tumor.nii.gz"
    counts = document.files
    assert (counts.n_found, counts.n_used, counts.n_dropped) == (33, 16, 17)
    assert sorted((d.n_files, d.code) for d in counts.dropped if d.series) == [
        (1, "E_HU_IMPLAUSIBLE"),
        (7, "E_SLICE_GAP"),
        (8, "E_WRONG_MODALITY"),
    ]
    assert [d.n_files for d in counts.dropped if d.series is None] == [1]


def test_closed_form_one_damaged_slice_is_named_by_its_place(tmp_path):
    dicom(tmp_path / "arterial", 1)
    cut = dicom(tmp_path / "portal", 2)[5]
    cut.write_bytes(cut.read_bytes()[:-40])
    read = read_study(tmp_path)
    document = ingest(read, assign_phases(read), files=listing(tmp_path))
    [finding] = document.findings
    assert finding.code == "E_TRUNCATED"
    # Both folders hold a file of that name; eight files of `arterial` come first.
    assert finding.file_index == 8 + 5


def test_closed_form_warnings_of_the_phases_reach_their_series(tmp_path):
    dicom(tmp_path / "portal", 1)
    dicom(tmp_path / "more portal", 2, (12, 12, 14))
    read = read_study(tmp_path)
    document = ingest(read, assign_phases(read), files=listing(tmp_path))
    kept, left = sorted(document.series, key=lambda row: row.phase is None)
    assert left.codes == ("W_DUPLICATE_PHASE",)
    assert (left.status, kept.codes) == ("unused", ())
    assert [f.code for f in document.findings] == ["W_DUPLICATE_PHASE"]
    assert document.files.n_dropped == left.n_files == 8


def test_closed_form_inspect_leaves_the_document_it_prints(mixed, tmp_path, capsys):
    code, out, err = run(capsys, "inspect", mixed, "-o", tmp_path / "out", "--json", "-q")
    assert (code, err) == (0, "")
    text = (tmp_path / "out" / "ingest.json").read_text()
    assert text == out
    assert Ingest.model_validate_json(text).model_dump_json(indent=2) + "\n" == text
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"ingest.json", "series.png"}
    with pytest.raises(ValueError, match="Extra inputs"):
        Ingest.model_validate({**json.loads(text), "sereis": []})


def test_closed_form_a_refused_study_leaves_its_document_too(tmp_path, capsys):
    dicom(tmp_path / "study" / "portal", 1)[3].unlink()
    study, out = tmp_path / "study", tmp_path / "out"
    code, _, err = run(capsys, "inspect", study, "-o", out, "-q")
    document = Ingest.model_validate_json((out / "ingest.json").read_text())
    assert code == 10
    assert "E_SLICE_GAP" in err
    assert (document.outcome, document.reference) == ("refused", None)
    assert document.error is not None
    assert document.error.code == document.findings[0].code == "E_SLICE_GAP"
    assert (document.files.n_found, document.files.n_used, document.files.n_dropped) == (7, 0, 7)
    assert (out / "series.png").exists()


def test_closed_form_a_refusal_carries_the_verdicts_on_its_series(capsys):
    error = refuse("E_SLICE_GAP", "No series of x can be used.")
    reason = "1 gap(s), 2.50 to 7.50 mm"
    error.verdicts = (
        SeriesVerdict("s1", "a", "refused", reason, "E_SLICE_GAP", "portal", 7),
        SeriesVerdict("s2", "b", "unused", "ImageType says LOCALIZER", None, "scout", 2),
    )
    document = ingest(None, error=error, files=[f"f{k}" for k in range(10)])
    assert [row.id for row in document.series] == ["s1", "s2"]
    assert [(f.code, f.series) for f in document.findings] == [
        ("E_SLICE_GAP", None),
        ("E_SLICE_GAP", "s1"),
    ]
    assert [(d.n_files, d.series) for d in document.files.dropped] == [
        (7, "s1"),
        (2, "s2"),
        (1, None),
    ]
    text = format_inspection(document, 80)
    assert reason in text
    assert "remedy: Export the series again with every slice;" in text


def test_closed_form_files_of_no_use_are_no_error_and_a_warning_is_told_once():
    verdicts = (
        SeriesVerdict("s1", "a", "unused", "pictures", "E_WRONG_MODALITY", "s2 and s3", 3),
        SeriesVerdict("s2", "b", "usable", "8 slices; odd; even", "W_SPACING_NOISE", "liver", 8),
    )
    warnings = (
        "W_SERIES_REFUSED: s9 (x): E_BOMB: y",
        "W_SPACING_NOISE: s2 (liver): odd",
        "W_MONOCHROME1: s2 (liver): even",
        "W_SEVERAL_STUDIES: the series belong to 2 studies",
    )
    document = ingest(Study((), verdicts, warnings))
    assert [(f.code, f.level, f.series, f.message) for f in document.findings] == [
        ("E_WRONG_MODALITY", "HANDLE", "s1", "pictures"),
        ("W_SPACING_NOISE", "WARN", "s2", "odd"),
        ("W_MONOCHROME1", "HANDLE", "s2", "even"),
        ("W_SEVERAL_STUDIES", "WARN", None, "the series belong to 2 studies"),
    ]
    assert document.series[1].codes == ("W_SPACING_NOISE", "W_MONOCHROME1")


def test_property_inspect_never_mixes_its_files_with_a_run(mixed, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.json").write_text("{}")
    code, _, err = run(capsys, "inspect", mixed, "-o", out, "-q")
    assert (code, [p.name for p in out.iterdir()]) == (2, ["run.json"])
    assert "E_OUTPUT_PATH" in err
    (out / "run.json").unlink()
    (out / "series.png").write_bytes(b"of another patient")
    no_model = ("--model", tmp_path / "absent")
    assert run(capsys, "segment", mixed, "-o", out, *no_model, "-q")[0] == 13
    assert not (out / "series.png").exists()


def test_closed_form_harmful_input_is_rejected_and_an_unlisted_source_has_no_count():
    document = ingest(None, error=refuse("E_BOMB", "It inflates."), files=None)
    assert (document.findings[0].level, document.files.n_found) == ("REJECT", None)


def test_closed_form_files_given_for_a_phase_are_counted_once(tmp_path):
    dicom(tmp_path / "study" / "a", 1)
    dicom(tmp_path / "study" / "b", 2)
    dicom(tmp_path / "elsewhere", 3)
    stated = {Phase.PV: tmp_path / "study" / "b", Phase.DL: tmp_path / "elsewhere"}
    files = listing(tmp_path / "study", stated)
    assert files is not None
    assert (len(files), files[0], files[16]) == (24, "a/0001.dcm", "0001.dcm")
    assert listing(tmp_path / "study" / "a" / "0001.dcm") is None


@given(pose=POSES)
def test_property_orientation_agrees_with_the_turn_to_axial(pose: Pose) -> None:
    grid = grid_of(pose)
    letters, oblique_deg = orientation_of(grid)
    assert len(letters) == 3
    assert all(len(set(pair) & set(letters)) == 1 for pair in ("SI", "PA", "LR"))
    turned = canonical(np.zeros(grid.shape, np.int8), grid)[1]
    straight, same_deg = orientation_of(turned)
    assert straight == "SPL"
    assert same_deg == pytest.approx(oblique_deg, abs=1e-4)
    if not pose[4]:
        assert oblique_deg == pytest.approx(0, abs=1e-4)


def test_closed_form_orientation_of_a_tilted_grid():
    angle = np.deg2rad(25.0)
    about_x = [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    down = np.array(about_x) @ np.array([[0, 0, -1.0], [0, 1.0, 0], [-1.0, 0, 0]])
    grid = Grid((3, 4, 5), (1.0, 1.0, 1.0), (0, 0, 0), tuple(float(v) for v in down.ravel()))
    letters, oblique_deg = orientation_of(grid)
    assert letters == "IPR"
    assert oblique_deg == pytest.approx(25.0, abs=1e-3)


def one_series(scan: Volume, **tags: str) -> tuple[Ingest, dict[str, Volume]]:
    """The document of a study of one series, and its volume by id."""
    verdict = SeriesVerdict("s1", "pv.nii.gz", "usable", "read whole", None, "Liver", 1)
    study = Study((Series(scan, verdict, tags),), (verdict,))
    return ingest(study, assign_phases(study)), {"s1": scan}


def panels(document: Ingest, volumes: dict[str, Volume]) -> list[np.ndarray]:
    """The coronal and the axial pictures of the first series."""
    codes = series_sheet(document, volumes).codes
    assert codes.shape[1] == WIDTH_PX
    row = codes[-PANEL_PX:]
    step = PANEL_PX + 6
    return [row[:, k * step : k * step + PANEL_PX] for k in range(1 + len(LEVELS))]


@pytest.mark.parametrize("stored", ["axial", "oblique"])
def test_closed_form_right_is_left_and_head_is_up_at_true_proportions(stored):
    shape = (60, 100, 100) if stored == "axial" else (100, 60, 100)
    spacing = (3.0, 1.5, 1.5) if stored == "axial" else (1.5, 3.0, 1.5)
    grid = Grid.axial(shape, spacing) if stored == "axial" else oblique_grid(shape, spacing)
    hu = np.zeros(shape, dtype=np.int16)
    turned, axial = canonical(hu, grid)  # a view: what is set here lies in `hu` too
    depth_mm, height_mm, width_mm = axial.extent_mm
    # A block towards the head, from front to just behind the middle, on the right.
    part = ((0.6, 0.9), (0.2, 0.6), (0.2, 0.4))
    edges = np.rint(np.array(part) * np.array(turned.shape)[:, None]).astype(int)
    turned[tuple(slice(low, high) for low, high in edges)] = 1000
    coronal, upper, middle, lower = panels(*one_series(Volume(hu, grid)))
    for picture, tall_mm, top in ((coronal, depth_mm, 0.1), (upper, height_mm, 0.2)):
        scale = min(PANEL_PX / tall_mm, PANEL_PX / width_mm)
        rows, columns = block(picture)
        share = 0.3 if picture is coronal else 0.4
        first = (PANEL_PX - tall_mm * scale) / 2 + top * tall_mm * scale
        left = (PANEL_PX - width_mm * scale) / 2 + 0.2 * width_mm * scale
        assert np.ptp(rows) + 1 == pytest.approx(share * tall_mm * scale, abs=4)
        assert np.ptp(columns) + 1 == pytest.approx(0.2 * width_mm * scale, abs=4)
        assert rows.min() == pytest.approx(first, abs=4)
        assert columns.min() == pytest.approx(left, abs=4)
    assert all(block(picture)[0].size < 20 for picture in (middle, lower))


def block(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the largest white part of a picture."""
    parts, _ = ndimage.label(picture == CODE["white"])
    largest = np.argmax(np.bincount(parts.ravel())[1:]) + 1
    return np.unique(np.nonzero(parts == largest)[0]), np.unique(np.nonzero(parts == largest)[1])


def test_property_text_in_the_pixels_is_never_shown():
    scan = volume(shape=(20, 40, 40), slice_mm=5.0)
    shown, volumes = one_series(scan)
    hidden, _ = one_series(scan, BurnedInAnnotation="YES")
    assert hidden.series[0].codes == (*shown.series[0].codes, "W_BURNED_IN")
    assert next(f.level for f in hidden.findings if f.code == "W_BURNED_IN") == "WARN"
    picture = series_sheet(hidden, volumes).codes
    assert np.array_equal(picture, series_sheet(hidden, {}).codes)
    assert series_sheet(shown, volumes).codes.shape[0] >= PANEL_PX > picture.shape[0]


def test_property_hostile_text_neither_breaks_the_sheet_nor_reaches_the_terminal(tmp_path):
    document, volumes = one_series(volume(shape=(9, 30, 30), slice_mm=5.0))
    verdicts = [
        SeriesVerdict(f"s{k}", HOSTILE, "refused", HOSTILE, "E_TRUNCATED", HOSTILE, 3)
        for k in range(2, 30)
    ]
    study = Study((), tuple(verdicts), (f"W_NEW: s2 ({HOSTILE}): {HOSTILE}",))
    hostile = ingest(study, files=[HOSTILE])
    hostile = hostile.model_copy(update={"series": (*document.series, *hostile.series)})
    hostile.model_dump_json().encode("utf-8")
    text = format_inspection(hostile, 60)
    assert all(line.isprintable() for line in text.splitlines())
    sheet = series_sheet(hostile, volumes).codes
    assert sheet.shape[1] == WIDTH_PX
    # A dozen empty cells, not one for each of a folder of masks.
    assert sheet.shape[0] < 14 * 200 + 400


@pytest.mark.parametrize("width", [40, 57, 80, 120])
def test_property_the_console_wraps_and_says_what_is_used(mixed, width):
    read = read_study(mixed)
    document = ingest(read, assign_phases(read), files=listing(mixed))
    ids = {row.phase: row.id for row in document.series if row.phase}
    text = format_inspection(document, width)
    assert max(map(len, text.splitlines())) <= width
    words = " ".join(text.split())
    for part in ("E_SLICE_GAP: ", "E_WRONG_MODALITY: ", "remedy: Export the series again"):
        assert part in words
    assert f"portal venous: {ids['PV']} (reference: results lie on its voxels)" in words
    assert f"arterial: {ids['ART']} portal venous" in words
    assert "16 of 33 files used" in words


def test_closed_form_a_hundred_masks_are_named_not_spelled_out():
    reason = "it looks like a label map"
    verdicts = [
        SeriesVerdict(f"s{k}", f"m{k}.nii.gz", "refused", reason, "E_HU_IMPLAUSIBLE", "", 1)
        for k in range(1, 101)
    ]
    text = format_inspection(ingest(Study((), tuple(verdicts))), 100)
    assert text.count("remedy:") == 3
    assert "97 more refused, E_HU_IMPLAUSIBLE: s4 (m4.nii.gz), " in text
    assert "and 85 more" in " ".join(text.split())


def test_closed_form_a_series_without_a_needed_phase_is_dropped_with_its_reason(tmp_path):
    document, _ = one_series(volume(shape=(9, 30, 30), slice_mm=5.0))
    assert (document.files.n_used, document.files.n_dropped) == (1, 0)
    verdict = SeriesVerdict("s1", "a.nii.gz", "usable", "read whole", None, "", 1)
    scan = volume(shape=(9, 30, 30), slice_mm=5.0)
    study = Study((Series(scan, verdict),), (verdict,))
    refused = ingest(study, error=refuse("E_PHASES_UNKNOWN", "nothing tells"))
    assert [d.reason for d in refused.files.dropped] == ["no phase was assigned"]
    renamed = replace(verdict, status="unused", reason="left aside", code="W_SERIES_UNUSED")
    aside = ingest(Study((Series(scan, renamed),), (renamed,)))
    assert [d.reason for d in aside.files.dropped] == ["left aside"]
