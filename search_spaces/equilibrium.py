"""Does weight decay set how far a step moves a weight, in each layer alike? ("How to Train Your ResNet" 6.)

A weight that batch norm follows grows with its steps and shrinks with its decay, and at a constant rate comes to rest
where its relative step depends on rate, decay and momentum alone (`model.dynamics` has the formula), not on the layer
or its gradients. Here the rate stays constant after a warm-up, and at the end every such layer's step is measured.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from model.config import Config
from model.recipes import s0
from search_spaces.experiment import SMALL, TINY, Claim, Experiment, Figure, Finding, Kind, Results, Scale

WITHIN = math.sqrt(2)
"""times the prediction: neighbouring ones lie a factor of 2 apart, and a step must be nearest to its own"""
MOST = 0.9
"""share of the layers of all cells"""


def cells(factors: Sequence[tuple[float, float]], **shared: Any) -> Mapping[str, Config]:
    """The baseline at a constant rate, its weight decay and its rate times these factors."""
    base = replace(s0(), final_lr_ratio=1.0, **shared)
    return {
        f"decay x{decay:g}, rate x{rate:g}": replace(
            base, weight_decay=base.weight_decay * decay, lr_scale=base.lr_scale * rate
        )
        for decay, rate in factors
    }


def ratios(results: Results, cell: str) -> list[list[float]]:
    """Measured over predicted step, of each seed a list of all layers; nothing where a layer's step was not finite."""
    names = ["expected_step", *results.series(cell, "relative_step").values()]
    found = [results.values(cell, name) for name in names]
    if len({*map(len, found)}) > 1:
        return []
    return [[step / at_rest for step in steps] for at_rest, *steps in zip(*found, strict=True)]


def as_predicted(results: Results) -> Finding:
    """Reproduced if most layers' steps are, with every seed; contradicted if with none."""
    found = {cell: ratios(results, cell) for cell in results.cells}
    n = min(map(len, found.values()))
    if n < 2:
        return Finding("undecided", "not all cells have results of two seeds yet")
    by_seed = [[ratio for by_layer in found.values() for ratio in by_layer[seed]] for seed in range(n)]
    shares = [sum(1 / WITHIN < ratio < WITHIN for ratio in each) / len(each) for each in by_seed]
    every = sorted(itertools.chain(*by_seed))
    kind: Kind = "undecided"
    if min(shares) >= MOST:
        kind = "reproduced"
    elif max(shares) < MOST:
        kind = "contradicted"
    text = (
        f"the relative step is {every[0]:.2f} to {every[-1]:.2f} times the prediction, {every[len(every) // 2]:.2f} in "
        f"the median ({len(by_seed[0])} layers of {len(found)} cells, {n} seeds); with the seed that fits least, "
        f"{100 * min(shares):.0f}% are within a factor of {WITHIN:.2f}, {100 * MOST:.0f}% must be"
    )
    return Finding(kind, text)


SPACE = Experiment(
    question="Does weight decay set the relative step, in each layer alike?",
    scales={
        "tiny": Scale(
            cells=cells([(4, 1), (16, 1)], epochs=1, **TINY), data="digits", seeds=1, why="Shows that it runs."
        ),
        "small": Scale(
            cells=cells([(4, 1), (1, 4), (16, 1), (4, 4)], epochs=10, **SMALL),
            data="cifar10",
            train_examples=10_000,
            seeds=2,
            why="Coming to rest takes (1 - momentum) / (4 rate decay) steps, here 125, at the most; 780 are trained. "
            "Factors of 1 would take 500.",
        ),
        "full": Scale(
            cells=cells([(1, 1), (4, 1), (1, 4), (16, 1), (4, 4)]),
            data="cifar10",
            seeds=3,
            why="The published rate and decay, and others. Coming to rest takes 125 steps of 2,100 at the most.",
        ),
    },
    figures=[Figure(x="layer", y="relative step", series="relative_step", level="expected_step")],
    claims=[
        Claim(
            id="C22",
            sentence="Weight decay sets the relative step",
            published="a fixed point, controlled by lambda * alpha / (1 - rho); no number",
            judge=as_predicted,
            not_at={"tiny": "in the few steps of an epoch no weight comes to rest"},
        )
    ],
    measure="steps",
)
