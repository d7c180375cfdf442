"""Learning-rate schedule, parameter groups and update rules."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from model.config import Config

LARS_EPS = 1e-2


def lr_schedule(config: Config, epoch: float) -> float:
    """Learning rate (for the mean loss) at a fractional epoch: up to the peak, down to its final ratio, then the tail.

    Straight lines between knots; outside of 0..epochs the end values hold. S0's 24 epochs have [0, 5, 24] ->
    [0, 0.4, 0]; S7's 13 have [0, 2.6, 11, 13] -> [0, 1, 0.1, 0.1].
    """
    peak = config.peak_lr * config.lr_scale
    final = peak * config.final_lr_ratio
    warm, end = config.warmup_frac * config.epochs, float(config.epochs)
    tail = end - config.tail_frac * config.epochs
    epoch = min(max(epoch, 0.0), end)
    if epoch < warm:
        return peak * epoch / warm
    if epoch <= tail:
        return final + (peak - final) * (tail - epoch) / (tail - warm) if tail > warm else peak
    return final * (end - epoch) / (end - tail) if config.tail_to_zero else final


class Sgd(torch.optim.Optimizer):
    """SGD with momentum and coupled weight decay, the learning rate inside the velocity.

    d = -lr*(g + wd*w), v = rho*v + d, then w = w + d + rho*v with Nesterov's form, else w = w + v: the rule of
    D. Page's cifar10-fast. It differs from torch.optim.SGD only while the learning rate changes, which under a
    schedule is always. With `lars` the learning rate of each filter (or row of a matrix) w is multiplied by
    ||w|| / (||g|| + 0.01), as in cifar10-fast; vectors, such as batch-norm parameters, keep theirs.
    """

    def __init__(
        self, params: Any, *, lr: float, momentum: float, weight_decay: float, nesterov: bool, lars: bool = False
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._nesterov, self._lars = nesterov, lars

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "the loss is not evaluated again"
        for group in self.param_groups:
            weights, momentum = group["params"], group["momentum"]
            if not weights:
                continue
            for weight in weights:
                if "velocity" not in self.state[weight]:
                    self.state[weight]["velocity"] = torch.zeros_like(weight)
            velocities = [self.state[weight]["velocity"] for weight in weights]
            updates = torch._foreach_add([weight.grad for weight in weights], weights, alpha=group["weight_decay"])
            torch._foreach_mul_(updates, -group["lr"])
            if self._lars:
                for update, weight in zip(updates, weights, strict=True):
                    if weight.dim() > 1:
                        update.mul_(_norm(weight) / (_norm(weight.grad) + LARS_EPS))
            torch._foreach_mul_(velocities, momentum)
            torch._foreach_add_(velocities, updates)
            if self._nesterov:
                torch._foreach_add_(weights, updates)
                torch._foreach_add_(weights, velocities, alpha=momentum)
            else:
                torch._foreach_add_(weights, velocities)


def _norm(weight: torch.Tensor) -> torch.Tensor:
    """The norm of each filter: [C, ...] -> [C, 1, ...]."""
    return torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.dim())), keepdim=True)


def build_optimizer(config: Config, net: nn.Module) -> torch.optim.Optimizer:
    """One group for the batch-norm biases, one for the rest; each group's `lr_mult` multiplies the schedule.

    The biases' weight decay is divided by the multiplier, so that lr*wd stays the same (post 8). Frozen parameters are
    in no group. rmsprop, adagrad, adadelta and adam are torch's, with torch's defaults but for the Torch blog's
    adadelta rho 0.3.
    """
    norm_biases = {id(module.bias) for module in net.modules() if isinstance(module, nn.BatchNorm2d)}
    trained = [weight for weight in net.parameters() if weight.requires_grad]
    mult, decay = config.bn_bias_lr_mult, config.weight_decay
    groups = [
        {"params": [w for w in trained if id(w) not in norm_biases], "lr_mult": 1.0, "weight_decay": decay},
        {"params": [w for w in trained if id(w) in norm_biases], "lr_mult": mult, "weight_decay": decay / mult},
    ]
    match config.solver:
        case "rmsprop":
            return torch.optim.RMSprop(groups)
        case "adagrad":
            return torch.optim.Adagrad(groups)
        case "adadelta":
            return torch.optim.Adadelta(groups, rho=0.3)
        case "adam":
            return torch.optim.Adam(groups)
    return Sgd(
        groups,
        lr=0.0,
        momentum=config.momentum,
        weight_decay=decay,
        nesterov=config.nesterov,
        lars=config.solver == "lars",
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_mult"]
