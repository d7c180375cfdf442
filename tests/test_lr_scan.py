"""The learning-rate scan: what its cells are, and its claims on curves whose turns are known."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
from test_experiments import Table, estimate

from model.meter import flops_per_image
from search_spaces.experiment import Estimate, Finding
from search_spaces.lr_scan import SPACE, Scan, scans
from tune import figures_experiment
from tune.spaces import scale_flops

CELLS = SPACE.scales["small"].cells
SHARES = (0.25, 0.5, 1.0)
Turns = Mapping[tuple[int, float], tuple[float, float | None]]


class Curves(Table):
    """Results with the best factor and the one from which on trainings guess, by batch size and share."""

    def __init__(self, turns: Turns, missing: str | None = None) -> None:
        super().__init__({cell: [] for cell in CELLS})
        self.cells = dict(CELLS)
        self._turns, self._missing = turns, missing

    def values(self, cell: str, what: str = "acc") -> list[float]:
        config = CELLS[cell]
        best, breaks = self._turns[config.batch_size, config.train_frac]
        broken = breaks is not None and config.lr_scale >= breaks
        steps = abs(math.log2(config.lr_scale / best))
        return (
            [] if cell == self._missing else [(0.1 if broken else 0.6 - 0.02 * steps) if what == "acc" else 1 + steps]
        )

    def mean(self, cell: str, what: str = "acc") -> Estimate | None:
        return estimate(self.values(cell, what))


def curves(small: list[tuple[float, float | None]], full_large: tuple[float, float | None] = (4.0, 16.0)) -> Curves:
    """The turns in small batches, by share, and those of all images in large batches."""
    turns = {(32, share): turn for share, turn in zip(SHARES, small, strict=True)}
    return Curves({**turns, **{(128, share): (1.0, None) for share in SHARES[:2]}, (128, 1.0): full_large})


def judged(id: str, results: Curves) -> Finding:
    (claim,) = [claim for claim in SPACE.claims if claim.id == id]
    return claim.judge(results)


def test_the_cells_are_the_published_schedule_times_eight_factors_on_shares_of_the_images() -> None:
    cells = SPACE.scales["full"].cells.values()
    assert {(c.batch_size, c.peak_lr, c.epochs, c.weight_decay) for c in cells} == {
        (128, 0.1, 35, 5e-4),
        (512, 0.44, 35, 5e-4),
    }
    assert sorted({c.lr_scale for c in cells}) == [1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16]
    assert sorted({c.train_frac for c in cells}) == [1 / 8, 1 / 4, 1 / 2, 1] and len(cells) == 2 * 8 * 4
    small = {(c.batch_size, c.peak_lr) for c in CELLS.values()}
    assert small == {(32, 0.1 / 4), (128, 0.44 / 4)} and len(CELLS) == 2 * 8 * 3


def test_the_cost_of_the_scan_counts_the_shares() -> None:
    """312 + 156 + 78 steps of 32 images and 78 + 39 + 19 of 128, six epochs at eight factors, on 10,000 images."""
    per_image = scale_flops(SPACE.scales["small"]) / (8 * 6 * (546 * 32 + 136 * 128))
    assert per_image == pytest.approx(flops_per_image(next(iter(CELLS.values())), 10))


def test_a_scan_finds_the_turns() -> None:
    found = scans(curves([(2.0, 8.0), (1.0, 16.0), (0.5, None)]))
    assert found[:3] == [Scan(32, 0.25, 2.0, 8.0, 1), Scan(32, 0.5, 1.0, 16.0, 1), Scan(32, 1.0, 0.5, None, 1)]
    assert [(scan.batch_size, scan.train_frac) for scan in found[3:]] == [(128, share) for share in SHARES]


def test_a_rate_too_low_to_learn_is_no_breakdown_and_a_broken_training_never_the_best() -> None:
    class Slow(Curves):
        def values(self, cell: str, what: str = "acc") -> list[float]:
            factor = CELLS[cell].lr_scale
            accs = {1 / 4: 0.1, 1 / 2: 0.2, 8: 0.1, 16: 0.1}  # losses below are least where the training is broken
            return [accs.get(factor, 0.6) if what == "acc" else {8: 0.5, 1: 0.9}.get(factor, 1.0)]

    assert {(scan.best, scan.breaks) for scan in scans(Slow({}))} == {(1.0, 8.0)}


@pytest.mark.parametrize(
    ("breaks", "kind"),
    [
        ([8.0, 8.0, 8.0], "reproduced"),
        ([16.0, 8.0, 8.0], "reproduced"),  # one step of the grid
        ([16.0, 8.0, 4.0], "contradicted"),
        ([4.0, 4.0, 16.0], "contradicted"),
        ([8.0, None, 8.0], "undecided"),
        ([None, None, None], "undecided"),
    ],
)
def test_where_training_breaks_down(breaks: list[float | None], kind: str) -> None:
    finding = judged("C03", curves([(1.0, factor) for factor in breaks]))
    assert finding.kind == kind
    for share, factor in zip(SHARES, breaks, strict=True):
        assert f"{f'x{factor:g}' if factor else 'no factor tried'} on {share:g} of the images" in finding.text


@pytest.mark.parametrize(
    ("bests", "kind"),
    [
        ([4.0, 2.0, 1.0], "reproduced"),
        ([4.0, 1.0, 2.0], "reproduced"),  # the ends count
        ([0.5, 1.0, 1.0], "contradicted"),
        ([2.0, 1.0, 2.0], "undecided"),
    ],
)
def test_whether_the_best_falls(bests: list[float], kind: str) -> None:
    finding = judged("C04", curves([(best, None) for best in bests]))
    assert finding.kind == kind
    said = ", ".join(f"x{best:g} on {share:g} of the images" for best, share in zip(bests, SHARES, strict=True))
    assert finding.text == f"batches of 32: least held-out loss at {said} (1 seed each)"


@pytest.mark.parametrize(
    ("small", "large", "kind"),
    [
        ((1.0, 8.0), (4.0, 16.0), "reproduced"),  # three steps, two steps
        ((4.0, 8.0), (1.0, 16.0), "contradicted"),
        ((1.0, 4.0), (4.0, 16.0), "undecided"),
        ((1.0, None), (4.0, 16.0), "undecided"),
        ((1.0, 8.0), (4.0, None), "undecided"),
    ],
)
def test_whether_large_batches_are_nearer_to_the_edge(
    small: tuple[float, float | None], large: tuple[float, float | None], kind: str
) -> None:
    finding = judged("C05", curves([(1.0, 2.0), (1.0, 2.0), small], large))
    assert finding.kind == kind
    for batch, (best, breaks) in ((32, small), (128, large)):
        at = f"x{breaks:g}" if breaks else "no factor tried"
        assert f"batches of {batch}: best x{best:g}, training breaks down at {at}" in finding.text


@pytest.mark.parametrize("id", ["C03", "C04", "C05"])
def test_nothing_is_said_while_a_cell_is_missing(id: str) -> None:
    whole = curves([(4.0, 16.0), (2.0, 16.0), (1.0, 16.0)])
    assert judged(id, whole).kind == "reproduced"
    part = Curves(whole._turns, missing=next(reversed(CELLS)))
    assert judged(id, part) == Finding("undecided", "not all cells have results yet")


def test_the_figure_has_a_line_for_each_share_and_cuts_off_what_is_far_worse_than_guessing() -> None:
    results: Any = curves([(4.0, 16.0), (2.0, 16.0), (1.0, 16.0)])  # losses of 1 to 8
    results.classes = 10
    loss, _ = figures_experiment.found(SPACE, results)
    assert loss.figure is not None and "ends at 2.8: the loss of guessing is 2.3" in loss.caption
    lines = [trace for trace in loss.figure.data if trace.mode == "lines+markers"]
    assert [line.name for line in lines] == 2 * [f"train_frac = {share:g}" for share in SHARES]
    assert list(lines[0].y) == [4.0, 3.0, 2.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert loss.figure.layout.yaxis.range == loss.figure.layout.yaxis2.range == (0, 1.2 * math.log(10))

    results.classes = 10_000  # guessing costs 9.2
    uncut, _ = figures_experiment.found(SPACE, results)
    assert uncut.figure is not None and uncut.figure.layout.yaxis.range is None and "ends at" not in uncut.caption
