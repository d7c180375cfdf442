"""The relative step of weights, and the one that weight decay leads to."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from model.config import Config
from model.data import DeviceData
from model.dynamics import expected_step, steps
from model.optim import Sgd, lr_schedule
from model.train import init_state, train
from search_spaces.equilibrium import SPACE, as_predicted

STEADY = Config(width=2, epochs=2, batch_size=16, final_lr_ratio=1.0, peak_lr=0.1)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_weight_of_any_length_comes_to_the_expected_step(momentum: float, nesterov: bool) -> None:
    """A weight with random gradients at right angles to it, the shorter the longer the weight: no other property of
    a scale-invariant loss counts."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.ones(500))
    lr, decay = 0.5 * (1 - momentum), 4e-3
    optimizer = Sgd([weight], lr=lr, momentum=momentum, weight_decay=decay, nesterov=nesterov)
    squares = []
    for step in range(1500):  # ||w||^4 forgets its start with 4 lr decay / (1 - momentum) = 1/125 a step
        length = weight.detach().norm()
        gradient = torch.randn(500, generator=generator)
        gradient -= (gradient @ weight.detach()) / length**2 * weight.detach()
        weight.grad = gradient / length
        before = weight.detach().clone()
        optimizer.step()
        if step >= 750:
            squares.append(((weight.detach() - before).norm() / length).square().item())
    expected = expected_step(lr, decay, momentum, nesterov)
    assert math.sqrt(sum(squares) / len(squares)) == pytest.approx(expected, rel=0.02)


def test_without_momentum_it_is_the_root_of_twice_rate_and_decay() -> None:
    assert expected_step(0.4, 5e-4, 0.0, True) == pytest.approx(0.02)
    # at 0.9: 2 * 2e-4 * 0.1 * (1 / 0.19 + 1.8) = 2.8253e-4
    assert expected_step(0.4, 5e-4, 0.9, True) == pytest.approx(math.sqrt(2.8253e-4), rel=1e-4)
    assert expected_step(0.4, 5e-4, 0.9, False) == pytest.approx(math.sqrt(2 * 2e-4 / 1.9))


def test_each_normed_convolution_is_measured_beside_what_is_expected(tiny_data: DeviceData) -> None:
    state = init_state(STEADY, tiny_data, seed=0)
    list(train(STEADY, tiny_data, seed=0, state=state))
    found = steps(STEADY, tiny_data, state, seed=0)
    assert found["expected_step"] == expected_step(0.1, 5e-4, 0.9, True)
    layers = [name for name in found if name.startswith("relative_step ")]
    assert len(layers) == 8 and "relative_step layer1.residual.conv2" in layers


def test_one_step_is_the_difference_that_it_makes(tiny_data: DeviceData) -> None:
    """With batches of all images, an epoch is one step, and so is the measurement: the next epoch's."""
    config = replace(STEADY, batch_size=64, warmup_frac=0.0)
    state = init_state(config, tiny_data, seed=0)
    list(train(config, tiny_data, seed=0, state=state))
    before = state.net.state_dict()["prep.conv.weight"].clone()
    found = steps(config, tiny_data, state, seed=0)
    list(train(replace(config, epochs=3), tiny_data, seed=0, state=state))
    moved = state.net.state_dict()["prep.conv.weight"] - before
    assert found["relative_step prep"] == pytest.approx((moved.norm() / before.norm()).item(), rel=1e-5)


class Table:
    """Two cells of two layers: what was measured with each seed, the expected step being 0.5."""

    scale = "small"

    def __init__(self, *steps: list[float]) -> None:
        self.cells = dict.fromkeys(("a", "b"), Config())
        self._steps = steps

    def values(self, cell: str, what: str = "acc") -> list[float]:
        return [0.5] * len(self._steps[0]) if what == "expected_step" else self._steps["ab".index(cell)]

    def series(self, cell: str, name: str) -> Mapping[float | str, str]:
        return {"prep": f"{name} prep", "layer1": f"{name} layer1"}


@pytest.mark.parametrize(
    ("a", "b", "kind"),
    [
        ([0.5, 0.6], [0.7, 0.36], "reproduced"),
        ([0.5, 0.6], [0.8, 0.34], "contradicted"),  # with both seeds half of the layers are off
        ([0.5, 0.6], [0.7, 0.34], "undecided"),
        ([0.5], [0.5], "undecided"),
        ([], [], "undecided"),
        ([0.5, 0.5], [0.5], "undecided"),  # one is not finite
    ],
)
def test_the_claim_of_the_expected_step(a: list[float], b: list[float], kind: str) -> None:
    finding = as_predicted(cast(Any, Table(a, b)))
    assert finding.kind == kind
    if kind == "reproduced":
        assert "0.72 to 1.40 times the prediction" in finding.text and "100% are within" in finding.text


def test_cells_that_share_rate_times_decay_share_the_expected_step() -> None:
    configs = SPACE.scales["small"].cells
    expected = {
        name: expected_step(config.peak_lr * config.lr_scale, config.weight_decay, config.momentum, config.nesterov)
        for name, config in configs.items()
    }
    assert expected["decay x4, rate x1"] == pytest.approx(expected["decay x1, rate x4"])
    assert expected["decay x4, rate x4"] == pytest.approx(2 * expected["decay x4, rate x1"])
    assert all(lr_schedule(config, config.epochs) == lr_schedule(config, 5) > 0 for config in configs.values())
