"""Damaged copies of one file of a series, and what the reader makes of each.

Run as a script it reads mutants `FIRST` to `LAST` and prints a JSON line each. The seed is printed
before the file is read, and a watchdog ends the process at the deadline, so that a hang or a crash
of a decoder has a name.
"""

from __future__ import annotations

import faulthandler
import json
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from pydicom.uid import UID, JPEG2000Lossless, RLELossless
from reading_truth import misplaced
from synthetic_dicom import Place, Slice, Storage, ct_slice, save
from transfer_syntaxes import COMPRESSORS

from hepar.errors import InputRefused
from hepar.stages.read import read_study
from hepar.study import Study

DEADLINE_S = 5.0
SLICES, STEP_MM = 10, 5.0
SYNTAXES = ("explicit", "RLE", "JPEG-LS", "JPEG-SV1", "JPEG2000")
QUICK = 200
# Compressed images are decoded in a process of their own, which takes longer than all the rest.
_FEW_COMPRESSED, _COMPRESSED = 0.03, 0.25
# A slice may lie off an even distance by this share of it, as rounded positions do.
_ROUNDING = 0.011


def base(syntax: str) -> list[Slice]:
    """Images with a texture."""
    noise = np.random.default_rng(11)
    matrix = (34, 32) if syntax == "JPEG2000" else (16, 12)
    slices = []
    for k in range(SLICES):
        place = Place((-12.0, -8.0, STEP_MM * k), pixel_mm=(1.5, 1.25), matrix=matrix)
        hu = noise.integers(-60, 200, place.matrix)
        hu[:4] = -1000
        slices.append(ct_slice(k, place, Storage(bits=12), hu=hu.astype(np.int16)))
    for one in slices:
        if syntax in COMPRESSORS:
            COMPRESSORS[syntax](one.data)
    return slices


# --- Damage ------------------------------------------------------------------------------------


def _flip(content: bytearray, rng: random.Random, end: int) -> bytearray:
    for _ in range(rng.choice((1, 1, 2, 8))):
        content[rng.randrange(132, end)] ^= 1 << rng.randrange(8)
    return content


def _cut_end(content: bytearray, rng: random.Random, end: int) -> bytearray:
    return content[: rng.randrange(0, len(content))]


def _cut_out(content: bytearray, rng: random.Random, end: int) -> bytearray:
    at = rng.randrange(132, end)
    del content[at : at + rng.choice((1, 2, 4, 8, 64))]
    return content


def _insert(content: bytearray, rng: random.Random, end: int) -> bytearray:
    at = rng.randrange(132, end)
    content[at:at] = rng.randbytes(rng.choice((1, 2, 4, 8, 64)))
    return content


def _swap(content: bytearray, rng: random.Random, end: int) -> bytearray:
    n = rng.choice((1, 2, 4, 16))
    a, b = (rng.randrange(132, end - n) for _ in range(2))
    content[a : a + n], content[b : b + n] = content[b : b + n], content[a : a + n]
    return content


def _overwrite(content: bytearray, rng: random.Random, end: int) -> bytearray:
    at, n = rng.randrange(132, end), rng.choice((1, 2, 4, 16))
    content[at : at + n] = rng.choice((b"\x00", b"\xff", b" ", b"9")) * n
    return content


def _length(content: bytearray, rng: random.Random, end: int) -> bytearray:
    """Another length of one element."""
    at, width = rng.choice(_lengths(content, end))
    value = int.from_bytes(content[at : at + width], "little")
    top = (1 << 8 * width) - 1
    new = rng.choice((0, 1, value + 1, value + 2, max(value - 2, 0), 2 * value, top, top - 1))
    content[at : at + width] = (new & top).to_bytes(width, "little")
    return content


def _lengths(content: bytearray, end: int) -> list[tuple[int, int]]:
    """Where the lengths of elements stand, and how wide each is (explicit little endian)."""
    found, at = [], 132
    while at + 8 <= min(end, len(content)):
        long = bytes(content[at + 4 : at + 6]) in (b"OB", b"OW", b"SQ", b"UN", b"UT", b"OF")
        place, width = (at + 8, 4) if long else (at + 6, 2)
        found.append((place, width))
        at = place + width + int.from_bytes(content[place : place + width], "little")
    return found


_DAMAGES: tuple[Callable[[bytearray, random.Random, int], bytearray], ...] = (
    *(_flip, _flip, _cut_end, _cut_out, _insert, _swap, _overwrite, _length),
)


def mutant(content: bytes, seed: int) -> tuple[bytes, str]:
    """A damaged copy of a file, and what was done: mostly to the header."""
    rng = random.Random(f"mutant {seed}")
    pixels = content.index(b"\xe0\x7f\x10\x00")
    end = len(content) if rng.random() < 0.25 else pixels + 12
    damage = rng.choice(_DAMAGES)
    return bytes(damage(bytearray(content), rng, end)), damage.__name__.strip("_")


# --- Judgment ----------------------------------------------------------------------------------


def judge(
    study: Study, slices: list[Slice], damaged: Path, which: int, size: int
) -> tuple[str, str]:
    """What became of a series one of whose files is damaged.

    Returns:
        A word and its reason. `identical`: nothing changed. `coded`: something did, and a code says
        so. `legitimate`: the file says, to an independent parser, exactly what was read, and is as
        long as before: such damage cannot be told from another scan. `wrong`: everything else.
    """
    codes = [v.code for v in study.verdicts if v.code] + [w.split(":")[0] for w in study.warnings]
    faults = [misplaced(s.volume.array, s.volume.grid.affine, slices) for s in study.series]
    if faults == [None]:
        return "identical", ""
    if codes:
        return "coded", codes[0]
    if len(study.series) != 1 or study.series[0].volume.array.shape[0] != SLICES:
        return "wrong", f"{[s.volume.array.shape for s in study.series]} without a code"
    if damaged.stat().st_size != size:
        return "wrong", f"{faults[0]}; bytes were added or lost, and nothing says so"
    volume = study.series[0].volume
    said = _independently(damaged)
    if said is None:
        return "wrong", f"{faults[0]}; the file cannot be read independently"
    changed = [*slices]
    changed[which] = Slice(slices[which].data, slices[which].place, said)
    tolerance_mm = _ROUNDING * STEP_MM
    fault = misplaced(volume.array, volume.grid.affine, changed, tolerance_mm)
    return ("legitimate", f"{faults[0]}") if fault is None else ("wrong", fault)


def _independently(path: Path) -> NDArray[np.int16] | None:
    """HU of one file by a formula, not by the product."""
    try:
        data = pydicom.dcmread(path, force=True)
        syntax = data.file_meta.get("TransferSyntaxUID", "")
        if syntax in (RLELossless, JPEG2000Lossless):
            stored = data.pixel_array.astype(np.float64)
        elif syntax and UID(syntax).is_encapsulated:
            hu = sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="GDCMImageIO"))[0]
            return np.clip(np.rint(hu), -1024, 32767).astype(np.int16)
        else:
            bits = int(data.BitsStored)
            count = int(data.Rows) * int(data.Columns)
            words = np.frombuffer(data.PixelData, "<u2")[:count].astype(np.int64)
            words &= (1 << bits) - 1
            if data.PixelRepresentation:
                words -= (words >> (bits - 1)) << bits
            stored = words.reshape(int(data.Rows), int(data.Columns)).astype(np.float64)
        hu = stored * float(data.RescaleSlope) + float(data.RescaleIntercept)
    except Exception:
        return None
    return np.clip(np.rint(hu), -1024, 32767).astype(np.int16)


def outcome(seed: int, folder: Path, series: dict[str, list[Slice]]) -> dict[str, object]:
    """Damage one file, read the series, put the file back."""
    rng = random.Random(f"file {seed}")
    packed = rng.random() < (_FEW_COMPRESSED if seed < QUICK else _COMPRESSED)
    syntax, which = rng.choice(SYNTAXES[1:]) if packed else "explicit", rng.randrange(SLICES)
    path = folder / syntax / f"i{which:04d}.dcm"
    whole = path.read_bytes()
    content, damage = mutant(whole, seed)
    path.write_bytes(content)
    faulthandler.dump_traceback_later(DEADLINE_S, exit=True)
    try:
        study = read_study(folder / syntax)
        faulthandler.cancel_dump_traceback_later()
        word, reason = judge(study, series[syntax], path, which, len(whole))
    except InputRefused as error:
        word, reason = "coded", error.code
    except Exception as error:  # What the product must never let through.
        word, reason = "exception", f"{type(error).__name__}: {error}"
    finally:
        faulthandler.cancel_dump_traceback_later()
        path.write_bytes(whole)
    return {"seed": seed, "syntax": syntax, "damage": damage, "word": word, "reason": reason}


def main(first: int, last: int) -> None:
    """Read mutants `first` to `last - 1`, a JSON line each, and the peak memory."""
    with tempfile.TemporaryDirectory() as root:
        series = {syntax: base(syntax) for syntax in SYNTAXES}
        for syntax, slices in series.items():
            save(slices, Path(root) / syntax)
        for seed in range(first, last):
            print(json.dumps({"begins": seed}), flush=True)
            line = outcome(seed, Path(root), series)
            print(json.dumps(line), flush=True)
    # Not ru_maxrss, which a process inherits from the one that started it.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(json.dumps({"peak_kib": int(status["VmHWM"].split()[0])}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
