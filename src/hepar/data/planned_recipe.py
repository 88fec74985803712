"""A cohort's own nnU-Net as a recipe: fingerprint, plan, and what nnU-Net fixes for all data sets.

The schedule is nnU-Net's (Isensee et al., Nature Methods 2021, Methods, "Fixed parameters"): 1000
times 250 steps of SGD with Nesterov momentum 0.99 from 0.01, polynomial decay to the power 0.9,
weight decay 3e-5, gradients clipped at 12. What hepar does otherwise stands in the recipe's head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from hepar.data.fingerprint import Progress, fingerprint, plannable
from hepar.errors import InputRefused, UsageError
from hepar.recipe import Recipe, dump_recipe, parse_recipe
from hepar.recipe_data import CohortData
from hepar.systems.baselines.nnunet.planning import (
    ANISOTROPIC,
    Configuration,
    Fingerprint,
    Plan,
    plan,
)

Name = Literal["3d_fullres", "3d_lowres"]
NAMES: tuple[Name, ...] = ("3d_fullres", "3d_lowres")
STEPS, EPOCH = 250_000, 250
LARGEST_NOISE = 0.1**0.5  # standard deviation, in z-scores

HEAD = """\
# nnU-Net's plan for {cohort}: {cases} training cases, {phases}.
# Configuration {name}; the median case has {median} voxels at its spacing.
# {other}
# A batch of {batch} such patches is what nnU-Net plans for a GPU of 8 GB; 250,000 steps are its
# 1000 epochs of 250, and as there the last weights are kept.
# Differs from nnU-Net: a third of the patches hold foreground, whichever (there, the last third of
# each batch); no simulation of low resolution, gamma without inversion; bfloat16 in place of
# float16; slices are never resampled thinner than a case has them; no ensemble of folds, no
# mirroring at use.
"""


@dataclass(frozen=True)
class Planned:
    """A plan and the recipe that trains it.

    Attributes:
        fingerprint: of the training cases.
        plan: both configurations.
        chosen: the configuration of the recipe.
        recipe: complete and valid.
    """

    fingerprint: Fingerprint
    plan: Plan
    chosen: Configuration
    recipe: Recipe

    def text(self) -> str:
        """The recipe as YAML, after a comment that says where it comes from."""
        lowres = self.plan.lowres
        other = "A patch of it holds a quarter of a case or more: no low resolution is planned."
        if lowres is not None:
            other = f"nnU-Net plans {' and '.join(NAMES)}: name the other one with --preset."
        data = self.recipe.data
        assert isinstance(data, CohortData)
        head = HEAD.format(
            cohort=data.path.name,
            cases=len(self.fingerprint.shapes),
            phases=" + ".join(self.fingerprint.phases),
            name=self.chosen.name,
            median=" x ".join(f"{n:g}" for n in self.chosen.median_shape),
            other=other,
            batch=self.chosen.batch_size,
        )
        return head + dump_recipe(self.recipe)

    def document(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "fingerprint": asdict(self.fingerprint),
            "plan": asdict(self.plan),
            "recipe": self.recipe.model_dump(mode="json"),
        }


def planned_recipe(
    path: Path,
    *,
    fold: int | None = None,
    configuration: str = "3d_fullres",
    progress: Progress | None = None,
) -> Planned:
    """Plan nnU-Net for the training cases of a cohort.

    Args:
        path: `cohort.csv`.
        fold: held out; None goes by the column `split`, or else takes the first fold.
        configuration: `3d_fullres` or `3d_lowres`.
        progress: told the number of the case being read, of how many, and its name.

    Raises:
        UsageError: `E_PRESET`, no such configuration, or none is planned.
        InputRefused: `E_COHORT`, also where the cases are too small to be planned for; as
            `read_case`.
    """
    if configuration not in NAMES:
        raise _no_preset(configuration, f"Use one of: {', '.join(NAMES)}.")
    phases, data = plannable(path, fold)
    found = fingerprint(data, phases, progress=progress)
    try:
        planned = plan(found)
    except ValueError as error:
        raise InputRefused(
            "E_COHORT", "cohort", f"{path.name}: {error}.", "Give cases of the whole liver."
        ) from None
    chosen = planned.fullres if configuration == "3d_fullres" else planned.lowres
    if chosen is None:
        raise _no_preset(configuration, "A patch of 3d_fullres holds enough of a case: use it.")
    tree = {
        "name": f"nnunet-{chosen.name}",
        "system": system_settings(chosen, found),
        "data": {**data.model_dump(mode="json"), "foreground_fraction": 0.333333},
        "schedule": schedule(chosen),
        "augment": augmentation(chosen, found),
    }
    return Planned(found, planned, chosen, parse_recipe(tree))


def system_settings(chosen: Configuration, found: Fingerprint) -> dict[str, Any]:
    """The settings of `systems/baselines/nnunet`; mm to four digits, HU to two."""
    return {
        "name": "nnunet",
        "phases": list(found.phases),
        "window_hu": [[i.low, i.high] for i in found.intensities],
        "mean_hu": [round(i.mean, 2) for i in found.intensities],
        "std_hu": [round(i.std, 2) for i in found.intensities],
        "spacing_mm": [round(mm, 4) for mm in chosen.spacing_mm],
        "patch": chosen.patch,
        "channels": chosen.channels,
        "strides": chosen.strides,
        "kernels": chosen.kernels,
        "batch_dice": chosen.batch_dice,
    }


def schedule(chosen: Configuration) -> Mapping[str, Any]:
    """nnU-Net's, which is the same for all data but for the batch."""
    return {
        "optimizer": "nesterov",
        "lr": 0.01,
        "momentum": 0.99,
        "weight_decay": 3e-5,
        "steps": STEPS,
        "batch_size": chosen.batch_size,
        "lr_schedule": "poly",
        "lr_power": 0.9,
        "clip_norm": 12.0,
        "precision": "bf16",
        "checkpoint_every": EPOCH,
    }


def augmentation(chosen: Configuration, found: Fingerprint) -> Mapping[str, Any]:
    """What comes nearest to nnU-Net's; of a thin patch slices are turned any way."""
    thin = max(chosen.patch) / chosen.patch[0] > ANISOTROPIC
    noise = min(LARGEST_NOISE * i.std / (i.high - i.low) for i in found.intensities)
    return {
        "p": 0.2,
        "shift": 0.0,
        "rotate_deg": 180.0 if thin else 30.0,
        "tilt_deg": 0.0 if thin else 30.0,
        "scale": [0.7, 1.4],
        "flip_axes": ["z", "y", "x"],
        "intensity_p": 0.15,
        "intensity_scale": 0.25,
        "intensity_shift": 0.0,
        "gamma": 0.4,
        "noise": round(noise, 4),
        "smooth": 1.0,
    }


def _no_preset(name: str, remedy: str) -> UsageError:
    return UsageError("E_PRESET", "info", f"nnU-Net has no configuration {name!r} here.", remedy)
