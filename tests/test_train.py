import io
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REAL_DATA

from model.augment import Choices, augment
from model.config import Config, InputError, load_config
from model.data import DeviceData, chosen_images, take, to_device
from model.evaluate import evaluate
from model.machine import usable_cores
from model.recipes import RECIPES, dawn, s8
from model.sources import load
from model.train import init_state, train


def without_time(metrics: object) -> tuple:
    values = dict(vars(metrics))
    values.pop("train_s")
    values.pop("warm_up_s")
    return tuple(values.values())


# S8, and on top of it every trick that it lacks and that can go with it.
EVERY_TRICK = replace(
    s8(),
    width=2,
    epochs=3,
    batch_size=16,
    ghost_batch=8,
    extra_layers="2",
    residual_norm="after_add",
    residual_act="after_add",
    cutout_px=5,
    augment_by="group",
    tta="shift",
    solver="lars",
    nesterov=False,
    ema_every_steps=2,
    norm_scale_uniform=True,
    tail_to_zero=True,
)
CONFIGS = {
    "s0": Config(width=2, epochs=3, batch_size=16),
    "every trick": EVERY_TRICK,
    "adam, frozen statistics": Config(width=2, epochs=3, batch_size=16, solver="adam", norm="frozen"),
    "airbench": Config(
        **{"width": 2, "epochs": 3, "batch_size": 16, "act": "gelu", "identity_init": True, "alternating_flip": True},
        **{"whiten": True, "whiten_px": 2, "whiten_eps": 5e-4, "whiten_both_signs": True},
        **{"solver": "muon", "ema_decay": 0.95, "ema_every_steps": 3, "lookahead": True},
    ),
    "dawn": replace(dawn(), width=2, epochs=3, batch_size=16),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_same_seed_same_metrics_and_another_seed_others(config: Config, tiny_data: DeviceData) -> None:
    first, again, other = (
        [without_time(metrics) for metrics in train(config, tiny_data, seed=seed)] for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert [metrics[0] for metrics in first] == [1, 2, 3]


def test_the_callers_random_state_is_left_alone(tiny: Config, tiny_data: DeviceData) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    list(train(tiny, tiny_data))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("stop_after", [1, 2])
def test_saved_and_continued_is_bit_identical(config: Config, tiny_data: DeviceData, stop_after: int) -> None:
    whole = [without_time(metrics) for metrics in train(config, tiny_data, seed=3)]
    state = init_state(config, tiny_data, seed=3)
    epochs = train(config, tiny_data, seed=3, state=state)
    for _ in range(stop_after):
        next(epochs)
    file = io.BytesIO()
    torch.save(state.state_dict(), file)
    file.seek(0)
    resumed = init_state(config, tiny_data, seed=99)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    rest = [without_time(metrics) for metrics in train(config, tiny_data, seed=3, state=resumed)]
    assert rest == whole[stop_after:]


def test_every_image_is_seen_once_per_epoch_and_an_incomplete_batch_is_dropped(
    tiny: Config, tiny_data: DeviceData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 images in batches of 24: two whole batches of distinct images, other ones in the next epoch."""
    seen: list[torch.Tensor] = []
    marked = replace(tiny_data, train_images=torch.arange(64).view(64, 1, 1, 1).expand(64, 32, 32, 3).to(torch.uint8))
    monkeypatch.setattr("model.train.augment", _spy(seen))
    list(train(replace(tiny, batch_size=24, epochs=2), marked))
    steps = [batch for batch in seen if len(batch.unique()) == 24 and batch.max() < 64][-4:]
    first, second = torch.cat(steps[:2]), torch.cat(steps[2:])
    assert len(first) == len(first.unique()) == 48
    assert not torch.equal(first, second)


@pytest.mark.parametrize("augment_by", ["image", "group"])
def test_alternating_flip_mirrors_each_image_in_every_other_epoch(
    tiny: Config, tiny_data: DeviceData, monkeypatch: pytest.MonkeyPatch, augment_by: str
) -> None:
    """Crops and cutouts are those of the random flip; another seed mirrors another half first."""
    marked = replace(tiny_data, train_images=torch.arange(64).view(64, 1, 1, 1).expand(64, 32, 32, 3).to(torch.uint8))
    calls: list[tuple[torch.Tensor, Choices]] = []

    def spied(images: torch.Tensor, choices: Choices, *rest: object) -> torch.Tensor:
        calls.append((images[:, 0, 0, 0].long(), choices))
        return augment(images, choices, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("model.train.augment", spied)

    def epochs(alternating: bool, seed: int) -> dict[str, list[torch.Tensor]]:
        """What was done to image 0, 1, ... 63, in each of 4 epochs of 4 batches."""
        calls.clear()
        config = replace(tiny, epochs=4, augment_by=augment_by, alternating_flip=alternating)
        list(train(config, marked, seed=seed))
        steps = calls[-16:]  # before them, a warm-up on random data
        found: dict[str, list[torch.Tensor]] = {}
        for epoch in range(4):
            batches = steps[4 * epoch : 4 * epoch + 4]
            order = torch.cat([images for images, _ in batches]).argsort()
            for name in Choices.__dataclass_fields__:
                values = torch.cat([getattr(choices, name) for _, choices in batches])
                found.setdefault(name, []).append(values[order])
        return found

    plain, alternating, other = epochs(False, 1), epochs(True, 1), epochs(True, 2)
    first, second, third, fourth = alternating["mirror"]
    assert torch.equal(second, ~first) and torch.equal(third, first) and torch.equal(fourth, second)
    assert 16 < first.sum() < 48 and (augment_by == "image" or first.sum() == 32)
    assert not torch.equal(plain["mirror"][1], ~plain["mirror"][0]) and not torch.equal(other["mirror"][0], first)
    for name in ("crop_top", "crop_left", "cutout_top", "cutout_left"):
        assert all(torch.equal(a, b) for a, b in zip(plain[name], alternating[name], strict=True))


def _spy(seen: list[torch.Tensor]) -> Callable:
    def spied(images: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append(images[:, 0, 0, 0].long())
        return augment(images, *rest)

    return spied


def test_training_learns_and_the_clock_grows(tiny_data: DeviceData) -> None:
    config = Config(width=8, epochs=30, batch_size=16, cutout_px=0, crop_pad_px=0, flip=False, peak_lr=0.05)
    metrics = list(train(config, tiny_data))
    assert metrics[-1].train_loss < 0.7 * metrics[0].train_loss
    times = [epoch.train_s for epoch in metrics]
    assert times == sorted(times) and times[0] > 0


def test_last_step_of_the_run_has_learning_rate_zero(tiny: Config, tiny_data: DeviceData) -> None:
    *_, last = train(tiny, tiny_data)
    assert last.lr == 0.0


def test_a_diverged_run_ends_at_once(tiny: Config, tiny_data: DeviceData) -> None:
    metrics = list(train(replace(tiny, peak_lr=1e6, lr_scale=1e6, epochs=20), tiny_data))
    assert metrics[-1].diverged
    assert len(metrics) < 20
    assert not any(epoch.diverged for epoch in metrics[:-1])


def test_fewer_images_than_a_batch_is_refused(tiny: Config, tiny_data: DeviceData) -> None:
    with pytest.raises(InputError, match="batch_size = 65 is more than the 64 training images"):
        next(train(replace(tiny, batch_size=65), tiny_data))


@pytest.mark.parametrize("change", [{}, {"whiten": True}, {"norm": "frozen"}], ids=str)
def test_a_share_of_the_images_trains_as_a_data_set_that_has_no_others(
    tiny: Config, tiny_data: DeviceData, change: dict
) -> None:
    """32 of 64 images, 8 of each of the 4 classes, in 2 batches of 16: the same for every seed."""
    chosen = chosen_images(tiny_data.train_labels.numpy(), 32)
    few = replace(tiny_data, train_images=tiny_data.train_images[chosen], train_labels=tiny_data.train_labels[chosen])
    assert few.train_labels.bincount().tolist() == [8] * 4
    config = replace(tiny, peak_lr=0.05, **change)
    for seed in (1, 2):
        found = [without_time(metrics) for metrics in train(replace(config, train_frac=0.5), tiny_data, seed=seed)]
        assert found == [without_time(metrics) for metrics in train(config, few, seed=seed)]
        assert found != [without_time(metrics) for metrics in train(config, tiny_data, seed=seed)]


def test_an_epoch_of_a_share_has_fewer_steps(
    tiny: Config, tiny_data: DeviceData, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    monkeypatch.setattr("model.train.train_step", _counting(steps))
    for share, expected in [(1.0, 4), (0.75, 3), (0.3, 1)]:  # 64, 48 and 19 images in batches of 16
        steps.clear()
        list(train(replace(tiny, train_frac=share, epochs=2), tiny_data))
        assert len(steps) == 1 + 2 * expected  # the warm-up step comes first


def test_each_training_of_a_process_compiles_its_net_for_its_own_shapes(
    tiny: Config, tiny_data: DeviceData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More nets than torch compiles of one code, and more batch sizes than one; traced, but run as they are."""
    compiled: list[list[Any]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable:
        compiled.append(inputs)
        return graph.forward

    monkeypatch.setattr("torch.compile", partial(torch.compile, backend=backend))
    monkeypatch.setattr("model.train.check_device", lambda config, device: None)
    monkeypatch.setattr("torch._dynamo.config.recompile_limit", 2)  # 8 are as many, but take longer
    for batch_size, width in [(8, 1), (16, 1), (16, 2), (32, 2)]:
        compiled.clear()
        config = replace(tiny, epochs=1, width=width, batch_size=batch_size, compile=True)
        (metrics,) = train(config, tiny_data)
        assert metrics.train_loss == next(train(replace(config, compile=False), tiny_data)).train_loss
        assert len(compiled) == 1
        sizes = [size for each in compiled[0] if isinstance(each, torch.Tensor) for size in each.shape]
        assert config.batch_size in sizes and all(type(size) is int for size in sizes)
        assert not any(isinstance(each, torch.SymInt) for each in compiled[0])


def _counting(steps: list[int]) -> Callable:
    from model.train import train_step

    def counted(config: Config, *rest: Any) -> torch.Tensor:
        steps.append(config.batch_size)
        return train_step(config, *rest)

    return counted


def test_a_share_of_fewer_images_than_a_batch_is_refused(tiny: Config, tiny_data: DeviceData) -> None:
    next(train(replace(tiny, train_frac=0.25), tiny_data))
    with pytest.raises(InputError) as caught:
        next(train(replace(tiny, train_frac=0.2), tiny_data))
    assert str(caught.value) == (
        "batch_size = 16 is more than the 13 training images that train_frac = 0.2 leaves of 64: "
        "lower it (--set batch_size=6) or train on more images"
    )


def test_evaluate_counts_right_answers(tiny: Config, tiny_data: DeviceData) -> None:
    """A net that always answers class 2 with probability 0.7, the three others 0.1 each."""
    logits = torch.log(torch.tensor([0.1, 0.1, 0.7, 0.1]))
    net = torch.nn.Sequential()
    net.forward = lambda images: logits.expand(len(images), 4)  # type: ignore[method-assign]
    acc, loss = evaluate(net, tiny, tiny_data)
    assert acc == 5 / 20
    assert loss == pytest.approx(-(5 * logits[2] + 15 * logits[0]).item() / 20, rel=1e-6)


def test_bf16_trains_close_to_fp32(tiny: Config, tiny_data: DeviceData) -> None:
    full, half = (list(train(replace(tiny, precision=name), tiny_data))[-1] for name in ("fp32", "bf16"))
    assert half.train_loss == pytest.approx(full.train_loss, rel=0.1)
    assert half.train_loss != full.train_loss


def test_command_writes_config_and_metrics_that_can_be_run_again(command: Callable, tmp_path: Path) -> None:
    args = ("--data", "digits", "--set", "width=2", "epochs=2", "--set", "batch_size=64", "--seed", 5, "--threads", 1)
    first = command("model.train", *args, "--out", "first")
    assert first.returncode == 0, first.stderr
    lines = [json.loads(line) for line in (tmp_path / "first" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert f"{100 * lines[1]['acc']:.2f}%" in first.stdout
    assert load_config(tmp_path / "first" / "config.json").width == 2
    second = command(
        "model.train",
        "--config",
        "first/config.json",
        "--data",
        "digits",
        "--seed",
        5,
        "--threads",
        1,
        "--out",
        "again",
    )
    assert second.returncode == 0, second.stderr
    again = [json.loads(line) for line in (tmp_path / "again" / "metrics.jsonl").read_text().splitlines()]
    for line, other in zip(lines, again, strict=True):
        assert {**line, "train_s": 0, "warm_up_s": 0} == {**other, "train_s": 0, "warm_up_s": 0}


BRIEF = ("--data", "digits", "--train-examples", 200, "--threads", 1, "--set", "width=2", "epochs=2", "batch_size=64")


def test_what_a_run_took_is_said_and_written(command: Callable, tmp_path: Path) -> None:
    done = command("model.train", "--recipe", "s8", *BRIEF, "--out", "out", "--target-acc", 0.01, 1.0)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert found["epochs"] == 2 and found["flops"] > 0 and found["memory"]["rss_mib"] > 100
    assert found["targets"]["0.01"]["epoch"] == 1 and found["targets"]["1"] is None
    assert "accuracy 100%: not reached" in done.stdout and "images/s" in done.stdout


def test_recipes_are_listed_with_epochs_and_published_figures(command: Callable) -> None:
    listed = command("model.train", "--recipe", "list").stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["recipe", *RECIPES]
    assert listed[2].split()[:5] == ["s0", "24", "94.1%,", "75", "s"]


def test_a_run_over_two_ranks_from_the_command_line(command: Callable) -> None:
    done = command("model.train", *BRIEF, "--ranks", 2)
    assert done.returncode == 0, done.stderr
    assert "epoch   2/2" in done.stdout and "2 x 1 CPU threads" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not (REAL_DATA / "cifar10").exists(), reason=f"no real CIFAR-10 at {REAL_DATA}/cifar10")
def test_s0_on_5000_real_images_beats_45_percent_in_4_epochs() -> None:
    torch.set_num_threads(usable_cores())
    data = to_device(take(load(str(REAL_DATA / "cifar10")), 5000), torch.device("cpu"))
    *_, last = train(Config(width=16, epochs=4, batch_size=128, peak_lr=0.2), data)
    assert last.acc > 0.45


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_the_run_follows_the_cpu_run(tiny: Config, tiny_data: DeviceData) -> None:
    on_cpu = list(train(tiny, tiny_data))
    on_gpu = list(train(tiny, replace(tiny_data, **_on_gpu(tiny_data))))
    assert on_gpu[0].train_loss == pytest.approx(on_cpu[0].train_loss, rel=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("change", [{"precision": "bf16"}, {"precision": "fp16"}, {"compile": True}], ids=str)
def test_on_a_gpu_every_trick_trains_in_half_precision_and_compiled(tiny_data: DeviceData, change: dict) -> None:
    data = replace(tiny_data, **_on_gpu(tiny_data))
    for config in (CONFIGS["s0"], EVERY_TRICK):
        plain, changed = (list(train(replace(config, **given), data))[-1] for given in ({}, change))
        assert changed.train_loss == pytest.approx(plain.train_loss, rel=0.1)


def _on_gpu(data: DeviceData) -> dict:
    device = torch.device("cuda")
    moved = {name: value.to(device) for name, value in vars(data).items() if isinstance(value, torch.Tensor)}
    return {**moved, "device": device}
