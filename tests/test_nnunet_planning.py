"""nnU-Net's plan: held to nnunetv2's own planner; the fingerprint of a cohort, and its recipe."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from command import run
from hepar.data.fingerprint import fingerprint, frequencies, intensity, plannable
from hepar.data.planned_recipe import planned_recipe
from hepar.errors import InputRefused, UsageError
from hepar.geometry import Grid
from hepar.infer.describe import describe
from hepar.io.nifti import write_nifti
from hepar.recipe import dump_recipe, load_recipe
from hepar.systems.baselines.nnunet.planning import (
    Configuration,
    Fingerprint,
    Intensity,
    activations,
    plan,
    target_spacing,
    topology,
)
from hepar.train.loop import train

PLANS = json.loads(Path(__file__).with_name("nnunet_plans.json").read_text())["plans"]
FIELDS = ("median_shape", "patch", "strides", "kernels", "channels", "batch_size", "batch_dice")
GRID = Grid.axial((10, 20, 24), (5.0, 3.0, 3.0))
# A phase that was scanned elsewhere: half a slice lower, with smaller voxels.
OTHER = Grid.axial((20, 32, 38), (3.0, 2.0, 2.0), (1.0, 1.0, -2.0))


def made_up(rows: list[list[float]]) -> Fingerprint:
    """A fingerprint of rows (how often, shape, spacing)."""
    shapes = [(int(z), int(y), int(x)) for n, z, y, x, *_ in rows for _ in range(int(n))]
    spacings = [tuple(mm) for n, _, _, _, *mm in rows for _ in range(int(n))]
    return Fingerprint(tuple(shapes), tuple(spacings), ("PV",), (Intensity(0.0, 1.0, 0.5, 0.1),))


@pytest.mark.parametrize("name", PLANS)
def test_oracle_plans_are_those_of_nnunet(name):
    expected = PLANS[name]["plan"]
    found = plan(made_up(PLANS[name]["cases"]))
    assert (found.lowres is not None) == ("3d_lowres" in expected)
    for own in (found.fullres, found.lowres):
        if own is not None:
            assert_same(own, expected[own.name])


def assert_same(own: Configuration, theirs: dict) -> None:
    assert own.spacing_mm == pytest.approx(tuple(theirs["spacing_mm"]), rel=1e-12)
    for field in FIELDS:
        # Tuples as the lists of a JSON file.
        assert json.loads(json.dumps(getattr(own, field))) == theirs[field], field


def test_closed_form_the_made_up_cohorts_reach_every_rule():
    fine = {name: entry["plan"]["3d_fullres"] for name, entry in PLANS.items()}
    assert {"3d_lowres" in entry["plan"] for entry in PLANS.values()} == {True, False}
    assert {plan["batch_dice"] for plan in fine.values()} == {True, False}
    assert any([1, 3, 3] in plan["kernels"] for plan in fine.values())
    assert any([1, 2, 2] in plan["strides"] for plan in fine.values())
    assert max(plan["batch_size"] for plan in fine.values()) > 2
    assert len({len(plan["channels"]) for plan in fine.values()}) > 3


def test_closed_form_a_thick_axis_takes_its_10th_percentile():
    shapes = np.array([[40, 512, 512]] * 11)
    spacings = np.array([[1.0 + z, 0.7, 0.7] for z in range(11)])
    assert target_spacing(shapes, spacings) == pytest.approx([2.0, 0.7, 0.7])
    # As many voxels as the others have: the median.
    assert target_spacing(shapes * [10, 1, 1], spacings) == pytest.approx([6.0, 0.7, 0.7])
    thin = spacings - [0.9, 0.0, 0.0]
    thin[:3, 0] = 0.1
    assert target_spacing(shapes, thin) == pytest.approx([0.70001, 0.7, 0.7], abs=1e-12)


def test_closed_form_topology_by_hand():
    found = topology((5.0, 1.0, 1.0), (10, 40, 40))
    # 40, 20, 10 pixels in the plane until its 2 mm, then 4 mm, are within twice of 5 mm.
    assert found.strides == ((1, 2, 2), (1, 2, 2), (2, 2, 2))
    assert found.kernels == ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3))
    assert found.patch == (10, 40, 40)
    # An axis alone is halved only where 12 voxels are left of it.
    assert topology((1.0, 1.0, 1.0), (7, 7, 11)).strides == ()
    assert topology((1.0, 1.0, 1.0), (7, 7, 12)).strides == ((1, 1, 2),)
    assert topology((1.0, 1.0, 1.0), (9, 9.5, 17)).patch == (10, 10, 18)


def test_closed_form_activations_by_hand():
    two = topology((1.0, 1.0, 1.0), (8, 8, 8))
    assert two.strides == ((2, 2, 2),)
    # Two convolutions of 64 channels in 4 cubed; in 8 cubed 2 + 2, a transposed one, and logits.
    assert activations(two, 3) == 2 * 64 * 64 + (5 * 32 + 3) * 512


def test_property_memory_buys_larger_patches_and_smaller_cases_a_refusal():
    cases = made_up(PLANS["LiTS as published"]["cases"])
    patches = [np.prod(plan(cases, memory_gb=gb).fullres.patch) for gb in (4, 8, 24)]
    assert patches[0] < patches[1] < patches[2]
    with pytest.raises(ValueError, match="too small"):
        plan(made_up([[3, 5, 6, 7, 1.0, 1.0, 1.0]]))
    with pytest.raises(ValueError, match="a case"):
        plan(made_up([]))


def test_closed_form_each_case_counts_the_same():
    everywhere = np.ones((1, 2, 3), bool)
    a = frequencies(np.full((1, 2, 3), -1200, np.int16), everywhere)
    b = frequencies(np.full((1, 2, 3), 20, np.int16), np.array([[[1, 0, 0], [0, 0, 0]]], bool))
    found = intensity(a + b)
    assert (found.low, found.high) == (-1200.0, 20.0)
    assert (found.mean, found.std) == pytest.approx((-590.0, 610.0))


def test_oracle_percentiles_are_those_of_a_large_draw_with_replacement():
    rng = np.random.default_rng(0)
    cases = [rng.normal(mean, 25, size).astype(np.int16) for mean, size in ((90, 4000), (140, 700))]
    mask = [np.ones((1, 1, case.size), bool) for case in cases]
    pairs = zip(cases, mask, strict=True)
    found = intensity(sum(frequencies(c[None, None], m) for c, m in pairs))
    pooled = np.concatenate([rng.choice(case, 400_000) for case in cases])
    assert (found.low, found.high) == pytest.approx(np.percentile(pooled, (0.5, 99.5)), abs=1.01)
    assert found.mean == pytest.approx(pooled.mean(), abs=0.3)
    assert found.std == pytest.approx(pooled.std(), abs=0.3)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """Three patients trained on, one held out, one of the test split; some lack a phase."""
    folder = tmp_path_factory.mktemp("planned")
    lines = ["case_id,patient_id,nc,art,pv,reference,label,split"]
    label = np.zeros(GRID.shape, np.uint8)
    label[2:8, 4:16, 4:20], label[4, 6:10, 6:10] = 1, 2
    splits = {"a": "train", "b": "train", "c": "train", "d": "validation", "e": "test"}
    for number, (name, split) in enumerate(splits.items()):
        level = 100 + 10 * number if split == "train" else 2000
        hu = np.where(label > 0, level + np.arange(24) % 2, -900).astype(np.int16)
        write_nifti(folder / f"{name}-pv.nii", hu, GRID)
        write_nifti(folder / f"{name}-art.nii", np.full(OTHER.shape, level - 50), OTHER)
        (folder / f"{name}-nc.nii").write_bytes((folder / f"{name}-pv.nii").read_bytes())
        write_nifti(folder / f"{name}-label.nii", label, GRID)
        art = np.full(OTHER.shape, level - 50, np.int16)
        art[0] = -900
        write_nifti(folder / f"{name}-art.nii", art, OTHER)
        nc = f"{name}-nc.nii" if name != "b" else ""
        row = (name, name, nc, f"{name}-art.nii", f"{name}-pv.nii", "PV", f"{name}-label.nii")
        lines.append(",".join((*row, split)))
    (folder / "cohort.csv").write_text("\n".join(lines) + "\n")
    return folder / "cohort.csv"


def test_closed_form_fingerprint_of_training_cases_alone(cohort):
    phases, data = plannable(cohort, None)
    assert phases == ("ART", "PV")
    assert (data.fold, data.margin_mm) == (None, None)
    seen = []
    found = fingerprint(data, phases, progress=lambda done, total, name: seen.append((total, name)))
    assert seen == [(3, "a"), (3, "b"), (3, "c")]
    assert found.shapes == (GRID.shape,) * 3
    assert found.spacings_mm == (GRID.spacing_mm,) * 3
    art, pv = found.intensities
    # Half of the voxels one higher; the arterial phase has another grid.
    assert (pv.low, pv.high, pv.mean) == pytest.approx((100.0, 121.0, 110.5))
    assert pv.std == pytest.approx(np.std([100, 101, 110, 111, 120, 121]))
    assert (art.low, art.high, art.mean) == pytest.approx((50.0, 70.0, 60.0))
    again = fingerprint(data, phases)
    assert again == found


def changed(cohort: Path, old: str, new: str, name: str) -> Path:
    path = cohort.with_name(name)
    path.write_text(cohort.read_text().replace(old, new))
    return path


def test_property_who_is_held_out_is_said_or_refused(cohort):
    folds = cohort.with_name("folds.csv")
    lines = cohort.read_text().split("\n")
    numbers = ("fold", "2", "1", "1", "2", "1")
    rows = [f"{line},{n}" for line, n in zip(lines, numbers, strict=False)]
    folds.write_text("\n".join(rows).replace("validation", "train") + "\n")
    assert plannable(folds, None)[1].fold == 1
    assert plannable(folds, 2)[1].fold == 2
    nobody = changed(cohort, "validation", "train", "nobody.csv")
    with pytest.raises(InputRefused) as refused:
        planned_recipe(nobody)
    assert refused.value.code == "E_COHORT"
    phases = changed(cohort, "b-art.nii,b-pv.nii,PV", ",b-pv.nii,PV", "phases.csv")
    assert plannable(phases, None)[0] == ("PV",)
    none = changed(cohort, "c-nc.nii,c-art.nii,c-pv.nii,PV", "c-nc.nii,,,NC", "none.csv")
    with pytest.raises(InputRefused, match="no phase"):
        plannable(none, None)


def test_property_cases_without_foreground_or_too_small_are_refused(cohort):
    folder = cohort.parent
    write_nifti(folder / "empty.nii", np.zeros(GRID.shape, np.uint8), GRID)
    text = cohort.read_text()
    for name in "abc":
        text = text.replace(f"{name}-label.nii", "empty.nii")
    (folder / "empty.csv").write_text(text)
    with pytest.raises(InputRefused, match="no training case") as refused:
        planned_recipe(folder / "empty.csv")
    assert refused.value.code == "E_COHORT"
    small = Grid.axial((5, 6, 7), (3.0, 3.0, 3.0))
    rng = np.random.default_rng(0)
    lines = ["case_id,patient_id,pv,label,split"]
    for name, split in (("s", "train"), ("t", "validation")):
        write_nifti(folder / f"{name}.nii", rng.integers(0, 99, small.shape), small)
        write_nifti(folder / f"{name}-label.nii", np.ones(small.shape, np.uint8), small)
        lines.append(f"{name},{name},{name}.nii,{name}-label.nii,{split}")
    (folder / "small.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputRefused, match="too small") as refused:
        planned_recipe(folder / "small.csv")
    assert refused.value.code == "E_COHORT"


def test_property_the_recipe_loads_and_takes_a_step(cohort, tmp_path):
    planned = planned_recipe(cohort)
    (tmp_path / "planned.yaml").write_text(planned.text())
    assert load_recipe(tmp_path / "planned.yaml") == planned.recipe
    assert planned.text().endswith(dump_recipe(planned.recipe))
    system, fine = planned.recipe.system, planned.plan.fullres
    assert (system.patch, system.strides, system.channels) == (
        fine.patch,
        fine.strides,
        fine.channels,
    )
    assert system.windows_hu == ((50.0, 70.0), (100.0, 121.0))
    assert planned.recipe.schedule.batch_size == fine.batch_size
    levels = len(system.channels)
    small = load_recipe(
        tmp_path / "planned.yaml",
        (
            f"system.channels={[4] * levels}",
            "schedule.steps=1",
            "schedule.batch_size=2",
            "data.samples_per_case=2",
        ),
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result = train(small, tmp_path / "run", cache_dir=tmp_path / "cache", workers=0)
    torch.set_num_threads(threads)
    assert (result.steps, result.skipped_steps) == (1, 0)


def test_property_the_command_writes_the_recipe(cohort, tmp_path, capsys):
    exit_code, out, _ = run(capsys, "info", "nnunet", "--plan", cohort, "-q")
    assert exit_code == 0
    assert yaml.safe_load(out)["system"]["name"] == "nnunet"
    assert out.startswith("# nnU-Net's plan for cohort.csv: 3 training cases, ART + PV.")
    exit_code, said, _ = run(
        capsys, "info", "nnunet", "--plan", cohort.parent, "-o", tmp_path / "out", "-q"
    )
    file = tmp_path / "out" / "nnunet-3d_fullres.yaml"
    assert (exit_code, said.strip()) == (0, str(file))
    assert file.read_text() == out
    _, document, _ = run(capsys, "info", "nnunet", "--plan", cohort, "-q", "--json")
    assert json.loads(document)["recipe"] == load_recipe(file).model_dump(mode="json")
    assert json.loads(document)["fingerprint"]["shapes"] == [list(GRID.shape)] * 3


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("info", "sam_urim", "--plan", "{}"), "E_USAGE"),
        (("info", "nnunet", "--fold", "1"), "E_USAGE"),
        (("info", "nnunet", "--plan", "{}", "--preset", "2d"), "E_PRESET"),
        (("info", "nnunet", "--plan", "{}", "--preset", "3d_lowres"), "E_PRESET"),
        (("info", "nnunet", "--plan", "{}.not"), "E_COHORT"),
    ],
)
def test_property_a_plan_that_cannot_be_is_refused(words, code, cohort, tmp_path, capsys):
    words = [word.format(cohort) for word in words]
    out = () if "--fold" in words else ("-o", tmp_path / "out")
    exit_code, said, err = run(capsys, *words, "-q", *out)
    assert exit_code in (UsageError.exit_code, InputRefused.exit_code)
    assert code in err
    assert not said
    assert not (tmp_path / "out").exists()


def test_regression_every_system_is_described():
    systems = describe(None)["systems"]
    assert {"nnunet", "context_unet3d", "multiphase_unet3d"} <= set(systems)
    assert all(systems.values())
    for name in ("context_unet3d", "multiphase_unet3d"):
        found = describe(name)
        assert sum(found["modules"].values()) == found["parameters"]
        assert found["gflops"] > 0
