"""Cohorts on disk: every mistake is named; cases become patches; the cache tells the truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from hepar.data.cache import ArrayCache
from hepar.data.cohort import read_cohort
from hepar.data.cohort_cases import CohortCases
from hepar.data.patches import draw_patch, drop_phases, whole_case
from hepar.data.phantom_bank import write_bank
from hepar.data.phantom_cases import PhantomCases, thicken
from hepar.data.prepared_case import PreparedCase, foreground_voxels, lesion_voxels, slice_contents
from hepar.data.sampling import SampleSource, collate
from hepar.data.sources import open_source
from hepar.data.tumor_source import imperfect_liver
from hepar.errors import InputRefused, UsageError
from hepar.geometry import Grid
from hepar.io.nifti import write_nifti
from hepar.phantom.anatomy import anatomy
from hepar.preprocess import context_indices, slice_input
from hepar.recipe_data import CohortData, LiverMask, PatchSettings, PhantomTumorData, PhaseDropout
from hepar.systems.base import InputSpec

SPEC = InputSpec(
    dims=2,
    phases=("ART", "PV"),
    class_names=("background", "tumor"),
    windows_hu=((-70.0, 180.0),),
    slice_offsets_mm=(-5.0, 0.0, 5.0),
    spacing_mm=(5.0, 2.0, 2.0),
    patch=(32, 32),
    stride=16,
    needs_liver=True,
)
SHAPE = (10, 40, 36)
HEADER = "case_id,patient_id,nc,art,pv,dl,reference,liver,label,instances,fold,age"


def make_label() -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    label[2:8, 8:32, 6:30] = 1
    label[4:6, 14:20, 12:20] = 2
    return label


def make_case(folder: Path, name: str, *, phases=("art", "pv"), origin_mm=(0.0, 0.0, 0.0)) -> None:
    grid = Grid.axial(SHAPE, (5.0, 2.0, 2.0), origin_mm)
    rng = np.random.default_rng(len(name))
    label = make_label()
    for phase in phases:
        hu = (rng.normal(0, 5, SHAPE) + 100 * (label > 0) - 40 * (label == 2)).astype(np.int16)
        write_nifti(folder / f"{name}-{phase}.nii", hu, grid)
    write_nifti(folder / f"{name}-label.nii", label, grid)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    for name in ("a", "b", "c"):
        make_case(folder, name)
    (folder / "cohort.csv").write_text(
        f"{HEADER}\n"
        "a,P1,,a-art.nii,a-pv.nii,,PV,,a-label.nii,,0,61\n"
        "b,P2,,,b-pv.nii,,,,b-label.nii,,1,\n"
        "c,P2,,c-art.nii,c-pv.nii,,ART,,c-label.nii,,1,40\n"
    )
    return folder


def write(folder: Path, *lines: str, header: str = HEADER) -> Path:
    path = folder / "other.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def test_closed_form_reading(folder):
    a, b, c = read_cohort(folder / "cohort.csv", need=("label", "fold"))
    assert (a.case_id, a.patient_id, a.reference, a.fold) == ("a", "P1", "PV", 0)
    assert a.images == {"ART": folder / "a-art.nii", "PV": folder / "a-pv.nii"}
    assert a.metadata == {"age": "61"}
    assert b.reference == "PV"
    assert (c.reference, c.liver, c.instances) == ("ART", None, None)


def test_property_a_spreadsheet_of_another_locale_reads_the_same(folder):
    text = (folder / "cohort.csv").read_text()
    path = folder / "semicolons.csv"
    path.write_bytes(text.replace(",", ";").replace("\n", "\r\n").encode("utf-8-sig"))
    assert read_cohort(path) == read_cohort(folder / "cohort.csv")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["a,P1,,,a-pv.nii,,,,a-label.nii,,0,", "a,P2,,,b-pv.nii,,,,b-label.nii,,1,"], "line 2"),
        (["a,P1,,,nowhere.nii,,,,a-label.nii,,0,"], "no nowhere.nii"),
        (["a,P1,,,a-pv.nii,,,,nowhere.nii,,0,"], "label: there is no nowhere.nii"),
        (["a,P1,,,,,,,a-label.nii,,0,"], "no phase has an image"),
        (["a,P1,,,a-pv.nii,,ART,,a-label.nii,,0,"], "reference phase ART"),
        (["a,P1,,,a-pv.nii,,XX,,a-label.nii,,0,"], "reference phase XX"),
        (["a,P1,,,a-pv.nii,,,,a-label.nii,,first,"], "fold 'first'"),
        ([",P1,,,a-pv.nii,,,,a-label.nii,,0,"], "case_id is empty"),
        (["a,P1,,,a-pv.nii,,,,,,0,"], "label is empty"),
        (
            ["a,P1,,,a-pv.nii,,,,a-label.nii,,0,", "b,P1,,,b-pv.nii,,,,b-label.nii,,1,"],
            "patient P1 is in fold 1, but in fold 0 on line 2",
        ),
        ([], "no cases"),
    ],
)
def test_property_every_mistake_in_a_row_is_named(folder, lines, words):
    with pytest.raises(InputRefused) as caught:
        read_cohort(write(folder, *lines), need=("label", "fold"))
    assert caught.value.code == ("E_LEAKAGE" if "P1 is in fold" in words else "E_COHORT")
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("patient_id,pv,label,fold", "column case_id is missing"),
        ("case_id,patient_id,label,fold", "none of the columns"),
        ("case_id,patient_id,pv,pv,label,fold", "column pv is there twice"),
        ("case_id,patient_id,pv,label", "column fold is missing"),
    ],
)
def test_property_missing_columns_are_named(folder, header, words):
    with pytest.raises(InputRefused) as caught:
        read_cohort(write(folder, header=header), need=("label", "fold"))
    assert words in caught.value.message


def test_property_a_missing_file_is_refused(folder):
    with pytest.raises(InputRefused) as caught:
        read_cohort(folder / "none.csv")
    assert caught.value.code == "E_COHORT"


def test_property_the_test_split_is_in_no_fold(folder):
    header = HEADER.replace("age", "split")
    path = write(
        folder,
        "a,P1,,a-art.nii,a-pv.nii,,PV,,a-label.nii,,0,train",
        "b,P2,,,b-pv.nii,,,,b-label.nii,,1,validation",
        "c,P3,,c-art.nii,c-pv.nii,,ART,,c-label.nii,,,Test",
        "d,P4,,c-art.nii,c-pv.nii,,ART,,c-label.nii,,1,test",
        header=header,
    )
    cases = read_cohort(path, need=("label", "fold"))
    assert [case.fold for case in cases] == [0, 1, None, None]
    source = CohortCases(CohortData(path=path, fold=1), SPEC, cache_dir=None)
    assert [case.case_id for case in source.train] == ["a"]
    assert [case.case_id for case in source.held_out] == ["b"]


def test_errors_a_patient_in_the_test_split_and_in_a_fold(folder):
    path = write(
        folder,
        "a,P1,,a-art.nii,a-pv.nii,,PV,,a-label.nii,,1,test",
        "b,P1,,,b-pv.nii,,,,b-label.nii,,1,train",
        header=HEADER.replace("age", "split"),
    )
    with pytest.raises(InputRefused, match="patient P1 is in fold 1, but in no fold on line 2"):
        read_cohort(path, need=("label", "fold"))


def test_property_a_fold_without_cases_is_refused(folder):
    data = CohortData(path=folder / "cohort.csv", fold=7)
    with pytest.raises(InputRefused, match="fold 7"):
        CohortCases(data, SPEC, cache_dir=None)


def test_property_a_label_elsewhere_is_refused(folder, tmp_path):
    make_case(tmp_path, "a", origin_mm=(0.0, 0.0, 7.0))
    shifted = (tmp_path / "a-label.nii").read_bytes()
    small = np.zeros((4, 4, 4), np.uint8)
    for change in ("shift", "shape"):
        for file in folder.glob("*-*.nii"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
        if change == "shift":
            (tmp_path / "a-label.nii").write_bytes(shifted)
        else:
            write_nifti(tmp_path / "a-label.nii", small, Grid.axial((4, 4, 4), (5.0, 2.0, 2.0)))
        path = tmp_path / "cohort.csv"
        path.write_text((folder / "cohort.csv").read_text())
        cases = CohortCases(CohortData(path=path, fold=1), SPEC, cache_dir=None)
        with pytest.raises(InputRefused) as caught:
            cases.train_case(0, 0)
        assert caught.value.code == ("E_GRID_MISMATCH" if change == "shift" else "E_LABEL_SHAPE")
        assert "case a" in caught.value.message


def test_property_cohort_gives_samples(folder, tmp_path):
    data = CohortData(path=folder / "cohort.csv", fold=0, samples_per_case=4, lesion_fraction=1.0)
    source = open_source(data, SPEC, seed=0, cache_dir=tmp_path)
    assert isinstance(source, SampleSource)
    assert len(source) == 8
    samples = [source.sample(0, i) for i in range(len(source))]
    assert all((s.label == 1).any() for s in samples)
    assert {tuple(s.present) for s in samples} == {(True, True), (False, True)}
    for index, sample in enumerate(samples):
        assert not sample.image[~sample.present].any()
        np.testing.assert_array_equal(sample.image, source.sample(0, index).image)
    batch, visible = collate(samples)
    assert batch.image.shape == (8, 2, 3, 32, 32)
    assert visible.shape == (8, 3, 32, 32)
    # A second reader finds the files of the first.
    again = open_source(data, SPEC, seed=0, cache_dir=tmp_path)
    np.testing.assert_array_equal(again.sample(0, 3).image, samples[3].image)


def prepared() -> PreparedCase:
    label = make_label()
    rng = np.random.default_rng(0)
    hu = rng.integers(-200, 300, (2, *SHAPE)).astype(np.int16)
    liver = label > 0
    contents = slice_contents(label, liver)
    present = np.ones(2, bool)
    lesions = lesion_voxels((label == 2).astype(np.uint8))
    voxels = foreground_voxels(label)
    return PreparedCase("x", hu, present, label, liver, (5.0, 2.0, 2.0), contents, lesions, voxels)


def test_oracle_whole_case_shows_what_the_stage_would():
    case = prepared()
    cut = whole_case(case, SPEC)
    assert len(cut.pieces) == SHAPE[0]
    for z, piece in enumerate(cut.pieces):
        expected = slice_input(
            case.hu[1],
            context_indices(SHAPE[0], z, SPEC.slice_offsets_mm, 5.0),
            windows_hu=SPEC.windows_hu,
            liver=case.liver,
        )
        masked = np.where(piece.visible, piece.image[1], 0)
        np.testing.assert_array_equal(masked[:, :40, :36], expected)
        assert not masked[:, 40:].any()
    scored = np.concatenate([p.label[p.label >= 0] for p in cut.pieces])
    assert scored.size == np.prod(SHAPE)
    assert (scored == 1).sum() == (case.label == 2).sum()
    np.testing.assert_allclose(cut.voxel_ml, 0.02)


def test_property_blocks_of_a_3d_system_cover_a_case_once():
    spec = replace(SPEC, dims=3, patch=(8, 16, 16), slice_offsets_mm=(0.0,), stride=8)
    cut = whole_case(prepared(), spec)
    assert {p.image.shape for p in cut.pieces} == {(2, 1, 8, 16, 16)}
    scored = np.concatenate([p.label[p.label >= 0] for p in cut.pieces])
    assert scored.size == np.prod(SHAPE)
    assert (scored == 1).sum() == (make_label() == 2).sum()
    # No block is padded along an axis that is longer than it: air has no phase that shows 0 HU.
    assert all((piece.label.shape == piece.image.shape[2:]) for piece in cut.pieces)
    case = replace(prepared(), hu=np.full((2, *SHAPE), 100, np.int16))
    for piece in whole_case(case, spec).pieces:
        assert piece.image.min() > 0


@pytest.mark.parametrize("dims", [2, 3])
def test_property_lesion_fraction_decides_what_patches_hold(dims):
    spec = SPEC
    if dims == 3:
        spec = replace(SPEC, dims=3, patch=(2, 16, 16), slice_offsets_mm=(0.0,))
    case = prepared()
    for fraction in (0.0, 1.0):
        settings = PatchSettings(lesion_fraction=fraction)
        held = []
        for seed in range(40):
            patch = draw_patch(case, spec, settings, np.random.default_rng(seed))
            held.append(bool((patch.label == 1).any()))
            assert patch.label.shape == spec.patch
            assert patch.liver.any()
        assert all(held) if fraction else not all(held)


def test_property_tumor_outside_the_predicted_liver_is_ignored():
    case = prepared()
    liver = case.liver.copy()
    liver[:, :17] = False
    case = replace(case, liver=liver)
    settings = PatchSettings(lesion_fraction=1.0)
    patch = draw_patch(case, SPEC, settings, np.random.default_rng(0))
    assert (patch.label == -1).any()
    assert not ((patch.label == 1) & ~patch.liver).any()


def test_closed_form_phase_dropout():
    spec = replace(SPEC, phases=("NC", "ART", "PV", "DL"))
    rng = np.random.default_rng(0)

    def subsets(present, **options):
        drawn = [
            tuple(drop_phases(np.array(present), spec, PhaseDropout(**options), rng.random(5)))
            for _ in range(3000)
        ]
        kinds, counts = np.unique(drawn, axis=0, return_counts=True)
        return kinds, counts

    everything = [True] * 4
    assert len(subsets(everything, p=0.0)[0]) == 1
    kinds, counts = subsets(everything, p=1.0, keep_reference=False)
    assert len(kinds) == 15
    assert counts.min() > 130
    kinds, _ = subsets(everything, p=1.0, keep_reference=True)
    assert len(kinds) == 8
    assert kinds[:, 2].all()
    kinds, _ = subsets([True, True, False, True], p=1.0, keep_reference=True)
    assert len(kinds) == 4
    assert kinds[:, 3].all()
    assert not kinds[:, 2].any()
    whole = replace(spec, needs_all_phases=True)
    kept = drop_phases(np.ones(4, bool), whole, PhaseDropout(p=1.0), rng.random(5))
    assert kept.all()


def test_closed_form_imperfect_liver():
    z, y, x = np.indices((24, 48, 48)) * np.array([4.0, 2.0, 2.0]).reshape(3, 1, 1, 1)
    r = np.sqrt((z - 48) ** 2 + (y - 48) ** 2 + (x - 48) ** 2)
    ball, spacing = r < 30, (4.0, 2.0, 2.0)
    rng = np.random.default_rng(0)
    assert (imperfect_liver(ball, spacing, LiverMask(), rng) == ball).all()
    grown = imperfect_liver(ball, spacing, LiverMask(bias_mm=5.0), rng)
    assert abs(grown.sum() / ball.sum() - (35 / 30) ** 3) < 0.15
    shaken = imperfect_liver(ball, spacing, LiverMask(jitter_mm=4.0), rng)
    assert 0.02 < (shaken ^ ball).sum() / ball.sum() < 0.6
    assert shaken[r < 14].all()
    assert not shaken[r > 46].any()


@pytest.mark.parametrize(
    ("factor", "expected"),
    [(2, [1, 3, 5, 7]), (3, [1, 4, 7]), (4, [2, 6])],
)
def test_closed_form_thick_slices(factor, expected):
    hu = np.arange(9, dtype=np.int16)[None, :, None, None] * np.ones((2, 1, 3, 3), np.int16)
    thick = thicken(hu, factor)
    np.testing.assert_array_equal(thick[0, :, 0, 0], expected)
    assert len(hu[0, factor // 2 :: factor]) == len(expected)
    # An impulse spreads over a box as wide as the distance between slices.
    impulse = np.zeros((1, 9, 1, 1), np.int16)
    impulse[0, 4] = 120
    assert thicken(impulse, 2)[0, :, 0, 0].tolist() == [0, 30, 30, 0]
    assert thicken(impulse, 3)[0, :, 0, 0].tolist() == [0, 40, 0]
    assert thicken(impulse, 4)[0, :, 0, 0].tolist() == [15, 15]


def test_closed_form_a_voxel_of_each_lesion():
    instances = np.zeros((6, 9, 9), np.uint8)
    instances[1:4, 2:5, 2:5] = 3
    instances[4, 6, 6:9] = 1
    instances[4, 6, 7] = 0  # the center of mass lies outside: the nearest voxel of it counts
    voxels = lesion_voxels(instances)
    assert sorted(map(tuple, voxels.tolist())) == [(2, 3, 3), (4, 6, 6)]
    assert lesion_voxels(np.zeros((2, 3, 4), np.uint8)).shape == (0, 3)


def test_property_in_3d_every_lesion_is_drawn_as_often():
    case = prepared()
    label = np.ones_like(case.label)
    label[:4, :10, :10], label[-1, -1, -1] = 2, 2
    lesions = lesion_voxels(ndimage.label(label == 2)[0])
    case = replace(case, label=label, lesions=lesions)
    settings = PatchSettings(lesion_fraction=1.0)
    spec = replace(SPEC, dims=3, patch=(3, 3, 3), needs_liver=False)
    rng = np.random.default_rng(0)
    tumor = spec.class_names.index("tumor")
    sizes = [(draw_patch(case, spec, settings, rng).label == tumor).sum() for _ in range(60)]
    small = sum(size == 1 for size in sizes)
    assert min(sizes) >= 1
    assert 15 < small < 45


def test_property_cache_makes_once_and_again_when_damaged(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"a": np.arange(5)}

    for _ in range(2):
        np.testing.assert_array_equal(ArrayCache(tmp_path).get({"k": 1}, make)["a"], np.arange(5))
    assert len(made) == 1
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:20])
    np.testing.assert_array_equal(ArrayCache(tmp_path).get({"k": 1}, make)["a"], np.arange(5))
    ArrayCache(tmp_path).get({"k": 2}, make)
    assert len(made) == 3


def test_property_cache_holds_no_more_than_it_may(tmp_path):
    cache = ArrayCache(None, memory_bytes=1000)
    made = []
    for key in (1, 2, 3, 1):
        cache.get({"k": key}, lambda key=key: made.append(key) or {"a": np.zeros(400, np.uint8)})
    assert made == [1, 2, 3, 1]
    cache.get({"k": 3}, lambda: made.append(3) or {})
    assert made == [1, 2, 3, 1]


def test_property_phantom_cases_repeat_and_differ(tmp_path):
    spec = replace(SPEC, spacing_mm=(10.0, 6.0, 6.0))
    data = PhantomTumorData(train_patients=1, paints=2, liver_mask=LiverMask(jitter_mm=3.0))
    first = PhantomCases(data, spec, cache_dir=None)
    again = PhantomCases(data, spec, cache_dir=tmp_path)
    a, b = first.train_case(0, 0), again.train_case(0, 2)
    np.testing.assert_array_equal(a.hu, b.hu)
    np.testing.assert_array_equal(a.liver, b.liver)
    assert not np.array_equal(a.hu, first.train_case(0, 1).hu)
    assert a.hu.shape == (2, *a.label.shape)
    assert a.hu.dtype == np.int16
    held_out = first.validation_case(0)
    assert held_out.case_id != a.case_id


def test_property_a_bank_is_painted_anew_in_every_epoch(tmp_path):
    spacing = (10.0, 6.0, 6.0)
    bank = write_bank(
        tmp_path / "a.bank", (anatomy(s, field="liver", spacing_mm=spacing) for s in (50, 51, 52))
    )
    data = PhantomTumorData(train_patients=2, validation_patients=1, paints=0, bank=bank)
    cases = PhantomCases(data, replace(SPEC, spacing_mm=(3.0, 3.0, 3.0)), cache_dir=tmp_path)
    first, second = cases.train_case(1, 0), cases.train_case(1, 1)
    assert first.spacing_mm == spacing
    np.testing.assert_array_equal(first.hu, cases.train_case(1, 0).hu)
    assert not np.array_equal(first.hu, second.hu)
    held_out = cases.validation_case(0)
    assert held_out.hu.shape[1:] == anatomy(52, field="liver", spacing_mm=spacing).liver.shape
    with pytest.raises(UsageError, match="3 anatomies"):
        PhantomCases(data.model_copy(update={"train_patients": 3}), SPEC, cache_dir=None)


def test_property_phantoms_without_a_spacing_are_refused():
    with pytest.raises(UsageError, match="spacing_mm"):
        PhantomCases(PhantomTumorData(), replace(SPEC, spacing_mm=None), cache_dir=None)
