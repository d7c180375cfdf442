"""Every knob against S0: at its identity value it trains the same weights bit for bit, at another value others."""

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, log_softmax

import model.train
from model.augment import normalise
from model.config import Config, InputError, idle_knobs
from model.data import DeviceData
from model.layers import FrozenNorm
from model.net import NETS, WHITEN_IMAGES, whitening_filters
from model.optim import build_optimizer
from model.recipes import RECIPES
from model.train import TrainState, init_state, train, train_step

# For every knob: settings with which it takes its own path and changes nothing, if there are any (the tiny config has
# batches of 16), and settings with which it changes the trained weights, or None where it only changes the score.
KNOBS: dict[str, tuple[list[dict[str, Any]], dict[str, Any] | None]] = {
    "net": ([], {"net": "dawn"}),
    "width": ([], {"width": 3}),
    "residual_layers": ([{"residual_layers": "13"}], {"residual_layers": "1"}),
    "extra_layers": ([{"extra_layers": "none"}], {"extra_layers": "2"}),
    "residual_norm": ([{"residual_norm": "in_branch"}], {"residual_norm": "after_add"}),
    "residual_act": ([{"residual_act": "in_branch"}], {"residual_act": "after_add"}),
    "pool_place": ([{"pool_place": "last"}], {"pool_place": "before_norm"}),
    "act": ([{"act": "celu"}], {"act": "gelu"}),
    "celu_alpha": ([{"celu_alpha": 0.0}], {"celu_alpha": 0.075}),
    "norm": ([{"norm": "batch"}], {"norm": "none"}),
    "ghost_batch": ([{"ghost_batch": 0}, {"ghost_batch": 16}], {"ghost_batch": 8}),
    "norm_scale": ([{"norm_scale": 1.0}], {"norm_scale": 0.5}),
    "norm_scale_uniform": ([{"norm_scale_uniform": False}], {"norm_scale_uniform": True}),
    "norm_scale_frozen": ([{"norm_scale_frozen": False}], {"norm_scale_frozen": True}),
    "whiten": ([{"whiten": False}], {"whiten": True}),
    "whiten_px": ([{"whiten_px": 3}], {"whiten": True, "whiten_px": 2}),
    "whiten_eps": ([{"whiten_eps": 1e-2}], {"whiten": True, "whiten_eps": 5e-4}),
    "whiten_both_signs": ([{"whiten_both_signs": False}], {"whiten": True, "whiten_both_signs": True}),
    "identity_init": ([{"identity_init": False}], {"identity_init": True}),
    "init_scale": ([{"init_scale": 1.0}], {"init_scale": 2.0}),
    "logit_scale": ([], {"logit_scale": 0.25}),
    "epochs": ([], {"epochs": 4}),
    "batch_size": ([], {"batch_size": 32}),
    "train_frac": ([{"train_frac": 1.0}, {"train_frac": 0.9999}], {"train_frac": 0.5}),  # all of 64 images, rounded
    "peak_lr": ([], {"peak_lr": 0.2}),
    "lr_scale": ([{"lr_scale": 1.0}, {"lr_scale": 2.0, "peak_lr": 0.2}], {"lr_scale": 2.0}),
    "warmup_frac": ([], {"warmup_frac": 0.1}),
    "final_lr_ratio": ([{"final_lr_ratio": 0.0}, {"final_lr_ratio": 1e-300}], {"final_lr_ratio": 0.1}),
    "tail_frac": ([{"tail_frac": 0.0}, {"tail_frac": 1e-300}], {"tail_frac": 0.3}),
    "tail_to_zero": (
        [{"tail_to_zero": True, "tail_frac": 1e-300}],
        {"tail_to_zero": True, "tail_frac": 0.7, "final_lr_ratio": 0.1},
    ),
    "solver": ([{"solver": "sgd"}], {"solver": "adam"}),
    "momentum": ([], {"momentum": 0.8}),
    "nesterov": ([], {"nesterov": False}),
    "weight_decay": ([], {"weight_decay": 0.01}),
    "muon_lr": ([{"muon_lr": 0.24}], {"solver": "muon", "muon_lr": 0.1}),
    "bn_bias_lr_mult": ([{"bn_bias_lr_mult": 1.0}], {"bn_bias_lr_mult": 64.0}),
    "label_smoothing": ([{"label_smoothing": 0.0}], {"label_smoothing": 0.2}),
    "crop_pad_px": ([], {"crop_pad_px": 0}),
    "flip": ([], {"flip": False}),
    "alternating_flip": ([{"alternating_flip": False}], {"alternating_flip": True}),
    "cutout_px": ([], {"cutout_px": 0}),
    "augment_by": ([{"augment_by": "image"}], {"augment_by": "group"}),
    "ema_decay": ([{"ema_decay": 0.0}, {"ema_decay": 0.9}], None),
    "ema_every_steps": ([{"ema_every_steps": 3, "ema_decay": 0.9}], None),
    "lookahead": ([{"lookahead": True, "ema_decay": 1e-300}], {"lookahead": True, "ema_decay": 0.9}),
    "tta": ([{"tta": "none"}, {"tta": "flip"}, {"tta": "shift"}], None),
    "precision": ([{"precision": "fp32"}], {"precision": "bf16"}),
    "compile": ([{"compile": False}], None),
}


def trained(config: Config, data: DeviceData, epochs: int = 1) -> TrainState:
    """The state after `epochs` epochs, which have 4 steps at a batch size of 16."""
    state = init_state(config, data, seed=1)
    steps = train(config, data, seed=1, state=state)
    for _ in range(epochs):
        assert math.isfinite(next(steps).train_loss)
    return state


def weights(state: TrainState) -> list[torch.Tensor]:
    """Parameters and norm statistics, in the net's order."""
    return [tensor for tensor in state.net.state_dict().values() if tensor.is_floating_point()]


def same(one: TrainState, other: TrainState) -> bool:
    pairs = list(zip(weights(one), weights(other), strict=False))
    return len(weights(one)) == len(weights(other)) and all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def base_cache() -> dict[str, TrainState]:
    return {}


@pytest.fixture
def base(tiny: Config, tiny_data: DeviceData, base_cache: dict[str, TrainState]) -> TrainState:
    """S0 after all 3 epochs of the tiny run, trained once."""
    if not base_cache:
        base_cache["s0"] = trained(tiny, tiny_data, epochs=3)
    return base_cache["s0"]


def test_the_cases_cover_every_field() -> None:
    assert set(KNOBS) == {knob.name for knob in fields(Config)}
    for name, (identities, other) in KNOBS.items():
        assert all(name in settings for settings in [*identities, other or {name: None}])


@pytest.mark.parametrize(
    ("name", "settings"), [(name, settings) for name, (identities, _) in KNOBS.items() for settings in identities]
)
def test_at_its_identity_a_trick_trains_the_same_weights_bit_for_bit(
    tiny: Config, tiny_data: DeviceData, base: TrainState, name: str, settings: dict[str, Any]
) -> None:
    assert same(trained(replace(tiny, **settings), tiny_data, epochs=3), base)


# The knobs that another one brings to life, as above, have an effect beside it.
BESIDE: dict[str, dict[str, Any]] = {
    "whiten_px": {"whiten": True},
    "whiten_eps": {"whiten": True},
    "whiten_both_signs": {"whiten": True},
    "muon_lr": {"solver": "muon"},
    "lookahead": {"ema_decay": 0.9},
}


@pytest.mark.parametrize("name", BESIDE)
def test_a_knob_that_another_brings_to_life_has_an_effect_of_its_own(
    tiny: Config, tiny_data: DeviceData, name: str
) -> None:
    other = KNOBS[name][1] or {}
    assert not same(trained(replace(tiny, **BESIDE[name]), tiny_data), trained(replace(tiny, **other), tiny_data))


@pytest.mark.parametrize(("name", "settings"), [(name, other) for name, (_, other) in KNOBS.items() if other])
def test_at_another_value_a_knob_trains_other_weights(
    tiny: Config, tiny_data: DeviceData, base: TrainState, name: str, settings: dict[str, Any]
) -> None:
    epochs = 4 if name == "epochs" else 3
    assert not same(trained(replace(tiny, **settings), tiny_data, epochs=epochs), base)


def test_celu_with_a_vanishing_alpha_trains_like_relu(tiny: Config, tiny_data: DeviceData) -> None:
    config = replace(tiny, peak_lr=0.01)
    relu, celu = (trained(replace(config, celu_alpha=alpha), tiny_data) for alpha in (0.0, 1e-12))
    for one, other in zip(weights(relu), weights(celu), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# --- S0 against plain torch


class PlainResNet9(nn.Module):
    """As published: convolution, norm, ReLU, then max-pool; 3x3 without bias."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        sizes = [(3, 1), (1, 2), (2, 2), (2, 2), (2, 4), (4, 8), (8, 8), (8, 8)]
        channels = [(c_in if c_in == 3 else c_in * width, c_out * width) for c_in, c_out in sizes]
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())
            for c_in, c_out in channels
        )
        self.classifier = nn.Linear(8 * width, classes, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        prep, layer1, first1, second1, layer2, layer3, first3, second3 = self.blocks
        pool = nn.MaxPool2d(2)
        x = pool(layer1(prep(x)))
        x = x + second1(first1(x))
        x = pool(layer3(pool(layer2(x))))
        x = x + second3(first3(x))
        return self.classifier(nn.MaxPool2d(4)(x).flatten(1)) / 8


def test_s0_is_plain_torch_with_the_published_update_rule(
    tiny: Config, tiny_data: DeviceData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the batches that training used, in its memory layout: bit for bit over 12 steps."""
    state = init_state(tiny, tiny_data, seed=1)
    net = PlainResNet9(2, 4).to(memory_format=torch.channels_last)
    initial = [tensor.clone() for tensor in state.net.state_dict().values()]
    net.load_state_dict(dict(zip(net.state_dict(), initial, strict=True)))
    batches: list[tuple[torch.Tensor, torch.Tensor]] = []

    def spied(config: Config, forward: nn.Module, optimizer: Any, inputs: torch.Tensor, labels: torch.Tensor) -> Any:
        batches.append((inputs.clone(memory_format=torch.preserve_format), labels))
        return train_step(config, forward, optimizer, inputs, labels)

    monkeypatch.setattr(model.train, "train_step", spied)
    list(train(tiny, tiny_data, seed=1, state=state))
    velocity = [torch.zeros_like(weight) for weight in net.parameters()]
    for step, (inputs, labels) in enumerate(batches[-12:], start=1):  # before them, a warm-up on random data
        eta = np.interp(step / 4, [0, 3 * 5 / 24, 3], [0, 0.4, 0])
        net.zero_grad()
        cross_entropy(net(inputs), labels).backward()
        with torch.no_grad():
            for w, v in zip(net.parameters(), velocity, strict=True):
                d = -eta * w.grad.add(w, alpha=5e-4)
                v.mul_(0.9).add_(d)
                w.add_(d).add_(v, alpha=0.9)
    for ours, plain in zip(
        weights(state), [t for t in net.state_dict().values() if t.is_floating_point()], strict=True
    ):
        assert torch.equal(ours, plain), (ours - plain).abs().max()


# --- what a trick does in training


def test_label_smoothing_aims_at_82_and_2_percent() -> None:
    """With 10 classes at 0.2: 0.8 + 0.2 / 10 for the right class, 0.2 / 10 for each other."""
    logits = torch.randn(5, 10, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([3, 0, 9, 1, 3])

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(logits.clone())

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.logits

    config, net = Config(label_smoothing=0.2), Fixed()
    loss = train_step(config, net, build_optimizer(config, net), torch.zeros(5, 3, 32, 32), labels)
    targets = torch.full((5, 10), 0.02)
    targets[torch.arange(5), labels] = 0.82
    log_p = log_softmax(logits, dim=1)
    assert loss.item() == pytest.approx(-(targets * log_p).sum().item() / 5, rel=1e-6)
    published = 0.8 * cross_entropy(logits, labels) + 0.2 * -log_p.mean()
    assert loss.item() == pytest.approx(published.item(), rel=1e-6)
    torch.testing.assert_close(net.logits.grad, (log_p.exp() - targets) / 5)


@pytest.mark.parametrize("ghost_batch", [0, 8])
def test_frozen_scales_never_change_and_biases_do(tiny: Config, tiny_data: DeviceData, ghost_batch: int) -> None:
    config = replace(tiny, norm_scale_frozen=True, norm_scale=0.25, ghost_batch=ghost_batch)
    for module in trained(config, tiny_data).net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.eq(0.25).all() and module.weight.grad is None
            assert module.bias.ne(0).any()


@pytest.mark.parametrize("ghost_batch", [0, 8])
def test_whitening_filters_come_from_the_first_images_and_stay(
    tiny: Config, tiny_data: DeviceData, monkeypatch: pytest.MonkeyPatch, ghost_batch: int
) -> None:
    assert WHITEN_IMAGES == 10_000
    monkeypatch.setattr(model.train, "WHITEN_IMAGES", 40)
    first_40 = (tiny_data.train_images[:40].permute(0, 3, 1, 2).float() - 127.5) / 73.9
    state = trained(replace(tiny, whiten=True, ema_decay=0.9, ghost_batch=ghost_batch), tiny_data, epochs=2)
    assert state.ema is not None
    for net in (state.net, state.ema.net):
        (found,) = (weight for name, weight in net.named_parameters() if name.endswith("whiten.weight"))
        torch.testing.assert_close(_signed(found), _signed(whitening_filters(first_40)), rtol=1e-3, atol=1e-3)
        assert found.grad is None


def _signed(filters: torch.Tensor) -> torch.Tensor:
    """What doesn't depend on the sign or order of the filters: their inner products [27, 27] as a map of patches."""
    rows = filters.flatten(1)
    return rows.T @ rows


def test_frozen_statistics_are_of_the_first_images_and_stay(tiny: Config, tiny_data: DeviceData) -> None:
    """The first norm's are those of the first convolution on the first 16 images as they are."""
    config = replace(tiny, norm="frozen", peak_lr=0.01, ema_decay=0.9)
    prep = init_state(config, tiny_data, seed=1).net.get_submodule("prep.conv")
    first = prep(normalise(tiny_data.train_images[:16], tiny_data.mean, tiny_data.std))
    after = [trained(config, tiny_data, epochs=epochs) for epochs in (1, 3)]
    statistics = [[m.running_mean, m.running_var] for m in after[0].net.modules() if isinstance(m, FrozenNorm)]
    torch.testing.assert_close(statistics[0], [first.mean(dim=(0, 2, 3)), first.var(dim=(0, 2, 3))])
    assert after[1].ema is not None
    for net in (after[1].net, after[1].ema.net):
        later = [[m.running_mean, m.running_var] for m in net.modules() if isinstance(m, FrozenNorm)]
        assert len(later) == 8
        torch.testing.assert_close(later, statistics, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", NETS)
def test_every_net_trains_and_each_otherwise(tiny: Config, tiny_data: DeviceData, name: str) -> None:
    plain, other = (trained(replace(tiny, net=net), tiny_data) for net in ("resnet9", name))
    assert same(plain, other) == (name == "resnet9")
    assert all(weight.isfinite().all() for weight in weights(other))


@pytest.mark.parametrize("net", ["pooled", "resnet20"])
@pytest.mark.parametrize("name", ["residual_norm", "residual_act", "pool_place", "celu_alpha", "norm", "whiten"])
def test_a_knob_that_another_net_has_as_well_counts_there(
    tiny: Config, tiny_data: DeviceData, net: str, name: str
) -> None:
    plain, other = replace(tiny, net=net), KNOBS[name][1]
    assert other
    if name in idle_knobs(plain.to_dict()):
        with pytest.raises(InputError, match=f"no effect with net = {net}"):
            replace(plain, **other)
    else:
        assert not same(trained(plain, tiny_data), trained(replace(plain, **other), tiny_data))


@pytest.mark.parametrize("solver", ["sgd", "lars", "muon", "rmsprop", "adagrad", "adadelta", "adam"])
def test_every_solver_trains_and_each_otherwise(tiny: Config, tiny_data: DeviceData, solver: str) -> None:
    plain, other = (trained(replace(tiny, peak_lr=0.01, solver=name), tiny_data) for name in ("sgd", solver))
    assert same(plain, other) == (solver == "sgd")
    assert all(weight.isfinite().all() for weight in weights(other))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_at_any_width(tiny_data: DeviceData, name: str, precision: str) -> None:
    recipe = RECIPES[name].config()
    config = replace(recipe, width=2, batch_size=32, epochs=recipe.epochs // 5, peak_lr=0.05, precision=precision)
    *_, last = train(config, tiny_data)
    assert last.epoch == config.epochs and not last.diverged
