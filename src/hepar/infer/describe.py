"""What a system or a model folder is made of, as plain data for `hepar info`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from hepar.errors import UsageError
from hepar.systems.table import SYSTEMS, lookup


def describe(subject: str | None, preset: str | None = None) -> dict[str, Any]:
    """Describe a system, a model folder, or (None) all systems.

    Args:
        subject: a system's name, a model folder, or None.
        preset: preset of the system; its first one by default.

    Raises:
        UsageError: `E_SUBJECT` or `E_PRESET` for a name that does not exist.
    """
    if subject is None:
        return {"systems": {name: _presets(name) for name in SYSTEMS}}
    if subject in SYSTEMS:
        return describe_system(subject, preset)
    if Path(subject).is_dir():
        return describe_bundle(Path(subject))
    raise UsageError(
        "E_SUBJECT",
        "info",
        f"{subject!r} is neither a system nor a model folder.",
        f"Use one of {', '.join(SYSTEMS)}, or the path of a model folder.",
    )


def _presets(name: str) -> list[str]:
    module = importlib.import_module(lookup(name).settings.__module__)
    return list(module.PRESETS)


def describe_system(name: str, preset: str | None) -> dict[str, Any]:
    """Parameters, modules and cost of one preset.

    Returns:
        `parameters` (total), `modules` (name -> parameters, the names of the paper) and `gflops` of
        one forward pass of batch 1 at the preset's patch with every phase (a multiply-add counts
        as two), counted on shapes alone.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    chosen = preset or _presets(name)[0]
    if chosen not in _presets(name):
        raise UsageError(
            "E_PRESET",
            "info",
            f"{name} has no preset {chosen!r}.",
            f"Use one of: {', '.join(_presets(name))}.",
        )
    entry = lookup(name)
    module = importlib.import_module(entry.module)
    settings: Any = entry.settings
    # Fake tensors have shapes and no data: the paper's preset is counted in a second.
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        model = getattr(module, entry.network)(settings.preset(chosen)).eval()
    spec = model.input_spec
    size = (1, len(spec.phases), spec.channels, *spec.patch)
    # Networks read it as Python values, so that it has to be real.
    present = torch.ones(1, len(spec.phases), dtype=torch.bool)
    with fake, torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(size), present)
    return {
        "system": name,
        "preset": chosen,
        "presets": _presets(name),
        "phases": list(spec.phases),
        "classes": list(spec.class_names),
        "input": list(size),
        "parameters": sum(p.numel() for p in model.parameters()),
        "modules": getattr(module, "module_parameters", _children)(model),
        "gflops": round(counter.get_total_flops() / 1e9, 3),
    }


def _children(model: Any) -> dict[str, int]:
    """Parameters by attribute, of a network whose parts no paper names."""
    return {
        name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()
    }


def describe_bundle(folder: Path) -> dict[str, Any]:
    """Parts, sizes and hash of a model folder, after its files were verified."""
    from hepar.infer.bundle import load_bundle

    bundle = load_bundle(folder)
    parts = {
        path.parent.name: path.stat().st_size
        for path in sorted(folder.rglob("weights.safetensors"))
    }
    return {
        "model": bundle.name,
        "version": bundle.version,
        "sha256": bundle.sha256,
        "weights_bytes": parts,
    }
