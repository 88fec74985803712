"""The bank of templates that the organ source deforms: made once, kept in one compressed file."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, UInt8

from hepar.data.array_file import arrays_hash
from hepar.errors import InputRefused
from hepar.geometry import canonical
from hepar.io.atomic import atomic_path, one_process
from hepar.phantom.anatomy import anatomy
from hepar.phantom.deform import Triple
from hepar.phantom.dome import complete_dome
from hepar.phantom.labelmap import NOT_SCANNED, Template, template_from_masks, template_of
from hepar.phantom.liver_tubes import add_tubes
from hepar.phantom.recolor import TEXTURE_HU, TISSUE_HU
from hepar.phantom.tissue import Tissue

if TYPE_CHECKING:
    from hepar.recipe_data import OrganData

log = logging.getLogger(__name__)

# Bit of a template's code map that says "inside the liver"; tissue codes stay below it.
LIVER_BIT = 64
_BANK_VERSION = 2
_DIGEST = "sha256"


@dataclass(frozen=True)
class BankEntry:
    """A template ready for sampling.

    Attributes:
        code: uint8 (z, y, x) tissue code plus `LIVER_BIT` inside the liver.
        hu: int16 (z, y, x) complete HU, or None for a procedural anatomy.
        native_hu: mean HU of each tissue in `hu`.
        spacing_mm: (z, y, x).
    """

    code: UInt8[np.ndarray, "z y x"]
    hu: np.ndarray | None
    native_hu: Float32[np.ndarray, " tissue"]
    spacing_mm: Triple


def mask_folder(folder: Path) -> Path:
    """The first subfolder, by name, with a liver mask.

    Raises:
        InputRefused: `E_NO_LIVER`.
    """
    folders = sorted(p.parent for p in folder.glob("*/liver.nii.gz"))
    if not folders:
        raise InputRefused(
            "E_NO_LIVER",
            "data",
            f"no */liver.nii.gz in anatomy folder {folder.name}",
            "Give a folder that holds a scan and a subfolder of organ masks.",
        )
    return folders[0]


@lru_cache(maxsize=4)
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

    masks = mask_folder(folder)
    liver = read_label(masks / "liver.nii.gz")
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
    for path in sorted(masks.glob("*.nii.gz")):
        mask = read_label(path)
        if mask.array.any():
            organs[path.name.removesuffix(".nii.gz")] = canonical(mask.array, mask.grid)[0] > 0
    hu, grid = canonical(scan.array, scan.grid)
    return template_from_masks(organs, hu, grid.spacing_mm)


def bank_entry(template: Template, rng: np.random.Generator) -> BankEntry:
    """Code map and HU of a template: the tissue's mean and grain where nothing was scanned."""
    code = template.tissue | (template.liver.astype(np.uint8) * LIVER_BIT)
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


def load_bank(data: OrganData, seed: int, cache_dir: Path | None) -> list[BankEntry]:
    """The bank of templates, from the cache when it holds the same one."""
    if cache_dir is None:
        return build_bank(data, seed)
    path = cache_dir / f"organ-{_fingerprint(data, seed)}.npz"
    with one_process(cache_dir):
        bank = _read_bank(path)
        if bank is None:
            if path.exists():
                log.warning(
                    "W_CACHE_REBUILT: %s is damaged or of an older layout and is made again",
                    path.name,
                )
            bank = build_bank(data, seed)
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
    digest.update(anatomy_hash(data.anatomies).encode())
    return digest.hexdigest()[:16]


def anatomy_hash(folders: Sequence[Path]) -> str:
    """Names real anatomies by the names and sizes of their files, wherever the folders lie."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.nii.gz")):
            digest.update(f"{path.name} {path.stat().st_size}".encode())
    return digest.hexdigest()


def _write_bank(path: Path, bank: list[BankEntry]) -> None:
    arrays: dict[str, Any] = {}
    for i, entry in enumerate(bank):
        arrays[f"code_{i:04d}"] = entry.code
        arrays[f"native_{i:04d}"] = entry.native_hu
        arrays[f"spacing_{i:04d}"] = np.asarray(entry.spacing_mm)
        if entry.hu is not None:
            arrays[f"hu_{i:04d}"] = entry.hu
    arrays[_DIGEST] = np.array(arrays_hash(arrays))
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def _read_bank(path: Path) -> list[BankEntry] | None:
    """The bank in a file; None where it is missing, damaged, or without a digest."""
    if not path.is_file():
        return None
    try:
        # Opened here, because numpy leaves a damaged archive open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if str(arrays.pop(_DIGEST)) != arrays_hash(arrays):
            return None
    except Exception:  # what a damaged archive makes its readers raise is not one family
        return None
    bank = []
    for i in range(sum(n.startswith("code_") for n in arrays)):
        z, y, x = (float(v) for v in arrays[f"spacing_{i:04d}"])
        hu = arrays.get(f"hu_{i:04d}")
        bank.append(BankEntry(arrays[f"code_{i:04d}"], hu, arrays[f"native_{i:04d}"], (z, y, x)))
    return bank
