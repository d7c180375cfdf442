"""Does depth or width pay, and does it take residual branches? ("How to Train Your ResNet" 4.)

The backbone with an extra convolution in each subset of its three layers, with a residual pair in each subset, and with
twice the width: 16 nets. The ladder from the first net to this backbone is not among them.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from model.config import LAYER_SETS, Config
from model.recipes import s0
from search_spaces.experiment import ABSOLUTE, SMALL, TINY, Claim, Experiment, Figure, Scale, alike, higher, reaches


def cells(**shared: Any) -> Mapping[str, Config]:
    backbone = replace(s0(), residual_layers="none", **shared)
    found = {"backbone": backbone, "twice the width": replace(backbone, width=2 * backbone.width)}
    for layers in LAYER_SETS[1:]:
        found[f"extra {layers}"] = replace(backbone, extra_layers=layers)
        found[f"residual {layers}"] = replace(backbone, residual_layers=layers)
    return found


SPACE = Experiment(
    question="Does depth or width pay, and does it take residual branches?",
    scales={
        "tiny": Scale(cells=cells(epochs=1, **TINY), data="digits", seeds=1, why="It runs."),
        "small": Scale(
            cells=cells(epochs=8, **SMALL),
            data="cifar10",
            train_examples=10_000,
            seeds=3,
            why="From 5 to 11 convolutions is a large step for so small a net; few epochs are to its disadvantage.",
        ),
        "full": Scale(cells=cells(epochs=20, warmup_frac=1 / 5), data="cifar10", seeds=10, why="As published."),
    },
    figures=[Figure(x="cell")],
    claims=[
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
