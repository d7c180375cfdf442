"""Configs: what is refused and how, --set, and configs as JSON files."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from model.config import LADDER, RESNETS, Config, InputError, load_config, save_config, with_assignments
from model.recipes import s0

# For every field: its ends or choices, and values that are refused.
LAYER_SETS = ["none", "1", "2", "3", "12", "13", "23", "123"]
ALLOWED: dict[str, list[Any]] = {
    "net": ["resnet9", "dawn", *LADDER, *RESNETS],
    "width": [1, 1024],
    "residual_layers": LAYER_SETS,
    "extra_layers": LAYER_SETS,
    "residual_norm": ["in_branch", "after_add"],
    "residual_act": ["in_branch", "after_add", "none"],
    "pool_place": ["last", "before_act", "before_norm"],
    "act": ["celu", "gelu"],
    "celu_alpha": [0.0, 10.0],
    "norm": ["batch", "frozen", "none"],
    "ghost_batch": [0, 1, 32, 1_000_000],
    "norm_scale": [0.0, 100.0],
    "norm_scale_uniform": [True, False],
    "norm_scale_frozen": [True, False],
    "whiten": [True, False],
    "whiten_px": [3, 2],
    "whiten_eps": [1e-9, 1.0],
    "whiten_both_signs": [True, False],
    "identity_init": [True, False],
    "init_scale": [1e-9, 100.0],
    "logit_scale": [1e-9, 1e3],
    "epochs": [1, 100_000],
    "batch_size": [1, 1_000_000],
    "train_frac": [1e-9, 1.0],
    "peak_lr": [1e-9, 1e6],
    "lr_scale": [1e-9, 1e6],
    "warmup_frac": [0.0, 1.0],
    "final_lr_ratio": [0.0, 1.0],
    "tail_frac": [0.0, 1.0],
    "tail_to_zero": [True, False],
    "solver": ["sgd", "lars", "muon", "rmsprop", "adagrad", "adadelta", "adam"],
    "momentum": [0.0, 0.99999],
    "nesterov": [True, False],
    "weight_decay": [0.0, 1.0],
    "muon_lr": [1e-9, 1e6],
    "bn_bias_lr_mult": [1e-9, 1e6],
    "label_smoothing": [0.0, 1.0],
    "crop_pad_px": [0, 16],
    "flip": [True, False],
    "alternating_flip": [True, False],
    "cutout_px": [0, 32],
    "augment_by": ["image", "group"],
    "ema_decay": [0.0, 0.999999],
    "ema_every_steps": [1, 100_000],
    "lookahead": [True, False],
    "tta": ["none", "flip", "shift"],
    "precision": ["fp32", "bf16", "fp16"],
    "compile": [True, False],
}
REFUSED: dict[str, list[Any]] = {
    "net": ["resnet18", "ResNet9", "resnet", "backbone", None],
    "width": [0, 1025, 64.0, "64", True, None],
    "residual_layers": ["31", "", 13, "L1+L3", None],
    "extra_layers": ["4", 123, False],
    "residual_norm": ["none", True],
    "residual_act": ["before_add", None],
    "pool_place": ["first", 0],
    "act": ["relu", True, None],
    "celu_alpha": [-0.1, 10.1, float("nan"), "0.3"],
    "norm": ["ghost", False, None],
    "ghost_batch": [-1, 1_000_001, 32.0, True],
    "norm_scale": [-0.1, 100.1, float("nan")],
    "norm_scale_uniform": [1, "true", None],
    "norm_scale_frozen": [0, "false"],
    "whiten": [1, "yes"],
    "whiten_px": [1, 4, 3.0, True, None],
    "whiten_eps": [0.0, -1e-3, 1.1, "0.01"],
    "whiten_both_signs": [0, "true"],
    "identity_init": [1, None],
    "init_scale": [0.0, -1.0, 101.0, float("nan"), "1"],
    "logit_scale": [0.0, -1.0, 1001.0, float("nan"), "1", True],
    "epochs": [0, -1, 100_001, 2.5, "24", False],
    "batch_size": [0, 1_000_001, 512.0],
    "train_frac": [0.0, -0.5, 1.01, float("nan"), "1/2", True],
    "peak_lr": [0.0, -0.1, float("inf"), 2e6, "0.4"],
    "lr_scale": [0.0, 2e6, None],
    "warmup_frac": [-0.01, 1.01, "5/24"],
    "final_lr_ratio": [-0.01, 1.01, True],
    "tail_frac": [-0.01, 1.01, None],
    "tail_to_zero": [0, "true"],
    "solver": ["SGD", "adamw", None],
    "momentum": [-0.1, 1.0],
    "nesterov": [1, "false"],
    "weight_decay": [-1e-9, 1.1],
    "muon_lr": [0.0, -0.1, 2e6, "0.24"],
    "bn_bias_lr_mult": [0.0, float("nan")],
    "label_smoothing": [-0.1, 1.1, False],
    "crop_pad_px": [-1, 17, 4.0],
    "flip": [1, 0, "true", None],
    "alternating_flip": [1, "false"],
    "cutout_px": [-1, 33, 8.0],
    "augment_by": ["batch", None],
    "ema_decay": [-0.1, 1.0, "0.99"],
    "ema_every_steps": [0, 100_001, 5.0],
    "lookahead": [0, None],
    "tta": ["mirror", True, None],
    "precision": ["fp64", "BF16", 32, None],
    "compile": [1, "true"],
}
# What must be set with a field for it to have an effect, or for its ends to make sense.
WITH: dict[str, dict[str, Any]] = {
    "ghost_batch": {"batch_size": 1_000_000},
    "tail_frac": {"warmup_frac": 0.0},
    "tail_to_zero": {"tail_frac": 0.1},
    "whiten_px": {"whiten": True},
    "whiten_eps": {"whiten": True},
    "whiten_both_signs": {"whiten": True},
    "muon_lr": {"solver": "muon"},
    "ema_every_steps": {"ema_decay": 0.99},
    "lookahead": {"ema_decay": 0.99},
}
CASES = [(name, value) for name in ALLOWED for value in ALLOWED[name]]

LAYER_KNOBS = {"residual_layers": "1", "extra_layers": "2"}
NET_KNOBS = {**LAYER_KNOBS, "residual_norm": "after_add", "residual_act": "none"}
NORM_KNOBS = {"ghost_batch": 32, "norm_scale": 0.5, "norm_scale_uniform": True, "norm_scale_frozen": True}
# (setting, how a message says it, the knobs that it leaves without effect)
WITHOUT_EFFECT: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    ({"net": "dawn"}, "net = dawn", {**NET_KNOBS, "pool_place": "last", "whiten": True}),
    ({"net": "shortcut"}, "net = shortcut", {**NET_KNOBS, "pool_place": "last", "whiten": True}),
    ({"net": "shortcut_tidy"}, "net = shortcut_tidy", {**NET_KNOBS, "pool_place": "last"}),
    ({"net": "strided"}, "net = strided", {**NET_KNOBS, "pool_place": "last"}),
    ({"net": "pooled"}, "net = pooled", NET_KNOBS),
    *(({"net": net}, f"net = {net}", {**LAYER_KNOBS, "pool_place": "last"}) for net in RESNETS),
    (
        {"residual_layers": "none"},
        "residual_layers = none",
        {"residual_norm": "after_add", "residual_act": "after_add"},
    ),
    ({"norm": "none"}, "norm = none", {**NORM_KNOBS, "bn_bias_lr_mult": 64.0, "residual_norm": "after_add"}),
    ({"norm": "frozen"}, "norm = frozen", {"ghost_batch": 32}),
    *(
        ({"solver": solver}, f"solver = {solver}", {"momentum": 0.8, "nesterov": False})
        for solver in ("rmsprop", "adagrad", "adadelta", "adam")
    ),
    ({"act": "gelu"}, "act = gelu", {"celu_alpha": 0.3}),
    ({}, "whiten = False", {"whiten_px": 2, "whiten_eps": 5e-4, "whiten_both_signs": True}),
    *(
        ({"solver": solver}, f"solver = {solver}", {"muon_lr": 0.1})
        for solver in ("sgd", "lars", "rmsprop", "adagrad", "adadelta", "adam")
    ),
    ({"flip": False}, "flip = False", {"alternating_flip": True}),
    ({}, "tail_frac = 0", {"tail_to_zero": True}),
    ({}, "ema_decay = 0", {"ema_every_steps": 1, "lookahead": True}),
]


def refusal(call: Any, *args: Any, **kwargs: Any) -> str:
    """The message of the InputError that the call raises, which is one line."""
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_cases_cover_every_field() -> None:
    assert set(ALLOWED) == set(REFUSED) == {knob.name for knob in dataclasses.fields(Config)}


@pytest.mark.parametrize(("name", "value"), CASES)
def test_the_ends_of_each_range_are_allowed(name: str, value: Any) -> None:
    stored = getattr(Config(**WITH.get(name, {}), **{name: value}), name)
    assert stored == value and type(stored) is type(value)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in REFUSED for value in REFUSED[name]])
def test_a_wrong_type_or_value_names_the_field_the_value_and_what_is_allowed(name: str, value: Any) -> None:
    assert refusal(Config, **{name: value}).startswith(f"{name} = {value!r} is not allowed: it must be ")


def test_messages_state_the_range() -> None:
    assert refusal(Config, cutout_px=33).endswith("an integer from 0 to 32")
    assert refusal(Config, lr_scale=0).endswith("a number above 0 up to 1e+06")
    assert refusal(Config, precision="half").endswith('one of "fp32", "bf16", "fp16"')
    assert refusal(Config, flip=1).endswith("one of true, false")


@pytest.mark.parametrize(
    ("given", "setting", "name", "value"),
    [(given, setting, name, value) for given, setting, knobs in WITHOUT_EFFECT for name, value in knobs.items()],
)
def test_a_knob_without_effect_is_refused_by_name(given: dict[str, Any], setting: str, name: str, value: Any) -> None:
    default = getattr(Config(), name)
    expected = f"{name} = {value!r} has no effect with {setting}: leave it at {default!r}"
    assert refusal(Config, **given, **{name: value}) == expected
    Config(**given)


def test_ghost_batches_that_do_not_fill_a_batch_are_refused() -> None:
    message = refusal(Config, ghost_batch=48, batch_size=512)
    assert message.startswith("ghost_batch = 48 does not divide batch_size = 512")
    assert refusal(Config, ghost_batch=64, batch_size=32).startswith("ghost_batch = 64 does not divide batch_size = 32")
    assert Config(ghost_batch=32, batch_size=32).ghost_batch == 32


def test_a_warm_up_and_a_tail_that_overlap_are_refused() -> None:
    message = refusal(Config, warmup_frac=0.6, tail_frac=0.5)
    assert message.startswith("warmup_frac = 0.6 and tail_frac = 0.5 are together more than 1")
    assert Config(warmup_frac=0.5, tail_frac=0.5).tail_frac == 0.5


def test_a_whole_number_may_stand_for_a_float() -> None:
    config = Config(peak_lr=1)
    assert config == Config(peak_lr=1.0) and type(config.peak_lr) is float


def test_a_config_is_frozen_and_takes_keywords_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        s0().width = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        Config(64)  # type: ignore[misc]
    assert refusal(dataclasses.replace, s0(), width=0).startswith("width = 0")


def test_a_config_in_short_is_what_it_does_not_share_with_s0() -> None:
    assert s0().describe() == "s0"
    assert Config(width=16, flip=False).describe() == "s0 but for width=16, flip=False"


# --- dicts


def test_a_dict_comes_back_and_what_it_lacks_is_the_default() -> None:
    config = Config(width=7, flip=False)
    assert Config.from_dict(config.to_dict()) == config
    assert Config.from_dict({"width": 7}) == Config(width=7)
    assert Config.from_dict({}) == Config()


def test_an_unknown_field_names_the_nearest() -> None:
    message = refusal(Config.from_dict, {"warmup_fraction": 0.1})
    assert message.startswith("unknown field 'warmup_fraction' (did you mean warmup_frac?): allowed are ")
    assert "cutout_px" in message
    assert "did you mean" not in refusal(Config.from_dict, {"zzz": 1})


# --- --set


def test_assignments_are_read_in_the_type_of_the_field() -> None:
    texts = ["width=32", "peak_lr=1e-1", "lr_scale=2", "flip=False", "precision=bf16"]
    expected = Config(width=32, peak_lr=0.1, lr_scale=2.0, flip=False, precision="bf16")
    assert with_assignments(s0(), texts) == expected
    assert with_assignments(Config(width=5), ["flip=true"]) == Config(width=5)
    assert with_assignments(s0(), ["width=1", "width=2"]).width == 2
    assert with_assignments(s0(), []) == s0()


@pytest.mark.parametrize(("name", "value"), CASES)
def test_an_assignment_reaches_every_field(name: str, value: Any) -> None:
    start = Config(**WITH.get(name, {}))
    assert with_assignments(start, [f"{name}={value}"]) == dataclasses.replace(start, **{name: value})


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("width", ["--set 'width'", "field=value"]),
        ("", ["--set ''", "field=value"]),
        ("widht=3", ["--set 'widht=3'", "unknown field 'widht'", "did you mean width?", "batch_size"]),
        ("=3", ["unknown field ''"]),
        ("width=", ["width = ''", "an integer from 1 to 1024"]),
        ("width=1.5", ["width = '1.5'", "an integer"]),
        ("width=0", ["width = 0", "from 1 to 1024"]),
        ("peak_lr=fast", ["peak_lr = 'fast'", "a number above 0"]),
        ("peak_lr=nan", ["peak_lr = nan", "a number above 0"]),
        ("flip=yes", ["flip = 'yes'", "one of true, false"]),
        ("precision=bf16=x", ["precision = 'bf16=x'", '"fp32", "bf16"']),
    ],
)
def test_assignments_that_are_refused(text: str, facts: list[str]) -> None:
    message = refusal(with_assignments, s0(), [text])
    assert all(fact in message for fact in facts), message


# --- files


def test_a_file_brings_back_every_bit(tmp_path: Path) -> None:
    config = Config(peak_lr=0.1 + 0.2, warmup_frac=5 / 24, weight_decay=5e-324, lr_scale=1 / 3, flip=False)
    save_config(tmp_path / "config.json", config)
    assert load_config(tmp_path / "config.json") == config


def test_provenance_is_kept_beside_the_config(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    save_config(file, s0(), run="lr-1", trial=3)
    assert json.loads(file.read_text())["provenance"] == {"run": "lr-1", "trial": 3}
    assert load_config(file) == s0()


def test_a_short_file_is_filled_with_defaults(tmp_path: Path) -> None:
    file = tmp_path / "short.json"
    file.write_text('{"version": 1, "config": {"peak_lr": 1}}')
    assert load_config(file) == Config(peak_lr=1.0)


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (b"", ["is not JSON"]),
        (b"{\n  'width': 3}", ["is not JSON", "line 2"]),
        (b"\xff\xfe", ["is not JSON"]),
        (b"[]", ['has no "config" object', '"version": 1']),
        (b"null", ['has no "config" object']),
        (b'{"version": 1}', ['has no "config" object']),
        (b'{"version": 1, "config": [1]}', ['has no "config" object']),
        (b'{"width": 64}', ['has no "config" object']),
        (b'{"version": 2, "config": {}}', ["has version 2", "reads version 1"]),
        (b'{"config": {}}', ["has version None", "reads version 1"]),
        (b'{"version": 1, "config": {"widht": 3}}', ["unknown field 'widht'", "did you mean width?"]),
        (b'{"version": 1, "config": {"width": "64"}}', ["width = '64'", "an integer from 1 to 1024"]),
        (b'{"version": 1, "config": {"peak_lr": NaN}}', ["peak_lr = nan", "a number above 0"]),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: bytes, facts: list[str]) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    message = refusal(load_config, file)
    assert all(fact in message for fact in [f"config file {file}", *facts]), message


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "none.json can't be read: No such file" in refusal(load_config, tmp_path / "none.json")
    assert "can't be read: Is a directory" in refusal(load_config, tmp_path)
