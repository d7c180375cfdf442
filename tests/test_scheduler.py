"""Which leg gets a free worker."""

from types import SimpleNamespace
from typing import Any

from ray.tune.experiment import Trial

from tune.scheduler import LegScheduler


def controller(*legs: tuple[str, str]) -> Any:
    trials = [SimpleNamespace(trial_id=trial_id, status=status) for trial_id, status in legs]
    return SimpleNamespace(get_live_trials=lambda: trials, trials=trials)


def chosen(scheduler: LegScheduler, tune: Any) -> str | None:
    trial = scheduler.choose_trial_to_run(tune)
    return None if trial is None else trial.trial_id


def test_the_oldest_pending_leg_goes_first_and_each_asks_once() -> None:
    tune = controller(("00002", Trial.PENDING), ("00000", Trial.RUNNING), ("00001", Trial.PENDING))
    scheduler = LegScheduler()
    assert [chosen(scheduler, tune) for _ in range(3)] == ["00001", "00002", None]


def test_legs_that_run_or_ended_are_not_chosen() -> None:
    tune = controller(("00000", Trial.RUNNING), ("00001", Trial.TERMINATED), ("00002", Trial.ERROR))
    assert chosen(LegScheduler(), tune) is None


def test_no_leg_is_stopped_by_its_results() -> None:
    tune = controller(("00000", Trial.RUNNING))
    decision = LegScheduler().on_trial_result(tune, tune.trials[0], {"acc": 0.0, "done": False})
    assert decision == LegScheduler.CONTINUE
