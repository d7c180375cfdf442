"""Along which lines does accuracy hardly change? ("How to Train Your ResNet" 5.)

Three slices through the baseline: the learning rate against batch size, against 1 - momentum, and against weight decay,
all by factors of two. The post shows ridges at 45 degrees: what counts is lambda / N, lambda / (1 - rho) and
lambda * alpha. A quadratic in the logarithms is fitted to each slice; its direction of least curvature is the ridge.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from model.config import Config
from model.recipes import s0
from search_spaces.experiment import (
    SMALL,
    TINY,
    Claim,
    Estimate,
    Experiment,
    Figure,
    Finding,
    Judge,
    Kind,
    Results,
    Scale,
    seeds,
)
from search_spaces.ridge import ridge_interval

AXES = {"batch": "batch_size", "damping": "momentum", "decay": "weight_decay"}
TOLERANCE = 20.0  # degrees from the diagonal that still count as it


def cells(factors: Sequence[float], **shared: Any) -> Mapping[str, Config]:
    """Each slice is a square grid of these factors on the learning rate and on its other axis."""
    base = replace(s0(), **shared)
    found = {"baseline": base}
    for rate in factors:
        for other in factors:
            changes: list[tuple[str, dict[str, Any]]] = [
                ("batch", {"batch_size": round(base.batch_size * other)}),
                ("damping", {"momentum": round(1 - (1 - base.momentum) * other, 9)}),
                ("decay", {"weight_decay": base.weight_decay * other}),
            ]
            for axis, change in changes:
                cell = replace(base, lr_scale=base.lr_scale * rate, **change)
                if cell not in found.values():
                    found[f"{f'{axis} x{other:g}, ' if other != 1 else ''}rate x{rate:g}"] = cell
    return found


def _other(config: Config, axis: str) -> float:
    return {"batch": config.batch_size, "damping": 1 - config.momentum, "decay": config.weight_decay}[axis]


def slice_of(results: Results, axis: str) -> dict[tuple[float, float], list[float]]:
    """Accuracies by (log2 rate, log2 of the other axis), for cells that differ from the baseline in no third field."""
    base = results.cells["baseline"]
    own = AXES[axis]
    found = {}
    for name, config in results.cells.items():
        like_base = replace(config, lr_scale=base.lr_scale, **{own: getattr(base, own)})
        if like_base == base and results.values(name):
            at = (math.log2(config.lr_scale), math.log2(_other(config, axis)))
            found[at] = results.values(name)
    return found


def on_slice(axis: str) -> Callable[[str], bool]:
    """Whether a cell of this name is drawn with the slice."""
    return lambda name: name.startswith((axis, "rate", "baseline"))


def diagonal(axis: str, degrees: float) -> Judge:
    def judge(results: Results) -> Finding:
        surface = slice_of(results, axis)
        if len(surface) < 9:
            return Finding("undecided", f"{len(surface)} points of the slice have results, a fit takes 9")
        angle, low, high = ridge_interval(surface, degrees)
        inside = degrees - TOLERANCE <= low and high <= degrees + TOLERANCE
        outside = high < degrees - TOLERANCE or low > degrees + TOLERANCE
        kind: Kind = "reproduced" if inside else "contradicted" if outside else "undecided"
        n = min(map(len, surface.values()))
        text = (
            f"the flattest direction lies at {angle:.0f} degrees (95% of fits to resampled residuals: {low:.0f} to "
            f"{high:.0f}; {len(surface)} points of {seeds(n)}); claimed {degrees:.0f}, {TOLERANCE:.0f} off still count"
        )
        return Finding(kind, text, Estimate(n, angle, low, high))

    return judge


SPACE = Experiment(
    question="Along which lines of learning rate, batch size, momentum and weight decay is accuracy flat?",
    scales={
        "tiny": Scale(
            cells=cells((0.5, 1, 2), epochs=1, **TINY),
            data="digits",
            train_examples=400,
            seeds=1,
            why="Shows that it runs, nothing else.",
        ),
        "small": Scale(
            cells=cells((1 / 4, 1 / 2, 1, 2, 4), epochs=4, **SMALL),
            data="cifar10",
            train_examples=10_000,
            seeds=1,
            why="A factor of 16 on each axis changes accuracy by far more than seeds do; the fit averages 25 points.",
        ),
        "full": Scale(cells=cells((1 / 4, 1 / 2, 1, 2, 4)), data="cifar10", seeds=3, why="As published, but repeated."),
    },
    figures=[Figure(x="lr_scale", colour=field, log_x=True, where=on_slice(axis)) for axis, field in AXES.items()],
    claims=[
        Claim(
            id=id,
            sentence=f"Accuracy is flat along {line}",
            published="a ridge at 45 degrees in logarithmic axes, drop along it about 0",
            judge=diagonal(axis, degrees),
        )
        for id, axis, line, degrees in [
            ("C17", "batch", "equal lambda / N", 45),
            ("C18", "damping", "equal lambda / (1 - rho)", 45),
            ("C19", "decay", "equal lambda * alpha", -45),
        ]
    ],
)
