"""Stands for Ray and its workers: trains what a searcher proposes on curves that are known, without a net."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.samplers import RandomSampler
from ray.tune.search import Searcher

from model.config import Config
from search_spaces.space import IntUniform, LogUniform, SearchSpace, Uniform
from tune.cube import shares_of
from tune.searcher import StudySearcher
from tune.trials import Trials

Suggestion = dict[str, Any]
EPOCHS = 9

SPACE = SearchSpace(
    Config(epochs=EPOCHS),
    {"lr_scale": LogUniform(1 / 8, 16), "warmup_frac": Uniform(0.05, 0.5), "cutout_px": IntUniform(0, 12)},
)


def new_study() -> optuna.Study:
    return optuna.create_study(direction="maximize", sampler=RandomSampler())


def searcher_of(
    study: optuna.Study, space: Any = SPACE, *, sampler: str = "gp", scheduler: str = "asha", **given: Any
) -> StudySearcher:
    """With rungs at epochs 1, 3, 9 ... where the scheduler is asha."""
    trials = Trials(space.base.epochs, 1 if scheduler == "asha" else None, 3)
    if "budget" not in given:
        given.setdefault("most_trials", 12)
    return StudySearcher(study, space, trials, sampler=sampler, **{"seed": 0, **given})


class Failure(Exception):
    """A trial that can't be trained."""


def value_near(best: dict[str, float]) -> Callable[[dict[str, Any], int], float]:
    """Accuracies of configs of SPACE, rising with the epochs: 0.9 at the end of the training at these shares."""

    def value_of(params: dict[str, Any], epoch: int) -> float:
        shares = dict(zip(SPACE.domains, shares_of(SPACE, params), strict=True))
        far = sum((shares[name] - at) ** 2 for name, at in best.items())
        return 0.9 / (1 + 2 * far) * epoch / (epoch + 1) * (EPOCHS + 1) / EPOCHS

    return value_of


smooth = value_near({"lr_scale": 0.8, "warmup_frac": 0.3, "cutout_px": 0.5})


@dataclass
class _Leg:
    suggestion: Suggestion
    epoch: int


class Lab:
    """Trains legs, an epoch of each in turn. `value_of(params, epoch)` is the accuracy, NaN where it diverges; it may
    raise Failure. What was trained stays on record in `history`, whatever becomes of the searcher.

    Raises:
        AssertionError: a proposal that no worker could make sense of.
    """

    def __init__(self, value_of: Callable[[dict[str, Any], int], float] = smooth) -> None:
        self.value_of = value_of
        self.history: dict[int, list[dict[str, Any]]] = {}
        self.suggestions: list[Suggestion] = []
        self.most_at_once = 0

    def metrics(self, number: int) -> list[dict[str, Any]]:
        return self.history.get(number, [])

    def run(self, searcher: StudySearcher, *, kill_at: int | None = None, epochs_before_kill: int = 0) -> "Lab":
        """Until the searcher has finished; or until it has handed out `kill_at` legs in all and the last of them has
        trained so many epochs, short of its end."""
        legs: dict[str, _Leg] = {}
        while True:
            finished = self._fill(searcher, legs, kill_at)
            if kill_at is not None and len(self.suggestions) >= kill_at:
                trial_id, leg = list(legs.items())[-1]
                for _ in range(min(epochs_before_kill, leg.suggestion["until_epoch"] - leg.epoch - 1)):
                    self._train(searcher, legs, trial_id)
                return self
            if finished:
                assert not legs
                return self
            assert legs, "nothing is under way, and yet nothing is proposed"
            for trial_id in list(legs):
                self._train(searcher, legs, trial_id)

    def _fill(self, searcher: StudySearcher, legs: dict[str, _Leg], kill_at: int | None) -> bool:
        while kill_at is None or len(self.suggestions) < kill_at:
            trial_id = f"{len(self.suggestions):05d}"
            suggestion = searcher.suggest(trial_id)
            if suggestion == Searcher.FINISHED or suggestion is None:
                return suggestion is not None
            trained = len(self.history.setdefault(suggestion["number"], []))
            assert trained < suggestion["until_epoch"] <= suggestion["config"]["epochs"]
            assert all(leg.suggestion["number"] != suggestion["number"] for leg in legs.values())
            legs[trial_id] = _Leg(suggestion, trained)
            self.suggestions.append(suggestion)
            self.most_at_once = max(self.most_at_once, len(legs))
        return False

    def _train(self, searcher: StudySearcher, legs: dict[str, _Leg], trial_id: str) -> None:
        """One epoch. The first report of a leg holds the epochs before it, and Ray passes its last one to
        on_trial_complete only."""
        leg = legs[trial_id]
        history = self.history[leg.suggestion["number"]]
        first = len(history) == leg.epoch
        try:
            acc = self.value_of(leg.suggestion["params"], len(history) + 1)
        except Failure as failure:
            del legs[trial_id]
            searcher.on_trial_complete(trial_id, {"new_epochs": [], "failed": str(failure)})
            return
        ended = sum(map(len, self.history.values()))
        entry = {"epoch": len(history) + 1, "acc": acc, "diverged": acc != acc, "ended_s": ended, "train_s": 1.0}
        entry["train_s"] *= len(history) + 1
        history.append(entry)
        report = {"new_epochs": list(history) if first else [entry], "failed": None}
        if entry["diverged"] or len(history) == leg.suggestion["until_epoch"]:
            del legs[trial_id]
            searcher.on_trial_complete(trial_id, report)
        else:
            searcher.on_trial_result(trial_id, report)
