"""Two stages that see slices: whole ones to find the liver, boxes around it to look inside."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aligned_cases import aligned_study, ellipsoid
from fake_systems import Echo, spec_2d
from hepar.errors import InputRefused
from hepar.geometry import Grid
from hepar.infer.bundle import Model
from hepar.preprocess import liver_box, slice_box
from hepar.stages.liver import find_liver
from hepar.stages.tumor import find_lesions, look
from hepar.study import LiverCase
from hepar.systems.base import LiverCrop

SHAPE, SPACING = (30, 100, 110), (5.0, 2.0, 2.0)
GRID = Grid.axial(SHAPE, SPACING)
LIVER_HU, TUMOR_HU = 2, 105  # half and all of the second stage's window
CENTER = tuple(GRID.index_to_world((np.array(SHAPE) - 1) / 2))


def _first() -> Model:
    """Stage 1: liver as surely as a voxel's HU lie between fat and liver."""
    spec = spec_2d(
        phases=("PV",),
        class_names=("background", "liver"),
        windows_hu=((-100.0, LIVER_HU),),
        needs_liver=False,
    )
    return Model("liver", Echo(spec))


class Organ(Echo):
    """Stage 2: liver where the box is bright, tumor where it is brighter."""

    def decode(self, outputs: torch.Tensor) -> torch.Tensor:
        organ = (outputs > 0.25).float()
        tumor = (outputs > 0.75).float()
        return torch.stack([1 - organ, organ - tumor, tumor], dim=1)


def _second(**changes) -> Model:
    settings = {
        "phases": ("PV",),
        "class_names": ("background", "liver", "tumor"),
        "windows_hu": ((-100.0, 105.0),),
        "needs_liver": False,
        "patch": (64, 64),
        "liver_crop": LiverCrop((2, 20), 12),
    }
    return Model("tumor", Organ(spec_2d(**(settings | changes))), {"min_volume_ml": 0.5})


def _hu(*livers: np.ndarray) -> np.ndarray:
    hu = np.full(SHAPE, -100, np.int16)
    for liver in livers:
        hu[liver] = LIVER_HU
    return hu


def test_closed_form_largest_of_two_pieces_in_native_slices():
    x, y, z = CENTER
    big = ellipsoid(GRID, (x - 15, y, z), (60.0, 60.0, 60.0))
    small = ellipsoid(GRID, (x + 85, y, z), (40.0, 30.0, 15.0))
    case = find_liver(aligned_study({"PV": _hu(big, small)}, GRID), _first())
    assert _dice(case.liver, big) > 0.97
    assert not case.liver[small].any()
    # No slice was made or lost between others.
    assert np.array_equal(case.liver.any(axis=(1, 2)), big.any(axis=(1, 2)))


def test_errors_a_first_stage_that_finds_nothing_or_a_single_slice():
    one = np.zeros(SHAPE, bool)
    one[12] = ellipsoid(GRID, CENTER, (60.0, 60.0, 60.0))[15]
    for hu in (_hu(), _hu(one)):
        with pytest.raises(InputRefused, match="ml") as caught:
            find_liver(aligned_study({"PV": hu}, GRID), _first())
        assert caught.value.code == "E_NO_LIVER"


def test_property_a_liver_at_the_border_is_warned_of_and_looked_at():
    liver = ellipsoid(GRID, (0.0, *CENTER[1:]), (60.0, 60.0, 90.0))
    tumor = ellipsoid(GRID, (20.0, *CENTER[1:]), (15.0, 14.0, 14.0))
    hu = _hu(liver)
    hu[tumor] = TUMOR_HU
    found = find_liver(aligned_study({"PV": hu}, GRID), _first())
    assert any(w.startswith("W_LIVER_TRUNCATED") for w in found.warnings)
    case, lesions = find_lesions(found, _second())
    assert len(lesions.lesions) == 1
    assert _dice(lesions.label == 2, tumor) > 0.9
    assert _dice(case.liver, liver) > 0.97


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def _case(liver: np.ndarray, hu: np.ndarray) -> LiverCase:
    box = liver_box(liver, GRID, 10.0)
    assert box is not None
    aligned = aligned_study({"PV": hu}, GRID)
    return LiverCase(aligned, liver, box, float(liver.sum()) * GRID.voxel_ml)


def test_property_the_second_stage_sees_as_much_around_the_liver_as_it_was_trained_with():
    """Its margin is wider than that of the box that travels; the answer lies on the latter."""
    liver = ellipsoid(GRID, CENTER, (60.0, 60.0, 60.0))
    hu = _hu(liver)
    hu[ellipsoid(GRID, (CENTER[0] + 20, *CENTER[1:]), (15.0, 14.0, 14.0))] = TUMOR_HU
    case, model = _case(liver, hu), _second()
    sent = []
    forward = model.system.forward
    model.system.forward = lambda image, present: sent.append(image) or forward(image, present)
    seen = look(case, model)
    assert seen.tumor.shape == case.box.shape
    assert seen.liver is not None
    assert seen.liver.shape == case.box.shape
    middle = [image for image in torch.cat(sent[1:]) if image.shape[-1] == 64]
    rows, columns = slice_box(liver[15], (12, 12, 12, 12))
    height = rows.stop - rows.start
    assert height == columns.stop - columns.start == 60 + 24
    # Of 84 rows 12 above the liver and 12 below it are air in the widest slice.
    widest = max(middle, key=lambda image: float(image.sum()))
    air = int((widest[0, 0].amax(dim=1) == 0).sum())
    assert air == pytest.approx(2 * 12 * 64 / height, abs=2)


def test_property_a_liver_of_one_slice_is_looked_at():
    liver = np.zeros(SHAPE, bool)
    liver[12] = ellipsoid(GRID, CENTER, (60.0, 60.0, 60.0))[15]
    hu = _hu(liver)
    hu[12, 45:52, 50:58] = TUMOR_HU
    case = _case(liver, hu)
    seen = look(case, _second())
    z = 12 - case.box.start[0]
    assert (seen.tumor[z] > 0.5).sum() == pytest.approx(56, abs=12)
    assert not seen.tumor[:z].any()
    assert not seen.tumor[z + 1 :].any()


def test_property_without_a_tumor_nothing_is_found():
    liver = ellipsoid(GRID, CENTER, (60.0, 60.0, 60.0))
    case = _case(liver, _hu(liver))
    refined, lesions = find_lesions(case, _second())
    assert lesions.lesions == ()
    assert _dice(refined.liver, liver) > 0.97
