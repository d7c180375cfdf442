"""Intervals of fresh-seed accuracies: values worked out by hand, and how often they are wrong."""

import math

import numpy as np
import pytest
from scipy import stats

from tune.evidence import (
    PRIOR_VARIANCE,
    Difference,
    Interval,
    difference,
    judge,
    log_evidence,
    mean_interval,
    more_seeds,
    share_interval,
)

FINE = 1e-9


def test_the_evidence_is_the_bayes_factor_of_a_normal_prior_on_the_effect() -> None:
    """Integrated numerically: the density of t under an effect d ~ N(0, G) against that under none."""
    n, t = 6, 2.5
    effects = np.linspace(-40, 40, 40_001)
    densities = stats.nct.pdf(t, n - 1, effects * math.sqrt(n))
    mixed = np.trapezoid(densities * stats.norm.pdf(effects, scale=math.sqrt(PRIOR_VARIANCE)), effects)
    assert log_evidence(t, n, n - 1) == pytest.approx(math.log(mixed / stats.t.pdf(t, n - 1)), abs=1e-4)


def test_an_interval_ends_where_the_evidence_is_20() -> None:
    values = [0.90, 0.91, 0.92, 0.93, 0.94]
    found = mean_interval(values, FINE)
    t = (found.mean - found.low) / (np.std(values, ddof=1) / math.sqrt(5))
    assert found.mean == pytest.approx(0.92)
    assert found.high - found.mean == pytest.approx(found.mean - found.low)
    assert log_evidence(t, 5, 4) == pytest.approx(math.log(20), rel=1e-6)


def test_an_interval_is_wider_than_that_of_a_single_look_and_shrinks() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=64)
    halves = {n: (found := mean_interval(values[:n], FINE)).high - found.mean for n in (4, 16, 64)}
    assert halves[4] > halves[16] > halves[64]
    single_look = stats.t.ppf(0.975, 63) * np.std(values, ddof=1) / 8
    assert single_look < halves[64] < 2 * single_look


def test_with_one_seed_everything_is_possible() -> None:
    assert mean_interval([0.9], FINE) == Interval(1, 0.9, -math.inf, math.inf)
    found = difference([0.9], [0.8], FINE)
    assert (found.low, found.high, found.correlation) == (-math.inf, math.inf, None)


def test_seeds_that_agree_exactly_have_the_spread_of_rounding() -> None:
    """300 test images: values lie 1/300 apart, so equal ones don't make the interval a point."""
    found = mean_interval([0.97] * 4, 1 / 300)
    same_spread = mean_interval([0.97 + sign / 300 / math.sqrt(12) for sign in (1, -1, 1, -1)], FINE)
    assert 0 < found.high - found.mean < same_spread.high - same_spread.mean < 0.02


def test_looked_at_after_every_run_it_is_wrong_in_5_percent_at_most() -> None:
    """Both forms together, from 2 seeds to 40; a t-test at 5% is wrong in about 30%."""
    pairs = np.random.default_rng(1).normal(0.94, 0.0015, size=(400, 2, 40))
    looks = range(2, 41)
    found = [[difference(a[:n], b[:n], 1e-4) for n in looks] for a, b in pairs]
    wrong = [any(not each.low <= 0 <= each.high for each in of_pair) for of_pair in found]
    p_values = [stats.ttest_ind(pairs[:, 0, :n], pairs[:, 1, :n], axis=1).pvalue for n in looks]
    assert sum(np.min(p_values, axis=0) < 0.05) > 80
    assert sum(wrong) <= 20


def test_pairs_count_where_seeds_move_both_alike() -> None:
    rng = np.random.default_rng(2)
    common, own_a, own_b = rng.normal(0, 0.01, 12), rng.normal(0, 0.001, 12), rng.normal(0, 0.001, 12)
    together = difference(0.94 + common + own_a, 0.938 + common + own_b, FINE)
    apart = difference(0.94 + common + own_a, 0.938 + common[::-1] + own_b, FINE)
    assert together.form == "paired" and together.correlation is not None and together.correlation > 0.9
    assert apart.form == "unpaired"
    assert together.high - together.low < (apart.high - apart.low) / 3


def test_only_common_seeds_count() -> None:
    assert difference([0.5, 0.6, 0.7], [0.4, 0.5, 0.6, 0.1], FINE).mean == pytest.approx(0.1)
    assert difference([0.5, 0.6, 0.7], [0.4, 0.5, 0.6, 0.1], FINE).n == 3


@pytest.mark.parametrize(
    ("low", "high", "kind"),
    [
        (0.002, 0.005, "better"),
        (0.0001, 0.005, "better"),
        (-0.005, -0.0001, "worse"),
        (-0.0005, 0.0009, "tie"),
        (0.0002, 0.0009, "tie"),  # better for certain, by less than matters
        (-0.0005, 0.002, "undecided"),
        (-math.inf, math.inf, "undecided"),
    ],
)
def test_judging(low: float, high: float, kind: str) -> None:
    assert judge(Interval(8, (low + high) / 2 if math.isfinite(low) else 0.0, low, high), practical=0.001) == kind


@pytest.mark.parametrize(
    ("low", "high", "saves", "kind"),
    [
        (-0.0009, 0.02, 1.0, "no worse"),
        (-0.0011, 0.02, 1.0, "undecided"),
        (-0.0009, 0.02, 0.0, "undecided"),
        (-0.0009, 0.02, -1.0, "undecided"),
        (-0.02, 0.0009, -1.0, "no better"),
        (-0.02, 0.0009, 1.0, "undecided"),
        (-0.0009, 0.0009, 1.0, "tie"),
        (0.0001, 0.02, 1.0, "better"),
        (-0.02, -0.0001, 1.0, "worse"),
        (-math.inf, math.inf, 1.0, "undecided"),
    ],
)
def test_the_cheaper_one_has_only_to_be_no_worse(low: float, high: float, saves: float, kind: str) -> None:
    found = Interval(8, (low + high) / 2 if math.isfinite(low) else 0.0, low, high)
    assert judge(found, practical=0.001, saves=saves) == kind


def test_the_forecast_of_further_seeds_is_the_number_that_decides() -> None:
    """With as many more seeds that repeat mean and spread the difference is decided, with fewer it is not."""
    a, b = [0.940, 0.942, 0.941, 0.943], [0.9395, 0.9405, 0.9415, 0.9395]
    found = difference(a, b, FINE)
    assert judge(found, 0.0) == "undecided"
    more = more_seeds(found, a, b, 0.0, 0.05)
    assert more is not None

    def repeated(seeds: int) -> Difference:
        """Exactly the same mean and spread at any number of seeds: alternating around the mean."""
        spread = [np.std(each, ddof=1) * math.sqrt((seeds - 1) / seeds) for each in (a, b)]
        signs = np.array([(-1.0) ** index for index in range(seeds)])
        across = np.array([(-1.0) ** (index // 2) for index in range(seeds)])
        return difference(np.mean(a) + spread[0] * signs, np.mean(b) + spread[1] * across, FINE)

    seeds = 4 * math.ceil((4 + more) / 4)
    assert judge(repeated(seeds + 4), 0.0) == "better"
    assert judge(repeated(seeds - 12), 0.0) == "undecided"


def test_no_number_of_seeds_tells_equals_apart() -> None:
    values = [0.94, 0.95, 0.96, 0.97]
    assert more_seeds(difference(values, values[::-1], FINE), values, values[::-1], 0.0, 0.05) is None


def test_a_share_is_bounded_by_what_a_uniform_prior_finds_20_times_as_likely() -> None:
    low, high = share_interval(12, 16)
    for p in (low, high):
        prior = 1 / (17 * math.comb(16, 12))  # the integral of p^12 (1-p)^4
        assert prior / (p**12 * (1 - p) ** 4) == pytest.approx(20, rel=1e-6)
    assert low < 12 / 16 < high
    assert share_interval(0, 0) == (0.0, 1.0)
    assert share_interval(0, 50)[0] == 0 and share_interval(0, 50)[1] < 0.2
    assert share_interval(50, 50)[1] == 1 and share_interval(50, 50)[0] > 0.8


def test_a_share_looked_at_after_every_run_is_wrong_in_5_percent_at_most() -> None:
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(200):
        reached = np.cumsum(rng.uniform(size=30) < 0.7)
        intervals = [share_interval(int(k), n) for n, k in enumerate(reached, start=1)]
        wrong += any(not low <= 0.7 <= high for low, high in intervals)
    assert wrong <= 10
