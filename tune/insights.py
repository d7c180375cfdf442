"""What a run's trials show beyond their ranking: what mattered, what the rungs were worth, how luck would have done."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial
from scipy.stats import rankdata

from search_spaces.space import Choice, Domain, LogUniform
from tune.gp import Array
from tune.report_data import DONE, FAILED, RUNNING, STOPPED, RunData, Seen
from tune.samplers import distribution

FEWEST = 10  # full-length trials: with fewer, importances and rank correlations say nothing
MOST_RATED = 150  # full-length trials that importances are computed from
RESAMPLES = 50
PERMUTATIONS = 400
PAUSE_S = 60.0  # a search that trains nothing for so long was not running


@dataclass(frozen=True)
class Importance:
    """Of one parameter; those of all add up to 1."""

    name: str
    share: float
    low: float
    high: float
    """5th and 95th percentile over bootstrap resamples of the trials"""


def importances(data: RunData, seed: int = 0) -> tuple[list[Importance], int]:
    """Importance of each parameter that all full-length trials have, the greatest first, and how many trials it is
    computed from; no importances where there are fewer than FEWEST.

    PED-ANOVA (Watanabe et al. 2023, arXiv 2304.10255): how differently a parameter is distributed among the best
    quarter of the trials and among all of them.
    """
    rng = np.random.default_rng(seed)
    full = data.full
    names = [name for name in data.run.space.domains if all(name in trial.params for trial in full)]
    varied = [name for name in names if len({trial.params[name] for trial in full}) > 1]
    if len(full) < FEWEST or not varied:
        return [], len(full)
    if len(full) > MOST_RATED:
        full = [full[index] for index in sorted(rng.choice(len(full), MOST_RATED, replace=False))]
    shares = _shares(data, full, varied)
    resampled = [
        _shares(data, [full[i] for i in rng.integers(len(full), size=len(full))], varied) for _ in range(RESAMPLES)
    ]
    low, high = np.nanpercentile(np.array(resampled), [5, 95], axis=0)
    found = [Importance(*values) for values in zip(varied, shares.tolist(), low.tolist(), high.tolist(), strict=True)]
    return sorted(found, key=lambda importance: -importance.share), len(full)


def _shares(data: RunData, full: Sequence[Seen], names: list[str]) -> Array:
    """[len(names)]"""
    distributions = {name: distribution(data.run.space.domains[name]) for name in names}
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        create_trial(
            value=trial.accs[-1], params={name: trial.params[name] for name in names}, distributions=distributions
        )
        for trial in full
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is experimental, and resamples may vary a parameter no more
        try:
            shares = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=0.25))
        except (ValueError, RuntimeError, ZeroDivisionError):
            return np.full(len(names), math.nan)
    return np.array([shares.get(name, math.nan) for name in names])


def random_order(values: Sequence[float], seed: int = 0) -> tuple[Array, Array, Array]:
    """The best of the first k values if they came in random order: mean, 5th and 95th percentile, [len(values)]."""
    rng = np.random.default_rng(seed)
    given = np.asarray(values, dtype=np.float32)
    orders = rng.permuted(np.tile(given, (PERMUTATIONS, 1)), axis=1)
    best = np.maximum.accumulate(orders, axis=1)
    low, high = np.percentile(best, [5, 95], axis=0)
    return best.mean(axis=0), low, high


@dataclass(frozen=True)
class Agreement:
    """Spearman's correlation of accuracies early in training with the final ones, over full-length trials."""

    epoch: float
    """of the base's epochs"""
    rho: float
    low: float
    high: float
    """95% bootstrap interval"""
    n: int
    is_rung: bool


def agreements(data: RunData, seed: int = 0) -> list[Agreement]:
    """By epoch, at 30 epochs at most, the rungs among them; empty where fewer than FEWEST trials are of full length."""
    full, units = data.full, data.run.space.base.epochs
    if len(full) < FEWEST:
        return []
    rng = np.random.default_rng(seed)
    picks = rng.integers(len(full), size=(4 * RESAMPLES, len(full))) if len(full) <= MOST_RATED else None
    if picks is None:
        full = [full[index] for index in rng.choice(len(full), MOST_RATED, replace=False)]
        picks = rng.integers(len(full), size=(4 * RESAMPLES, len(full)))
    final = np.array([trial.accs[-1] for trial in full])
    thinned = set(np.linspace(1, units - 1, min(30, units - 1)).round().astype(int).tolist()) if units > 1 else set()
    found = []
    for epoch in sorted(thinned | set(data.rungs)):
        early = np.array([_at(trial, epoch, units) for trial in full])
        rho = _spearman(early[None], final[None])[0]
        if math.isfinite(rho):
            low, high = np.nanpercentile(_spearman(early[picks], final[picks]), [2.5, 97.5])
            found.append(Agreement(epoch, float(rho), float(low), float(high), len(full), epoch in data.rungs))
    return found


def _at(trial: Seen, epoch: int, units: int) -> float:
    """Its accuracy at the same share of its training as `epoch` is of the base's."""
    return trial.accs[min(math.ceil(epoch * trial.epochs / units - 1e-9), len(trial.accs)) - 1]


def _spearman(xs: Array, ys: Array) -> Array:
    """Row by row, [rows]; NaN where all of a row are the same."""
    x, y = rankdata(xs, axis=1), rankdata(ys, axis=1)
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        rhos: Array = (x * y).sum(axis=1) / np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    return rhos


@dataclass(frozen=True)
class RungCounts:
    """Of the trials that reached a rung: what became of them until the next one."""

    epoch: int
    """of the base's"""
    went_on: int
    stopped: int
    failed: int
    waiting: int

    @property
    def reached(self) -> int:
        return self.went_on + self.stopped + self.failed + self.waiting


def rung_counts(data: RunData) -> list[RungCounts]:
    """For each rung, the first one first."""
    counts = []
    for index, rung in enumerate(data.rungs):
        there = [t for t in data.trials if len(t.pauses) > index and len(t.accs) >= t.pauses[index]]
        stays = [t for t in there if _rung(t) == index + 1]
        by_state = {state: sum(t.state == state for t in stays) for state in (DONE, STOPPED, FAILED, RUNNING)}
        on = len(there) - len(stays) + by_state[DONE]
        counts.append(RungCounts(rung, on, by_state[STOPPED], by_state[FAILED], by_state[RUNNING]))
    return counts


def _rung(trial: Seen) -> int:
    return sum(len(trial.accs) >= pause for pause in trial.pauses)


@dataclass(frozen=True)
class StoppedChance:
    """Of trials that were stopped at one rung."""

    epoch: int
    stopped: int
    chance: float
    """that the best would have been one of them, 0..1"""
    n: int
    """full-length trials that it is estimated from"""
    ranks: list[int]
    """where the best full-length trials stood at the rung, the best one first, among `reached`"""
    reached: int


def stopped_chances(data: RunData, seed: int = 0) -> list[StoppedChance]:
    """By rung: how often the best of a random half of the full-length trials is one that the rung would have stopped,
    had it stopped the same share of that half. They are promoted ones, more alike than all that reached the rung, so
    their ranks agree less with the end and the chance comes out rather too high."""
    rng, found = np.random.default_rng(seed), []
    for index, rung in enumerate(data.rungs):
        there = [t for t in data.trials if len(t.pauses) > index and len(t.accs) >= t.pauses[index]]
        stopped = sum(t.state == STOPPED and _rung(t) == index + 1 for t in there)
        full = sorted((t for t in there if t.is_full), key=lambda t: -t.accs[-1])
        if len(full) < FEWEST or not stopped:
            continue
        early = np.array([t.accs[t.pauses[index] - 1] for t in full])  # the later best comes first
        half = len(full) // 2
        picks = np.sort(rng.permuted(np.tile(np.arange(len(full)), (PERMUTATIONS, 1)), axis=1)[:, :half], axis=1)
        rank = (early[picks] > early[picks[:, :1]]).sum(axis=1)
        kept = round(half * (1 - stopped / len(there)))
        all_early = np.array([t.accs[t.pauses[index] - 1] for t in there])
        ranks = [int((all_early > acc).sum()) + 1 for acc in early[:3]]
        found.append(StoppedChance(rung, stopped, float((rank >= kept).mean()), len(full), ranks, len(there)))
    return found


def bucket_edges(domain: Domain, buckets: int = 8) -> Array:
    """[buckets + 1] of a domain, in its own scale; choices and integers have none narrower than one value."""
    if isinstance(domain, Choice):
        return np.linspace(-0.5, len(domain.choices) - 0.5, len(domain.choices) + 1)
    if isinstance(domain, LogUniform):
        edges: Array = np.exp(np.linspace(np.log(domain.low), np.log(domain.high), buckets + 1))
        return edges
    if isinstance(domain.low, int):
        buckets = min(buckets, int(domain.high) - domain.low + 1)
        return np.linspace(domain.low - 0.5, domain.high + 0.5, buckets + 1)
    return np.linspace(domain.low, domain.high, buckets + 1)


def clock(data: RunData) -> Callable[[float], float]:
    """Hours since the first epoch began, by the time in seconds; pauses in which nothing trained are cut out."""
    began = np.array([at for trial in data.trials for at in trial.began_s])
    ended = np.array([at for trial in data.trials for at in trial.ended_s])
    if not len(began):
        return lambda at_s: 0.0
    order = np.argsort(began)
    began, reach = began[order], np.maximum.accumulate(ended[order])
    gaps = began[1:] - reach[:-1]
    pauses = gaps > max(PAUSE_S, 20 * float(np.median(ended[order] - began)))
    ends, lost = began[1:][pauses], np.concatenate([[0.0], np.cumsum(gaps[pauses])])
    return lambda at_s: (at_s - float(began[0]) - float(lost[np.searchsorted(ends, at_s, side="right")])) / 3600


@dataclass(frozen=True)
class Leg:
    """A stretch of epochs that a worker trained of one trial without a break."""

    slot: int
    began_h: float
    ended_h: float
    trial: int
    state: str
    """the trial's"""


def legs(data: RunData) -> tuple[list[Leg], list[str]]:
    """Every leg, and the name of each slot. A slot is a worker process, and the one that took its place after it."""
    hours = clock(data)
    raw = []
    for trial in data.trials:
        begin = 0
        for index in range(1, len(trial.workers) + 1):
            last = index == len(trial.workers)
            if (
                last
                or trial.workers[index] != trial.workers[begin]
                or trial.began_s[index] > trial.ended_s[index - 1] + 1
            ):
                raw.append((trial.workers[begin], trial.began_s[begin], trial.ended_s[index - 1], trial))
                begin = index
    spans: dict[tuple[str, int], list[float]] = {}
    for worker, began_s, ended_s, _ in raw:
        span = spans.setdefault(worker, [began_s, ended_s])
        span[:] = min(span[0], began_s), max(span[1], ended_s)
    slots: list[tuple[str, float]] = []  # host, and until when it is taken
    slot_of = {}
    for worker, (began_s, ended_s) in sorted(spans.items(), key=lambda item: item[1]):
        free = [i for i, (host, until_s) in enumerate(slots) if host == worker[0] and until_s <= began_s]
        slot_of[worker] = free[0] if free else len(slots)
        slots[slot_of[worker] : slot_of[worker] + 1] = [(worker[0], ended_s)]
    several = len({host for host, _ in slots}) > 1
    names = [f"{host}, slot {i + 1}" if several else f"slot {i + 1}" for i, (host, _) in enumerate(slots)]
    found = [Leg(slot_of[worker], hours(b), hours(e), trial.number, trial.state) for worker, b, e, trial in raw]
    return sorted(found, key=lambda leg: (leg.slot, leg.began_h)), names
