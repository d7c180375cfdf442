import pytest
import torch
from torch import nn

from model.config import Config
from model.net import build_net
from model.optim import build_optimizer, lr_schedule, set_lr


@pytest.mark.parametrize(
    ("epoch", "lr"),
    [
        (-1.0, 0.0),  # clamped
        (0.0, 0.0),
        (1 / 97, 0.4 / 5 / 97),  # the first step of an epoch of 97
        (2.5, 0.2),  # half of the warm-up
        (5.0, 0.4),  # the peak
        (14.5, 0.2),  # half of the decay
        (23.0, 0.4 / 19),
        (24.0, 0.0),
        (25.0, 0.0),  # clamped
    ],
)
def test_schedule_of_s0_has_the_published_knots(epoch: float, lr: float) -> None:
    assert lr_schedule(Config(), epoch) == pytest.approx(lr, abs=1e-12)


def test_a_shorter_run_has_a_proportionally_shorter_warm_up() -> None:
    for t in (0.1, 0.2, 0.5, 0.9):
        assert lr_schedule(Config(epochs=6), 6 * t) == pytest.approx(lr_schedule(Config(), 24 * t))


def test_lr_scale_multiplies_the_whole_schedule() -> None:
    for epoch in (0.5, 5.0, 20.0):
        assert lr_schedule(Config(lr_scale=4), epoch) == pytest.approx(4 * lr_schedule(Config(), epoch))


def test_schedule_without_warm_up_or_without_decay() -> None:
    assert lr_schedule(Config(warmup_frac=0), 0.0) == pytest.approx(0.4)
    assert lr_schedule(Config(warmup_frac=1), 24.0) == pytest.approx(0.4)


@pytest.mark.parametrize("bias_mult", [1.0, 16.0])
def test_updates_follow_the_published_rule_over_several_steps(bias_mult: float) -> None:
    """The rule of cifar10-fast, written for the summed loss of a batch of B:
    d = -(eta/B)*(g_sum + alpha*B*w);  v = rho*v + d;  w = w + d + rho*v, eta changing from step to step."""
    torch.manual_seed(0)
    config = Config(width=1, bn_bias_lr_mult=bias_mult)
    net = build_net(config, num_classes=3).double()
    optimizer = build_optimizer(config, net)
    batch, rho, alpha = 4, 0.9, 5e-4
    reference = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    velocity = {name: torch.zeros_like(weight) for name, weight in reference.items()}
    for eta in (0.1, 0.2, 0.4, 0.3, 0.05):
        images, labels = torch.randn(batch, 3, 32, 32).double(), torch.randint(3, (batch,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        for name, weight in net.named_parameters():
            mult = bias_mult if name.endswith("norm.bias") else 1.0
            assert weight.grad is not None
            d = -(mult * eta / batch) * (batch * weight.grad + alpha / mult * batch * reference[name])
            velocity[name] = rho * velocity[name] + d
            reference[name] = reference[name] + d + rho * velocity[name]
        set_lr(optimizer, eta)
        optimizer.step()
        for name, weight in net.named_parameters():
            torch.testing.assert_close(weight.detach(), reference[name], rtol=1e-10, atol=1e-12)


def test_only_batch_norm_biases_are_in_the_multiplied_group_and_lr_times_decay_is_unchanged() -> None:
    config = Config(width=2, bn_bias_lr_mult=64)
    net = build_net(config, num_classes=10)
    optimizer = build_optimizer(config, net)
    set_lr(optimizer, 0.4)
    biases = {id(weight) for name, weight in net.named_parameters() if name.endswith("norm.bias")}
    others, multiplied = optimizer.param_groups
    assert {id(weight) for weight in multiplied["params"]} == biases
    assert len(others["params"]) + len(biases) == len(list(net.parameters()))
    assert multiplied["lr"] == pytest.approx(64 * 0.4)
    assert multiplied["lr"] * multiplied["weight_decay"] == pytest.approx(others["lr"] * others["weight_decay"])
