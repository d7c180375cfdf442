"""What a search shows: what it is about to do, a live panel (plain lines outside a terminal), the best configs."""

import math
import shlex
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from ray.tune import Callback
from ray.tune.experiment import Trial
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from model.data import Dataset, describe
from tune.plan import highest
from tune.run import Run
from tune.scheduler import Rungs

STATE_NAMES = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}


class Progress(Callback):
    """Trials by state, incumbent, ETA, slots busy. Use as a context manager around the search."""

    def __init__(self, run: Run, console: Console, *, slots: int) -> None:
        self._run, self._console, self.slots = run, console, slots
        self._study = run.study()
        self._start_s = time.monotonic()
        self._finished_before = sum(trial.state.is_finished() for trial in self._trials())
        self._busy: dict[int, str] = {}  # trials under way: number -> what it last reported
        self._live = Live(get_renderable=self._panel, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._busy[trial.config["number"]] = "starting"

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        if result["new_epochs"]:
            last = result["new_epochs"][-1]
            self._busy[trial.config["number"]] = f"epoch {last['epoch']}, val acc {100 * last['acc']:.2f}%"

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        number = trial.config["number"]
        last = self._busy.pop(number, "")
        if not self._console.is_terminal:
            record = self._trials()[number]
            reason = f": {record.user_attrs['reason']}" if "reason" in record.user_attrs else ""
            self._console.print(
                f"trial {number} {STATE_NAMES[record.state]}{reason} ({last or 'no epoch'}) | {self._summary()}",
                soft_wrap=True,
                highlight=False,
            )

    on_trial_error = on_trial_complete

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _summary(self) -> str:
        counts = self._counts()
        text = ", ".join(f"{counts[name]} {name}" for name in ("done", "stopped", "failed", "running") if counts[name])
        return f"{text} of {self._run.manifest.trials} | {self._incumbent()} | {self._eta()}"

    def _counts(self) -> dict[str, int]:
        states = [STATE_NAMES[trial.state] for trial in self._trials()]
        return {name: states.count(name) for name in STATE_NAMES.values()}

    def _incumbent(self) -> str:
        done = [trial for trial in self._trials() if trial.state == TrialState.COMPLETE]
        if not done:
            return "no full-length trial yet"
        best = max(done, key=lambda trial: trial.value or 0.0)
        return f"best val acc {100 * (best.value or 0.0):.2f}% (trial {best.number}, n = 1 seed)"

    def _eta(self) -> str:
        """Time left, from the mean time per trial finished since this process started."""
        finished = sum(trial.state.is_finished() for trial in self._trials())
        here = finished - self._finished_before
        if not here:
            return "ETA after the first finished trial"
        left_s = (time.monotonic() - self._start_s) / here * (self._run.manifest.trials - finished)
        return f"ETA {int(left_s // 60)}:{int(left_s % 60):02d}"

    def _panel(self) -> Panel:
        counts, total = self._counts(), self._run.manifest.trials
        finished = counts["done"] + counts["stopped"] + counts["failed"]
        body = Table.grid(padding=(0, 1))
        body.add_row(ProgressBar(total=total, completed=finished, width=30), Text(f"{finished}/{total} trials"))
        body.add_row("", Text(self._summary().partition(" of ")[0]))
        body.add_row("", Text(self._incumbent()))
        body.add_row("", Text(f"{self._eta()}, {len(self._busy)} of {self.slots} slots busy"))
        for number, state in sorted(self._busy.items())[:8]:
            body.add_row(Text(f"trial {number}", justify="right"), Text(state))
        return Panel(body, title=self._run.name, title_align="left", expand=False)


def announce(run: Run, dataset: Dataset, rungs: Rungs, console: Console) -> None:
    manifest, base = run.manifest, run.space.base
    console.print(describe(dataset), style="bold")
    if manifest.machine["gpus"]:
        machine = f"{len(manifest.machine['gpus'])} x {manifest.machine['gpus'][0]}"
    else:
        machine = f"{manifest.machine['cores']} cores of {manifest.machine['cpu']}, no GPU"
    console.print(
        f"machine: {machine}; a trial has {manifest.cpus_per_trial:g} CPUs and {manifest.gpus_per_trial:g} GPUs"
    )
    console.print(f"space: {manifest.space_name}, varying {', '.join(run.space.domains)}")
    console.print(f"base: {base.describe()}")
    stops = f"asha, rungs at epochs {rungs.rungs}, keeps 1 in {manifest.reduction_factor}" if rungs.rungs else "none"
    console.print(
        f"search: {manifest.trials} trials of {base.epochs} epochs, sampler {manifest.sampler}, scheduler {stops}, "
        f"seed {manifest.seed}"
    )
    longest_epochs = highest(run.space, "warmup_frac") * base.epochs
    if rungs.rungs and rungs.rungs[0] < longest_epochs:
        console.print(
            f"warning: the grace period of {rungs.rungs[0]} epochs is shorter than the longest warm-up of the space, "
            f"{longest_epochs:g} epochs: early rungs favour short warm-ups (--grace-epochs "
            f"{min(math.ceil(longest_epochs), base.epochs)} avoids it)",
            style="yellow",
        )
    console.print(f"run folder: {run.path}  (tensorboard --logdir {run.path.parent})")


def summarise(run: Run, console: Console) -> None:
    """The best configs, what they show, and the commands that come next."""
    ranking, base = run.ranking(), run.space.base
    started = len(run.study().get_trials(deepcopy=False))
    if not ranking:
        console.print(f"no trial ran to the end of its {base.epochs} epochs; continue with: {resume_command(run)}")
        return
    table = Table(
        title=f"{run.name}: best of {len(ranking)} full-length trials ({started} started)", title_justify="left"
    )
    for column in ["rank", "trial", "val acc", *run.space.domains]:
        table.add_column(column, justify="right", overflow="fold")
    shown = ranking[:5] + [trial for trial in ranking[5:] if trial.number == 0]
    for trial in shown:
        name = "0 (base)" if trial.number == 0 else str(trial.number)
        values = [short(trial.params[key]) for key in run.space.domains]
        table.add_row(str(ranking.index(trial) + 1), name, f"{100 * (trial.value or 0):.2f}%", *values)
    console.print(table)
    best, val = ranking[0].value or 0.0, run.manifest.counts["val"]
    error = 100 * math.sqrt(best * (1 - best) / val)
    console.print(
        f"What this shows: one seed each, {val:,} held-out images (standard error {error:.2f} points), and the best of "
        f"{len(ranking)} is partly luck. What it doesn't show: test accuracy, time, or that the first beats the second."
    )
    path = shlex.quote(_shortest(run.path))
    console.print("Next:")
    console.print(
        f"  {_python()} -m tune.confirm {path} --top 3 --seeds 3   # fresh seeds, test set, alone on the device"
    )
    console.print(f"  {_python()} -m tune.export {path} --top 3              # the configs as files")
    console.print(f"  {_python()} -m tensorboard.main --logdir {path}")


def short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _shortest(path: Path) -> str:
    """Relative to the current folder where that is below it."""
    with suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def _python() -> str:
    """What to type for the Python that runs this: the printed commands must work where no environment is active."""
    active = shutil.which("python") == sys.executable
    return "python" if active else shlex.quote(_shortest(Path(sys.executable)))


def resume_command(run: Run) -> str:
    return f"{_python()} -m tune.search --resume {shlex.quote(_shortest(run.path))}"
