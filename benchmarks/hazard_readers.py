"""Four readers on the same DICOM hazards in one run: right, refused, or wrong without a word.

    .venv/bin/python benchmarks/hazard_readers.py -o benchmarks/hazard_readers.json

The cases are those of `tests/hazards`: the catalogue's (its ids), and 16 beside it (X..). Beside
hepar stand SimpleITK's series reader (every series GDCM finds), dicom2nifti with its settings as
they come, and the loop that circulates as a recipe (sort by position, stack, int16, rescale of the
first slice). Each runs in a process of its own, in `benchmarks/.venv-peers` (hepar in its own), and
is given ten seconds a case.

A result is right when every volume is there and every pixel of the images has one voxel, within
0.01 mm of its place (what the case allows, where positions are noisy), with its HU; interpolated
results of a tilted gantry or uneven distances are judged away from borders. Anything else that is
returned without an exception is wrong, whatever was printed. A refusal is typed when its class is
the reader's own (`HeparError`, `dicom2nifti.exceptions`, `pydicom.errors`); SimpleITK knows only
RuntimeError. Cases where a faithful reader returns what the file says and it is hazardous (padding,
a missing intercept, 8-bit captures) are marked `policy`; MR and hostile names count as right where
the voxels are. python-gdcm, which dicom2nifti brings, decodes JPEG for the loop as well.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import re
import select
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "benchmarks" / ".venv-peers" / "bin" / "python"
DEADLINE_S = 10.0
POLICY = frozenset({"PX04", "PX06", "PX07", "PX10", "PX18"})
Found = list[tuple[np.ndarray, np.ndarray]]


# --- The readers: a folder becomes HU (z, y, x) with affines from (z, y, x, 1) to LPS mm ---------


def by_hepar(folder: Path) -> Found:
    from hepar.stages.read import read_study

    study = read_study(folder)
    return [(s.volume.array, s.volume.grid.affine) for s in study.series]


def by_simpleitk(folder: Path) -> Found:
    import SimpleITK as sitk  # noqa: N813

    found = []
    for series in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)) or ("",):
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), series))
        image = reader.Execute()
        if image.GetDimension() == 4:
            image = image[..., 0]
        linear = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
        affine = np.eye(4)
        affine[:3] = np.column_stack([linear[:, ::-1], image.GetOrigin()])
        found.append((sitk.GetArrayFromImage(image), affine))
    return found


def by_dicom2nifti(folder: Path) -> Found:
    import dicom2nifti
    import nibabel

    with tempfile.TemporaryDirectory() as out:
        path = f"{out}/volume.nii"
        dicom2nifti.dicom_series_to_nifti(str(folder), path, reorient_nifti=False)
        image = nibabel.load(path)
        array = np.asarray(image.dataobj).transpose()
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    return [(array, affine[:, [2, 1, 0, 3]])]


def by_loop(folder: Path) -> Found:
    import pydicom

    slices = [pydicom.dcmread(folder / name) for name in sorted(os.listdir(folder))]
    first = slices[0]
    row, column = np.array(first.ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(row, column)
    slices.sort(key=lambda s: float(np.dot(np.array(s.ImagePositionPatient, float), normal)))
    image = np.stack([s.pixel_array for s in slices]).astype(np.int16)
    slope, intercept = float(slices[0].RescaleSlope), float(slices[0].RescaleIntercept)
    if slope != 1:
        image = (slope * image.astype(np.float64)).astype(np.int16)
    image += np.int16(intercept)
    near, far = (np.array(s.ImagePositionPatient, float) for s in slices[:2])
    rows_mm, columns_mm = (float(v) for v in slices[0].PixelSpacing)
    affine = np.eye(4)
    affine[:3] = np.column_stack([far - near, column * rows_mm, row * columns_mm, near])
    return [(image, affine)]


READERS: dict[str, Callable[[Path], Found]] = {
    "hepar": by_hepar,
    "SimpleITK": by_simpleitk,
    "dicom2nifti": by_dicom2nifti,
    "pydicom loop": by_loop,
}


def work(reader: str) -> None:
    """Answer folders from stdin with a JSON line each; volumes go to the file named beside."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What libraries print is no answer.
    warnings.simplefilter("ignore")
    read = READERS[reader]
    for line in sys.stdin:
        folder, target = json.loads(line)
        answer: dict[str, Any]
        try:
            found = read(Path(folder))
            arrays = {}
            for k, (array, affine) in enumerate(found):
                arrays |= {f"array{k}": array, f"affine{k}": affine}
            np.savez(target, **arrays)
            answer = {"volumes": len(found)}
        except BaseException as error:
            home = type(error).__module__
            typed = home.startswith(("hepar", "dicom2nifti", "pydicom.errors"))
            code = getattr(error, "code", "")
            answer = {"error": f"{type(error).__name__} {code}".strip(), "typed": typed}
            message = re.sub(r"(/[\w.+-]+)+/", "", str(error).replace(folder, "FOLDER"))
            answer["message"] = message.splitlines()[0][:160] if message else ""
        print(json.dumps(answer), file=answers, flush=True)


class Worker:
    """A reader's process, started again after it hung or died."""

    def __init__(self, reader: str) -> None:
        self.reader = reader
        self.process: subprocess.Popen[str] | None = None

    def ask(self, folder: Path, target: Path) -> dict[str, Any]:
        if self.process is None or self.process.poll() is not None:
            self.process = self._started()
            self._answer(Path("/"), target, 120.0)  # Imports are not timed.
        return self._answer(folder, target, DEADLINE_S)

    def _started(self) -> subprocess.Popen[str]:
        python = sys.executable if self.reader == "hepar" else str(PEERS)
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [python, __file__, "--worker", self.reader],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def _answer(self, folder: Path, target: Path, seconds: float) -> dict[str, Any]:
        process = self.process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        empty = target.parent / "nothing"
        empty.mkdir(exist_ok=True)
        asked = empty if folder == Path("/") else folder
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps([str(asked), str(target)]) + "\n")
            process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], seconds)
        line = process.stdout.readline() if ready else ""
        if line:
            return dict(json.loads(line))
        self.stop()
        return {"error": "crash" if ready else "hang", "typed": False, "message": ""}

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


# --- Judgment ------------------------------------------------------------------------------------


def verdict(case: Any, scene: Any, answer: dict[str, Any], target: Path) -> dict[str, str]:
    """One cell of the table."""
    if "error" in answer:
        kind = "refused, typed" if answer["typed"] else "refused, raw"
        return {"result": kind, "why": f"{answer['error']}: {answer['message']}".rstrip(": ")}
    with np.load(target) as saved:
        volumes = [(saved[f"array{k}"], saved[f"affine{k}"]) for k in range(answer["volumes"])]
    why = fault(case, scene, volumes)
    return {"result": "right", "why": ""} if why is None else {"result": "wrong", "why": why}


def fault(case: Any, scene: Any, volumes: Found) -> str | None:
    from reading_truth import misplaced, resampled_wrong

    left = list(zip(scene.volumes, scene.marker_hu, strict=True))
    for array, affine in volumes:
        if abs(np.linalg.det(affine)) < 1e-6:
            return "two slices lie at one place"
        whole = np.rint(array)
        if case.resampled:
            found = [resampled_wrong(whole, affine, *one) for one in left]
        else:
            found = [misplaced(whole, affine, slices, case.tolerance_mm) for slices, _ in left]
        if None not in found:
            return found[0] if found else "one volume too many"
        del left[found.index(None)]
    return f"{len(left)} of {len(scene.volumes)} volumes are missing" if left else None


def cases() -> list[Any]:
    sys.path[:0] = [str(ROOT / "tests" / "hazards"), str(ROOT / "src")]
    from file_cases import FILE_CASES
    from hazard_case import Case
    from more_cases import MORE_CASES
    from study_cases import STUDY_CASES, native_called_portal_venous, portal_venous_alone

    phases = (
        Case("PH06", "WARN", "", native_called_portal_venous),
        Case("PH08", "WARN", "", portal_venous_alone),
    )
    return [*sorted((*STUDY_CASES, *FILE_CASES, *phases), key=lambda c: c.id), *MORE_CASES]


def run() -> dict[str, Any]:
    workers = {name: Worker(name) for name in READERS}
    rows = []
    for case in cases():
        with tempfile.TemporaryDirectory() as root:
            scene = case.build(Path(root) / "study")
            row: dict[str, Any] = {"id": case.id, "what": (case.build.__doc__ or "").strip(".")}
            row["policy"] = case.id in POLICY
            for name, worker in workers.items():
                target = Path(root) / "volumes.npz"
                target.unlink(missing_ok=True)
                row[name] = verdict(case, scene, worker.ask(Path(root) / "study", target), target)
        print(row["id"], *(f"{name}: {row[name]['result']};" for name in READERS), file=sys.stderr)
        rows.append(row)
    for worker in workers.values():
        worker.stop()
    return {"environment": environment(), "counts": counts(rows), "cases": rows}


def counts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Results of each reader, the catalogue's cases and the others apart."""
    table: dict[str, Any] = {}
    for part, chosen in (
        ("catalogue", [r for r in rows if not r["id"].startswith("X")]),
        ("beside it", [r for r in rows if r["id"].startswith("X")]),
    ):
        table[part] = {"cases": len(chosen)}
        for name in READERS:
            found: dict[str, int] = dict(Counter(row[name]["result"] for row in chosen))
            wrong = [r["id"] for r in chosen if r[name]["result"] == "wrong"]
            policy = sum(case in POLICY for case in wrong)
            table[part][name] = {**found, "wrong, of these policy": policy, "wrong ids": wrong}
    return table


def environment() -> dict[str, Any]:
    code = "import json, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in "
    code += "('SimpleITK', 'dicom2nifti', 'pydicom', 'python-gdcm', 'nibabel', 'numpy')}))"
    peers = subprocess.run([PEERS, "-c", code], capture_output=True, text=True, check=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT
    )
    return {
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        "hepar": {n: importlib.metadata.version(n) for n in ("pydicom", "SimpleITK", "numpy")},
        "peers": json.loads(peers.stdout),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--worker", choices=list(READERS))
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker)
        return
    result = run()
    text = json.dumps(result, indent=1) + "\n"
    if arguments.out:
        arguments.out.write_text(text)
    print(json.dumps(result["counts"], indent=1))


if __name__ == "__main__":
    main()
