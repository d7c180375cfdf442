"""How a search stands while it is at work: a panel, plain lines outside a terminal, and the record in status.json."""

import math
import os
import platform
import time
from collections import deque
from contextlib import suppress
from typing import Any, Self

from ray.tune import Callback
from ray.tune.experiment import Trial as RayTrial
from rich.console import Console
from rich.live import Live

from model.command import Stopped
from tune.announce import BEST, extent
from tune.lines import inert, percent
from tune.panel import View, draws, summary
from tune.run import Run
from tune.searcher import StudySearcher
from tune.snapshot import Row, Snapshot
from tune.trials import WORST, State, Trial

SHOWN = (State.DONE, State.RUNNING, State.PAUSED, State.STOPPED, State.FAILED)
WAITING, UNDER_WAY = 3, 16  # the most trials that are shown
DRAW_EVERY_S, WRITE_EVERY_S, SAY_EVERY_S = 0.5, 2.0, 60.0


class Progress(Callback):
    """Shows how the search stands, here and in RUN/status.json. Use as a context manager around the search.

    Snapshots are taken in the search's own thread; the one that draws sees the latest.
    """

    def __init__(self, run: Run, searcher: StudySearcher, console: Console, time_budget_s: float | None = None) -> None:
        self._run, self._searcher, self._trials, self._console = run, searcher, searcher.trials, console
        self._time_budget_s = time_budget_s
        self._began_s = self._said_s = time.monotonic()
        self._written_s = -math.inf
        self._busy: set[int] = set()  # trials under way
        self._recent: deque[tuple[float, float, tuple[str, int]]] = deque()
        """epochs that were trained of late: when each began, its cost in epochs of the base, host and process"""
        self._best: list[Trial] = []
        self._curve: list[list[float]] = []
        self._ends_seen = 0
        self._survey()
        self._snapshot = self._take("starting")
        self._live = Live(get_renderable=lambda: View(self._snapshot), console=console, transient=True)

    def __enter__(self) -> Self:
        self._show("starting")
        return self

    def begin(self) -> None:
        """The workers are about to start."""
        self._began_s = self._said_s = time.monotonic()
        self._show("running")
        if draws(self._console):
            self._live.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._live.stop()
        if kind is None:
            self._show("finished" if self._searcher.is_over() else "stopped")
        elif issubclass(
            kind, Stopped | SystemExit | BrokenPipeError
        ):  # the last two: nobody reads the output any longer
            self._show("stopped")
        else:
            self._show("interrupted" if issubclass(kind, KeyboardInterrupt) else "failed")

    def _show(self, state: str) -> None:
        """Take a snapshot and write it into the run folder."""
        self._survey()
        self._snapshot, self._taken_s = self._take(state), time.monotonic()
        self._written_s = self._taken_s
        with suppress(OSError):  # of a full disk they learn who write what must not be lost
            self._snapshot.write(self._run.path)

    def on_step_end(self, iteration: int, trials: list[RayTrial], **info: Any) -> None:
        now_s = time.monotonic()
        if now_s - self._written_s >= WRITE_EVERY_S:
            self._show("running")
        elif self._live.is_started and now_s - self._taken_s >= DRAW_EVERY_S:
            self._snapshot, self._taken_s = self._take("running"), now_s
        if not self._live.is_started and now_s - self._said_s >= SAY_EVERY_S:
            self._say(f"{len(self._busy)} of {self._searcher.slots} slots busy")

    def on_trial_start(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        self._busy.add(trial.config["number"])

    def on_trial_result(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, result: dict[str, Any], **info: Any
    ) -> None:
        if result["new_epochs"]:
            last = result["new_epochs"][-1]  # those before it are of earlier legs
            began_s = time.monotonic() - max(0.0, last["ended_s"] - last["began_s"])
            cost = self._trials.all[trial.config["number"]].cost
            self._recent.append((began_s, cost, (last["host"], last["pid"])))
            while len(self._recent) > max(32, 4 * self._searcher.slots):
                self._recent.popleft()

    def on_trial_complete(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        number = trial.config["number"]
        self._busy.discard(number)
        leg = self._trials.all[number]
        if not self._live.is_started or leg.state in (State.FAILED, State.RUNNING):
            reason = f": {inert(leg.reason, 300)}" if leg.reason else ""
            state = "broke off, to go on later" if leg.state == State.RUNNING else leg.state.value
            self._say(f"trial {number} {state}{reason} ({_reached(leg)})")

    on_trial_error = on_trial_complete

    def _say(self, what: str) -> None:
        self._console.print(f"{what} | {summary(self._take('running'))}")
        self._said_s = time.monotonic()

    def _take(self, state: str) -> Snapshot:
        trials, manifest = self._trials, self._run.manifest
        self._rank()
        eta_s, basis = self._eta()
        return Snapshot(
            run=self._run.name,
            state=state,
            pid=os.getpid(),
            host=platform.node(),
            written_s=time.time(),
            extent=extent(self._run),
            most_trials=manifest.trials,
            counts={each.value: trials.count(each) for each in SHOWN if trials.count(each)},
            bases=len(self._run.space.bases),
            base_epochs=self._run.space.base.epochs,
            spent_epochs=trials.spent,
            budget_epochs=self._searcher.budget,
            budget_given=manifest.budget is not None,
            eta_s=eta_s,
            eta_basis=basis,
            busy=len(self._busy),
            slots=self._searcher.slots,
            curve=self._curve,
            best=[_row(trial) for trial in self._best],
            waiting=[_row(trial) for trial in self._waiting if trial.state == State.PAUSED],
            under_way=[_row(trials.all[number]) for number in sorted(self._busy)[:UNDER_WAY]],
            stopped_epochs=self._left[State.STOPPED],
            paused_epochs=self._left[State.PAUSED],
            started_epochs=self._started,
            val_images=manifest.counts["val"],
        )

    def _survey(self) -> None:
        """What takes a look at each trial: epochs left by state, and who waits at the highest rungs."""
        waiting = self._trials.in_state(State.PAUSED)
        waiting.sort(key=lambda trial: (-trial.rung, -trial.accs[-1], trial.number))
        self._waiting = waiting[:WAITING]
        self._left = dict.fromkeys(State, 0.0)
        for trial in self._trials.all:
            self._left[trial.state] += trial.cost * (trial.epochs - trial.epoch)
        self._started = self._trials.spent + sum(self._left.values()) - self._left[State.FAILED]

    def _rank(self) -> None:
        """Take note of trials that came to their ends since the last time."""
        score = self._searcher.score
        for spent, number in self._trials.ends[self._ends_seen :]:
            trial = self._trials.all[number]
            self._best = sorted([*self._best, trial], key=lambda trial: (-score(trial), trial.number))[:BEST]
            if self._best[0] is trial:
                self._curve = [*self._curve, [spent, trial.accs[-1]]]
        self._ends_seen = len(self._trials.ends)

    def _eta(self) -> tuple[float | None, str]:
        """Seconds left and what they rest on, or what is waited for."""
        if len(self._recent) < max(1, len(self._busy)):
            return None, "waits for the first epoch of each slot" if self._busy else "waits for the workers to start"
        left = self._searcher.budget - self._trials.spent
        if left <= 0:
            return None, "the last trials come to their ends"
        slots = len({worker for _, _, worker in self._recent})
        cost = sum(cost for _, cost, _ in self._recent)
        took_s = time.monotonic() - min(began_s for began_s, _, _ in self._recent)
        left_s = left * took_s / cost
        if self._time_left_s() < left_s:
            return self._time_left_s(), "the rest of --time-budget-s"
        return left_s, f"from the last {_many(len(self._recent), 'epoch')} trained by {_many(slots, 'slot')}"

    def _time_left_s(self) -> float:
        """Of --time-budget-s."""
        return self._began_s + (self._time_budget_s or math.inf) - time.monotonic()


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _row(trial: Trial) -> Row:
    acc = trial.accs[-1] if trial.accs and trial.accs[-1] != WORST else None
    return Row(trial.number, trial.epoch, trial.epochs, acc, trial.params)


def _reached(trial: Trial) -> str:
    acc = _row(trial).acc
    return f"epoch {trial.epoch}, val acc {percent(acc)}" if acc is not None else f"{trial.epoch or 'no'} epochs"
