"""What share of a training step does batch norm take? ("How to Train Your ResNet" 3, its profile of an epoch.)

There batch norm in half precision took a slow path: 2.55 of 7.14 s per epoch at batches of 512. In single precision it
took 0.70 of 5.29 s. No slow path is left to time; what can be held against the source is the share after the fix.
Shares are compared, not seconds: trainings run beside each other, and devices differ.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from model.config import Config
from model.recipes import dawn
from search_spaces.experiment import Claim, Experiment, Figure, Finding, Kind, Results, Scale

AT = "batches of 512"
BEFORE, AFTER = 2.55 / 7.14, 0.70 / 5.29
LIMIT = 0.2
"""below the geometric mean of 0.36 before the fix and 0.13 after it: nearer to the latter, by ratio"""


def cells(sizes: Iterable[int], **shared: Any) -> Mapping[str, Config]:
    """The net of the first posts for one epoch: what a step takes doesn't depend on its weights."""
    return {f"batches of {size}": replace(dawn(), epochs=1, batch_size=size, **shared) for size in sizes}


def cheap_norm(results: Results) -> Finding:
    found = results.mean(AT, "share norm") if AT in results.cells else None
    if found is None:
        return Finding("undecided", f"{AT} have no profile yet")
    kind: Kind = "reproduced" if found.high <= LIMIT else "contradicted" if found.low > LIMIT else "undecided"
    reach = f"95% interval {100 * found.low:.0f} to {100 * found.high:.0f}%" if found.n > 1 else "no interval yet"
    text = (
        f"batch norm takes {100 * found.mean:.1f}% of a step at {AT} ({reach}, {found.n} profiles); up to "
        f"{100 * LIMIT:.0f}% is nearer to the {100 * AFTER:.0f}% after the fix than to the {100 * BEFORE:.0f}% before"
    )
    return Finding(kind, text, found)


SPACE = Experiment(
    question="What share of a training step does batch norm take?",
    scales={
        "tiny": Scale(
            cells=cells((32, 64), width=4), data="digits", train_examples=100, seeds=1, why="Shows that it runs."
        ),
        "small": Scale(
            cells=cells((128, 256, 512), width=16),
            data="cifar10",
            train_examples=600,
            seeds=4,
            why="A profile takes a few batches. Norms do work in proportion to the width, convolutions to its square: "
            "at a quarter of the width the share of norms is too large, if anything.",
        ),
        "full": Scale(
            cells=cells((128, 256, 512, 1024), precision="fp16"),
            data="cifar10",
            seeds=5,
            why="As published: convolutions in half precision, norms in single precision, on one GPU.",
        ),
    },
    figures=[Figure(x="part of the step", y="share of a step's time", series="share")],
    claims=[
        Claim(
            id="C08",
            sentence="In a good kernel, batch norm takes no more than about an eighth of a step",
            published="2.55 of 7.14 s per epoch before the fix, 0.70 of 5.29 s after it, at batches of 512",
            judge=cheap_norm,
            not_at={"tiny": "a step of four channels is mostly Python"},
        )
    ],
    measure="layer_times",
)
