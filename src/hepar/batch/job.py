"""One study of a batch: what is asked, `run_study`, and what became of it.

All of it can be pickled, and `run_study` needs nothing but its job: it is what `hepar batch` calls
in its workers, and what others may call from theirs.
"""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from hepar.errors import HeparError, ResourceExhausted, UsageError
from hepar.io.atomic import staged_folder
from hepar.io.stale import set_aside
from hepar.provenance import hepar_version, sha256_file, sha256_json

if TYPE_CHECKING:
    from hepar.study import Phase

LOG = logging.getLogger(__name__)
# Written last into the folder of a study: what the result was made from, and a hash of each file.
RECORD = "study.json"
_SEAL, _SCHEMA = "sha256", "1"


@runtime_checkable
class Found(Protocol):
    """What a batch tells of a result; `study.Findings` is one."""

    @property
    def lesions(self) -> Sized:
        """The lesions that were found."""

    @property
    def tumor_burden(self) -> float:
        """Tumor volume / liver volume."""


@runtime_checkable
class Segmenter(Protocol):
    """What segments the studies of a batch, loaded once a process."""

    @property
    def model_sha256(self) -> str:
        """Of everything that computes."""

    def segment(self, source: Path | None, out: Path, stated: Mapping[str, Path]) -> Found:
        """Leave the results of a study in `out`, an empty folder.

        Args:
            source: folder, file or archive; None where all phases are stated.
            out: exists.
            stated: series by the name of their phase.

        Raises:
            HeparError: the study cannot be used.
        """


@dataclass(frozen=True)
class _Shipped:
    """The pipeline, as `hepar segment` runs it."""

    pipeline: Any
    wanted: Mapping[str, bool | None]

    @property
    def model_sha256(self) -> str:
        return str(self.pipeline.bundle.sha256)

    def segment(self, source: Path | None, out: Path, stated: Mapping[str, Path]) -> Found:
        from hepar.study import Phase

        phases = {Phase(name): path for name, path in stated.items()}
        if self.wanted["dicom"] is None:
            try:
                return self._segment(source, out, phases, {**self.wanted, "dicom": True})
            except UsageError as error:
                if error.code != "E_DICOM_SOURCE":
                    raise
                LOG.warning("W_NO_DICOM: %s", error.message)
        plain = {**self.wanted, "dicom": bool(self.wanted["dicom"])}
        return self._segment(source, out, phases, plain)

    def _segment(
        self,
        source: Path | None,
        out: Path,
        phases: Mapping[Phase, Path],
        wanted: Mapping[str, bool | None],
    ) -> Found:
        found: Found = self.pipeline.segment(source, out, stated=phases, **wanted)
        return found


def load_pipeline(engine: Engine) -> Segmenter:
    """The pipeline with the model that is asked for.

    Raises:
        ModelIntegrityError: as `infer.bundle.load_bundle`.
    """
    # Heavy; a process that only looks at what is done has no need of it.
    from hepar.infer.bundle import default_bundle_path, load_bundle
    from hepar.infer.tiling import Tiling
    from hepar.pipeline import Pipeline

    bundle = load_bundle(engine.model or default_bundle_path())
    tiling = Tiling(device=engine.device)
    pipeline = Pipeline(bundle, tiling, interpolate_gaps=engine.interpolate_gaps)
    return _Shipped(pipeline, engine.wanted)


@dataclass(frozen=True)
class Engine:
    """How the studies of a batch are segmented: the same for all of them.

    Attributes:
        model: model folder, absolute where jobs are done from elsewhere; None for the shipped one.
        device: `cpu`, `cuda`, `mps`.
        probabilities: also write probability maps.
        interpolate_gaps: whether single lost slices may be made up from their neighbors.
        dicom: also write SEG and SR; None to do so where a study's headers allow it.
        captures: also write DICOM pictures of lesions.
        viewer: also write `viewer.html`.
        load: a function of a module, which loads what segments.
    """

    model: Path | None = None
    device: str = "cpu"
    probabilities: bool = False
    interpolate_gaps: bool = False
    dicom: bool | None = False
    captures: bool = False
    viewer: bool = False
    load: Callable[[Engine], Segmenter] = load_pipeline

    @property
    def wanted(self) -> dict[str, bool | None]:
        """What is written only when asked for, by the names of `Pipeline.segment`."""
        return {
            "probabilities": self.probabilities,
            "dicom": self.dicom,
            "captures": self.captures,
            "viewer": self.viewer,
        }

    def settings_sha256(self) -> str:
        """Of what changes results beside the model: options, and the version of hepar."""
        return sha256_json(
            {
                **self.wanted,
                "interpolate_gaps": self.interpolate_gaps,
                "hepar": hepar_version(),
            }
        )


@dataclass(frozen=True)
class Key:
    """What a result is made from, as SHA-256; a result of another key is made anew.

    Attributes:
        inputs: of the listing of a study's files: relative names, sizes, times of change.
        settings: of an engine.
        model: of everything that computes.
    """

    inputs: str
    settings: str
    model: str


@dataclass(frozen=True)
class Job:
    """One study to segment.

    Attributes:
        name: of the study, as it is shown.
        folder: of its results in `out`; a name that is safe on any system.
        out: folder of the batch.
        source: DICOM folder, NIfTI file, folder or archive; None when all phases are stated.
        stated: pairs of phase (`NC`, `ART`, `PV`, `DL`) and path.
        origin: SHA-256 of where the study lies.
        key: what its result is made from.
        engine: how it is segmented.
    """

    name: str
    folder: str
    out: Path
    source: Path | None
    stated: tuple[tuple[str, Path], ...]
    origin: str
    key: Key
    engine: Engine


@dataclass(frozen=True)
class Outcome:
    """What became of a study.

    Attributes:
        folder: of its job.
        state: `done`, with results in the folder, or `failed`, with none.
        seconds: it took; None where that is not known.
        code, message, remedy, exit_code: of the refusal, where it failed.
        lesions: how many were found.
        burden: tumor volume / liver volume.
        outputs: SHA-256 of every file by its path in the folder.
    """

    folder: str
    state: Literal["done", "failed"]
    seconds: float | None = None
    code: str | None = None
    message: str | None = None
    remedy: str | None = None
    exit_code: int = 0
    lesions: int | None = None
    burden: float | None = None
    outputs: Mapping[str, str] = field(default_factory=dict)


def run_study(job: Job) -> Outcome:
    """Segment one study, unless its result is there already and every file of it is whole.

    The folder of the study appears whole or not at all. Results of another key that lie there are
    moved to `stale/` first; see `io.stale`.

    Returns:
        The outcome; whatever a study does to this function, it is told here and not raised.
    """
    if (there := finished(job)) is not None:
        return there
    begun = time.perf_counter()
    try:
        made = _segment(job)
    except HeparError as error:
        problem = error
    except MemoryError:
        problem = ResourceExhausted(
            "E_MEMORY",
            "batch",
            "Memory ended.",
            "Use fewer --workers, or a machine with more memory, and run the command again.",
        )
    except Exception as error:
        problem = _bug(job, error)
    else:
        seconds = round(time.perf_counter() - begun, 2)
        return _outcome(job, *made, seconds)
    return failure(job.folder, problem, time.perf_counter() - begun)


def failure(folder: str, error: HeparError, seconds: float | None = None) -> Outcome:
    """The outcome of a study that failed."""
    return Outcome(
        folder,
        "failed",
        None if seconds is None else round(seconds, 2),
        error.code,
        # The name of a file that is no text in any encoding may stand in it.
        error.message.encode("utf-8", "backslashreplace").decode(),
        error.remedy,
        error.exit_code,
    )


def finished(job: Job) -> Outcome | None:
    """The outcome of a result that is there, made from this key, with every file as it was left."""
    place = job.out / job.folder
    record = read_record(place)
    if record is None or record["key"] != vars(job.key):
        return None
    for name, digest in record["files"].items():
        try:
            if sha256_file(place / name) != digest:
                return None
        except OSError:
            return None
    return _outcome(job, record, sha256_file(place / RECORD), _seconds(place))


def _seconds(place: Path) -> float | None:
    """How long a result took, as its provenance says."""
    try:
        return float(json.loads((place / "run.json").read_bytes())["seconds"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def read_record(place: Path) -> dict[str, Any] | None:
    """The record in the folder of a study; None where there is none, or one that is damaged."""
    try:
        data = (place / RECORD).read_bytes()
        record: dict[str, Any] = json.loads(data)
        del record[_SEAL]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    whole = _sealed(record) == data and record.get("schema_version") == _SCHEMA
    return record if whole else None


def _sealed(record: Mapping[str, Any]) -> bytes:
    """A record as it is written, with a hash of itself."""
    text = json.dumps({**record, _SEAL: sha256_json(record)}, indent=2) + "\n"
    return text.encode()


@cache
def loaded(engine: Engine) -> Segmenter:
    """What segments, loaded once a process."""
    return engine.load(engine)


def _segment(job: Job) -> tuple[dict[str, Any], str]:
    place = job.out / job.folder
    segmenter = loaded(job.engine)
    with (
        set_aside(job.out, [job.folder], keep=_holds_more(place)),
        staged_folder(place) as staged,
    ):
        found = segmenter.segment(job.source, staged, dict(job.stated))
        files = sorted(path for path in staged.rglob("*") if path.is_file())
        record = {
            "schema_version": _SCHEMA,
            "name": job.name,
            "origin": job.origin,
            "key": vars(job.key),
            "lesions": len(found.lesions),
            "tumor_burden": found.tumor_burden,
            "files": {p.relative_to(staged).as_posix(): sha256_file(p) for p in files},
        }
        (staged / RECORD).write_bytes(_sealed(record))
        digest = sha256_file(staged / RECORD)
    return record, digest


def _outcome(job: Job, record: Mapping[str, Any], digest: str, seconds: float | None) -> Outcome:
    return Outcome(
        job.folder,
        "done",
        seconds,
        lesions=record["lesions"],
        burden=record["tumor_burden"],
        outputs={**record["files"], RECORD: digest},
    )


def _holds_more(place: Path) -> bool:
    """Whether files lie there that are no results of ours, and so must not be removed."""
    if place.is_file():
        return True
    record = read_record(place)
    ours = {RECORD, *(record["files"] if record else ())}
    return any(
        path.relative_to(place).as_posix() not in ours
        for path in place.rglob("*")
        if not path.is_dir()
    )


def _bug(job: Job, error: Exception) -> HeparError:
    from hepar.io.privacy import scrub  # brings the DICOM reader with it

    paths = [str(path) for path in (job.source, *(p for _, p in job.stated)) if path is not None]
    trace = "".join(traceback.format_exception(error))
    LOG.error("E_INTERNAL: a bug of hepar in study %s\n%s", job.folder, scrub(trace, paths))
    return HeparError(
        "E_INTERNAL",
        "batch",
        scrub(f"{type(error).__name__}: {error}", paths),
        "This is a bug of hepar; please report the trace on stderr.",
    )
