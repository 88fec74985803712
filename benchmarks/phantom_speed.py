"""How long a phantom takes, and how small a bank of them is.

    .venv/bin/python benchmarks/phantom_speed.py -o benchmarks/phantom_speed.json

Anatomies of a whole abdomen (64 x 256 x 256 voxels) and of a liver box (32 x 128 x 128), four-phase
visits of both, and the bytes of the liver boxes in a bank; medians over seeds. Two-phase slices a
second is what training of a 2D network could draw.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TypeVar

from hepar.data.phantom_bank import write_bank
from hepar.phantom.anatomy import anatomy
from hepar.phantom.scanner import paint
from hepar.phantom.version import NAME, fingerprint

T = TypeVar("T")
FIRST_SEED = 950_000
MISALIGNMENT_MM = 2.0


def timed(seconds: list[float], work: Callable[[], T]) -> T:
    """The result of `work`; its wall-clock seconds are appended."""
    begun = time.perf_counter()
    result = work()
    seconds.append(time.perf_counter() - begun)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    rows: dict[str, list[float]] = {}
    paint(anatomy(0, field="liver", shape=(8, 16, 16), spacing_mm=(20.0, 20.0, 20.0)), 0)
    boxes = []
    for seed in seeds:
        box = timed(
            rows.setdefault("anatomy 32x128x128", []),
            lambda s=seed: anatomy(
                s, field="liver", shape=(32, 128, 128), spacing_mm=(6.0, 2.0, 2.0)
            ),
        )
        boxes.append(box)
        timed(rows.setdefault("paint 32x128x128, 4 phases", []), lambda b=box, s=seed: paint(b, s))
        timed(
            rows.setdefault("paint 32x128x128, ART and PV", []),
            lambda b=box, s=seed: paint(b, s, phases=("ART", "PV")),
        )
        body = timed(
            rows.setdefault("anatomy 64x256x256", []),
            lambda s=seed: anatomy(s, shape=(64, 256, 256)),
        )
        timed(rows.setdefault("paint 64x256x256, 4 phases", []), lambda b=body, s=seed: paint(b, s))
        timed(
            rows.setdefault("paint 64x256x256, 4 phases, misaligned", []),
            lambda b=body, s=seed: paint(b, s, misalignment_mm=MISALIGNMENT_MM),
        )
    with tempfile.TemporaryDirectory() as folder:
        each = write_bank(Path(folder) / "a.bank", boxes).stat().st_size / len(boxes)
    document = {
        "phantom": NAME,
        "fingerprint": fingerprint(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "seeds": options.seeds,
        "seconds": {name: round(median(values), 3) for name, values in rows.items()},
        "two_phase_slices_per_s": round(32 / median(rows["paint 32x128x128, ART and PV"]), 1),
        "bank_kib_per_anatomy": round(each / 1024, 1),
        "bank_mib_of_360": round(360 * each / 2**20, 1),
    }
    text = json.dumps(document, indent=1) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
