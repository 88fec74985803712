"""The viewer as a file: what it holds is what the volumes say, and it asks for nothing."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from aligned_cases import aligned_study, oblique_grid
from hepar.batch.job import Engine
from hepar.errors import UsageError
from hepar.geometry import canonical
from hepar.infer.bundle import default_bundle_path, load_bundle
from hepar.io.nifti import read_label, read_nifti
from hepar.pipeline import Pipeline
from hepar.render import viewer
from hepar.render.viewer import NAME, viewer_shell
from hepar.render.viewer_volumes import (
    HIGHEST_HU,
    LOWEST_HU,
    MARGIN_MM,
    STEP_HU,
    ViewerVolume,
    viewer_volumes,
)
from hepar.stages.report import compose, write_report
from hepar.study import Diagnosis, Findings, LesionDiagnosis, LesionMap, LiverCase
from liver_case import liver_case

SMALL = (20, 60, 80)
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)> & <b>'
FAKE = ("window.niivue = {};", "'use strict';")


class Page(HTMLParser):
    """Its scripts, links and numbers."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str], str]] = []
        self.addresses: list[str] = []
        self.numbers: dict[str, float] = {}
        self.policy = ""
        self.tags: list[str] = []
        self._script: dict[str, str] | None = None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        found = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.addresses += [found[name] for name in ("src", "href", "data-page") if found.get(name)]
        assert not [name for name in found if name.startswith("on") or name == "style"]
        if tag == "script":
            self._script = found
            self.scripts.append((found, ""))
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"]
        if tag == "data":
            self.numbers[found["data-key"]] = float(found["value"])

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = None

    def handle_data(self, text):
        if self._script is not None:
            about, before = self.scripts[-1]
            self.scripts[-1] = (about, before + text)


@pytest.fixture(autouse=True)
def scripts(tmp_path_factory, monkeypatch) -> None:
    """Small ones, so that these tests need no npm."""
    folder = tmp_path_factory.mktemp("scripts")
    paths = tuple(folder / path.name for path in viewer.SCRIPTS)
    for path, text in zip(paths, FAKE, strict=True):
        path.write_text(text)
    monkeypatch.setattr(viewer, "SCRIPTS", paths)


def findings_of(case: LiverCase, lesions: LesionMap, label: str = "hcc") -> Findings:
    said = tuple(
        LesionDiagnosis(lesion_id=one.id, probabilities={label: 0.82}, label=label, abstained=False)
        for one in lesions.lesions
    )
    return compose(case, lesions, Diagnosis(lesions=said, patient={label: 0.8}), {"hepar": "0"})


def write(folder: Path, case: LiverCase, lesions: LesionMap) -> str:
    folder.mkdir(exist_ok=True)
    write_report(findings_of(case, lesions), case, lesions, folder, viewer=True)
    return (folder / NAME).read_text()


def volumes_in(html: str) -> dict[str, bytes]:
    found = [(about, text) for about, text in Page(html).scripts if "data-name" in about]
    assert all(about["type"] == "application/gzip" for about, _ in found)
    return {about["data-name"]: base64.b64decode(text) for about, text in found}


def read(packed: bytes) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(gzip.decompress(packed))


def tilted_case() -> tuple[LiverCase, LesionMap]:
    """The small patient on a tilted grid, with doubt in its liver."""
    case, lesions = liver_case(shape=SMALL)
    source = oblique_grid(SMALL, (5.0, 1.6, 1.6))
    _, grid = canonical(np.zeros(SMALL, dtype=np.uint8), source)
    hu = {str(phase): volume.array for phase, volume in case.aligned.volumes.items()}
    doubt = np.linspace(0, 1, np.prod(case.box.shape), dtype=np.float32).reshape(case.box.shape)
    aligned = replace(aligned_study(hu, grid), phased=case.aligned.phased)
    centers = [np.argwhere(lesions.instances == one.id).mean(axis=0) for one in lesions.lesions]
    moved = tuple(
        one.model_copy(update={"centroid_mm": tuple(grid.index_to_world(center).tolist())})
        for one, center in zip(lesions.lesions, centers, strict=True)
    )
    return replace(case, aligned=aligned), replace(lesions, lesions=moved, uncertainty=doubt)


@pytest.mark.parametrize("made", [lambda: liver_case(shape=SMALL), tilted_case])
def test_oracle_what_the_page_holds_is_what_the_volumes_say(tmp_path, made):
    case, lesions = made()
    held = volumes_in(write(tmp_path, case, lesions))
    assert list(held)[:5] == ["NC", "ART", "PV", "DL", "labels"]
    assert ("uncertainty" in held) == (lesions.uncertainty is not None)
    grid = case.aligned.grid
    for name, packed in held.items():
        image = read(packed)
        shown = np.asarray(image.dataobj, dtype=np.float64).transpose(2, 1, 0)
        # Where a voxel of the page lies in the patient, and so which voxel of the volume it is.
        place = np.argwhere(np.ones(shown.shape, dtype=bool))
        ras = nib.affines.apply_affine(image.affine, place[:, ::-1])
        index = grid.world_to_index(ras * [-1, -1, 1])
        np.testing.assert_allclose(index, np.rint(index), atol=1e-3)
        z, y, x = np.rint(index).astype(int).T
        if name == "labels":
            ids = lesions.instances[z, y, x].astype(int)
            truth = np.where(ids > 0, ids + 1, (lesions.label[z, y, x] > 0).astype(int))
            np.testing.assert_array_equal(shown.ravel(), truth)
            assert np.count_nonzero(truth) == np.count_nonzero(lesions.label)
        elif name == "uncertainty":
            whole = np.zeros(grid.shape, dtype=np.float32)
            whole[case.box.slices] = lesions.uncertainty
            np.testing.assert_allclose(shown.ravel(), whole[z, y, x], atol=0.51 / 255)
        else:
            hu = case.aligned.volumes[name].array[z, y, x]
            beyond = np.clip(hu, LOWEST_HU, HIGHEST_HU)
            assert np.abs(shown.ravel() - beyond).max() <= STEP_HU / 2
            assert (hu != beyond).any()


def test_closed_form_the_margin_is_kept_around_the_liver():
    case, lesions = liver_case(shape=SMALL)
    labels = read(viewer_volumes(case, lesions)[-1].nifti)
    inside = np.asarray(labels.dataobj) > 0
    for axis, spacing in enumerate(labels.header.get_zooms()):
        hit = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))
        gaps = (hit[0], inside.shape[axis] - 1 - hit[-1])
        # Where the scan itself ends there is no more of it.
        assert max(gaps) == np.ceil(MARGIN_MM / spacing) or inside.shape[axis] in SMALL


def test_closed_form_many_lesions_keep_their_ids():
    case, lesions = liver_case(("PV",), shape=SMALL)
    many = lesions.instances.copy()
    many[many == 2] = 700
    labels = read(viewer_volumes(case, replace(lesions, instances=many))[-1].nifti)
    assert set(np.unique(np.asarray(labels.dataobj))) == {0, 1, 2, 701}


def test_closed_form_the_page_asks_for_nothing_and_runs_its_own_scripts_alone(tmp_path):
    html = write(tmp_path, *liver_case(shape=SMALL))
    page = Page(html)
    assert page.addresses == ["report.html"]
    inline = [text for about, text in page.scripts if not about]
    assert inline == list(FAKE)
    rules = dict(rule.strip().split(" ", 1) for rule in page.policy.split(";"))
    assert rules.keys() == {"default-src", "script-src", "img-src", "style-src"}
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data: blob:"
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()) for text in inline]
    assert rules["script-src"].split() == [f"'sha256-{digest.decode()}'" for digest in hashes]
    assert "Not a medical device" in html
    assert "\N{MINUS SIGN}200 to 310" in html
    assert str(Path.home()) not in html


def test_oracle_every_number_in_the_table_is_that_of_the_findings(tmp_path):
    case, lesions = liver_case(shape=SMALL)
    numbers = Page(write(tmp_path, case, lesions)).numbers
    findings = json.loads((tmp_path / "findings.json").read_text())
    assert len(numbers) == 2 * (1 + 3 + 4)
    for key, value in numbers.items():
        found = findings
        for part in key.split("."):
            found = found[int(part)] if isinstance(found, list) else found[part]
        assert found == value, key
    rows = re.findall(r'data-lesion="(\d+)" data-center="([^"]+)"', (tmp_path / NAME).read_text())
    assert [(int(one), [float(v) for v in center.split()]) for one, center in rows] == [
        (lesion["id"], lesion["centroid_mm"]) for lesion in findings["lesions"]
    ]


def test_property_hostile_text_stays_text():
    case, lesions = liver_case(shape=SMALL, warnings=(f"W_X: {HOSTILE}", HOSTILE))
    findings = findings_of(case, lesions, label=HOSTILE)
    html = viewer.viewer_page(findings, (ViewerVolume(HOSTILE, b"x"),), "report.html")
    page = Page(html)
    assert not {"b", "img"} & set(page.tags)
    assert len(page.scripts) == 3


def test_closed_form_a_server_gets_no_image_and_no_inline_script():
    findings = findings_of(*liver_case(shape=SMALL))
    urls = ("/static/niivue.umd.js", "/static/viewer.js")
    page = Page(viewer_shell(findings, "files/viewer.html", urls, "files/report.html"))
    assert [(about, text) for about, text in page.scripts] == [({"src": u}, "") for u in urls]
    assert "script-src 'self'; connect-src 'self'" in page.policy
    assert page.addresses == ["files/viewer.html", "files/report.html", *urls]
    assert page.numbers["lesions.0.volume_ml"] == findings.lesions[0].volume_ml


def test_closed_form_the_report_links_to_a_viewer_that_is_there(tmp_path):
    case, lesions = liver_case(shape=SMALL)
    write(tmp_path, case, lesions)
    assert 'href="viewer.html"' in (tmp_path / "report.html").read_text()
    assert NAME in json.loads((tmp_path / "run.json").read_text())["files"]
    without = tmp_path / "without"
    without.mkdir()
    write_report(findings_of(case, lesions), case, lesions, without)
    assert not (without / NAME).exists()
    assert "viewer" not in (without / "report.html").read_text()


def test_property_the_same_patient_gives_the_same_page(tmp_path):
    first, second = (write(tmp_path / name, *liver_case(shape=SMALL)) for name in "ab")
    assert first == second


def test_property_images_that_may_show_a_name_are_not_shown(tmp_path):
    case, lesions = liver_case(shape=SMALL)
    phased = case.aligned.phased
    marked = tuple(replace(s, tags={"BurnedInAnnotation": "YES"}) for s in phased.study.series)
    phased = replace(phased, study=replace(phased.study, series=marked))
    case = replace(case, aligned=replace(case.aligned, phased=phased))
    write_report(findings_of(case, lesions), case, lesions, tmp_path, viewer=True)
    assert not (tmp_path / NAME).exists()
    assert "viewer" not in (tmp_path / "report.html").read_text()


def test_closed_form_without_its_script_it_is_refused_before_anything_is_computed(
    tmp_path, monkeypatch
):
    viewer.SCRIPTS[0].unlink()
    monkeypatch.setattr(Pipeline, "run", lambda *_, **__: pytest.fail("computed"))
    pipeline = Pipeline(load_bundle(default_bundle_path()))
    with pytest.raises(UsageError, match="E_VIEWER") as refused:
        pipeline.segment(tmp_path / "study", tmp_path / "out", viewer=True)
    assert refused.value.exit_code == 2
    assert not list((tmp_path / "out").glob("*"))


def test_closed_form_a_batch_with_viewers_is_another_batch():
    assert Engine(viewer=True).settings_sha256() != Engine().settings_sha256()


def test_closed_form_the_script_is_the_one_that_is_named():
    path = Path(viewer.__file__).with_name("niivue.umd.js")
    if not path.is_file():
        pytest.skip("NiiVue was not fetched: `make viewer` does it where npm is")
    known, name = path.with_name("niivue.sha256").read_text().split()
    assert (hashlib.sha256(path.read_bytes()).hexdigest(), path.name) == (known, name)
    assert b"</script" not in path.read_bytes().lower()


def test_oracle_masks_beside_the_page_say_the_same(tmp_path):
    case, lesions = liver_case(shape=SMALL)
    held = volumes_in(write(tmp_path, case, lesions))
    (tmp_path / "labels.nii.gz").write_bytes(held["labels"])
    mine, theirs = read_label(tmp_path / "labels.nii.gz"), read_label(tmp_path / "lesions.nii.gz")
    for number in (1, 2):
        places = [
            v.grid.index_to_world(np.argwhere(v.array == n).mean(axis=0))
            for v, n in ((mine, number + 1), (theirs, number))
        ]
        np.testing.assert_allclose(*places, atol=1e-3)
    assert read_nifti(tmp_path / "labels.nii.gz").array.max() == 3
