"""Training samples of the liver network: deformed anatomies painted as random scans.

A bank of templates is made once (label maps of real patients with a completed dome, procedural
phantoms); every sample draws a template, a warp, a field of view and a look from
(seed, epoch, index) and is painted on the fly, so that no two samples are alike.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Float32, UInt8
from scipy import ndimage

from hepar.data.sampling import Sample, ValidationCase
from hepar.errors import InputRefused
from hepar.geometry import canonical
from hepar.io.atomic import atomic_path
from hepar.phantom.anatomy import anatomy
from hepar.phantom.deform import Triple, draw_warp, source_points_mm
from hepar.phantom.dome import complete_dome
from hepar.phantom.labelmap import (
    NOT_SCANNED,
    Template,
    context_table,
    template_from_masks,
    template_of,
)
from hepar.phantom.liver_tubes import add_tubes
from hepar.phantom.masses import Scene, add_arms, add_masses, limit_field
from hepar.phantom.recolor import (
    TEXTURE_HU,
    TISSUE_HU,
    degrade,
    draw_look,
    paint_tissue,
    recolor,
)
from hepar.phantom.tissue import Tissue
from hepar.preprocess import window
from hepar.systems.base import InputSpec

if TYPE_CHECKING:
    from hepar.recipe import OrganData

log = logging.getLogger(__name__)

# Bit of a template's code map that says "inside the liver"; tissue codes stay below it.
_LIVER_BIT = 64
_BANK_VERSION = 1
# Epoch number of the validation cases; no training run gets there.
_VALIDATION_EPOCH = 2**31 - 1


@dataclass(frozen=True)
class BankEntry:
    """A template ready for sampling.

    Attributes:
        code: uint8 (z, y, x) tissue code plus `_LIVER_BIT` inside the liver.
        hu: int16 (z, y, x) complete HU, or None for a procedural anatomy.
        native_hu: mean HU of each tissue in `hu`.
        spacing_mm: (z, y, x).
    """

    code: UInt8[np.ndarray, "z y x"]
    hu: np.ndarray | None
    native_hu: Float32[np.ndarray, " tissue"]
    spacing_mm: Triple


def read_label_map(folder: Path) -> Template:
    """A real patient's scan and organ masks.

    Args:
        folder: holds the scan as NIfTI and a subfolder of masks, `liver.nii.gz` among them (the
            layout of TotalSegmentator's example). Of several, the first by name is taken: the first
            subfolder with a liver, the first scan on the same voxels.

    Raises:
        InputRefused: `E_NO_LIVER` or `E_NO_IMAGE` when there is no such subfolder or scan.
    """
    from hepar.io.nifti import read_label, read_nifti  # only recipes with real anatomies need it

    folders = sorted(p.parent for p in folder.glob("*/liver.nii.gz"))
    if not folders:
        raise InputRefused(
            "E_NO_LIVER",
            "data",
            f"no */liver.nii.gz in anatomy folder {folder.name}",
            "Give a folder that holds a scan and a subfolder of organ masks.",
        )
    liver = read_label(folders[0] / "liver.nii.gz")
    for path in sorted(folder.glob("*.nii.gz")):
        scan = read_nifti(path)
        if scan.array.shape == liver.array.shape:
            break
    else:
        raise InputRefused(
            "E_NO_IMAGE",
            "data",
            f"no scan of shape {liver.array.shape} in anatomy folder {folder.name}",
            "Put the scan the masks were made on beside their folder.",
        )
    organs = {}
    for path in sorted(folders[0].glob("*.nii.gz")):
        mask = read_label(path)
        if mask.array.any():
            organs[path.name.removesuffix(".nii.gz")] = canonical(mask.array, mask.grid)[0] > 0
    hu, grid = canonical(scan.array, scan.grid)
    return template_from_masks(organs, hu, grid.spacing_mm)


def bank_entry(template: Template, rng: np.random.Generator) -> BankEntry:
    """Code map and complete HU of a template; what was not scanned gets its tissue's mean and grain."""
    code = template.tissue | (template.liver.astype(np.uint8) * _LIVER_BIT)
    native = TISSUE_HU[:, 0].copy()
    if template.hu is None:
        return BankEntry(code, None, native, template.spacing_mm)
    known = template.hu != NOT_SCANNED
    count = np.bincount(template.tissue[known], minlength=len(native))
    total = np.bincount(template.tissue[known], weights=template.hu[known], minlength=len(native))
    native = np.where(count > 100, total / np.maximum(count, 1), native).astype(np.float32)
    # Tubes are drawn into the parenchyma of a scan that does not show them there.
    native[[Tissue.PORTAL_VEIN, Tissue.HEPATIC_VEIN]] = native[Tissue.LIVER]
    grain = rng.standard_normal(code.shape, dtype=np.float32) * (8 + TEXTURE_HU[template.tissue])
    hu = np.where(known, template.hu, native[template.tissue] + grain)
    return BankEntry(code, hu.astype(np.int16), native, template.spacing_mm)


class OrganSource:
    """Samples and validation cases of the liver network.

    Args:
        data: shares, sizes and paths.
        spec: windows, spacing, patch and classes of the system.
        seed: the recipe's seed.
        cache_dir: where the bank of templates is kept between runs; None builds it each time.
    """

    target_class = "liver"

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
        tissue, liver = code & (_LIVER_BIT - 1), code >= _LIVER_BIT
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
    points = np.argwhere(entry.code >= _LIVER_BIT)
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


def load_bank(data: OrganData, seed: int, cache_dir: Path | None) -> list[BankEntry]:
    """The bank of templates, from the cache when it holds the same one."""
    path = None if cache_dir is None else cache_dir / f"organ-{_fingerprint(data, seed)}.npz"
    if path is not None and path.is_file():
        return _read_bank(path)
    bank = build_bank(data, seed)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_bank(path, bank)
    return bank


def build_bank(data: OrganData, seed: int) -> list[BankEntry]:
    """Templates of every anatomy folder (`data.variants` domes and trees each) and of phantoms."""
    bank = []
    for number, folder in enumerate(data.anatomies):
        template = read_label_map(folder)
        for variant in range(data.variants):
            rng = np.random.default_rng([seed, number, variant])
            bank.append(bank_entry(add_tubes(complete_dome(template, rng), rng), rng))
        log.info("organ bank: %d variants of %s", data.variants, folder.name)
    for number in range(data.phantoms + data.validation_phantoms):
        made = template_of(
            anatomy(
                data.seed_base + number,
                shape=data.phantom_shape,
                spacing_mm=data.phantom_spacing_mm,
                field="abdomen",
            )
        )
        bank.append(bank_entry(made, np.random.default_rng(number)))
        if number % 10 == 9:
            log.info("organ bank: %d phantoms", number + 1)
    return bank


def _fingerprint(data: OrganData, seed: int) -> str:
    """Names a bank by everything that decides it: settings, seed, sizes and names of real files."""
    digest = hashlib.sha256(f"{_BANK_VERSION} {seed} ".encode())
    digest.update(data.model_dump_json(exclude={"anatomies"}).encode())
    for folder in data.anatomies:
        for path in sorted(folder.rglob("*.nii.gz")):
            digest.update(f"{path.name} {path.stat().st_size}".encode())
    return digest.hexdigest()[:16]


def _write_bank(path: Path, bank: list[BankEntry]) -> None:
    arrays: dict[str, np.ndarray] = {}
    for i, entry in enumerate(bank):
        arrays[f"code_{i:04d}"] = entry.code
        arrays[f"native_{i:04d}"] = entry.native_hu
        arrays[f"spacing_{i:04d}"] = np.asarray(entry.spacing_mm)
        if entry.hu is not None:
            arrays[f"hu_{i:04d}"] = entry.hu
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def _read_bank(path: Path) -> list[BankEntry]:
    bank = []
    with np.load(path, allow_pickle=False) as arrays:
        names = set(arrays.files)
        for i in range(sum(n.startswith("code_") for n in names)):
            z, y, x = (float(v) for v in arrays[f"spacing_{i:04d}"])
            hu = arrays[f"hu_{i:04d}"] if f"hu_{i:04d}" in names else None
            bank.append(
                BankEntry(arrays[f"code_{i:04d}"], hu, arrays[f"native_{i:04d}"], (z, y, x))
            )
    return bank
