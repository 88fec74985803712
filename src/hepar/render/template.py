"""What every page shares: its templates, numbers as `<data>` elements, types and warnings in words.

Every text passes through the templates' autoescape; a number stands in a `<data>` element whose
`value` is the number as computed and whose `data-key` is its path in the document it comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hepar.io.refusal import WARNINGS

DASH = Markup('<span class="none">&ndash;</span>')
TYPE_NAMES = {
    "hcc": "HCC",
    "icc": "ICC",
    "metastasis": "Metastasis",
    "hemangioma": "Hemangioma",
    "fnh": "FNH",
    "cyst": "Cyst",
    "calcification": "Calcification",
    "other": "Other",
    "uncertain": "Uncertain",
    "tumor-free": "No lesion",
    "malignant": "A malignant type",
    "benign": "A benign type",
}
FEATURE_NAMES = {
    "size_10_mm": "At least 10 mm",
    "nonrim_aphe": "Nonrim arterial hyperenhancement",
    "washout": "Nonperipheral washout",
    "capsule": "Enhancing capsule",
    "rim_aphe": "Rim arterial hyperenhancement",
    "peripheral_nodular": "Peripheral nodular enhancement",
    "fluid": "Fluid attenuation",
    "calcification": "Calcification",
}


@dataclass(frozen=True)
class Warn:
    """A warning in words."""

    title: str
    text: str
    code: str


def split_warning(warning: str) -> Warn:
    """`W_CODE: words` as title, words and code."""
    code, colon, text = warning.partition(": ")
    if not colon or not code.startswith("W_"):
        return Warn("Note", warning, "")
    notice = WARNINGS.get(code)
    title = notice.title if notice else code[2:].replace("_", " ").capitalize()
    return Warn(title, text[:1].upper() + text[1:], code)


def environment(**filters: Callable[..., Any]) -> Environment:
    """Templates of this folder: escaped, strict about names, with these filters besides."""
    found = Environment(
        loader=PackageLoader("hepar.render", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(type_name=type_name, shown=shown, percent=percent, chance=chance)
    found.filters.update(filters)
    return found


def data(value: Any, key: str, text: str) -> Markup:
    """A number as a `<data>` element: `value` at `key` of the document, shown as `text`."""
    minus = text.replace("-", "\N{MINUS SIGN}")
    return Markup('<data value="{}" data-key="{}">{}</data>').format(value, key, minus)


def type_name(name: str) -> str:
    """A lesion type as a heading of a row."""
    return TYPE_NAMES.get(name, name.capitalize())


def shown(value: float | None, key: str, digits: int | None = None) -> Markup:
    """A number of the findings as `<data>`; a dash where it was not measured."""
    if value is None:
        return DASH
    text = str(value) if digits is None else f"{value:.{digits}f}"
    return data(value, key, text)


def percent(value: float, key: str) -> Markup:
    """A share of the findings as `<data>`, shown as a percentage."""
    return data(value, key, _percent_text(value))


def chance(value: float | None, key: str) -> Markup:
    """A probability as `<data>`; one that rounds to 1 is not shown as a certainty."""
    if value is None:
        return DASH
    return data(value, key, chance_text(value))


def chance_text(value: float) -> str:
    """A probability in a sentence."""
    return ">\N{NO-BREAK SPACE}99.9\N{NO-BREAK SPACE}%" if value >= 1.0 else _percent_text(value)


def _percent_text(value: float) -> str:
    # Twelve digits undo the binary fraction, so that 0.823 reads 82.3 and not 82.30000000000001.
    return f"{round(100 * value, 12):g}\N{NO-BREAK SPACE}%"
