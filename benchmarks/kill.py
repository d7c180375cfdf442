"""SIGKILL a search at random moments, resume it, and check that nothing was lost or done twice.

    python benchmarks/kill.py --kills 20

Each round starts (or resumes) a search of digits in a process group of its own, waits a random time, kills the whole
group with SIGKILL, and compares the run folder before and after. When it has been killed often enough the search is
resumed to its end.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

REPO = Path(__file__).parent.parent
EPOCHS = 5


@dataclass(frozen=True)
class Options:
    """Kill and resume a search."""

    kills: int = 20
    """how often"""
    trials: int = 200
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
    new = [
        "--space",
        "lr_regimes",
        "--data",
        "digits",
        "--trials",
        str(trials),
        "--epochs",
        str(EPOCHS),
        "--width",
        "2",
    ]
    new += ["--cpus-per-trial", "1", "--name", run.name]
    done = 0
    while done < kills:
        arguments = ["--resume", str(run)] if (run / "run.json").exists() else new
        search = _start(folder, arguments)
        # from before Ray is up to well into the trials, which start after 6 to 12 seconds
        time.sleep(moments.uniform(1, 25))
        if search.poll() is not None:
            assert search.returncode == 0, f"the search failed by itself:\n{(folder / 'output').read_text()}"
            say(f"the search was finished after {done} kills: give it more trials")
            break
        os.killpg(search.pid, signal.SIGKILL)
        search.wait()
        done += 1
        say(f"kill {done}: {_totals(_snapshot(run))}")
        before = _snapshot(run)
        time.sleep(moments.choice([0.0, 2.0]))  # workers outlive the driver for a moment: meet them, or not
        _check(before, _snapshot(run))
    before = _snapshot(run)
    search = _start(folder, ["--resume", str(run)])
    assert search.wait(timeout=600) == 0, (folder / "output").read_text()
    after = _snapshot(run)
    _check(before, after)
    assert len(after) == trials
    for number, (_, epochs) in after.items():
        assert epochs, f"trial {number} has no epoch"
    return {"kills": done, "trials": len(after), "epochs": sum(len(epochs) for _, epochs in after.values())}


def _start(folder: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    with (folder / "output").open("w") as output:
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
        lines = file.read_text().split("\n")[:-1] if file.exists() else []
        config = folder / "config.json"
        if config.exists():
            trials[int(folder.name)] = (json.loads(config.read_text()), [json.loads(line) for line in lines])
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
