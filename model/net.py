"""ResNet-9 of "How to Train Your ResNet" 4: eight 3x3 convolutions and one linear layer, any width."""

from collections import OrderedDict

import torch
from torch import nn

from model.config import Config


class Residual(nn.Module):
    """x + branch(x): the skip path is clean, no activation after the sum."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x)


class Scale(nn.Module):
    """x times a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def conv_block(c_in: int, c_out: int, *, pool: bool = False) -> nn.Sequential:
    """Conv 3x3, batch norm, ReLU and (with `pool`) a 2x2 max-pool: [B, c_in, H, W] -> [B, c_out, H or H/2, W or W/2].

    The pool stands before the ReLU: both are monotone, so the result is the same for a quarter of the ReLU's work.
    """
    parts: list[tuple[str, nn.Module]] = [
        ("conv", nn.Conv2d(c_in, c_out, kernel_size=3, padding=1, bias=False)),
        ("norm", nn.BatchNorm2d(c_out)),  # scale 1, bias 0, eps 1e-5, running average 0.1: torch's defaults are S0's
    ]
    if pool:
        parts.append(("pool", nn.MaxPool2d(2)))
    parts.append(("act", nn.ReLU(inplace=True)))
    return nn.Sequential(OrderedDict(parts))


def residual(c: int) -> Residual:
    return Residual(nn.Sequential(OrderedDict(conv1=conv_block(c, c), conv2=conv_block(c, c))))


def build_net(config: Config, num_classes: int) -> nn.Sequential:
    """ResNet-9, "Residual:L1+L3": images [B, 3, 32, 32] -> logits [B, num_classes].

    Width 64 with 10 classes is the published net (6,573,120 parameters). Initialised from torch's global generator.
    """
    w = config.width
    net = nn.Sequential(
        OrderedDict(
            prep=conv_block(3, w),
            layer1=nn.Sequential(OrderedDict(conv=conv_block(w, 2 * w, pool=True), residual=residual(2 * w))),
            layer2=conv_block(2 * w, 4 * w, pool=True),
            layer3=nn.Sequential(OrderedDict(conv=conv_block(4 * w, 8 * w, pool=True), residual=residual(8 * w))),
            pool=nn.MaxPool2d(4),
            flatten=nn.Flatten(),
            linear=nn.Linear(8 * w, num_classes, bias=False),
            scale=Scale(config.logit_scale),
        )
    )
    # Convolutions run about 1.5x faster on channels-last activations, on CPUs and on tensor cores.
    return net.to(memory_format=torch.channels_last)
