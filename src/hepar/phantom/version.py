"""The name of this generator and the fingerprint of the code that decides its patients.

A phantom with another fingerprint is another phantom: it gets the next number, and what was trained
or measured on this one is run again. Comments, docstrings and layout do not count.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

NAME = "phantom-1"
FILES = (
    "anatomy",
    "arms",
    "canvas",
    "chest",
    "circulation",
    "enhancement",
    "gut",
    "lesion_enhancement",
    "lesion_kinds",
    "lesion_shape",
    "lesions",
    "liver",
    "motion",
    "organs",
    "partial_volume",
    "population",
    "reconstruction",
    "scanner",
    "shapes",
    "tissue",
    "torso",
    "vessels",
)


@cache
def fingerprint() -> str:
    """SHA-256 of the generator's syntax trees, in hexadecimal."""
    digest = hashlib.sha256()
    for name in FILES:
        tree = ast.parse((Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8"))
        digest.update(repr((name, _canonical(tree))).encode())
    return digest.hexdigest()


def _canonical(node: Any) -> Any:
    """A syntax tree as nested tuples that every Python version writes alike."""
    if isinstance(node, list):
        return [_canonical(item) for item in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    body = fields.get("body")
    if isinstance(body, list) and body and _is_docstring(body[0]):
        fields["body"] = body[1:]
    kept = [(name, _canonical(value)) for name, value in fields.items() if value not in (None, [])]
    return type(node).__name__, kept


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
