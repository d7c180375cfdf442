"""Experiments: a question, the configs whose comparison answers it, and claims that the results bear out or not.

A file NAME.py here that defines SPACE = Experiment(...) is the experiment NAME:

    python -m tune.search --space NAME --scale small
    python -m tune.claims

Nothing is stopped: every cell is trained to its end, on the same seeds as all others. A cell is a whole config under a
short name. Nothing is proposed either, unless the experiment is about a search: see `Search`. Claims are judged by what
a run found, in `Results`; the scale says how many seeds each cell has, at which width and on how many images.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

from model.config import Config, InputError
from search_spaces.coordinates import Coordinate
from search_spaces.domains import Choice, Domain
from search_spaces.space import SearchSpace

SCALES = ("tiny", "small", "full")
"""digits in seconds, so that it runs in tests; real CIFAR-10 on a laptop in an hour at most; as published, on a GPU"""
TINY: dict[str, Any] = {"lr_scale": 1 / 8, "batch_size": 64, "width": 4}
"""fields of ResNet-9 experiments at that scale"""
SMALL: dict[str, Any] = {"lr_scale": 1 / 4, "batch_size": 128, "width": 8}
"""a batch of a quarter, with the rate scaled to it, keeps the steps of an epoch on 10,000 images worth a schedule"""
ABSOLUTE = "an accuracy as such belongs to the published width, images and epochs"
"""why a claim about one can't be tested at another scale"""
Measure = Literal["recency", "layer_times", "steps", "curvature"]
"""what may be measured on every net at the end of its training: names of `model.diagnostics.MEASURES`"""
TUNED = "tuned"
"""the cell of what a search found"""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95% interval, which holds however often one looks."""

    n: int
    mean: float
    low: float
    high: float


class Results(Protocol):
    """What a run of the experiment found, by cell. `what` is acc, loss (both on held-out images, 0..1 and nats),
    train_loss, train_s or the name of something measured; a diverged training has the accuracy of guessing and the loss
    of it, and nothing measured."""

    scale: str
    cells: Mapping[str, Config]
    """as they were trained"""

    def values(self, cell: str, what: str = "acc") -> list[float]:
        """Of each seed that has one, in the same order for all cells. Empty while there are none."""

    def mean(self, cell: str, what: str = "acc") -> Estimate | None: ...

    def difference(self, a: str, b: str, what: str = "acc", of_b: str | None = None) -> Estimate | None:
        """a - b over common seeds, of b something else than of a where `of_b` is given; None while there are none."""

    def series(self, cell: str, name: str) -> Mapping[float | str, str]:
        """The names of a measured series' members by their place in it: numbers, ascending, or layers, as measured."""

    def spread(self, cell: str) -> Estimate | None:
        """The standard deviation of its accuracy over seeds, by chi square; None with fewer than two seeds."""

    def share(self, cell: str, target_acc: float) -> Estimate | None:
        """Of its trainings that reach an accuracy (0..1)."""

    def diverged(self, cell: str) -> int:
        """How many trainings of it did."""


Kind = Literal["reproduced", "contradicted", "undecided", "not testable"]


@dataclass(frozen=True)
class Finding:
    """What the results say of a claim."""

    kind: Kind
    text: str
    """a sentence with the numbers"""
    estimate: Estimate | None = None


Judge = Callable[[Results], Finding]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Something that the source says, and how results are held against it."""

    id: str
    sentence: str
    published: str
    """the source's figure"""
    judge: Judge
    not_at: Mapping[str, str] = field(default_factory=dict)
    """scales at which it can't be tested, each with why"""

    def judged(self, results: Results) -> Finding:
        if results.scale in self.not_at:
            return Finding("not testable", self.not_at[results.scale])
        return self.judge(results)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture, as data. Names are fields of Config, or `cell`, the cell's name.

    With a series, its members stand over their places in it, one line per cell where there is no colour; x and y are
    then the titles of the axes.
    """

    x: str = "cell"
    y: str = "acc"
    """what `Results` has"""
    series: str | None = None
    """of what is measured"""
    level: str | None = None
    """what `Results` has, drawn dashed across for comparison with the series"""
    colour: str | None = None
    panel: str | None = None
    log_x: bool = False
    where: Callable[[str], bool] = lambda cell: True
    """which cells it shows, by name"""


@dataclass(frozen=True, kw_only=True)
class Search:
    """A cyclic coordinate search from the first cell of a scale (`--sampler coordinate`), after one training of each.

    Each further training is a cell of its own, `run 1: ...`, `run 2: ...`, all on the first seed. When the search has
    ended, its best point, as the cell `tuned`, and all cells but the start are trained on further seeds, the same ones,
    which had no part in the choice.
    """

    domains: Mapping[str, Domain]
    """in their order; every cell lies in them"""
    coordinates: tuple[Coordinate, ...] = ()
    runs: int
    """trainings that it is expected to take, those of the cells included; what it leaves goes to further seeds"""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """One size at which the experiment can be run."""

    cells: Mapping[str, Config]
    data: str
    """digits or cifar10; `--data PATH` says where CIFAR-10 lies"""
    seeds: int
    """of each cell; of a search those in common, in which `tuned` stands for the start"""
    search: Search | None = None
    train_examples: int | None = None
    """images trained on; None is all that aren't held out"""
    why: str
    """what makes the effect show at this size, or not"""

    @property
    def trainings(self) -> list[tuple[Config, int]]:
        """Configs, each with how often it is trained; the start of a search stands for all that it tries."""
        cells = [*self.cells.values()]
        return [(cell, self.seeds) for cell in cells] + ([(cells[0], self.search.runs)] if self.search else [])

    @property
    def trials(self) -> int:
        return sum(count for _, count in self.trainings)

    @property
    def epochs(self) -> int:
        """Of all trainings together."""
        return sum(count * config.epochs for config, count in self.trainings)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """See above.

    Raises:
        InputError: a scale is unknown or missing, has two cells alike or fewer than two, or less than one seed; the
            measure is unknown.
    """

    question: str
    scales: Mapping[str, Scale]
    figures: Sequence[Figure]
    claims: Sequence[Claim]
    measure: Measure | None = None
    """on every net at the end of its training, off the clock"""

    def __post_init__(self) -> None:
        if set(self.scales) != set(SCALES):
            raise InputError(f"an experiment has the scales {', '.join(SCALES)}, but got {', '.join(self.scales)}")
        if self.measure is not None and self.measure not in get_args(Measure):
            raise InputError(f"measure = {self.measure!r} is unknown: there are {', '.join(get_args(Measure))}")
        for name, scale in self.scales.items():
            if len(set(scale.cells.values())) < len(scale.cells) or len(scale.cells) < 2 or scale.seeds < 1:
                raise InputError(f"scale {name}: it needs a seed or more and two cells or more, all of them different")

    def space(self, scale: str) -> SearchSpace:
        """The cells as the bases of a space, each field that differs between them a choice; or the space of the search.

        Raises:
            InputError: there is no such scale, or a cell lies outside of the search.
        """
        if scale not in self.scales:
            raise InputError(f"--scale {scale!r} is unknown: there are {', '.join(self.scales)}")
        first, *rest = self.scales[scale].cells.values()
        search = self.scales[scale].search
        if search:
            return SearchSpace(first, search.domains, more_bases=tuple(rest), coordinates=search.coordinates)
        values: dict[str, dict[Any, None]] = {name: {} for name in first.to_dict()}
        for cell in (first, *rest):
            for name, value in cell.to_dict().items():
                values[name][value] = None
        domains = {name: Choice(tuple(found)) for name, found in values.items() if len(found) > 1}
        return SearchSpace(base=first, domains=domains, more_bases=tuple(rest))


def higher(a: str, b: str, what: str = "acc", by: float = 0.0) -> Judge:
    """Claims that the mean of a lies more than `by` above that of b."""

    def judge(results: Results) -> Finding:
        found = results.difference(a, b, what)
        if found is None:
            return _nothing(a, b)
        kind: Kind = "reproduced" if found.low > by else "contradicted" if found.high < by else "undecided"
        return Finding(kind, f"{a} against {b}: {_said(found, what)}", found)

    return judge


def alike(a: str, b: str, within: float, what: str = "acc") -> Judge:
    """Claims that the means of a and b differ by `within` at most."""

    def judge(results: Results) -> Finding:
        found = results.difference(a, b, what)
        if found is None:
            return _nothing(a, b)
        inside, outside = -within <= found.low and found.high <= within, found.low > within or found.high < -within
        kind: Kind = "reproduced" if inside else "contradicted" if outside else "undecided"
        margin = _amount(within, what).removeprefix("+")
        return Finding(kind, f"{a} against {b}: {_said(found, what)}; alike is within {margin}", found)

    return judge


def reaches(cell: str, target_acc: float, share: float) -> Judge:
    """Claims that at least this share of the cell's trainings reach an accuracy."""

    def judge(results: Results) -> Finding:
        found = results.share(cell, target_acc)
        if found is None:
            return _nothing(cell)
        kind: Kind = "reproduced" if found.low >= share else "contradicted" if found.high < share else "undecided"
        reached = f"{round(found.mean * found.n)} of {found.n} trainings of {cell} at {100 * target_acc:g}% or more"
        return Finding(kind, f"{reached} (95% interval {100 * found.low:.0f} to {100 * found.high:.0f}%)", found)

    return judge


def spreads(cell: str, low: float, high: float) -> Judge:
    """Claims that the standard deviation of the cell's accuracy lies between two values."""

    def judge(results: Results) -> Finding:
        found = results.spread(cell)
        if found is None:
            return _nothing(cell)
        inside, outside = low <= found.low and found.high <= high, found.high < low or found.low > high
        kind: Kind = "reproduced" if inside else "contradicted" if outside else "undecided"
        reach = f"95% interval {100 * found.low:.2f} to {100 * found.high:.2f}"
        return Finding(kind, f"SD of {cell}: {100 * found.mean:.2f} points ({reach}, {found.n} seeds)", found)

    return judge


def mean_acc(results: Results, cell: str) -> float:
    """To compare cells by; -1 while there are no results."""
    found = results.mean(cell)
    return found.mean if found else -1.0


def seeds(n: int) -> str:
    return f"{n} seed{'s' * (n != 1)}"


def _nothing(*cells: str) -> Finding:
    return Finding("undecided", f"{' and '.join(cells)} have no results on common seeds yet")


def _said(found: Estimate, what: str) -> str:
    reach = "no interval yet"
    if math.isfinite(found.high):
        reach = f"95% interval {_amount(found.low, what)} to {_amount(found.high, what)}"
    return f"{_amount(found.mean, what)} ({reach}, {seeds(found.n)} each)"


def _amount(value: float, what: str) -> str:
    if what == "acc":
        return f"{100 * value:+.2f} points"
    return f"{value:+.3g}{' s' if what == 'train_s' else ''}"
