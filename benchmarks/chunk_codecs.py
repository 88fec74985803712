"""How chunks of 64^3 voxels of a CT are packed and unpacked: ratio and rates of blosc2's codecs.

    python benchmarks/chunk_codecs.py SCAN.nii.gz [SCAN.nii.gz ...] [-o OUT.json]

Each scan is resampled to 2.47 x 1.9 x 1.9 mm; one thread, seconds of the processor, reading the
median of seven.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import blosc2
import numpy as np

from hepar.io.nifti import read_nifti
from hepar.resampling import resample

SPACING = (2.47, 1.9, 1.9)


def codecs(hu: np.ndarray) -> list[dict[str, Any]]:
    """Ratio and processor rates of codecs and filters on whole chunks of an int16 volume."""
    starts = [range(0, n - 63, 64) for n in hu.shape]
    chunks = [
        np.ascontiguousarray(hu[z : z + 64, y : y + 64, x : x + 64])
        for z in starts[0]
        for y in starts[1]
        for x in starts[2]
    ]
    size, found = sum(c.nbytes for c in chunks), np.empty_like(chunks[0])
    rows = []
    for codec, level in (("LZ4", 5), ("LZ4HC", 5), ("BLOSCLZ", 5), ("ZSTD", 1)):
        for filtered in ("SHUFFLE", "BITSHUFFLE"):
            options = {
                "typesize": 2,
                "codec": blosc2.Codec[codec],
                "clevel": level,
                "filters": [blosc2.Filter[filtered]],
                "filters_meta": [0],
                "nthreads": 1,
            }
            begun = time.process_time()
            packed = [blosc2.compress2(chunk, **options) for chunk in chunks]
            took, reads = time.process_time() - begun, []
            for _ in range(7):
                begun = time.process_time()
                for data in packed:
                    blosc2.decompress2(data, dst=found, nthreads=1)
                reads.append(time.process_time() - begun)
            rows.append(
                {
                    "codec": codec,
                    "level": level,
                    "filter": filtered,
                    "ratio": round(size / sum(map(len, packed)), 2),
                    "pack_mb_s": round(size / took / 1e6),
                    "unpack_mb_s": round(size / median(reads) / 1e6),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scans", type=Path, nargs="+")
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args()
    document: dict[str, Any] = {
        "command": "python benchmarks/chunk_codecs.py SCAN ...",
        "blosc2": blosc2.__version__,
        "scans": [],
    }
    for scan in options.scans:
        volume = read_nifti(scan)
        target = volume.grid.with_spacing(SPACING)
        hu = np.rint(resample(volume.array, volume.grid, target)).astype(np.int16)
        rows = codecs(hu)
        print(json.dumps(rows), flush=True)
        document["scans"].append({"shape": hu.shape, "rows": rows})
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
