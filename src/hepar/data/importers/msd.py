"""Medical Segmentation Decathlon: `dataset.json`, `imagesTr/NAME.nii.gz`, `labelsTr/NAME.nii.gz`.

Task03_Liver is read. Task08_HepaticVessel is understood and refused: its labels are vessel and
tumor, and without the liver nothing says where a tumor was looked for. Whether a file of four
dimensions holds phases is nowhere said, so its case is refused (`E_NDIM`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from hepar.data.importers.case import ImportedCase, RefusedCase, phase_assumed
from hepar.data.importers.label_names import label_values, read_dataset_json, roles_of, truth_of
from hepar.io.phase_words import phase_of_text
from hepar.io.refusal import refuse
from hepar.study import Phase


def find_cases(source: Path, work: Path) -> Iterator[ImportedCase | RefusedCase]:
    """The training cases of a task (an `Importer`).

    Raises:
        InputRefused: `E_CASE_FILES`, `E_LABEL_NAMES`, `E_NO_LIVER_TRUTH` or `E_NO_TUMOR_TRUTH`
            where `dataset.json` does not tell what the files hold.
    """
    document = read_dataset_json(source)
    training = document.get("training")
    if not isinstance(training, list):
        raise refuse(
            "E_CASE_FILES",
            "dataset.json lists no training cases; where it has `channel_names`, --format nnunet "
            "reads it.",
            "prepare",
        )
    values = label_values(document.get("labels"))
    roles, other = roles_of(values)
    known = (0, *sorted({v for numbers in values.values() for v in numbers}))
    phase, warnings = _phase(document)
    if other:
        warnings += (f"W_LABELS_DROPPED: {', '.join(other)} became background",)
    for number, entry in enumerate(training):
        try:
            image, label = (_inside(source, entry[key]) for key in ("image", "label"))
        except (KeyError, TypeError, ValueError):
            error = refuse("E_CASE_FILES", f"Training case {number} is {entry!r}.", "prepare")
            yield RefusedCase(f"training-{number}", error)
            continue
        name = image.name.removesuffix(".gz").removesuffix(".nii")
        missing = [p.name for p in (image, label) if not p.is_file()]
        if missing:
            text = f"Case {name} lacks {', '.join(missing)}."
            yield RefusedCase(name, refuse("E_CASE_FILES", text, "prepare"))
            continue
        yield ImportedCase(
            case_id=name,
            patient_id=name,
            images={phase: image},
            truth=truth_of(label, roles, known),
            warnings=warnings,
        )


def _phase(document: dict[str, object]) -> tuple[Phase, tuple[str, ...]]:
    """The phase of the only image of a case: what `modality` says, else portal venous."""
    modality = document.get("modality")
    names = [str(v) for v in modality.values()] if isinstance(modality, dict) else []
    hit = phase_of_text(names[0]) if len(names) == 1 else None
    return (hit[0], ()) if hit else (Phase.PV, (phase_assumed("the image"),))


def _inside(source: Path, name: str) -> Path:
    """A path that the document names, below the source."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(name)
    return source.joinpath(*path.parts)
