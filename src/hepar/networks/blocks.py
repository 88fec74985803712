"""Small pieces that more than one network is made of."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ConvNormAct(nn.Sequential):
    """Convolution without bias -> BatchNorm -> ReLU, "same" padding, stride 1.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        kernel: odd kernel size.
        act: leave out the ReLU with False.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, act: bool = True):
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        if act:
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class SeparableConvNormAct(nn.Sequential):
    """A 3x3 convolution of each channel, then a 1x1 over channels, each with BatchNorm and ReLU.

    Howard et al., MobileNets, 2017, section 3.1: about a ninth of the work of a 3x3.

    Args:
        in_channels: channels in.
        out_channels: channels out.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False),
            nn.BatchNorm2d(in_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


def resize_to(x: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c h2 w2"]:
    """Bilinear, `align_corners=False`: pixel areas are kept, whatever the factor."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def init_he(module: nn.Module) -> None:
    """He initialization of every convolution that a BatchNorm follows (those without bias).

    He et al., ICCV 2015, fan out, as the torchvision ResNets. Convolutions with a bias keep
    PyTorch's default, whose scale suits layers that nothing normalizes.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Conv3d) and part.bias is None:
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


def parameters_of(parts: Mapping[str, nn.Module | None]) -> dict[str, int]:
    """Parameters of the named parts of a network, of those that are there and have any."""
    counts = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in parts.items()
        if part is not None
    }
    return {name: count for name, count in counts.items() if count}


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """No autocast on the device of a tensor, for the lines whose sums need float32."""
    if not torch.amp.is_autocast_available(x.device.type):
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precisions become float32; float32 and float64 stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
