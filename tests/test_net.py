"""The nets written out by hand, their parameter counts, and what they take from the data."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import batch_norm, conv2d, cross_entropy, gelu, interpolate, max_pool2d, relu

from model.config import LADDER, Config
from model.net import NETS, build_net, fit_to_data, whitening_filters


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


def by_name(net: nn.Module) -> dict[str, nn.Module]:
    return dict(net.named_modules())


def test_forward_is_the_published_order_of_conv_norm_relu_pool() -> None:
    """The net written out again by hand, ReLU before pool as published."""
    torch.manual_seed(0)
    net = build_net(Config(width=4, logit_scale=0.125), num_classes=10).eval()
    named = by_name(net)

    def conv_norm_relu(name: str, x: torch.Tensor) -> torch.Tensor:
        return relu(named[f"{name}.norm"](named[f"{name}.conv"](x)))

    def residual(name: str, x: torch.Tensor) -> torch.Tensor:
        return x + conv_norm_relu(f"{name}.conv2", conv_norm_relu(f"{name}.conv1", x))

    images = torch.randn(5, 3, 32, 32)
    x = conv_norm_relu("prep", images)
    x = residual("layer1.residual.sum.branch", max_pool2d(conv_norm_relu("layer1.conv", x), 2))
    x = max_pool2d(conv_norm_relu("layer2.conv", x), 2)
    x = residual("layer3.residual.sum.branch", max_pool2d(conv_norm_relu("layer3.conv", x), 2))
    expected = 0.125 * (max_pool2d(x, 4).flatten(1) @ named["linear"].weight.T)
    torch.testing.assert_close(net(images), expected)


# --- the 15 networks of post 4


def parameters(net: nn.Module) -> int:
    return sum(weight.numel() for weight in net.parameters())


# Convolutions 3x3 without bias, 2 norm parameters per channel, 10 classes without bias:
# 27 * 64 + 9 * (64 * 128 + 128 * 256 + 256 * 512) + 2 * (64 + 128 + 256 + 512) + 512 * 10
BACKBONE = 1_728 + 73_728 + 294_912 + 1_179_648 + 1_920 + 5_120
# 9 * c * c + 2 * c for a convolution with its norm on the c channels of layer 1, 2, 3
ONE_MORE = {"1": 147_456 + 256, "2": 589_824 + 512, "3": 2_359_296 + 1_024}
SUBSETS = ["1", "2", "3", "12", "13", "23", "123"]


@pytest.mark.parametrize("layers", ["none", *SUBSETS])
def test_parameter_counts_of_the_backbone_and_the_extra_and_residual_nets(layers: str) -> None:
    added = sum(ONE_MORE[layer] for layer in layers) if layers != "none" else 0
    extra = build_net(Config(residual_layers="none", extra_layers=layers), num_classes=10)
    assert parameters(extra) == BACKBONE + added
    residual = build_net(Config(residual_layers=layers), num_classes=10)
    assert parameters(residual) == BACKBONE + 2 * added


@pytest.mark.parametrize("layers", SUBSETS)
def test_extra_convolutions_and_residual_pairs_stand_after_the_pooling_of_their_layers(layers: str) -> None:
    """Where the sizes are 16, 8 and 4: seen by every convolution of the net."""
    for knob, per_layer in (("extra_layers", 1), ("residual_layers", 2)):
        net = build_net(Config(width=2, **{"residual_layers": "none", knob: layers}), num_classes=10)
        sizes: list[tuple[int, int]] = []
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda _, x, out, seen=sizes: seen.append((out.shape[1], out.shape[2])))
        net(torch.randn(2, 3, 32, 32))
        expected = [(2, 32)]
        for layer, before, after in (("1", 32, 16), ("2", 16, 8), ("3", 8, 4)):
            channels = 2 * 2 ** int(layer)
            expected += [(channels, before)] + [(channels, after)] * (per_layer * (layer in layers))
        assert sizes == expected


# --- residual ablations of the Torch blog


@pytest.mark.parametrize("norm_place", ["in_branch", "after_add"])
@pytest.mark.parametrize("act_place", ["in_branch", "after_add", "none"])
def test_second_norm_and_activation_of_a_residual_pair_stand_where_the_config_says(
    norm_place: str, act_place: str
) -> None:
    torch.manual_seed(0)
    config = Config(width=4, residual_layers="1", residual_norm=norm_place, residual_act=act_place)
    net = build_net(config, num_classes=10)
    pair = by_name(net)["layer1.residual"]
    branch = by_name(pair)["sum.branch"]
    convs = [module for module in branch.modules() if isinstance(module, nn.Conv2d)]
    scales = [torch.linspace(0.5, 2, 8), torch.linspace(2, -1, 8)]
    norms = [module for module in pair.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm, scale in zip(norms, scales, strict=True):
        norm.weight.data.copy_(scale)

    def normed(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(dim=(0, 2, 3), keepdim=True)
        return centred / (x.var(dim=(0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt() * scale.view(1, -1, 1, 1)

    x = torch.randn(6, 8, 5, 5)
    out = conv2d(relu(normed(conv2d(x, convs[0].weight, padding=1), scales[0])), convs[1].weight, padding=1)
    out = normed(out, scales[1]) if norm_place == "in_branch" else out
    out = relu(out) if act_place == "in_branch" else out
    out = x + out
    out = normed(out, scales[1]) if norm_place == "after_add" else out
    out = relu(out) if act_place == "after_add" else out
    torch.testing.assert_close(pair(x), out, rtol=1e-4, atol=1e-5)
    assert parameters(net) == parameters(build_net(Config(width=4, residual_layers="1"), num_classes=10))


# --- the net of posts 1-3


def test_dawn_net_has_the_published_number_of_parameters() -> None:
    assert parameters(build_net(Config(net="dawn"), num_classes=10)) == 5_205_834


def test_dawn_net_is_pre_activated_and_its_skips_start_after_norm_and_relu() -> None:
    torch.manual_seed(0)
    net = build_net(Config(net="dawn", width=2, logit_scale=0.5, norm_scale_uniform=True), num_classes=10)
    weights = dict(net.named_parameters())
    x = images = torch.randn(4, 3, 32, 32)
    x = conv2d(x, weights["prep.weight"], padding=1)
    for layer, stride in ((1, 1), (2, 2), (3, 2), (4, 2)):
        for block in (0, 1):
            name = f"layer{layer}.block{block}"
            step = stride if block == 0 else 1

            def norm_relu(x: torch.Tensor, part: str) -> torch.Tensor:
                return relu(batch_norm(x, None, None, weights[f"{part}.norm.weight"], None, training=True))

            x = norm_relu(x, f"{name}.pre")
            inner = conv2d(x, weights[f"{name}.conv1.weight"], padding=1, stride=step)
            skip = conv2d(x, weights[f"{name}.skip.weight"], stride=2) if step == 2 else x
            x = skip + conv2d(norm_relu(inner, f"{name}.mid"), weights[f"{name}.conv2.weight"], padding=1)
    assert x.shape == (4, 8, 4, 4)
    features = torch.cat([x.flatten(2).max(dim=2).values, x.flatten(2).mean(dim=2)], dim=1)
    expected = 0.5 * (features @ weights["linear.weight"].T + weights["linear.bias"])
    torch.testing.assert_close(net(images), expected, rtol=1e-4, atol=1e-5)


# --- the ladder of post 4 from there to the backbone of ResNet-9

# prep, and a classifier with bias of 2 * 256 features; 1x1 convolutions 64 -> 128 -> 256 -> 256
ENDS = 1_728 + 5_120 + 10
ONE_BY_ONE = 64 * 128 + 128 * 256 + 256 * 256
# channels of the norms: two before each convolution and two at the end, three on 64 channels; then one each
PATH_NORMS, ONE_NORM_EACH = 3 * 64 + 2 * 128 + 3 * 256, 64 + 128 + 256 + 256
LADDER_PARAMETERS = {
    "shortcut": ENDS + ONE_BY_ONE + 2 * PATH_NORMS,
    "shortcut_tidy": ENDS + ONE_BY_ONE + 2 * ONE_NORM_EACH,
    "strided": ENDS + 9 * ONE_BY_ONE + 2 * ONE_NORM_EACH,
    "pooled": ENDS + 9 * ONE_BY_ONE + 2 * ONE_NORM_EACH,
}


@pytest.mark.parametrize("net", LADDER)
def test_parameter_counts_of_the_ladder(net: str) -> None:
    assert parameters(build_net(Config(net=net), num_classes=10)) == LADDER_PARAMETERS[net]


def by_batch(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return relu(batch_norm(x, None, None, scale, None, training=True))


@pytest.mark.parametrize("net", LADDER)
def test_the_ladder_is_as_published(net: str) -> None:
    """Each net written out by hand, its weights in the order of use."""
    torch.manual_seed(0)
    config = Config(net=net, width=2, logit_scale=0.5, norm_scale_uniform=True)
    model = build_net(config, num_classes=10)
    weights = [weight for name, weight in model.named_parameters() if not name.endswith("norm.bias")]
    *parts, linear, bias = weights
    images = torch.randn(6, 3, 32, 32)
    prep, *parts = parts
    x = conv2d(images, prep, padding=1)
    if net == "shortcut":
        norms = [part for part in parts if part.dim() == 1]
        convs = iter(part for part in parts if part.dim() == 4)
        assert [len(scale) for scale in norms] == [2, 2, 2, 4, 4, 8, 8, 8]
        for place, scale in enumerate(norms):
            x = by_batch(x, scale)
            if place in (2, 4, 6):
                x = conv2d(x, next(convs), stride=2)
    else:
        x = by_batch(x, parts[0])
        for conv, scale in zip(parts[1::2], parts[2::2], strict=True):
            stride, padding = {"shortcut_tidy": (2, 0), "strided": (2, 1), "pooled": (1, 1)}[net]
            x = by_batch(conv2d(x, conv, stride=stride, padding=padding), scale)
            x = max_pool2d(x, 2) if net == "pooled" else x
    assert x.shape == (6, 8, 4, 4)
    features = torch.cat([x.flatten(2).max(dim=2).values, x.flatten(2).mean(dim=2)], dim=1)
    torch.testing.assert_close(model(images), 0.5 * (features @ linear.T + bias), rtol=1e-4, atol=1e-5)


def test_the_place_of_pooling_counts_in_the_pooled_net_as_in_resnet9() -> None:
    nets = {}
    for place in ("last", "before_act", "before_norm"):
        torch.manual_seed(0)
        nets[place] = build_net(Config(net="pooled", width=2, pool_place=place), num_classes=10)
    logits = {place: net(torch.ones(4, 3, 32, 32).cumsum(dim=3)) for place, net in nets.items()}
    torch.testing.assert_close(logits["last"], logits["before_act"])
    assert not torch.allclose(logits["last"], logits["before_norm"])


# --- the deep nets of the Torch blog


@pytest.mark.parametrize(("net", "published"), [("resnet20", 269_722), ("resnet56", 853_018), ("resnet110", 1_727_962)])
def test_parameter_counts_of_the_deep_nets(net: str, published: int) -> None:
    """By hand: a convolution of c to d channels with its norm has 9 c d + 2 d; 6 n + 1 of them and a classifier."""
    n = (int(net[len("resnet") :]) - 2) // 6
    same = {c: 9 * c * c + 2 * c for c in (16, 32, 64)}
    first = 27 * 16 + 2 * 16
    wider = 9 * 16 * 32 + 2 * 32 + 9 * 32 * 64 + 2 * 64
    by_hand = first + 2 * n * same[16] + wider + (2 * n - 1) * (same[32] + same[64]) + 64 * 10 + 10
    config = Config(net=net, width=16, residual_act="after_add")
    assert parameters(build_net(config, num_classes=10)) == by_hand == published


@pytest.mark.parametrize("depth", [20, 56, 110])
def test_deep_nets_have_their_layers(depth: int) -> None:
    """A third of the pairs at each size, and a classifier of the global mean."""
    net = build_net(Config(net=f"resnet{depth}", width=2), num_classes=10)
    seen: list[tuple[int, int]] = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, x, out: seen.append((out.shape[1], out.shape[2])))
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    third = (depth - 2) // 3
    assert seen == [(2, 32)] * (1 + third) + [(4, 16)] * third + [(8, 8)] * third
    assert len(seen) + 1 == depth  # with the classifier


@pytest.mark.parametrize("norm_place", ["in_branch", "after_add"])
@pytest.mark.parametrize("act_place", ["in_branch", "after_add", "none"])
def test_deep_nets_are_the_four_of_the_torch_blog(norm_place: str, act_place: str) -> None:
    """ResNet-20 written out by hand, with shortcuts of every second pixel and zeros for the channels that are new."""
    torch.manual_seed(0)
    config = Config(net="resnet20", width=2, residual_norm=norm_place, residual_act=act_place, norm_scale_uniform=True)
    net = build_net(config, num_classes=10)
    weights = [weight for name, weight in net.named_parameters() if not name.endswith("norm.bias")]
    *parts, linear, bias = weights
    images = torch.randn(6, 3, 32, 32)
    convs = iter(part for part in parts if part.dim() == 4)
    scales = iter(part for part in parts if part.dim() == 1)

    def norm(x: torch.Tensor) -> torch.Tensor:
        return batch_norm(x, None, None, next(scales), None, training=True)

    x = relu(norm(conv2d(images, next(convs), padding=1)))
    for pair in range(9):
        stride = 2 if pair in (3, 6) else 1
        out = conv2d(relu(norm(conv2d(x, next(convs), padding=1, stride=stride))), next(convs), padding=1)
        out = norm(out) if norm_place == "in_branch" else out
        out = relu(out) if act_place == "in_branch" else out
        skip = torch.cat([x[:, :, ::2, ::2], torch.zeros_like(out[:, x.shape[1] :])], 1) if stride == 2 else x
        x = skip + out
        x = norm(x) if norm_place == "after_add" else x
        x = relu(x) if act_place == "after_add" else x
    assert x.shape == (6, 8, 8, 8) and next(convs, None) is None and next(scales, None) is None
    expected = 0.125 * (x.mean(dim=(2, 3)) @ linear.T + bias)
    torch.testing.assert_close(net(images), expected, rtol=1e-3, atol=1e-4)


def test_convolutions_of_deep_nets_start_at_twice_the_inverse_of_their_inputs() -> None:
    net = build_net(Config(net="resnet20", width=16), num_classes=10)
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5_000:
            assert module.weight.var().item() * 9 * module.in_channels == pytest.approx(2, rel=0.1)


# --- every net


@pytest.mark.parametrize("net", NETS)
def test_a_loss_reaches_every_parameter_of_every_net(net: str) -> None:
    torch.manual_seed(0)
    config = Config(net=net, width=8)
    model = build_net(config, num_classes=4)
    cross_entropy(model(torch.randn(32, 3, 32, 32)), torch.arange(32) % 4).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all() and weight.grad.any(), name


# --- norm scales, and what is taken from the data


def norms(net: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize("ghost_batch", [0, 8])
@pytest.mark.parametrize("net", ["resnet9", "dawn", *LADDER, "resnet20"])
def test_norm_scales_start_at_norm_scale_or_uniformly_below_it(net: str, ghost_batch: int) -> None:
    config = Config(net=net, width=16, ghost_batch=ghost_batch, norm_scale=0.25)
    for norm in norms(build_net(config, num_classes=10)):
        assert norm.weight.eq(0.25).all() and norm.bias.eq(0).all()
    uniform = build_net(replace(config, norm_scale_uniform=True, norm_scale=0.5), num_classes=10)
    scales = torch.cat([norm.weight for norm in norms(uniform)])
    assert scales.min() >= 0 and scales.max() <= 0.5
    assert scales.max() - scales.min() > 0.4 and 0.2 < scales.mean() < 0.3


@pytest.mark.parametrize("net", ["resnet9", "dawn", "shortcut", "pooled", "resnet20"])
def test_a_ghost_batch_net_trains_as_if_every_kth_image_were_a_batch_of_its_own(net: str) -> None:
    """24 images in groups of 8: images 0, 3, 6, ...; 1, 4, 7, ...; 2, 5, 8, ..."""
    config = Config(net=net, width=2, ghost_batch=8, batch_size=24)
    torch.manual_seed(0)
    ghost = build_net(config, num_classes=4)
    plain = build_net(replace(config, ghost_batch=0), num_classes=4)
    plain.load_state_dict({name.removeprefix("net."): value for name, value in ghost.state_dict().items()})
    images = torch.randn(24, 3, 32, 32) + torch.arange(24).view(-1, 1, 1, 1) / 10
    logits = ghost(images)
    for group in range(3):
        torch.testing.assert_close(logits[group::3], plain(images[group::3]), rtol=1e-4, atol=1e-5)


def test_norm_none_leaves_only_convolutions_and_the_classifier() -> None:
    net = build_net(Config(width=64, norm="none"), num_classes=10)
    assert parameters(net) == 6_568_640
    assert not norms(net)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Correlated within a patch, as photographs are, with a mean other than 0: [N, 3, 32, 32]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(300, 3, 10, 10, generator=generator) + torch.tensor([0.5, 0.0, -0.5]).view(1, 3, 1, 1)
    return interpolate(coarse, size=(32, 32), mode="bilinear") + 0.1 * torch.randn(300, 3, 32, 32, generator=generator)


def test_whitened_patches_have_the_identity_as_second_moment_up_to_eps(images: torch.Tensor) -> None:
    filters = whitening_filters(images)
    assert filters.shape == (27, 3, 3, 3)
    patches = images.unfold(2, 3, 1).unfold(3, 3, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 27).double()
    assert len(patches) == 300 * 900
    eigenvalues = torch.linalg.eigvalsh(patches.T @ patches / (len(patches) - 1))
    out = conv2d(images, filters).permute(0, 2, 3, 1).reshape(-1, 27).double()
    moment = out.T @ out / (len(out) - 1)
    torch.testing.assert_close(moment, torch.diag(eigenvalues / (eigenvalues + 0.01)), rtol=1e-3, atol=1e-4)
    assert eigenvalues.min() < 0.02 < 1 < eigenvalues.max()


@pytest.mark.parametrize(
    ("net", "ghost_batch"), [("resnet9", 0), ("resnet9", 8), ("shortcut_tidy", 0), ("resnet20", 8)]
)
def test_the_whitening_layer_is_fixed_and_followed_by_a_learnt_1x1(
    images: torch.Tensor, net: str, ghost_batch: int
) -> None:
    config = Config(net=net, width=4, batch_size=16, whiten=True, ghost_batch=ghost_batch)
    model = build_net(config, num_classes=10)
    fit_to_data(model, config, images)
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert torch.equal(convs[0].weight, whitening_filters(images))
    assert convs[0].padding == (1, 1) and convs[0].bias is None and not convs[0].weight.requires_grad
    assert convs[1].weight.shape == (4, 27, 1, 1) and convs[1].weight.requires_grad
    assert model(images[:16]).shape == (16, 10)


def test_2x2_patches_are_whitened_as_well_with_their_eps(images: torch.Tensor) -> None:
    filters = whitening_filters(images, px=2, eps=5e-4)
    assert filters.shape == (12, 3, 2, 2)
    out = conv2d(images, filters).permute(0, 2, 3, 1).reshape(-1, 12).double()
    assert len(out) == 300 * 961
    patches = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12).double()
    eigenvalues = torch.linalg.eigvalsh(patches.T @ patches / (len(patches) - 1))
    moment = out.T @ out / (len(out) - 1)
    torch.testing.assert_close(moment, torch.diag(eigenvalues / (eigenvalues + 5e-4)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("px", "patch", "sizes"), [(3, 27, [32, 16, 8, 4]), (2, 12, [31, 15, 7, 3])])
def test_whitening_in_both_signs_goes_through_bias_and_activation_straight_to_layer_1(
    images: torch.Tensor, px: int, patch: int, sizes: list[int]
) -> None:
    config = Config(width=4, batch_size=16, act="gelu", whiten=True, whiten_px=px, whiten_both_signs=True)
    net = build_net(config, num_classes=10)
    fit_to_data(net, config, images)
    named = by_name(net)
    whiten, filters = named["prep.whiten"], whitening_filters(images, px, 1e-2)
    assert isinstance(whiten, nn.Conv2d) and whiten.bias is not None
    assert torch.equal(whiten.weight, torch.cat([filters, -filters])) and not whiten.weight.requires_grad
    assert torch.equal(whiten.bias, torch.zeros(2 * patch)) and whiten.bias.requires_grad
    assert list(dict(named["prep"].named_children())) == ["whiten", "act"]
    assert named["layer1.conv.conv"].weight.shape == (8, 2 * patch, 3, 3)

    whiten.bias.data.uniform_(-1, 1)
    expected = gelu(conv2d(images[:4], whiten.weight, whiten.bias, padding=(px - 1) // 2))
    torch.testing.assert_close(named["prep"](images[:4]), expected)
    seen = [expected.shape[2]]
    for name in ("layer1.conv", "layer2.conv", "layer3.conv"):
        named[name].register_forward_hook(lambda _, x, out: seen.append(out.shape[2]))
    named["pool"].register_forward_hook(lambda _, x, out: seen.append(out.shape[2]))
    assert net(images[:4]).shape == (4, 10) and seen == [*sizes, 1]


def test_2x2_whitening_may_also_go_through_the_1x1(images: torch.Tensor) -> None:
    config = Config(width=4, batch_size=16, whiten=True, whiten_px=2)
    net = build_net(config, num_classes=10)
    fit_to_data(net, config, images)
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert torch.equal(convs[0].weight, whitening_filters(images, 2, 1e-2)) and convs[0].bias is None
    assert convs[1].weight.shape == (4, 12, 1, 1) and net(images[:4]).shape == (4, 10)


@pytest.mark.parametrize("ghost_batch", [0, 8])
@pytest.mark.parametrize("base", [{}, {"whiten": True}, {"net": "dawn"}])
def test_identity_initialised_convolutions_pass_their_input_on(base: dict[str, Any], ghost_batch: int) -> None:
    """The first c_in output channels are the input, or every second pixel of it; the others, and the classifier, start
    as without the trick."""
    config = Config(width=6, ghost_batch=ghost_batch, **base)
    nets = []
    for identity_init in (False, True):
        torch.manual_seed(0)
        nets.append(build_net(replace(config, identity_init=identity_init), num_classes=10))
    convs = 0
    for (name, plain), module in zip(nets[0].named_modules(), nets[1].modules(), strict=True):
        if not isinstance(module, nn.Conv2d) or name.endswith("whiten"):
            assert all(
                torch.equal(a, b) for a, b in zip(plain.parameters(False), module.parameters(False), strict=True)
            )
            continue
        x = torch.randn(2, module.in_channels, 8, 8)
        passed = min(module.in_channels, module.out_channels)
        out, halved = module(x), module.stride == (2, 2) or type(module) is not nn.Conv2d
        assert torch.equal(out[:, :passed], x[:, :passed, ::2, ::2] if halved else x[:, :passed])
        assert torch.equal(module.weight[passed:], plain.weight[passed:])
        convs += 1
    assert convs == (8 if not base.get("net") else 20)


def test_the_initial_scale_is_that_of_convolutions_and_classifier() -> None:
    """Without norms and biases logits then grow with the scale to the power of the layers; 6 ** 0.5 is He's init."""
    nets = []
    for scale in (1.0, 6**0.5):
        torch.manual_seed(0)
        nets.append(build_net(Config(width=8, norm="none", residual_layers="none", init_scale=scale), 10))
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(nets[1](x), 6 ** (5 / 2) * nets[0](x))  # 4 convolutions, 1 classifier
    last = nets[1].get_parameter("layer3.conv.conv.weight")
    assert last.std().item() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.05)
    with_norm = build_net(Config(width=2, init_scale=3.0), 10).state_dict()
    assert with_norm["prep.norm.weight"].tolist() == [1.0, 1.0]


def test_gelu_takes_the_place_of_every_activation() -> None:
    for net in ("resnet9", "dawn"):
        kinds = [
            [type(m) for m in build_net(Config(net=net, width=2, act=act), 4).modules()] for act in ("celu", "gelu")
        ]
        assert [nn.GELU if kind is nn.ReLU else kind for kind in kinds[0]] == kinds[1] and nn.GELU in kinds[1]


def test_frozen_statistics_are_those_of_the_first_batch(images: torch.Tensor) -> None:
    """So the first norms give the first batch, and only it, mean 0 and (unbiased) variance 1."""
    config = Config(width=2, batch_size=16, norm="frozen")
    torch.manual_seed(0)
    net = build_net(config, num_classes=10)
    fit_to_data(net, config, images)
    seen: list[torch.Tensor] = []
    for norm in norms(net):
        norm.register_forward_hook(lambda _, x, out, seen=seen: seen.append(out.clone()))
    net.train()
    net(images[:16])
    assert len(seen) == 8
    for out in seen:
        torch.testing.assert_close(out.mean(dim=(0, 2, 3)), torch.zeros(out.shape[1]), rtol=0, atol=1e-4)
        torch.testing.assert_close(out.var(dim=(0, 2, 3)), torch.ones(out.shape[1]), rtol=1e-2, atol=0)
    assert torch.equal(net.train()(images[16:40]), net.eval()(images[16:40]))
    torch.manual_seed(0)
    assert not torch.allclose(net(images[:16]), build_net(replace(config, norm="batch"), 10).eval()(images[:16]))
