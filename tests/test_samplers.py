"""What every sampler must do, whoever proposes and with whichever scheduler; driven as Ray drives the searcher."""

import itertools
import logging
import math
from typing import Any

import optuna
import pytest
from driver import EPOCHS, SPACE, Failure, Lab, new_study, searcher_of, smooth
from optuna.trial import TrialState

from benchmarks.curves import PlainSpace, Point
from model.config import Config, InputError
from search_spaces.space import Choice, IntUniform, LogUniform, SearchSpace, Uniform
from tune.samplers import COORDINATE, SAMPLERS
from tune.searcher import MODEL

ALL = [MODEL, *(sampler for sampler in SAMPLERS if sampler != COORDINATE)]  # which has an end: test_coordinate_search
every_sampler = pytest.mark.parametrize("sampler", ALL)
every_search = pytest.mark.parametrize(("sampler", "scheduler"), list(itertools.product(ALL, ["asha", "none"])))
FINAL = {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}

MIXED = SearchSpace(
    Config(epochs=EPOCHS),
    {
        "lr_scale": LogUniform(1 / 8, 16),
        "warmup_frac": Uniform(0.05, 0.5),
        "cutout_px": IntUniform(0, 12),
        "flip": Choice((True, False)),
        "solver": Choice(("sgd", "lars", "adam")),
        "momentum": Uniform(0.5, 0.95, only_if={"solver": ("sgd", "lars")}),
        "nesterov": Choice((True, False), only_if={"solver": ("sgd", "lars")}),
    },
    more_bases=(Config(epochs=EPOCHS, lr_scale=2.0),),
)
TYPES = {"cutout_px": int, "flip": bool, "solver": str, "nesterov": bool}
SIX = SearchSpace(Config(epochs=EPOCHS), {"flip": Choice((True, False)), "cutout_px": IntUniform(7, 9)})
ONE = SearchSpace(Config(epochs=EPOCHS), {"cutout_px": IntUniform(8, 8), "lr_scale": LogUniform(1, 1)})


def by_lr(params: dict[str, Any], epoch: int) -> float:
    return 0.5 - 0.1 * abs(math.log2(params["lr_scale"] / 4)) / 4 + 0.04 * epoch


def constant(params: dict[str, Any], epoch: int) -> float:
    return 0.5


def states(study: optuna.Study) -> list[TrialState]:
    return [trial.state for trial in study.trials]


@every_search
def test_a_search_from_its_bases_to_its_end(sampler: str, scheduler: str) -> None:
    """Every domain, conditions, two slots: just as many trials as asked for, none twice, all with a final state."""
    study = new_study()
    grid_fits = {name: domain for name, domain in MIXED.domains.items() if name != "warmup_frac"}
    space = SearchSpace(MIXED.base, grid_fits, more_bases=MIXED.more_bases) if sampler == "grid" else MIXED
    lab = Lab(by_lr).run(searcher_of(study, space, sampler=sampler, scheduler=scheduler, slots=2, most_trials=14))
    params = [trial.params for trial in study.trials]
    assert params[:2] == [space.params_of(base) for base in space.bases]
    assert len(params) == 14 == len({frozenset(each.items()) for each in params})
    for each in params:
        assert tuple(each) == space.active(each)
        assert all(space.domains[name].contains(value) for name, value in each.items())
        assert all(type(value) is TYPES.get(name, float) for name, value in each.items())
    assert len({each["solver"] for each in params}) > 1
    for suggestion in lab.suggestions:
        assert suggestion["config"] == space.config(suggestion["params"]).to_dict()
        assert suggestion["params"] == params[suggestion["number"]]
    assert lab.most_at_once == 2
    assert set(states(study)) <= FINAL and TrialState.COMPLETE in states(study)
    for trial in study.trials:
        trained = lab.metrics(trial.number)
        assert trial.intermediate_values == {entry["epoch"]: entry["acc"] for entry in trained}
        whole = len(trained) == EPOCHS
        assert trial.state == (TrialState.COMPLETE if whole else TrialState.PRUNED)
        assert trial.value == trained[-1]["acc"]
        assert len(trained) in ((1, 3, EPOCHS) if scheduler == "asha" else (EPOCHS,))


@every_search
def test_a_resumed_search_goes_on_as_if_nothing_had_happened(sampler: str, scheduler: str) -> None:
    """Killed after a proposal, in the midst of a leg, and after another proposal: with one slot, the same search."""
    given = {"sampler": sampler, "scheduler": scheduler, "most_trials": 10}
    whole = Lab().run(searcher_of(new_study(), **given))
    study, cut = new_study(), Lab()
    for kill_at in (2, 7, 8, 10, None):
        cut.suggestions = cut.suggestions[:-1]  # the last leg before a kill is proposed again
        cut.run(searcher_of(study, metrics=cut.metrics, **given), kill_at=kill_at, epochs_before_kill=kill_at == 7)
    assert cut.suggestions == whole.suggestions
    assert cut.history == whole.history
    assert set(states(study)) <= FINAL


@every_search
def test_all_values_tie(sampler: str, scheduler: str) -> None:
    study = new_study()
    Lab(constant).run(searcher_of(study, sampler=sampler, scheduler=scheduler, slots=3, most_trials=10))
    assert len(study.trials) == 10 and set(states(study)) <= FINAL


@every_search
def test_trials_that_diverge_or_fail(sampler: str, scheduler: str) -> None:
    """A third of the configs diverge in their first or third epoch, some can't be trained at all."""

    def value_of(params: dict[str, Any], epoch: int) -> float:
        if params["cutout_px"] > 10:
            raise Failure("RuntimeError: out of memory")
        return math.nan if params["lr_scale"] > 4 and epoch == 1 + params["cutout_px"] % 3 else smooth(params, epoch)

    study = new_study()
    lab = Lab(value_of).run(searcher_of(study, sampler=sampler, scheduler=scheduler, slots=2, most_trials=16))
    assert len(study.trials) == 16 and set(states(study)) <= FINAL
    failed = [trial for trial in study.trials if trial.state == TrialState.FAIL]
    assert 0 < len(failed) < 16
    for trial in failed:
        if trial.params["cutout_px"] > 10:
            assert trial.user_attrs["reason"] == "RuntimeError: out of memory" and not trial.intermediate_values
        else:
            epoch = 1 + trial.params["cutout_px"] % 3
            assert trial.user_attrs["reason"] == f"diverged at epoch {epoch}"
            assert set(trial.intermediate_values) == set(range(1, epoch))
            assert len(lab.metrics(trial.number)) == epoch


@every_search
def test_all_trials_diverge(sampler: str, scheduler: str) -> None:
    study = new_study()
    Lab(lambda params, epoch: math.nan).run(searcher_of(study, sampler=sampler, scheduler=scheduler, slots=2))
    assert states(study) == [TrialState.FAIL] * 12


@every_search
def test_a_small_space_is_used_up_before_anything_is_tried_twice(sampler: str, scheduler: str) -> None:
    study = new_study()
    Lab(constant).run(searcher_of(study, SIX, sampler=sampler, scheduler=scheduler, slots=2, most_trials=9))
    params = [tuple(trial.params.values()) for trial in study.trials]
    assert len(set(params[:6])) == 6
    assert len(params) == (6 if sampler == "grid" else 9)  # a grid ends where it is used up
    assert set(states(study)) <= FINAL


@every_sampler
def test_a_space_of_one_point(sampler: str) -> None:
    study = new_study()
    Lab(constant).run(searcher_of(study, ONE, sampler=sampler, most_trials=7))
    assert {tuple(trial.params.values()) for trial in study.trials} == {(8, 1.0)}
    assert len(study.trials) == (1 if sampler == "grid" else 7)
    assert set(states(study)) <= FINAL


@every_sampler
@pytest.mark.parametrize("dimensions", [1, 30])
def test_dimensions(sampler: str, dimensions: int) -> None:
    domains = {f"x{index}": Uniform(0.0, 1.0) for index in range(dimensions)}
    space = PlainSpace(Point(epochs=EPOCHS, **dict.fromkeys(domains, 0.3)), dict(domains))
    lab = Lab(lambda params, epoch: params["x0"] * epoch / EPOCHS)
    if sampler == "grid" and dimensions == 30:
        with pytest.raises(InputError, match=r"the grid of this space has .* points.*--sampler qmc"):
            searcher_of(new_study(), space, sampler=sampler)
        return
    study = new_study()
    lab.run(searcher_of(study, space, sampler=sampler, most_trials=9))
    values = [trial.params["x0"] for trial in study.trials]
    assert len(values) == (6 if sampler == "grid" else 9) and all(0 <= value <= 1 for value in values)
    assert dimensions == 30 or len(set(values)) >= 5


@every_sampler
def test_values_that_make_no_sense_together_are_not_proposed(sampler: str) -> None:
    """Ghosts of 32 divide batches of 64, not of 48."""
    domains = {"batch_size": Choice((48, 64)), "ghost_batch": Choice((0, 32)), "lr_scale": LogUniform(1 / 8, 16)}
    space = SearchSpace(Config(epochs=EPOCHS, batch_size=64), domains)
    study = new_study()
    Lab(by_lr).run(searcher_of(study, space, sampler=sampler, most_trials=14))
    seen = {(trial.params["batch_size"], trial.params["ghost_batch"]) for trial in study.trials}
    assert seen == {(48, 0), (64, 0), (64, 32)}


@every_sampler
def test_refused_configs_are_not_proposed(sampler: str) -> None:
    space = SearchSpace(Config(epochs=EPOCHS, width=2), {"width": IntUniform(1, 8), "lr_scale": LogUniform(1 / 8, 16)})
    study, refused = new_study(), lambda config: "too wide" if config.width > 4 else None
    Lab(by_lr).run(searcher_of(study, space, sampler=sampler, most_trials=14, refused=refused))
    widths = {trial.params["width"] for trial in study.trials}
    assert max(widths) <= 4 and len(widths) > 1 and len(study.trials) >= 10


@pytest.mark.parametrize("sampler", [name for name in ALL if name != "grid"])
def test_a_space_without_a_possible_point_is_an_input_error(sampler: str) -> None:
    searcher = searcher_of(new_study(), sampler=sampler, refused=lambda config: "whatever it is")
    with pytest.raises(InputError, match="not one is possible"):
        Lab().run(searcher)


@every_sampler
def test_seeds_differ_and_repeat(sampler: str) -> None:
    runs = [Lab().run(searcher_of(new_study(), sampler=sampler, seed=seed, most_trials=8)) for seed in (0, 0, 1)]
    first, again, other = ([leg["params"] for leg in lab.suggestions] for lab in runs)
    assert first == again != other and first[0] == other[0]
    seeds = [{leg["number"]: leg["seed"] for leg in lab.suggestions} for lab in runs]
    assert seeds[0] == seeds[1] and len({*seeds[0].values(), *seeds[2].values()}) == 16


@every_sampler
def test_parallel_proposals_differ_and_slots_may_change(sampler: str) -> None:
    study = new_study()
    searcher = searcher_of(study, sampler=sampler, slots=8, most_trials=20)
    made = [searcher.suggest(str(index)) for index in range(8)]
    assert searcher.suggest("more") is None
    assert len({tuple(leg["params"].values()) for leg in made}) == 8
    assert [leg["number"] for leg in made] == list(range(8))
    searcher.slots = 9
    assert searcher.suggest("more")["number"] == 8


def test_tpe_is_silent_about_parameters_that_come_and_go(caplog: pytest.LogCaptureFixture) -> None:
    optuna.logging.enable_propagation()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with caplog.at_level(logging.WARNING):
            Lab(by_lr).run(searcher_of(new_study(), MIXED, sampler="tpe", most_trials=20))
    finally:
        optuna.logging.disable_propagation()
    assert not caplog.records


@pytest.mark.parametrize("sampler", ["tpe", MODEL])
def test_a_model_learns_where_the_best_values_lie(sampler: str) -> None:
    """Full trainings of a smooth surface: the later half is nearer to its best point (lr_scale 4) than random draws."""
    late = {}
    for name in (sampler, "random"):
        study = new_study()
        Lab(by_lr).run(searcher_of(study, SPACE, sampler=name, scheduler="none", most_trials=30))
        far = sorted(abs(math.log2(trial.params["lr_scale"] / 4)) for trial in study.trials[15:])
        late[name] = far[len(far) // 2]
    assert late[sampler] < 0.75 * late["random"]
