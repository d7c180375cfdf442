"""Drives a real searcher and a real scheduler through a search in simulated time, as Ray Tune would, without Ray.

The order of calls is that of ray.tune.execution.tune_controller (2.60): as long as few trials are pending the searcher
is asked for more; the scheduler chooses who gets a free worker; a result goes to the scheduler and then, unless it ends
the trial, to the searcher; a trial's last result goes to on_trial_complete of both.
"""

import heapq
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from benchmarks.curves import Task

START_UP = 0.5  # epochs that a worker takes to begin a trial, or to take one up again


@dataclass(eq=False)
class SimulatedTrial:
    """What a scheduler sees of a ray.tune.experiment.Trial. One number of ours may come in several, one after another:
    each is a leg of its training."""

    trial_id: str
    config: dict[str, Any]
    number: int
    last_epoch: int
    """epoch after which this leg ends"""
    status: str = "PENDING"
    iterations: int = 0

    @property
    def evaluated_params(self) -> dict[str, Any]:
        return self.config

    def is_finished(self) -> bool:
        return self.status == "TERMINATED"


@dataclass
class Training:
    """One set of hyperparameters and how far it has been trained."""

    params: dict[str, Any]
    observed: list[float]
    epoch: int = 0
    running: bool = False


@dataclass
class History:
    """What happened: the record from which a search is scored. Epochs are those trained by all workers together."""

    trainings: dict[int, Training] = field(default_factory=dict)
    incumbents: list[tuple[int, int]] = field(default_factory=list)
    """(epochs trained, number of the training that would be exported from then on)"""
    started: list[int] = field(default_factory=list)
    """epochs trained when each training started"""
    completed: list[int] = field(default_factory=list)
    suggest_s: list[float] = field(default_factory=list)


class Simulation:
    """Stands for Ray's TuneController before the scheduler.

    Args:
        max_pending: proposals that may wait for a worker. Ray's default with a searcher is 1; this project sets it to
            the number of workers, and its searcher refuses more than there are slots.
        noise: multiplies the task's noise.
    """

    def __init__(
        self, task: Task, searcher: Searcher, scheduler: TrialScheduler, *, seed: int, workers: int, max_pending: int,
        noise: float,
    ) -> None:  # fmt: skip
        self._task, self._searcher, self._scheduler = task, searcher, scheduler
        self._seed, self._free, self._max_pending, self._noise = seed, workers, max_pending, noise
        self._trials: dict[str, SimulatedTrial] = {}  # those that have not ended
        self._created = 0
        self._finished = False
        self._events: list[tuple[float, int, SimulatedTrial]] = []  # (time, tie-break, whose epoch ends then)
        self._clock = 0.0
        self._order = 0
        self._epochs = 0
        self._best: tuple[Any, ...] = ()
        self.history = History()

    def get_live_trials(self) -> list[SimulatedTrial]:
        return list(self._trials.values())

    def get_trials(self) -> list[SimulatedTrial]:
        return list(self._trials.values())

    def run(self, budget_epochs: int) -> History:
        """Search until this many epochs have been trained, or the searcher has had enough."""
        self._fill_workers()
        while self._events and self._epochs < budget_epochs:
            self._clock, _, trial = heapq.heappop(self._events)
            self._end_epoch(trial)
            self._fill_workers()
        if not self._events and not self._finished:
            raise RuntimeError(f"the search stalls at {self._epochs} epochs: nothing runs and nothing is proposed")
        return self.history

    def _fill_workers(self) -> None:
        """Ask for trials and start them until nothing changes; none of it takes simulated time."""
        while True:
            asked = self._ask()
            pending = [trial for trial in self._trials.values() if trial.status == "PENDING"]
            if self._free and pending:
                chosen = self._scheduler.choose_trial_to_run(self) or pending[0]  # Ray starts the rest in their order
                self._start(chosen)
            elif not asked:
                return

    def _ask(self) -> bool:
        pending = sum(trial.status == "PENDING" for trial in self._trials.values())
        if self._finished or pending >= self._max_pending:
            return False
        trial_id = f"{self._created:05d}"
        begun = time.perf_counter()
        suggestion = self._searcher.suggest(trial_id)
        duration = time.perf_counter() - begun
        if suggestion == Searcher.FINISHED:
            self._finished = True
        if suggestion is None or self._finished:
            return False
        self.history.suggest_s.append(duration)
        number = suggestion.get("number", self._created)
        training = self.history.trainings.get(number)
        if training is None:
            params = suggestion.get("params", suggestion)
            rng = np.random.default_rng((self._seed, number))
            training = Training(params, [float(acc) for acc in self._task.observed(params, rng, self._noise)])
            self.history.trainings[number] = training
            self.history.started.append(self._epochs)
        trial = SimulatedTrial(trial_id, suggestion, number, suggestion.get("until_epoch") or self._task.epochs)
        if training.running or not training.epoch < trial.last_epoch <= self._task.epochs:
            raise RuntimeError(
                f"trial {number} was proposed until epoch {trial.last_epoch}, but it "
                f"{'is under way' if training.running else f'stands at epoch {training.epoch}'}"
            )
        training.running = True
        self._created += 1
        self._trials[trial_id] = trial
        self._scheduler.on_trial_add(self, trial)
        return True

    def _start(self, trial: SimulatedTrial) -> None:
        trial.status = "RUNNING"
        self._free -= 1
        self._next_epoch(trial, START_UP)

    def _next_epoch(self, trial: SimulatedTrial, delay: float = 0.0) -> None:
        self._order += 1
        heapq.heappush(self._events, (self._clock + delay + 1, self._order, trial))

    def _end_epoch(self, trial: SimulatedTrial) -> None:
        training = self.history.trainings[trial.number]
        first = 0 if trial.iterations == 0 else training.epoch  # a leg's first report also holds what was before it
        training.epoch += 1
        trial.iterations += 1
        self._epochs += 1
        self._note_incumbent(trial.number, training)
        result = {
            "new_epochs": [
                {"epoch": epoch + 1, "acc": training.observed[epoch], "diverged": False}
                for epoch in range(first, training.epoch)
            ],
            "acc": training.observed[training.epoch - 1],
            "failed": None,
            "disk_error": None,
            "training_iteration": trial.iterations,
            "trial_id": trial.trial_id,
            "done": training.epoch == trial.last_epoch,
        }
        if not result["done"]:
            decision = self._scheduler.on_trial_result(self, trial, result)
            if decision == TrialScheduler.CONTINUE:
                self._searcher.on_trial_result(trial.trial_id, result)
                self._next_epoch(trial)
                return
            if decision != TrialScheduler.STOP:
                raise RuntimeError(f"the scheduler decided {decision}: only CONTINUE and STOP are simulated")
            result["done"] = True
        self._scheduler.on_trial_complete(self, trial, result)
        self._searcher.on_trial_complete(trial.trial_id, result)
        trial.status = "TERMINATED"
        training.running = False
        del self._trials[trial.trial_id]
        self._free += 1

    def _note_incumbent(self, number: int, training: Training) -> None:
        """Completed trainings count by their last value; as long as there is none, the one that got farthest does."""
        if training.epoch == self._task.epochs:
            self.history.completed.append(self._epochs)
        candidate = (training.epoch, training.observed[training.epoch - 1])
        if not self._best or candidate > self._best:
            self._best = candidate
            if not self.history.incumbents or self.history.incumbents[-1][1] != number:
                self.history.incumbents.append((self._epochs, number))
