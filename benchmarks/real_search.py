"""Real searches on real images: this project's engine beside Ray's OptunaSearch and ASHA as shipped, equal seconds.

    python -m benchmarks.real_search --data PATH --out real

Both search the space lr_regimes on the same images, with the same net, threads and slots, and both are told the base as
a first point. Ours is `python -m tune.search` with its defaults. Ray's trial is a function that trains with the same
`model.train` and reports every epoch, under OptunaSearch and ASHAScheduler as they come, with as many trials at once as
there are slots. Each search runs alone, ends after --seconds by Ray Tune's own clock, and names its best config: here
the best trial that ran to its end, there what ResultGrid.get_best_result gives. The best configs and the base are then
trained on fresh seeds, all training images, and scored on the test set.

Wasted epochs are those of trials that had not run to their end when the search was over; a better search does not
need fewer of them, but should have more to show for the rest. What is finished is kept in --out: the same command goes
on where it was stopped.
"""

import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from model.command import run_command
from model.config import Config, InputError
from model.data import Dataset, describe, hold_out, take, to_device
from model.machine import usable_cores
from model.sources import load
from model.train import train
from search_spaces import load as load_space
from search_spaces.space import SearchSpace
from tune.confirm import confirm_seed
from tune.run import Run, here
from tune.searcher import trial_seed

ENGINES: tuple[Literal["ours", "ray"], ...] = ("ours", "ray")
SPACE = "lr_regimes"


@dataclass(frozen=True)
class Options:
    """Compare two engines on real trainings."""

    data: str
    """cifar10, digits or the path of a data folder"""
    out: Path
    """folder for the results, and of an earlier run to go on with"""
    train_examples: int = 20_000
    """training images; the searches hold out others to score on, a tenth of all there are"""
    width: int = 16
    """of the net"""
    epochs: int = 4
    """of a full training"""
    precision: Literal["fp32", "bf16"] = "bf16"
    """of the trainings"""
    seconds: int = 480
    """of each search"""
    searches: int = 3
    """searches of each engine, on seeds 0, 1, ..."""
    confirm: int = 3
    """fresh seeds on which the best configs are trained, the same for all"""
    slots: int = usable_cores()
    """trainings at once, one thread each"""


def main(options: Options) -> None:
    console = Console(soft_wrap=True, highlight=False)
    console.print(describe(_dataset(options.data, options.train_examples)))
    options.out.mkdir(parents=True, exist_ok=True)
    found = []
    for seed in range(options.searches):
        for engine in ENGINES:
            file = options.out / f"{engine}-{seed}.json"
            if not file.exists():
                console.print(f"search {seed + 1} of {options.searches}, {engine}: {options.seconds} s from now")
                content = _ours(options, seed) if engine == "ours" else _in_own_process(options, seed)
                file.write_text(json.dumps({"engine": engine, "seed": seed, **content}), encoding="utf-8")
            found.append(json.loads(file.read_text(encoding="utf-8")))
            console.print(_line(found[-1]))
    rows = _confirm(options, found, console)
    content = {"options": asdict(options), **here(), "searches": found, "confirmed": rows}
    (options.out / "result.json").write_text(json.dumps(content, default=str, indent=2), encoding="utf-8")
    _show(options, found, rows, console)


@cache
def _dataset(data: str, train_examples: int) -> Dataset:
    return take(load(data), train_examples)


def _space(options: Options) -> SearchSpace:
    space = load_space(SPACE)
    return space.with_base(replace(space.base, width=options.width, epochs=options.epochs, precision=options.precision))


def _ours(options: Options, seed: int) -> dict[str, Any]:
    name = f"search-{seed}"
    args = ["--space", SPACE, "--data", options.data, "--train-examples", options.train_examples, "--name", name]
    args += ["--width", options.width, "--epochs", options.epochs, "--set", f"precision={options.precision}"]
    args += ["--set", "batch_size=512", "--cpus-per-trial", "1", "--seed", seed, "--runs-dir", options.out]
    args += ["--budget", 1_000_000, "--time-budget-s", options.seconds]  # the seconds end it, not the budget
    command = [sys.executable, "-m", "tune.search", *map(str, args)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
    if done.returncode:
        raise InputError(f"the search failed:\n{done.stdout}")
    run = Run(options.out / name)
    best = run.ranking()[0]
    trained = {trial.number: len(run.metrics(trial.number)) for trial in run.study().get_trials(deepcopy=False)}
    return _summary(run.config(best), best.params, best.value or 0.0, list(trained.values()), options.epochs)


def _in_own_process(options: Options, seed: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")  # Ray starts in a fresh process each time
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_rays, options, seed).result()


def _rays(options: Options, seed: int) -> dict[str, Any]:
    import logging

    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    from tune.samplers import distribution

    space = _space(options)

    def trial(params: dict[str, Any], dataset: Dataset) -> None:
        torch.set_num_threads(1)
        number = int(tune.get_context().get_trial_id().rpartition("_")[2], 16)  # Ray's trials are not numbered
        data = to_device(dataset, torch.device("cpu"))
        for metrics in train(space.config(params), data, seed=trial_seed(seed, number)):
            tune.report({"acc": metrics.acc})

    ray.init(address="local", num_cpus=options.slots, include_dashboard=False, logging_level=logging.ERROR)
    grid = tune.Tuner(
        tune.with_parameters(trial, dataset=hold_out(load(options.data), options.train_examples)),
        tune_config=tune.TuneConfig(
            metric="acc",
            mode="max",
            num_samples=-1,
            time_budget_s=options.seconds,
            max_concurrent_trials=options.slots,
            search_alg=OptunaSearch(
                space={name: distribution(domain) for name, domain in space.domains.items()},
                metric="acc",
                mode="max",
                seed=seed,
                points_to_evaluate=[space.params_of(space.base)],
            ),
            scheduler=ASHAScheduler(max_t=options.epochs),
        ),
        run_config=tune.RunConfig(storage_path=str((options.out / "ray").absolute()), name=f"search-{seed}", verbose=0),
    ).fit()
    best = grid.get_best_result()
    assert best.metrics and best.config
    trained = [result.metrics.get("training_iteration", 0) for result in grid if result.metrics]
    return _summary(space.config(best.config), best.config, best.metrics["acc"], trained, options.epochs)


def _summary(config: Config, params: dict[str, Any], acc: float, trained: list[int], epochs: int) -> dict[str, Any]:
    return {
        "config": config.to_dict(),
        "params": params,
        "search_acc": acc,
        "trials": len(trained),
        "full": sum(count == epochs for count in trained),
        "epochs": sum(trained),
        "wasted_epochs": sum(count for count in trained if count < epochs),
    }


def _confirm(options: Options, found: list[dict[str, Any]], console: Console) -> dict[str, list[float]]:
    """Test accuracies of the base and of what each search found, seed by seed, by name."""
    configs = {"base": _space(options).base.to_dict()}
    configs |= {f"{search['engine']}-{search['seed']}": search["config"] for search in found}
    file = options.out / "confirmed.jsonl"
    results = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        name, index, acc = json.loads(line)
        results[name, index] = acc
    first = {json.dumps(config): name for name, config in reversed(configs.items())}  # equal ones are trained once
    trained_as = {name: first[json.dumps(config)] for name, config in configs.items()}
    wanted = [(name, index) for index in range(options.confirm) for name in dict.fromkeys(trained_as.values())]
    wanted = [each for each in wanted if each not in results]
    context = multiprocessing.get_context("spawn")
    begun = time.monotonic()
    with ProcessPoolExecutor(options.slots, mp_context=context) as pool, file.open("a", encoding="utf-8") as log:
        jobs = {pool.submit(_test_acc, options, configs[name], index): (name, index) for name, index in wanted}
        for count, job in enumerate(as_completed(jobs), 1):
            results[jobs[job]] = job.result()
            log.write(json.dumps([*jobs[job], job.result()]) + "\n")
            log.flush()
            left = (time.monotonic() - begun) / count * (len(jobs) - count)
            console.print(f"confirmed {count} of {len(jobs)}, about {left / 60:.0f} min left")
    return {name: [results[trained_as[name], index] for index in range(options.confirm)] for name in configs}


def _test_acc(options: Options, config: dict[str, Any], index: int) -> float:
    torch.set_num_threads(1)
    data = to_device(_dataset(options.data, options.train_examples), torch.device("cpu"))
    *_, last = train(Config.from_dict(config), data, seed=confirm_seed(0, index))
    return last.acc


def _line(search: dict[str, Any]) -> str:
    return (
        f"  {search['trials']} trials, {search['full']} of them to the end, {search['epochs']} epochs, "
        f"{search['wasted_epochs']} wasted; best {100 * search['search_acc']:.2f}% val, {search['params']}"
    )


def _show(options: Options, found: list[dict[str, Any]], rows: dict[str, list[float]], console: Console) -> None:
    table = Table(title=f"{options.seconds} s each, {options.slots} slots", title_justify="left")
    for column in ("search", "trials", "to the end", "epochs", "wasted", "search val", "test, fresh seeds", "SD"):
        table.add_column(column, justify="right")
    for search in found:
        name = f"{search['engine']}-{search['seed']}"
        spent = (str(search[key]) for key in ("trials", "full", "epochs", "wasted_epochs"))
        table.add_row(name, *spent, f"{100 * search['search_acc']:.2f}%", *_mean_and_sd(rows[name]))
    table.add_row("base", *[""] * 5, *_mean_and_sd(rows["base"]))
    console.print(table)
    for engine in ENGINES:
        means = [statistics.fmean(rows[f"{engine}-{seed}"]) for seed in range(options.searches)]
        share = [search["wasted_epochs"] / search["epochs"] for search in found if search["engine"] == engine]
        mean, sd = _mean_and_sd(means)
        console.print(
            f"{engine}: test accuracy {mean} (SD over {len(means)} searches {sd}, {options.confirm} fresh seeds each), "
            f"{100 * statistics.fmean(share):.0f}% of the epochs wasted"
        )


def _mean_and_sd(accs: list[float]) -> tuple[str, str]:
    sd = f"{100 * statistics.stdev(accs):.2f}" if len(accs) > 1 else "-"
    return f"{100 * statistics.fmean(accs):.2f}%", sd


if __name__ == "__main__":
    run_command(main, Options, prog="python -m benchmarks.real_search")
