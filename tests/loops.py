"""Layers as loops in float64, for one sample: what the oracles of networks are written with."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn


def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    """Zero-padded convolution of `(c, h, w)` by an odd kernel, one product at a time."""
    x, weight = x.detach(), weight.detach()
    outputs, inputs, kernel, _ = weight.shape
    reach, (height, width) = kernel // 2, x.shape[1:]
    rows, columns = range(0, height, stride), range(0, width, stride)
    out = torch.zeros(outputs, len(rows), len(columns), dtype=torch.float64)
    for o, (a, y), (b, z) in itertools.product(range(outputs), enumerate(rows), enumerate(columns)):
        total = 0.0 if bias is None else float(bias.detach()[o])
        for i, dy, dz in itertools.product(range(inputs), range(kernel), range(kernel)):
            yy, zz = y + dy - reach, z + dz - reach
            if 0 <= yy < height and 0 <= zz < width:
                total += float(weight[o, i, dy, dz]) * float(x[i, yy, zz])
        out[o, a, b] = total
    return out


def norm(x: Tensor, layer: nn.Module) -> Tensor:
    """BatchNorm in eval mode."""
    mean, var = layer.running_mean.view(-1, 1, 1), layer.running_var.view(-1, 1, 1)
    scaled = (x - mean) / (var + layer.eps).sqrt()
    return scaled * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)
