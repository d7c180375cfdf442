"""What is measured on a trained net, by hand where a hand can follow."""

from copy import deepcopy
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from model.config import Config
from model.data import DeviceData
from model.diagnostics import MEASURES, recency
from model.profile import CATEGORIES
from model.train import TrainState, batches, init_state, train
from search_spaces.experiment import Measure
from tune.claims import experiments


class Fixed(nn.Module):
    """Logits that say class 0 the more strongly, the brighter the image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(images.mean((1, 2, 3))[:, None], (0, 3))


@pytest.fixture
def trained(tiny: Config, tiny_data: DeviceData) -> tuple[Config, TrainState]:
    config = replace(tiny, ema_decay=0.9)
    state = init_state(config, tiny_data, seed=4)
    list(train(config, tiny_data, seed=4, state=state))
    return config, state


def test_recency_of_two_batches_by_hand(tiny: Config, tiny_data: DeviceData) -> None:
    """Images of one brightness each: the loss of a batch follows from which images are in it."""
    brightness = torch.arange(64, dtype=torch.uint8)
    data = replace(tiny_data, train_images=brightness.view(64, 1, 1, 1).expand(64, 32, 32, 3))
    config = replace(tiny, batch_size=32, crop_pad_px=0, flip=False, cutout_px=0)
    state = init_state(config, data, seed=4)
    state.net, state.epoch = Fixed(), 3
    first, second = (labels for _, labels in batches(config, data, 4, epoch=2))
    seen = [[round((pixels * 73.9 + 127.5).item()) for pixels in x[:, 0, 0, 0]] for x, _ in batches(config, data, 4, 2)]
    assert sorted(seen[0] + seen[1]) == list(range(64))  # every image in one of the two
    by_hand = []
    for images, labels in zip(seen, (first, second), strict=True):
        assert labels.tolist() == [image % 4 for image in images]
        logits = torch.tensor([[(image - 127.5) / 73.9, 0, 0, 0] for image in images])
        by_hand.append(cross_entropy(logits, labels).item())
    found = recency(config, data, state, 4)
    assert list(found) == ["recency 0.25", "recency 0.75", "old_loss"]
    assert [found[key] for key in found] == pytest.approx([by_hand[1], by_hand[0], by_hand[0]], rel=1e-5)
    assert by_hand[0] != pytest.approx(by_hand[1], rel=1e-3)


def test_recency_has_ten_ages_of_an_epoch(tiny_data: DeviceData, trained: tuple[Config, TrainState]) -> None:
    """21 batches of 3: the newest of ten ages has the last three of them."""
    config, state = replace(trained[0], batch_size=3), trained[1]
    found = recency(config, tiny_data, state, 4)
    ages = {key: loss for key, loss in found.items() if key.startswith("recency ")}
    assert list(ages) == [f"recency {age / 100:g}" for age in range(5, 100, 10)]
    state.scored_net.eval()
    with torch.no_grad():
        losses = [cross_entropy(state.scored_net(x), y).item() for x, y in batches(config, tiny_data, 4, 2)]
    assert ages["recency 0.05"] == pytest.approx(sum(losses[-3:]) / 3, rel=1e-5)
    assert found["old_loss"] == pytest.approx(sum(losses[:11]) / 11, rel=1e-5)


def test_the_batches_of_an_epoch_are_those_of_training(
    tiny: Config, tiny_data: DeviceData, monkeypatch: pytest.MonkeyPatch
) -> None:
    import model.train

    seen = []
    real = model.train.train_step

    def spied(config: Config, forward: Any, optimizer: Any, inputs: torch.Tensor, labels: torch.Tensor) -> Any:
        seen.append((inputs.clone(), labels.clone()))
        return real(config, forward, optimizer, inputs, labels)

    monkeypatch.setattr(model.train, "train_step", spied)
    list(train(tiny, tiny_data, seed=4))
    again = [batch for epoch in range(3) for batch in batches(tiny, tiny_data, 4, epoch)]
    trained_on = seen[1:]  # after the warm-up step
    assert len(again) == len(trained_on) == 12
    for (x, y), (x_then, y_then) in zip(again, trained_on, strict=True):
        assert torch.equal(x, x_then) and torch.equal(y, y_then)


def test_times_of_parts_add_up_to_the_step(tiny_data: DeviceData, trained: tuple[Config, TrainState]) -> None:
    found = MEASURES["layer_times"](trained[0], tiny_data, trained[1], 4)
    shares = {key.removeprefix("share "): share for key, share in found.items() if key.startswith("share ")}
    assert set(CATEGORIES) < set(shares) and found["step_s"] > 0
    assert sum(shares.values()) == pytest.approx(1) and shares["norm"] > 0
    assert len(found) == len(shares) + 1


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
@pytest.mark.parametrize("in_training", [True, False])
def test_a_measure_leaves_state_and_random_numbers_as_they_were(
    measure: Any, in_training: bool, tiny_data: DeviceData, trained: tuple[Config, TrainState]
) -> None:
    config, state = trained
    for net in (state.net, state.scored_net):
        net.train(in_training)
    before = deepcopy(state.state_dict())
    torch.manual_seed(1)
    random = torch.rand(3)
    torch.manual_seed(1)
    found = measure(config, tiny_data, state, 4)
    assert torch.equal(torch.rand(3), random)
    assert found and all(type(value) is float for value in found.values())
    for net in (state.net, state.scored_net):
        assert {module.training for module in net.modules()} == {in_training}
        assert all(weight.grad is None or weight.grad.isfinite().all() for weight in net.parameters())
    after = state.state_dict()
    flat, flat_before = (torch.utils._pytree.tree_leaves(each) for each in (after, before))
    assert len(flat) == len(flat_before)
    for now, then in zip(flat, flat_before, strict=True):
        assert torch.equal(now, then) if isinstance(now, torch.Tensor) else now == then


def test_experiments_name_what_can_be_measured() -> None:
    assert set(MEASURES) <= set(get_args(Measure))
    assert {each.measure for each in experiments().values()} - {None} <= set(MEASURES)
