"""Asynchronous successive halving (ASHA, arXiv 1810.05934), the stopping form, behind Ray's TrialScheduler.

What Ray's own ASHA gets wrong for this job and this one doesn't: a NaN is never let through; the first arrivals at a
rung are judged again as others arrive; its state is a plain table of values by epoch, rebuilt from the run folder.
"""

from collections import defaultdict
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

WORST = -1.0  # stands for the accuracy of a diverged trial: finite, below every real one


class Rungs:
    """Values of all trials by epoch, and the rule by which ASHA stops a trial.

    Args:
        epochs: length of a full trial.
        grace_epochs: first rung; None makes no rung, so that every trial runs to the end.
        reduction_factor: eta in the paper; the best 1/eta of those that reached a rung go on.
    """

    def __init__(self, epochs: int, grace_epochs: int | None, reduction_factor: int) -> None:
        self.epochs = epochs
        self.reduction_factor = reduction_factor
        self.rungs: list[int] = []
        rung = grace_epochs or epochs
        while rung < epochs:
            self.rungs.append(rung)
            rung *= reduction_factor
        self.values: dict[int, dict[int, float]] = defaultdict(dict)
        """accuracy by epoch, then by trial number; WORST where the trial diverged"""
        self.last_epoch: dict[int, int] = {}
        """epochs trained so far, by trial number"""
        self.diverged: set[int] = set()

    def record(self, number: int, epochs: list[dict[str, Any]]) -> None:
        """Take note of a trial's metrics. Recording an epoch again changes nothing."""
        for metrics in epochs:
            self.values[metrics["epoch"]][number] = WORST if metrics["diverged"] else metrics["acc"]
            self.last_epoch[number] = metrics["epoch"]
            if metrics["diverged"]:
                self.diverged.add(number)

    def keeps(self, number: int) -> bool:
        """Whether a trial that is not at its end goes on.

        It must be among the best 1/eta of all values at the last rung it reached, as far as they are known now: so a
        trial that passed while few had arrived is stopped at its next report if later arrivals beat it. Fewer than
        eta values decide nothing; equal values pass together.
        """
        if number in self.diverged:
            return False
        reached = [rung for rung in self.rungs if rung <= self.last_epoch[number]]
        if not reached:
            return True
        peers = self.values[reached[-1]]
        if len(peers) < self.reduction_factor:
            return True
        better = sum(value > peers[number] for value in peers.values())
        return better < len(peers) // self.reduction_factor


class AshaScheduler(FIFOScheduler):
    """Stops trials by `Rungs`; trials start in the order in which they were proposed."""

    def __init__(self, rungs: Rungs) -> None:
        super().__init__()
        self.rungs = rungs
        self._waiting_for_worker: set[str] = set()

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        number = trial.config["number"]
        self.rungs.record(number, result["new_epochs"])
        return TrialScheduler.CONTINUE if self.rungs.keeps(number) else TrialScheduler.STOP

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        # Ray hands a trial's last result here instead of to on_trial_result.
        self.rungs.record(trial.config["number"], result.get("new_epochs", []))

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self._waiting_for_worker.discard(trial.trial_id)  # its worker died: it may ask for one again

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The oldest pending trial that has not asked for a worker yet.

        Ray gives a free worker to the trial chosen here and then cancels the worker that is starting up for it. Were
        a waiting trial chosen again, no second worker would ever come up while trials are shorter than a start-up.
        """
        pending = [
            trial
            for trial in tune_controller.get_live_trials()
            if trial.status == Trial.PENDING and trial.trial_id not in self._waiting_for_worker
        ]
        if not pending:
            return None
        trial = min(pending, key=lambda trial: trial.config["number"])
        self._waiting_for_worker.add(trial.trial_id)
        return trial
