"""Packages that only a server needs, from the extra `serve`: imported when it runs."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from hepar.errors import UsageError


def needed(name: str) -> Any:
    """Import a module of an optional package.

    Raises:
        UsageError: `E_SERVE_PACKAGES`, it is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise UsageError(
            "E_SERVE_PACKAGES",
            "serve",
            f"hepar serve needs the package {error.name}, which is not installed.",
            'pip install "hepar[serve]"',
        ) from None
