"""At a high learning rate, does a net forget within an epoch what it has learned? ("How to Train Your ResNet" 2.)

If it does, more data are wasted on it: it holds no more than it has seen of late. Each cell trains at a rate that rises
and then stays, so that losses settle; at its end the net is given the batches of its last epoch once more, as they
were, and their losses stand over their age. Held-out images were never seen: their loss is that of what is forgotten.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from model.config import Config
from model.recipes import dawn
from search_spaces.experiment import Claim, Estimate, Experiment, Figure, Finding, Kind, Results, Scale, seeds

RATES = {"high": 0.4, "low": 0.1}
"""those of the post are not on record; one is four times the other"""
PLAIN: Mapping[str, Any] = {"crop_pad_px": 0, "flip": False, "cutout_px": 0}
DATA: Mapping[str, Mapping[str, Any]] = {
    "half": {**PLAIN, "train_frac": 0.5},
    "all": PLAIN,
    "all, augmented": {},
}
"""what a cell trains on"""
NEAR = 0.1
"""nats that still count as the same loss: about a quarter of what data were worth, 0.36, in an independent repetition
(held-out loss 0.55 with half of the images and 0.19 with all of them, augmented)"""


def cells(epochs: int, **shared: Any) -> Mapping[str, Config]:
    """The rate rises for a sixth of the epochs, 5 of the published 30, and then stays."""
    base = replace(
        dawn(), epochs=epochs, warmup_frac=5 / 30, final_lr_ratio=1.0, tail_frac=0.0, tail_to_zero=False, **shared
    )
    return {
        f"{name} rate, {data}": replace(base, peak_lr=rate, **fields)
        for name, rate in RATES.items()
        for data, fields in DATA.items()
    }


def wastes_data(results: Results) -> Finding:
    """What all images, augmented, gain over half of them as they are, at each rate."""
    gains = {}
    for rate in RATES:
        half, everything = f"{rate} rate, half", f"{rate} rate, all, augmented"
        if results.diverged(half) or results.diverged(everything):
            return Finding("undecided", f"trainings diverged at the {rate} rate: it is too high to tell")
        gains[rate] = results.difference(half, everything, "loss")
    high, low = gains["high"], gains["low"]
    if high is None or low is None:
        return Finding("undecided", "not all cells have results on common seeds yet")
    kind: Kind = "undecided"
    if -NEAR <= high.low <= high.high <= NEAR and low.low > NEAR:
        kind = "reproduced"
    elif high.low > NEAR or high.high < -NEAR or low.high < NEAR:
        kind = "contradicted"
    text = (
        f"all images, augmented, lower the held-out loss of half of them by {_said(high)} at the high rate and by "
        f"{_said(low)} at the low one; up to {NEAR} is nothing"
    )
    return Finding(kind, text, high)


def forgets(results: Results) -> Finding:
    """Batches just seen, and those seen half an epoch ago or earlier, at the high rate and without augmentation: an
    augmented image is harder than a held-out one, seen or not."""
    cell = "high rate, all"
    newest = next(iter(results.series(cell, "recency").values()), "")
    lost = results.difference(cell, cell, "old_loss", newest)
    left = results.difference(cell, cell, "loss", "old_loss")
    if not newest or lost is None or left is None:
        return Finding("undecided", f"{cell} has no results yet")
    kind: Kind = "undecided"
    if lost.low > max(0.0, left.high) and -NEAR <= left.low <= left.high <= NEAR:
        kind = "reproduced"
    elif lost.high < max(0.0, left.low) or left.low > NEAR or left.high < -NEAR:
        kind = "contradicted"
    text = (
        f"at the high rate the loss of batches seen half an epoch ago or earlier is above that of those just seen by "
        f"{_said(lost)}, and below the held-out one by {_said(left)}: this must be less, and {NEAR} at most"
    )
    return Finding(kind, text, lost)


def _said(found: Estimate) -> str:
    reach = f"95% interval {found.low:.2f} to {found.high:.2f}" if math.isfinite(found.high) else "no interval yet"
    return f"{found.mean:.2f} ({reach}, {seeds(found.n)})"


SPACE = Experiment(
    question="At a high learning rate, does a net forget within an epoch what it has seen?",
    scales={
        "tiny": Scale(
            cells=cells(1, width=4, batch_size=64),
            data="digits",
            train_examples=700,
            seeds=1,
            why="Shows that it runs.",
        ),
        "small": Scale(
            cells=cells(8, width=8, batch_size=32, lr_scale=1 / 2),
            data="cifar10",
            train_examples=8_000,
            seeds=4,
            why="Forgetting should go with rate x images / batch size, here a third of the published one: at twice "
            "these rates so narrow a net was seen to learn nothing. The effect is smaller, then, and takes seeds.",
        ),
        "full": Scale(cells=cells(30), data="cifar10", seeds=5, why="As published."),
    },
    figures=[Figure(x="age of the batch, epochs", y="loss, nats", series="recency", panel="peak_lr", level="loss")],
    claims=[
        Claim(
            id="C06",
            sentence="A high learning rate wastes data",
            published="half of the images as good as all, augmented, by held-out loss; at the low rate clearly worse",
            judge=wastes_data,
        ),
        Claim(
            id="C07",
            sentence="At a high rate a net forgets within half an epoch",
            published="loss over age is flat, at the held-out loss, from half an epoch on; no number",
            judge=forgets,
        ),
    ],
    measure="recency",
)
