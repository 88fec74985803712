"""3D patches: the rule of foreground, and volumes smaller, thinner or emptier than usual."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fake_systems import spec_3d
from hepar.data.patches import draw_patch, whole_case
from hepar.data.prepared_case import (
    MOST_VOXELS,
    PreparedCase,
    foreground_voxels,
    lesion_voxels,
    slice_contents,
)
from hepar.data.sampling import collate
from hepar.recipe_data import PatchSettings
from hepar.systems.base import Batch
from hepar.systems.dpcnet.settings import DpcnetSettings
from hepar.systems.dpcnet.system import Dpcnet

SPEC = spec_3d(class_names=("background", "liver", "tumor"), patch=(8, 16, 16))


def _case(
    shape: tuple[int, int, int], *, liver: bool = True, tumor: bool = True, z_mm: float = 5.0
) -> PreparedCase:
    label = np.zeros(shape, np.uint8)
    z, y, x = (n // 2 for n in shape)
    if liver:
        label[z - 1 :, y - y // 2 : y + y // 2, x - x // 2 : x + x // 2] = 1
    if tumor:
        label[z, y : y + 2, x : x + 2] = 2
    hu = np.random.default_rng(0).integers(0, 100, (1, *shape)).astype(np.int16)
    return PreparedCase(
        case_id="c",
        hu=hu + np.int16(40) * (label == 2),
        present=np.ones(1, bool),
        label=label,
        liver=label > 0,
        spacing_mm=(z_mm, 2.0, 2.0),
        contents=slice_contents(label, label > 0),
        lesions=lesion_voxels((label == 2).astype(np.int32)),
        foreground=foreground_voxels(label),
    )


def _draw(case: PreparedCase, fraction: float | None, n: int = 60, spec=SPEC) -> list:
    settings = PatchSettings(foreground_fraction=fraction)
    return [draw_patch(case, spec, settings, np.random.default_rng(seed)) for seed in range(n)]


def test_closed_form_foreground_voxels_are_voxels_of_their_class():
    label = np.random.default_rng(0).integers(0, 3, (12, 20, 20)).astype(np.uint8)
    found = foreground_voxels(label)
    assert found.shape == (2 * MOST_VOXELS, 4)
    np.testing.assert_array_equal(label[tuple(found[:, 1:].T)], found[:, 0])
    assert len(np.unique(found, axis=0)) == len(found)
    np.testing.assert_array_equal(foreground_voxels(label), found)
    # Drawn from all over the volume, not from where it begins.
    assert np.ptp(found[found[:, 0] == 1, 1]) == 11


def test_property_foreground_patches_hold_a_class_and_others_lie_anywhere():
    case = _case((24, 64, 64))
    inside = [set(np.unique(patch.label)) for patch in _draw(case, 1.0)]
    assert all(seen & {1, 2} for seen in inside)
    # The small tumor is asked for as often as the liver: in half of the patches or more.
    assert 0.4 < np.mean([2 in seen for seen in inside]) < 0.9
    anywhere = [set(np.unique(patch.label)) for patch in _draw(case, 0.0)]
    assert any(not seen & {1, 2} for seen in anywhere)
    third = [bool({1, 2} & set(np.unique(p.label))) for p in _draw(case, 1 / 3, n=90)]
    assert np.mean(third) > np.mean([bool(seen & {1, 2}) for seen in anywhere])


def test_property_patches_from_anywhere_reach_every_corner():
    case = _case((24, 40, 40), liver=False, tumor=False)
    z, y, x = np.indices((24, 40, 40))
    # HU that say where a voxel lies, as far as 16 bits reach.
    hu = (z * 1000 + (y // 2) * 40 + x)[None].astype(np.int16)
    spec = replace(SPEC, windows_hu=((0.0, 32000.0),))
    firsts = [
        round(float(p.image[0, 0, 0, 0, 0]) * 32000)
        for p in _draw(replace(case, hu=hu), 0.0, n=600, spec=spec)
    ]
    for values, most in (
        ([v // 1000 for v in firsts], 16),
        ([v % 1000 // 40 for v in firsts], 12),
        ([v % 40 for v in firsts], 24),
    ):
        assert (min(values), max(values)) == (0, most)


def test_property_tumor_free_cases_give_liver_and_empty_ones_anything():
    held = [set(np.unique(p.label)) for p in _draw(_case((24, 64, 64), tumor=False), 1.0)]
    assert all(1 in seen for seen in held)
    empty = _case((24, 64, 64), liver=False, tumor=False)
    assert len(empty.foreground) == 0
    assert all(p.label.shape == SPEC.patch for p in _draw(empty, 1.0, n=5))


@pytest.mark.parametrize(
    ("shape", "z_mm"),
    [((2, 64, 64), 10.0), ((2, 9, 11), 5.0), ((24, 10, 64), 2.0), ((40, 80, 80), 10.0)],
)
def test_property_small_and_thin_volumes_train_and_validate(shape, z_mm):
    model = Dpcnet(
        DpcnetSettings(
            width=4,
            stages=3,
            patch=(8, 16, 16),
            spacing_mm=None,
            dice="per_class",
            window_hu=(0.0, 140.0),
        )
    )
    case = _case(shape, z_mm=z_mm)
    pieces = whole_case(case, model.input_spec).pieces
    scored = np.concatenate([piece.label[piece.label >= 0] for piece in pieces])
    assert scored.size == np.prod(shape)
    assert (scored == 2).sum() == (case.label == 2).sum()
    drawn = _draw(case, 1 / 3, n=2, spec=model.input_spec)
    batch: Batch = collate(drawn)[0]
    assert batch.image.shape == (2, 1, 1, 8, 16, 16)
    # Beyond the volume it goes on as it ends, and nothing is learned there.
    beyond = batch.label < 0
    assert bool(beyond.any()) == any(n < p for n, p in zip(shape, (8, 16, 16), strict=True))
    loss = model.loss(model(batch.image, batch.present), model.targets(batch))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
