"""What nnU-Net itself plans for made-up fingerprints, and how large its networks are.

    .venv/bin/python benchmarks/nnunet_plans.py -o tests/nnunet_plans.json

Runs nnunetv2's `ExperimentPlanner` in `benchmarks/.venv-peers` (`make peers`)
on each fingerprint, as a data set on disk whose images are never opened, and counts the
parameters of its `PlainConvUNet`. The result is what `tests/test_nnunet_planning.py` holds hepar's
planner to. One file, because another process runs its second half.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

PEER = Path(__file__).with_name(".venv-peers") / "bin" / "python"
PHASES = 1
LABELS = {"background": 0, "liver": 1, "tumor": 2}
PRESETS = {
    # Levels of 128 cubed, as published for the liver: see `settings.py`.
    "six levels": ([[2, 2, 2]] * 5, [[3, 3, 3]] * 6, [32, 64, 128, 256, 320, 320]),
    "anisotropic": (
        [[1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]],
        [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
        [8, 16, 32, 64, 128],
    ),
}


def _cohort(
    seed: int, cases: int, thickness: list[float], slices: tuple[int, int], plane: list[float]
) -> dict[str, Any]:
    """Cases whose slices are of some thickness and pixels of some size, drawn from a seed."""
    rng = np.random.default_rng(seed)
    shapes, spacings = [], []
    for _ in range(cases):
        mm = round(float(rng.uniform(*plane)), 4)
        z = round(float(rng.choice(thickness)), 4)
        shapes.append([int(rng.integers(*slices)), 512, 512])
        spacings.append([z, mm, mm])
    return {"shapes": shapes, "spacings_mm": spacings}


def _lits_like(seed: int, cases: int) -> dict[str, Any]:
    """Slices of 0.45 to 6 mm over 200 to 700 mm of the patient."""
    rng = np.random.default_rng(seed)
    shapes, spacings = [], []
    for _ in range(cases):
        z = float(rng.choice([0.45, 0.7, 0.8, 0.8, 1.0, 1.0, 1.0, 1.25, 1.5, 2.0, 2.5, 5.0, 6.0]))
        mm = round(min(1.0, max(0.55, rng.normal(0.78, 0.09))), 4)
        shapes.append([round(float(rng.uniform(200, 700)) / z), 512, 512])
        spacings.append([z, mm, mm])
    return {"shapes": shapes, "spacings_mm": spacings}


def _small(seed: int, cases: int, least: int, most: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shapes = rng.integers(least, most, (cases, 3)).tolist()
    return {"shapes": shapes, "spacings_mm": rng.uniform(1.0, 1.6, (cases, 3)).round(3).tolist()}


def fingerprints() -> dict[str, dict[str, Any]]:
    """Shapes and spacings (z, y, x) of made-up data sets, by name."""
    one = {
        "shapes": [[432, 512, 512]] * 131,
        "spacings_mm": [[1.0, 0.767578125, 0.767578125]] * 131,
    }
    return {
        "LiTS as published": one,
        "LiTS-like": _lits_like(1, 131),
        "isotropic": _cohort(2, 20, [0.8], (300, 420), [0.8, 0.8001]),
        "thinner than wide": _cohort(3, 12, [0.5], (500, 800), [0.7, 0.9]),
        "5 mm": _cohort(4, 40, [5.0], (35, 60), [0.68, 0.86]),
        "2.5 mm": _cohort(5, 40, [2.5], (80, 140), [0.68, 0.86]),
        "1 to 10 mm": _cohort(6, 60, [1.0, 5.0, 5.0, 7.5, 10.0], (30, 120), [0.6, 0.9]),
        "liver boxes": _small(7, 50, 70, 150),
        "tiny": _small(8, 30, 13, 31),
        "tiny and few": _small(9, 3, 9, 40),
        "tall": {"shapes": [[41, 300, 96]] * 9, "spacings_mm": [[1.5, 1.5, 3.3]] * 9},
        "phantom": {"shapes": [[32, 128, 128]] * 120, "spacings_mm": [[5.0, 2.9, 2.9]] * 120},
    }


def _ask(cases: dict[str, Any]) -> dict[str, Any]:
    """In the peers' environment: nnU-Net's plan of some cases."""
    from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner as own

    number = len(cases["shapes"])
    name = "Dataset001_Liver"
    raw = Path(os.environ["nnUNet_raw"]) / name  # noqa: SIM112 - their name
    done = Path(os.environ["nnUNet_preprocessed"]) / name  # noqa: SIM112
    for folder in (raw / "imagesTr", raw / "labelsTr", done):
        folder.mkdir(parents=True, exist_ok=True)
    document = {
        "channel_names": {"0": "CT"},
        "labels": LABELS,
        "numTraining": number,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
    }
    (raw / "dataset.json").write_text(json.dumps(document))
    (raw / "imagesTr" / "a_0000.nii.gz").touch()
    (raw / "labelsTr" / "a.nii.gz").touch()
    hu = {"mean": 99.0, "std": 39.0, "percentile_00_5": -17.0, "percentile_99_5": 201.0}
    fingerprint = {
        "spacings": cases["spacings_mm"],
        "shapes_after_crop": cases["shapes"],
        "foreground_intensity_properties_per_channel": {"0": hu},
        "median_relative_size_after_cropping": 1.0,
    }
    (done / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    # A plan that lies there already would lend this one its configurations.
    (done / "nnUNetPlans.json").unlink(missing_ok=True)
    plans = own.ExperimentPlanner(1).plan_experiment()
    back = plans["transpose_backward"]
    return {
        key: _configuration(plans["configurations"][key], back)
        for key in ("3d_fullres", "3d_lowres")
        if key in plans["configurations"]
    }


def _configuration(found: dict[str, Any], back: list[int]) -> dict[str, Any]:
    """A configuration in the order of the cases' axes."""
    network = found["architecture"]["arch_kwargs"]

    def turn(values: Any) -> list[float]:
        return [float(values[axis]) for axis in back]

    return {
        "spacing_mm": turn(found["spacing"]),
        "median_shape": turn(found["median_image_size_in_voxels"]),
        "patch": turn(found["patch_size"]),
        # nnU-Net's first stage has a stride too, of 1.
        "strides": [turn(step) for step in network["strides"][1:]],
        "kernels": [turn(kernel) for kernel in network["kernel_sizes"]],
        "channels": list(network["features_per_stage"]),
        "batch_size": int(found["batch_size"]),
        "batch_dice": bool(found["batch_dice"]),
    }


def _parameters(strides: Any, kernels: Any, channels: Any) -> dict[str, int]:
    """Of nnU-Net's own network, with a head at every level of the decoder, as it always has."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from torch import nn

    levels = len(channels)
    network = PlainConvUNet(
        PHASES,
        levels,
        channels,
        nn.Conv3d,
        kernels,
        [[1, 1, 1], *strides],
        2,
        len(LABELS),
        2,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )
    # Their decoder holds the encoder; its parameters count once.
    total = sum(p.numel() for p in network.parameters())
    heads = [sum(p.numel() for p in h.parameters()) for h in network.decoder.seg_layers]
    return {"total": total, "heads, coarsest first": heads}


def _as_peer() -> None:
    with contextlib.redirect_stdout(sys.stderr):
        made = fingerprints()
        document = {
            "made by": "benchmarks/nnunet_plans.py",
            "versions": {
                name: metadata.version(name)
                for name in ("nnunetv2", "dynamic_network_architectures", "torch", "numpy")
            },
            "networks": {
                name: {"strides": s, "kernels": k, "channels": c, **_parameters(s, k, c)}
                for name, (s, k, c) in PRESETS.items()
            },
            "plans": {name: {"cases": _packed(c), "plan": _ask(c)} for name, c in made.items()},
        }
    json.dump(document, sys.stdout)


def _packed(cases: dict[str, Any]) -> list[list[float]]:
    """Each case as one row: how often, shape, spacing."""
    rows: dict[tuple[float, ...], int] = {}
    for shape, spacing in zip(cases["shapes"], cases["spacings_mm"], strict=True):
        rows[*shape, *spacing] = rows.get((*shape, *spacing), 0) + 1
    return [[count, *row] for row, count in rows.items()]


def main() -> None:
    """Ask the peer, and write what it answered."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        _as_peer()
        return
    with tempfile.TemporaryDirectory() as folder:
        places = {
            key: str(Path(folder) / key)
            for key in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
        }
        answer = subprocess.run(
            [str(PEER), "-W", "ignore", str(Path(__file__).resolve()), "--peer"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **places, "OMP_NUM_THREADS": "1"},
        )
    if answer.returncode:
        raise SystemExit(answer.stderr)
    document = json.loads(answer.stdout)
    rows = {key: json.dumps(value, separators=(",", ":")) for key, value in document.items()}
    lines = [f"  {json.dumps(key)}: {row}" for key, row in rows.items()]
    options.out.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
