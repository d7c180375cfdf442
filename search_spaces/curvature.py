"""How sharply does the loss bend, with batch norm, with its statistics frozen, and without? ("How to Train Your
ResNet" 7.)

The largest eigenvalue of the loss's Hessian bounds the stable learning rate. The post finds it far smaller with batch
norm, and what is large in the other nets to lie in a few directions, those that move mean, variance and skew of the
logits. The nets are those of `batch_norm`, each trained at a rate that suits it, and one with batch norm at the rate of
the others. The post's frozen net is a copy of its trained batch-norm net; here it is trained with frozen statistics
from the start.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from model.config import Config
from search_spaces.batch_norm import NET
from search_spaces.experiment import SMALL, TINY, Claim, Experiment, Figure, Finding, Kind, Results, Scale

OTHERS = ("frozen", "none")
FAR_BELOW = 1 / 4
"""published: 1/18 and 1/27"""
BROUGHT_DOWN = 1 / 2
"""published: to 1/5.5 and 1/2.6"""


def cells(rates: Mapping[str, float], **shared: Any) -> Mapping[str, Config]:
    found = {norm: replace(NET, norm=norm, peak_lr=rate, **shared) for norm, rate in rates.items()}
    return {**found, "batch, low rate": replace(found["batch"], peak_lr=rates["none"])}


def verdict(ratios: Mapping[str, list[float]], limit: float) -> Kind:
    """Reproduced if all ratios of all nets are below the limit, contradicted if one net has none there."""
    if all(max(found) < limit for found in ratios.values()):
        return "reproduced"
    return "contradicted" if any(min(found) >= limit for found in ratios.values()) else "undecided"


def far_below(results: Results) -> Finding:
    """With batch norm against each of the others, any seed of one with any of the other."""
    batch, *others = (results.values(cell, "lambda_max") for cell in ("batch", *OTHERS))
    if min(map(len, (batch, *others))) < 2:
        return _nothing()
    ratios = {
        name: [sharp / other for sharp in batch for other in found] for name, found in zip(OTHERS, others, strict=True)
    }
    largest = "; ".join(f"{cell} {_range(results.values(cell, 'lambda_max'))}" for cell in ("batch", *OTHERS))
    text = f"largest eigenvalue: {largest} ({len(batch)} seeds); far below is less than {FAR_BELOW:g} of it"
    return Finding(verdict(ratios, FAR_BELOW), text)


def brought_down(results: Results) -> Finding:
    """What is left of the largest eigenvalue, in frozen and none."""
    ratios = {}
    for cell in OTHERS:
        pairs = zip(results.values(cell, "lambda_max_projected"), results.values(cell, "lambda_max"), strict=True)
        ratios[cell] = [left / whole for left, whole in pairs]
    n = min(map(len, ratios.values()))
    if n < 2:
        return _nothing()
    left = "; ".join(f"{cell} {_range(found)}" for cell, found in ratios.items())
    text = f"share of the largest eigenvalue that is left: {left} ({n} seeds); less than {BROUGHT_DOWN:g} counts"
    return Finding(verdict(ratios, BROUGHT_DOWN), text)


def _nothing() -> Finding:
    return Finding("undecided", "not all nets have results of two seeds yet")


def _range(values: list[float]) -> str:
    return f"{min(values):.3g} to {max(values):.3g}"


SPACE = Experiment(
    question="How sharply does the loss bend with batch norm, with frozen statistics, and without?",
    scales={
        "tiny": Scale(
            cells=cells({"batch": 5.0, "frozen": 0.2, "none": 0.2}, epochs=1, **{**TINY, "batch_size": 16}),
            data="digits",
            train_examples=400,
            seeds=1,
            why="Shows that it runs; in batches of 16, since what it measures costs as much as 4 batches are large.",
        ),
        "small": Scale(
            cells=cells({"batch": 5.0, "frozen": 0.2, "none": 0.2}, epochs=8, **SMALL),
            data="cifar10",
            train_examples=10_000,
            seeds=2,
            why="Published ratios are above 10, at any width.",
        ),
        "full": Scale(
            cells=cells({"batch": 5.0, "frozen": 0.2, "none": 0.2}, epochs=20),
            data="cifar10",
            seeds=3,
            why="The unbranched net of 8 layers at the published rates.",
        ),
    },
    figures=[Figure(y="lambda_max"), Figure(y="lambda_max_projected")],
    claims=[
        Claim(
            id="C26",
            sentence="With batch norm the largest eigenvalue is far lower",
            published="128 with batch norm, 2246 with frozen statistics, 3486 without",
            judge=far_below,
        ),
        Claim(
            id="C27",
            sentence="What is large without it lies in the moments of the logits",
            published="with 29 directions projected out, 407 of 2246 frozen, 1324 of 3486 without",
            judge=brought_down,
        ),
    ],
    measure="curvature",
)
