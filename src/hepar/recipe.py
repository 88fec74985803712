"""A training run as one strict, frozen document: system, data, schedule, augmentation, seed.

YAML on disk, one level of `extends`, `--set a.b=c` on top; a name that does not exist is an error
with the nearest one that does. Torch-free.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from hepar import strict_yaml
from hepar.errors import UsageError
from hepar.recipe_data import Count, DataSettings, Fraction, NonNegative, Positive, Strict
from hepar.systems.baselines.context_unet3d.settings import ContextUnet3dSettings
from hepar.systems.baselines.mc_fcn.settings import McFcnSettings
from hepar.systems.baselines.multiphase_unet3d.settings import MultiphaseUnet3dSettings
from hepar.systems.baselines.mw_unet.settings import MwUnetSettings
from hepar.systems.baselines.nnunet.settings import NnunetSettings
from hepar.systems.baselines.pa_resseg.settings import PaRessegSettings
from hepar.systems.baselines.plan.settings import PlanSettings
from hepar.systems.dpcnet.settings import DpcnetSettings
from hepar.systems.e2net.settings import E2netSettings
from hepar.systems.lidia.settings import LidiaSettings
from hepar.systems.sam_urim.settings import SamUrimSettings

SystemSettings = Annotated[
    SamUrimSettings
    | E2netSettings
    | DpcnetSettings
    | LidiaSettings
    | ContextUnet3dSettings
    | MultiphaseUnet3dSettings
    | McFcnSettings
    | MwUnetSettings
    | NnunetSettings
    | PaRessegSettings
    | PlanSettings,
    Field(discriminator="name"),
]


class Schedule(Strict):
    """Optimizer and length of a run.

    Attributes:
        optimizer: `nesterov` is sgd with Nesterov's momentum; `radam` decays weights as adamw does.
        steps: the length, or the most that a run may take which ends on a plateau.
        counted_in: what `steps`, `warmup`, `lr_every` and `validate_every` count; epochs become
            steps once the data are known (`train.schedule.in_steps`).
        lr_schedule: `constant`; `step`, times `lr_factor` every `lr_every` steps; `poly` to the
            power `lr_power`; `cosine`, ending at zero; `plateau`, times `lr_factor` whenever the
            validation loss no longer falls.
        plateau_patience: validations in a row without improvement that make a plateau.
        plateau_min_delta: a validation improves if its loss is lower than the lowest by more.
        plateau_reductions: after so many reductions the next plateau ends the run.
        warmup: steps of linear warm-up before the schedule.
        clip_norm: largest gradient norm; None leaves gradients alone.
        precision: bf16 and fp16 compute under autocast; weights stay float32.
        sharpness_rho: how far weights are moved uphill before the gradient of a step is taken
            (`train/sharpness.py`), which doubles its cost; None takes it where they are.
        ema_decay: exponential moving average of weights, which is then what is validated and kept.
        initial_weights: `best.safetensors` of a run of the same system to start from.
        trunk_weights: a file of torchvision's, `.safetensors` or `.pth`, to start the trunk from.
        validate_every: 0 validates at the end only.
    """

    optimizer: Literal["sgd", "nesterov", "adam", "adamw", "radam"] = "sgd"
    lr: Positive = 5e-4
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    weight_decay: NonNegative = 1e-4
    counted_in: Literal["steps", "epochs"] = "steps"
    steps: Count
    batch_size: Count = 8
    lr_schedule: Literal["constant", "step", "poly", "cosine", "plateau"] = "constant"
    lr_every: Count = 1000
    lr_factor: Positive = 0.1
    lr_power: Positive = 0.9
    plateau_patience: Count = 5
    plateau_min_delta: NonNegative = 1e-4
    plateau_reductions: Annotated[int, Field(ge=0)] = 2
    warmup: Annotated[int, Field(ge=0)] = 0
    clip_norm: Positive | None = 12.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    sharpness_rho: Positive | None = None
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    initial_weights: Path | None = None
    trunk_weights: Path | None = None
    validate_every: Annotated[int, Field(ge=0)] = 0
    checkpoint_every: Count = 200
    channels_last: bool = True

    @model_validator(mode="after")
    def _possible(self) -> Schedule:
        if self.lr_schedule == "plateau" and self.validate_every == 0:
            raise ValueError("lr_schedule plateau needs validate_every above 0")
        if self.optimizer == "nesterov" and self.momentum == 0:
            raise ValueError("optimizer nesterov needs a momentum above 0")
        return self


class Augment(Strict):
    """Ranges of augmentation; each transform happens with its own probability.

    Attributes:
        p: probability of each of shift, rotation (around all axes that have one) and scaling.
        shift: largest shift as a fraction of the patch.
        rotate_deg: largest in-plane rotation, around the z axis.
        tilt_deg: largest rotation around each of the y and x axes (3D), in millimeters; the
            in-plane one then counts in millimeters too.
        scale: smallest and largest magnification.
        flip_axes: axes flipped with probability one half.
        intensity_p: probability of each intensity transform.
        intensity_scale, intensity_shift, gamma, noise: largest relative contrast change, shift,
            |log gamma| and noise standard deviation, in units of the window.
        smooth: largest standard deviation of an in-plane Gaussian, in voxels.
        shading_hu: largest standard deviation of a slow field, the same in all phases: beam
            hardening, fatty regions.
        streaks_hu: largest standard deviation of noise drawn out along the rows, of each phase its
            own, within one band of rows, which it darkens by half as much: photon starvation
            between the arms or the shoulders.
        misalignment_mm: standard deviation of an extra in-plane shift of each phase but the
            reference.
        elastic_p: probability of an elastic deformation.
        elastic_alpha, elastic_sigma: smallest and largest strength, and smoothness in voxels, as
            nnU-Net counts them (`data.one_grid.elastic_field`).
    """

    p: Fraction = 0.5
    shift: Fraction = 0.1
    rotate_deg: NonNegative = 15.0
    tilt_deg: NonNegative = 0.0
    scale: tuple[Positive, Positive] = (0.9, 1.1)
    flip_axes: tuple[Literal["z", "y", "x"], ...] = ()
    intensity_p: Fraction = 0.0
    intensity_scale: Fraction = 0.1
    intensity_shift: Fraction = 0.05
    gamma: NonNegative = 0.2
    noise: NonNegative = 0.03
    smooth: NonNegative = 0.0
    shading_hu: NonNegative = 0.0
    streaks_hu: NonNegative = 0.0
    misalignment_mm: NonNegative = 0.0
    elastic_p: Fraction = 0.0
    elastic_alpha: tuple[NonNegative, NonNegative] = (0.0, 900.0)
    elastic_sigma: tuple[Positive, Positive] = (9.0, 13.0)

    @model_validator(mode="after")
    def _ordered(self) -> Augment:
        for name in ("scale", "elastic_alpha", "elastic_sigma"):
            smallest, largest = getattr(self, name)
            if smallest > largest:
                raise ValueError(f"{name} must be (smallest, largest)")
        return self


class Recipe(Strict):
    """Everything that decides the weights of a run, besides the code."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    seed: Annotated[int, Field(ge=0)] = 0
    system: SystemSettings
    data: DataSettings
    schedule: Schedule
    augment: Augment = Augment()


# Keys that came after runs had begun, with the value at which each decides nothing.
_LATER: dict[str, dict[str, Any]] = {
    "data": {
        "foreground_fraction": None,
        "type_balance": False,
        "ignore_lesions_below_voxels": 0,
    },
    "schedule": {"sharpness_rho": None},
    "augment": {"tilt_deg": 0.0},
    "system": {"fusion": "channels", "classes": "tumor", "coarsest_head": False},
}


def load_recipe(path: Path, overrides: Sequence[str] = (), *, base: Path | None = None) -> Recipe:
    """Read a recipe.

    Args:
        path: YAML; may name one base file in `extends`, relative to itself.
        overrides: `a.b=c`, the value being YAML; applied last.
        base: file to extend instead: the same row of a table at another scale.

    Raises:
        UsageError: `E_RECIPE`, naming the key and the nearest known one.
    """
    path = Path(path)
    try:
        tree = strict_yaml.read(path, base)
        for override in overrides:
            tree = strict_yaml.apply(tree, override)
    except ValueError as error:
        raise _refuse(str(error)) from None
    return parse_recipe(tree, path.name)


def parse_recipe(tree: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """Validate plain data.

    Args:
        tree: nested mappings as YAML gives them; `system.preset` starts from the system's preset.
        source: name used in messages.

    Raises:
        UsageError: `E_RECIPE`.
    """
    tree = _expand_preset(dict(tree))
    try:
        # Through JSON, because strict mode takes a list for a tuple only there.
        return Recipe.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise _refuse(f"{source}: {strict_yaml.explain(error, Recipe, tree)}") from None
    except (TypeError, ValueError) as error:
        raise _refuse(f"{source}: {error}") from None


def dump_recipe(recipe: Recipe) -> str:
    """The effective recipe as YAML, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 of the effective recipe, independent of how it was written."""
    tree = recipe.model_dump(mode="json")
    # Runs begun before there were keys which decide nothing in them can go on.
    for section, keys in _LATER.items():
        kept = {k: v for k, v in tree[section].items() if k not in keys or v != keys[k]}
        tree[section] = kept
    if recipe.augment.elastic_p == 0.0:
        tree["augment"] = {k: v for k, v in tree["augment"].items() if k[:7] != "elastic"}
    if recipe.schedule.lr_schedule != "plateau":
        tree["schedule"] = {k: v for k, v in tree["schedule"].items() if k[:7] != "plateau"}
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def row_hash(recipe: Recipe) -> str:
    """SHA-256 of what makes a row of a table: what differs from defaults, but its path.

    Unlike `recipe_hash` it stays when recipes get another key that the row does not use.
    """
    tree = recipe.model_dump(mode="json", exclude_defaults=True)
    tree["data"].pop("path", None)
    # A union is told apart by names that are the defaults of their members.
    tree["system"]["name"], tree["data"]["kind"] = recipe.system.name, recipe.data.kind
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _refuse(message: str) -> UsageError:
    return UsageError("E_RECIPE", "recipe", message, "Correct the recipe or the --set argument.")


def _expand_preset(tree: dict[str, Any]) -> dict[str, Any]:
    """Replace `system.preset` by the preset's settings, the section's other keys on top."""
    section = tree.get("system")
    if not isinstance(section, Mapping) or "preset" not in section:
        return tree
    rest = {key: value for key, value in section.items() if key != "preset"}
    settings: Any = strict_yaml.members(Recipe, "system").get(str(rest.get("name")))
    if settings is None:
        return {**tree, "system": rest}
    try:
        preset = settings.preset(section["preset"])
    except (KeyError, ValueError):
        message = f"system.preset: {rest['name']} has no preset {section['preset']!r}."
        raise _refuse(message) from None
    return {**tree, "system": {**preset.model_dump(mode="json"), **rest}}
