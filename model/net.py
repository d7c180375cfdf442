"""The nets of "How to Train Your ResNet", any width: ResNet-9 with its variants, the pre-activation net before it and
the steps from one to the other; and the nets of 20, 56 and 110 layers that the Torch blog took apart.

A convolution block is a list of named parts (conv, norm, act, pool); a variant is another list or another part.
"""

from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import nn

from model.config import RESNETS, Config
from model.layers import Celu, EverySecond, FrozenNorm, GhostNorm, Interleaved, MaxAndMean, Residual, Scale, Subsample

WHITEN_IMAGES, WHITEN_CHUNK = 10_000, 500  # in all, and whose patches are taken at once
POOL_ORDERS = {  # Config.pool_place
    "last": ("conv", "norm", "act", "pool"),
    "before_act": ("conv", "norm", "pool", "act"),  # both are monotone: the same result, a quarter of the work
    "before_norm": ("conv", "pool", "norm", "act"),
}
HALVING: dict[str, dict[str, int]] = {  # how the convolutions of the nets of post 4's ladder halve the image
    "shortcut_tidy": {"kernel_px": 1, "stride": 2},
    "strided": {"stride": 2},
    "pooled": {},  # max-pooling does
}


def build_norm(config: Config, channels: int) -> nn.BatchNorm2d | None:
    """The norm layer: scale and bias as the config says, eps 1e-5, running average 0.1."""
    if config.norm == "none":
        return None
    if config.ghost_batch:
        norm: nn.BatchNorm2d = GhostNorm(channels, config.ghost_batch)
    else:
        norm = FrozenNorm(channels) if config.norm == "frozen" else nn.BatchNorm2d(channels)
    if config.norm_scale_uniform:
        nn.init.uniform_(norm.weight, 0, config.norm_scale)
    else:
        nn.init.constant_(norm.weight, config.norm_scale)
    norm.weight.requires_grad_(not config.norm_scale_frozen)
    return norm


def build_act(config: Config) -> nn.Module:
    if config.act == "gelu":
        return nn.GELU()
    return Celu(config.celu_alpha) if config.celu_alpha else nn.ReLU(inplace=True)


def named(**parts: nn.Module | None) -> nn.Sequential:
    return nn.Sequential(OrderedDict((name, part) for name, part in parts.items() if part is not None))


def convolution(c_in: int, c_out: int, kernel_px: int, stride: int) -> nn.Conv2d:
    if (kernel_px, stride) == (1, 2):
        return EverySecond(c_in, c_out)
    return nn.Conv2d(c_in, c_out, kernel_px, stride, padding=kernel_px // 2, bias=False)


def conv_block(
    config: Config,
    c_in: int,
    c_out: int,
    parts: Iterable[str] = ("conv", "norm", "act"),
    *,
    kernel_px: int = 3,
    stride: int = 1,
) -> nn.Sequential:
    """The named parts in this order: [B, c_in, H, W] -> [B, c_out, H, W], halved in H and W by a stride of 2 and where
    `pool` is a part."""
    make = {
        "conv": lambda: convolution(c_in, c_out, kernel_px, stride),
        "norm": lambda: build_norm(config, c_out),
        "act": lambda: build_act(config),
        "pool": lambda: nn.MaxPool2d(2),
    }
    return named(**{part: make[part]() for part in parts})


def residual(config: Config, c_in: int, c_out: int) -> nn.Sequential:
    """x + two convolution blocks, then what the config places after the sum, norm before activation: [B, c_in, H, W] ->
    the same, or, where c_out is twice c_in, [B, c_out, H / 2, W / 2].

    The Torch blog's four blocks are residual_norm in_branch ("before add") or after_add ("after add") by residual_act
    after_add ("ReLU") or none ("no ReLU"); its first one, in_branch and after_add, is the block of He et al. 2015.
    """
    assert c_out in (c_in, 2 * c_in)
    places = {"norm": config.residual_norm, "act": config.residual_act}
    in_branch = [part for part, place in places.items() if place == "in_branch"]
    after = [part for part, place in places.items() if place == "after_add"]
    branch = named(
        conv1=conv_block(config, c_in, c_out, stride=c_out // c_in),
        conv2=conv_block(config, c_out, c_out, ["conv", *in_branch]),
    )
    skip = Subsample() if c_out > c_in else None
    return named(sum=Residual(branch, skip), **dict(conv_block(config, c_out, c_out, after).named_children()))


def prep_channels(config: Config) -> int:
    return 2 * 3 * config.whiten_px**2 if config.whiten_both_signs else config.width


def prep(config: Config) -> nn.Sequential:
    """The first layer: [B, 3, 32, 32] -> [B, prep_channels, 32, 32], or 31 x 31 after patches of 2 pixels."""
    if not config.whiten:
        return conv_block(config, 3, config.width)
    px, both = config.whiten_px, config.whiten_both_signs
    patch = 3 * px**2
    whiten = nn.Conv2d(3, prep_channels(config) if both else patch, px, padding=(px - 1) // 2, bias=both)
    whiten.weight.requires_grad_(False)  # filled by fit_to_data
    if whiten.bias is not None:  # a linear 1x1 would have no use for the negatives
        nn.init.zeros_(whiten.bias)
        return named(whiten=whiten, act=build_act(config))
    return named(whiten=whiten, **dict(conv_block(config, patch, config.width, kernel_px=1).named_children()))


def resnet9(config: Config, num_classes: int) -> nn.Sequential:
    """The backbone of post 4 with the extra convolutions and residual pairs that the config names."""
    w = config.width

    def layer(number: int, c_in: int, c_out: int) -> nn.Sequential:
        return named(
            conv=conv_block(config, c_in, c_out, POOL_ORDERS[config.pool_place]),
            extra=conv_block(config, c_out, c_out) if str(number) in config.extra_layers else None,
            residual=residual(config, c_out, c_out) if str(number) in config.residual_layers else None,
        )

    return named(
        prep=prep(config),
        layer1=layer(1, prep_channels(config), 2 * w),
        layer2=layer(2, 2 * w, 4 * w),
        layer3=layer(3, 4 * w, 8 * w),
        pool=nn.MaxPool2d(4 if config.whiten_px == 3 else 3),  # 31 pixels become 15, 7 and 3
        flatten=nn.Flatten(),
        linear=nn.Linear(8 * w, num_classes, bias=False),
        scale=Scale(config.logit_scale),
    )


class PreActBlock(nn.Module):
    """Norm and activation, then two 3x3 convolutions beside a skip that starts after the activation (posts 1-3)."""

    def __init__(self, config: Config, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.pre = conv_block(config, c_in, c_in, ("norm", "act"))
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.mid = conv_block(config, c_out, c_out, ("norm", "act"))
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.skip = nn.Identity() if stride == 1 else EverySecond(c_in, c_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pre(x)
        return self.skip(x) + self.conv2(self.mid(self.conv1(x)))


def dawn_stages(w: int) -> list[tuple[int, int, int]]:
    """Channels into and out of each stage of the DAWN net, and its stride."""
    return [(w, w, 1), (w, 2 * w, 2), (2 * w, 4 * w, 2), (4 * w, 4 * w, 2)]


def with_dawns_head(config: Config, num_classes: int, **parts: nn.Module) -> nn.Sequential:
    """These parts, which end in 4 * width channels, and the DAWN net's classifier on them."""
    return named(
        **parts,
        pool=MaxAndMean(),
        linear=nn.Linear(8 * config.width, num_classes),
        scale=Scale(config.logit_scale),
    )


def dawn(config: Config, num_classes: int) -> nn.Sequential:
    """The net that posts 1-3 start from: four stages of two pre-activation blocks."""
    layers = {
        f"layer{number}": named(
            block0=PreActBlock(config, c_in, c_out, stride), block1=PreActBlock(config, c_out, c_out, 1)
        )
        for number, (c_in, c_out, stride) in enumerate(dawn_stages(config.width), start=1)
    }
    return with_dawns_head(config, num_classes, prep=convolution(3, config.width, 3, 1), **layers)


def shortcut(config: Config, num_classes: int) -> nn.Sequential:
    """The shortest way through the DAWN net, along its skips: 8 times norm and activation, three 1x1 convolutions of
    every second pixel among them (post 4, claim C11)."""

    def layer(c_in: int, c_out: int, stride: int) -> nn.Sequential:
        return named(
            pre0=conv_block(config, c_in, c_in, ("norm", "act")),
            skip=EverySecond(c_in, c_out) if stride == 2 else None,
            pre1=conv_block(config, c_out, c_out, ("norm", "act")),
        )

    layers = {f"layer{number}": layer(*stage) for number, stage in enumerate(dawn_stages(config.width), start=1)}
    return with_dawns_head(config, num_classes, prep=convolution(3, config.width, 3, 1), **layers)


def backbone(config: Config, num_classes: int) -> nn.Sequential:
    """Four convolution blocks under the DAWN net's classifier (post 4, claim C11). ResNet-9 without residual pairs is
    the last of them with twice the channels at the end and the global maximum alone, and without classifier biases."""
    parts = POOL_ORDERS[config.pool_place] if config.net == "pooled" else ("conv", "norm", "act")
    layers = {
        f"layer{number}": conv_block(config, c_in, c_out, parts, **HALVING[config.net])
        for number, (c_in, c_out, _) in enumerate(dawn_stages(config.width)[1:], start=1)
    }
    return with_dawns_head(config, num_classes, prep=prep(config), **layers)


def resnet(config: Config, num_classes: int) -> nn.Sequential:
    """The nets of 6 n + 2 layers for CIFAR of He et al. 2015 (arXiv 1512.03385, 4.2): a convolution, three stages of n
    residual pairs, and a classifier of the global mean. The paper has width 16, residual_act after_add and logit_scale
    1. Shortcuts are option A. Convolutions start as there, not as torch's do, at a variance of 2 / fan-in: where a norm
    stands after the sum, it tells how much each pair adds to what it gets."""
    w, pairs = config.width, (int(config.net.removeprefix("resnet")) - 2) // 6

    def stage(c_in: int, c_out: int) -> nn.Sequential:
        channels = [c_in, *[c_out] * pairs]
        return named(**{f"pair{n}": residual(config, channels[n], c_out) for n in range(pairs)})

    net = named(
        prep=prep(config),
        layer1=stage(w, w),
        layer2=stage(w, 2 * w),
        layer3=stage(2 * w, 4 * w),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        linear=nn.Linear(4 * w, num_classes),
        scale=Scale(config.logit_scale),
    )
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return net


NETS = {
    "resnet9": resnet9,
    "dawn": dawn,
    "shortcut": shortcut,
    **dict.fromkeys(HALVING, backbone),
    **dict.fromkeys(RESNETS, resnet),
}


def build_net(config: Config, num_classes: int) -> nn.Module:
    """Images [B, 3, 32, 32] -> logits [B, num_classes], initialised from torch's global generator.

    Width 64 with 10 classes is the published ResNet-9 (6,573,120 parameters). `fit_to_data` must follow before the
    first step where the config has patch whitening or frozen statistics.
    """
    net: nn.Module = NETS[config.net](config, num_classes)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.requires_grad:
            module.weight.detach().mul_(config.init_scale)
            if config.identity_init and isinstance(module, nn.Conv2d):
                nn.init.dirac_(module.weight.detach()[: module.in_channels])
    if config.ghost_batch:
        net = Interleaved(net, config.ghost_batch)
    # Convolutions run about 1.5x faster on channels-last activations, on CPUs and on tensor cores.
    return net.to(memory_format=torch.channels_last)


@torch.no_grad()
def fit_to_data(net: nn.Module, config: Config, images: torch.Tensor) -> None:
    """Set what depends on the data: whitening filters, and frozen statistics from the first `batch_size` images.

    Args:
        images: normalised training images [N, 3, 32, 32], not augmented.
    """
    if config.whiten:
        whiten = net.get_submodule("net.prep.whiten" if config.ghost_batch else "prep.whiten")
        assert isinstance(whiten, nn.Conv2d)
        filters = whitening_filters(images, config.whiten_px, config.whiten_eps)
        whiten.weight.copy_(torch.cat([filters, -filters]) if config.whiten_both_signs else filters)
    if config.norm == "frozen":
        norms = [module for module in net.modules() if isinstance(module, FrozenNorm)]
        for norm in norms:
            norm.measuring = True
        net(images[: config.batch_size])
        for norm in norms:
            norm.measuring = False


def whitening_filters(images: torch.Tensor, px: int = 3, eps: float = 1e-2) -> torch.Tensor:
    """Filters [3 * px * px, 3, px, px] whose outputs on the images' patches have the identity as second moment, up to
    `eps` on the eigenvalues: the eigenvectors of the uncentred second moment, each over the root of its eigenvalue.

    Args:
        images: [N, 3, 32, 32], all unpadded patches of each are used: 900 of 3x3 pixels, 961 of 2x2.
    """
    size = 3 * px**2
    count = len(images) * (images.shape[2] - px + 1) ** 2
    moment = torch.zeros(size, size, dtype=torch.float64, device=images.device)
    for chunk in images.split(WHITEN_CHUNK):
        patches = nn.functional.unfold(chunk, px).transpose(0, 1).flatten(1)  # [size, count]
        moment += (patches @ patches.T).double()
    eigenvalues, eigenvectors = torch.linalg.eigh(moment / (count - 1))
    filters = eigenvectors / (eigenvalues + eps).sqrt()
    return filters.T.reshape(size, 3, px, px).float()
