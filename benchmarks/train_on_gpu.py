"""Train a recipe on a bare GPU machine, in one command that ends by itself.

    python benchmarks/train_on_gpu.py recipes/sam_urim/lite.yaml -o OUT \\
        --set schedule.steps=12000 --set schedule.batch_size=16 --set data.train_patients=400

Needs torch, numpy, scipy, einops, jaxtyping, safetensors, pyyaml and pydantic. Paints its phantoms
there with every core, trains, validates, and leaves in OUT: `part/` (recipe and float16 weights, a
part of a bundle), `log.jsonl` and `scores.json`. The run itself lies in `--work` and resumes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch

from hepar.data.phantom_cases import PhantomCases
from hepar.infer.bundle import export_part
from hepar.recipe import load_recipe
from hepar.recipe_data import PhantomTumorData
from hepar.systems.table import build
from hepar.train.checkpoint import read_tensors
from hepar.train.loop import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args()
    recipe = load_recipe(options.recipe, options.overrides)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    begun = time.perf_counter()
    cache = options.work / "cache"
    if isinstance(recipe.data, PhantomTumorData):
        spec = build(recipe.system).input_spec
        PhantomCases(recipe.data, spec, cache_dir=cache).fill(os.cpu_count() or 1)
    painted = time.perf_counter() - begun
    print(f"painted in {painted:.0f} s", flush=True)
    result = train(
        recipe,
        options.work / "run",
        device=device,
        cache_dir=cache,
        workers=max(1, (os.cpu_count() or 2) - 2),
        progress=lambda done, total, entry: print(done, total, json.dumps(entry), flush=True),
    )
    options.out.mkdir(parents=True, exist_ok=True)
    weights, _ = read_tensors(result.weights)
    export_part(recipe, weights, {}, options.out / "part")
    shutil.copyfile(options.work / "run" / "log.jsonl", options.out / "log.jsonl")
    scores = {
        "recipe": recipe.name,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "painting_seconds": round(painted, 1),
        "training_seconds": round(result.seconds, 1),
        "steps": result.steps,
        "skipped_steps": result.skipped_steps,
        "best_step": result.best_step,
        "best_validation_dice": result.best_score,
    }
    (options.out / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    print(json.dumps(scores))


if __name__ == "__main__":
    main()
