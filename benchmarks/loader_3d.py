"""Patches of 128^3 voxels a second, from disk through augmentation: ours beside nnU-Net's loader.

    .venv/bin/python benchmarks/loader_3d.py --data FOLDER -o benchmarks/loader_3d.json

Four phantom patients of 160 x 220 x 220 voxels of 2.47 x 1.9 x 1.9 mm, painted once into FOLDER, in
one phase. Ours reads them from its chunk cache in two threads of one process. nnU-Net 2.8.1 (`make
peers`, in a process of its own) reads them from files that its `nnUNetDatasetBlosc2` wrote, with
chunks of its own choice, in its `NonDetMultiThreadedAugmenter` with two processes. Both cut
batches of two, a third of the patches around foreground. Both augment by the same kinds of
transforms, with nnU-Net's ranges: rotation around three axes by up to 30 degrees (probability 0.2),
one scale for all axes of 0.7 to 1.4 (0.2), mirroring of all axes (0.5 each), and once more with
elastic deformation (0.2) beside them; neither changes intensities, which ours windows and nnU-Net
finds normalized.

nnU-Net cuts a larger piece, so that a rotated patch has no empty corners, and interpolates a volume
a label where ours takes the nearest voxel; `nnunet_same_piece` is its loader with pieces of 128^3
voxels, as ours. Every round measures each loader once, in turn; a loader starts a round with empty
queues, and what it needs to fill them is left out. `cpu_s` is the processor time of a patch, in all
processes of the loader: on a machine with other work, whose load average is above its cores, it
says more than the rate.

"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "benchmarks" / ".venv-peers" / "bin" / "python"
SPACING, SHAPE, PATCH, BATCH, CASES = (2.47, 1.9, 1.9), (160, 220, 220), 128, 2, 4
WORKERS, QUEUE, FOREGROUND = 2, 6, 0.33
SIGMA, PIXELS = (9.0, 13.0), (0.0, 8.0)
LOADERS = ("ours", "nnunet", "nnunet_same_piece")


def paint_all(folder: Path) -> Path:
    """A cohort of phantoms on disk, and the same voxels as arrays for the peer."""
    from hepar.geometry import Grid
    from hepar.io.nifti import write_nifti
    from hepar.phantom.anatomy import anatomy
    from hepar.phantom.scanner import paint

    table = folder / "cohort.csv"
    if table.exists():
        return table
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["case_id,patient_id,pv,label,split"]
    for number in range(CASES + 1):
        # The last is held out and never read: a cohort must have one.
        shape = SHAPE if number < CASES else (8, 16, 16)
        painted = paint(anatomy(number, shape=shape, spacing_mm=SPACING), number, phases=("PV",))
        grid = Grid.axial(shape, SPACING)
        write_nifti(folder / f"{number}.nii.gz", painted.hu["PV"], grid)
        write_nifti(folder / f"{number}-label.nii.gz", painted.label, grid)
        np.savez(folder / f"{number}.npz", hu=painted.hu["PV"], label=painted.label)
        split = "train" if number < CASES else "validation"
        lines.append(f"{number},{number},{number}.nii.gz,{number}-label.nii.gz,{split}")
        print(f"painted {number}", file=sys.stderr, flush=True)
    table.write_text("\n".join(lines) + "\n")
    return table


class Ours:
    """Our loader, in this process."""

    def __init__(self, table: Path) -> None:
        import torch

        from hepar.data.cohort_cases import CohortCases
        from hepar.data.tumor_source import CaseSource
        from hepar.recipe_data import CohortData
        from hepar.systems.base import InputSpec

        torch.set_num_threads(1)
        self.spec = InputSpec(
            dims=3,
            phases=("PV",),
            class_names=("background", "liver", "tumor"),
            windows_hu=((-160.0, 240.0),),
            slice_offsets_mm=(0.0,),
            spacing_mm=SPACING,
            patch=(PATCH,) * 3,
            stride=32,
            needs_liver=False,
        )
        settings = CohortData(path=table, margin_mm=None, foreground_fraction=FOREGROUND)
        cases = CohortCases(settings, self.spec, cache_dir=table.parent / "cache")
        self.cases = [cases.train_case(n, 0) for n in range(CASES)]
        self.source = CaseSource(cases, settings, self.spec, seed=0)
        self.step = 0

    def measure(self, elastic: bool, n: int) -> tuple[float, float]:
        """Seconds and processor seconds of so many batches."""
        import torch

        from hepar.data.augment import Augmentation
        from hepar.data.sampling import batches
        from hepar.recipe import Augment

        settings = Augment(
            p=0.2,
            shift=0.0,
            rotate_deg=30.0,
            tilt_deg=30.0,
            scale=(0.7, 1.4),
            flip_axes=("z", "y", "x"),
            elastic_p=0.2 if elastic else 0.0,
        )
        finish = Augmentation(settings, self.spec, seed=0, device=torch.device("cpu"))
        skip = 2 * WORKERS + 1
        stream = batches(
            self.source,
            batch_size=BATCH,
            start=self.step,
            stop=self.step + skip + n,
            finish=finish,
            workers=WORKERS,
        )
        self.step += skip + n
        for _ in range(skip):
            next(stream)
        begun, spent = time.perf_counter(), time.process_time()
        for _ in range(n):
            image = next(stream).image
        assert tuple(image.shape) == (BATCH, 1, 1, *(PATCH,) * 3)
        took = time.perf_counter() - begun, time.process_time() - spent
        stream.close()
        return took

    def unpacked(self) -> dict[str, float]:
        """Bytes unpacked a byte of a patch, over random patches of every case."""
        rng = np.random.default_rng(0)
        rates: list[float] = []
        for case in self.cases:
            for _ in range(25):
                box = tuple(slice(a, a + PATCH) for a in rng.integers(np.array(SHAPE) - PATCH + 1))
                before = case.hu.bytes_decompressed + case.label.bytes_decompressed
                wanted = case.hu[(0, *box)].nbytes + case.label[box].nbytes
                after = case.hu.bytes_decompressed + case.label.bytes_decompressed
                rates.append((after - before) / wanted)
        return {"median": round(median(rates), 3), "largest": round(max(rates), 3)}


class Theirs:
    """nnU-Net's loader, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [PEERS, __file__, "--peer", "--data", folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )
        self.about = self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError("the peer ended")

    def measure(self, loader: str, elastic: bool, n: int) -> tuple[float, float]:
        """Seconds and processor seconds of so many batches."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([loader, elastic, n]) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        return answer["seconds"], answer["cpu_s"]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def peer(folder: Path) -> None:
    """What runs among the peers: write the data set, then measure as asked on stdin."""
    import blosc2
    import torch
    from batchgenerators.dataloading.nondet_multi_threaded_augmenter import (
        NonDetMultiThreadedAugmenter,
    )
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
    from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
    from nnunetv2.training.dataloading.nnunet_dataset import (
        comp_blosc2_params,
        nnUNetDatasetBlosc2,
    )

    torch.set_num_threads(1)
    store = folder / "nnunet"
    store.mkdir(exist_ok=True)
    for number in range(CASES):
        if not (store / f"{number}.pkl").exists():
            arrays = np.load(folder / f"{number}.npz")
            label = arrays["label"].astype(np.int8)[None]
            inside = arrays["hu"][label[0] > 0].astype(np.float32)
            hu = (arrays["hu"].astype(np.float32)[None] - inside.mean()) / inside.std()
            shapes = [comp_blosc2_params(a.shape, (PATCH,) * 3, a.itemsize) for a in (hu, label)]
            rng = np.random.default_rng(number)
            places = {c: np.argwhere(label == c) for c in (1, 2)}
            places = {c: rng.permutation(v)[:10000] for c, v in places.items()}
            nnUNetDatasetBlosc2.save_case(
                hu,
                label,
                {"class_locations": places},
                str(store / str(number)),
                blocks=shapes[0][0],
                chunks=shapes[0][1],
                blocks_seg=shapes[1][0],
                chunks_seg=shapes[1][1],
            )

    labels: Any = SimpleNamespace(all_labels=[0, 1, 2], has_ignore_label=False)
    turn = tuple(np.radians((-30.0, 30.0)))
    grown = tuple(int(n) for n in get_patch_size((PATCH,) * 3, turn, turn, turn, (0.85, 1.25)))
    about = {
        "torch": torch.__version__,
        "blosc2": blosc2.__version__,
        "piece": grown,
        "chunks": comp_blosc2_params((1, *SHAPE), (PATCH,) * 3, 4)[1],
    }
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        loader, elastic, n = json.loads(line)
        transforms = ComposeTransforms(
            [
                SpatialTransform(
                    (PATCH,) * 3,
                    patch_center_dist_from_border=0,
                    random_crop=False,
                    p_elastic_deform=0.2 if elastic else 0.0,
                    elastic_deform_scale=tuple(s / PATCH for s in SIGMA),
                    elastic_deform_magnitude=PIXELS,
                    p_rotation=0.2,
                    rotation=turn,
                    p_scaling=0.2,
                    scaling=(0.7, 1.4),
                    p_synchronize_scaling_across_axes=1,
                    bg_style_seg_sampling=False,
                    border_mode_seg="constant",
                    padding_value_seg=-1,
                ),
                MirrorTransform(allowed_axes=(0, 1, 2)),
                RemoveLabelTansform(-1, 0),
            ]
        )
        data = nnUNetDataLoader(
            nnUNetDatasetBlosc2(str(store)),
            BATCH,
            grown if loader == "nnunet" else (PATCH,) * 3,
            (PATCH,) * 3,
            labels,
            oversample_foreground_percent=FOREGROUND,
            transforms=transforms,
            probabilistic_oversampling=True,
        )
        stream = NonDetMultiThreadedAugmenter(
            data, None, WORKERS, num_cached=QUEUE, seeds=None, pin_memory=False, wait_time=0.002
        )
        for _ in range(QUEUE + 2 * WORKERS):
            next(stream)
        begun, spent = time.perf_counter(), spent_by_all()
        for _ in range(n):
            batch = next(stream)
        assert tuple(batch["data"].shape) == (BATCH, 1, *(PATCH,) * 3)
        took = {"seconds": time.perf_counter() - begun, "cpu_s": spent_by_all() - spent}
        stream._finish()
        print(json.dumps(took), flush=True)


def spent_by_all() -> float:
    """Processor seconds of this process and its children (Linux)."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended in between
        if os.getpid() in (int(stat.parent.name), int(fields[1])):
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=24)
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--only-ours", action="store_true")
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args()
    if options.peer:
        peer(options.data)
        return
    sys.path.insert(0, str(ROOT / "src"))
    import blosc2
    import torch

    ours = Ours(paint_all(options.data))
    theirs = None if options.only_ours else Theirs(options.data)
    found: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    loads = []
    for _ in range(options.rounds):
        loads.append(os.getloadavg()[0])
        for elastic in (False, True):
            for name in LOADERS[: 1 if theirs is None else 3]:
                took = (
                    ours.measure(elastic, options.batches)
                    if name == "ours" or theirs is None
                    else theirs.measure(name, elastic, options.batches)
                )
                found.setdefault((name, elastic), []).append(took)
                print(name, elastic, [round(t, 2) for t in took], file=sys.stderr, flush=True)
    if theirs is not None:
        theirs.close()
    document = {
        "command": "python benchmarks/loader_3d.py --data FOLDER "
        f"--rounds {options.rounds} --batches {options.batches}",
        "beside": "other work of the machine, where the load average is above its cores",
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "blosc2": blosc2.__version__,
        "nnunet": None if theirs is None else {"version": "2.8.1", **theirs.about},
        "cases": CASES,
        "shape": SHAPE,
        "patch": PATCH,
        "batch": BATCH,
        "batches_a_round": options.batches,
        "rounds": options.rounds,
        "load_average_before_rounds": [round(load, 1) for load in loads],
        "unpacked_bytes_per_patch_byte": ours.unpacked(),
        "results": [row(found, *key, options.batches) for key in found],
    }
    text = json.dumps(document, indent=1) + "\n"
    if options.out:
        options.out.write_text(text)
    print(text)


def row(
    found: dict[tuple[str, bool], list[tuple[float, float]]], name: str, elastic: bool, n: int
) -> dict[str, Any]:
    """Median and range of a loader's rounds; ratios are of the same round."""
    rates = [BATCH * n / seconds for seconds, _ in found[name, elastic]]
    spent = [cpu / (BATCH * n) for _, cpu in found[name, elastic]]
    ours = found["ours", elastic]
    faster = [
        theirs / mine for (theirs, _), (mine, _) in zip(found[name, elastic], ours, strict=True)
    ]
    lighter = [
        theirs / mine for (_, theirs), (_, mine) in zip(found[name, elastic], ours, strict=True)
    ]
    return {
        "loader": name,
        "elastic": elastic,
        "patches_per_s": round(median(rates), 2),
        "range": [round(min(rates), 2), round(max(rates), 2)],
        "cpu_s": round(median(spent), 4),
        "cpu_s_range": [round(min(spent), 4), round(max(spent), 4)],
        "ours_faster": round(median(faster), 2),
        "ours_faster_range": [round(min(faster), 2), round(max(faster), 2)],
        "ours_less_cpu": round(median(lighter), 2),
        "ours_less_cpu_range": [round(min(lighter), 2), round(max(lighter), 2)],
    }


if __name__ == "__main__":
    main()
