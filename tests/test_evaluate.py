"""What is scored: the moving average of the weights, the average over views of an image."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, pad

import model.train
from model.augment import normalise
from model.config import Config
from model.data import DeviceData
from model.evaluate import Ema, evaluate, tta_logits
from model.net import build_net
from model.train import init_state, train

# --- the moving average


def test_the_average_moves_by_decay_to_the_power_of_the_steps_between_updates() -> None:
    net = nn.BatchNorm2d(1)
    ema = Ema(net, decay=0.9, every_steps=2)
    expected = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
    for step in range(5):
        values = {"weight": 1.0 + step, "bias": -step, "running_mean": 10.0 * step, "running_var": 0.5 * step}
        with torch.no_grad():
            for name, value in values.items():
                getattr(net, name).fill_(value)
        ema.update(net, step, progress=step / 5)
        if step in (0, 2, 4):
            expected = {name: 0.81 * expected[name] + 0.19 * values[name] for name in expected}
        for name, value in expected.items():
            assert getattr(ema.net, name).item() == pytest.approx(value, rel=1e-6, abs=1e-7)


def test_while_training_the_count_restarts_each_epoch_and_norm_statistics_are_averaged(
    tiny: Config, tiny_data: DeviceData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 steps an epoch and an update every 3: after the steps 0 and 3 of each epoch, not after 0, 3, 6, 9."""
    config = replace(tiny, ema_decay=0.8, ema_every_steps=3)
    after_step: list[dict[str, torch.Tensor]] = []
    train_step = model.train.train_step
    state = init_state(config, tiny_data, seed=0)
    expected = deepcopy(state.net.state_dict())

    def spied(*args: object) -> torch.Tensor:
        loss = train_step(*args)  # type: ignore[arg-type]
        after_step.append(deepcopy(state.net.state_dict()))
        return loss

    monkeypatch.setattr(model.train, "train_step", spied)
    list(train(config, tiny_data, state=state))
    steps = after_step[-12:]  # before them, a warm-up on random data
    for epoch in range(3):
        for step in (0, 3):
            for name, value in steps[4 * epoch + step].items():
                if value.is_floating_point():
                    expected[name] = 0.8**3 * expected[name] + (1 - 0.8**3) * value
    assert state.ema is not None
    averaged = state.ema.net.state_dict()
    assert "prep.norm.running_mean" in averaged
    for name, value in expected.items():
        if value.is_floating_point():
            torch.testing.assert_close(averaged[name], value, rtol=1e-5, atol=1e-6)


def test_look_ahead_sets_the_net_to_an_average_whose_decay_grows_as_the_cube_of_the_progress() -> None:
    """A weight that goes 1 up at each of 6 steps, with an update after every second one; decays 0.81 * (1/6)^3 =
    0.00375, 0.81 * (3/6)^3 = 0.10125 and 0.81 * (5/6)^3 = 0.46875. The third: 0.46875 * 3.79375 + 0.53125 * 5.79375."""
    net = nn.BatchNorm2d(1)
    ema = Ema(net, decay=0.9, every_steps=2, lookahead=True)
    slow = [1.99625, 1.99625, 3.79375, 3.79375, 4.85625, 4.85625]
    for step, expected in enumerate(slow):
        with torch.no_grad():
            net.weight += 1
        ema.update(net, step, (step + 1) / 6)
        assert ema.net.get_parameter("weight").item() == pytest.approx(expected, rel=1e-6)
        assert net.weight.item() == pytest.approx(expected + step % 2, rel=1e-6)


def test_while_training_with_look_ahead_net_and_average_are_one_after_each_update(
    tiny: Config, tiny_data: DeviceData
) -> None:
    """Updates after the steps 0 and 3 of 4, so the last step of an epoch ends in one; norm statistics included."""
    config = replace(tiny, ema_decay=0.95, ema_every_steps=3, lookahead=True)
    state = init_state(config, tiny_data, seed=0)
    for _ in train(config, tiny_data, state=state):
        assert state.ema is not None
        for ours, averaged in zip(state.net.state_dict().values(), state.ema.net.state_dict().values(), strict=True):
            assert torch.equal(ours, averaged) or not ours.is_floating_point()


def test_the_average_is_what_is_scored_and_the_trained_weights_are_kept_apart(
    tiny: Config, tiny_data: DeviceData
) -> None:
    config = replace(tiny, ema_decay=0.9)
    state = init_state(config, tiny_data, seed=0)
    *_, last = train(config, tiny_data, state=state)
    assert state.ema is not None and state.scored_net is state.ema.net
    assert (last.acc, last.loss) == evaluate(state.ema.net, config, tiny_data)
    assert last.loss != evaluate(state.net, config, tiny_data)[1]
    assert not any(weight.requires_grad for weight in state.ema.net.parameters())
    without = init_state(tiny, tiny_data, seed=0)
    *_, plain = train(tiny, tiny_data, state=without)
    assert without.ema is None and without.scored_net is without.net
    assert (plain.acc, plain.loss) == evaluate(state.net, config, tiny_data)


# --- views


@pytest.fixture
def net() -> nn.Module:
    """A net that has trained a little, so that its running statistics mean something."""
    torch.manual_seed(0)
    net = build_net(Config(width=3), num_classes=4)
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(32, 3, 32, 32))
    return net.eval()


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, 3, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)


def test_one_view_is_the_net(net: nn.Module, images: torch.Tensor) -> None:
    assert torch.equal(tta_logits(net, images, "none"), net(images))


def test_flip_is_the_mean_of_image_and_mirror_and_blind_to_mirroring(net: nn.Module, images: torch.Tensor) -> None:
    mirrored = images.flip(3)
    torch.testing.assert_close(tta_logits(net, images, "flip"), 0.5 * net(images) + 0.5 * net(mirrored))
    assert torch.equal(tta_logits(net, images, "flip"), tta_logits(net, mirrored, "flip"))
    assert not torch.allclose(net(images), net(mirrored), atol=1e-3)


def test_shift_weighs_six_views_half_of_it_unmoved(net: nn.Module, images: torch.Tensor) -> None:
    """Moved by one pixel: every pixel's row and column one further down and right, or up and left, borders mirrored."""
    index = torch.arange(32)
    down = (index - 1).abs()  # 1, 0, 1, ..., 30
    up = 31 - (31 - (index + 1)).abs()  # 1, ..., 31, 30
    views = [
        (0.25, images),
        (0.25, images.flip(3)),
        (0.125, images[:, :, down][..., down]),
        (0.125, images[:, :, down][..., down].flip(3)),
        (0.125, images[:, :, up][..., up]),
        (0.125, images[:, :, up][..., up].flip(3)),
    ]
    assert sum(weight for weight, _ in views) == 1
    torch.testing.assert_close(views[2][1], pad(images, (1, 1, 1, 1), mode="reflect")[:, :, :32, :32])
    expected = sum(weight * net(view) for weight, view in views)
    torch.testing.assert_close(tta_logits(net, images, "shift"), expected)
    assert not torch.allclose(tta_logits(net, images, "flip"), expected, atol=1e-3)  # type: ignore[arg-type]


@pytest.mark.parametrize("views", ["none", "flip", "shift"])
def test_scores_are_those_of_the_averaged_logits(net: nn.Module, tiny_data: DeviceData, views: str) -> None:
    acc, loss = evaluate(net, Config(tta=views), tiny_data)
    with torch.no_grad():
        logits = tta_logits(net, normalise(tiny_data.eval_images, tiny_data.mean, tiny_data.std), views)
    assert acc == pytest.approx((logits.argmax(1) == tiny_data.eval_labels).float().mean().item())
    assert loss == pytest.approx(cross_entropy(logits, tiny_data.eval_labels).item(), rel=1e-5)


def test_more_images_than_one_batch_are_all_scored(
    net: nn.Module, tiny_data: DeviceData, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = evaluate(net, Config(), tiny_data)
    monkeypatch.setattr("model.evaluate.EVAL_BATCH", 7)  # 20 images: 7, 7, 6
    acc, loss = evaluate(net, Config(), tiny_data)
    assert acc == expected[0] and loss == pytest.approx(expected[1], rel=1e-5)


def test_scoring_uses_running_statistics_and_no_label_smoothing(net: nn.Module, tiny_data: DeviceData) -> None:
    """An image's score does not depend on which others are scored with it, and the loss is the plain one."""
    net.train()
    whole = evaluate(net, Config(label_smoothing=0.2), tiny_data)
    parts = [
        evaluate(
            net,
            Config(label_smoothing=0.2),
            replace(tiny_data, eval_images=tiny_data.eval_images[part], eval_labels=tiny_data.eval_labels[part]),
        )
        for part in (slice(0, 5), slice(5, 20))
    ]
    assert whole[1] == pytest.approx(0.25 * parts[0][1] + 0.75 * parts[1][1], rel=1e-5)
    assert whole == evaluate(net, Config(), tiny_data)
