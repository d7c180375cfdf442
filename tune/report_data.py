"""What a report reads of a run folder: all that is whole, and in words what is missing. It writes and locks nothing."""

import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import RandomSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, TrialState

from model.config import InputError, load_config
from model.files import parse_json, typed_dict
from tune.confirmed import read_confirm
from tune.limits import epoch_flops, same_shape
from tune.objective import front
from tune.run import Run

DONE, STOPPED, FAILED, RUNNING = "full length", "stopped", "failed", "under way or waiting"
STATES = {TrialState.COMPLETE: DONE, TrialState.PRUNED: STOPPED, TrialState.FAIL: FAILED}
EPOCH = {"epoch": int, "acc": float | None, "ended_s": float, "began_s": float, "train_s": float | None, "pid": int}
"""of a line of metrics.jsonl"""
CLASSES = 10  # where confirm.json doesn't say it; the last layer is less than a thousandth of the arithmetic


@dataclass
class Seen:
    """A trial, as far as it is on disk."""

    number: int
    params: dict[str, Any]
    state: str
    epochs: int
    """length of its full training"""
    pauses: list[int]
    """epochs at which it reaches each rung"""
    value: float | None = None
    """what the search ranks it by, for a full-length one"""
    cost: float | None = None
    """of a full-length one, where the objective weighs it"""
    reason: str = ""
    accs: list[float] = field(default_factory=list)
    """val accuracy after each epoch, 0..1; those before it diverged"""
    began_s: list[float] = field(default_factory=list)
    """wall clock, by epoch; empty where metrics.jsonl is missing"""
    ended_s: list[float] = field(default_factory=list)
    workers: list[tuple[str, int]] = field(default_factory=list)
    """host and process, by epoch"""
    last: dict[str, Any] = field(default_factory=dict)
    """of an experiment: the last epoch of metrics.jsonl that is whole"""

    @property
    def is_full(self) -> bool:
        return self.state == DONE and bool(self.accs)


@dataclass
class RunData:
    """What is known of a run."""

    run: Run
    trials: list[Seen]
    confirm: dict[str, Any] | None
    """confirm.json; every row has at least trial, n and mean_acc"""
    missing: list[str]
    """sentences: what could not be read"""
    confirm_s: float = math.inf
    """when confirm.json was written"""

    @property
    def full(self) -> list[Seen]:
        return [trial for trial in self.trials if trial.is_full]

    @property
    def base(self) -> Seen | None:
        return next((trial for trial in self.trials if trial.number == 0), None)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.confirm["rows"] if self.confirm else []

    @property
    def rungs(self) -> list[int]:
        return self.run.trials().rungs

    def of(self, number: int) -> Seen | None:
        return next((trial for trial in self.trials if trial.number == number), None)

    def row(self, number: int) -> dict[str, Any] | None:
        return next((row for row in self.rows if row["trial"] == number), None)

    def ranking(self) -> list[Seen]:
        """Full-length trials, best first, as `Run.ranking` has them."""
        full = self.full
        beaten = dict.fromkeys((trial.number for trial in full), False)
        if self.run.objective.kind == "pareto":
            points = [(trial.accs[-1], trial.cost or self.flops(trial.params)) for trial in full]
            beaten = {trial.number: not best for trial, best in zip(full, front(points), strict=True)}
        return sorted(full, key=lambda trial: (beaten[trial.number], -(trial.value or 0.0), trial.number))

    def best(self) -> Seen | None:
        """The trial that confirm recommends, else the search's best."""
        verdict = (self.confirm or {}).get("verdict") or {}
        ranking = self.ranking()
        return self.of(verdict.get("recommended", -1)) or (ranking[0] if ranking else None)

    def flops(self, params: dict[str, Any]) -> float:
        """Floating-point operations of a full training in the search. Where nets of several shapes were trained, they
        are counted: the first takes 3 s, each further shape 0.1 s."""
        config, known = self.run.space.config(params), self.run.manifest.epoch_flops
        if known and same_shape(config, self.run.space.base):
            return config.epochs * known
        classes = len((self.confirm or {}).get("classes") or range(CLASSES))
        return config.epochs * epoch_flops(config, classes, self.run.manifest.counts["train"])


class _Journal(BaseJournalBackend):
    """journal.log as it is at the first reading, up to its first damaged line; for Optuna's storage."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.damage = ""

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        if log_number_from:
            return  # a search may be writing: later lines belong to the next report
        with self._file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                entry = _parsed(line, {})
                if entry is None:
                    rest = sum(1 for _ in lines)
                    whole = line.endswith(b"\n")
                    self.damage = (
                        f"journal.log is damaged in line {number}: it and the {rest} lines after it are left out"
                        if whole or rest
                        else "the last line of journal.log is half-written and left out: a search is writing it, or "
                        "was killed (resuming repairs it)"
                    )
                    return
                yield entry

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        raise io.UnsupportedOperation("a report writes no journal")


def read(path: Path) -> RunData:
    """Everything that can be read of the run folder at `path`.

    Raises:
        InputError: it is no run folder, or its run.json is damaged.
    """
    run = Run(path)
    missing: list[str] = []
    trials = _from_study(run, missing)
    if trials is None:
        trials = _from_folders(run, missing)
    _add_metrics(run, trials, missing)
    for trial in trials:  # without a study, the states follow from the epochs
        if trial.state == RUNNING and len(trial.accs) == trial.epochs:
            trial.state, trial.value = DONE, trial.accs[-1]
    if not trials:
        missing.append("no trial has been started yet")
    confirm = _confirm(run, missing)
    data = RunData(run, trials, confirm, missing)
    if confirm:
        data.confirm_s = (run.path / "confirm" / "confirm.json").stat().st_mtime
    return data


def _from_study(run: Run, missing: list[str]) -> list[Seen] | None:
    file = run.path / "journal.log"
    if not file.is_file():
        missing.append("journal.log, the Optuna study, is missing: params are taken from the trials' config.json")
        return None
    journal = _Journal(file)
    try:
        study = optuna.load_study(study_name="search", storage=JournalStorage(journal), sampler=RandomSampler())
        found = study.get_trials(deepcopy=False)
    except Exception as error:  # Optuna replays whatever stands there, and fails in as many ways
        kind = type(error).__name__
        missing.append(f"journal.log holds no readable study ({kind}: {error}): params are taken from config.json")
        return None
    if journal.damage:
        missing.append(journal.damage)
    return [_seen(run, trial) for trial in found]


def _seen(run: Run, trial: FrozenTrial) -> Seen:
    seen = _new(run, trial.number, trial.params)
    seen.state = STATES.get(trial.state, RUNNING)
    seen.value = trial.value if trial.state == TrialState.COMPLETE else None
    seen.cost = trial.user_attrs.get("cost")
    seen.reason = str(trial.user_attrs.get("reason", ""))
    seen.accs = [trial.intermediate_values[epoch] for epoch in sorted(trial.intermediate_values)]
    return seen


def _new(run: Run, number: int, params: dict[str, Any]) -> Seen:
    """Rungs as in `tune.trials`: at the same share of each trial's training, or with a target at the same FLOPs."""
    base, target = run.space.base, run.objective.target_acc
    epochs = int(params.get("epochs", base.epochs))
    pace = base.epochs / epochs
    if target is not None:
        images = run.manifest.counts["train"]
        pace = epoch_flops(run.space.config(params), CLASSES, images) / epoch_flops(base, CLASSES, images)
    return Seen(number, params, RUNNING, epochs, run.trials().pauses(epochs, pace))


def _from_folders(run: Run, missing: list[str]) -> list[Seen]:
    trials, unread = [], 0
    folders = run.path.glob("trials/*/")
    for folder in sorted(
        (folder for folder in folders if folder.name.isdecimal()), key=lambda folder: int(folder.name)
    ):
        try:
            config = load_config(folder / "config.json")
            trials.append(_new(run, int(folder.name), run.space.params_of(config)))
        except (InputError, OSError):
            unread += 1
    if unread:
        missing.append(f"config.json of {unread} trials can't be read: they are left out")
    return trials


def _add_metrics(run: Run, trials: list[Seen], missing: list[str]) -> None:
    gone = cut = 0
    for trial in trials:
        file = run.trial_dir(trial.number) / "metrics.jsonl"
        try:
            lines = file.read_bytes().splitlines(keepends=True)
        except OSError:
            gone += trial.state in (DONE, STOPPED) or bool(trial.accs)
            continue
        epochs = []
        for line in lines:
            entry = _parsed(line, EPOCH, needed=("epoch", "acc", "ended_s"))
            if entry is None:
                cut += 1
                break
            epochs.append(entry)
        _take(trial, epochs)
        if run.manifest.scale and epochs:
            trial.last = epochs[-1]
    if gone:
        missing.append(f"metrics.jsonl of {gone} trials is missing: their accuracies are the study's, without times")
    if cut:
        missing.append(
            f"metrics.jsonl of {cut} trials has a damaged or half-written line: from there on it is left out"
        )


def _take(trial: Seen, epochs: list[dict[str, Any]]) -> None:
    accs = []
    for entry in epochs:
        trained_s = entry.get("train_s") or 0.0
        before_s = (epochs[entry["epoch"] - 2].get("train_s") or 0.0) if 1 < entry["epoch"] <= len(epochs) else 0.0
        trial.ended_s.append(entry["ended_s"])
        trial.began_s.append(entry.get("began_s", entry["ended_s"] - (trained_s - before_s)))
        trial.workers.append((str(entry.get("host", "")), int(entry.get("pid", 0))))
        if entry.get("diverged") or entry["acc"] is None:
            trial.state = FAILED
            trial.reason = trial.reason or f"diverged at epoch {entry['epoch']}"
            break
        accs.append(float(entry["acc"]))
    if len(accs) >= len(trial.accs):
        trial.accs = accs


def _confirm(run: Run, missing: list[str]) -> dict[str, Any] | None:
    try:
        content = read_confirm(run.path)
    except (OSError, ValueError) as error:
        missing.append(f"confirm.json is damaged ({error}): run tune.confirm again, it keeps its runs")
        return None
    if content is None:
        under_way = run.path / "confirm" / "runs.jsonl"
        if under_way.is_file():
            count = under_way.read_bytes().count(b"\n")
            missing.append(
                f"confirm.json is not there yet: a confirmation is under way or broke off, {count} runs done"
            )
        return None
    return content if content["rows"] else None


def _parsed(line: bytes, kinds: Mapping[str, Any], needed: Iterable[str] = ()) -> dict[str, Any] | None:
    """The object in a line of JSON, of these types; None where it is damaged or not whole."""
    try:
        return typed_dict(kinds, parse_json(line), needed) if line.endswith(b"\n") else None
    except ValueError:
        return None
