"""nnU-Net version 2 raw data: `dataset.json`, `imagesTr/CASE_0000.nii.gz`, `labelsTr/CASE.nii.gz`.

Each channel is a phase, by its name in `channel_names`. Cases of `imagesTs` are imported as the
test split where `labelsTs` holds their labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hepar.data.importers.case import ImportedCase, RefusedCase, phase_assumed
from hepar.data.importers.label_names import label_values, read_dataset_json, roles_of, truth_of
from hepar.io.phase_words import phase_of_text
from hepar.io.refusal import refuse
from hepar.study import Phase

_ENDINGS = (".nii.gz", ".nii")
_FOLDERS = (("imagesTr", "labelsTr", ""), ("imagesTs", "labelsTs", "test"))


def find_cases(source: Path, work: Path) -> Iterator[ImportedCase | RefusedCase]:
    """The cases of a raw data set (an `Importer`).

    Raises:
        InputRefused: `E_CASE_FILES`, `E_LABEL_NAMES`, `E_NO_LIVER_TRUTH` or `E_NO_TUMOR_TRUTH`
            where `dataset.json` does not tell what the files hold.
    """
    document = read_dataset_json(source)
    if "channel_names" not in document:
        raise refuse(
            "E_CASE_FILES",
            "dataset.json has no channel_names; where it has `modality`, --format msd reads it.",
            "prepare",
        )
    ending = str(document.get("file_ending", ""))
    if ending not in _ENDINGS:
        raise refuse(
            "E_CASE_FILES", f"The file ending is {ending!r}, not .nii.gz or .nii.", "prepare"
        )
    channels, warnings = phases_of_channels(document["channel_names"])
    values = label_values(document.get("labels"))
    roles, other = roles_of(values)
    known = (0, *sorted({v for numbers in values.values() for v in numbers}))
    if other:
        warnings += (f"W_LABELS_DROPPED: {', '.join(other)} became background",)
    for images, labels, split in _FOLDERS:
        if split and not (source / labels).is_dir():
            continue
        for name in _names(source / images, source / labels, ending):
            label = source / labels / f"{name}{ending}"
            files = {
                phase: source / images / f"{name}_{number:04d}{ending}"
                for number, phase in channels.items()
            }
            missing = [f.name for f in (*files.values(), label) if not f.is_file()]
            if missing:
                code = "E_NO_TRUTH" if missing == [label.name] else "E_CASE_FILES"
                text = f"Case {name} lacks {', '.join(missing)}."
                yield RefusedCase(name, refuse(code, text, "prepare"))
                continue
            yield ImportedCase(
                case_id=name,
                patient_id=name,
                images=files,
                truth=truth_of(label, roles, known),
                metadata={"split": split} if split else {},
                warnings=warnings,
            )


def phases_of_channels(names: Any) -> tuple[dict[int, Phase], tuple[str, ...]]:
    """The phase of each channel.

    Args:
        names: channel number -> name.

    Returns:
        Phases by number, and a warning where the only channel tells no phase.

    Raises:
        InputRefused: `E_CASE_FILES`, a channel of several tells no phase, or two tell the same.
    """
    if not isinstance(names, Mapping) or not all(str(key).isdigit() for key in names):
        raise refuse("E_CASE_FILES", f"dataset.json has the channels {names}.", "prepare")
    channels = {int(key): str(name) for key, name in sorted(names.items())}
    hits = {number: phase_of_text(name) for number, name in channels.items()}
    if len(channels) == 1 and None in hits.values():
        (number, name), *_ = channels.items()
        return {number: Phase.PV}, (phase_assumed(f"the channel {name!r}"),)
    silent = [name for number, name in channels.items() if hits[number] is None]
    if silent:
        raise refuse(
            "E_CASE_FILES",
            f"The channels {', '.join(map(repr, silent))} name no phase; call each of them "
            "non-contrast, arterial, portal venous or delayed.",
            "prepare",
        )
    phases = {number: hit[0] for number, hit in hits.items() if hit is not None}
    if len(set(phases.values())) < len(phases):
        raise refuse("E_CASE_FILES", f"Two of the channels {channels} are one phase.", "prepare")
    return phases, ()


def _names(images: Path, labels: Path, ending: str) -> list[str]:
    """Cases that have an image or a label; files of other systems' making start with a dot."""
    found = {p.name[: -len(ending)] for p in _files(labels, ending)}
    for path in _files(images, ending):
        stem, _, number = path.name[: -len(ending)].rpartition("_")
        if len(number) == 4 and number.isdigit():
            found.add(stem)
    return sorted(found)


def _files(folder: Path, ending: str) -> list[Path]:
    if not folder.is_dir():
        return []
    return [p for p in folder.iterdir() if p.name.endswith(ending) and not p.name.startswith(".")]
