"""Learning-rate schedule, parameter groups and update rules."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from model.config import Config

# Torch keeps its compiler out of some methods of optimizers, and imports it for that: 2.5 s of CPU in every worker. It
# asks for this attribute first.
for _method in vars(torch.optim.Optimizer).values():
    _plain: Any = inspect.unwrap(_method) if callable(_method) else _method
    if _plain is not _method:
        _plain.__dynamo_disable = _plain

LARS_EPS = 1e-2
NEWTON_SCHULZ_STEPS = 3  # of airbench94_muon
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""coefficients of s, s^3, s^5 (Jordan 2024): steep at 0, so that few steps bring every singular value near 1"""


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
            weights = group["params"]
            for weight in weights:
                if "velocity" not in self.state[weight]:
                    self.state[weight]["velocity"] = torch.zeros_like(weight)
            if weights:
                self._move(group, [self.state[weight]["velocity"] for weight in weights])

    def _move(self, group: dict[str, Any], velocities: list[torch.Tensor]) -> None:
        weights, momentum = group["params"], group["momentum"]
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


class Muon(Sgd):
    """Sgd, but orthogonalised momentum for the groups that are marked `orthogonal`, of filters [c_out, c_in, h, w].

    v = rho*v + g, then w = w*sqrt(c_out)/||w|| - lr*orthogonalised(g + rho*v), or of v alone without Nesterov's form,
    each filter a row: K. Jordan's Muon (2024) as in airbench94_muon. The norm is set at each step in place of decay.
    """

    def _move(self, group: dict[str, Any], velocities: list[torch.Tensor]) -> None:
        if not group["orthogonal"]:
            super()._move(group, velocities)
            return
        weights, momentum = group["params"], group["momentum"]
        gradients = [weight.grad for weight in weights]
        torch._foreach_mul_(velocities, momentum)
        torch._foreach_add_(velocities, gradients)
        updates = torch._foreach_add(gradients, velocities, alpha=momentum) if self._nesterov else velocities
        for weight, update in zip(weights, updates, strict=True):
            weight.mul_(len(weight) ** 0.5 / weight.norm())
            weight.add_(orthogonalised(update.flatten(1)).view(weight.shape), alpha=-group["lr"])


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """U V' of a matrix [m, n] with the decomposition U S V', but for singular values that are only near 1: 0.68 to
    1.21 where they were above 2% of the matrix's norm. By Newton-Schulz steps, that is, matrix products alone."""
    a, b, c = NEWTON_SCHULZ
    wide = matrix.T if len(matrix) > matrix.shape[1] else matrix
    x = wide / (matrix.norm() + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if wide is not matrix else x


def _norm(weight: torch.Tensor) -> torch.Tensor:
    """The norm of each filter: [C, ...] -> [C, 1, ...]."""
    return torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.dim())), keepdim=True)


def build_optimizer(config: Config, net: nn.Module) -> torch.optim.Optimizer:
    """One group for the batch-norm biases, one for the rest; each group's `lr_mult` multiplies the schedule. With muon
    the convolutions are a third group.

    The biases' weight decay is divided by the multiplier, so that lr*wd stays the same (post 8). Frozen parameters are
    in no group. rmsprop, adagrad, adadelta and adam are torch's, with torch's defaults but for the Torch blog's
    adadelta rho 0.3.
    """
    norm_biases = {id(module.bias) for module in net.modules() if isinstance(module, nn.BatchNorm2d)}
    trained = [weight for weight in net.parameters() if weight.requires_grad]
    filters = [weight for weight in trained if weight.dim() == 4] if config.solver == "muon" else []
    others = norm_biases | {id(weight) for weight in filters}
    mult, decay = config.bn_bias_lr_mult, config.weight_decay
    groups: list[dict[str, Any]] = [
        {"params": [w for w in trained if id(w) not in others], "lr_mult": 1.0, "weight_decay": decay},
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
    rule: dict[str, Any] = {"lr": 0.0, "momentum": config.momentum, "weight_decay": decay, "nesterov": config.nesterov}
    if config.solver == "muon":
        for group in groups:
            group["orthogonal"] = False
        groups.append({"params": filters, "lr_mult": config.muon_lr / config.peak_lr, "orthogonal": True})
        return Muon(groups, **rule)
    return Sgd(groups, **rule, lars=config.solver == "lars")


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_mult"]
