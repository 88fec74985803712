"""How long reading a CT series takes, and how much memory, beside three other readers.

    .venv/bin/python benchmarks/ingest_speed.py -o benchmarks/ingest_speed.json
    .venv/bin/python benchmarks/ingest_speed.py --slices 2000 --rounds 1 --readers hepar

An uncompressed series of 512 x 512 x 300 with a textured body is written to a temporary folder.
Each reading is a fresh process, given two threads; readers take turns, and the order turns each
round. Timed is the work from folder to HU in memory, imports not (they are listed apart): hepar's
includes every check, SimpleITK's finding the series, dicom2nifti's its conversion without writing
the NIfTI. Before the first round every file is read once, so that all readings are warm; `--cold`
asks the kernel to drop each file from the page cache before each reading instead (posix_fadvise,
which it may not heed). Ratios are medians over rounds of paired ratios to hepar. Memory is VmHWM of
the process, imports included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "benchmarks" / ".venv-peers" / "bin" / "python"
READERS = ("hepar", "SimpleITK", "dicom2nifti", "pydicom loop")
LIMIT_GB = 12.0


def write_series(folder: Path, slices: int, size: int = 512) -> int:
    """A body with lungs, bone and noise, a slice every millimeter; returns bytes written."""
    sys.path[:0] = [str(ROOT / "tests" / "hazards")]
    from synthetic_dicom import Place, Storage, ct_slice, save

    y, x = np.ogrid[:size, :size]
    radius = ((x - size / 2) / (0.42 * size)) ** 2 + ((y - size / 2) / (0.32 * size)) ** 2
    lungs = ((np.abs(x - size / 2) - 0.2 * size) / (0.12 * size)) ** 2
    lungs = lungs + ((y - size / 2) / (0.2 * size)) ** 2
    # A few fields of noise, reused at another shift: drawing 2,000 would outlast the readings.
    noise = np.random.default_rng(0).normal(0, 18, (8, size, size))
    for k in range(slices):
        hu = np.where(radius < 1, 45.0, -1000.0)
        hu[(radius > 0.9) & (radius < 1)] = -90
        if k > slices / 2:
            hu[lungs < 1] = -850
        hu[(radius > 0.55) & (radius < 0.58)] = 400
        hu += np.roll(noise[k % 8], (3 * k, 7 * k), axis=(0, 1))
        content = np.clip(np.rint(hu), -1024, 3000).astype(np.int16)
        place = Place((-200.0, -200.0, float(k)), pixel_mm=(0.78, 0.78), matrix=(size, size))
        save([ct_slice(k, place, Storage(bits=12), hu=content)], folder, [f"i{k:05d}.dcm"])
    return sum(path.stat().st_size for path in folder.iterdir())


def work(reader: str, folder: Path) -> None:
    """Read once in this process and print what it took as one JSON line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    started = time.perf_counter()
    read = _imported(reader)
    imported = time.perf_counter()
    shape, checksum = read(folder)
    done = time.perf_counter()
    status = Path("/proc/self/status").read_text()
    peak_kib = next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line)
    answer = {
        "import_s": imported - started,
        "read_s": done - imported,
        "peak_gb": peak_kib * 1024 / 1e9,
        "shape": shape,
        "checksum": checksum,
    }
    print(json.dumps(answer), file=answers, flush=True)


def _imported(reader: str) -> Any:
    """The reading function of a reader, its libraries loaded."""
    if reader == "hepar":
        from hepar.stages.read import read_study

        def read(folder: Path) -> tuple[list[int], int]:
            array = read_study(folder).series[0].volume.array
            return list(array.shape), _checksum(array)

    elif reader == "SimpleITK":
        import SimpleITK as sitk  # noqa: N813

        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(2)

        def read(folder: Path) -> tuple[list[int], int]:
            series = sitk.ImageSeriesReader()
            series.SetFileNames(series.GetGDCMSeriesFileNames(str(folder)))
            image = series.Execute()  # The view holds no reference to it.
            array = sitk.GetArrayViewFromImage(image)
            return list(array.shape), _checksum(array)

    elif reader == "dicom2nifti":
        import dicom2nifti
        import nibabel  # noqa: F401

        def read(folder: Path) -> tuple[list[int], int]:
            image = dicom2nifti.dicom_series_to_nifti(str(folder), None, reorient_nifti=False)
            array = np.asarray(image["NII"].dataobj).transpose()
            return list(array.shape), _checksum(array)

    else:
        import pydicom

        def read(folder: Path) -> tuple[list[int], int]:
            slices = [pydicom.dcmread(folder / name) for name in os.listdir(folder)]
            slices.sort(key=lambda s: float(s.ImagePositionPatient[2]))
            array = np.stack([s.pixel_array for s in slices]).astype(np.int16)
            array += np.int16(float(slices[0].RescaleIntercept))
            return list(array.shape), _checksum(array)

    return read


def _checksum(array: np.ndarray) -> int:
    """Of every 37th slice: enough to see that all read the same."""
    return int(array[::37].sum(dtype=np.int64))


def touch(folder: Path, cold: bool) -> None:
    """Bring every file into the page cache, or ask the kernel to drop it."""
    for path in folder.iterdir():
        if not cold:
            path.read_bytes()
            continue
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def once(reader: str, folder: Path) -> dict[str, Any]:
    python = sys.executable if reader == "hepar" else str(PEERS)
    threads = {f"{name}_NUM_THREADS": "2" for name in ("OMP", "MKL", "OPENBLAS")}
    environment = {**os.environ, **threads, "PYTHONPATH": str(ROOT / "src")}
    command = [python, __file__, "--work", reader, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{reader}: {done.stderr[-1500:]}")
    return dict(json.loads(done.stdout))


def run(slices: int, rounds: int, readers: list[str], cold: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "series"
        started = time.perf_counter()
        size = write_series(folder, slices)
        print(f"written in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        touch(folder, cold=False)
        measured: dict[str, list[dict[str, Any]]] = {name: [] for name in readers}
        for turn in range(rounds):
            order = readers[turn % len(readers) :] + readers[: turn % len(readers)]
            for name in order:
                if cold:
                    touch(folder, cold=True)
                answer = once(name, folder)
                measured[name].append(answer)
                print(turn, name, answer, file=sys.stderr)
    sums = {(tuple(a["shape"]), a["checksum"]) for found in measured.values() for a in found}
    if len(sums) != 1:
        raise RuntimeError(f"the readers do not agree: {sums}")
    return {
        "slices": slices,
        "bytes": size,
        "cache": "cold (asked)" if cold else "warm",
        "rounds": rounds,
        "load_before": os.getloadavg()[0],
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "readers": {name: summary(name, measured) for name in readers},
    }


def summary(name: str, measured: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians, ratios to hepar within a round, and every reading."""
    found = measured[name]
    result: dict[str, Any] = {
        "read_s": statistics.median(a["read_s"] for a in found),
        "import_s": statistics.median(a["import_s"] for a in found),
        "peak_gb": max(a["peak_gb"] for a in found),
        "all_read_s": [round(a["read_s"], 3) for a in found],
    }
    if "hepar" in measured and name != "hepar":
        ours = measured["hepar"]
        pairs = zip(found, ours, strict=True)
        result["times_hepar"] = statistics.median(a["read_s"] / b["read_s"] for a, b in pairs)
    if name == "hepar":
        result["within_memory_limit"] = result["peak_gb"] <= LIMIT_GB
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--readers", nargs="+", default=list(READERS), choices=READERS)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--work", choices=READERS)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, arguments.folder)
        return
    result = run(arguments.slices, arguments.rounds, list(arguments.readers), arguments.cold)
    text = json.dumps(result, indent=1) + "\n"
    if arguments.out:
        arguments.out.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
