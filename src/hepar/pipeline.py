"""OPEN FIRST: the method, in the order it runs. Each stage is the file of its name in `stages/`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hepar.infer.bundle import Bundle
from hepar.infer.tiling import Tiling
from hepar.io.atomic import check_writable, staged_folder
from hepar.io.ingest import listing
from hepar.io.privacy import public_command
from hepar.io.stale import set_aside
from hepar.provenance import Provenance, sha256_json
from hepar.stages.diagnose import diagnose
from hepar.stages.dicom_out import check_sources, write_dicom
from hepar.stages.harmonize import harmonize
from hepar.stages.liver import find_liver
from hepar.stages.phases import assign_phases
from hepar.stages.read import read_study
from hepar.stages.register import register
from hepar.stages.report import RESULTS, compose, input_sha256, write_report
from hepar.stages.tumor import find_lesions
from hepar.study import Diagnosis, Findings, LesionMap, LiverCase, Phase


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

    def run(
        self,
        source: Path | None,
        stated: Mapping[Phase, Path] | None = None,
        *,
        uncertainty: bool = False,
        dicom: bool = False,
    ) -> Case:
        """Read a study and find what is in it.

        Args:
            source: DICOM folder, NIfTI file, or folder of either; None when all phases are stated.
            stated: series whose phase the user said.
            uncertainty: also say where the tumor network doubts its answer.
            dicom: refuse, before anything is computed, what DICOM output cannot refer to.

        Raises:
            HeparError: the study, or the model, cannot be used.
        """
        begin = self.progress
        begin("read the study")
        # every series with a verdict
        study = read_study(source, stated, interpolate_gaps=self.interpolate_gaps)
        if dicom:
            check_sources(study.series)
        begin("tell the phases")
        finder = self.bundle.model("liver")
        phased = assign_phases(study, finder, tiling=self.tiling)  # phase, confidence, reason
        begin("register " + ", ".join(phased.volumes))
        # one grid; a quality a phase
        aligned = register(harmonize(phased), finder)
        begin("find the liver")
        liver = find_liver(aligned, finder, tiling=self.tiling)
        begin("find lesions")
        liver, lesions = find_lesions(
            liver, self.bundle.model("tumor"), tiling=self.tiling, uncertainty=uncertainty
        )
        begin("judge lesions")
        return Case(liver, lesions, diagnose(liver, lesions, self.bundle.classifier()))

    def segment(
        self,
        source: Path | None,
        out: Path,
        *,
        stated: Mapping[Phase, Path] | None = None,
        probabilities: bool = False,
        dicom: bool = False,
    ) -> Findings:
        """Run, and leave the results in `out`: all of them, or nothing, but never older ones."""
        check_writable(out)
        settings = {
            "phases": sorted(stated or ()),
            "probabilities": probabilities,
            "interpolate_gaps": self.interpolate_gaps,
        }
        hashes = {"model": self.bundle.sha256, "settings": sha256_json(settings)}
        provenance = Provenance.begin(
            public_command(sys.argv), device=self.tiling.device, hashes=hashes
        )
        with set_aside(out, RESULTS):
            case = self.run(source, stated, uncertainty=probabilities, dicom=dicom)
            provenance = provenance.of_input(input_sha256(case.liver.aligned.phased))
            findings = compose(case.liver, case.lesions, case.diagnosis, provenance)
            self.progress("write the report")
            with staged_folder(out) as staged:
                objects = write_dicom(findings, case.liver, case.lesions, staged) if dicom else ()
                write_report(
                    findings,
                    case.liver,
                    case.lesions,
                    staged,
                    probabilities=probabilities,
                    run=provenance.as_dict(),
                    files=listing(source, stated),
                    beside=objects,
                )
        return findings
