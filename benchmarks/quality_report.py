"""Tables for `benchmarks.search_quality`: regret with bootstrap intervals, ranks, ratios, time."""

from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata, trim_mean

CAP = 10.0  # points: beyond it a search has failed, by however much
RESAMPLES = 2000
BASELINES = ("random+asha", "ray")
TARGET = "ray"  # whose final quality the others are timed against

Rows = dict[tuple[str, str, int], dict[str, Any]]
"""by method, task and seed"""


def print_report(rows: list[dict[str, Any]], title: str, console: Console) -> None:
    """Print what rows of one task group say, over the tasks and seeds that all methods have."""
    by_key: Rows = {(row["method"], row["task"], row["seed"]): row for row in rows}
    methods = list(dict.fromkeys(row["method"] for row in rows))
    tasks, seeds = _common(by_key, methods)
    if not tasks:
        console.print(f"{title}: no task and seed that all of {', '.join(methods)} have")
        return
    best = {task: max(row["reference"] for row in rows if row["task"] == task) for task in tasks}
    budgets = _budgets(by_key, methods, tasks, seeds)
    dropped = len(by_key) - len(methods) * len(tasks) * len(seeds)
    console.print(f"\n[bold]{title}[/bold]")
    console.print(
        f"{len(tasks)} tasks x {len(seeds)} seeds; regret in accuracy points, "
        f"[95% bootstrap interval over tasks, then seeds]" + (f"; {dropped} rows left out" if dropped else ""),
        markup=False,
    )
    for index, budget in enumerate(budgets):
        regrets = np.array(
            [
                [[best[t] - by_key[m, t, s]["checkpoints"][index]["score"] for s in seeds] for t in tasks]
                for m in methods
            ]
        )
        counts = {
            m: [
                np.mean([by_key[m, t, s]["checkpoints"][index][what] for t in tasks for s in seeds])
                for what in ("started", "completed")
            ]
            for m in methods
        }
        console.print(_quality(methods, regrets, counts, budget))
    console.print(_times(by_key, methods, tasks, seeds, best, budgets[-1]))


def _common(by_key: Rows, methods: list[str]) -> tuple[list[str], list[int]]:
    """Tasks of which all methods have some seed, and the seeds that all methods have of all these tasks."""
    having = [{task for name, task, _ in by_key if name == method} for method in methods]
    tasks = [task for task in dict.fromkeys(task for _, task, _ in by_key) if all(task in each for each in having)]
    seeds = sorted({seed for *_, seed in by_key})
    seeds = [seed for seed in seeds if all((m, t, seed) in by_key for m in methods for t in tasks)]
    return (tasks, seeds) if seeds else ([], [])


def _budgets(by_key: Rows, methods: list[str], tasks: list[str], seeds: list[int]) -> list[int]:
    shortest = min((by_key[m, t, s]["checkpoints"] for m in methods for t in tasks for s in seeds), key=len)
    return [checkpoint["budget"] for checkpoint in shortest]


def _quality(methods: list[str], regrets: np.ndarray, counts: dict[str, list[float]], budget: int) -> Table:
    """A row per method; regrets [methods, tasks, seeds]."""
    table = Table(title=f"after {budget} full trainings", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("method")
    heads = ["mean", f"mean, capped at {CAP:g}", "interquartile mean", "median", "mean rank", "started", "completed"]
    for head in heads + [f"capped / {baseline}" for baseline in BASELINES if baseline in methods]:
        table.add_column(head, justify="right")
    resampled = _resample(regrets)
    ranks = rankdata(regrets, axis=0).mean(axis=(1, 2))
    capped = _capped_mean(resampled)
    for place, method in enumerate(methods):
        flat = regrets[place].reshape(1, -1)
        cells = [
            _with_interval(statistic(flat)[0], statistic(resampled[place]))
            for statistic in (lambda values: values.mean(axis=-1), _capped_mean, _interquartile_mean)
        ]
        cells += [f"{np.median(flat):.2f}", f"{ranks[place]:.2f}", *(f"{count:.0f}" for count in counts[method])]
        for baseline in BASELINES:
            if baseline in methods:
                other = methods.index(baseline)
                ratio = _capped_mean(flat)[0] / _capped_mean(regrets[other].reshape(1, -1))[0]
                cells.append(_with_interval(ratio, capped[place] / capped[other]) if place != other else "1")
        table.add_row(method, *cells)
    return table


def _resample(regrets: np.ndarray) -> np.ndarray:
    """[methods, RESAMPLES, tasks * seeds]: tasks drawn with replacement, then seeds of each, for all methods alike."""
    rng = np.random.default_rng(0)
    methods, tasks, seeds = regrets.shape
    task = rng.integers(tasks, size=(RESAMPLES, tasks, 1))
    seed = rng.integers(seeds, size=(RESAMPLES, tasks, seeds))
    return regrets[:, task, seed].reshape(methods, RESAMPLES, tasks * seeds)


def _capped_mean(values: np.ndarray) -> np.ndarray:
    return np.minimum(values, CAP).mean(axis=-1)


def _interquartile_mean(values: np.ndarray) -> np.ndarray:
    return trim_mean(values, 0.25, axis=-1)


def _with_interval(value: float, resampled: np.ndarray) -> str:
    low, high = np.nanpercentile(resampled, (2.5, 97.5))
    return f"{value:.2f} \\[{low:.2f}, {high:.2f}]"  # the backslash keeps rich from reading it as markup


def _times(
    by_key: Rows, methods: list[str], tasks: list[str], seeds: list[int], best: dict[str, float], budget: int
) -> Table:
    """How soon a method is as good as TARGET in the end (mean regret, capped), and what its proposals cost."""
    title = f"time to the quality of {TARGET} after {budget} full trainings, and time spent"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("method")
    for head in ("full trainings", "share", "s per suggest, median", "95th percentile", "s per search"):
        table.add_column(head, justify="right")
    grid = np.arange(10, 10 * budget + 1) / 10  # full trainings
    curves = {}
    for method in methods:
        runs = [(by_key[method, task, seed], best[task]) for task in tasks for seed in seeds]
        curves[method] = np.mean([np.minimum(_regret_at(row, top, grid), CAP) for row, top in runs], axis=0)
    for method in methods:
        cells = ["-", "-"]
        if TARGET in methods:
            reached = np.flatnonzero(curves[method] <= curves[TARGET][-1])
            cells = (
                [f"{grid[reached[0]]:.1f}", f"{grid[reached[0]] / budget:.0%}"] if len(reached) else ["never", ">100%"]
            )
        own = [by_key[method, task, seed] for task in tasks for seed in seeds]
        suggest_s = np.concatenate([row["suggest_ms"] for row in own]) / 1000
        cells += [f"{np.percentile(suggest_s, share):.4f}" for share in (50, 95)]
        table.add_row(method, *cells, f"{np.mean([row['seconds'] for row in own]):.1f}")
    return table


def _regret_at(row: dict[str, Any], best: float, grid: np.ndarray) -> np.ndarray:
    """Regret by budget, from the times at which the search's answer changed."""
    epochs, scores = np.array(row["trace"]).T
    return best - scores[np.searchsorted(epochs, grid * row["epochs"], side="right") - 1]
