"""Whether the run that a folder holds is the one asked for: the same recipe on the same data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hepar.errors import UsageError
from hepar.io.atomic import atomic_path
from hepar.recipe import Recipe, dump_recipe, load_recipe, recipe_hash
from hepar.train.checkpoint import TrainState

RECIPE = "recipe.yaml"


def check_recipe(recipe: Recipe, out_dir: Path) -> None:
    """Refuse a folder that holds a run of another recipe.

    Raises:
        UsageError: `E_CONFIG_CHANGED`, naming what differs.
    """
    path = out_dir / RECIPE
    if not path.exists():
        return
    before = load_recipe(path)
    if recipe_hash(before) != recipe_hash(recipe):
        raise _changed(out_dir, "another recipe: " + "; ".join(changes(before, recipe)))


def check_data(state: TrainState, data: str, out_dir: Path) -> None:
    """Refuse to go on with other data than the steps before were done with.

    Raises:
        UsageError: `E_CONFIG_CHANGED`.
    """
    if state.data not in (None, data):
        raise _changed(out_dir, "other data: a case, a file or how they are prepared changed")
    state.data = data


def write_recipe(recipe: Recipe, out_dir: Path) -> None:
    """Leave the recipe where `check_recipe` looks for it; one that is there stays."""
    if not (out_dir / RECIPE).exists():
        with atomic_path(out_dir / RECIPE) as temporary:
            temporary.write_text(dump_recipe(recipe), encoding="utf-8")


def changes(before: Recipe, after: Recipe, most: int = 3) -> list[str]:
    """The first few settings that differ, each as `key: old -> new`."""
    found: list[str] = []

    def walk(old: Any, new: Any, key: str) -> None:
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            for name in dict.fromkeys((*old, *new)):
                walk(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
        elif old != new:
            found.append(f"{key}: {old} -> {new}")

    walk(before.model_dump(mode="json"), after.model_dump(mode="json"), "")
    return [*found[:most], f"and {len(found) - most} more"] if len(found) > most else found


def _changed(out_dir: Path, how: str) -> UsageError:
    return UsageError(
        "E_CONFIG_CHANGED",
        "train",
        f"{out_dir.name} holds a run of {how}.",
        "Train into another folder, or empty this one to start over.",
    )
