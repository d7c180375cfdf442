"""Does depth or width pay, and does it take residual branches? ("How to Train Your ResNet" 4.)

First the ladder of six nets from the shortest path through the DAWN net to the backbone of ResNet-9. Then that backbone
with an extra convolution in each subset of its three layers, with a residual pair in each subset, and with twice the
width: 16 nets. The fifth net of the ladder lacks the 10 biases that its classifier had in the post.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from model.config import LADDER, LAYER_SETS, Config
from model.recipes import s0
from search_spaces.experiment import (
    ABSOLUTE,
    SMALL,
    TINY,
    Claim,
    Experiment,
    Figure,
    Finding,
    Kind,
    Results,
    Scale,
    alike,
    higher,
    reaches,
)

STEPS = (
    "shortest path",
    "norms not repeated",
    "3x3 convolutions",
    "max-pooling",
    "wide end, maximum only",
    "backbone",
)
JUDGED = STEPS[1:5]
"""steps that gained a point or more in the post; the first changed nothing, and the last gained 0.4 in one run"""


def cells(subsets: Sequence[str], **shared: Any) -> Mapping[str, Config]:
    """The ladder, then the backbone with twice the width and with more in these subsets of its layers."""
    backbone = replace(s0(), residual_layers="none", **shared)
    old: dict[str, Any] = {"norm_scale_uniform": True, "logit_scale": 1.0}
    found = {step: replace(s0(), net=net, **old, **shared) for step, net in zip(STEPS, LADDER, strict=False)}
    found |= {STEPS[4]: replace(backbone, **old), STEPS[5]: backbone}
    found["twice the width"] = replace(backbone, width=2 * backbone.width)
    for layers in subsets:
        found[f"extra {layers}"] = replace(backbone, extra_layers=layers)
        found[f"residual {layers}"] = replace(backbone, residual_layers=layers)
    return found


def every_step_gains(results: Results) -> Finding:
    """Three steps, of which the one that gains least is told in full."""
    gains = [higher(step, before)(results) for before, step in pairwise(JUDGED)]
    least = min(gains, key=lambda gain: gain.estimate.mean if gain.estimate else -1.0)
    if least.estimate is None:
        return least
    kinds = {gain.kind for gain in gains}
    kind: Kind = "contradicted" if "contradicted" in kinds else "reproduced" if kinds == {"reproduced"} else "undecided"
    means = [f"{step} {100 * mean.mean:.1f}%" for step in STEPS if (mean := results.mean(step))]
    return Finding(kind, f"{', '.join(means)}; the least gain is {least.text}", least.estimate)


SPACE = Experiment(
    question="Does depth or width pay, and does it take residual branches?",
    scales={
        "tiny": Scale(cells=cells(["13", "123"], epochs=1, **TINY), data="digits", seeds=1, why="It runs."),
        "small": Scale(
            cells=cells(["1", "3", "13", "123"], epochs=6, **SMALL),
            data="cifar10",
            train_examples=10_000,
            seeds=3,
            why="From 5 to 11 convolutions is a large step for so small a net; few epochs are to its disadvantage.",
        ),
        "full": Scale(
            cells=cells(LAYER_SETS[1:], epochs=20, warmup_frac=1 / 5), data="cifar10", seeds=10, why="As published."
        ),
    },
    figures=[Figure(x="cell")],
    claims=[
        Claim(
            id="C11",
            sentence="The backbone gains step by step: 3x3 convolutions, max-pooling, more channels at the end",
            published="55.9%, 56.0%, 85.6%, 89.7%, 90.7%, 91.1%",
            judge=every_step_gains,
        ),
        Claim(
            id="C12",
            sentence="Width alone is inefficient: depth does more for less arithmetic",
            published="twice the width 93.5% in 321 s, residual pairs 93.8% in 66 s",
            judge=higher("residual 13", "twice the width", by=-0.005),
        ),
        Claim(
            id="C13",
            sentence="ResNet-9 reaches 93.8% in 20 epochs",
            published="93.8%, mean of 10 runs",
            judge=reaches("residual 13", 0.938, share=0.3),
            not_at={"tiny": ABSOLUTE, "small": ABSOLUTE},
        ),
        Claim(
            id="C15",
            sentence="No residual branches are needed",
            published="extra convolutions in all layers, 60 epochs: 95.0%",
            judge=alike("extra 123", "residual 13", within=0.01),
        ),
    ],
)
