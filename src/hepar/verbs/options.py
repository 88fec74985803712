"""Flags that mean the same under every verb."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import UseAppendAction, arg

Out = Annotated[Path, arg(aliases=["-o"], help="Folder for the results.")]
Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"], arg(aliases=["-d"], help="Where networks run.")
]
Quiet = Annotated[bool, arg(aliases=["-q"], help="No progress on stderr.")]
Json = Annotated[bool, arg(name="json", help="One JSON document on stdout.")]
Phases = Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(
        name="phase",
        metavar="PHASE=PATH",
        help="State a phase: nc, art, pv or dl, and its series; FILE#1 is volume 1 of a 4D file.",
    ),
]
Gaps = Annotated[bool, arg(help="Make up single lost slices from their neighbors, and say which.")]
Model = Annotated[Path | None, arg(metavar="DIR", help="Model folder; the shipped one by default.")]
Probabilities = Annotated[
    bool, arg(help="Also write the tumor probability, and where the network is unsure.")
]
Dicom = Annotated[
    bool,
    arg(help="Also write seg.dcm and sr.dcm, which belong to the study and name the patient."),
]
Captures = Annotated[
    bool,
    arg(help="Also write DICOM pictures of the largest lesions, for viewers without SEG and SR."),
]
Viewer = Annotated[
    bool, arg(help="Also write viewer.html, one file to scroll through the images in a browser.")
]
LiverMask = Annotated[
    Path | None,
    arg(
        metavar="MASK",
        help="The liver, if it is known: NIfTI (0 and 1, or a label map) or DICOM SEG.",
    ),
]
Overrides = Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(name="set", metavar="KEY=VALUE", help="Change a value of the recipe: schedule.steps=50."),
]
