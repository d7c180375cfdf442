"""What a search shows: what it is about to do, a live panel (plain lines outside a terminal), the best configs."""

import math
import shlex
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as RayTrial
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from model.data import Dataset, describe
from tune.plan import highest
from tune.run import Run, final_acc
from tune.searcher import StudySearcher
from tune.trials import State, Trial

SHOWN = (State.DONE, State.STOPPED, State.FAILED, State.PAUSED, State.RUNNING)


class Progress(Callback):
    """Trials by state, incumbent, ETA, slots busy. Use as a context manager around the search."""

    def __init__(self, run: Run, searcher: StudySearcher, console: Console) -> None:
        self._run, self._searcher, self._trials, self._console = run, searcher, searcher.trials, console
        self._start_s = time.monotonic()
        self._spent_before = self._trials.spent
        self._busy: dict[int, str] = {}  # trials under way: number -> what it last reported
        self._live = Live(get_renderable=self._panel, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def on_trial_start(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        number = trial.config["number"]
        self._busy[number] = _reached(self._trials.all[number]) or "starting"

    def on_trial_result(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, result: dict[str, Any], **info: Any
    ) -> None:
        if result["new_epochs"]:
            last = result["new_epochs"][-1]
            self._busy[trial.config["number"]] = f"epoch {last['epoch']}, val acc {100 * last['acc']:.2f}%"

    def on_trial_complete(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        number = trial.config["number"]
        self._busy.pop(number, None)
        leg = self._trials.all[number]
        if not self._console.is_terminal or leg.state in (State.FAILED, State.RUNNING):
            reason = f": {leg.reason}" if leg.reason else ""
            state = "broke off, to go on later" if leg.state == State.RUNNING else leg.state.value
            self._console.print(
                f"trial {number} {state}{reason} ({_reached(leg) or 'no epoch'}) | {self._summary()}",
                soft_wrap=True,
                highlight=False,
            )

    on_trial_error = on_trial_complete

    def _summary(self) -> str:
        return f"{self._counts()} of {extent(self._run)} | {self._incumbent()} | {self._eta()}"

    def _counts(self) -> str:
        counts = {state.value: self._trials.count(state) for state in SHOWN}
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count)

    def _incumbent(self) -> str:
        best = self._searcher.incumbent
        if not best:
            return "no full-length trial yet"
        return f"best val acc {100 * best.accs[-1]:.2f}% (trial {best.number}, n = 1 seed)"

    def _eta(self) -> str:
        """Time left, from the training done per second since this process started."""
        here = self._trials.spent - self._spent_before
        if not here:
            return "ETA after the first epochs"
        left = max(0.0, self._searcher.budget - self._trials.spent)
        left_s = (time.monotonic() - self._start_s) / here * left
        return f"ETA {int(left_s // 60)}:{int(left_s % 60):02d}"

    def _panel(self) -> Panel:
        full, spent = self._run.space.base.epochs, self._trials.spent
        body = Table.grid(padding=(0, 1))
        body.add_row(
            ProgressBar(total=self._searcher.budget, completed=min(spent, self._searcher.budget), width=30),
            Text(f"{spent / full:.1f} of {self._searcher.budget / full:.1f} full trainings"),
        )
        body.add_row("", Text(f"{self._counts()} of {extent(self._run)}"))
        body.add_row("", Text(self._incumbent()))
        body.add_row("", Text(f"{self._eta()}, {len(self._busy)} of {self._searcher.slots} slots busy"))
        for number, state in sorted(self._busy.items())[:8]:
            body.add_row(Text(f"trial {number}", justify="right"), Text(state))
        return Panel(body, title=self._run.name, title_align="left", expand=False)


def _reached(trial: Trial) -> str:
    return f"epoch {trial.epoch}, val acc {100 * trial.accs[-1]:.2f}%" if trial.accs and trial.accs[-1] >= 0 else ""


def extent(run: Run) -> str:
    """How much the search is asked to do."""
    parts = [f"{run.manifest.trials} trials"] if run.manifest.trials is not None else []
    parts += [f"{run.manifest.budget:g} full trainings"] if run.manifest.budget is not None else []
    return " and ".join(parts)


def announce(run: Run, dataset: Dataset, console: Console) -> None:
    """What the search is about to do."""
    manifest, base, rungs = run.manifest, run.space.base, run.trials().rungs
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
    stops = f"asha, rungs at epochs {rungs}" if rungs else "none"
    if run.objective.kind != "accuracy":
        target = f" of {100 * manifest.target_acc:g}% val acc" if manifest.target_acc else ""
        console.print(f"objective: {manifest.objective}{target}")
    console.print(
        f"search: {extent(run)} of {base.epochs} epochs, sampler {manifest.sampler}, scheduler {stops}, "
        f"seed {manifest.seed}"
    )
    longest_epochs = highest(run.space, "warmup_frac") * base.epochs
    if rungs and rungs[0] < longest_epochs:
        console.print(
            f"warning: the grace period of {rungs[0]} epochs is shorter than the longest warm-up of the space, "
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
    cost = {"time-to-target": "seconds", "accuracy": ""}.get(run.objective.kind, "FLOPs")
    for column in ["rank", "trial", "val acc", *([cost] if cost else []), *run.space.domains]:
        table.add_column(column, justify="right", overflow="fold")
    shown = ranking[:5] + [trial for trial in ranking[5:] if trial.number == 0]
    for trial in shown:
        name = "0 (base)" if trial.number == 0 else str(trial.number)
        values = [short(trial.params[key]) if key in trial.params else "" for key in run.space.domains]
        if cost == "FLOPs":
            values.insert(0, f"{trial.user_attrs['cost'] / base.epochs:.2f} x base")
        elif cost:
            values.insert(0, f"{trial.user_attrs['cost']:.1f}")
        table.add_row(str(ranking.index(trial) + 1), name, f"{100 * final_acc(trial):.2f}%", *values)
    console.print(table)
    best, val = final_acc(ranking[0]), run.manifest.counts["val"]
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
