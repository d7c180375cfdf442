"""How high may the learning rate go, with batch norm, with its statistics frozen, and without? (Post 7.)

The post raises the rate from epoch to epoch until training breaks. Here each cell is a short training with a peak of
its own. A rate counts as stable if its mean accuracy is above half of that net's best.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from model.config import Config
from model.recipes import s0
from search_spaces.experiment import Claim, Estimate, Experiment, Figure, Finding, Kind, Results, Scale, seeds

NET = replace(
    s0(),
    residual_layers="none",
    extra_layers="123",
    cutout_px=0,
    init_scale=6**0.5,
    logit_scale=0.125 / 6**0.5,
)
"""of post 7: 8 layers without branches, with He's init, lest the one without norm never learn"""
LEAST_RATIO = 8.0


def cells(rates: Sequence[float], **shared: Any) -> Mapping[str, Config]:
    base = replace(NET, **shared)
    return {
        f"{norm}, rate {rate:g}": replace(base, norm=norm, peak_lr=rate)
        for norm in ("batch", "frozen", "none")
        for rate in rates
    }


def stable_rate(results: Results, norm: str) -> tuple[float, int]:
    """The highest stable rate, and how many rates were tried."""
    means = {
        results.cells[cell].peak_lr: found.mean
        for cell in results.cells
        if cell.startswith(f"{norm},") and (found := results.mean(cell))
    }
    best = max(means.values(), default=0.0)
    return max((rate for rate, acc in means.items() if acc > best / 2), default=math.nan), len(means)


def widens(results: Results) -> Finding:
    (batch, tried), (none, _) = stable_rate(results, "batch"), stable_rate(results, "none")
    rates = {config.peak_lr for config in results.cells.values()}
    if tried < len(rates) or math.isnan(batch * none):
        return Finding("undecided", "not all rates have results yet")
    n = min(len(results.values(cell)) for cell in results.cells)
    ratio, step = batch / none, sorted(rates)[1] / sorted(rates)[0]
    text = f"stable up to {batch:g} with batch norm and up to {none:g} without: {ratio:.3g} times ({seeds(n)})"
    if batch == max(rates):
        text += "; with batch norm every rate tried was stable"
    found = Estimate(n, ratio, ratio / step, ratio * step)  # one step of the grid either way
    kind: Kind = (
        "reproduced" if found.low >= LEAST_RATIO else "contradicted" if found.high < LEAST_RATIO else "undecided"
    )
    return Finding(kind, f"{text}; a ratio of {LEAST_RATIO:g} or more counts, one step of the grid off", found)


SPACE = Experiment(
    question="How much higher may the learning rate go with batch norm?",
    scales={
        "tiny": Scale(
            cells=cells((0.1, 3.2), epochs=1, batch_size=64, width=4), data="digits", seeds=1, why="Shows that it runs."
        ),
        "small": Scale(
            cells=cells((0.025, 0.1, 0.4, 1.6, 6.4, 25.6), epochs=4, batch_size=128, width=8),
            data="cifar10",
            train_examples=10_000,
            seeds=2,
            why="Where training breaks down shows in the first epochs, at any width.",
        ),
        "full": Scale(
            cells=cells((0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8), epochs=10),
            data="cifar10",
            seeds=2,
            why="The unbranched net of 8 layers, by factors of two.",
        ),
    },
    figures=[Figure(x="peak_lr", colour="norm", log_x=True)],
    claims=[
        Claim(
            id="C25",
            sentence="Batch norm lets the rate go far higher",
            published="above 3.6 against 0.11, about 30 times",
            judge=widens,
        )
    ],
)
