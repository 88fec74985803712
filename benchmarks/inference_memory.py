"""Peak memory of labelling studies of more and more slices, around a network of a single weight.

    python benchmarks/inference_memory.py [--slices 250 500 1000] [-o OUT.json]

Studies of 512 x 512 voxels a slice, painted as for `inference_3d.py`, each in a process of its own,
without a liver mask and with one. "beyond" is what is held at the peak besides HU, mask and labels.
What a real network needs for one window comes on top; `inference_3d.json` has that.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hepar.geometry import Grid
from hepar.infer.labels import predict_labels
from inference_3d import SHAPE, SPACING, memory, spec, study


class Pointwise(nn.Module):
    """Next to nothing, so that what is measured is what lies around a network."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(4.0))
        self.input_spec = spec()

    def forward(self, image: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        at = self.gain * (image[:, 0, 0] - 0.6)
        return torch.stack([-at, at, 2 * at - 1], 1)

    def decode(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.softmax(1)


def by_slices(slices: int, masked: bool) -> dict[str, Any]:
    """Peak memory of a study of so many slices, in this process, around a network of one weight."""
    some, label = study(100)
    hu = np.resize(some, (slices, *SHAPE[1:]))
    liver = np.resize(label > 0, hu.shape) if masked else None
    del some, label
    held = hu.nbytes + (liver.nbytes if liver is not None else 0)
    grid = Grid.axial(hu.shape, SPACING)
    # Whatever painting took at its peak must not count.
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    begun = time.perf_counter()
    labels = predict_labels(Pointwise(), {"PV": hu}, grid, liver=liver)
    seconds = time.perf_counter() - begun
    peak = memory("VmHWM")
    return {
        "slices": slices,
        "liver_given": masked,
        "peak_rss_mib": peak,
        "input_and_labels_mib": (held + labels.nbytes) >> 20,
        "peak_beyond_mib": peak - ((held + labels.nbytes) >> 20),
        "rss_before_mib": before,
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, nargs="+", default=[250, 500, 1000])
    parser.add_argument("--one", action="store_true", help="Measure the first in this process.")
    parser.add_argument("--masked", action="store_true", help="With --one: a liver is given.")
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(2)
    if options.one:
        print(json.dumps(by_slices(options.slices[0], options.masked)))
        return
    rows = []
    for masked in (False, True):
        for slices in options.slices:
            command = [sys.executable, __file__, "--one", "--slices", str(slices)]
            command += ["--masked"] if masked else []
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(json.dumps(rows[-1]), flush=True)
    document = {
        "command": "python benchmarks/inference_memory.py",
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "studies": rows,
    }
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
