"""A schedule that waits for a plateau: the sequence it takes, and the loss that it follows."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from blob_source import BlobSource
from fake_systems import spec_2d
from hepar.data.sampling import collate
from hepar.errors import UsageError
from hepar.recipe import Recipe, Schedule, dump_recipe, load_recipe, parse_recipe, recipe_hash
from hepar.train.plateau import Plateau
from hepar.train.schedule import learning_rate
from hepar.train.validate import Score, validate

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ROOT / "recipes" / "sam_urim" / "smoke.yaml"
SPEC = spec_2d(spacing_mm=(8.0, 5.0, 5.0))


def schedule(**changes) -> Schedule:
    settings = {"lr_schedule": "plateau", "steps": 10, "validate_every": 1, "lr": 0.01}
    return Schedule(**settings | changes)


def recipe(*overrides: str) -> Recipe:
    return load_recipe(SMOKE, overrides)


def follow(losses, **changes) -> list[tuple[int, int, bool]]:
    """(reductions, validations waited, finished) after each loss."""
    state, found = Plateau(), []
    for loss in losses:
        state = state.after(loss, schedule(**changes))
        found.append((state.reductions, state.waited, state.finished))
    return found


def test_closed_form_a_stable_loss_is_reduced_twice_and_ends_the_run():
    found = follow([1.0] * 7, plateau_patience=2)
    assert found == [
        *[(0, 0, False), (0, 1, False), (1, 0, False), (1, 1, False)],
        *[(2, 0, False), (2, 1, False), (2, 2, True)],
    ]
    assert follow([1.0, 1.0], plateau_patience=1, plateau_reductions=0)[-1] == (0, 1, True)


def test_closed_form_a_loss_that_falls_is_waited_for():
    assert follow(np.linspace(1.0, 0.0, 50).tolist(), plateau_patience=1)[-1] == (0, 0, False)
    # What was reached before a reduction must be undercut after it too.
    losses = [1.0, 0.5, 0.9, 0.8, 0.7, 0.6, 0.4, 0.4]
    waited = follow(losses, plateau_patience=3)
    assert [w[:2] for w in waited] == [
        *[(0, 0), (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 0), (1, 1)]
    ]


@pytest.mark.parametrize(("fall", "improves"), [(0.125, False), (0.126, True), (0.124, False)])
def test_closed_form_an_improvement_is_more_than_min_delta(fall, improves):
    last = follow([1.0, 1.0 - fall], plateau_min_delta=0.125, plateau_patience=9)[-1]
    assert last == (0, 0 if improves else 1, False)
    # Small steps down add up: they are measured from the lowest that counted.
    steps = follow([1.0, 0.9, 0.8], plateau_min_delta=0.125, plateau_patience=9)
    assert [waited for _, waited, _ in steps] == [0, 1, 0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
def test_closed_form_a_loss_that_is_not_finite_is_no_improvement(bad):
    assert follow([bad, bad, 1.0, bad], plateau_patience=3) == [
        *[(0, 1, False), (0, 2, False), (0, 0, False), (0, 1, False)]
    ]
    assert follow([bad] * 3, plateau_patience=1)[-1] == (2, 1, True)


def test_closed_form_reductions_divide_the_learning_rate():
    rates = [learning_rate(schedule(warmup=3), step, step // 4) for step in range(12)]
    expected = [*[0.0025, 0.005, 0.0075, 0.01], *[0.001] * 4, *[0.0001] * 4]
    np.testing.assert_allclose(rates, expected)


def test_property_a_plateau_needs_validations():
    with pytest.raises(UsageError, match="validate_every above 0") as caught:
        recipe("schedule.lr_schedule=plateau", "schedule.validate_every=0")
    assert caught.value.code == "E_RECIPE"


def test_property_settings_of_plateaus_count_where_there_are_any():
    """Else a run begun before there were these settings could not go on."""
    tree = recipe().model_dump(mode="json")
    expected = recipe_hash(parse_recipe(tree))
    changed = {**tree["schedule"], "plateau_patience": 3}
    assert recipe_hash(parse_recipe({**tree, "schedule": changed})) == expected
    old = {k: v for k, v in tree["schedule"].items() if not k.startswith("plateau")}
    assert len(old) == len(tree["schedule"]) - 3
    assert recipe_hash(parse_recipe({**tree, "schedule": old})) == expected
    five, three = (
        recipe("schedule.lr_schedule=plateau", f"schedule.plateau_patience={n}") for n in (5, 3)
    )
    assert recipe_hash(three) != recipe_hash(five)
    assert "plateau_patience: 3" in dump_recipe(three)


class Fixed(nn.Module):
    """Its loss is the mean brightness of the pieces of a batch; it notes when it is asked."""

    input_spec = SPEC

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    def forward(self, image: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return image[:, :, 0]

    def targets(self, batch):
        return batch.label

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        assert not torch.is_autocast_enabled("cpu")
        self.asked.append(len(targets))
        return outputs.float().mean()

    def decode(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.float().softmax(dim=1)


def scored(model: Fixed, source: BlobSource, *, with_loss: bool) -> Score:
    score = validate(
        model.train(),
        source,
        SPEC,
        batch_size=2,
        device=torch.device("cpu"),
        autocast=torch.autocast("cpu", enabled=False),
        with_loss=with_loss,
    )
    assert score is not None
    assert model.training
    return score


def test_closed_form_the_loss_of_a_validation_is_a_mean_over_pieces():
    model, source = Fixed(), BlobSource(SPEC)
    (case,) = source.validation()
    expected = float(collate(case.pieces)[0].image[:, :, 0].double().mean())
    assert scored(model, source, with_loss=True).loss == pytest.approx(expected, rel=1e-6)
    assert model.asked == [2, 1]  # of unequal weight


def test_property_the_loss_is_asked_for_only_by_a_plateau():
    model, source = Fixed(), BlobSource(SPEC)
    assert scored(model, source, with_loss=False).loss is None
    assert model.asked == []


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_property_a_validation_loss_is_finite_or_none(bad, monkeypatch):
    monkeypatch.setattr(Fixed, "loss", lambda *_: torch.tensor(bad))
    assert scored(Fixed(), BlobSource(SPEC), with_loss=True).loss is None
