"""How good a config does a search find for its budget? Several searchers on tasks whose answers are known.

    python -m benchmarks.search_quality --quick
    python -m benchmarks.search_quality --tasks odd --seeds 3 --out odd.json

Each method is the real searcher and scheduler, driven in simulated time (benchmarks/simulator.py): some workers, half
an epoch to begin a trial, every epoch equally long, seed noise on every accuracy. The tasks (benchmarks/curves.py) are
17 of LCBench's 34 for development (even), the other 17 to be reported (odd), and this project's own curves (own).

The budget is all epochs trained, in full trainings. A search's answer at a budget is the completed trial with the best
observed accuracy, or while none has completed the trial that got farthest. Regret is how many accuracy points that
config's noise-free final value lies below the best known: of 16,384 quasi-random points, refined near the best of
them, or found by any method.

Limits. LCBench is a surrogate of MLPs on tables, with curves of 51 epochs without a learning-rate schedule; on it the
base, which this project's searcher tries first, is just the middle of the space. The own curves are few.
Waiting and proposing take no simulated time. Mean regret has a heavy tail, hence the capped and the interquartile mean.

Methods. random+asha: Ray's OptunaSearch with Optuna's RandomSampler and Ray's ASHA. ray: the same with OptunaSearch's
default sampler, as shipped. tpe-full: this project's TPE, every trial trained to the end. rung-tpe: this project's TPE
with ASHA. ours: what this project searches with by default: the sampler gp, pausing at epochs 3 and 9 of 51 on LCBench
and at 6 of 12 on the own curves. The others' ASHA has grace 1 and reduction factor 3. Ray's searchers are given the
base as a first point only where it is known to be good. good-prior and wrong-prior, on request: ours with the best or
the worst of 4,096 points declared as the prior of every domain. fields and coordinates, on request, for LCBench: ours
with the rate, 1 / (1 - momentum) and the decay in logarithms, or in the coordinates of search_spaces/coordinates.py.

What was tried and lost, mean regret capped at 10 points after 5, 10, 20, 30 full trainings, 17 even tasks, 3 seeds,
where the present choice had 6.1, 4.9, 3.7, 2.8, and 6.1, 4.9, 4.0, 3.3 once sums were rounded in another order (so
differences below about 0.5 may be noise): 300 candidates anywhere and
100 near the best instead of 100 and 300: 6.1, 5.2, 3.8, 3.0 to 6.6, 5.3, 3.7, 3.2. A prior with less in common between
early and late (v1 = v2 = 0.5): 6.8, 5.7, 3.9, 3.3. No centre point among the starts: 6.5, 5.6, 4.2, 3.6. In the last
30% or 50% of a known budget only finishing what waits: 6.2, 4.9, 3.7, 3.2 and 6.6, 5.1, 3.9, 3.5. An unknown base
trained to its end at once: 9.8, 7.7, 4.2, 3.2, since a completed trial is exported before better ones that wait.

On the own curves, 200 seeds (standard error 0.05), where the present choice (first rung after 6 of 12 epochs, the best
half goes on) has 3.4, 3.0, 2.4, 2.1: first rung after 9, the best third goes on: 3.4, 3.2, 2.6, 2.4; after 9, the best
three quarters: 3.4, 3.0, 2.5, 2.2; after 10, the best 10 of 12: 3.2, 3.0, 2.4, 2.1; after 3, the best third: 4.2, 4.2,
3.2, 2.5; no pausing: 3.2, 3.0, 2.4, 2.1, as good here, where even the worst of the space learn.
"""

import json
import logging
import math
import multiprocessing
import os
import sys
import time
import warnings
import zlib
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.samplers import BaseSampler, RandomSampler
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.curves import COORDINATES, FIELDS, Task, lcbench_tasks, own_task
from benchmarks.quality_report import print_report
from benchmarks.simulator import Simulation
from model.command import run_command
from model.config import InputError
from model.machine import usable_cores
from tune.samplers import distribution
from tune.scheduler import LegScheduler
from tune.searcher import StudySearcher, stream
from tune.trials import Trials

CHECKPOINTS = (5, 10, 20, 30)  # full trainings at which a search is scored
ETA = 3
AXES = {"fields": FIELDS, "coordinates": COORDINATES}


@dataclass(frozen=True)
class Options:
    """Compare searchers on simulated searches."""

    tasks: Literal["even", "odd", "own"] = "even"
    """even: LCBench for development; odd: LCBench for reporting; own: this project's curves"""
    seeds: int = 3
    """seeds 0, 1, ... for each task and method"""
    methods: tuple[
        Literal[
            "random+asha", "ray", "tpe-full", "rung-tpe", "ours", "good-prior", "wrong-prior", "fields", "coordinates"
        ],
        ...,
    ] = (
        "random+asha", "ray", "tpe-full", "rung-tpe", "ours",
    )  # fmt: skip
    """what to run; empty runs nothing, to report --rows only"""
    workers: int = 4
    """trials under way at once"""
    budget: int = 30
    """full trainings per search"""
    noise: float = 1.0
    """multiplies the tasks' seed noise"""
    max_tasks: int | None = None
    """only this many of the tasks, spread evenly"""
    jobs: int = usable_cores()
    """processes"""
    quick: bool = False
    """two tasks, one seed, ten full trainings: about two minutes"""
    rows: tuple[Path, ...] = ()
    """files of earlier runs (--out) to report together with this one"""
    out: Path | None = None
    """JSON file for the raw rows"""


def ours(task: Task, seed: int, workers: int, budget: int) -> tuple[Searcher, TrialScheduler]:
    """What this project searches with by default; `budget` in full trainings."""
    return _project("gp", task, seed, workers, grace_epochs=task.grace_epochs, budget=budget * task.epochs)


def _project(
    sampler: str, task: Task, seed: int, workers: int, *, grace_epochs: int | None, budget: float = math.inf
) -> tuple[Searcher, TrialScheduler]:
    study = optuna.create_study(direction="maximize", sampler=RandomSampler())
    trials = Trials(task.epochs, grace_epochs, ETA)
    searcher = StudySearcher(study, task.space, trials, sampler=sampler, seed=seed, slots=workers, budget=budget)
    return searcher, LegScheduler()


def _rays(sampler: BaseSampler | None, task: Task, seed: int) -> tuple[Searcher, TrialScheduler]:
    searcher = OptunaSearch(
        space={name: distribution(domain) for name, domain in task.space.domains.items()},
        metric="acc",
        mode="max",
        sampler=sampler,
        seed=None if sampler else seed,  # a sampler brings its own
        points_to_evaluate=[task.space.params_of(task.space.base)] if task.known_base else None,
    )
    scheduler = AsyncHyperBandScheduler(
        metric="acc", mode="max", max_t=task.epochs, grace_period=1, reduction_factor=ETA
    )
    return searcher, scheduler


def build(method: str, task: Task, seed: int, workers: int, budget: int) -> tuple[Searcher, TrialScheduler]:
    match method:
        case "random+asha":
            return _rays(RandomSampler(seed=seed), task, seed)
        case "ray":
            return _rays(None, task, seed)
        case "tpe-full":
            return _project("tpe", task, seed, workers, grace_epochs=None)
        case "rung-tpe":
            return _project("tpe", task, seed, workers, grace_epochs=1)
        case "ours" | "fields" | "coordinates":
            return ours(task, seed, workers, budget)
        case "good-prior" | "wrong-prior":
            return ours(task.with_prior(good=method == "good-prior"), seed, workers, budget)
    raise InputError(f"no method {method!r}")


@cache
def tasks_of(group: str) -> dict[str, Task]:
    if group == "own":
        return {"own": own_task()}
    return {task.name: task for task in lcbench_tasks()[int(group == "odd") :: 2]}


@cache
def _reference(group: str, task: str) -> float:
    return tasks_of(group)[task].best_known()


def search(job: tuple[Options, str, str, int]) -> dict[str, Any]:
    """One simulated search, as a row of the results; accuracies in points."""
    options, name, method, seed = job
    _be_quiet()
    task = tasks_of(options.tasks)[name]
    if method in AXES:
        task = task.with_axes(AXES[method])
    own_seed = stream(seed, zlib.crc32(name.encode()))  # else all tasks would be searched at the same points
    np.random.seed(own_seed)  # Ray's ASHA draws from numpy's global generator
    searcher, scheduler = build(method, task, own_seed, options.workers, options.budget)
    # Ray keeps one proposal waiting beyond the workers; tune.search sets it to the workers, all of them running
    max_pending = options.workers if isinstance(searcher, StudySearcher) else 1
    begun = time.perf_counter()
    history = Simulation(
        task, searcher, scheduler, seed=own_seed, workers=options.workers, max_pending=max_pending, noise=options.noise
    ).run(options.budget * task.epochs)
    seconds = time.perf_counter() - begun
    numbers = list(history.trainings)
    finals = task.accuracy([history.trainings[number].params for number in numbers], [task.epochs])[:, 0]
    scores = {number: round(100 * float(final), 4) for number, final in zip(numbers, finals, strict=True)}
    trace = [(epochs, scores[number]) for epochs, number in history.incumbents]
    checkpoints = []
    for budget in [each for each in CHECKPOINTS if each <= options.budget]:
        until = budget * task.epochs
        checkpoints.append(
            {
                "budget": budget,
                "score": [score for epochs, score in trace if epochs <= until][-1],
                "started": sum(epochs < until for epochs in history.started),
                "completed": sum(epochs <= until for epochs in history.completed),
            }
        )
    return {
        "group": options.tasks, "task": name, "method": method, "seed": seed, "workers": options.workers,
        "noise": options.noise, "budget": options.budget, "epochs": task.epochs,
        "reference": max(100 * _reference(options.tasks, name), *scores.values()),
        "checkpoints": checkpoints, "trace": trace, "seconds": round(seconds, 3),
        "suggest_ms": [round(1000 * each, 2) for each in history.suggest_s],
    }  # fmt: skip


def _be_quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    logging.getLogger("ray").setLevel(logging.ERROR)


def _run_all(jobs: list[tuple[Options, str, str, int]], processes: int, console: Console) -> list[dict[str, Any]]:
    """All searches, the rows in the order of the jobs; processes are spawned, so that none inherits a thread."""
    # several processes of several threads each would fight for the cores
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    rows = []
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    context = multiprocessing.get_context("spawn")
    with Progress(*columns, console=console) as progress, context.Pool(min(processes, len(jobs))) as pool:
        bar = progress.add_task("searches", total=len(jobs))
        for row in pool.imap_unordered(search, jobs):
            rows.append(row)
            progress.update(bar, advance=1, description=f"{row['method']} on {row['task']}, seed {row['seed']}")
    places = {(name, method, seed): place for place, (_, name, method, seed) in enumerate(jobs)}
    return sorted(rows, key=lambda row: places[row["task"], row["method"], row["seed"]])


def main(options: Options) -> None:
    if options.quick:
        options = replace(options, max_tasks=2, seeds=1, budget=min(options.budget, 10))
    if min(options.seeds, options.workers, options.jobs, options.max_tasks or 1) < 1 or options.budget < CHECKPOINTS[0]:
        raise InputError(f"--seeds, --workers, --jobs and --max-tasks start at 1, --budget at {CHECKPOINTS[0]}")
    if options.tasks == "own" and AXES.keys() & set(options.methods):
        raise InputError(f"--methods {' and '.join(AXES)} are for LCBench: give --tasks even or odd")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    rows = [row for file in options.rows for row in json.loads(file.read_text(encoding="utf-8"))["rows"]]
    if options.methods:
        names = list(tasks_of(options.tasks))
        if options.max_tasks:
            names = [names[i] for i in sorted({*np.linspace(0, len(names) - 1, options.max_tasks).round().astype(int)})]
        # the seed outermost: seeds of all methods and tasks come in one after another
        jobs = [(options, *rest, seed) for seed, *rest in product(range(options.seeds), names, options.methods)]
        new = _run_all(jobs, options.jobs, console)
        rows += new
        if options.out:
            header = {"options": asdict(options), "date": time.strftime("%Y-%m-%d")}
            content = json.dumps({**header, "rows": new}, default=str, separators=(",", ":"))
            options.out.write_text(content + "\n", encoding="utf-8")
    for setting in dict.fromkeys(map(_setting, rows)):
        group, workers, noise = setting
        note = own_task().note if group == "own" else "LCBench surrogate (YAHPO Gym), seed noise SD 0.4 + 0.2 points"
        title = f"{group}: {note}; {workers} workers" + (f"; noise times {noise:g}" if noise != 1 else "")
        print_report([row for row in rows if _setting(row) == setting], title, console)


def _setting(row: dict[str, Any]) -> tuple[str, int, float]:
    """What rows must share to stand in one table."""
    return row["group"], row["workers"], row["noise"]


if __name__ == "__main__":
    run_command(main, Options, prog="python -m benchmarks.search_quality")
