"""Typed lesions on their way to a network: tables, resampling, cuts, warps, balance, scores."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fake_systems import spec_3d
from hepar.data import phantoms
from hepar.data.augment import Augmentation, warp
from hepar.data.cohort import read_case, read_cohort, read_instances
from hepar.data.cohort_cases import CohortCases
from hepar.data.lesion_table import read_lesion_types
from hepar.data.patches import cut, draw_patch, whole_case
from hepar.data.phantom_bank import read_bank, write_bank
from hepar.data.phantom_cases import PhantomCases
from hepar.data.phantom_cohort import PRESETS, enroll
from hepar.data.prepared_case import (
    TYPE_NUMBERS,
    PreparedCase,
    case_of_arrays,
    class_index,
    foreground_voxels,
    slice_contents,
    typed_arrays,
)
from hepar.data.protocol import read_protocol
from hepar.data.sampling import Sample, ValidationCase, collate
from hepar.data.sources import open_source
from hepar.data.tumor_source import CaseSource
from hepar.data.type_balance import TypeBalance
from hepar.errors import InputRefused, UsageError
from hepar.geometry import Grid
from hepar.io.nifti import write_nifti
from hepar.phantom import lesions as phantom_lesions
from hepar.phantom.lesion_kinds import KINDS
from hepar.recipe import Augment, parse_recipe, recipe_hash, row_hash
from hepar.recipe_data import CohortData, PatchSettings, PhantomTumorData
from hepar.study import LESION_TYPES, TUMOR
from hepar.systems.base import Batch, InputSpec
from hepar.systems.baselines.context_unet3d.settings import CONTEXT_CLASSES
from hepar.train.validate import validate

CLASSES = ("background", *LESION_TYPES, "liver")
LIVER_CLASS = 9
UNTYPED = ("background", "liver", "tumor")
SHAPE, SPACING = (10, 40, 36), (5.0, 2.0, 2.0)
# Ids as a reader may give them: with gaps, and in no order of place.
TYPES = {2: "hcc", 5: "cyst", 7: "other"}
BOXES = {
    5: (slice(3, 6), slice(12, 20), slice(10, 17)),
    2: (slice(3, 7), slice(20, 27), slice(10, 19)),  # touches the one above
    7: (slice(5, 6), slice(12, 14), slice(25, 27)),
}
SETTINGS = PatchSettings(lesion_fraction=1.0)


def typed_spec(**changes) -> InputSpec:
    """A 3D system of ten classes."""
    return spec_3d(**{"class_names": CLASSES, "patch": (6, 16, 16), "stride": 2, **changes})


def ids_of() -> np.ndarray:
    ids = np.zeros(SHAPE, np.uint8)
    for number, box in BOXES.items():
        ids[box] = number
    return ids


def label_of(ids: np.ndarray) -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    label[2:8, 8:32, 6:30] = 1
    label[ids > 0] = TUMOR
    return label


def write_case(folder: Path, name: str, grid: Grid, phases=("pv",)) -> str:
    """A case of three lesions; its row of the table."""
    ids = ids_of()
    label = label_of(ids)
    rng = np.random.default_rng(len(name))
    for phase in phases:
        hu = rng.normal(0, 5, SHAPE) + 100 * (label > 0) - 40 * (label == TUMOR)
        write_nifti(folder / f"{name}-{phase}.nii", hu.astype(np.int16), grid)
    write_nifti(folder / f"{name}-label.nii", label, grid)
    write_nifti(folder / f"{name}-ids.nii", ids, grid)
    return f"{name},P{name},{name}-pv.nii,{name}-label.nii,{name}-ids.nii"


HEADER = "case_id,patient_id,pv,label,instances,split"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two cases, one of them stored from right to left and from head to foot."""
    folder = tmp_path_factory.mktemp("typed")
    grids = {
        "a": Grid.axial(SHAPE, SPACING, (3.0, -20.0, 7.5)),
        "bb": Grid(SHAPE, SPACING, (90.0, 11.0, 40.0), (0, 0, -1, 0, 1, 0, -1, 0, 0)),
    }
    rows = [write_case(folder, name, grid) for name, grid in grids.items()]
    lines = [HEADER, f"{rows[0]},train", f"{rows[1]},validation"]
    (folder / "cohort.csv").write_text("\n".join(lines) + "\n")
    write_types(folder, {"a": TYPES, "bb": TYPES})
    return folder


def write_types(folder: Path, types: dict[str, dict[int, str]]) -> None:
    lines = [f"{case},{n},{kind}" for case, rows in types.items() for n, kind in rows.items()]
    (folder / "lesions.csv").write_text("\n".join(["case_id,lesion_id,type", *lines]) + "\n")


def copied(folder: Path, to: Path) -> Path:
    for file in folder.iterdir():
        if file.is_file():
            (to / file.name).write_bytes(file.read_bytes())
    return to


def prepared(ids: np.ndarray | None = None, types=TYPES) -> PreparedCase:
    """A case in memory, whose HU say where a voxel lies."""
    ids = ids_of() if ids is None else ids
    label = label_of(ids)
    liver = label > 0
    z, y, x = np.indices(SHAPE)
    arrays = {
        "hu": (z * 1600 + y * 40 + x)[None].astype(np.int16),
        "label": label,
        "liver": liver,
        "spacing_mm": SPACING,
        "contents": slice_contents(label, liver),
        **typed_arrays(ids, types),
    }
    return case_of_arrays("x", np.ones(1, bool), arrays)


# ---- the system's side ---------------------------------------------------------------------------


def test_closed_form_which_systems_are_typed():
    assert typed_spec().typed
    assert typed_spec().tumor_classes == tuple(range(1, 9))
    for names, tumor in ((UNTYPED, (2,)), (CONTEXT_CLASSES, ()), (("other", "liver"), ())):
        spec = typed_spec(class_names=names)
        assert (spec.typed, spec.tumor_classes) == (False, tumor)


# ---- tables and their mistakes -------------------------------------------------------------------


def test_closed_form_a_table_of_types(tmp_path):
    path = tmp_path / "lesions.csv"
    path.write_text("type;case_id;lesion_id;kind\nHCC;a;1;hcc\nother;a;3;adenoma\ncyst;b;1;\n")
    assert read_lesion_types(path, "cohort") == {"a": {1: "hcc", 3: "other"}, "b": {1: "cyst"}}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("a,1,adenoma", "line 3: type 'adenoma' is none of hcc, icc"),
        ("a,1,", "line 3: type '' is none of"),
        ("a,one,hcc", "line 3: lesion_id 'one' is no whole number"),
        ("a,0,hcc", "line 3: lesion_id '0' is no whole number"),
        ("b,4,hcc", "line 3: lesion_id 4 of case b is there twice"),
    ],
)
def test_property_every_mistake_of_the_table_is_named(tmp_path, row, words):
    path = tmp_path / "lesions.csv"
    path.write_text(f"case_id,lesion_id,type\nb,4,icc\n{row}\n")
    with pytest.raises(InputRefused) as caught:
        read_lesion_types(path, "cohort")
    assert (caught.value.code, caught.value.stage) == ("E_LESION_TABLE", "cohort")
    assert words in caught.value.message
    assert "hcc, icc, metastasis" in caught.value.remedy


def _no_table(folder: Path) -> None:
    (folder / "lesions.csv").unlink()


def _no_column(folder: Path) -> None:
    (folder / "lesions.csv").write_text("case_id,lesion_id\na,2\n")


def _no_instances(folder: Path) -> None:
    text = (folder / "cohort.csv").read_text()
    (folder / "cohort.csv").write_text(text.replace("instances", "lesion_map"))


def _no_cell(folder: Path) -> None:
    text = (folder / "cohort.csv").read_text()
    (folder / "cohort.csv").write_text(text.replace("a-ids.nii", ""))


@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    [
        (_no_table, "E_LESION_TABLE", "lesions.csv: cannot be read: No such file"),
        (_no_column, "E_LESION_TABLE", "column type is missing"),
        (_no_instances, "E_COHORT", "column instances is missing"),
        (_no_cell, "E_COHORT", "line 2: instances is empty"),
    ],
)
def test_property_what_a_typed_system_needs_of_a_cohort_is_named(
    folder, tmp_path, spoil, code, words
):
    spoil(copied(folder, tmp_path))
    data = CohortData(path=tmp_path / "cohort.csv")
    with pytest.raises(InputRefused) as caught:
        CohortCases(data, typed_spec(), cache_dir=None)
    assert caught.value.code == code
    assert words in caught.value.message
    if spoil is not _no_instances:
        CohortCases(data, typed_spec(class_names=UNTYPED), cache_dir=None)


@pytest.mark.parametrize(
    ("types", "change", "words"),
    [
        ({2: "hcc", 5: "cyst"}, {}, "case a: lesion 7 of instances has no row"),
        ({**TYPES, 9: "icc"}, {}, "case a: lesion_id 9 has no voxel in instances"),
        (TYPES, {(0, 0, 0): 2}, "case a: 1 voxels of instances lie outside the tumor of label"),
        (TYPES, {(5, 12, 25): 0}, "case a: 1 voxels of the tumor of label belong to no lesion"),
    ],
)
def test_property_maps_and_table_that_disagree_are_refused(folder, tmp_path, types, change, words):
    copied(folder, tmp_path)
    ids = ids_of()
    for at, number in change.items():
        ids[at] = number
    write_nifti(tmp_path / "a-ids.nii", ids, Grid.axial(SHAPE, SPACING, (3.0, -20.0, 7.5)))
    write_types(tmp_path, {"a": types, "bb": TYPES})
    cases = CohortCases(CohortData(path=tmp_path / "cohort.csv"), typed_spec(), cache_dir=None)
    with pytest.raises(InputRefused) as caught:
        cases.train_case(0, 0)
    assert caught.value.code == "E_LESION_TABLE"
    assert words in caught.value.message


def test_property_instances_on_other_voxels_are_refused(folder, tmp_path):
    copied(folder, tmp_path)
    write_nifti(tmp_path / "a-ids.nii", ids_of(), Grid.axial(SHAPE, SPACING, (3.0, -20.0, 17.5)))
    cases = CohortCases(CohortData(path=tmp_path / "cohort.csv"), typed_spec(), cache_dir=None)
    with pytest.raises(InputRefused, match="instances has") as caught:
        cases.train_case(0, 0)
    assert caught.value.code == "E_GRID_MISMATCH"


# ---- preparation ---------------------------------------------------------------------------------


def test_oracle_instances_are_resampled_as_the_nearest_voxel(folder):
    spec = typed_spec(spacing_mm=(7.1, 2.9, 1.8))
    data = CohortData(path=folder / "cohort.csv", margin_mm=None)
    case = CohortCases(data, spec, cache_dir=None).train_case(0, 0)
    ids, numbers = ids_of(), {0: 0, 2: 1, 5: 2, 7: 3}
    expected = np.zeros(case.label.shape, int)
    # Both grids have the same middle, and no center lies halfway between two others.
    axes = list(zip(case.label.shape, SHAPE, spec.spacing_mm, SPACING, strict=True))
    for at in np.ndindex(*case.label.shape):
        source = tuple(
            int(np.floor((n - (new - 1) / 2) * fine / coarse + old / 2))
            for n, (new, old, fine, coarse) in zip(at, axes, strict=True)
        )
        inside = all(0 <= n < size for n, size in zip(source, SHAPE, strict=True))
        expected[at] = numbers[int(ids[source])] if inside else 0
    np.testing.assert_array_equal(case.typed.number, expected)
    np.testing.assert_array_equal(case.typed.number > 0, case.label == TUMOR)
    names = [LESION_TYPES[n - 1] for n in case.typed.types]
    assert names == ["hcc", "cyst", "other"]
    assert case.typed.voxels.tolist() == [(expected == n).sum() for n in (1, 2, 3)]
    for n, at in enumerate(case.lesions, start=1):
        assert expected[tuple(at)] == n
    for kind, *at in case.foreground:
        assert case.typed.types[expected[tuple(at)] - 1] == kind


def test_oracle_instances_are_turned_with_their_image(folder):
    data = CohortData(path=folder / "cohort.csv", margin_mm=None)
    case = CohortCases(data, typed_spec(), cache_dir=None).validation_case(0)
    turned = ids_of()[::-1, :, ::-1]
    np.testing.assert_array_equal(case.typed.number > 0, turned > 0)
    for number, kind in TYPES.items():
        (found,) = set(np.unique(case.typed.number[turned == number]).tolist())
        assert case.typed.types[found - 1] == TYPE_NUMBERS[kind]


def test_closed_form_lesions_that_resampling_loses_are_left_out():
    case = prepared(types={**TYPES, 3: "fnh"})
    assert case.typed.types.tolist() == [1, 6, 8]
    none = typed_arrays(np.zeros((2, 3, 4), np.uint8), {3: "fnh"})
    assert {name: len(array) for name, array in none.items() if name != "instances"} == {
        "types": 0,
        "voxels": 0,
        "lesions": 0,
        "foreground": 0,
    }


def test_property_typed_cases_come_back_from_the_cache_and_leave_others_alone(folder, tmp_path):
    data = CohortData(path=folder / "cohort.csv", samples_per_case=3)
    typed, plain = typed_spec(), typed_spec(class_names=UNTYPED)
    memory = CohortCases(data, typed, cache_dir=None).train_case(0, 0)
    before = CohortCases(data, plain, cache_dir=tmp_path)
    before.train_case(0, 0)
    (file,) = tmp_path.rglob("*.chunks")
    for _ in range(2):  # made, and found again
        cases = CohortCases(data, typed, cache_dir=tmp_path)
        case = cases.train_case(0, 0)
        np.testing.assert_array_equal(np.asarray(case.typed.number), memory.typed.number)
        np.testing.assert_array_equal(case.typed.types, memory.typed.types)
        np.testing.assert_array_equal(case.typed.voxels, memory.typed.voxels)
        rng = (np.random.default_rng(3) for _ in range(2))
        one, other = (draw_patch(c, typed, SETTINGS, next(rng)) for c in (case, memory))
        np.testing.assert_array_equal(one.instances, other.instances)
        np.testing.assert_array_equal(one.label, other.label)
    assert len(list(tmp_path.rglob("*.chunks"))) == 2
    after = CohortCases(data, plain, cache_dir=tmp_path)
    assert after.fingerprint() == before.fingerprint()
    assert after.fingerprint() != cases.fingerprint()
    alone = after.train_case(0, 0)
    assert alone.typed is None
    assert len(list(tmp_path.rglob("*.chunks"))) == 2
    assert file.exists()
    assert cases.train_types(0) == {"hcc", "cyst", "other"}
    assert after.train_types(0) == frozenset()
    np.testing.assert_array_equal(alone.foreground, foreground_voxels(np.asarray(alone.label)))
    with pytest.raises(ValueError, match="without types"):
        cut(alone, typed, (0, 0, 0), (6, 16, 16), alone.present)


def test_property_other_types_are_another_cohort(folder, tmp_path):
    copied(folder, tmp_path)
    data = CohortData(path=tmp_path / "cohort.csv")
    prints = [
        [CohortCases(data, s, cache_dir=None).fingerprint() for s in (typed_spec(), spec_3d())]
    ]
    write_types(tmp_path, {"a": TYPES, "bb": {**TYPES, 7: "icc"}})
    prints.append(
        [CohortCases(data, s, cache_dir=None).fingerprint() for s in (typed_spec(), spec_3d())]
    )
    (typed, plain), (other, same) = prints
    assert typed != other
    assert plain == same


# ---- patches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [(0, 8, 8), (-2, -3, 5), (6, 30, 28), (3, 12, 9)])
def test_oracle_cut_out_of_a_typed_case(start):
    case, spec = prepared(), typed_spec()
    sample = cut(case, spec, start, (6, 16, 16), case.present)
    assert (sample.label.dtype, sample.instances.dtype) == (np.int64, np.int64)
    for at in np.ndindex(6, 16, 16):
        source = tuple(s + a for s, a in zip(start, at, strict=True))
        if not all(0 <= n < size for n, size in zip(source, SHAPE, strict=True)):
            expected, number = -1, 0
        elif (number := int(case.typed.number[source])) > 0:
            expected = CLASSES.index(("hcc", "cyst", "other")[number - 1])
        else:
            expected = LIVER_CLASS if case.label[source] == 1 else 0
        assert (sample.label[at], sample.instances[at]) == (expected, number)


def test_oracle_slices_of_a_typed_2d_system_carry_lesions_too():
    case = prepared()
    spec = typed_spec(dims=2, patch=(16, 16), stride=4)
    for z, piece in enumerate(whole_case(case, spec).pieces):
        np.testing.assert_array_equal(piece.instances[:40, :36], case.typed.number[z])
        np.testing.assert_array_equal(piece.label[:40, :36] > 8, case.label[z] == 1)


def test_property_blocks_score_every_lesion_once():
    case, spec = prepared(), typed_spec()
    pieces = whole_case(case, spec).pieces
    for n, size in enumerate(case.typed.voxels, start=1):
        assert sum((piece.instances == n).sum() for piece in pieces) == size
    for piece in pieces:
        assert _belongs(piece.label, piece.instances, case)
    scored = np.concatenate([piece.label[piece.label >= 0] for piece in pieces])
    assert scored.size == np.prod(SHAPE)


def _belongs(label: np.ndarray, instances: np.ndarray, case: PreparedCase) -> bool:
    """Whether a lesion has the class of its type everywhere, and nothing else has a type's."""
    kinds = np.array([0, *case.typed.types])
    lesion = instances > 0
    return bool(
        (label[lesion] == kinds[instances[lesion]]).all()
        and np.isin(label[~lesion], (-1, 0, LIVER_CLASS)).all()
    )


def test_property_hidden_and_small_lesions_are_ignored_and_no_lesions():
    case = prepared()
    assert case.typed.voxels.tolist() == [252, 168, 4]
    seen = {}
    for least in (0, 4, 5):
        settings = SETTINGS.model_copy(update={"ignore_lesions_below_voxels": least})
        patches = [
            draw_patch(case, typed_spec(), settings, np.random.default_rng(n)) for n in range(30)
        ]
        assert all(_belongs(p.label, p.instances, case) for p in patches)
        assert all((p.instances > 0).any() for p in patches) or least == 5
        seen[least] = [(p.instances == 3).sum() for p in patches]
        hidden = [(p.label == -1).sum() for p in patches]
        assert max(hidden) == (4 if least == 5 else 0)
    assert seen[0] == seen[4]
    assert (max(seen[0]), max(seen[5])) == (4, 0)
    # Outside of the liver that is seen nothing is a lesion.
    liver = case.liver.copy()
    liver[:, :16] = False
    case, spec = replace(case, liver=liver), typed_spec(needs_liver=True)
    patches = [draw_patch(case, spec, SETTINGS, np.random.default_rng(n)) for n in range(10)]
    assert any((patch.label == -1).any() for patch in patches)
    assert not any(((patch.instances > 0) & ~patch.liver).any() for patch in patches)
    assert all(_belongs(patch.label, patch.instances, case) for patch in patches)


def test_property_only_lesions_are_foreground_of_a_typed_system():
    case = prepared()
    settings = PatchSettings(foreground_fraction=1.0)
    spec = typed_spec(patch=(1, 1, 1), stride=1)
    drawn = Counter(
        int(draw_patch(case, spec, settings, np.random.default_rng(n)).label.item())
        for n in range(300)
    )
    assert set(drawn) == {1, 6, 8}
    # The type of four voxels is as likely as that of 252: 100 of 300, at 4 standard deviations.
    assert all(100 - 33 < count < 100 + 33 for count in drawn.values())
    anywhere = PatchSettings(foreground_fraction=0.0)
    labels = {
        int(draw_patch(case, spec, anywhere, np.random.default_rng(n)).label.item())
        for n in range(60)
    }
    assert {0, LIVER_CLASS} <= labels


def test_property_a_wanted_type_is_drawn_around():
    case = prepared()
    spec = typed_spec(patch=(1, 1, 1), stride=1)
    for settings in (SETTINGS, PatchSettings(foreground_fraction=1.0)):
        for kind, label in (("hcc", 1), ("cyst", 6), ("other", 8)):
            for n in range(5):
                patch = draw_patch(case, spec, settings, np.random.default_rng(n), kind)
                assert patch.label.item() == label
        # A type that was lost when the case was resampled: any of its lesions.
        patch = draw_patch(case, spec, settings, np.random.default_rng(0), "fnh")
        assert patch.label.item() in (1, 6, 8)


def test_property_samples_of_other_systems_have_no_instances(folder):
    data = CohortData(path=folder / "cohort.csv", samples_per_case=2)
    source = open_source(data, typed_spec(class_names=UNTYPED), seed=0, cache_dir=None)
    samples = [source.sample(0, n) for n in range(2)]
    assert all(sample.instances is None for sample in samples)
    batch, visible = collate(samples)
    assert (batch.instances, visible) == (None, None)
    case = source.cases.train_case(0, 0)
    sample = cut(case, source.spec, (0, 0, 0), (6, 16, 16), case.present)
    expected = class_index(np.asarray(case.label[:6, :16, :16]), source.spec)
    np.testing.assert_array_equal(sample.label, expected)


# ---- batches and augmentation --------------------------------------------------------------------


def batch_of(numbers=(0, 1, 2)) -> Batch:
    case = prepared()
    drawn = [draw_patch(case, typed_spec(), SETTINGS, np.random.default_rng(n)) for n in numbers]
    return collate(drawn)[0]


def test_oracle_collate_stacks_instances():
    case = prepared()
    samples = [cut(case, typed_spec(), (z, 8, 8), (6, 16, 16), case.present) for z in (-1, 2)]
    batch, _ = collate(samples)
    assert batch.instances.dtype == torch.int64
    for n, sample in enumerate(samples):
        np.testing.assert_array_equal(batch.instances[n].numpy(), sample.instances)
    mixed, _ = collate([samples[0], replace(samples[1], instances=None)])
    assert mixed.instances is None


AFFINE = Augment(p=1.0, rotate_deg=30.0, scale=(0.7, 1.4), flip_axes=("z", "y", "x"))
ELASTIC = AFFINE.model_copy(update={"elastic_p": 0.7, "tilt_deg": 20.0})


@pytest.mark.parametrize("settings", [AFFINE, ELASTIC, None])
def test_property_instances_stay_on_their_labels_through_any_warp(settings):
    case, spec = prepared(), typed_spec()
    finish = Augmentation(settings, spec, seed=3, device=torch.device("cpu"))
    moved = 0
    for start in range(0, 12, 3):
        numbers = range(start, start + 3)
        batch = batch_of(numbers)
        got = finish(batch, None, [(1, n) for n in numbers])
        assert got.instances.dtype == torch.int64
        assert _belongs(got.label.numpy(), got.instances.numpy(), case)
        moved += not torch.equal(got.instances, batch.instances)
    assert (moved > 0) == (settings is not None)


@pytest.mark.parametrize("settings", [AFFINE, ELASTIC])
def test_oracle_instances_take_the_voxel_that_a_label_takes(settings):
    batch = batch_of()
    finish = Augmentation(settings, typed_spec(), seed=0, device=torch.device("cpu"))
    where = [(0, n) for n in range(3)]
    got = finish(batch, None, where)
    as_label = finish(replace(batch, label=batch.instances, instances=None), None, where)
    assert torch.equal(got.instances, as_label.label)
    plain = finish(replace(batch, instances=None), None, where)
    assert plain.instances is None
    for name in ("image", "label", "liver"):
        assert torch.equal(getattr(got, name), getattr(plain, name))


def test_closed_form_masks_of_channels_are_not_mistaken_for_instances():
    batch = batch_of((0, 1))
    finish = Augmentation(AFFINE, typed_spec(), seed=0, device=torch.device("cpu"))
    parameters = [finish._draw(AFFINE, batch, 0, n) for n in range(2)]
    for changes in ({}, {"exact": True}):
        drawn = [replace(p, **changes) for p in parameters]
        moved, shown = warp(batch, batch.liver[:, None], drawn)
        assert torch.equal(shown[:, 0], moved.liver)
        assert moved.liver.dtype == torch.bool


# ---- balance -------------------------------------------------------------------------------------


class Held:
    """Training cases of which only the types are known."""

    def __init__(self, *types: set[str]) -> None:
        self.types, self.n_train = types, len(types)

    def train_types(self, index: int) -> frozenset[str]:
        return frozenset(self.types[index])


def test_closed_form_each_type_is_drawn_as_often_and_each_of_its_cases():
    held = Held({"hcc"}, {"hcc"}, {"hcc", "fnh"}, set(), {"hcc"})
    balance = TypeBalance(held, PatchSettings(type_balance=True), seed=4)
    assert balance.holders == (("hcc", (0, 1, 2, 4)), ("fnh", (2,)))
    drawn = [balance.choice(epoch, index) for epoch in range(4) for index in range(500)]
    assert drawn == [balance.choice(epoch, index) for epoch in range(4) for index in range(500)]
    counts = Counter(drawn)
    # 1000 of each type and 250 of each case with hcc, at 4 standard deviations.
    assert abs(counts[(2, "fnh")] - 1000) < 90
    assert all(abs(counts[(n, "hcc")] - 250) < 59 for n in (0, 1, 2, 4))
    assert len(counts) == 5


def test_closed_form_the_share_of_balanced_patches():
    for changes, share in (
        ({}, 0.5),
        ({"lesion_fraction": None}, 0.0),
        ({"foreground_fraction": 1 / 3}, 1 / 3),
    ):
        assert TypeBalance(Held({"icc"}), PatchSettings(**changes), seed=0).share == share


def test_property_without_lesions_nothing_can_be_balanced():
    with pytest.raises(InputRefused, match="no training case has a lesion"):
        TypeBalance(Held(set()), PatchSettings(), seed=0).choice(0, 0)


class Memory(Held):
    """A few cases in memory (a `CaseProvider`)."""

    n_validation = 0

    def __init__(self, *cases: PreparedCase) -> None:
        names = [{LESION_TYPES[n - 1] for n in case.typed.types} for case in cases]
        super().__init__(*names)
        self.cases = cases

    def train_case(self, index: int, epoch: int) -> PreparedCase:
        return self.cases[index]

    def train_name(self, index: int) -> str:
        return str(index)

    def validation_case(self, index: int) -> PreparedCase:
        raise IndexError(index)

    def fingerprint(self) -> str:
        return ""


@pytest.mark.parametrize("rule", [{"lesion_fraction": 0.8}, {"foreground_fraction": 0.8}])
def test_property_patches_of_a_balanced_source(rule):
    empty = prepared(ids=np.zeros(SHAPE, np.uint8))
    cases = Memory(
        prepared(),
        prepared(types=dict.fromkeys(TYPES, "hcc")),
        prepared(types=dict.fromkeys(TYPES, "hcc")),
        empty,
    )
    spec = typed_spec(patch=(1, 1, 1), stride=1)
    settings = PatchSettings(samples_per_case=50, type_balance=True, **rule)
    source = CaseSource(cases, settings, spec, seed=0)
    labels = Counter(int(source.sample(0, n).label.item()) for n in range(len(source)))
    # 160 of 200 around a lesion, 53 of each of three types, at 4 standard deviations.
    assert all(abs(labels[kind] - 160 / 3) < 25 for kind in (1, 6, 8))
    assert sum(labels[kind] for kind in (1, 6, 8)) >= 160 - 23
    plain = CaseSource(cases, settings.model_copy(update={"type_balance": False}), spec, seed=0)
    counts = Counter(int(plain.sample(0, n).label.item()) for n in range(len(plain)))
    assert counts[6] + counts[8] < labels[6] + labels[8]
    # What is not around a lesion is where it would be without.
    for n in range(0, 200, 7):
        if source._choice(0, n)[1] is None:
            np.testing.assert_array_equal(source.sample(0, n).image, plain.sample(0, n).image)


@pytest.mark.parametrize("changes", [{"type_balance": True}, {"ignore_lesions_below_voxels": 10}])
def test_property_settings_of_types_are_for_systems_that_have_them(changes):
    cases, settings = Memory(prepared()), PatchSettings(**changes)
    for spec in (typed_spec(class_names=UNTYPED), typed_spec(dims=2, patch=(16, 16))):
        with pytest.raises(UsageError, match="tells types of lesions apart") as caught:
            CaseSource(cases, settings, spec, seed=0)
        assert caught.value.code == "E_RECIPE"


def test_property_settings_that_decide_nothing_are_in_no_hash():
    def recipe(**data):
        return parse_recipe(
            {
                "name": "a",
                "system": {"name": "dpcnet", "preset": "toy"},
                "data": {"kind": "phantom", **data},
                "schedule": {"steps": 3},
            }
        )

    plain = recipe()
    said = recipe(type_balance=False, ignore_lesions_below_voxels=0, foreground_fraction=None)
    assert (recipe_hash(plain), row_hash(plain)) == (recipe_hash(said), row_hash(said))
    for changes in ({"type_balance": True}, {"ignore_lesions_below_voxels": 1}):
        assert recipe_hash(recipe(**changes)) != recipe_hash(plain)
        assert row_hash(recipe(**changes)) != row_hash(plain)


# ---- validation ----------------------------------------------------------------------------------


class Says(nn.Module):
    """Answers with the class that the image holds, tenths of it."""

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.input_spec = spec

    def forward(self, image: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        return (image[:, 0, 0] * 10).round().long()

    def decode(self, outputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(outputs, 10).movedim(-1, 1).float()


def test_closed_form_checkpoints_are_told_apart_by_the_union_of_types():
    spec = typed_spec(patch=(1, 1, 8), stride=1)
    said = np.array([[[1, 2, 8, 0, 9, 3, 1, 1]]])
    true = np.array([[[6, 2, 0, 4, 9, 3, -1, 0]]])
    free = np.array([[[0, 0, 9, 9, 0, 0, 0, -1]]])

    def case(label: np.ndarray, name: str) -> ValidationCase:
        image = (said / 10).astype(np.float32)[None, None]
        sample = Sample(image, np.ones(1, bool), label.astype(np.int64), label > 0)
        return ValidationCase(name, (sample,), 0.5)

    class Source:
        target_classes = spec.tumor_classes

        def __len__(self) -> int:
            return 0

        def sample(self, epoch: int, index: int) -> Sample:
            raise IndexError(index)

        def validation(self):
            return [case(true, "a"), case(free, "b")]

    device = torch.device("cpu")
    score = validate(
        Says(spec),
        Source(),
        spec,
        batch_size=1,
        device=device,
        autocast=torch.autocast("cpu", enabled=False),
    )
    # Marked are voxels 0, 1, 2, 5 and 7, true 0, 1, 3 and 5, whatever their types; 6 is ignored.
    assert score.dice == pytest.approx(2 * 3 / (5 + 4))
    assert (score.n_defined, score.n_missed) == (1, 0)
    assert score.false_ml == pytest.approx(5 * 0.5)


# ---- hashes of protocols -------------------------------------------------------------------------


def test_property_only_typed_protocols_hash_lesions(folder, tmp_path):
    copied(folder, tmp_path)
    cohort = tmp_path / "cohort.csv"
    plain, typed = (read_protocol(cohort, typed=t).sha256 for t in (False, True))
    assert plain != typed
    assert read_protocol(folder / "cohort.csv", typed=True).sha256 == typed
    (tmp_path / "lesions.csv").write_text(
        (folder / "lesions.csv").read_text().replace("bb,7,other", "bb,7,icc")
    )
    assert read_protocol(cohort).sha256 == plain
    assert read_protocol(cohort, typed=True).sha256 != typed
    copied(folder, tmp_path)
    moved = ids_of()
    moved[5, 13, 26] = 2
    write_nifti(tmp_path / "a-ids.nii", moved, Grid.axial(SHAPE, SPACING, (3.0, -20.0, 7.5)))
    assert read_protocol(cohort).sha256 == plain
    assert read_protocol(cohort, typed=True).sha256 != typed
    (tmp_path / "lesions.csv").unlink()
    assert read_protocol(cohort).sha256 == plain
    with pytest.raises(InputRefused, match=r"lesions\.csv"):
        read_protocol(cohort, typed=True)


# ---- phantoms ------------------------------------------------------------------------------------


def test_closed_form_every_kind_of_phantom_lesion_has_a_type():
    assert {kind.type for kind in KINDS.values()} == set(LESION_TYPES)
    unseen = {name: kind.type for name, kind in KINDS.items() if not kind.seen}
    assert len(unseen) == 4
    assert set(unseen.values()) == {"other"}


@pytest.fixture(scope="module")
def external(tmp_path_factory) -> Path:
    """A coarse patient of the cohort `external`, its lesions of a kind that is never trained on."""
    unseen = tuple(name for name, kind in KINDS.items() if not kind.seen)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantom_lesions, "OTHER_ALL", unseen)
        patch.setitem(PRESETS, "external", replace(PRESETS["external"], shape=(10, 40, 40)))
        people = enroll("external", 90, 0)
        # One that is found at the first attempt, and has a hemangioma beside.
        chosen = [p for p in people if (p.split, p.primary) == ("test", "other")][2]
        patch.setattr(phantoms, "enroll", lambda *_: (chosen,))
        folder = tmp_path_factory.mktemp("external")
        return phantoms.write_cohort(folder, "external", 90, formats=("nifti", "bank"))


def test_property_kinds_that_only_other_hospitals_have_are_other(external):
    table = external.parent / "lesions.csv"
    types = read_lesion_types(table, "cohort")
    (case,) = read_cohort(external, need=("label", "instances"))
    assert any(name in table.read_text() for name, kind in KINDS.items() if not kind.seen)
    assert set(types[case.case_id].values()) == {"other", "hemangioma"}
    _, label, _ = read_case(case, ("PV",))
    ids = read_instances(case, label, types[case.case_id])
    assert set(np.unique(ids).tolist()) - {0} == types[case.case_id].keys()


def test_property_phantoms_painted_on_the_fly_know_their_types(external, tmp_path):
    body = read_bank(external.parent / "anatomies.bank")[0]
    bank = write_bank(tmp_path / "two.bank", [body, body])
    spec = typed_spec(phases=("ART", "PV"), spacing_mm=(10.0, 6.0, 6.0), patch=(2, 8, 8))
    data = PhantomTumorData(
        train_patients=1,
        validation_patients=1,
        paints=1,
        bank=bank,
        thick_slices=1.0,
        type_balance=True,
        lesion_fraction=1.0,
    )
    cases = PhantomCases(data, spec, cache_dir=tmp_path)
    case = cases.train_case(0, 0)
    types = {LESION_TYPES[n - 1] for n in case.typed.types}
    assert cases.train_types(0) == types
    # Thick slices may lose a lesion, and nothing gains one.
    anew = PhantomCases(data.model_copy(update={"paints": 0}), spec, cache_dir=None)
    assert "other" in types <= {lesion.type for lesion in body.lesions} == anew.train_types(0)
    number = np.asarray(case.typed.number)
    np.testing.assert_array_equal(number > 0, case.label == TUMOR)
    for n, at in enumerate(case.lesions, start=1):
        assert number[tuple(at)] == n
    source = CaseSource(cases, data, spec, seed=0)
    kind = source._choice(0, 0)[1]
    assert (source.sample(0, 0).label == CLASSES.index(kind)).any()
    plain = PhantomCases(data, replace(spec, class_names=UNTYPED), cache_dir=tmp_path)
    assert plain.train_case(0, 0).typed is None
    np.testing.assert_array_equal(plain.train_case(0, 0).hu, case.hu)
    np.testing.assert_array_equal(plain.train_case(0, 0).lesions, case.lesions)
