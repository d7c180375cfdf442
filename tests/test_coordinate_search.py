"""The coordinate search: its published path, step by step, and what an experiment makes of it."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
from driver import EPOCHS, Lab, new_study, searcher_of, smooth
from optuna.trial import TrialState

from model.config import Config
from search_spaces.coordinate_search import SPACE as EXPERIMENT
from search_spaces.space import Choice, IntUniform, LogUniform, SearchSpace, Uniform
from tune.objective import Objective
from tune.plan import Options, _check_numbers
from tune.report_data import Seen
from tune.results import RunResults

SPACE = EXPERIMENT.space("full")
FIXED = {"scheduler": "none", "sampler": "coordinate"}

PATH = [  # (lambda, rho, alpha) and accuracy; rows with a comment are published, the others chosen to lead there
    ((0.001, 0.5, 0.01), 0.306),  # run 0
    ((0.0005, 0.5, 0.01), 0.25),
    ((0.002, 0.5, 0.01), 0.40),
    ((0.004, 0.5, 0.01), 0.55),
    ((0.008, 0.5, 0.01), 0.70),
    ((0.016, 0.5, 0.01), 0.80),
    ((0.032, 0.5, 0.01), 0.87),
    ((0.064, 0.5, 0.01), 0.905),
    ((0.128, 0.5, 0.01), 0.92),
    ((0.256, 0.5, 0.01), 0.930),  # best after run 10
    ((0.512, 0.5, 0.01), 0.925),
    ((0.512, 0.0, 0.01), 0.91),
    ((0.128, 0.75, 0.01), 0.932),  # best after run 13
    ((0.064, 0.875, 0.01), 0.931),
    ((0.256, 0.75, 0.005), 0.934),
    ((0.512, 0.75, 0.0025), 0.936),
    ((1.024, 0.75, 0.00125), 0.939),  # best after run 17
    ((2.048, 0.75, 0.000625), 0.938),
    ((2.048, 0.75, 0.00125), 0.92),
    ((0.512, 0.75, 0.00125), 0.941),  # best after run 20
    ((0.256, 0.75, 0.00125), 0.940),
    ((0.256, 0.875, 0.00125), 0.942),  # best after run 22
    ((0.128, 0.9375, 0.00125), 0.941),
    ((0.512, 0.875, 0.000625), 0.941),  # a cycle that brings nothing
    ((0.128, 0.875, 0.0025), 0.940),
    ((0.128, 0.875, 0.00125), 0.941),
    ((0.512, 0.875, 0.00125), 0.940),
]
TABLE = dict(PATH)
HAND_SET, BEST = (0.4, 0.9, 0.0005), (0.256, 0.875, 0.00125)


def fields_of(config: dict[str, Any]) -> tuple[float, ...]:
    return config["peak_lr"], config["momentum"], config["weight_decay"]


def published(params: dict[str, Any], epoch: int) -> float:
    """0.941 for the hand-set values."""
    return TABLE.get(fields_of(SPACE.config(params).to_dict()), 0.941) * epoch / SPACE.base.epochs


def trials_of(lab: Lab) -> list[tuple[float, ...]]:
    return [fields_of(suggestion["config"]) for suggestion in lab.suggestions]


def test_the_published_path() -> None:
    """Line by line as in the post: down from the start, then 8 doublings; 1 - rho up, then down; alpha down at once."""
    space = SearchSpace(SPACE.base, SPACE.domains, coordinates=SPACE.coordinates)
    lab = Lab(published).run(searcher_of(new_study(), space, most_trials=100, **FIXED))
    assert trials_of(lab) == [values for values, _ in PATH]
    accs = [acc for _, acc in PATH]
    for run, best in [(0, 0), (10, 9), (13, 12), (17, 16), (20, 19), (22, 21), (26, 21)]:
        assert max(accs[: run + 1]) == accs[best]


def test_rho_and_alpha_move_at_one_rate_of_decay() -> None:
    for (rate, rho, alpha), _ in PATH[11:18]:
        assert rate * alpha / (1 - rho) == pytest.approx(5.12e-3)


def experiment_run(most_trials: int, **given: Any) -> tuple[Lab, Any]:
    study = new_study()
    options = {"sampler": "cells after search", "scheduler": "none", "most_trials": most_trials, **given}
    return Lab(published).run(searcher_of(study, SPACE, **options)), study


def test_an_experiment_spends_the_rest_on_further_seeds() -> None:
    """28 trials for the start, the hand-set values and the search, then those and the best in turn."""
    lab, _ = experiment_run(33)
    expected = [PATH[0][0], HAND_SET, *(values for values, _ in PATH[1:])]
    assert trials_of(lab) == [*expected, BEST, HAND_SET, BEST, HAND_SET, BEST]
    seeds = [suggestion["seed"] for suggestion in lab.suggestions]
    assert len({*seeds[:28]}) == 1  # points are compared on one seed, the search and the further ones on others
    assert seeds[28] == seeds[29] and seeds[30] == seeds[31] and len({seeds[0], *seeds[28:]}) == 4


def test_a_scale_asks_for_what_its_search_and_its_seeds_take() -> None:
    scale = EXPERIMENT.scales["full"]
    assert scale.trials == 28 + 2 * 10 and scale.epochs == 48 * 24
    assert list(SPACE.bases) == list(scale.cells.values())
    hand_set = SPACE.config(SPACE.params_of(SPACE.bases[1]))
    assert hand_set == scale.cells["hand-set"]


@pytest.mark.parametrize("kills", [(2, 3, 9), (11, 12, 28), (29, 30, 31)])
def test_a_resumed_search_goes_on_as_if_nothing_had_happened(kills: tuple[int, ...]) -> None:
    whole, _ = experiment_run(32)
    study, cut = new_study(), Lab(published)
    for kill_at in (*kills, None):
        options = {"sampler": "cells after search", "scheduler": "none", "most_trials": 32, "metrics": cut.metrics}
        cut.suggestions = cut.suggestions[:-1]  # the last before a kill is proposed again
        cut.run(searcher_of(study, SPACE, **options), kill_at=kill_at, epochs_before_kill=3)
    assert cut.suggestions == whole.suggestions and cut.history == whole.history


def test_slots_that_have_nothing_to_do_wait() -> None:
    alone, _ = experiment_run(32)
    lab, study = experiment_run(32, slots=3)
    assert lab.suggestions == alone.suggestions and {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    searcher = searcher_of(new_study(), SPACE, slots=3, **FIXED)
    assert [searcher.suggest(str(slot)) is None for slot in range(3)] == [False, False, True]  # the two bases


def test_steps_of_every_kind_of_domain() -> None:
    """From the base one step down and one up of each, where nothing is better: factors of two, eighths of a range, at
    least 1 where only whole numbers are, and the neighbours of a choice, whose last is the first one's."""
    space = SearchSpace(
        Config(epochs=EPOCHS, lr_scale=1.0, warmup_frac=0.25, cutout_px=8, net="resnet9"),
        {
            "lr_scale": LogUniform(1 / 8, 1.5),  # no room for a doubling
            "warmup_frac": Uniform(0.0, 0.5),
            "cutout_px": IntUniform(0, 9),
            "residual_layers": Choice(("13", "none", "2")),
            "batch_size": IntUniform(256, 768),
        },
    )
    lab = Lab(lambda params, epoch: 0.5).run(searcher_of(new_study(), space, most_trials=50, **FIXED))
    base = space.params_of(space.base)
    changed = [{k: v for k, v in s["params"].items() if v != base[k]} for s in lab.suggestions]
    assert changed == [
        {},
        {"lr_scale": 0.5},
        {"warmup_frac": 0.1875},
        {"warmup_frac": 0.3125},
        {"cutout_px": 7},
        {"cutout_px": 9},
        {"residual_layers": "2"},
        {"residual_layers": "none"},
        {"batch_size": 448},
        {"batch_size": 576},
    ]


def test_a_parameter_that_comes_to_life_is_searched_from_the_middle() -> None:
    space = SearchSpace(
        Config(epochs=EPOCHS, solver="adam"),
        {"solver": Choice(("adam", "sgd")), "momentum": Uniform(0.5, 0.9, only_if={"solver": ("sgd",)})},
    )

    def value_of(params: dict[str, Any], epoch: int) -> float:
        return 0.5 + params.get("momentum", 0.0) / 10

    lab = Lab(value_of).run(searcher_of(new_study(), space, most_trials=50, **FIXED))
    tried = [suggestion["params"] for suggestion in lab.suggestions]
    assert tried[0] == {"solver": "adam"} and all(each["solver"] == "sgd" for each in tried[1:])
    momenta = [each["momentum"] for each in tried[1:]]
    assert momenta == pytest.approx([0.7, 0.65, 0.75, 0.8, 0.85, 0.9])


def by_lr(best: float) -> Any:
    return lambda params, epoch: 0.5 - 0.01 * abs(math.log2(params["lr_scale"] / best))


@pytest.mark.parametrize("bad", ["diverges", "ties"])
def test_what_diverges_or_ties_is_worse(bad: str) -> None:
    """Better up to 2; at 4 it diverges or is as good as at 2, though 8 would be better still."""
    space = SearchSpace(Config(epochs=EPOCHS), {"lr_scale": LogUniform(1 / 8, 16)})

    def value_of(params: dict[str, Any], epoch: int) -> float:
        at_4 = math.nan if bad == "diverges" else by_lr(16)({"lr_scale": 2.0}, epoch)
        return at_4 if params["lr_scale"] == 4 else by_lr(16)(params, epoch)

    lab = Lab(value_of).run(searcher_of(new_study(), space, most_trials=50, **FIXED))
    assert [suggestion["params"]["lr_scale"] for suggestion in lab.suggestions] == [1, 0.5, 2, 4]


def test_a_start_that_diverges_is_left_for_anything_that_does_not() -> None:
    space = SearchSpace(Config(epochs=EPOCHS, lr_scale=8.0), {"lr_scale": LogUniform(1 / 8, 16)})
    lab = Lab(lambda params, epoch: math.nan if params["lr_scale"] > 4 else by_lr(2)(params, epoch))
    lab.run(searcher_of(new_study(), space, most_trials=50, **FIXED))
    assert [suggestion["params"]["lr_scale"] for suggestion in lab.suggestions] == [8, 4, 2, 1]
    nowhere = Lab(lambda params, epoch: math.nan).run(searcher_of(new_study(), space, most_trials=50, **FIXED))
    assert [suggestion["params"]["lr_scale"] for suggestion in nowhere.suggestions] == [8, 4, 16]


def test_what_is_refused_is_worse_and_not_trained() -> None:
    space = SearchSpace(Config(epochs=EPOCHS, width=2), {"width": IntUniform(1, 8)})
    refused = lambda config: "too wide" if config.width > 4 else None  # noqa: E731
    lab = Lab(lambda params, epoch: params["width"] / 10)
    lab.run(searcher_of(new_study(), space, most_trials=50, refused=refused, **FIXED))
    assert [suggestion["params"]["width"] for suggestion in lab.suggestions] == [2, 1, 3, 4]


def test_better_is_what_the_objective_says() -> None:
    """All reach the target, the smaller the faster: accuracy alone would go up."""
    space = SearchSpace(Config(epochs=EPOCHS, width=4), {"width": IntUniform(2, 8)})
    given = {"objective": Objective("flops-to-target", 0.1), "cost": lambda config: config.width / 4}
    lab = Lab(lambda params, epoch: params["width"] / 10)
    lab.run(searcher_of(new_study(), space, most_trials=50, **given, **FIXED))
    assert [suggestion["params"]["width"] for suggestion in lab.suggestions] == [4, 3, 2]


def test_on_a_smooth_surface_it_ends_where_no_neighbour_is_better() -> None:
    study = new_study()
    lab = Lab(smooth).run(searcher_of(study, most_trials=200, slots=2, **FIXED))
    best = max(study.trials, key=lambda trial: trial.value).params
    tried = [suggestion["params"] for suggestion in lab.suggestions]
    for name, step in [("cutout_px", 2), ("cutout_px", -2), ("warmup_frac", 0.45 / 8), ("warmup_frac", -0.45 / 8)]:
        assert any(each[name] == pytest.approx(best[name] + step) for each in tried)
    assert len(tried) == len({tuple(each.values()) for each in tried}) < 40
    assert best["lr_scale"] == 8 and smooth(best, EPOCHS) > 0.88  # the best is 2**2.6


def test_it_takes_full_trainings() -> None:
    with pytest.raises(ValueError, match="--scheduler asha doesn't go with --sampler coordinate"):
        _check_numbers(Options(sampler="coordinate", scheduler="asha"))
    _check_numbers(Options(sampler="coordinate"))


def found_by(trials: int) -> RunResults:
    """The results of an experiment after so many trials."""
    lab, study = experiment_run(trials)
    seen = []
    for trial in study.trials:
        accs = [epoch["acc"] for epoch in lab.history[trial.number]]
        last = {"acc": accs[-1]}
        seen.append(Seen(trial.number, trial.params, "full length", 24, [], trial.value, accs=accs, last=last))
    run = SimpleNamespace(manifest=SimpleNamespace(scale="full", counts={"val": 5000}), space=SPACE)
    return RunResults(SimpleNamespace(run=run, trials=seen, confirm=None), EXPERIMENT)  # type: ignore[arg-type]


def test_results_of_a_search_are_its_runs_and_what_it_found() -> None:
    results = found_by(32)
    assert list(results.cells)[:4] == [
        "start",
        "hand-set",
        "run 1: decay_rate_by_lr 1e-05",
        "run 2: decay_rate_by_lr 4e-05",
    ]
    assert "run 12: momentum_steps 4" in results.cells and "run 16: weight_decay 0.00125" in results.cells
    assert len(results.cells) == 29 and list(results.cells)[-1] == "tuned"
    assert fields_of(results.cells["tuned"].to_dict()) == BEST
    assert results.cells["run 21: momentum_steps 8"] == results.cells["tuned"]
    assert [len(results.values(cell)) for cell in ("start", "hand-set", "run 21: momentum_steps 8", "tuned")] == [
        1, 3, 1, 2
    ]  # fmt: skip
    difference = results.difference("tuned", "hand-set")
    assert difference and difference.n == 2 and difference.mean == pytest.approx(0.001)


def test_claims_of_a_search() -> None:
    quick, equal = EXPERIMENT.claims
    for trials, text in [(2, "after 1 trainings"), (20, "after 19 trainings"), (28, "after 27 trainings")]:
        finding = quick.judged(found_by(trials))
        assert finding.kind == "undecided" and text in finding.text
        assert equal.judged(found_by(trials)).kind == "undecided"
    findings = [claim.judged(found_by(48)) for claim in (quick, equal)]
    assert [finding.kind for finding in findings] == ["reproduced", "reproduced"]
    assert "27 trainings, 30.6% to 94.2% on their common seed, to peak_lr 0.256, momentum 0.875" in findings[0].text
    assert findings[0].estimate and findings[0].estimate.n == 10
