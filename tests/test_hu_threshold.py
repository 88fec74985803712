"""The threshold baseline finds a dark sphere, and nothing where there is nothing."""

from __future__ import annotations

import numpy as np
import pytest

from hepar.systems.baselines.hu_threshold import HuThresholdSettings, ball, hu_threshold

SPACING = (3.0, 2.0, 2.0)


def _radius(shape: tuple[int, int, int], center_mm: tuple[float, ...]) -> np.ndarray:
    axes = np.ogrid[tuple(slice(0, n) for n in shape)]
    gaps = [(a * s - c) ** 2 for a, s, c in zip(axes, SPACING, center_mm, strict=True)]
    return np.sqrt(gaps[0] + gaps[1] + gaps[2])


def _patient(tumor_radius_mm: float, noise: float = 12.0) -> tuple[np.ndarray, ...]:
    shape = (40, 64, 64)
    liver = _radius(shape, (60.0, 64.0, 64.0)) < 50
    tumor = _radius(shape, (66.0, 70.0, 58.0)) < tumor_radius_mm
    hu = np.where(liver, 110.0, -100.0)
    # Partial volume: the outermost voxels of the liver are half fat.
    rim = liver & (_radius(shape, (60.0, 64.0, 64.0)) > 48.5)
    hu[rim] = 5.0
    hu[tumor] = 60.0
    hu += np.random.default_rng(3).normal(0, noise, shape)
    return hu.astype(np.int16), liver, tumor


def test_closed_form_finds_a_dark_sphere() -> None:
    hu, liver, tumor = _patient(15.0)
    found = hu_threshold(hu, liver, SPACING)
    dice = 2 * (found & tumor).sum() / (found.sum() + tumor.sum())
    assert dice > 0.85
    assert not (found & ~liver).any()


def test_finds_nothing_in_a_liver_without_tumor() -> None:
    hu, liver, _ = _patient(0.0)
    assert hu_threshold(hu, liver, SPACING).sum() == 0


def test_bright_lesions_are_not_found() -> None:
    hu, liver, tumor = _patient(15.0)
    hu[tumor] = 200
    assert hu_threshold(hu, liver, SPACING).sum() == 0


def test_settings_matter() -> None:
    hu, liver, tumor = _patient(15.0)
    strict = HuThresholdSettings(below_hu=70.0)
    wide = HuThresholdSettings(opening_mm=20.0)
    assert hu_threshold(hu, liver, SPACING, strict)[tumor].mean() < 0.01
    assert hu_threshold(hu, liver, SPACING, wide).sum() == 0
    eroded = HuThresholdSettings(below_hu=-500.0, erosion_mm=6.0, opening_mm=0.0)
    inner = hu_threshold(hu, liver, SPACING, eroded)
    np.testing.assert_array_equal(
        inner[20, 32], liver[20, 32] & (np.abs(np.arange(64) * 2 - 64) < 44)
    )


def test_empty_liver() -> None:
    hu, liver, _ = _patient(10.0)
    assert not hu_threshold(hu, np.zeros_like(liver), SPACING).any()


@pytest.mark.parametrize(
    ("radius_mm", "spacing_mm", "voxels"),
    [(3.0, (1.0, 1.0, 1.0), 123), (3.0, (5.0, 1.0, 1.0), 29), (0.0, (1.0, 1.0, 1.0), 1)],
)
def test_closed_form_ball(
    radius_mm: float, spacing_mm: tuple[float, float, float], voxels: int
) -> None:
    assert ball(radius_mm, spacing_mm).sum() == voxels
