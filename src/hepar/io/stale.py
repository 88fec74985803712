"""Results of an earlier run never stand where those of a later one are expected.

Whoever looks into a folder of results, a person or a script, takes what lies there for the result
of the newest run. So a run first moves what an earlier one left to `stale/TIME/` inside the folder:
whether it is refused, fails or is killed, nothing old looks new, and nothing good is lost. Once it
succeeded the earlier results are superseded and removed.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from hepar.errors import HeparError, ResourceExhausted

log = logging.getLogger(__name__)

STALE, NOTE = "stale", "why.json"


@contextmanager
def set_aside(out: Path | str, names: Sequence[str], *, keep: bool = False) -> Iterator[None]:
    """Move earlier results out of `out` for the time of this block, and for good where it fails.

    Args:
        out: folder of results; need not exist.
        names: files and folders that a run leaves; no other is touched.
        keep: leave them in `stale/` after a success too: they hold more than results.

    Raises:
        ResourceExhausted: `E_OUTPUT_WRITE`, they cannot be moved.
    """
    folder = Path(out)
    earlier = [name for name in names if (folder / name).exists()]
    if not earlier:
        yield
        return
    place = _move(folder, earlier)
    _note(place, "The run that was to replace these results has not finished.")
    try:
        yield
    except BaseException as error:
        why = error.code if isinstance(error, HeparError) else type(error).__name__
        _note(place, f"The run that was to replace these results failed with {why}.")
        log.warning(
            "E_STALE: this run left no results; those of an earlier one are now in %s",
            place.relative_to(folder).as_posix(),
        )
        raise
    if keep:
        _note(place, "The run that replaced these results succeeded; here lies more than results.")
        return
    shutil.rmtree(place, ignore_errors=True)
    with suppress(OSError):  # results of other failed runs lie there
        place.parent.rmdir()


def _new_place(folder: Path) -> Path:
    """A folder that this run alone has made, though others look for one at the same time."""
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    place, number = folder / STALE / now, 1
    while True:
        place.parent.mkdir(exist_ok=True)
        try:
            place.mkdir()
            return place
        except FileExistsError:
            number += 1
            place = folder / STALE / f"{now}-{number}"
        except FileNotFoundError:  # another run, which emptied `stale/`, removed it
            continue


def _move(folder: Path, names: Sequence[str]) -> Path:
    try:
        place = _new_place(folder)
        for name in names:
            os.rename(folder / name, place / name)
    except OSError as error:
        raise ResourceExhausted(
            "E_OUTPUT_WRITE",
            "output",
            f"earlier results in {folder.name} cannot be moved: {error.strerror or error}.",
            "Name another folder with -o, or make this one writable.",
        ) from error
    return place


def _note(place: Path, message: str) -> None:
    text = json.dumps({"code": "E_STALE", "message": message}, indent=2) + "\n"
    with suppress(OSError):  # that they lie here says enough
        (place / NOTE).write_text(text, encoding="utf-8")
