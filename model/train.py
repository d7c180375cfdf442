"""The training loop: a generator of one `EpochMetrics` per epoch. Its command line is in `model.train_command`."""

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from model.augment import augment, draw, normalise
from model.config import Config, InputError
from model.data import DeviceData, chosen_images
from model.evaluate import Ema, autocast, build_ema, evaluate
from model.memory import check_memory, keep_freed_memory
from model.meter import now_s
from model.net import WHITEN_IMAGES, build_net, fit_to_data
from model.optim import build_optimizer, lr_schedule, set_lr
from model.parallel import average, data_parallel, place, running_statistics

FLIPS = 2**32 - 1
"""the random stream of the half that the alternating flip mirrors first: those of the epochs lie below"""


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
    warm_up_s: float
    """the untimed step on random data before it: kernel selection, compilation, allocation"""

    @property
    def diverged(self) -> bool:
        return not (math.isfinite(self.train_loss) and math.isfinite(self.loss))


@dataclass
class TrainState:
    """All that changes while training. Its `state_dict()` may be saved after any epoch and loaded to go on."""

    net: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    epoch: int = 0
    train_s: float = 0.0

    @property
    def scored_net(self) -> nn.Module:
        """The net whose accuracy counts: the moving average, where there is one."""
        return self.ema.net if self.ema else self.net

    def state_dict(self) -> dict[str, Any]:
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.net.state_dict() if self.ema else None,
            "epoch": self.epoch,
            "train_s": self.train_s,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema:
            self.ema.net.load_state_dict(state["ema"])
        self.epoch, self.train_s = state["epoch"], state["train_s"]


def init_state(config: Config, data: DeviceData, seed: int) -> TrainState:
    """A freshly initialised net and optimiser on the data's device; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_stream(seed, 0))
        net = build_net(config, data.num_classes).to(data.device)
    return TrainState(net, build_optimizer(config, net), build_ema(config, net))


def train(
    config: Config, data: DeviceData, *, seed: int = 0, state: TrainState | None = None
) -> Iterator[EpochMetrics]:
    """Train on the data's device and yield after each epoch; stops early only when the loss is no longer finite.

    In a process group (`model.parallel`) each rank trains on its share of every batch, and all yield the same.

    Args:
        seed: fixes initial weights, order and augmentation. On CPU the metrics follow bit for bit from config, data,
            seed and number of threads.
        state: where to go on; kept up to date, so that it may be saved after any yield. None starts anew.

    Raises:
        InputError: there are fewer images to train on than one batch, or the device can't do what the config asks.
    """
    _, ranks = place()
    check_batch(config, len(data.train_labels), ranks)
    check_device(config, data.device)
    share = replace(config, batch_size=config.batch_size // ranks)
    check_memory(share, data.num_classes, len(data.train_labels), data.device)
    keep_freed_memory()
    steps = config.trained_images(len(data.train_labels)) // config.batch_size
    state = state or init_state(config, data, seed)
    forward = data_parallel(state.net)
    if config.compile:
        forward = compiled(forward)
    warm_up_s = _warm_up(config, data, state, forward)

    while state.epoch < config.epochs:
        start_s = now_s(data.device)
        if state.epoch == 0:
            _fit_to_data(config, data, state)
        state.net.train()
        total_loss = torch.zeros((), device=data.device)
        for step, (inputs, labels) in enumerate(batches(config, data, seed, state.epoch)):
            epoch = state.epoch + (step + 1) / steps
            lr = lr_schedule(config, epoch)
            set_lr(state.optimizer, lr)
            total_loss += train_step(config, forward, state.optimizer, inputs, labels)
            if state.ema:
                state.ema.update(state.net, step, epoch / config.epochs)
        average([total_loss, *running_statistics(state.net)])
        if state.ema:
            average(running_statistics(state.ema.net))
        state.train_s += now_s(data.device) - start_s
        state.epoch += 1

        train_loss = total_loss.item() / steps
        acc, loss = evaluate(state.scored_net, config, data)
        metrics = EpochMetrics(state.epoch, train_loss, data.eval_split, acc, loss, lr, state.train_s, warm_up_s)
        yield metrics
        if metrics.diverged:
            return


def batches(config: Config, data: DeviceData, seed: int, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What `train` trains on in an epoch (from 0), in order: augmented inputs float32 [B, 3, 32, 32], labels int64 [B].

    In a process group: this rank's share of each batch. The last, incomplete batch is dropped.
    """
    rank, ranks = place()
    chosen = _chosen(config, data)
    # The random choices of an epoch depend on seed and epoch only, so no generator needs saving.
    generator = torch.Generator().manual_seed(_stream(seed, 1 + epoch))
    order = torch.randperm(len(chosen), generator=generator)
    choices = draw(len(chosen), config, generator)
    if config.alternating_flip:
        half = draw(len(chosen), config, torch.Generator().manual_seed(_stream(seed, FLIPS))).mirror
        choices = replace(choices, mirror=half[order] ^ bool(epoch % 2))
    order, choices = chosen[order.to(data.device, non_blocking=True)], choices.to(data.device)
    for first in range(0, len(chosen) - config.batch_size + 1, config.batch_size):
        batch = slice(first + rank, first + config.batch_size, ranks)
        index = order[batch]
        images = data.train_images.index_select(0, index)
        yield augment(images, choices.of(batch), config, data.mean, data.std), data.train_labels[index]


def compiled(net: nn.Module) -> nn.Module:
    """The net, compiled for the shapes of one training, as in a process that has compiled none before.

    What torch keeps of earlier trainings is dropped: after eight nets of other shapes it would compile no more of them
    and say nothing, and of a second batch size it would make code for any size.
    """
    torch.compiler.reset()
    forward: nn.Module = torch.compile(net, dynamic=False)  # type: ignore[assignment]
    return forward


def check_batch(config: Config, examples: int, ranks: int = 1) -> None:
    """Raises InputError when fewer than one batch of the training images are trained on, or ranks can't share a batch
    evenly."""
    images = config.trained_images(examples)
    if images < config.batch_size:
        share = f" that train_frac = {config.train_frac:g} leaves of {examples}" if config.train_frac < 1 else ""
        raise InputError(
            f"batch_size = {config.batch_size} is more than the {images} training images{share}: "
            f"lower it (--set batch_size={images // 2 or 1}) or train on more images"
        )
    if config.batch_size % (ranks * (config.ghost_batch or 1)):
        ghosts = f" in groups of ghost_batch = {config.ghost_batch}" if config.ghost_batch else ""
        raise InputError(
            f"batch_size = {config.batch_size} can't be shared evenly by {ranks} ranks{ghosts}: make it a multiple of "
            f"{ranks * (config.ghost_batch or 1)}"
        )


def check_device(config: Config, device: torch.device) -> None:
    """Raises InputError when the config asks for what only CUDA does."""
    if device.type != "cuda":
        if config.precision == "fp16":
            raise InputError("precision = 'fp16' needs a CUDA device, and there is none: use bf16 or fp32")
        if config.compile:
            raise InputError("compile = true needs a CUDA device, and there is none: leave it at false")


def train_step(
    config: Config, forward: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """One optimiser step on a batch; returns its mean loss, still on the device (reading it would stall the queue)."""
    with autocast(config, inputs.device):
        logits = forward(inputs)
    loss = cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
    optimizer.zero_grad(set_to_none=True)
    if config.precision == "fp16":  # a constant scale, that of a summed loss, keeps small gradients and needs no sync
        (loss * config.batch_size).backward()
        grads = [weight.grad for weight in forward.parameters() if weight.grad is not None]
        torch._foreach_div_(grads, config.batch_size)
    else:
        loss.backward()
    optimizer.step()
    return loss.detach()


def _chosen(config: Config, data: DeviceData) -> torch.Tensor:
    """Where the images that are trained on stand among all of the training images: int64 [N], ascending."""
    there = len(data.train_labels)
    examples = config.trained_images(there)
    if examples == there:
        return torch.arange(there, device=data.device)  # to choose takes 15 ms of every epoch's clock
    return torch.from_numpy(chosen_images(data.train_labels.cpu().numpy(), examples)).to(data.device)


def _fit_to_data(config: Config, data: DeviceData, state: TrainState) -> None:
    """What the net takes from the data before its first step: patch whitening, frozen statistics."""
    if config.whiten or config.norm == "frozen":
        fit_to_data(
            state.net, config, normalise(data.train_images[_chosen(config, data)[:WHITEN_IMAGES]], data.mean, data.std)
        )
        if state.ema:
            state.ema.net.load_state_dict(state.net.state_dict())


def _warm_up(config: Config, data: DeviceData, state: TrainState, forward: nn.Module) -> float:
    """One step on random data, undone afterwards, so that kernel selection, compilation and allocation stay off the
    clock; returns its seconds."""
    torch.backends.cudnn.benchmark = data.device.type == "cuda"
    start_s = now_s(data.device)
    before = deepcopy(state.state_dict())
    _, ranks = place()
    share = config.batch_size // ranks
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (share, 32, 32, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(data.num_classes, (share,), generator=generator)
    choices = draw(share, config, generator).to(data.device)
    inputs = augment(images.to(data.device), choices, config, data.mean, data.std)
    state.net.train()
    train_step(config, forward, state.optimizer, inputs, labels.to(data.device))
    state.load_state_dict(before)
    return now_s(data.device) - start_s


def _stream(seed: int, number: int) -> int:
    """A 63-bit seed for one of the independent random streams of a run."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0] >> 1)


def best_device(gpus: float = 1.0) -> torch.device:
    """A GPU, where there is one.

    Args:
        gpus: how many, or what share of one, this process may use. 0 is the CPU, whatever there is.
    """
    return torch.device("cuda" if gpus and torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    from model.command import run_command
    from model.train_command import Options, main

    run_command(main, Options, prog="python -m model.train")
