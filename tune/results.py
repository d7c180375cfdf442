"""What a run of an experiment found, cell by cell: what its claims are held against and its figure shows."""

import math
import statistics
from collections.abc import Mapping
from typing import Any

from scipy.stats import chi2

import search_spaces
from model.config import Config
from search_spaces.experiment import Estimate, Experiment
from tune.evidence import ALPHA, Interval, difference, mean_interval, share_interval
from tune.report_data import CLASSES, DONE, FAILED, RunData, Seen


class RunResults:
    """The trials of a run by cell and seed; `search_spaces.experiment.Results` says what each method gives.

    Args:
        data: of a run of this experiment.
    """

    def __init__(self, data: RunData, experiment: Experiment) -> None:
        assert data.run.manifest.scale is not None
        self.scale = data.run.manifest.scale
        self.cells: Mapping[str, Config] = dict(
            zip(experiment.scales[self.scale].cells, data.run.space.bases, strict=True)
        )
        """as they were trained"""
        self.classes = len((data.confirm or {}).get("classes") or range(CLASSES))
        self._resolution = 1 / data.run.manifest.counts["val"]
        self._seeds: dict[str, dict[int, Seen]] = {name: {} for name in self.cells}
        names = list(self.cells)
        for trial in data.trials:
            seed, cell = divmod(trial.number, len(names))
            if trial.state in (DONE, FAILED) and trial.last:
                self._seeds[names[cell]][seed] = trial

    def values(self, cell: str, what: str = "acc") -> list[float]:
        return [self._value(trial, what) for _, trial in sorted(self._seeds[cell].items())]

    def mean(self, cell: str, what: str = "acc") -> Estimate | None:
        values = self.values(cell, what)
        return _estimate(mean_interval(values, self._rounding(what))) if values else None

    def difference(self, a: str, b: str, what: str = "acc") -> Estimate | None:
        common = sorted(self._seeds[a].keys() & self._seeds[b].keys())
        left, right = ([self._value(self._seeds[cell][seed], what) for seed in common] for cell in (a, b))
        return _estimate(difference(left, right, self._rounding(what))) if common else None

    def spread(self, cell: str) -> Estimate | None:
        accs = self.values(cell)
        if len(accs) < 2:
            return None
        n, sd = len(accs), statistics.stdev(accs)
        low, high = (sd * math.sqrt((n - 1) / chi2.ppf(share, n - 1)) for share in (1 - ALPHA / 2, ALPHA / 2))
        return Estimate(n, sd, low, high)

    def share(self, cell: str, target_acc: float) -> Estimate | None:
        accs = self.values(cell)
        if not accs:
            return None
        reached = sum(acc >= target_acc for acc in accs)
        return Estimate(len(accs), reached / len(accs), *share_interval(reached, len(accs)))

    def diverged(self, cell: str) -> int:
        return sum(trial.state == FAILED for trial in self._seeds[cell].values())

    def _value(self, trial: Seen, what: str) -> float:
        value: Any = trial.last.get(what)
        if trial.state == FAILED or value is None:  # a net that guesses
            guess = {"acc": 1 / self.classes, "loss": math.log(self.classes), "train_loss": math.log(self.classes)}
            return guess.get(what, math.nan)
        return float(value)

    def _rounding(self, what: str) -> float:
        """Distance of neighbouring values, below which no spread is believed."""
        return self._resolution if what == "acc" else 1e-6


def _estimate(found: Interval) -> Estimate:
    return Estimate(found.n, found.mean, found.low, found.high)


def experiments() -> dict[str, Experiment]:
    """Those that come with the project."""
    found = {name: search_spaces.definition(name) for name in search_spaces.names()}
    return {name: each for name, each in found.items() if isinstance(each, Experiment)}


def experiment_named(name: str) -> Experiment | None:
    """The project's experiment of that name, if it has one."""
    found = search_spaces.definition(name) if name in search_spaces.names() else None
    return found if isinstance(found, Experiment) else None


def experiment_of(data: RunData) -> Experiment | None:
    """The experiment that the run is of; None for a search, and for an experiment that is not among the project's or
    has other cells by now."""
    found = experiment_named(data.run.manifest.space_name)
    scale = data.run.manifest.scale
    if found is None or scale is None or len(found.scales[scale].cells) != len(data.run.space.bases):
        return None
    return found
