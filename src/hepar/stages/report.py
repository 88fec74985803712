"""Stage 8: hand over what was found: masks on the scanner's voxels, numbers, pictures, a page.

The numbers are rounded once, in `compose`, to what can be measured; the table, the page and the
JSON then hold the same ones.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hepar.geometry import Box, Grid, Lattice
from hepar.io.ingest import ingest
from hepar.io.nifti import write_nifti
from hepar.lesion_evidence import FEATURES
from hepar.provenance import Provenance, sha256_file
from hepar.render.page import render_page
from hepar.render.pictures import Figure, report_figures
from hepar.render.viewer import NAME as VIEWER
from hepar.render.viewer import viewer_page
from hepar.render.viewer_volumes import viewer_volumes
from hepar.stages.stored_voxels import as_stored, may_show_names, series_of, stored_grid
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
    PhasedStudy,
    PhaseFinding,
    RegistrationFinding,
)

_CHANCE_DIGITS = 3
# Everything a run leaves, what shows a result at one glance first.
RESULTS = (
    *("report.html", VIEWER, "findings.json", "lesions.csv"),
    *("segmentation.nii.gz", "lesions.nii.gz", "tumor_probability.nii.gz"),
    *("uncertainty.nii.gz", "uncertainty_before.nii.gz"),
    *("seg.dcm", "sr.dcm", "captures", "overlay", "ingest.json", "run.json"),
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
        given={k: v for k, v in (("liver", case.given), ("tumor", lesions.given)) if v},
        provenance=stable,
    )


def write_report(
    findings: Findings,
    case: LiverCase,
    lesions: LesionMap,
    out_dir: Path,
    *,
    probabilities: bool = False,
    viewer: bool = False,
    run: Mapping[str, Any] | None = None,
    files: Sequence[str] | None = None,
    beside: Sequence[Path] = (),
) -> None:
    """Write every file of a run; `run.json`, with the hashes of the others, comes last.

    Args:
        findings: from `compose`.
        case: the patient.
        lesions: masks and probability.
        out_dir: an existing folder; a staged one, so that the files appear together.
        probabilities: also write `tumor_probability.nii.gz` and, as far as they were computed,
            `uncertainty.nii.gz` and `uncertainty_before.nii.gz`.
        viewer: also write `viewer.html`, except where the images may show a name.
        run: content of `run.json`, e.g. `Provenance.as_dict()`; else the findings' provenance.
        files: the study's, from `ingest.listing`; None where they cannot be listed.
        beside: results of other stages in `out_dir`, to be named in `run.json`.
    """
    written = _write_masks(case, lesions, out_dir, probabilities, _signature(findings))
    written += beside
    phased = case.aligned.phased
    document = ingest(phased.study, phased, files=files)
    named = may_show_names(case.aligned)
    figures: tuple[Figure, ...] = () if named else report_figures(case, lesions)
    viewer = viewer and not named
    pngs = {figure.name: figure.picture.png() for figure in figures}
    if figures:
        (out_dir / "overlay").mkdir(exist_ok=True)
    for name, png in pngs.items():
        written.append(out_dir / "overlay" / f"{name}.png")
        written[-1].write_bytes(png)
    texts = {
        "findings.json": findings.model_dump_json(indent=2) + "\n",
        "ingest.json": document.model_dump_json(indent=2) + "\n",
        "report.html": render_page(
            findings, phased.study.verdicts, figures, pngs, VIEWER if viewer else None
        ),
    }
    if viewer:
        texts[VIEWER] = viewer_page(findings, viewer_volumes(case, lesions), "report.html")
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
        row |= {f"feature_{feature.name}": feature.state for feature in lesion.features}
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
    *(f"feature_{name}" for name in FEATURES),
    "reason",
)


def _write_masks(
    case: LiverCase, lesions: LesionMap, out_dir: Path, probabilities: bool, signature: str
) -> list[Path]:
    """Masks on the reference series' own voxels: flips and transposes only, no interpolation.

    Only where those voxels have no orthogonal axes each takes the nearest voxel's label.
    """
    aligned = case.aligned
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
                arrays[name] = np.zeros(aligned.grid.shape, dtype=np.float32)
                arrays[name][case.box.slices] = values
    paths = []
    for name, array in arrays.items():
        paths.append(out_dir / f"{name}.nii.gz")
        write_nifti(paths[-1], *as_stored(array, aligned), signature)
    return paths


def _signature(findings: Findings) -> str:
    """Program and model in the 79 characters that a NIfTI header has for a description."""
    said = findings.provenance
    model = f"model {str(dict(said.get('hashes', {})).get('model', ''))[:16]}"
    made = "given masks" if findings.given.keys() == {"liver", "tumor"} else model
    return f"hepar {said.get('hepar', '')} {made} research use only"


def input_sha256(phased: PhasedStudy) -> str:
    """One digest of what was segmented: the HU and place of every phase, and its series' UID.

    Args:
        phased: harmonized or not; the digests differ.
    """
    digest = hashlib.sha256()
    for phase in PHASE_ORDER:
        if phase in phased.volumes:
            volume, series = phased.volumes[phase], series_of(phased, phase)
            uid = series.tags.get("SeriesInstanceUID", "") if series is not None else ""
            digest.update(f"{phase} {uid} {volume.grid}\n".encode())
            for plane in volume.array:
                digest.update(np.ascontiguousarray(plane).tobytes())
    return digest.hexdigest()


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
            uncertain=readings[phase].uncertain,
            organ_hu=dict(readings[phase].organ_hu),
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
    box = box_on_source(Box(*lesion.box_zyx), aligned.grid, stored_grid(aligned))
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
        confidence=(
            None if lesion.confidence is None else round(lesion.confidence, _CHANCE_DIGITS)
        ),
        features=tuple(
            f.model_copy(update={"numbers": {k: round(v, 2) for k, v in f.numbers.items()}})
            for f in lesion.features
        ),
    )


def box_on_source(box: Box, axial: Grid, source: Grid | Lattice) -> Box:
    """A box of the axial reference grid in voxels of the series as it was read.

    Where the axes of those are not orthogonal it is the box around all eight corners.
    """
    ends = np.array([box.start, box.stop], dtype=np.float64) - [[0.0], [1.0]]
    if isinstance(source, Grid):
        index = np.rint(source.world_to_index(axial.index_to_world(ends))).astype(int)
    else:
        corners = ends[np.array(list(np.ndindex(2, 2, 2))), np.arange(3)]
        index = source.world_to_index(axial.index_to_world(corners))
        index = np.concatenate([np.floor(index), np.ceil(index)]).astype(int)
        index = np.clip(index, 0, np.asarray(source.shape) - 1)
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
        groups=chances(diagnosis.groups),
        method=diagnosis.method,
    )


def _warnings(case: LiverCase, lesions: LesionMap) -> tuple[str, ...]:
    """Warnings of all stages in their order, each once."""
    aligned, phased = case.aligned, case.aligned.phased
    sources = (phased.study, phased, aligned, case, lesions)
    return tuple(dict.fromkeys(w for source in sources for w in source.warnings))


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
