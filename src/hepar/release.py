"""From two training runs to the shipped bundle: operating point, lesion classifier, model folder.

    python -m hepar.release --liver RUN --tumor RUN --card CARD -o models/lite
    python -m hepar.release --tumor RUN -o MODEL    # your tumor network behind the shipped liver's

Everything is chosen on phantoms that neither network saw: the tumor threshold on whole patients
through the stages, inside the liver that the liver network finds; the classifier on true lesions.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import tyro
from safetensors.numpy import save_file
from tyro.conf import arg

from hepar.console import progress as console_progress
from hepar.data.phantoms import MISALIGNMENT_MM, grid_of
from hepar.errors import InputRefused
from hepar.geometry import Box
from hepar.infer.bundle import (
    MANIFEST,
    Bundle,
    Model,
    default_bundle_path,
    export_part,
    load_bundle,
    write_bundle,
)
from hepar.infer.calibrate import choose_operating_point, fit_confidence, fit_types, sweep_case
from hepar.infer.lesion_map import type_means
from hepar.infer.measure import liver_hu, measure_lesion
from hepar.infer.tiling import Tiling
from hepar.phantom.anatomy import anatomy
from hepar.phantom.population import POPULATIONS, Population
from hepar.phantom.scanner import paint
from hepar.recipe import Recipe, load_recipe
from hepar.recipe_data import CohortData, OrganData, PhantomTumorData
from hepar.stages.liver import find_liver
from hepar.stages.tumor import look
from hepar.study import (
    LESION_TYPES,
    PHASE_ORDER,
    AlignedStudy,
    Phase,
    PhasedStudy,
    RegistrationRecord,
    Study,
    Volume,
    reference_phase,
)
from hepar.systems.base import System
from hepar.systems.baselines.enhancement_classifier import (
    calibrate,
    curve_features,
    fit_enhancement_classifier,
)

logger = logging.getLogger(__name__)

# Far from every training bank, whose seeds start at 0 and at 500_000.
CALIBRATION_SEED = 700_000
CLASSIFIER_SEED = 710_000
# A voxel of a true lesion whose types count when types are calibrated.
MARKED = 0.5
Progress = Callable[[str], None]


@dataclass(frozen=True)
class PhantomCase:
    """A synthetic patient as the stages see it, with its truth on the same grid."""

    aligned: AlignedStudy
    label: np.ndarray
    instances: np.ndarray
    types: dict[int, str]

    def only(self, phases: tuple[Phase, ...]) -> PhantomCase:
        """The patient as if only these phases had been acquired."""
        return replace(self, aligned=aligned_phases({p: self.aligned.volumes[p] for p in phases}))


def phantom_case(
    seed: int,
    *,
    misalignment_mm: float = MISALIGNMENT_MM,
    population: Population = POPULATIONS["general"],
) -> PhantomCase:
    """A phantom as an aligned study, by world coordinates, for scoring without files.

    Args:
        seed: of the patient.
        misalignment_mm: left between the phases.
        population: of the patient and the scanner.
    """
    patient = anatomy(seed, population=population)
    scan = paint(patient, seed, misalignment_mm=misalignment_mm, scanner=population.scanner)
    grid = grid_of(patient)
    aligned = aligned_phases({phase: Volume(scan.hu[phase], grid) for phase in PHASE_ORDER})
    types = {lesion.id: lesion.type for lesion in patient.lesions}
    return PhantomCase(aligned, scan.label, scan.instances, types)


def aligned_phases(volumes: dict[Phase, Volume]) -> AlignedStudy:
    grids = {phase: volume.grid for phase, volume in volumes.items()}
    phased = PhasedStudy(volumes, (), Study((), ()), grids)
    records = tuple(
        RegistrationRecord(phase, "identity", 0.0, 0.0, 0.0, 0.0, 1.0, "phantom")
        for phase in volumes
    )
    return AlignedStudy(volumes, reference_phase(volumes), phased, records)


def calibrate_tumor(
    liver: Model, tumor: Model, *, patients: int, device: str, progress: Progress
) -> dict[str, Any]:
    """Threshold and smallest lesion with the best mean score over whole phantoms.

    Every second patient lacks a random phase or more, because users' patients do. Of a typed
    system the types are calibrated too, on what it marks of the true lesions.

    Returns:
        The content of the tumor's `calibration.json`.
    """
    tiling = Tiling(device=device)
    sweeps = []
    weights: list[np.ndarray] = []
    kinds: list[int] = []
    for index in range(patients):
        seed = CALIBRATION_SEED + index
        progress(f"calibrate on phantom {index + 1} of {patients}")
        case = phantom_case(seed)
        if index % 2:
            case = case.only(_some_phases(seed))
        try:
            found = find_liver(case.aligned, liver, tiling=tiling)
            seen = look(found, tumor, tiling=tiling)
        except InputRefused as refusal:
            logger.warning("phantom %d: %s", seed, refusal)
            continue
        truth = case.instances[found.box.slices]
        sweeps.append(sweep_case(seen.tumor, truth, case.aligned.grid.voxel_ml))
        if seen.types is not None:
            marked = np.where(seen.tumor >= MARKED, truth, 0).astype(np.uint16)
            for number, row in enumerate(type_means(seen.types, marked), start=1):
                if row.any():
                    weights.append(row)
                    kinds.append(LESION_TYPES.index(case.types[number]))
    chosen, score = choose_operating_point(sweeps)
    update: dict[str, Any] = {"confidence": fit_confidence(sweeps, chosen)}
    if weights:
        fitted = fit_types(np.stack(weights), np.array(kinds))
        update |= zip(("type_temperature", "type_threshold"), fitted, strict=True)
    chosen = chosen.model_copy(update=update)
    logger.info("operating point %s, score %.3f", chosen, score)
    return chosen.model_dump()


def _some_phases(seed: int) -> tuple[Phase, ...]:
    rng = np.random.default_rng([seed, 5])
    keep = rng.integers(1, 2 ** len(PHASE_ORDER))
    return tuple(phase for bit, phase in enumerate(PHASE_ORDER) if keep >> bit & 1)


def lesion_curves(seeds: range, progress: Progress) -> Iterator[tuple[np.ndarray, str]]:
    """Enhancement features and type of the lesions of phantoms, measured inside true masks."""
    for number, seed in enumerate(seeds, start=1):
        progress(f"measure lesions of phantom {number} of {len(seeds)}")
        patient = anatomy(seed, field="liver")
        if not patient.lesions:
            continue
        scan = paint(patient, seed, misalignment_mm=MISALIGNMENT_MM)
        grid = grid_of(patient)
        parenchyma = liver_hu(scan.hu, scan.liver, scan.instances > 0, grid)
        for lesion in patient.lesions:
            mask = scan.instances == lesion.id
            box = Box.around(mask)
            if box is None:
                continue
            measured = measure_lesion(
                lesion.id,
                mask[box.slices],
                box,
                grid,
                scan.hu,
                parenchyma,
                mask[box.slices].astype(np.float32),
            )
            yield curve_features(measured.hu, measured.liver_hu), lesion.type


def train_classifier(patients: int, progress: Progress) -> dict[str, np.ndarray]:
    """Fit the lesion classifier on two thirds of the phantoms and calibrate it on the rest."""
    split = CLASSIFIER_SEED + 2 * patients // 3
    fitting = list(lesion_curves(range(CLASSIFIER_SEED, split), progress))
    held_out = list(lesion_curves(range(split, CLASSIFIER_SEED + patients), progress))
    classifier = fit_enhancement_classifier(
        np.stack([features for features, _ in fitting]), [name for _, name in fitting]
    )
    known = [(f, name) for f, name in held_out if name in classifier.labels]
    classifier = calibrate(classifier, np.stack([f for f, _ in known]), [name for _, name in known])
    return {name: np.asarray(value) for name, value in classifier.as_arrays().items()}


def release(
    liver: Path,
    tumor_run: Path,
    out: Path,
    *,
    version: str,
    card: str | None,
    calibration_patients: int,
    classifier_patients: int,
    classifier: Path | None = None,
    device: str = "cpu",
    progress: Progress = lambda message: None,
) -> Bundle:
    """Write the bundle of two finished runs.

    Args:
        liver: folder that `hepar train` left, or a model folder whose liver network is taken.
        tumor_run: folder that `hepar train` left.
        out: model folder.
        version: of the weights.
        card: text of the model card.
        calibration_patients: whole phantoms for the tumor's operating point.
        classifier_patients: phantoms for the lesion classifier, which a typed system replaces.
        classifier: safetensors of a classifier that was fitted before, instead.
        device: torch device.
        progress: told what is being done.
    """
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        parts = {"liver": work / "liver", "tumor": work / "tumor", "diagnose": work / "diagnose"}
        if (liver / MANIFEST).is_file():
            load_bundle(liver).copy_part("liver", parts["liver"])
        else:
            export_run(liver, parts["liver"], {})
        export_run(tumor_run, parts["tumor"], {})
        draft = write_bundle(
            work / "draft",
            {name: parts[name] for name in ("liver", "tumor")},
            name=out.name,
            version=version,
        )
        calibration = calibrate_tumor(
            draft.model("liver"),
            draft.model("tumor"),
            patients=calibration_patients,
            device=device,
            progress=progress,
        )
        export_run(tumor_run, parts["tumor"], calibration)
        if cast(System, draft.model("tumor").system).input_spec.typed:
            del parts["diagnose"]
        else:
            parts["diagnose"].mkdir()
            weights = parts["diagnose"] / "weights.safetensors"
            if classifier is None:
                save_file(train_classifier(classifier_patients, progress), weights)
            else:
                shutil.copyfile(classifier, weights)
        write_bundle(out, parts, name=out.name, version=version, card=card)
    return load_bundle(out)


def export_run(run: Path, folder: Path, calibration: dict[str, Any]) -> None:
    """Export the best weights of a training run as a part of a bundle."""
    from hepar.train.checkpoint import read_tensors

    recipe = _without_paths(load_recipe(run / "recipe.yaml"))
    weights, _ = read_tensors(run / "best.safetensors")
    export_part(recipe, weights, calibration, folder)


def _without_paths(recipe: Recipe) -> Recipe:
    """The recipe with files by name alone: where they lay is nobody else's business."""
    start = recipe.schedule.initial_weights
    if start is not None:
        schedule = recipe.schedule.model_copy(update={"initial_weights": Path(start.name)})
        recipe = recipe.model_copy(update={"schedule": schedule})
    if isinstance(recipe.data, PhantomTumorData) and recipe.data.bank is not None:
        bank = recipe.data.model_copy(update={"bank": Path(recipe.data.bank.name)})
        recipe = recipe.model_copy(update={"data": bank})
    if isinstance(recipe.data, CohortData):
        table = recipe.data.model_copy(update={"path": Path(recipe.data.path.name)})
        recipe = recipe.model_copy(update={"data": table})
    if isinstance(recipe.data, OrganData | PhantomTumorData):
        names = tuple(Path(path.name) for path in recipe.data.anatomies)
        data = recipe.data.model_copy(update={"anatomies": names})
        recipe = recipe.model_copy(update={"data": data})
    return recipe


def _main(
    *,
    tumor: Annotated[Path, arg(help="Folder of the tumor run.")],
    out: Annotated[Path, arg(aliases=["-o"], help="Model folder to write.")],
    liver: Annotated[
        Path | None, arg(help="Folder of the liver run, or a model folder; the shipped one.")
    ] = None,
    card: Annotated[Path | None, arg(help="Text of the model card.")] = None,
    version: str = "1",
    calibration_patients: int = 16,
    classifier_patients: int = 240,
    classifier: Annotated[Path | None, arg(help="A classifier fitted before.")] = None,
) -> None:
    """Write a bundle from a tumor run and a liver run, or a liver network that is there."""
    with console_progress(quiet=False) as step:
        bundle = release(
            liver or default_bundle_path(),
            tumor,
            out,
            version=version,
            card=card.read_text() if card else None,
            calibration_patients=calibration_patients,
            classifier_patients=classifier_patients,
            classifier=classifier,
            progress=step,
        )
    logger.info("%s", json.dumps({"bundle": out.name, "sha256": bundle.sha256}))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    tyro.cli(_main)
