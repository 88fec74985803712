"""The scanner: kernel, slice thickness, correlated noise, streaks, shading and the round field."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32
from scipy import ndimage

from hepar.phantom.shapes import Triple

HU_RANGE = (-1024, 3071)
NOISE_SD_HU = (6.0, 25.0)
PADDING_HU = -1024.0


@dataclass(frozen=True)
class Scanner:
    """Ranges that a hospital's scans are drawn from.

    Attributes:
        noise_sd_hu: median and log SD at 1.5 mm in plane.
        kernel_mm: SD of the in-plane point spread.
        thickness: slice thickness over slice spacing.
        sharpness: how much low frequency the noise lacks, 0 soft .. 1 edge-enhancing.
    """

    noise_sd_hu: tuple[float, float]
    kernel_mm: tuple[float, float]
    thickness: tuple[float, float]
    sharpness: tuple[float, float]


SCANNERS = {
    "home": Scanner((14.0, 0.33), (0.55, 0.95), (1.0, 1.35), (0.1, 0.8)),
    "external": Scanner((17.0, 0.28), (0.9, 1.4), (1.2, 1.8), (0.0, 0.4)),
}


@dataclass(frozen=True)
class Reconstruction:
    """How one visit's scans are reconstructed.

    Attributes:
        noise_sd_hu: at 1.5 mm in plane.
        kernel_mm: SD of the in-plane point spread.
        thickness_mm: slice thickness, at least the slice spacing.
        sharpness: see `Scanner`.
        shading_hu: amplitude of cupping and of dark bands between dense bones.
        round_field: whether voxels outside the scan circle hold padding.
        arms: 0 raised .. 1 beside the body; adds horizontal streaks.
    """

    noise_sd_hu: float
    kernel_mm: float
    thickness_mm: float
    sharpness: float
    shading_hu: float
    round_field: bool
    arms: float

    @classmethod
    def draw(
        cls, rng: np.random.Generator, scanner: Scanner, spacing_z_mm: float, arms: float
    ) -> Reconstruction:
        """Draw a visit's reconstruction."""
        median, log_sd = scanner.noise_sd_hu
        noise_sd = float(np.clip(np.exp(rng.normal(np.log(median), log_sd)), *NOISE_SD_HU))
        return cls(
            noise_sd_hu=noise_sd,
            kernel_mm=float(rng.uniform(*scanner.kernel_mm)),
            thickness_mm=float(spacing_z_mm * rng.uniform(*scanner.thickness)),
            sharpness=float(rng.uniform(*scanner.sharpness)),
            shading_hu=float(rng.uniform(0, 5)),
            round_field=bool(rng.random() < 0.3),
            arms=arms,
        )


def _gauss(sigma: float) -> Float32[np.ndarray, " k"]:
    reach = max(1, int(np.ceil(2.5 * sigma)))
    k = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-3)) ** 2)
    return (k / k.sum()).astype(np.float32)


def blur(
    image: Float32[np.ndarray, "z y x"], recon: Reconstruction, spacing_mm: Triple
) -> Float32[np.ndarray, "z y x"]:
    """Point spread and pixel in plane; along z what the slice is thicker than its spacing.

    Voxels already hold the mean over their slice (`partial_volume`).
    """
    for axis in (1, 2):
        sigma = np.sqrt((recon.kernel_mm / spacing_mm[axis]) ** 2 + 1 / 12)
        image = ndimage.correlate1d(image, _gauss(sigma), axis=axis, mode="nearest")
    excess = max(recon.thickness_mm**2 - spacing_mm[0] ** 2, 0.0)
    sigma = np.sqrt(excess / 12) / spacing_mm[0]
    if sigma > 0.15:
        image = ndimage.correlate1d(image, _gauss(sigma), axis=0, mode="nearest")
    return image


def noise(
    shape: tuple[int, ...], recon: Reconstruction, spacing_mm: Triple, rng: np.random.Generator
) -> Float32[np.ndarray, "z y x"]:
    """Correlated noise of the visit's SD, shading, and the streaks of arms beside the body.

    Band-passed in plane, slightly shared by slices. On grids coarser than 2 mm in plane the noise
    is that of the averaged pixels.
    """
    sd = recon.noise_sd_hu * np.exp(rng.normal(0, 0.08)) * min(1.0, 2.0 / max(spacing_mm[1:]))
    image = rng.standard_normal(shape, dtype=np.float32)
    for axis in (1, 2):
        kernel = _gauss(0.95 * recon.kernel_mm / spacing_mm[axis])
        image = ndimage.correlate1d(image, kernel, axis=axis, mode="wrap")
    wide = ndimage.uniform_filter1d(image, 5, axis=1, mode="wrap")
    wide = ndimage.uniform_filter1d(wide, 5, axis=2, mode="wrap")
    image -= np.float32(recon.sharpness) * wide
    if recon.arms > 0:
        rows = ndimage.uniform_filter1d(image, 15, axis=2, mode="wrap")
        image += np.float32(2.5 * recon.arms) * rows
    along = np.array([0.12, 0.76, 0.12], np.float32)
    image = ndimage.correlate1d(image, along, axis=0, mode="wrap")
    image *= np.float32(sd / max(float(image[:: max(1, shape[0] // 8)].std()), 1e-6))
    image += _shading(shape, recon.shading_hu, rng)
    return image


def _shading(
    shape: tuple[int, ...], amplitude_hu: float, rng: np.random.Generator
) -> Float32[np.ndarray, "y x"]:
    """Cupping left by beam hardening: darker towards the middle, with a slow gradient."""
    y = np.linspace(-1, 1, shape[1], dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, shape[2], dtype=np.float32)[None, :]
    slope = rng.uniform(-0.5, 0.5, 2)
    cup = 0.5 * (y * y + x * x) - 0.33 + slope[0] * y + slope[1] * x
    return (amplitude_hu * cup).astype(np.float32)


def streaks(
    shape: tuple[int, ...], spacing_mm: Triple, rng: np.random.Generator
) -> Float32[np.ndarray, "z y x"]:
    """Bright and dark rays from one dense or moving point, over a part of the slices, HU."""
    nz, ny, nx = shape
    center = rng.uniform(0.15, 0.85, 2) * (ny, nx)
    y = (np.arange(ny, dtype=np.float32)[:, None] - np.float32(center[0])) * spacing_mm[1]
    x = (np.arange(nx, dtype=np.float32)[None, :] - np.float32(center[1])) * spacing_mm[2]
    angle = np.arctan2(y, x)
    rays = np.zeros((ny, nx), np.float32)
    for _ in range(int(rng.integers(5, 12))):
        width, turn = rng.uniform(0.015, 0.06), rng.uniform(-np.pi, np.pi)
        away = np.abs(np.mod(angle - turn + np.pi, 2 * np.pi) - np.pi)
        rays += np.float32(rng.uniform(-38, 30)) * np.exp(-0.5 * (away / width) ** 2)
    far = np.exp(-np.hypot(y, x) / 140)
    z = np.arange(nz) * spacing_mm[0]
    middle, reach = rng.uniform(0, z[-1] + 1e-3), rng.uniform(12, 45)
    along = np.exp(-0.5 * ((z - middle) / reach) ** 2).astype(np.float32)
    return along[:, None, None] * (rays * far)[None]


def limit_view(image: Float32[np.ndarray, "z y x"], recon: Reconstruction) -> None:
    """Set what lies outside the scan circle to padding, in place."""
    if not recon.round_field:
        return
    _, ny, nx = image.shape
    y = (np.arange(ny) - (ny - 1) / 2)[:, None] / (0.5 * ny)
    x = (np.arange(nx) - (nx - 1) / 2)[None, :] / (0.5 * nx)
    image[:, y * y + x * x > 1.12] = PADDING_HU
