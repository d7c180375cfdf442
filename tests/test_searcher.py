"""The searcher's own matters: budget, restarts, what the study holds, objectives; driven as Ray drives it."""

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from driver import EPOCHS, SPACE, Lab, new_study, searcher_of, smooth
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from model.config import Config
from search_spaces.space import Choice, IntUniform, LogUniform, SearchSpace, Uniform
from tune.objective import Objective
from tune.samplers import COORDINATE, SAMPLERS
from tune.searcher import BREAK_OFFS, MODEL
from tune.trials import State


def open_study(path: Path) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(path / "journal.log")))
    return optuna.create_study(study_name="search", storage=storage, direction="maximize", load_if_exists=True)


def epoch(number: int, acc: float) -> dict[str, Any]:
    return {"epoch": number, "acc": acc, "diverged": math.isnan(acc), "ended_s": float(number)}


def test_states_in_the_study(tmp_path: Path) -> None:
    """Full length is COMPLETE; what waits is RUNNING until the search is over, then PRUNED; diverged, failed and lost
    ones are FAIL with a reason."""
    search = searcher_of(open_study(tmp_path), scheduler="asha", sampler="random", slots=9, most_trials=6)
    assert [search.suggest(name)["until_epoch"] for name in ("base", "0", "1", "2", "3", "4")] == [9, 1, 1, 1, 1, 1]
    for index in (0, 1):
        search.on_trial_complete(str(index), {"new_epochs": [epoch(1, 0.5 - index / 10)], "failed": None})
    search.on_trial_complete("2", {"new_epochs": [epoch(1, math.nan)], "failed": None})
    search.on_trial_complete("3", {"new_epochs": [], "failed": "RuntimeError: out of memory"})
    for _ in range(BREAK_OFFS - 1):
        search.on_trial_complete("4", error=True)
        assert search.suggest("4")["number"] == 5
    search.on_trial_complete("4", error=True)
    study = open_study(tmp_path)
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING] * 3 + [TrialState.FAIL] * 3
    assert sorted(search.settled) == [3, 4, 5]
    reasons = [trial.user_attrs.get("reason") for trial in study.trials]
    assert reasons == [
        *[None] * 3,
        "diverged at epoch 1",
        "RuntimeError: out of memory",
        "its worker process died, several times",
    ]
    leg = search.suggest("5")  # of five, one goes on: the best
    assert (leg["number"], leg["until_epoch"]) == (1, 3)
    assert search.suggest("6") is None
    search.on_trial_result("5", {"new_epochs": [epoch(1, 0.5), epoch(2, 0.6)], "failed": None})
    search.on_trial_complete("5", {"new_epochs": [epoch(3, 0.7)], "failed": None})
    assert not search.is_over()
    leg = search.suggest("7")  # the best of four there, since the failed ones count
    assert (leg["number"], leg["until_epoch"]) == (1, 9)
    search.on_trial_complete("7", {"new_epochs": [epoch(number, 0.8) for number in range(4, 10)], "failed": None})
    assert open_study(tmp_path).trials[2].state == TrialState.RUNNING
    assert search.suggest("8") is None
    search.on_trial_complete("base", {"new_epochs": [epoch(number, 0.45) for number in range(1, 10)], "failed": None})
    assert search.suggest("8") == "FINISHED" and search.is_over()
    base, *trials = open_study(tmp_path).trials
    assert base.state == TrialState.COMPLETE and base.value == 0.45
    assert trials[0].state == TrialState.COMPLETE and trials[0].value == 0.8
    assert trials[0].intermediate_values == {1: 0.5, 2: 0.6, 3: 0.7} | dict.fromkeys(range(4, 10), 0.8)
    assert trials[1].state == TrialState.PRUNED and trials[1].intermediate_values == {1: 0.4}


@pytest.mark.parametrize("sampler", [MODEL, *(sampler for sampler in SAMPLERS if sampler != COORDINATE)])
@pytest.mark.parametrize("slots", [1, 3])
def test_no_leg_begins_beyond_the_budget(sampler: str, slots: int) -> None:
    lab, study = Lab(), new_study()
    search = searcher_of(study, sampler=sampler, slots=slots, budget=30.0)
    suggest = search.suggest

    def checked(trial_id: str) -> Any:
        under_way = sum(trial.next_stop - trial.epoch for trial in search.trials.in_state(State.RUNNING))
        before = search.trials.spent + under_way
        leg = suggest(trial_id)
        assert not isinstance(leg, dict) or before < 30
        return leg

    search.suggest = checked  # type: ignore[method-assign]
    lab.run(search)
    spent = sum(map(len, lab.history.values()))
    assert search.trials.spent == spent and 30 <= spent < 30 + EPOCHS - 3
    assert search.is_over() and all(trial.state.is_finished() for trial in study.trials)


def test_a_budget_is_in_epochs_of_the_base() -> None:
    """Without rungs, at twice the base's cost per epoch: 18 of each training; 18, 36, 54 after the third."""
    search = searcher_of(new_study(), sampler="random", scheduler="none", budget=37.0, cost=lambda config: 2.0)
    lab = Lab().run(search)
    assert len(lab.history) == 3 and search.trials.spent == 54 and search.budget == 37


def test_a_budget_and_a_number_of_trials_both_hold() -> None:
    few = Lab().run(searcher_of(new_study(), sampler="random", scheduler="none", budget=1000.0, most_trials=3))
    assert len(few.history) == 3
    short = Lab().run(searcher_of(new_study(), sampler="random", scheduler="none", budget=10.0, most_trials=30))
    assert len(short.history) == 2


def test_without_a_budget_the_model_trains_about_as_much_as_asha_would() -> None:
    """12 trials, rungs at 1 and 3 of 9 epochs: 12 + 4 x 2 + 4/3 x 6 epochs, and at most one leg more."""
    search = searcher_of(new_study(), most_trials=12)
    lab = Lab().run(search)
    assert search.budget == pytest.approx(28)
    assert len(lab.history) == 12 and 28 <= search.trials.spent < 28 + 6


def test_more_trials_or_budget_go_on_where_a_search_ended() -> None:
    study, lab = new_study(), Lab()
    lab.run(searcher_of(study, most_trials=6))
    before = {number: list(epochs) for number, epochs in lab.history.items()}
    again = searcher_of(study, most_trials=6, metrics=lab.metrics)
    assert again.is_over() and again.suggest("x") == "FINISHED"
    more = searcher_of(study, most_trials=9, metrics=lab.metrics)
    assert not more.is_over()
    lab.run(more)
    assert len(study.trials) == 9 and {number: lab.history[number] for number in before} == before
    assert all(trial.state.is_finished() for trial in study.trials)


def test_what_is_on_record_but_not_in_the_study_is_told_to_it(tmp_path: Path) -> None:
    """Killed between writing the epochs down and telling the study, for an end, a rung and a divergence."""
    study = open_study(tmp_path)
    search = searcher_of(study, sampler="random", slots=4)
    for index in range(4):
        search.suggest(str(index))
    record = {
        0: [epoch(number, number / 10) for number in range(1, 10)],
        1: [epoch(1, 0.3)],
        2: [epoch(1, 0.4), epoch(2, math.nan)],
        3: [],
    }
    search = searcher_of(open_study(tmp_path), sampler="random", slots=4, metrics=lambda number: record[number])
    trials = open_study(tmp_path).trials
    assert [trial.state for trial in trials[:3]] == [TrialState.COMPLETE, TrialState.RUNNING, TrialState.FAIL]
    assert trials[0].value == 0.9 and trials[0].intermediate_values == {n: n / 10 for n in range(1, 10)}
    assert trials[1].intermediate_values == {1: 0.3} and trials[2].intermediate_values == {1: 0.4}
    assert search.suggest("next")["number"] == 3  # what never began


def test_params_come_back_from_the_journal_as_they_were(tmp_path: Path) -> None:
    space = SearchSpace(
        Config(epochs=EPOCHS),
        {
            "lr_scale": LogUniform(1 / 8, 16),
            "cutout_px": IntUniform(0, 12),
            "flip": Choice((True, False)),
            "solver": Choice(("sgd", "adam")),
            "momentum": Uniform(0.5, 0.95, only_if={"solver": ("sgd",)}),
        },
    )
    lab = Lab(lambda params, epoch: 0.5)
    lab.run(searcher_of(open_study(tmp_path), space, sampler="random", most_trials=12))
    made = {leg["number"]: leg["params"] for leg in lab.suggestions}
    again = searcher_of(open_study(tmp_path), space, sampler="random", most_trials=12, metrics=lab.metrics)
    for trial in again.trials.all:
        assert trial.params == made[trial.number]
        assert {name: type(value) for name, value in trial.params.items()} == {
            name: type(value) for name, value in made[trial.number].items()
        }
        assert trial.accs == [0.5] * len(lab.metrics(trial.number))
    for number, params in made.items():
        assert open_study(tmp_path).trials[number].params == params


def test_a_knob_without_effect_in_a_trial_stays_at_its_default_there() -> None:
    """Momentum belongs to sgd: an adam trial has the default one, whatever was drawn for it."""
    space = SearchSpace(Config(epochs=EPOCHS), {"solver": Choice(("sgd", "adam")), "momentum": Uniform(0.5, 0.95)})
    search = searcher_of(new_study(), space, sampler="random", slots=40, most_trials=40)
    configs = [search.suggest(str(index))["config"] for index in range(40)]
    assert {config["momentum"] for config in configs if config["solver"] == "adam"} == {Config().momentum}
    assert len({config["momentum"] for config in configs if config["solver"] == "sgd"}) > 5


@pytest.mark.parametrize("last", [{"new_epochs": [epoch(1, 0.1)], "failed": None}, {"trial_id": "a"}, None])
def test_a_leg_that_ray_cuts_off_is_proposed_again(last: dict[str, Any] | None) -> None:
    """At the end of --time-budget-s Ray completes all that runs, between rungs, or before its first report."""
    search = searcher_of(new_study(), scheduler="none", sampler="random")
    first = search.suggest("a")
    if last and "new_epochs" in last:
        search.on_trial_result("a", last)
    search.on_trial_complete("a", last)
    assert search.suggest("b") == first and not search.is_over()


def test_trials_of_searched_length_pause_at_equal_shares_and_all_end() -> None:
    """A third of the training is a rung: 9 epochs pause at 1 and 3, 27 at 3 and 9."""
    space = SearchSpace(Config(epochs=EPOCHS), {"epochs": Choice((EPOCHS, 27)), "lr_scale": LogUniform(1 / 8, 16)})
    lab, study = Lab(lambda params, epoch: 0.9 * epoch / params["epochs"]), new_study()
    lab.run(searcher_of(study, space, sampler="random", most_trials=12))
    stops = {epochs: set() for epochs in (9, 27)}  # type: ignore[var-annotated]
    for leg in lab.suggestions:
        stops[leg["params"]["epochs"]].add(leg["until_epoch"])
    assert stops[9] <= {1, 3, 9} and stops[27] <= {3, 9, 27} and stops[9] | stops[27] >= {1, 3, 9}
    assert all(trial.state.is_finished() for trial in study.trials)


def test_the_score_of_an_objective_is_what_the_study_holds() -> None:
    """Reached 0.6 in its sixth epoch at cost 2: 1 + 9 / (9 + 12)."""
    study = new_study()
    objective = Objective("flops-to-target", 0.6)
    search = searcher_of(
        study, sampler="random", scheduler="none", most_trials=1, objective=objective, cost=lambda config: 2.0
    )
    Lab(lambda params, number: number / 10).run(search)
    assert study.trials[0].value == pytest.approx(1 + 9 / 21)
    incumbent = search.incumbent
    assert incumbent is not None and incumbent.number == 0


def test_the_incumbent_is_the_best_finished_trial() -> None:
    search = searcher_of(new_study(), sampler="random", scheduler="none", most_trials=6)
    assert search.incumbent is None
    lab = Lab().run(search)
    best = max(lab.history, key=lambda number: lab.history[number][-1]["acc"])
    incumbent = search.incumbent
    assert incumbent is not None and incumbent.number == best
    assert incumbent.accs[-1] == max(smooth(leg["params"], EPOCHS) for leg in lab.suggestions)
    assert set(incumbent.params) == set(SPACE.domains)


NO_MEMORY = {"new_epochs": [], "failed": "CUDA out of memory", "out_of_memory": True}
ENDED = {"new_epochs": [epoch(number, 0.5) for number in range(1, 10)], "failed": None}


@pytest.mark.parametrize("dead", [True, False])
def test_a_leg_that_broke_off_is_taken_up_again_with_half_as_many_beside_it(dead: bool) -> None:
    """Its worker died, or it ran out of memory: four slots, then two, then four again once it has come to its end."""
    search = searcher_of(new_study(), scheduler="none", sampler="random", slots=4)
    assert [search.suggest(name)["number"] for name in "0123"] == [0, 1, 2, 3]
    search.on_trial_complete("1", None if dead else NO_MEMORY, error=dead)
    assert search.suggest("again") is None  # three are under way
    search.on_trial_complete("0", ENDED)
    assert search.suggest("again") is None
    search.on_trial_complete("2", ENDED)
    again = search.suggest("again")
    assert again["number"] == 1 and search.trials.all[1].state == State.RUNNING
    assert search.suggest("new") is None
    search.on_trial_complete("again", ENDED)
    assert search.trials.all[1].state == State.DONE
    assert [search.suggest(name)["number"] for name in ("a", "b", "c")] == [4, 5, 6]


@pytest.mark.parametrize("pardoned", [False, True])
def test_a_leg_whose_worker_dies_three_times_fails(pardoned: bool) -> None:
    """A worker that went with its node doesn't count."""
    search = searcher_of(new_study(), scheduler="none", sampler="random")
    for name in ["with its node", "a", "b", "c"] if pardoned else ["a", "b", "c"]:
        assert search.suggest(name)["number"] == 0
        search.on_trial_complete(name, error=True)
        if name == "with its node":
            search.pardon(0)
    assert search.trials.all[0].state == State.FAILED and "several times" in search.trials.all[0].reason
    assert search.suggest("d")["number"] == 1


def test_a_worker_that_ends_after_it_said_why_the_trial_failed_is_no_reason_to_try_again() -> None:
    search = searcher_of(new_study(), scheduler="none", sampler="random", slots=4)
    assert [search.suggest(name)["number"] for name in "01"] == [0, 1]
    search.on_trial_result("0", {"new_epochs": [], "failed": "RuntimeError: CUDA error"})
    search.on_trial_complete("0", error=True)
    assert search.trials.all[0].state == State.FAILED and search.trials.all[0].reason == "RuntimeError: CUDA error"
    assert search.suggest("0")["number"] == 2  # another slot is as free as before


def test_out_of_memory_all_by_itself_is_a_failure_at_once() -> None:
    search = searcher_of(new_study(), scheduler="none", sampler="random", slots=4)
    search.suggest("0")
    search.on_trial_complete("0", NO_MEMORY)
    assert search.trials.all[0].state == State.FAILED and search.trials.all[0].reason == "CUDA out of memory"


def test_trials_are_packed_by_memory() -> None:
    """1 byte per unit of width, 10 in all: 2 + 6 go together, the next 6 waits and nothing overtakes it."""
    space = SearchSpace(Config(epochs=EPOCHS, width=2), {"width": IntUniform(1, 64), "lr_scale": LogUniform(0.1, 10)})
    search = searcher_of(
        new_study(), space, scheduler="none", sampler="random", slots=4, memory=lambda config: float(config.width)
    )
    search.memory_bytes = 10.0
    widths = iter([2, 6, 6, 2, 50, 3])
    search._choose = lambda number: {"width": next(widths), "lr_scale": 1.0}  # type: ignore[method-assign, assignment]
    assert [search.suggest(name)["params"]["width"] for name in ("a", "b")] == [2, 6]
    assert search.suggest("c") is None and search.suggest("c") is None
    search.on_trial_complete("a", ENDED)
    assert search.suggest("c") is None
    search.on_trial_complete("b", ENDED)
    assert [search.suggest(name)["params"]["width"] for name in ("c", "d")] == [6, 2]
    search.on_trial_complete("c", ENDED)
    assert search.suggest("e") is None  # 50 waits for the last one to end; all by itself it may run
    search.on_trial_complete("d", ENDED)
    assert search.suggest("e")["params"]["width"] == 50
    assert search.suggest("f") is None


def test_a_clock_that_is_set_back_loses_no_epoch() -> None:
    study = new_study()
    searcher_of(study, scheduler="none", sampler="random").suggest("0")
    record = [epoch(number, number / 10) | {"ended_s": 100.0 - number} for number in range(1, 8)]
    search = searcher_of(study, scheduler="none", sampler="random", metrics=lambda number: record)
    assert search.trials.all[0].accs == [number / 10 for number in range(1, 8)]
