"""The liver stage: from a coarse probability to the organ on the reference voxels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aligned_cases import aligned_study, ellipsoid, oblique_grid
from fake_systems import Echo, spec_3d
from hepar.errors import InputRefused
from hepar.geometry import Grid
from hepar.infer.bundle import Model
from hepar.infer.tiling import Tiling
from hepar.stages import liver as stage
from hepar.stages.liver import find_liver

SPACING = (5.0, 2.0, 2.0)
SHAPE = (40, 110, 120)
SPEC = spec_3d(spacing_mm=(5.0, 5.0, 5.0), windows_hu=((-100.0, 105.0),))


def _model(**calibration: float) -> Model:
    """Says that a voxel is liver as surely as its HU lie between fat and liver."""
    return Model("liver", Echo(SPEC), calibration)


def _patient(grid: Grid, radii_mm: tuple[float, float, float] = (55.0, 70.0, 80.0)) -> tuple:
    center = tuple(grid.index_to_world((np.array(grid.shape) - 1) / 2 + [0.3, -3.0, 4.0]))
    liver = ellipsoid(grid, center, radii_mm)
    hu = np.where(liver, 105, -100).astype(np.int16)
    return hu, liver


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize(
    "grid", [Grid.axial(SHAPE, SPACING), oblique_grid(SHAPE, SPACING)], ids=["axial", "oblique"]
)
def test_closed_form_ellipsoid(grid: Grid) -> None:
    hu, liver = _patient(grid)
    case = find_liver(aligned_study({"PV": hu}, grid), _model())
    assert _dice(case.liver, liver) > 0.97
    assert case.liver_ml == pytest.approx(4 / 3 * np.pi * 5.5 * 7.0 * 8.0, rel=0.03)
    assert case.liver_ml == pytest.approx(case.liver.sum() * grid.voxel_ml)
    inside = np.argwhere(case.liver)
    margin = np.ceil(10.0 / np.array(SPACING))
    np.testing.assert_array_equal(inside.min(0) - case.box.start, margin)
    np.testing.assert_array_equal(case.box.stop - inside.max(0) - 1, margin)
    assert case.warnings == ()


class _Both(Echo):
    """Tells a dark half of the organ apart as tumor."""

    def decode(self, outputs: torch.Tensor) -> torch.Tensor:
        organ = (outputs * 2).clamp(0, 1)
        tumor = organ * (outputs < 0.75)
        return torch.stack([1 - organ, organ - tumor, tumor], dim=1)


def test_a_network_that_tells_tumors_apart_finds_them_in_the_organ() -> None:
    grid = Grid.axial(SHAPE, SPACING)
    hu, liver = _patient(grid)
    # A tumor at the surface, which no filling of holes would bring back.
    hu[liver & (np.indices(SHAPE)[2] < 45)] = 20
    spec = spec_3d(
        spacing_mm=SPACING,
        windows_hu=((-100.0, 105.0),),
        class_names=("background", "liver", "tumor"),
    )
    case = find_liver(aligned_study({"PV": hu}, grid), Model("liver", _Both(spec), {}))
    assert _dice(case.liver, liver) > 0.97


def test_only_the_reference_is_looked_at() -> None:
    grid = Grid.axial(SHAPE, SPACING)
    hu, liver = _patient(grid)
    other = np.full(SHAPE, 100, dtype=np.int16)
    model = _model()
    with_pv = find_liver(aligned_study({"NC": other, "PV": hu}, grid), model)
    only_nc = find_liver(aligned_study({"NC": hu}, grid), model)
    np.testing.assert_array_equal(with_pv.liver, only_nc.liver)
    assert _dice(with_pv.liver, liver) > 0.97


def test_largest_component_without_holes() -> None:
    grid = Grid.axial(SHAPE, SPACING)
    hu, liver = _patient(grid, (45.0, 60.0, 60.0))
    center = tuple(grid.index_to_world((np.array(SHAPE) - 1) / 2))
    hu[ellipsoid(grid, center, (20.0, 20.0, 20.0))] = 0  # a cyst that the network takes out
    hu[:4, :20, :20] = 100  # another bright thing
    case = find_liver(aligned_study({"PV": hu}, grid), _model())
    assert case.liver[20, 55, 60]
    assert not case.liver[:4, :20, :20].any()
    assert _dice(case.liver, liver) > 0.96


def test_property_memory_budget_and_slabs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid.axial(SHAPE, SPACING)
    aligned = aligned_study({"PV": _patient(grid)[0]}, grid)
    whole = find_liver(aligned, _model())
    monkeypatch.setattr(stage, "slabs", lambda n, voxels: ((z, z + 1) for z in range(n)))
    cut = find_liver(aligned, _model(), tiling=Tiling(budget_bytes=1))
    assert (whole.liver != cut.liver).mean() < 1e-5
    assert whole.box == cut.box


@pytest.mark.parametrize("value", [-100, 0])
def test_no_liver(value: int) -> None:
    grid = Grid.axial(SHAPE, SPACING)
    aligned = aligned_study({"PV": np.full(SHAPE, value, dtype=np.int16)}, grid)
    with pytest.raises(InputRefused) as caught:
        find_liver(aligned, _model())
    assert caught.value.code == "E_NO_LIVER"
    assert caught.value.exit_code == 10
    assert caught.value.remedy


def test_no_liver_when_too_small_or_unsure() -> None:
    grid = Grid.axial(SHAPE, SPACING)
    small, _ = _patient(grid, (30.0, 30.0, 30.0))  # 113 ml
    unsure, liver = _patient(grid)
    unsure[liver] = 10
    for hu, words in ((small, "ml"), (unsure, "probability of 0.5")):
        with pytest.raises(InputRefused, match=words) as caught:
            find_liver(aligned_study({"PV": hu}, grid), _model())
        assert caught.value.code == "E_NO_LIVER"
    assert find_liver(aligned_study({"PV": unsure}, grid), _model(min_mean_probability=0.5))


def test_truncated_liver_is_warned_of_on_its_side() -> None:
    grid = Grid.axial((20, 110, 120), SPACING)
    full, _ = _patient(Grid.axial(SHAPE, SPACING))
    case = find_liver(aligned_study({"PV": full[20:].copy()}, grid), _model())
    codes = [w for w in case.warnings if w.startswith("W_LIVER_TRUNCATED")]
    assert len(codes) == 1
    assert "first slice" in codes[0]


@pytest.mark.parametrize(
    ("cut", "side"),
    [
        (np.s_[:, 50:, :], "front border"),
        (np.s_[:, :-50, :], "back border"),
        (np.s_[:, :, 50:], "right border"),
        (np.s_[:, :, :-60], "left border"),
    ],
)
def test_property_a_liver_cut_at_the_side_is_warned_of(cut: tuple, side: str) -> None:
    full, _ = _patient(Grid.axial(SHAPE, SPACING))
    hu = full[cut].copy()
    case = find_liver(aligned_study({"PV": hu}, Grid.axial(hu.shape, SPACING)), _model())
    (told,) = (w for w in case.warnings if w.startswith("W_LIVER_TRUNCATED"))
    assert side in told


def test_unusual_volume_is_warned_of() -> None:
    grid = Grid.axial(SHAPE, SPACING)
    hu, _ = _patient(grid, (40.0, 45.0, 45.0))
    case = find_liver(aligned_study({"PV": hu}, grid), _model())
    assert [w.split(":")[0] for w in case.warnings] == ["W_LIVER_VOLUME"]


def test_streaks_across_the_liver_are_warned_of() -> None:
    grid = Grid.axial(SHAPE, SPACING)
    hu, liver = _patient(grid)
    lines = np.random.default_rng(0).integers(-20, 20, size=(SHAPE[0], SHAPE[1], 1))
    hu[liver] += np.broadcast_to(lines, SHAPE)[liver].astype(np.int16)
    case = find_liver(aligned_study({"PV": hu}, grid), _model())
    assert [w.split(":")[0] for w in case.warnings] == ["W_LIVER_STREAKS"]


def test_fat_at_an_unsure_border_is_left_out_and_a_cyst_is_not() -> None:
    grid = Grid.axial(SHAPE, SPACING)
    hu, liver = _patient(grid)

    class Generous(Echo):
        """Certain inside, undecided 12 mm around the liver."""

        def decode(self, outputs: torch.Tensor) -> torch.Tensor:
            wide = torch.nn.functional.max_pool3d(outputs[:, None], 5, 1, 2)[:, 0]
            return torch.stack([1 - wide, torch.maximum(outputs, 0.8 * wide)], dim=1)

    model = Model("liver", Generous(SPEC), {})
    case = find_liver(aligned_study({"PV": hu}, grid), model)
    assert _dice(case.liver, liver) > 0.95
    hu[~liver] = 0  # the same, with water all around: HU say nothing
    wide = find_liver(aligned_study({"PV": hu}, grid), model)
    assert wide.liver_ml > 1.2 * case.liver_ml
