"""An uncompressed file made into one of each lossless transfer syntax, by unlike encoders."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813
from lossless_frames import jpeg_lossless, jpeg_ls
from numpy.typing import NDArray
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

Compressor = Callable[[FileDataset], None]
Encoder = Callable[[NDArray[np.uint16], int], bytes]

OPENJPEG_MIN_PIXELS = 32  # Of either side of an image; below, its encoder refuses.


def _by_pydicom(syntax: str, plugin: str) -> Compressor:
    def compress(data: FileDataset) -> None:
        data.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)

    return compress


def _by_frames(syntax: str, encode: Encoder) -> Compressor:
    def compress(data: FileDataset) -> None:
        frames = np.frombuffer(data.PixelData, "<u2").reshape(-1, data.Rows, data.Columns)
        data.PixelData = encapsulate([encode(frame, data.BitsStored) for frame in frames])
        data["PixelData"].VR = "OB"
        data["PixelData"].is_undefined_length = True
        data.file_meta.TransferSyntaxUID = syntax

    return compress


def _process_14(predictor: int) -> Encoder:
    return lambda frame, bits: jpeg_lossless(frame, bits, predictor)


def _gdcm(frame: NDArray[np.uint16], bits: int) -> bytes:
    """The frame as GDCM writes it, always of 16 bits.

    Raises:
        ValueError: fewer bits.
    """
    if bits != 16:
        raise ValueError(f"GDCM writes 16 bits, not {bits}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frame.dcm"
        writer = sitk.ImageFileWriter()
        writer.SetFileName(str(path))
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG")
        writer.Execute(sitk.GetImageFromArray(frame[None]))
        data = pydicom.dcmread(path)
        assert data.file_meta.TransferSyntaxUID == JPEGLosslessSV1
        return next(generate_frames(data.PixelData, number_of_frames=1))


COMPRESSORS: dict[str, Compressor] = {
    "RLE": _by_pydicom(RLELossless, "pydicom"),
    "JPEG2000": _by_pydicom(JPEG2000Lossless, "pylibjpeg"),
    "JPEG-LS": _by_frames(JPEGLSLossless, jpeg_ls),
    "JPEG-SV1": _by_frames(JPEGLosslessSV1, _process_14(1)),
    "JPEG-SV1-GDCM": _by_frames(JPEGLosslessSV1, _gdcm),
    **{f"JPEG-P14-{p}": _by_frames(JPEGLossless, _process_14(p)) for p in range(1, 8)},
}
