"""The settings of one training run: every knob with its unit, its range and its published value.

A `Config` is frozen and flat. A knob's name is also the key of a search space, the Optuna parameter, the
TensorBoard hparam and the JSON key. Knobs that are tricks default to their identity value.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from model.files import read_json, write_whole

CONFIG_VERSION = 1
LAYER_SETS = ("none", "1", "2", "3", "12", "13", "23", "123")
LADDER = ("shortcut", "shortcut_tidy", "strided", "pooled")
"""the nets between dawn and the backbone of resnet9"""
RESNETS = ("resnet20", "resnet56", "resnet110")


class InputError(ValueError):
    """Something the user gave is wrong. The message is one line: what, given, allowed, where to fix it."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """' (did you mean X?)' for the allowed word closest to `word`, or '' when none is close."""
    close = get_close_matches(word, list(allowed), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _range(default: Any, low: float, high: float, *, above: bool = False) -> Any:
    """A numeric knob in low..high, both allowed; with `above` low itself is not."""
    return field(default=default, metadata={"low": low, "high": high, "above": above})


def _choice(default: Any, *choices: Any) -> Any:
    return field(default=default, metadata={"choices": choices})


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every knob of one run. The defaults are recipe S0, the ResNet-9 baseline of "How to Train Your ResNet" 4
    (24 epochs, 94.08% on the original CIFAR-10, claim C14).

    Raises:
        InputError: a value has the wrong type or is out of range, or values make no sense together.
    """

    net: str = _choice("resnet9", "resnet9", "dawn", *LADDER, *RESNETS)
    """resnet9 (post 4); dawn, the pre-activation net of posts 1-3 (5,205,834 parameters at width 64); shortcut, dawn's
    skips alone, shortcut_tidy, the same without repeated norms and activations, strided, with 3x3 convolutions, and
    pooled, with max-pooling instead of strides (post 4, claim C11); the nets of 20, 56 and 110 layers for CIFAR of
    He et al. 2015 (arXiv 1512.03385, 4.2), published at width 16"""
    width: int = _range(64, 1, 1024)
    """channels of the first convolution; the three halvings of the image after it lead to 2, 4 and 8 times as many
    (dawn to pooled: 2, 4 and 4), the two of resnet20 to resnet110 to 2 and 4 times"""
    residual_layers: str = _choice("13", *LAYER_SETS)
    """which of the layers 1, 2, 3 end in a residual pair of convolutions; 13 is the ResNet-9 of post 4"""
    extra_layers: str = _choice("none", *LAYER_SETS)
    """which of the layers 1, 2, 3 have one more convolution; none is the identity"""
    residual_norm: str = _choice("in_branch", "in_branch", "after_add")
    """where the second norm of a residual pair stands (Torch blog, claim C38): before the sum as in He et al. 2015, or
    after it, on the way of the skip"""
    residual_act: str = _choice("in_branch", "in_branch", "after_add", "none")
    """where the second activation of a residual pair stands (Torch blog, claim C39): ResNet-9's is in the branch, that
    of He et al. 2015 after the sum and after a norm that stands there; the Torch blog's better one has none"""
    pool_place: str = _choice("before_act", "last", "before_act", "before_norm")
    """where max-pooling stands; last and before_act are the same function, before_norm is trick S1 (claim C28)"""
    act: str = _choice("celu", "celu", "gelu")
    """activation: celu, which at celu_alpha 0 is ReLU, the identity; gelu (hlb-CIFAR10, airbench)"""
    celu_alpha: float = _range(0.0, 0, 10)
    """activation CELU with this alpha; its limit 0 is ReLU, the identity (claim C30: 0.075)"""
    norm: str = _choice("batch", "batch", "frozen", "none")
    """batch norm; frozen: with the first batch's statistics for ever (post 7); none: no norm layers, no biases"""
    ghost_batch: int = _range(0, 0, 1_000_000)
    """images that batch norm takes together in training; 0 takes the whole batch, the identity (claim C31: 32)"""
    norm_scale: float = _range(1.0, 0, 100)
    """initial scale of the norm layers; 1 is the identity"""
    norm_scale_uniform: bool = _choice(False, True, False)
    """draw the initial scales uniformly from 0..norm_scale, as torch did before 1.2 (posts 1-3)"""
    norm_scale_frozen: bool = _choice(False, True, False)
    """keep the scales at their initial value (claim C32)"""
    whiten: bool = _choice(False, True, False)
    """first layer: fixed patch-whitening filters 3x3, 3 -> 27, then 1x1 to `width` (claim C33)"""
    whiten_px: int = _choice(3, 3, 2)
    """side of the patches; 2: 12 filters without padding, which make 31x31 of 32x32 (hlb-CIFAR10, airbench)"""
    whiten_eps: float = _range(1e-2, 0, 1, above=True)
    """added to the eigenvalues of the patches before their roots scale the filters (airbench: 5e-4)"""
    whiten_both_signs: bool = _choice(False, True, False)
    """the filters and their negatives, a bias, the activation, then layer 1: no 1x1, no norm (hlb-CIFAR10, airbench)"""
    identity_init: bool = _choice(False, True, False)
    """convolutions start by passing each input channel on, further output channels at random (airbench, section 3.3)"""
    init_scale: float = _range(1.0, 0, 100, above=True)
    """factor on the initial weights of convolutions and classifier; 1 is the identity, torch's init, and 6 ** 0.5 makes
    it He's, without which deep nets that have no norm don't learn (post 7)"""
    logit_scale: float = _range(0.125, 0, 1e3, above=True)
    """factor on the classifier's output"""
    epochs: int = _range(24, 1, 100_000)
    """length of training; the schedule is stretched to it"""
    batch_size: int = _range(512, 1, 1_000_000)
    """images per step; an epoch drops the last, incomplete batch"""
    train_frac: float = _range(1.0, 0, 1, above=True)
    """share of the training images that is trained on: the same for every seed, of each class alike, part of any larger
    share; 1 is the identity (post 2, claims C03 and C04)"""
    peak_lr: float = _range(0.4, 0, 1e6, above=True)
    """learning rate at the end of the warm-up, for the mean loss over the batch"""
    lr_scale: float = _range(1.0, 0, 1e6, above=True)
    """factor on the whole learning-rate schedule; 1 is the identity"""
    warmup_frac: float = _range(5 / 24, 0, 1)
    """length of the linear warm-up as a fraction of the epochs; linear decay after it"""
    final_lr_ratio: float = _range(0.0, 0, 1)
    """where the decay ends, as a fraction of the peak; 0 is the identity (claim C34: 0.1)"""
    tail_frac: float = _range(0.0, 0, 1)
    """fraction of the epochs, at the end, that stay at the final rate; 0 is the identity (claim C34: 2 epochs)"""
    tail_to_zero: bool = _choice(False, True, False)
    """in the tail the rate falls on to 0 instead of staying (posts 1, 2: 0.1, then 0.005, then 0)"""
    solver: str = _choice("sgd", "sgd", "lars", "muon", "rmsprop", "adagrad", "adadelta", "adam")
    """update rule; lars scales each filter's rate by ||w||/||g|| (claim C24), muon orthogonalises the convolutions'
    updates (Jordan 2024), the last four are torch's (claim C40)"""
    momentum: float = _range(0.9, 0, 0.99999)
    """momentum of sgd, lars and muon"""
    nesterov: bool = _choice(True, True, False)
    """Nesterov's form of the momentum"""
    weight_decay: float = _range(5e-4, 0, 1)
    """coupled weight decay on every parameter, torch's convention (for the mean loss)"""
    muon_lr: float = _range(0.24, 0, 1e6, above=True)
    """the convolutions' peak_lr with muon: a step relative to their norm, without weight decay (airbench94_muon)"""
    bn_bias_lr_mult: float = _range(1.0, 0, 1e6, above=True)
    """batch-norm biases: learning rate times this, weight decay divided by it; 1 is the identity (claim C32: 64)"""
    label_smoothing: float = _range(0.0, 0, 1)
    """share of the target spread evenly over all classes; 0 is the identity (claim C29: 0.2)"""
    crop_pad_px: int = _range(4, 0, 16)
    """reflection padding from which the random crop is taken; 0 is the identity"""
    flip: bool = _choice(True, True, False)
    """mirror half of the images"""
    alternating_flip: bool = _choice(False, True, False)
    """mirror a fixed half of the images in one epoch, the other half in the next (airbench, section 3.6)"""
    cutout_px: int = _range(8, 0, 32)
    """side of the square set to zero after normalisation; 0 is the identity"""
    augment_by: str = _choice("image", "image", "group")
    """draw crop, flip and cutout for each image, or deal each option to an equal group of them (post 8)"""
    ema_decay: float = _range(0.0, 0, 0.999999)
    """score a moving average of the weights, with this decay per step; 0 is off, the identity (claim C34: 0.99)"""
    ema_every_steps: int = _range(5, 1, 100_000)
    """steps between two updates of the moving average, each with ema_decay to this power"""
    lookahead: bool = _choice(False, True, False)
    """each update of the moving average also sets the weights to it; its decay grows as the cube of the progress up to
    ema_decay at the end (hlb-CIFAR10, airbench, section 3.4: 0.95 every 5 steps)"""
    tta: str = _choice("none", "none", "flip", "shift")
    """views averaged when scoring: the image; its mirror (claim C35); both shifted by 1 px (airbench level 2)"""
    precision: str = _choice("fp32", "fp32", "bf16", "fp16")
    """arithmetic of forward and backward; weights, statistics and loss stay fp32 (fp16: on CUDA only)"""
    compile: bool = _choice(False, True, False)
    """torch.compile the net (on CUDA only: no gain was measured on CPUs)"""

    def __post_init__(self) -> None:
        for knob in fields(self):
            object.__setattr__(self, knob.name, _checked(knob, getattr(self, knob.name)))
        _refuse_nonsense(self)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def trained_images(self, examples: int) -> int:
        """How many of `examples` training images an epoch draws its batches from."""
        return round(self.train_frac * examples)

    def describe(self) -> str:
        """The config in short: what it doesn't share with S0."""
        default = Config().to_dict()
        changed = [f"{name}={value}" for name, value in self.to_dict().items() if value != default[name]]
        return f"s0 but for {', '.join(changed)}" if changed else "s0"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Config":
        """The config with these values; a knob that isn't named keeps its default.

        Raises:
            InputError: an unknown knob, or a value of the wrong type or out of range.
        """
        known = {knob.name for knob in fields(cls)}
        for name in values:
            if name not in known:
                raise InputError(
                    f"unknown field {name!r}{nearest(name, known)}: allowed are {', '.join(sorted(known))}"
                )
        return cls(**values)


_FIELDS = {knob.name: knob for knob in fields(Config)}
_TYPE_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


def _checked(knob: Any, value: Any) -> Any:
    """`value` in the knob's own type, or an InputError that says what is allowed."""
    rule = knob.metadata
    if "choices" in rule:
        allowed = "one of " + ", ".join(json.dumps(choice) for choice in rule["choices"])
        valid = type(value) is knob.type and value in rule["choices"]
    else:
        bounds = f"above {rule['low']:g} up to" if rule["above"] else f"from {rule['low']:g} to"
        allowed = f"{_TYPE_NAMES[knob.type]} {bounds} {rule['high']:g}"
        valid = type(value) is knob.type or (knob.type is float and type(value) is int)
        # a NaN compares as false with both bounds
        valid = valid and (value > rule["low"] if rule["above"] else value >= rule["low"]) and value <= rule["high"]
        if valid and knob.type is float:
            value = float(value)
    if not valid:
        raise InputError(f"{knob.name} = {value!r} is not allowed: it must be {allowed}")
    return value


_IDLE: list[tuple[str, tuple[Any, ...], tuple[str, ...]]] = [
    ("net", ("dawn", *LADDER, *RESNETS), ("residual_layers", "extra_layers")),
    ("net", ("dawn", *LADDER), ("residual_norm", "residual_act")),
    ("net", ("dawn", *LADDER[:-1], *RESNETS), ("pool_place",)),
    ("net", ("dawn", "shortcut"), ("whiten",)),
    ("act", ("gelu",), ("celu_alpha",)),
    ("whiten", (False,), ("whiten_px", "whiten_eps", "whiten_both_signs")),
    ("residual_layers", ("none",), ("residual_norm", "residual_act")),
    ("norm", ("none",), ("norm_scale", "norm_scale_uniform", "norm_scale_frozen", "bn_bias_lr_mult", "residual_norm")),
    ("norm", ("none", "frozen"), ("ghost_batch",)),
    ("solver", ("rmsprop", "adagrad", "adadelta", "adam"), ("momentum", "nesterov")),
    ("solver", ("sgd", "lars", "rmsprop", "adagrad", "adadelta", "adam"), ("muon_lr",)),
    ("flip", (False,), ("alternating_flip",)),
    ("tail_frac", (0,), ("tail_to_zero",)),
    ("ema_decay", (0,), ("ema_every_steps", "lookahead")),
]
"""(a knob, values of it, the knobs that then have no effect)"""


def idle_knobs(values: Mapping[str, Any]) -> dict[str, str]:
    """The knobs that have no effect beside these values of all knobs, each with the name of the knob that decides."""
    return {name: decides for decides, settings, names in _IDLE if values[decides] in settings for name in names}


def settled(values: Mapping[str, Any]) -> dict[str, Any]:
    """These values, but with the default for each knob that has no effect beside the others."""
    return {**values, **{name: _FIELDS[name].default for name in idle_knobs(values)}}


def _refuse_nonsense(config: Config) -> None:
    """Raises InputError for values that make no sense together: a knob was turned that has no effect, or a conflict."""
    for name, decides in idle_knobs(config.to_dict()).items():
        value, default = getattr(config, name), _FIELDS[name].default
        if value != default:
            cause = getattr(config, decides)
            cause = f"{cause:g}" if isinstance(cause, float) else cause
            raise InputError(f"{name} = {value!r} has no effect with {decides} = {cause}: leave it at {default!r}")
    if config.ghost_batch and config.batch_size % config.ghost_batch:
        raise InputError(
            f"ghost_batch = {config.ghost_batch} does not divide batch_size = {config.batch_size}: "
            f"set it to a divisor, or to 0 for the whole batch"
        )
    if config.warmup_frac + config.tail_frac > 1:
        raise InputError(
            f"warmup_frac = {config.warmup_frac:g} and tail_frac = {config.tail_frac:g} are together more than 1: "
            f"lower one of them"
        )


def parse_value(name: str, text: str) -> Any:
    """The value that `text` means for knob `name`; what doesn't parse is returned as text, for `Config` to refuse."""
    kind: Any = _FIELDS[name].type
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return kind(text)
    except ValueError:
        return text


def with_assignments(config: Config, assignments: Iterable[str]) -> Config:
    """`config` after `field=value` texts (the command line's --set).

    Raises:
        InputError: a text without '=', an unknown field, a value of the wrong type or out of range.
    """
    values = config.to_dict()
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise InputError(f"--set {assignment!r}: write it as field=value, for example --set cutout_px=8")
        if name not in _FIELDS:
            raise InputError(
                f"--set {assignment!r}: unknown field {name!r}{nearest(name, _FIELDS)}: "
                f"allowed are {', '.join(_FIELDS)}"
            )
        values[name] = parse_value(name, text)
    return Config.from_dict(values)


def load_config(path: Path) -> Config:
    """The config in a JSON file written by `tune.export` or by `save_config`.

    Raises:
        InputError: no such file, not JSON, another version, unknown fields or bad values.
    """
    try:
        content = read_json(path)
    except OSError as error:
        raise InputError(f"config file {path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"config file {path} is not JSON: {error}") from error
    found = content if isinstance(content, dict) else {}
    if not isinstance(found.get("config"), dict) and found.get("version", CONFIG_VERSION) == CONFIG_VERSION:
        raise InputError(
            f'config file {path} has no "config" object: expected {{"version": {CONFIG_VERSION}, "config": {{...}}}}'
        )
    if found.get("version") != CONFIG_VERSION:
        version = found.get("version")
        raise InputError(f"config file {path} has version {version!r}: this program reads version {CONFIG_VERSION}")
    try:
        return Config.from_dict(found["config"])
    except InputError as error:
        raise InputError(f"config file {path}: {error}") from error


def save_config(path: Path, config: Config, **provenance: Any) -> None:
    """Write `config` as JSON that `load_config` reads, whole or not at all; `provenance` says where it comes from.

    Raises:
        OSError: it can't be written.
    """
    content = {"version": CONFIG_VERSION, "config": config.to_dict()}
    if provenance:
        content["provenance"] = provenance
    write_whole(path, json.dumps(content, indent=2) + "\n")
