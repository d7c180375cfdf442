"""The sampler `gp`: one model of all trials says what to try next, and which paused trial goes on.

Whenever a slot is free, one function is drawn from the posterior of tune/gp.py at full length (Thompson sampling), and
its best point is taken: a new config, which trains to its first rung, or a paused trial, which trains to its next one.
Drawing at random what is uncertain keeps parallel decisions apart. Else too few trials would ever come to their end,
so as many decisions as ASHA would spend on last legs take up the paused trial of the highest rung with the best mean.

Failed trials are infeasible, no numbers: a new config that is likely to fail is not tried.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from search_spaces.space import Choice
from tune.cube import features, params_at, shares_of, width
from tune.gp import NO_TRIAL, Array, Data, GaussianProcess, Ints, how_far, standardised
from tune.objective import Objective, fit_log_cost
from tune.samplers import Params, Question, draws, quasi_random
from tune.trials import State, Trial

STARTS = 4  # trials after the bases, before the model decides: priors and the centre of the rest, quasi-random ones
FIT_AT_MOST, KNOW_AT_MOST = 150, 300  # observations to fit hyperparameters on, to condition on
REFIT = 1.15  # growth of the data from one fit to the next
ANYWHERE, NEARBY, AROUND_BEST = 100, 300, 100  # candidates: uniform, near the best trials, around the best candidate
BEST = 10  # trials whose neighbourhood is searched
NEAR_SD, CLOSE_SD = 0.1, 0.05  # of steps in shares, to the candidates near trials and around the best candidate
MOVED = 0.5  # chance of each parameter to be moved in such a step
SPREAD_FLOOR = 0.005  # accuracy; differences below are noise
TREES, RISK = 30, 0.3  # that learn which configs fail, and the chance of failing above which none is tried
PRIOR_SD, PRIOR_WEIGHT = 0.2, 1.0  # of a declared prior centre, in shares; its pull is that of so many trials


Earlier = list[tuple[Array, float, float]]
"""of an earlier search: shares, how far trained (s of tune/gp.py), accuracy"""


@dataclass(frozen=True)
class Resume:
    """Take up this paused trial."""

    number: int


class ModelSampler:
    """Args:
    question: space, trials, seed.
    objective: what the draws are ranked by.
    earlier: observations of earlier searches of this space: (shares, s, accuracy) by run, each run standardised on
        its own and marked by a further input, whose length scale says how far they carry over.
    """

    def __init__(self, question: Question, objective: Objective, earlier: list[Earlier]) -> None:
        self._question, self._objective = question, objective
        self._space, self._trials = question.space, question.trials
        self._starts = quasi_random(question)
        reached = np.cumprod([1.0, *question.trials.shares])  # of all trials, each rung and the end, by ASHA's rule
        self._guard_every = round(reached.sum() / reached[-1], 9)
        self._process = GaussianProcess(width(self._space) + bool(earlier))
        self._fitted = 0
        self._earlier = self._known_before(earlier)
        self._points = self._features(np.zeros((0, len(self._space.domains))))  # of the trials, a row each
        self._seen = np.zeros((0, 3))  # number, accuracy and share of the training of each observation

    def choose(self, number: int | None) -> Params | Resume | None:
        """What to do with a free slot: params of trial `number`, or a trial to take up; None if `number` is None, no
        new trial may start, and none waits."""
        waiting = self._trials.in_state(State.PAUSED)
        if number is None and not waiting:
            return None
        bases = len(self._space.bases)
        blind = 0 if self._earlier else bases + STARTS
        if number is not None and (number < blind or len(self._trials.observations) < 2):
            return self._start(number)
        decision = len(self._trials.observations) + self._trials.count(State.RUNNING, State.FAILED)
        rng = self._question.rng(1, decision, number or 0)
        self._learn(rng)
        if decision // self._guard_every > (decision - 1) // self._guard_every:
            guarded = self._guarded(waiting)
            if guarded:
                return guarded
        return self._draw(number, waiting, rng)

    def _start(self, number: int) -> Params:
        believed = {name: domain.prior for name, domain in self._space.domains.items() if domain.prior is not None}
        centre = params_at(self._space, shares_of(self._space, believed))  # the middle of the others
        if number == len(self._space.bases) and not self._trials.tried(centre) and self._question.allowed(centre):
            return centre
        params = self._starts(number)
        return self._anywhere(number) if params is None or self._trials.tried(params) else params

    def _anywhere(self, number: int) -> Params:
        return self._question.first(draws(self._question, self._question.rng(3, number)))

    def _points_of(self, trials: list[Trial]) -> Array:
        return self._rows(_numbers(trials))

    def _rows(self, numbers: Ints) -> Array:
        new = self._trials.all[len(self._points) :]
        if new:
            self._points = np.vstack([self._points, self._features(np.array([trial.shares for trial in new]))])
        return self._points[numbers]

    def _features(self, shares: Array) -> Array:
        """Configs of this search as the model sees them, [n, k]."""
        points = features(self._space, shares)
        return np.hstack([points, np.zeros((len(points), 1))]) if self._earlier else points

    def _known_before(self, earlier: list[Earlier]) -> Data | None:
        parts = []
        for index, run in enumerate(earlier):
            shares, s, acc = (np.array(column) for column in zip(*run, strict=True))
            x = np.hstack([features(self._space, shares), np.full((len(run), 1), 1.0)])
            z = standardised(acc, SPREAD_FLOOR)(acc)
            parts.append(Data(x, s, np.arange(len(run)) - 2 - 1_000_000 * (index + 1), z))
        return joined(parts) if parts else None

    def _learn(self, rng: np.random.Generator) -> None:
        """Fit and condition the process on what is known. Hyperparameters are fitted anew, from the prior, whenever
        the data have grown by so much; so they depend on the record only, not on when the search was interrupted."""
        count = len(self._trials.observations)
        at = 2
        while math.ceil(at * REFIT) <= count:
            at = max(at + 1, math.ceil(at * REFIT))
        if at != self._fitted:
            data = self._data(at)
            choice = _some(data.s, FIT_AT_MOST, self._question.rng(2, at))
            self._process.theta = self._process.prior.copy()
            self._process.fit(data[choice])
            self._fitted = at
        data = self._data(count)
        data = data[_some(data.s, KNOW_AT_MOST, rng)]
        self._process.condition(data)

    def _data(self, count: int) -> Data:
        """The first `count` observations, and those of earlier searches."""
        trials = self._trials
        new = [(trials.all[number], epoch) for number, epoch in trials.observations[len(self._seen) :]]
        rows = [(trial.number, trial.accs[epoch - 1], epoch / trial.epochs) for trial, epoch in new]
        self._seen = np.vstack([self._seen, *rows])
        numbers, acc, share = self._seen[:count].T
        self._to_z = standardised(acc, SPREAD_FLOOR)
        of_trial = numbers.astype(np.int64)
        data = Data(self._rows(of_trial), how_far(share, trials.units), of_trial, self._to_z(acc))
        return joined([data, self._earlier]) if self._earlier else data

    def _guarded(self, waiting: list[Trial]) -> Resume | None:
        """The waiting trial of the highest rung with the best expected end, once enough have come there."""
        last = [trial for trial in waiting if trial.rung == len(trial.pauses)]
        if not last:
            return None
        there = sum(trial.rung == len(trial.pauses) for trial in self._trials.all)
        return self._best(last) if there * self._trials.shares[-1] > 1 - 1e-9 else None

    def _best(self, waiting: list[Trial]) -> Resume:
        """The one with the best expected end."""
        means = self._process.mean(self._points_of(waiting), _numbers(waiting))
        return Resume(waiting[int(np.argmax(means))].number)

    def _draw(self, number: int | None, waiting: list[Trial], rng: np.random.Generator) -> Params | Resume | None:
        """Draw a function and take its best point among the waiting trials and new configs."""
        drawn = self._process.draw(rng)
        shares, values = np.zeros((0, len(self._space.domains))), np.zeros(0)
        if number is not None:
            shares = self._candidates(rng)
            values = drawn(self._features(shares), np.full(len(shares), NO_TRIAL))
            around = _moved(np.tile(shares[int(np.argmax(values))], (AROUND_BEST, 1)), CLOSE_SD, 1.0, rng)
            shares = np.vstack([shares, around])
            values = np.append(values, drawn(self._features(around), np.full(len(around), NO_TRIAL)))
        points = self._features(shares)
        if waiting:
            values = np.append(values, drawn(self._points_of(waiting), _numbers(waiting)))
        everything = np.vstack([points, self._points_of(waiting)]) if waiting else points
        utility = self._objective.utility(values, self._log_cost(everything), self._to_z, rng)
        utility[: len(points)] += self._pull(shares) - np.where(self._fails(points, rng), np.inf, 0.0)
        for index in np.argsort(-utility, kind="stable"):
            if index >= len(points):
                return Resume(waiting[index - len(points)].number)
            params = params_at(self._space, shares[index])
            if np.isfinite(utility[index]) and not self._trials.tried(params) and self._question.allowed(params):
                return params
        # nothing new is possible near here, as in a space of few points
        return None if number is None else self._anywhere(number)

    def _candidates(self, rng: np.random.Generator) -> Array:
        """Shares of new configs: anywhere, and near the trials with the best expected ends, [n, d]."""
        count = len(self._space.domains)
        anywhere = rng.random((ANYWHERE, count))
        numbers, means = self._process.known()
        numbers, means = numbers[numbers > NO_TRIAL], means[numbers > NO_TRIAL]
        best = [self._trials.all[number].shares for number in numbers[np.argsort(-means, kind="stable")[:BEST]]]
        centres = np.array(best)[rng.integers(len(best), size=NEARBY)]
        return np.vstack([anywhere, _moved(centres, NEAR_SD, MOVED, rng)])

    def _log_cost(self, points: Array) -> Array | None:
        """Predicted log cost of full trainings at these points, where the objective asks for it."""
        if not self._objective.needs_cost:
            return None
        known = [trial for trial in self._trials.all if trial.full_cost(self._objective.by_time)]
        if not known:
            return np.zeros(len(points))
        costs = np.array([trial.full_cost(self._objective.by_time) for trial in known])
        return fit_log_cost(self._points_of(known), np.log(costs))(points)

    def _fails(self, points: Array, rng: np.random.Generator) -> Any:
        """Whether a training at each point is likely to fail, as trees learn it from the trials so far. They find the
        one parameter that failures hang on; the process, whose length scales are those of accuracy, doesn't."""
        if not self._trials.count(State.FAILED) or not len(points):
            return np.zeros(len(points), bool)
        tried = [trial for trial in self._trials.all if trial.state != State.RUNNING]
        failed = np.array([trial.state == State.FAILED for trial in tried])
        if failed.all():
            return np.zeros(len(points), bool)
        from sklearn.ensemble import ExtraTreesClassifier  # takes seconds, and most searches have no failures

        trees = ExtraTreesClassifier(TREES, min_samples_leaf=2, random_state=int(rng.integers(2**31)))
        chance = trees.fit(self._points_of(tried), failed).predict_proba(points)[:, 1]
        return chance > RISK

    def _pull(self, shares: Array) -> Array:
        """How much a declared prior adds to the utility of configs: log prior density, weighted less and less as the
        trials grow in number (as in piBO, Hvarfner et al. 2022)."""
        total = np.zeros(len(shares))
        for place, (name, domain) in enumerate(self._space.domains.items()):
            if domain.prior is None:
                continue
            centre = shares_of(self._space, {name: domain.prior})[place]
            away = (shares[:, place] - centre) / PRIOR_SD
            if isinstance(domain, Choice):
                away = 2.0 * (np.abs(shares[:, place] - centre) > 0.5 / len(domain.choices))
            total -= away**2 / 2
        return total * PRIOR_WEIGHT / max(1, len(self._trials.all))


def joined(parts: list[Data]) -> Data:
    """Several data as one."""
    fields = ("x", "s", "trial", "z")
    return Data(*(np.concatenate([getattr(part, field) for part in parts]) for field in fields))


def _numbers(trials: list[Trial]) -> Ints:
    return np.array([trial.number for trial in trials], dtype=np.int64)


def _moved(shares: Array, sd: float, chance: float, rng: np.random.Generator) -> Array:
    """Shares with each number moved by a normal step, with some chance."""
    steps = rng.normal(0, sd, shares.shape) * (rng.random(shares.shape) < chance)
    return np.clip(shares + steps, 0, 1)


def _some(s: Array, most: int, rng: np.random.Generator) -> Ints:
    """At most so many indices: half of them of the longest trained, the rest at random."""
    if len(s) <= most:
        return np.arange(len(s))
    order = np.lexsort((rng.random(len(s)), -s))
    return np.concatenate([order[: most // 2], rng.permutation(order[most // 2 :])[: most - most // 2]])
