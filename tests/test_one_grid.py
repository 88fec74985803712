"""Geometry composed into one resampling: affine, elastic and flips, against scipy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from hepar.data.augment import Augmentation, Parameters, draw, warp
from hepar.data.one_grid import elastic_field, rotation
from hepar.errors import UsageError
from hepar.recipe import Augment, Recipe, load_recipe, parse_recipe, recipe_hash, row_hash
from hepar.systems.base import Batch, InputSpec

SPACING = (2.47, 1.9, 1.9)
EVERYTHING = Augment(
    p=1.0, rotate_deg=30.0, tilt_deg=30.0, scale=(0.7, 1.4), flip_axes=("z", "y", "x")
)
SPEC = InputSpec(
    dims=3,
    phases=("ART", "PV"),
    class_names=("background", "tumor"),
    windows_hu=((-70.0, 180.0),),
    slice_offsets_mm=(0.0,),
    spacing_mm=SPACING,
    patch=(12, 24, 20),
    stride=4,
    needs_liver=True,
)


def drawn(settings: Augment, index: int = 0, shape=(20, 40, 32), **changes) -> Parameters:
    arguments = {"seed": 3, "epoch": 1, "n_phases": 2, "reference": 1, "spacing_mm": SPACING}
    return draw(settings, index=index, shape=shape, **{**arguments, **changes})


def batch_of(shape, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    label = ndimage.gaussian_filter(rng.normal(size=shape), 3) > 0.02
    mask = torch.from_numpy(label)[None]
    image = torch.from_numpy(rng.random((1, 2, 1, *shape)).astype(np.float32))
    return Batch(image, torch.ones(1, 2, dtype=torch.bool), mask.long() - ~mask * 1, ~mask)


def inner(shape, width: int = 1) -> np.ndarray:
    inside = np.zeros(shape, bool)
    inside[tuple(slice(width, -width) for _ in shape)] = True
    return inside


def sampled(values: np.ndarray, p: Parameters, order: int) -> np.ndarray:
    """By scipy, from the definition: center + matrix (x - center + u) + shift."""
    shape = values.shape
    center = (np.asarray(shape) - 1) / 2
    at = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).astype(float)
    if p.displacement_voxels is not None:
        knots = p.displacement_voxels
        axes = [np.linspace(0, k - 1, n) for k, n in zip(knots.shape[1:], shape, strict=True)]
        where = np.stack(np.meshgrid(*axes, indexing="ij"))
        at += np.stack([ndimage.map_coordinates(u, where, order=1, mode="nearest") for u in knots])
    shift = (center + p.shift_voxels).reshape(-1, *[1] * len(shape))
    moved = np.tensordot(p.matrix, at - center.reshape(shift.shape), axes=1) + shift
    return ndimage.map_coordinates(values, moved, order=order, mode="grid-constant", cval=0.0)


@pytest.mark.parametrize("shape", [(12, 30, 26), (40, 33)])
@pytest.mark.parametrize("elastic", [False, True])
def test_oracle_affine_and_elastic_against_scipy(shape, elastic):
    settings = EVERYTHING.model_copy(update={"elastic_p": float(elastic)})
    spacing = SPACING[3 - len(shape) :]
    for index in range(3):
        p = drawn(settings, index, shape, spacing_mm=spacing)
        assert (p.displacement_voxels is not None) == elastic
        batch = batch_of(shape, index)
        got, seen = warp(batch, batch.liver[:, None], [p])
        image = batch.image[0, 1, 0].numpy()
        expected = sampled(image, p, 1)
        np.testing.assert_allclose(got.image[0, 1, 0].numpy(), expected, atol=2e-4)
        assert not np.allclose(expected, image, atol=0.1)
        for theirs, ours in ((batch.label, got.label), (batch.liver, got.liver)):
            expected = sampled(theirs[0].numpy().astype(float), p, 0)
            assert (ours[0].numpy() == expected)[inner(shape)].mean() > 0.995
        assert torch.equal(seen[:, 0], got.liver)


def test_oracle_a_field_of_zeros_is_the_affine_map_alone():
    for index in range(3):
        p = drawn(EVERYTHING, index)
        batch = batch_of((20, 40, 32), index)
        still = replace(p, displacement_voxels=np.zeros((3, 4, 5, 6), np.float32))
        without, with_zeros = warp(batch, None, [p])[0], warp(batch, None, [still])[0]
        for name in ("image", "label", "liver"):
            assert torch.equal(getattr(without, name), getattr(with_zeros, name))


def test_oracle_one_grid_is_what_older_recipes_do():
    """The same parameters by both ways; what the older one interpolates on voxels, ours moves."""
    for index in range(4):
        p = drawn(EVERYTHING, index)
        batch = batch_of((20, 40, 32), index)
        new = warp(batch, batch.liver[:, None], [p])
        old = warp(batch, batch.liver[:, None], [replace(p, exact=False)])
        torch.testing.assert_close(new[0].image, old[0].image, atol=1e-3, rtol=0)
        assert (new[0].label == old[0].label).float().mean() > 0.998
        assert (new[1] == old[1]).float().mean() > 0.998


def test_oracle_a_known_field_moves_what_it_says():
    """One voxel up along x everywhere, on knots; two along z at the far end of a ramp."""
    shape = (9, 12, 16)
    batch = batch_of(shape)
    still = drawn(Augment(p=0.0, tilt_deg=1.0), shape=shape)
    field = np.zeros((3, 2, 3, 2), np.float32)
    field[2] = 1.0
    got, _ = warp(batch, None, [replace(still, displacement_voxels=field)])
    torch.testing.assert_close(got.image[..., :-1], batch.image[..., 1:], atol=1e-5, rtol=0)
    assert torch.equal(got.label[..., :-1], batch.label[..., 1:])
    field = np.zeros((3, 2, 2, 2), np.float32)
    field[0, :, :, 1] = 2.0
    got, _ = warp(batch, None, [replace(still, displacement_voxels=field)])
    torch.testing.assert_close(
        got.image[:, :, :, :-2, :, -1], batch.image[:, :, :, 2:, :, -1], atol=1e-5, rtol=0
    )
    torch.testing.assert_close(got.image[..., 0], batch.image[..., 0], atol=1e-5, rtol=0)


def test_oracle_flips_are_exact_and_all_eight_come():
    settings = Augment(p=0.0, tilt_deg=30.0, flip_axes=("z", "y", "x"))
    batch, seen = batch_of((6, 8, 10)), set()
    for index in range(60):
        p = drawn(settings, index, (6, 8, 10))
        axes = tuple(axis for axis in range(3) if p.matrix[axis, axis] < 0)
        seen.add(axes)
        got, _ = warp(batch, None, [p])
        assert torch.equal(got.image, batch.image.flip([a + 3 for a in axes]))
        assert torch.equal(got.label, batch.label.flip([a + 1 for a in axes]))
        assert torch.equal(got.liver, batch.liver.flip([a + 1 for a in axes]))
    assert len(seen) == 8


def test_oracle_elastic_fields_are_those_of_nnunet():
    """Spread and smoothness of full-size noise, smoothed and scaled as nnU-Net's does it."""
    alpha, sigma, shape = 700.0, 5.0, (60, 60, 60)
    rng = np.random.default_rng(0)
    theirs = [
        ndimage.gaussian_filter(rng.random(shape) * 2 - 1, sigma, mode="wrap") * alpha
        for _ in range(6)
    ]
    ours = []
    for _ in range(2):
        field = elastic_field(rng, shape, alpha, sigma)
        assert field.shape == (3, 25, 25, 25)
        p = replace(drawn(Augment(p=0.0), shape=shape), matrix=np.eye(3), displacement_voxels=field)
        at = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).astype(float)
        ours += [sampled(axis, p, 1) - axis for axis in at]
    # Where a field points outside, there is nothing to sample: the middle alone is compared.
    middle = inner(shape, 18).reshape(shape)
    box = tuple(slice(18, -18) for _ in shape)
    spread = [np.std([field[middle] for field in fields]) for fields in (ours, theirs)]
    assert spread[0] == pytest.approx(spread[1], rel=0.12)
    assert spread[1] == pytest.approx(alpha / 3**0.5 / (2 * np.pi**0.5 * sigma) ** 1.5, rel=0.12)
    steep = [
        np.mean([np.diff(field[box], axis=axis).std() for field in fields for axis in range(3)])
        for fields in (ours, theirs)
    ]
    assert steep[0] == pytest.approx(steep[1], rel=0.12)


def test_closed_form_rotations_turn_millimeters():
    scale = np.diag(SPACING)
    for index in range(50):
        p = drawn(EVERYTHING.model_copy(update={"flip_axes": ()}), index)
        turn = scale @ p.matrix @ np.linalg.inv(scale)
        zoom = np.linalg.det(turn) ** (-1 / 3)
        np.testing.assert_allclose(turn @ turn.T * zoom**2, np.eye(3), atol=1e-12)
        assert 0.7 <= zoom <= 1.4
    quarter = rotation((np.pi / 2, 0.0, 0.0), SPACING)
    np.testing.assert_allclose(quarter @ [0, 1, 0], [0, 0, 1], atol=1e-12)
    tipped = rotation((0.0, np.pi / 2, 0.0), SPACING)  # z and x change places, by their sizes
    np.testing.assert_allclose(np.abs(tipped @ [1, 0, 0]), [0, 0, 2.47 / 1.9], atol=1e-12)


def test_property_rotations_come_around_all_axes_with_the_probability_asked_for():
    settings = Augment(p=0.2, rotate_deg=30.0, tilt_deg=30.0, shift=0.0, scale=(1.0, 1.0))
    turns = [drawn(settings, i, spacing_mm=(1.0,) * 3).matrix for i in range(1500)]
    moved = [t for t in turns if not np.array_equal(t, np.eye(3))]
    assert len(moved) / len(turns) == pytest.approx(0.2, abs=0.03)
    # Of R_x R_y R_z, whose angles stand in the last row and the first column.
    turned = np.array(moved)
    angles = [
        np.degrees(np.arctan2(turned[:, 2, 1], turned[:, 2, 2])),
        np.degrees(np.arcsin(turned[:, 2, 0])),
        np.degrees(np.arctan2(turned[:, 1, 0], turned[:, 0, 0])),
    ]
    for angle in angles:
        assert 28.0 < np.abs(angle).max() <= 30.0 + 1e-9
        assert abs(angle.mean()) < 4.0


def test_property_draws_are_pure_and_leave_older_ones_as_they_were():
    settings = EVERYTHING.model_copy(update={"elastic_p": 0.5})
    first, again = drawn(settings, 4), drawn(settings, 4)
    np.testing.assert_array_equal(first.matrix, again.matrix)
    many = [drawn(settings, i).displacement_voxels for i in range(60)]
    assert 15 < sum(field is not None for field in many) < 45
    for index, field in enumerate(many):
        other = drawn(settings, index).displacement_voxels
        assert (field is None) == (other is None)
        assert field is None or np.array_equal(field, other)
    fields = [field for field in many if field is not None]
    assert not np.array_equal(fields[0][0].ravel()[:50], fields[1][0].ravel()[:50])
    plain = drawn(Augment(p=1.0, intensity_p=1.0), 4)
    rich = drawn(Augment(p=1.0, intensity_p=1.0, tilt_deg=9.0, elastic_p=1.0), 4)
    for name in ("gain", "offset", "log_gamma", "noise", "noise_seed"):
        assert getattr(plain, name) == getattr(rich, name)
    np.testing.assert_array_equal(plain.shift_voxels, rich.shift_voxels)
    assert plain.displacement_voxels is None
    assert not plain.exact


def test_property_ignored_voxels_stay_ignored_and_outside_is_background():
    batch = batch_of((20, 40, 32))
    far = replace(drawn(EVERYTHING), shift_voxels=np.array([0.0, 30.0, 0.0]), matrix=np.eye(3))
    got, _ = warp(batch, None, [far])
    assert set(got.label.unique().tolist()) == {-1, 0, 1}
    assert torch.equal(got.label[:, :, :10], batch.label[:, :, 30:])
    for part in (got.label, got.liver, got.image[:, 0, 0], got.image[:, 1, 0]):
        assert not part[:, :, 11:].any()


def test_property_misalignment_moves_every_phase_but_the_reference():
    batch = batch_of((6, 20, 16))
    still = drawn(Augment(p=0.0, tilt_deg=1.0), shape=(6, 20, 16))
    shift = np.array([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    got, _ = warp(batch, None, [replace(still, phase_shift_voxels=shift)])
    torch.testing.assert_close(got.image[:, 1], batch.image[:, 1], atol=1e-4, rtol=0)
    torch.testing.assert_close(
        got.image[:, 0, :, :, :-2], batch.image[:, 0, :, :, 2:], atol=1e-4, rtol=0
    )
    assert torch.equal(got.label, batch.label)


def test_property_a_sample_does_not_depend_on_its_batch():
    settings = EVERYTHING.model_copy(update={"p": 0.5, "elastic_p": 0.5, "misalignment_mm": 1.0})
    finish = Augmentation(settings, SPEC, seed=0, device=torch.device("cpu"))
    parts = [batch_of((12, 24, 20), seed) for seed in range(4)]
    fields = ("image", "present", "label", "liver")
    where = [(0, 5), (2, 1), (2, 2), (7, 3)]
    both = Batch(*(torch.cat([getattr(p, f) for p in parts]) for f in fields))
    visible = torch.cat([p.liver[:, None] for p in parts])
    together = finish(both, visible, where)
    for n, at in enumerate(where):
        alone = finish(parts[n], visible[n : n + 1], [at])
        for name in fields:
            assert torch.equal(getattr(together, name)[n : n + 1], getattr(alone, name))


def test_property_keys_that_decide_nothing_are_not_in_the_hash_of_a_run():
    tree = {
        "name": "a",
        "system": {"name": "sam_urim", "preset": "lite"},
        "data": {"kind": "phantom"},
        "schedule": {"steps": 3},
    }

    def recipe(**augment) -> Recipe:
        return parse_recipe({**tree, "augment": augment})

    plain = recipe_hash(recipe())
    dumped = parse_recipe({**tree, "augment": Augment().model_dump(mode="json")})
    assert recipe_hash(dumped) == plain
    assert recipe_hash(recipe(elastic_alpha=[0.0, 10.0])) == plain
    others = {
        recipe_hash(recipe(**changes))
        for changes in (
            {"tilt_deg": 30.0},
            {"elastic_p": 0.2},
            {"elastic_p": 0.2, "elastic_alpha": [0.0, 10.0]},
            {"elastic_p": 0.2, "elastic_sigma": [9.0, 9.0]},
        )
    }
    assert len(others | {plain}) == 5
    assert row_hash(recipe()) == row_hash(recipe(tilt_deg=0.0))


@pytest.mark.parametrize("name", ["elastic_alpha", "elastic_sigma"])
def test_property_ranges_that_run_backwards_are_refused(name, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: a\nsystem: {name: sam_urim, preset: lite}\ndata: {kind: phantom}\n"
        f"schedule: {{steps: 3}}\naugment: {{{name}: [9.0, 1.0]}}\n"
    )
    with pytest.raises(UsageError, match=name):
        load_recipe(path)
