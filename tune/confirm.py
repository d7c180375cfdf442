"""`python -m tune.confirm RUN`: the best configs and the base again, on fresh seeds, all training images, the test set.

One training at a time, so that its time is a time. Every finished training is appended to confirm/runs.jsonl at once;
the same command goes on where it was stopped, and more seeds or a larger top add to what is there.
"""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from optuna.trial import FrozenTrial
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from scipy import stats

from model.command import run_command
from model.config import Config, InputError
from model.data import Dataset, describe, to_device
from model.ranks import Ranks
from model.train import EpochMetrics, best_device, train
from tune.mirror import Mirror, run_folder
from tune.progress import short
from tune.run import Run, final_acc, repair
from tune.searcher import stream


@dataclass(frozen=True)
class Options:
    """Train the best configs of a run and its base on fresh seeds and all training images; score on the test set."""

    run: Annotated[str, tyro.conf.Positional]
    """the run folder, or the URI of a run in a store, which is then fetched into runs/"""
    top: int = 3
    """how many of the best configs"""
    seeds: int = 5
    """how many fresh seeds each, the same for all"""
    data: str | None = None
    """where the run's data are now, if they moved"""
    threads: int | None = None
    """CPU threads (default: all cores)"""


def main(options: Options) -> None:
    console = Console(soft_wrap=True, highlight=False)
    for name, value in [("top", options.top), ("seeds", options.seeds), ("threads", options.threads)]:
        if value is not None and value < 1:
            raise InputError(f"--{name} {value}: it must be 1 or more")
    run = Run(run_folder(str(options.run), Path("runs"), console))
    ranking = run.ranking()
    if not ranking:
        raise InputError(f"{options.run} has no trial that ran to the end: nothing to confirm; continue the search")
    dataset = run.dataset(options.data)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with run.lock():
        for line in repair(run):
            console.print(f"repaired: {line}")
        (run.path / "confirm").mkdir(exist_ok=True)
        candidates = ranking[: options.top]
        base = run.study().get_trials(deepcopy=False)[0]
        if base not in candidates:
            candidates = [*candidates, base]
        console.print(describe(dataset))
        console.print(
            f"confirm: {len(candidates)} configs x {options.seeds} fresh seeds on all "
            f"{len(dataset.train_labels):,} training images, {run.space.base.epochs} epochs"
        )
        _train_all(run, candidates, options.seeds, dataset, console)
        rows = [_row(run, trial, _results(run)[trial.number]) for trial in candidates]
        rows.sort(key=lambda row: -row["mean_acc"])
        content = {"rows": rows, "dataset": run.manifest.dataset, "fingerprint": run.manifest.fingerprint}
        temporary = run.path / "confirm" / "confirm.json.tmp"
        temporary.write_text(json.dumps(content, indent=2) + "\n")
        temporary.replace(run.path / "confirm" / "confirm.json")
        with Mirror(run, console):
            pass  # brings it to the run's storage, after the timed trainings
    _show(run, rows, console)


def confirm_seed(search_seed: int, index: int) -> int:
    """Fresh seed number `index`: common to all candidates, of another stream than the search's seeds."""
    return stream(search_seed, 3, index)


def _train_all(run: Run, candidates: list[FrozenTrial], seeds: int, dataset: Dataset, console: Console) -> None:
    """Train what is missing, all candidates on one seed before the next seed, and append each result."""
    done = {(result["trial"], result["seed"]) for results in _results(run).values() for result in results}
    wanted = [(trial, confirm_seed(run.manifest.seed, index)) for index in range(seeds) for trial in candidates]
    missing = [(trial, seed) for trial, seed in wanted if (trial.number, seed) not in done]
    if not missing:
        return
    columns = [TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()]
    with (
        _training(run, dataset) as training,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        epochs = run.space.base.epochs
        bar = progress.add_task("epochs", total=len(missing) * epochs)
        for trial, seed in missing:
            progress.update(bar, description=f"trial {trial.number}, seed {seed}")
            for metrics in training(run.config(trial), seed):  # noqa: B007  the last epoch is the result
                progress.advance(bar)
            result = {"trial": trial.number, "seed": seed, **asdict(metrics), "threads": torch.get_num_threads()}
            result["diverged"] = metrics.diverged
            with (run.path / "confirm" / "runs.jsonl").open("a") as file:
                file.write(json.dumps(result) + "\n")
            console.print(
                f"trial {trial.number}, seed {seed}: test acc {100 * metrics.acc:.2f}%, {metrics.train_s:.1f} s"
            )


@contextmanager
def _training(run: Run, dataset: Dataset) -> Iterator[Callable[[Config, int], Iterator[EpochMetrics]]]:
    """A function of config and seed that trains as the run's trials did: in this process, or over as many ranks."""
    ranks = run.manifest.ranks
    if ranks > 1:
        with Ranks(dataset, ranks, threads=max(1, torch.get_num_threads() // ranks)) as group:
            yield lambda config, seed: group.train(config, seed=seed)
    else:
        data = to_device(dataset, best_device())
        yield lambda config, seed: train(config, data, seed=seed)


def _results(run: Run) -> dict[int, list[dict[str, Any]]]:
    """Finished trainings by trial number."""
    results: dict[int, list[dict[str, Any]]] = defaultdict(list)
    file = run.path / "confirm" / "runs.jsonl"
    for line in file.read_text().splitlines() if file.exists() else []:
        result = json.loads(line)
        results[result["trial"]].append(result)
    return results


def _row(run: Run, trial: FrozenTrial, results: list[dict[str, Any]]) -> dict[str, Any]:
    """n, mean, SD and 95% t-interval of the test accuracy (fractions), and the median training time, of one config."""
    accs = [result["acc"] for result in results]
    n = len(accs)
    sd = statistics.stdev(accs) if n > 1 else None
    half = stats.t.ppf(0.975, n - 1) * sd / math.sqrt(n) if sd is not None else None
    mean = statistics.fmean(accs)
    return {
        "trial": trial.number,
        "params": trial.params,
        "n": n,
        "mean_acc": mean,
        "sd_acc": sd,
        "ci95_acc": [max(0.0, mean - half), min(1.0, mean + half)] if half is not None else None,
        "median_train_s": statistics.median(result["train_s"] for result in results),
        "search_val_acc": final_acc(trial),
        "diverged": sum(result["diverged"] for result in results),
    }


def confirmed_rows(run: Run) -> list[dict[str, Any]]:
    """The rows of confirm.json, best mean first; empty before tune.confirm has run."""
    file = run.path / "confirm" / "confirm.json"
    return json.loads(file.read_text())["rows"] if file.exists() else []


def _show(run: Run, rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(title=f"{run.name}: test accuracy on fresh seeds", title_justify="left")
    for column in ["trial", "n", "mean", "SD", "95% interval", "median time", "search val"]:
        table.add_column(column, justify="right")
    for row in rows:
        name = "0 (base)" if row["trial"] == 0 else str(row["trial"])
        interval = (
            f"{100 * row['ci95_acc'][0]:.2f} .. {100 * row['ci95_acc'][1]:.2f}" if row["ci95_acc"] else "needs n > 1"
        )
        table.add_row(
            name,
            str(row["n"]),
            f"{100 * row['mean_acc']:.2f}%",
            f"{100 * row['sd_acc']:.2f}" if row["sd_acc"] is not None else "-",
            interval,
            f"{row['median_train_s']:.1f} s",
            f"{100 * row['search_val_acc']:.2f}%" if row["search_val_acc"] is not None else "stopped",
        )
    console.print(table)
    for row in rows:
        console.print(
            f"trial {row['trial']}: {', '.join(f'{name}={short(value)}' for name, value in row['params'].items())}"
        )
    console.print(
        "Seeds are common to all rows, fresh, and none was used in the search. Intervals are t-intervals of each mean "
        "alone; where they overlap, the order may be luck: add --seeds."
    )


if __name__ == "__main__":
    run_command(main, Options, prog="python -m tune.confirm", interrupted="interrupted; the same command goes on")
