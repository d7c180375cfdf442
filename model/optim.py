"""Learning-rate schedule, parameter groups and the optimiser of the published runs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from model.config import Config


def lr_schedule(config: Config, epoch: float) -> float:
    """Learning rate (for the mean loss) at a fractional epoch: from 0 up to the peak over the warm-up, then down to 0.

    With S0's 24 epochs the knots are [0, 5, 24] -> [0, 0.4, 0]. Outside 0..epochs the end values hold.
    """
    peak = config.peak_lr * config.lr_scale
    warmup_epochs = config.warmup_frac * config.epochs
    epoch = min(max(epoch, 0.0), float(config.epochs))
    if epoch < warmup_epochs:
        return peak * epoch / warmup_epochs
    if warmup_epochs == config.epochs:  # nothing is left to decay over
        return peak
    return peak * (config.epochs - epoch) / (config.epochs - warmup_epochs)


class Nesterov(torch.optim.Optimizer):
    """SGD with Nesterov momentum and coupled weight decay, the learning rate inside the velocity.

    v = rho*v - lr*(g + wd*w), then w = w + rho*v - lr*(g + wd*w): the rule of D. Page's cifar10-fast. It differs from
    torch.optim.SGD(nesterov=True) only while the learning rate changes, which under a schedule is always.
    """

    def __init__(self, params: Any, *, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "the loss is not evaluated again"
        for group in self.param_groups:
            weights = group["params"]
            for weight in weights:
                if "velocity" not in self.state[weight]:
                    self.state[weight]["velocity"] = torch.zeros_like(weight)
            velocities = [self.state[weight]["velocity"] for weight in weights]
            updates = torch._foreach_add([weight.grad for weight in weights], weights, alpha=group["weight_decay"])
            torch._foreach_mul_(updates, -group["lr"])
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, updates)
            torch._foreach_add_(weights, updates)
            torch._foreach_add_(weights, velocities, alpha=group["momentum"])


def build_optimizer(config: Config, net: nn.Module) -> Nesterov:
    """One group for the batch-norm biases, one for the rest; each group's `lr_mult` multiplies the schedule.

    The biases' weight decay is divided by the multiplier, so that lr*wd stays the same (post 8).
    """
    biases = [module.bias for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    bias_ids = {id(bias) for bias in biases}
    others = [weight for weight in net.parameters() if id(weight) not in bias_ids]
    assert len(biases) + len(others) == len(list(net.parameters())), "every parameter is in exactly one group"
    mult = config.bn_bias_lr_mult
    groups = [
        {"params": others, "lr_mult": 1.0, "weight_decay": config.weight_decay},
        {"params": biases, "lr_mult": mult, "weight_decay": config.weight_decay / mult},
    ]
    return Nesterov(groups, lr=0.0, momentum=config.momentum, weight_decay=config.weight_decay)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_mult"]
