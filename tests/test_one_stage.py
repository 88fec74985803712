"""A network that finds liver and tumor at once, in whole images, the liver not being shown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from torch import nn

from hepar import score_cohort
from hepar.data.cohort import read_cohort
from hepar.infer.openvino import OpenVino
from hepar.recipe_data import CohortData
from hepar.score_cohort import find_both, scored_cases
from test_two_stages import GRID, TUMOR_HU, ByHu, image, put, stage, truth, volumes

BOX = (slice(1, 3), slice(4, 14), slice(4, 14))
TUMOR = (slice(1, 3), slice(5, 7), slice(5, 7))


def _scored(tmp_path, hu, label, *, margin_mm, first=None):
    line = put(tmp_path, "a", hu, label)
    (tmp_path / "c.csv").write_text(f"case_id,patient_id,pv,label\n{line}\n")
    data = CohortData(path=tmp_path / "c.csv", margin_mm=margin_mm)
    told = read_cohort(tmp_path / "c.csv")
    (case,) = scored_cases(told, ByHu("liver", "tumor"), data, "cpu", lambda text: None, first)
    return case


def test_oracle_the_likeliest_class_wins_everywhere():
    hu = image(BOX, (slice(0, 1), slice(16, 20), slice(16, 20)))
    hu[TUMOR] = TUMOR_HU
    found = find_both(ByHu("liver", "tumor"), volumes(hu), GRID)
    # Nothing is cleaned up: the paper does not, and the second piece is the network's own mistake.
    np.testing.assert_array_equal(found, np.select([hu >= 150, hu >= 50], [2, 1], 0))


def test_closed_form_the_liver_is_its_own_and_the_truth_is_not_shown(tmp_path):
    hu = image(BOX, (slice(0, 1), slice(16, 20), slice(16, 20)))
    hu[TUMOR] = TUMOR_HU
    hu[0, 18, 18] = TUMOR_HU
    label = truth(BOX, TUMOR)
    alone = _scored(tmp_path, hu, label, margin_mm=None)
    assert (alone.liver.overlap, alone.liver.predicted, alone.liver.reference) == (200, 216, 200)
    assert (alone.overlap, alone.predicted, alone.reference, alone.false) == (8, 9, 8, 1)
    assert alone.liver.rvd == pytest.approx(0.08)
    assert (alone.server.n_predicted, alone.server.tp_predicted) == (2, 1)
    # In slices of the liver that a first stage found, the far piece in its own slice is not seen.
    both = _scored(tmp_path, hu, label, margin_mm=None, first=stage())
    assert (both.predicted, both.false) == (8, 0)


class ByHu3d(ByHu):
    """The same on volumes, by a convolution, which OpenVINO can take over."""

    def __init__(self) -> None:
        super().__init__("liver", "tumor")
        self.input_spec = replace(self.input_spec, dims=3, patch=(4, 8, 8))
        self.copy = nn.Conv3d(1, 1, 1)
        nn.init.ones_(self.copy.weight)
        nn.init.zeros_(self.copy.bias)

    def forward(self, image, present):
        self.seen += len(image)
        return self.copy(image[:, 0])[:, 0]


def test_property_many_cases_of_a_3d_network_go_through_openvino_and_score_the_same(
    tmp_path, monkeypatch
):
    hu = image(BOX)
    hu[TUMOR] = TUMOR_HU
    lines = [put(tmp_path, name, hu, truth(BOX, TUMOR)) for name in "abcd"]
    (tmp_path / "c.csv").write_text("\n".join(["case_id,patient_id,pv,label", *lines]) + "\n")
    data = CohortData(path=tmp_path / "c.csv", margin_mm=None)
    told = read_cohort(tmp_path / "c.csv")

    made = []

    def spy(precision):
        made.append(precision)
        return OpenVino(precision)

    def scored(**known):
        return list(scored_cases(told, ByHu3d(), data, "cpu", lambda text: None, **known))

    monkeypatch.setattr(score_cohort, "OpenVino", spy)
    plain = scored()
    assert made == []
    assert plain[0].overlap == 8
    monkeypatch.setattr(score_cohort, "_MANY", 4)
    assert scored() == plain
    assert scored(precision="bf16") == plain
    assert made == ["f32", "bf16"]
