"""Coordinates: derived numbers to search in place of a Config field, where the fields themselves are coupled.

Accuracy is nearly constant along lines of equal weight_decay * peak_lr / (1 - momentum) ("How to Train Your ResNet" 5,
claims C17 to C19). A search over the fields finds a diagonal ridge; over decay_rate and the other two it finds one axis
that matters and two that are nearly flat.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from model.config import Config, idle_knobs


@dataclass(frozen=True)
class Coordinate:
    """A number computed from a Config, and the field that follows from it beside the config's other values."""

    name: str
    """its key in a space's domains"""
    field: str
    """the Config field that it stands in for"""
    to_field: Callable[[float, Config], float]
    """the field's value from the coordinate's and the other fields of a config"""
    from_field: Callable[[Config], float]
    """the coordinate's value of a config"""


def _damping(config: Config) -> float:
    """1 - momentum; 1 for the solvers that have none."""
    return 1.0 if "momentum" in idle_knobs(config.to_dict()) else 1 - config.momentum


def _digits(value: float) -> float:
    """15 significant digits: what rounding in binary added is gone, so that a base's 0.0005 comes back as 0.0005."""
    return float(f"{value:.15g}")


MOMENTUM_STEPS = Coordinate(
    name="momentum_steps",
    field="momentum",
    to_field=lambda value, config: _digits(1 - 1 / value) if value else -math.inf,
    from_field=lambda config: _digits(1 / _damping(config)),
)
"""1 / (1 - momentum): for how many steps, in all, a gradient moves the weights (S0: 10). To double it is to halve
1 - momentum. For sgd and lars, the solvers that have momentum."""

EFFECTIVE_LR = Coordinate(
    name="effective_lr",
    field="peak_lr",
    to_field=lambda value, config: _digits(value * _damping(config) / config.lr_scale),
    from_field=lambda config: _digits(config.peak_lr * config.lr_scale / _damping(config)),
)
"""peak_lr * lr_scale / (1 - momentum), for the mean loss: how far a constant gradient moves the weights per step at the
peak (S0: 4). It sets peak_lr; lr_scale, a factor that peak_lr then undoes, is no axis beside it."""

DECAY_RATE = Coordinate(
    name="decay_rate",
    field="weight_decay",
    to_field=lambda value, config: _digits(value * _damping(config) / (config.peak_lr * config.lr_scale)),
    from_field=lambda config: _digits(config.weight_decay * config.peak_lr * config.lr_scale / _damping(config)),
)
"""weight_decay * peak_lr * lr_scale / (1 - momentum): the share of the weights that decay takes per step at the peak
(S0: 0.002). Our decay is coupled, lr * (gradient + weight_decay * weights), so the rate scales it. For sgd, lars and
what muon doesn't orthogonalise: the adaptive solvers normalise the decay with the gradient; give it
only_if={"solver": ("sgd", "lars")} beside those."""

DECAY_RATE_BY_LR = Coordinate(
    name="decay_rate_by_lr",
    field="peak_lr",
    to_field=lambda value, config: (
        _digits(value * _damping(config) / (config.weight_decay * config.lr_scale)) if config.weight_decay else math.inf
    ),
    from_field=DECAY_RATE.from_field,
)
"""The same number as decay_rate, but it sets peak_lr: beside weight_decay and momentum_steps it makes the axes of the
search of "How to Train Your ResNet" 5 (claim C20), in which the learning rate makes up for what the other two do."""

COORDINATES = {
    coordinate.name: coordinate for coordinate in (MOMENTUM_STEPS, EFFECTIVE_LR, DECAY_RATE, DECAY_RATE_BY_LR)
}
"""the known ones by name, in the order in which they are applied: the rates need the momentum that momentum_steps sets,
decay_rate the rate that effective_lr sets"""
