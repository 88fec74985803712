"""Lesions with a type each, from maps whose every lesion is put there by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hepar.infer.typed_lesions import typed_lesions
from hepar.study import LESION_TYPES

SHAPE = (8, 16, 16)
LIVER = (slice(1, 7), slice(2, 12), slice(2, 12))
MM = (3.0, 2.0, 2.0)  # 12 mm^3 a voxel: three voxels are lesions, two are not
CLASS = {"background": 0, "liver": 9} | {name: 1 + k for k, name in enumerate(LESION_TYPES)}


def probabilities(parts, shape=SHAPE, liver=LIVER, dtype=np.float32) -> np.ndarray:
    """A map that is sure by 0.7 of the class of each part, later parts over earlier ones."""
    classes = np.zeros(shape, int)
    if liver is not None:
        classes[liver] = CLASS["liver"]
    for name, where in parts:
        classes[where] = CLASS[name]
    found = np.full((10, *shape), 0.3 / 9)
    np.put_along_axis(found, classes[None], 0.7, axis=0)
    return found.astype(dtype)


def _block(z, y, x):
    return tuple(slice(*pair) for pair in (z, y, x))


def test_closed_form_a_cyst_beside_a_tumor_stays_a_cyst():
    tumor, cyst = _block((2, 4), (4, 6), (4, 7)), _block((2, 4), (4, 6), (7, 9))
    found = typed_lesions(probabilities([("hcc", tumor), ("cyst", cyst)]), MM)
    assert found.types == ("hcc", "cyst")
    assert found.volumes_ml == pytest.approx((0.144, 0.096))
    expected = np.zeros(SHAPE, np.uint16)
    expected[tumor], expected[cyst] = 1, 2
    np.testing.assert_array_equal(found.instances, expected)
    np.testing.assert_array_equal(found.label == 2, expected > 0)
    np.testing.assert_array_equal(found.label > 0, found.liver)
    assert (found.label.dtype, found.instances.dtype) == (np.uint8, np.uint16)


def test_closed_form_other_types_that_touch_are_one_lesion_unless_asked_apart():
    most, few = _block((2, 4), (4, 6), (4, 7)), _block((2, 4), (4, 6), (7, 9))
    probability = probabilities([("metastasis", most), ("icc", few)])
    joined = typed_lesions(probability, MM)
    assert (joined.types, joined.volumes_ml) == (("metastasis",), pytest.approx((0.24,)))
    apart = typed_lesions(probability, MM, apart=LESION_TYPES)
    assert (apart.types, apart.volumes_ml) == (("metastasis", "icc"), pytest.approx((0.144, 0.096)))
    np.testing.assert_array_equal(joined.label, apart.label)


def test_closed_form_of_equally_many_voxels_the_first_type_wins():
    parts = [("fnh", _block((2, 3), (4, 6), (4, 6))), ("icc", _block((3, 4), (4, 6), (4, 6)))]
    assert typed_lesions(probabilities(parts), MM).types == ("icc",)


def test_closed_form_a_lesion_near_the_liver_is_kept_and_a_far_one_dropped():
    at_edge = _block((2, 4), (4, 6), (11, 13))
    far = _block((2, 4), (14, 16), (14, 16))
    parts = [("hcc", at_edge), ("fnh", far)]
    found = typed_lesions(probabilities(parts), MM)
    assert found.types == ("hcc",)
    assert found.liver[at_edge].all()
    assert not found.liver[far].any()
    # The liver ends at row 11, the middle of this lesion lies three rows beyond, between slices.
    apart = [("hcc", _block((2, 4), (13, 16), (9, 11)))]
    assert typed_lesions(probabilities(apart), (9.0, 1.0, 1.0)).types == ("hcc",)
    assert typed_lesions(probabilities(apart), (9.0, 1.1, 1.0)).types == ()


def test_closed_form_what_is_too_small_is_liver_inside_and_nothing_outside():
    inside, outside = _block((2, 3), (4, 5), (4, 6)), _block((0, 1), (15, 16), (0, 2))
    parts = [("cyst", inside), ("hcc", outside)]
    found = typed_lesions(probabilities(parts), MM)
    assert found.types == ()
    assert not found.instances.any()
    assert (found.label[inside] == 1).all()
    assert not found.label[outside].any()
    assert typed_lesions(probabilities(parts[:1]), (3.0, 2.0, 2.1)).types == ("cyst",)


def test_closed_form_the_liver_is_the_largest_piece_that_holds_liver():
    # A larger lesion without any liver, and a second piece of liver, are not the liver.
    far = _block((0, 8), (14, 16), (0, 16))
    parts = [("metastasis", far), ("liver", _block((0, 2), (0, 1), (14, 16)))]
    found = typed_lesions(probabilities(parts, liver=_block((3, 6), (3, 7), (3, 7))), MM)
    assert found.types == ()
    assert found.liver.sum() == 3 * 4 * 4
    np.testing.assert_array_equal(found.liver, found.label == 1)


def test_closed_form_without_lesions_and_without_liver():
    bare = typed_lesions(probabilities([]), MM)
    assert bare.types == bare.volumes_ml == ()
    assert (bare.label == bare.liver).all()
    lesion = _block((2, 4), (4, 6), (4, 7))
    found = typed_lesions(probabilities([("hcc", lesion)], liver=None), MM)
    assert found.types == ("hcc",)
    assert not found.liver.any()
    np.testing.assert_array_equal(found.label == 2, found.instances == 1)
    empty = typed_lesions(probabilities([], liver=None), MM)
    assert empty.types == ()
    assert not empty.label.any()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_property_sixty_lesions_have_a_number_and_a_type_each(dtype):
    shape, liver = (12, 40, 40), _block((0, 12), (0, 40), (0, 40))
    spots = [
        _block((z, z + 2), (y, y + 2), (x, x + 2))
        for z in (1, 5, 9)
        for y in range(1, 38, 8)
        for x in range(1, 38, 9)
    ][:60]
    assert len(spots) == 60
    names = [LESION_TYPES[k % 8] for k in range(60)]
    map_of = probabilities(zip(names, spots, strict=True), shape, liver, dtype)
    found = typed_lesions(map_of, MM)
    assert len(found.types) == 60
    assert found.instances.max() == 60
    for name, spot in zip(names, spots, strict=True):
        (number,) = np.unique(found.instances[spot])
        assert found.types[number - 1] == name
