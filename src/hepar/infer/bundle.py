"""A model folder: read, verified, written. No pickle, and nothing is used that was not hashed.

```
bundle.yaml        name, version, license, parts, SHA-256 of every file
MODEL_CARD.md
liver/  tumor/  [diagnose/]   recipe.yaml  weights.safetensors  calibration.json
```

Weights are stored as float16 and computed in float32; counters keep their integers.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.numpy import load as load_arrays
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from hepar import strict_yaml
from hepar.errors import HeparError, ModelIntegrityError
from hepar.infer.weights import FETCH, check_header, damaged, load_exactly, parse_tensors, to_half
from hepar.io.atomic import staged_folder
from hepar.recipe import Recipe, dump_recipe, parse_recipe
from hepar.systems import table
from hepar.systems.base import InputSpec, System
from hepar.systems.baselines.enhancement_classifier import EnhancementClassifier

MANIFEST, RECIPE = "bundle.yaml", "recipe.yaml"
WEIGHTS, CALIBRATION, CARD = "weights.safetensors", "calibration.json", "MODEL_CARD.md"
_NETWORK_FILES = (RECIPE, WEIGHTS, CALIBRATION)
_MANIFEST_LIMIT = 1 << 20

PartName = Literal["liver", "tumor", "diagnose"]


class Manifest(BaseModel):
    """The content of `bundle.yaml`.

    Attributes:
        parts: folder of each part.
        sha256: hex digest by path inside the bundle, `/` between folders.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    version: str
    license: str
    parts: dict[PartName, str]
    sha256: dict[str, str]


@dataclass(frozen=True)
class Model:
    """One part of a bundle, ready to run.

    Attributes:
        name: `liver`, `tumor`, ...
        system: a `System` in eval mode, float32, on the CPU.
        calibration: the content of `calibration.json`.
        sha256: of the weights, for provenance.
    """

    name: str
    system: nn.Module
    calibration: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""


@dataclass(frozen=True)
class Bundle:
    """A verified model folder; networks are built when first asked for."""

    folder: Path
    manifest: Manifest
    _models: dict[str, Model] = field(default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        """Of the bundle, e.g. `lite`."""
        return self.manifest.name

    @property
    def version(self) -> str:
        """Of the weights."""
        return self.manifest.version

    @property
    def sha256(self) -> str:
        """One digest of everything that computes: of the table of digests, the card left out."""
        computing = {name: d for name, d in self.manifest.sha256.items() if name != CARD}
        table_text = json.dumps(computing, sort_keys=True)
        return hashlib.sha256(table_text.encode()).hexdigest()

    def has(self, part: str) -> bool:
        """Whether the bundle holds a part."""
        return part in self.manifest.parts

    def read(self, part: str, name: str) -> bytes:
        """A file of a part; what is returned is what was hashed.

        Raises:
            ModelIntegrityError: `E_MODEL_MISSING`, `E_MODEL_HASH`.
        """
        return _verified(self.folder, self._path(part, name), self.manifest)

    def _path(self, part: str, name: str) -> str:
        folder = {str(name): path for name, path in self.manifest.parts.items()}.get(part)
        if folder is None:
            raise _missing(f"the bundle {self.manifest.name!r} has no part {part!r}")
        return f"{folder}/{name}"

    def copy_part(self, part: str, folder: Path) -> None:
        """Write a part of its own, as `export_part` does; what is written is what was hashed."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in _NETWORK_FILES:
            (folder / name).write_bytes(self.read(part, name))

    def recipe(self, part: str) -> Recipe:
        """The recipe a part was trained by."""
        text = self.read(part, RECIPE)
        try:
            return parse_recipe(strict_yaml.load(text, RECIPE), f"{part}/{RECIPE}")
        except (HeparError, yaml.YAMLError, TypeError, ValueError) as error:
            raise ModelIntegrityError(
                "E_MODEL_RECIPE", "bundle", f"{part}/{RECIPE}: {error}", "upgrade hepar"
            ) from error

    def calibration(self, part: str) -> dict[str, Any]:
        """Thresholds and temperatures of a part."""
        try:
            found = json.loads(self.read(part, CALIBRATION))
        except ValueError as error:
            raise damaged(f"{part}/{CALIBRATION} is not JSON: {error}") from error
        if not isinstance(found, dict):
            raise damaged(f"{part}/{CALIBRATION} must hold an object")
        return found

    def tensors(self, part: str) -> dict[str, Tensor]:
        """The weights of a part; floating point as float32."""
        return parse_tensors(self.read(part, WEIGHTS), f"{part}/{WEIGHTS}")

    def model(self, part: str) -> Model:
        """The network of a part with its weights; built once.

        Raises:
            ModelIntegrityError: also `E_SAFETENSORS`, `E_MODEL_WEIGHTS` when names or shapes
                differ, and `E_MODEL_RECIPE` for a system that cannot do the part's work.
        """
        if part not in self._models:
            system = table.build(self.recipe(part).system)
            _check_fit(part, cast(System, system).input_spec)
            load_exactly(system, self.tensors(part), f"{part}/{WEIGHTS}")
            digest = self.manifest.sha256[self._path(part, WEIGHTS)]
            self._models[part] = Model(part, system.eval(), self.calibration(part), digest)
        return self._models[part]

    def classifier(self) -> EnhancementClassifier | None:
        """The lesion classifier of the part `diagnose`; None when the bundle has none.

        Raises:
            ModelIntegrityError: `E_MODEL_WEIGHTS`, when its arrays do not make one.
        """
        if not self.has("diagnose"):
            return None
        where = f"diagnose/{WEIGHTS}"
        data = self.read("diagnose", WEIGHTS)
        check_header(data, where)
        try:
            return EnhancementClassifier.from_arrays(load_arrays(data))
        except Exception as error:  # as in `parse_tensors`
            raise damaged(f"{where} is not a classifier: {error}") from error


def default_bundle_path(name: str = "lite") -> Path:
    """The bundle that comes with hepar: in the installed package, else in the checkout.

    Raises:
        ModelIntegrityError: `E_MODEL_MISSING`.
    """
    installed = Path(str(resources.files("hepar"))) / "models" / name
    checkout = Path(__file__).resolve().parents[3] / "models" / name
    for folder in (installed, checkout):
        if (folder / MANIFEST).is_file():
            return folder
    raise _missing(f"no shipped model {name!r} beside this installation")


def load_bundle(folder: Path | str) -> Bundle:
    """Read `bundle.yaml` and verify every file it lists.

    Args:
        folder: the model folder.

    Raises:
        ModelIntegrityError: `E_MODEL_MISSING`: a file is not there; `E_MODEL_HASH`: a file is not
            what was hashed; `E_MODEL_MANIFEST`: `bundle.yaml` cannot be understood.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise _missing(f"{folder.name} is not a model folder: it has no {MANIFEST}")
    try:
        if path.stat().st_size > _MANIFEST_LIMIT:
            raise ValueError(f"larger than {_MANIFEST_LIMIT} bytes")
        manifest = Manifest.model_validate(strict_yaml.load(path.read_bytes(), MANIFEST))
    except (HeparError, ValidationError, yaml.YAMLError, ValueError) as error:
        raise ModelIntegrityError(
            "E_MODEL_MANIFEST", "bundle", f"{folder.name}/{MANIFEST}: {error}", FETCH
        ) from error
    for part, name in manifest.parts.items():
        for wanted in _NETWORK_FILES if part != "diagnose" else ():
            if f"{name}/{wanted}" not in manifest.sha256:
                raise _missing(f"{MANIFEST} lists no {wanted} for the part {part!r}")
    for name in manifest.sha256:
        _verified(folder, name, manifest)
    return Bundle(folder, manifest)


def export_part(
    recipe: Recipe,
    state_dict: Mapping[str, Tensor],
    calibration: Mapping[str, Any],
    folder: Path,
) -> None:
    """Write one part: recipe, float16 weights, calibration.

    Args:
        recipe: what was trained.
        state_dict: weights of the trained system; names and shapes are checked against the recipe.
        calibration: plain data for `calibration.json`.
        folder: made if absent.
    """
    system = table.build(recipe.system)
    data = save_tensors({name: to_half(value) for name, value in state_dict.items()})
    load_exactly(system, parse_tensors(data, WEIGHTS), WEIGHTS)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECIPE).write_text(dump_recipe(recipe), encoding="utf-8", newline="\n")
    (folder / WEIGHTS).write_bytes(data)
    text = json.dumps(dict(calibration), indent=2, sort_keys=True, allow_nan=False)
    (folder / CALIBRATION).write_text(text + "\n", encoding="utf-8", newline="\n")


def write_bundle(
    folder: Path,
    parts: Mapping[str, Path],
    *,
    name: str,
    version: str,
    license_name: str = "Apache-2.0",
    card: str | None = None,
) -> Bundle:
    """Put parts together, hash them, and read the result back. All of it appears, or nothing.

    Args:
        folder: the bundle to write.
        parts: folder of each part, as `export_part` leaves it.
        name: e.g. `lite`.
        version: of the weights.
        license_name: SPDX identifier of the weights' license.
        card: text of `MODEL_CARD.md`.
    """
    with staged_folder(folder) as staging:
        digests: dict[str, str] = {}
        for part, source in parts.items():
            (staging / part).mkdir()
            for file in sorted(source.iterdir()):
                if file.is_file() and not file.name.startswith("."):
                    shutil.copyfile(file, staging / part / file.name)
                    digests[f"{part}/{file.name}"] = _digest(staging / part / file.name)
        if card is not None:
            (staging / CARD).write_text(card, encoding="utf-8", newline="\n")
            digests[CARD] = _digest(staging / CARD)
        manifest = Manifest.model_validate(
            {
                "name": name,
                "version": version,
                "license": license_name,
                "parts": {part: part for part in parts},
                "sha256": digests,
            }
        )
        text = yaml.safe_dump(manifest.model_dump(), sort_keys=False)
        (staging / MANIFEST).write_text(text, encoding="utf-8", newline="\n")
        load_bundle(staging)
    return load_bundle(folder)


def _check_fit(part: str, spec: InputSpec) -> None:
    """Refuse a system that does not know what its part is to find, or needs it to begin with."""
    problem = ""
    finds = bool(spec.tumor_classes) if part == "tumor" else part in spec.class_names
    if not finds:
        problem = f"it knows {', '.join(spec.class_names)} and no {part}"
    elif part == "liver" and (spec.needs_liver or spec.liver_crop is not None):
        problem = "it looks at a liver that another has found"
    if problem:
        raise ModelIntegrityError(
            "E_MODEL_RECIPE", "bundle", f"{part}/{RECIPE}: {problem}", "put each part in its place"
        )


def _verified(folder: Path, name: str, manifest: Manifest) -> bytes:
    parts = PurePosixPath(name).parts
    if not parts or PurePosixPath(name).is_absolute() or ".." in parts or "\\" in name:
        raise ModelIntegrityError(
            "E_MODEL_MANIFEST", "bundle", f"{name!r} points outside the model folder", FETCH
        )
    if name not in manifest.sha256:
        raise _missing(f"{MANIFEST} lists no {name}")
    path = folder.joinpath(*parts)
    if not path.is_file():
        raise _missing(f"{folder.name}/{name} is missing")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != manifest.sha256[name]:
        raise ModelIntegrityError(
            "E_MODEL_HASH",
            "bundle",
            f"{folder.name}/{name} is not the file its SHA-256 in {MANIFEST} was taken from",
            FETCH,
        )
    return data


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _missing(message: str) -> ModelIntegrityError:
    return ModelIntegrityError("E_MODEL_MISSING", "bundle", message, FETCH)
