"""Do the tricks that make short trainings fast cost accuracy in long ones? ("How to Train Your ResNet" 8, at its end.)

The baseline S0 and the final net S8 at growing epochs, both with cutout 12 and scored with mirrored images; the final
net with the baseline's peak rate of 0.4 and an end at a tenth of it, as published.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from model.config import Config
from model.recipes import s0, s8
from search_spaces.experiment import SMALL, TINY, Claim, Experiment, Figure, Finding, Results, Scale, higher


def cells(lengths: Iterable[int], **shared: Any) -> Mapping[str, Config]:
    shared |= {"tta": "flip"}
    found = {}
    for epochs in lengths:
        found[f"baseline, {epochs}"] = replace(s0(), epochs=epochs, **shared)
        tail = 2 / epochs if epochs > 4 else 0.2
        found[f"final, {epochs}"] = replace(s8(), epochs=epochs, peak_lr=0.4, tail_frac=tail, **shared)
    return found


def longest(results: Results) -> Finding:
    """The final net against the baseline at the most epochs."""
    baseline, final = list(results.cells)[-2:]
    return higher(final, baseline)(results)


PUBLISHED = "96.13% (SD 0.09) against 95.70% (0.05) at 80 epochs, mirrored, 5 runs each"
SPACE = Experiment(
    question="Do the tricks of short trainings pay in long ones, too?",
    scales={
        "tiny": Scale(cells=cells((1, 2), cutout_px=4, **TINY), data="digits", seeds=1, why="Shows that it runs."),
        "small": Scale(
            cells=cells((4, 8, 24), cutout_px=8, **SMALL),
            data="cifar10",
            train_examples=10_000,
            seeds=3,
            why="Six times the shortest training, at which a net of this width has seen its few images often enough.",
        ),
        "full": Scale(cells=cells((24, 40, 60, 80, 100), cutout_px=12), data="cifar10", seeds=5, why="Published."),
    },
    figures=[Figure(x="epochs", colour="whiten", log_x=True)],
    claims=[
        Claim(
            id="C37",
            sentence="The tricks of short trainings help converged accuracy as well",
            published=PUBLISHED,
            judge=longest,
        )
    ],
)
