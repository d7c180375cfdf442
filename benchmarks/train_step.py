"""The training step beside its published form, in one run: seconds, ratio, share of what a matmul reaches here.

    python -m benchmarks.train_step

The published form is NCHW, with max-pooling last, in plain torch, in a process of its own, since ours changes how its
process handles freed memory. The two take steps in turn, never at once; figures are medians. Then: what the loop
(order, schedule, metrics, moving average) costs over the bare step, and what scoring 10,000 images and their mirrors
costs beside an epoch of 97 steps.

What helped on 2 cores of an AMD EPYC, at width 16: channels-last (1.5x), keeping freed memory (527 -> 424 ms a step in
fp32), exp in place of expm1 for CELU (73 -> 13 ms on one thread for the largest layer), ghost batch norm on consecutive
chunks (1.3x the time of whole-batch norm, published view 2.7x), scoring 250 images at a time (1.4x as fast as 1,000).
What didn't: batch norm's backward pass written with matrix products, whole or in chunks of any size (slower than
torch's); its statistics by var_mean (5x slower); folding batch norm into convolutions for scoring (5% of it, not worth
its lines).
"""

import multiprocessing
import statistics
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Literal

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from model.augment import augment, draw
from model.command import run_command
from model.config import Config
from model.evaluate import autocast, evaluate
from model.fit import random_data
from model.memory import keep_freed_memory
from model.meter import flops_per_image, matmul_flops_per_s, now_s
from model.net import build_net
from model.optim import build_optimizer, set_lr
from model.recipes import s0, s8
from model.train import best_device, init_state, train, train_step

CLASSES = 10
EPOCH_STEPS = 97  # of 50,000 images in batches of 512


@dataclass(frozen=True)
class Options:
    """Time the training step against its published form."""

    widths: tuple[int, ...] = (16, 64)
    """widths of the net"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """arithmetic of both forms"""
    repeats: int = 5
    """timings of each; the median is reported"""
    threads: int | None = None
    """CPU threads (default: all cores)"""


def published_net(width: int) -> nn.Module:
    """ResNet-9 as written in 2018: conv, batch norm, ReLU, pool, all NCHW."""

    def conv(c_in: int, c_out: int, *pool: nn.Module) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(), *pool)

    class Plus(nn.Module):
        def __init__(self, c: int) -> None:
            super().__init__()
            self.branch = nn.Sequential(conv(c, c), conv(c, c))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.branch(x)

    class Times(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 0.125

    w = width
    layers = OrderedDict(
        prep=conv(3, w),
        layer1=nn.Sequential(conv(w, 2 * w, nn.MaxPool2d(2)), Plus(2 * w)),
        layer2=conv(2 * w, 4 * w, nn.MaxPool2d(2)),
        layer3=nn.Sequential(conv(4 * w, 8 * w, nn.MaxPool2d(2)), Plus(8 * w)),
        head=nn.Sequential(nn.MaxPool2d(4), nn.Flatten(), nn.Linear(8 * w, 10, bias=False), Times()),
    )
    return nn.Sequential(layers)


class Published:
    """The published form's training step, in a process of its own."""

    def __init__(self, config: Config, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve_steps, args=(config, threads, theirs), daemon=True)
        self._process.start()

    def step_s(self) -> float:
        """Seconds of one more step."""
        self._pipe.send(None)
        return self._pipe.recv()

    def close(self) -> None:
        self._process.kill()
        self._process.join()


def _serve_steps(config: Config, threads: int, pipe: Connection) -> None:
    torch.set_num_threads(threads)
    device = best_device()
    step = published_step(config, device)
    while True:
        pipe.recv()
        start_s = now_s(device)
        step()
        pipe.send(now_s(device) - start_s)


def published_step(config: Config, device: torch.device) -> Callable[[], None]:
    net = published_net(config.width).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    inputs = torch.randn(config.batch_size, 3, 32, 32, device=device)
    labels = torch.randint(10, (config.batch_size,), device=device)

    def step() -> None:
        with autocast(config, device):
            logits = net(inputs)
        optimizer.zero_grad()
        cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return step


def our_step(config: Config, device: torch.device) -> Callable[[], None]:
    net = build_net(config, 10).to(device).train()
    optimizer = build_optimizer(config, net)
    set_lr(optimizer, 0.01)
    inputs = torch.randn(config.batch_size, 32, 32, 3, device=device).permute(0, 3, 1, 2)
    labels = torch.randint(10, (config.batch_size,), device=device)
    return lambda: (train_step(config, net, optimizer, inputs, labels), None)[1]


def medians_s(device: torch.device, repeats: int, *actions: Callable[[], object], warm: bool = True) -> list[float]:
    """Median seconds of each action, taken in turn, after an untimed round to warm up."""
    seconds: list[list[float]] = [[] for _ in actions]
    for repeat in range(-int(warm), repeats):
        for action, taken in zip(actions, seconds, strict=True):
            start_s = now_s(device)
            action()
            if repeat >= 0:
                taken.append(now_s(device) - start_s)
    return [statistics.median(taken) for taken in seconds]


def in_turn_s(config: Config, device: torch.device, repeats: int) -> tuple[float, float]:
    """Median seconds of a step of the published form and of ours, taken in turn after one untimed round."""
    published, step = Published(config, torch.get_num_threads()), our_step(config, device)
    published_s, ours_s = [], []
    for _ in range(repeats + 1):
        published_s.append(published.step_s())
        ours_s += medians_s(device, 1, step, warm=False)
    published.close()
    return statistics.median(published_s[1:]), statistics.median(ours_s[1:])


def loop_overhead(config: Config, device: torch.device, repeats: int) -> tuple[float, float]:
    """Median seconds of a step of `train()` and of a bare step on a batch augmented like one, in turn."""
    steps = 8
    data = random_data(steps * config.batch_size, CLASSES, device)
    state = init_state(config, data, 0)
    bare = init_state(config, data, 0)
    set_lr(bare.optimizer, 0.001)
    bare.net.train()
    choices = draw(len(data.train_labels), config, torch.Generator().manual_seed(0)).to(device)
    order = torch.randperm(len(data.train_labels)).to(device)
    epochs: Iterator = train(replace(config, epochs=repeats + 1, lr_scale=1e-3), data, state=state)

    def bare_steps() -> None:
        for step in range(steps):
            batch = slice(step * config.batch_size, (step + 1) * config.batch_size)
            images = data.train_images.index_select(0, order[batch])
            inputs = augment(images, choices.of(batch), config, data.mean, data.std)
            train_step(config, bare.net, bare.optimizer, inputs, data.train_labels[order[batch]])

    loop_s, bare_s, before_s = [], [], 0.0
    for _ in range(repeats + 1):
        metrics = next(epochs)
        loop_s.append(metrics.train_s - before_s)
        before_s = metrics.train_s
        (seconds,) = medians_s(device, 1, bare_steps, warm=False)
        bare_s.append(seconds)
    return statistics.median(loop_s[1:]) / steps, statistics.median(bare_s[1:]) / steps


def main(options: Options) -> None:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    device = best_device()
    peak = matmul_flops_per_s(device, options.precision)
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, {options.precision}")
    print(f"a large matmul reaches {peak / 1e9:.0f} GFLOP/s; batch 512, medians of {options.repeats}\n")
    print("recipe  width  published form  ours        ratio  share of the matmul rate")
    for width in options.widths:
        for name, recipe in (("s0", s0()), ("s8", s8())):
            config = replace(recipe, width=width, precision=options.precision)
            flops = flops_per_image(config, 10) * config.batch_size
            published_s, ours_s = in_turn_s(config, device, options.repeats)
            print(
                f"{name:6}  {width:5}  {1e3 * published_s:11.0f} ms  {1e3 * ours_s:7.0f} ms  "
                f"{published_s / ours_s:5.2f}x  {100 * flops / ours_s / peak:.0f}%",
                flush=True,
            )
    print("\nrecipe  width  step in the loop  bare step   overhead  scoring 10,000 images, with mirror: of an epoch")
    for name, recipe in (("s0", s0()), ("s8", s8())):
        config = replace(recipe, width=min(options.widths), precision=options.precision)
        loop_s, bare_s = loop_overhead(config, device, options.repeats)
        data = random_data(10_000, CLASSES, device)
        data = replace(data, eval_images=data.train_images, eval_labels=data.train_labels)
        net = init_state(config, data, 0).net
        (plain_s, mirror_s) = medians_s(
            device,
            options.repeats,
            *(partial(evaluate, net, replace(config, tta=tta), data) for tta in ("none", "flip")),
        )
        print(
            f"{name:6}  {config.width:5}  {1e3 * loop_s:13.1f} ms  {1e3 * bare_s:7.1f} ms  "
            f"{100 * (loop_s / bare_s - 1):+7.1f}%  {plain_s:.2f} s, {mirror_s:.2f} s: "
            f"{100 * plain_s / EPOCH_STEPS / loop_s:.1f}%, {100 * mirror_s / EPOCH_STEPS / loop_s:.1f}%",
            flush=True,
        )


if __name__ == "__main__":
    run_command(main, Options, prog="python -m benchmarks.train_step")
