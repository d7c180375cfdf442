"""Params as shares of the unit cube, and what a model sees of them."""

from typing import Any

import numpy as np
import pytest

from model.config import Config
from search_spaces.space import Choice, Domain, IntUniform, LogUniform, SearchSpace, Uniform
from tune.cube import ABSENT, features, levels, params_at, shares_of, width

SPACE = SearchSpace(
    Config(),
    {
        "lr_scale": LogUniform(1 / 4, 16),
        "warmup_frac": Uniform(0.1, 0.5),
        "cutout_px": IntUniform(5, 8),
        "flip": Choice((True, False)),
        "solver": Choice(("sgd", "lars", "adam")),
        "momentum": Uniform(0.5, 0.9, only_if={"solver": ("sgd", "lars")}),
        "ema_decay": Choice((0.0, 0.5, 0.99)),
        "ema_every_steps": IntUniform(1, 9, only_if={"ema_decay": (0.5, 0.99)}),
    },
)
NAMES = list(SPACE.domains)


def test_params_at_shares_by_hand() -> None:
    shares = np.array([0.5, 0.25, 0.6, 0.2, 0.5, 0.75, 0.9, 0.5])
    assert params_at(SPACE, shares) == {
        "lr_scale": pytest.approx(2.0),  # half of the way from 1/4 to 16 in the logarithm
        "warmup_frac": pytest.approx(0.2),
        "cutout_px": 7,  # the third of four quarters
        "flip": True,
        "solver": "lars",
        "momentum": pytest.approx(0.8),
        "ema_decay": 0.99,
        "ema_every_steps": 5,
    }


def test_shares_of_params_by_hand() -> None:
    params = {"lr_scale": 2.0, "warmup_frac": 0.2, "cutout_px": 7, "flip": True, "solver": "adam", "ema_decay": 0.0}
    expected = [0.5, 0.25, 0.625, 0.25, 5 / 6, ABSENT, 1 / 6, ABSENT]
    np.testing.assert_allclose(shares_of(SPACE, params), expected)


def test_params_come_back_from_their_shares() -> None:
    rng = np.random.default_rng(0)
    seen: dict[str, set[object]] = {name: set() for name in NAMES}
    for _ in range(300):
        params = params_at(SPACE, rng.random(len(NAMES)))
        assert tuple(params) == SPACE.active(params)
        assert all(SPACE.domains[name].contains(value) for name, value in params.items())
        again = params_at(SPACE, shares_of(SPACE, params))
        assert again == {
            name: pytest.approx(value) if type(value) is float else value for name, value in params.items()
        }
        assert list(map(type, again.values())) == list(map(type, params.values()))
        for name, value in params.items():
            seen[name].add(value)
    assert seen["cutout_px"] == {5, 6, 7, 8} and seen["ema_every_steps"] == set(range(1, 10))
    assert seen["solver"] == {"sgd", "lars", "adam"} and seen["ema_decay"] == {0.0, 0.5, 0.99}


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_ends_of_the_cube_are_the_ends_of_the_domains(share: float) -> None:
    params = params_at(SPACE, np.full(len(NAMES), share))
    end = int(share)
    assert params["lr_scale"] == (1 / 4, 16)[end] and params["warmup_frac"] == (0.1, 0.5)[end]
    assert params["cutout_px"] == (5, 8)[end] and params["flip"] is (True, False)[end]
    assert params["solver"] == ("sgd", "adam")[end]


@pytest.mark.parametrize(
    ("domain", "value", "share"),
    [
        (LogUniform(1, 4), 100.0, 1.0),
        (LogUniform(1, 4), 0.0, 0.0),
        (Uniform(0.1, 0.2), -3.0, 0.0),
        (Uniform(0.1, 0.2), 0.3, 1.0),
        (IntUniform(1, 4), 9, 1.0),
        (IntUniform(1, 4), 0, 0.0),
        (Choice((1.0, 2.0)), 3.0, ABSENT),
        (LogUniform(2, 2), 2.0, ABSENT),
        (Uniform(2, 2), 2.0, ABSENT),
        (IntUniform(2, 2), 2, 0.5),
    ],
)
def test_values_outside_of_a_domain_go_to_its_nearest_end(domain: Domain, value: float, share: float) -> None:
    inside = domain.choices[0] if isinstance(domain, Choice) else domain.low
    name = "cutout_px" if isinstance(domain, IntUniform) else "lr_scale"
    base: dict[str, Any] = {"lr_scale": 1.0, name: inside}
    space = SearchSpace(Config(**base), {name: domain})
    assert shares_of(space, {name: value}) == pytest.approx([share])
    assert domain.contains(params_at(space, shares_of(space, {name: value}))[name])


def test_how_many_values_a_domain_has() -> None:
    counts = [levels(SPACE.domains[name]) for name in NAMES]
    assert counts == [0, 0, 4, 2, 3, 0, 3, 9]
    assert levels(Uniform(1, 1)) == levels(LogUniform(1, 1)) == levels(IntUniform(1, 1)) == 1


def test_features_by_hand() -> None:
    """Numbers as shares, integers and choices of two in the middle of theirs, others as one number per value."""
    shares = np.array(
        [
            [0.5, 0.25, 0.6, 0.2, 0.5, 0.75, 0.9, 0.05],
            [0.1, 0.0, 0.0, 0.9, 0.9, 0.75, 0.1, 0.05],
        ]
    )
    expected = [
        [0.5, 0.25, 0.625, 0.25, *(0, 1, 0), 0.75, *(0, 0, 1), 0.5 / 9],
        [0.1, 0.0, 0.125, 0.75, *(0, 0, 1), ABSENT, *(1, 0, 0), ABSENT],
    ]
    np.testing.assert_allclose(features(SPACE, shares), expected)
    assert width(SPACE) == 12


def test_features_of_params_do_not_depend_on_what_does_not_exist() -> None:
    """Two points that differ only in the momentum of adam are the same config, and look so."""
    rng = np.random.default_rng(1)
    shares = rng.random((200, len(NAMES)))
    for row, seen in zip(shares, features(SPACE, shares), strict=True):
        again = features(SPACE, shares_of(SPACE, params_at(SPACE, row))[None])[0]
        np.testing.assert_allclose(again, seen, atol=1e-9)


def test_conditions_on_conditions() -> None:
    """An integer decides, and what hangs on something absent is absent."""
    space = SearchSpace(
        Config(cutout_px=0),
        {
            "cutout_px": IntUniform(0, 2),
            "flip": Choice((True, False), only_if={"cutout_px": (1, 2)}),
            "lr_scale": Uniform(0.5, 1.5, only_if={"flip": (True,)}),
        },
    )
    shares = np.array([[0.1, 0.1, 0.1], [0.5, 0.1, 0.1], [0.9, 0.9, 0.1]])
    np.testing.assert_allclose(
        features(space, shares), [[1 / 6, ABSENT, ABSENT], [0.5, 0.25, 0.1], [5 / 6, 0.75, ABSENT]]
    )
    assert [set(params_at(space, row)) for row in shares] == [
        {"cutout_px"},
        {"cutout_px", "flip", "lr_scale"},
        {"cutout_px", "flip"},
    ]
