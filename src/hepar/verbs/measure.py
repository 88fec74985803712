"""A patient whose masks are known: `segment` with nothing left to find."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from hepar.verbs.options import (
    Captures,
    Device,
    Dicom,
    Gaps,
    Json,
    LiverMask,
    Model,
    Out,
    Phases,
    Quiet,
    Viewer,
)
from hepar.verbs.patient import segment


def measure(
    study: Annotated[
        Positional[Path],
        arg(metavar="STUDY", help="As `hepar segment` takes it."),
    ],
    mask: Annotated[
        Positional[Path],
        arg(
            metavar="MASK",
            help="DICOM SEG; or NIfTI: 0, 1 liver, 2 tumor, with --liver ids of lesions.",
        ),
    ],
    /,
    *,
    out: Out,
    liver: LiverMask = None,
    phases: Phases = (),
    interpolate_gaps: Gaps = False,
    model: Model = None,
    dicom: Dicom = False,
    captures: Captures = False,
    viewer: Viewer = False,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure the lesions of a mask that was drawn or edited, and write table and report.

    No network looks for liver or tumors. As in `segment` one tells phases and helps to register.
    """
    segment(
        study,
        out=out,
        phases=phases,
        interpolate_gaps=interpolate_gaps,
        liver=mask if liver is None else liver,
        tumor=mask,
        model=model,
        dicom=dicom,
        captures=captures,
        viewer=viewer,
        device=device,
        quiet=quiet,
        as_json=as_json,
    )
