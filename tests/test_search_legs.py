"""Whole searches whose trials train in legs: a kill while some wait, budgets, searched lengths, conditions."""

import os
import signal
from pathlib import Path

import psutil
import pytest
import torch
from optuna.trial import TrialState
from test_search import SMALL, epochs_of, epochs_or_none, start, wait_for

from tune.run import Run

HEAD = "from model.config import Config\nfrom search_spaces.space import Choice, LogUniform, SearchSpace, Uniform\n"


def checkpoints(run: Path) -> set[int]:
    return {int(file.parent.name) for file in run.glob("trials/*/checkpoint.pt")}


@pytest.mark.slow
def test_killed_while_trials_wait_it_goes_on_from_their_checkpoints(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "killed"
    rungs = ("--epochs", 9, "--grace-epochs", 1, "--trials", 12, "--sampler", "random")
    search = start(tmp_path, *SMALL, *rungs, "--name", run.name)
    wait_for(lambda: len([epochs for epochs in epochs_or_none(run).values() if epochs]) >= 4)
    os.killpg(search.pid, signal.SIGKILL)
    search.communicate()
    before = epochs_or_none(run)
    old = {metrics["pid"] for epochs in before.values() for metrics in epochs}
    wait_for(lambda: not any(map(psutil.pid_exists, old)))  # workers outlive the search for a moment
    waiting = {number for number, epochs in before.items() if len(epochs) in (1, 3)} & checkpoints(run)
    assert len(waiting) >= 2  # of four trials on two slots
    states = {trial.number: trial.state for trial in Run(run).study().trials}
    assert {states[number] for number in waiting} == {TrialState.RUNNING}
    kept = {number: torch.load(run / "trials" / str(number) / "checkpoint.pt")["history"] for number in waiting}

    search = start(tmp_path, "--resume", run)
    out, _ = search.communicate(timeout=240)
    assert search.returncode == 0, out
    after = epochs_of(run)
    assert len(after) == 12
    for number, epochs in after.items():
        assert [metrics["epoch"] for metrics in epochs] == list(range(1, len(epochs) + 1))
        assert epochs[: len(before.get(number, []))] == before.get(number, [])
    assert sum(len(epochs) > 1 for number, epochs in after.items() if number) >= 3  # a third of eleven was promoted
    for number, history in kept.items():  # the killed search may not have seen the last of them
        assert after[number][: len(history)] == history
        assert old.isdisjoint(metrics["pid"] for metrics in after[number][len(history) :])
    for trial in Run(run).study().trials:
        length = len(after[trial.number])
        assert trial.state == (TrialState.COMPLETE if length == 9 else TrialState.PRUNED) and length in (1, 3, 9)
        assert trial.intermediate_values == {metrics["epoch"]: metrics["acc"] for metrics in after[trial.number]}
    assert not checkpoints(run)


@pytest.mark.slow
def test_a_budget_with_conditions_and_a_searched_length(tmp_path: Path) -> None:
    """Trainings of 4 and of 8 epochs: a full training of the base is 4 epochs, and 5 of them are paid for."""
    (tmp_path / "mine.py").write_text(
        HEAD + "base = Config(width=2, epochs=4, batch_size=64)\n"
        "domains = {'epochs': Choice((4, 8)), 'solver': Choice(('sgd', 'adam')), 'lr_scale': LogUniform(0.1, 2.0),\n"
        "           'momentum': Uniform(0.5, 0.95, only_if={'solver': ('sgd',)})}\n"
        "SPACE = SearchSpace(base, domains)\n"
    )
    run = tmp_path / "runs" / "budget"
    args = (
        "--space",
        "mine.py",
        "--data",
        "digits",
        "--cpus-per-trial",
        1,
        "--grace-epochs",
        1,
        "--reduction-factor",
        2,
    )
    search = start(tmp_path, *args, "--budget", 5, "--name", run.name)
    out, _ = search.communicate(timeout=240)
    assert search.returncode == 0, out
    assert "5 full trainings" in out
    trials, epochs = Run(run).study().trials, epochs_of(run)
    spent = sum(map(len, epochs.values()))
    assert 20 <= spent < 20 + 2 * 4  # no leg begins beyond: each of two workers may go over by less than its leg
    assert {trial.params["epochs"] for trial in trials} == {4, 8}
    for trial in trials:
        assert ("momentum" in trial.params) == (trial.params["solver"] == "sgd")
        shares = len(epochs[trial.number]) / trial.params["epochs"]
        assert shares in (0.25, 0.5, 1) or trial.state == TrialState.FAIL
        assert trial.state.is_finished() and (shares == 1) == (trial.state == TrialState.COMPLETE)
    assert not checkpoints(run)

    search = start(tmp_path, "--resume", run, "--budget", 6)
    out, _ = search.communicate(timeout=240)
    assert search.returncode == 0, out
    after = epochs_of(run)
    assert {number: after[number] for number in epochs} == epochs and sum(map(len, after.values())) >= 24
