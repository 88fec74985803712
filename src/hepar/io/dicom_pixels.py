"""Stored pixels to HU, image by image: each has its own rescale and its own padding.

Uncompressed pixels are read here. Compressed ones go through native decoders, which may crash or
never end on damaged data: they run in a process of their own (`dicom_decoding`).
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import iter_pixels
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from hepar.errors import InputRefused
from hepar.io.dicom_headers import Image
from hepar.io.hounsfield import AIR_HU, to_int16
from hepar.io.lossless_jpeg import SYNTAXES as BY_GDCM
from hepar.io.lossless_jpeg import decode_frame
from hepar.io.refusal import refuse

_MAX_THREADS = 4
_MAX_SLOPE = 100.0
_PIXELS = (0x7FE0, 0x0010)
_REMAINDER_BYTES = 4096
# A declared padding value inside this range would erase tissue, so it is not believed.
_TISSUE_HU = (-1000.0, 3000.0)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom's remarks on unusual values, which are judged here, out of the user's way.

    They quote the values, which may be a name: they are not logged either.
    """
    logger = logging.getLogger("pydicom")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


def digests() -> Callable[[Image], str]:
    """A function that gives the SHA-256 of an image's stored pixels.

    That of a frame is its file's, with its number; each file is read once.
    """

    @cache
    def of_file(path: Path) -> str:
        return hashlib.sha256(bytes(_open(path).PixelData)).hexdigest()

    return lambda image: of_file(image.path) + ("" if image.frame is None else f"#{image.frame}")


def fill(volume: NDArray[np.int16], headers: Sequence[Image]) -> tuple[str, ...]:
    """Decode images into a volume.

    Args:
        volume: `(z, y, x)`, written to; below -1024 is made -1024.
        headers: of one matrix, in slice order.

    Returns:
        Codes of what was noticed.

    Raises:
        InputRefused: `E_TRUNCATED`, `E_DECODE`, `E_MALFORMED`, `E_BAD_RESCALE` or
            `E_HU_IMPLAUSIBLE`, naming the file.
    """
    notes: set[str] = set()
    by_file: dict[str, list[int]] = {}
    for index, header in enumerate(headers):
        by_file.setdefault(str(header.path), []).append(index)

    def load(indices: list[int]) -> None:
        first = headers[indices[0]]
        try:
            data = _open(first.path)
            order = sorted(indices, key=lambda k: headers[k].frame or 0)
            frames = _stored(data, first, [headers[k].frame or 0 for k in order])
            for k, stored in zip(order, frames, strict=True):
                volume[k], said = _hu(data, headers[k], stored)
                notes.update(said)
        except InputRefused:
            raise
        except MemoryError as error:
            raise refuse("E_MEMORY", f"{first.path.name} needs too much memory.") from error
        except Exception as error:
            name = first.path.name
            raise refuse("E_MALFORMED", f"{name}: {type(error).__name__}: {error}.") from error

    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        for _ in pool.map(load, by_file.values()):
            pass
    return tuple(sorted(notes))


def _open(path: Path) -> Dataset:
    name = path.name
    try:
        data = pydicom.dcmread(path, force=True)
    except (EOFError, OSError) as error:
        raise refuse("E_TRUNCATED", f"{name} ends early ({error}).") from error
    except Exception as error:
        raise refuse("E_MALFORMED", f"{name}: {type(error).__name__}: {error}.") from error
    if "PixelData" not in data:
        raise refuse("E_TRUNCATED", f"{name} ends before its pixels.")
    item = data.get_item("PixelData")
    declared, held = getattr(item, "length", None), getattr(item, "value", None)
    if declared not in (None, 0xFFFFFFFF) and held is not None and len(held) != declared:
        # pydicom keeps a short value as if it were whole.
        raise refuse("E_TRUNCATED", f"{name} holds {len(held)} of {declared} pixel bytes.")
    _refuse_remainder(path, data, item)
    try:
        # pydicom parses an element when it is first looked at.
        data["PixelData"]
    except Exception as error:
        raise refuse("E_MALFORMED", f"{name}: {error}.") from error
    if not getattr(data.file_meta, "TransferSyntaxUID", None):
        # Files without a meta header are uncompressed; how they are written shows in their parse.
        implicit = bool(data.original_encoding[0])
        data.file_meta.TransferSyntaxUID = (
            ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        )
    return data


def _refuse_remainder(path: Path, data: Dataset, pixels: Any) -> None:
    """Refuse a file in which bytes that are no element follow the pixels: they were shifted.

    Raises:
        InputRefused: `E_MALFORMED`.
    """
    syntax = str(getattr(data.file_meta, "TransferSyntaxUID", ""))
    length, start = getattr(pixels, "length", None), getattr(pixels, "value_tell", None)
    if length in (None, 0xFFFFFFFF) or start is None or syntax == DeflatedExplicitVRLittleEndian:
        return
    with path.open("rb") as stream:
        stream.seek(start + length)
        rest = stream.read(_REMAINDER_BYTES)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    # Some writers fill a file up with zeros.
    if rest and any(rest) and (len(rest) < 8 or struct.unpack(f"{order}HH", rest[:4]) <= _PIXELS):
        raise refuse("E_MALFORMED", f"{path.name} goes on after its pixels.")


def _stored(data: Dataset, header: Image, frames: Sequence[int]) -> Iterator[NDArray[Any]]:
    """Stored values `(y, x)` of frames of one file, sign-extended from BitsStored."""
    name = header.path.name
    syntax = UID(str(data.file_meta.TransferSyntaxUID))
    whole = int(data.get("NumberOfFrames") or 1)
    need = header.rows * header.columns * whole * (int(data.get("BitsAllocated") or 16) // 8)
    if not syntax.is_encapsulated and len(data.PixelData) < need:
        raise refuse("E_TRUNCATED", f"{name} holds {len(data.PixelData)} of {need} pixel bytes.")
    try:
        if syntax in BY_GDCM:
            decoded: Iterator[Any] = (decode_frame(data, frame) for frame in frames)
        elif whole == 1:
            decoded = iter((data.pixel_array,))
        else:
            decoded = iter_pixels(data, indices=list(frames))
        for stored in decoded:
            if stored.shape != (header.rows, header.columns):
                raise refuse("E_DECODE", f"{name} decodes to {stored.shape}, not its own matrix.")
            yield np.asarray(stored)
    except InputRefused:
        raise
    except Exception as error:
        # Decoders raise whatever their libraries do; all of it means that no pixel can be trusted.
        raise refuse("E_DECODE", f"{name}: {error}.") from error


def _hu(data: Dataset, header: Image, stored: NDArray[Any]) -> tuple[NDArray[np.int16], set[str]]:
    name = header.path.name
    slope, intercept, notes = _rescale(data, header)
    if str(data.get("PhotometricInterpretation", "")) == "MONOCHROME1":
        notes.add("W_MONOCHROME1")  # A display rule: HU stay as they are.
    if str(data.get("LossyImageCompression", "")) == "01":
        notes.add("W_LOSSY")
    if not header.marked:
        notes.add("W_NO_PREAMBLE")
    if slope == 1.0 and intercept.is_integer() and abs(intercept) < 2**24:
        hu: NDArray[Any] = stored.astype(np.int32) + np.int32(intercept)
    else:
        hu = stored.astype(np.float64) * slope + intercept
    padding = _padding(data, stored)
    if padding is not None and padding.any():
        declared = float(hu[padding].flat[0])
        if not _TISSUE_HU[0] < declared < _TISSUE_HU[1]:
            hu[padding] = AIR_HU
    return to_int16(hu, name), notes


def _number(value: object, keyword: str, name: str) -> float | None:
    try:
        if value is None or value == "":
            return None
        number = float(str(value))
    except (TypeError, ValueError) as error:
        raise refuse("E_BAD_RESCALE", f"{name} has a {keyword} that is no number.") from error
    if not math.isfinite(number):
        raise refuse("E_BAD_RESCALE", f"{name} has a {keyword} of {number}.")
    return number


def _rescale(data: Dataset, header: Image) -> tuple[float, float, set[str]]:
    name = header.path.name
    keys = ("RescaleSlope", "RescaleIntercept")
    try:
        values = header.rescale or tuple(data.get(key) for key in keys)
    except (TypeError, ValueError) as error:
        raise refuse("E_BAD_RESCALE", f"{name} has a rescale that is no number.") from error
    slope, intercept = (_number(value, key, name) for key, value in zip(keys, values, strict=True))
    if slope is not None and not 0 < slope <= _MAX_SLOPE:
        raise refuse("E_BAD_RESCALE", f"{name} has a RescaleSlope of {slope:g}.")
    notes = {"W_NO_RESCALE"} if slope is None or intercept is None else set()
    # Without an intercept the values may be HU already; the plausibility gate decides.
    return slope or 1.0, intercept or 0.0, notes


def _padding(data: Dataset, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    try:
        value = int(data["PixelPaddingValue"].value)
    except (KeyError, TypeError, ValueError):
        return None
    try:
        limit = int(data["PixelPaddingRangeLimit"].value)
    except (KeyError, TypeError, ValueError):
        limit = value
    low, high = min(value, limit), max(value, limit)
    return np.asarray((stored >= low) & (stored <= high))
