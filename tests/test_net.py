import pytest
import torch
from torch import nn
from torch.nn.functional import max_pool2d, relu

from model.config import Config
from model.net import build_net


def test_published_net_has_the_published_number_of_parameters() -> None:
    net = build_net(Config(width=64), num_classes=10)
    counts = {kind: 0 for kind in (nn.Conv2d, nn.Linear, nn.BatchNorm2d)}
    for module in net.modules():
        if type(module) in counts:
            counts[type(module)] += sum(weight.numel() for weight in module.parameters())
    assert counts[nn.Conv2d] + counts[nn.Linear] == 6_568_640
    assert counts[nn.BatchNorm2d] == 4_480
    assert sum(weight.numel() for weight in net.parameters()) == 6_573_120


def test_nine_layers_with_weights_and_no_other_bias_than_batch_norms() -> None:
    net = build_net(Config(width=4), num_classes=10)
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    linears = [module for module in net.modules() if isinstance(module, nn.Linear)]
    assert [conv.out_channels for conv in convs] == [4, 8, 8, 8, 16, 32, 32, 32]
    assert len(linears) == 1
    assert all(layer.bias is None for layer in [*convs, *linears])
    for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
        assert (norm.eps, norm.momentum) == (1e-5, 0.1)
        assert torch.equal(norm.weight, torch.ones_like(norm.weight))
        assert torch.equal(norm.bias, torch.zeros_like(norm.bias))


@pytest.mark.parametrize("width", [1, 3, 16])
def test_any_width_gives_a_logit_per_class(width: int) -> None:
    net = build_net(Config(width=width), num_classes=7)
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def test_forward_is_the_published_order_of_conv_norm_relu_pool() -> None:
    """The net written out again by hand, ReLU before pool as published."""
    torch.manual_seed(0)
    net = build_net(Config(width=4, logit_scale=0.125), num_classes=10).eval()
    named = dict(net.named_modules())

    def conv_norm_relu(name: str, x: torch.Tensor) -> torch.Tensor:
        return relu(named[f"{name}.norm"](named[f"{name}.conv"](x)))

    def residual(name: str, x: torch.Tensor) -> torch.Tensor:
        return x + conv_norm_relu(f"{name}.conv2", conv_norm_relu(f"{name}.conv1", x))

    images = torch.randn(5, 3, 32, 32)
    x = conv_norm_relu("prep", images)
    x = residual("layer1.residual.branch", max_pool2d(conv_norm_relu("layer1.conv", x), 2))
    x = max_pool2d(conv_norm_relu("layer2", x), 2)
    x = residual("layer3.residual.branch", max_pool2d(conv_norm_relu("layer3.conv", x), 2))
    expected = 0.125 * (max_pool2d(x, 4).flatten(1) @ named["linear"].weight.T)
    torch.testing.assert_close(net(images), expected)
