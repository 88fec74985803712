"""What the names of labels in a `dataset.json` mean, or that they cannot be understood.

Both layouts with such a file are read here: `labels` as name -> value (nnU-Net version 2; a region
is a list of values) and as value -> name (Medical Segmentation Decathlon, nnU-Net version 1).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hepar.data.importers.case import Mask, Role, Truth
from hepar.io.refusal import refuse

_LIVER = frozenset({"liver", "hepatic", "parenchyma"})
_TUMOR = frozenset(
    [
        "tumor",
        "tumors",
        "tumour",
        "tumours",
        "lesion",
        "lesions",
        "cancer",
        "cancers",
        "metastasis",
        "metastases",
        "hcc",
    ]
)
_CYST = frozenset({"cyst", "cysts"})
_FILLER = frozenset({"and", "the", "whole", "region", "mask", "all"})
# Parts of the liver that label maps cut out of it: neither liver nor background can be assumed.
_INSIDE = frozenset(
    [
        "vessel",
        "vessels",
        "vein",
        "veins",
        "artery",
        "portal",
        "bile",
        "duct",
        "ducts",
        "hepaticvessel",
    ]
)


def read_dataset_json(source: Path) -> dict[str, Any]:
    """The `dataset.json` of a data set.

    Raises:
        InputRefused: `E_CASE_FILES`, it is not there or is no JSON object.
    """
    path = source / "dataset.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError:
        raise refuse("E_CASE_FILES", f"{source.name} holds no dataset.json.", "prepare") from None
    except ValueError as error:
        raise refuse("E_CASE_FILES", f"dataset.json is no JSON: {error}.", "prepare") from None
    if not isinstance(document, dict):
        raise refuse("E_CASE_FILES", "dataset.json holds no object.", "prepare")
    return document


def label_values(labels: Any) -> dict[str, tuple[int, ...]]:
    """Values by label name, from either way round; a region has several values.

    Raises:
        InputRefused: `E_LABEL_NAMES`.
    """
    if not isinstance(labels, Mapping) or not labels:
        raise refuse("E_LABEL_NAMES", "dataset.json names no labels.", "prepare")
    try:
        if all(str(key).isdigit() for key in labels):
            found: dict[str, tuple[int, ...]] = {}
            for key, name in labels.items():
                found[str(name)] = (*found.get(str(name), ()), int(key))
            return found
        return {
            str(name): tuple(int(v) for v in (value if isinstance(value, list) else [value]))
            for name, value in labels.items()
        }
    except (TypeError, ValueError):
        raise refuse("E_LABEL_NAMES", f"dataset.json has labels {labels}.", "prepare") from None


def roles_of(
    values: Mapping[str, tuple[int, ...]],
) -> tuple[dict[Role, tuple[int, ...]], list[str]]:
    """What each label value means.

    Args:
        values: by label name; regions may overlap.

    Returns:
        Values by role, and the names of labels that are other organs and become background.

    Raises:
        InputRefused: `E_NO_LIVER_TRUTH` or `E_NO_TUMOR_TRUTH` where no label is one,
            `E_LABEL_NAMES` where a label may be part of the liver, or has values of two meanings.
    """
    roles: dict[Role, set[int]] = {}
    other: dict[str, set[int]] = {}
    for name, numbers in values.items():
        role = _role(name)
        if role is not None:
            roles.setdefault(role, set()).update(numbers)
        elif set(numbers) != {0}:
            other[name] = set(numbers)
    named = ", ".join(values)
    if "liver" not in roles:
        raise refuse("E_NO_LIVER_TRUTH", f"No label is the liver: {named}.", "prepare")
    if "tumor" not in roles:
        raise refuse("E_NO_TUMOR_TRUTH", f"No label is the tumor: {named}.", "prepare")
    used = set().union(*roles.values())
    if 0 in used:
        raise refuse("E_LABEL_NAMES", f"The value 0 is not background: {named}.", "prepare")
    if roles["tumor"] & (roles.get("cyst", set()) | roles.get("ignore", set())):
        raise refuse("E_LABEL_NAMES", f"One value is tumor and is not: {named}.", "prepare")
    for name, strange in other.items():
        if strange & used or set(_words(name)) & (_INSIDE | _LIVER | _TUMOR):
            raise refuse(
                "E_LABEL_NAMES", f"Whether {name!r} belongs to the liver is not known.", "prepare"
            )
    return {role: tuple(sorted(numbers)) for role, numbers in roles.items()}, sorted(other)


def truth_of(path: Path, roles: Mapping[Role, tuple[int, ...]], known: tuple[int, ...]) -> Truth:
    """The truth in one label file."""
    return {role: (Mask(path, numbers, known, role),) for role, numbers in roles.items()}


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z]+", name.lower())


def _role(name: str) -> Role | None:
    """What a label is, if every word of its name says so."""
    spoken = _words(name)
    words = set(spoken) - _FILLER
    if words == {"ignore"}:
        return "ignore"
    if not words or words - _LIVER - _TUMOR - _CYST:
        return None
    if words & _TUMOR and words & _CYST:
        return None
    if words & _LIVER and "and" in spoken:  # "liver and tumor": the whole organ
        return "liver"
    return "tumor" if words & _TUMOR else "cyst" if words & _CYST else "liver"
