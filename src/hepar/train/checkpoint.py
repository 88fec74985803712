"""Checkpoints that survive a kill at any moment: safetensors, written whole or not at all.

`last.safetensors` holds everything a run needs to go on bit for bit: weights, their moving average,
optimizer tensors, and counters as JSON in the header. There is no random state to keep: data are a
function of (seed, epoch, index) and the model's randomness is reseeded from (seed, step).
`best.safetensors` holds weights alone, under the network's own names. The header of either holds a
SHA-256 over names, shapes, values and the rest of the header: safetensors itself does not notice a
byte that changed on the disk.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hepar.errors import ModelIntegrityError, UsageError
from hepar.io.atomic import atomic_path
from hepar.recipe import Recipe, Schedule
from hepar.systems.table import build
from hepar.train.plateau import Plateau
from hepar.train.published import start_trunk

HEADER = "hepar"
FORMAT = 2
_UNSIGNED = 1  # without a digest; still read


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header; the file at `path` is the old one until it is the new one.

    Args:
        path: where to.
        tensors: any device and layout; stored contiguous, so that equal runs give equal bytes.
        header: JSON data.
    """
    plain = {
        name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()
    }
    full = {"format": FORMAT, **header}
    text = json.dumps({**full, "sha256": _digest(plain, full)}, sort_keys=True)
    with atomic_path(path) as temporary:
        save_file(plain, temporary, metadata={HEADER: text})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Raises:
        ModelIntegrityError: `E_CKPT_CORRUPT`, damaged or not ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = header["format"]
        if found not in (_UNSIGNED, FORMAT):
            raise ValueError(f"its format is {found!r}, this version reads {FORMAT}")
        if found == FORMAT and header.pop("sha256") != _digest(tensors, header):
            raise ValueError("its content is not what its SHA-256 was taken from")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ModelIntegrityError(
            "E_CKPT_CORRUPT",
            "train",
            f"{path.name} cannot be read as a checkpoint: {error}.",
            "Delete the damaged file; a run without checkpoints starts from its beginning.",
        ) from None
    return tensors, header


def _digest(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    """SHA-256 of CPU tensors, contiguous, with their names, types and shapes, and of a header."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def starting_model(recipe: Recipe) -> nn.Module:
    """The network as a run begins: random, or with the weights of another run or of a trunk."""
    model = build(recipe.system)
    if recipe.schedule.trunk_weights is not None:
        start_trunk(model, recipe.schedule.trunk_weights)
    if recipe.schedule.initial_weights is not None:
        model.load_state_dict(read_tensors(recipe.schedule.initial_weights)[0])
    return model


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under `prefix.name`."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under `prefix.`, without it."""
    cut = len(prefix) + 1
    return {name[cut:]: value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def pack_optimizer(
    optimizer: torch.optim.Optimizer,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors named `index.key`, and the rest as JSON data."""
    state = optimizer.state_dict()["state"]
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for index, entries in state.items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value
            else:
                scalars[f"{index}.{key}"] = value
    return tensors, scalars


def unpack_optimizer(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    scalars: Mapping[str, Any],
) -> None:
    """Restore what `pack_optimizer` gave, into an optimizer over the same parameters.

    Tensors of a parameter's shape take that parameter's memory layout: another layout would send
    the update through other vector instructions, whose rounding can differ.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, value in (*tensors.items(), *scalars.items()):
        index, key = name.split(".", 1)
        parameter = parameters[int(index)]
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            layout = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False)
            value = layout.copy_(value)
        state.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


@dataclass
class TrainState:
    """Everything that changes from step to step.

    Attributes:
        model: the network in training.
        average: moving average of its weights; None without `schedule.ema_decay`.
        ema_decay: of that average.
        optimizer: over the model's parameters.
        scaler: enabled for fp16 alone.
        step: steps done.
        best_score: best validation score; None before a scorable one.
        best_step: step of the weights in `best.safetensors`; 0 before the first.
        skipped: steps skipped in all.
        streak: steps skipped in a row, up to now.
        rollbacks: times the weights were taken back to those of a checkpoint.
        scored: newest step whose validation is done; one that a signal cut short is made up for.
        data: hash of what is trained on; None before it is known.
        plateau: what validation losses have done to the learning rate.
    """

    model: nn.Module
    average: nn.Module | None
    ema_decay: float
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    best_score: float | None = None
    best_step: int = 0
    skipped: int = 0
    streak: int = 0
    rollbacks: int = 0
    scored: int = 0
    data: str | None = None
    plateau: Plateau = field(default_factory=Plateau)

    @classmethod
    def fresh(
        cls, model: nn.Module, optimizer: torch.optim.Optimizer, schedule: Schedule
    ) -> TrainState:
        """The state before the first step."""
        average = None
        if schedule.ema_decay is not None:
            average = copy.deepcopy(model).eval().requires_grad_(False)
        scaler = torch.amp.GradScaler("cuda", enabled=schedule.precision == "fp16")
        return cls(model, average, schedule.ema_decay or 0.0, optimizer, scaler)

    @property
    def kept(self) -> nn.Module:
        """The weights that are validated and shipped."""
        return self.model if self.average is None else self.average

    def finite(self) -> bool:
        """Whether no weight, of the network or its average, is NaN or infinite."""
        values = [*self.model.state_dict().values(), *self.kept.state_dict().values()]
        good = [torch.isfinite(v).all() for v in values if v.is_floating_point()]
        return bool(torch.stack(good).all())

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the average towards the weights; faster in the first steps, which are forgotten."""
        if self.average is None:
            return
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        current = self.model.state_dict()
        for name, value in self.average.state_dict().items():
            if value.is_floating_point():
                value.lerp_(current[name], 1.0 - decay)
            else:
                value.copy_(current[name])

    def save(self, path: Path, recipe: str) -> None:
        """Write the whole state.

        Args:
            path: the file, replaced atomically.
            recipe: hash of the recipe that the state belongs to.
        """
        tensors, scalars = pack_optimizer(self.optimizer)
        tensors = {**prefixed("model", self.model.state_dict()), **prefixed("optimizer", tensors)}
        if self.average is not None:
            tensors |= prefixed("average", self.average.state_dict())
        header = {
            "recipe": recipe,
            "optimizer": scalars,
            "scaler": self.scaler.state_dict(),
            **{name: getattr(self, name) for name in _COUNTERS},
            "plateau": asdict(self.plateau),
        }
        write_tensors(path, tensors, header)

    def load(self, path: Path, recipe: str, *, counters: bool = True) -> None:
        """Restore what `save` wrote.

        Args:
            path: the file.
            recipe: hash of the recipe that is trained.
            counters: False restores weights and optimizer alone: the steps done stay done.

        Raises:
            ModelIntegrityError: `E_CKPT_CORRUPT`.
            UsageError: `E_CONFIG_CHANGED`, it belongs to another recipe.
        """
        tensors, header = read_tensors(path)
        if header["recipe"] != recipe:
            raise UsageError(
                "E_CONFIG_CHANGED",
                "train",
                f"{path.name} belongs to a run of another recipe.",
                "Train into another folder.",
            )
        self.model.load_state_dict(under("model", tensors))
        if self.average is not None:
            self.average.load_state_dict(under("average", tensors))
        unpack_optimizer(self.optimizer, under("optimizer", tensors), header["optimizer"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(header["scaler"])
        if counters:
            # Checkpoints of earlier versions were written after the validation of their step, and
            # knew no plateau.
            known = {"rollbacks": 0, "scored": header["step"], "data": None, **header}
            for name in _COUNTERS:
                setattr(self, name, known[name])
            self.plateau = Plateau(**header.get("plateau", {}))


_COUNTERS = (
    *("step", "best_score", "best_step", "skipped", "streak"),
    *("rollbacks", "scored", "data"),
)
