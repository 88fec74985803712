"""Slices seen through the box around their liver: where it lies, what is in it, the way back."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from fake_systems import Echo, spec_2d
from hepar.data.cohort_cases import CohortCases
from hepar.data.patches import draw_patch, whole_case
from hepar.data.prepared_case import PreparedCase, foreground_voxels, lesion_voxels, slice_contents
from hepar.data.tumor_source import CaseSource
from hepar.errors import UsageError
from hepar.geometry import Grid
from hepar.infer.tiling import Tiling, predict
from hepar.io.nifti import write_nifti
from hepar.preprocess import resized, resized_labels, slice_box, window
from hepar.recipe_data import CohortData, PatchSettings
from hepar.systems.base import InputSpec, LiverCrop

SPACING = (3.0, 1.0, 1.0)
WINDOW = (0.0, 100.0)


def _spec(**changes) -> InputSpec:
    settings = {
        "phases": ("PV",),
        "class_names": ("background", "liver", "tumor"),
        "needs_liver": False,
        "liver_crop": LiverCrop((2, 5), 3),
    }
    return spec_2d(**(settings | changes))


def _case() -> PreparedCase:
    """Five slices: none, a liver, one that touches the border, two pieces, none."""
    label = np.zeros((5, 40, 48), np.uint8)
    label[1, 10:30, 8:28] = 1
    label[1, 15:20, 12:18] = 2
    label[2, 0:12, 30:48] = 1
    label[3, 5:10, 5:12] = 1
    label[3, 30:36, 30:40] = 1
    hu = np.random.default_rng(0).integers(-20, 120, (1, 5, 40, 48)).astype(np.int16)
    hu[0] += 60 * (label == 2)
    return PreparedCase(
        case_id="c",
        hu=hu,
        present=np.ones(1, bool),
        label=label,
        liver=label > 0,
        spacing_mm=SPACING,
        contents=slice_contents(label, label > 0),
        lesions=lesion_voxels((label == 2).astype(np.int32)),
        foreground=foreground_voxels(label),
    )


# ---- the box, and other sizes --------------------------------------------------------------------


def test_closed_form_boxes_of_livers_that_have_no_usual_one():
    liver = _case().liver
    assert slice_box(liver[0], (3, 3, 3, 3)) is None
    assert slice_box(liver[1], (1, 2, 3, 4)) == (slice(9, 32), slice(5, 32))
    assert slice_box(liver[2], (3, 3, 3, 3)) == (slice(0, 15), slice(27, 48))
    assert slice_box(liver[3], (0, 0, 0, 0)) == (slice(5, 36), slice(5, 40))
    pixel = np.zeros((6, 7), bool)
    pixel[4, 2] = True
    assert slice_box(pixel, (0, 0, 0, 0)) == (slice(4, 5), slice(2, 3))


def test_oracle_enlarging_is_bilinear_by_pixel_areas():
    plane = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
    found = resized(plane[None], (7, 10))[0]
    for y, x in itertools.product(range(7), range(10)):
        ys = np.clip((y + 0.5) * 3 / 7 - 0.5, 0, 2)
        xs = np.clip((x + 0.5) * 5 / 10 - 0.5, 0, 4)
        total = 0.0
        for yy, xx in itertools.product(range(3), range(5)):
            total += max(0, 1 - abs(ys - yy)) * max(0, 1 - abs(xs - xx)) * float(plane[yy, xx])
        assert found[y, x] == pytest.approx(total, abs=1e-5)


def test_property_shrinking_averages_instead_of_skipping():
    plane = np.zeros((1, 64, 64), np.float32)
    plane[0, ::2] = 1.0  # lines that every second pixel would miss or meet
    found = resized(plane, (16, 16))
    assert np.abs(found[0, 2:-2] - 0.5).max() < 0.02


def test_property_labels_land_where_the_image_does():
    label = np.zeros((30, 20), np.uint8)
    label[6:18, 4:16] = 2
    for size in ((60, 40), (15, 10), (47, 33)):
        image = resized((label / 2).astype(np.float32)[None], size)[0]
        found = resized_labels(label, size)
        assert set(np.unique(found)) == {0, 2}
        differ = (found == 2) != (image > 0.5)
        assert differ.mean() < 0.03
    assert np.array_equal(resized_labels(resized_labels(label, (60, 40)), (30, 20)), label)


# ---- training ------------------------------------------------------------------------------------


def test_property_training_boxes_hold_the_liver_with_a_random_margin():
    case, spec = _case(), _spec()
    settings = PatchSettings(lesion_fraction=None)
    margins, slices = set(), set()
    for seed in range(30):
        sample = draw_patch(case, spec, settings, np.random.default_rng(seed))
        assert sample.image.shape == (1, 1, 32, 32)
        again = draw_patch(case, spec, settings, np.random.default_rng(seed))
        assert np.array_equal(sample.image, again.image)
        assert sample.liver.any()
        found = [
            z
            for z in (1, 2, 3)
            for pads in itertools.product(range(2, 6), repeat=4)
            if np.array_equal(_liver_shown(case, z, pads), sample.liver)
            and np.array_equal(_shown(case, z, pads), sample.image[0, 0])
        ]
        assert len(set(found)) == 1, "a box of one slice with margins of 2 to 5 pixels"
        slices.add(found[0])
        rows = np.flatnonzero(sample.liver.any(axis=1))
        margins.add((int(rows[0]), int(rows[-1])))
    assert slices == {1, 2, 3}
    assert len(margins) > 10


def _liver_shown(case: PreparedCase, z: int, pads: tuple[int, int, int, int]) -> np.ndarray:
    return resized_labels(case.liver[z][slice_box(case.liver[z], pads)], (32, 32))


def _shown(case: PreparedCase, z: int, pads: tuple[int, int, int, int]) -> np.ndarray:
    plane = slice_box(case.liver[z], pads)
    return resized(window(case.hu[0, z][plane], WINDOW)[None], (32, 32))[0]


def test_property_lesion_fraction_and_slices_as_they_come():
    case, spec = _case(), _spec()

    def share(fraction: float | None) -> float:
        settings = PatchSettings(lesion_fraction=fraction)
        drawn = [draw_patch(case, spec, settings, np.random.default_rng(s)) for s in range(150)]
        return float(np.mean([(d.label == 2).any() for d in drawn]))

    assert share(1.0) == 1.0
    assert share(0.0) == 0.0
    assert share(None) == pytest.approx(1 / 3, abs=0.1)  # one of three slices of liver holds tumor


def test_property_the_first_stage_sees_slices_without_liver_as_often_as_asked():
    case = _case()
    spec = _spec(class_names=("background", "liver"), liver_crop=None)

    def share(fraction: float) -> float:
        settings = PatchSettings(background_fraction=fraction)
        drawn = [draw_patch(case, spec, settings, np.random.default_rng(s)) for s in range(150)]
        assert all(d.image.shape == (1, 1, 32, 32) for d in drawn)
        assert {int(d.label.max()) for d in drawn} <= {0, 1}  # tumor is liver to this stage
        return float(np.mean([not d.liver.any() for d in drawn]))

    assert share(0.0) == 0.0
    assert share(0.5) == pytest.approx(0.5, abs=0.1)
    assert share(1.0) == 1.0


def test_closed_form_validation_pieces_are_the_boxes_of_use():
    case, spec = _case(), _spec()
    found = whole_case(case, spec)
    assert len(found.pieces) == 3
    for piece, z in zip(found.pieces, (1, 2, 3), strict=True):
        assert np.array_equal(piece.image[0, 0], _shown(case, z, (3, 3, 3, 3)))
    areas = [26 * 26, 15 * 21, 37 * 41]
    assert found.voxel_ml == pytest.approx(0.003 * np.mean(areas) / 1024)


@pytest.mark.parametrize(("margin_mm", "shape"), [(None, (6, 30, 28)), (4.0, (4, 26, 22))])
def test_closed_form_a_cohort_keeps_the_whole_field(tmp_path: Path, margin_mm, shape):
    grid = Grid.axial((6, 30, 28), (5.0, 2.0, 2.5))
    label = np.zeros(grid.shape, np.uint8)
    label[2:4, 4:26, 4:22] = 1
    lines = ["case_id,patient_id,pv,label,split"]
    for name, split in (("a", "train"), ("b", "validation")):
        hu = np.random.default_rng(len(name + split)).normal(80, 20, grid.shape)
        write_nifti(tmp_path / f"{name}-pv.nii.gz", hu.astype(np.int16), grid)
        write_nifti(tmp_path / f"{name}-label.nii.gz", label, grid)
        lines.append(f"{name},{name},{name}-pv.nii.gz,{name}-label.nii.gz,{split}")
    (tmp_path / "cohort.csv").write_text("\n".join(lines) + "\n")
    settings = CohortData(path=tmp_path / "cohort.csv", margin_mm=margin_mm)
    cases = CohortCases(settings, _spec(), cache_dir=None)
    assert cases.train_case(0, 0).label.shape == shape
    # What a source is validated on is tumor, or liver where a system knows no tumor.
    for names, target in ((("b", "liver", "tumor"), 2), (("b", "liver"), 1)):
        source = CaseSource(cases, settings, _spec(class_names=names), seed=0)
        assert source.target_classes == (target,)
    with pytest.raises(UsageError, match="knows a, b"):
        CaseSource(cases, settings, _spec(class_names=("a", "b")), seed=0)


# ---- use -----------------------------------------------------------------------------------------


class Boxes(Echo):
    """Says what it sees, in two classes beside the background."""

    def decode(self, outputs: torch.Tensor) -> torch.Tensor:
        return torch.stack([1 - outputs, outputs / 2, outputs / 2], dim=1)


@pytest.mark.parametrize("budget", [1, 10**9])
def test_property_what_was_seen_comes_back_to_its_own_pixels(budget):
    case, system = _case(), Boxes(_spec())
    y, x = np.meshgrid(np.arange(40), np.arange(48), indexing="ij")
    hu = np.stack([20 + y + x / 4 + z for z in range(5)]).astype(np.int16)
    tiling = Tiling(budget_bytes=budget)
    found = predict(system, {"PV": hu}, SPACING, liver=case.liver, tiling=tiling)
    sizes = {image[3:] for image, _ in system.seen if image[3:] != (16, 16)}
    assert sizes == {(32, 32)}
    np.testing.assert_allclose(found.sum(axis=0), 1.0, atol=1e-5)
    for z in range(5):
        plane = slice_box(case.liver[z], (3, 3, 3, 3))
        inside = np.zeros((40, 48), bool)
        if plane is not None:
            inside[plane] = True
            # A gradient comes back as it was but for its ends, where pixels repeat.
            inner = tuple(slice(s.start + 2, s.stop - 2) for s in plane)
            np.testing.assert_allclose(
                2 * found[1, z][inner], hu[z][inner] / 100, atol=0.012, rtol=0
            )
        assert (found[0, z][~inside] == 1).all()


def test_property_slices_without_liver_are_never_looked_at():
    case, system = _case(), Boxes(_spec())
    predict(system, {"PV": case.hu[0]}, SPACING, liver=case.liver, classes=("tumor",))
    assert sum(image[0] for image, _ in system.seen if image[3:] == (32, 32)) == 3
    system.seen.clear()
    nothing = np.zeros_like(case.liver)
    found = predict(system, {"PV": case.hu[0]}, SPACING, liver=nothing, classes=("tumor",))
    assert not found.any()
    assert not system.seen
    with pytest.raises(ValueError, match="needs a liver mask"):
        predict(system, {"PV": case.hu[0]}, SPACING)


def test_property_a_liver_of_one_slice_is_looked_at_alone():
    case, system = _case(), Boxes(_spec())
    one = np.zeros_like(case.liver)
    one[2] = case.liver[2]
    found = predict(system, {"PV": case.hu[0]}, SPACING, liver=one, classes=("liver",))
    assert [image[0] for image, _ in system.seen] == [1]
    assert found[0, 2].any()
    assert not found[0, [0, 1, 3, 4]].any()


def test_property_training_and_use_show_the_same():
    """With the margin of use, a training box is what tiling sends."""
    case, system = _case(), Boxes(_spec(liver_crop=LiverCrop((3, 3), 3)))
    settings = PatchSettings(lesion_fraction=1.0)
    sample = draw_patch(case, system.input_spec, settings, np.random.default_rng(0))
    sent = []
    forward = system.forward

    def record(image, present):
        sent.append(image.clone())
        return forward(image, present)

    system.forward = record
    one = np.zeros_like(case.liver)
    one[1] = case.liver[1]
    predict(system, {"PV": case.hu[0]}, SPACING, liver=one)
    assert np.array_equal(sent[-1][0].numpy(), sample.image)
