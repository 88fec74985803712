"""Recipes: every shipped one loads and takes a step, and a mistake is named with its remedy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from hepar.errors import UsageError
from hepar.geometry import Grid
from hepar.io.nifti import write_nifti
from hepar.recipe import Recipe, dump_recipe, load_recipe, parse_recipe, recipe_hash, row_hash
from hepar.systems.table import SYSTEMS, build, lookup
from hepar.train.loop import train
from hepar.train.schedule import in_steps, learning_rate

ROOT = Path(__file__).resolve().parents[1]
SCALES = ("toy", "reduced", "full")
# Rows of papers lie beside a folder of scales, one of which each of them extends.
ROWS = sorted(
    path
    for folder in (ROOT / "recipes").glob("*/scale")
    for path in folder.parent.glob("*.yaml")
    if "scale/full.yaml" in path.read_text()
)
RECIPES = sorted(
    path
    for path in (ROOT / "recipes").rglob("*.yaml")
    if path not in ROWS and path.parent.name != "scale"
)
LITE = ROOT / "recipes" / "sam_urim" / "lite.yaml"

# What makes any recipe of a system and a kind of data small enough for a test.
TOY = {
    "sam_urim": (
        "system.spacing_mm=[8.0, 5.0, 5.0]",
        "system.patch=[32, 32]",
        "system.decoder_width=8",
        "system.urim_width=8",
        "system.pyramid_width=2",
    ),
    "context_unet3d": ("system.widths=[4, 8]", "system.patch=[16, 16, 16]"),
    "multiphase_unet3d": (
        "system.widths=[4, 8]",
        "system.patch=[8, 16, 16]",
        "system.spacing_mm=[8.0, 5.0, 5.0]",
    ),
    **dict.fromkeys(
        ("mc_fcn", "mw_unet", "pa_resseg"),
        ("system.spacing_mm=[8.0, 5.0, 5.0]", "system.patch=[64, 64]", "system.base_width=4"),
    ),
    "phantom": (
        "data.train_patients=1",
        "data.validation_patients=1",
        "data.paints=1",
    ),
    "organ": (
        "data.phantoms=1",
        "data.validation_phantoms=1",
        "data.validation_warps=0",
        "data.phantom_shape=[32, 32, 32]",
        "data.phantom_spacing_mm=[8.0, 10.0, 10.0]",
    ),
    "cohort": ("data.samples_per_case=2",),
    "all": (
        "schedule.counted_in=steps",
        "schedule.steps=1",
        "schedule.batch_size=2",
        "schedule.warmup=0",
    ),
}


# Of rows only sizes are changed, never what makes the row.
TOY_ROW = {
    "dpcnet": ("system.width=4", "system.stages=4", "system.patch=[24, 16, 16]"),
    "nnunet": (
        "system.patch=[8, 16, 16]",
        "system.channels=[4, 8]",
        "system.strides=[[2, 2, 2]]",
        "system.kernels=[[3, 3, 3], [3, 3, 3]]",
    ),
    "lidia": (
        "system.patch=[12, 16, 16]",
        "system.channels=[4, 8, 8]",
        "system.strides=[[2, 2, 2], [2, 2, 2]]",
        "system.kernels=[[3, 3, 3], [3, 3, 3], [3, 3, 3]]",
        "system.memory_levels=[2, 1]",
        "system.width=8",
        "system.heads=2",
        "system.feedforward=16",
        "system.contrast_width=8",
        "system.queries=8",
        "system.points=64",
    ),
    "plan": (
        "system.patch=[12, 16, 16]",
        "system.channels=[4, 8, 8]",
        "system.strides=[[2, 2, 2], [2, 2, 2]]",
        "system.kernels=[[3, 3, 3], [3, 3, 3], [3, 3, 3]]",
        "system.memory_levels=[2, 1]",
        "system.width=8",
        "system.heads=2",
        "system.feedforward=16",
        "system.patient_width=8",
        "system.patient_heads=2",
        "system.patient_feedforward=16",
        "system.patient_grid=[1, 2, 2]",
        "system.patient_levels=[2, 1]",
        "system.queries=8",
        "system.points=64",
    ),
    "sam_urim": (
        "system.base_width=16",
        "system.patch=[32, 32]",
        "system.decoder_width=8",
        "system.urim_width=8",
    ),
    "mc_fcn": ("system.base_width=4", "system.patch=[32, 32]"),
    "mw_unet": ("system.base_width=4", "system.patch=[32, 32]"),
    "pa_resseg": ("system.base_width=4", "system.patch=[32, 32]"),
    "e2net": (
        "system.base_width=8",
        "system.width=4",
        "system.slice_patch=[64, 64]",
        "system.box_patch=[64, 64]",
    ),
}


def plain(**changes):
    tree = {
        "name": "a",
        "system": {"name": "sam_urim", "preset": "lite"},
        "data": {"kind": "phantom"},
        "schedule": {"steps": 3},
    }
    return {**tree, **changes}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Two patients on disk, one of them held out, the types of their lesions told."""
    folder = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(0)
    lines = ["case_id,patient_id,nc,art,pv,label,instances,split"]
    for name, split in (("a", "train"), ("b", "validation")):
        grid = Grid.axial((3, 32, 32), (5.0, 2.0, 2.0))
        label = np.zeros(grid.shape, np.uint8)
        label[:, 4:28, 4:28], label[1, 10:16, 10:16] = 1, 2
        for phase in ("nc", "art", "pv"):
            write_nifti(folder / f"{name}-{phase}.nii", rng.integers(0, 150, grid.shape), grid)
        write_nifti(folder / f"{name}-label.nii", label, grid)
        write_nifti(folder / f"{name}-instances.nii", (label == 2).astype(np.uint8), grid)
        files = [f"{name}-{kind}.nii" for kind in ("nc", "art", "pv", "label", "instances")]
        lines.append(",".join([name, name, *files, split]))
    (folder / "lesions.csv").write_text("case_id,lesion_id,type\na,1,hcc\nb,1,other\n")
    (folder / "cohort.csv").write_text("\n".join(lines) + "\n")
    return folder / "cohort.csv"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: str(p.relative_to(ROOT / "recipes")))
def test_property_every_recipe_loads_and_takes_a_step(path, cache, tmp_path):
    recipe = load_recipe(path)
    small = (*TOY[recipe.system.name], *TOY[recipe.data.kind], *TOY["all"])
    take_a_step(load_recipe(path, small), cache, tmp_path)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("path", ROWS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_closed_form_every_row_of_a_paper_at_every_scale_has_its_size(path, scale):
    row = load_recipe(path, base=path.parent / "scale" / f"{scale}.yaml")
    if path.parent.name in ("dpcnet", "lidia"):
        full = (128 if path.parent.name == "dpcnet" else 64, 128, 128)
        sizes = {"toy": (32, 64, 64), "reduced": (32, 128, 128), "full": full}
        assert row.system.patch == sizes[scale]
        return
    published = {"e2net": {1: 448, 2: 256}}.get(path.parent.name, {})
    side = published.get(getattr(row.system, "stage", 0), 512) if scale == "full" else 128
    assert row.system.patch == (side, side)


@pytest.mark.parametrize(
    "scale", ["toy", *(pytest.param(s, marks=pytest.mark.full) for s in ("reduced", "full"))]
)
@pytest.mark.parametrize("path", ROWS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_property_every_row_of_a_paper_takes_a_step_at_every_scale(
    path, scale, cohort, cache, tmp_path
):
    base = path.parent / "scale" / f"{scale}.yaml"
    name = load_recipe(path, base=base).system.name
    small = (*TOY_ROW[name], *TOY["cohort"], *TOY["all"])
    small = (*small, f"data.path={cohort}", "data.fold=null")
    take_a_step(load_recipe(path, small, base=base), cache, tmp_path)


def take_a_step(recipe, cache, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result = train(recipe, tmp_path, cache_dir=cache, workers=0)
    torch.set_num_threads(threads)
    assert (result.steps, result.skipped_steps) == (1, 0)
    assert result.weights.exists()
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    assert set(load_file(result.weights)) == set(build(recipe.system).state_dict())


def test_property_dumped_recipe_reads_back_equal(tmp_path):
    recipe = load_recipe(LITE)
    (tmp_path / "r.yaml").write_text(dump_recipe(recipe))
    again = load_recipe(tmp_path / "r.yaml")
    assert again == recipe
    assert recipe_hash(again) == recipe_hash(recipe)
    assert recipe_hash(recipe.model_copy(update={"seed": 9})) != recipe_hash(recipe)


def test_property_overrides_apply_last_and_leave_the_rest():
    recipe = load_recipe(
        LITE, ("schedule.lr=1e-3", "schedule.ema_decay=null", "system.phases=[ART, PV]", "seed=4")
    )
    assert (recipe.schedule.lr, recipe.schedule.ema_decay, recipe.seed) == (1e-3, None, 4)
    assert recipe.system.phases == ("ART", "PV")
    assert recipe.schedule.steps == load_recipe(LITE).schedule.steps


def test_property_extends_goes_one_level_deep(tmp_path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(plain()))
    (tmp_path / "row.yaml").write_text("extends: base.yaml\nschedule: {lr: 1e-2}\n")
    row = load_recipe(tmp_path / "row.yaml")
    assert (row.schedule.lr, row.schedule.steps, row.name) == (0.01, 3, "a")
    (tmp_path / "deep.yaml").write_text("extends: row.yaml\n")
    with pytest.raises(UsageError, match="itself extends"):
        load_recipe(tmp_path / "deep.yaml")


def test_property_a_row_takes_its_scale_from_another_base(tmp_path):
    for scale, steps in (("full", 9), ("toy", 3)):
        tree = {"name": scale, "data": {"kind": "phantom"}, "schedule": {"steps": steps}}
        tree |= {"system": {"preset": "lite"}, "seed": 5}
        (tmp_path / f"{scale}.yaml").write_text(yaml.safe_dump(tree))
    row = tmp_path / "row.yaml"
    row.write_text("extends: full.yaml\nname: row\nsystem: {name: sam_urim, urim: false}\n")
    full, toy = load_recipe(row), load_recipe(row, base=tmp_path / "toy.yaml")
    assert (full.schedule.steps, toy.schedule.steps) == (9, 3)
    for recipe in (full, toy):
        assert (recipe.name, recipe.seed, recipe.system.urim) == ("row", 5, False)
        assert recipe.system.decoder_width == 64  # the scale's preset, of the row's system


def test_closed_form_epochs_become_steps():
    epochs = {"counted_in": "epochs", "steps": 150, "lr_schedule": "step", "lr_every": 50}
    tree = plain(schedule={**epochs, "batch_size": 4, "validate_every": 3})
    recipe = in_steps(parse_recipe(tree), samples=97 * 64 + 1)
    schedule = recipe.schedule
    assert (schedule.counted_in, schedule.steps, schedule.lr_every) == ("steps", 232950, 77650)
    assert schedule.validate_every == 3 * 1553
    assert in_steps(recipe, samples=3) == recipe
    rates = [learning_rate(schedule, step) for step in (0, 77649, 77650, 155300)]
    np.testing.assert_allclose(rates, [5e-4, 5e-4, 5e-5, 5e-6])


def test_property_another_member_of_a_union_replaces_the_section(tmp_path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(plain(data={"kind": "phantom"})))
    (tmp_path / "row.yaml").write_text(
        "extends: base.yaml\ndata: {kind: cohort, path: c/cohort.csv, fold: 1}\n"
    )
    assert load_recipe(tmp_path / "row.yaml").data.path == Path("c/cohort.csv")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedule": {"steps": 3, "learning_rate": 1.0}}, ["schedule.learning_rate"]),
        ({"schedule": {"steps": 3, "batchsize": 1}}, ["schedule.batchsize", "'batch_size'"]),
        ({"shedule": {}}, ["shedule", "'schedule'"]),
        (
            {"data": {"kind": "phantom", "bank": "a.bank", "anatomies": ["one"]}},
            ["bank or anatomies, not both"],
        ),
        (
            {"system": {"name": "sam_urim", "preset": "lite", "pyramid_widht": 2}},
            ["system.pyramid_widht", "'pyramid_width'"],
        ),
        ({"system": {"name": "sam_urin"}}, ["system", "'sam_urim'"]),
        ({"system": {"name": "sam_urim", "preset": "lit"}}, ["system.preset", "'lit'"]),
        ({"data": {"kind": "phantoms"}}, ["data", "'phantom'"]),
        (
            {"data": {"kind": "phantom", "phase_dropout": {"q": 1}}},
            ["data.phase_dropout.q", "keep_reference"],
        ),
        ({"schedule": {"steps": 0}}, ["schedule.steps"]),
        ({"schedule": {"steps": "many"}}, ["schedule.steps"]),
        ({"schedule": {"steps": 3, "lr": float("inf")}}, ["schedule.lr"]),
        ({"augment": {"scale": [1.2, 0.8]}}, ["augment", "smallest"]),
        ({"schedule": None}, ["schedule"]),
    ],
)
def test_property_a_mistake_names_its_key_and_the_nearest_name(changes, words):
    with pytest.raises(UsageError) as caught:
        parse_recipe(plain(**changes))
    assert caught.value.code == "E_RECIPE"
    assert caught.value.exit_code == 2
    for word in words:
        assert word in caught.value.message


@pytest.mark.parametrize(
    "override", ["lr", "=3", "schedule.=3", "schedule.lr.x=3", "name.x=3", "schedule.lrr=3", "a=["]
)
def test_property_a_bad_override_is_refused(override):
    with pytest.raises(UsageError) as caught:
        load_recipe(LITE, (override,))
    assert caught.value.code == "E_RECIPE"


@pytest.mark.parametrize("text", [None, "[1, 2]", "a: [", "!!python/object:os.system {}", "\xff"])
def test_property_what_is_no_recipe_is_refused(text, tmp_path):
    path = tmp_path / "r.yaml"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError) as caught:
        load_recipe(path)
    assert caught.value.code == ("E_YAML" if "!!" in str(text) else "E_RECIPE")


def test_property_recipes_are_frozen():
    recipe = parse_recipe(plain())
    assert isinstance(recipe, Recipe)
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3


def test_property_recipes_need_no_torch():
    script = "import sys, hepar.recipe, hepar.systems.table; sys.exit('torch' in sys.modules)"
    path = {"PYTHONPATH": str(ROOT / "src")}
    assert subprocess.run([sys.executable, "-c", script], env=path).returncode == 0


def test_property_the_table_and_the_union_agree():
    for name, entry in SYSTEMS.items():
        assert entry.settings.model_fields["name"].default == name
    with pytest.raises(UsageError, match="no system"):
        lookup("unet")


def test_property_the_hash_of_a_row_knows_what_makes_it_and_nothing_else():
    row = parse_recipe(plain(data={"kind": "cohort", "path": "here/cohort.csv"}))
    moved = parse_recipe(plain(data={"kind": "cohort", "path": "there/cohort.csv"}))
    said = parse_recipe(
        plain(
            data={"kind": "cohort", "path": "here/cohort.csv"},
            schedule={"steps": 3, "batch_size": 8},
        )
    )
    assert row_hash(row) == row_hash(moved) == row_hash(said)
    for changes in ({"seed": 1}, {"schedule": {"steps": 4}}, {"data": {"kind": "phantom"}}):
        other = parse_recipe(plain(data={"kind": "cohort", "path": "a"}) | changes)
        assert row_hash(other) != row_hash(row)
