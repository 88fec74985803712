"""Real CT and the phantom, measured by the same code, side by side.

    .venv/bin/python benchmarks/phantom_real.py --seeds 6 -o benchmarks/phantom_real.json

Noise (spectrum, SD, correlation along z), HU by organ, and edge widths. Real series come from
`../shared/data`; each that is absent is skipped aloud, and the phantom is measured all the same, on
the grid and in the phase of its series. Real liver masks are the shipped network's (the 3 mm
example's own); other real regions are discs set by hand after looking at the pictures. Nothing here
is truth: network and discs only say where to measure.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage, optimize, special, stats

from hepar.geometry import canonical
from hepar.infer.bundle import default_bundle_path, load_bundle
from hepar.io.nifti import read_label
from hepar.phantom.anatomy import anatomy
from hepar.phantom.scanner import paint
from hepar.phantom.tissue import Tissue
from hepar.stages.harmonize import harmonize
from hepar.stages.liver import find_liver
from hepar.stages.phases import assign_phases
from hepar.stages.read import read_study
from hepar.stages.register import register

DATA = Path(__file__).resolve().parents[1] / "../shared/data"
FIRST_SEED = 940_000  # training, calibration, the demo and phantom_aims use others
ROI_MM, SMALL_ROI_MM = 24.0, 14.0
BIN_PER_MM = 0.04
TEXTURE_LAG_MM = 6.0  # beyond the slice thickness noise of two slices is independent
REGIONS = ("liver", "aorta", "portal vein", "spleen", "muscle", "fat", "air")
PHANTOM_TISSUES = {
    "aorta": Tissue.AORTA,
    "portal vein": Tissue.PORTAL_VEIN,
    "spleen": Tissue.SPLEEN,
    "muscle": Tissue.MUSCLE,
    "fat": Tissue.FAT,
}


@dataclass(frozen=True)
class Series:
    """A real series: where it is, the phantom that matches it, and where to measure.

    Attributes:
        path: file, folder or archive below DATA.
        phase: its contrast phase.
        spacing_mm: (z, y, x), for the phantom when the series is absent.
        discs: region -> (first z, last z, y, x, radius in mm), indices on the axial grid.
        masks: region -> label files beside `path`, in place of network and discs.
        liver_ends_x: columns from here on are left out of the liver.
    """

    path: str
    phase: str
    spacing_mm: tuple[float, float, float]
    discs: dict[str, tuple[int, int, int, int, float]]
    masks: dict[str, tuple[str, ...]]
    liver_ends_x: int = 10_000


SERIES = {
    "GE SOFT, NC": Series(
        "acrin_flt_breast_001_abdomen/series.tar.gz",
        "NC",
        (4.25, 0.9765625, 0.9765625),
        {
            "aorta": (76, 84, 292, 256, 6),
            "spleen": (80, 88, 336, 318, 8),
            "muscle": (56, 62, 362, 200, 11),
            "fat": (46, 54, 190, 225, 9),
        },
        {},
    ),
    "Siemens B30s, ART": Series(
        "kits_00072_arterial_partial/series.tar.xz",
        "ART",
        (2.5, 0.6640625, 0.6640625),
        {
            "aorta": (2, 10, 337, 262, 5.5),
            "spleen": (0, 4, 350, 382, 9),
            "muscle": (6, 14, 438, 206, 6),
            "fat": (6, 14, 110, 205, 6),
        },
        {},
        liver_ends_x=235,  # the network takes part of the heart of this cut scan for liver
    ),
    "Siemens Br38, PV": Series(
        "totalsegmentator_example_ct_dicom",
        "PV",
        (2.0, 0.9765625, 0.9765625),
        {
            "aorta": (0, 19, 298, 264, 6),
            "portal vein": (9, 11, 259, 205, 3),
            "spleen": (0, 19, 335, 345, 20),
            "muscle": (2, 14, 380, 213, 9),
            "fat": (1, 5, 342, 291, 4),
        },
        {},
    ),
    "3 mm resampled, NC": Series(
        "totalsegmentator_example_ct/example_ct.nii.gz",
        "NC",
        (3.0, 3.0, 3.0),
        {"fat": (56, 68, 82, 22, 9)},
        {
            "liver": ("liver",),
            "aorta": ("aorta",),
            "portal vein": ("portal_vein_and_splenic_vein",),
            "spleen": ("spleen",),
            "muscle": ("autochthon_left", "autochthon_right"),
        },
    ),
}


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


def open_real(series: Series, work: Path) -> Scan | None:
    """A real series with its regions, or None when it is not on this machine."""
    source = DATA / series.path
    if not source.exists():
        return None
    if ".tar" in source.name:
        with tarfile.open(source) as archive:
            archive.extractall(work / series.phase, filter="data")
        folder = work / series.phase
    else:
        folder = source
    phased = harmonize(assign_phases(read_study(folder)))
    volume = next(iter(phased.volumes.values()))
    regions = {}
    if not series.masks:
        model = load_bundle(default_bundle_path()).model("liver")
        regions["liver"] = find_liver(register(phased), model).liver
        regions["liver"][:, :, series.liver_ends_x :] = False
    for name, files in series.masks.items():
        labels = [read_label(source.parent / "example_seg" / f"{f}.nii.gz") for f in files]
        mask = np.any([canonical(v.array, v.grid)[0] > 0 for v in labels], axis=0)
        regions[name] = mask if name == "liver" else shrink(mask, 3.0, volume.grid.spacing_mm)
    for name, disc in series.discs.items():
        regions[name] = cylinder(volume.array.shape, volume.grid.spacing_mm, disc)
    return Scan(volume.array, volume.grid.spacing_mm, regions)


def cylinder(
    shape: tuple[int, ...],
    spacing_mm: tuple[float, ...],
    disc: tuple[int, int, int, int, float],
) -> np.ndarray:
    """The voxels of (first z, last z, y, x, radius in mm)."""
    first, last, y, x, radius_mm = disc
    rows, columns = np.ogrid[: shape[1], : shape[2]]
    inside = np.hypot((rows - y) * spacing_mm[1], (columns - x) * spacing_mm[2]) <= radius_mm
    mask = np.zeros(shape, bool)
    mask[first : last + 1] = inside
    return mask


def open_phantom(series: Series, seed: int) -> Scan:
    """A phantom on the grid and in the phase of a series, its regions from its own truth."""
    patient = anatomy(seed, spacing_mm=series.spacing_mm)
    painted = paint(patient, seed, phases=(series.phase,))
    regions = {
        name: shrink(patient.tissue == code, 3.0 if name != "fat" else 5.0, series.spacing_mm)
        for name, code in PHANTOM_TISSUES.items()
    }
    regions["liver"] = patient.liver
    return Scan(painted.hu[series.phase], series.spacing_mm, regions)


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


BANDS = ((0.0, 0.1), (0.1, 0.2), (0.2, 0.3), (0.3, 0.4), (0.4, 9.0))
BAND_NAMES = ("<0.1", "0.1-0.2", "0.2-0.3", "0.3-0.4", ">0.4")


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


def at(row: dict[str, Any], path: tuple[str | int, ...]) -> float | None:
    """The number at a path of keys, or None where it was not measured."""
    value: Any = row
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


BORDERS = (
    "skin/air in plane",
    "liver/lung in plane",
    "liver/lung z",
    "liver/fat in plane",
    "liver/fat z",
)


def lines() -> list[tuple[str, tuple[str | int, ...]]]:
    """The rows of the table: what it says, and where in a measurement it is."""
    rows: list[tuple[str, tuple[str | int, ...]]] = []
    for region in ("liver", "spleen"):
        for words, *path in (
            ("noise SD, HU", "sd_hu"),
            ("noise SD p10 over ROIs", "sd_p10_p90_hu", 0),
            ("noise SD p90 over ROIs", "sd_p10_p90_hu", 1),
            ("NPS peak, 1/mm", "peak_per_mm"),
            ("NPS mean, 1/mm", "mean_per_mm"),
            *((f"power at {b}", "share_by_band", b) for b in BAND_NAMES),
            ("correlation length, mm", "correlation_length_mm"),
            ("correlation of adjacent slices", "slice_correlation", 0),
            ("correlation 2 slices apart", "slice_correlation", 1),
            ("vertical over horizontal step", "streak_ratio"),
        ):
            rows.append((f"{region}: {words}", ("noise", region, *path)))
    rows += [
        (f"{region}: {words.replace('_hu', ', HU')}", ("hu", region, words))
        for region in REGIONS
        for words in ("mean_hu", "sd_hu", "skewness", "texture_hu")
    ]
    rows += [(f"{border}: 10-90 %, mm", ("edges", border, "rise_mm")) for border in BORDERS]
    return rows


def table(results: dict[str, Any]) -> str:
    """Markdown: a row a number, real beside the phantoms' median [smallest, largest]."""
    names = list(results)
    head = "| | " + " | ".join(f"{n}: real | phantom" for n in names) + " |"
    out = [head, "|---" * (1 + 2 * len(names)) + "|"]
    for words, path in lines():
        cells = []
        for name in names:
            real = at(results[name]["real"], path) if results[name]["real"] else None
            values = [at(p, path) for p in results[name]["phantom"]]
            values = [v for v in values if v is not None]
            cells.append("-" if real is None else f"{real:g}")
            cells.append(
                f"{np.median(values):.3g} [{min(values):g}, {max(values):g}]" if values else "-"
            )
        if any(c != "-" for c in cells):
            out.append(f"| {words} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def commit() -> str:
    """What `git describe` says of this checkout."""
    run = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return run.stdout.strip() or "unknown"


def run(seeds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure every series and its phantoms."""
    results: dict[str, Any] = {}
    for name, series in SERIES.items():
        with tempfile.TemporaryDirectory() as work:
            scan = open_real(series, Path(work))
        if scan is None:
            say(f"SKIPPED {name}: no {series.path} in ../shared/data")
        real = measure(scan) if scan else None
        phantoms = []
        for seed in range(FIRST_SEED, FIRST_SEED + seeds):
            say(f"{name}: phantom {seed}")
            phantoms.append({"seed": seed, **measure(open_phantom(series, seed))})
        results[name] = {
            "phase": series.phase,
            "spacing_mm": series.spacing_mm,
            "real": real,
            "phantom": phantoms,
        }
    return results


def main() -> None:
    """Measure, write the JSON, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("-o", "--out", type=Path, help="write every number here as JSON")
    options = parser.parse_args()
    results = run(options.seeds, lambda line: print(line, file=sys.stderr))
    if options.out:
        options.out.write_text(json.dumps({"commit": commit(), "series": results}, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
