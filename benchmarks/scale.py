"""How a search behaves as it grows: seconds per near-empty trial, proposals, memory, resuming; and how busy slots are.

    python -m benchmarks.scale --trials 3000

First a real search of near-empty trials (one epoch of a one-channel net on 27 images), in this process, with all that
a search does: proposals by the default sampler, Ray workers, checkpoints, metrics, TensorBoard events, journal. Then a
resume of it, timed from the start of the command to the beginning of the first new epoch. Then a search whose trials
take about five seconds, for the share of the time in which its slots train, score or save.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import tune.search
from model.command import run_command
from model.meter import peak_memory
from tune.run import Run
from tune.searcher import StudySearcher

WINDOWS = (10, 100, 300, 1000, 3000, 10_000, 30_000)
EARLY, LATE = 10, 300  # trials of one worker between which its memory should not grow


@dataclass(frozen=True)
class Options:
    """Measure a growing search."""

    trials: int = 1000
    """near-empty trials; 0 leaves that search out"""
    busy_trials: int = 40
    """trials of about five seconds; 0 leaves that search out"""
    width: int = 5
    """of the net in these"""


def main(options: Options) -> None:
    with tempfile.TemporaryDirectory() as folder:
        if options.trials:
            _near_empty(Path(folder), options.trials)
        if options.busy_trials:
            _busy(Path(folder), options)


def _near_empty(folder: Path, trials: int) -> None:
    proposals_s: list[float] = []
    suggest = StudySearcher.suggest

    def timed(self: StudySearcher, trial_id: str) -> Any:
        begun = time.perf_counter()
        leg = suggest(self, trial_id)
        if isinstance(leg, dict):
            proposals_s.append(time.perf_counter() - begun)
        return leg

    StudySearcher.suggest = timed  # type: ignore[method-assign]
    epochs = near_empty_search(folder / "empty", trials=trials)
    StudySearcher.suggest = suggest  # type: ignore[method-assign]
    run = Run(folder / "empty")
    assert len(epochs) == trials, "not every trial trained"
    ends_s = sorted(epoch["ended_s"] for epoch in epochs)
    print(f"near-empty trials, {len({epoch['pid'] for epoch in epochs})} slots")
    for first, last in pairwise([number for number in WINDOWS if number < trials] + [trials]):
        proposals_ms = sorted(1000 * each for each in proposals_s[first:last])
        print(
            f"  trials {first:6,} to {last:6,}: {(ends_s[last - 1] - ends_s[first - 1]) / (last - first):.4f} s each; "
            f"a proposal {statistics.median(proposals_ms):.1f} ms (95% within "
            f"{proposals_ms[int(0.95 * len(proposals_ms))]:.1f} ms)"
        )
    print(f"  the search's own process had at most {peak_memory(torch.device('cpu'))['rss_mib']:,.0f} MiB")
    for pid, peaks in resident(epochs).items():
        if len(peaks) >= LATE:
            early, late = peaks[EARLY - 1], peaks[LATE - 1]
            print(
                f"  worker {pid}: {early:.1f} MiB at its {EARLY}th trial, {late:.1f} at its {LATE}th "
                f"({100 * (late / early - 1):+.1f}%), {peaks[-1]:.1f} at its last"
            )
    begun_s = time.time()
    command = [sys.executable, "-m", "tune.search", "--resume", str(run.path), "--trials", str(trials + 2)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    first_s = min(epoch["began_s"] for number in (trials, trials + 1) for epoch in run.metrics(number))
    print(f"  resumed: {first_s - begun_s:.1f} s until the first new epoch began")


def _busy(folder: Path, options: Options) -> None:
    epochs = _search(folder / "busy", trials=options.busy_trials, width=options.width, epochs=8)
    by_worker = defaultdict(list)
    for epoch in epochs:
        by_worker[epoch["pid"]].append(epoch)
    # from when the last worker began to when the first one ran out of work
    begin_s = max(min(epoch["began_s"] for epoch in each) for each in by_worker.values())
    end_s = min(max(epoch["ended_s"] for epoch in each) for each in by_worker.values())
    busy_s = sum(max(0.0, min(epoch["ended_s"], end_s) - max(epoch["began_s"], begin_s)) for epoch in epochs)
    per_epoch_s = statistics.median(epoch["ended_s"] - epoch["began_s"] for epoch in epochs)
    share = busy_s / len(by_worker) / (end_s - begin_s)
    print(
        f"{options.busy_trials} trials of {8 * per_epoch_s:.1f} s if they run to the end: {len(by_worker)} slots were "
        f"{100 * share:.1f}% busy over {end_s - begin_s:.0f} s"
    )


def resident(epochs: list[dict[str, Any]], key: str = "rss_mib") -> dict[int, list[float]]:
    """Peak memory of each epoch, MiB, in the order in which a worker trained them, by pid."""
    peaks = defaultdict(list)
    for epoch in sorted(epochs, key=lambda epoch: epoch["ended_s"]):
        peaks[epoch["pid"]].append(epoch[key])
    return peaks


def near_empty_search(path: Path, **options: Any) -> list[dict[str, Any]]:
    """The epochs of a search whose trials have one each, of a one-channel net on 27 images."""
    return _search(path, train_examples=30, width=1, epochs=1, set=(("batch_size=16",),), **options)


def _search(path: Path, **options: Any) -> list[dict[str, Any]]:
    """The epochs of a search of digits into this folder, without its output."""
    given = {"space": "lr_regimes", "data": "digits", "cpus_per_trial": 1, **options}
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        tune.search.main(tune.search.Options(runs_dir=path.parent, name=path.name, **given))
    run = Run(path)
    return [epoch for trial in run.study().get_trials(deepcopy=False) for epoch in run.metrics(trial.number)]


if __name__ == "__main__":
    run_command(main, Options, prog="python -m benchmarks.scale")
