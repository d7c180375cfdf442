"""The recipes are the published stages: what each changes, for how many epochs, with which peak."""

from dataclasses import fields
from typing import Any

import pytest

from model.config import Config
from model.recipes import RECIPES, table

# What each stage sets that the one before it did not have so. The warm-up is in epochs, the rest as in Config.
CHANGES: dict[str, dict[str, Any]] = {
    "s1": {"pool_place": "before_norm", "epochs": 25, "warmup_frac": 5 / 25},
    "s2": {"label_smoothing": 0.2, "epochs": 23},
    "s3": {"celu_alpha": 0.075, "epochs": 20},
    "s4": {"ghost_batch": 32, "epochs": 18, "peak_lr": 0.6},
    "s5": {
        "norm_scale_frozen": True,
        "celu_alpha": 0.3,
        "logit_scale": 1 / 16,
        "bn_bias_lr_mult": 64.0,
        "epochs": 17,
    },
    "s6": {"whiten": True, "epochs": 14, "peak_lr": 1.0, "cutout_px": 5},
    "s7": {"ema_decay": 0.99, "final_lr_ratio": 0.1, "tail_frac": 2 / 13, "epochs": 13},
    "s8": {"tta": "flip", "epochs": 10, "tail_frac": 2 / 10, "cutout_px": 0},
}
EPOCHS = {"dawn": 35, "s0": 24, "s1": 25, "s2": 23, "s3": 20, "s4": 18, "s5": 17, "s6": 14, "s7": 13, "s8": 10}
WARM_UP = {"dawn": 15, "s0": 5, "s1": 5, "s2": 4.6, "s3": 4, "s4": 3.6, "s5": 3.4, "s6": 2.8, "s7": 2.6, "s8": 2}
PEAKS = {"dawn": 0.1, "s0": 0.4, "s1": 0.4, "s2": 0.4, "s3": 0.4, "s4": 0.6, "s5": 0.6, "s6": 1.0, "s7": 1.0, "s8": 1.0}


def differences(one: Config, other: Config) -> dict[str, Any]:
    """The fields in which `other` differs from `one`, with their values in `other`."""
    names = (knob.name for knob in fields(Config))
    return {name: getattr(other, name) for name in names if getattr(one, name) != getattr(other, name)}


def test_s0_is_the_published_baseline() -> None:
    """Its learning rate rises to 0.4 in 5 of 24 epochs; whatever is not plain SGD on ResNet-9 is at its identity."""
    base = RECIPES["s0"].config()
    assert base == Config()
    assert base.to_dict() == {
        "net": "resnet9",
        "width": 64,
        "residual_layers": "13",
        "extra_layers": "none",
        "residual_norm": "in_branch",
        "residual_act": "in_branch",
        "pool_place": "before_act",
        "act": "celu",
        "celu_alpha": 0.0,
        "norm": "batch",
        "ghost_batch": 0,
        "norm_scale": 1.0,
        "norm_scale_uniform": False,
        "norm_scale_frozen": False,
        "whiten": False,
        "whiten_px": 3,
        "whiten_eps": 1e-2,
        "whiten_both_signs": False,
        "identity_init": False,
        "init_scale": 1.0,
        "logit_scale": 1 / 8,
        "epochs": 24,
        "batch_size": 512,
        "train_frac": 1.0,
        "peak_lr": 0.4,
        "lr_scale": 1.0,
        "warmup_frac": 5 / 24,
        "final_lr_ratio": 0.0,
        "tail_frac": 0.0,
        "tail_to_zero": False,
        "solver": "sgd",
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 5e-4,
        "muon_lr": 0.24,
        "bn_bias_lr_mult": 1.0,
        "label_smoothing": 0.0,
        "crop_pad_px": 4,
        "flip": True,
        "alternating_flip": False,
        "cutout_px": 8,
        "augment_by": "image",
        "ema_decay": 0.0,
        "ema_every_steps": 5,
        "lookahead": False,
        "tta": "none",
        "precision": "fp32",
        "compile": False,
    }


@pytest.mark.parametrize("name", CHANGES)
def test_a_stage_is_the_one_before_it_with_exactly_the_published_changes(name: str) -> None:
    before = RECIPES[f"s{int(name[1:]) - 1}"].config()
    assert differences(before, RECIPES[name].config()) == CHANGES[name]


def test_dawn_is_the_start_of_the_series() -> None:
    assert differences(Config(), RECIPES["dawn"].config()) == {
        "net": "dawn",
        "epochs": 35,
        "batch_size": 128,
        "peak_lr": 0.1,
        "warmup_frac": 15 / 35,
        "final_lr_ratio": 0.05,
        "tail_frac": 5 / 35,
        "tail_to_zero": True,
        "norm_scale_uniform": True,
        "logit_scale": 1.0,
        "cutout_px": 0,
    }


@pytest.mark.parametrize("name", RECIPES)
def test_epochs_warm_up_and_peak_are_the_published_ones(name: str) -> None:
    config = RECIPES[name].config()
    assert config.epochs == EPOCHS[name]
    assert config.warmup_frac * config.epochs == pytest.approx(WARM_UP[name])
    assert config.peak_lr * config.lr_scale == PEAKS[name]
    assert (config.momentum, config.weight_decay, config.crop_pad_px, config.flip) == (0.9, 5e-4, 4, True)


def test_the_recipes_are_the_ten_of_the_series_in_order() -> None:
    assert list(RECIPES) == ["dawn", "s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8"]


def test_the_table_has_a_line_for_each_recipe_with_epochs_figures_and_change() -> None:
    head, *lines = table().splitlines()
    assert "epochs" in head and "published (width 64, one V100)" in head
    assert [line.split()[:2] for line in lines] == [[name, str(EPOCHS[name])] for name in RECIPES]
    seconds = {"dawn": 323, "s0": 75, "s1": 64, "s2": 59, "s3": 52, "s4": 46, "s5": 43, "s6": 36, "s7": 34, "s8": 26}
    for line, (name, recipe) in zip(lines, RECIPES.items(), strict=True):
        assert recipe.published in line and f" {seconds[name]} s" in line
    changes = ["ResNet-9", "Max-pooling", "Label smoothing", "CELU", "Ghost", "scales frozen", "whitening", "average"]
    for line, change in zip(lines[1:], changes, strict=False):
        assert change in line
