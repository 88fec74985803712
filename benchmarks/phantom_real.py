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
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ct_statistics import (
    BAND_NAMES,
    BORDERS,
    REGIONS,
    Scan,
    measure,
    shrink,
)
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
from real_case import commit

DATA = Path(__file__).resolve().parents[1] / "../shared/data"
FIRST_SEED = 940_000  # training, calibration, the demo and other benchmarks use others
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


def at(row: dict[str, Any], path: tuple[str | int, ...]) -> float | None:
    """The number at a path of keys, or None where it was not measured."""
    value: Any = row
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


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
