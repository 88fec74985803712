"""OPEN FIRST: the method, in the order it runs. Each stage is the file of its name in `stages/`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from hepar.infer.bundle import Bundle, default_bundle_path, load_bundle
from hepar.infer.device import pick_device
from hepar.infer.tiling import Tiling
from hepar.io.atomic import check_writable, staged_folder
from hepar.io.given_masks import Given, read_given
from hepar.io.ingest import listing
from hepar.io.privacy import public_command
from hepar.io.stale import set_aside
from hepar.provenance import Provenance, sha256_json
from hepar.render.viewer import check_viewer
from hepar.result import Result
from hepar.stages.arrays import Images, study_of
from hepar.stages.diagnose import diagnose
from hepar.stages.dicom_out import check_sources
from hepar.stages.given import check_belongs, drawn_on, given_lesions, given_liver
from hepar.stages.harmonize import harmonize
from hepar.stages.liver import find_liver
from hepar.stages.phases import assign_phases
from hepar.stages.read import read_study
from hepar.stages.register import register
from hepar.stages.report import RESULTS, compose, input_sha256
from hepar.stages.tumor import find_lesions
from hepar.study import Diagnosis, Findings, LesionMap, LiverCase, Phase, Volume


@dataclass(frozen=True)
class Case:
    """A patient after every stage but the report."""

    liver: LiverCase
    lesions: LesionMap
    diagnosis: Diagnosis


@dataclass(frozen=True)
class Pipeline:
    """A study in, findings out.

    Attributes:
        bundle: the models.
        tiling: device, memory and speed of the networks.
        progress: told the name of each stage as it begins.
        interpolate_gaps: whether single lost slices may be made up from their neighbors.
    """

    bundle: Bundle
    tiling: Tiling = field(default_factory=Tiling)
    progress: Callable[[str], None] = lambda stage: None
    interpolate_gaps: bool = False

    @staticmethod
    def load(folder: Path | str | None = None, *, device: str = "auto") -> Pipeline:
        """Load a model, to be called with one study after another.

        Args:
            folder: model folder; the shipped one by default.
            device: `auto`, `cpu`, `cuda` or `mps`.

        Raises:
            UsageError: `E_DEVICE`.
            ModelIntegrityError: as `load_bundle`.
        """
        bundle = load_bundle(folder or default_bundle_path())
        return Pipeline(bundle, Tiling(device=pick_device(device)))

    def __call__(
        self,
        study: Path | str | Images,
        *,
        liver: Path | str | Volume | None = None,
        tumor: Path | str | Volume | None = None,
        uncertainty: bool = False,
    ) -> Result:
        """Find what is in a study, or measure what is given, and write nothing.

        Args:
            study: what `hepar segment` takes, or HU by phase.
            liver: a mask that replaces the finding of the liver; `read_given` says what it holds.
            tumor: a mask that replaces the finding of tumors; the same object or path as `liver`
                for a label map of both.
            uncertainty: also say where the tumor network doubts its answer.

        Raises:
            HeparError: the study, a mask or the model cannot be used.
        """
        given = read_given(liver, tumor)
        source = Path(study) if isinstance(study, str) else study
        provenance = self._provenance((), {"uncertainty": uncertainty}, given)
        case = self.run(source, uncertainty=uncertainty, given=given)
        files = None if isinstance(source, Mapping) else listing(source)
        return _result(case, provenance, files)

    def run(
        self,
        source: Path | Images | None,
        stated: Mapping[Phase, Path] | None = None,
        *,
        uncertainty: bool = False,
        given: Given | None = None,
        dicom: bool = False,
        unpacked: ExitStack | None = None,
    ) -> Case:
        """Read a study and find what is in it.

        Args:
            source: DICOM folder, NIfTI file, or folder of either, or HU by phase; None when all
                phases are stated.
            stated: series whose phase the user said.
            uncertainty: also say where the tumor network doubts its answer.
            given: masks that are not to be sought.
            dicom: refuse, before anything is computed, what DICOM output cannot refer to.
            unpacked: keeps what archives hold, as `read_study` says.

        Raises:
            HeparError: the study, or the model, cannot be used.
        """
        begin, given = self.progress, given or Given()
        begin("read the study")
        # every series with a verdict
        if isinstance(source, Mapping):
            study = study_of(source)
        else:
            study = read_study(
                source, stated, interpolate_gaps=self.interpolate_gaps, unpacked=unpacked
            )
        if dicom:
            check_sources(study.series)
        check_belongs(study.series, given)
        begin("tell the phases")
        finder = self.bundle.model("liver")
        phased = assign_phases(study, finder, tiling=self.tiling)  # phase, confidence, reason
        phased = drawn_on(phased, given)
        begin("register " + ", ".join(phased.volumes))
        # one grid; a quality a phase
        aligned = register(harmonize(phased), finder)
        if given.liver is None:
            begin("find the liver")
            liver = find_liver(aligned, finder, tiling=self.tiling)
        else:
            begin("take the given liver")
            liver = given_liver(aligned, given.liver)
        if given.tumor is None:
            begin("find lesions")
            tumor = self.bundle.model("tumor")
            liver, lesions = find_lesions(liver, tumor, tiling=self.tiling, uncertainty=uncertainty)
        else:
            begin("measure the given lesions")
            liver, lesions = given_lesions(liver, given)
        begin("judge lesions")
        return Case(liver, lesions, diagnose(liver, lesions, self.bundle.classifier()))

    def segment(
        self,
        source: Path | None,
        out: Path,
        *,
        stated: Mapping[Phase, Path] | None = None,
        probabilities: bool = False,
        given: Given | None = None,
        dicom: bool = False,
        captures: bool = False,
        viewer: bool = False,
    ) -> Findings:
        """Run, and leave the results in `out`: all of them, or nothing, but never older ones."""
        check_writable(out)
        if viewer:
            check_viewer()
        settings = {"phases": sorted(stated or ()), "probabilities": probabilities}
        provenance = self._provenance(public_command(sys.argv), settings, given or Given())
        with set_aside(out, RESULTS), ExitStack() as unpacked:
            case = self.run(
                source,
                stated,
                uncertainty=probabilities,
                given=given,
                dicom=dicom or captures,
                unpacked=unpacked,
            )
            result = _result(case, provenance, listing(source, stated))
            self.progress("write the report")
            with staged_folder(out) as staged:
                result.leave(
                    staged,
                    probabilities=probabilities,
                    dicom=dicom,
                    captures=captures,
                    viewer=viewer,
                )
        return result.findings

    def _provenance(
        self, command: tuple[str, ...], settings: Mapping[str, object], given: Given
    ) -> Provenance:
        """The record of a run that begins: its model, settings and given masks by their hashes."""
        settings = {**settings, "interpolate_gaps": self.interpolate_gaps}
        hashes = {"model": self.bundle.sha256, "settings": sha256_json(settings), **given.hashes}
        return Provenance.begin(command, device=self.tiling.device, hashes=hashes)


def _result(case: Case, provenance: Provenance, files: tuple[str, ...] | None) -> Result:
    provenance = provenance.of_input(input_sha256(case.liver.aligned.phased))
    findings = compose(case.liver, case.lesions, case.diagnosis, provenance)
    return Result(findings, case.liver, case.lesions, provenance, files)
