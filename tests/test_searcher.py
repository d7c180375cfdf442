"""What the searcher proposes and what the study holds, driven as Ray drives it, without Ray."""

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers import RandomSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from model.config import Config
from search_spaces.space import Choice, IntUniform, LogUniform, SearchSpace, Uniform
from tune.scheduler import Rungs
from tune.searcher import SAMPLERS, OptunaSearcher

SPACE = SearchSpace(
    Config(epochs=9, lr_scale=1.0),
    {
        "lr_scale": LogUniform(1 / 8, 16),
        "warmup_frac": Uniform(0.05, 0.5),
        "cutout_px": IntUniform(0, 12),
        "flip": Choice((True, False)),
    },
)


def open_study(path: Path) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(path / "journal.log")))
    return optuna.create_study(
        study_name="search", storage=storage, direction="maximize", load_if_exists=True, sampler=RandomSampler()
    )


def searcher(
    path: Path, *, sampler: str = "tpe", seed: int = 0, slots: int = 2, space: SearchSpace = SPACE
) -> OptunaSearcher:
    return OptunaSearcher(open_study(path), space, Rungs(9, 3, 3), sampler=sampler, seed=seed, slots=slots)


def acc(params: dict[str, Any]) -> float:
    """Best at lr_scale 4, where it is 0.9."""
    return 0.9 - 0.1 * abs(math.log2(params["lr_scale"] / 4)) - 0.01 * params["cutout_px"] / 12


def finish(search: OptunaSearcher, trial_id: str, suggestion: dict[str, Any], *, epoch: int = 9, **given: Any) -> None:
    entry = {"epoch": epoch, "acc": acc(suggestion["params"]), "diverged": False, **given}
    search._rungs.record(suggestion["number"], [entry])
    search.on_trial_complete(trial_id, {"new_epochs": [entry], "failed": None})


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_proposals_lie_in_the_space_and_begin_with_the_base(tmp_path: Path, sampler: str) -> None:
    search = searcher(tmp_path, sampler=sampler, slots=1)
    seen = []
    for index in range(14):
        suggestion = search.suggest(str(index))
        assert suggestion is not None and suggestion["number"] == index
        params = suggestion["params"]
        assert all(domain.contains(params[name]) for name, domain in SPACE.domains.items())
        assert type(params["cutout_px"]) is int and type(params["flip"]) is bool
        assert Config.from_dict(suggestion["config"]) == SPACE.config(params)
        seen.append(params)
        finish(search, str(index), suggestion)
    assert seen[0] == SPACE.params_of(SPACE.base)
    assert len({tuple(params.values()) for params in seen}) == 14


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_values_that_make_no_sense_together_are_not_proposed(tmp_path: Path, sampler: str) -> None:
    """Ghosts of 32 divide batches of 64, not of 48; a resumed search goes on in the same sequence."""
    base = Config(epochs=9, batch_size=64)
    domains = {"batch_size": Choice((48, 64)), "ghost_batch": Choice((0, 32)), "lr_scale": LogUniform(1 / 8, 16)}
    space = SearchSpace(base, domains)
    seen = []
    for part in range(2):
        search = searcher(tmp_path, sampler=sampler, slots=1, space=space)
        for index in range(part * 10, part * 10 + 10):
            suggestion = search.suggest(str(index))
            assert suggestion is not None and suggestion["number"] == index
            seen.append((suggestion["params"]["batch_size"], suggestion["params"]["ghost_batch"]))
            search._rungs.record(index, [{"epoch": 9, "acc": 0.5, "diverged": False}])
            search.on_trial_complete(
                str(index), {"new_epochs": [{"epoch": 9, "acc": 0.5, "diverged": False}], "failed": None}
            )
    assert set(seen) == {(48, 0), (64, 0), (64, 32)}


def test_a_knob_without_effect_in_a_trial_stays_at_its_default_there(tmp_path: Path) -> None:
    """Momentum belongs to sgd: an adam trial has the default one, whatever was drawn for it."""
    space = SearchSpace(Config(), {"solver": Choice(("sgd", "adam")), "momentum": Uniform(0.5, 0.95)})
    search = searcher(tmp_path, sampler="random", slots=40, space=space)
    configs = [search.suggest(str(index))["config"] for index in range(40)]  # type: ignore[index]
    assert {config["momentum"] for config in configs if config["solver"] == "adam"} == {Config().momentum}
    assert len({config["momentum"] for config in configs if config["solver"] == "sgd"}) > 5


def test_no_more_trials_are_under_way_than_slots(tmp_path: Path) -> None:
    search = searcher(tmp_path, slots=2)
    first, second = search.suggest("a"), search.suggest("b")
    assert first and second and search.suggest("c") is None
    finish(search, "a", first)
    assert search.suggest("c") is not None


def test_states_in_the_study(tmp_path: Path) -> None:
    """Full length is COMPLETE, stopped at a rung PRUNED, diverged and failed FAIL with a reason; none stays RUNNING."""
    search = searcher(tmp_path, slots=9)
    suggestions = [search.suggest(str(index)) for index in range(6)]
    for index, value in enumerate([0.9, 0.8, 0.1]):
        entry = {"epoch": 3, "acc": value, "diverged": False}
        search._rungs.record(index, [entry])
        if index < 2:
            search.on_trial_result(str(index), {"new_epochs": [entry]})
    search.on_trial_complete("2", {"new_epochs": [entry], "failed": None})
    finish(search, "0", suggestions[0], acc=0.95)
    finish(search, "3", suggestions[3], epoch=1, diverged=True, acc=0.1)
    search.on_trial_complete("4", {"new_epochs": [], "failed": "RuntimeError: out of memory"})
    search.on_trial_complete("5", error=True)
    trials = open_study(tmp_path).trials
    assert [trial.state for trial in trials] == [
        TrialState.COMPLETE,
        TrialState.RUNNING,
        TrialState.PRUNED,
        TrialState.FAIL,
        TrialState.FAIL,
        TrialState.FAIL,
    ]
    assert trials[0].intermediate_values == {3: 0.9, 9: 0.95}
    assert trials[2].intermediate_values == {3: 0.1}  # with the report at which it was stopped
    assert trials[0].value == 0.95
    assert trials[3].user_attrs["reason"] == "diverged at epoch 1"
    assert trials[4].user_attrs["reason"] == "RuntimeError: out of memory"


def test_a_resumed_search_finishes_what_was_under_way_and_then_proposes_as_if_nothing_had_happened(
    tmp_path: Path,
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    proposals = {}
    for folder in (whole, cut):
        folder.mkdir()
        search = searcher(folder, slots=1)
        for index in range(12):
            if folder == cut and index == 9:
                abandoned = search.suggest("killed")
                search = _restarted(folder)
                suggestion = search.suggest("9")
                assert suggestion == abandoned
            else:
                suggestion = search.suggest(str(index))
            assert suggestion is not None
            proposals[folder, index] = suggestion
            finish(search, str(index), suggestion)
    assert [proposals[whole, index] for index in range(12)] == [proposals[cut, index] for index in range(12)]


def _restarted(folder: Path) -> OptunaSearcher:
    search = searcher(folder, slots=1)
    for trial in search._study.trials:
        epochs = [{"epoch": e, "acc": value, "diverged": False} for e, value in trial.intermediate_values.items()]
        search._rungs.record(trial.number, epochs)
    return search


def test_seeds_of_trials_differ_and_follow_from_the_search_seed(tmp_path: Path) -> None:
    seeds = {}
    for seed in (0, 1):
        for copy in ("a", "b"):
            folder = tmp_path / f"{seed}{copy}"
            folder.mkdir()
            search = searcher(folder, seed=seed, slots=5)
            seeds[seed, copy] = [search.suggest(str(index))["seed"] for index in range(5)]
    assert seeds[0, "a"] == seeds[0, "b"] != seeds[1, "a"]
    assert len({*seeds[0, "a"], *seeds[1, "a"]}) == 10


def test_the_model_learns_where_the_best_values_lie(tmp_path: Path) -> None:
    """A full-length search of a smooth surface ends up nearer to its best point (4.0) than random draws do."""
    distances = {}
    for sampler in ("tpe", "random"):
        folder = tmp_path / sampler
        folder.mkdir()
        search = searcher(folder, sampler=sampler, slots=1)
        late = []
        for index in range(40):
            suggestion = search.suggest(str(index))
            assert suggestion is not None
            finish(search, str(index), suggestion)
            if index >= 20:
                late.append(abs(math.log2(suggestion["params"]["lr_scale"] / 4)))
        distances[sampler] = sorted(late)[len(late) // 2]
    assert distances["tpe"] < distances["random"]


def test_a_value_of_an_early_rung_is_never_compared_with_a_final_one(tmp_path: Path) -> None:
    search = searcher(tmp_path, slots=30)
    for index in range(20):
        suggestion = search.suggest(str(index))
        assert suggestion is not None
        epoch = 9 if index < 8 else 3
        finish(search, str(index), suggestion, epoch=epoch)
    values = search._comparable_values()
    assert set(values) == set(range(8))


def test_a_diverged_trial_counts_as_the_worst_of_those_compared(tmp_path: Path) -> None:
    search = searcher(tmp_path, slots=30)
    for index in range(10):
        suggestion = search.suggest(str(index))
        assert suggestion is not None
        finish(search, str(index), suggestion, **({"diverged": True, "epoch": 1} if index == 4 else {}))
    values = search._comparable_values()
    assert values[4] == min(values.values()) > 0
