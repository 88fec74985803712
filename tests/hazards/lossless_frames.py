"""Lossless frames as other encoders write them: JPEG lossless with any predictor, and JPEG-LS.

Written from ITU-T T.81 annex H and T.87, so that a decoder is tested against something it shares no
line with, and the tests need no encoder that could also decode for the product.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_HUFFMAN_BITS = 5  # Seventeen categories of difference, each with a code of five bits.
_RESET = 64
_RUN_ORDER = (
    *(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3),
    *(4, 4, 5, 5, 6, 6, 7, 7, 8, 9, 10, 11, 12, 13, 14, 15),
)


def jpeg_lossless(stored: NDArray[np.integer], bits: int, predictor: int) -> bytes:
    """A frame as JPEG lossless, process 14 (T.81 annex H).

    Args:
        stored: `(rows, columns)` non-negative values below `2 ** bits`.
        bits: sample precision, 2 to 16.
        predictor: selection value, 1 to 7.

    Returns:
        One complete JPEG stream.
    """
    image = np.asarray(stored, dtype=np.int64)
    difference = _wrapped(image - _predicted(image, bits, predictor))
    magnitude = np.abs(difference)
    category = np.zeros_like(magnitude)
    for power in range(17):
        category += magnitude >= 1 << power
    category = np.minimum(category, 16)
    fields = []
    for c, d in zip(category.ravel().tolist(), difference.ravel().tolist(), strict=True):
        fields.append((c, _HUFFMAN_BITS))
        if 0 < c < 16:
            fields.append((d if d > 0 else d + (1 << c) - 1, c))
    rows, columns = image.shape
    return b"".join(
        (
            b"\xff\xd8",
            _segment(0xC3, _frame_header(bits, rows, columns)),
            _segment(0xC4, bytes([0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)])),
            _segment(0xDA, bytes([1, 1, 0, predictor, 0, 0])),
            _packed(fields, jpeg_ls=False),
            b"\xff\xd9",
        )
    )


def _predicted(image: NDArray[np.int64], bits: int, predictor: int) -> NDArray[np.int64]:
    """What table H.1 predicts for each sample; the first row and column have rules of their own."""
    predicted = np.empty_like(image)
    predicted[0, 0] = 1 << (bits - 1)
    predicted[0, 1:] = image[0, :-1]
    predicted[1:, 0] = image[:-1, 0]
    a, b, c = image[1:, :-1], image[:-1, 1:], image[:-1, :-1]
    predicted[1:, 1:] = {
        1: a,
        2: b,
        3: c,
        4: a + b - c,
        5: a + ((b - c) >> 1),
        6: b + ((a - c) >> 1),
        7: (a + b) >> 1,
    }[predictor]
    return predicted


def _wrapped(difference: NDArray[np.int64]) -> NDArray[np.int64]:
    """Differences modulo 2 ** 16, in -32767 to 32768."""
    low = difference & 0xFFFF
    return np.where(low > 32768, low - 65536, low)


def jpeg_ls(stored: NDArray[np.integer], bits: int) -> bytes:
    """A frame as lossless JPEG-LS (T.87) with the default parameters.

    Args:
        stored: `(rows, columns)` non-negative values below `2 ** bits`.
        bits: sample precision, 8 to 16.

    Returns:
        One complete JPEG-LS stream.
    """
    rows, columns = stored.shape
    coder = _JpegLs(bits)
    previous, corner = [0] * columns, 0
    for row in np.asarray(stored, dtype=np.int64).tolist():
        coder.line(row, previous, corner)
        previous, corner = row, previous[0]
    return b"".join(
        (
            b"\xff\xd8",
            _segment(0xF7, _frame_header(bits, rows, columns)),
            _segment(0xDA, bytes([1, 1, 0, 0, 0, 0])),
            _packed(coder.fields, jpeg_ls=True),
            b"\xff\xd9",
        )
    )


class _JpegLs:
    """State of the encoder of annex A; variables carry the standard's letters in lower case."""

    def __init__(self, bits: int) -> None:
        self.top, self.bits = (1 << bits) - 1, bits
        self.limit = 2 * (bits + max(8, bits))
        factor = (min(self.top, 4095) + 128) // 256
        self.thresholds = (factor + 2, 4 * factor + 3, 17 * factor + 4)
        start = max(2, (self.top + 1 + 32) // 64)
        self.a, self.n = [start] * 367, [1] * 367
        self.b, self.c = [0] * 365, [0] * 365
        self.negatives = [0, 0]
        self.run_index = 0
        self.fields: list[tuple[int, int]] = []

    def line(self, row: list[int], above: list[int], corner: int) -> None:
        """Encode one line; `corner` is what lies left of the line above."""
        x, width = 0, len(row)
        while x < width:
            b, c = above[x], above[x - 1] if x else corner
            a, d = row[x - 1] if x else b, above[min(x + 1, width - 1)]
            if a == b == c == d:
                x = self._run(row, above, x, a)
            else:
                self._regular(row[x], a, b, c, d)
                x += 1

    def _regular(self, value: int, a: int, b: int, c: int, d: int) -> None:
        context = 81 * self._level(d - b) + 9 * self._level(b - c) + self._level(c - a)
        sign = -1 if context < 0 else 1
        q = abs(context)
        guess = min(a, b) if c >= max(a, b) else max(a, b) if c <= min(a, b) else a + b - c
        guess = min(max(guess + sign * self.c[q], 0), self.top)
        error = self._modulo(sign * (value - guess))
        k = self._order(self.n[q], self.a[q])
        if k == 0 and 2 * self.b[q] <= -self.n[q]:
            mapped = 2 * error + 1 if error >= 0 else -2 * (error + 1)
        else:
            mapped = 2 * error if error >= 0 else -2 * error - 1
        self._golomb(mapped, k, self.limit)
        self._learn(q, error)

    def _learn(self, q: int, error: int) -> None:
        self.b[q] += error
        self.a[q] += abs(error)
        if self.n[q] == _RESET:
            self.a[q] >>= 1
            self.b[q] = self.b[q] >> 1 if self.b[q] >= 0 else -((1 - self.b[q]) >> 1)
            self.n[q] >>= 1
        self.n[q] += 1
        if self.b[q] <= -self.n[q]:
            self.b[q] = max(self.b[q] + self.n[q], 1 - self.n[q])
            self.c[q] = max(self.c[q] - 1, -128)
        elif self.b[q] > 0:
            self.b[q] = min(self.b[q] - self.n[q], 0)
            self.c[q] = min(self.c[q] + 1, 127)

    def _run(self, row: list[int], above: list[int], x: int, a: int) -> int:
        """Encode a run and what ends it; returns where the line goes on."""
        end = x
        while end < len(row) and row[end] == a:
            end += 1
        left = end - x
        while left >= 1 << _RUN_ORDER[self.run_index]:
            self.fields.append((1, 1))
            left -= 1 << _RUN_ORDER[self.run_index]
            self.run_index = min(self.run_index + 1, 31)
        if end == len(row):
            if left:
                self.fields.append((1, 1))
            return end
        order = _RUN_ORDER[self.run_index]
        self.fields += [(0, 1), (left, order)]
        self._interruption(row[end], a, above[end], self.limit - order - 1)
        self.run_index = max(self.run_index - 1, 0)
        return end + 1

    def _interruption(self, value: int, a: int, b: int, limit: int) -> None:
        same = int(a == b)
        q = 365 + same
        error = self._modulo(value - a if same else (b - value if a > b else value - b))
        k = self._order(self.n[q], self.a[q] + (self.n[q] >> 1 if same else 0))
        often = 2 * self.negatives[same] >= self.n[q]
        flip = (k == 0 and error > 0 and not often) or (error < 0 and (often or k != 0))
        mapped = 2 * abs(error) - same - int(flip)
        self._golomb(mapped, k, limit)
        self.negatives[same] += int(error < 0)
        self.a[q] += (mapped + 1 - same) >> 1
        if self.n[q] == _RESET:
            self.a[q] >>= 1
            self.n[q] >>= 1
            self.negatives[same] >>= 1
        self.n[q] += 1

    def _level(self, gradient: int) -> int:
        size = abs(gradient)
        level = sum(size >= t for t in self.thresholds) + (size > 0)
        return -level if gradient < 0 else level

    def _modulo(self, error: int) -> int:
        span = self.top + 1
        error %= span
        return error - span if error >= (span + 1) // 2 else error

    @staticmethod
    def _order(n: int, a: int) -> int:
        k = 0
        while n << k < a:
            k += 1
        return k

    def _golomb(self, value: int, k: int, limit: int) -> None:
        high = value >> k
        if high < limit - self.bits - 1:
            self.fields += [(1, high + 1), (value & ((1 << k) - 1), k)]
        else:
            self.fields += [(1, limit - self.bits), (value - 1, self.bits)]


def _frame_header(bits: int, rows: int, columns: int) -> bytes:
    size = rows.to_bytes(2, "big") + columns.to_bytes(2, "big")
    return bytes([bits]) + size + bytes([1, 1, 0x11, 0])


def _segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


def _packed(fields: Iterable[tuple[int, int]], jpeg_ls: bool) -> bytes:
    """Bit fields `(value, width)` as bytes, with what follows each 0xFF as the standard says."""
    bits = "".join(f"{value:0{width}b}" for value, width in fields if width)
    out = bytearray()
    at = 0
    while at < len(bits):
        width = 7 if jpeg_ls and out and out[-1] == 0xFF else 8
        # JPEG pads with ones, JPEG-LS with zeros.
        piece = bits[at : at + width].ljust(width, "0" if jpeg_ls else "1")
        out.append(int(piece, 2))
        at += width
        if out[-1] == 0xFF and not jpeg_ls:
            out.append(0)
    if jpeg_ls and out and out[-1] == 0xFF:
        out.append(0)
    return bytes(out)
