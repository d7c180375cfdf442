"""What the sampler gp is for, measured on surfaces whose best point is known; every search repeats exactly."""

import math
from functools import cache
from typing import Any

import numpy as np
from driver import EPOCHS, SPACE, Lab, new_study, searcher_of, smooth, value_near

from search_spaces.space import IntUniform, LogUniform, SearchSpace, Uniform
from tune.cube import params_at, shares_of
from tune.model_sampler import Earlier

SEEDS = range(4)


def regret(
    value_of: Any = smooth, space: SearchSpace = SPACE, *, seed: int, trainings: float = 12, **given: Any
) -> float:
    """How much the best finished trial of a search falls short of 0.9, the best there is."""
    search = searcher_of(new_study(), space, seed=seed, budget=trainings * EPOCHS, slots=2, **given)
    Lab(value_of).run(search)
    incumbent = search.incumbent
    return 0.9 - (incumbent.accs[-1] if incumbent else 0.0)


@cache
def plain() -> list[float]:
    return [regret(seed=seed) for seed in SEEDS]


def test_it_beats_random_search_at_equal_budget() -> None:
    model, random = plain(), [regret(seed=seed, sampler="random") for seed in SEEDS]
    assert sum(a < b for a, b in zip(model, random, strict=True)) >= 3
    assert np.mean(model) < 0.6 * np.mean(random)


def test_early_values_help() -> None:
    """With rungs the same budget pays for more configs than without, and finds better ones."""
    without = [regret(seed=seed, scheduler="none") for seed in SEEDS]
    assert np.mean(plain()) < np.mean(without)


def prior_space(lr_scale: float, warmup_frac: float, cutout_px: int) -> SearchSpace:
    return SearchSpace(
        SPACE.base,
        {
            "lr_scale": LogUniform(1 / 8, 16, prior=lr_scale),
            "warmup_frac": Uniform(0.05, 0.5, prior=warmup_frac),
            "cutout_px": IntUniform(0, 12, prior=cutout_px),
        },
    )


@cache
def plain_gaps() -> Any:
    return gaps()


def gaps(space: SearchSpace = SPACE, **given: Any) -> Any:
    """How far the full training of each trial of a search would fall short of 0.9, in order; the mean of some seeds."""
    searches = []
    for seed in SEEDS:
        study = new_study()
        Lab().run(searcher_of(study, space, seed=seed, slots=2, most_trials=20, **given))
        searches.append([0.9 - smooth(trial.params, EPOCHS) for trial in study.trials])
    return np.mean(searches, axis=0)


def test_a_right_prior_speeds_up_and_a_wrong_one_is_overcome() -> None:
    """The best point is at shares 0.8, 0.3, 0.5. The first five trials don't ask the model."""
    none, right, wrong = plain_gaps(), gaps(prior_space(6.06, 0.185, 6)), gaps(prior_space(0.2, 0.45, 11))
    assert right[5:10].mean() < 0.8 * none[5:10].mean()
    assert wrong[16:].mean() < none[16:].mean() + 0.02


def test_a_single_trial_is_finished_however_bad_it_begins() -> None:
    study = new_study()
    lab = Lab(lambda params, epoch: 0.1 if epoch < EPOCHS else 0.8).run(searcher_of(study, budget=5.0, most_trials=1))
    assert len(lab.metrics(0)) == EPOCHS and study.trials[0].value == 0.8


def observations(value_of: Any, count: int) -> Earlier:
    """Random configs of an earlier search, after a third of their training and at their end."""
    rng = np.random.default_rng(9)
    shares = rng.random((count, len(SPACE.domains)))
    result: Earlier = []
    for row in shares:
        params = params_at(SPACE, row)
        row = shares_of(SPACE, params)
        result.append((row, math.log(3) / math.log(9), value_of(params, 3)))
        result.append((row, 1.0, value_of(params, EPOCHS)))
    return result


def test_an_earlier_search_of_the_same_surface_helps() -> None:
    """40 earlier trials against none, at the beginning of a search; those of another surface do little harm."""
    same, other = (
        observations(smooth, 40),
        observations(value_near({"lr_scale": 0.1, "warmup_frac": 0.9, "cutout_px": 0.1}), 40),
    )
    none, helped, misled = plain_gaps(), gaps(earlier=[same]), gaps(earlier=[other])
    assert helped[1:10].mean() < 0.6 * none[1:10].mean()
    assert misled.mean() < none.mean() + 0.03
