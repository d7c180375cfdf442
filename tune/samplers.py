"""Who proposes the next config. A new sampler is a function here with an entry in SAMPLERS.

A sampler is made once per search from a `Question`; asked for trial `number` it answers with params, with WAIT while it
needs the result of a trial under way, or with None when the space is used up. It depends on nothing but the trials, the
seed and the number, so that a resumed search goes on as if nothing had happened. `gp`, whose model also says which
paused trial goes on, is in tune/model_sampler.py.
"""

import itertools
import math
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import TPESampler
from optuna.trial import TrialState, create_trial
from scipy.stats import qmc

from model.config import InputError
from search_spaces.space import Choice, Domain, IntUniform, LogUniform, SearchSpace, Uniform
from tune.cube import levels, params_at, value_at
from tune.gp import Array
from tune.trials import WORST, State, Trial, Trials

Params = dict[str, Any]
WAIT: Params = {}
"""what a sampler says that has nothing to propose before a trial under way has ended"""
ATTEMPTS = 1000  # at a proposal that is new and allowed
ASKS = 20  # of TPE for one trial, each some milliseconds; in a space of few points draws find a new one sooner
RANDOM_SHARE = 1 / 3  # of TPE's proposals, so that it can't fixate on its first survivors (as in BOHB)
GRID_LEVELS = 5  # of a number, its ends included
LARGEST_GRID = 100_000
UNIFORM_STEPS = 8  # of a coordinate search, from one end of a domain that is no logarithm to the other
COORDINATE = "coordinate"
CELLS, CELLS_AFTER_SEARCH = "cells", "cells after search"  # what an experiment has in place of a sampler


@dataclass(frozen=True)
class Question:
    """What a sampler has to go by."""

    space: SearchSpace
    trials: Trials
    seed: int
    allowed: Callable[[Params], bool] = lambda params: True
    """whether a config can be made of these params, within the limits of the space"""
    score: Callable[[Trial], float] = lambda trial: trial.accs[-1]
    """how good a trial is that ran to its end; higher is better"""

    def rng(self, *path: int) -> np.random.Generator:
        """A generator for the purpose that `path` names."""
        return np.random.default_rng((self.seed, *path))

    def first(self, proposals: Iterable[Params], tried: Callable[[Params], bool] | None = None) -> Params:
        """The first of ATTEMPTS proposals that is allowed and was not tried yet; one that was, if there is no other.

        Args:
            tried: what counts as tried; by default, what a trial has.

        Raises:
            InputError: none is allowed.
        """
        known = None
        tried = tried or self.trials.tried
        for params in itertools.islice(proposals, ATTEMPTS):
            new = not tried(params)
            if (new or known is None) and self.allowed(params):
                if new:
                    return params
                known = params
        if known is None:
            raise InputError(
                f"of {ATTEMPTS} proposals in this space not one is possible: its values don't go together (such as a "
                f"ghost_batch that doesn't divide batch_size) or exceed its limits; narrow the domains"
            )
        return known


Propose = Callable[[int], Params | None]


def random(question: Question) -> Propose:
    """Independent uniform draws."""
    return lambda number: question.first(draws(question, question.rng(number)))


def draws(question: Question, rng: np.random.Generator) -> Iterable[Params]:
    """Uniform draws without end."""
    return (params_at(question.space, rng.random(len(question.space.domains))) for _ in itertools.count())


def quasi_random(question: Question) -> Propose:
    """One scrambled Sobol sequence without its impossible points, the bases, and what it had before: its next point for
    each trial after the bases, whatever was tried when it is asked for."""
    space = question.space
    sequence = qmc.Sobol(len(space.domains), rng=question.rng())
    points: list[Params] = []
    bases = [space.params_of(base) for base in space.bases]
    drawn: Iterable[Array] = (point for _ in itertools.count() for point in sequence.random(1))

    def propose(number: int) -> Params:
        while len(points) <= number - len(bases):
            proposals = (params_at(space, point) for point in drawn)
            points.append(question.first(proposals, lambda params: params in bases or params in points))
        return points[number - len(bases)]

    return propose


def grid(question: Question) -> Propose:
    """Every value of a choice, up to GRID_LEVELS evenly spaced ones of a number, all combinations in random order.

    Raises:
        InputError: there are more than LARGEST_GRID of them.
    """
    axes = [_axis(domain) for domain in question.space.domains.values()]
    size = math.prod(map(len, axes))
    if size > LARGEST_GRID:
        raise InputError(
            f"the grid of this space has {size:,} points, more than {LARGEST_GRID:,}: use --sampler qmc, or fewer or "
            f"smaller domains"
        )
    order = iter(question.rng().permutation(size))

    def propose(number: int) -> Params | None:
        for index in order:
            shares = [axis[i] for axis, i in zip(axes, np.unravel_index(index, [*map(len, axes)]), strict=True)]
            params = params_at(question.space, np.array(shares))
            if not question.trials.tried(params) and question.allowed(params):
                return params
        return None

    return propose


def cells(question: Question) -> Propose:
    """The bases and nothing else, over and over: an experiment's cells, each time on another seed."""
    bases = [question.space.params_of(base) for base in question.space.bases]
    return lambda number: bases[number % len(bases)]


def _axis(domain: Domain) -> Array:
    count = levels(domain)
    if isinstance(domain, Choice) or 0 < count <= GRID_LEVELS:
        return (np.arange(count) + 0.5) / count
    return np.linspace(0, 1, GRID_LEVELS)


def distribution(domain: Domain) -> BaseDistribution:
    """The domain in Optuna's terms."""
    match domain:
        case LogUniform(low, high):
            return FloatDistribution(low, high, log=True)
        case Uniform(low, high):
            return FloatDistribution(low, high)
        case IntUniform(low, high):
            return IntDistribution(low, high)
        case Choice(choices):
            return CategoricalDistribution(choices)


def tpe(question: Question) -> Propose:
    """Optuna's multivariate TPE on accuracies of the highest rung that enough trials have reached (the rule of BOHB,
    arXiv 1807.01774), so that an early accuracy is never taken for a final one; a third of the draws are random."""
    space, trials = question.space, question.trials
    distributions = {name: distribution(domain) for name, domain in space.domains.items()}

    def proposals(number: int) -> Iterable[Params]:
        rng = question.rng(number)
        values = comparable(trials, len(distributions) + 3)
        if not values or rng.random() < RANDOM_SHARE:
            yield from draws(question, rng)
        # running trials count as bad ones, so that parallel proposals keep apart
        sampler = TPESampler(seed=int(rng.integers(2**31)), n_startup_trials=0, multivariate=True, constant_liar=True)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for trial in trials.all:
            params = trial.params
            known: Any = {"params": params, "distributions": {name: distributions[name] for name in params}}
            if trial.number in values:
                study.add_trial(create_trial(value=values[trial.number], **known))
            elif trial.state == State.RUNNING:
                study.add_trial(create_trial(state=TrialState.RUNNING, **known))
        for _ in range(ASKS):
            params = study.ask(distributions).params
            yield {name: params[name] for name in space.active(params)}
        yield from draws(question, rng)

    return lambda number: question.first(proposals(number))


def comparable(trials: Trials, enough: int) -> dict[int, float]:
    """Accuracy by trial number at the highest rung that `enough` trials have reached, a failed trial as the worst of
    them; empty when no rung has enough."""
    for rung in [-1, *reversed(range(len(trials.rungs)))]:
        values = trials.at_rung(rung)
        real = [value for value in values.values() if value != WORST]
        if len(real) >= enough:
            return {number: max(value, min(real)) for number, value in values.items()}
    return {}


def coordinate(question: Question) -> Propose:
    """A cyclic coordinate search from the base, see `_lines`. Whether a step pays is known when its trial has run to
    its end: one is under way at a time. No point is trained twice."""

    def propose(number: int) -> Params | None:
        params, ended = _followed(question)
        return None if ended else params

    return propose


def cells_after_search(question: Question) -> Propose:
    """An experiment whose first base is the start of a coordinate search: when that has ended, its best point and the
    other bases over and over, each time on another seed."""
    others = [question.space.params_of(base) for base in question.space.bases[1:]]

    def propose(number: int) -> Params | None:
        params, ended = _followed(question)
        if not ended:
            return params
        return min([params, *others], key=lambda each: sum(trial.params == each for trial in question.trials.all))

    return propose


def _followed(question: Question) -> tuple[Params, bool]:
    """Where a coordinate search stands: what it needs the result of next, or WAIT; or the best point, and that it has
    ended. The first trial counts where some params have several; one that failed is worse than any other."""
    tried = {frozenset(trial.params.items()): trial for trial in reversed(question.trials.all)}
    search = _lines(question.space)
    params = next(search)
    while True:
        trial = tried.get(frozenset(params.items()))
        if trial and trial.state in (State.RUNNING, State.PAUSED):
            return WAIT, False
        if not trial and question.allowed(params):
            return params, False
        score = question.score(trial) if trial and trial.state == State.DONE else -math.inf
        try:
            params = search.send(score)
        except StopIteration as end:
            return end.value, True


def _lines(space: SearchSpace) -> Generator[Params, float, Params]:
    """The points of a cyclic coordinate search ("How to Train Your ResNet" 5, claim C20), each to be answered with its
    score; at the end it returns the best.

    The domains take turns, in their order. From the best point so far the value moves step by step as long as that is
    better: in the direction in which it moved last, at first down, or where the first step is no better, in the other.
    When no domain has moved for a whole cycle, the search has ended.
    """
    best = space.params_of(space.base)
    start = {name: best.get(name, value_at(domain, 0.5)) for name, domain in space.domains.items()}
    steps, towards = dict.fromkeys(start, 0), dict.fromkeys(start, -1)

    def point(steps: dict[str, int]) -> Params | None:
        values = {name: _stepped(domain, start[name], steps[name]) for name, domain in space.domains.items()}
        inside = all(domain.contains(values[name]) for name, domain in space.domains.items())
        return {name: values[name] for name in space.active(values)} if inside else None

    best_score = yield best
    turns, unmoved = itertools.cycle(start), 0
    while unmoved < len(start):
        name = next(turns)
        unmoved += 1
        for direction in (towards[name], -towards[name]):
            while params := point({**steps, name: steps[name] + direction}):
                score = yield params
                if score <= best_score:
                    break
                best, best_score = params, score
                steps[name] += direction
                towards[name], unmoved = direction, 0
            if not unmoved:
                break
    return best


def _stepped(domain: Domain, value: Any, steps: int) -> Any:
    """The value so many steps up: doublings of a LogUniform, of the other numbers parts of the range; choices go round.
    It may lie outside of the domain."""
    match domain:
        case LogUniform():
            return value * 2.0**steps
        case Uniform(low, high):
            return value + steps * (high - low) / UNIFORM_STEPS
        case IntUniform(low, high):
            return value + steps * max(1, round((high - low) / UNIFORM_STEPS))
        case Choice(choices):
            return choices[(choices.index(value) + steps) % len(choices)]


SAMPLERS: dict[str, Callable[[Question], Propose]] = {
    "tpe": tpe,
    "qmc": quasi_random,
    "random": random,
    "grid": grid,
    COORDINATE: coordinate,
}
OF_EXPERIMENTS: dict[str, Callable[[Question], Propose]] = {CELLS: cells, CELLS_AFTER_SEARCH: cells_after_search}
