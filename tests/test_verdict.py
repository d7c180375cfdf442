"""The words of a verdict, for each case, and the numbers of a candidate."""

from dataclasses import replace
from typing import Any

import pytest

from tune.halving import Race
from tune.verdict import candidate_row, first_shares, verdict

RACE = Race([7], base=0, most_seeds=16, practical=0.001, resolution=1e-4)
WAVE = [0.0005, -0.0005, 0.0003, -0.0003, 0.0001, -0.0001, 0.0004, -0.0004]


def results(accs: list[float], flops: float = 1e15, train_s: float = 10.0) -> list[dict[str, Any]]:
    return [
        {
            "acc": acc,
            "seed": seed,
            "train_s": train_s + seed,
            "flops": flops,
            "peak_mib": 100.0 + seed,
            "diverged": False,
        }
        for seed, acc in enumerate(accs)
    ]


def judged(
    mine: list[float], base: list[float], race: Race = RACE, *, flops: float = 1e15, diverged: bool = False
) -> dict[str, Any]:
    all_results = {7: results(mine, flops), 0: results(base)}
    if diverged:
        all_results[7][-1]["diverged"] = True
    rows = [{**candidate_row(race, all_results, number, None), "search_val_acc": 0.95} for number in all_results]
    return verdict(race, rows, full_trials=12)


def around(mean: float, n: int = 8, scale: float = 1.0) -> list[float]:
    return [mean + scale * offset for offset in (WAVE * 4)[:n]]


def test_better() -> None:
    said = judged(around(0.945), around(0.940))
    assert (said["kind"], said["trial"], said["recommended"]) == ("better", 7, 7)
    assert said["text"].startswith("Trial 7 is better than the base: +0.50 points of test accuracy (95% interval +0.")
    assert "8 fresh seeds each). Take trial 7." in said["text"]
    assert (
        "In the search trial 7 had 95.00% (one seed, held-out images, 12 full-length trials to choose" in said["text"]
    )
    assert "here it has 94.50% (n = 8, SD 0.04)" in said["text"]


@pytest.mark.parametrize(("flops", "share"), [(0.62e15, "62.0%"), (1.005e15, "100.5%")])
def test_what_it_costs_is_said(flops: float, share: str) -> None:
    cost = f"A training of trial 7 takes {share} of the base's floating-point operations."
    assert cost in judged(around(0.945), around(0.940), flops=flops)["text"]


def test_the_same_cost_is_not_said() -> None:
    assert "floating-point" not in judged(around(0.945), around(0.940))["text"]


def test_worse() -> None:
    said = judged(around(0.935), around(0.940))
    assert (said["kind"], said["recommended"]) == ("worse", 0)
    assert said["text"].startswith("Trial 7, the best of the challengers, is worse than the base: -0.50 points")
    assert "Take the base." in said["text"]


@pytest.mark.parametrize(("flops", "which", "number"), [(2e15, "the base", 0), (0.5e15, "trial 7", 7)])
def test_a_tie_goes_to_the_cheaper(flops: float, which: str, number: int) -> None:
    said = judged(around(0.9401, 16), around(0.940, 16), flops=flops)
    assert (said["kind"], said["recommended"]) == ("tie", number)
    assert "Trial 7 and the base tie: +0.01 points" in said["text"]
    assert f"within the 0.1 points that count as no difference. Take {which}: it is the cheaper one." in said["text"]


@pytest.mark.parametrize(("cheaper", "kind", "number"), [(True, "no worse", 7), (False, "no better", 0)])
def test_the_cheaper_one_has_only_to_be_no_worse(cheaper: bool, kind: str, number: int) -> None:
    """Where the interval is too wide for better and for a tie, and costs are known."""
    race = replace(RACE, practical=0.003, flops={7: 0.5e15, 0: 1e15} if cheaper else {7: 1e15, 0: 0.5e15})
    sign = 1 if cheaper else -1
    said = judged(around(0.94 + sign * 0.002, 8, 3), around(0.94, 8, 3)[::-1], race, flops=race.flops[7])
    assert (said["kind"], said["recommended"]) == (kind, number)
    words = "cheaper than the base and no worse" if cheaper else "dearer than the base and no better"
    assert said["text"].startswith(f"Trial 7 is {words} by more than the 0.3 points that count as no difference:")
    assert f"Take {'trial 7' if cheaper else 'the base'}." in said["text"]
    without = judged(around(0.94 + sign * 0.002, 8, 3), around(0.94, 8, 3)[::-1], replace(race, flops={}))
    assert without["kind"] == "undecided"


def test_undecided_says_how_many_more_runs() -> None:
    said = judged(around(0.9415, 4, 3), around(0.940, 4, 3)[::-1])
    assert (said["kind"], said["recommended"]) == ("undecided", 7)
    words = said["text"].split()
    more = int(words[words.index("about") + 1])
    assert more > 0
    assert f"about {more} more seeds each would decide, {2 * more} trainings: --seeds {4 + more}." in said["text"]


def test_undecided_for_good() -> None:
    said = judged(around(0.9410, 4, 100), around(0.940, 4, 100)[::-1], Race([7], 0, 16, 0.0, 1e-4))
    assert said["kind"] == "undecided"
    assert (
        "no number of seeds within reach would decide" in said["text"] or "more seeds each would decide" in said["text"]
    )


def test_one_seed_decides_nothing() -> None:
    said = judged([0.95], [0.90])
    assert said["kind"] == "undecided"
    assert "still unbounded, 1 fresh seed each" in said["text"]
    assert "One seed shows no spread: --seeds 2 or more." in said["text"]


def test_no_challenger() -> None:
    race = Race([], 0, 16, 0.001, 1e-4)
    rows = [candidate_row(race, {0: results(around(0.94))}, 0, None)]
    said = verdict(race, rows, full_trials=1)
    assert (
        said["text"] == "There is nothing to compare: the base is the only config. It reaches 94.00% (n = 8, SD 0.04)."
    )


def test_it_says_which_form_carries_the_interval() -> None:
    common = [0.01 * offset * 1000 for offset in WAVE]
    mine = [0.94 + a + 0.0002 * (-1) ** i for i, a in enumerate(common)]
    assert (
        "Pairing the common seeds makes the interval narrower (correlation over 8 seeds +1.00)"
        in judged(mine, around(0.93, 8, 10.0))["text"]
    )
    apart = [0.940, 0.941, 0.939, 0.942, 0.938, 0.9405, 0.9395, 0.940]
    assert (
        "Pairing the common seeds doesn't make the interval narrower (correlation" in judged(apart, apart[::-1])["text"]
    )


def test_diverged_trainings_are_named() -> None:
    assert (
        "1 of 8 trainings of trial 7 diverged and count as chance."
        in judged([*around(0.94, 7), 0.1], around(0.94), diverged=True)["text"]
    )


def test_the_numbers_of_a_candidate() -> None:
    own = {7: results([0.93, 0.95, 0.94]), 0: results([0.90, 0.92, 0.91])}
    row = candidate_row(RACE, own, 7, target=0.94)
    assert (row["n"], row["mean_acc"], row["sd_acc"]) == (3, pytest.approx(0.94), pytest.approx(0.01))
    assert (row["median_train_s"], row["worst_train_s"], row["peak_mib"]) == (11.0, 12.0, 102.0)
    assert (row["target"]["k"], row["target"]["n"]) == (2, 3)
    assert row["to_base"]["mean"] == pytest.approx(0.03)
    assert candidate_row(RACE, own, 0, None)["to_base"] is None


def test_the_share_of_being_first() -> None:
    shares = first_shares({1: [0.9, 0.9], 2: [0.8, 0.8], 3: [0.9, 0.9]})
    assert shares == {1: pytest.approx(0.5), 2: 0.0, 3: pytest.approx(0.5)}
    unsure = first_shares({1: [0.90, 0.94], 2: [0.91, 0.92]})
    assert 0.2 < unsure[2] < 0.8
