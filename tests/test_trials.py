"""Trials, their rungs and ASHA's promotions, on tables of values worked out by hand."""

import math
from typing import Any

import numpy as np
import pytest

from tune.trials import MAX_PAUSED, State, Trial, Trials, asha_cost

SHARES = np.zeros(0)


def entries(*accs: float, first: int = 1) -> list[dict[str, Any]]:
    """Epochs from `first` on; NaN is diverged."""
    return [
        {"epoch": first + index, "acc": acc, "diverged": math.isnan(acc), "train_s": 2.0 * (first + index)}
        for index, acc in enumerate(accs)
    ]


def trained(trials: Trials, *accs: float, failed: str | None = None, **given: Any) -> Trial:
    """A new trial that trained one leg, up to its first pause at most, with these accuracies."""
    trial = trials.add({"at": len(trials.all)}, SHARES, **given)
    trials.record(trial.number, entries(*accs))
    trials.end_leg(trial.number, failed)
    return trial


def go_on(trials: Trials, trial: Trial, *accs: float) -> None:
    trials.move(trial, State.RUNNING)
    trials.record(trial.number, entries(*accs, first=trial.epoch + 1))
    trials.end_leg(trial.number)


def at_first_rung(*accs: float) -> Trials:
    """Trials of 9 epochs with rungs at 1 and 3 that wait at the first."""
    trials = Trials(9, 1, 3)
    for acc in accs:
        trained(trials, acc)
    return trials


def promoted(trials: Trials) -> int | None:
    trial = trials.promotable()
    return None if trial is None else trial.number


def test_rungs_stand_at_grace_times_powers_of_eta_below_the_end() -> None:
    assert Trials(30, 3, 3).rungs == [3, 9, 27]
    assert Trials(27, 3, 3).rungs == [3, 9]
    assert Trials(8, 1, 2).rungs == [1, 2, 4]
    assert Trials(8, 8, 3).rungs == Trials(8, None, 3).rungs == []


def test_a_trial_pauses_at_every_rung_and_is_done_at_its_end() -> None:
    trials = Trials(9, 1, 3)
    trial = trials.add({}, SHARES)
    states, stops = [], []
    for epoch in range(1, 10):
        stops.append(trial.next_stop)
        trials.record(0, entries(epoch / 10, first=epoch))
        states.append(trials.end_leg(0))
        if states[-1] == State.PAUSED:
            trials.move(trial, State.RUNNING)
    assert stops == [1, 3, 3, 9, 9, 9, 9, 9, 9]
    pauses = {1: State.PAUSED, 3: State.PAUSED, 9: State.DONE}
    assert states == [pauses.get(epoch, State.RUNNING) for epoch in range(1, 10)]
    assert trials.observations == [(0, 1), (0, 3), (0, 9)]


def test_trials_of_unequal_length_pause_after_equal_shares() -> None:
    """Rungs at 1/27, 1/9 and 1/3 of the training, at the end of the epoch in which it gets there."""
    trials = Trials(27, 1, 3)
    for epochs, pauses in [(27, [1, 3, 9]), (54, [2, 6, 18]), (40, [2, 5, 14]), (9, [1, 1, 3])]:
        trial = trials.add({}, SHARES, epochs=epochs, pace=27 / epochs)
        assert trial.pauses == pauses, epochs


def test_trials_of_unequal_cost_pause_after_equal_cost() -> None:
    """Rungs at 3 and 9 epochs of the base. At half its cost per epoch that is 6 and 18 epochs; at four times, 1 and 3
    epochs; a training that costs less than a rung in all doesn't pause there."""
    trials = Trials(27, 3, 3)
    for pace, epochs, pauses in [
        (1.0, 27, [3, 9]),
        (0.5, 27, [6, 18]),
        (4.0, 27, [1, 3]),
        (0.5, 12, [6]),
        (0.5, 6, []),
        (1.5, 6, [2]),  # the second rung is its end
    ]:
        assert trials.add({}, SHARES, epochs=epochs, pace=pace, cost=pace).pauses == pauses, (pace, epochs)


def test_who_passes_two_rungs_in_an_epoch_waits_at_the_second() -> None:
    """At 9 times the base's cost the first epoch reaches both rungs, so it is compared with those at the second."""
    trials = Trials(27, 3, 3)
    dear = trained(trials, 0.5, pace=9.0, cost=9.0)
    assert dear.state == State.PAUSED and dear.rung == 2 and dear.next_stop == 27
    for acc in (0.6, 0.7):
        cheap = trained(trials, 0.1, 0.1, acc)
        assert cheap.rung == 1
    assert trials.at_rung(1) == {0: 0.5} and trials.at_rung(0) == {0: 0.5, 1: 0.6, 2: 0.7}
    assert promoted(trials) == 2


def test_the_best_third_is_promoted_best_first() -> None:
    trials = at_first_rung(0.1, 0.6, 0.3, 0.5, 0.2, 0.4)
    assert promoted(trials) == 1
    trials.move(trials.all[1], State.RUNNING)
    assert promoted(trials) == 3
    trials.move(trials.all[3], State.RUNNING)
    assert promoted(trials) is None


def test_nobody_is_waved_through_for_coming_first() -> None:
    trials = at_first_rung(0.5)
    assert promoted(trials) is None
    trained(trials, 0.6)
    assert promoted(trials) is None
    trained(trials, 0.4)
    assert promoted(trials) == 1


def test_who_paused_goes_on_when_worse_ones_have_come() -> None:
    trials = at_first_rung(0.5, 0.6, 0.4)
    trials.move(trials.all[1], State.RUNNING)
    assert promoted(trials) is None
    for acc in (0.1, 0.2, 0.3):
        assert promoted(trials) is None
        trained(trials, acc)
    assert promoted(trials) == 0


def test_of_equal_ones_the_earliest_goes_on() -> None:
    trials = at_first_rung(0.5, 0.5, 0.5, 0.5, 0.5, 0.5)
    for number in (0, 1):  # a third of six
        assert promoted(trials) == number
        trials.move(trials.all[number], State.RUNNING)
    assert promoted(trials) is None


def test_a_trial_that_does_not_pause_trains_to_its_end_and_counts_at_every_rung() -> None:
    trials = at_first_rung(0.1, 0.2)
    base = trials.add({}, SHARES, pausing=False)
    assert base.next_stop == base.epochs
    trials.record(base.number, [{"epoch": number, "acc": 0.3, "diverged": False} for number in (1, 2, 3)])
    assert trials.end_leg(base.number) == State.RUNNING
    assert trials.at_rung(0) == {0: 0.1, 1: 0.2, base.number: 0.3}


def test_the_highest_rung_comes_first() -> None:
    trials = at_first_rung(*[0.1 * number for number in range(9)])
    for number in (8, 7, 6):
        assert promoted(trials) == number
        go_on(trials, trials.all[number], 0.5, 0.5 + number / 100)
    trained(trials, 0.9)  # 10 at the first rung: three of them may have passed, and the newest is among the best
    assert promoted(trials) == 8  # the best at the second rung
    go_on(trials, trials.all[8], *[0.6] * 6)
    assert trials.all[8].state == State.DONE
    assert promoted(trials) == 9


def test_diverged_trials_count_as_the_worst_and_never_go_on() -> None:
    trials = at_first_rung(math.nan, 0.0, math.nan)
    assert [trial.state for trial in trials.all] == [State.FAILED, State.PAUSED, State.FAILED]
    assert promoted(trials) == 1  # chance level is better than to diverge
    trials.move(trials.all[1], State.RUNNING)
    assert promoted(trials) is None
    assert trials.all[0].reason == "diverged at epoch 1"


def test_who_failed_before_a_rung_counts_at_it_and_afterwards_only_above() -> None:
    trials = Trials(9, 3, 3)
    early = trained(trials, 0.5, math.nan)
    broken = trained(trials, failed="out of memory")
    late = trained(trials, 0.1, 0.2, 0.8)
    go_on(trials, late, 0.9, math.nan)
    assert [trial.state for trial in (early, broken, late)] == [State.FAILED] * 3
    assert (early.reason, broken.reason, late.reason) == ("diverged at epoch 2", "out of memory", "diverged at epoch 5")
    at_rung, at_end = trials.at_rung(0), trials.at_rung(-1)
    assert at_rung[2] == 0.8 and at_rung[0] == at_rung[1] < 0
    assert set(at_end) == {0, 1, 2} and max(at_end.values()) < 0


def test_a_diverged_accuracy_is_no_observation() -> None:
    trials = at_first_rung(0.3, math.nan)
    assert trials.observations == [(0, 1)]


def test_after_it_diverged_nothing_more_is_taken() -> None:
    trials = Trials(9, 3, 3)
    trial = trained(trials, 0.5, math.nan, 0.7)
    assert trial.epoch == 2 and trials.spent == 2


def test_recording_twice_or_out_of_order_changes_nothing() -> None:
    trials = at_first_rung(0.3)
    trial = trials.all[0]
    trials.move(trial, State.RUNNING)
    for _ in range(2):
        trials.record(0, entries(0.9, 0.8))
    trials.record(0, entries(0.7, first=5))
    assert trial.accs == [0.3, 0.8] and trial.train_s == [2.0, 4.0]
    assert trials.spent == 2 and trials.observations == [(0, 1)]


def test_what_was_spent_is_counted_in_epochs_of_the_base() -> None:
    trials = Trials(9, 1, 3)
    for cost, epochs in [(1.0, 1), (2.5, 1), (0.5, 1)]:
        trained(trials, *[0.5] * epochs, cost=cost)
    go_on(trials, trials.all[1], 0.5, 0.5)
    assert trials.spent == pytest.approx(1 + 3 * 2.5 + 0.5)


def test_costs_of_a_trial() -> None:
    trials = Trials(9, 1, 3)
    trial = trials.add({}, SHARES, epochs=4, cost=0.5)
    assert trial.full_cost(False) == 2.0 and trial.full_cost(True) is None
    trials.record(0, entries(0.1, 0.2))
    assert trial.costs(False) == [0.5, 1.0] and trial.costs(True) == [2.0, 4.0]
    assert trial.full_cost(True) == 8.0  # four epochs of two seconds


def test_what_asha_would_train() -> None:
    """9 trials, rungs 1 and 3 of 9: 9 x 1 + 3 x 2 + 1 x 6 epochs."""
    assert asha_cost(Trials(9, 1, 3), 9) == pytest.approx(21)
    assert asha_cost(Trials(8, 2, 2), 4) == pytest.approx(4 * 2 + 2 * 2 + 1 * 4)
    assert asha_cost(Trials(9, None, 3), 4) == 36


def test_params_that_were_tried() -> None:
    trials = Trials(9, 1, 3)
    trials.add({"a": 1.0, "b": "x"}, SHARES)
    assert trials.tried({"b": "x", "a": 1.0})
    assert not trials.tried({"a": 1.0}) and not trials.tried({"a": 2.0, "b": "x"})


def test_beyond_the_most_that_wait_the_worst_of_the_lowest_rung_is_surplus() -> None:
    trials = at_first_rung(*[0.5 + number / 1000 for number in range(MAX_PAUSED)])
    assert trials.surplus() == []
    go_on(trials, trials.all[0], 0.1, 0.1)  # the worst of all, but a rung further
    trained(trials, 0.9)
    trained(trials, 0.8)
    assert [trial.number for trial in trials.surplus()] == [1, 2]


def test_counts_by_state() -> None:
    trials = at_first_rung(0.1, math.nan, 0.2)
    trials.add({}, SHARES)
    assert trials.count(State.PAUSED) == 2 and trials.count(State.PAUSED, State.FAILED, State.RUNNING) == 4
    assert [trial.number for trial in trials.in_state(State.RUNNING, State.FAILED)] == [1, 3]
    assert trials.in_state(State.DONE) == []
