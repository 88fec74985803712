"""The patients of a cohort on disk as prepared cases, each made once and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from hepar.data.array_file import Arrays
from hepar.data.cache import ArrayCache, content_key, file_hash
from hepar.data.cohort import (
    CohortCase,
    empty_case,
    is_test,
    read_case,
    read_cohort,
    read_instances,
    refuse_cohort,
)
from hepar.data.lesion_table import read_lesion_types
from hepar.data.prepared_case import (
    PreparedCase,
    case_of_arrays,
    foreground_voxels,
    lesion_voxels,
    slice_contents,
    typed_arrays,
)
from hepar.data.tumor_source import imperfect_liver
from hepar.errors import InputRefused
from hepar.geometry import Box
from hepar.preprocess import AIR_HU, liver_box, working_grid
from hepar.recipe_data import CohortData
from hepar.resampling import resample
from hepar.study import TUMOR
from hepar.systems.base import InputSpec

_VERSION = 3  # of what `_prepare` makes
_TYPED_VERSION = 1  # of what it makes beside that for a system that tells types of lesions apart


def _is_held_out(case: CohortCase, fold: int | None) -> bool:
    if fold is None:
        return case.metadata.get("split", "").lower() == "validation"
    return case.fold == fold


class CohortCases:
    """The labelled cases of a cohort's folds, prepared once (a `CaseProvider`).

    Args:
        settings: which cohort and fold, how much margin.
        spec: phases and working spacing of the system.
        cache_dir: folder for prepared cases.

    Raises:
        InputRefused: `E_COHORT`, also when no case is left to train on or to hold out.
    """

    def __init__(self, settings: CohortData, spec: InputSpec, *, cache_dir: Path | None) -> None:
        self.settings, self.spec = settings, spec
        self.cache = ArrayCache(cache_dir)
        self._keys: dict[str, dict[str, Any]] = {}
        need = ("label",) if settings.fold is None else ("label", "fold")
        self._types: dict[str, dict[int, str]] = {}
        if spec.typed:
            need = (*need, "instances")
            self._types = read_lesion_types(settings.path.parent / "lesions.csv", "cohort")
        cases = read_cohort(settings.path, need=need)
        cases = tuple(c for c in cases if set(c.images) & set(spec.phases) and not is_test(c))
        held_out = [_is_held_out(c, settings.fold) for c in cases]
        self.train = tuple(c for c, out in zip(cases, held_out, strict=True) if not out)
        self.held_out = tuple(c for c, out in zip(cases, held_out, strict=True) if out)
        if not self.train or not self.held_out:
            counts = f"{len(self.train)} to train on, {len(self.held_out)} held out"
            by = "split" if settings.fold is None else f"fold {settings.fold}"
            problem = f"{by} leaves {counts} with phases {', '.join(spec.phases)}"
            raise refuse_cohort(settings.path, [problem])
        lacking = [c.case_id for c in cases if not set(spec.phases) <= set(c.images)]
        if spec.needs_all_phases and lacking:
            raise InputRefused(
                "E_PHASES_REQUIRED",
                "cohort",
                f"the system needs all of {', '.join(spec.phases)}, which {len(lacking)} cases "
                f"lack, {lacking[0]} among them.",
                "Leave those cases out, or use a system that works without them.",
            )

    @property
    def n_train(self) -> int:
        """Training cases."""
        return len(self.train)

    @property
    def n_validation(self) -> int:
        """Held-out cases."""
        return len(self.held_out)

    def train_case(self, index: int, epoch: int) -> PreparedCase:
        """A training case, the same in every epoch."""
        return self._case(self.train[index])

    def validation_case(self, index: int) -> PreparedCase:
        """A held-out case."""
        return self._case(self.held_out[index])

    def train_name(self, index: int) -> str:
        """Name of a training case."""
        return self.train[index].case_id

    def train_types(self, index: int) -> frozenset[str]:
        """Types of a training case's lesions, which are told before the case is prepared."""
        return frozenset(self._types.get(self.train[index].case_id, {}).values())

    def fingerprint(self) -> str:
        """Hash of the cases of either kind and of the content of their files.

        Raises:
            InputRefused: `E_LEAKAGE`, a held-out case is one of the training cases by another name.
        """
        self._refuse_copies()
        return content_key(
            {
                name: [[case.case_id, case.patient_id, self._key(case)] for case in cases]
                for name, cases in (("train", self.train), ("held_out", self.held_out))
            }
        )

    def _refuse_copies(self) -> None:
        """Refuse a held-out case one of whose images is the very file of a training case."""
        trained = {digest: case.case_id for case in self.train for digest in self._digests(case)}
        for case in self.held_out:
            for digest in self._digests(case) & trained.keys():
                raise InputRefused(
                    "E_LEAKAGE",
                    "cohort",
                    f"held-out case {case.case_id} and training case {trained[digest]} have an "
                    "image in common.",
                    "Leave one of them out, or give both one patient_id and fold.",
                )

    def _digests(self, case: CohortCase) -> set[str]:
        files = self._key(case)["files"]
        return {files[phase] for phase in case.images}

    def _key(self, case: CohortCase) -> dict[str, Any]:
        """All that a prepared case depends on; files are read for it once a run."""
        if case.case_id not in self._keys:
            files = {**case.images, "liver_file": case.liver, "label_file": case.label}
            self._keys[case.case_id] = {
                "version": _VERSION,
                "files": {name: file_hash(file) for name, file in files.items() if file},
                "reference": case.reference,
                "phases": list(self.spec.phases),
                "spacing_mm": self.spec.spacing_mm,
                "margin_mm": self.settings.margin_mm,
                "liver_mask": self.settings.liver_mask.model_dump(),
                **self._typed_key(case),
            }
        return self._keys[case.case_id]

    def _typed_key(self, case: CohortCase) -> dict[str, Any]:
        """What a case of a typed system depends on beside; nothing for others, whose keys stay."""
        if not self.spec.typed or case.instances is None:
            return {}
        types = sorted(self._types.get(case.case_id, {}).items())
        return {
            "typed_version": _TYPED_VERSION,
            "instances": file_hash(case.instances),
            "types": [list(each) for each in types],
        }

    def _case(self, case: CohortCase) -> PreparedCase:
        parts = self._key(case)
        # A 3D patch would touch nearly every page of a map; a slice would unpack 64 from chunks.
        get = self.cache.get_chunked if self.spec.dims == 3 else self.cache.get
        arrays: Any = get(parts, lambda: self._prepare(case, content_key(parts)))
        return case_of_arrays(case.case_id, arrays["present"], arrays)

    def _prepare(self, case: CohortCase, key: str) -> Arrays:
        images, label, liver = read_case(case, self.spec.phases)
        grid = label.grid
        if not liver.any():
            raise empty_case(case, "the liver mask is empty")
        margin_mm = self.settings.margin_mm
        around = None if margin_mm is None else liver_box(liver, grid, margin_mm)
        box = Box.full(grid.shape) if around is None else around
        target = working_grid(grid.crop(box), self.spec.spacing_mm)
        hu = np.full((len(self.spec.phases), *target.shape), AIR_HU, np.int16)
        for row, phase in enumerate(self.spec.phases):
            if phase in images:
                volume = images[phase]
                moved = resample(volume.array, volume.grid, target, fill=AIR_HU)
                hu[row] = np.rint(moved).astype(np.int16)
        mask = resample(liver.astype(np.uint8), grid, target, order=0).astype(bool)
        rng = np.random.default_rng(int(key[:16], 16))
        mask = imperfect_liver(mask, target.spacing_mm, self.settings.liver_mask, rng)
        classes = resample(label.array, grid, target, order=0).astype(np.uint8)
        found = {
            "hu": hu,
            "present": np.array([phase in images for phase in self.spec.phases]),
            "label": classes,
            "liver": mask,
            "spacing_mm": np.array(target.spacing_mm),
            "contents": slice_contents(classes, mask),
        }
        if self.spec.typed:
            types = self._types.get(case.case_id, {})
            ids = read_instances(case, label, types)
            return found | typed_arrays(resample(ids, grid, target, order=0), types)
        return found | {
            "lesions": lesion_voxels(ndimage.label(classes == TUMOR, np.ones((3, 3, 3)))[0]),
            "foreground": foreground_voxels(classes),
        }
