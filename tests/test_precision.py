"""What is not trained in a precision that the device gets wrong."""

from __future__ import annotations

import pytest
import torch

from fake_systems import spec_2d, spec_3d
from hepar.errors import UsageError
from hepar.recipe import parse_recipe
from hepar.train import precision as checks
from hepar.train.precision import check_precision, memory_format

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def _recipe(precision: str):
    return parse_recipe(
        {
            "name": "a",
            "system": {"name": "dpcnet", "preset": "toy"},
            "data": {"kind": "phantom"},
            "schedule": {"steps": 1, "precision": precision},
        }
    )


@pytest.mark.parametrize(
    ("depth", "refused"), [(16, True), (32, True), (2, True), (24, False), (64, False)]
)
def test_closed_form_bfloat16_on_two_slices_is_refused_on_the_cpu(depth, refused):
    spec = spec_3d(patch=(depth, 32, 32), stride=16)
    for device, precision in ((CPU, "fp32"), (CUDA, "bf16")):
        check_precision(_recipe(precision), device, spec)
    check_precision(_recipe("bf16"), CPU, spec_2d())
    if not refused:
        check_precision(_recipe("bf16"), CPU, spec)
        return
    with pytest.raises(UsageError, match="two slices deep") as caught:
        check_precision(_recipe("bf16"), CPU, spec)
    assert caught.value.code == "E_RECIPE"
    assert "fp32" in caught.value.remedy


def test_closed_form_the_stride_along_z_is_what_counts():
    # Slices halved three times: 32, 16, 8, 4 of them; in the plane five times.
    spec = spec_3d(patch=(32, 64, 64), stride=32, axis_strides=(8, 32, 32))
    check_precision(_recipe("bf16"), CPU, spec)
    with pytest.raises(UsageError, match="two slices deep"):
        check_precision(_recipe("bf16"), CPU, spec_3d(patch=(32, 64, 64), stride=32))


def test_closed_form_half_precision_needs_cuda():
    with pytest.raises(UsageError, match="fp16 trains on CUDA"):
        check_precision(_recipe("fp16"), CPU, spec_2d())
    check_precision(_recipe("fp16"), CUDA, spec_2d())


@pytest.mark.parametrize("wide", [True, False])
def test_property_bfloat16_on_a_cpu_that_is_slow_at_it_is_said(wide, monkeypatch, caplog):
    monkeypatch.setattr(checks, "_has_wide_vectors", lambda: wide)
    check_precision(_recipe("fp32"), CPU, spec_2d())
    assert not caplog.text
    check_precision(_recipe("bf16"), CPU, spec_2d())
    assert ("slower than fp32" in caplog.text) == (not wide)


def test_closed_form_channels_are_last_where_that_is_fast():
    fp32, bf16 = _recipe("fp32").schedule, _recipe("bf16").schedule
    last, last3d = torch.channels_last, torch.channels_last_3d
    assert [memory_format(fp32, CPU, dims) for dims in (2, 3)] == [last, last3d]
    assert [memory_format(bf16, CPU, dims) for dims in (2, 3)] == [last, torch.contiguous_format]
    assert memory_format(bf16, CUDA, 3) == last3d
    plain = fp32.model_copy(update={"channels_last": False})
    assert memory_format(plain, CUDA, 3) == torch.contiguous_format


@pytest.mark.parametrize("depth", [3, 4, 5, 8])
def test_oracle_gradients_in_bfloat16_are_right_at_other_depths(depth):
    torch.manual_seed(0)
    layer = torch.nn.Conv3d(16, 16, 3, padding=1)
    x, g = torch.randn(2, 2, 16, depth, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(layer(x), layer.weight, g.bfloat16())[0]
    exact = torch.autograd.grad(layer(x), layer.weight, g)[0]
    assert (found - exact).abs().max() < 0.02 * exact.abs().max()
