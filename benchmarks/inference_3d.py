"""Labels of a study by a 3D network: seconds and peak memory beside nnU-Net.

    python benchmarks/inference_3d.py [--base 16] [--rounds 2] [-o benchmarks/inference_3d.json]

One study of 512 x 512 x 200 voxels (0.8 x 0.8 x 1.25 mm), painted: a body of noisy soft tissue, a
liver of two lobes, seven tumors. One 3D U-Net (`networks.unet3d.PyramidUNet3d`, widths from
`--base` up, five levels), trained on that study until it finds most of its liver, though none of
its tumors (`--steps 250`), is run by hepar and by nnU-Net's own predictor: same weights, same
working spacing (2.47 x 1.90 x 1.90 mm), same windows (128^3, half overlap, Gaussian), mirroring
off, two threads, each run in a process of its own. The clock starts with the int16 volume in
memory and stops with labels on its voxels; resampling there and back, nnU-Net's by its own code,
is inside. nnU-Net comes from `benchmarks/.venv-peers` (`make peers`) and runs with the same
PyTorch.

Seconds of the processor are given beside those of the clock, which other work on the machine draws
out.

"liver" lays windows over the liver, whose mask is given, and 10 mm around it; "skipping" lays them
over the whole study and leaves out those without liver. OpenVINO is timed on the second study of a
process, when it is converted and let through; the first is given too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from hepar.geometry import Grid
from hepar.infer.labels import predict_labels
from hepar.infer.network import Tiling
from hepar.infer.on_grid import HuOnGrid, mask_on
from hepar.infer.openvino import OpenVino
from hepar.networks.unet3d import PyramidUNet3d
from hepar.preprocess import window, working_grid
from hepar.systems.base import InputSpec

PEERS = ROOT / "benchmarks" / ".venv-peers" / "lib"
SHAPE, SPACING = (200, 512, 512), (1.25, 0.8, 0.8)
WORKING, WINDOW = (2.47, 1.90, 1.90), 128
WINDOW_HU = (-160.0, 240.0)
CLASSES = ("background", "liver", "tumor")
AROUND_MM = 10.0
RUNS: dict[str, dict[str, Any]] = {
    "nnU-Net": {},
    "all windows": {},
    "all windows, OpenVINO f32": {"fast": "f32"},
    "all windows, OpenVINO bf16": {"fast": "bf16"},
    "skipping": {"liver": True},
    "liver": {"liver": True, "around": AROUND_MM},
    "liver, OpenVINO f32": {"liver": True, "around": AROUND_MM, "fast": "f32"},
    "liver, OpenVINO bf16": {"liver": True, "around": AROUND_MM, "fast": "bf16"},
}


class Segmenter(nn.Module):
    """The U-Net with a head; logits from `logits`, probabilities from `decode`."""

    def __init__(self, base: int) -> None:
        super().__init__()
        widths = [min(base * 2**level, 10 * base) for level in range(5)]
        self.body = PyramidUNet3d(1, widths)
        self.head = nn.Conv3d(base, len(CLASSES), 1)
        self.input_spec = spec()

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(image)[0])

    def forward(self, image: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        return self.logits(image[:, 0])

    def decode(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.float().softmax(1)


class Logits(nn.Module):
    """The same weights as nnU-Net calls them."""

    def __init__(self, system: Segmenter) -> None:
        super().__init__()
        self.system = system

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.system.logits(image)


def spec() -> InputSpec:
    size = (WINDOW,) * 3
    return InputSpec(
        dims=3,
        phases=("PV",),
        class_names=CLASSES,
        windows_hu=(WINDOW_HU,),
        slice_offsets_mm=(0.0,),
        spacing_mm=WORKING,
        patch=size,
        stride=16,
        needs_liver=False,
        window=size,
        whole_windows=True,
    )


def study(slices: int = SHAPE[0]) -> tuple[np.ndarray, np.ndarray]:
    """HU and label: 0 other, 1 liver, 2 tumor; a longer study has the same liver in its middle."""
    rng = np.random.default_rng(0)
    y, x = (np.arange(n, dtype=np.float32) * s for n, s in zip(SHAPE[1:], SPACING[1:], strict=True))
    y, x = y[:, None] - y.mean(), x[None] - x.mean()
    tumors = [
        (rng.uniform(-45, 45, 3) + np.array((0, -10, -55)), rng.uniform(6, 22)) for _ in range(7)
    ]
    noise = rng.normal(0, 18, (16, *SHAPE[1:])).astype(np.float32)
    hu = np.empty((slices, *SHAPE[1:]), np.int16)
    label = np.zeros(hu.shape, np.uint8)
    body = (y / 125) ** 2 + (x / 175) ** 2 <= 1
    for number in range(slices):
        z = (number - slices / 2) * SPACING[0]
        right = (z / 78) ** 2 + ((y + 10) / 82) ** 2 + ((x + 60) / 75) ** 2 <= 1
        left = ((z - 25) / 45) ** 2 + ((y + 40) / 45) ** 2 + ((x - 20) / 80) ** 2 <= 1
        label[number][(right | left) & body] = 1
        for (c, b, a), radius in tumors:
            inside = (z - c) ** 2 + (y - b) ** 2 + (x - a) ** 2 <= radius**2
            label[number][inside & (label[number] == 1)] = 2
        plane = np.where(body, 30.0, -1000.0) + noise[number % 16]
        plane += np.choose(label[number], (0.0, 75.0, 20.0))
        hu[number] = np.rint(plane)
    return hu, label


def trained(base: int, hu: np.ndarray, label: np.ndarray, steps: int) -> Segmenter:
    """The network after some steps on patches of the study."""
    torch.manual_seed(0)
    grid = Grid.axial(hu.shape, SPACING)
    target = working_grid(grid, WORKING)
    whole = tuple(slice(0, n) for n in target.shape)
    image = torch.from_numpy(window(HuOnGrid(hu, grid, target)[whole], WINDOW_HU))
    truth = sum(torch.from_numpy(mask_on(label >= k, grid, target)).long() for k in (1, 2))
    system = Segmenter(base).train()
    optimizer = torch.optim.Adam(system.parameters(), 2e-3)
    rng, size = np.random.default_rng(1), 48
    inside = np.argwhere(truth.numpy() > 0)
    for step in range(steps):
        wanted = inside[rng.integers(len(inside))] if step % 3 else rng.integers(0, target.shape)
        at = [
            int(np.clip(v - rng.integers(0, size), 0, n - size))
            for v, n in zip(wanted, target.shape, strict=True)
        ]
        part = tuple(slice(a, a + size) for a in at)
        found = system.logits(image[part][None, None])
        weight = torch.tensor([1.0, 2.0, 8.0])
        loss = functional.cross_entropy(found, truth[part][None], weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"trained for {steps} steps, last loss {loss.item():.3f}", file=sys.stderr)
    return system.eval()


def memory(name: str) -> int:
    """VmHWM or VmRSS of this process, in MiB."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if name in x)
    return int(line.split()[1]) >> 10


def nnunet(system: Segmenter, hu: np.ndarray) -> np.ndarray:
    """Labels by nnU-Net's predictor."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    low, high = WINDOW_HU
    order = {"is_seg": False, "order_z": 0, "force_separate_z": None}
    function = "resample_data_or_seg_to_shape"
    configuration = {
        "data_identifier": "none",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [WINDOW] * 3,
        "median_image_size_in_voxels": [101, 216, 216],
        "spacing": list(WORKING),
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": function,
        "resampling_fn_seg": function,
        "resampling_fn_probabilities": function,
        "resampling_fn_data_kwargs": {**order, "order": 3},
        "resampling_fn_seg_kwargs": {**order, "is_seg": True, "order": 1},
        "resampling_fn_probabilities_kwargs": {**order, "order": 1},
        "architecture": {},
        "batch_dice": False,
    }
    # (HU - mean) / std is then what `preprocess.window` gives.
    intensities = {"mean": low, "std": high - low, "percentile_00_5": low, "percentile_99_5": high}
    plans = {
        "dataset_name": "Dataset000_Painted",
        "plans_name": "plans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "foreground_intensity_properties_per_channel": {"0": intensities},
    }
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {name: number for number, name in enumerate(CLASSES)},
        "file_ending": ".nii.gz",
    }
    manager = PlansManager(plans)
    predictor = nnUNetPredictor(
        tile_step_size=0.5,
        use_gaussian=True,
        use_mirroring=False,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    network = Logits(system).eval()
    predictor.manual_initialization(
        network,
        manager,
        manager.get_configuration("3d_fullres"),
        [network.state_dict()],
        dataset,
        "nnUNetTrainer",
        None,
    )
    return predictor.predict_single_npy_array(hu[None], {"spacing": list(SPACING)})


def work(name: str, folder: Path, base: int) -> dict[str, Any]:
    """One run, in this process."""
    how = RUNS[name]
    system = Segmenter(base)
    system.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    system.eval()
    hu = np.load(folder / "hu.npy")
    liver = np.load(folder / "label.npy") > 0 if how.get("liver") else None
    document: dict[str, Any] = {"run": name}
    if name == "nnU-Net":
        (python,) = PEERS.glob("python*")
        sys.path.append(str(python / "site-packages"))
        import nnunetv2.inference.predict_from_raw_data  # noqa: F401

        before = memory("VmRSS")
        begun, cpu = time.perf_counter(), time.process_time()
        found = nnunet(system, hu)
        document["seconds"] = round(time.perf_counter() - begun, 2)
        document["cpu_seconds"] = round(time.process_time() - cpu, 2)
    else:
        counts: list[int] = []
        told: list[str] = []
        tiling = Tiling(
            runner_for=OpenVino(how["fast"]) if "fast" in how else None,
            around_liver_mm=how.get("around"),
            counted=lambda run, left_out: counts.extend((run, left_out)),
            warn=told.append,
        )
        before = memory("VmRSS")
        seconds = []
        for _ in range(2 if "fast" in how else 1):
            begun, cpu = time.perf_counter(), time.process_time()
            grid = Grid.axial(hu.shape, SPACING)
            found = predict_labels(system, {"PV": hu}, grid, liver=liver, tiling=tiling)
            seconds.append(round(time.perf_counter() - begun, 2))
            document["cpu_seconds"] = round(time.process_time() - cpu, 2)
        document["seconds"] = seconds[-1]
        if len(seconds) > 1:
            document["first_study_s"] = seconds[0]
        document.update(windows_run=counts[0], windows_left_out=counts[1], warnings=told)
    document.update(peak_rss_mib=memory("VmHWM"), rss_before_mib=before)
    np.save(folder / f"{name}.npy", np.asarray(found, np.uint8))
    return document


def dice(folder: Path, name: str, other: str) -> dict[str, float]:
    one, two = np.load(folder / f"{name}.npy"), np.load(folder / f"{other}.npy")
    found = {}
    for number, structure in ((1, "liver"), (2, "tumor")):
        a, b = one >= number, two >= number
        total = np.count_nonzero(a) + np.count_nonzero(b)
        found[structure] = round(2 * np.count_nonzero(a & b) / max(1, total), 4)
    return found


def child(*arguments: str) -> dict[str, Any]:
    """What this script says in a process of its own."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "passive",
        "nnUNet_def_n_proc": "2",
    }
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{arguments}: {done.stderr[-3000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found), flush=True)
    return found


def compared(options: argparse.Namespace) -> dict[str, Any]:
    """Every run of `RUNS`, round by round, each kept at its fastest."""
    best: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        hu, label = study()
        np.save(folder / "hu.npy", hu)
        np.save(folder / "label.npy", label)
        system = trained(options.base, hu, label, options.steps)
        torch.save(system.state_dict(), folder / "weights.pt")
        for _ in range(options.rounds):
            for name in options.runs:
                found = child("--work", name, "--folder", place, "--base", str(options.base))
                if name not in best or found["seconds"] < best[name]["seconds"]:
                    kept = best.get(name, found)["seconds_of_rounds"] if name in best else []
                    best[name] = {**found, "seconds_of_rounds": kept}
                best[name]["seconds_of_rounds"] = [
                    *best[name]["seconds_of_rounds"],
                    found["seconds"],
                ]
        for name, found in best.items():
            found["dice_to_truth"] = dice(folder, name, "label")
            if "nnU-Net" in best:
                found["dice_to_nnunet"] = dice(folder, name, "nnU-Net")
                for kind, times in (("seconds", "times_faster"), ("cpu_seconds", "times_less_cpu")):
                    found[times] = round(best["nnU-Net"][kind] / found[kind], 2)
    return {
        "shape": SHAPE,
        "spacing_mm": SPACING,
        "liver_box_mm": [
            float(round((np.ptp(np.flatnonzero((label > 0).any(axis=others))) + 1) * step, 1))
            for others, step in zip(((1, 2), (0, 2), (0, 1)), SPACING, strict=True)
        ],
        "base": options.base,
        "parameters": sum(p.numel() for p in system.parameters()),
        "runs": list(best.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--runs", nargs="*", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--work")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(2)
    if options.work:
        print(json.dumps(work(options.work, options.folder, options.base)))
        return
    document: dict[str, Any] = {
        "command": "python " + " ".join(sys.argv),
        "cores": os.cpu_count(),
        "threads": 2,
        "torch": torch.__version__,
        "compared": compared(options),
    }
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
