"""Does cutout pay in long trainings only? A question of our own: post 3 adds it to make 30 epochs enough, post 8 drops
it at 10. If it is a brake that keeps a net from learning its images by heart, it should cost where there is no time for
that, and gain where there is."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from model.config import Config
from model.recipes import s0
from search_spaces.experiment import SMALL, TINY, Claim, Experiment, Figure, Finding, Results, Scale, higher


def cells(lengths: Iterable[int], cutout_px: int = 8, **shared: Any) -> Mapping[str, Config]:
    return {
        f"{epochs} epochs, {f'cutout {cutout}' if cutout else 'no cutout'}": replace(
            s0(), epochs=epochs, cutout_px=cutout, **shared
        )
        for epochs in lengths
        for cutout in (0, cutout_px)
    }


def costs_when_short(results: Results) -> Finding:
    without, cutout = list(results.cells)[:2]
    return higher(without, cutout)(results)


def gains_when_long(results: Results) -> Finding:
    without, cutout = list(results.cells)[-2:]
    return higher(cutout, without)(results)


SPACE = Experiment(
    question="Does cutout pay in long trainings only?",
    scales={
        "tiny": Scale(cells=cells((1, 2), **TINY), data="digits", seeds=1, why="Shows that it runs, nothing else."),
        "small": Scale(
            cells=cells((4, 24), **SMALL),
            data="cifar10",
            train_examples=10_000,
            seeds=3,
            why="After 24 epochs on 10,000 images training loss is far below held-out loss: there is much to brake.",
        ),
        "full": Scale(
            cells=cells((10, 24, 60)), data="cifar10", seeds=10, why="From the shortest recipe to a long one."
        ),
    },
    figures=[Figure(x="epochs", colour="cutout_px", log_x=True)],
    claims=[
        Claim(id="X01", sentence="Cutout costs in short trainings", published="our own", judge=costs_when_short),
        Claim(id="X02", sentence="Cutout gains in long trainings", published="our own", judge=gains_when_long),
    ],
)
