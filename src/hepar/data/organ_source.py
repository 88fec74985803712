"""Training samples of the liver network: deformed anatomies painted as random scans.

Every sample draws a template of the bank (`data.organ_bank`), a warp, a field of view and a look
from (seed, epoch, index) and is painted on the fly, so that no two samples are alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from hepar.data.cache import content_key
from hepar.data.organ_bank import LIVER_BIT, BankEntry, anatomy_hash, load_bank
from hepar.data.sampling import Sample, ValidationCase
from hepar.phantom.deform import Triple, draw_warp, source_points_mm
from hepar.phantom.labelmap import context_table
from hepar.phantom.masses import Scene, add_arms, add_masses, limit_field
from hepar.phantom.recolor import degrade, draw_look, paint_tissue, recolor
from hepar.phantom.tissue import Tissue
from hepar.phantom.version import fingerprint as phantom_code
from hepar.preprocess import window
from hepar.systems.base import InputSpec

if TYPE_CHECKING:
    from hepar.recipe_data import OrganData

# Epoch number of the validation cases; no training run gets there.
_VALIDATION_EPOCH = 2**31 - 1


class OrganSource:
    """Samples and validation cases of the liver network.

    Args:
        data: shares, sizes and paths.
        spec: windows, spacing, patch and classes of the system.
        seed: the recipe's seed.
        cache_dir: where the bank of templates is kept between runs; None builds it each time.
    """

    def __init__(
        self, data: OrganData, spec: InputSpec, *, seed: int, cache_dir: Path | None
    ) -> None:
        if spec.spacing_mm is None or len(spec.patch) != 3:
            raise ValueError("the organ source needs a 3D system with a working spacing")
        self.data = data
        self.spec = spec
        self.seed = seed
        self.patch = (spec.patch[0], spec.patch[1], spec.patch[2])
        self.spacing_mm: Triple = spec.spacing_mm
        self._classes = context_table(spec.class_names)
        self._liver_class = spec.class_names.index("liver")
        self.target_classes: tuple[int, ...] = (self._liver_class,)
        self._bone, self._muscle = (spec.class_names.index(n) for n in ("bone", "muscle"))
        bank = load_bank(data, seed, cache_dir)
        held = data.validation_phantoms
        procedural = [e for e in bank if e.hu is None]
        self._phantoms = procedural[: len(procedural) - held]
        self._held_phantoms = procedural[len(procedural) - held :]
        real = [e for e in bank if e.hu is not None]
        # One dome and tree of vessels in eight is never trained on.
        n_held = len(real) // 8 if data.validation_warps else 0
        self._real, self._held_real = real[: len(real) - n_held], real[len(real) - n_held :]
        self._points = {id(e): _liver_points_mm(e) for e in bank}

    def __len__(self) -> int:
        """Samples in an epoch; a convention, since samples never repeat."""
        return self.data.epoch_samples

    def sample(self, epoch: int, index: int) -> Sample:
        """The sample of (seed, epoch, index)."""
        rng = np.random.default_rng([self.seed, epoch, index])
        use_real = self._real and (not self._phantoms or rng.random() < self.data.anatomy_share)
        entries = self._real if use_real else self._phantoms
        entry = entries[rng.integers(len(entries))]
        return self._paint(entry, rng, wild=self.data.wild_share, anywhere=0.2)

    def case_of(self, epoch: int, index: int) -> str:
        """Samples are drawn from a bank of anatomies, none of which has a name."""
        return "organ bank"

    def fingerprint(self) -> str:
        """Hash of the generator and of the files that templates are made of."""
        return content_key(
            {"phantom": phantom_code(), "anatomies": anatomy_hash(self.data.anatomies)}
        )

    def validation(self) -> Iterator[ValidationCase]:
        """Held-out phantoms and warps, liver in the field, no wild colors."""
        voxel_ml = float(np.prod(self.spacing_mm)) / 1000.0
        cases = [(f"phantom-{i}", e) for i, e in enumerate(self._held_phantoms)]
        if self._held_real:
            warps = range(self.data.validation_warps)
            cases += [(f"warp-{i}", self._held_real[i % len(self._held_real)]) for i in warps]
        for number, (name, entry) in enumerate(cases):
            rng = np.random.default_rng([self.seed, _VALIDATION_EPOCH, number])
            yield ValidationCase(name, (self._paint(entry, rng, wild=0.0, anywhere=0.0),), voxel_ml)

    def _paint(
        self, entry: BankEntry, rng: np.random.Generator, *, wild: float, anywhere: float
    ) -> Sample:
        """One field of one deformed patient in one scan."""
        liver_points = self._points[id(entry)]
        center = _field_center_mm(entry, liver_points, rng, anywhere=anywhere)
        strength = 1.0 if entry.hu is not None else 0.6
        warp = draw_warp(rng, center, liver_points, strength=strength)
        if rng.random() < 0.2:  # slices thicker than the working spacing are fed as they are
            z, y, x = warp.scale
            warp = replace(warp, scale=(z * float(rng.uniform(0.62, 0.95)), y, x))
        at = source_points_mm(warp, self.patch, self.spacing_mm)
        at /= np.asarray(entry.spacing_mm, dtype=np.float32).reshape(3, 1, 1, 1)
        code = ndimage.map_coordinates(entry.code, at, order=0, mode="constant", cval=0)
        tissue, liver = code & (LIVER_BIT - 1), code >= LIVER_BIT
        look = draw_look(rng, wild=wild)
        if entry.hu is not None and rng.random() < self.data.recolor_share:
            scan = ndimage.map_coordinates(
                entry.hu, at, order=1, mode="constant", cval=-1000, output=np.float32
            )
            hu = recolor(scan, tissue, entry.native_hu, look, self.spacing_mm)
        else:
            hu = paint_tissue(tissue, look, self.spacing_mm)
        label = self._classes[tissue]
        label[liver] = self._liver_class
        scene = Scene(hu, label, tissue, liver, self.spacing_mm)
        if rng.random() < 0.1:
            add_arms(scene, rng, self._bone, self._muscle)
        add_masses(scene, rng, float(look.mean_hu[Tissue.LIVER]))
        scene = replace(scene, hu=degrade(hu, look, self.spacing_mm))
        limit_field(scene, rng)
        return self._finish(scene)

    def _finish(self, scene: Scene) -> Sample:
        channels = np.stack([window(scene.hu, limits) for limits in self.spec.windows_hu])
        return Sample(
            image=channels[None],
            present=np.ones(1, dtype=bool),
            label=scene.label.astype(np.int64),
            liver=scene.label == self._liver_class,
        )


def _liver_points_mm(entry: BankEntry) -> Float[np.ndarray, "n 3"]:
    """Some points of the liver, evenly drawn, in mm from voxel 0."""
    points = np.argwhere(entry.code >= LIVER_BIT)
    return points[:: max(1, len(points) // 500)] * np.asarray(entry.spacing_mm)


def _field_center_mm(
    entry: BankEntry,
    liver_points_mm: Float[np.ndarray, "n 3"],
    rng: np.random.Generator,
    *,
    anywhere: float,
) -> Triple:
    """Center of the field in the template: around the liver, or anywhere with some probability."""
    extent = np.asarray(entry.code.shape) * np.asarray(entry.spacing_mm)
    if len(liver_points_mm) == 0 or rng.random() < anywhere:
        z, y, x = rng.uniform(0.2, 0.8, size=3) * extent
    else:
        middle = 0.5 * (liver_points_mm.min(0) + liver_points_mm.max(0))
        z, y, x = middle + rng.uniform(-1, 1, size=3) * (60.0, 30.0, 50.0) + (0.0, 10.0, 40.0)
    return float(z), float(y), float(x)
