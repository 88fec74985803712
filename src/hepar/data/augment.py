"""Augmentation of batches on the training device: drawn first, applied after.

Geometry is one map a sample, the same for every phase, the label and the masks; bilinear for
intensities, nearest for the rest. It is affine, unless a recipe asks for elastic deformation too
(`one_grid`). An optional extra shift of each phase but the reference imitates what registration
leaves over. Intensity changes are the same for all phases of a sample, because the differences
between phases are the signal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn import functional

from hepar.data.one_grid import (
    elastic_field,
    flips,
    linear,
    nearest,
    positions,
    rotation,
    shifted,
)
from hepar.errors import UsageError
from hepar.recipe import Augment
from hepar.study import REFERENCE_ORDER
from hepar.systems.base import Batch, InputSpec

_STREAM = 0x41554  # keeps these draws apart from other uses of (seed, epoch, index)
_ELASTIC = 0x454C41
_STREAK_VOXELS = 10
# Where photons are missing the mean sinks with the noise, by this share of its standard deviation.
_STARVED = 0.5


@dataclass(frozen=True)
class Parameters:
    """What one sample undergoes.

    Attributes:
        matrix: (d, d), output to input voxel offsets from the center, in array axis order.
        shift_voxels: (d,), added to the input position.
        phase_shift_voxels: (p, d), further shift of each phase; zero for the reference.
        gain, offset, log_gamma, noise: `clip(x * gain + offset) ** exp(log_gamma) + noise * N`.
        smooth_voxels: standard deviation of the Gaussian over the last two axes before the noise.
        shading_hu, streaks_hu: standard deviations of the slow field and of the drawn-out noise
            in the middle of its band.
        noise_seed: of the noise.
        displacement_voxels: (d, *knots), added to the output position; see `one_grid.positions`.
        exact: what only flips moves voxels and interpolates nothing. Recipes without elastic
            deformation and tilt interpolate always, as they did when runs of them began.
    """

    matrix: np.ndarray
    shift_voxels: np.ndarray
    phase_shift_voxels: np.ndarray
    gain: float
    offset: float
    log_gamma: float
    noise: float
    smooth_voxels: float
    shading_hu: float
    streaks_hu: float
    noise_seed: int
    displacement_voxels: np.ndarray | None = None
    exact: bool = False


def draw(
    settings: Augment,
    *,
    seed: int,
    epoch: int,
    index: int,
    shape: tuple[int, ...],
    n_phases: int,
    reference: int,
    spacing_mm: tuple[float, ...],
) -> Parameters:
    """Draw the parameters of one sample: a pure function of its arguments.

    Args:
        settings: ranges.
        seed, epoch, index: which sample.
        shape: spatial size of the patch.
        n_phases: phases of the model.
        reference: index of the phase that the label lies on.
        spacing_mm: of the patch, as many as it has axes.
    """
    rng = np.random.default_rng([_STREAM, seed, epoch, index])
    dims = len(shape)
    u = rng.uniform(-1.0, 1.0, size=16)
    happens = rng.random(16) < np.repeat([settings.p, settings.intensity_p], 8)
    angle = math.radians(settings.rotate_deg) * u[0] * happens[0]
    low, high = np.log(settings.scale)
    zoom = math.exp(low + (high - low) * (u[1] + 1) / 2) if happens[1] else 1.0
    matrix = np.eye(dims)
    cos, sin = math.cos(angle), math.sin(angle)
    matrix[-2:, -2:] = [[cos, -sin], [sin, cos]]
    if dims == 3 and settings.tilt_deg > 0.0:
        around_y, around_x = math.radians(settings.tilt_deg) * u[5:7] * happens[0]
        matrix = rotation((angle, float(around_y), float(around_x)), spacing_mm)
    matrix /= zoom
    flips = rng.random(3) < 0.5
    for axis, name in enumerate("zyx"):
        if name in settings.flip_axes and flips[axis] and axis - 3 + dims >= 0:
            matrix[:, axis - 3 + dims] *= -1
    shift = settings.shift * np.asarray(shape) * u[2 : 2 + dims] * happens[2]
    wobble = np.zeros((n_phases, dims))
    wobble[:, -2:] = rng.normal(size=(n_phases, 2)) * settings.misalignment_mm
    wobble /= np.asarray(spacing_mm)
    wobble[reference] = 0.0
    return Parameters(
        matrix=matrix,
        shift_voxels=shift,
        phase_shift_voxels=wobble,
        gain=1.0 + settings.intensity_scale * u[8] * happens[8],
        offset=settings.intensity_shift * u[9] * happens[9],
        log_gamma=settings.gamma * u[10] * happens[10],
        noise=settings.noise * abs(u[11]) * happens[11],
        smooth_voxels=settings.smooth * abs(u[12]) * happens[12],
        shading_hu=settings.shading_hu * abs(u[13]) * happens[13],
        streaks_hu=settings.streaks_hu * abs(u[14]) * happens[14],
        noise_seed=int(rng.integers(2**62)),
        displacement_voxels=_draw_elastic(settings, [_ELASTIC, seed, epoch, index], shape),
        exact=settings.elastic_p > 0.0 or settings.tilt_deg > 0.0,
    )


def _draw_elastic(
    settings: Augment, stream: list[int], shape: tuple[int, ...]
) -> np.ndarray | None:
    rng = np.random.default_rng(stream)
    if rng.random() >= settings.elastic_p:
        return None
    alpha, sigma = rng.uniform(*settings.elastic_alpha), rng.uniform(*settings.elastic_sigma)
    return elastic_field(rng, shape, float(alpha), float(sigma))


def _grid(
    parameters: list[Parameters], shape: tuple[int, ...], device: torch.device, phases: bool
) -> Float[Tensor, "n *spatial d"]:
    """Sampling positions for `grid_sample`: one a sample, or one a (sample, phase) pair."""
    size = np.asarray(shape, dtype=np.float64)
    rows = []
    for p in parameters:
        # grid_sample's unit is half the patch and its axis order is x, y, z.
        linear = p.matrix * size[None, :] / size[:, None]
        shifts = p.shift_voxels + p.phase_shift_voxels if phases else p.shift_voxels[None]
        for shift in shifts:
            theta = np.concatenate([linear, (2 * shift / size)[:, None]], axis=1)
            rows.append(np.concatenate([theta[::-1, :-1][:, ::-1], theta[::-1, -1:]], axis=1))
    thetas = torch.from_numpy(np.stack(rows)).to(device, torch.float32)
    return functional.affine_grid(thetas, [len(rows), 1, *shape], align_corners=False)


def warp(
    batch: Batch, visible: Bool[Tensor, "b c *spatial"] | None, parameters: list[Parameters]
) -> tuple[Batch, Bool[Tensor, "b c *spatial"] | None]:
    """Apply the geometry. What comes from outside is 0, background, and no liver or lesion."""
    if any(p.exact or p.displacement_voxels is not None for p in parameters):
        return _warp_each(batch, visible, parameters)
    shape = tuple(batch.label.shape[1:])
    device = batch.image.device
    wobbles = any(np.any(p.phase_shift_voxels) for p in parameters)
    shared = _grid(parameters, shape, device, phases=False)
    b, p, c = batch.image.shape[:3]
    if wobbles:
        grid = _grid(parameters, shape, device, phases=True)
        image = batch.image.reshape(b * p, c, *shape)
    else:
        grid, image = shared, batch.image.reshape(b, p * c, *shape)
    image = functional.grid_sample(image, grid, mode="bilinear", align_corners=False)
    masks = _masks(batch)
    rows = [mask.unsqueeze(1).float() for mask in masks.values()]
    if visible is not None:
        rows.append(visible.float())
    nearest = functional.grid_sample(
        torch.cat(rows, dim=1), shared, mode="nearest", align_corners=False
    )
    warped = {
        name: nearest[:, n].round().to(mask.dtype) for n, (name, mask) in enumerate(masks.items())
    }
    moved = replace(batch, image=image.reshape(batch.image.shape), **warped)
    return moved, None if visible is None else nearest[:, len(masks) :] > 0.5


def _masks(batch: Batch) -> dict[str, Shaped[Tensor, "b *spatial"]]:
    """All of a batch that takes the nearest voxel, by name."""
    masks = {"label": batch.label, "liver": batch.liver}
    return masks if batch.instances is None else masks | {"instances": batch.instances}


def _warp_each(
    batch: Batch, visible: Bool[Tensor, "b c *spatial"] | None, parameters: list[Parameters]
) -> tuple[Batch, Bool[Tensor, "b c *spatial"] | None]:
    """A sample at a time, each on one grid of its own; one that only flips needs none."""
    masks = _masks(batch)
    image = torch.empty_like(batch.image)
    warped = {name: torch.empty_like(mask) for name, mask in masks.items()}
    shown = None if visible is None else torch.empty_like(visible)
    for n, p in enumerate(parameters):
        rows = [mask[n] for mask in masks.values()] + ([] if visible is None else [*visible[n]])
        image[n], found = _warp_one(batch.image[n], rows, p)
        for target in warped.values():
            target[n] = found.pop(0)
        if shown is not None:
            shown[n] = torch.stack(found)
    return replace(batch, image=image, **warped), shown


def _warp_one(
    image: Float[Tensor, "p c *spatial"], masks: list[Tensor], p: Parameters
) -> tuple[Float[Tensor, "p c *spatial"], list[Tensor]]:
    """The phases of a sample, and its label and masks."""
    shape, wobbles = tuple(image.shape[2:]), p.phase_shift_voxels
    axes = flips(p.matrix, p.shift_voxels)
    if axes is not None and p.displacement_voxels is None and not np.any(wobbles):
        return image.flip([a + 2 for a in axes]), [mask.flip(axes) for mask in masks]
    at = positions(p.matrix, p.shift_voxels, p.displacement_voxels, shape, image.device)
    if not np.any(wobbles):
        return linear(image.flatten(0, 1), at).view_as(image), nearest(masks, at)
    phases = [
        linear(phase, shifted(at, wobble)) for phase, wobble in zip(image, wobbles, strict=True)
    ]
    return torch.stack(phases), nearest(masks, at)


def recolor(
    image: Float[Tensor, "b p c *spatial"],
    parameters: list[Parameters],
    widths_hu: tuple[float, ...] = (1.0,),
) -> Float[Tensor, "b p c *spatial"]:
    """Apply the intensity changes; the result stays in [0, 1].

    Args:
        image: windowed.
        parameters: of each sample.
        widths_hu: width of the window of each channel; one for all, or one a channel.
    """
    changed = []
    for row, p in zip(image, parameters, strict=True):
        if p.gain != 1.0 or p.offset != 0.0:
            row = row * p.gain + p.offset
        row = row.clamp(0.0, 1.0)
        if p.log_gamma != 0.0:
            row = row ** math.exp(p.log_gamma)
        if p.smooth_voxels > 0.0:
            row = _smooth(row, p.smooth_voxels)
        if p.shading_hu > 0.0 or p.streaks_hu > 0.0:
            row = _spoil(row, p, widths_hu)
        if p.noise != 0.0:
            generator = torch.Generator(device=row.device).manual_seed(p.noise_seed)
            noise = torch.randn(row.shape, generator=generator, device=row.device)
            row = (row + p.noise * noise).clamp(0.0, 1.0)
        changed.append(row)
    return torch.stack(changed)


def _smooth(
    row: Float[Tensor, "p c *spatial"], sigma_voxels: float
) -> Float[Tensor, "p c *spatial"]:
    """A Gaussian over the last two axes; edges repeat."""
    reach = math.ceil(3 * sigma_voxels)
    at = torch.arange(-reach, reach + 1, dtype=row.dtype, device=row.device)
    kernel = torch.exp(-0.5 * (at / sigma_voxels) ** 2)
    kernel /= kernel.sum()
    planes = row.reshape(-1, 1, *row.shape[-2:])
    planes = functional.pad(planes, (reach,) * 4, mode="replicate")
    planes = functional.conv2d(planes, kernel.view(1, 1, -1, 1))
    return functional.conv2d(planes, kernel.view(1, 1, 1, -1)).reshape(row.shape)


def _spoil(
    row: Float[Tensor, "p c *spatial"], p: Parameters, widths_hu: tuple[float, ...]
) -> Float[Tensor, "p c *spatial"]:
    """Add shading and streaks, the same HU in every window; what a window clipped stays clipped."""
    generator = torch.Generator().manual_seed(p.noise_seed ^ _STREAM)
    phases, _, *shape = row.shape
    added = torch.zeros((phases, 1, *shape))
    if p.shading_hu > 0.0:
        knots = torch.randn((1, 1, *(4 for _ in shape)), generator=generator)
        mode = "trilinear" if len(shape) == 3 else "bilinear"
        field = functional.interpolate(knots, size=shape, mode=mode, align_corners=True)
        added += p.shading_hu * field / field.std()
    if p.streaks_hu > 0.0:
        noise = torch.randn((phases, 1, *shape), generator=generator)
        middle, breadth = torch.rand(2, generator=generator)
        rows = torch.linspace(0.0, 1.0, shape[-2])
        band = torch.exp(-0.5 * ((rows - middle) / (0.1 + breadth)) ** 2).unsqueeze(-1)
        at = torch.arange(-_STREAK_VOXELS * 2, _STREAK_VOXELS * 2 + 1)
        kernel = torch.exp(-0.5 * (at / _STREAK_VOXELS) ** 2).view(1, 1, -1)
        lines = noise.reshape(-1, 1, shape[-1])
        drawn = functional.conv1d(lines, kernel, padding=_STREAK_VOXELS * 2).reshape(noise.shape)
        added += p.streaks_hu * band * (drawn / drawn.std() - _STARVED)
    width = torch.tensor(widths_hu, device=row.device).view(1, -1, *(1 for _ in shape))
    inside = (row > 0.0) & (row < 1.0)
    return torch.where(inside, (row + added.to(row.device) / width).clamp(0.0, 1.0), row)


def mask_image(
    image: Float[Tensor, "b p c *spatial"], visible: Bool[Tensor, "b #c *spatial"]
) -> Float[Tensor, "b p c *spatial"]:
    """Set what lies outside the liver to 0, the lower bound of the window."""
    return image.masked_fill(~visible.unsqueeze(1), 0.0)


class Augmentation:
    """From collated samples to what the network is given: transfer, geometry, intensity, mask.

    Args:
        settings: ranges; None changes nothing (validation).
        spec: what the system wants to see.
        seed: the recipe's seed.
        device: where the batch goes.

    Raises:
        UsageError: `E_RECIPE`, a misalignment in mm is asked for without a working spacing.
    """

    def __init__(
        self, settings: Augment | None, spec: InputSpec, *, seed: int, device: torch.device
    ) -> None:
        self.settings, self.spec, self.seed, self.device = settings, spec, seed, device
        order = [name for name in REFERENCE_ORDER if name in spec.phases]
        self.reference = spec.phases.index(order[0])
        if settings is not None and settings.misalignment_mm > 0 and spec.spacing_mm is None:
            raise UsageError(
                "E_RECIPE",
                "train",
                "augment.misalignment_mm needs a system with a spacing_mm of its own.",
                "Set system.spacing_mm, or augment.misalignment_mm to 0.",
            )
        # Each window shows every slice of the context.
        self.widths_hu = tuple(
            high - low for low, high in spec.windows_hu for _ in range(spec.slices)
        )
        # Without a spacing there is no misalignment, and its unit does not matter.
        self.spacing_mm = (spec.spacing_mm or (1.0, 1.0, 1.0))[3 - spec.dims :]

    def __call__(
        self,
        batch: Batch,
        visible: Bool[Tensor, "b c *spatial"] | None,
        where: list[tuple[int, int]],
    ) -> Batch:
        """Finish the batch whose samples have the given (epoch, index)."""
        batch = Batch(
            **{
                name: part.to(self.device, non_blocking=True)
                for name, part in vars(batch).items()
                if part is not None
            }
        )
        visible = None if visible is None else visible.to(self.device, non_blocking=True)
        if self.settings is not None:
            parameters = [self._draw(self.settings, batch, *at) for at in where]
            batch, visible = warp(batch, visible, parameters)
            batch = replace(batch, image=recolor(batch.image, parameters, self.widths_hu))
        if self.spec.needs_liver:
            shown = batch.liver.unsqueeze(1) if visible is None else visible
            batch = replace(batch, image=mask_image(batch.image, shown))
        return batch

    def _draw(self, settings: Augment, batch: Batch, epoch: int, index: int) -> Parameters:
        return draw(
            settings,
            seed=self.seed,
            epoch=epoch,
            index=index,
            shape=tuple(batch.label.shape[1:]),
            n_phases=batch.image.shape[1],
            reference=self.reference,
            spacing_mm=self.spacing_mm,
        )
