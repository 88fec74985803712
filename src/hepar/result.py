"""What a call of the pipeline returns: findings, and masks as arrays; written only when asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hepar.geometry import uncanonical
from hepar.io.atomic import check_writable, staged_folder
from hepar.io.stale import set_aside
from hepar.provenance import Provenance
from hepar.stages.dicom_out import check_sources, write_dicom
from hepar.stages.report import RESULTS, write_report
from hepar.study import Findings, LesionMap, LiverCase, Volume


@dataclass(frozen=True)
class Result:
    """A patient's findings and everything they were made of.

    Attributes:
        findings: the content of `findings.json`.
        liver: the registered phases (`liver.aligned.volumes`) and the liver on their grid.
        lesions: masks and measurements on the same grid; its boxes count voxels of that grid,
            those of `findings` count voxels of the reference series.
        provenance: of the run.
        files: of the study, relative to it; None where they cannot be listed.
    """

    findings: Findings
    liver: LiverCase
    lesions: LesionMap
    provenance: Provenance
    files: tuple[str, ...] | None = None

    @property
    def segmentation(self) -> Volume:
        """0 background, 1 liver, 2 tumor, on the reference series' voxels as they were read."""
        source = self.liver.aligned.source_grid
        return Volume(uncanonical(self.lesions.label, source), source)

    @property
    def instances(self) -> Volume:
        """The id of each lesion, 0 elsewhere, on the same voxels."""
        source = self.liver.aligned.source_grid
        return Volume(uncanonical(self.lesions.instances, source), source)

    def write(
        self,
        out: Path | str,
        *,
        probabilities: bool = False,
        dicom: bool = False,
        captures: bool = False,
        viewer: bool = False,
    ) -> None:
        """Leave what `hepar segment` leaves: all of it, or nothing.

        Args:
            out: a folder; earlier results in it give way.
            probabilities: also the tumor's probability, where a network found the tumors.
            dicom: also `seg.dcm` and `sr.dcm`, which name the patient.
            captures: also a DICOM picture of each of the largest lesions, likewise.
            viewer: also `viewer.html`.

        Raises:
            HeparError: `E_OUTPUT_PATH`, `E_OUTPUT_WRITE`, `E_VIEWER`; `E_DICOM_SOURCE`, the study
                has no images that DICOM output can refer to.
        """
        check_writable(out)
        if dicom or captures:
            check_sources(self.liver.aligned.phased.study.series)
        with set_aside(out, RESULTS), staged_folder(out) as staged:
            self.leave(
                staged,
                probabilities=probabilities,
                dicom=dicom,
                captures=captures,
                viewer=viewer,
            )

    def leave(
        self, staged: Path, *, probabilities: bool, dicom: bool, captures: bool, viewer: bool
    ) -> None:
        """`write` into an existing folder that nobody sees yet, where all was checked before."""
        case = (self.findings, self.liver, self.lesions)
        objects = write_dicom(*case, staged, objects=dicom, captures=captures)
        write_report(
            *case,
            staged,
            probabilities=probabilities,
            viewer=viewer,
            run=self.provenance.as_dict(),
            files=self.files,
            beside=objects,
        )
