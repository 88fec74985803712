"""Stage 8: hand over what was found: masks on the scanner's voxels, numbers, pictures, a page.

The numbers are rounded once, in `compose`, to what can be measured; the table, the page and the
JSON then hold the same ones.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hepar.geometry import Box, Grid, uncanonical
from hepar.io.nifti import write_nifti
from hepar.provenance import Provenance, sha256_file
from hepar.render.page import render_page
from hepar.render.pictures import report_figures
from hepar.study import (
    LESION_TYPES,
    PHASE_ORDER,
    TUMOR,
    AlignedStudy,
    Diagnosis,
    Findings,
    Lesion,
    LesionMap,
    LiverCase,
    PhaseFinding,
    RegistrationFinding,
)

_CHANCE_DIGITS = 3
# Everything `write_report` leaves, what shows a result at one glance first.
RESULTS = (
    *("report.html", "findings.json", "lesions.csv", "segmentation.nii.gz", "lesions.nii.gz"),
    *("tumor_probability.nii.gz", "uncertainty.nii.gz", "uncertainty_before.nii.gz"),
    *("overlay", "ingest.json", "run.json"),
)


def compose(
    case: LiverCase,
    lesions: LesionMap,
    diagnosis: Diagnosis,
    provenance: Provenance | Mapping[str, Any],
) -> Findings:
    """Gather everything that was found.

    Args:
        case: the patient.
        lesions: measured lesions.
        diagnosis: what they are.
        provenance: of this run; its stable part goes into the findings.

    Returns:
        Findings with rounded numbers. `box_zyx` counts voxels of the written masks, which lie on
        the reference series as it was read.
    """
    aligned = case.aligned
    stable = provenance.stable() if isinstance(provenance, Provenance) else dict(provenance)
    tumor_ml = float(np.count_nonzero(lesions.label == TUMOR)) * aligned.grid.voxel_ml
    return Findings(
        reference=str(aligned.reference),
        phases=_phases(aligned),
        registration=_registration(aligned),
        liver_ml=round(case.liver_ml, 1),
        tumor_ml=round(tumor_ml, 2),
        tumor_burden=round(lesions.tumor_burden, 4),
        lesions=tuple(_rounded(lesion, aligned) for lesion in lesions.lesions),
        diagnosis=_rounded_diagnosis(diagnosis),
        warnings=_warnings(case, lesions),
        provenance=stable,
    )


def write_report(
    findings: Findings,
    case: LiverCase,
    lesions: LesionMap,
    out_dir: Path,
    *,
    probabilities: bool = False,
    run: Mapping[str, Any] | None = None,
) -> None:
    """Write every file of a run; `run.json`, with the hashes of the others, comes last.

    Args:
        findings: from `compose`.
        case: the patient.
        lesions: masks and probability.
        out_dir: an existing folder; a staged one, so that the files appear together.
        probabilities: also write `tumor_probability.nii.gz` and, as far as they were computed,
            `uncertainty.nii.gz` and `uncertainty_before.nii.gz`.
        run: content of `run.json`, e.g. `Provenance.as_dict()`; else the findings' provenance.
    """
    written = _write_masks(case, lesions, out_dir, probabilities)
    study = case.aligned.phased.study
    figures = report_figures(case, lesions)
    pngs = {figure.name: figure.picture.png() for figure in figures}
    (out_dir / "overlay").mkdir(exist_ok=True)
    for name, png in pngs.items():
        written.append(out_dir / "overlay" / f"{name}.png")
        written[-1].write_bytes(png)
    texts = {
        "findings.json": findings.model_dump_json(indent=2) + "\n",
        "ingest.json": _json(_ingest(case)),
        "report.html": render_page(findings, study.verdicts, figures, pngs),
    }
    for name, text in texts.items():
        written.append(out_dir / name)
        written[-1].write_text(text, encoding="utf-8", newline="\n")
    written.append(out_dir / "lesions.csv")
    write_lesion_csv(findings, written[-1])
    hashes = {path.relative_to(out_dir).as_posix(): sha256_file(path) for path in sorted(written)}
    record = {**(findings.provenance if run is None else run), "files": hashes}
    (out_dir / "run.json").write_text(_json(record), encoding="utf-8", newline="\n")


def write_lesion_csv(findings: Findings, path: Path) -> None:
    """Write one row a lesion; the columns are the same for every patient.

    Args:
        findings: the numbers.
        path: of the CSV; a cell is empty where nothing was measured.
    """
    named = {d.lesion_id: d for d in findings.diagnosis.lesions}
    rows = []
    for lesion in findings.lesions:
        diagnosis = named.get(lesion.id)
        row: dict[str, Any] = {
            "lesion_id": lesion.id,
            "type": diagnosis.label if diagnosis else None,
            "abstained": None if diagnosis is None else str(diagnosis.abstained).lower(),
            "confidence": lesion.confidence,
            "volume_ml": lesion.volume_ml,
            "long_axis_mm": lesion.long_axis_mm,
            "short_axis_mm": lesion.short_axis_mm,
        }
        row |= zip(
            ("centroid_x_mm", "centroid_y_mm", "centroid_z_mm"), lesion.centroid_mm, strict=True
        )
        for end, corner in zip(("start", "stop"), lesion.box_zyx, strict=True):
            row |= zip((f"{a}_{end}" for a in "zyx"), corner, strict=True)
        for name, values in (
            ("hu", lesion.hu),
            ("hu_std", lesion.hu_std),
            ("liver_hu", lesion.liver_hu),
        ):
            row |= {f"{name}_{phase}": values.get(str(phase)) for phase in PHASE_ORDER}
        row |= {"wash_in_hu": lesion.wash_in_hu, "washout_hu": lesion.washout_hu}
        chances = diagnosis.probabilities if diagnosis else {}
        row |= {f"p_{kind}": chances.get(kind) for kind in LESION_TYPES}
        row["reason"] = diagnosis.reason if diagnosis else None
        rows.append(row)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, CSV_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


CSV_COLUMNS = (
    *("lesion_id", "type", "abstained", "confidence"),
    *("volume_ml", "long_axis_mm", "short_axis_mm"),
    *("centroid_x_mm", "centroid_y_mm", "centroid_z_mm"),
    *("z_start", "y_start", "x_start", "z_stop", "y_stop", "x_stop"),
    *(f"{name}_{phase}" for name in ("hu", "hu_std", "liver_hu") for phase in PHASE_ORDER),
    *("wash_in_hu", "washout_hu"),
    *(f"p_{kind}" for kind in LESION_TYPES),
    "reason",
)


def _write_masks(
    case: LiverCase, lesions: LesionMap, out_dir: Path, probabilities: bool
) -> list[Path]:
    """Masks on the reference series' own voxels: flips and transposes only, no interpolation."""
    source = case.aligned.source_grid
    arrays: dict[str, NDArray[Any]] = {
        "segmentation": lesions.label.astype(np.uint8, copy=False),
        "lesions": _smallest(lesions.instances),
    }
    if probabilities:
        inside = {
            "tumor_probability": lesions.probability,
            "uncertainty": lesions.uncertainty,
            "uncertainty_before": lesions.uncertainty_before,
        }
        for name, values in inside.items():
            if values is not None:
                arrays[name] = np.zeros(case.aligned.grid.shape, dtype=np.float32)
                arrays[name][case.box.slices] = values
    paths = []
    for name, array in arrays.items():
        paths.append(out_dir / f"{name}.nii.gz")
        write_nifti(paths[-1], uncanonical(array, source), source)
    return paths


def _smallest(instances: NDArray[np.uint16]) -> NDArray[Any]:
    return instances.astype(np.uint8 if instances.max(initial=0) <= 255 else np.uint16, copy=False)


def _phases(aligned: AlignedStudy) -> tuple[PhaseFinding, ...]:
    readings = {reading.phase: reading for reading in aligned.phased.readings}
    return tuple(
        PhaseFinding(
            phase=str(phase),
            series_id=readings[phase].series_id,
            confidence=round(readings[phase].confidence, _CHANCE_DIGITS),
            reason=readings[phase].reason,
        )
        for phase in PHASE_ORDER
        if phase in aligned.volumes
    )


def _registration(aligned: AlignedStudy) -> tuple[RegistrationFinding, ...]:
    records = sorted(aligned.registration, key=lambda r: PHASE_ORDER.index(r.phase))
    return tuple(
        RegistrationFinding(
            phase=str(record.phase),
            method=record.method,
            similarity_before=round(record.similarity_before, 4),
            similarity_after=round(record.similarity_after, 4),
            mean_displacement_mm=round(record.mean_displacement_mm, 2),
            folding_fraction=round(record.folding_fraction, 5),
            coverage=round(record.coverage, 3),
            reason=record.reason,
            liver_overlap_before=_share(record.liver_overlap_before),
            liver_overlap_after=_share(record.liver_overlap_after),
            liver_coverage=_share(record.liver_coverage),
        )
        for record in records
    )


def _share(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _rounded(lesion: Lesion, aligned: AlignedStudy) -> Lesion:
    def hu(values: Mapping[str, float]) -> dict[str, float]:
        return {phase: round(value, 1) for phase, value in values.items()}

    def optional(value: float | None) -> float | None:
        return None if value is None else round(value, 1)

    x, y, z = lesion.centroid_mm
    box = box_on_source(Box(*lesion.box_zyx), aligned.grid, aligned.source_grid)
    return Lesion(
        id=lesion.id,
        volume_ml=round(lesion.volume_ml, 2),
        long_axis_mm=round(lesion.long_axis_mm, 1),
        short_axis_mm=round(lesion.short_axis_mm, 1),
        centroid_mm=(round(x, 1), round(y, 1), round(z, 1)),
        box_zyx=(box.start, box.stop),
        hu=hu(lesion.hu),
        hu_std=hu(lesion.hu_std),
        liver_hu=hu(lesion.liver_hu),
        wash_in_hu=optional(lesion.wash_in_hu),
        washout_hu=optional(lesion.washout_hu),
        confidence=round(lesion.confidence, _CHANCE_DIGITS),
    )


def box_on_source(box: Box, axial: Grid, source: Grid) -> Box:
    """A box of the axial reference grid in voxels of the series as it was read."""
    corners = np.array([box.start, box.stop], dtype=np.float64) - [[0.0], [1.0]]
    index = np.rint(source.world_to_index(axial.index_to_world(corners))).astype(int)
    low, high = index.min(axis=0), index.max(axis=0) + 1
    return Box((int(low[0]), int(low[1]), int(low[2])), (int(high[0]), int(high[1]), int(high[2])))


def _rounded_diagnosis(diagnosis: Diagnosis) -> Diagnosis:
    def chances(values: Mapping[str, float]) -> dict[str, float]:
        return {name: round(value, _CHANCE_DIGITS) for name, value in values.items()}

    return Diagnosis(
        lesions=tuple(
            d.model_copy(update={"probabilities": chances(d.probabilities)})
            for d in diagnosis.lesions
        ),
        patient=chances(diagnosis.patient),
    )


def _warnings(case: LiverCase, lesions: LesionMap) -> tuple[str, ...]:
    """Warnings of all stages in their order, each once."""
    aligned, phased = case.aligned, case.aligned.phased
    sources = (phased.study, phased, aligned, case, lesions)
    return tuple(dict.fromkeys(w for source in sources for w in source.warnings))


def _ingest(case: LiverCase) -> dict[str, Any]:
    """Every series of the source with its verdict, and the phase it was taken for."""
    phased = case.aligned.phased
    readings = {reading.series_id: reading for reading in phased.readings}
    grids = {series.verdict.series_id: series.volume.grid for series in phased.study.series}
    rows = []
    for verdict in phased.study.verdicts:
        reading, grid = readings.get(verdict.series_id), grids.get(verdict.series_id)
        rows.append(
            {
                **asdict(verdict),
                "phase": str(reading.phase) if reading else None,
                "phase_confidence": round(reading.confidence, _CHANCE_DIGITS) if reading else None,
                "phase_reason": reading.reason if reading else None,
                "shape_zyx": list(grid.shape) if grid else None,
                "spacing_mm_zyx": [round(v, 4) for v in grid.spacing_mm] if grid else None,
            }
        )
    return {
        "series": rows,
        "warnings": list(dict.fromkeys([*phased.study.warnings, *phased.warnings])),
    }


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
