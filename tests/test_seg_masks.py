"""DICOM Segmentations as masks: which segment is what, and where its frames lie."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK

from drawn_seg import (
    ABNORMAL,
    LESION,
    LIVER,
    ORGAN,
    TISSUE,
    Drawn,
    write_seg,
)
from hepar.errors import InputRefused
from hepar.geometry import Grid
from hepar.io.dicom_write import write_dicom_series
from hepar.io.given_masks import read_given
from hepar.io.seg_masks import read_seg_masks
from hepar.io.segment_roles import Role, role_in_words, role_of
from small_ct import volume

DCMQI = Path(__file__).resolve().parents[2] / "shared" / "data" / "dcmqi_ct3slice_seg"
GRID = Grid.axial((7, 9, 11), (4.0, 2.0, 2.0), (-10.0, 3.0, 50.0))


def box(*slices: slice, shape: tuple[int, int, int] = GRID.shape) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[slices] = True
    return mask


ORGAN_MASK = box(slice(1, 6), slice(2, 8), slice(1, 10))
ONE = box(slice(2, 3), slice(3, 5), slice(2, 6))
TWO = box(slice(4, 6), slice(5, 8), slice(4, 9))


def liver_and_lesions(*labels: str) -> list[Drawn]:
    names = labels or ("Lesion 1", "Lesion 2")
    return [
        Drawn(ORGAN_MASK & ~ONE, "Liver", LIVER, ORGAN),
        *(
            Drawn(mask, label, LESION, ABNORMAL, LIVER)
            for mask, label in zip((ONE, TWO), names, strict=False)
        ),
    ]


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP", "FRACTIONAL"])
def test_closed_form_each_type_gives_the_organ_with_its_lesions_and_their_ids(tmp_path, kind):
    found = read_seg_masks(write_seg(tmp_path / "a.dcm", liver_and_lesions(), GRID, kind=kind))
    expected = np.where(TWO, 2, np.where(ONE, 1, 0))
    # Planes without pixels have no frame: the volume begins at the first one that has.
    np.testing.assert_array_equal(found.lesions, expected[1:6])
    np.testing.assert_array_equal(found.liver, ORGAN_MASK[1:6])
    np.testing.assert_allclose(found.grid.origin_mm, (-10, 3, 54))
    assert found.grid.spacing_mm == pytest.approx(GRID.spacing_mm)
    assert (found.drawn_on.study, found.drawn_on.frame_of_reference) == ("1.2.3", "1.2.3.5")


def test_closed_form_a_fractional_pixel_counts_from_one_half_on(tmp_path):
    shares = np.zeros(GRID.shape)
    shares[3, 4, :4] = (0.495, 0.5, 0.7, 1)
    path = write_seg(tmp_path / "a.dcm", [Drawn(shares, "tumor")], GRID, kind="FRACTIONAL")
    found = read_seg_masks(path)
    assert found.liver is None
    np.testing.assert_array_equal(found.lesions[0, 4, :5], [0, 1, 1, 1, 0])


def test_property_frames_in_any_order_along_any_axis_lie_where_they_say(tmp_path):
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        matrix = np.zeros((3, 3))
        matrix[list(order), range(3)] = signs
        grid = Grid(GRID.shape, (4.0, 3.0, 2.0), (5.0, -7.0, 9.0), tuple(matrix.ravel()))
        found = read_seg_masks(write_seg(tmp_path / "a.dcm", liver_and_lesions(), grid))
        index = np.argwhere(found.lesions)
        there = np.rint(grid.world_to_index(found.grid.index_to_world(index.astype(float))))
        ids = np.zeros(grid.shape, int)
        ids[tuple(there.astype(int).T)] = found.lesions[found.lesions > 0]
        np.testing.assert_array_equal(ids, np.where(TWO, 2, np.where(ONE, 1, 0)))


def test_closed_form_planes_are_missed_only_where_their_distance_is_said(tmp_path):
    planes = [k in (0, 2, 6) for k in range(7)]
    one = [Drawn(ORGAN_MASK.any(axis=0) & np.reshape(planes, (7, 1, 1)), "tumor")]
    found = read_seg_masks(write_seg(tmp_path / "a.dcm", one, GRID))
    assert found.lesions.any(axis=(1, 2)).tolist() == planes
    for spacing in (3.0, 0.7):  # that no plane agrees with, and one that many do
        path = write_seg(tmp_path / "b.dcm", one, GRID, spacing_mm=spacing)
        with pytest.raises(InputRefused) as refusal:
            read_seg_masks(path)
        assert refusal.value.code == "E_MASK_FORMAT"
    path = write_seg(tmp_path / "c.dcm", liver_and_lesions(), GRID, spacing_mm=None)
    assert read_seg_masks(path).grid.spacing_mm[0] == pytest.approx(4)
    single = [Drawn(ONE, "tumor")]
    with pytest.raises(InputRefused, match="no thickness"):
        read_seg_masks(write_seg(tmp_path / "d.dcm", single, GRID, spacing_mm=None))
    assert read_seg_masks(write_seg(tmp_path / "e.dcm", single, GRID)).lesions.sum() == ONE.sum()


def test_property_frames_of_a_tilted_gantry_keep_their_places(tmp_path):
    grid = Grid.axial((12, 40, 40), (4.0, 1.0, 1.0))
    mask = box(slice(2, 10), slice(10, 24), slice(8, 30), shape=grid.shape)
    path = write_seg(tmp_path / "a.dcm", [Drawn(mask, "liver")], grid, lean_mm=0.8)
    found = read_seg_masks(path)
    assert found.liver is not None
    center = found.grid.index_to_world(np.argwhere(found.liver).mean(axis=0))
    leant = np.argwhere(mask).astype(float) @ np.diag(grid.spacing_mm)
    leant[:, 1] += 0.8 * np.argwhere(mask)[:, 0]
    np.testing.assert_allclose(center, leant.mean(axis=0)[::-1], atol=0.1)
    assert found.liver.sum() == pytest.approx(mask.sum(), rel=0.01)


@pytest.mark.parametrize(
    ("labels", "ids"),
    [
        (("Lesion 7", "Lesion 3"), (7, 3)),
        (("Lesion 7", "biopsied HCC"), (1, 2)),
        (("Lesion 3", "Lesion 3"), (1, 2)),
        (("Lesion 0", "Lesion 70000"), (1, 2)),
    ],
)
def test_closed_form_ids_are_those_of_the_labels_or_turns(tmp_path, labels, ids):
    found = read_seg_masks(write_seg(tmp_path / "a.dcm", liver_and_lesions(*labels), GRID))
    assert tuple(int(found.lesions[m[1:6]].max()) for m in (ONE, TWO)) == ids


ROLES = [
    (LIVER, ORGAN, None, "anything", Role.LIVER),
    (("T-62000", "SRT"), ("T-D0050", "SRT"), None, "Liver", Role.LIVER),
    (LIVER, ORGAN, None, "Liver without lesions", Role.LIVER),
    (LIVER, ORGAN, None, "Tumor 1", Role.UNCLEAR),
    (LIVER, ABNORMAL, None, "segment", Role.UNCLEAR),
    (LESION, ABNORMAL, LIVER, "Lesion 1", Role.LESION),
    (("M-03000", "SRT"), ABNORMAL, None, "x", Role.LESION),
    (("25370001", "SCT"), ABNORMAL, None, "biopsied", Role.LESION),
    (LESION, ABNORMAL, ("64033007", "SCT"), "Lesion 1", Role.UNCLEAR),
    (LESION, ABNORMAL, None, "liver", Role.UNCLEAR),
    (ABNORMAL, ABNORMAL, LIVER, "x", Role.LESION),
    (("79654002", "SCT"), ABNORMAL, None, "x", Role.UNCLEAR),
    (("78961009", "SCT"), ORGAN, None, "Spleen", Role.OTHER),
    (("78961009", "SCT"), ORGAN, None, "Tumor", Role.UNCLEAR),
    (TISSUE, TISSUE, None, "Segment_1", Role.UNCLEAR),
    (TISSUE, TISSUE, None, "Liver", Role.LIVER),
    (None, TISSUE, None, "HCC", Role.LESION),
]


@pytest.mark.parametrize(("kind", "category", "region", "label", "role"), ROLES)
def test_closed_form_codes_are_believed_before_words(tmp_path, kind, category, region, label, role):
    one = Drawn(ONE, label, kind, category, region)
    path = write_seg(tmp_path / "a.dcm", [one], GRID)
    assert role_of(pydicom.dcmread(path).SegmentSequence[0]) is role


@pytest.mark.parametrize(
    ("label", "role"),
    [
        ("liver_mask 2", Role.LIVER),
        ("Leber", Role.LIVER),
        ("liver and tumors", Role.LIVER),
        ("Liver tumor", Role.LESION),
        ("LiverTumor2", Role.LESION),
        ("Läsion", Role.LESION),
        ("Métastase 3", Role.LESION),
        ("kidney", Role.OTHER),
        ("hepatic vein", Role.OTHER),
        ("kidney tumor", Role.UNCLEAR),
        ("tumor necrosis", Role.UNCLEAR),
        ("Liver of Zztop", Role.UNCLEAR),
        ("", Role.UNCLEAR),
    ],
)
def test_closed_form_words_of_labels(label, role):
    assert role_in_words(label) is role


def refused(path: Path) -> InputRefused:
    with pytest.raises(InputRefused) as refusal:
        read_given(path, path)
    assert refusal.value.remedy
    return refusal.value


def test_property_segments_that_cannot_be_told_are_listed_without_names(tmp_path):
    segments = [
        *liver_and_lesions(),
        Drawn(TWO, "Segment_3"),
        Drawn(ONE, "kidney tumor of Zztop Canary, 19010203"),
    ]
    error = refused(write_seg(tmp_path / "Zztop_Canary.dcm", segments, GRID))
    assert error.code == "E_MASK_SEGMENTS"
    assert '4 "Segment_3", 5 "kidney tumor of * *, *".' in error.message
    assert "Zztop" not in str(error)


def test_closed_form_segmentations_that_say_too_little_are_refused(tmp_path):
    other = Drawn(TWO, "Spleen", ("78961009", "SCT"), ORGAN)
    shared = [*liver_and_lesions()[:2], Drawn(ONE, "Lesion 2", LESION, ABNORMAL)]
    cases = {
        "No segment of": [other],
        "is the liver": [Drawn(ONE, "tumor")],
        '2 "Lesion 1", 3 "Lesion 2"': shared,
    }
    for words, segments in cases.items():
        error = refused(write_seg(tmp_path / "a.dcm", segments, GRID))
        assert (error.code, words in error.message) == ("E_MASK_SEGMENTS", True), error
    assert read_given(None, write_seg(tmp_path / "b.dcm", [Drawn(ONE, "tumor")], GRID)).tumor
    given = read_given(
        *[write_seg(tmp_path / "c.dcm", [*liver_and_lesions()[:1], other], GRID)] * 2
    )
    assert given.tumor is not None
    assert not given.tumor.volume.array.any()
    assert "1 other segments left out" in given.tumor.note


def test_closed_form_files_that_are_no_whole_segmentation_are_refused(tmp_path):
    about = {"description": "x", "series_number": 1, "uid_seed": "a"}
    image = write_dicom_series(tmp_path / "ct", volume(shape=(8, 8, 10), slice_mm=5.0), **about)[0]
    assert refused(image).code == "E_MASK_FORMAT"
    whole = write_seg(tmp_path / "whole.dcm", liver_and_lesions(), GRID).read_bytes()
    for name, data in {"cut": whole[:-40], "torn": whole[:900]}.items():
        (tmp_path / f"{name}.dcm").write_bytes(data)
        assert refused(tmp_path / f"{name}.dcm").code == "E_MALFORMED"
    far = write_seg(
        tmp_path / "far.dcm", [Drawn(ORGAN_MASK, "tumor")], GRID, spacing_mm=0.0001, order=range(5)
    )
    assert refused(far).code == "E_MASK_FORMAT"


def test_oracle_dcmqi_masks_are_those_of_its_own_nrrd():
    if not DCMQI.is_dir():
        pytest.skip(f"no {DCMQI.name} in ../shared/data")
    found = read_seg_masks(DCMQI / "liver.dcm")
    image = SimpleITK.ReadImage(str(DCMQI / "liver_seg.nrrd"))
    np.testing.assert_array_equal(found.liver, SimpleITK.GetArrayFromImage(image) > 0)
    np.testing.assert_allclose(found.grid.origin_mm, image.GetOrigin(), atol=1e-3)
    np.testing.assert_allclose(found.grid.spacing_mm[::-1], image.GetSpacing(), atol=1e-5)
    error = refused(DCMQI / "partial_overlaps.dcm")
    assert (error.code, '1 "*", 4 "*_*"' in error.message) == ("E_MASK_SEGMENTS", True)
