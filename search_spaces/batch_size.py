"""Batches of 128 to 768 with the rate scaled to them, and cutout in shorter runs ("How to Train Your ResNet" 1 to 3).

The net is that of the first posts. At 512 the rate is 4.4 times that at 128, as published; the schedule of the shorter
runs is the later one, a peak after 8 of 30 epochs and a straight line to zero.
"""

from collections.abc import Mapping
from dataclasses import replace

from model.config import Config
from model.recipes import dawn
from search_spaces.experiment import ABSOLUTE, Claim, Experiment, Figure, Scale, alike, higher, reaches


def cells(epochs: int, shrink: int, width: int) -> Mapping[str, Config]:
    """Batches and rates are divided by `shrink`; `epochs` stands for the published 35."""
    start = replace(dawn(), width=width, epochs=epochs, batch_size=128 // shrink, lr_scale=1 / shrink)
    large = replace(start, batch_size=512 // shrink, peak_lr=0.44)
    shorter = max(1, round(epochs * 30 / 35))
    straight = replace(large, epochs=shorter, warmup_frac=8 / 30, final_lr_ratio=0.0, tail_frac=0.0, tail_to_zero=False)
    cutout = replace(straight, peak_lr=0.4, cutout_px=8)
    return {
        "small batch": start,
        "large batch": large,
        "large batch, 30 epochs": replace(large, epochs=shorter),
        "large batch, 30 epochs, cutout": cutout,
        "largest batch, 30 epochs, cutout": replace(cutout, batch_size=768 // shrink, peak_lr=0.6),
    }


SPACE = Experiment(
    question="Can batches grow from 128 to 768 at no cost, and does cutout make up for fewer epochs?",
    scales={
        "tiny": Scale(
            cells=cells(4, 4, 4),
            data="digits",
            train_examples=400,
            seeds=1,
            why="Shows that it runs, nothing else.",
        ),
        "small": Scale(
            cells=cells(14, 4, 8),
            data="cifar10",
            train_examples=10_000,
            seeds=3,
            why="Batches are a quarter, as are images, so that an epoch has the published number of steps; whether so "
            "small a net overfits enough for cutout to help is the question.",
        ),
        "full": Scale(cells=cells(35, 1, 64), data="cifar10", seeds=5, why="As published."),
    },
    figures=[Figure(x="cell")],
    claims=[
        Claim(
            id="C01",
            sentence="The baseline reaches 94%",
            published="4 of 5 runs, 323 s",
            judge=reaches("small batch", 0.94, share=0.5),
            not_at={"tiny": ABSOLUTE, "small": ABSOLUTE},
        ),
        Claim(
            id="C02",
            sentence="Batches of 512 are as good as of 128",
            published="3 of 5 runs at 94%; 256 s instead of 297 s",
            judge=alike("large batch", "small batch", within=0.005),
        ),
        Claim(
            id="C09",
            sentence="Cutout and a straight schedule make 30 epochs enough",
            published="0 of 5 runs at 94% without, 4 of 5 with",
            judge=higher("large batch, 30 epochs, cutout", "large batch, 30 epochs"),
        ),
        Claim(
            id="C10",
            sentence="Batches of 768 are as good as of 512",
            published="medians of 94.06% and 94.13%",
            judge=alike("largest batch, 30 epochs, cutout", "large batch, 30 epochs, cutout", within=0.005),
        ),
    ],
)
