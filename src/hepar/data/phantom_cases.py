"""Phantom patients as prepared cases: painted on the fly, so that training needs no file."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int16

from hepar.data.array_file import Arrays
from hepar.data.cache import ArrayCache, content_key, file_hash
from hepar.data.organ_bank import anatomy_hash, mask_folder, read_label_map
from hepar.data.phantom_bank import read_bank
from hepar.data.prepared_case import (
    PreparedCase,
    case_of_arrays,
    foreground_voxels,
    lesion_voxels,
    slice_contents,
    typed_arrays,
)
from hepar.data.processes import in_processes
from hepar.data.tumor_source import imperfect_liver
from hepar.errors import UsageError
from hepar.phantom.anatomy import Anatomy, anatomy
from hepar.phantom.labelmap import Template
from hepar.phantom.population import population
from hepar.phantom.scanner import paint
from hepar.phantom.version import fingerprint as phantom_code
from hepar.phantom.warped import warped_anatomy
from hepar.recipe_data import PhantomTumorData
from hepar.study import LESION_TYPES
from hepar.systems.base import InputSpec

LOG = logging.getLogger(__name__)
VALIDATION_SEED = 500_000  # far from training's, whatever the size of the bank
THICKER = (2, 3, 4)  # thick slices are so many times as thick as the working spacing
_VERSION = 5  # of what is made of a painted patient
_TYPED_VERSION = 1  # of what is made of it beside that for a system that tells types apart
_PARTS = ("hu", "label", "liver", "spacing_mm", "contents", "lesions", "foreground")
_TYPED_PARTS = ("instances", "types", "voxels")
_PAINT, _ANATOMY = 3, 4


class PhantomCases:
    """Liver boxes of phantom patients, painted in every phase of the model.

    Args:
        settings: how many, how painted.
        spec: the model's phases and spacing.
        cache_dir: folder for painted boxes; None paints again in every run.
        memory_bytes: painted boxes kept in memory, where no file holds them.
    """

    def __init__(
        self,
        settings: PhantomTumorData,
        spec: InputSpec,
        *,
        cache_dir: Path | None,
        memory_bytes: int = 2**30,
    ) -> None:
        spacing_mm = settings.spacing_mm or spec.spacing_mm
        if spacing_mm is None:
            raise UsageError(
                "E_RECIPE",
                "train",
                "neither data.spacing_mm nor system.spacing_mm says how fine phantoms are.",
                "Set data.spacing_mm.",
            )
        for folder in settings.anatomies:
            mask_folder(folder)
        self.settings, self.spec = settings, spec
        self.spacing_mm = spacing_mm
        self.cache = ArrayCache(cache_dir, memory_bytes=memory_bytes)
        # Visits that no later epoch shows again are kept while their group is in use.
        self.visits = ArrayCache(None, memory_bytes=memory_bytes)
        self.bank = None if settings.bank is None else read_bank(settings.bank)
        needed = settings.train_patients + settings.validation_patients
        if self.bank is not None and len(self.bank) < needed:
            raise UsageError(
                "E_RECIPE",
                "train",
                f"the bank holds {len(self.bank)} anatomies, the recipe wants {needed}.",
                "Lower data.train_patients or data.validation_patients, or write a larger bank.",
            )

    @property
    def n_train(self) -> int:
        """Training patients."""
        return self.settings.train_patients

    @property
    def n_validation(self) -> int:
        """Held-out patients."""
        return self.settings.validation_patients

    def train_case(self, index: int, epoch: int) -> PreparedCase:
        """A patient; epochs take turns among its scans, or each scans it anew (`paints` 0)."""
        patient, paints = self.settings.seed_base + index, self.settings.paints
        if paints > 0:
            return self._case(patient, paints, epoch % paints)
        visit = self.visits.get(
            {"patient": patient, "epoch": epoch},
            lambda: self._visit(self._anatomy(patient), patient, epoch),
        )
        return self._prepared(patient, visit)

    def train_name(self, index: int) -> str:
        """Name of a training patient."""
        return _name(self.settings.seed_base + index)

    def fingerprint(self) -> str:
        """Hash of the generator and of the files that patients are made of."""
        return content_key({"version": _VERSION, **self._files()})

    def validation_case(self, index: int) -> PreparedCase:
        """A held-out patient's only scan."""
        return self._case(self.settings.seed_base + VALIDATION_SEED + index, 1, 0)

    def train_types(self, index: int) -> frozenset[str]:
        """Types of a training patient's lesions; the first to ask has all patients drawn."""
        patient, paints = self.settings.seed_base + index, self.settings.paints
        if paints == 0:
            return frozenset(spec.type for spec in self._anatomy(patient).lesions)
        numbers = self._arrays(patient, paints)["types0"]
        return frozenset(LESION_TYPES[number - 1] for number in np.unique(numbers))

    def fill(self, processes: int) -> None:
        """Paint every patient into the cache folder, several at a time."""
        base, paints = self.settings.seed_base, self.settings.paints
        wanted = [(base + i, paints) for i in range(self.n_train if paints else 0)]
        wanted += [(base + VALIDATION_SEED + i, 1) for i in range(self.n_validation)]
        job = partial(_fill_one, self.settings, self.spec, self.cache.folder)
        for done, _ in enumerate(in_processes(job, wanted, processes, lambda w: _name(w[0]))):
            LOG.info("painted %d of %d patients", done + 1, len(wanted))

    def _case(self, patient: int, paints: int, chosen: int) -> PreparedCase:
        """One scan of a patient, out of those kept under names that end in its number."""
        parts = (*_PARTS, *_TYPED_PARTS) if self.spec.typed else _PARTS
        arrays = self._arrays(patient, paints)
        return self._prepared(patient, {name: arrays[f"{name}{chosen}"] for name in parts})

    def _prepared(self, patient: int, visit: Arrays) -> PreparedCase:
        return case_of_arrays(_name(patient), np.ones(len(self.spec.phases), bool), visit)

    def _anatomy(self, patient: int) -> Anatomy:
        """The patient, from the bank where there is one: training's first, then validation's."""
        settings = self.settings
        if self.bank is not None:
            index = patient - settings.seed_base
            if index >= VALIDATION_SEED:
                index += settings.train_patients - VALIDATION_SEED
            return self.bank[index]
        who = population(settings.population)
        template = self._template(patient - settings.seed_base)
        if template is not None:
            return warped_anatomy(template, patient, spacing_mm=self.spacing_mm, population=who)
        return anatomy(patient, field="liver", spacing_mm=self.spacing_mm, population=who)

    def _template(self, index: int) -> Template | None:
        """The real anatomy that a training patient is made of; None for a procedural one."""
        folders = self.settings.anatomies
        u = np.random.default_rng([_ANATOMY, index]).random(2)
        if not folders or index >= VALIDATION_SEED or u[0] >= self.settings.anatomy_share:
            return None
        return read_label_map(folders[int(u[1] * len(folders))])

    def _arrays(self, patient: int, paints: int) -> Arrays:
        settings = self.settings
        parts = {
            "version": _VERSION,
            "population": settings.population,
            **self._files(),
            "anatomy_share": settings.anatomy_share,
            "patient": patient,
            "paints": paints,
            "phases": list(self.spec.phases),
            "spacing_mm": list(self.spacing_mm),
            "thick_slices": settings.thick_slices,
            "misalignment_mm": settings.misalignment_mm,
            "liver_mask": settings.liver_mask.model_dump(),
            # Of other systems nothing changed.
            **({"typed_version": _TYPED_VERSION} if self.spec.typed else {}),
        }
        return self.cache.get(parts, lambda: self._paint(patient, paints))

    def _files(self) -> dict[str, str | None]:
        """Hashes of what patients are made of."""
        settings = self.settings
        return {
            "phantom": phantom_code(),
            "bank": None if settings.bank is None else file_hash(settings.bank),
            "anatomies": anatomy_hash(settings.anatomies),
        }

    def _paint(self, patient: int, paints: int) -> Arrays:
        body = self._anatomy(patient)
        return {
            f"{name}{number}": array
            for number in range(paints)
            for name, array in self._visit(body, patient, number).items()
        }

    def _visit(self, body: Anatomy, patient: int, number: int) -> Arrays:
        """One scan of a patient as a prepared case's arrays, named as `_PARTS`."""
        settings = self.settings
        rng = np.random.default_rng([_PAINT, patient, number])
        painted = paint(
            body,
            int(rng.integers(2**31)),
            phases=tuple(self.spec.phases),
            misalignment_mm=settings.misalignment_mm,
            scanner=population(settings.population).scanner,
        )
        hu = np.stack([painted.hu[phase] for phase in self.spec.phases])
        label, instances = painted.label, painted.instances
        liver = imperfect_liver(painted.liver, body.spacing_mm, settings.liver_mask, rng)
        z, y, x = body.spacing_mm
        if rng.random() < settings.thick_slices:
            factor = int(rng.choice(THICKER))
            centers = slice(factor // 2, None, factor)
            hu, z = thicken(hu, factor), factor * z
            label, liver, instances = label[centers], liver[centers], instances[centers]
        found = {
            "hu": hu,
            "label": np.ascontiguousarray(label),
            "liver": np.ascontiguousarray(liver),
            "spacing_mm": np.array([z, y, x]),
            "contents": slice_contents(label, liver),
        }
        if self.spec.typed:
            return found | typed_arrays(instances, {spec.id: spec.type for spec in body.lesions})
        return found | {
            "lesions": lesion_voxels(instances),
            "foreground": foreground_voxels(label),
        }


def _name(patient: int) -> str:
    return f"phantom-{patient}"


def _fill_one(
    settings: PhantomTumorData, spec: InputSpec, folder: Path | None, wanted: tuple[int, int]
) -> None:
    PhantomCases(settings, spec, cache_dir=folder)._arrays(*wanted)


def thicken(hu: Int16[np.ndarray, "p z y x"], factor: int) -> Int16[np.ndarray, "p n y x"]:
    """Slices `factor` times as thick and far apart; the first is centered on `factor // 2`.

    The profile is a box as wide as the distance between slices, its ends halved where it covers
    an even number.
    """
    reach = factor // 2
    weights = np.ones(2 * reach + 1, np.float32)
    if factor % 2 == 0:
        weights[[0, -1]] = 0.5
    centers = np.arange(reach, hu.shape[1], factor)
    total = np.zeros((hu.shape[0], len(centers), *hu.shape[2:]), np.float32)
    for offset, weight in zip(range(-reach, reach + 1), weights / weights.sum(), strict=True):
        total += weight * hu[:, np.clip(centers + offset, 0, hu.shape[1] - 1)]
    return np.rint(total).astype(np.int16)
