"""The page of `hepar evaluate`: what was scored, how well, what was left out, what to mistrust.

One HTML file without script or network, drawn from the document of `scores.json`. Every number of
its tables is a `<data>` element: `value` is the number there and `data-key` its path.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from hepar.render.case_plots import (
    ONE_SIDED,
    Case,
    Quantity,
    Volumes,
    bland_altman,
    per_case,
    signed,
)
from hepar.render.plots import Plot, Shape
from hepar.render.rate_plots import froc, recall_by_size, reliability, roc
from hepar.render.template import DASH, data, environment, split_warning, type_name

MAX_CASES, WORST_CASES = 200, 100
MAX_NAMES = 8
FEW_PATIENTS = 10
STRUCTURES = ("liver", "tumor")
OUTCOMES = {
    "both": "in both masks",
    "missed": "missed",
    "false": "only predicted",
    "empty": "in neither mask",
}
POLICIES = {
    "penalised": (
        "A miss counts as the worst value: where only one of the two masks is empty, Dice and "
        "surface Dice count as 0, VOE as 100 %, distances as the diagonal of the image in mm, and "
        "RVD as \N{MINUS SIGN}100 % (left out where it is the truth that is empty). A case where "
        "both masks are empty is left out and counted."
    ),
    "paper": (
        "Distances that a case with an empty mask does not have are left out and counted, as most "
        "papers do; Dice, VOE and RVD as above."
    ),
    "lits": (
        "As the LiTS challenge server: distances and RVD count as 9001 where a mask is empty, Dice "
        "as 1 where both are, and RVD is (|B| \N{MINUS SIGN} |A|) / |A|, the reverse of below."
    ),
}


@dataclass(frozen=True)
class Measure:
    """How a measure is written: in `unit`, `scale` times its value in the document."""

    key: str
    name: str
    unit: str
    digits: int
    scale: float = 1.0

    @property
    def title(self) -> str:
        """Name with unit."""
        return f"{self.name}, {self.unit}" if self.unit else self.name


@dataclass(frozen=True)
class Panel:
    """A plot of one structure; None where there is nothing to draw."""

    structure: str
    name: str
    plot: Plot | None


@dataclass(frozen=True)
class Section:
    """Figures that stand side by side."""

    heading: str
    panels: tuple[Panel, ...]

    def shows(self, shape: Shape) -> bool:
        """Whether the key below has to explain this shape."""
        return any(f.plot is not None and f.plot.shaped(shape) for f in self.panels)


def measures(tolerance_mm: float) -> tuple[Measure, ...]:
    """The rows of the table of measures."""
    return (
        Measure("dice", "Dice", "", 3),
        Measure("surface_dice", f"Surface Dice at {tolerance_mm:g} mm", "", 3),
        Measure("voe", "VOE", "%", 1, 100.0),
        Measure("rvd", "RVD, signed", "%", 1, 100.0),
        Measure("rvd_abs", "|RVD|", "%", 1, 100.0),
        Measure("assd_mm", "ASSD", "mm", 2),
        Measure("rmsd_mm", "RMSD", "mm", 2),
        Measure("hd95_mm", "HD95", "mm", 2),
        Measure("hd_mm", "HD", "mm", 2),
    )


def render_evaluation(document: Mapping[str, Any]) -> str:
    """Write the page.

    Args:
        document: plain data as written to `scores.json`. `lesions`, `types`, `specificity`,
            `tumor_burden`, `warnings` and single measures may be absent.

    Returns:
        One self-contained HTML document; the same bytes for the same document.
    """
    template = environment(number=number, signed=signed).get_template("evaluation.html.j2")
    lesions, types = document.get("lesions"), document.get("types")
    rows = measures(document["tolerance_mm"])
    policy = document["policy"]
    return template.render(
        d=document,
        headline=headline(document),
        warnings=[split_warning(w) for w in document.get("warnings", ())],
        notes=notes(document),
        rows={
            name: [m for m in rows if m.key in document["structures"][name]["measures"]]
            for name in STRUCTURES
        },
        policy=policy,
        policies=POLICIES,
        others=[p for p in POLICIES if p != policy],
        outcomes=OUTCOMES,
        structures=STRUCTURES,
        sections=case_sections(document),
        lesions=lesions,
        types=types,
        lesion_plots=lesion_plots(lesions) if lesions else {},
        type_plots=type_plots(types) if types else {},
        cases=worst_first(document["cases"]),
        max_names=MAX_NAMES,
        burden=document.get("tumor_burden"),
        specificity=document.get("specificity"),
    )


def headline(document: Mapping[str, Any]) -> str:
    """How well both structures were found, in two sentences."""
    return " ".join(_sentence(name, document) for name in STRUCTURES)


def _sentence(name: str, document: Mapping[str, Any]) -> str:
    structure = document["structures"][name]
    dice = structure["measures"]["dice"][document["policy"]]
    if dice["mean"] is None:
        return f"No case has {'a tumor' if name == 'tumor' else 'a liver'} in either mask."
    said = f"{name.capitalize()} Dice {dice['mean']:.3f} over {_plural(dice['n'], 'case')}"
    outcomes = structure["outcomes"]
    wrong = [f"{outcomes[o]} {o}" for o in ONE_SIDED if outcomes[o]]
    said += f", counting {' and '.join(wrong)} as 0" if wrong else ", none missed"
    if dice["n_undefined"]:
        said += f"; {dice['n_undefined']} left out, with no {name} in either mask"
    return said + "."


def notes(document: Mapping[str, Any]) -> list[str]:
    """What a reader should know before trusting a number."""
    found = []
    if document["n_patients"] < FEW_PATIENTS:
        found.append(
            f"With {_plural(document['n_patients'], 'patient')}, means can change much with a few "
            "more, and intervals from so few are too narrow or absent."
        )
    for name in STRUCTURES:
        assd = document["structures"][name]["measures"].get("assd_mm", {}).get(document["policy"])
        if document["policy"] == "penalised" and assd and assd["n_missed"]:
            found.append(
                f"Mean distances of the {name} hold {_plural(assd['n_missed'], 'case')} with one "
                "empty mask, each as the diagonal of its image; read the mean over cases with both "
                "masks beside them."
            )
    free = document.get("specificity")
    if free and not free["tumor_free_patients"]:
        found.append("No patient is free of tumors, so false alarms were not put to the test.")
    return found


def worst_first(cases: Sequence[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, Any]]]:
    """Cases with their place in the document, by tumor Dice from the worst up.

    Of equal ones the case with the larger tumor comes first, then that with the worse liver; cases
    without tumor in either mask come last. Of more than 200 cases, the worst 100 are kept.
    """

    def dice(case: Mapping[str, Any], name: str) -> float:
        if case[f"{name}_outcome"] in ONE_SIDED:
            return 0.0
        return math.inf if (value := case[f"{name}_dice"]) is None else value

    def badness(item: tuple[int, Mapping[str, Any]]) -> tuple[float, float, float]:
        case = item[1]
        size = max(case["tumor_predicted_ml"] or 0.0, case["tumor_reference_ml"] or 0.0)
        return dice(case, "tumor"), -size, dice(case, "liver")

    order = sorted(enumerate(cases), key=badness)
    return order[:WORST_CASES] if len(order) > MAX_CASES else order


def case_sections(document: Mapping[str, Any]) -> list[Section]:
    """Plots by case: overlap, distance, agreement of volumes, each of both structures."""
    cases, policy = document["cases"], document["policy"]

    def detected(structure: str, measure: str) -> float | None:
        found = document["structures"][structure]["measures"].get(measure)
        return None if found is None else found[policy]["detected_mean"]

    def plotted(s: str, quantity: Quantity, name: str, measure: str, second: str = "") -> Panel:
        points = [
            Case(c["case_id"], c[f"{s}_outcome"], c[f"{s}_{measure}"], c.get(f"{s}_{second}"))
            for c in cases
        ]
        return Panel(s, name, per_case(name, points, quantity, detected(s, measure)))

    dice = Quantity("Dice", "", 3, "low")
    distance = Quantity("ASSD", "mm", 2, "high", second="HD95")
    overlaps, distances, volumes = [], [], []
    for s in STRUCTURES:
        overlaps.append(plotted(s, dice, f"Dice of the {s}", "dice"))
        name = f"Surface distances of the {s}"
        distances.append(plotted(s, distance, name, "assd_mm", "hd95_mm"))
        name = f"Volume of the {s}, predicted against reference"
        volumes.append(Panel(s, name, bland_altman(name, _volumes(cases, s))))
    return [
        Section("Overlap by case", tuple(overlaps)),
        Section("Surface distance by case", tuple(distances)),
        Section("Agreement of volumes (Bland-Altman)", tuple(volumes)),
    ]


def _volumes(cases: Sequence[Mapping[str, Any]], name: str) -> list[Volumes]:
    return [
        Volumes(
            c["case_id"], c[f"{name}_outcome"], c[f"{name}_predicted_ml"], c[f"{name}_reference_ml"]
        )
        for c in cases
        if c[f"{name}_predicted_ml"] is not None and c[f"{name}_reference_ml"] is not None
    ]


def lesion_plots(lesions: Mapping[str, Any]) -> dict[str, Plot | None]:
    """Plots of the section on lesions, by name."""
    curve = lesions.get("froc") or {}
    return {
        "Recall by size of the lesion": recall_by_size(
            "Recall by size", lesions.get("by_size") or ()
        ),
        "Recall against false lesions (FROC)": froc("FROC", curve.get("points", ())),
    }


def type_plots(types: Mapping[str, Any]) -> dict[str, Plot | None]:
    """Plots of the section on types, by name."""
    curves = types.get("roc") or {}

    def keys(group: str, kind: str) -> dict[str, tuple[str, str, str]]:
        return {
            key: (f"{kind}{k}", type_name(key), f"{found['auc']:.3f}")
            for k, (key, found) in enumerate(types[group].items())
            if found["auc"] is not None
        }

    plots = {
        "ROC by type": roc("ROC by type", curves, keys("auc", "c")),
        "ROC by group": roc("ROC by group", curves, keys("groups", "g")),
    }
    calibration = types.get("calibration")
    if calibration:
        plots["Reliability"] = reliability("Reliability", calibration["bins"])
    return plots


def number(value: float | None, key: str, digits: int | None = None, scale: float = 1.0) -> Markup:
    """A number of the document as `<data>`, shown as `scale` times itself; a dash for None."""
    if value is None:
        return DASH
    text = str(value) if digits is None else f"{scale * value:.{digits}f}"
    return data(value, key, text if float(text) else text.removeprefix("-"))


def _plural(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
