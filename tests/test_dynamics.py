"""The relative step of weights, and the one that weight decay leads to."""

import math
from dataclasses import replace

import pytest
import torch

from model.config import Config
from model.data import DeviceData
from model.dynamics import expected_step, steps
from model.optim import Sgd
from model.train import init_state, train

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
