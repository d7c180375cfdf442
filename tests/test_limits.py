"""Limits: costs by hand, nets that are counted once, and the command's --limit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import tune.search
from model.config import Config, InputError
from model.memory import needed_bytes
from model.meter import flops_per_image, flops_per_update
from model.net import build_net
from model.recipes import s0, s8
from tune import limits
from tune.limits import parse_limits, refusal
from tune.plan import new_run

OPEN = {"params": 1e12, "train_flops": 1e30, "memory_bytes": 1e15}


def test_no_limit_refuses_nothing() -> None:
    assert refusal(s0(), 10, 45_000, {}) is None and refusal(s0(), 10, 45_000, OPEN) is None


def test_parameters() -> None:
    """The published net has 6,573,120 parameters; the limit itself is allowed."""
    assert refusal(s0(), 10, 45_000, {"params": 6_573_120}) is None
    said = refusal(s0(), 10, 45_000, {"params": 6e6})
    assert said == "params = 6.573e+06 is 1.1 times the limit of 6e+06"


def test_flops_of_whole_batches() -> None:
    """24 epochs of 3 batches of 512; the 464 images left over are not trained on."""
    flops = flops_per_image(s0(), 10) * 24 * 1536
    assert refusal(s0(), 10, 2000, {"train_flops": flops}) is None
    said = refusal(s0(), 10, 2000, {"train_flops": flops / 2})
    assert said == f"train_flops = {flops:.4g} is 2 times the limit of {flops / 2:.4g}"


def test_a_share_of_the_images_costs_its_share() -> None:
    """One batch of 512 of the 1,000 images that half of 2,000 are; the data lie in memory whole."""
    half = replace(s0(), train_frac=0.5)
    flops = flops_per_image(s0(), 10) * 24 * 512
    assert refusal(half, 10, 2000, {"train_flops": flops}) is None
    assert refusal(half, 10, 2000, {"train_flops": flops - 1}) is not None
    assert limits.memory_bytes(half, 10, 2000) == limits.memory_bytes(s0(), 10, 2000)
    assert not limits.same_shape(half, s0()) and limits.same_shape(half, replace(half, peak_lr=0.1))


def test_flops_of_muons_updates_count() -> None:
    sgd, muon = Config(width=4), Config(width=4, solver="muon")
    added = limits.epoch_flops(muon, 10, 2000) - limits.epoch_flops(sgd, 10, 2000)
    assert added == pytest.approx(3 * flops_per_update(muon, 10)) and added > 0


def test_memory_is_the_estimate_of_a_training() -> None:
    needed = needed_bytes(s0(), 10, 2000)
    assert refusal(s0(), 10, 2000, {"memory_bytes": needed}) is None
    said = refusal(s0(), 10, 2000, {"memory_bytes": needed / 4})
    assert said == f"memory_bytes = {needed:.4g} is 4 times the limit of {needed / 4:.4g}"


def test_all_limits_that_are_exceeded_are_named_on_one_line() -> None:
    said = refusal(s0(), 10, 2000, dict.fromkeys(OPEN, 1e3))
    assert said and said.count(" times the limit of ") == 3 and said.count("; ") == 2 and "\n" not in said


VARIANTS = [
    s8(),
    Config(net="dawn", width=4),
    Config(net="pooled", width=4, pool_place="before_norm", norm_scale_uniform=True),
    Config(net="resnet20", width=4, residual_norm="after_add", residual_act="none", celu_alpha=0.3),
    Config(width=4, ghost_batch=32, batch_size=96, precision="bf16"),
    Config(width=4, celu_alpha=0.3, whiten=True, norm_scale=0.3, norm_scale_frozen=True),
    Config(width=4, solver="adadelta", ema_decay=0.9, ema_every_steps=3, tail_frac=0.5, tail_to_zero=True),
    Config(width=4, act="gelu", whiten=True, whiten_px=2, whiten_both_signs=True, whiten_eps=5e-4, identity_init=True),
    Config(width=4, solver="muon", muon_lr=0.1, ema_decay=0.9, lookahead=True, alternating_flip=True),
    Config(
        width=4, norm="none", init_scale=2.0, extra_layers="123", residual_layers="none", warmup_frac=0.9, tta="flip"
    ),
    Config(width=4, norm="frozen", pool_place="last", residual_act="after_add", logit_scale=3.0, epochs=3),
]


@pytest.mark.parametrize("config", VARIANTS, ids=Config.describe)
def test_what_is_left_out_of_a_net_changes_no_cost(config: Config) -> None:
    net = limits._shape(config)
    params = sum(weight.numel() for weight in build_net(config, 10).parameters())
    assert limits._params(net, 10) == params
    step = config.batch_size * flops_per_image(config, 10) + flops_per_update(config, 10)
    assert limits.epoch_flops(config, 10, 3 * config.batch_size) == 3 * step
    assert limits._needs(net, 10, 900).of_batch(config.batch_size) == needed_bytes(config, 10, 900)


def test_equal_nets_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal(Config(width=3), 10, 45_000, OPEN)

    def counted(*_: Any) -> None:
        raise AssertionError("counted again")

    for name in ("build_net", "flops_per_image", "needs_of"):
        monkeypatch.setattr(limits, name, counted)
    changes: list[dict[str, Any]] = [{"lr_scale": 2.0 + index / 100, "batch_size": 100 + index} for index in range(100)]
    configs = [Config(width=3, **change, epochs=7, cutout_px=3) for change in changes]
    for config in configs:
        assert refusal(config, 10, 45_000, OPEN) is None


def test_the_command_line() -> None:
    assert parse_limits(["params=7e6", "train_flops=1e15"]) == {"params": 7e6, "train_flops": 1e15}
    assert parse_limits([]) == {}


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("params", ["--limit 'params'", "write it as NAME=VALUE"]),
        ("param=7e6", ["unknown limit 'param' (did you mean params?)", "memory_bytes"]),
        ("params=many", ["--limit 'params=many'", "must be a positive number"]),
    ],
)
def test_limits_that_are_refused(text: str, facts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        parse_limits([text])
    assert all(fact in str(caught.value) for fact in facts) and "\n" not in str(caught.value)


def options(folder: Path, **given: Any) -> tune.search.Options:
    return tune.search.Options(
        **{"space": "lr_regimes", "data": "digits", "width": 2, "runs_dir": folder, "name": "run", **given}
    )


def test_a_run_keeps_its_limits(tmp_path: Path) -> None:
    run, _ = new_run(
        options(tmp_path, limit=(("params=7e6", "train_flops=1e15"), ("params=5e6",))), Console(quiet=True)
    )
    assert run.space.limits == {"params": 5e6, "train_flops": 1e15}


def test_a_space_whose_smallest_share_is_less_than_its_largest_batch_can_not_begin(tmp_path: Path) -> None:
    space = tmp_path / "shares.py"
    space.write_text(
        "from model.config import Config\n"
        "from search_spaces.space import IntUniform, SearchSpace, Uniform\n"
        "domains = {'batch_size': IntUniform(16, 64), 'train_frac': Uniform(0.01, 1)}\n"
        "SPACE = SearchSpace(Config(batch_size=32), domains)\n"
    )
    with pytest.raises(
        InputError, match=r"batch_size = 64 .* 13 training images that train_frac = 0\.01 leaves of 1348"
    ):
        new_run(options(tmp_path, space=str(space)), Console(quiet=True))


@pytest.mark.parametrize(
    ("limit", "facts"), [("params=-1", ["limit params = -1.0"]), ("params=10", ["the base (s0 but"])]
)
def test_a_run_that_can_not_begin(tmp_path: Path, limit: str, facts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        new_run(options(tmp_path, limit=((limit,),)), Console(quiet=True))
    assert all(fact in str(caught.value) for fact in facts) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
