"""Which rate is best, and at which does training break down, as the data set grows? ("How to Train Your ResNet" 2.)

The net and the schedule of the first posts, all of the rate times a factor, on shares of the training images, in
batches of 128 and of 512. If curvature limited the rate, the data set's size would change nothing; if a high rate
forgets what was learned earlier in the epoch, more images want a lower rate, the less so the larger the batch.

Every training has the same number of epochs, so that a share of the images gets the same share of the steps. Weight
decay is that of the mean loss, and so the same for both batches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from model.config import Config
from model.recipes import dawn
from search_spaces.experiment import Claim, Estimate, Experiment, Figure, Finding, Kind, Results, Scale, seeds

FACTORS = tuple(2.0**power for power in range(-3, 5))
HIGHER = tuple(4 * factor for factor in FACTORS)


def cells(
    factors: Sequence[float], shares: Sequence[float], epochs: int, shrink: int, width: int
) -> Mapping[str, Config]:
    """Batches and rates are divided by `shrink`; `epochs` stands for the published 35. At 512 the rate is 4.4 times
    that at 128."""
    base = replace(dawn(), width=width, epochs=epochs)
    return {
        f"batch {batch}, {share:g} of the images, rate x{factor:g}": replace(
            base, batch_size=batch, peak_lr=peak_lr, train_frac=share, lr_scale=factor
        )
        for batch, peak_lr in ((128 // shrink, 0.1 / shrink), (512 // shrink, 0.44 / shrink))
        for share in shares
        for factor in factors
    }


@dataclass(frozen=True)
class Scan:
    """The trainings of one batch size on one share of the images."""

    batch_size: int
    train_frac: float
    best: float
    """the factor of least held-out loss, the source's measure, among those at which training doesn't break down"""
    breaks: float | None
    """the least factor above it at which training breaks down: the mean accuracy, a diverged training's being that of
    guessing, is below half of the best over all factors. None: at no factor tried"""
    seeds: int
    """trainings that the means are over"""

    @property
    def breaks_at(self) -> str:
        return f"x{self.breaks:g}" if self.breaks else "no factor tried"


def scans(results: Results) -> list[Scan]:
    """By batch size, then by share; none while a cell has no results."""
    accs: dict[tuple[int, float], dict[float, Estimate]] = {}
    losses: dict[tuple[int, float], dict[float, Estimate]] = {}
    for cell, config in results.cells.items():
        acc, loss = results.mean(cell), results.mean(cell, "loss")
        if acc is None or loss is None:
            return []
        of = (config.batch_size, config.train_frac)
        accs.setdefault(of, {})[config.lr_scale] = acc
        losses.setdefault(of, {})[config.lr_scale] = loss
    return [_scan(*of, accs[of], losses[of]) for of in sorted(accs)]


def _scan(batch_size: int, train_frac: float, accs: Mapping[float, Estimate], losses: Mapping[float, Estimate]) -> Scan:
    half = max(acc.mean for acc in accs.values()) / 2
    best = min((factor for factor in accs if accs[factor].mean >= half), key=lambda factor: losses[factor].mean)
    broken = [factor for factor in accs if factor > best and accs[factor].mean < half]
    return Scan(batch_size, train_frac, best, min(broken, default=None), min(acc.n for acc in accs.values()))


def _of_small_batches(results: Results) -> list[Scan]:
    """Those of the smaller batch size, by share."""
    found = scans(results)
    return [scan for scan in found if scan.batch_size == found[0].batch_size]


NOTHING = Finding("undecided", "not all cells have results yet")


def _finding(kind: Kind, found: Sequence[Scan], text: str) -> Finding:
    return Finding(kind, f"{text} ({seeds(min(scan.seeds for scan in found))} each)")


def breaks_at_one_rate(results: Results) -> Finding:
    found = _of_small_batches(results)
    if not found:
        return NOTHING
    breaks = [scan.breaks for scan in found if scan.breaks]
    kind: Kind = "reproduced" if breaks and max(breaks) <= 2 * min(breaks) else "contradicted"
    if len(breaks) < len(found):
        kind = "undecided"
    said = ", ".join(f"{scan.breaks_at} on {scan.train_frac:g} of the images" for scan in found)
    text = f"batches of {found[0].batch_size}: training breaks down at {said}; a factor of two apart counts as the same"
    return _finding(kind, found, text)


def best_falls(results: Results) -> Finding:
    found = _of_small_batches(results)
    if not found:
        return NOTHING
    smallest, largest = found[0].best, found[-1].best
    kind: Kind = "reproduced" if largest < smallest else "contradicted" if largest > smallest else "undecided"
    said = ", ".join(f"x{scan.best:g} on {scan.train_frac:g} of the images" for scan in found)
    return _finding(kind, found, f"batches of {found[0].batch_size}: least held-out loss at {said}")


def nearer_the_edge(results: Results) -> Finding:
    found = scans(results)
    if not found:
        return NOTHING
    small, large = [scan for scan in found if scan.train_frac == max(each.train_frac for each in found)]
    kind: Kind = "undecided"
    if small.breaks and large.breaks:
        near, far = large.breaks / large.best, small.breaks / small.best
        kind = "reproduced" if near < far else "contradicted" if near > far else "undecided"
    said = "; ".join(
        f"batches of {scan.batch_size}: best x{scan.best:g}, training breaks down at {scan.breaks_at}"
        for scan in (small, large)
    )
    return _finding(kind, [small, large], said)


SPACE = Experiment(
    question="Does the best learning rate, and the one at which training breaks down, depend on the data set's size?",
    scales={
        "tiny": Scale(
            cells=cells((1, 16), (0.5, 1), epochs=1, shrink=4, width=4),
            data="digits",
            seeds=1,
            why="Shows that it runs, nothing else.",
        ),
        "small": Scale(
            cells=cells(HIGHER, (0.25, 0.5, 1), epochs=6, shrink=4, width=8),
            data="cifar10",
            train_examples=10_000,
            seeds=1,
            why="One seed places the turn of a curve of eight factors, give or take a step. Batches are a quarter, so "
            "that an epoch has nearly the published number of steps. The factors go four times as high: batches of 32 "
            "were seen to bear the 16-fold rate. A sixth of the epochs favours high rates where images are few.",
        ),
        "full": Scale(
            cells=cells(FACTORS, (0.125, 0.25, 0.5, 1), epochs=35, shrink=1, width=64),
            data="cifar10",
            seeds=3,
            why="As published, as far as that is known: the sizes of the subsets are not.",
        ),
    },
    figures=[
        Figure(x="lr_scale", y=loss, colour="train_frac", panel="batch_size", log_x=True)
        for loss in ("loss", "train_loss")
    ],
    claims=[
        Claim(
            id="C03",
            sentence="Training breaks down at the same rate, however large the data set",
            published="batches of 128: at the same factor for all sizes; no number",
            judge=breaks_at_one_rate,
        ),
        Claim(
            id="C04",
            sentence="The best rate falls as the data set grows",
            published="batches of 128: near the limit for small subsets, clearly lower for larger ones; no number",
            judge=best_falls,
        ),
        Claim(
            id="C05",
            sentence="In batches of 512 the best rate lies nearer to where training breaks down",
            published="curvature takes over at 512, so that the gap is smaller than at 128; no number",
            judge=nearer_the_edge,
        ),
    ],
)
