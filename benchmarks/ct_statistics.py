"""What a CT series looks like in numbers: noise spectrum, HU by region, edge widths.

Used by `phantom_real.py` on real series and on phantoms alike.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage, optimize, special, stats

ROI_MM, SMALL_ROI_MM = 24.0, 14.0
BIN_PER_MM = 0.04
TEXTURE_LAG_MM = 6.0  # beyond the slice thickness noise of two slices is independent
REGIONS = ("liver", "aorta", "portal vein", "spleen", "muscle", "fat", "air")
BANDS = ((0.0, 0.1), (0.1, 0.2), (0.2, 0.3), (0.3, 0.4), (0.4, 9.0))
BAND_NAMES = ("<0.1", "0.1-0.2", "0.2-0.3", "0.3-0.4", ">0.4")
BORDERS = (
    "skin/air in plane",
    "liver/lung in plane",
    "liver/lung z",
    "liver/fat in plane",
    "liver/fat z",
)


@dataclass(frozen=True)
class Scan:
    """HU (z, y, x), its spacing, and where each region lies; all from one scan."""

    hu: np.ndarray
    spacing_mm: tuple[float, float, float]
    regions: dict[str, np.ndarray]


def shrink(mask: np.ndarray, margin_mm: float, spacing_mm: tuple[float, ...]) -> np.ndarray:
    """A mask without what lies within a box of `margin_mm` of its border."""
    size = [2 * int(np.ceil(margin_mm / s - 0.5)) + 1 for s in spacing_mm]
    return ndimage.minimum_filter(mask.astype(np.uint8), size, mode="nearest") > 0


def body_of(plane: np.ndarray, spacing_mm: tuple[float, ...]) -> np.ndarray:
    """The body in one axial slice: the largest component above -300 HU, filled."""
    smooth = ndimage.gaussian_filter(plane.astype(np.float32), 2.0 / spacing_mm[1])
    parts, count = ndimage.label(ndimage.binary_opening(smooth > -300, iterations=2))
    if count == 0:
        return np.zeros(plane.shape, bool)
    largest = 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    return ndimage.binary_fill_holes(parts == largest)


def air_of(scan: Scan) -> np.ndarray:
    """Air in front of the body, 8 mm off the skin and 4 mm off clothes and blankets."""
    mask = np.zeros(scan.hu.shape, bool)
    pixel_mm, width = scan.spacing_mm[1], scan.hu.shape[2]
    for z in slices_of(scan.regions["liver"], 12):
        rows = np.flatnonzero(body_of(scan.hu[z], scan.spacing_mm).any(axis=1))
        top = max(0, int(rows[0] - 8.0 / pixel_mm)) if rows.size else 0
        first = max(0, top - int(100 / pixel_mm))
        plane = scan.hu[z].astype(np.float32)
        cloth = ndimage.gaussian_filter(plane, 2.0 / pixel_mm) > -980
        cloth = ndimage.maximum_filter(cloth, 2 * int(4.0 / pixel_mm) + 1)
        inside = slice(width // 3, width - width // 3)
        mask[z, first:top, inside] = ~cloth[first:top, inside]
    return mask


def slices_of(mask: np.ndarray, count: int) -> list[int]:
    """At most `count` slices spread over those that hold some of a mask."""
    held = np.flatnonzero(mask.any(axis=(1, 2)))
    return [int(z) for z in np.unique(held[np.linspace(0, held.size - 1, count).astype(int)])]


def parenchyma(scan: Scan) -> np.ndarray:
    """Liver without its border, its large vessels and lesions: near the median when smoothed."""
    inner = shrink(scan.regions["liver"], 4.0, (1e9, *scan.spacing_mm[1:]))
    sigma = (0.0, *(2.0 / s for s in scan.spacing_mm[1:]))
    smooth = ndimage.gaussian_filter(scan.hu.astype(np.float32), sigma)
    median = float(np.median(scan.hu[inner])) if inner.any() else 0.0
    return inner & (np.abs(smooth - median) < 25)


def rois(mask: np.ndarray, side: int, most: int = 400) -> np.ndarray:
    """Corners (n, 3) of squares in which a mask is whole but for 0.5 %, half overlapping."""
    if not mask.any():
        return np.zeros((0, 3), int)
    step = max(1, side // 2)
    sums = mask.cumsum(1, dtype=np.int32).cumsum(2, dtype=np.int32)
    sums = np.pad(sums, ((0, 0), (1, 0), (1, 0)))
    filled = (
        sums[:, side:, side:]
        - sums[:, :-side, side:]
        - sums[:, side:, :-side]
        + sums[:, :-side, :-side]
    )[:, ::step, ::step]
    corners = np.argwhere(filled >= 0.995 * side * side) * (1, step, step)
    chosen = np.random.default_rng(0).permutation(len(corners))[:most]
    return corners[np.sort(chosen)]


def detrend(patch: np.ndarray) -> np.ndarray:
    """A square without its best quadratic in (y, x)."""
    n = patch.shape[0]
    y, x = np.mgrid[-1 : 1 : n * 1j, -1 : 1 : n * 1j]
    base = np.stack([y * 0 + 1, y, x, y * y, x * y, x * x]).reshape(6, -1)
    flat = patch.reshape(-1).astype(np.float64)
    weights, *_ = np.linalg.lstsq(base.T, flat, rcond=None)
    return (flat - weights @ base).reshape(n, n)


def noise_of(scan: Scan, mask: np.ndarray) -> dict[str, Any]:
    """Noise in a region: SD, radial spectrum, correlation in plane and between slices.

    Spectrum as in ICRU 54: the squared Fourier transform of detrended squares, over rings.
    """
    pixel_mm = scan.spacing_mm[1]
    for side_mm in (ROI_MM, SMALL_ROI_MM):
        side = round(side_mm / pixel_mm)
        corners = rois(mask, side)
        if len(corners) >= 3:
            break
    else:
        return {}
    patches = np.stack([detrend(scan.hu[z, y : y + side, x : x + side]) for z, y, x in corners])
    wide = 4 * side  # zero padded: rings are filled, whatever the side
    power = (np.abs(np.fft.fft2(patches, (wide, wide))) ** 2).mean(axis=0)
    power *= (pixel_mm / side) ** 2
    f = np.fft.fftfreq(wide, pixel_mm)
    radius = np.hypot(*np.meshgrid(f, f, indexing="ij"))
    edges = np.arange(BIN_PER_MM / 2, 0.5 / pixel_mm, BIN_PER_MM)
    ring = np.digitize(radius, edges)
    centers = (edges[:-1] + edges[1:]) / 2
    radial = np.array([power[ring == k + 1].mean() for k in range(centers.size)])
    sd = np.sqrt((patches**2).mean(axis=(1, 2)))
    share = [float(power[(radius >= a) & (radius < b)].sum() / power.sum()) for a, b in BANDS]
    steps = [np.sqrt((np.diff(patches, axis=a) ** 2).mean()) for a in (1, 2)]
    return {
        "rois": len(corners),
        "roi_mm": side_mm,
        "sd_hu": rounded(np.sqrt((patches**2).mean())),
        "sd_p10_p90_hu": [rounded(v) for v in np.percentile(sd, (10, 90))],
        "peak_per_mm": rounded(centers[int(np.argmax(radial))], 2),
        "mean_per_mm": rounded((centers * radial).sum() / radial.sum(), 3),
        "share_by_band": dict(zip(BAND_NAMES, (rounded(v, 3) for v in share), strict=True)),
        "correlation_length_mm": rounded(correlation_length(power, side, pixel_mm), 2),
        "streak_ratio": rounded(steps[0] / steps[1], 2),
        "slice_correlation": slice_correlation(scan.hu, corners, patches),
        "spectrum": {"per_mm": [rounded(c, 2) for c in centers], "hu2_mm2": listed(radial)},
    }


def correlation_length(power: np.ndarray, side: int, pixel_mm: float) -> float:
    """Distance in mm at which the in-plane autocorrelation, averaged over x and y, falls to 1/e."""
    correlation = np.fft.ifft2(power).real
    line = (correlation[0, :side] + correlation[:side, 0]) / (2 * correlation[0, 0])
    line /= 1 - np.arange(side) / side  # fewer pairs lie far apart
    below = int(np.argmax(line < np.exp(-1)))
    before, after = line[below - 1], line[below]
    return pixel_mm * (below - 1 + (before - np.exp(-1)) / max(before - after, 1e-9))


def slice_correlation(hu: np.ndarray, corners: np.ndarray, patches: np.ndarray) -> list[float]:
    """Correlation of detrended squares with the same squares 1, 2, 3 slices above."""
    side = patches.shape[1]
    found = []
    for lag in (1, 2, 3):
        pairs = [
            (p, detrend(hu[z + lag, y : y + side, x : x + side]))
            for p, (z, y, x) in zip(patches, corners, strict=True)
            if z + lag < len(hu)
            and abs(
                np.median(hu[z + lag, y : y + side, x : x + side])
                - np.median(hu[z, y : y + side, x : x + side])
            )
            < 10
        ]
        if pairs:
            a, b = (np.concatenate([np.ravel(p[i]) for p in pairs]) for i in (0, 1))
            found.append(rounded((a * b).mean() / np.sqrt((a * a).mean() * (b * b).mean()), 2))
    return found


def statistics_of(scan: Scan, name: str, mask: np.ndarray) -> dict[str, Any]:
    """Mean, SD, skewness and texture SD of a region's HU."""
    values = scan.hu[mask].astype(np.float64)
    if values.size < 30:
        return {}
    row = {
        "mean_hu": rounded(values.mean()),
        "sd_hu": rounded(values.std()),
        "skewness": rounded(stats.skew(values), 2),
        "voxels": int(values.size),
    }
    if name != "air":
        row["texture_hu"] = texture_of(scan, mask)
    return row


def texture_of(scan: Scan, mask: np.ndarray) -> float | None:
    """SD in HU of what two slices TEXTURE_LAG_MM apart have in common: texture without noise.

    Smoothed by 1.5 mm in plane, inside the region only, and each slice about its local mean
    (12 mm) so that shading and enhancement gradients do not count.
    """
    lag = int(np.ceil(TEXTURE_LAG_MM / scan.spacing_mm[0]))
    weight = mask.astype(np.float32)
    signal = np.where(mask, scan.hu, 0).astype(np.float32)
    level = []
    for sigma_mm in (1.5, 12.0):
        sigma = (0.0, *(sigma_mm / s for s in scan.spacing_mm[1:]))
        below = np.maximum(ndimage.gaussian_filter(weight, sigma), 1e-6)
        level.append(ndimage.gaussian_filter(signal, sigma) / below)
    rest = level[0] - level[1]
    both = mask[:-lag] & mask[lag:]
    if both.sum() < 100:
        return None
    return rounded(np.sqrt(max(0.0, float((rest[:-lag] * rest[lag:])[both].mean()))))


def edges_of(scan: Scan) -> dict[str, Any]:
    """10-90 % rise distances in mm at skin, at liver against lung and fat, in plane and along z."""
    found: dict[str, list[float]] = {}
    for skin, (points, normals) in ((True, skin_points(scan)), (False, liver_points(scan))):
        for point, normal in zip(points, normals, strict=True):
            along_z = abs(normal[0]) > 0.9
            if not along_z and abs(normal[0]) > 0.25:
                continue
            fit = erf_fit(scan, point, normal, along_z=along_z)
            name = border_name(fit[0], fit[1], skin=skin) if fit else None
            if fit and name:
                axis = "z" if along_z else "in plane"
                found.setdefault(f"{name} {axis}", []).append(fit[2])
    return {
        name: {
            "rise_mm": rounded(np.median(v), 2),
            "p25_p75_mm": [rounded(q, 2) for q in np.percentile(v, (25, 75))],
            "profiles": len(v),
        }
        for name, v in found.items()
        if len(v) >= 8
    }


def border_name(low: float, high: float, *, skin: bool) -> str | None:
    """Which border two plateaus in HU belong to."""
    if skin:
        return "skin/air" if low < -950 and -150 < high < 150 else None
    if -930 < low < -650 and 0 < high < 250:
        return "liver/lung"
    return "liver/fat" if -135 < low < -65 and 20 < high < 220 else None


def skin_points(scan: Scan) -> tuple[np.ndarray, np.ndarray]:
    """Border points of the body in front, with outward normals (n, 3)."""
    points, normals = [], []
    for z in slices_of(scan.regions["liver"], 8):
        body = body_of(scan.hu[z], scan.spacing_mm)
        border = np.argwhere(body & ~ndimage.binary_erosion(body))
        front = border[border[:, 0] < np.median(border[:, 0])] if len(border) else border
        slope = [
            ndimage.gaussian_filter1d(
                ndimage.gaussian_filter(scan.hu[z].astype(np.float32), 2.0 / scan.spacing_mm[1]),
                1.0,
                axis=a,
                order=1,
            )
            for a in (0, 1)
        ]
        for y, x in front[:: max(1, len(front) // 30)]:
            n = -np.array([0.0, slope[0][y, x], slope[1][y, x]])
            points.append((z, y, x))
            normals.append(n / max(np.linalg.norm(n), 1e-9))
    return np.array(points), np.array(normals)


def liver_points(scan: Scan, most: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Border points of the liver with outward normals (n, 3), down the slope of the HU."""
    held = ndimage.find_objects(scan.regions["liver"].astype(np.uint8))[0]
    box = tuple(slice(max(0, s.start - 8), s.stop + 8) for s in held)
    hu = scan.hu[box].astype(np.float32)
    liver = scan.regions["liver"][box]
    sigma = [2.5 / s for s in scan.spacing_mm]
    slope = np.stack(
        [
            ndimage.gaussian_filter(hu, sigma, order=[int(a == b) for b in range(3)])
            / scan.spacing_mm[a]
            for a in range(3)
        ]
    )
    border = np.argwhere(liver & ~ndimage.binary_erosion(liver, border_value=1))
    border = border[np.random.default_rng(0).permutation(len(border))[:most]]
    n = -slope[:, border[:, 0], border[:, 1], border[:, 2]].T
    n /= np.maximum(np.linalg.norm(n, axis=1, keepdims=True), 1e-9)
    return border + [s.start for s in box], n


def erf_fit(
    scan: Scan, point: np.ndarray, normal: np.ndarray, *, along_z: bool
) -> tuple[float, float, float] | None:
    """Plateaus (HU) and 10-90 % rise (mm) of the profile through a border, if it is a step."""
    reach = 12.0 if along_z else 7.0
    t = np.arange(-reach, reach + 0.01, 0.25)
    direction = np.sign(normal) * (1, 0, 0) if along_z else normal * (0, 1, 1)
    direction = direction / np.linalg.norm(direction)
    path = np.asarray(point)[:, None] + direction[:, None] / np.array(scan.spacing_mm)[:, None] * t
    if (path.min(axis=1) < 0).any() or (path.max(axis=1) > np.array(scan.hu.shape) - 1).any():
        return None
    low_index = np.maximum(np.floor(path.min(axis=1)).astype(int) - 4, 0)
    high_index = np.ceil(path.max(axis=1)).astype(int) + 5
    block = scan.hu[tuple(slice(a, b) for a, b in zip(low_index, high_index, strict=True))]
    profile = ndimage.map_coordinates(
        block.astype(np.float32),
        path - low_index[:, None],
        order=1 if along_z else 3,
        mode="nearest",
    )
    return fit_step(t, profile, float(abs(normal[0])) if along_z else 1.0)


def fit_step(
    t: np.ndarray, profile: np.ndarray, cosine: float
) -> tuple[float, float, float] | None:
    """Fit a falling erf; only the part up to the highest value is used (skin is a thin layer)."""
    if profile[-8:].mean() < -900:  # air outside: the inner plateau is skin, not the fat behind
        first = int(np.argmax(profile))
        t, profile = t[first:], profile[first:]
    if t.size < 20:
        return None
    start = (profile[-4:].mean(), profile[:4].mean(), 0.0, 1.0)

    def step(x: np.ndarray, low: float, high: float, at: float, sigma: float) -> np.ndarray:
        """A Gaussian-blurred step down from `high` to `low` at `at`."""
        return low + (high - low) * special.ndtr(-(x - at) / max(abs(sigma), 0.05))

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optimize.OptimizeWarning)
            (low, high, at, sigma), _ = optimize.curve_fit(step, t, profile, start, maxfev=200)
    except RuntimeError:
        return None
    residual = float(np.std(profile - step(t, low, high, at, sigma)))
    if high - low < 60 or residual > max(18.0, 0.05 * (high - low)) or abs(at) > 5:
        return None
    return low, high, 2 * special.ndtri(0.9) * abs(sigma) * cosine


def measure(scan: Scan) -> dict[str, Any]:
    """Everything said of one scan."""
    regions = dict(scan.regions)
    regions["liver"] = parenchyma(scan)
    regions["air"] = air_of(scan)
    return {
        "noise": {
            name: noise_of(scan, regions[name]) for name in ("liver", "spleen") if name in regions
        },
        "hu": {
            name: statistics_of(scan, name, regions[name]) for name in REGIONS if name in regions
        },
        "edges": edges_of(scan),
    }


def rounded(value: Any, digits: int = 1) -> float:
    """A number as it is written down."""
    return round(float(value), digits)


def listed(values: np.ndarray) -> list[float]:
    """Numbers as they are written down."""
    return [rounded(v) for v in values]
