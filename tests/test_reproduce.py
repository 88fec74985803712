"""`hepar reproduce`: runs that are kept, resumed and never mixed up, and tables made of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hepar import reproduce as module
from hepar.data.cohort import read_cohort
from hepar.data.protocol import read_protocol
from hepar.errors import HeparError, InputRefused, UsageError
from hepar.evaluate.lits_lesions import server_lesions
from hepar.evaluate.printed import PrintedTable, differences, read_printed, tabulate
from hepar.evaluate.run_columns import COLUMNS, case_values, figure
from hepar.evaluate.run_result import (
    CaseResult,
    DetectedResult,
    LiverResult,
    RunResult,
    ServerResult,
)
from hepar.evaluate.score import score_case
from hepar.evaluate.voxel import Overlap, burden_error, dice_global, tumor_burden
from hepar.geometry import Grid
from hepar.infer.tiling import predict
from hepar.io.nifti import write_nifti
from hepar.networks.resnet import TRUNKS, ResNetTrunk, load_published
from hepar.paper_run import SCALES, Job, papers, recipe_of, run_name
from hepar.recipe import parse_recipe
from hepar.reproduce import reproduce
from hepar.score_cohort import liver_case
from hepar.systems.sam_urim.settings import SamUrimSettings
from hepar.systems.sam_urim.system import SamUrim
from hepar.systems.table import build
from hepar.train.checkpoint import read_tensors, starting_model
from test_recipe import TOY_ROW

SMALL = (*TOY_ROW["sam_urim"], "schedule.steps=1", "schedule.batch_size=2")
SMALL = (*SMALL, "data.samples_per_case=2")
SPACING = (5.0, 2.0, 2.5)


def write_case(folder: Path, name: str, seed: int, tumor: bool = True) -> str:
    """A patient whose arterial series starts two voxels off; a row of `cohort.csv`."""
    rng = np.random.default_rng(seed)
    grid = Grid.axial((4, 30, 28), SPACING)
    label = np.zeros(grid.shape, np.uint8)
    label[:, 4:26, 4:24] = 1
    if tumor:
        label[1:3, 8:16, 8:14] = 2
    for phase, start_mm in (("art", 4.0), ("pv", 0.0)):
        hu = rng.normal(80, 20, grid.shape) - 40 * (label == 2)
        at = Grid.axial(grid.shape, SPACING, (0.0, start_mm, 0.0))
        write_nifti(folder / f"{name}-{phase}.nii.gz", hu.astype(np.int16), at)
    write_nifti(folder / f"{name}-label.nii.gz", label, grid)
    return f"{name},P-{name},{name}-art.nii.gz,{name}-pv.nii.gz,{name}-label.nii.gz"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    lines = ["case_id,patient_id,art,pv,label,split,fold,primary"]
    splits = ("train", "train", "validation", "test", "test", "test")
    for number, split in enumerate(splits):
        row = write_case(folder, f"c{number}", number, tumor=number != 5)
        fold = "" if split == "test" else str(number % 2)
        kind = ("hcc", "cyst")[number % 2] if number != 5 else ""
        lines.append(f"{row},{split},{fold},{kind}")
    (folder / "cohort.csv").write_text("\n".join(lines) + "\n")
    return folder / "cohort.csv"


@pytest.fixture
def folds(cohort, tmp_path_factory):
    """The same patients without a test split, in two folds."""
    path = cohort.parent / "folds.csv"
    lines = ["case_id,patient_id,art,pv,label,fold,alignment"]
    for number in range(4):
        c = f"c{number}"
        files = f"{c}-art.nii.gz,{c}-pv.nii.gz,{c}-label.nii.gz"
        lines.append(f"{c},P-{c},{files},{number % 2},tumor_center")
    path.write_text("\n".join(lines) + "\n")
    return path


def job(cohort: Path, out: Path, **changes) -> Job:
    plain = Job("sam_urim", cohort, "toy", out, seeds=(0,), rows=("sp",), overrides=SMALL)
    return replace(plain, **changes)


# ---- runs --------------------------------------------------------------------------------------


def test_property_a_table_is_run_once_and_grows(cohort, tmp_path, monkeypatch):
    first = job(cohort, tmp_path)
    text = reproduce(first, "table3").read_text()
    result = RunResult.read(tmp_path / "sp-toy-0.json")
    assert [case.case_id for case in result.cases] == ["c3", "c4", "c5"]
    assert (result.fold, result.steps, result.alignment) == (None, 1, "none")
    assert [case.type for case in result.cases] == ["cyst", "hcc", ""]
    assert _cells(text, "SP")[-3:-1] == ["3", "1"]
    assert "not run" not in _cells(text, "SP")
    assert "not run" in _cells(text, "SP + MP")
    assert "uses the truth" not in text

    def never(*_, **__):
        raise AssertionError("what is finished is not trained again")

    monkeypatch.setattr(module, "train", never)
    assert reproduce(first, "table3").read_text() == text
    monkeypatch.undo()
    again = reproduce(replace(first, rows=("add",)), "table3").read_text()
    assert (tmp_path / "add-toy-0.json").exists()
    assert "every row less SP" in again
    assert (tmp_path / "table3-toy.csv").read_text().startswith('"row"')


def test_property_results_of_something_else_are_never_taken(cohort, tmp_path):
    first = job(cohort, tmp_path)
    reproduce(first, "table3")
    kept = (tmp_path / "sp-toy-0.json").read_bytes()
    with pytest.raises(UsageError, match="another recipe") as caught:
        reproduce(replace(first, overrides=(*SMALL, "schedule.lr=0.5")), "table3")
    assert caught.value.code == "E_RESULT"
    lines = cohort.read_text().splitlines()
    fewer = cohort.parent / "fewer.csv"
    fewer.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(UsageError, match="another cohort"):
        reproduce(replace(first, cohort=fewer), "table3")
    assert (tmp_path / "sp-toy-0.json").read_bytes() == kept


def test_property_folds_are_pooled_and_truth_in_the_alignment_is_said(folds, tmp_path):
    path = reproduce(job(folds, tmp_path), "table3")
    assert {p.name for p in tmp_path.glob("*.json")} == {
        "sp-toy-0-fold0.json",
        "sp-toy-0-fold1.json",
    }
    parts = [RunResult.read(p) for p in sorted(tmp_path.glob("*.json"))]
    tested = [{case.case_id for case in part.cases} for part in parts]
    assert tested == [{"c0", "c2"}, {"c1", "c3"}]
    assert "at test time this uses the truth" in path.read_text()
    assert _cells(path.read_text(), "SP")[-3] == "4"
    # A single fold is a table of its own cases.
    alone = reproduce(job(folds, tmp_path, fold=1), "table3").read_text()
    assert _cells(alone, "SP")[-3] == "2"


def test_property_a_table_holds_every_seed_in_the_folder(cohort, tmp_path):
    reproduce(job(cohort, tmp_path), "table3")
    text = reproduce(job(cohort, tmp_path, seeds=(4,)), "table3").read_text()
    assert _cells(text, "SP")[-3:-1] == ["3", "2"]


def test_property_cohorts_of_other_files_are_told_from_other_patients(cohort, tmp_path):
    first = job(cohort, tmp_path)
    reproduce(first, "table3")
    other = RunResult.read(tmp_path / "sp-toy-0.json").model_copy(
        update={"seed": 1, "cohort_sha256": "1" * 64}
    )
    asked = replace(first, seeds=(1,))
    hashed = other.model_copy(update={"recipe_sha256": module.run_hash(asked, "sp", 1, None)})
    hashed.write(tmp_path / "sp-toy-1.json")
    text = reproduce(first, "table3").read_text()
    assert "111111111111" in text
    assert "The files of these cohorts differ" in text
    assert "cannot be compared" not in text
    case = hashed.cases[0]
    larger = case.model_copy(update={"reference": case.reference + 1})
    hashed.model_copy(update={"cases": (larger, *hashed.cases[1:])}).write(
        tmp_path / "sp-toy-1.json"
    )
    assert "cannot be compared" in reproduce(first, "table3").read_text()


def _cells(text: str, row: str) -> list[str]:
    """The cells of a row; the last three are cases, seeds and undefined ones."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {row} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_property_two_processes_share_a_folder(cohort, tmp_path):
    work = job(cohort, tmp_path)
    protocol = read_protocol(cohort)
    with module._alone(tmp_path / "runs" / "sp-toy-0") as mine:
        assert mine
        assert module.run(work, "sp", 0, None, protocol) is None
    assert not list(tmp_path.glob("*.json"))
    assert module.run(work, "sp", 0, None, protocol) is not None


@pytest.mark.parametrize(
    ("changes", "table", "words"),
    [
        ({"system": "sam_urin"}, "table3", "no system 'sam_urin'"),
        ({}, "table9", "no table 'table9'"),
        ({"rows": ("san",)}, "table3", "no row 'san'"),
    ],
)
def test_errors_name_what_there_is(cohort, tmp_path, changes, table, words):
    with pytest.raises(UsageError, match=words) as caught:
        reproduce(job(cohort, tmp_path / "out", **changes), table)
    assert caught.value.code == "E_SUBJECT"
    assert not (tmp_path / "out").exists()


def test_errors_a_cohort_without_test_patients_or_phases(cohort, tmp_path):
    plain = cohort.parent / "plain.csv"
    plain.write_text("case_id,patient_id,pv,label\na,a,c0-pv.nii.gz,c0-label.nii.gz\n")
    with pytest.raises(UsageError, match="neither a test split nor folds"):
        reproduce(job(plain, tmp_path / "out"), "table3")
    lines = [line.replace("c0-art.nii.gz", "") for line in cohort.read_text().splitlines()]
    lacking = cohort.parent / "lacking.csv"
    lacking.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputRefused, match="1 cases lack, c0 among them") as caught:
        reproduce(job(lacking, tmp_path / "out", rows=("ilf",)), "table1")
    assert caught.value.code == "E_PHASES_REQUIRED"


def test_oracle_a_case_is_segmented_as_the_network_says(cohort, tmp_path):
    """Against tiling alone: own spacing, true liver, probability of one half."""
    reproduce(job(cohort, tmp_path, rows=("add",)), "table3")
    recipe = recipe_of(job(cohort, tmp_path), "add", 0, None)
    system = build(recipe.system)
    weights = tmp_path / "runs" / run_name("add", "toy", 0, None) / "best.safetensors"
    system.load_state_dict(read_tensors(weights)[0])
    case = read_cohort(cohort)[3]
    liver, label = liver_case(case, system.input_spec, recipe.data.margin_mm)
    # The arterial series lies on the reference voxels now: moved by two of them.
    art = liver.aligned.volumes["ART"].array
    assert art.shape == label.array.shape
    assert (art[:, :2] == -1024).all()
    box = liver.box.slices
    hu = {str(p): v.array[box] for p, v in liver.aligned.volumes.items()}
    found = predict(system, hu, SPACING, liver=liver.liver[box], classes=("tumor",))[0] >= 0.5
    truth = label.array[box]
    predicted = np.where(found & (truth > 0), 2, truth > 0).astype(np.uint8)
    score = score_case("c3", predicted, truth, SPACING, patient_id="P-c3")
    lesions = server_lesions(predicted, truth, SPACING, score.lesions.lits)
    expected = CaseResult.of(score, "cyst", lesions=lesions)
    kept = RunResult.read(tmp_path / "add-toy-0.json").cases[0]
    assert kept == expected


# ---- figures -----------------------------------------------------------------------------------


def result(case: str, *, both: int, predicted: int, reference: int, **changes) -> CaseResult:
    outcome = {(True, True): "both", (False, True): "missed", (True, False): "false"}.get(
        (predicted > 0, reference > 0), "empty"
    )
    total = predicted + reference
    surface = 2.0 if outcome == "both" else None
    fields = {
        "case_id": case,
        "patient_id": case,
        "type": "hcc",
        "outcome": outcome,
        "dice": 2 * both / total if total else None,
        "voe": 1 - both / (total - both) if total else None,
        "rvd": (predicted - reference) / reference if reference else None,
        "assd_mm": surface,
        "rmsd_mm": surface,
        "overlap": both,
        "predicted": predicted,
        "reference": reference,
        "diagonal_mm": 300.0,
        "lesions": int(reference > 0),
        "found": int(both > 0),
        "false": int(predicted > 0 and both == 0),
    }
    return CaseResult(**(fields | changes))


def test_closed_form_figures_of_four_cases():
    cases = (
        result("a", both=30, predicted=40, reference=60),
        result("b", both=0, predicted=0, reference=20, type="cyst"),
        result("c", both=0, predicted=10, reference=0, type=""),
        result("d", both=0, predicted=0, reference=0, type=""),
    )
    second = (replace_case(cases[0], dice=0.8), *cases[1:])
    value = {key: figure((cases, second), key) for key in COLUMNS}
    assert case_values(cases, "dpc") == {"a": 0.6, "b": 0.0, "c": 0.0, "d": None}
    assert value["dpc"].value == pytest.approx((0.7 + 0 + 0) / 3)
    assert value["dg"].value == pytest.approx(60 / 130)
    assert value["asd"].value == pytest.approx((2 + 300 + 300) / 3)
    assert value["asd_both"].value == pytest.approx(2.0)
    assert value["rvd"].value == pytest.approx((-1 / 3 - 1) / 2)
    assert value["recall"].value == pytest.approx(0.5)
    assert value["false"].value == pytest.approx(0.25)
    assert value["hcc"].value == pytest.approx(0.7)
    assert value["cyst"].value == 0.0
    assert value["fnh"] is None
    assert (value["dpc"].n, value["dpc"].n_undefined, value["dpc"].seeds) == (3, 1, 2)


def replace_case(case: CaseResult, **changes) -> CaseResult:
    return case.model_copy(update=changes)


def liver(both: int, predicted: int, reference: int) -> LiverResult:
    plain = result("x", both=both, predicted=predicted, reference=reference)
    names = ("outcome", "dice", "assd_mm", "overlap", "predicted", "reference")
    return LiverResult(**{name: getattr(plain, name) for name in names})


def test_closed_form_figures_of_the_challenges_server_and_of_hd95():
    def server(n_reference: int, n_predicted: int, *detected: tuple[float, ...]) -> ServerResult:
        names = ("dice", "rvd", "assd_mm", "msd_mm")
        return ServerResult(
            n_reference=n_reference,
            n_predicted=n_predicted,
            tp_reference=len(detected),
            tp_predicted=len(detected),
            detected=tuple(
                DetectedResult(**dict(zip(names, one, strict=True))) for one in detected
            ),
        )

    known = liver(300, 320, 400).model_copy(update={"rvd": -0.2, "hd_mm": 9.0})
    missed = liver(0, 0, 200).model_copy(update={"rvd": -1.0})
    found = server(2, 3, (0.9, 0.1, 0.5, 2.0), (0.8, -0.3, 1.5, 4.0))
    cases = (
        result("a", both=30, predicted=40, reference=60, hd95_mm=5.0, server=found, liver=known),
        result("b", both=0, predicted=0, reference=20, server=server(1, 0), liver=missed),
    )
    keys = ("lesion_rvd", "lesion_asd", "lesion_hd", "precision50", "recall50", "hd95", "rvd_share")
    keys = (*keys, "liver_rvd", "liver_hd")
    value = {key: figure((cases,), key).value for key in keys}
    expected = (-0.1, 1.0, 3.0, 2 / 3, 2 / 3, (5 + 300) / 2, (-1 / 3 - 1) / 2, -0.6, (9 + 300) / 2)
    assert value == pytest.approx(dict(zip(keys, expected, strict=True)))
    # Results that are older than these columns do not have them, and say so.
    old = result("a", both=30, predicted=40, reference=60, liver=liver(300, 320, 400))
    assert [key for key in keys if figure(((old,),), key) is not None] == ["rvd_share"]


def with_livers() -> tuple[CaseResult, ...]:
    """Three patients, one of them twice; of the last no liver was found."""
    return (
        result("a", both=30, predicted=40, reference=60, liver=liver(300, 320, 400)),
        result("b", both=5, predicted=5, reference=20, liver=liver(90, 100, 100)),
        result("c", both=0, predicted=10, reference=0, liver=liver(500, 500, 500), patient_id="a"),
        result("d", both=0, predicted=0, reference=10, liver=liver(0, 0, 200)),
    )


def test_closed_form_figures_of_livers_and_burdens():
    cases = with_livers()
    value = {key: figure((cases,), key) for key in ("liver_dpc", "liver_dg", "burden", "liver_asd")}
    dice = {"a": 600 / 720, "b": 0.9, "c": 1.0, "d": 0.0}
    assert case_values(cases, "liver_dpc") == pytest.approx(dice)
    assert value["liver_dpc"].value == pytest.approx(sum(dice.values()) / 4)
    assert value["liver_dg"].value == pytest.approx(2 * 890 / (920 + 1200))
    errors = [40 / 320 - 60 / 400, 5 / 100 - 20 / 100, 10 / 500, 0 - 10 / 200]
    assert value["burden"].value == pytest.approx(np.sqrt(np.mean(np.square(errors))))
    # A missed liver is as far away as the image is long.
    assert value["liver_asd"].value == pytest.approx((2 + 2 + 2 + 300) / 4)
    assert all(v.n == 4 and v.n_undefined == 0 for v in value.values())


def test_oracle_figures_are_those_of_the_measures_themselves():
    """Burden and global Dice against `evaluate.voxel`, seeds averaged after the root."""
    cases = with_livers()
    other = (replace_case(cases[0], predicted=60), *cases[1:])

    def rmse(run):
        found = [tumor_burden(c.predicted, c.liver.predicted) for c in run]
        true = [tumor_burden(c.reference, c.liver.reference) for c in run]
        return burden_error(found, true).rmse

    both = figure((cases, other), "burden")
    assert both.value == pytest.approx((rmse(cases) + rmse(other)) / 2)
    # Patients are drawn, so the interval holds the errors of single patients, a's two cases as one.
    patients = [rmse([c for c in cases if c.patient_id == p]) for p in ("a", "b", "d")]
    low, high = figure((cases,), "burden").interval
    assert min(patients) <= low < rmse(cases) < high <= max(patients)
    pooled = [Overlap(c.liver.predicted, c.liver.reference, c.liver.overlap, 1.0) for c in cases]
    assert figure((cases,), "liver_dg").value == pytest.approx(dice_global(pooled))


def test_property_a_table_of_livers_shows_what_each_row_looks_for():
    rows = ({"name": n, "recipe": n} for n in ("given", "first", "pair", "better"))
    table = PrintedTable(
        title="t", columns=("liver_dpc", "dpc", "burden"), baseline="pair", rows=tuple(rows)
    )
    pair = with_livers()
    given = tuple(replace_case(case, liver=None) for case in pair)
    first = tuple(replace_case(case, tumor=False) for case in pair)
    runs = {"given": (given,), "first": (first,), "pair": (pair,), "better": (pair, pair)}
    text = tabulate(table, runs).markdown()
    ours = {name: _cells(text, name)[2:13:2] for name in runs}
    # Of liver DPC, DPC, burden RMSE, liver ASD, and of tumor alone ASD both.
    assert [cells == "-" for cells in ours["given"][:5]] == [True, False, True, True, False]
    assert [cells == "-" for cells in ours["first"][:5]] == [False, True, True, False, True]
    assert "-" not in ours["pair"]
    assert ours["pair"][2].startswith("0.081")
    assert "liver DPC, % ↑ ours" in text
    assert "burden RMSE ↓ ours" in text
    compared = differences(table, runs)
    parts = {part.split(":")[0]: part for part in compared.split("### ")[1:]}
    assert list(parts) == ["liver DPC", "DPC", "false a patient"]
    named = {key: [n for n in runs if f"| {n} " in part] for key, part in parts.items()}
    assert named["liver DPC"] == ["first", "better"]
    assert named["DPC"] == named["false a patient"] == ["given", "better"]


def test_regression_tables_of_results_without_livers_stay_byte_for_byte(tmp_path):
    kept = Path(__file__).resolve().parents[1] / "papers" / "results" / "sam_urim"
    for path in kept.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    work = Job("sam_urim", Path("cohort.csv"), "toy", tmp_path)
    made = module.write_table(work, papers("sam_urim"), "table3", (None,))
    for path in (made, made.with_suffix(".csv")):
        assert path.read_bytes() == (kept / path.name).read_bytes()


def test_property_a_result_reads_back_and_lies_a_case_a_line(tmp_path):
    cases = tuple(result(f"c{i}", both=i, predicted=9, reference=9) for i in range(2))
    cases = (*cases, with_livers()[0])
    whole = RunResult(
        system="sam_urim",
        row="sp",
        scale="toy",
        seed=0,
        fold=None,
        recipe_sha256="a",
        cohort_sha256="b",
        weights_sha256="c",
        code="d",
        device="cpu",
        parameters=1,
        steps=2,
        train_seconds=1.5,
        test_seconds=0.5,
        cases=cases,
    )
    whole.write(tmp_path / "r.json")
    assert RunResult.read(tmp_path / "r.json") == whole
    assert json.loads((tmp_path / "r.json").read_text())["row"] == "sp"
    assert sum("case_id" in line for line in (tmp_path / "r.json").read_text().splitlines()) == 3


# ---- what the paper printed --------------------------------------------------------------------


def test_regression_the_papers_tables():
    printed = papers("sam_urim")
    assert list(printed.tables) == ["table1", "table2", "table3", "backbones"]
    figures = {row.name: row.paper for row in printed.tables["table3"].rows}
    assert figures["SP"] == ("68.85", "83.31", "40.07", "-19.22", "21.53", "27.73")
    assert figures["SP + MP + SAM + URIM"][0] == "80.12"


def test_regression_the_tables_of_e2net():
    printed = papers("e2net")
    assert list(printed.tables) == ["table1", "table2", "table3", "beyond"]
    figures = {row.name: row.paper for row in printed.tables["table1"].rows}
    assert figures["E2Net (ours)"] == ("96.4", "96.8", "72.4", "82.9", "0.015")
    assert figures["2.5DResUNet (2D)"] == ("-", "-", "67.0", "-", "-")
    # Column sums of what is printed, so that no figure of the thirteen rows can slip.
    sums = [sum(float(f[k]) for f in figures.values() if f[k] != "-") for k in range(5)]
    assert sums == pytest.approx([1051.8, 1055.1, 876.8, 885.8, 0.152])
    figures = {row.name: row.paper for row in printed.tables["table2"].rows}
    assert figures["E2Net (ours)"] == ("98.9", "95.7")
    assert figures["Foruzan et al."] == ("-", "82.0")
    rows = {row.name: row for row in printed.tables["table3"].rows}
    assert [(row.run, row.paper) for row in rows.values()] == [
        ("stage1", ("95.3", "-")),
        ("baseline+stage1", ("96.1", "71.4")),
        ("edge+stage1", ("96.6", "72.2")),
        ("dist+stage1", ("97.1", "72.9")),
        ("edge-dcff+stage1", ("97.5", "73.7")),
        ("dist-dcff+stage1", ("97.8", "74.8")),
        ("stage1-e2net", ()),
        ("dist-dcff+stage1-e2net", ()),
    ]
    assert rows["E2Net in both stages"].against == "+ dist + DCFF"


def test_regression_the_tables_of_dpcnet():
    printed = papers("dpcnet")
    assert list(printed.tables) == [*(f"table{n}" for n in range(1, 6)), "beyond"]
    # Column sums of what is printed, so that no figure can slip.
    sums = {
        "table1": [394.76, 53.03, 633.85, 30.08],
        "table2": [347.55, 41.67, 547.07, 23.93],
        "table3": [171.97, 22.72, 274.96, 11.95],
        "table4": [276.84, 0.69, 37.99, 160.26],
        "table5": [493.1, -0.023, 6.978, 30.678, 671.0, -0.005, 10.345, 14.672, 2.142, 1.995],
    }
    for name, expected in sums.items():
        rows = [row.paper for row in printed.tables[name].rows]
        columns = range(len(expected))
        found = [sum(float(row[k]) for row in rows if row[k] != "-") for k in columns]
        assert found == pytest.approx(expected, abs=1e-6), name
    last = printed.tables["table5"].rows[-1]
    assert (last.recipe, last.paper[0], last.paper[2]) == ("dpcnet", "76.4", "0.838")


def test_regression_the_tables_of_lidia():
    printed = papers("lidia")
    assert list(printed.tables) == ["table1", "table2", "table3", "external", "phases"]
    figures = {row.name: row.paper for row in printed.tables["table1"].rows}
    assert figures["LIDIA"] == ("0.936", "0.946", "0.886", "0.866", "0.8812", "0.869")
    # AUC-8 is the mean of the eight, but for the rounding of each of them.
    for name, of_paper in (("table2", 4), ("table3", 6)):
        rows = printed.tables[name].rows
        assert [bool(row.paper) for row in rows[:of_paper]] == [True] * of_paper
        assert not any(row.paper for row in rows[of_paper:])  # those are ours
        for row in rows[:of_paper]:
            *types, mean = (float(text) for text in row.paper)
            assert sum(types) / 8 == pytest.approx(mean, abs=0.0011), row.name
    rows = {row.name: row for row in printed.tables["table3"].rows}
    # LiverMax scores the patients of the runs that are there already.
    assert [rows[n].run for n in ("+Focal Loss", "+LiverMax")] == ["focal", "focal"]
    assert [rows[n].score for n in ("+Focal Loss", "+LiverMax")] == ["mask_size", "livermax"]
    shown = [row.phases for row in printed.tables["phases"].rows]
    assert len(shown) == len(set(shown)) == 15
    assert {row.recipe for row in printed.tables["phases"].rows} == {"lidia"}
    assert printed.tables["phases"].rows[8].run == "lidia@ART.PV"


@pytest.mark.parametrize("system", ["sam_urim", "e2net", "dpcnet", "lidia"])
def test_regression_every_row_of_the_papers_has_its_recipes(system):
    """First stages see whole images and know the liver; the others look for tumors."""
    rows = [row for table in papers(system).tables.values() for row in table.rows if row.recipe]
    livers = {row.liver for row in rows if row.liver}
    for name in {row.recipe for row in rows} | livers:
        recipes = [recipe_of(Job(system, Path("c.csv"), s, Path()), name, 1, 3) for s in SCALES]
        with torch.device("meta"):
            specs = [build(recipe.system).input_spec for recipe in recipes]
        spec = specs[0]
        assert all(other.class_names == spec.class_names for other in specs)
        assert bool(spec.tumor_classes) == (name not in livers)
        assert spec.typed == (system == "lidia")
        if name in livers:
            assert "liver" in spec.class_names
            assert not spec.needs_liver


def test_property_a_table_shows_both_sides_and_differences():
    printed = papers("sam_urim").tables["backbones"]
    good = tuple(result(f"c{i}", both=8, predicted=9, reference=10) for i in range(6))
    poor = tuple(result(f"c{i}", both=2 + i % 2, predicted=9, reference=10) for i in range(6))
    runs = {"add": (poor,), "sam_urim": (good,)}
    text = tabulate(printed, runs).markdown()
    assert "75.31" in text
    assert "84.2 ± 0.0" in text
    assert "+4.50" in text
    compared = differences(printed, runs)
    assert "every row less ResNeXt-50, FLF-add" in compared
    assert "better" in compared
    assert "U-Net" not in compared


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"columns": ("dpc", "dic")}, "no columns"),
        ({"rows": ({"name": "a", "recipe": "a", "paper": ("1", "2")},)}, "has 2 figures"),
        ({"rows": ({"name": "a", "recipe": "a", "against": "b"},)}, "compared with b"),
        ({"baseline": "z"}, "no row z"),
    ],
)
def test_errors_in_a_printed_table_are_named(changes, words, tmp_path):
    plain = {"title": "t", "columns": ("dpc",), "rows": ({"name": "a", "recipe": "a"},)}
    with pytest.raises(ValueError, match=words):
        PrintedTable.model_validate(plain | changes)
    (tmp_path / "p.yaml").write_text("paper: x\ncohort: y\ntable: {}\n")
    with pytest.raises(UsageError, match=r"p\.yaml"):
        read_printed(tmp_path / "p.yaml")


# ---- published weights -------------------------------------------------------------------------


def published(channels: int = 3) -> dict[str, torch.Tensor]:
    """A state dict as torchvision's ResNet-50 has it, classifier included."""
    torch.manual_seed(1)
    state = ResNetTrunk(TRUNKS["resnet50"].of_width(16), channels).state_dict()
    return {**state, "fc.weight": torch.zeros(10, 4), "fc.bias": torch.zeros(10)}


def settings(**changes) -> dict:
    return {
        "name": "sam_urim",
        "backbone": "resnet50",
        "base_width": 16,
        "patch": [32, 32],
        "slice_offsets": [-1, 0, 1],
        **changes,
    }


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_oracle_a_trunk_starts_from_published_weights_by_name(suffix, tmp_path):
    state = published()
    path = tmp_path / f"resnet50.{suffix}"
    if suffix == "pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    tree = {"name": "a", "system": settings(), "data": {"kind": "phantom"}}
    tree["schedule"] = {"steps": 1, "trunk_weights": str(path)}
    model = starting_model(parse_recipe(tree))
    for name, value in model.trunks[0].state_dict().items():
        assert torch.equal(value, state[name]), name
    with pytest.raises(UsageError, match=r"is \(|missing"):
        starting_model(parse_recipe({**tree, "system": settings(backbone="resnext50")}))
    with pytest.raises(UsageError, match="no published weights of a unet"):
        starting_model(parse_recipe({**tree, "system": settings(backbone="unet")}))
    path.write_bytes(b"not a model")
    with pytest.raises(HeparError, match=r"cannot be read|has a header of"):
        starting_model(parse_recipe(tree))


def test_closed_form_five_slices_see_what_three_equal_ones_saw():
    state = published()
    trunk = ResNetTrunk(TRUNKS["resnet50"].of_width(16), 5).eval()
    other = ResNetTrunk(TRUNKS["resnet50"].of_width(16), 3).eval()
    load_published(trunk, state)
    load_published(other, state)
    image = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        five = trunk.conv1(image.expand(-1, 5, -1, -1))
        three = other.conv1(image.expand(-1, 3, -1, -1))
    torch.testing.assert_close(five, three)
    before = {n: v.clone() for n, v in trunk.state_dict().items()}
    with pytest.raises(ValueError, match="missing"):
        load_published(trunk, {"conv1.weight": state["conv1.weight"]})
    assert all(torch.equal(v, before[n]) for n, v in trunk.state_dict().items())


def test_property_names_of_the_papers_backbone_are_torchvisions():
    with torch.device("meta"):
        state = SamUrim(SamUrimSettings()).trunks[0].state_dict()
    for name in ("conv1.weight", "bn1.running_var", "layer1.0.downsample.0.weight"):
        assert name in state
    assert state["layer4.2.conv2.weight"].shape == (1024, 32, 3, 3)
    assert len(state) == 318  # of torchvision's 320, the classifier's two apart
