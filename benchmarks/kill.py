"""SIGKILL a search at random moments, resume it, and check that nothing was lost or done twice.

    python -m benchmarks.kill --kills 20

Each kill hits, by chance, the search with its whole process group, from before Ray is up to well into the trials, or
one of its workers while it trains. After a search was killed the run folder is compared with what it was before, and
the search is resumed; after a worker was killed it goes on by itself. In the end it is resumed to its end, and every
epoch that was ever on record must still be there, unchanged, and none twice.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from tune.run import Run

REPO = Path(__file__).parent.parent
EPOCHS = 20
STARTING = 0.3  # of the searches are killed within seconds, while they start; the others some time after an epoch
PER_TRIAL = 2  # workers of a trial that are killed; after the third the search would rightly give it up


@dataclass(frozen=True)
class Options:
    """Kill and resume a search."""

    kills: int = 20
    """how often"""
    trials: int = 80
    """trials of the search"""
    seed: int = 0
    """of the random moments"""


def kill_and_resume(folder: Path, *, kills: int, trials: int, seed: int, say: Any = print) -> dict[str, int]:
    """Run the whole thing in `folder`; returns what was counted.

    Raises:
        AssertionError: something was lost or doubled.
    """
    moments = random.Random(seed)
    run = folder / "runs" / "killed"
    new = ["--space", "lr_regimes", "--data", "digits", "--trials", str(trials), "--epochs", str(EPOCHS)]
    new += ["--width", "2", "--cpus-per-trial", "1", "--name", run.name]
    killed = {"searches": 0, "workers": 0}
    victims: Counter[int] = Counter()
    search = None
    while sum(killed.values()) < kills:
        before = _snapshot(run)
        if search is None:
            search = _start(folder, ["--resume", str(run)] if (run / "run.json").exists() else new)
            if moments.random() < STARTING:
                time.sleep(moments.uniform(0.5, 10))
            else:
                while search.poll() is None and _snapshot(run) == before:
                    time.sleep(0.1)
        time.sleep(moments.uniform(0, 4))
        if search.poll() is not None:
            assert search.returncode == 0, f"the search failed by itself:\n{(folder / 'output').read_bytes().decode()}"
            say(f"the search was finished after {sum(killed.values())} kills: give it more trials")
            break
        under_way = _under_way(run, victims) if moments.random() < 0.5 else []
        worker = moments.choice(under_way) if under_way else None
        if worker:
            number, pid = worker
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            victims[number] += 1
            killed["workers"] += 1
        else:
            os.killpg(search.pid, signal.SIGKILL)
            search.wait()
            search = None
            killed["searches"] += 1
        say(f"kill {sum(killed.values())} ({'a worker' if worker else 'the search'}): {_totals(_snapshot(run))}")
        _check(before, _snapshot(run))
        if not search:
            time.sleep(moments.choice([0.0, 2.0]))  # workers outlive the search for a moment: meet them, or not
    before = _snapshot(run)
    search = search or _start(folder, ["--resume", str(run)])
    assert search.wait(timeout=1800) == 0, (folder / "output").read_text(encoding="utf-8")
    after = _snapshot(run)
    _check(before, after)
    states = Counter(trial.state.name for trial in Run(run).study().get_trials(deepcopy=False))
    assert len(after) == trials and set(states) <= {"COMPLETE", "PRUNED"}, states
    for number, (_, epochs) in after.items():
        assert epochs, f"trial {number} has no epoch"
    assert not list(run.glob("trials/*/checkpoint*"))
    return {**killed, "trials": len(after), "epochs": sum(len(epochs) for _, epochs in after.values())}


def _under_way(run: Path, victims: Counter[int]) -> list[tuple[int, int]]:
    """Trials in training, with the worker of each, but for those that were hit too often."""
    return [
        (number, epochs[-1]["pid"])
        for number, (_, epochs) in sorted(_snapshot(run).items())
        if epochs and len(epochs) not in (EPOCHS // 2, EPOCHS)
        if victims[number] < PER_TRIAL and _is_worker(epochs[-1]["pid"])
    ]


def _is_worker(pid: int) -> bool:
    try:
        return b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _start(folder: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    with (folder / "output").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "tune.search", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(REPO)},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _snapshot(run: Path) -> dict[int, tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Config and epochs of each trial; a half-written last line is not an epoch yet."""
    trials = {}
    for folder in run.glob("trials/*"):
        file = folder / "metrics.jsonl"
        lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []
        config = folder / "config.json"
        if config.exists():
            content = json.loads(config.read_bytes())
            trials[int(folder.name)] = (content, [json.loads(line) for line in lines])
    return trials


def _totals(trials: dict[int, Any]) -> str:
    return f"{len(trials)} trials, {sum(len(epochs) for _, epochs in trials.values())} epochs recorded"


def _check(before: dict[int, Any], after: dict[int, Any]) -> None:
    for number, (config, epochs) in before.items():
        assert number in after, f"trial {number} is gone"
        assert after[number][0] == config, f"trial {number} has another config or seed"
        assert after[number][1][: len(epochs)] == epochs, f"trial {number} lost or changed an epoch"
    for number, (_, epochs) in after.items():
        numbers = [metrics["epoch"] for metrics in epochs]
        assert numbers == list(range(1, len(numbers) + 1)), f"trial {number} has epochs {numbers}"


def main(options: Options) -> None:
    with tempfile.TemporaryDirectory() as folder:
        counts = kill_and_resume(Path(folder), kills=options.kills, trials=options.trials, seed=options.seed)
    print(f"nothing lost, nothing twice: {counts}")


if __name__ == "__main__":
    main(tyro.cli(Options))
