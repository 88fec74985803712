"""Asymmetric contrastive learning: Eq. 3 to 5 over sets written by hand, and its memory bank."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from hepar.systems.lidia.asymmetric_contrast import AsymmetricContrast, contrast

# Ten lesions, six of the batch: two HCC, an ICC, two others, a cyst; of the bank an HCC, an ICC,
# one of the others, a metastasis.
BATCH, BANK, RARE, TAU = (1, 1, 2, 8, 8, 6), (1, 2, 8, 3), 8, 0.1
POSITIVE = {0: {1, 6}, 1: {0, 6}, 2: {7}, 3: {4, 8}, 4: {3, 8}, 5: set()}
COMMON = {0, 1, 2, 5, 6, 7, 9}


def _samples() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = functional.normalize(torch.randn(10, 4, generator=generator, dtype=torch.float64), dim=1)
    return z[:6], z[6:]


def _similar(a: int, b: int) -> float:
    z = torch.cat(_samples()).tolist()
    return sum(x * y for x, y in zip(z[a], z[b], strict=True)) / TAU


def _eq4(x: int, among: set[int]) -> float:
    total = sum(math.exp(_similar(x, a)) for a in among)
    terms = [-math.log(math.exp(_similar(x, p)) / total) for p in POSITIVE[x]]
    return sum(terms) / len(terms)


def _eq5(x: int) -> float:
    return math.log(sum(math.exp(_similar(x, a)) for a in COMMON))


def _found(rare=(RARE,), others_as_negatives: bool = True) -> float:
    z, bank = _samples()
    loss = contrast(
        z, torch.tensor(BATCH), bank, torch.tensor(BANK), rare=rare, temperature=TAU,
        others_as_negatives=others_as_negatives,
    )  # fmt: skip
    return float(loss)


def test_oracle_common_and_rare_lesions_are_equations_3_to_5():
    every = set(range(10))
    # The cyst has no positive, and is left out of the mean.
    terms = [_eq4(x, every - {x}) for x in (0, 1, 2)] + [_eq5(3), _eq5(4)]
    assert _found() == pytest.approx(sum(terms) / 5, rel=1e-12)


def test_oracle_rare_lesions_may_stay_out_of_the_denominators():
    terms = [_eq4(x, COMMON - {x}) for x in (0, 1, 2)] + [_eq5(3), _eq5(4)]
    assert _found(others_as_negatives=False) == pytest.approx(sum(terms) / 5, rel=1e-12)


def test_oracle_supcon_is_equation_4_for_every_class():
    terms = [_eq4(x, set(range(10)) - {x}) for x in range(5)]
    assert _found(rare=()) == pytest.approx(sum(terms) / 5, rel=1e-12)


def test_property_rare_lesions_do_not_gather():
    """Moving one of the others towards another one gains nothing; so it does with supcon."""
    label, none = torch.tensor([8, 8, 1]), torch.zeros(0, dtype=torch.long)
    z = torch.eye(3, dtype=torch.float64, requires_grad=True)
    for rare, pulled in (((8,), False), ((), True)):
        loss = contrast(z, label, torch.zeros(0, 3), none, rare=rare, temperature=TAU)
        gradient = torch.autograd.grad(loss, z)[0]
        assert (gradient[0, 1] < 0) == pulled
        assert gradient[0, 2] > 0  # away from the common one


@pytest.mark.parametrize(
    ("label", "bank"), [([], []), ([1], []), ([8], []), ([8], [8]), ([1], [2])]
)
def test_closed_form_without_a_valid_anchor_it_is_zero(label, bank):
    z = torch.ones(len(label), 2, requires_grad=True)
    loss = contrast(
        z, torch.tensor(label, dtype=torch.long), torch.ones(len(bank), 2),
        torch.tensor(bank, dtype=torch.long), rare=(8,), temperature=TAU,
    )  # fmt: skip
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert not z.grad.any()


def test_closed_form_bounds_of_equation_5_in_float32():
    """1024 common lesions at cosine +-1: log 1024 +- 10, where a sum of exponentials in half
    precision would overflow."""
    bank, label = torch.tensor([[1.0, 0.0]]).repeat(1024, 1), torch.ones(1024, dtype=torch.long)
    for sign, bound in ((1.0, 16.93), (-1.0, -3.07)):
        z = torch.tensor([[sign, 0.0]])
        loss = contrast(z, torch.tensor([8]), bank, label, rare=(8,), temperature=TAU)
        assert float(loss) == pytest.approx(bound, abs=0.01)


def _bank(size: int = 5) -> AsymmetricContrast:
    torch.manual_seed(0)
    return AsymmetricContrast(4, 3, size, rare=(8,), temperature=TAU)


def test_closed_form_the_bank_is_first_in_first_out_and_lies_in_the_state():
    module, numbers = _bank(), torch.arange(9.0)
    for first, last in ((0, 2), (2, 5), (5, 7)):
        z = numbers[first:last, None].expand(-1, 3)
        module.push(z, torch.arange(first, last))
    assert module.bank_label.tolist() == [5, 6, 2, 3, 4]
    assert module.bank_z[:, 0].tolist() == [5.0, 6.0, 2.0, 3.0, 4.0]
    again = _bank()
    again.load_state_dict(module.state_dict())
    again.push(numbers[7:9, None].expand(-1, 3), torch.tensor([7, 8]))
    assert again.bank_label.tolist() == [5, 6, 7, 8, 4]
    # More than it holds: the newest stay.
    again.push(torch.zeros(8, 3), torch.arange(10, 18))
    assert sorted(again.bank_label.tolist()) == [13, 14, 15, 16, 17]
    again.push(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    assert sorted(again.bank_label.tolist()) == [13, 14, 15, 16, 17]


def test_property_the_bank_is_used_before_the_push_and_has_no_gradient():
    module = _bank()
    states, label = torch.randn(3, 4, requires_grad=True), torch.tensor([1, 2, 1])
    alone = module(module.project(states), label)
    module.push(module.project(states).detach(), label)
    z = module.project(states)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(3))
    together = module(z, label)
    module.push(z.detach(), label)  # before the backward pass, as in training
    assert float(together.detach()) != pytest.approx(float(alone.detach()), rel=1e-3)
    together.backward()
    assert torch.isfinite(states.grad).all()
    assert not module.bank_z.requires_grad


def test_closed_form_parameters_of_the_projection():
    module = AsymmetricContrast(64, 128, 1024, rare=(8,), temperature=TAU)
    assert sum(p.numel() for p in module.parameters()) == 12_480
