"""The run folder: everything one search knows, on disk, so that nothing finished is ever lost.

    run.json        what was asked: space, options, seed, data, versions, hardware
    journal.log     the Optuna study: params, state and values of every trial
    trials/NUMBER/  config.json, metrics.jsonl (a line per epoch), TensorBoard events, checkpoint.pt (latest only)
    confirm/        what tune.confirm found
    best/           exported configs

The folder is the truth: a resumed search rebuilds all it needs from it. It may be moved; no path in it matters. With
--storage, tune.mirror keeps a copy of it in an object store.
"""

import json
import math
import os
import platform
import shutil
import subprocess
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import RandomSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from model.config import Config, InputError
from model.data import Dataset, hold_out, take
from model.files import read_json, typed_dict, write_whole
from model.machine import usable_cores
from model.sources import load
from search_spaces.space import SearchSpace
from tune.lock import hold
from tune.objective import Objective, front
from tune.trials import Trials

optuna.logging.set_verbosity(optuna.logging.WARNING)

MANIFEST_VERSION = 1
PACKAGES = ("ray", "torch", "torchvision", "optuna", "tensorboard")


@dataclass(frozen=True)
class Resources:
    """What a leg of a search, from a start to a stop, gives each trial, but for `slots`."""

    cpus: float
    gpus: float
    """a share of one, or several"""
    ranks: int
    """processes that share each batch"""
    slots: int | None
    """the most trials at once, where that was asked for; else as many as there is room for"""

    @property
    def threads(self) -> int:
        """CPU threads of each rank."""
        return max(1, int(self.cpus) // self.ranks)


@dataclass(frozen=True)
class Manifest:
    """run.json: what was asked for. `tune.resume` says what of it may change when a run goes on."""

    space_name: str
    space: dict[str, Any]
    """base config and domains, from `SearchSpace.to_dict`"""
    data: str
    """the data source as given, paths absolute"""
    dataset: str
    fingerprint: str
    train_examples: int | None
    """as given: images trained on; None is all that aren't held out"""
    counts: dict[str, int]
    """images trained on and held out"""
    trials: int | None
    """the most that are started; None is no limit, then there is a budget"""
    seed: int
    sampler: str
    scheduler: str
    grace_epochs: int
    reduction_factor: int
    cpus_per_trial: float
    gpus_per_trial: float
    threads: int
    created: str
    machine: dict[str, Any]
    versions: dict[str, str]
    git_commit: str | None
    budget: float | None = None
    """what may be trained in all, in full trainings of the base; None: it follows from `trials`"""
    objective: str = "accuracy"
    target_acc: float | None = None
    """0..1, for an objective that has one"""
    epoch_flops: float | None = None
    """floating-point operations of an epoch of the base, on the images trained on; counting them takes seconds"""
    scale: str | None = None
    """of an experiment, else None"""
    measure: str | None = None
    """what an experiment measures on every net at the end of its training, a name of `model.diagnostics.MEASURES`"""
    ranks: int = 1
    """processes that share the batches of a trial, each with `threads` CPU threads"""
    storage: str | None = None
    """URI of the folder in an object store in which a copy of the run folder is kept under its name"""
    slots: int | None = None
    """the most trials at once, as asked for; None: as many as there is room for"""
    given_bases: list[str] | None = None
    """each --base as given; None: an earlier version made the run, and didn't say"""
    legs: list[dict[str, Any]] = field(default_factory=list)
    """`here` of each time that the run went on with another machine, other versions or another commit than before"""
    version: int = MANIFEST_VERSION

    @property
    def resources(self) -> Resources:
        """Of the last leg."""
        return Resources(self.cpus_per_trial, self.gpus_per_trial, self.ranks, self.slots)

    @property
    def last_leg(self) -> dict[str, Any]:
        """`here` where the run was last."""
        first = {"machine": self.machine, "versions": self.versions, "git_commit": self.git_commit}
        return self.legs[-1] if self.legs else first

    @property
    def machines(self) -> list[dict[str, Any]]:
        """Every machine on which the run was, once."""
        found: list[dict[str, Any]] = []
        for machine in (self.machine, *(leg["machine"] for leg in self.legs)):
            if machine not in found:
                found.append(machine)
        return found


class Run:
    """An existing run folder.

    Raises:
        InputError: the folder is no run, or its manifest is damaged or of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        file = self.path / "run.json"
        if not file.is_file():
            raise InputError(f"{path} is not a run folder: it has no run.json; name a folder that tune.search made")
        try:
            content = read_json(file)
            if content["version"] != MANIFEST_VERSION:
                raise InputError(f"{file} has version {content['version']}: this program reads {MANIFEST_VERSION}")
            unknown = [name for name in content if name not in {each.name for each in fields(Manifest)}]
            if unknown:
                raise InputError(
                    f"{file} says {', '.join(unknown)}, which this program doesn't know: a newer version made it; "
                    f"go on with that one"
                )
            kinds = {field.name: field.type for field in fields(Manifest)}
            self.manifest = Manifest(**typed_dict(kinds, content))
            self.space = SearchSpace.from_dict(self.manifest.space)
        except InputError:
            raise
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{file} is damaged ({error}): restore it from a copy, or start a new run") from error

    @property
    def name(self) -> str:
        return self.path.name

    def trial_dir(self, number: int) -> Path:
        return self.path / "trials" / str(number)

    def write_manifest(self, manifest: Manifest) -> None:
        self.manifest = manifest
        _write_manifest(self.path, manifest)

    def lock(self) -> AbstractContextManager[None]:
        """Hold the folder as its only writer.

        Raises:
            InputError: somebody else holds it.
        """
        return hold(self.path)

    def study(self) -> optuna.Study:
        """The Optuna study in journal.log.

        Raises:
            InputError: the journal holds no study.
        """
        try:
            # the study is a record here; proposals are made elsewhere, so its own sampler is the cheapest
            return optuna.load_study(study_name="search", storage=_storage(self.path), sampler=RandomSampler())
        except (KeyError, ValueError) as error:
            raise InputError(f"{self.path / 'journal.log'} holds no study ({error}): start a new run") from error

    def metrics(self, number: int) -> list[dict[str, Any]]:
        """The epochs recorded for a trial, in order; a number that was not finite reads None."""
        file = self.trial_dir(number) / "metrics.jsonl"
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []

    def append_metrics(self, number: int, epochs: list[dict[str, Any]]) -> None:
        with (self.trial_dir(number) / "metrics.jsonl").open("a", encoding="utf-8") as file:
            for metrics in epochs:
                finite = {
                    key: None if isinstance(value, float) and not math.isfinite(value) else value
                    for key, value in metrics.items()
                }
                file.write(json.dumps(finite, allow_nan=False) + "\n")

    def ranking(self) -> list[FrozenTrial]:
        """Trials that ran to the end, best first, the earlier one first where they tie. For the objective pareto those
        come first that no other beats in both accuracy and cost."""
        done = self.study().get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        beaten = dict.fromkeys((trial.number for trial in done), False)
        if self.objective.kind == "pareto":
            unbeaten = front([(final_acc(trial), trial.user_attrs["cost"]) for trial in done])
            beaten = {trial.number: not best for trial, best in zip(done, unbeaten, strict=True)}
        return sorted(done, key=lambda trial: (beaten[trial.number], -(trial.value or 0.0), trial.number))

    @property
    def objective(self) -> Objective:
        return Objective(self.manifest.objective, self.manifest.target_acc)  # type: ignore[arg-type]  # from JSON

    def trials(self) -> Trials:
        """No trials yet, with the rungs of this search."""
        grace = self.manifest.grace_epochs if self.manifest.scheduler == "asha" else None
        return Trials(self.space.base.epochs, grace, self.manifest.reduction_factor)

    def config(self, trial: FrozenTrial) -> Config:
        return self.space.config(trial.params)

    def dataset(self, source: str | None = None) -> Dataset:
        """Training images, as many as the search had if it had fewer than all, and the test set, from `source` or from
        where the search found them.

        Raises:
            InputError: it can't be read, or it is other data than the run's.
        """
        dataset = self._all_images(source)
        return take(dataset, self.manifest.train_examples) if self.manifest.train_examples else dataset

    def search_dataset(self, source: str | None = None) -> Dataset:
        """The search's split of them: no test images, some training images held out as val.

        Raises:
            InputError: as for `dataset`, or an earlier version of this program split them in another way.
        """
        dataset = hold_out(self._all_images(source), self.manifest.train_examples)
        counts = {"train": len(dataset.train_labels), "val": len(dataset.eval_labels)}
        if counts != self.manifest.counts:
            was = self.manifest.counts
            raise InputError(
                f"run {self.name} trained on {was['train']:,} images and scored on {was['val']:,}, where this version "
                f"takes {counts['train']:,} and {counts['val']:,}: go on with the one that made it, or start a new run"
            )
        return dataset

    def _all_images(self, source: str | None) -> Dataset:
        if source is None and os.path.isabs(self.manifest.data) and not os.path.exists(self.manifest.data):
            raise InputError(
                f"the data of run {self.name} lay in {self.manifest.data}, which is not there now: give --data PATH"
            )
        dataset = load(source or self.manifest.data)
        if dataset.fingerprint != self.manifest.fingerprint:
            raise InputError(
                f"--data {source or self.manifest.data} is other data (fingerprint {dataset.fingerprint}) than run "
                f"{self.name} was made with ({self.manifest.dataset}, {self.manifest.fingerprint}): give --data PATH"
            )
        return dataset


class NameTaken(InputError):
    """A new run can't have this name."""


def final_acc(trial: FrozenTrial) -> float:
    """The last accuracy (0..1) of a trial that has one."""
    return trial.intermediate_values[max(trial.intermediate_values)]


def create(runs_dir: Path, name: str, manifest: Manifest) -> Run:
    """Make the run folder: whole under another name first, so that it appears at once and a search that is killed
    meanwhile leaves none.

    Raises:
        NameTaken: there is something of that name.
        InputError: the name has path parts, or the folder can't be written.
    """
    if name in ("", ".", "..") or name != Path(name).name:
        raise InputError(f"--name {name!r}: it must be a single folder name without path parts (see also --runs-dir)")
    path = runs_dir / name
    try:
        os.fspath(path.absolute()).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{path} is no UTF-8, and Ray can't write there: give another --name or --runs-dir") from error
    partial = runs_dir / f".{name}.{os.getpid()}"
    try:
        (partial / "trials").mkdir(parents=True)
        study = optuna.create_study(study_name="search", storage=_storage(partial), direction="maximize")
        with warnings.catch_warnings(category=ExperimentalWarning, action="ignore"):
            # what optuna-dashboard calls the axis of values
            study.set_metric_names(["val/acc" if manifest.target_acc is None else f"score of {manifest.objective}"])
        _write_manifest(partial, manifest)
        partial.rename(path)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if path.exists():
            raise NameTaken(f"{path} exists already: choose another --name, or --resume {path}") from None
        raise InputError(f"--runs-dir {runs_dir} can't be written: {error.strerror}") from error
    return Run(path)


def _storage(folder: Path) -> JournalStorage:
    """The journal of a run folder. Its lock is a file, since not every file system has symbolic links."""
    journal = str(folder / "journal.log")
    return JournalStorage(JournalFileBackend(journal, lock_obj=JournalFileOpenLock(journal)))


def _write_manifest(path: Path, manifest: Manifest) -> None:
    write_whole(path / "run.json", json.dumps(vars(manifest), indent=2) + "\n")


def repair(run: Run) -> list[str]:
    """Cut off half-written last lines that a killed writer left; says what was cut. Needs the lock."""
    said = []
    for file in [
        run.path / "journal.log",
        *sorted(run.path.glob("trials/*/metrics.jsonl")),
        *run.path.glob("confirm/runs.jsonl"),
    ]:
        content = file.read_bytes() if file.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            with file.open("r+b") as damaged:
                damaged.truncate(len(whole))
            said.append(f"{file.relative_to(run.path)}: cut off a half-written last line")
    for stale in run.path.glob("journal.log.lock*"):  # the journal's own lock outlives a killed writer
        stale.unlink()
    return said


def here() -> dict[str, Any]:
    """The manifest's facts about this machine and this code."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": {"cpu": _cpu_name(), "cores": usable_cores(), "gpus": gpus},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "git_commit": _commit(Path(__file__).parents[1]),
    }


def _commit(code: Path) -> str | None:
    """The commit of our code, where it lies in a repository of its own. An installed or copied package may lie in a
    repository of somebody else, and GIT_DIR may name any."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        said = subprocess.run(
            ["git", "rev-parse", "--show-toplevel", "HEAD"],
            cwd=code,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    top, commit = said.stdout.splitlines()
    return commit if Path(top).resolve() == code.resolve() else None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
