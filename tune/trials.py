"""All trials of a search and how far each was trained: what samplers and scheduler decide on.

Trials pause at rungs, as in the promoting form of asynchronous successive halving (ASHA, arXiv 1810.05934): nobody is
waved through for having come first, and who paused can still go on when later trials turn out worse.

Rungs stand at grace * eta^k of `pace`. Usually one epoch is one unit, so a rung is an epoch. Where trials differ in
length or in cost per epoch, a unit is the same share of each one's own training (objective accuracy), or the same
floating-point operations (least time or FLOPs): then trials are compared at equal cost, not equal epoch.
"""

import bisect
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from tune.gp import Array

WORST = -1.0  # stands for the accuracy of a diverged trial: finite, below every real one
MAX_PAUSED = 128  # the most trials that wait with a checkpoint each; beyond, the least promising one is stopped


class State(Enum):
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"  # ran to its end
    STOPPED = "stopped"  # at a rung, for good
    FAILED = "failed"  # diverged, or could not be trained


@dataclass
class Trial:
    """One config in training."""

    number: int
    params: dict[str, Any]
    shares: Array
    """the params as `tune.cube` has them, [d]"""
    epochs: int
    """length of its full training"""
    pace: float
    """units of a rung that it moves per epoch"""
    cost: float
    """of one of its epochs, in epochs of the base"""
    pauses: list[int]
    """epochs at which it reaches each rung, the same one twice where it passes two; its own end is not one of them"""
    pausing: bool = True
    """whether it pauses there, or trains to its end at once"""
    state: State = State.RUNNING
    accs: list[float] = field(default_factory=list)
    """accuracy after each epoch, 0..1; WORST where it diverged"""
    reason: str = ""
    """why it failed"""
    train_s: list[float] = field(default_factory=list)
    """seconds of training by the end of each epoch"""

    @property
    def epoch(self) -> int:
        """epochs trained so far"""
        return len(self.accs)

    def full_cost(self, by_time: bool) -> float | None:
        """Of its full training: seconds, as far as is known from its epochs so far, or epochs of the base."""
        if not by_time:
            return self.cost * self.epochs
        return self.train_s[-1] / len(self.train_s) * self.epochs if self.train_s else None

    def costs(self, by_time: bool) -> list[float]:
        """What it had cost by the end of each epoch, in seconds or in epochs of the base."""
        return self.train_s if by_time else [self.cost * (epoch + 1) for epoch in range(self.epoch)]

    @property
    def rung(self) -> int:
        """how many rungs it has reached"""
        return bisect.bisect_right(self.pauses, self.epoch)

    @property
    def next_stop(self) -> int:
        """the epoch until which it trains next"""
        return next((epoch for epoch in self.pauses if self.pausing and epoch > self.epoch), self.epochs)


class Trials:
    """Every trial by its number.

    Args:
        units: length of a full training of the base.
        grace: first rung, in units; None makes no rung, so that every trial runs to the end.
        reduction_factor: eta in the paper; the best 1/eta of those that reached a rung are promoted, or more where the
            next rung is less than eta times as far, see `shares`.
    """

    def __init__(self, units: int, grace: int | None, reduction_factor: int) -> None:
        self.units, self.reduction_factor = units, reduction_factor
        self.rungs: list[int] = []
        rung = grace or units
        while rung < units:
            self.rungs.append(rung)
            rung *= reduction_factor
        nexts = [*self.rungs, units][1:]
        self.shares = [max(1 / reduction_factor, at / next) for at, next in zip(self.rungs, nexts, strict=True)]
        """of those that reached a rung, how many are promoted: as much is trained from each rung to the next, if eta
        lies between them; where it is less, as from 3/4 of a training to its end, going on is cheap"""
        self.all: list[Trial] = []
        self.observations: list[tuple[int, int]] = []
        """(number, epoch) of every accuracy at a rung or an end, as they came"""
        self.ends: list[tuple[float, int]] = []
        """(`spent` by then, number) of every trial that reached its end, as they came"""
        self.spent = 0.0
        """epochs trained, in epochs of the base"""
        self._counts = dict.fromkeys(State, 0)
        self._tried: set[frozenset[tuple[str, Any]]] = set()

    def tried(self, params: dict[str, Any]) -> bool:
        """Whether there is a trial with just these params."""
        return frozenset(params.items()) in self._tried

    def add(
        self,
        params: dict[str, Any],
        shares: Array,
        *,
        epochs: int | None = None,
        pace: float = 1.0,
        cost: float = 1.0,
        pausing: bool = True,
    ) -> Trial:
        """A new trial, running, under the next number; without `pausing` it trains to its end at once."""
        epochs = epochs or self.units
        trial = Trial(len(self.all), params, shares, epochs, pace, cost, self.pauses(epochs, pace), pausing)
        self.all.append(trial)
        self._counts[State.RUNNING] += 1
        self._tried.add(frozenset(params.items()))
        return trial

    def pauses(self, epochs: int, pace: float) -> list[int]:
        """Epochs at which a trial of that length and pace reaches each rung, short of its end."""
        reached = [math.ceil(rung / pace - 1e-9) for rung in self.rungs]
        return [epoch for epoch in reached if epoch < epochs]

    def record(self, number: int, metrics: Iterable[dict[str, Any]]) -> None:
        """Take note of epochs of a trial, in order. Those that are known already change nothing."""
        trial = self.all[number]
        for epoch in metrics:
            if epoch["epoch"] != trial.epoch + 1 or (trial.accs and trial.accs[-1] == WORST):
                continue
            trial.accs.append(WORST if epoch["diverged"] else epoch["acc"])
            trial.train_s.append(epoch.get("train_s", 0.0))
            self.spent += trial.cost
            if trial.accs[-1] != WORST and (trial.epoch in trial.pauses or trial.epoch == trial.epochs):
                self.observations.append((number, trial.epoch))
                if trial.epoch == trial.epochs:
                    self.ends.append((self.spent, number))

    def end_leg(self, number: int, failed: str | None = None) -> State:
        """The trial trains no longer: it has failed, is done, or pauses; or none of these, then it stays running."""
        trial = self.all[number]
        if failed or (trial.accs and trial.accs[-1] == WORST):
            trial.reason = failed or f"diverged at epoch {trial.epoch}"
            self.move(trial, State.FAILED)
        elif trial.epoch == trial.epochs:
            self.move(trial, State.DONE)
        elif trial.pausing and trial.epoch in trial.pauses:
            self.move(trial, State.PAUSED)
        return trial.state

    def move(self, trial: Trial, state: State) -> None:
        self._counts[trial.state] -= 1
        self._counts[state] += 1
        trial.state = state

    def count(self, *states: State) -> int:
        return sum(self._counts[state] for state in states)

    def in_state(self, *states: State) -> list[Trial]:
        return [trial for trial in self.all if trial.state in states] if self.count(*states) else []

    def at_rung(self, rung: int) -> dict[int, float]:
        """Accuracies at the rung of that index by trial number; a trial that diverged before it is the worst there, so
        that it counts among those who tried. Index -1 is the end of a trial."""
        values = {}
        for trial in self.all:
            stops = [*trial.pauses, trial.epochs]
            place = rung if rung >= 0 else len(stops) - 1
            if place < len(stops) and trial.epoch >= stops[place]:
                values[trial.number] = trial.accs[stops[place] - 1]
            elif trial.state == State.FAILED:
                values[trial.number] = WORST
        return values

    def promotable(self) -> Trial | None:
        """The paused trial that ASHA promotes next: from the highest rung that has one among its best share; the best
        of them, the earlier one where they tie. Diverged trials count among the others of their rung."""
        for rung in reversed(range(len(self.rungs))):
            waiting = [trial for trial in self.in_state(State.PAUSED) if trial.rung == rung + 1]
            if not waiting:
                continue
            best = max(waiting, key=lambda trial: (trial.accs[-1], -trial.number))
            values = self.at_rung(rung)
            mine = (best.accs[-1], -best.number)
            better = sum((value, -number) > mine for number, value in values.items())
            if better < int(len(values) * self.shares[rung] + 1e-9):
                return best
        return None

    def surplus(self) -> list[Trial]:
        """The least promising of the paused trials, where more than MAX_PAUSED wait: the worst of the lowest rung."""
        waiting = self.in_state(State.PAUSED)
        waiting.sort(key=lambda trial: (trial.rung, trial.accs[-1]))
        return waiting[: max(0, len(waiting) - MAX_PAUSED)]


def asha_cost(trials: Trials, started: int) -> float:
    """Epochs that ASHA would train for so many started trials: all to the first rung, a share to the next ..."""
    stops, cost, left = [*trials.rungs, trials.units], 0.0, float(started)
    for before, stop, share in zip([0, *stops], stops, [*trials.shares, 0.0], strict=False):
        cost += left * (stop - before)
        left *= share
    return cost
