"""Coordinates: values by hand, the way there and back, and what a space refuses."""

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest

from model.config import Config, InputError
from model.recipes import s0, s8
from search_spaces.coordinates import (
    COORDINATES,
    DECAY_RATE,
    DECAY_RATE_BY_LR,
    EFFECTIVE_LR,
    MOMENTUM_STEPS,
    Coordinate,
)
from search_spaces.space import Choice, LogUniform, SearchSpace, Uniform

BOTH = SearchSpace(
    s0(),
    {
        "decay_rate": LogUniform(1e-5, 1e-2),
        "momentum": Uniform(0.5, 0.99),
        "effective_lr": LogUniform(0.1, 40),
        "lr_scale": Choice((1.0, 2.0)),
    },
    coordinates=(DECAY_RATE, EFFECTIVE_LR),
)


def refusal(*args: Any, **kwargs: Any) -> str:
    """The message of the InputError that a space raises, which is one line."""
    with pytest.raises(InputError) as caught:
        SearchSpace(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_values_by_hand() -> None:
    """S0: 0.4 / (1 - 0.9) = 4, and 5e-4 of it is 0.002, both without the noise of binary fractions."""
    assert EFFECTIVE_LR.from_field(s0()) == 4.0 and DECAY_RATE.from_field(s0()) == 0.002
    config = Config(peak_lr=0.3, lr_scale=2.0, momentum=0.5, weight_decay=0.01)
    assert EFFECTIVE_LR.from_field(config) == 1.2 and DECAY_RATE.from_field(config) == 0.012
    assert EFFECTIVE_LR.to_field(2.4, config) == 0.6 and DECAY_RATE.to_field(0.006, config) == 0.005


def test_a_solver_without_momentum_counts_as_momentum_0() -> None:
    adam = Config(solver="adam")
    assert EFFECTIVE_LR.from_field(adam) == 0.4 and DECAY_RATE.from_field(adam) == 2e-4
    assert DECAY_RATE.to_field(2e-4, adam) == 5e-4


def test_steps_of_momentum_by_hand() -> None:
    assert MOMENTUM_STEPS.from_field(s0()) == 10.0 and MOMENTUM_STEPS.from_field(Config(solver="adam")) == 1.0
    steps = {0.0: 1.0, 0.5: 2.0, 0.75: 4.0, 0.875: 8.0, 0.9: 10.0}
    assert {momentum: MOMENTUM_STEPS.from_field(Config(momentum=momentum)) for momentum in steps} == steps
    assert {MOMENTUM_STEPS.to_field(value, s0()): value for value in steps.values()} == steps


def test_the_rate_makes_up_for_momentum_and_decay() -> None:
    """0.256 * 0.01 / (1 - 0.5) = 0.00512; at 4 steps and half the decay the same takes 0.256 again."""
    space = SearchSpace(
        Config(peak_lr=0.256, momentum=0.5, weight_decay=0.01),
        {
            "decay_rate_by_lr": LogUniform(1e-5, 0.1),
            "momentum_steps": LogUniform(1, 64),
            "weight_decay": LogUniform(1e-5, 0.1),
        },
        coordinates=(DECAY_RATE_BY_LR, MOMENTUM_STEPS),
    )
    start = space.params_of(space.base)
    assert start == {"decay_rate_by_lr": 0.00512, "momentum_steps": 2.0, "weight_decay": 0.01}
    assert space.config({**start, "momentum_steps": 4.0, "weight_decay": 0.005}) == Config(
        peak_lr=0.256, momentum=0.75, weight_decay=0.005
    )
    assert space.config({**start, "decay_rate_by_lr": 0.01024}).peak_lr == 0.512
    assert SearchSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space


def test_the_field_follows_from_the_coordinate_and_the_others() -> None:
    space = SearchSpace(
        s0(),
        {"decay_rate": LogUniform(1e-4, 1e-2), "momentum": Uniform(0.5, 0.99), "lr_scale": LogUniform(0.5, 2)},
        coordinates=(DECAY_RATE,),
    )
    params = {"decay_rate": 0.004, "momentum": 0.5, "lr_scale": 2.0}
    config = space.config(params)
    assert config == Config(momentum=0.5, lr_scale=2.0, weight_decay=0.0025)  # 0.004 * 0.5 / (0.4 * 2)
    assert space.params_of(config) == params
    # what is not given is the base's decay rate, not its weight decay
    assert space.config({"momentum": 0.8}) == Config(momentum=0.8, weight_decay=0.001)
    assert space.config({}) == s0()


def test_two_coordinates_are_applied_in_their_order() -> None:
    params = {"decay_rate": 0.004, "momentum": 0.5, "effective_lr": 2.0, "lr_scale": 2.0}
    config = BOTH.config(params)
    assert config == Config(peak_lr=0.5, lr_scale=2.0, momentum=0.5, weight_decay=0.002)  # 2 * .5 / 2; .004 * .5 / 1
    assert BOTH.params_of(config) == params
    assert [coordinate.name for coordinate in BOTH.coordinates] == ["effective_lr", "decay_rate"]


def test_there_and_back_to_12_digits() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        params = {
            "decay_rate": float(10 ** rng.uniform(-5, -2)),
            "momentum": float(rng.uniform(0.5, 0.99)),
            "effective_lr": float(10 ** rng.uniform(-1, 1.6)),
            "lr_scale": float(rng.choice([1, 2])),
        }
        config = BOTH.config(params)
        back = BOTH.params_of(config)
        assert list(back) == list(params)
        assert all(math.isclose(back[name], params[name], rel_tol=1e-12) for name in params)
        again = BOTH.config(back)
        for name in ("peak_lr", "weight_decay"):
            assert math.isclose(getattr(again, name), getattr(config, name), rel_tol=1e-12)


def test_a_base_comes_back_bit_for_bit() -> None:
    for base in (s0(), s8(), Config(peak_lr=0.3, momentum=0.7, weight_decay=0.0007), Config(momentum=0.95)):
        space = BOTH.with_base(base)
        assert space.config(space.params_of(base)) == base


def test_a_condition_on_a_coordinate() -> None:
    space = SearchSpace(
        Config(weight_decay=1e-3),
        {
            "solver": Choice(("sgd", "adam")),
            "decay_rate": LogUniform(1e-4, 1e-2, only_if={"solver": ("sgd",)}),
        },
        coordinates=(DECAY_RATE,),
    )
    adam = space.config({"solver": "adam"})
    assert adam == Config(solver="adam", weight_decay=1e-3) and space.params_of(adam) == {"solver": "adam"}


def test_further_bases_differ_in_the_field_of_a_coordinate_where_it_is_active() -> None:
    domains = {"decay_rate": LogUniform(1e-4, 1e-2), "momentum": Uniform(0.5, 0.99)}
    other = Config(weight_decay=0.0012345, momentum=0.77)
    space = SearchSpace(s0(), domains, more_bases=(other,), coordinates=(DECAY_RATE,))
    assert space.bases == (s0(), other)
    assert SearchSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space
    message = refusal(s0(), domains, more_bases=(Config(peak_lr=0.5),), coordinates=(DECAY_RATE,))
    assert "a further base has peak_lr = 0.5, the base 0.4" in message


def test_json_has_the_name() -> None:
    content = json.loads(json.dumps(BOTH.to_dict()))
    assert content["coordinates"] == ["effective_lr", "decay_rate"]
    assert SearchSpace.from_dict(content) == BOTH
    assert {name: coordinate.name for name, coordinate in COORDINATES.items()} == {n: n for n in COORDINATES}


@pytest.mark.parametrize(
    ("domains", "coordinates", "facts"),
    [
        ({"decay_rate": LogUniform(1e-4, 1e-2)}, (), ["'decay_rate' is a coordinate: add coordinates=(DECAY_RATE,)"]),
        ({"momentum": Uniform(0.5, 0.99)}, (DECAY_RATE,), ["coordinate decay_rate has no domain"]),
        (
            {"decay_rate": LogUniform(1e-4, 1e-2), "weight_decay": LogUniform(1e-4, 1e-2)},
            (DECAY_RATE,),
            ["decay_rate and weight_decay can't both be domains", "drop one"],
        ),
        ({"decay_rate": 0.002}, (DECAY_RATE,), ["decay_rate = 0.002 can't be a constant", "Choice((0.002,))"]),
        ({"decay_rate": Choice(("a", "b"))}, (DECAY_RATE,), ["domain decay_rate", "a coordinate takes numbers"]),
        (
            {"decay_rate": LogUniform(1e-4, 10)},
            (DECAY_RATE,),
            ["domain decay_rate", "weight_decay = 2.5 is not allowed"],
        ),
        (
            {"decay_rate": LogUniform(1e-4, 1e-3)},
            (DECAY_RATE,),
            ["the base has decay_rate = 0.002, outside of its domain LogUniform"],
        ),
        (
            {"decay_rate": LogUniform(1e-4, 1e-2), "decay_rate_by_lr": LogUniform(1e-4, 1e-2)},
            (DECAY_RATE, DECAY_RATE_BY_LR),
            ["decay_rate doesn't hold beside decay_rate_by_lr", "drop one"],
        ),
        (
            {"effective_lr": LogUniform(1, 8), "decay_rate_by_lr": LogUniform(1e-4, 1e-2)},
            (EFFECTIVE_LR, DECAY_RATE_BY_LR),
            ["effective_lr doesn't hold beside decay_rate_by_lr", "drop one"],
        ),
        (
            {"decay_rate_by_lr": LogUniform(1e-4, 1e-2), "weight_decay": Uniform(0, 0.01)},
            (DECAY_RATE_BY_LR,),
            ["domain weight_decay", "peak_lr = inf is not allowed"],
        ),
        ({"momentum_steps": Uniform(0, 64)}, (MOMENTUM_STEPS,), ["domain momentum_steps", "momentum = -inf"]),
        ({"momentum": Uniform(0.5, 0.99)}, ("decay_rate",), ["coordinate 'decay_rate' is unknown", "DECAY_RATE"]),
        (
            {"momentum": Uniform(0.5, 0.99)},
            (dataclasses.replace(DECAY_RATE, name="mine"),),
            ["coordinate 'mine' is unknown", "EFFECTIVE_LR, DECAY_RATE"],
        ),
    ],
)
def test_what_is_refused(domains: dict[str, Any], coordinates: tuple[Coordinate, ...], facts: list[str]) -> None:
    message = refusal(s0(), domains, coordinates=coordinates)
    assert all(fact in message for fact in facts), message


def test_a_constant_rate_is_a_choice_of_one() -> None:
    space = SearchSpace(
        s0(), {"decay_rate": Choice((0.002,)), "lr_scale": LogUniform(0.5, 2)}, coordinates=(DECAY_RATE,)
    )
    assert space.config({"decay_rate": 0.002, "lr_scale": 2.0}) == Config(lr_scale=2.0, weight_decay=2.5e-4)
