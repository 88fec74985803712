"""Stage 9, on request: what was found as DICOM, for the patient's record: a SEG and an SR.

Both belong to the study that was read: patient and study are copied from it. Both are read back
and compared before they are left. Their UIDs follow from study, model, input and result, so that
the same run replaces its objects and another result never bears their names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import generate_uid

from hepar.errors import HeparError
from hepar.geometry import uncanonical
from hepar.io import dicom_codes as words
from hepar.io.dicom_pixels import quiet
from hepar.io.dicom_regular import onto_frames
from hepar.io.dicom_source import SourceImages, check_uids, source_images, unusable_source
from hepar.io.seg import Maker, Segment, make_seg, read_seg
from hepar.io.sr import Group, read_sr, write_sr
from hepar.render.overlay import COLORS
from hepar.stages.coded_findings import coded_findings
from hepar.stages.stored_voxels import series_of
from hepar.study import LIVER, AlignedStudy, Findings, Frames, LesionMap, LiverCase, Series

SEG, SR = "seg.dcm", "sr.dcm"
# What highdicom and pydicom raise where a value is not what an object may hold.
_UNFIT = (AttributeError, IndexError, KeyError, TypeError, ValueError)


def check_sources(series: Sequence[Series]) -> None:
    """Find out that DICOM output cannot refer to a study before anything is computed.

    Args:
        series: all that may be used.

    Raises:
        UsageError: `E_DICOM_SOURCE`, a series is no DICOM, lies in an archive, its headers lack
            UIDs, or they hold what an object of ours may not repeat.
    """
    check_uids(series)
    with quiet():
        for one in series:
            assert one.frames is not None
            try:
                _trial(_first_two(one.frames))
            except _UNFIT as error:
                raise _unfit(one.verdict.series_id, error) from error


def write_dicom(
    findings: Findings, case: LiverCase, lesions: LesionMap, out_dir: Path
) -> tuple[Path, Path]:
    """Write a Segmentation object and a structured report, and read both back.

    Args:
        findings: the numbers.
        case: the patient; every series has passed `check_sources`.
        lesions: masks.
        out_dir: an existing folder; a staged one, so that nothing is left after an error.

    Returns:
        The files: `seg.dcm` and `sr.dcm`.

    Raises:
        UsageError: `E_DICOM_SOURCE`, the headers of the study do not allow it.
        HeparError: `E_DICOM_READBACK`, what was written does not say what was found.
    """
    reference, *others = _frames(case.aligned)
    labels = on_images(_segment_numbers(findings, lesions), case.aligned, reference)
    seg, sr = out_dir / SEG, out_dir / SR
    with quiet():
        source, further = source_images(reference), [source_images(one) for one in others]
        uid = _uids(findings, source, labels)
        segments = _segments(findings, uid)
        groups = coded_findings(findings, segments)
        maker = _maker(findings.provenance)
        try:
            made = make_seg(
                labels,
                segments,
                source,
                further,
                maker,
                series_uid=uid("segmentation series"),
                instance_uid=uid("segmentation"),
            )
            made.save_as(seg, enforce_file_format=True)
            write_sr(
                sr,
                groups,
                made,
                source,
                further,
                maker,
                series_uid=uid("report series"),
                instance_uid=uid("report"),
            )
        except _UNFIT as error:
            raise _unfit("The study", error) from error
        _check(seg, sr, source, labels, groups)
    return seg, sr


def on_images(labels: NDArray[Any], aligned: AlignedStudy, frames: Frames) -> NDArray[Any]:
    """Labels of the axial reference grid on the images of the reference series themselves.

    Args:
        labels: `(z, y, x)` on `aligned.grid`, of any integer type.
        aligned: the registered phases.
        frames: of the reference series.

    Returns:
        `(n, rows, columns)`: by flips and transposes alone, and at the nearest voxel where the
        volume was resampled because its images lean or lie unevenly.
    """
    turned = uncanonical(labels, aligned.source_grid)
    return turned if frames.on_grid else onto_frames(turned, aligned.source_grid, frames)


def _first_two(frames: Frames) -> Frames:
    return replace(
        frames,
        files=frames.files[:2],
        numbers=frames.numbers[:2],
        origins_mm=frames.origins_mm[:2],
    )


def _trial(frames: Frames) -> None:
    """Make a Segmentation of one pixel an image, and let go of it."""
    labels = np.zeros((len(frames.files), *frames.shape), dtype=np.uint8)
    labels[:, 0, 0] = 1
    liver = _liver(str(generate_uid()))
    maker = Maker("0", "trial", {}, str(generate_uid()))
    uids = {"series_uid": str(generate_uid()), "instance_uid": str(generate_uid())}
    make_seg(labels, [liver], source_images(frames), [], maker, **uids)


def _unfit(whose: str, error: Exception) -> HeparError:
    """The refusal of headers; what highdicom says of them may quote a name and is not passed on."""
    return unusable_source(
        f"The headers of {whose} hold what a DICOM object may not repeat, as a date that is none "
        f"or an unknown character set ({type(error).__name__})."
    )


def _frames(aligned: AlignedStudy) -> list[Frames]:
    """Where the images of each phase lie, those of the reference first."""
    phases = sorted(aligned.volumes, key=lambda phase: phase != aligned.reference)
    series = (series_of(aligned.phased, phase) for phase in phases)
    return [one.frames for one in series if one is not None and one.frames is not None]


def _segment_numbers(findings: Findings, lesions: LesionMap) -> NDArray[Any]:
    """1 for the liver without its lesions, then a number a lesion in the order of the findings."""
    count = 1 + len(findings.lesions)
    table = np.zeros(int(lesions.instances.max(initial=0)) + 1, dtype=np.min_scalar_type(count))
    for number, lesion in enumerate(findings.lesions, start=2):
        table[lesion.id] = number
    numbers = table[lesions.instances]
    numbers[(lesions.instances == 0) & (lesions.label == LIVER)] = 1
    return numbers


def _segments(findings: Findings, uid: Callable[[str], str]) -> tuple[Segment, ...]:
    # A lesion is coded as a lesion and no more: how probable which type is stands in the report.
    found = (
        Segment(
            label=f"Lesion {lesion.id}",
            category=words.ABNORMAL_STRUCTURE,
            kind=words.LESION,
            tracking_id=f"Lesion {lesion.id}",
            tracking_uid=uid(f"lesion {lesion.id}"),
            color=COLORS["lesion"],
            region=words.LIVER,
            given="tumor" in findings.given,
        )
        for lesion in findings.lesions
    )
    return (_liver(uid("liver"), given="liver" in findings.given), *found)


def _liver(uid: str, *, given: bool = False) -> Segment:
    return Segment(
        label="Liver without lesions",
        category=words.ANATOMICAL_STRUCTURE,
        kind=words.LIVER,
        tracking_id="Liver",
        tracking_uid=uid,
        color=COLORS["liver"],
        given=given,
    )


def _uids(findings: Findings, source: SourceImages, labels: NDArray[Any]) -> Callable[[str], str]:
    """UIDs by name, a pure function of study, series, model, input and result."""
    result = hashlib.sha256(findings.model_dump_json(exclude={"provenance"}).encode())
    result.update(np.ascontiguousarray(labels).tobytes())
    hashes = dict(findings.provenance.get("hashes", {}))
    known = (source.study_uid, source.series_uid, result.hexdigest())
    of_run = [*known, *(str(hashes.get(name, "")) for name in ("model", "input"))]
    return lambda name: str(generate_uid(entropy_srcs=["hepar", *of_run, name]))


def _maker(provenance: Mapping[str, Any]) -> Maker:
    hashes = {f"{name}_sha256": str(value) for name, value in provenance["hashes"].items()}
    if "code_sha256" in provenance:
        hashes["code_sha256"] = str(provenance["code_sha256"])
    model = hashes.get("model_sha256", "none")
    device = str(generate_uid(entropy_srcs=["hepar", "device", model]))
    return Maker(str(provenance["hepar"]), model, hashes, device)


def _check(
    seg: Path,
    sr: Path,
    source: SourceImages,
    labels: NDArray[Any],
    groups: tuple[Group, ...],
) -> None:
    """Compare what was written with what was to be written.

    Raises:
        HeparError: `E_DICOM_READBACK`.
    """
    try:
        same = {
            SEG: np.array_equal(read_seg(seg, source, labels.shape), labels),
            SR: read_sr(sr) == groups,
        }
    except _UNFIT as error:
        raise _not_the_same("cannot be read back") from error
    for name, is_so in same.items():
        if not is_so:
            raise _not_the_same(f"of {name} does not say what was found")


def _not_the_same(what: str) -> HeparError:
    return HeparError(
        "E_DICOM_READBACK",
        "dicom_out",
        f"DICOM output {what}.",
        "Run again without --dicom, and report this as a bug.",
    )
