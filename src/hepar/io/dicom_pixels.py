"""Stored pixels to HU, slice by slice: each has its own rescale and its own padding."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import get_decoder
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from hepar.errors import InputRefused
from hepar.io.dicom_headers import Header
from hepar.io.hounsfield import AIR_HU, to_int16
from hepar.io.refusal import refuse

_MAX_THREADS = 4
_MAX_SLOPE = 100.0
_MAX_BYTES = 24 * 2**30
# A declared padding value inside this range would erase tissue, so it is not believed.
_TISSUE_HU = (-1000.0, 3000.0)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom's remarks on unusual values, which are judged here, out of the user's way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def digest(header: Header) -> str:
    """SHA-256 of a file's stored pixels."""
    data = _open(header)
    return hashlib.sha256(bytes(data.PixelData)).hexdigest()


def refuse_undecodable(headers: Sequence[Header]) -> None:
    """Refuse transfer syntaxes that cannot be decoded here.

    Raises:
        InputRefused: `E_UNSUPPORTED_SYNTAX`.
    """
    for syntax in sorted({h.syntax for h in headers if h.syntax}):
        try:
            usable = get_decoder(UID(syntax)).is_available
        except NotImplementedError:
            usable = False
        if not usable:
            name = UID(syntax).name
            label = name if name == syntax else f"{name} ({syntax})"
            raise refuse("E_UNSUPPORTED_SYNTAX", f"the transfer syntax {label} is not decoded.")


def read_hu(headers: Sequence[Header]) -> tuple[NDArray[np.int16], tuple[str, ...]]:
    """Decode a stack.

    Args:
        headers: single-frame images of one matrix, in slice order.

    Returns:
        HU `(z, y, x)`, below -1024 made -1024, and notes on rescale or photometry.

    Raises:
        InputRefused: `E_TRUNCATED`, `E_DECODE`, `E_MALFORMED`, `E_BAD_RESCALE`,
            `E_HU_IMPLAUSIBLE` or `E_MEMORY`, naming the file.
    """
    first = headers[0]
    size = 2 * len(headers) * first.rows * first.columns
    if size > _MAX_BYTES:
        raise refuse("E_MEMORY", f"the series declares {size / 2**30:.1f} GiB.")
    volume = np.empty((len(headers), first.rows, first.columns), dtype=np.int16)
    notes: set[str] = set()

    def load(index: int) -> None:
        try:
            volume[index], said = _slice_hu(headers[index])
        except InputRefused:
            raise
        except Exception as error:
            name = headers[index].path.name
            raise refuse("E_MALFORMED", f"{name}: {type(error).__name__}: {error}.") from error
        notes.update(said)

    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        for _ in pool.map(load, range(len(headers))):
            pass
    return volume, tuple(sorted(notes))


def _open(header: Header) -> Dataset:
    name = header.path.name
    try:
        data = pydicom.dcmread(header.path, force=True)
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


def _slice_hu(header: Header) -> tuple[NDArray[np.int16], set[str]]:
    data = _open(header)
    name = header.path.name
    stored = _decoded(data, header)
    slope, intercept, notes = _rescale(data, name)
    if str(data.get("PhotometricInterpretation", "")) == "MONOCHROME1":
        notes.add("W_MONOCHROME1")  # A display rule: HU stay as they are.
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


def _decoded(data: Dataset, header: Header) -> NDArray[Any]:
    """Stored values `(y, x)`, sign-extended from BitsStored."""
    name = header.path.name
    compressed = UID(str(data.file_meta.TransferSyntaxUID)).is_encapsulated
    need = header.rows * header.columns * (int(data.get("BitsAllocated") or 16) // 8)
    if not compressed and len(data.PixelData) < need:
        raise refuse("E_TRUNCATED", f"{name} holds {len(data.PixelData)} of {need} pixel bytes.")
    try:
        stored = data.pixel_array
    except Exception as error:
        # Decoders raise whatever their libraries do; all of it means that no pixel can be trusted.
        raise refuse("E_DECODE", f"{name}: {error}.") from error
    if stored.shape != (header.rows, header.columns):
        raise refuse("E_DECODE", f"{name} decodes to {stored.shape}, not to its own matrix.")
    return np.asarray(stored)


def _number(data: Dataset, keyword: str, name: str) -> float | None:
    try:
        value = data.get(keyword)
        if value is None or value == "":
            return None
        number = float(value)
    except (TypeError, ValueError) as error:
        raise refuse("E_BAD_RESCALE", f"{name} has a {keyword} that is no number.") from error
    if not math.isfinite(number):
        raise refuse("E_BAD_RESCALE", f"{name} has a {keyword} of {number}.")
    return number


def _rescale(data: Dataset, name: str) -> tuple[float, float, set[str]]:
    slope, intercept = (_number(data, key, name) for key in ("RescaleSlope", "RescaleIntercept"))
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
