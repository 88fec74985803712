"""The training loop: plain PyTorch, one device, resumable bit for bit.

A step is a pure function of (weights, optimizer state, plateaus so far, seed, step): data come from
(seed, epoch, index), and the model's own randomness is reseeded from (seed, step). A run killed at
any moment therefore continues from its last checkpoint to the bytes an unbroken run would have
left, on the same kind of device.

A step whose loss or gradient is not finite changes nothing. After three in a row the weights go
back, once in a run, to the last checkpoint while the data go on: the same batches would only fail
again. Then the run stops. Nothing that is not finite is kept as a checkpoint or as the best.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from hepar.data.augment import Augmentation
from hepar.data.sampling import SampleSource, batches, fingerprint
from hepar.data.sources import open_source
from hepar.errors import Interrupted, UsageError
from hepar.recipe import Recipe, recipe_hash
from hepar.systems.base import Batch, InputSpec
from hepar.systems.table import build
from hepar.train.checkpoint import TrainState, starting_model, write_tensors
from hepar.train.history import History
from hepar.train.interrupt import StopRequest
from hepar.train.precision import check_precision, memory_format
from hepar.train.recovery import LAST, PREVIOUS, Checkpoints
from hepar.train.repeatable import Deterministic, mixed_seed
from hepar.train.same_run import RECIPE, check_data, check_recipe, write_recipe
from hepar.train.schedule import in_steps, learning_rate, optimizer
from hepar.train.sharpness import kept_buffers, put_back, sharpen
from hepar.train.validate import Score, validate

LOG = logging.getLogger(__name__)
BEST, HISTORY = "best.safetensors", "log.jsonl"
LOG_EVERY = 10
MAX_BAD_STEPS = 3
MAX_ROLLBACKS = 1
_INIT, _STEP, _VALIDATION = 0, 1, 2

Progress = Callable[[int, int, dict[str, Any]], None]


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves.

    Attributes:
        weights: `best.safetensors`, under the network's own names.
        steps: steps done in all, resumed ones included; fewer than the schedule's where a plateau
            ended the run.
        best_score: validation Dice of `weights`; None when no case could be scored.
        best_step: step after which they were taken.
        skipped_steps: steps whose loss or gradient was not finite.
        seconds: wall time of training and validation as the history tells it, all calls together.
    """

    weights: Path
    steps: int
    best_score: float | None
    best_step: int
    skipped_steps: int
    seconds: float


def train(
    recipe: Recipe,
    out_dir: Path,
    *,
    device: str | torch.device = "cpu",
    resume: bool = True,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    workers: int = 1,
    source: SampleSource | None = None,
) -> TrainResult:
    """Train a recipe's system, going on where a killed run stopped.

    Args:
        recipe: what to train.
        out_dir: gets `last.safetensors`, `previous.safetensors`, `best.safetensors`, `log.jsonl`,
            `recipe.yaml`.
        device: where to compute.
        resume: False starts afresh, over what is there.
        cache_dir: for prepared cases, shared between runs.
        progress: called with (steps done, steps, newest log entry).
        workers: threads preparing batches; does not change the result. More than there are
            processors are not started.
        source: instead of the one the recipe asks for.

    Raises:
        UsageError: `E_CONFIG_CHANGED`, the folder holds a run of another recipe or of other data;
            `E_NAN_LOSS`, losses or weights are not finite, also after going back; `E_RECIPE`.
        ModelIntegrityError: `E_CKPT_CORRUPT`, no checkpoint can be read.
        ResourceExhausted: `E_WORKER_DIED`, a sample could not be prepared.
        Interrupted: `E_INTERRUPTED`, on SIGTERM or SIGINT, with a checkpoint written.
    """
    device = torch.device(device)
    if recipe.schedule.counted_in == "epochs":
        with torch.device("meta"):
            spec: InputSpec = cast(Any, build(recipe.system)).input_spec
        source = source or open_source(recipe.data, spec, seed=recipe.seed, cache_dir=cache_dir)
        recipe = in_steps(recipe, len(source))
    if not resume:
        for name in (LAST, PREVIOUS, BEST, HISTORY, RECIPE):
            (out_dir / name).unlink(missing_ok=True)
    check_recipe(recipe, out_dir)
    with Deterministic(device):
        run = _Run(recipe, out_dir, device)
        if run.checkpoints.exist():
            run.checkpoints.load(run.state)
            LOG.info("resuming at step %d of %d", run.state.step, recipe.schedule.steps)
        if run.unfinished():
            source = source or open_source(
                recipe.data, run.spec, seed=recipe.seed, cache_dir=cache_dir
            )
            check_data(run.state, fingerprint(source), out_dir)
            run.history.forget_after(run.state.step)
            # Not before everything that can be refused: bad input leaves nothing behind.
            write_recipe(recipe, out_dir)
            run.go(source, workers, progress)
    state = run.state
    return TrainResult(
        weights=out_dir / BEST,
        steps=state.step,
        best_score=state.best_score,
        best_step=state.best_step,
        skipped_steps=state.skipped,
        seconds=run.history.seconds(),
    )


class _Run:
    """One call of `train`: the state, and what does not change between steps."""

    def __init__(self, recipe: Recipe, out_dir: Path, device: torch.device) -> None:
        self.recipe, self.schedule = recipe, recipe.schedule
        self.out_dir, self.device = out_dir, device
        torch.manual_seed(mixed_seed(recipe.seed, _INIT, 0))
        model: Any = starting_model(recipe).to(device)
        self.spec: InputSpec = model.input_spec
        check_precision(recipe, device, self.spec)
        layout = memory_format(self.schedule, device, self.spec.dims)
        if layout is not torch.contiguous_format:
            model = model.to(memory_format=layout)
        model.train()
        self.state = TrainState.fresh(model, optimizer(self.schedule, model), self.schedule)
        self.history = History(out_dir / HISTORY)
        self.checkpoints = Checkpoints(out_dir, recipe_hash(recipe), self.schedule.checkpoint_every)
        self.recent: list[float] = []
        self.began = time.monotonic()
        lower = {"bf16": torch.bfloat16, "fp16": torch.float16}
        self.autocast = torch.autocast(
            device.type,
            dtype=lower.get(self.schedule.precision, torch.bfloat16),
            enabled=self.schedule.precision != "fp32",
        )

    def unfinished(self) -> bool:
        """Whether steps, or the validation of the newest one, are still to be done."""
        return not self.at_end() or self.to_score()

    def at_end(self) -> bool:
        """Whether the newest step is the last: of the schedule, or because a plateau ended it."""
        return self.state.step >= self.schedule.steps or self.state.plateau.finished

    def to_score(self) -> bool:
        """Whether the validation of the newest step is still to be done."""
        step, schedule = self.state.step, self.schedule
        due = step > 0 and (self.at_end() or _due(step, schedule.validate_every))
        return due and self.state.scored < step

    def go(self, source: SampleSource, workers: int, progress: Progress | None) -> None:
        """Train from the state's step to the end, or until a signal comes."""
        schedule, state, recipe = self.schedule, self.state, self.recipe
        finish = Augmentation(recipe.augment, self.spec, seed=recipe.seed, device=self.device)
        with StopRequest() as stop:
            if self.to_score():
                self.after_step(source, stop, progress)
            stream = batches(
                source,
                batch_size=schedule.batch_size,
                start=state.step,
                stop=state.step if self.at_end() else schedule.steps,
                finish=finish,
                workers=workers,
                stopped=stop,
            )
            with contextlib.closing(stream):
                for batch in stream:
                    loss = self.step(batch)
                    if loss is not None:
                        self.recent.append(loss)
                    self.after_step(source, stop, progress)
                    if self.at_end():
                        break
            if self.unfinished():
                self.halt(stop)

    def after_step(
        self, source: SampleSource, stop: StopRequest, progress: Progress | None
    ) -> None:
        """Validate, log and keep the newest step where that is due."""
        state, schedule = self.state, self.schedule
        if stop():
            self.halt(stop)
        regular, score = _due(state.step, schedule.checkpoint_every), None
        if (self.at_end() or regular or self.to_score()) and not state.finite():
            self.roll_back()
        reductions = state.plateau.reductions
        if self.to_score():
            score = self.score(source, stop)
            if score is None:
                self.halt(stop)
        last = self.at_end()  # not before the validation, which may have found a plateau
        if last or score or _due(state.step, LOG_EVERY):
            lr = learning_rate(schedule, state.step - 1, reductions)
            entry = self.entry(self.recent, lr, time.monotonic() - self.began, score)
            self.history.append(entry)
            self.recent, self.began = [], time.monotonic()
            if progress is not None:
                progress(state.step, schedule.steps, entry)
        # A step that failed may be the first of those that the weights go back behind.
        if last or (regular and state.streak == 0):
            self.checkpoints.save(state)

    def halt(self, stop: StopRequest) -> NoReturn:
        """Keep what was done and say how to go on."""
        state, signum = self.state, stop.signum or signal.SIGTERM
        # Else the run goes on from its last regular checkpoint, to the same end.
        if state.step > 0 and state.streak == 0 and state.finite():
            self.checkpoints.save(state)
        raise Interrupted(
            signum,
            "train",
            f"{signal.Signals(signum).name} after step {state.step} of {self.schedule.steps}.",
            "Train again into the same folder to go on from its checkpoint.",
        )

    def roll_back(self) -> None:
        """Go back to the weights of the last checkpoint and on with the data, or give up."""
        state = self.state
        back = None
        if state.rollbacks < MAX_ROLLBACKS:
            back = self.checkpoints.roll_back(state)
        if back is None:
            raise _not_finite(state.step)
        state.rollbacks, state.streak = state.rollbacks + 1, 0
        LOG.warning(
            "W_ROLLED_BACK: loss, gradient or weights were not finite up to step %d; going on with "
            "the weights of step %d",
            state.step,
            back,
        )

    def step(self, batch: Batch) -> float | None:
        """One optimizer step; None when it was skipped."""
        state, schedule = self.state, self.schedule
        seed = mixed_seed(self.recipe.seed, _STEP, state.step)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(schedule, state.step, state.plateau.reductions)
        state.optimizer.zero_grad(set_to_none=True)
        # A forward pass over a bad value spoils BatchNorm's statistics before the loss shows it.
        before = kept_buffers(state.model)
        loss = self.loss(batch, seed)
        value = float(loss.detach())
        state.step += 1
        again = partial(self.loss, batch, seed)
        if not math.isfinite(value) or not self.descend(loss, again, before):
            put_back(state.model, before)
            state.skipped += 1
            state.streak += 1
            if state.streak >= MAX_BAD_STEPS:
                self.roll_back()
            return None
        state.streak = 0
        state.update_average()
        return value

    def loss(self, batch: Batch, seed: int) -> Tensor:
        """The loss of a batch with the weights as they are, and everything random from a seed."""
        torch.manual_seed(seed)
        model: Any = self.state.model
        with self.autocast:
            outputs = model(batch.image, batch.present)
            targets = model.targets(batch)
        return model.loss(outputs, targets)

    def descend(self, loss: Tensor, again: Callable[[], Tensor], before: Sequence[Tensor]) -> bool:
        """Backward, clip, step; False when a gradient was not finite and nothing was changed.

        Args:
            loss: of the step.
            again: the same loss with other weights.
            before: buffers of the model as they were before the loss.
        """
        state, scaler = self.state, self.state.scaler
        scaler.scale(loss).backward()
        if self.schedule.sharpness_rho is not None:
            sharpen(state.model, again, before, scaler, self.schedule.sharpness_rho)
        scaler.unscale_(state.optimizer)
        limit = self.schedule.clip_norm
        parameters = [p for p in state.model.parameters() if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit)
        finite = bool(torch.isfinite(norm))
        if finite or scaler.is_enabled():
            # A scaler skips the step itself, and must see it to lower its scale.
            scaler.step(state.optimizer)
            scaler.update()
        return finite

    def score(self, source: SampleSource, stop: StopRequest) -> Score | None:
        """Validate the weights that would be kept, and keep them if they are the best.

        Returns:
            None where a signal cut it short.
        """
        state, plateaus = self.state, self.schedule.lr_schedule == "plateau"
        # The same at every validation: what a loss draws must not make one worse than another, nor
        # depend on whether the run was resumed.
        torch.manual_seed(mixed_seed(self.recipe.seed, _VALIDATION, 0))
        score = validate(
            state.kept,
            source,
            self.spec,
            batch_size=self.schedule.batch_size,
            device=self.device,
            autocast=self.autocast,
            with_loss=plateaus,
            stopped=stop,
        )
        if score is None:
            return None
        state.scored = state.step
        if plateaus:
            state.plateau = state.plateau.after(score.loss, self.schedule)
            LOG.info("step %d: validation loss %s, %s", state.step, score.loss, state.plateau)
            if score.loss is None:
                LOG.warning("the validation loss of step %d is not finite", state.step)
        better = state.best_score is None or (score.dice or 0.0) > state.best_score
        if better or state.best_step == 0:
            state.best_score, state.best_step = score.dice, state.step
            header = {
                "step": state.step,
                "score": asdict(score),
                "recipe": recipe_hash(self.recipe),
            }
            write_tensors(self.out_dir / BEST, state.kept.state_dict(), header)
        return score

    def entry(
        self, losses: list[float], lr: float, seconds: float, score: Score | None
    ) -> dict[str, Any]:
        """A line of the history; `lr` is that of its step."""
        line: dict[str, Any] = {
            "step": self.state.step,
            "loss": round(sum(losses) / len(losses), 6) if losses else None,
            "lr": lr,
            "seconds": round(seconds, 3),
            "skipped": self.state.skipped,
        }
        if score is not None:
            line["validation"] = asdict(score)
        return line


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _not_finite(step: int) -> UsageError:
    return UsageError(
        "E_NAN_LOSS",
        "train",
        f"Loss, gradient or weights were not finite up to step {step}, and there is no checkpoint "
        "left to go back to.",
        "Lower schedule.lr, clip gradients, or use fp32; the last checkpoint is intact.",
    )
