"""What trains next, behind Ray's Searcher interface, and what the Optuna study is told about it.

A trial of ours is trained in legs, from one rung to the next; each leg is a trial of Ray's own, which ends at
`until_epoch` and leaves its checkpoint. So pausing and resuming is one decision in one place, `suggest`: which new or
paused trial gets the free slot. The study in the run's journal is the record of all trials: params, state, values by
epoch. A paused trial stays RUNNING there until the search is over; then it is PRUNED.
"""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial
from optuna.trial import Trial as StudyTrial
from ray.tune.search import Searcher

from model.config import Config, InputError
from search_spaces.space import SearchSpace
from tune.cube import shares_of
from tune.model_sampler import Earlier, ModelSampler, Resume
from tune.objective import Objective
from tune.samplers import OF_EXPERIMENTS, SAMPLERS, WAIT, Params, Question, distribution
from tune.trials import State, Trial, Trials, asha_cost

MODEL = "gp"
MINUTE_S = 60.0
BREAK_OFFS = 3  # a leg that broke off this often is not tried again
ACCURACY = Objective()
STATES = {TrialState.COMPLETE: State.DONE, TrialState.PRUNED: State.STOPPED, TrialState.FAIL: State.FAILED}


def stream(seed: int, *path: int) -> int:
    """A 32-bit seed for the purpose that `path` names; seeds of different paths are independent."""
    return int(np.random.SeedSequence((seed, *path)).generate_state(1)[0])


def trial_seed(search_seed: int, number: int) -> int:
    return stream(search_seed, 0, number)


class StudySearcher(Searcher):
    """Proposes legs: first those that are unfinished, since a search was killed, a worker died or memory ran out, then
    the bases, then what the sampler says.

    Args:
        study: the record.
        trials: empty, with the rungs of this search; filled from the study and `metrics`.
        sampler: `gp` or a name in SAMPLERS or OF_EXPERIMENTS.
        slots: how many legs may be under way at once; may be changed at any time. Proposals are made when a slot is
            free, not ahead, so that each knows all results so far.
        most_trials: no more are started; None is no limit.
        budget: epochs to train, in epochs of the base; no leg begins beyond. None: `most_trials` are started, then
            paused trials go on as long as ASHA would train in all for so many.
        objective: what finished trials are ranked by.
        cost: of one epoch of a config, in epochs of the base.
        memory: bytes that a trial of a config takes; together those under way stay below `memory_bytes`.
        refused: why a config must not be trained, or None.
        metrics: the epochs on record for a trial, in order.
        earlier: observations of earlier searches, see ModelSampler.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: SearchSpace,
        trials: Trials,
        *,
        sampler: str,
        seed: int,
        slots: int = 1,
        most_trials: int | None = None,
        budget: float | None = None,
        objective: Objective = ACCURACY,
        cost: Callable[[Config], float] = lambda config: 1.0,
        memory: Callable[[Config], float] = lambda config: 0.0,
        refused: Callable[[Config], str | None] = lambda config: None,
        metrics: Callable[[int], list[dict[str, Any]]] = lambda number: [],
        earlier: list[Earlier] | None = None,
    ) -> None:
        super().__init__(metric="acc", mode="max")
        self.slots, self.trials = slots, trials
        self.memory_bytes = math.inf
        """what all legs together may take; one by itself may always run"""
        self.incumbent: Trial | None = None
        """the best finished trial so far, the earlier one where they tie"""
        self.settled: list[int] = []
        """trials that came to an end, for whoever clears up behind them; take them out when done"""
        self._study, self._space, self._seed, self._objective = study, space, seed, objective
        self._most_trials, self._cost, self._memory, self._refused = most_trials, cost, memory, refused
        self._is_experiment = sampler in OF_EXPERIMENTS
        self._budget_is_given = budget is not None
        self.budget = self._expected() if budget is None else budget
        """epochs that the search trains in all, in epochs of the base; expected ones, where no budget was given"""
        self._distributions = {name: distribution(domain) for name, domain in space.domains.items()}
        self._legs: dict[str, int] = {}  # Ray's trial id -> our number, of legs under way
        self._reasons: dict[str, str] = {}  # why legs failed whose workers are about to end for it
        question = Question(space, trials, stream(seed, 1), self._allowed, self.score)
        self._model = ModelSampler(question, objective, earlier or []) if sampler == MODEL else None
        self._propose = None if sampler == MODEL else {**SAMPLERS, **OF_EXPERIMENTS}[sampler](question)
        self._last_config: tuple[Params | None, Config] = (None, space.base)
        self._used_up = False
        self._unfinished: list[int] = []
        self._needed_bytes: dict[int, float] = {}  # of trials that were asked for
        self._broken_off: dict[int, int] = {}  # how often the leg that a trial is in broke off
        self._restore(study.get_trials(deepcopy=False), metrics)

    def _restore(self, records: list[FrozenTrial], metrics: Callable[[int], list[dict[str, Any]]]) -> None:
        """Bring trials and study up to what is on record, in the order in which it happened."""
        past = []
        for record in records:
            self._add(record.params)
            at_s = 0.0
            for epoch in metrics(record.number):
                at_s = max(at_s, epoch["ended_s"])  # the clock may have been set back meanwhile
                past.append((at_s, epoch["epoch"], record.number, epoch))
        for _, _, number, epoch in sorted(past, key=lambda item: item[:3]):
            self.trials.record(number, [epoch])
        for record in records:
            trial = self.trials.all[record.number]
            if record.state.is_finished():
                trial.reason = record.user_attrs.get("reason", "")
                self.trials.move(trial, STATES[record.state])
                if trial.state == State.DONE:
                    self._consider(trial)
                continue
            self._report(trial.number, metrics(trial.number))
            self.trials.end_leg(trial.number)
            if trial.state == State.RUNNING:
                self._unfinished.append(trial.number)
            else:
                self._tell(trial)

    def _expected(self) -> float:
        """Epochs of the base that `most_trials` take. Cells of an experiment come in turn and run to their ends."""
        trials = self._most_trials or 0
        if not self._is_experiment:
            return asha_cost(self.trials, trials)
        cells = self._space.bases
        return trials / len(cells) * sum(self._cost(cell) * cell.epochs for cell in cells)

    def _consider(self, done: Trial) -> None:
        best = self.incumbent
        if not best or (self.score(done), -done.number) > (self.score(best), -best.number):
            self.incumbent = done

    def is_over(self) -> bool:
        """Whether nothing is left to train: no leg is unfinished, and no trial may start or go on."""
        if self._unfinished or self.trials.count(State.RUNNING, State.PAUSED):
            return False
        full = self._most_trials is not None and len(self.trials.all) >= self._most_trials
        return full or self._used_up or (self._budget_is_given and self.trials.spent >= self.budget)

    @property
    def _room(self) -> int:
        """How many legs may be under way. Where one broke off, memory may be short: until it has come to its end half
        as many run, and a quarter after its second time."""
        return max(1, self.slots >> max(self._broken_off.values(), default=0))

    def suggest(self, trial_id: str) -> Any:
        if len(self._legs) >= self._room:
            return None
        trial = self._next()
        if trial and self._legs and self._together(trial.number, *self._legs.values()) > self.memory_bytes:
            self._unfinished.insert(0, trial.number)  # it waits for others to end, and no other overtakes it
            return None
        if trial is None:
            if self._legs:
                return None  # what they find may call for more
            for waiting in self.trials.in_state(State.PAUSED):
                self._stop(waiting)
            return str(Searcher.FINISHED)
        self._legs[trial_id] = trial.number
        return {
            "number": trial.number,
            "params": trial.params,
            "config": self._config(trial.params).to_dict(),
            "seed": self._trial_seed(trial.number),
            "until_epoch": trial.next_stop,
        }

    def _together(self, *numbers: int) -> float:
        """Bytes that these trials take at once, as far as memory is limited; each is estimated once."""
        if self.memory_bytes == math.inf:
            return 0.0
        for number in numbers:
            if number not in self._needed_bytes:
                self._needed_bytes[number] = self._memory(self._config(self.trials.all[number].params))
        return sum(self._needed_bytes[number] for number in numbers)

    def _next(self) -> Trial | None:
        """The trial that trains its next leg."""
        if self._unfinished:
            return self.trials.all[self._unfinished.pop(0)]
        number: int | None = len(self.trials.all)
        if (self._most_trials is not None and number == self._most_trials) or self._used_up:
            number = None
        if (self._budget_is_given or (number is None and self._model)) and self._left() <= 0:
            return None
        choice = self._choose(number)
        if isinstance(choice, Resume):
            trial = self.trials.all[choice.number]
            self.trials.move(trial, State.RUNNING)
            return trial
        return None if choice is None else self._start(choice)

    def _left(self) -> float:
        """Epochs of the base to train until the budget is spent, beyond the legs under way."""
        running = [self.trials.all[number] for number in self._legs.values()]
        return self.budget - self.trials.spent - sum(trial.cost * (trial.next_stop - trial.epoch) for trial in running)

    def _choose(self, number: int | None) -> Params | Resume | None:
        """Params of a new trial, the paused trial that goes on, or None where there is nothing to do."""
        if number is not None and number < len(self._space.bases):
            return self._space.params_of(self._space.bases[number])
        if self._model:
            return self._model.choose(number)
        promoted = self.trials.promotable()
        if promoted:
            return Resume(promoted.number)
        params = self._propose(number) if self._propose and number is not None else None
        self._used_up = params is None
        return None if params is WAIT else params

    def _trial_seed(self, number: int) -> int:
        """Of a search each trial's own; of an experiment one that the first trainings of all configs have in common,
        one that the second have, ..."""
        if self._is_experiment:
            params = self.trials.all[number].params
            number = sum(earlier.params == params for earlier in self.trials.all[:number])
        return trial_seed(self._seed, number)

    def _config(self, params: Params) -> Config:
        """The config of these params; a proposal's is asked for several times."""
        if params != self._last_config[0]:
            self._last_config = dict(params), self._space.config(params)
        return self._last_config[1]

    def _allowed(self, params: Params) -> bool:
        try:
            return self._refused(self._config(params)) is None
        except InputError:
            return False

    def _start(self, params: Params) -> Trial:
        trial = self._add(params)
        self._study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=params,
                distributions={name: self._distributions[name] for name in params},
                user_attrs={"seed": self._trial_seed(trial.number)},
            )
        )
        return trial

    def _add(self, params: Params) -> Trial:
        config = self._config(params)
        cost = self._cost(config)
        equal_cost = self._objective.target_acc is not None
        pace = cost if equal_cost else self.trials.units / config.epochs
        is_base = len(self.trials.all) < len(self._space.bases)
        return self.trials.add(
            params,
            shares_of(self._space, params),
            epochs=config.epochs,
            pace=pace,
            cost=cost,
            pausing=not is_base,  # what every other trial is compared with is known in full
        )

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._take(self._legs[trial_id], result["new_epochs"])
        if result["failed"]:
            self._reasons[trial_id] = result["failed"]

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number = self._legs.pop(trial_id)
        trial = self.trials.all[number]
        reason = self._reasons.pop(trial_id, None)
        failed = reason or ("its worker process died, several times" if error else None)
        short_of_memory = False
        if result and "new_epochs" in result and not error:  # else Ray cut it off before its first report
            self._take(number, result["new_epochs"])  # Ray doesn't pass a leg's last result to on_trial_result
            failed, short_of_memory = result["failed"], bool(result.get("out_of_memory") and self._legs)
        if ((error and not reason) or short_of_memory) and self._break_off(number) < BREAK_OFFS:
            self._unfinished.insert(0, number)
            return
        self._broken_off.pop(number, None)
        self.trials.end_leg(number, failed)
        if trial.state == State.RUNNING:  # cut off by Ray, between rungs: at the end of --time-budget-s
            self._unfinished.append(number)
        self._tell(trial)
        for surplus in self.trials.surplus():
            self._stop(surplus)

    def _break_off(self, number: int) -> int:
        self._broken_off[number] = self._broken_off.get(number, 0) + 1
        return self._broken_off[number]

    def pardon(self, number: int) -> None:
        """The trial's last leg broke off for no fault of its own: its node left."""
        if number in self._broken_off:
            self._broken_off[number] -= 1

    def _take(self, number: int, epochs: Iterable[dict[str, Any]]) -> None:
        epochs = list(epochs)
        self.trials.record(number, epochs)
        self._report(number, epochs)

    def _report(self, number: int, epochs: Iterable[dict[str, Any]]) -> None:
        """Tell the study a trial's accuracies by epoch; those it knows already are left."""
        record = self._study._storage.get_trial(self._study_id(number))
        for epoch in epochs:
            if epoch["epoch"] not in record.intermediate_values and not epoch["diverged"]:
                self._study._storage.set_trial_intermediate_value(record._trial_id, epoch["epoch"], epoch["acc"])

    def _tell(self, trial: Trial) -> None:
        """Give a trial that has come to an end its final state in the study."""
        if trial.state == State.DONE:
            self._consider(trial)
            if self._objective.needs_cost:
                cost = self._objective.cost(trial.accs, trial.costs(self._objective.by_time))
                StudyTrial(self._study, self._study_id(trial.number)).set_user_attr("cost", cost)
            self._study.tell(trial.number, self.score(trial))
        elif trial.state == State.FAILED:
            StudyTrial(self._study, self._study_id(trial.number)).set_user_attr("reason", trial.reason)
            self._study.tell(trial.number, state=TrialState.FAIL)
        elif trial.state == State.STOPPED:
            self._study.tell(trial.number, state=TrialState.PRUNED)
        else:
            return
        self.settled.append(trial.number)

    def score(self, trial: Trial) -> float:
        """How good a trial is that ran to its end; higher is better."""
        base_cost = MINUTE_S if self._objective.by_time else float(self.trials.units)
        return self._objective.score(trial.accs, trial.costs(self._objective.by_time), base_cost)

    def _study_id(self, number: int) -> int:
        return self._study._storage.get_trial_id_from_study_id_trial_number(self._study._study_id, number)

    def _stop(self, trial: Trial) -> None:
        self.trials.move(trial, State.STOPPED)
        self._tell(trial)

    def save(self, checkpoint_path: str) -> None:
        """Ray wants a file; there is nothing to save in it, since the run folder is the record."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a search is resumed from its run folder")
