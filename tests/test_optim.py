"""The learning-rate schedules, the parameter groups and the update rules, each against its formula."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPO
from torch import nn

from model.config import Config
from model.net import build_net
from model.optim import build_optimizer, lr_schedule, orthogonalised, set_lr
from model.recipes import RECIPES

# --- schedules

KNOTS: dict[str, tuple[list[float], list[float]]] = {
    "dawn": ([0, 15, 30, 35], [0, 0.1, 0.005, 0]),
    "s0": ([0, 5, 24], [0, 0.4, 0]),
    "s1": ([0, 5, 25], [0, 0.4, 0]),
    "s2": ([0, 4.6, 23], [0, 0.4, 0]),
    "s3": ([0, 4, 20], [0, 0.4, 0]),
    "s4": ([0, 3.6, 18], [0, 0.6, 0]),
    "s5": ([0, 3.4, 17], [0, 0.6, 0]),
    "s6": ([0, 2.8, 14], [0, 1.0, 0]),
    "s7": ([0, 2.6, 11, 13], [0, 1.0, 0.1, 0.1]),
    "s8": ([0, 2, 8, 10], [0, 1.0, 0.1, 0.1]),
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_schedule_of_every_recipe_has_the_published_knots(name: str) -> None:
    config = RECIPES[name].config()
    epochs, rates = KNOTS[name]
    assert epochs[-1] == config.epochs
    for epoch in [-1.0, *epochs, *np.linspace(0, config.epochs, 97 * config.epochs + 1).tolist(), config.epochs + 1.0]:
        assert lr_schedule(config, epoch) == pytest.approx(np.interp(epoch, epochs, rates), abs=1e-12)


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


@pytest.mark.parametrize(
    ("knobs", "epochs", "rates"),
    [
        ({"warmup_frac": 0.0}, [0, 10], [1, 0]),
        ({"warmup_frac": 1.0}, [0, 10], [0, 1]),
        ({"warmup_frac": 0.0, "tail_frac": 1.0, "final_lr_ratio": 0.2}, [0, 1e-9, 10], [1, 0.2, 0.2]),
        ({"warmup_frac": 0.5, "tail_frac": 0.5, "final_lr_ratio": 0.2}, [0, 5, 5 + 1e-9, 10], [0, 1, 0.2, 0.2]),
        ({"warmup_frac": 0.2, "tail_frac": 0.3}, [0, 2, 7, 10], [0, 1, 0, 0]),
        ({"warmup_frac": 0.2, "final_lr_ratio": 0.5}, [0, 2, 10], [0, 1, 0.5]),
        ({"warmup_frac": 0.2, "final_lr_ratio": 1.0}, [0, 2, 10], [0, 1, 1]),
        (
            {"warmup_frac": 0.2, "final_lr_ratio": 0.5, "tail_frac": 0.3, "tail_to_zero": True},
            [0, 2, 7, 10],
            [0, 1, 0.5, 0],
        ),
    ],
)
def test_schedules_at_their_edges(knobs: dict[str, Any], epochs: list[float], rates: list[float]) -> None:
    config = Config(epochs=10, peak_lr=1.0, **knobs)
    for epoch in [*epochs, 1.0, 3.5, 5.5, 6.9, 7.1, 9.9]:
        assert lr_schedule(config, epoch) == pytest.approx(np.interp(epoch, epochs, rates), abs=1e-8)


# --- groups


def weights_by_name(net: nn.Module) -> dict[str, nn.Parameter]:
    return dict(net.named_parameters())


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("solver", ["sgd", "lars", "muon", "rmsprop", "adagrad", "adadelta", "adam"])
def test_every_trainable_parameter_is_in_one_group_and_nothing_else_is(name: str, solver: str) -> None:
    recipe = RECIPES[name].config()
    config = Config(**{**recipe.to_dict(), "width": 1, "solver": solver})
    net = build_net(config, num_classes=3)
    optimizer = build_optimizer(config, net)
    held = [id(weight) for group in optimizer.param_groups for weight in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(weight) for weight in net.parameters() if weight.requires_grad}


def test_frozen_scales_and_whitening_filters_are_in_no_group_but_their_biases_are() -> None:
    config = Config(width=2, norm_scale_frozen=True, whiten=True)
    net = build_net(config, num_classes=3)
    held = {id(weight) for group in build_optimizer(config, net).param_groups for weight in group["params"]}
    missing = {name for name, weight in weights_by_name(net).items() if id(weight) not in held}
    assert missing == {name for name in weights_by_name(net) if name.endswith(("norm.weight", "whiten.weight"))}
    assert len(missing) == 8 + 1
    both = Config(width=2, whiten=True, whiten_both_signs=True)
    net = build_net(both, num_classes=3)
    held = {id(weight) for group in build_optimizer(both, net).param_groups for weight in group["params"]}
    assert [name for name, weight in weights_by_name(net).items() if id(weight) not in held] == ["prep.whiten.weight"]


# --- update rules


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


ETAS = (0.1, 0.2, 0.4, 0.3, 0.05)
Rule = Callable[[torch.Tensor, torch.Tensor, dict[str, Any], float, int], torch.Tensor]


def follows(config: Config, rule: Rule) -> None:
    """Checks steps at changing rates, in double precision: weight = rule(weight, gradient, state, rate, step)."""
    torch.manual_seed(0)
    net = build_net(config, num_classes=3).double()
    optimizer = build_optimizer(config, net)
    reference = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    states: dict[str, dict[str, Any]] = {name: {} for name in reference}
    for step, eta in enumerate(ETAS, start=1):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(torch.randn(4, 3, 32, 32).double()), torch.tensor([0, 1, 2, 1])).backward()
        for name, weight in net.named_parameters():
            assert weight.grad is not None
            reference[name] = rule(reference[name], weight.grad, states[name], eta, step)
        set_lr(optimizer, eta)
        optimizer.step()
        for name, weight in net.named_parameters():
            torch.testing.assert_close(weight.detach(), reference[name], rtol=1e-9, atol=1e-11)


WD = 0.01


def sgd_rule(*, nesterov: bool, lars: bool, momentum: float = 0.8) -> Rule:
    def rule(w: torch.Tensor, g: torch.Tensor, state: dict[str, Any], eta: float, step: int) -> torch.Tensor:
        if lars and w.dim() > 1:
            norms = [t.flatten(1).norm(dim=1).view(-1, *[1] * (t.dim() - 1)) for t in (w, g)]
            rate: Any = eta * norms[0] / (norms[1] + 0.01)
        else:
            rate = eta
        d = -rate * (g + WD * w)
        state["v"] = momentum * state.get("v", 0) + d
        return w + d + momentum * state["v"] if nesterov else w + state["v"]

    return rule


def rmsprop_rule(w: torch.Tensor, g: torch.Tensor, state: dict[str, Any], eta: float, step: int) -> torch.Tensor:
    g = g + WD * w
    state["s"] = 0.99 * state.get("s", 0) + 0.01 * g**2
    return w - eta * g / (state["s"].sqrt() + 1e-8)


def adagrad_rule(w: torch.Tensor, g: torch.Tensor, state: dict[str, Any], eta: float, step: int) -> torch.Tensor:
    g = g + WD * w
    state["s"] = state.get("s", 0) + g**2
    return w - eta * g / (state["s"].sqrt() + 1e-10)


def adadelta_rule(w: torch.Tensor, g: torch.Tensor, state: dict[str, Any], eta: float, step: int) -> torch.Tensor:
    g = g + WD * w
    state["s"] = 0.3 * state.get("s", torch.zeros_like(w)) + 0.7 * g**2
    moved = state.get("d", torch.zeros_like(w))
    delta = (moved + 1e-6).sqrt() / (state["s"] + 1e-6).sqrt() * g
    state["d"] = 0.3 * moved + 0.7 * delta**2
    return w - eta * delta


def adam_rule(w: torch.Tensor, g: torch.Tensor, state: dict[str, Any], eta: float, step: int) -> torch.Tensor:
    g = g + WD * w
    state["m"] = 0.9 * state.get("m", 0) + 0.1 * g
    state["s"] = 0.999 * state.get("s", 0) + 0.001 * g**2
    return w - eta * (state["m"] / (1 - 0.9**step)) / ((state["s"] / (1 - 0.999**step)).sqrt() + 1e-8)


def test_newton_schulz_takes_every_singular_value_near_1_and_leaves_the_singular_vectors() -> None:
    """Three times s -> 3.4445 s - 4.775 s^3 + 2.0315 s^5, from the values over their root of the sum of squares."""
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([3.0, 1.0, 0.5, 0.2], dtype=torch.float64)
    u, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=generator))
    v, _ = torch.linalg.qr(torch.randn(9, 4, dtype=torch.float64, generator=generator))
    s = values / values.norm()
    for _ in range(3):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    assert ((s > 0.68) & (s < 1.21)).all()
    matrix, expected = u @ values.diag() @ v.T, u @ s.diag() @ v.T
    for scale in (1.0, 1e-3, 1e3):
        torch.testing.assert_close(orthogonalised(scale * matrix), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(orthogonalised(matrix), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(orthogonalised(matrix.T), expected.T, rtol=1e-5, atol=1e-6)
    noise = orthogonalised(torch.randn(32, 288, generator=generator))
    assert torch.linalg.svdvals(noise).min() > 0.68 and torch.linalg.svdvals(noise).max() < 1.21


def muon_rule(*, nesterov: bool) -> Rule:
    """With muon_lr a quarter of peak_lr."""

    def rule(w: torch.Tensor, g: torch.Tensor, state: dict[str, Any], eta: float, step: int) -> torch.Tensor:
        if w.dim() != 4:
            return sgd_rule(nesterov=nesterov, lars=False)(w, g, state, eta, step)
        state["v"] = 0.8 * state.get("v", 0) + g
        direction = (g + 0.8 * state["v"] if nesterov else state["v"]).flatten(1)
        u, s, vt = torch.linalg.svd(direction, full_matrices=False)
        s = s / (direction.norm() + 1e-7)
        for _ in range(3):
            s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
        return w * (len(w) / w.square().sum()).sqrt() - eta / 4 * (u @ s.diag() @ vt).view(w.shape)

    return rule


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_moves_filters_by_orthogonal_steps_and_the_rest_as_sgd(nesterov: bool) -> None:
    config = Config(width=1, solver="muon", momentum=0.8, nesterov=nesterov, weight_decay=WD, muon_lr=0.1)
    follows(config, muon_rule(nesterov=nesterov))


def test_muon_has_a_rate_of_its_own_that_lr_scale_and_the_schedule_multiply() -> None:
    config = Config(width=1, solver="muon", muon_lr=0.06, lr_scale=0.5, bn_bias_lr_mult=64)
    net = build_net(config, num_classes=3)
    optimizer = build_optimizer(config, net)
    set_lr(optimizer, lr_schedule(config, 5.0))
    others, biases, filters = optimizer.param_groups
    assert [weight.dim() for weight in filters["params"]] == 8 * [4]
    assert (others["lr"], biases["lr"], filters["lr"]) == pytest.approx((0.2, 12.8, 0.03))


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("solver", ["sgd", "lars"])
def test_sgd_and_lars_with_either_momentum_follow_their_formulas(solver: str, nesterov: bool) -> None:
    config = Config(width=1, solver=solver, momentum=0.8, nesterov=nesterov, weight_decay=WD)
    follows(config, sgd_rule(nesterov=nesterov, lars=solver == "lars"))


@pytest.mark.parametrize(
    ("solver", "rule"),
    [("rmsprop", rmsprop_rule), ("adagrad", adagrad_rule), ("adadelta", adadelta_rule), ("adam", adam_rule)],
)
def test_adaptive_solvers_follow_their_formulas(solver: str, rule: Rule) -> None:
    follows(Config(width=1, solver=solver, weight_decay=WD), rule)


def test_at_a_constant_rate_the_rule_is_torchs_sgd() -> None:
    torch.manual_seed(0)
    weights = [torch.randn(3, 2, dtype=torch.float64) for _ in range(2)]
    ours, theirs = (nn.Linear(2, 3, bias=False).double() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizer = build_optimizer(Config(), ours)
    set_lr(optimizer, 0.1)
    reference = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    for target in weights * 3:
        for layer, solver in ((ours, optimizer), (theirs, reference)):
            solver.zero_grad()
            (layer.weight - target).square().sum().backward()
            solver.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", ["lars", "muon", "rmsprop", "adagrad", "adadelta", "adam"])
def test_the_bias_multiplier_holds_for_every_solver(solver: str) -> None:
    net = build_net(Config(width=1), num_classes=3)
    optimizer = build_optimizer(Config(width=1, solver=solver, bn_bias_lr_mult=64), net)
    set_lr(optimizer, 0.5)
    others, biases = optimizer.param_groups[:2]
    assert (others["lr"], others["weight_decay"]) == (0.5, 5e-4)
    assert (biases["lr"], biases["weight_decay"]) == (32.0, 5e-4 / 64)


def test_an_optimizer_does_not_import_the_compiler() -> None:
    program = """
import sys
from model.config import Config
from model.net import build_net
from model.optim import build_optimizer
optimizer = build_optimizer(Config(width=1), build_net(Config(width=1), 2))
optimizer.load_state_dict(optimizer.state_dict())
optimizer.zero_grad()
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(REPO)}, capture_output=True, text=True
    )
    assert done.stdout == "False\n", done.stderr
