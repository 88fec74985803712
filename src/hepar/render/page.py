"""The report as one HTML file: no script, no network, images inside, prints on A4.

Every measured number is a `<data>` element whose `value` is the number of `findings.json` and whose
`data-key` is its path there.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hepar.lesion_evidence import PICTURED
from hepar.render.curve import enhancement_curve
from hepar.render.overlay import COLORS, WINDOW_HU
from hepar.render.pictures import Figure
from hepar.render.template import (
    FEATURE_NAMES,
    TYPE_NAMES,
    chance_text,
    environment,
    split_warning,
)
from hepar.study import (
    PHASE_ORDER,
    Findings,
    Lesion,
    LesionDiagnosis,
    Phase,
    SeriesVerdict,
)

# What base64 makes of it, and the page around it, stay below 3 MB.
MAX_IMAGE_BYTES = 2_100_000
MENTIONED = 0.01
METHOD_NAMES = {
    "reference": "reference",
    "identity": "already aligned",
    "rigid": "rigid",
    "affine": "affine",
    "convexadam": "deformable",
    "identity+liver": "liver alone",
    "rigid+liver": "rigid, then the liver",
    "affine+liver": "affine, then the liver",
    "convexadam+liver": "deformable, then the liver",
    "rejected": "world coordinates only",
}


def render_page(
    findings: Findings,
    verdicts: Sequence[SeriesVerdict],
    figures: Sequence[Figure],
    pngs: Mapping[str, bytes],
    viewer: str | None = None,
) -> str:
    """Write the report.

    Args:
        findings: every number shown.
        verdicts: every series of the source, used or not.
        figures: pictures, in the order of importance.
        pngs: their files by name.
        viewer: file name of the viewer beside the report, if there is one.

    Returns:
        One self-contained HTML document.
    """
    pages = environment(in_text=_type_in_text)
    template = pages.get_template("report.html.j2")
    inside = _that_fit(figures, pngs)
    diagnoses = {d.lesion_id: d for d in findings.diagnosis.lesions}
    return template.render(
        f=findings,
        headline=headline(findings),
        warnings=[split_warning(w) for w in findings.warnings],
        verdicts=verdicts,
        phases=[str(p) for p in PHASE_ORDER],
        long_name={str(p): p.long_name for p in Phase},
        registration={r.phase: r for r in findings.registration},
        methods=METHOD_NAMES,
        diagnoses=diagnoses,
        ranked={key: ranked(d.probabilities) for key, d in diagnoses.items()},
        patient=_patient(findings),
        groups=tuple(findings.diagnosis.groups.items()),
        feature_names=FEATURE_NAMES,
        evidence={lesion.id: evidence(lesion) for lesion in findings.lesions},
        curves={lesion.id: enhancement_curve(lesion) for lesion in findings.lesions},
        overview=[f for f in figures if f.lesion_id is None and f.panels == 1],
        doubt=[f for f in figures if f.lesion_id is None and f.panels > 1],
        pictured={f.lesion_id: f for f in figures if f.lesion_id is not None and not f.of_type},
        type_maps={f.lesion_id: f for f in figures if f.of_type and f.name in inside},
        inside={name: base64.b64encode(pngs[name]).decode() for name in inside},
        window=(round(sum(WINDOW_HU) / 2), round(WINDOW_HU[1] - WINDOW_HU[0])),
        colors={name: "#{:02x}{:02x}{:02x}".format(*rgb) for name, rgb in COLORS.items()},
        max_pictures=PICTURED,
        viewer=viewer,
    )


def headline(findings: Findings) -> str:
    """The result in one sentence."""
    count = len(findings.lesions)
    seen = "given" if "tumor" in findings.given else "found"
    if not count:
        return f"No lesion was {seen} in the liver."
    largest = max(findings.lesions, key=lambda lesion: lesion.long_axis_mm)
    named = {d.lesion_id: d for d in findings.diagnosis.lesions}.get(largest.id)
    if count == 1:
        return f"One lesion of {largest.long_axis_mm} mm was {seen}; {_probably(named)}."
    return (
        f"{count} lesions were {seen}. The largest, lesion {largest.id}, measures "
        f"{largest.long_axis_mm} mm; {_probably(named)}."
    )


def ranked(probabilities: Mapping[str, float]) -> list[tuple[str, float]]:
    """Types worth mentioning, from the most probable down."""
    kept = [item for item in probabilities.items() if item[1] >= MENTIONED]
    return sorted(kept, key=lambda item: -item[1])


def _patient(findings: Findings) -> list[tuple[str, float]]:
    """What is said of the patient; without lesions none of them can be doubted."""
    said = ranked(findings.diagnosis.patient)
    return said if findings.lesions else [item for item in said if item[0] != "tumor-free"]


@dataclass(frozen=True)
class Evidence:
    """The imaging features of a lesion as sentences.

    Attributes:
        present: names and reasons of those that are there.
        absent: names of those that are not.
        open: reasons why others cannot be assessed, each with their names.
    """

    present: tuple[tuple[str, str], ...]
    absent: tuple[str, ...]
    open: tuple[tuple[str, tuple[str, ...]], ...]


def evidence(lesion: Lesion) -> Evidence:
    """Sort what was measured by what it says; reasons that several share are given once."""
    by_state: dict[str, list[tuple[str, str]]] = {"present": [], "absent": [], "not_assessable": []}
    for feature in lesion.features:
        name = FEATURE_NAMES.get(feature.name, feature.name)
        by_state[feature.state].append((name, feature.reason))
    reasons: dict[str, list[str]] = {}
    for name, reason in by_state["not_assessable"]:
        reasons.setdefault(reason, []).append(name)
    return Evidence(
        tuple(by_state["present"]),
        tuple(name for name, _ in by_state["absent"]),
        tuple((reason, tuple(names)) for reason, names in reasons.items()),
    )


def _probably(diagnosis: LesionDiagnosis | None) -> str:
    if diagnosis is None or diagnosis.abstained:
        return "its type is uncertain"
    chance = chance_text(diagnosis.probabilities[diagnosis.label])
    return f"probably {_type_in_text(diagnosis.label)} ({chance})"


def _that_fit(figures: Sequence[Figure], pngs: Mapping[str, bytes]) -> list[str]:
    """Names of the figures that go into the page before it grows too large."""
    kept, total = [], 0
    for figure in figures:
        total += len(pngs[figure.name])
        if total > MAX_IMAGE_BYTES:
            break
        kept.append(figure.name)
    return kept


def _type_in_text(name: str) -> str:
    if name == "other":
        return "a rare type or none of the seven"
    shown = TYPE_NAMES.get(name, name)
    return shown if shown.isupper() else shown.lower()
