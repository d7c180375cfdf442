"""The parts of the nets against torch's own, against hand-worked numbers, and in place where they promise it."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import batch_norm, max_pool2d, relu

from model.config import Config
from model.layers import Celu, FrozenNorm, GhostNorm, Interleaved, MaxAndMean, Residual, Scale, merged_norm
from model.net import build_net

# --- where max-pooling stands


def logits_and_gradients(pool_place: str, celu_alpha: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    net = build_net(Config(width=3, pool_place=pool_place, celu_alpha=celu_alpha), num_classes=4)
    images = torch.randn(6, 3, 32, 32)
    logits = net(images)
    logits.square().sum().backward()
    return logits.detach(), {name: weight.grad for name, weight in net.named_parameters()}  # type: ignore[misc]


@pytest.mark.parametrize("celu_alpha", [0.0, 0.075])
def test_pooling_before_the_activation_is_the_same_function_with_the_same_gradients(celu_alpha: float) -> None:
    expected, gradients = logits_and_gradients("last", celu_alpha)
    logits, found = logits_and_gradients("before_act", celu_alpha)
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


def test_pooling_commutes_with_relu_bit_for_bit_but_not_with_batch_norm() -> None:
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(relu(max_pool2d(x, 2)), max_pool2d(relu(x), 2))
    expected, _ = logits_and_gradients("before_act", 0.0)
    found, _ = logits_and_gradients("before_norm", 0.0)
    assert (found - expected).abs().max() > 0.01


# --- CELU


@pytest.mark.parametrize("alpha", [0.075, 0.3, 1.0])
def test_celu_has_the_values_and_slopes_of_its_formula(alpha: float) -> None:
    points = [-3.0, -0.5, -0.075, -0.01, 0.0, 0.01, 2.0]
    x = torch.tensor(points).view(1, -1, 1, 1).requires_grad_()
    out = Celu(alpha)(x.clone())
    out.sum().backward()
    for point, value, slope in zip(points, out.flatten().tolist(), x.grad.flatten().tolist(), strict=True):  # type: ignore[union-attr]
        assert value == pytest.approx(point if point > 0 else alpha * (math.exp(point / alpha) - 1), abs=1e-7)
        assert slope == pytest.approx(1 if point > 0 else math.exp(point / alpha), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("alpha", [0.075, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(8, 5, 4, 4), (3, 2, 32, 32), (300, 16, 16, 16), (2, 7)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_celu_is_torchs_with_its_gradients(
    alpha: float, dtype: torch.dtype, shape: tuple[int, ...], channels_last: bool
) -> None:
    """Slopes come from the output, whose rounding in bf16 is up to 2^-9 of alpha: 2^-9 of the slope at 0, which is 1.
    Twice that where the two round apart, and again where the slope itself is rounded."""
    torch.manual_seed(0)
    x, grad = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    if channels_last and len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    results = []
    for celu in (Celu(alpha), nn.CELU(alpha)):
        leaf = x.clone().requires_grad_()
        out = celu(leaf.mul(1))
        out.backward(grad)
        results.append((out, leaf.grad))
    (out, slope), (expected, expected_slope) = results
    assert out.dtype is dtype and out.stride() == x.stride()
    unit = 2**-22 if dtype is torch.float32 else 2**-7
    assert ((out - expected).abs() <= unit * expected.abs() + 2**-22).all()
    assert ((slope - expected_slope).float().abs() <= 2 * unit * grad.abs().float()).all()


def test_celu_works_in_place_and_its_limit_is_relu() -> None:
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    out = Celu(0.3)(x)
    assert out.data_ptr() == x.data_ptr() and not torch.equal(x, before)
    distances = [(Celu(alpha)(before.clone()) - relu(before)).abs().max().item() for alpha in (0.3, 0.03, 0.003, 1e-6)]
    # everywhere between ReLU - alpha and ReLU
    assert all(d <= alpha * (1 + 1e-6) for d, alpha in zip(distances, (0.3, 0.03, 0.003, 1e-6), strict=True))
    assert distances == sorted(distances, reverse=True)


def test_celu_survives_very_negative_inputs_and_keeps_nan() -> None:
    x = torch.tensor([[-1e30, -200.0, float("nan"), 1e30]])
    out = Celu(0.075)(x.clone())[0].tolist()
    assert out[:2] == pytest.approx([-0.075, -0.075]) and math.isnan(out[2]) and out[3] == pytest.approx(1e30)


# --- ghost batch norm

BATCH, GHOST = 12, 4  # 3 groups: images 0, 3, 6, 9; 1, 4, 7, 10; 2, 5, 8, 11


def scaled_norm(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, len(norm.weight)))
        norm.bias.copy_(torch.linspace(-1, 1, len(norm.bias)))
    return norm


def test_ghost_norm_is_batch_norm_of_every_kth_image_with_averaged_running_statistics() -> None:
    torch.manual_seed(0)
    x = (torch.randn(BATCH, 3, 5, 5) + torch.arange(BATCH).view(-1, 1, 1, 1)).requires_grad_()
    grad = torch.randn(x.shape)
    ghost = scaled_norm(GhostNorm(3, GHOST))
    out = Interleaved(ghost, GHOST)(x)
    out.backward(grad)

    separate = [scaled_norm(nn.BatchNorm2d(3)) for _ in range(BATCH // GHOST)]
    y = x.detach().clone().requires_grad_()
    expected = torch.empty_like(y)
    for group, norm in enumerate(separate):
        part = norm(y[group :: BATCH // GHOST])
        part.backward(grad[group :: BATCH // GHOST])
        expected[group :: BATCH // GHOST] = part.detach()
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(ghost.weight.grad, sum(norm.weight.grad for norm in separate))
    torch.testing.assert_close(ghost.bias.grad, sum(norm.bias.grad for norm in separate))
    for name in ("running_mean", "running_var"):
        mean = torch.stack([getattr(norm, name) for norm in separate]).mean(0)
        torch.testing.assert_close(getattr(ghost, name), mean)


def test_ghost_norm_running_statistics_over_two_batches_are_those_of_the_groups_apart() -> None:
    """0.9 * old + 0.1 * new with the unbiased variance of each group, averaged over the groups."""
    torch.manual_seed(0)
    ghost = GhostNorm(1, 2)
    mean, var = 0.0, 1.0
    for batch in (torch.randn(6, 1, 2, 2), torch.randn(6, 1, 2, 2) * 3 + 5):
        Interleaved(ghost, 2)(batch)
        groups = [batch[group::3].flatten() for group in range(3)]
        mean = 0.9 * mean + 0.1 * sum(group.mean().item() for group in groups) / 3
        var = 0.9 * var + 0.1 * sum(group.var(unbiased=True).item() for group in groups) / 3
    assert ghost.running_mean.item() == pytest.approx(mean, rel=1e-5)
    assert ghost.running_var.item() == pytest.approx(var, rel=1e-5)


def test_ghost_norm_evaluates_with_its_running_statistics_whatever_the_batch() -> None:
    torch.manual_seed(0)
    net = Interleaved(scaled_norm(GhostNorm(3, GHOST)), GHOST)
    net(torch.randn(BATCH, 3, 5, 5) * 2 + 1)
    net.eval()
    norm, x = net.net, torch.randn(7, 3, 5, 5)
    expected = batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    torch.testing.assert_close(net(x), expected)
    torch.testing.assert_close(net(x[2:3]), expected[2:3])


def test_merged_norm_of_gpus_is_the_chunked_norm() -> None:
    torch.manual_seed(0)
    x = torch.randn(BATCH, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    grad = torch.randn(x.shape)
    results = []
    for merged in (False, True):
        norm, leaf = scaled_norm(GhostNorm(3, GHOST)), x.clone().requires_grad_()
        if merged:
            means, variances = norm.running_mean.repeat(3, 1), norm.running_var.repeat(3, 1)
            out = merged_norm(leaf, means, variances, norm.weight, norm.bias, norm.momentum, norm.eps)
            statistics = [means.mean(0), variances.mean(0)]
        else:
            out = norm(leaf)
            statistics = [norm.running_mean, norm.running_var]
        out.backward(grad)
        results.append([out, leaf.grad, norm.weight.grad, norm.bias.grad, *statistics])
    for chunked, at_once in zip(*results, strict=True):
        torch.testing.assert_close(at_once, chunked)


def test_an_interleaved_net_gives_each_image_its_own_logits_in_training_too() -> None:
    """A net that answers with what identifies the image: the order must come back."""
    images = torch.arange(BATCH).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).float().contiguous()
    seen = []

    class Spy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x[:, 0, 0, 0].tolist())
            return x.mean(dim=(2, 3))

    net = Interleaved(Spy(), GHOST)
    assert torch.equal(net(images), images[:, :, 0, 0])
    assert torch.equal(net.eval()(images), images[:, :, 0, 0])
    assert seen == [[0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11], list(range(BATCH))]


# --- the rest


def test_frozen_norm_measures_once_and_is_then_one_affine_function_in_both_modes() -> None:
    torch.manual_seed(0)
    norm = scaled_norm(FrozenNorm(3))
    first = torch.randn(8, 3, 4, 4) * 2 + 1
    norm.measuring = True
    norm(first)
    norm.measuring = False
    torch.testing.assert_close(norm.running_mean, first.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(norm.running_var, first.var(dim=(0, 2, 3), unbiased=True))
    x = torch.randn(5, 3, 4, 4) - 3
    shape = (1, 3, 1, 1)
    scaled = (x - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + 1e-5).sqrt()
    expected = scaled * norm.weight.view(shape) + norm.bias.view(shape)
    torch.testing.assert_close(norm.train()(x), expected)
    assert torch.equal(norm.train()(x), norm.eval()(x))


def test_small_parts_by_hand() -> None:
    x = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]], [[-1.0, -1.0], [-1.0, -5.0]]]])
    assert MaxAndMean()(x).tolist() == [[6.0, -1.0, 3.0, -2.0]]
    assert torch.equal(Scale(0.125)(x), x / 8)
    assert torch.equal(Residual(Scale(2))(x), 3 * x)
