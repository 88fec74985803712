"""A stack of images decoded: uncompressed ones here, compressed ones in a process of their own.

Native decoders crash on what they were not written for. In a process with limits of memory and time
that costs one series, and nothing else (`E_DECODE`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from hepar.errors import InputRefused, ResourceExhausted
from hepar.io.atomic import private_folder
from hepar.io.dicom_headers import Header, Image
from hepar.io.dicom_pixels import fill, quiet
from hepar.io.lossless_jpeg import SYNTAXES as BY_GDCM
from hepar.io.refusal import REMEDIES, refuse

_MAX_BYTES = 24 * 2**30
_CHILD_BYTES = 6 * 2**30
_CHILD_SECONDS, _SECONDS_AN_IMAGE = 60, 2


def refuse_undecodable(headers: Sequence[Header]) -> None:
    """Refuse transfer syntaxes that cannot be decoded here.

    Raises:
        InputRefused: `E_UNSUPPORTED_TS`.
    """
    for syntax in sorted({h.syntax for h in headers if h.syntax}):
        if not is_decodable(UID(syntax)):
            name = UID(syntax).name
            label = name if name == syntax else f"{name} ({syntax})"
            raise refuse("E_UNSUPPORTED_TS", f"the transfer syntax {label} is not decoded.")


def is_decodable(syntax: UID) -> bool:
    """Whether images of a transfer syntax can be decoded here."""
    try:
        return syntax in BY_GDCM or get_decoder(syntax).is_available
    except NotImplementedError:
        return False


def read_hu(headers: Sequence[Header]) -> tuple[NDArray[np.int16], tuple[str, ...]]:
    """Decode a stack.

    Args:
        headers: images of one matrix, in slice order.

    Returns:
        HU `(z, y, x)`, below -1024 made -1024, and codes of what was noticed.

    Raises:
        InputRefused: `E_TRUNCATED`, `E_DECODE`, `E_MALFORMED`, `E_BAD_RESCALE`,
            `E_HU_IMPLAUSIBLE` or `E_MEMORY`, naming the file.
        ResourceExhausted: `E_OUTPUT_WRITE`: no room for the process to work in.
    """
    first = headers[0]
    shape = (len(headers), first.rows, first.columns)
    size = 2 * int(np.prod(shape, dtype=np.int64))
    if size > _MAX_BYTES:
        raise refuse("E_MEMORY", f"the series declares {size / 2**30:.1f} GiB.")
    if not any(h.syntax and UID(h.syntax).is_encapsulated for h in headers):
        volume = np.empty(shape, dtype=np.int16)
        return volume, fill(volume, headers)
    try:
        with private_folder() as folder:
            return _in_child(headers, shape, folder)
    except OSError as error:
        raise ResourceExhausted(
            "E_OUTPUT_WRITE",
            "read",
            f"the images cannot be decoded in a temporary folder: {error.strerror}.",
            "Free some disk, or set TMPDIR to a folder with room.",
        ) from error


def _in_child(
    headers: Sequence[Header], shape: tuple[int, int, int], folder: Path
) -> tuple[NDArray[np.int16], tuple[str, ...]]:
    seconds = _CHILD_SECONDS + _SECONDS_AN_IMAGE * len(headers)
    names = [field.name for field in fields(Image)]
    images = [{**{name: getattr(h, name) for name in names}, "path": str(h.path)} for h in headers]
    request = {"shape": shape, "seconds": seconds, "images": images}
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    package = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(folder)],
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=2 * seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise refuse("E_DECODE", f"the decoder did not end within {2 * seconds} s.") from None
    answer = folder / "answer.json"
    if done.returncode != 0 or not answer.exists():
        raise refuse("E_DECODE", f"the decoder died (exit code {done.returncode}) on the images.")
    told: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    if "code" in told:
        code = told["code"] if told["code"] in REMEDIES else "E_DECODE"
        raise refuse(code, told["message"])
    volume = np.fromfile(folder / "volume", dtype=np.int16).reshape(shape)
    return volume, tuple(told["notes"])


def main(folder: Path) -> None:
    """Decode what `request.json` in a folder asks for; `answer.json` there says how it went."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    shape = tuple(request["shape"])
    _limit(request["seconds"], _CHILD_BYTES + 4 * int(np.prod(shape, dtype=np.int64)))
    images = []
    for fields_of in request["images"]:
        rescale = fields_of.pop("rescale")
        path = Path(fields_of.pop("path"))
        images.append(Image(path=path, rescale=tuple(rescale) if rescale else None, **fields_of))
    volume = np.memmap(folder / "volume", dtype=np.int16, mode="w+", shape=shape)
    answer: dict[str, Any]
    try:
        with quiet():
            answer = {"notes": fill(volume, images)}
    except InputRefused as error:
        answer = {"code": error.code, "message": error.message}
    volume.flush()
    (folder / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


def _limit(seconds: int, size: int) -> None:
    """Bound this process's processor time and memory where the system can."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds * 2, seconds * 2))
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
