"""Optuna behind Ray's Searcher interface: what to try next, and what Optuna is told about it.

The study in the run's journal is the record: params, state, values by epoch. What to try next is asked of a second
study, made anew for each proposal, in which every value was measured at the same epoch. So a value of an early rung
is never taken for a final one, and a proposal depends on nothing but the record, the seed and the trial's number.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import Trial, TrialState, create_trial
from ray.tune.search import Searcher

from model.config import InputError
from search_spaces.space import Choice, Domain, IntUniform, LogUniform, SearchSpace, Uniform
from tune.scheduler import Rungs

SAMPLERS = ("tpe", "qmc", "random", "gp")
ATTEMPTS = 1000  # at a proposal that a Config allows
RANDOM_SHARE = 1 / 3  # of the proposals of a model, so that it can't fixate on its first survivors (as in BOHB)


def distribution(domain: Domain) -> BaseDistribution:
    match domain:
        case LogUniform(low, high):
            return FloatDistribution(low, high, log=True)
        case Uniform(low, high):
            return FloatDistribution(low, high)
        case IntUniform(low, high):
            return IntDistribution(low, high)
        case Choice(choices):
            return CategoricalDistribution(choices)


def stream(seed: int, *path: int) -> int:
    """A 32-bit seed for the purpose that `path` names; seeds of different paths are independent."""
    return int(np.random.SeedSequence((seed, *path)).generate_state(1)[0])


def trial_seed(search_seed: int, number: int) -> int:
    return stream(search_seed, 0, number)


class OptunaSearcher(Searcher):
    """Proposes trials in order of their number: the base config, then what the sampler proposes.

    Args:
        study: the record; trials left RUNNING in it (by a search that was killed) are proposed again, first.
        slots: how many trials may be under way at once. Proposals are made when a slot is free, not ahead, so that
            each knows all results so far.
    """

    def __init__(
        self, study: optuna.Study, space: SearchSpace, rungs: Rungs, *, sampler: str, seed: int, slots: int
    ) -> None:
        super().__init__(metric="acc", mode="max")
        self._study, self._space, self._rungs = study, space, rungs
        self._sampler_name, self._seed, self.slots = sampler, seed, slots
        self._distributions = {name: distribution(domain) for name, domain in space.domains.items()}
        self._numbers: dict[str, int] = {}  # Ray's trial id -> our number, of trials under way
        self._unfinished = [trial.number for trial in study.get_trials(deepcopy=False) if not trial.state.is_finished()]
        self._sequence: optuna.Study | None = None
        self._points: list[dict[str, Any]] = []

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        if len(self._numbers) >= self.slots:
            return None
        number = self._unfinished.pop(0) if self._unfinished else self._new_trial()
        self._numbers[trial_id] = number
        trial = self._study.get_trials(deepcopy=False)[number]
        config = self._space.config(trial.params).to_dict()
        return {"number": number, "params": trial.params, "config": config, "seed": trial.user_attrs["seed"]}

    def _new_trial(self) -> int:
        number = len(self._study.get_trials(deepcopy=False))
        params = self._sensible(number) if number else self._base_params()
        self._study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=params,
                distributions=self._distributions,
                user_attrs={"seed": trial_seed(self._seed, number)},
            )
        )
        return number

    def _base_params(self) -> dict[str, Any]:
        return self._space.params_of(self._space.base)

    def _sensible(self, number: int) -> dict[str, Any]:
        """The first proposal for trial `number` that a Config allows: some values make no sense together."""
        if self._sampler_name == "qmc":
            return self._quasi_random(number)
        for attempt in range(ATTEMPTS):
            params = self._propose(number, attempt)
            if self._allowed(params):
                return params
        raise _no_sense()

    def _allowed(self, params: dict[str, Any]) -> bool:
        try:
            self._space.config(params)
        except InputError:
            return False
        return True

    def _propose(self, number: int, attempt: int) -> dict[str, Any]:
        seed = stream(self._seed, 1, number, *([attempt] if attempt else []))
        values = self._comparable_values()
        sampler: BaseSampler = RandomSampler(seed=seed)
        if values and np.random.default_rng(seed).random() >= RANDOM_SHARE:
            if self._sampler_name == "tpe":
                # the running trials count as bad ones, so that parallel proposals keep apart
                sampler = TPESampler(seed=seed, n_startup_trials=0, multivariate=True, constant_liar=True)
            elif self._sampler_name == "gp":
                sampler = GPSampler(seed=seed, n_startup_trials=0)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for trial in self._study.get_trials(deepcopy=False):
            known: dict[str, Any] = {"params": trial.params, "distributions": self._distributions}
            if trial.number in values:
                study.add_trial(create_trial(value=values[trial.number], **known))
            elif trial.state == TrialState.RUNNING:
                study.add_trial(create_trial(state=TrialState.RUNNING, **known))
        return study.ask(self._distributions).params

    def _quasi_random(self, number: int) -> dict[str, Any]:
        """Point `number` of one scrambled Sobol sequence (Optuna's sampler walks it, so walk there from the start)."""
        if self._sequence is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                sampler = QMCSampler(scramble=True, seed=stream(self._seed, 2), warn_independent_sampling=False)
            self._sequence = optuna.create_study(sampler=sampler)
            # the sampler takes the dimensions of its sequence from a finished trial
            base = create_trial(value=0.0, params=self._base_params(), distributions=self._distributions)
            self._sequence.add_trial(base)
            self._points = [self._base_params()]
        refused = 0
        while len(self._points) <= number:
            params = self._sequence.ask(self._distributions).params
            if self._allowed(params):
                self._points.append(params)
            else:
                refused += 1
            if refused == ATTEMPTS:
                raise _no_sense()
        return self._points[number]

    def _comparable_values(self) -> dict[int, float]:
        """Accuracy by trial number at the highest rung that enough trials have reached (the rule of BOHB), a diverged
        trial as the worst of them; empty when no rung has enough."""
        enough = len(self._distributions) + 3
        for epoch in [self._rungs.epochs, *reversed(self._rungs.rungs)]:
            values = {n: v for n, v in self._rungs.values[epoch].items() if n not in self._rungs.diverged}
            if len(values) >= enough:
                return {**values, **dict.fromkeys(self._rungs.diverged, min(values.values()))}
        return {}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        report(self._study, self._numbers[trial_id], result["new_epochs"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number = self._numbers.pop(trial_id)
        if error or not result:
            fail(self._study, number, "its worker process died, several times")
            return
        report(self._study, number, result["new_epochs"])  # Ray doesn't pass a trial's last result to on_trial_result
        if result["failed"]:
            fail(self._study, number, result["failed"])
        else:
            settle(self._study, self._rungs, number)

    def save(self, checkpoint_path: str) -> None:
        """Ray wants a file; there is nothing to save in it, since the run folder is the record."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a search is resumed from its run folder")


def _no_sense() -> InputError:
    return InputError(
        f"of {ATTEMPTS} proposals in this space not one made sense: some of its values don't go together "
        f"(such as a ghost_batch that doesn't divide batch_size); narrow the domains"
    )


def report(study: optuna.Study, number: int, epochs: list[dict[str, Any]]) -> None:
    """Tell the study a trial's accuracies by epoch; those it knows already are left."""
    trial = Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)
    known = study.get_trials(deepcopy=False)[number].intermediate_values
    for metrics in epochs:
        if metrics["epoch"] not in known and not metrics["diverged"]:
            trial.report(metrics["acc"], metrics["epoch"])


def settle(study: optuna.Study, rungs: Rungs, number: int) -> bool:
    """Give a trial its final state, if it has come to an end: at the last epoch, at a rung, or by diverging."""
    if number in rungs.diverged:
        fail(study, number, f"diverged at epoch {rungs.last_epoch[number]}")
    elif rungs.last_epoch.get(number) == rungs.epochs:
        study.tell(number, rungs.values[rungs.epochs][number])
    elif number in rungs.last_epoch and not rungs.keeps(number):
        study.tell(number, state=TrialState.PRUNED)
    else:
        return False
    return True


def fail(study: optuna.Study, number: int, reason: str) -> None:
    Trial(study, study.get_trials(deepcopy=False)[number]._trial_id).set_user_attr("reason", reason)
    study.tell(number, state=TrialState.FAIL)
