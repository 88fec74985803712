"""Synthetic lesions in real livers: what models find in real texture, where the truth is known.

    .venv/bin/python benchmarks/semi_real.py --model hepar=models/lite -o benchmarks/semi_real.json

After Hu et al., "Label-Free Liver Tumor Segmentation" (CVPR 2023), with phantom-1's lesions. The
backgrounds are the real series of `phantom_real.py`; each that is absent is skipped aloud. Lesions
are drawn inside the liver of the background (the shipped network's, or the 3 mm example's own
mask), at the contrast that their kind has against the liver in the phase of the series. Low
frequencies of the parenchyma give way to the lesion's, noise stays. Two draws in ten have no
lesion; what is found in the untouched scans, whose livers nobody judged, is shown apart. Selection
and comparison use these cases and phantoms only.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from ct_statistics import Scan
from hepar.evaluate.score import CaseScore, score_case
from hepar.evaluate.summary import summarize
from hepar.geometry import Box, Grid
from hepar.infer.bundle import load_bundle
from hepar.infer.calibrate import TumorCalibration
from hepar.infer.lesion_map import lesions_from_probability
from hepar.phantom.anatomy import PART_COUNT, label_map
from hepar.phantom.enhancement import Contrast, draw_time_s, tissue_hu
from hepar.phantom.lesion_enhancement import SHIFTS, lesion_hu
from hepar.phantom.lesion_shape import rasterize
from hepar.phantom.lesions import draw_lesions
from hepar.phantom.population import POPULATIONS
from hepar.phantom.tissue import Tissue
from hepar.preprocess import liver_box
from hepar.release import aligned_phases
from hepar.stages.tumor import find_lesions, look
from hepar.study import LiverCase, Phase, Volume
from hepar.systems.baselines.hu_threshold import HuThresholdSettings
from phantom_real import SERIES, open_real

FIRST_SEED = 960_000
# In-plane and axial standard deviation of what a scanner makes of an edge.
BLUR_MM = (1.0, 0.8, 0.8)
SMOOTH_MM = 3.0
PEOPLE = replace(POPULATIONS["general"], rare="all", companions=0.5)
GRID = tuple(round(0.1 * i, 1) for i in range(2, 10))


def with_lesions(
    hu: np.ndarray, liver: np.ndarray, spacing_mm: tuple[float, float, float], phase: str, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """A background with a patient's lesions, and their instance map.

    Args:
        hu: int16 (z, y, x) of the box around the liver.
        liver: same shape.
        spacing_mm: (z, y, x).
        phase: contrast phase of the background.
        seed: draws the patient; two in ten have no lesion.
    """
    rng = np.random.default_rng([seed, 90])
    coarse = tuple(max(1, round(4.0 / s)) for s in spacing_mm)
    thin = liver[tuple(slice(None, None, c) for c in coarse)]
    wide = tuple(c * s for c, s in zip(coarse, spacing_mm, strict=True))
    specs = draw_lesions(thin, (wide[0], wide[1], wide[2]), (0.0, 0.0, 0.0), rng, PEOPLE)
    found = rasterize(specs, liver, spacing_mm)
    if not found.specs:
        return hu, found.instances
    contrast = Contrast.draw(rng, 0.0)
    time_s = draw_time_s(rng, phase)
    own = float(tissue_hu(contrast, time_s)[Tissue.LIVER])
    table = np.zeros((len(found.specs) + 1, PART_COUNT), np.float32)
    for spec in found.specs:
        table[spec.id] = (
            lesion_hu(spec, contrast, time_s, rng.normal(size=SHIFTS).clip(-2, 2)) - own
        )
    inside = found.instances > 0
    share = np.where(inside, 1 - found.mixed / 255, found.mixed / 255).astype(np.float32)
    owner = np.where(found.fringe > 0, found.fringe, found.instances)
    sigma = [b / s for b, s in zip(BLUR_MM, spacing_mm, strict=True)]
    weight = ndimage.gaussian_filter(share, sigma)
    moved = ndimage.gaussian_filter(share * table[owner, found.parts], sigma)
    smooth = ndimage.gaussian_filter(hu.astype(np.float32), [SMOOTH_MM / s for s in spacing_mm])
    parenchyma = float(np.median(hu[liver & ~inside]))
    grain = ndimage.gaussian_filter(
        rng.standard_normal(hu.shape).astype(np.float32), [2.0 / s for s in spacing_mm]
    )
    grain *= 4.0 / float(grain.std())
    changed = hu + weight * (parenchyma - smooth + grain) + moved
    return np.rint(changed).astype(np.int16), found.instances


def cases_of(scan: Scan, phase: str, draws: int) -> list[tuple[LiverCase, np.ndarray, np.ndarray]]:
    """(case, label, instances) on the voxels of the liver's box: the untouched scan, the draws."""
    whole = Grid.axial(scan.hu.shape, scan.spacing_mm)
    around = liver_box(scan.regions["liver"], whole, 12.0)
    assert around is not None
    hu, liver = scan.hu[around.slices], scan.regions["liver"][around.slices]
    grid = whole.crop(around)
    made = []
    for number in range(-1, draws):
        changed, instances = hu, np.zeros(hu.shape, np.uint8)
        if number >= 0:
            seed = FIRST_SEED + number
            changed, instances = with_lesions(hu, liver, scan.spacing_mm, phase, seed)
        aligned = aligned_phases({Phase(phase): Volume(changed, grid)})
        ml = float(liver.sum()) * grid.voxel_ml
        case = LiverCase(aligned, liver, Box.full(grid.shape), ml, ())
        made.append((case, label_map(liver, instances), instances))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", required=True, help="NAME=model folder")
    parser.add_argument("--draws", type=int, default=10, help="of each background")
    parser.add_argument("--sweep", action="store_true", help="also a range of thresholds")
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args()
    models = {name: load_bundle(Path(path)) for name, path in (m.split("=") for m in options.model)}
    rows: dict[str, dict[str, list[CaseScore]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, series in SERIES.items():
            scan = open_real(series, Path(temporary))
            if scan is None:
                print(f"{name}: absent, skipped")
                continue
            for number, (case, label, instances) in enumerate(
                cases_of(scan, series.phase, options.draws)
            ):
                for method, found in results(case, models, sweep=options.sweep):
                    scored = score_case(
                        f"{name} {number}",
                        found.label,
                        label,
                        scan.spacing_mm,
                        predicted_instances=found.instances,
                        reference_instances=instances,
                    )
                    groups = (name, "all") if number else (f"untouched {name}",)
                    for group in groups:
                        rows.setdefault(group, {}).setdefault(method, []).append(scored)
    document = {
        "models": {name: bundle.sha256 for name, bundle in models.items()},
        "draws": options.draws,
        "rows": {group: {m: slim(s) for m, s in found.items()} for group, found in rows.items()},
    }
    for group, found in document["rows"].items():
        for method, row in found.items():
            print(
                f"{group:<30} {method:<22} tumor {row['tumor_dice']['mean'] or 0:.3f}"
                f" recall {row['recall'] or 0:.2f} of {row['lesions']}"
                f" false/case {row['false_per_case']:.2f} false ml {row['false_ml']:.1f}"
            )
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n")


def results(case: LiverCase, models: dict[str, Any], *, sweep: bool) -> list[tuple[str, Any]]:
    """(method, lesions) of every model and of the HU threshold."""
    found = [("HU threshold", find_lesions(case, HuThresholdSettings())[1])]
    for name, bundle in models.items():
        model = bundle.model("tumor")
        calibration = TumorCalibration.model_validate(dict(model.calibration))
        probability = look(case, model).tumor
        found.append((name, lesions_from_probability(case, probability, calibration)))
        for threshold in GRID if sweep else ():
            at = calibration.model_copy(update={"threshold": threshold, "min_volume_ml": 0.1})
            lesions = lesions_from_probability(case, probability, at)
            found.append((f"{name} at {threshold}", lesions))
    return found


def slim(cases: list[CaseScore]) -> dict[str, Any]:
    summary = summarize(cases)
    lesions = summary["lesions"]
    return {
        "cases": len(cases),
        "tumor_dice": summary["structures"]["tumor"]["measures"]["dice"]["penalised"],
        "lesions": sum(case.match.counts.n_reference for case in cases),
        "recall": lesions["rules"][0]["recall"],
        "by_size": lesions["by_size"],
        "false_per_case": lesions["false_per_patient"],
        "false_ml": float(np.mean([c.structures["tumor"].overlap.false_ml for c in cases])),
    }


if __name__ == "__main__":
    main()
