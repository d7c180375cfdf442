"""Writes what the trials report into the run folder, as it comes in."""

from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from model.config import save_config
from model.data import Dataset
from tune.checkpoint import CHECKPOINT
from tune.mirror import Mirror
from tune.run import Run
from tune.searcher import StudySearcher
from tune.tensorboard import TrialEvents
from tune.trials import State


class Recorder(Callback):
    """config.json, metrics.jsonl and TensorBoard events of every trial.

    Raises:
        OSError: the run folder can't be written, here or in a worker.
    """

    def __init__(self, run: Run, dataset: Dataset, searcher: StudySearcher, mirror: Mirror) -> None:
        self._run, self._dataset, self._searcher, self._mirror = run, dataset, searcher, mirror
        self._events: dict[int, TrialEvents] = {}
        self._last: dict[int, dict[str, Any]] = {}
        self._finish_interrupted()

    def _finish_interrupted(self) -> None:
        """Close trials that ended just before a kill: their checkpoint still lies there."""
        for trial in self._run.study().get_trials(deepcopy=False):
            if trial.state.is_finished() and any(self._run.trial_dir(trial.number).glob(f"{CHECKPOINT}*")):
                self._open(trial.number, trial.params, trial.user_attrs["seed"])
                self._close(trial.number)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        number = trial.config["number"]
        if number not in self._events:  # else this is another leg of it, or its worker died
            self._open(number, trial.config["params"], trial.config["seed"])

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        if result["disk_error"]:
            raise OSError(result["disk_error"])
        number = trial.config["number"]
        recorded = self._last[number]["epoch"] if number in self._last else 0
        new = [metrics for metrics in result["new_epochs"] if metrics["epoch"] > recorded]
        self._run.append_metrics(number, new)
        for metrics in new:
            self._events[number].epoch(metrics)
            self._last[number] = metrics

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.close_settled()

    on_trial_error = on_trial_complete

    def close_settled(self) -> None:
        """Close the trials that came to an end; those that pause keep their checkpoint."""
        while self._searcher.settled:
            self._close(self._searcher.settled.pop())

    def _open(self, number: int, params: dict[str, Any], seed: int) -> None:
        folder = self._run.trial_dir(number)
        folder.mkdir(exist_ok=True)
        config = self._run.space.config(params)
        save_config(folder / "config.json", config, run=self._run.name, trial=number, seed=seed)
        self._events[number] = TrialEvents(folder, config, params, self._dataset, seed)
        for metrics in self._run.metrics(number):
            self._events[number].epoch(metrics)
            self._last[number] = metrics

    def _close(self, number: int) -> None:
        if number in self._events:
            last = self._last.pop(number, None)
            complete = self._searcher.trials.all[number].state == State.DONE
            self._events.pop(number).close(last, complete=complete)
        for file in self._run.trial_dir(number).glob(f"{CHECKPOINT}*"):  # also what a killed worker left half-written
            file.unlink(missing_ok=True)  # finished: it is not needed again
        self._mirror.finished(number)
