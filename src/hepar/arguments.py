"""What flags mean: phases, device, where results may go; checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from hepar.errors import UsageError
from hepar.infer.device import pick_device as pick_device

if TYPE_CHECKING:
    from hepar.study import Phase


def stated_phases(pairs: tuple[str, ...]) -> dict[Phase, Path]:
    """`PHASE=PATH` pairs by phase; a phase by our name or any other of `io.phase_words.NAMED`.

    Raises:
        UsageError: `E_USAGE`, a pair names no phase or no path, or a phase comes twice.
    """
    from hepar.io.phase_words import NAMED

    stated: dict[Phase, Path] = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        phase = NAMED.get(name.strip().lower())
        if not equals or phase is None or not path:
            raise UsageError(
                "E_USAGE",
                "cli",
                f"--phase {pair!r} does not name a phase and a path.",
                f"Write it as --phase art=PATH, with one of {', '.join(NAMED)}.",
            )
        if phase in stated:
            raise UsageError(
                "E_USAGE",
                "cli",
                f"--phase {name} is given twice: it is {phase.long_name}.",
                "Give each phase once.",
            )
        stated[phase] = Path(path)
    return stated


def refuse_own_results(out: Path, inputs: Iterable[Path | None]) -> None:
    """Refuse to write results over a file that is read.

    Raises:
        UsageError: `E_OUTPUT_PATH`, an input is one of the files that a run leaves in `out`.
    """
    from hepar.stages.report import RESULTS

    taken = {(out / name).resolve() for name in RESULTS}
    for path in inputs:
        if path is not None and path.resolve() in taken:
            raise UsageError(
                "E_OUTPUT_PATH",
                "cli",
                f"{path.name} lies where its own results would go.",
                "Name another folder with -o, or move the mask.",
            )
