"""What a trial would cost, counted before it starts, against the limits of a search space."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch

from model.config import Config, InputError, nearest
from model.memory import Needs, needs_of
from model.meter import flops_per_image, flops_per_update
from model.net import build_net
from search_spaces.space import LIMITS

CACHED_NETS = 4096
_S0 = Config().to_dict()
FREE = {
    name: _S0[name]
    for name in (
        *("logit_scale", "norm_scale", "norm_scale_uniform", "whiten_eps", "identity_init", "init_scale", "epochs"),
        *("train_frac", "peak_lr", "lr_scale", "warmup_frac", "final_lr_ratio", "tail_frac", "tail_to_zero"),
        *("momentum", "nesterov", "weight_decay", "muon_lr", "bn_bias_lr_mult", "label_smoothing"),
        *("crop_pad_px", "flip", "alternating_flip", "cutout_px", "augment_by"),
        *("ema_every_steps", "lookahead", "tta", "compile"),
    )
}
"""fields that change neither the net's shape nor its memory; one that is missing here costs time, nothing else"""


def refusal(config: Config, num_classes: int, train_examples: int, limits: Mapping[str, float]) -> str | None:
    """Which limits the training would exceed and by how much, on one line; None if it keeps them all.

    FLOPs are those that `model.train` reports: convolutions and matrix products, forward and backward, of the images
    of all whole batches, and muon's updates. Memory is `model.memory`'s estimate, for one process that trains on CPUs.
    Nets that differ only in what costs nothing are counted once.

    Args:
        train_examples: training images of the data.
        limits: the most that is allowed, by the names in `search_spaces.space.LIMITS`.
    """
    net = _shape(config) if limits else config
    exceeded = []
    for name, limit in limits.items():
        if name == "params":
            cost = float(_params(net, num_classes))
        elif name == "train_flops":
            cost = config.epochs * epoch_flops(config, num_classes, train_examples)
        else:
            cost = memory_bytes(config, num_classes, train_examples)
        if cost > limit:
            exceeded.append(f"{name} = {cost:.4g} is {cost / limit:.3g} times the limit of {limit:.4g}")
    return "; ".join(exceeded) or None


def same_shape(one: Config, other: Config) -> bool:
    """Whether an epoch of the one takes as many floating-point operations as one of the other, without counting."""
    return _shape(one) == _shape(other) and one.train_frac == other.train_frac


def epoch_flops(config: Config, num_classes: int, train_examples: int) -> float:
    """Floating-point operations of one epoch of training, counted as above."""
    steps = config.trained_images(train_examples) // config.batch_size
    # activations are not counted, and celu's pieces take most of the time
    net = replace(_shape(config), act="celu", celu_alpha=0.0, ema_decay=0.0)
    per_image = _flops_per_image(replace(net, solver="sgd"), num_classes)
    return steps * (per_image * config.batch_size + _flops_per_update(net, num_classes))


def memory_bytes(config: Config, num_classes: int, train_examples: int, ranks: int = 1) -> float:
    """What a training on CPUs takes, counted as above, in all of its processes."""
    needs = _needs(_shape(config), num_classes, train_examples)
    return float(ranks * needs.of_batch(config.batch_size // ranks))


def parse_limits(texts: Iterable[str]) -> dict[str, float]:
    """The limits that `NAME=VALUE` texts give (the command line's --limit).

    Raises:
        InputError: a text without '=', an unknown name, or a value that is no positive number.
    """
    limits = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--limit {text!r}: write it as NAME=VALUE, for example --limit params=7e6")
        if name not in LIMITS:
            raise InputError(
                f"--limit {text!r}: unknown limit {name!r}{nearest(name, LIMITS)}: there are {', '.join(LIMITS)}"
            )
        try:
            limits[name] = float(value)
        except ValueError:
            raise InputError(f"--limit {text!r}: the value must be a positive number ({LIMITS[name]})") from None
    return limits


def _shape(config: Config) -> Config:
    """The config of which only what costs something is left, so that equal costs are equal keys.

    The batch stands outside: needs are per image, and ghosts of any size need the same.
    """
    changes: dict[str, Any] = {
        **FREE,
        "batch_size": 512,
        "ghost_batch": 256 if config.ghost_batch else 0,
        "celu_alpha": 1.0 if config.celu_alpha else 0.0,
        "ema_decay": 0.5 if config.ema_decay else 0.0,
    }
    return replace(config, **changes)


@lru_cache(CACHED_NETS)
def _params(net: Config, num_classes: int) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in build_net(net, num_classes).parameters())


@lru_cache(CACHED_NETS)
def _flops_per_image(net: Config, num_classes: int) -> float:
    return flops_per_image(net, num_classes)


@lru_cache(CACHED_NETS)
def _flops_per_update(net: Config, num_classes: int) -> float:
    return flops_per_update(net, num_classes)


@lru_cache(CACHED_NETS)
def _needs(net: Config, num_classes: int, train_examples: int) -> Needs:
    return needs_of(net, num_classes, train_examples)
