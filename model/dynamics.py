"""How far weights move in a step, measured and as weight decay predicts it (post 6, claim C22).

The loss doesn't change with the length of a weight w that batch norm follows, so its gradient g stands at right angles
to w. Steps make w longer, decay makes it shorter, and at a constant rate it comes to rest where they balance.

With rate L, decay A and momentum M, each gradient has moved w by L g / (1 - M) in the end. Gradients of different steps
stand at right angles, too, so that the square of ||w|| grows by (L ||g|| / (1 - M))^2 a step, and decay takes
2 L A / (1 - M) of it. At rest, then, L ||g|| / ||w|| = sqrt(2 L A (1 - M)), and one gradient's whole effect is
sqrt(2 L A / (1 - M)) of w: what the post says.

A single step holds a part of each gradient so far. With plain momentum these are 1, M, M^2, ..., squared and summed
1 / (1 - M^2). Nesterov's form has 1 + M, M^2, M^3, ...: 2 M + 1 / (1 - M^2). All but for terms of the order of
L A / (1 - M).
"""

import math
from copy import deepcopy
from itertools import islice

from torch import nn

from model.config import Config
from model.data import DeviceData
from model.optim import build_optimizer, lr_schedule, set_lr
from model.train import TrainState, batches, train_step

STEPS = 30


def steps(config: Config, data: DeviceData, state: TrainState, seed: int) -> dict[str, float]:
    """The relative step of each convolution that batch norm follows, over 30 more steps of a copy at the last rate.

    Returns:
        "relative_step LAYER", the root mean square over the steps of ||dw|| / ||w||; "expected_step", what it is for
        all of them at rest.
    """
    assert config.solver == "sgd" and config.norm == "batch", "no other weights come to rest so"
    lr = lr_schedule(config, state.epoch)
    net = deepcopy(state.net).train()
    optimizer = build_optimizer(config, net)
    optimizer.load_state_dict(deepcopy(state.optimizer.state_dict()))
    set_lr(optimizer, lr)
    weights = normed_weights(net)
    squares: dict[str, list[float]] = {name: [] for name in weights}
    for inputs, labels in islice(batches(config, data, seed, state.epoch), STEPS):
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        train_step(config, net, optimizer, inputs, labels)
        for name, weight in weights.items():
            squares[name].append(((weight.detach() - before[name]).norm() / before[name].norm()).square().item())
    measured = {f"relative_step {name}": math.sqrt(sum(found) / len(found)) for name, found in squares.items()}
    return {**measured, "expected_step": expected_step(lr, config.weight_decay, config.momentum, config.nesterov)}


def normed_weights(net: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of the convolutions that have a norm after them, by the name of their block: `prep`, `layer1.conv`,
    `layer1.residual.conv1`, ..."""
    return {
        name.replace(".sum.branch", ""): block.conv.weight
        for name, block in net.named_modules()
        if isinstance(getattr(block, "conv", None), nn.Conv2d) and isinstance(getattr(block, "norm", None), nn.Module)
    }


def expected_step(lr: float, weight_decay: float, momentum: float, nesterov: bool) -> float:
    """||dw|| / ||w|| at rest, see above."""
    parts = 1 / (1 - momentum**2) + (2 * momentum if nesterov else 0)
    return math.sqrt(2 * lr * weight_decay * (1 - momentum) * parts)
