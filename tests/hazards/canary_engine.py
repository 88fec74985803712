"""An engine whose workers segment without networks, as `canary_study.stand_ins` does it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sized
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from canary_study import stand_ins

from hepar.batch.job import Engine, Segmenter, load_pipeline
from hepar.infer.bundle import default_bundle_path

_KEPT = ExitStack()


@dataclass(frozen=True)
class _Name:
    """What the server's own process needs of a segmenter."""

    model_sha256: str

    def segment(self, source: Path | None, out: Path, stated: Any) -> Sized:
        """Only workers do."""
        raise NotImplementedError


def load(engine: Engine) -> Segmenter:
    """The pipeline without its networks, in a worker."""
    if multiprocessing.parent_process() is None:
        return _Name("model")
    _KEPT.enter_context(stand_ins())
    return load_pipeline(engine)


def engine() -> Engine:
    """The engine."""
    return Engine(default_bundle_path(), load=load)
