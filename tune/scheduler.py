"""Who gets a free worker, behind Ray's TrialScheduler.

Which trial trains how far is decided before a leg begins (tune/searcher.py, by the rungs of tune/trials.py), so nothing
has to be stopped here: a leg ends by itself, at its rung, at its end, or at once where it diverges.
"""

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler


class LegScheduler(FIFOScheduler):
    """Legs start in the order in which they were proposed."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting_for_worker: set[str] = set()

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The oldest pending leg that has not asked for a worker yet.

        Ray gives a free worker to the one chosen here and then cancels the worker that is starting up for it. Were a
        waiting one chosen again, no second worker would ever come up while legs are shorter than a start-up.
        """
        pending = [
            trial
            for trial in tune_controller.get_live_trials()
            if trial.status == Trial.PENDING and trial.trial_id not in self._waiting_for_worker
        ]
        if not pending:
            return None
        trial = min(pending, key=lambda trial: trial.trial_id)
        self._waiting_for_worker.add(trial.trial_id)
        return trial
