"""The scanner: kernel, slice thickness, correlated noise, streaks, shading and the round field."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32
from scipy import fft, ndimage

from hepar.phantom.shapes import Triple

HU_RANGE = (-1024, 3071)
NOISE_SD_HU = (6.0, 25.0)
_PADDING_HU = (-1024.0, -1024.0, -2000.0, -3024.0)
# SD of the slice profile and of the noise along z, in slice thicknesses.
SLICE_SD, NOISE_SLICE_SD = 0.47, 0.43


@dataclass(frozen=True)
class Spectrum:
    """Radial noise power of a kernel: (low + (1 - low) f / 0.3) exp(-(f / cut)^power), f in 1/mm.

    Fitted to the liver of real series (docs/phantom.md) from f = 0.07 on.
    """

    low: float
    cut: float
    power: float


SOFT = Spectrum(0.40, 0.346, 3.0)  # GE, SOFT
MEDIUM = Spectrum(1.00, 0.331, 1.7)  # Siemens B30s
SMOOTH = Spectrum(0.10, 0.164, 1.13)  # Siemens Br38, iterative


@dataclass(frozen=True)
class Scanner:
    """Ranges that a hospital's scans are drawn from.

    Attributes:
        noise_sd_hu: median and log SD.
        kernel_mm: SD of the in-plane point spread.
        thickness: slice thickness over slice spacing.
        spectra: noise spectra of its kernels.
    """

    noise_sd_hu: tuple[float, float]
    kernel_mm: tuple[float, float]
    thickness: tuple[float, float]
    spectra: tuple[Spectrum, ...]


SCANNERS = {
    "home": Scanner((14.0, 0.33), (0.50, 0.80), (1.15, 1.5), (SOFT, MEDIUM)),
    "external": Scanner((17.0, 0.28), (0.75, 1.15), (1.4, 2.0), (SMOOTH,)),
}


@dataclass(frozen=True)
class Reconstruction:
    """How one visit's scans are reconstructed.

    Attributes:
        noise_sd_hu: in the liver; on grids coarser than 2 mm in plane less, as pixels average.
        kernel_mm: SD of the in-plane point spread.
        thickness_mm: slice thickness, at least the slice spacing.
        spectrum: of the noise in plane.
        streakiness: how much more power vertical frequencies have than horizontal ones.
        shading_hu: amplitude of cupping and of dark bands between dense bones.
        padding_hu: what voxels outside the scan circle hold; None where the field is square.
    """

    noise_sd_hu: float
    kernel_mm: float
    thickness_mm: float
    spectrum: Spectrum
    streakiness: float
    shading_hu: float
    padding_hu: float | None

    @classmethod
    def draw(
        cls, rng: np.random.Generator, scanner: Scanner, spacing_z_mm: float, arms: float
    ) -> Reconstruction:
        """Draw a visit's reconstruction; arms beside the body (up to 1) add horizontal streaks."""
        median, log_sd = scanner.noise_sd_hu
        noise_sd = float(np.clip(np.exp(rng.normal(np.log(median), log_sd)), *NOISE_SD_HU))
        base = scanner.spectra[int(rng.integers(len(scanner.spectra)))]
        low, cut, power = np.array([base.low, base.cut, base.power]) * rng.uniform(0.85, 1.15, 3)
        return cls(
            noise_sd_hu=noise_sd,
            kernel_mm=float(rng.uniform(*scanner.kernel_mm)),
            thickness_mm=float(spacing_z_mm * rng.uniform(*scanner.thickness)),
            spectrum=Spectrum(float(min(low, 1.0)), float(cut), float(power)),
            streakiness=float(rng.uniform(0.1, 0.5) + 0.4 * arms),
            shading_hu=float(rng.uniform(0, 5)),
            padding_hu=_PADDING_HU[int(rng.integers(4))] if rng.random() < 0.3 else None,
        )


def _gauss(sigma: float) -> Float32[np.ndarray, " k"]:
    reach = max(1, int(np.ceil(2.5 * sigma)))
    k = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-3)) ** 2)
    return (k / k.sum()).astype(np.float32)


def blur(
    image: Float32[np.ndarray, "z y x"], recon: Reconstruction, spacing_mm: Triple
) -> Float32[np.ndarray, "z y x"]:
    """Point spread and pixel in plane; along z what the slice is thicker than its spacing.

    A slice profile is a Gaussian of SD 0.47 thicknesses; voxels already hold the mean over their
    slice (`partial_volume`).
    """
    for axis in (1, 2):
        sigma = np.sqrt((recon.kernel_mm / spacing_mm[axis]) ** 2 + 1 / 12)
        image = ndimage.correlate1d(image, _gauss(sigma), axis=axis, mode="nearest")
    excess = (SLICE_SD * recon.thickness_mm) ** 2 - spacing_mm[0] ** 2 / 12
    sigma = np.sqrt(max(excess, 0.0)) / spacing_mm[0]
    return ndimage.correlate1d(image, _gauss(sigma), axis=0, mode="nearest")


def noise(
    shape: tuple[int, ...], recon: Reconstruction, spacing_mm: Triple, rng: np.random.Generator
) -> Float32[np.ndarray, "z y x"]:
    """Correlated noise of the visit's SD, HU: the kernel's spectrum, and the slice's along z."""
    sd = recon.noise_sd_hu * np.exp(rng.normal(0, 0.08)) * min(1.0, 2.0 / max(spacing_mm[1:]))
    white = rng.standard_normal(shape, dtype=np.float32)
    _, ny, nx = shape
    fy = np.fft.fftfreq(ny, spacing_mm[1])[:, None]
    fx = np.fft.rfftfreq(nx, spacing_mm[2])[None, :]
    f, law = np.hypot(fy, fx), recon.spectrum
    power = (law.low + (1 - law.low) * f / 0.3) * np.exp(-((f / law.cut) ** law.power))
    # cos of twice the angle from the horizontal frequency axis.
    double = (fx**2 - fy**2) / np.maximum(f, 1e-9) ** 2
    power = power * np.clip(1 - recon.streakiness * double, 0.05, None)
    amplitude = np.sqrt(power).astype(np.float32)
    image = fft.irfft2(fft.rfft2(white) * amplitude, s=(ny, nx)).astype(np.float32, copy=False)
    along = _gauss(NOISE_SLICE_SD * recon.thickness_mm / spacing_mm[0])
    image = ndimage.correlate1d(image, along, axis=0, mode="wrap")
    image *= np.float32(sd / max(float(image[:: max(1, shape[0] // 8)].std()), 1e-6))
    return image


def noise_gain(
    air: Bool[np.ndarray, "z y x"], spacing_mm: Triple
) -> Float32[np.ndarray, "z y x"] | None:
    """How much of the liver's noise there is: all of it 40 mm below the skin, 0.42 in air.

    Returns:
        The factor, or None where the field holds no air to speak of.
    """
    if air[:, ::4, ::4].mean() < 0.02:
        return None
    body = ndimage.gaussian_filter(
        (~air[:, ::4, ::4]).astype(np.float32),
        (0.0, *(20.0 / (4 * s) for s in spacing_mm[1:])),
        mode="nearest",
    )
    share = np.clip((body - 0.1) / 0.85, 0, 1)
    zoom = (1, *(n / c for n, c in zip(air.shape[1:], share.shape[1:], strict=True)))
    wide = ndimage.zoom(share, zoom, order=1, mode="nearest", grid_mode=True)
    gain: Float32[np.ndarray, "z y x"] = np.float32(0.42) + np.float32(0.58) * wide
    return gain


def shading(
    shape: tuple[int, ...], recon: Reconstruction, rng: np.random.Generator
) -> Float32[np.ndarray, "y x"]:
    """Cupping left by beam hardening: darker towards the middle, with a slow gradient."""
    y = np.linspace(-1, 1, shape[1], dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, shape[2], dtype=np.float32)[None, :]
    slope = rng.uniform(-0.5, 0.5, 2)
    cup = 0.5 * (y * y + x * x) - 0.33 + slope[0] * y + slope[1] * x
    return (recon.shading_hu * cup).astype(np.float32)


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
    if recon.padding_hu is None:
        return
    _, ny, nx = image.shape
    y = (np.arange(ny) - (ny - 1) / 2)[:, None] / (0.5 * ny)
    x = (np.arange(nx) - (nx - 1) / 2)[None, :] / (0.5 * nx)
    image[:, y * y + x * x > 1.12] = recon.padding_hu
