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

CONFIG_VERSION = 1


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
        InputError: a value has the wrong type or is out of range.
    """

    width: int = _range(64, 1, 1024)
    """channels of the first convolution; later stages have 2, 4 and 8 times as many"""
    logit_scale: float = _range(0.125, 0, 1e3, above=True)
    """factor on the classifier's output"""
    epochs: int = _range(24, 1, 100_000)
    """length of training; the schedule is stretched to it"""
    batch_size: int = _range(512, 1, 1_000_000)
    """images per step; an epoch drops the last, incomplete batch"""
    peak_lr: float = _range(0.4, 0, 1e6, above=True)
    """learning rate at the end of the warm-up, for the mean loss over the batch"""
    lr_scale: float = _range(1.0, 0, 1e6, above=True)
    """factor on the whole learning-rate schedule; 1 is the identity"""
    warmup_frac: float = _range(5 / 24, 0, 1)
    """length of the linear warm-up as a fraction of the epochs; linear decay to 0 after it"""
    momentum: float = _range(0.9, 0, 0.99999)
    """Nesterov momentum"""
    weight_decay: float = _range(5e-4, 0, 1)
    """coupled weight decay on every parameter, torch's convention (for the mean loss)"""
    bn_bias_lr_mult: float = _range(1.0, 0, 1e6, above=True)
    """batch-norm biases: learning rate times this, weight decay divided by it; 1 is the identity"""
    crop_pad_px: int = _range(4, 0, 16)
    """reflection padding from which the random crop is taken; 0 is the identity"""
    flip: bool = _choice(True, True, False)
    """mirror half of the images"""
    cutout_px: int = _range(8, 0, 32)
    """side of the square set to zero after normalisation; 0 is the identity"""
    precision: str = _choice("fp32", "fp32", "bf16")
    """arithmetic of forward and backward; bf16 keeps weights, statistics and loss in fp32"""

    def __post_init__(self) -> None:
        for knob in fields(self):
            object.__setattr__(self, knob.name, _checked(knob, getattr(self, knob.name)))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

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


def s0() -> Config:
    """Recipe S0: the ResNet-9 baseline (24 epochs, mean of 10 runs 94.08% on the original files; claim C14)."""
    return Config()


RECIPES = {"s0": s0}


def load_config(path: Path) -> Config:
    """The config in a JSON file written by `tune.export` or by `save_config`.

    Raises:
        InputError: no such file, not JSON, another version, unknown fields or bad values.
    """
    try:
        content = json.loads(path.read_text())
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
    """Write `config` as JSON that `load_config` reads; `provenance` says where it comes from."""
    content = {"version": CONFIG_VERSION, "config": config.to_dict()}
    if provenance:
        content["provenance"] = provenance
    path.write_text(json.dumps(content, indent=2) + "\n")
