"""How much do runs of one config differ, and do common seeds cancel some of it? ("How to Train Your ResNet" 4 and 8.)

The baseline and the baseline with one trick, on the same seeds. The spread tells how many seeds a difference takes:
with SD s, an interval of +-d needs about 8 (s / d)^2 seeds of each.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from model.config import Config
from model.recipes import s0
from search_spaces.experiment import ABSOLUTE, SMALL, TINY, Claim, Experiment, Figure, Scale, reaches, spreads


def cells(**changes: Any) -> Mapping[str, Config]:
    base = replace(s0(), **changes)
    return {"baseline": base, "with label smoothing": replace(base, label_smoothing=0.2)}


SPACE = Experiment(
    question="How much do runs of one config differ by their seed?",
    scales={
        "tiny": Scale(
            cells=cells(epochs=1, **TINY),
            data="digits",
            seeds=3,
            why="Shows that it runs, nothing else.",
        ),
        "small": Scale(
            cells=cells(epochs=8, **SMALL),
            data="cifar10",
            train_examples=10_000,
            seeds=12,
            why="On 5,000 held-out images the doubtful ones alone, right on one seed and wrong on the next, make an SD "
            "of nearly half a point: far above the published one on 10,000.",
        ),
        "full": Scale(cells=cells(), data="cifar10", seeds=50, why="As published."),
    },
    figures=[Figure(x="cell")],
    claims=[
        Claim(
            id="C14",
            sentence="The baseline has a mean of 94.08%",
            published="94.08%; 35 of 50 runs at 94% or more",
            judge=reaches("baseline", 0.94, share=0.5),
            not_at={"tiny": ABSOLUTE, "small": ABSOLUTE},
        ),
        Claim(
            id="C16",
            sentence="Runs differ with an SD of about 0.15 points",
            published="0.15 points at 94%",
            judge=spreads("baseline", 0.001, 0.002),
            not_at={"tiny": ABSOLUTE, "small": f"{ABSOLUTE}; so does its spread"},
        ),
    ],
)
