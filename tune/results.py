"""What a run of an experiment found, cell by cell: what its claims are held against and its figure shows."""

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from scipy.stats import chi2

import search_spaces
from model.config import Config
from model.diagnostics import MEASURED
from search_spaces.experiment import TUNED, Estimate, Experiment
from tune.evidence import ALPHA, Interval, difference, mean_interval, share_interval
from tune.lines import short
from tune.report_data import CLASSES, DONE, FAILED, RunData, Seen


class RunResults:
    """The trials of a run by cell and seed; `search_spaces.experiment.Results` says what each method gives.

    Args:
        data: of a run of this experiment.
    """

    def __init__(self, data: RunData, experiment: Experiment) -> None:
        assert data.run.manifest.scale is not None
        self.scale = data.run.manifest.scale
        scale = experiment.scales[self.scale]
        cells = dict(zip(scale.cells, data.run.space.bases, strict=True))
        self.classes = len((data.confirm or {}).get("classes") or range(CLASSES))
        self._resolution = 1 / data.run.manifest.counts["val"]
        self._seeds: dict[str, dict[int, Seen]] = {name: {} for name in cells}
        places = _places_of_search(data, list(cells)) if scale.search else _places(data, list(cells))
        for cell, seed, trial in places:
            own = self._seeds.setdefault(cell, {})
            if cell not in cells:
                cells[cell] = data.run.space.config(trial.params)
            if trial.state in (DONE, FAILED) and trial.last:
                own[seed] = trial
        self.cells: Mapping[str, Config] = cells
        """as they were trained; of a search with its runs, and with what it found once that is trained again"""

    def values(self, cell: str, what: str = "acc") -> list[float]:
        return [value for _, value in sorted(self._by_seed(cell, what).items())]

    def mean(self, cell: str, what: str = "acc") -> Estimate | None:
        values = self.values(cell, what)
        return _estimate(mean_interval(values, self._rounding(what))) if values else None

    def difference(self, a: str, b: str, what: str = "acc", of_b: str | None = None) -> Estimate | None:
        left, right = self._by_seed(a, what), self._by_seed(b, of_b or what)
        common = sorted(left.keys() & right.keys())
        if not common:
            return None
        pairs = [left[seed] for seed in common], [right[seed] for seed in common]
        return _estimate(difference(*pairs, self._rounding(what)))

    def series(self, cell: str, name: str) -> dict[float | str, str]:
        start = f"{MEASURED}{name} "
        keys = dict.fromkeys(key for trial in self._seeds[cell].values() for key in trial.last if key.startswith(start))
        found = {_place(key.removeprefix(start)): key.removeprefix(MEASURED) for key in keys}
        numbers = all(isinstance(place, float) for place in found)
        return dict(sorted(found.items(), key=lambda item: float(item[0]))) if numbers else found

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

    def _by_seed(self, cell: str, what: str) -> dict[int, float]:
        found = {seed: self._value(trial, what) for seed, trial in self._seeds[cell].items()}
        return {seed: value for seed, value in found.items() if not math.isnan(value)}

    def _value(self, trial: Seen, what: str) -> float:
        value: Any = trial.last.get(MEASURED + what, trial.last.get(what))
        if trial.state == FAILED or value is None:  # a net that guesses
            guess = {"acc": 1 / self.classes, "loss": math.log(self.classes), "train_loss": math.log(self.classes)}
            return guess.get(what, math.nan)
        return float(value)

    def _rounding(self, what: str) -> float:
        """Distance of neighbouring values, below which no spread is believed."""
        return self._resolution if what == "acc" else 1e-6


def _place(text: str) -> float | str:
    """Of a member in its series."""
    try:
        return float(text)
    except ValueError:
        return text


def _places(data: RunData, cells: list[str]) -> Iterator[tuple[str, int, Seen]]:
    """Each trial with its cell and the number of its seed."""
    for trial in data.trials:
        seed, cell = divmod(trial.number, len(cells))
        yield cells[cell], seed, trial


def _places_of_search(data: RunData, cells: list[str]) -> Iterator[tuple[str, int, Seen]]:
    """The same where the first cell is the start of a search: whenever a config is trained again it has the next seed,
    and beside the other cells only what the search found is. A run is named by what it changed."""
    names: dict[frozenset[Any], str] = {}
    trained: Counter[frozenset[Any]] = Counter()
    best: Seen | None = None
    for trial in data.trials:
        params, run = frozenset(trial.params.items()), trial.number - len(cells) + 1
        seed = trained[params]
        trained[params] += 1
        if seed:
            yield names[params] if names[params] in cells[1:] else TUNED, seed, trial
            continue
        if run < 1:
            names[params] = cells[trial.number]
        else:
            had = best.params if best else {}
            changed = [f"{name} {short(value)}" for name, value in trial.params.items() if value != had.get(name)]
            names[params] = f"run {run}: {', '.join(changed)}"
        yield names[params], seed, trial
        if (run > 0 or trial.number == 0) and (not best or (trial.value or 0.0) > (best.value or 0.0)):
            best = trial


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
