"""`python -m tune.confirm RUN`: which of the best configs really beats the base, on fresh seeds and the test set.

The best configs and the base are trained on all training images with seeds that the search never used, first in
halving rounds, then the winner against the base until their difference is decided (`tune.halving`), judged by
intervals that hold however often one looks (`tune.evidence`). A training has its device to itself, so that its time is
a time. Each one is appended to confirm/runs.jsonl when it ends; the same command goes on where it was stopped, and
more seeds or a larger top continue the same sequence.
"""

import json
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Annotated, Any

import torch
import tyro
from optuna.trial import FrozenTrial
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from model.command import run_command
from model.config import InputError
from model.data import Dataset, describe
from model.files import parse_json, typed_dict, write_whole
from model.machine import usable_cores
from model.ranks import RankError
from model.train import EpochMetrics
from model.weights import save_weights
from tune.confirm_table import show
from tune.confirmed import FILE
from tune.evidence import ALPHA
from tune.halving import Race
from tune.limits import epoch_flops
from tune.mirror import Mirror, run_folder
from tune.panel import new_console
from tune.places import Place, open_places
from tune.run import Run, final_acc, here, repair
from tune.searcher import stream
from tune.tensorboard import confirm_events
from tune.verdict import candidate_row, first_shares, verdict

VERSION = 1
RESULT = {"trial": int, "seed": int, "acc": float, "train_s": float, "diverged": bool}
"""what a line of runs.jsonl has at least"""


@dataclass(frozen=True)
class Options:
    """Train the best configs of a run and its base on fresh seeds and all training images, score them on the test set,
    and say which is better."""

    run: Annotated[str, tyro.conf.Positional]
    """the run folder, or the URI of a run in a store, which is then fetched into runs/"""
    top: int = 8
    """how many of the best configs"""
    seeds: int = 16
    """the most fresh seeds of a config; more, given later, continue the same sequence"""
    target_acc: float | None = None
    """test accuracy (0..1) of which you want to know how often it is reached"""
    practical: float = 0.1
    """accuracy points that make no difference to you: closer configs tie, and ties go to the cheaper one, which has
    only to be no worse by more than that"""
    budget_s: float | None = None
    """start no further training after so many seconds; the same command goes on"""
    data: str | None = None
    """where the run's data are now, if they moved"""
    threads: int | None = None
    """CPU threads (default: all cores)"""


def main(options: Options) -> None:
    console = new_console()
    _check(options)
    run = Run(run_folder(str(options.run), Path("runs"), console))
    if run.manifest.scale:
        raise InputError(
            f"{options.run} is an experiment, whose cells share their seeds already: tune.report shows what it found, "
            f"tune.search --resume {options.run} --trials N adds seeds"
        )
    ranking = run.ranking()
    if not ranking:
        from tune.announce import why_none_ended  # takes a second to load

        raise InputError(f"{options.run}: nothing to confirm: {'; '.join(why_none_ended(run))}")
    dataset = run.dataset(options.data)
    torch.set_num_threads(options.threads or min(torch.get_num_threads(), usable_cores()))
    with run.lock():
        for line in repair(run):
            console.print(f"repaired: {line}")
        (run.path / "confirm").mkdir(exist_ok=True)
        confirmation = Confirmation(run, ranking, dataset, options, console)
        console.print(describe(dataset))
        console.print(
            f"confirm: {len(confirmation.race.challengers)} configs and the base on fresh seeds, up to {options.seeds} "
            f"each, on all {len(dataset.train_labels):,} training images, {run.space.base.epochs} epochs"
        )
        try:
            confirmation.train(options.budget_s)
        except RankError as error:
            raise InputError(f"{error}; the trainings before are kept, and the same command goes on") from error
        finally:
            content = confirmation.write()
            with Mirror(run, console):
                pass  # brings it to the run's storage, after the timed trainings
    if content:
        show(run.name, content, console)


def _check(options: Options) -> None:
    for name, value in [("top", options.top), ("seeds", options.seeds), ("threads", options.threads)]:
        if value is not None and value < 1:
            raise InputError(f"--{name} {value}: it must be 1 or more")
    if options.target_acc is not None and not 0 < options.target_acc <= 1:
        raise InputError(f"--target-acc {options.target_acc}: it must be above 0 and at most 1, as in 0.94 for 94%")
    if not 0 <= options.practical < 100:
        raise InputError(f"--practical {options.practical}: it must be accuracy points from 0 to below 100, as in 0.1")
    if options.budget_s is not None and not options.budget_s > 0:
        raise InputError(f"--budget-s {options.budget_s}: it must be above 0")


def confirm_seed(search_seed: int, index: int) -> int:
    """Fresh seed number `index`: common to all candidates, of another stream than the search's seeds."""
    return stream(search_seed, 3, index)


class Confirmation:
    """The finished trainings of a run's candidates, and those to come."""

    def __init__(
        self, run: Run, ranking: list[FrozenTrial], dataset: Dataset, options: Options, console: Console
    ) -> None:
        self._run, self._dataset, self._console = run, dataset, console
        self._record, self._here = Lock(), here()
        self._target, self._full_trials = options.target_acc, len(ranking)
        self._trials = {trial.number: trial for trial in run.study().get_trials(deepcopy=False)}
        self._results: dict[int, dict[int, dict[str, Any]]] = defaultdict(dict)  # of each trial, by number of the seed
        seeds = [confirm_seed(run.manifest.seed, index) for index in range(10_000)]
        index_of = {seed: index for index, seed in enumerate(seeds)}
        for result in _lines(run.path / "confirm" / "runs.jsonl"):
            if result["seed"] in index_of:
                self._results[result["trial"]][index_of[result["seed"]]] = result
        best = [trial.number for trial in ranking if trial.number != 0]
        tried = [number for number in self._results if number != 0 and number in self._trials]
        challengers = list(dict.fromkeys([*best[: options.top], *tried]))  # whoever was tried counts
        self.race = Race(
            challengers=challengers,
            base=0,
            most_seeds=options.seeds,
            practical=options.practical / 100,
            resolution=1 / len(dataset.eval_labels),
            flops={number: self._flops(number) for number in [*challengers, 0]},
        )

    def _flops(self, number: int, epochs: int | None = None) -> float:
        """Of training this trial's config for so many epochs, else for all of its own."""
        config = self._run.config(self._trials[number])
        of_one = epoch_flops(config, len(self._dataset.classes), len(self._dataset.train_labels))
        return of_one * (config.epochs if epochs is None else epochs)

    def _sequences(self) -> dict[int, list[dict[str, Any]]]:
        """Results of each candidate without gaps, from the first seed on."""
        sequences = {}
        for number, by_index in self._results.items():
            whole = next(index for index in range(len(by_index) + 1) if index not in by_index)
            sequences[number] = [by_index[index] for index in range(whole)]
        return sequences

    def _accs(self) -> dict[int, list[float]]:
        return {number: [result["acc"] for result in results] for number, results in self._sequences().items()}

    def train(self, budget_s: float | None) -> None:
        """Train until all is decided, or the budget is over."""
        end_s = time.monotonic() + budget_s if budget_s else None
        if not self.race.to_train(self._accs()):
            return
        columns = [TextColumn("{task.description}"), MofNCompleteColumn(), TextColumn("epochs")]
        columns += [TimeElapsedColumn(), TextColumn("at most"), TimeRemainingColumn()]
        with (
            open_places(self._dataset, self._run.manifest.ranks) as places,
            Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal) as bar,
        ):
            self._bar, self._task = bar, bar.add_task("", total=None)
            while todo := self.race.to_train(self._accs(), pairs=max(1, len(places) // 2)):
                if end_s is not None and time.monotonic() > end_s:
                    self._console.print(f"the {budget_s:g} s of --budget-s are over; the same command goes on")
                    return
                # as many as there are devices, so that the budget is looked at in between
                self._round(todo[: len(places)] if end_s is not None else todo, places)

    def _round(self, todo: list[tuple[int, int]], places: list[Place]) -> None:
        """Train these (trial, number of seed), as many at once as there are devices."""
        accs = self._accs()
        left = len(self.race.rounds(accs)[-1][1])
        epochs, most = self._run.space.base.epochs, self.race.most_left(accs)
        done = self._bar.tasks[0].completed
        description = f"{left} challenger{'s' if left > 1 else ''} left, {most} trainings at most"
        self._bar.update(self._task, description=description, total=done + most * epochs)
        if len(places) == 1:
            for number, index in todo:
                self._train_one(places[0], number, index)
            return
        free: SimpleQueue[Place] = SimpleQueue()
        for place in places:
            free.put(place)

        def on_a_free_place(number: int, index: int) -> None:
            place = free.get()
            try:
                self._train_one(place, number, index)
            finally:
                free.put(place)

        with ThreadPoolExecutor(len(places)) as threads:
            futures = [threads.submit(on_a_free_place, *each) for each in todo]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                for place in places:
                    place.close()  # ends the trainings under way
                raise

    def _train_one(self, place: Place, number: int, index: int) -> None:
        config = self._run.config(self._trials[number])
        for metrics in place.train(config, confirm_seed(self._run.manifest.seed, index)):  # noqa: B007  the last counts
            self._bar.advance(self._task)
        with self._record:
            self._keep(number, index, metrics, place)

    def _keep(self, number: int, index: int, metrics: EpochMetrics, place: Place) -> None:
        """Put a finished training on record; the weights of the first seed are kept, whatever its accuracy."""
        config, seed = self._run.config(self._trials[number]), confirm_seed(self._run.manifest.seed, index)
        result = {"trial": number, "seed": seed, **asdict(metrics), "diverged": metrics.diverged}
        if metrics.diverged:  # a run like any other, of a net that guesses
            result |= {"acc": 1 / len(self._dataset.classes), "loss": None, "train_loss": None}
        result |= {
            "flops": self._flops(number, metrics.epoch),
            "peak_mib": place.peak_mib,
            "threads": torch.get_num_threads(),
            "device": place.name,
        }
        if index == 0 and not metrics.diverged:
            state = place.scored_state()
            facts = {"run": self._run.name, "trial": number, "seed": seed, "test_acc": metrics.acc}
            weights = self._run.path / weights_file(number)
            weights.parent.mkdir(exist_ok=True)
            save_weights(weights, state, config, self._dataset, **facts)
        with (self._run.path / "confirm" / "runs.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        self._results[number][index] = result
        if index == 0 and not metrics.diverged:  # what is only to be looked at comes last: the training is kept
            confirm_events(self._run.path / "confirm" / f"trial{number}", config, self._dataset, state, facts)
        acc = "diverged, counts as chance" if metrics.diverged else f"test acc {100 * metrics.acc:.2f}%"
        self._console.print(f"trial {number}, seed {index + 1}: {acc}, {metrics.train_s:.1f} s")
        self.write()

    def write(self) -> dict[str, Any] | None:
        """Bring confirm.json up to date and return it; None while the base has no result."""
        results = self._sequences()
        results = {number: results[number] for number in [*self.race.challengers, 0] if results.get(number)}
        if 0 not in results:
            return None
        accs = {number: [result["acc"] for result in own] for number, own in results.items()}
        shares, rounds = first_shares(accs), self.race.rounds(accs)
        rows = []
        for number in results:
            trial, row = self._trials[number], candidate_row(self.race, results, number, self._target)
            dropped = number != 0 and number not in rounds[-1][1]
            weights = weights_file(number)
            row |= {
                "params": trial.params,
                "epochs": self._run.config(trial).epochs,
                "search_val_acc": final_acc(trial) if trial.state.name == "COMPLETE" else None,
                "first_share": shares[number],
                "dropped_at_n": next(n for n, left in reversed(rounds) if number in left) if dropped else None,
                "weights": str(weights) if (self._run.path / weights).exists() else None,
            }
            rows.append(row)
        rows.sort(key=lambda row: -row["mean_acc"])
        manifest = self._run.manifest
        content = {
            "version": VERSION,
            "run": self._run.name,
            "dataset": manifest.dataset,
            "fingerprint": manifest.fingerprint,
            "counts": {"train": len(self._dataset.train_labels), "test": len(self._dataset.eval_labels)},
            "classes": list(self._dataset.classes),
            "machine": self._here["machine"],
            "versions": self._here["versions"],
            "threads": torch.get_num_threads(),
            "alpha": ALPHA,
            "practical_acc": self.race.practical,
            "target_acc": self._target,
            "chance_acc": 1 / len(self._dataset.classes),
            "rows": rows,
            "verdict": verdict(self.race, rows, self._full_trials),
        }
        write_whole(self._run.path / FILE, json.dumps(content, indent=2) + "\n")
        return content


def weights_file(number: int) -> Path:
    """Where the weights of a candidate's first fresh seed are, in the run folder."""
    return Path("confirm", "weights", f"trial{number}.safetensors")


def _lines(file: Path) -> list[dict[str, Any]]:
    try:
        lines = file.read_bytes().splitlines() if file.exists() else []
        return [typed_dict(RESULT, parse_json(line), needed=RESULT) for line in lines]
    except ValueError as error:
        raise InputError(f"{file} is damaged ({error}): take the damaged line out, its training is repeated") from error


if __name__ == "__main__":
    run_command(main, Options, prog="python -m tune.confirm", interrupted="interrupted; the same command goes on")
