"""Search spaces: domains, what a space refuses, JSON, and spaces loaded by name and by path."""

import dataclasses
import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import search_spaces
from model.config import Config, InputError
from model.recipes import s0, s8
from search_spaces.coordinates import DECAY_RATE
from search_spaces.experiment import Experiment
from search_spaces.space import Choice, Domain, IntUniform, LogUniform, SearchSpace, Uniform

SPACE = SearchSpace(
    base=Config(width=8),
    domains={
        "lr_scale": LogUniform(1 / 3, 16),
        "warmup_frac": Uniform(0.05, 0.5),
        "cutout_px": IntUniform(0, 12),
        "flip": Choice((True, False)),
    },
)
HEAD = """\
from model.config import Config; from model.recipes import s0
from search_spaces.space import Choice, IntUniform, LogUniform, SearchSpace, Uniform
"""  # two lines
GOOD = HEAD + 'SPACE = SearchSpace(base=s0(), domains={"cutout_px": IntUniform(0, 12)})\n'


def refusal(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """The message of the InputError that the call raises, which is one line."""
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- domains


@pytest.mark.parametrize(
    ("domain", "inside", "outside"),
    [
        (LogUniform(0.5, 16), [0.5, 1, 16.0], [0.49, 16.1, 0, float("nan"), "1", None, True]),
        (Uniform(-1, 1), [-1, 0.0, 1], [-1.1, 2, float("inf"), "0", True]),
        (IntUniform(0, 12), [0, 8, 12, 8.0], [-1, 13, 8.5, float("nan"), float("inf"), "8", True]),
        (Choice(("fp32", "bf16")), ["fp32", "bf16"], ["fp16", None, 0]),
        (Uniform(0.3, 0.3), [0.3], [0.30001]),
        (IntUniform(4, 4), [4], [5]),
        (Choice((8,)), [8], [9]),
    ],
)
def test_contains(domain: Domain, inside: list[Any], outside: list[Any]) -> None:
    assert all(domain.contains(value) for value in inside)
    assert not any(domain.contains(value) for value in outside)


@pytest.mark.parametrize("kind", [LogUniform, Uniform, IntUniform])
@pytest.mark.parametrize(("low", "high"), [(12, 2), ("1", 2), (1, None), (1, float("inf")), (float("nan"), 1)])
def test_bounds_that_are_refused(kind: Callable[..., Domain], low: Any, high: Any) -> None:
    message = refusal(kind, low, high)
    assert "`low <= high` must hold" in message and message.endswith(f"but got low={low!r}, high={high!r}")


def test_a_logarithm_needs_bounds_above_0() -> None:
    assert refusal(LogUniform, 0, 1) == "`low > 0` must hold for LogUniform, but got low=0, high=1"
    assert "low=-2" in refusal(LogUniform, -2, 1)


def test_integer_bounds_are_integers() -> None:
    assert refusal(IntUniform, 0, 2.5) == "IntUniform takes integers, but got low=0, high=2.5"


@pytest.mark.parametrize("choices", [(), [], "fp32", 3, None])
def test_a_choice_needs_values(choices: Any) -> None:
    assert refusal(Choice, choices) == f"Choice takes a tuple of at least one value, but got {choices!r}"


def test_the_values_of_a_choice_differ() -> None:
    assert refusal(Choice, (1, 2, 1)) == "the values of a Choice must differ, but got 1 twice"


# --- spaces


def test_config_and_params_are_each_others_inverse() -> None:
    params = {"lr_scale": 2.0, "warmup_frac": 0.1, "cutout_px": 3, "flip": False}
    config = SPACE.config(params)
    assert config == Config(width=8, **params)
    assert SPACE.params_of(config) == params
    assert SPACE.config(SPACE.params_of(SPACE.base)) == SPACE.base
    assert SPACE.config({}) == SPACE.base
    assert "did you mean lr_scale?" in refusal(SPACE.config, {"lr_scal": 2.0})


def test_another_base_keeps_the_domains_and_must_lie_in_them() -> None:
    space = SPACE.with_base(Config(width=4))
    assert space.base.width == 4 and space.domains == SPACE.domains and SPACE.base.width == 8
    message = refusal(SPACE.with_base, Config(cutout_px=20))
    assert message.startswith("the base has cutout_px = 20, outside of its domain IntUniform(low=0, high=12)")


def test_json_brings_back_every_bit() -> None:
    text = json.dumps(SPACE.to_dict())
    back = SearchSpace.from_dict(json.loads(text))
    assert back == SPACE and json.dumps(back.to_dict()) == text
    assert list(back.domains) == list(SPACE.domains)
    assert type(back.domains["cutout_px"].low) is int  # type: ignore[union-attr]


def test_a_space_is_frozen_and_keeps_its_own_domains() -> None:
    domains: dict[str, Domain] = {"cutout_px": IntUniform(0, 12)}
    space = SearchSpace(s0(), domains)
    domains["flip"] = Choice((True, False))
    assert list(space.domains) == ["cutout_px"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        space.base = Config(width=2)  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        IntUniform(0, 12).low = 3  # type: ignore[misc]


def test_a_field_with_fractions_may_be_searched_in_whole_numbers() -> None:
    space = SearchSpace(s0(), {"bn_bias_lr_mult": IntUniform(1, 64)})
    assert space.config({"bn_bias_lr_mult": 16}).bn_bias_lr_mult == 16.0


@pytest.mark.parametrize(
    ("domains", "facts"),
    [
        ({}, ["at least one domain"]),
        ({"cutout": IntUniform(0, 12)}, ["'cutout' is no field of Config", "did you mean cutout_px?", "warmup_frac"]),
        ({"epochs": LogUniform(8, 24)}, ["domain epochs", "an integer"]),
        ({"cutout_px": (0, 12)}, ["cutout_px = (0, 12)", "LogUniform, Uniform, IntUniform, Choice"]),
        ({"cutout_px": IntUniform(0, 40)}, ["domain cutout_px", "cutout_px = 40", "from 0 to 32"]),
        ({"cutout_px": Choice((8, 64))}, ["domain cutout_px", "cutout_px = 64", "from 0 to 32"]),
        # whole bounds, but what lies between them isn't whole
        ({"cutout_px": Uniform(0, 12)}, ["domain cutout_px", "Uniform(low=0.0, high=12.0)", "an integer"]),
        ({"batch_size": LogUniform(128, 1024)}, ["domain batch_size", "an integer"]),
        ({"flip": Uniform(0, 1)}, ["domain flip", "one of true, false"]),
        ({"flip": Choice((0, 1))}, ["domain flip", "flip = 0", "one of true, false"]),
        ({"precision": Choice(("fp32", "fp8"))}, ["domain precision", "'fp8'", '"bf16"']),
        ({"momentum": Uniform(0.5, 1)}, ["domain momentum", "momentum = 1.0"]),
        ({"cutout_px": IntUniform(0, 4)}, ["the base has cutout_px = 8", "IntUniform(low=0, high=4)", "tried first"]),
        ({"flip": Choice((False,))}, ["the base has flip = True", "Choice(choices=(False,))"]),
        ({"ema_every_steps": IntUniform(1, 9)}, ["ema_every_steps has no effect", "ema_decay = 0", "make ema_decay a"]),
    ],
)
def test_domains_that_are_refused(domains: dict[str, Any], facts: list[str]) -> None:
    message = refusal(SearchSpace, s0(), domains)
    assert all(fact in message for fact in facts), message


def test_a_knob_that_another_domain_can_bring_to_life_may_be_searched() -> None:
    space = SearchSpace(s0(), {"ema_decay": Choice((0.0, 0.99)), "ema_every_steps": IntUniform(1, 9)})
    assert space.config({"ema_decay": 0.99, "ema_every_steps": 2}).ema_every_steps == 2
    assert space.config({"ema_decay": 0.0, "ema_every_steps": 2}) == s0()


def test_a_base_that_is_no_config() -> None:
    assert "must be a Config, such as s0(), but got <function s0" in refusal(SearchSpace, s0, SPACE.domains)


# --- extras of a domain


def test_extras_are_keyword_only_and_leave_the_rest_as_it_is() -> None:
    domain = Uniform(0.5, 0.99, prior=0.9, only_if={"solver": ("sgd",)})
    assert Uniform.__match_args__ == ("low", "high") and Choice.__match_args__ == ("choices",)
    assert repr(domain) == "Uniform(low=0.5, high=0.99)" and domain != Uniform(0.5, 0.99)
    assert hash(domain) == hash(Uniform(0.5, 0.99))
    with pytest.raises(TypeError):
        IntUniform(0, 12, 8)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("kind", "arguments", "prior"),
    [
        (LogUniform, (0.5, 16), 17),
        (Uniform, (0, 1), "0"),
        (Uniform, (0, 1), True),
        (IntUniform, (0, 12), 8.5),
        (Choice, (("fp32", "bf16"),), "fp16"),
    ],
)
def test_a_prior_lies_in_its_domain(kind: Callable[..., Domain], arguments: tuple[Any, ...], prior: Any) -> None:
    message = refusal(kind, *arguments, prior=prior)
    assert message == f"prior = {prior!r} lies outside of {kind(*arguments)}: it must be one of its values"


@pytest.mark.parametrize("only_if", [{}, {"solver": "sgd"}, {"solver": ()}, {3: ("sgd",)}, ("solver", "sgd"), "solver"])
def test_conditions_that_are_none(only_if: Any) -> None:
    message = refusal(Uniform, 0, 1, only_if=only_if)
    assert message.startswith("only_if takes a tuple of values for each domain named") and repr(only_if) in message


# --- conditional domains

NESTED = SearchSpace(
    s0(),
    {
        "ema_every_steps": IntUniform(1, 9, only_if={"ema_decay": (0.9, 0.99), "solver": ("lars",)}),
        "solver": Choice(("sgd", "lars", "adam")),
        "momentum": Uniform(0.5, 0.99, only_if={"solver": ("sgd", "lars")}),
        "nesterov": Choice((True, False), only_if={"solver": ("sgd",)}),
        "ema_decay": Choice((0.0, 0.9, 0.99), only_if={"nesterov": (False,)}),
        "width": IntUniform(8, 64),
        "flip": Choice((True, False), only_if={"width": (64,)}),
    },
)


@pytest.mark.parametrize(
    ("params", "active"),
    [
        ({}, ["solver", "momentum", "nesterov", "width", "flip"]),
        ({"solver": "sgd", "nesterov": False}, ["solver", "momentum", "nesterov", "ema_decay", "width", "flip"]),
        ({"solver": "lars", "width": 8}, ["solver", "momentum", "width"]),
        # what decides must be active itself: lars has no nesterov, so no ema_decay and no ema_every_steps
        ({"solver": "lars", "nesterov": False, "ema_decay": 0.9}, ["solver", "momentum", "width", "flip"]),
        ({"solver": "adam", "width": 9}, ["solver", "width"]),
    ],
)
def test_what_is_active(params: dict[str, Any], active: list[str]) -> None:
    assert list(NESTED.active(params)) == active
    full = {name: params.get(name, getattr(s0(), name)) for name in active}
    config = NESTED.config(params)
    assert config == NESTED.config(full) == Config(**full)
    assert NESTED.params_of(config) == full and list(NESTED.params_of(config)) == active


def test_what_is_not_active_keeps_the_value_of_the_base() -> None:
    space = SearchSpace(
        Config(crop_pad_px=2, cutout_px=5),
        {"flip": Choice((True, False)), "cutout_px": IntUniform(0, 12, only_if={"flip": (True,)})},
    )
    assert space.config({"flip": False, "cutout_px": 9}) == Config(flip=False, crop_pad_px=2, cutout_px=5)
    # and may lie anywhere where its domain is not active
    assert "outside of its domain" in refusal(space.with_base, Config(cutout_px=20))
    assert space.with_base(Config(flip=False, cutout_px=20)).params_of(Config(flip=False)) == {"flip": False}


@pytest.mark.parametrize(
    ("domains", "facts"),
    [
        ({"cutout_px": IntUniform(0, 12, only_if={"flp": (True,)})}, ["cutout_px", "only_if 'flp'", "is no domain"]),
        (
            {"flip": True, "cutout_px": IntUniform(0, 12, only_if={"flip": (True,)})},
            ["only_if 'flip', which is no domain of the space: make it one, or drop the condition"],
        ),
        (
            {"momentum": Uniform(0.5, 0.99), "cutout_px": IntUniform(0, 12, only_if={"momentum": (0.9,)})},
            ["domain cutout_px has only_if 'momentum', which must be a Choice or an IntUniform"],
        ),
        (
            {"solver": Choice(("sgd", "lars")), "momentum": Uniform(0.5, 0.99, only_if={"solver": ("sgd", "adam")})},
            ["domain momentum has only_if solver = 'adam', which lies outside of its domain Choice"],
        ),
        (
            {"flip": Choice((True, False), only_if={"flip": (True,)})},
            ["the conditions of flip -> flip go round in a circle"],
        ),
        (
            {
                "flip": Choice((True, False), only_if={"width": (64,)}),
                "width": IntUniform(1, 64, only_if={"cutout_px": (8,)}),
                "cutout_px": IntUniform(0, 12, only_if={"flip": (True,)}),
            },
            ["the conditions of flip -> width -> cutout_px -> flip go round in a circle"],
        ),
        # judged where the domain is active: with adam this momentum would have no effect, with sgd it is too large
        (
            {"solver": Choice(("adam", "sgd")), "momentum": Uniform(0.5, 2, only_if={"solver": ("sgd",)})},
            ["domain momentum", "momentum = 2.0 is not allowed"],
        ),
    ],
)
def test_conditions_that_are_refused(domains: dict[str, Any], facts: list[str]) -> None:
    message = refusal(SearchSpace, Config(), domains)
    assert all(fact in message for fact in facts), message


# --- constants, epochs


def test_a_constant_becomes_part_of_the_base() -> None:
    space = SearchSpace(
        s0(),
        {"width": 16, "cutout_px": IntUniform(0, 12), "whiten": True, "tta": "flip", "weight_decay": 0},
        more_bases=(Config(cutout_px=3),),
    )
    base = Config(width=16, whiten=True, tta="flip", weight_decay=0.0)
    assert space.base == base and list(space.domains) == ["cutout_px"]
    assert space.bases == (base, dataclasses.replace(base, cutout_px=3))
    assert SearchSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space
    assert space.with_base(s0()).base == s0()


@pytest.mark.parametrize(
    ("constants", "facts"),
    [
        ({"width": 0}, ["width = 0 is not allowed"]),
        ({"width": 16.0}, ["width = 16.0 is not allowed"]),
        ({"flip": "yes"}, ["flip = 'yes' is not allowed"]),
        ({"widht": 16}, ["'widht' is no field of Config (did you mean width?)"]),
        ({"solver": "adam", "momentum": 0.5}, ["momentum = 0.5 has no effect with solver = adam"]),
        ({"tta": None}, ["domain tta = None: it must be one of", "or a constant"]),
    ],
)
def test_constants_that_are_refused(constants: dict[str, Any], facts: list[str]) -> None:
    message = refusal(SearchSpace, s0(), {"cutout_px": IntUniform(0, 12), **constants})
    assert all(fact in message for fact in facts), message


def test_constants_alone_are_no_space() -> None:
    assert "at least one domain" in refusal(SearchSpace, s0(), {"width": 16})


@pytest.mark.parametrize("domain", [IntUniform(8, 24), Choice((8, 12, 24))])
def test_epochs_may_be_searched(domain: Domain) -> None:
    assert SearchSpace(s0(), {"epochs": domain}).config({"epochs": 12}) == Config(epochs=12)


# --- several bases


def test_further_bases_are_points_of_the_space() -> None:
    mine = Config(width=8, cutout_px=3, flip=False)
    space = dataclasses.replace(SPACE, more_bases=(mine, SPACE.base, mine))
    assert space.bases == (SPACE.base, mine)
    assert SearchSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space
    # around another base they keep what they have of their own
    moved = space.with_base(Config(width=4, crop_pad_px=2, cutout_px=1))
    assert moved.bases == (
        Config(width=4, crop_pad_px=2, cutout_px=1),
        Config(width=4, crop_pad_px=2, cutout_px=3, flip=False),
    )
    assert space.with_base(mine).bases == (mine,)


def test_around_another_base_further_ones_follow_in_what_they_share_with_the_old() -> None:
    """Also where that is searched: whoever makes the base narrower doesn't want the others wide."""
    base = Config(width=64, epochs=10)
    space = SearchSpace(
        base,
        {"width": IntUniform(4, 96), "epochs": IntUniform(6, 12), "flip": Choice((True, False))},
        more_bases=(dataclasses.replace(base, flip=False), dataclasses.replace(base, width=80)),
    )
    moved = space.with_base(Config(width=16, epochs=8, momentum=0.8))
    assert [(each.width, each.epochs, each.flip, each.momentum) for each in moved.bases] == [
        (16, 8, True, 0.8),
        (16, 8, False, 0.8),
        (80, 8, True, 0.8),
    ]


def test_a_further_base_may_have_the_default_of_a_knob_that_is_idle_in_it() -> None:
    adam = Config(solver="adam")
    space = SearchSpace(
        Config(momentum=0.95),
        {"solver": Choice(("sgd", "adam")), "momentum": Uniform(0.92, 0.99, only_if={"solver": ("sgd",)})},
        more_bases=(adam,),
    )
    assert space.bases == (Config(momentum=0.95), adam)


@pytest.mark.parametrize(
    ("other", "facts"),
    [
        (Config(width=16), ["a further base has width = 16, the base 8", "make it a domain, or give all bases"]),
        (Config(width=8, cutout_px=20), ["a further base has cutout_px = 20, outside of its domain IntUniform"]),
        (s0, ["must be a Config, such as s0(), but got <function s0"]),
    ],
)
def test_further_bases_that_are_refused(other: Any, facts: list[str]) -> None:
    message = refusal(SearchSpace, SPACE.base, SPACE.domains, more_bases=(other,))
    assert all(fact in message for fact in facts), message


def test_a_further_base_that_another_base_makes_nonsense_of() -> None:
    space = SearchSpace(s0(), {"ghost_batch": Choice((0, 32, 64))}, more_bases=(Config(ghost_batch=64),))
    assert "ghost_batch = 64 does not divide" in refusal(space.with_base, Config(batch_size=96))


# --- limits


def test_limits_are_kept_in_json() -> None:
    space = dataclasses.replace(SPACE, limits={"params": 7_000_000, "memory_bytes": 8e9})
    assert space.limits == {"params": 7e6, "memory_bytes": 8e9}
    assert SearchSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space
    assert space.with_base(Config(width=4)).limits == space.limits


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan"), "7e6", None, True])
def test_limits_are_positive_numbers(value: Any) -> None:
    message = refusal(SearchSpace, SPACE.base, SPACE.domains, limits={"params": value})
    assert message.startswith(f"limit params = {value!r} is not allowed: it must be a positive number")


def test_an_unknown_limit() -> None:
    message = refusal(SearchSpace, SPACE.base, SPACE.domains, limits={"param": 7e6})
    assert message == "unknown limit 'param' (did you mean params?): there are params, train_flops, memory_bytes"


# --- JSON


def test_json_of_a_space_that_uses_everything() -> None:
    space = SearchSpace(
        s0(),
        {**NESTED.domains, "lr_scale": LogUniform(0.5, 2, prior=1.5), "decay_rate": LogUniform(1e-4, 1e-2)},
        more_bases=(Config(solver="lars"),),
        coordinates=(DECAY_RATE,),
        limits={"train_flops": 1e15},
    )
    text = json.dumps(space.to_dict())
    back = SearchSpace.from_dict(json.loads(text))
    assert back == space and json.dumps(back.to_dict()) == text
    assert back.domains["lr_scale"].prior == 1.5
    assert back.domains["ema_every_steps"].only_if == {"ema_decay": (0.9, 0.99), "solver": ("lars",)}


def test_a_plain_space_has_the_json_of_earlier_versions() -> None:
    assert SPACE.to_dict() == {
        "base": SPACE.base.to_dict(),
        "domains": {
            "lr_scale": {"kind": "LogUniform", "low": 1 / 3, "high": 16.0},
            "warmup_frac": {"kind": "Uniform", "low": 0.05, "high": 0.5},
            "cutout_px": {"kind": "IntUniform", "low": 0, "high": 12},
            "flip": {"kind": "Choice", "choices": (True, False)},
        },
    }


# --- files


def test_every_space_that_comes_with_the_project_loads() -> None:
    assert "lr_regimes" in search_spaces.names() and "space" not in search_spaces.names()
    for name in search_spaces.names():
        assert isinstance(search_spaces.definition(name), SearchSpace | Experiment)


def test_lr_regimes_varies_the_schedule_around_the_baseline() -> None:
    space = search_spaces.load("lr_regimes")
    assert space.base == s0()
    assert space.domains == {
        "lr_scale": LogUniform(1 / 8, 16),
        "warmup_frac": Uniform(0.05, 0.5),
        "bn_bias_lr_mult": LogUniform(1, 64),
        "cutout_px": IntUniform(0, 12),
    }


def test_speedrun_starts_from_s8_and_from_airbench_with_sgd_and_with_muon() -> None:
    """airbench: 11.5 / 2 per 512 images, over 1 + 1 / (1 - 0.9), is a rate of 0.52; decay 0.0153 / 11.5."""
    space = search_spaces.load("speedrun")
    assert space.base == s8() and {"epochs", "width"} < set(space.domains) and len(space.domains) == 18
    sgd, muon, muon_s8 = (space.params_of(base) for base in space.more_bases)
    assert sgd["effective_lr"] == pytest.approx(11.5 / 2 / 11 / 0.1, rel=0.01)
    assert sgd["decay_rate"] == pytest.approx(0.0153 / 11.5 * sgd["effective_lr"], rel=0.01)
    assert "muon_lr" not in sgd and muon == {**sgd, "solver": "muon", "muon_lr": 0.24}
    assert muon_s8 == {**space.params_of(s8()), "solver": "muon", "muon_lr": 0.24, "identity_init": True}
    for base in space.bases:
        assert space.config(space.params_of(base)) == base
    celu = space.config({**sgd, "act": "celu"})  # S8's alpha is back
    assert celu.celu_alpha == 0.3 and celu.peak_lr == 0.52


@pytest.mark.parametrize("given", ["mine.py", "./mine.py", "sub/../mine.py", "{folder}/mine.py"])
def test_a_space_of_your_own_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "mine.py").write_text(GOOD)
    assert search_spaces.load(given.format(folder=tmp_path)).domains == {"cutout_px": IntUniform(0, 12)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.py", "sub"]  # no cache left behind


def test_files_of_one_name_and_edited_files_are_told_apart(tmp_path: Path) -> None:
    for folder, high in [("a", 12), ("b", 13), ("a", 14)]:  # the third overwrites the first, with the same length
        (tmp_path / folder).mkdir(exist_ok=True)
        file = tmp_path / folder / "space.py"
        file.write_text(GOOD.replace("12", str(high)))
        assert search_spaces.load(str(file)).domains == {"cutout_px": IntUniform(0, high)}


def test_a_space_may_build_on_another_and_define_classes(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        textwrap.dedent(
            """\
            from __future__ import annotations
            from dataclasses import dataclass
            from search_spaces.lr_regimes import SPACE as OTHER
            @dataclass
            class Half:
                of: float
            SPACE = OTHER.with_base(OTHER.config({"lr_scale": Half(1.0).of / 2}))
            """
        )
    )
    assert search_spaces.load(str(file)).base == Config(lr_scale=0.5)


def test_an_unknown_name() -> None:
    message = refusal(search_spaces.load, "lr_regime")
    assert message.startswith("unknown space 'lr_regime' (did you mean lr_regimes?): there are ")
    assert "given by its path" in message
    for name in ("", "space", "domains", "coordinates", "__init__", "model.config"):
        assert f"unknown space {name!r}" in refusal(search_spaces.load, name)


def test_a_path_that_leads_to_no_python_file(tmp_path: Path) -> None:
    missing = tmp_path / "mine.py"
    message = refusal(search_spaces.load, str(missing))
    assert f"space file {missing} doesn't exist" in message and "lr_regimes" in message
    text = tmp_path / "mine.txt"
    text.write_text(GOOD)
    folder = tmp_path / "folder.py"
    folder.mkdir()
    for path in (text, folder, tmp_path):
        assert f"space file {path} is not a Python file" in refusal(search_spaces.load, str(path))


@pytest.mark.parametrize(
    ("content", "where", "reason"),
    [
        ("x = 1\n\ndef f(:\n    pass\n", ", line 3", "SyntaxError: invalid syntax"),
        (b"x = 1\ny = '\xe9'\n", ", line 2", "SyntaxError: (unicode error) 'utf-8' codec can't decode"),
        (b"\x00\x01\x02", "", "null bytes"),
        (HEAD + "\nprint(undefined)\n", ", line 4", "NameError: name 'undefined' is not defined"),
        ("import not_installed\n", ", line 1", "ModuleNotFoundError: No module named 'not_installed'"),
        # raised or written elsewhere; the line is the file's own
        ("import json\n\njson.loads('{')\n", ", line 3", "JSONDecodeError: Expecting property name"),
        ("\nx = 1\n\neval('1 +')\n", ", line 4", "SyntaxError: invalid syntax"),
        ("def f():\n    raise ValueError('a\\nb')\n\nf()\n", ", line 2", "ValueError: a b"),
        (HEAD + "A = IntUniform(12, 2)\n", ", line 3", "`low <= high` must hold"),
        (HEAD + '\nSPACE = SearchSpace(s0(), {"width": IntUniform(0, 64)})\n', ", line 4", "domain width = "),
        (HEAD + "\n\nBASE = Config(width=0)\n", ", line 5", "width = 0 is not allowed"),
        (HEAD + "Config(widht=3)\n", ", line 3", "TypeError: Config.__init__() got an unexpected keyword"),
        ("import sys\nsys.exit()\n", ", line 2", "SystemExit"),
        ("import sys\nsys.exit('no data')\n", ", line 2", "SystemExit: no data"),
        ("", "", "it must define SPACE = SearchSpace(base, domains)"),
        (HEAD + "space = 3\n", "", "has no SPACE"),
        (HEAD + "SPACE = {'width': IntUniform(1, 64)}\n", "", "has a SPACE of type dict"),
        (HEAD + "SPACE = SearchSpace\n", "", "has a SPACE of type type"),
    ],
)
@pytest.mark.parametrize("relative", [True, False])
def test_a_file_that_fails(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: str | bytes,
    where: str,
    reason: str,
    relative: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path("mine.py") if relative else tmp_path / "mine.py"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refusal(search_spaces.load, str(file))
    assert message.startswith(f"space file {file}{where}") and reason in message, message
    assert where or "line" not in message, message


def test_ctrl_c_passes_through(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        search_spaces.load(str(file))
