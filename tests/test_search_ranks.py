"""A search whose trials train over two processes each: kills of everything and of one rank."""

import os
import signal
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from test_ranks import alive
from test_search import epochs_of, epochs_or_none, start, wait_for

import tune.search
from tune.run import Manifest, Run

TWO_RANKS = ("--ranks-per-trial", 2, "--cpus-per-trial", 2, "--scheduler", "none", "--trials", 2, "--epochs", 25)


@pytest.mark.slow
def test_a_trial_over_two_ranks_survives_the_death_of_the_search_and_of_a_rank(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "ranks"
    args = ("--space", "lr_regimes", "--data", "digits", "--train-examples", 300, "--width", 1, *TWO_RANKS)
    search = start(tmp_path, *args, "--set", "batch_size=64", "--name", "ranks")
    wait_for(lambda: run.exists() and len(epochs_or_none(run).get(0, [])) >= 2)
    ranks = ranks_of(run)
    assert len(ranks) == 2
    os.killpg(search.pid, signal.SIGKILL)
    out, _ = search.communicate()
    assert "2 ranks per trial: a step of the base is" in out and "scaling efficiency" in out
    wait_for(lambda: not any(alive(pid) for pid in ranks), timeout_s=30)  # no orphans
    before = epochs_of(run)

    search = start(tmp_path, "--resume", run)
    wait_for(lambda: len(epochs_or_none(run).get(1, [])) >= 2)
    os.kill(ranks_of(run)[0], signal.SIGKILL)
    out, _ = search.communicate(timeout=240)
    assert search.returncode == 0, out
    after = epochs_of(run)
    for number, epochs in after.items():
        assert [metrics["epoch"] for metrics in epochs] == list(range(1, 26))
        assert epochs[: len(before.get(number, []))] == before.get(number, [])
    assert [trial.state for trial in Run(run).study().trials] == [TrialState.COMPLETE] * 2


def test_sharing_a_batch_that_does_not_pay_is_warned_about() -> None:
    on_gpus = manifest(ranks=2, gpus_per_trial=2.0)
    (line,) = tune.search.scaling_lines(on_gpus, 1.7)
    assert "1.70 times as fast as on one GPU (85% scaling efficiency)" in line
    _, warning = tune.search.scaling_lines(on_gpus, 0.9)
    assert "2 ranks are no faster than one" in warning and "--gpus-per-trial 1" in warning
    _, warning = tune.search.scaling_lines(manifest(ranks=2, gpus_per_trial=0.0), 0.9)
    assert "--ranks-per-trial 1" in warning


def manifest(**given: Any) -> Manifest:
    rest: dict[str, Any] = dict.fromkeys(field.name for field in fields(Manifest))
    return Manifest(**{**rest, "threads": 1, **given})


def ranks_of(run: Path) -> list[int]:
    """Process ids of the ranks under the worker that reported last."""
    worker = max((line for lines in epochs_or_none(run).values() for line in lines), key=lambda line: line["ended_s"])
    children = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_text()
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == worker["pid"] and "spawn_main" in command:
            children.append(int(folder.name))
    return sorted(children)
