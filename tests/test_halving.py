"""Which trainings come next: the rounds, worked out by hand, and that they follow from the results alone."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tune.halving import Race

EIGHT = Race(range(1, 9), base=0, most_seeds=16, practical=0.001, resolution=1e-4)


def run(race: Race, acc: Callable[[int, int], float], most: int = 10_000) -> dict[int, list[float]]:
    """Train what the race asks for, `most` trainings at most."""
    accs: dict[int, list[float]] = {}
    done = 0
    while todo := race.to_train(accs):
        for number, index in todo:
            if done == most:
                return accs
            assert index == len(accs.setdefault(number, [])), "seeds come in order, none twice"
            accs[number].append(acc(number, index))
            done += 1
    return accs


def noisy(gap: float, sd: float = 0.0015) -> Callable[[int, int], float]:
    """The higher its number, the better a candidate."""
    return lambda number, index: 0.9 + gap * number + sd * np.random.default_rng((number, index)).standard_normal()


def test_half_of_the_challengers_go_on_with_twice_the_seeds() -> None:
    accs = run(EIGHT, noisy(gap=0.0003))
    counts = sorted((len(own) for number, own in accs.items() if number), reverse=True)
    assert counts[4:] == [2, 2, 2, 2] and counts[2:4] == [4, 4] and counts[1] == 8
    assert len(accs[0]) == counts[0] >= 8  # the base keeps up with the winner


def test_who_lies_far_behind_is_left_out_at_once() -> None:
    accs = run(EIGHT, noisy(gap=0.02))
    assert {number: len(own) for number, own in accs.items() if number not in (0, 8)} == dict.fromkeys(range(1, 8), 2)


def test_a_clear_winner_takes_few_seeds_and_an_equal_one_all_of_them() -> None:
    alone = Race([1], base=0, most_seeds=30, practical=0.0, resolution=1e-4)
    assert len(run(alone, noisy(gap=0.05))[1]) <= 4
    assert len(run(alone, noisy(gap=0.0))[1]) == 30


def test_the_base_may_win() -> None:
    accs = run(Race([1], 0, 30, 0.001, 1e-4), noisy(gap=-0.05))
    assert len(accs[1]) <= 4
    assert EIGHT.rounds(accs)[0] == (2, list(range(1, 9)))


def test_certainly_within_the_practical_difference_it_ends() -> None:
    accs = run(Race([1], 0, 1000, 0.002, 1e-4), noisy(gap=0.0))
    assert len(accs[1]) < 200


def test_a_cheaper_one_ends_as_soon_as_it_is_no_worse() -> None:
    unknown = Race([1], 0, 1000, 0.002, 1e-4)
    cheap = replace(unknown, flops={1: 1e9, 0: 2e9})
    found = run(cheap, noisy(gap=0.001))
    assert len(found[1]) < len(run(unknown, noisy(gap=0.001))[1])
    last_but_one = {number: own[:-1] for number, own in found.items()}
    assert cheap.to_base(last_but_one, 1).low < -0.002 <= cheap.to_base(found, 1).low


@pytest.mark.parametrize("break_after", [1, 5, 17, 18, 25, 40])
def test_broken_off_anywhere_it_goes_on_to_the_same_end(break_after: int) -> None:
    whole = run(EIGHT, noisy(gap=0.0003))
    accs = run(EIGHT, noisy(gap=0.0003), most=break_after)
    while todo := EIGHT.to_train(accs):
        for number, index in todo:
            accs.setdefault(number, []).append(noisy(gap=0.0003)(number, index))
    assert accs == whole


def test_more_seeds_later_continue_the_same_sequence() -> None:
    few = Race([1, 2], 0, 4, 0.0, 1e-4)
    more = Race([1, 2], 0, 12, 0.0, 1e-4)
    accs = run(few, noisy(gap=0.0))
    before = {number: list(own) for number, own in accs.items()}
    assert max(map(len, accs.values())) == 4
    while todo := more.to_train(accs):
        for number, index in todo:
            accs[number].append(noisy(gap=0.0)(number, index))
    assert accs == run(more, noisy(gap=0.0))
    assert all(accs[number][: len(own)] == own for number, own in before.items())


def test_what_is_said_to_be_left_is_never_too_little() -> None:
    accs: dict[int, list[float]] = {}
    race = Race(range(1, 6), 0, 12, 0.001, 1e-4)
    forecasts, done = [], 0
    while todo := race.to_train(accs):
        forecasts.append((done, race.most_left(accs)))
        for number, index in todo:
            accs.setdefault(number, []).append(noisy(gap=0.0001)(number, index))
        done += len(todo)
    assert forecasts[0][1] == 6 * 2 + 4 * 2 + 3 * 4 + 2 * 4  # 5 and the base, 3, 2, then the winner up to 12
    assert all(before + left >= done for before, left in forecasts)
    assert race.most_left(accs) == 0


def test_more_challengers_need_more_evidence_each() -> None:
    accs = run(EIGHT, noisy(gap=0.0003))
    winner = max(range(1, 9), key=lambda number: len(accs[number]))
    one, eight = Race([winner], 0, 16, 0.001, 1e-4).to_base(accs, winner), EIGHT.to_base(accs, winner)
    assert eight.high - eight.low > one.high - one.low
    assert eight.mean == one.mean
