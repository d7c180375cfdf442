"""ASHA's rule on tables of values worked out by hand."""

from tune.scheduler import Rungs


def at(epoch: int, acc: float, *, diverged: bool = False) -> list[dict]:
    return [{"epoch": epoch, "acc": acc, "diverged": diverged}]


def rungs_after(values: dict[int, float], *, epoch: int = 3, epochs: int = 30) -> Rungs:
    rungs = Rungs(epochs=epochs, grace_epochs=3, reduction_factor=3)
    for number, acc in values.items():
        rungs.record(number, at(epoch, acc))
    return rungs


def test_rungs_stand_at_grace_times_powers_of_eta_below_the_end() -> None:
    assert Rungs(30, 3, 3).rungs == [3, 9, 27]
    assert Rungs(27, 3, 3).rungs == [3, 9]
    assert Rungs(8, 8, 3).rungs == []
    assert Rungs(8, None, 3).rungs == []


def test_fewer_than_eta_arrivals_decide_nothing() -> None:
    rungs = rungs_after({0: 0.1, 1: 0.9})
    assert rungs.keeps(0) and rungs.keeps(1)


def test_best_third_goes_on() -> None:
    rungs = rungs_after({number: number / 10 for number in range(6)})
    assert [number for number in range(6) if rungs.keeps(number)] == [4, 5]


def test_an_early_arrival_is_judged_again_when_better_ones_have_come() -> None:
    rungs = rungs_after({0: 0.5})
    assert rungs.keeps(0)
    for number, acc in [(1, 0.6), (2, 0.7)]:
        rungs.record(number, at(3, acc))
    rungs.record(0, at(4, 0.99))  # its next report, between rungs: what counts is its value at the rung
    assert not rungs.keeps(0)
    assert rungs.keeps(2)


def test_between_grace_and_start_nothing_is_stopped() -> None:
    rungs = rungs_after({number: number / 10 for number in range(6)}, epoch=2)
    assert all(rungs.keeps(number) for number in range(6))


def test_equal_values_pass_together() -> None:
    rungs = rungs_after(dict.fromkeys(range(9), 0.5))
    assert all(rungs.keeps(number) for number in range(9))


def test_a_diverged_trial_never_passes_and_counts_as_the_worst() -> None:
    rungs = Rungs(epochs=30, grace_epochs=3, reduction_factor=3)
    rungs.record(0, at(3, 0.9, diverged=True))
    assert not rungs.keeps(0)
    for number in (1, 2):
        rungs.record(number, at(3, 0.0))
    assert rungs.keeps(1) and rungs.keeps(2)  # even chance level is better than diverging


def test_recording_an_epoch_again_changes_nothing() -> None:
    rungs = rungs_after({0: 0.5, 1: 0.6, 2: 0.7})
    before = {number: rungs.keeps(number) for number in range(3)}
    rungs.record(1, at(3, 0.6))
    assert {number: rungs.keeps(number) for number in range(3)} == before


def test_without_a_scheduler_only_divergence_stops() -> None:
    rungs = Rungs(epochs=30, grace_epochs=None, reduction_factor=3)
    for number in range(9):
        rungs.record(number, at(20, number / 10))
    rungs.record(9, at(20, 0.1, diverged=True))
    assert all(rungs.keeps(number) for number in range(9))
    assert not rungs.keeps(9)
