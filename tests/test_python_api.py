"""The pipeline as a Python object: every example of `docs/python.md`, arrays in, arrays out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command import run
from hepar.data.phantoms import grid_of
from hepar.errors import HeparError, InputRefused, UsageError
from hepar.geometry import Grid
from hepar.infer.bundle import Bundle, Model
from hepar.io.nifti import read_label, read_nifti, write_nifti
from hepar.phantom.anatomy import anatomy
from hepar.phantom.scanner import paint
from hepar.pipeline import Pipeline
from hepar.provenance import sha256_file
from hepar.stages.arrays import study_of
from hepar.stages.phases import assign_phases
from hepar.stages.tumor import find_lesions
from hepar.study import AlignedStudy, LesionMap, LiverCase, Phase, Volume
from hepar.systems.baselines.hu_threshold import HuThresholdSettings
from small_ct import volume

PAGE = Path(__file__).resolve().parents[1] / "docs" / "python.md"
SEED = 920_006


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page is run: a scan in the portal venous phase, and its truth beside it."""
    place = tmp_path_factory.mktemp("python")
    patient = anatomy(SEED, spacing_mm=(5.0, 3.0, 3.0))
    scan = paint(patient, SEED)
    write_nifti(place / "study" / "pv.nii.gz", scan.hu["PV"], grid_of(patient))
    write_nifti(place / "label.nii.gz", scan.label, grid_of(patient))
    return place


@pytest.fixture(scope="module", autouse=True)
def _phases_by_name() -> Iterator[None]:
    """Phases are told by names alone: what images tell is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hepar.pipeline.assign_phases", lambda study, *_, **__: assign_phases(study))
        yield


def by_threshold(case: LiverCase, _: Model, **__: object) -> tuple[LiverCase, LesionMap]:
    return find_lesions(case, HuThresholdSettings())


@pytest.fixture(scope="module")
def page(folder: Path) -> tuple[dict[str, Any], list[set[str]]]:
    """What the examples of the page made, and the files that were there after each.

    A threshold stands in for the tumor network, which is slow and tested elsewhere.
    """
    names: dict[str, Any] = {}
    there = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("hepar.pipeline.find_lesions", by_threshold)
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
            exec(compile(block, str(PAGE), "exec"), names)
            there.append({path.name for path in folder.iterdir()})
    return names, there


def test_property_the_examples_of_the_page_run_and_write_only_what_they_say(page, folder):
    names, there = page
    before = {"study", "label.nii.gz"}
    assert there[:4] == [before] * 4
    assert there[-1] == before | {"out"}
    written = json.loads((folder / "out" / "findings.json").read_text())
    assert written == json.loads(names["measured"].findings.model_dump_json())
    assert read_label(folder / "out" / "lesions.nii.gz").array.max() == 1


def test_oracle_the_volume_from_simpleitk_is_that_of_the_nifti_door(page, folder):
    expected = read_nifti(folder / "study" / "pv.nii.gz")
    np.testing.assert_array_equal(page[0]["portal"].array, expected.array)
    assert page[0]["portal"].grid.is_close(expected.grid)


def test_closed_form_what_was_drawn_is_what_is_measured(page):
    measured = page[0]["measured"]
    (lesion,) = measured.findings.lesions
    assert lesion.volume_ml == pytest.approx(4 * 6 * 6 * 0.045, abs=0.01)
    assert lesion.confidence is None
    np.testing.assert_array_equal(measured.segmentation.array, page[0]["drawn"].array)
    assert measured.segmentation.grid.is_close(page[0]["drawn"].grid)


def test_regression_measuring_what_was_found_gives_what_was_found(page, folder):
    """The masks of a run, given back as files, through the command."""
    found = page[0]["result"]
    for name in ("segmentation", "instances"):
        mask = getattr(found, name)
        write_nifti(folder / f"{name}.nii.gz", mask.array, mask.grid)
    again = page[0]["pipeline"](
        folder / "study",
        liver=folder / "segmentation.nii.gz",
        tumor=folder / "instances.nii.gz",
    )
    keep = {"features", "confidence"}  # the noise in features is that of a slightly other box
    first, second = (
        [lesion.model_dump(exclude=keep) for lesion in one.findings.lesions]
        for one in (found, again)
    )
    assert first == second
    assert len(first) >= 1
    np.testing.assert_array_equal(again.segmentation.array, found.segmentation.array)
    assert again.findings.liver_ml == pytest.approx(found.findings.liver_ml, rel=0.01)
    hashes = again.findings.provenance["hashes"]
    assert hashes["given_liver"] == sha256_file(folder / "segmentation.nii.gz")
    assert hashes["given_tumor"] == sha256_file(folder / "instances.nii.gz")


def test_property_only_what_is_not_given_is_sought(page, folder, monkeypatch):
    names, _ = page
    found, drawn = names["result"], names["drawn"]
    sought = []

    def the_liver(aligned: AlignedStudy, *_: object, **__: object) -> LiverCase:
        sought.append("liver")
        return replace(found.liver, aligned=aligned)

    def the_lesions(case: LiverCase, *_: Model, **__: object) -> tuple[LiverCase, LesionMap]:
        sought.append("lesions")
        return find_lesions(case, HuThresholdSettings())

    monkeypatch.setattr("hepar.pipeline.find_liver", the_liver)
    monkeypatch.setattr("hepar.pipeline.find_lesions", the_lesions)
    lesion = Volume(drawn.array == 2, drawn.grid)
    lesions_known = names["pipeline"](folder / "study", tumor=lesion)
    assert sought == ["liver"]
    assert set(lesions_known.findings.given) == {"tumor"}
    np.testing.assert_array_equal(lesions_known.segmentation.array == 2, lesion.array)
    liver_known = names["pipeline"](folder / "study", liver=drawn)
    assert sought == ["liver", "lesions"]
    assert set(liver_known.findings.given) == {"liver"}
    np.testing.assert_array_equal(liver_known.segmentation.array > 0, drawn.array > 0)
    assert all(lesion.confidence is not None for lesion in liver_known.findings.lesions)


def test_property_measure_runs_no_network_for_masks_and_leaves_what_segment_leaves(
    folder, capsys, monkeypatch
):
    asked = []
    model = Bundle.model

    def watched(self: Bundle, part: str) -> Any:
        asked.append(part)
        return model(self, part)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a given mask is not sought")

    monkeypatch.setattr(Bundle, "model", watched)
    monkeypatch.setattr("hepar.pipeline.find_liver", never)
    monkeypatch.setattr("hepar.pipeline.find_lesions", never)
    out = folder / "measured"
    code, text, _ = run(
        capsys, "measure", folder / "study", folder / "label.nii.gz", "-o", out, "--json", "-q"
    )
    assert code == 0
    assert set(asked) == {"liver"}, "of phases and registration; the tumor network is not loaded"
    document = json.loads(text)
    truth = read_label(folder / "label.nii.gz")
    np.testing.assert_array_equal(read_label(out / "segmentation.nii.gz").array, truth.array)
    assert {p.name for p in out.iterdir()} == {
        *("segmentation.nii.gz", "lesions.nii.gz", "findings.json", "lesions.csv"),
        *("report.html", "ingest.json", "run.json", "overlay"),
    }
    assert document["given"]["liver"] == "mask on the voxels of the portal venous series"
    record = json.loads((out / "run.json").read_text())
    assert record["hashes"]["given_tumor"] == sha256_file(folder / "label.nii.gz")
    # Its own results cannot be read and replaced at once.
    code, _, err = run(
        capsys, "measure", folder / "study", out / "segmentation.nii.gz", "-o", out, "-q"
    )
    assert code == 2
    assert "E_OUTPUT_PATH" in err
    assert (out / "report.html").exists()


@pytest.mark.parametrize(
    ("verb", "rest", "exit_code", "code"),
    [
        ("measure", ["study", "study/pv.nii.gz"], 10, "E_LABEL_VALUES"),
        ("measure", ["study", "label.nii.gz", "--liver", "study"], 10, "E_MASK_FORMAT"),
        ("segment", ["study", "--liver", "study/pv.nii.gz"], 10, "E_LABEL_VALUES"),
        ("segment", ["study", "--tumor", "label.nii.gz", "--probabilities"], 2, "E_USAGE"),
    ],
)
def test_closed_form_a_mask_that_cannot_be_read_is_refused_before_anything_runs(
    folder, capsys, monkeypatch, verb, rest, exit_code, code
):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("nothing is loaded for a mask that cannot be used")

    monkeypatch.chdir(folder)
    monkeypatch.setattr("hepar.infer.bundle.load_bundle", never)
    found, _, err = run(capsys, verb, *rest, "-o", "refused", "-q")
    assert (found, code in err) == (exit_code, True), err
    assert "remedy: " in err
    assert not (folder / "refused").exists()


@pytest.mark.parametrize(
    ("volumes", "kind", "code"),
    [
        ({}, InputRefused, "E_NO_IMAGE"),
        ({"venous": volume()}, UsageError, "E_USAGE"),
        ({"pv": volume(), "PV": volume()}, UsageError, "E_PHASE_TWICE"),
        (
            {"pv": Volume(np.ones((9, 9, 9), np.uint8), Grid.axial((9, 9, 9), (5.0, 5.0, 5.0)))},
            InputRefused,
            "E_HU_IMPLAUSIBLE",
        ),
        (
            {"art": Volume(np.full((9, 9, 9), np.nan), Grid.axial((9, 9, 9), (5.0, 5.0, 5.0)))},
            InputRefused,
            "E_NONFINITE",
        ),
        (
            {"nc": Volume(np.full((9, 9, 9), 1j), Grid.axial((9, 9, 9), (5.0, 5.0, 5.0)))},
            InputRefused,
            "E_DTYPE",
        ),
    ],
)
def test_closed_form_arrays_that_are_no_study_are_refused(volumes, kind, code):
    with pytest.raises(HeparError) as refusal:
        study_of(volumes)
    assert (type(refusal.value), refusal.value.code) == (kind, code)


def test_closed_form_phases_of_arrays_are_those_that_were_said():
    one, other = volume(seed=1), volume(seed=2)
    floats = Volume(other.array.astype(np.float64) + 0.2, other.grid)
    study = study_of({"pv": one, Phase.ART: floats})
    assert [series.assigned for series in study.series] == [Phase.ART, Phase.PV]
    assert [series.verdict.series_id for series in study.series] == ["s1", "s2"]
    np.testing.assert_array_equal(study.series[0].volume.array, other.array)
    assert study.series[0].volume.array.dtype == np.int16


def test_closed_form_a_device_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="No tpu device") as refusal:
        Pipeline.load(device="tpu")
    assert refusal.value.code == "E_DEVICE"
