from dataclasses import replace

import pytest
import torch
from torch import nn

from model.config import Config
from model.data import DeviceData
from model.fit import random_data
from model.layers import Celu, Residual
from model.profile import CATEGORIES, FORWARD, describe_profile, profile
from model.recipes import RECIPES

GAPS = "python and framework"
AIRBENCH = {"act": "gelu", "solver": "muon", "ema_decay": 0.95, "lookahead": True}
AIRBENCH |= {"whiten": True, "whiten_px": 2, "whiten_both_signs": True}


@pytest.fixture(scope="module")
def data() -> DeviceData:
    return random_data(128, 10, torch.device("cpu"))


@pytest.mark.parametrize(
    "net",
    [
        {},
        {"net": "dawn"},
        {"net": "shortcut"},
        {"net": "resnet20", "residual_act": "after_add"},
        AIRBENCH,
        {"precision": "bf16", "ghost_batch": 32, "celu_alpha": 0.3},
    ],
)
def test_categories_cover_the_step(net: dict[str, object], data: DeviceData) -> None:
    seconds = profile(Config.from_dict({"width": 8, "batch_size": 64, **net}), data, steps=2)
    assert list(seconds) == [*CATEGORIES, GAPS, "step", "evaluation"]
    assert min(seconds.values()) > 0
    parts_s = sum(seconds[category] for category in CATEGORIES)
    assert parts_s + seconds[GAPS] == pytest.approx(seconds["step"])
    assert 0.3 * seconds["step"] < parts_s < 1.001 * seconds["step"]


def test_work_is_booked_where_it_belongs(data: DeviceData) -> None:
    def shares(**fields: object) -> dict[str, float]:
        seconds = profile(Config.from_dict({"width": 8, "batch_size": 64, **fields}), data, steps=2)
        return {name: part_s / seconds["step"] for name, part_s in seconds.items()}

    plain, bare = shares(), shares(norm="none")
    assert plain["norm"] > 0.02
    assert bare["norm"] == 0
    many = profile(Config(width=8, batch_size=64, tta="shift"), data, steps=1)["evaluation"]
    one = profile(Config(width=8, batch_size=64), data, steps=1)["evaluation"]
    assert many > 1.5 * one  # six views instead of one


def test_every_operator_of_the_backward_pass_has_a_category(data: DeviceData) -> None:
    """What has no category in the backward pass counts as classifier and loss, which stays small."""
    nets = [Config(net=net) for net in ("shortcut", "pooled", "resnet20")]
    nets.append(Config.from_dict(AIRBENCH))
    for config in [*(RECIPES[recipe].config() for recipe in ("s0", "s8", "dawn")), *nets]:
        seconds = profile(replace(config, width=8, batch_size=64), data, steps=1)
        assert seconds["classifier and loss"] < 0.1 * seconds["step"], config.describe()


def test_modules_with_arithmetic_have_a_category() -> None:
    for kind in (
        nn.Conv2d,
        nn.BatchNorm2d,
        nn.ReLU,
        nn.GELU,
        Celu,
        nn.MaxPool2d,
        nn.AdaptiveAvgPool2d,
        Residual,
        nn.Linear,
    ):
        assert FORWARD[kind] in CATEGORIES


def test_nothing_is_said_on_stderr(data: DeviceData, capfd: pytest.CaptureFixture[str]) -> None:
    profile(Config(width=2, batch_size=64), data, steps=1)
    assert capfd.readouterr() == ("", "")


def test_global_random_state_is_left_alone(data: DeviceData) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    profile(Config(width=2, batch_size=64), data, steps=1)
    assert torch.equal(torch.rand(3), expected)


def test_table_by_hand() -> None:
    seconds = dict.fromkeys(CATEGORIES, 0.01) | {GAPS: 0.03, "step": 0.1, "evaluation": 1.0}
    lines = describe_profile(seconds, Config(batch_size=10), examples=99).splitlines()
    assert len(lines) == 1 + 7 + 1 + 1 + 1
    assert lines[1].split() == ["convolution", "10.00", "10.0%"]
    assert lines[8].split() == ["python", "and", "framework", "30.00", "30.0%"]
    assert lines[9].split() == ["step", "100.00", "100.0%"]
    assert lines[10] == "one evaluation: 1.00 s, 52.6% of an epoch of 9 steps"
    share = describe_profile(seconds, Config(batch_size=10, train_frac=0.4), examples=99)
    assert share.endswith("one evaluation: 1.00 s, 71.4% of an epoch of 4 steps")  # of 40 images, rounded
