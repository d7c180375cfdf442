"""What a search is for: accuracy, the least time or FLOPs to a target accuracy, or accuracy against cost.

The model of a search predicts accuracy; cost is known, or simple to predict. So an objective is a way to rank
(accuracy, cost), used twice: on what trials did, and on what the model draws for those that could be trained.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tune.gp import Array

Kind = Literal["accuracy", "time-to-target", "flops-to-target", "pareto"]


@dataclass(frozen=True)
class Objective:
    """An objective, with the accuracy (0..1) to reach where it has one."""

    kind: Kind = "accuracy"
    target_acc: float | None = None

    @property
    def by_time(self) -> bool:
        """Whether cost is seconds of training rather than floating-point operations."""
        return self.kind == "time-to-target"

    @property
    def needs_cost(self) -> bool:
        return self.kind != "accuracy"

    def cost(self, accs: Sequence[float], costs: Sequence[float]) -> float:
        """What a finished trial had cost when it reached the target, or its end; arguments as for `score`."""
        reached = (cost for acc, cost in zip(accs, costs, strict=True) if acc >= (self.target_acc or math.inf))
        return next(reached, costs[-1])

    def score(self, accs: Sequence[float], costs: Sequence[float], base_cost: float) -> float:
        """How good a finished trial is; higher is better, and comparable between trials of one search.

        The final accuracy; or with a target, for a trial that reached it at cost c: 1 + b / (b + c), b the cost of the
        base's full training, so between 1 and 2; for one that missed it by m: 1 - m.

        Args:
            accs: accuracy after each epoch.
            costs: what the trial had cost by then.
        """
        if self.target_acc is None:
            return accs[-1]
        if max(accs) >= self.target_acc:
            return 1 + base_cost / (base_cost + self.cost(accs, costs))
        return 1 - (self.target_acc - max(accs))

    def utility(
        self, drawn: Array, log_cost: Array | None, to_z: Callable[[Array], Array], rng: np.random.Generator
    ) -> Array:
        """What to maximise over candidates, [n], given final accuracies drawn from the model as z and the log of their
        costs. With a target: whoever reaches it, the cheapest first, then whoever comes near. For a front: a random
        trade-off, another one at each decision (ParEGO, Knowles 2006)."""
        if log_cost is None:
            return drawn
        if self.target_acc is not None:
            target = to_z(np.array([self.target_acc]))[0]
            cheap = np.exp(log_cost.min() - log_cost)  # 0..1, the cheapest is 1
            return np.where(drawn >= target, 1 + cheap, drawn - target)
        weight = rng.random()
        scaled = (log_cost - log_cost.mean()) / (log_cost.std() or 1.0)
        result: Array = weight * drawn - (1 - weight) * scaled
        return result


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which (accuracy, cost) points no other point beats in both."""
    return [
        not any((a >= acc and c <= cost) and (a, c) != (acc, cost) for a, c in points) and math.isfinite(cost)
        for acc, cost in points
    ]


def fit_log_cost(features: Array, log_costs: Array) -> Callable[[Array], Array]:
    """Ridge regression of log cost on features and their squares: cost is a product of powers of width, epochs and
    the like, and a simple model is enough (arXiv 2011.11456)."""

    def columns(x: Array) -> Array:
        return np.hstack([np.ones((len(x), 1)), x, x * x])

    a = columns(features)
    penalty = 1e-3 * np.eye(a.shape[1])
    penalty[0, 0] = 0
    weights = np.linalg.solve(a.T @ a + penalty, a.T @ log_costs)
    return lambda x: columns(x) @ weights
