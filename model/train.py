"""The training loop: a generator of one `EpochMetrics` per epoch, and the command `python -m model.train`."""

import json
import math
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from torch import nn
from torch.nn.functional import cross_entropy

from model.augment import augment, draw
from model.command import run_command
from model.config import RECIPES, Config, InputError, load_config, nearest, save_config, with_assignments
from model.data import DeviceData, describe, hold_out, take, to_device
from model.evaluate import autocast, evaluate
from model.meter import now_s
from model.net import build_net
from model.optim import Nesterov, build_optimizer, lr_schedule, set_lr
from model.sources import load


@dataclass(frozen=True)
class EpochMetrics:
    """What one epoch shows."""

    epoch: int
    """epochs trained so far, from 1"""
    train_loss: float
    """mean cross entropy of the epoch's augmented training batches, while they were trained on"""
    split: str
    """what `acc` and `loss` were measured on: 'val' or 'test'"""
    acc: float
    """share of right answers, 0..1"""
    loss: float
    """mean cross entropy"""
    lr: float
    """learning rate of the epoch's last step"""
    train_s: float
    """training time since the first batch: no start-up, warm-up step, evaluation or pauses"""

    @property
    def diverged(self) -> bool:
        return not (math.isfinite(self.train_loss) and math.isfinite(self.loss))


@dataclass
class TrainState:
    """All that changes while training. Its `state_dict()` may be saved after any epoch and loaded to go on."""

    net: nn.Module
    optimizer: Nesterov
    epoch: int = 0
    train_s: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "train_s": self.train_s,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.train_s = state["epoch"], state["train_s"]


def init_state(config: Config, data: DeviceData, seed: int) -> TrainState:
    """A freshly initialised net and optimiser on the data's device; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_stream(seed, 0))
        net = build_net(config, data.num_classes).to(data.device)
    return TrainState(net, build_optimizer(config, net))


def train(
    config: Config, data: DeviceData, *, seed: int = 0, state: TrainState | None = None
) -> Iterator[EpochMetrics]:
    """Train on the data's device and yield after each epoch; stops early only when the loss is no longer finite.

    Args:
        seed: fixes initial weights, order and augmentation. On CPU the metrics follow bit for bit from config, data,
            seed and number of threads.
        state: where to go on; kept up to date, so that it may be saved after any yield. None starts anew.

    Raises:
        InputError: there are fewer training images than one batch.
    """
    check_batch(config, len(data.train_labels))
    examples = len(data.train_labels)
    steps = examples // config.batch_size
    state = state or init_state(config, data, seed)
    _warm_up(config, data, state)

    while state.epoch < config.epochs:
        # The random choices of an epoch depend on seed and epoch only, so no generator needs saving.
        generator = torch.Generator().manual_seed(_stream(seed, 1 + state.epoch))
        start_s = now_s(data.device)
        order = torch.randperm(examples, generator=generator).to(data.device, non_blocking=True)
        choices = draw(examples, config, generator).to(data.device)
        state.net.train()
        total_loss = torch.zeros((), device=data.device)
        for step in range(steps):
            batch = slice(step * config.batch_size, (step + 1) * config.batch_size)
            index = order[batch]
            lr = lr_schedule(config, state.epoch + (step + 1) / steps)
            set_lr(state.optimizer, lr)
            inputs = augment(data.train_images[index], choices.of(batch), config, data.mean, data.std)
            total_loss += _step(config, state, inputs, data.train_labels[index])
        state.train_s += now_s(data.device) - start_s
        state.epoch += 1

        train_loss = total_loss.item() / steps
        acc, loss = evaluate(state.net, config, data)
        metrics = EpochMetrics(state.epoch, train_loss, data.eval_split, acc, loss, lr, state.train_s)
        yield metrics
        if metrics.diverged:
            return


def check_batch(config: Config, examples: int) -> None:
    """Raises InputError when there are fewer training images than one batch."""
    if examples < config.batch_size:
        raise InputError(
            f"batch_size = {config.batch_size} is more than the {examples} training images: "
            f"lower it (--set batch_size={examples // 2 or 1}) or train on more images"
        )


def _step(config: Config, state: TrainState, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """One optimiser step on a batch; returns its mean loss, still on the device (reading it would stall the queue)."""
    with autocast(config, inputs.device):
        logits = state.net(inputs)
    loss = cross_entropy(logits.float(), labels)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    state.optimizer.step()
    return loss.detach()


def _warm_up(config: Config, data: DeviceData, state: TrainState) -> None:
    """One step on random data with a copy of the net, so that kernel selection and allocation stay off the clock."""
    net = deepcopy(state.net)
    spare = TrainState(net, build_optimizer(config, net))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (config.batch_size, 32, 32, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(data.num_classes, (config.batch_size,), generator=generator)
    choices = draw(config.batch_size, config, generator).to(data.device)
    inputs = augment(images.to(data.device), choices, config, data.mean, data.std)
    net.train()
    _step(config, spare, inputs, labels.to(data.device))


def _stream(seed: int, number: int) -> int:
    """A 63-bit seed for one of the independent random streams of a run."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0] >> 1)


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Options:
    """Train one config and print a line per epoch."""

    recipe: str = "s0"
    """the published recipe to start from"""
    config: Path | None = None
    """start from this JSON file (of tune.export, or of --out) instead of a recipe"""
    data: str = "auto"
    """auto, digits, cifar10 (downloads into data/), or the path of a data folder"""
    set: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FIELD=VALUE")] = ()
    """change fields of the config"""
    seed: int = 0
    """initial weights, order of the images, augmentation"""
    out: Path | None = None
    """write config.json, metrics.jsonl and weights.pt into this new folder"""
    split: Literal["test", "val"] = "test"
    """test: train on all training images, score on the test set; val: the search's split, a tenth held out"""
    train_examples: int | None = None
    """use only so many of the training images"""
    threads: int | None = None
    """CPU threads (default: all cores)"""


def main(options: Options) -> None:
    config, data = _chosen(options)
    device_data = to_device(data, best_device())
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.out:
        try:
            options.out.mkdir(parents=True)
        except OSError as error:
            raise InputError(f"--out {options.out}: {error.strerror}; name a new folder") from error
        save_config(options.out / "config.json", config, seed=options.seed, dataset=data.name, split=options.split)
    print(describe(data))
    print("config:", ", ".join(f"{name}={value}" for name, value in config.to_dict().items()))
    print(f"seed {options.seed}, {device_data.device}, {torch.get_num_threads()} CPU threads")
    state = init_state(config, device_data, options.seed)
    for metrics in train(config, device_data, seed=options.seed, state=state):
        print(
            f"epoch {metrics.epoch:3d}/{config.epochs}  lr {metrics.lr:.4f}  train loss {metrics.train_loss:.4f}  "
            f"{metrics.split} loss {metrics.loss:.4f}  {metrics.split} acc {100 * metrics.acc:.2f}%  "
            f"{metrics.train_s:.1f} s",
            flush=True,
        )
        if options.out:
            with (options.out / "metrics.jsonl").open("a") as lines:
                print(json.dumps(asdict(metrics)), file=lines)
            torch.save(state.net.state_dict(), options.out / "weights.pt")
    if metrics.diverged:
        sys.exit("training diverged: the loss is no longer finite; lower peak_lr or lr_scale")


def _chosen(options: Options) -> tuple[Config, Any]:
    """The config and the dataset that the command line asks for."""
    if options.recipe not in RECIPES:
        raise InputError(
            f"--recipe {options.recipe!r} is unknown{nearest(options.recipe, RECIPES)}: "
            f"allowed are {', '.join(RECIPES)}"
        )
    if options.seed < 0:
        raise InputError(f"--seed {options.seed}: it must be 0 or more")
    if options.threads is not None and options.threads < 1:
        raise InputError(f"--threads {options.threads}: it must be 1 or more")
    config = load_config(options.config) if options.config else RECIPES[options.recipe]()
    config = with_assignments(config, [text for texts in options.set for text in texts])
    data = load(options.data)
    if options.train_examples is not None:
        data = take(data, options.train_examples)
    if options.split == "val":
        data = hold_out(data)
    check_batch(config, len(data.train_labels))
    return config, data


if __name__ == "__main__":
    run_command(main, Options, prog="python -m model.train")
