"""Seconds per near-empty trial on two slots: this project's whole path beside plain Ray Tune, in one run.

    python benchmarks/trial_overhead.py

Ours is the real search: proposals, one epoch of a one-channel net on 20 images, checkpoint, metrics, TensorBoard
events, Optuna journal. Plain Ray Tune runs a function that does nothing but report one number, as it comes (default)
and with reuse_actors. The clock runs from the end of the first trial to the end of the last, so that starting Ray and
importing torch count for nobody.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

REPO = Path(__file__).parent.parent


@dataclass(frozen=True)
class Options:
    """Time near-empty trials."""

    trials: int = 100
    """trials of ours and of Ray with reuse_actors"""
    default_trials: int = 20
    """trials of Ray's default, which takes seconds for each"""
    repeats: int = 3
    """measurements of each; the median is reported"""


def ours(trials: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        args = ["--space", "lr_regimes", "--data", "digits", "--train-examples", "30", "--trials", str(trials)]
        args += ["--width", "1", "--epochs", "1", "--set", "batch_size=16", "--cpus-per-trial", "1", "--name", "run"]
        environment = {**os.environ, "PYTHONPATH": str(REPO)}
        command = [sys.executable, "-m", "tune.search", *args]
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        code = (
            "from pathlib import Path; from tune.run import Run\n"
            "ends = [trial.datetime_complete for trial in Run(Path('runs/run')).study().trials]\n"
            "print((max(ends) - min(ends)).total_seconds() / (len(ends) - 1))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, env=environment, check=True, stdout=subprocess.PIPE
        )
        return float(done.stdout)


def plain_ray(trials: int, *, reuse_actors: bool) -> float:
    code = f"""
import logging, tempfile, time
import ray
from ray import tune
ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, num_cpus=2)
ends = []
class Ends(tune.Callback):
    def on_trial_complete(self, iteration, trials, trial, **info):
        ends.append(time.time())
def nothing(config):
    tune.report({{"acc": 0.5}})
tune.Tuner(
    nothing,
    param_space={{"lr": tune.uniform(0, 1)}},
    tune_config=tune.TuneConfig(num_samples={trials}, reuse_actors={reuse_actors}),
    run_config=tune.RunConfig(storage_path=tempfile.mkdtemp(), verbose=0, callbacks=[Ends()]),
).fit()
print("seconds", (max(ends) - min(ends)) / (len(ends) - 1))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, encoding="utf-8")
    return float(done.stdout.rpartition("seconds ")[2])


def main(options: Options) -> None:
    rows: dict[str, list[float]] = {"ours": [], "Ray, reuse_actors": [], "Ray, default": []}
    for repeat in range(options.repeats):
        rows["ours"].append(ours(options.trials))
        rows["Ray, reuse_actors"].append(plain_ray(options.trials, reuse_actors=True))
        rows["Ray, default"].append(plain_ray(options.default_trials, reuse_actors=False))
        print(
            f"repeat {repeat + 1}: " + ", ".join(f"{name} {times[-1]:.3f} s" for name, times in rows.items()),
            flush=True,
        )
    medians = {name: sorted(times)[len(times) // 2] for name, times in rows.items()}
    print(f"\nmedian seconds per trial, {options.repeats} repeats, 2 slots, {time.strftime('%Y-%m-%d')}:")
    for name, median in medians.items():
        print(f"  {name:18s} {median:.3f} s   {median / medians['ours']:5.1f} x ours")


if __name__ == "__main__":
    main(tyro.cli(Options))
