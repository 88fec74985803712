"""Streaks between the arms are seen where they are, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from hepar.infer.streaks import DRAWN_OUT, _worst_band, streaked_share

SHAPE, SPACING = (10, 160, 180), (3.0, 1.0, 1.0)


def _scene() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    liver = np.zeros(SHAPE, bool)
    liver[:, 20:140, 20:160] = True
    noise = ndimage.gaussian_filter(rng.normal(size=SHAPE), (0, 0.8, 0.8))
    return np.where(liver, 100 + 20 * noise / noise.std(), -80).astype(np.int16), liver


def _with_streaks(hu: np.ndarray, slices: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    lines = ndimage.gaussian_filter1d(rng.normal(size=SHAPE), 12.0, axis=2)
    spoiled = hu + (30 * lines / lines.std() - 15).astype(np.int16)
    found = hu.copy()
    found[:slices, 80:120] = spoiled[:slices, 80:120]
    return found


def test_closed_form_share_of_streaked_slices() -> None:
    hu, liver = _scene()
    assert streaked_share(hu, liver, SPACING) == 0.0
    assert streaked_share(_with_streaks(hu, 4), liver, SPACING) == pytest.approx(0.4)
    assert streaked_share(_with_streaks(hu, 10), liver, SPACING) == 1.0


def test_streaks_outside_the_liver_and_from_front_to_back_do_not_count() -> None:
    hu, liver = _scene()
    elsewhere = liver.copy()
    elsewhere[:, 70:130] = False
    assert streaked_share(_with_streaks(hu, 10), elsewhere, SPACING) == 0.0
    turned = _with_streaks(hu, 10).swapaxes(1, 2).copy()
    assert streaked_share(turned, liver.swapaxes(1, 2).copy(), SPACING) == 0.0


def test_where_little_liver_is_seen_nothing_is_said() -> None:
    hu, liver = _scene()
    assert streaked_share(_with_streaks(hu, 10), np.zeros_like(liver), SPACING) == 0.0
    small = np.zeros_like(liver)
    small[:, 90:105, 40:55] = True
    assert streaked_share(_with_streaks(hu, 10), small, SPACING) == 0.0


def test_oracle_the_worst_band_by_loops() -> None:
    hu, liver = _scene()
    image = _with_streaks(hu, 1)[0, :67, :80].copy()
    mask = liver[0, :67, :80].copy()
    image[40:67] = _with_streaks(hu, 1)[0, 80:107, :80]
    inside = ndimage.binary_erosion(mask, iterations=4)
    worst = 0.0
    for start in range(0, len(image) - 3, 20):
        across, along = [], []
        for y in range(start, min(start + 20, len(image))):
            for x in range(80):
                if y + 3 < len(image) and inside[y, x] and inside[y + 3, x]:
                    across.append(abs(int(image[y + 3, x]) - int(image[y, x])))
                if x + 3 < 80 and inside[y, x] and inside[y, x + 3]:
                    along.append(abs(int(image[y, x + 3]) - int(image[y, x])))
        if min(len(across), len(along)) >= 400:
            worst = max(worst, float(np.median(across)) / max(1.0, float(np.median(along))))
    assert worst > DRAWN_OUT
    assert _worst_band(image, mask, (1.0, 1.0)) == pytest.approx(worst)
