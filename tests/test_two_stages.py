"""Rows whose liver is found by another row: what each stage sees, and what is kept of the pair."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy import ndimage
from torch import nn

from hepar import paper_run, score_cohort
from hepar import reproduce as module
from hepar.data.cache import ArrayCache
from hepar.data.cohort import read_cohort
from hepar.errors import UsageError
from hepar.evaluate.lits_lesions import server_lesions
from hepar.evaluate.printed import Printed
from hepar.evaluate.run_result import CaseResult, RunResult
from hepar.evaluate.score import score_case
from hepar.geometry import Grid
from hepar.infer.tiling import predict
from hepar.io.nifti import read_label, read_nifti, write_nifti
from hepar.paper_run import Job, papers, recipe_of
from hepar.recipe import parse_recipe
from hepar.reproduce import reproduce, write_table
from hepar.score_cohort import FirstStage, find_organ, look_in_liver, scored_cases
from hepar.study import Phase, Volume
from hepar.systems.base import InputSpec
from hepar.systems.table import build
from hepar.train.checkpoint import read_tensors, starting_model, write_tensors
from hepar.train.loop import TrainResult

SPACING = (5.0, 2.0, 2.5)
GRID = Grid.axial((4, 24, 20), SPACING)
LIVER_HU, TUMOR_HU, OUTSIDE_HU = 90, 190, -60


class ByHu(nn.Module):
    """A network that names voxels by their HU: liver from 50, tumor from 150, where it knows it."""

    def __init__(self, *names: str, spacing_mm=None, needs_liver: bool = False) -> None:
        super().__init__()
        self.input_spec = InputSpec(
            dims=2,
            phases=("PV",),
            class_names=("background", *names),
            windows_hu=((-200.0, 300.0),),
            slice_offsets_mm=(0.0,),
            spacing_mm=spacing_mm,
            patch=(8, 8),
            stride=1,
            needs_liver=needs_liver,
        )
        self.gain = nn.Parameter(torch.tensor(100.0))
        self.seen = 0

    def forward(self, image, present):
        self.seen += len(image)
        return image[:, 0, 0]

    def decode(self, outputs):
        hu = outputs * 500 - 200
        organ, tumor = (torch.sigmoid(self.gain * (hu - at)) for at in (50.0, 150.0))
        shares = {"background": 1 - organ, "liver": organ - tumor, "tumor": tumor}
        if "tumor" not in self.input_spec.class_names:
            shares["liver"] = organ
        return torch.stack([shares[name] for name in self.input_spec.class_names], 1)


def volumes(hu: np.ndarray) -> dict[Phase, Volume]:
    return {Phase.PV: Volume(hu.astype(np.int16), GRID)}


def image(*boxes: tuple[slice, slice, slice]) -> np.ndarray:
    hu = np.full(GRID.shape, OUTSIDE_HU, np.int16)
    for box in boxes:
        hu[box] = LIVER_HU
    return hu


def put(folder: Path, name: str, hu: np.ndarray, label: np.ndarray) -> str:
    write_nifti(folder / f"{name}.nii.gz", hu.astype(np.int16), GRID)
    write_nifti(folder / f"{name}-label.nii.gz", label.astype(np.uint8), GRID)
    return f"{name},P-{name},{name}.nii.gz,{name}-label.nii.gz"


def stage(names=("liver",), cache: ArrayCache | None = None, **changes) -> FirstStage:
    fields = {
        "name": "stage1",
        "system": ByHu(*names),
        "settings": {"name": "by_hu"},
        "weights_sha256": "w",
        "cache": cache or ArrayCache(None),
    }
    return FirstStage(**(fields | changes))


# ---- what each stage sees ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("boxes", "kept"),
    [
        ((), None),
        # Of two pieces the larger one; here they lie in different slices.
        (((slice(0, 1), slice(2, 6), slice(2, 6)), (slice(2, 4), slice(3, 9), slice(3, 9))), 1),
        # At the borders of the image, on all sides.
        (((slice(0, 4), slice(0, 24), slice(0, 10)), (slice(0, 1), slice(2, 3), slice(15, 20))), 0),
        # One slice alone.
        (((slice(3, 4), slice(5, 12), slice(5, 12)),), 0),
    ],
)
def test_closed_form_the_first_stage_keeps_the_largest_piece(boxes, kept):
    found = find_organ(ByHu("liver"), volumes(image(*boxes)), GRID)
    expected = np.zeros(GRID.shape, bool)
    if kept is not None:
        expected[boxes[kept]] = True
    np.testing.assert_array_equal(found, expected)


def test_closed_form_a_probability_of_one_half_is_liver_to_the_second_stage_alone():
    hu = np.full(GRID.shape, 50, np.int16)
    assert not find_organ(ByHu("liver"), volumes(hu), GRID).any()
    labels = look_in_liver(ByHu("liver", "tumor"), volumes(hu), GRID, np.ones(GRID.shape, bool))
    assert (labels == 1).all()
    hu[:] = 150
    labels = look_in_liver(ByHu("liver", "tumor"), volumes(hu), GRID, np.ones(GRID.shape, bool))
    assert (labels == 2).all()


def test_property_the_second_stage_draws_beyond_the_liver_in_its_slices_alone():
    """Whole slices are seen where liver was found, and none elsewhere."""
    box = (slice(0, 4), slice(2, 12), slice(2, 12))
    hu = image(box)
    hu[:, 5:7, 5:7] = TUMOR_HU
    found = np.zeros(GRID.shape, bool)
    found[2, 4:6, 4:6] = True
    second = ByHu("liver", "tumor")
    labels = look_in_liver(second, volumes(hu), GRID, found)
    assert second.seen == 1
    expected = np.zeros(GRID.shape, np.uint8)
    expected[2, 2:12, 2:12] = 1
    expected[2, 5:7, 5:7] = 2
    np.testing.assert_array_equal(labels, expected)
    # A network that knows no liver leaves the first stage's, tumors added.
    alone = look_in_liver(ByHu("tumor"), volumes(hu), GRID, found)
    expected = found.astype(np.uint8)
    expected[2, 5:7, 5:7] = 2
    np.testing.assert_array_equal(alone, expected)


def test_property_a_coarse_system_answers_on_the_images_own_voxels():
    box = (slice(0, 4), slice(4, 20), slice(4, 16))
    coarse = ByHu("liver", spacing_mm=(5.0, 4.0, 5.0))
    found = find_organ(coarse, volumes(image(box)), GRID)
    expected = np.zeros(GRID.shape, bool)
    expected[box] = True
    np.testing.assert_array_equal(found, expected)


def test_property_a_liver_is_found_once_whatever_asks_for_it(tmp_path):
    row = put(tmp_path, "a", image((slice(0, 3), slice(2, 9), slice(2, 9))), np.ones(GRID.shape))
    (tmp_path / "cohort.csv").write_text(f"case_id,patient_id,pv,label\n{row}\n")
    case = read_cohort(tmp_path / "cohort.csv")[0]
    kept = stage(cache=ArrayCache(tmp_path / "cache"))
    liver = kept(case)
    assert liver.sum() == 3 * 7 * 7
    assert kept.system.seen > 0
    again = stage(cache=ArrayCache(tmp_path / "cache"))
    np.testing.assert_array_equal(again(case), liver)
    assert again.system.seen == 0
    # Other weights, another system and another image are other livers.
    for changes in ({"weights_sha256": "v"}, {"settings": {"name": "other"}}):
        other = stage(cache=ArrayCache(tmp_path / "cache"), **changes)
        other(case)
        assert other.system.seen > 0
    write_nifti(tmp_path / "a.nii.gz", image((slice(0, 1), slice(0, 2), slice(0, 2))), GRID)
    assert again(case).sum() == 4


@pytest.mark.parametrize(
    ("names", "needs_liver", "words"),
    [
        (("tumor",), False, "classes are background, tumor"),
        (("liver",), True, "needs a liver mask"),
    ],
)
def test_errors_what_cannot_find_a_liver_is_refused(names, needs_liver, words):
    with pytest.raises(UsageError, match=words) as caught:
        stage(system=ByHu(*names, needs_liver=needs_liver))
    assert caught.value.code == "E_RECIPE"


def scored(tmp_path, cases, second, first):
    lines = [put(tmp_path, name, hu, label) for name, (hu, label) in cases.items()]
    (tmp_path / "c.csv").write_text("\n".join(["case_id,patient_id,pv,label", *lines]) + "\n")
    data = parse_recipe(
        {
            "name": "a",
            "system": {"name": "sam_urim"},
            "data": {"kind": "cohort", "path": str(tmp_path / "c.csv")},
            "schedule": {"steps": 1},
        }
    ).data
    told = read_cohort(tmp_path / "c.csv")
    return list(scored_cases(told, second, data, "cpu", lambda text: None, first))


def truth(box, tumor=None) -> np.ndarray:
    label = np.zeros(GRID.shape, np.uint8)
    label[box] = 1
    if tumor is not None:
        label[tumor] = 2
    return label


def test_closed_form_scores_of_found_livers_and_of_none(tmp_path):
    box, tumor = (slice(1, 3), slice(4, 14), slice(4, 14)), (slice(1, 3), slice(5, 7), slice(5, 7))
    hu = image((slice(1, 3), slice(4, 14), slice(4, 9)))
    hu[tumor] = TUMOR_HU
    cases = {
        "half": (hu, truth(box, tumor)),
        "unseen": (np.where(image(box) > 0, 40, OUTSIDE_HU), truth(box, tumor)),
        "healthy": (image(box), truth(box)),
    }
    half, unseen, healthy = scored(tmp_path, cases, ByHu("liver", "tumor"), stage())
    assert (half.liver.overlap, half.liver.predicted, half.liver.reference) == (100, 100, 200)
    assert (half.liver.dice, half.dice) == (pytest.approx(2 / 3, abs=1e-6), 1.0)
    assert half.burden_error == pytest.approx(8 / 100 - 8 / 200)
    assert (unseen.liver.outcome, unseen.outcome) == ("missed", "missed")
    assert (unseen.liver.predicted, unseen.predicted, unseen.found) == (0, 0, 0)
    assert (unseen.lesions, unseen.tumor) == (1, True)
    assert unseen.burden_error == pytest.approx(-8 / 200)
    assert (healthy.liver.dice, healthy.outcome, healthy.burden_error) == (1.0, "empty", 0.0)
    # The first stage as a row of its own: nothing is said of tumors.
    alone = scored(tmp_path, cases, ByHu("liver"), None)
    assert [case.tumor for case in alone] == [False, False, False]
    assert [case.liver.outcome for case in alone] == ["both", "missed", "both"]
    assert alone[0].liver == half.liver


def test_property_a_given_liver_is_not_scored(tmp_path):
    box, tumor = (slice(1, 3), slice(4, 14), slice(4, 14)), (slice(1, 3), slice(5, 7), slice(5, 7))
    hu = image(box)
    hu[tumor] = TUMOR_HU
    system = ByHu("tumor", needs_liver=True)
    (case,) = scored(tmp_path, {"a": (hu, truth(box, tumor))}, system, None)
    assert (case.liver, case.tumor, case.dice) == (None, True, 1.0)
    with pytest.raises(UsageError, match="cannot find livers"):
        scored(tmp_path, {"a": (hu, truth(box))}, ByHu("liver", needs_liver=True), None)
    with pytest.raises(ValueError, match="the liver was given"):
        _ = case.burden_error


# ---- runs of pairs -----------------------------------------------------------------------------

SYSTEM = """
  name: sam_urim
  phases: [PV]
  fusion: none
  urim: false
  needs_liver: false
  preset: toy
  base_width: 16
  decoder_width: 8
  patch: [32, 32]
"""
TABLE = """
paper: a paper
cohort: its cohort
tables:
  t:
    title: Two stages
    columns: [liver_dpc, dpc, burden]
    baseline: whole
    rows:
      - {name: first, recipe: find}
      - {name: whole, recipe: draw}
      - {name: pair, recipe: draw, liver: find, paper: ["90", "50", "0.1"]}
      - {name: other pair, recipe: other, liver: find, against: pair}
      - {name: elsewhere, paper: ["80", "-", "-"]}
"""


def write_checkout(folder: Path) -> Path:
    """Recipes of a first stage and of two second ones, and a table of them."""
    (folder / "recipes" / "two" / "scale").mkdir(parents=True)
    (folder / "papers").mkdir()
    (folder / "papers" / "two.yaml").write_text(TABLE)
    toy = f"name: toy\nsystem:{SYSTEM}data:\n  kind: cohort\n  path: c.csv\n"
    toy += "  samples_per_case: 2\nschedule: {steps: 1, batch_size: 2}\n"
    (folder / "recipes" / "two" / "scale" / "toy.yaml").write_text(toy)
    for name, classes in (("find", ""), ("draw", ", tumor"), ("other", ", tumor")):
        text = f"extends: scale/toy.yaml\nname: {name}\n"
        text += f"system: {{class_names: [background, liver{classes}]}}\n"
        (folder / "recipes" / "two" / f"{name}.yaml").write_text(text)
    return folder


def start_training(patch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is trained from now on; a first stage starts with weights and keeps them."""
    done: list[str] = []
    real = module.train

    def start(recipe, out_dir, **rest):
        weights = out_dir / "best.safetensors"
        if not weights.exists():
            done.append(out_dir.name)
        if "tumor" in recipe.system.class_names:
            return real(recipe, out_dir, **rest)
        if not weights.exists():
            torch.manual_seed(recipe.seed)
            write_tensors(weights, starting_model(recipe).state_dict(), {})
        return TrainResult(weights, 1, None, 1, 0, 2.0)

    patch.setattr(module, "train", start)
    return done


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    folder = write_checkout(tmp_path / "checkout")
    monkeypatch.setattr(paper_run, "_checkout", lambda: folder)
    return folder


@pytest.fixture
def trained(monkeypatch) -> list[str]:
    return start_training(monkeypatch)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    lines = ["case_id,patient_id,pv,label,split"]
    box, tumor = (slice(1, 4), slice(4, 18), slice(4, 16)), (slice(1, 3), slice(5, 9), slice(5, 9))
    for number, split in enumerate(("train", "validation", "test", "test")):
        rng = np.random.default_rng(number)
        label = truth(box, tumor)
        hu = rng.normal(60, 40, GRID.shape) - 30 * (label == 2)
        lines.append(put(folder, f"c{number}", hu, label) + f",{split}")
    (folder / "cohort.csv").write_text("\n".join(lines) + "\n")
    return folder / "cohort.csv"


@pytest.fixture(scope="module")
def done(cohort, tmp_path_factory) -> tuple[Path, list[str], str]:
    """Results of the rows `draw` and `draw+find`, what was trained for them, and their table."""
    folder = tmp_path_factory.mktemp("done")
    checkout = write_checkout(folder / "checkout")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper_run, "_checkout", lambda: checkout)
        names = start_training(patch)
        table = reproduce(job(cohort, folder / "out", rows=("draw",)), "t")
    torch.set_num_threads(threads)
    return folder / "out", names, table.read_text()


@pytest.fixture
def out(done, tmp_path) -> Path:
    """A copy of those results to go on with."""
    return Path(shutil.copytree(done[0], tmp_path / "out"))


def job(cohort: Path, out: Path, **changes) -> Job:
    return replace(Job("two", cohort, "toy", out, seeds=(0,)), **changes)


def row_of(text: str, name: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {name} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_property_pairs_share_weights_and_livers(done):
    out, trained, text = done
    assert sorted(p.name for p in out.glob("*.json")) == ["draw+find-toy-0.json", "draw-toy-0.json"]
    assert trained == ["draw-toy-0", "find-toy-0"]
    pair, given = (RunResult.read(out / f"{n}-toy-0.json") for n in ("draw+find", "draw"))
    assert (pair.row, given.row) == ("draw+find", "draw")
    assert pair.weights_sha256 == given.weights_sha256 != pair.liver_weights_sha256
    assert given.liver_weights_sha256 is None
    assert pair.recipe_sha256 != given.recipe_sha256
    assert all(case.liver is not None for case in pair.cases)
    # The second stage alone draws its liver around the cohort's own, in every slice that has it.
    assert [case.liver.reference for case in given.cases] == [3 * 14 * 12] * 2
    # Columns: paper and ours of liver DPC, DPC and burden.
    assert not {"-", "not run"} & set(row_of(text, "whole")[2:7:2])
    assert row_of(text, "pair")[1::2][:3] == ["90", "50", "0.1"]
    assert not {"-", "not run"} & set(row_of(text, "pair")[2:7:2])
    assert row_of(text, "first")[2] == "not run"
    assert row_of(text, "elsewhere")[1:7] == ["80", "quoted", "-", "quoted", "-", "quoted"]


def test_property_livers_of_a_seed_are_found_once(checkout, trained, out, cohort, monkeypatch):
    def never(*_, **__):
        raise AssertionError("a liver is found once")

    monkeypatch.setattr(score_cohort, "find_organ", never)
    text = reproduce(job(cohort, out, rows=("other",)), "t").read_text()
    assert trained == ["other-toy-0"]
    assert "liver DPC: every row less pair" in text
    assert (out / "other+find-toy-0.json").exists()


def test_oracle_a_pair_is_what_both_networks_say(checkout, done, cohort):
    """Against tiling and scipy alone."""
    work = job(cohort, done[0])
    nets = []
    for name in ("find", "draw"):
        net = build(recipe_of(work, name, 0, None).system)
        weights = work.runs / f"{name}-toy-0" / "best.safetensors"
        net.load_state_dict(read_tensors(weights)[0])
        nets.append(net)
    hu = {"PV": read_nifti(cohort.parent / "c2.nii.gz").array}
    label = read_label(cohort.parent / "c2-label.nii.gz").array
    likely = predict(nets[0], hu, SPACING, classes=("liver",))[0] > 0.5
    pieces, count = ndimage.label(likely, np.ones((3, 3, 3)))
    assert count > 0
    liver = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
    found = predict(nets[1], hu, SPACING, liver=liver, classes=("liver", "tumor"))
    predicted = (found.sum(axis=0) >= 0.5).astype(np.uint8)
    predicted[found[1] >= 0.5] = 2
    score = score_case("c2", predicted, label, SPACING, patient_id="P-c2")
    lesions = server_lesions(predicted, label, SPACING, score.lesions.lits)
    expected = CaseResult.of(score, "", found_liver=True, lesions=lesions)
    kept = RunResult.read(work.out / "draw+find-toy-0.json")
    assert kept.cases[0] == expected
    assert kept.train_seconds > 0


def test_property_a_first_stage_row_shows_its_liver_alone(checkout, trained, out, cohort):
    text = reproduce(job(cohort, out, rows=("find",)), "t").read_text()
    assert trained == []
    result = RunResult.read(out / "find-toy-0.json")
    assert not any(case.tumor for case in result.cases)
    cells = row_of(text, "first")
    assert cells[2] not in ("-", "not run")
    assert cells[4] == cells[6] == "-"
    assert cells[-3:-1] == ["2", "1"]
    heading = "DPC: every row less whole"
    livers = text.split(f"### liver {heading}")[1].split("###")[0]
    tumors = text.split(f"### {heading}")[1].split("###")[0]
    assert [name in livers for name in ("first", "pair")] == [True, True]
    assert [f"| {name}" in tumors for name in ("first", "pair")] == [False, True]
    records = (out / "t-toy.csv").read_text().splitlines()
    assert next(r for r in records if r.startswith('"first","dpc"')).split(",")[3] == '"run"'


@pytest.mark.parametrize("changed", ["draw", "find"])
def test_property_a_pair_is_refused_when_either_recipe_changed(
    changed, checkout, trained, out, cohort
):
    (out / "draw-toy-0.json").unlink()
    path = checkout / "recipes" / "two" / f"{changed}.yaml"
    path.write_text(path.read_text() + "augment: {p: 0.1}\n")
    with pytest.raises(UsageError, match=r"draw\+find-toy-0\.json is the result of another recipe"):
        write_table(job(cohort, out), papers("two"), "t", (None,))


def test_property_a_first_stage_at_work_elsewhere_is_waited_for(checkout, cohort, tmp_path):
    work = job(cohort, tmp_path / "out")
    folder = work.runs / "find-toy-0"
    order: list[str] = []

    def later() -> None:
        with module._alone(folder, wait=True) as mine:
            order.append(f"second {mine}")

    with module._alone(folder) as mine:
        assert mine
        other = threading.Thread(target=later)
        other.start()
        other.join(0.2)
        assert other.is_alive()
        order.append("first")
    other.join(10)
    assert order == ["first", "second True"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"name": "x", "liver": "find"}, "a first stage and no recipe"),
        ({"name": "x", "recipe": "find", "liver": "draw"}, "find livers and have a first stage"),
        ({"name": "x", "recipe": "draw", "liver": "draw"}, "find livers and have a first stage"),
    ],
)
def test_errors_of_first_stages_are_named(row, words):
    tree = yaml.safe_load(TABLE)
    tree["tables"]["t"]["rows"].append(row)
    with pytest.raises(ValueError, match=words):
        Printed.model_validate(tree)
