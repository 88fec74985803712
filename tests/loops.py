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


def conv3d(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    """Zero-padded convolution of `(c, z, y, x)` by an odd cube, one product at a time."""
    given, kernel = x.detach().tolist(), weight.detach().tolist()
    shape, reach = x.shape[1:], weight.shape[-1] // 2
    taps = range(weight.shape[-1])
    out = torch.zeros(len(kernel), *(len(range(0, n, stride)) for n in shape), dtype=torch.float64)
    for o, *at in itertools.product(range(len(kernel)), *(range(n) for n in out.shape[1:])):
        total = 0.0 if bias is None else float(bias.detach()[o])
        for i, *tap in itertools.product(range(len(given)), taps, taps, taps):
            z, y, w = (stride * a + t - reach for a, t in zip(at, tap, strict=True))
            if 0 <= z < shape[0] and 0 <= y < shape[1] and 0 <= w < shape[2]:
                total += kernel[o][i][tap[0]][tap[1]][tap[2]] * given[i][z][y][w]
        out[(o, *at)] = total
    return out


def doubled(x: Tensor, layer: nn.ConvTranspose3d) -> Tensor:
    """A transposed convolution of `(c, z, y, x)` whose kernel is its stride, 2: eight maps."""
    weight, bias = layer.weight.detach(), layer.bias.detach()
    out = torch.zeros(weight.shape[1], *(2 * n for n in x.shape[1:]), dtype=torch.float64)
    for o, *at in itertools.product(*(range(n) for n in out.shape)):
        a, b, c = (n % 2 for n in at)
        source = x[:, at[0] // 2, at[1] // 2, at[2] // 2]
        out[(o, *at)] = bias[o] + sum(weight[i, o, a, b, c] * source[i] for i in range(len(x)))
    return out


def trilinear(x: Tensor) -> Tensor:
    """`(c, z, y, x)` at twice the size; voxels keep the place that they stand for."""
    for axis in (1, 2, 3):
        n, planes = x.shape[axis], []
        for k in range(2 * n):
            at = min(max((k + 0.5) / 2 - 0.5, 0.0), n - 1.0)
            low = int(at)
            high, share = min(low + 1, n - 1), at - low
            planes.append((1 - share) * x.select(axis, low) + share * x.select(axis, high))
        x = torch.stack(planes, dim=axis)
    return x
