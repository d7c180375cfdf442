"""Whole searches with real Ray workers on small data: the path a user walks, kills, placement."""

import json
import logging
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import tyro
from conftest import REPO
from optuna.trial import TrialState
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import tune.search
from benchmarks.kill import kill_and_resume
from model.config import Config, InputError, load_config, save_config
from model.machine import usable_cores
from model.recipes import s8
from tune.plan import new_run
from tune.run import Run

SMALL = ("--space", "lr_regimes", "--data", "digits", "--width", 2, "--cpus-per-trial", 1)


def epochs_of(run: Path) -> dict[int, list[dict[str, Any]]]:
    return {trial.number: Run(run).metrics(trial.number) for trial in Run(run).study().trials}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished search of 8 trials of 4 epochs, and what it printed."""
    folder = tmp_path_factory.mktemp("search")
    search = start(folder, *SMALL, "--trials", 8, "--epochs", 4, "--name", "first")
    out, _ = search.communicate(timeout=240)
    assert search.returncode == 0, out
    return folder / "runs" / "first", out


def start(folder: Path, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tune.search", *map(str, args)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_trials_are_complete_or_stopped_at_a_rung(finished: tuple[Path, str]) -> None:
    """4 epochs, the rung after two."""
    run, _ = finished
    trials, epochs = Run(run).study().trials, epochs_of(run)
    assert [trial.number for trial in trials] == list(range(8))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    for trial in trials:
        accs = {metrics["epoch"]: metrics["acc"] for metrics in epochs[trial.number]}
        assert list(accs) == list(range(1, len(accs) + 1))
        assert trial.intermediate_values == accs
        if trial.state == TrialState.COMPLETE:
            assert len(accs) == 4 and trial.value == accs[4]
        else:
            assert len(accs) == 2
        assert not (run / "trials" / str(trial.number) / "checkpoint.pt").exists()


def test_the_base_is_trial_0_and_both_workers_trained(finished: tuple[Path, str]) -> None:
    run, _ = finished
    assert Run(run).study().trials[0].params == Run(run).space.params_of(Run(run).space.base)
    pids = {metrics["pid"] for epochs in epochs_of(run).values() for metrics in epochs}
    assert len(pids) == min(2, usable_cores())


def test_it_ends_with_the_best_configs_and_commands_that_work(
    finished: tuple[Path, str], command: Callable, tmp_path: Path
) -> None:
    run, out = finished
    best = Run(run).ranking()[0]
    assert f"{100 * best.value:.2f}%" in out
    assert "held-out images" in out and "luck" in out
    commands = [shlex.split(line) for line in out.splitlines() if " -m " in line and line.startswith("  ")]
    assert [words[2] for words in commands] == ["tune.confirm", "tune.report", "tune.export", "tensorboard.main"]
    for words in commands[:-1]:  # the last one serves until it is stopped
        assert subprocess.run(words, cwd=run.parent.parent, env={**os.environ, "PYTHONPATH": str(REPO)}).returncode == 0
    rows = json.loads((run / "confirm" / "confirm.json").read_text())["rows"]
    assert max(row["n"] for row in rows) == 4 and 0 in {row["trial"] for row in rows}
    for row in rows:
        low, high = row["ci95_acc"] or (0, 1)
        assert low <= row["mean_acc"] <= high and row["median_train_s"] > 0
    exported = sorted((run / "best").glob("*.json"))
    assert len(exported) == min(3, len(Run(run).ranking()))
    content = json.loads((run / "confirm" / "confirm.json").read_text())
    recommended = next(row for row in content["rows"] if row["trial"] == content["verdict"]["recommended"])
    assert load_config(exported[0]) == Run(run).space.config(recommended["params"])


def test_an_exported_config_gives_the_searchs_accuracy_to_the_last_bit(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    run, _ = finished
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    subprocess.run([sys.executable, "-m", "tune.export", str(run)], env=environment, check=True)
    best = min((run / "best").glob("*.json"))
    provenance = json.loads(best.read_text())["provenance"]
    words = shlex.split(provenance["same_again"])
    subprocess.run([sys.executable, *words[1:], "--out", str(tmp_path / "again")], env=environment, check=True)
    lines = [json.loads(line) for line in (tmp_path / "again" / "metrics.jsonl").read_text().splitlines()]
    searched = epochs_of(run)[provenance["trial"]]
    for line, other in zip(lines, searched, strict=True):
        assert (line["acc"], line["loss"], line["train_loss"]) == (other["acc"], other["loss"], other["train_loss"])
    assert lines[-1]["acc"] == provenance["val_acc"]


def test_tensorboard_has_every_epoch_once_with_clean_tags(finished: tuple[Path, str]) -> None:
    run, _ = finished
    for trial in Run(run).study().trials:
        events = EventAccumulator(str(run / "trials" / str(trial.number)))
        events.Reload()
        tags = set(events.Tags()["scalars"])
        assert {"val/acc", "val/loss", "train/loss", "lr", "time/train_s"} <= tags
        assert ("final/acc" in tags) == (trial.state == TrialState.COMPLETE)
        logged = [(event.step, event.value) for event in events.Scalars("val/acc")]
        expected = [(metrics["epoch"], metrics["acc"]) for metrics in Run(run).metrics(trial.number)]
        assert [step for step, _ in logged] == [step for step, _ in expected]
        assert [value for _, value in logged] == pytest.approx([value for _, value in expected])
        assert events.Tags()["images"] == ["train/images"]
        assert "config/text_summary" in events.Tags()["tensors"]
        assert "_hparams_/session_start_info" in events.summary_metadata


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def test_several_bases(tmp_path: Path) -> None:
    """--base gives the base and further ones in place of the space's own, which otherwise follow the fitted base."""
    file = tmp_path / "space.py"
    file.write_text(
        "from model.config import Config\nfrom search_spaces.space import LogUniform, SearchSpace\n"
        "SPACE = SearchSpace(Config(), {'lr_scale': LogUniform(0.1, 10)}, more_bases=(Config(lr_scale=3.0),))\n"
    )
    save_config(tmp_path / "mine.json", Config(lr_scale=0.5, width=2, epochs=8, batch_size=64))
    for name, bases, rates in [("none", (), [1, 3]), ("one", ("s0",), [1]), ("two", ("s0", "mine.json"), [1, 0.5])]:
        given = [argument for base in bases for argument in ("--base", base.replace("mine", str(tmp_path / "mine")))]
        args = ["--space", str(file), "--data", "digits", "--width", "2", "--runs-dir", str(tmp_path), "--name", name]
        options = tyro.cli(tune.search.Options, args=[*args, *given, "--set", "epochs=8", "precision=fp32"])
        run, _ = new_run(options, Console(quiet=True))
        assert [base.lr_scale for base in Run(run.path).space.bases] == rates
        assert {(base.width, base.epochs, base.batch_size) for base in run.space.bases} == {(2, 8, 64)}
    save_config(tmp_path / "mine.json", Config(width=2, epochs=8, batch_size=64, cutout_px=3))
    with pytest.raises(InputError, match="a further base has cutout_px = 3, the base 8, and cutout_px doesn't vary"):
        new_run(replace(options, name="three"), Console(quiet=True))


def test_the_tricks_of_a_recipe_are_the_base_of_a_search(tmp_path: Path) -> None:
    """Everything but the tricks is fitted to the machine and the data; the domains stay those of the space."""
    options = tune.search.Options(
        space="lr_regimes", data="digits", base=("s8",), width=2, runs_dir=tmp_path, name="s8"
    )
    run, _ = new_run(options, Console(quiet=True))
    base = run.space.base
    assert replace(base, batch_size=512, epochs=10, width=64, precision="fp32") == s8()
    assert base.ghost_batch == 32 and base.batch_size == 64
    assert set(run.space.domains) == {"lr_scale", "warmup_frac", "bn_bias_lr_mult", "cutout_px"}
    other = run.space.config({"lr_scale": 0.5})
    assert other == replace(base, lr_scale=0.5) and other.whiten


@pytest.mark.slow
def test_more_trials_on_resume(finished: tuple[Path, str], tmp_path: Path) -> None:
    run = shutil.copytree(finished[0], tmp_path / "moved")  # a run folder may lie anywhere
    before = epochs_of(run)
    search = start(tmp_path, "--resume", run, "--trials", 10)
    out, _ = search.communicate(timeout=240)
    assert search.returncode == 0, out
    after = epochs_of(run)
    assert {number: after[number] for number in before} == before
    assert len(after) == 10 and all(trial.state.is_finished() for trial in Run(run).study().trials)


@pytest.mark.slow
def test_killed_twice_nothing_is_lost_and_nothing_twice(tmp_path: Path) -> None:
    counts = kill_and_resume(tmp_path, kills=2, trials=8, seed=1)
    assert counts["trials"] == 8


@pytest.mark.parametrize(
    ("signum", "to_all", "code", "state"),
    [
        (signal.SIGINT, False, 130, "interrupted"),
        (signal.SIGTERM, True, 143, "stopped"),  # as timeout, SLURM and systemd do: Ray's processes get it as well
        pytest.param(signal.SIGUSR1, False, 128 + signal.SIGUSR1, "stopped", marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, True, 129, "stopped", marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_it_cleanly_and_it_says_how_to_go_on(
    tmp_path: Path, signum: int, to_all: bool, code: int, state: str
) -> None:
    first = (*SMALL, "--trials", 40, "--epochs", 30, "--name", "stopped")
    search = start(tmp_path, *first)
    run = tmp_path / "runs" / "stopped"
    wait_for(lambda: any(epochs_or_none(run).values()))
    worker = next(epochs[-1]["pid"] for epochs in epochs_or_none(run).values() if epochs)
    of_worker, of_search = (os.getpriority(os.PRIO_PROCESS, pid) for pid in (worker, search.pid))
    assert of_worker == of_search  # trials have the priority that the search was started with
    begun = time.monotonic()
    (os.killpg if to_all else os.kill)(search.pid, signum)
    out, _ = search.communicate(timeout=60)
    assert time.monotonic() - begun < 20
    assert search.returncode == code, out
    assert "python -m tune.search --resume runs/stopped" in out
    assert "Traceback" not in out
    assert json.loads((tmp_path / "runs/stopped/status.json").read_text())["state"] == state
    if signum == signal.SIGINT:
        resumed = start(tmp_path, *first, "--resume", "runs/stopped", "--time-budget-s", 10)  # as people type it
        out, _ = resumed.communicate(timeout=120)
        assert resumed.returncode == 0, out
        assert json.loads((tmp_path / "runs/stopped/status.json").read_text())["state"] == "stopped"


@pytest.mark.slow
def test_a_killed_workers_trial_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "worker"
    search = start(tmp_path, *SMALL, "--trials", 2, "--epochs", 12, "--scheduler", "none", "--name", "worker")
    wait_for(
        lambda: run.exists() and len(epochs_or_none(run)) == 2 and min(map(len, epochs_or_none(run).values())) >= 2
    )
    victim, other = (epochs_of(run)[number][-1]["pid"] for number in (0, 1))
    os.kill(victim, signal.SIGKILL)
    out, _ = search.communicate(timeout=240)
    assert search.returncode == 0, out
    epochs = epochs_of(run)
    for number in (0, 1):
        assert [metrics["epoch"] for metrics in epochs[number]] == list(range(1, 13))
    assert {metrics["pid"] for metrics in epochs[1]} == {other}  # the other trial didn't notice
    pids = [metrics["pid"] for metrics in epochs[0]]
    assert pids[0] == victim and pids[-1] != victim
    assert [trial.state for trial in Run(run).study().trials] == [TrialState.COMPLETE] * 2


def epochs_or_none(run: Path) -> dict[int, list[dict[str, Any]]]:
    files = run.glob("trials/*/metrics.jsonl")
    return {int(file.parent.name): _lines(file) for file in files}


def wait_for(condition: Callable[[], object], timeout_s: float = 120) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


@pytest.mark.slow
def test_a_diverged_trial_fails_at_once_and_the_search_goes_on(tmp_path: Path) -> None:
    (tmp_path / "risky.py").write_text(
        "from model.config import Config\n"
        "from search_spaces.space import Choice, SearchSpace\n"
        "base = Config(width=2, epochs=20, batch_size=64, peak_lr=0.1)\n"
        "SPACE = SearchSpace(base, {'lr_scale': Choice((1.0, 1e6)), 'weight_decay': Choice((5e-4, 1.0))})\n"
    )
    args = ("--data", "digits", "--sampler", "random", "--scheduler", "none", "--epochs", 4)
    search = start(tmp_path, "--space", "risky.py", *args, "--trials", 8, "--name", "risky")
    out, _ = search.communicate(timeout=240)
    assert search.returncode == 0, out
    trials = Run(tmp_path / "runs" / "risky").study().trials
    assert len(trials) == 8 and trials[0].state == TrialState.COMPLETE
    diverged = [trial for trial in trials if trial.params["lr_scale"] == 1e6]
    assert diverged
    for trial in diverged:
        assert trial.state == TrialState.FAIL and "diverged at epoch" in trial.user_attrs["reason"]
        assert len(Run(tmp_path / "runs" / "risky").metrics(trial.number)) < 4
    assert "failed: diverged at epoch" in out


@pytest.mark.slow
def test_a_trial_that_runs_out_of_memory_fails_with_its_reason_and_the_search_goes_on(tmp_path: Path) -> None:
    """The kernel is told to give the workers no more memory: narrow nets go on fitting, wide ones fail."""
    (tmp_path / "widths.py").write_text(
        "from model.config import Config\n"
        "from search_spaces.space import Choice, SearchSpace, Uniform\n"
        "SPACE = SearchSpace(\n"
        "    Config(width=2, epochs=4, batch_size=512),\n"
        "    {'width': Choice((2, 64)), 'momentum': Uniform(0.85, 0.95)},\n"
        ")\n"
    )
    run = tmp_path / "runs" / "memory"
    args = ("--data", "digits", "--sampler", "random", "--scheduler", "none", "--cpus-per-trial", 1, "--epochs", 4)
    search = start(tmp_path, "--space", "widths.py", *args, "--seed", 3, "--trials", 8, "--name", "memory")
    wait_for(lambda: run.exists() and len(epochs_or_none(run)) == 2)
    for pid in {epochs[-1]["pid"] for epochs in epochs_or_none(run).values()}:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[0])
        allowed = pages * resource.getpagesize() + 100 * 2**20
        resource.prlimit(pid, resource.RLIMIT_AS, (allowed, resource.RLIM_INFINITY))
    out, _ = search.communicate(timeout=240)
    assert search.returncode == 0, out
    by_width = {width: [t for t in Run(run).study().trials if t.params["width"] == width] for width in (2, 64)}
    assert by_width[64]
    assert {trial.state for trial in by_width[2]} == {TrialState.COMPLETE}
    for trial in by_width[64]:
        assert trial.state == TrialState.FAIL and "memory" in trial.user_attrs["reason"]


@pytest.mark.slow
def test_a_full_disk_is_said_and_the_run_can_go_on(tmp_path: Path) -> None:
    """One trial's metrics go to /dev/full, where every write fails with the kernel's own 'No space left on device'."""
    run = tmp_path / "runs" / "full"
    search = start(tmp_path, *SMALL, "--trials", 3, "--epochs", 4, "--scheduler", "none", "--name", "full")
    wait_for(lambda: (run / "run.json").exists())
    (run / "trials" / "1").mkdir()
    (run / "trials" / "1" / "metrics.jsonl").symlink_to("/dev/full")
    out, _ = search.communicate(timeout=240)
    assert search.returncode == 2
    assert "No space left on device" in out and "--resume runs/full" in out and "Traceback" not in out
    (run / "trials" / "1" / "metrics.jsonl").unlink()
    resumed = start(tmp_path, "--resume", run)
    out, _ = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, out
    assert {number: len(epochs) for number, epochs in epochs_of(run).items()} == {0: 4, 1: 4, 2: 4}


@pytest.fixture
def four_gpus() -> Iterator[None]:
    """Ray told of four GPUs and enough cores."""
    ray.init(
        address="local",  # never a cluster that a killed search left behind
        num_cpus=8,
        num_gpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize(("gpus_per_trial", "slots"), [(0.5, 8), (1.0, 4)])
def test_every_slot_works_and_a_gpu_is_never_shared_by_more_than_asked(
    four_gpus: None, tmp_path: Path, gpus_per_trial: float, slots: int
) -> None:
    """Trials of a fraction of a second, far shorter than a worker's start-up."""
    options = tune.search.Options(
        space="lr_regimes",
        data="digits",
        trials=25 * slots,
        epochs=1,
        width=1,
        train_examples=100,
        gpus_per_trial=gpus_per_trial,
        cpus_per_trial=0.5,
        set=(("batch_size=16",),),
        name="slots",
        runs_dir=tmp_path,
    )
    tune.search.main(options)
    epochs = epochs_of(tmp_path / "slots")
    assert len(epochs) == 25 * slots
    gpu_of: dict[int, set[str]] = defaultdict(set)
    for metrics in (line for lines in epochs.values() for line in lines):
        assert len(metrics["gpus"]) == 1
        gpu_of[metrics["pid"]].add(metrics["gpus"][0])
    assert len(gpu_of) == slots  # every slot worked
    assert all(len(gpus) == 1 for gpus in gpu_of.values())  # and kept its own device
    workers_on = [sum(gpus == {gpu} for gpus in gpu_of.values()) for gpu in ("0", "1", "2", "3")]
    assert workers_on == [slots // 4] * 4


def test_a_ctrl_c_that_python_drops_is_raised_again_at_the_next_step() -> None:
    before = signal.getsignal(signal.SIGINT)
    with tune.search.Signals() as signals:
        signals.on_step_begin(0, [])
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signals.on_step_begin(1, [])
    assert signal.getsignal(signal.SIGINT) == before
