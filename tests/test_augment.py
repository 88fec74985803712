"""Augmentation: one geometry for all phases and masks, drawn as a pure function."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from hepar.data.augment import Augmentation, Parameters, draw, mask_image, recolor, warp
from hepar.errors import UsageError
from hepar.recipe import Augment
from hepar.systems.base import Batch, InputSpec

SPEC = InputSpec(
    dims=2,
    phases=("NC", "ART", "PV"),
    class_names=("background", "tumor"),
    windows_hu=((-70.0, 180.0),),
    slice_offsets_mm=(0.0,),
    spacing_mm=(2.5, 1.5, 2.0),
    patch=(40, 56),
    stride=8,
    needs_liver=True,
)
STILL = Parameters(
    matrix=np.eye(2),
    shift_voxels=np.zeros(2),
    phase_shift_voxels=np.zeros((3, 2)),
    gain=1.0,
    offset=0.0,
    log_gamma=0.0,
    noise=0.0,
    smooth_voxels=0.0,
    shading_hu=0.0,
    streaks_hu=0.0,
    noise_seed=0,
)


def blobs(shape, seed=0):
    noise = np.random.default_rng(seed).normal(size=shape)
    return ndimage.gaussian_filter(noise, 4) > 0.02


def batch_of(label, phases=3):
    """A batch whose image is its label in every phase and whose liver is its complement."""
    mask = torch.from_numpy(label)[None]
    image = mask.float()[:, None, None].repeat(1, phases, 1, *[1] * label.ndim)
    return Batch(image, torch.ones(1, phases, dtype=torch.bool), mask.long(), ~mask)


def drawn(settings, shape=(40, 56), index=0, **changes):
    arguments = {
        "seed": 3,
        "epoch": 1,
        "index": index,
        "shape": shape,
        "n_phases": 3,
        "reference": 2,
        "spacing_mm": (1.5, 2.0),
    }
    return draw(settings, **{**arguments, **changes})


@pytest.mark.parametrize("shape", [(40, 56), (12, 40, 32)])
def test_oracle_warp_against_scipy(shape):
    everything = Augment(p=1.0, flip_axes=("z", "y", "x"))
    image = np.random.default_rng(0).random(shape).astype(np.float32)
    moved = 0
    for index in range(4):
        p = drawn(everything, shape, index, spacing_mm=(1.0,) * len(shape))
        label = blobs(shape)
        batch = replace(batch_of(label), image=torch.from_numpy(image).expand(1, 3, 1, *shape))
        got, _ = warp(batch, None, [p])
        center = (np.asarray(shape) - 1) / 2
        offset = center + p.shift_voxels - p.matrix @ center
        options = {"mode": "grid-constant", "cval": 0.0}
        expected = ndimage.affine_transform(image, p.matrix, offset, order=1, **options)
        np.testing.assert_allclose(got.image[0, 1, 0].numpy(), expected, atol=2e-4)
        nearest = ndimage.affine_transform(
            label.astype(float), p.matrix, offset, order=0, **options
        )
        agree = got.label[0].numpy() == nearest
        inside = np.zeros(shape, bool)
        inside[tuple(slice(1, -1) for _ in shape)] = True
        assert agree[inside].mean() > 0.99
        moved += not np.allclose(expected, image)
    assert moved == 4


def test_oracle_flips_carry_image_and_label_exactly():
    settings = Augment(p=0.0, flip_axes=("y", "x"))
    label = blobs((40, 56))
    seen = set()
    for index in range(12):
        p = drawn(settings, index=index)
        flips = tuple(axis for axis in (0, 1) if p.matrix[axis, axis] < 0)
        seen.add(flips)
        got, _ = warp(batch_of(label), None, [p])
        expected = np.flip(label, flips) if flips else label
        np.testing.assert_array_equal(got.label[0].numpy(), expected)
        np.testing.assert_array_equal(got.liver[0].numpy(), ~expected)
        for phase in range(3):
            np.testing.assert_allclose(got.image[0, phase, 0].numpy(), expected, atol=1e-4)
    assert seen == {(), (0,), (1,), (0, 1)}


def test_property_image_equal_to_its_label_stays_so():
    for index in range(8):
        p = drawn(Augment(p=1.0), index=index)
        got, visible = warp(batch_of(blobs((40, 56), index)), torch.ones(1, 1, 40, 56) > 0, [p])
        image = got.image[0, :, 0]
        assert torch.equal(image[0], image[1])
        assert torch.equal(image[0], image[2])
        # Bilinear at one half and nearest differ only at corners.
        assert ((image[0] > 0.5) == (got.label[0] > 0)).float().mean() > 0.98
        assert not torch.equal(got.label[0] > 0, torch.from_numpy(blobs((40, 56), index)))
        assert not (got.liver[0] & (got.label[0] > 0)).any()
        assert not (got.liver[0] & ~visible[0, 0]).any()


def test_property_ignored_voxels_stay_ignored():
    batch = batch_of(blobs((40, 56)))
    batch = replace(batch, label=torch.where(batch.label > 0, -1, 0))
    got, _ = warp(batch, None, [drawn(Augment(p=1.0))])
    assert set(got.label.unique().tolist()) == {-1, 0}


def test_property_misalignment_spares_the_reference():
    shift = np.array([[2.0, 0.0], [0.0, -3.0], [0.0, 0.0]])
    label = blobs((40, 56))
    got, _ = warp(batch_of(label), None, [replace(STILL, phase_shift_voxels=shift)])
    image = got.image[0, :, 0].numpy()
    np.testing.assert_array_equal(got.label[0].numpy(), label)
    np.testing.assert_allclose(image[2], label, atol=1e-4)
    np.testing.assert_allclose(image[0, :-2], label[2:], atol=1e-4)
    np.testing.assert_allclose(image[1, :, 3:], label[:, :-3], atol=1e-4)
    many = [drawn(Augment(misalignment_mm=3.0), index=i).phase_shift_voxels for i in range(300)]
    spread_mm = np.std(many, axis=0) * [1.5, 2.0]
    np.testing.assert_allclose(spread_mm, [[3, 3], [3, 3], [0, 0]], rtol=0.2)


def test_property_draws_are_pure_and_within_their_ranges():
    settings = Augment(p=1.0, intensity_p=1.0)
    first, again = drawn(settings), drawn(settings)
    np.testing.assert_array_equal(first.matrix, again.matrix)
    assert (first.gain, first.noise_seed) == (again.gain, again.noise_seed)
    assert drawn(settings, epoch=2).gain != first.gain
    assert drawn(settings, seed=4).gain != first.gain
    many = [drawn(settings, index=i) for i in range(200)]
    zooms = [1 / np.sqrt(np.linalg.det(p.matrix)) for p in many]
    angles = [np.degrees(np.arctan2(p.matrix[1, 0], p.matrix[0, 0])) for p in many]
    shifts = np.array([p.shift_voxels / [40, 56] for p in many])
    assert 0.9 <= min(zooms) < 0.92 < 1.08 < max(zooms) <= 1.1
    assert -15 <= min(angles) < -13 < 13 < max(angles) <= 15
    assert 0.09 < np.abs(shifts).max() <= 0.1
    assert all(abs(p.gain - 1) <= 0.1 and 0 <= p.noise <= 0.03 for p in many)


def test_property_nothing_happens_with_probability_zero():
    p = drawn(Augment(p=0.0, intensity_p=0.0))
    image = torch.rand(1, 3, 1, 40, 56)
    batch = replace(batch_of(blobs((40, 56))), image=image)
    torch.testing.assert_close(warp(batch, None, [p])[0].image, image, atol=1e-4, rtol=0)
    assert torch.equal(recolor(image, [p]), image)


def test_property_recolor_keeps_the_range_and_the_order_of_phases():
    p = drawn(Augment(p=0.0, intensity_p=1.0, noise=0.0, gamma=0.5))
    image = torch.linspace(0, 1, 3 * 64).reshape(1, 3, 1, 8, 8)
    got = recolor(image, [p])
    assert got.min() >= 0
    assert got.max() <= 1
    assert not torch.allclose(got, image)
    assert (got.flatten().diff() >= -1e-6).all()


@pytest.mark.parametrize("shape", [(48, 64), (8, 48, 64)])
def test_closed_form_spoiling_is_the_same_hu_in_every_window(shape):
    image = torch.full((1, 3, 2, *shape), 0.5)
    image[:, :, :, ..., 0] = 0.0  # clipped
    widths = (400.0, 100.0)
    shaded = recolor(image, [replace(STILL, shading_hu=6.0)], widths) - image
    streaked = recolor(image, [replace(STILL, streaks_hu=6.0, noise_seed=3)], widths) - image
    for got in (shaded, streaked):
        assert not got[..., 0].any()
        torch.testing.assert_close(got[:, :, 0] * 400, got[:, :, 1] * 100, atol=1e-3, rtol=1e-4)
    assert 4.0 < float(shaded[:, :, 1, ..., 1:].std() * 100) < 8.0
    torch.testing.assert_close(shaded[:, 0], shaded[:, 2])
    assert not torch.allclose(streaked[:, 0], streaked[:, 2])
    along = streaked[0, 0, 1, ..., 1:].diff(dim=-1).std()
    across = streaked[0, 0, 1, ..., 1:].diff(dim=-2).std()
    assert along < 0.3 * across
    assert float(shaded[0, 0, 1, ..., 1:].diff(dim=-1).abs().max()) * 100 < 3.0


def test_property_streaks_lie_in_a_band_that_they_darken():
    image = torch.full((1, 1, 1, 400, 400), 0.5)
    bands = []
    for seed in range(6):
        streaks = replace(STILL, streaks_hu=20.0, noise_seed=seed)
        rows = (recolor(image, [streaks], (1000.0,)) - image)[0, 0, 0] * 1000
        noise, dark = rows.std(dim=-1), -rows.mean(dim=-1)
        middle = int(noise[20:-20].unfold(0, 21, 1).mean(dim=-1).argmax()) + 30
        around = slice(middle - 10, middle + 11)
        assert float(dark[around].mean()) == pytest.approx(10.0, abs=4.0)  # 16 free values a row
        bands.append(float(noise.min() / noise.max()))
    assert min(bands) < 0.2
    assert len(set(bands)) == 6


@pytest.mark.parametrize("shape", [(24, 28), (5, 24, 28)])
def test_oracle_smoothing_against_scipy(shape):
    image = torch.rand(1, 3, 2, *shape, generator=torch.Generator().manual_seed(0))
    got = recolor(image, [replace(STILL, smooth_voxels=1.3)])
    sigma = (0,) * (image.ndim - 2) + (1.3, 1.3)
    expected = ndimage.gaussian_filter(image.numpy(), sigma, mode="nearest", truncate=4 / 1.3)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)


def test_property_masked_image_is_zero_outside_even_where_not_a_number():
    image = torch.full((1, 2, 1, 4, 4), torch.nan)
    visible = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    assert (mask_image(image, visible) == 0).all()


def test_property_a_sample_does_not_depend_on_its_batch():
    settings = Augment(p=1.0, intensity_p=1.0, misalignment_mm=1.0)
    finish = Augmentation(settings, SPEC, seed=0, device=torch.device("cpu"))
    parts = [batch_of(blobs((40, 56), seed)) for seed in range(2)]
    both = Batch(
        *(torch.cat([getattr(p, f) for p in parts]) for f in ("image", "present", "label", "liver"))
    )
    together = finish(both, None, [(0, 5), (2, 1)])
    alone = finish(parts[1], None, [(2, 1)])
    torch.testing.assert_close(together.image[1:], alone.image, atol=1e-6, rtol=0)
    assert torch.equal(together.label[1:], alone.label)


def test_property_misalignment_without_a_spacing_is_refused():
    spec = replace(SPEC, spacing_mm=None)
    with pytest.raises(UsageError, match="misalignment_mm"):
        Augmentation(Augment(misalignment_mm=1.0), spec, seed=0, device=torch.device("cpu"))
