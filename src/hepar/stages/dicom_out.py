"""Stage 9, on request: what was found as DICOM, for the patient's record: SEG, SR and pictures.

All belong to the study that was read: patient and study are copied from it. All are read back
and compared before they are left. Their UIDs follow from study, model, input and result, so that
the same run replaces its objects and another result never bears their names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import generate_uid

from hepar.errors import HeparError
from hepar.geometry import uncanonical
from hepar.io import dicom_codes as codes
from hepar.io.capture import Capture, read_capture, write_capture
from hepar.io.dicom_origin import Maker, Origin
from hepar.io.dicom_pixels import quiet
from hepar.io.dicom_regular import onto_frames
from hepar.io.dicom_source import SourceImages, check_uids, source_images, unusable_source
from hepar.io.seg import Segment, make_seg, read_seg
from hepar.io.sr import read_sr, write_sr
from hepar.render.overlay import COLORS, above_words
from hepar.render.pictures import lesion_figures, lesion_slice
from hepar.stages.coded_findings import coded_findings
from hepar.stages.stored_voxels import may_show_names, series_of
from hepar.study import LIVER, AlignedStudy, Findings, Frames, LesionMap, LiverCase, Series

SEG, SR, CAPTURES = "seg.dcm", "sr.dcm", "captures"
# What highdicom and pydicom raise where a value is not what an object may hold.
_UNFIT = (AttributeError, IndexError, KeyError, TypeError, ValueError)


def check_sources(series: Sequence[Series]) -> None:
    """Find out that DICOM output cannot refer to a study before anything is computed.

    Args:
        series: all that may be used.

    Raises:
        UsageError: `E_DICOM_SOURCE`, a series is no DICOM, its archive is closed, its headers lack
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
    findings: Findings,
    case: LiverCase,
    lesions: LesionMap,
    out_dir: Path,
    *,
    objects: bool = True,
    captures: bool = False,
) -> tuple[Path, ...]:
    """Write what was found as DICOM, and read it back.

    Args:
        findings: the numbers.
        case: the patient; every series has passed `check_sources`.
        lesions: masks.
        out_dir: an existing folder; a staged one, so that nothing is left after an error.
        objects: write a Segmentation object and a structured report.
        captures: write a picture a lesion, of the largest ones.

    Returns:
        The files: `seg.dcm` and `sr.dcm`; those of `captures`.

    Raises:
        UsageError: `E_DICOM_SOURCE`, the headers of the study do not allow it.
        HeparError: `E_DICOM_READBACK`, what was written does not say what was found.
    """
    if not (objects or captures):
        return ()
    reference, *others = _frames(case.aligned)
    labels = on_images(_segment_numbers(findings, lesions), case.aligned, reference)
    with quiet():
        source, further = source_images(reference), tuple(map(source_images, others))
        uid = _uids(findings, source, labels)
        origin = Origin(source, further, _maker(findings.provenance), uid)
        try:
            written = _write_objects(findings, labels, origin, out_dir) if objects else ()
            if captures:
                written += _write_captures(case, lesions, origin, out_dir / CAPTURES)
        except _UNFIT as error:
            raise _unfit("The study", error) from error
    return written


def _write_objects(
    findings: Findings, labels: NDArray[Any], origin: Origin, out_dir: Path
) -> tuple[Path, ...]:
    seg, sr = out_dir / SEG, out_dir / SR
    segments = _segments(findings, origin.uid)
    groups = coded_findings(findings, segments)
    made = make_seg(labels, segments, origin)
    made.save_as(seg, enforce_file_format=True)
    write_sr(sr, groups, made, origin)
    _check(SEG, lambda: np.array_equal(read_seg(seg, origin.source, labels.shape), labels))
    _check(SR, lambda: read_sr(sr) == groups)
    return seg, sr


def _write_captures(
    case: LiverCase, lesions: LesionMap, origin: Origin, folder: Path
) -> tuple[Path, ...]:
    """A picture a lesion, largest first; no folder where there is no lesion."""
    aligned, written = case.aligned, []
    remark = f"{origin.maker.name} {origin.maker.version}, research use only, not for diagnosis"
    by_id = {lesion.id: lesion for lesion in lesions.lesions}
    for number, figure in enumerate(lesion_figures(case, lesions), start=1):
        assert figure.lesion_id is not None
        words = figure.caption.replace("\N{MINUS SIGN}", "-")
        picture = above_words(figure.picture, (words, remark))
        z = lesion_slice(lesions, by_id[figure.lesion_id])
        middle = np.argwhere(lesions.instances[z] == figure.lesion_id).mean(axis=0)
        place = aligned.grid.index_to_world(np.array([z, *middle]))
        capture = Capture(
            picture.rgb(),
            f"{words}: every phase on the voxels of the reference, liver and lesions outlined",
            tuple(
                images.places[_nearest(frames, place)]
                for images, frames in zip(
                    (origin.source, *origin.further), _frames(aligned), strict=True
                )
            ),
            may_show_names(aligned),
        )
        folder.mkdir(exist_ok=True)
        path = folder / f"{figure.name}.dcm"
        write_capture(path, capture, origin, number)
        _check(f"{CAPTURES}/{path.name}", partial(_same_picture, path, capture))
        written.append(path)
    return tuple(written)


def _same_picture(path: Path, capture: Capture) -> bool:
    return np.array_equal(read_capture(path), capture.rgb)


def _nearest(frames: Frames, place_mm: NDArray[np.float64]) -> int:
    """The image nearest to a place."""
    return int(np.abs((frames.origins_mm - place_mm) @ frames.axes[:, 0]).argmin())


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
    origin = Origin(
        source_images(frames),
        (),
        Maker("0", "trial", {}, str(generate_uid())),
        lambda name: str(generate_uid()),
    )
    make_seg(labels, [_liver(str(generate_uid()))], origin)


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
            category=codes.ABNORMAL_STRUCTURE,
            kind=codes.LESION,
            tracking_id=f"Lesion {lesion.id}",
            tracking_uid=uid(f"lesion {lesion.id}"),
            color=COLORS["lesion"],
            region=codes.LIVER,
            given="tumor" in findings.given,
        )
        for lesion in findings.lesions
    )
    return (_liver(uid("liver"), given="liver" in findings.given), *found)


def _liver(uid: str, *, given: bool = False) -> Segment:
    return Segment(
        label="Liver without lesions",
        category=codes.ANATOMICAL_STRUCTURE,
        kind=codes.LIVER,
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


def _check(name: str, is_the_same: Callable[[], bool]) -> None:
    """Compare what was written with what was to be written.

    Raises:
        HeparError: `E_DICOM_READBACK`.
    """
    try:
        if not is_the_same():
            raise _not_the_same(f"of {name} does not say what was found")
    except _UNFIT as error:
        raise _not_the_same("cannot be read back") from error


def _not_the_same(what: str) -> HeparError:
    return HeparError(
        "E_DICOM_READBACK",
        "dicom_out",
        f"DICOM output {what}.",
        "Run again without --dicom and --captures, and report this as a bug.",
    )
