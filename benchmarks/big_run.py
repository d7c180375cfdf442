"""What a large run costs those who look at it: seconds and peak memory of `tune.report` and `tune.status`.

    python -m benchmarks.big_run --trials 10000

The run is made up, through the same interfaces that a search writes with: `tune.run.create`, the Optuna study and
`Run.append_metrics`. Its trials are points of lr_regimes with learning curves of the usual form, seed noise, diverged
ones at high rates, and ASHA's stops in waves of 200 trials on 8 slots. Nothing is trained.
"""

import importlib.util
import json
import math
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import TrialState, create_trial
from rich.progress import track

import search_spaces
from model.command import run_command
from model.config import save_config
from tune.limits import epoch_flops
from tune.run import Manifest, Run, create, here
from tune.samplers import distribution
from tune.searcher import trial_seed
from tune.trials import Trials

EPOCHS, GRACE, ETA, WAVE, SLOTS, EPOCH_S = 16, 4, 3, 200, 8, 5.0
NOISE = 0.002  # SD of an accuracy
WATCH = """
import json, os, subprocess, sys, time
begun_s = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(json.dumps([time.perf_counter() - begun_s, usage.ru_maxrss, os.waitstatus_to_exitcode(status)]))
"""
"""runs a command from a small process: the kernel counts the memory of who starts a process as its own"""


@dataclass(frozen=True)
class Options:
    """Make a large run and time what reads it."""

    trials: int = 10_000
    """how many"""
    out: Path | None = None
    """make the run in this folder, as `big`, and keep it; one that is there is read again"""


def main(options: Options) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.out or Path(scratch)
        if not (folder / "big" / "run.json").exists():
            make(folder, options.trials)
        size_mib = sum(file.stat().st_size for file in (folder / "big").rglob("*") if file.is_file()) / 2**20
        print(f"{folder / 'big'}: {options.trials:,} trials, {size_mib:.0f} MiB")
        for module in ("tune.report", "tune.status"):
            if importlib.util.find_spec(module):
                _measure(module, folder / "big")


def _measure(module: str, run: Path) -> None:
    command = [sys.executable, "-c", WATCH, sys.executable, "-m", module, str(run)]
    answer = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    took_s, peak, code = json.loads(answer.stdout)
    mib = peak / (2**20 if sys.platform == "darwin" else 2**10)
    print(f"{module}: {took_s:.1f} s, peak memory {mib:,.0f} MiB, exit {code}")


def make(folder: Path, trials: int, seed: int = 0) -> Run:
    """A run named `big` of so many trials below the folder."""
    space = search_spaces.load("lr_regimes")
    space = space.with_base(replace(space.base, width=16, epochs=EPOCHS))
    manifest = Manifest(
        space_name="lr_regimes",
        space=space.to_dict(),
        data="cifar10",
        dataset="made-up curves",
        fingerprint="0" * 12,
        train_examples=None,
        counts={"train": 45_000, "val": 5_000},
        trials=trials,
        seed=seed,
        sampler="random",
        scheduler="asha",
        grace_epochs=GRACE,
        reduction_factor=ETA,
        cpus_per_trial=1.0,
        gpus_per_trial=0.0,
        threads=1,
        epoch_flops=epoch_flops(space.base, 10, 45_000),
        **here(),
    )
    run = create(folder, "big", manifest)
    writer = _Writer(run, np.random.default_rng(seed))
    for first in track(range(0, trials, WAVE), description="waves of 200 trials"):
        writer.wave(range(first, min(first + WAVE, trials)))
    return run


class _Writer:
    """Writes trials as a search does: study, config.json and metrics.jsonl."""

    def __init__(self, run: Run, rng: np.random.Generator) -> None:
        self._run, self._rng, self._study = run, rng, run.study()
        self._distributions = {name: distribution(domain) for name, domain in run.space.domains.items()}
        self._ids: dict[int, int] = {}
        self._free_s = [time.time() - 86_400.0] * SLOTS  # when each slot is free

    def wave(self, numbers: range) -> None:
        """Train all to the first rung, the best share of them to the next, and so on to the end."""
        rungs = Trials(EPOCHS, GRACE, ETA)
        stops = [*rungs.rungs, EPOCHS]
        curves = {number: self._start(number) for number in numbers}
        alive, before = list(numbers), 0
        for stop, share in zip(stops, [*rungs.shares, 0.0], strict=True):
            for number in alive:
                self._train(number, curves[number], before, stop)
            diverged = [number for number in alive if not np.isfinite(curves[number][before:stop]).all()]
            for number in diverged:
                reason = f"diverged at epoch {int(np.isnan(curves[number]).argmax()) + 1}"
                self._study._storage.set_trial_user_attr(self._ids[number], "reason", reason)
                self._study.tell(number, state=TrialState.FAIL)
            alive = [number for number in alive if number not in diverged]
            if stop == EPOCHS:
                for number in alive:
                    self._study.tell(number, float(curves[number][-1]))
                break
            alive.sort(key=lambda number: (number != 0, -curves[number][stop - 1]))  # the base is never stopped
            keep = max(1, int(len(alive) * share))
            for number in alive[keep:]:
                self._study.tell(number, state=TrialState.PRUNED)
            alive, before = alive[:keep], stop

    def _start(self, number: int) -> np.ndarray:
        params = self._run.space.params_of(self._run.space.base) if number == 0 else self._params()
        seed = trial_seed(0, number)
        self._study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=params,
                distributions=self._distributions,
                user_attrs={"seed": seed},
            )
        )
        self._ids[number] = self._study._storage.get_trial_id_from_study_id_trial_number(self._study._study_id, number)
        self._run.trial_dir(number).mkdir()
        config = self._run.space.config(params)
        save_config(self._run.trial_dir(number) / "config.json", config, run="big", trial=number, seed=seed)
        return self._curve(params)

    def _params(self) -> dict[str, Any]:
        log_lr, warmup, log_bias, cutout = self._rng.random(4)
        return {
            "lr_scale": float(128**log_lr / 8),
            "warmup_frac": float(0.05 + 0.45 * warmup),
            "bn_bias_lr_mult": float(64**log_bias),
            "cutout_px": int(13 * cutout),
        }

    def _curve(self, params: dict[str, Any]) -> np.ndarray:
        """Accuracy by epoch; NaN from where it diverges."""
        off = math.log2(params["lr_scale"] / 1.5)
        final = (
            0.93 - 0.004 * off**2 - 0.1 * (params["warmup_frac"] - 0.25) ** 2 - 1e-4 * (params["cutout_px"] - 5) ** 2
        )
        epochs = np.arange(1, EPOCHS + 1)
        slow = 1.5 + 2 * params["warmup_frac"] + 0.1 * max(0.0, off)  # epochs; a high rate pays late
        accs = 0.1 + (final - 0.1) * (1 - np.exp(-epochs / slow)) + self._rng.normal(0, NOISE, EPOCHS)
        if params["lr_scale"] > 8 and self._rng.random() < 0.6:
            accs[self._rng.integers(1, EPOCHS) :] = math.nan
        return np.clip(accs, 0.0, 1.0)

    def _train(self, number: int, curve: np.ndarray, before: int, stop: int) -> None:
        slot = int(np.argmin(self._free_s))
        lines = []
        for epoch in range(before + 1, stop + 1):
            acc, began_s = float(curve[epoch - 1]), self._free_s[slot]
            took_s = EPOCH_S * float(self._rng.uniform(0.9, 1.3))
            self._free_s[slot] = began_s + took_s
            diverged = not math.isfinite(acc)
            lines.append(
                {
                    **{"epoch": epoch, "train_loss": math.nan if diverged else 2 * (1 - acc), "split": "val"},
                    **{"acc": 0.1 if diverged else acc, "loss": math.nan if diverged else 2 * (1 - acc)},
                    **{"lr": 0.4, "train_s": EPOCH_S * epoch, "warm_up_s": 0.5, "diverged": diverged},
                    **{"host": f"node{slot // 4}", "pid": 1000 + slot, "gpus": []},
                    **{"began_s": began_s, "ended_s": began_s + took_s, "rss_mib": 900.0},
                }
            )
            if diverged:
                break
            self._study._storage.set_trial_intermediate_value(self._ids[number], epoch, acc)
        self._run.append_metrics(number, lines)


if __name__ == "__main__":
    run_command(main, Options, prog="python -m benchmarks.big_run")
