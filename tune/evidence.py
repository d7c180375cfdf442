"""What test accuracies on fresh seeds show, however often one looks.

All intervals are confidence sequences: with probability 1 - alpha the true value lies in every one of them, from the
first run to the last, so that one may look after each run, stop when it suits, and add runs later. A t-interval that
is looked at after every run covers far less than it says.

The accuracies of a config over seeds are taken as normal with a spread of its own that nobody knows. The evidence
against a mean m is the Bayes factor of a normal prior on the effect in units of that spread, which needs no prior on
the spread (Lai, Ann. Statist. 4(2), 1976; Wang and Ramdas, arXiv 2310.03722, section 4): with t the statistic of m,
f its degrees of freedom, k the effective number of runs and G the variance of the prior,

    E(m) = (1 + k G)^(-1/2) * ((1 + t^2 / f) / (1 + t^2 / (f (1 + k G))))^((f + 1) / 2)

If m is true, E exceeds 1 / alpha at any time with probability alpha at most (Ville's inequality); the interval holds
every m whose E stays below. Such evidence may be averaged, so a difference weighs two forms alike and need not choose:
seeds in pairs (k = n, f = n - 1) and not in pairs (k = n / 2, f = 2 n - 2).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaln, xlog1py, xlogy

ALPHA = 0.05
PRIOR_VARIANCE = 10.0  # of the effect, in units of the spread over seeds: 4 runs can decide, and 64 lose little by it
MOST_SEEDS = 10_000  # beyond, no number of further seeds is named

Kind = Literal["better", "worse", "tie", "no worse", "no better", "undecided"]


@dataclass(frozen=True)
class Interval:
    """A mean and the values that are not ruled out."""

    n: int
    mean: float
    low: float
    high: float
    """infinite while there are too few runs"""


@dataclass(frozen=True)
class Difference(Interval):
    """A config against another on their common seeds."""

    form: Literal["paired", "unpaired"]
    """which of the two carries the evidence: pairs where common seeds move both alike"""
    correlation: float | None
    """of the two over common seeds; None with fewer than three, or no spread"""


def mean_interval(values: Sequence[float], resolution: float, alpha: float = ALPHA) -> Interval:
    """The mean of one config over seeds.

    Args:
        resolution: distance of two neighbouring values, 1 / number of test images for an accuracy. Seeds may agree
            exactly; the spread is taken to be that of the rounding, resolution / sqrt(12), at least.
    """
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Interval(n, mean, -math.inf, math.inf)
    error = _spread(values, resolution) / math.sqrt(n)
    half = _half_width(lambda far: log_evidence(far / error, n, n - 1), error, alpha)
    return Interval(n, mean, mean - half, mean + half)


def difference(a: Sequence[float], b: Sequence[float], resolution: float, alpha: float = ALPHA) -> Difference:
    """a - b over the seeds that both have: the first of the longer one."""
    n = min(len(a), len(b))
    left, right = np.asarray(a[:n]), np.asarray(b[:n])
    mean = float(np.mean(left - right))
    if n < 2:
        return Difference(n, mean, -math.inf, math.inf, "unpaired", None)
    paired = _spread(left - right, resolution * math.sqrt(2)) / math.sqrt(n)
    pooled = math.hypot(_spread(left, resolution), _spread(right, resolution)) / math.sqrt(n)

    half = _half_width_of_difference(n, paired, pooled, alpha)
    in_pairs, apart = _both_forms(half if math.isfinite(half) else 4 * pooled, n, paired, pooled)
    varies = n > 2 and left.std() > 0 and right.std() > 0
    correlation = float(np.corrcoef(left, right)[0, 1]) if varies else None
    form: Literal["paired", "unpaired"] = "paired" if in_pairs > apart else "unpaired"
    return Difference(n, mean, mean - half, mean + half, form, correlation)


def share_interval(k: int, n: int, alpha: float = ALPHA) -> tuple[float, float]:
    """The chance of an event that was seen k times in n runs, at any time: the chances p under which the runs are not
    1 / alpha times less likely than under a uniform prior (Robbins, Ann. Math. Statist. 41(5), 1970)."""

    def log_ratio(p: float) -> float:
        return float(betaln(k + 1, n - k + 1) - xlogy(k, p) - xlog1py(n - k, -p)) + math.log(alpha)

    at = k / n if n else 0.5
    low = brentq(log_ratio, 0.0, at) if k and log_ratio(1e-300) > 0 else 0.0
    high = brentq(log_ratio, at, 1.0) if k < n and log_ratio(1 - 1e-16) > 0 else 1.0
    return float(low), float(high)


def judge(found: Interval, practical: float, saves: float = 0.0) -> Kind:
    """What a difference to the base shows. A difference that is certainly within `practical` is a tie, whatever its
    sign; the cheaper of two only has to be no worse by more than that.

    Args:
        saves: what the base costs more; negative where it costs less.
    """
    if -practical <= found.low and found.high <= practical:
        return "tie"
    if found.low > 0:
        return "better"
    if found.high < 0:
        return "worse"
    if saves > 0 and found.low >= -practical:
        return "no worse"
    return "no better" if saves < 0 and found.high <= practical else "undecided"


def more_seeds(
    found: Difference, a: Sequence[float], b: Sequence[float], practical: float, alpha: float, saves: float = 0.0
) -> int | None:
    """How many further seeds would decide, if mean and spread stay what they are; None if more than MOST_SEEDS."""
    n = found.n
    if n < 2:
        return None
    left, right = np.asarray(a[:n]), np.asarray(b[:n])
    paired, apart = float(np.std(left - right, ddof=1)), math.hypot(np.std(left, ddof=1), np.std(right, ddof=1))

    def decided(seeds: int) -> bool:
        errors = max(paired, 1e-12) / math.sqrt(seeds), max(apart, 1e-12) / math.sqrt(seeds)
        half = _half_width_of_difference(seeds, *errors, alpha)
        then = Interval(seeds, found.mean, found.mean - half, found.mean + half)
        return judge(then, practical, saves) != "undecided"

    if not decided(n + MOST_SEEDS):
        return None
    few, many = n, n + MOST_SEEDS
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if decided(middle) else (middle, many)
    return many - n


def log_evidence(t: float, k: float, f: int) -> float:
    """log E of the formula above."""
    shrunk = 1 + k * PRIOR_VARIANCE
    return -0.5 * math.log(shrunk) + (f + 1) / 2 * (math.log1p(t * t / f) - math.log1p(t * t / (f * shrunk)))


def _both_forms(far: float, n: int, paired: float, pooled: float) -> tuple[float, float]:
    """log E at this distance from a difference's mean, in pairs and not; the forms' standard errors are given."""
    return log_evidence(far / paired, n, n - 1), log_evidence(far / pooled, n / 2, 2 * n - 2)


def _half_width_of_difference(n: int, paired: float, pooled: float, alpha: float) -> float:
    """Where the average of both forms' evidence reaches 1 / alpha."""
    return _half_width(
        lambda far: float(np.logaddexp(*_both_forms(far, n, paired, pooled))) - math.log(2), pooled, alpha
    )


def _half_width(log_evidence_at: Callable[[float], float], scale: float, alpha: float) -> float:
    """Distance from the mean at which the evidence, which grows with the distance, reaches 1 / alpha."""
    far = 1e6 * scale
    if log_evidence_at(far) <= -math.log(alpha):
        return math.inf
    return float(brentq(lambda distance: log_evidence_at(distance) + math.log(alpha), 0.0, far, xtol=1e-9 * scale))


def _spread(values: Sequence[float] | np.ndarray, resolution: float) -> float:
    """Standard deviation over seeds."""
    return max(float(np.std(values, ddof=1)), resolution / math.sqrt(12))
