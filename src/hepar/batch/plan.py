"""From a folder or a cohort to jobs: one for each study, with its folder and its key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hepar.batch.job import Engine, Job, Key, loaded, read_record
from hepar.batch.studies import (
    Entry,
    Known,
    check_places,
    find_studies,
    in_part,
    listing_sha256,
    name_folders,
)
from hepar.batch.twins import Twin, find_twins
from hepar.errors import UsageError


@dataclass(frozen=True)
class Again:
    """A study that is another one again, and is not run.

    Attributes:
        name: as it is shown.
        folder: where the results of the other one stand.
        twin: why.
    """

    name: str
    folder: str
    twin: Twin


@dataclass(frozen=True)
class Plan:
    """What a batch, or one part of it, has to do.

    Attributes:
        jobs: each study of this part once, by name.
        again: those that are there twice.
        notes: what there is to say of the source, `W_CODE: words`.
    """

    jobs: tuple[Job, ...]
    again: tuple[Again, ...]
    notes: tuple[str, ...]


def check(source: Path, out: Path, engine: Engine, num_parts: int, part_id: int) -> None:
    """Refuse what `plan` would, without looking into the studies.

    Raises:
        UsageError, InputRefused, ModelIntegrityError: as `plan`.
    """
    if not 0 <= part_id < num_parts:
        raise UsageError(
            "E_USAGE",
            "batch",
            f"There is no part {part_id} of {num_parts}.",
            "Parts are counted from 0: --part-id is below --num-parts.",
        )
    check_places(source, out, find_studies(source)[0])
    loaded(engine)


def plan(
    source: Path,
    out: Path,
    engine: Engine,
    *,
    num_parts: int = 1,
    part_id: int = 0,
    known: Mapping[str, Known] | None = None,
) -> Plan:
    """Plan a batch.

    Args:
        source: folder of studies, or a cohort; see `studies.find_studies`.
        out: folder of results; those that lie there keep their folders.
        engine: how studies are segmented; it is loaded, for the hash of its model.
        num_parts: parts that the studies are dealt to, by a hash of their name.
        part_id: the part wanted, from 0.
        known: folders that a ledger knows studies of, finished or not.

    Raises:
        UsageError: `E_USAGE`, there is no such part; `E_OUTPUT_PATH`, `out` lies in `source` or
            studies in `out`.
        InputRefused: `E_NO_CASES`, `E_COHORT`.
        ModelIntegrityError: the model cannot be used.
    """
    source, out = source.absolute(), out.absolute()  # jobs may be done from elsewhere
    check(source, out, engine, num_parts, part_id)
    entries, notes = find_studies(source)
    twins = find_twins(entries)
    listings: dict[Entry, str] = {}

    def listing(entry: Entry) -> str:
        if entry not in listings:
            listings[entry] = listing_sha256(entry)
        return listings[entry]

    places = [place for place in range(len(entries)) if place not in twins]
    once = [entries[place] for place in places]
    folders = name_folders(once, {**_recorded(out), **(known or {})}, listing)
    by_place = dict(zip(places, folders, strict=True))
    settings, model = engine.settings_sha256(), loaded(engine).model_sha256
    jobs = tuple(
        Job(
            entry.name,
            folder,
            out,
            entry.source,
            entry.stated,
            entry.origin,
            Key(listing(entry), settings, model),
            engine,
        )
        for entry, folder in zip(once, folders, strict=True)
        if in_part(entry, part_id, num_parts)
    )
    again = tuple(
        Again(entries[place].name, by_place[twin.of], twin)
        for place, twin in twins.items()
        if in_part(entries[place], part_id, num_parts)
    )
    return Plan(jobs, again, notes)


def _recorded(out: Path) -> dict[str, Known]:
    """Folders of results that lie in `out`."""
    known = {}
    for place in sorted(out.iterdir()) if out.is_dir() else ():
        record = None if place.name.startswith(".") else read_record(place)
        if record is not None:
            known[place.name] = Known(record["origin"], record["name"], record["key"]["inputs"])
    return known
