"""`log.jsonl`: what a run did, one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hepar.io.atomic import atomic_path


class History:
    """Appended to as a run goes; lines after the checkpoint it resumes from are forgotten.

    Args:
        path: the file; need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def forget_after(self, step: int) -> None:
        """Drop the lines of later steps: they are about to be done again."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                break  # a line cut short by a kill, the last one
        with atomic_path(self.path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")

    def seconds(self) -> float:
        """Wall time of all lines: training and validation of the whole run, whoever did it.

        What a kill took after the newest line, and what was done twice for it, is not in there.
        """
        if not self.path.exists():
            return 0.0
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return sum(float(json.loads(line)["seconds"]) for line in lines)

    def append(self, entry: dict[str, Any]) -> None:
        """Add one line; `entry` has a `step`."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
