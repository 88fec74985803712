"""The liver network's samples: pure in their seeds, whole in their labels, cached unchanged."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from hepar.data.organ_bank import bank_entry, read_label_map
from hepar.data.organ_source import OrganSource
from hepar.data.sampling import SampleSource
from hepar.errors import InputRefused
from hepar.phantom.labelmap import NOT_SCANNED, Template
from hepar.phantom.tissue import Tissue
from hepar.recipe import load_recipe
from hepar.recipe_data import OrganData
from hepar.systems.baselines.context_unet3d.settings import ContextUnet3dSettings
from hepar.systems.baselines.context_unet3d.system import ContextUnet3d

RECIPE = Path(__file__).parents[1] / "recipes" / "liver" / "coarse.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TotalSegmentator-like folder in RAS, 8 mm: body, liver cut off at the top, spleen."""
    root = tmp_path_factory.mktemp("anatomy")
    x, y, z = np.mgrid[:40, :32, :24]
    affine = np.diag([8.0, 8.0, 8.0, 1.0])
    body = ((x - 20) / 18.0) ** 2 + ((y - 16) / 13.0) ** 2 < 1
    # Patient's right is large x in RAS.
    liver = ((x - 27) / 9.0) ** 2 + ((y - 17) / 8.0) ** 2 + ((z - 25) / 12.0) ** 2 < 1
    spleen = ((x - 10) / 4.0) ** 2 + ((y - 12) / 4.0) ** 2 + ((z - 20) / 6.0) ** 2 < 1
    hu = np.where(body, 40, -1000) + 20 * liver
    (root / "seg").mkdir()
    nib.save(nib.Nifti1Image(hu.astype(np.int16), affine), root / "ct.nii.gz")
    nib.save(nib.Nifti1Image(hu[:, :, :5].astype(np.int16), affine), root / "a_cut.nii.gz")
    for name, mask in (("liver", liver), ("spleen", spleen)):
        nib.save(nib.Nifti1Image(mask.astype(np.uint8), affine), root / "seg" / f"{name}.nii.gz")
    return root


def settings(folder: Path, **changes: object) -> OrganData:
    values = {
        "anatomies": (folder,),
        "variants": 8,
        "phantoms": 1,
        "phantom_shape": (32, 32, 40),
        "phantom_spacing_mm": (10.0, 10.0, 10.0),
        "validation_phantoms": 1,
        "validation_warps": 2,
    }
    return OrganData(**{**values, **changes})


SPEC = ContextUnet3d(
    ContextUnet3dSettings(widths=(4, 8), patch=(24, 32, 32), spacing_mm=(8.0, 8.0, 8.0))
).input_spec


@pytest.fixture(scope="module")
def source(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> OrganSource:
    return OrganSource(settings(folder), SPEC, seed=3, cache_dir=tmp_path_factory.mktemp("bank"))


def test_property_samples_are_pure_and_cached_banks_are_equal(folder: Path, tmp_path: Path) -> None:
    built = OrganSource(settings(folder), SPEC, seed=3, cache_dir=tmp_path)
    stored = [p for p in tmp_path.iterdir() if p.name != ".lock"]
    assert [p.suffix for p in stored] == [".npz"]
    read = OrganSource(settings(folder), SPEC, seed=3, cache_dir=tmp_path)
    assert [p for p in tmp_path.iterdir() if p.name != ".lock"] == stored
    for epoch, index in ((0, 0), (0, 1), (2, 5)):
        one, two = built.sample(epoch, index), read.sample(epoch, index)
        assert (one.image == two.image).all()
        assert (one.label == two.label).all()
    assert (built.sample(0, 0).image != built.sample(1, 0).image).any()
    for one, two in zip(built.validation(), read.validation(), strict=True):
        assert one.case_id == two.case_id
        assert (one.pieces[0].image == two.pieces[0].image).all()


def test_property_samples_obey_the_input_spec(source: OrganSource) -> None:
    assert isinstance(source, SampleSource)
    assert len(source) == 1000
    livers = 0
    for index in range(12):
        sample = source.sample(0, index)
        assert sample.image.shape == (1, 2, 24, 32, 32)
        assert sample.image.dtype == np.float32
        assert sample.label.dtype == np.int64
        assert sample.image.min() >= 0
        assert sample.image.max() <= 1
        assert sample.label.min() >= 0
        assert sample.label.max() < len(SPEC.class_names)
        assert ((sample.label == 1) == sample.liver).all()
        assert sample.present.all()
        livers += sample.liver.any()
    assert livers >= 8


def test_property_validation_holds_livers_of_both_kinds(source: OrganSource) -> None:
    cases = list(source.validation())
    assert [c.case_id for c in cases] == ["phantom-0", "warp-0", "warp-1"]
    assert all(c.pieces[0].liver.any() for c in cases)
    assert cases[0].voxel_ml == pytest.approx(0.512)


def test_property_label_map_is_turned_to_lps(folder: Path) -> None:
    template = read_label_map(folder)
    liver = np.argwhere(template.liver).mean(0)
    spleen = np.argwhere(template.tissue == Tissue.SPLEEN).mean(0)
    assert liver[2] < spleen[2], "right is small x"
    assert liver[1] < spleen[1], "front is small y"
    assert template.liver[-1].any(), "the last slice is the uppermost"


def test_property_a_folder_without_liver_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefused) as refusal:
        read_label_map(tmp_path)
    assert refusal.value.code == "E_NO_LIVER"


def test_closed_form_unscanned_voxels_get_their_tissue() -> None:
    tissue = np.full((16, 16, 16), Tissue.LIVER, dtype=np.uint8)
    hu = np.full(tissue.shape, 70, dtype=np.int16)
    hu[8:] = NOT_SCANNED
    entry = bank_entry(
        Template(tissue, np.ones(tissue.shape, bool), hu, (3.0,) * 3), np.random.default_rng(0)
    )
    assert entry.native_hu[Tissue.LIVER] == pytest.approx(70)
    assert (entry.hu[:8] == 70).all()
    assert entry.hu[8:].mean() == pytest.approx(70, abs=2)
    assert entry.hu.min() > -200


def test_regression_recipe_loads_at_its_shipped_size() -> None:
    recipe = load_recipe(RECIPE, ["data.anatomies=[somewhere]", "schedule.steps=1"])
    assert recipe.system.name == "context_unet3d"
    assert recipe.data.kind == "organ"
    assert recipe.data.anatomies == (Path("somewhere"),)
    assert recipe.augment.p == 0
