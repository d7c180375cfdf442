"""`python -m model.fit`: what a config needs of the device's memory, and which batch would still fit."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro

from model.augment import CHANNELS, SIDE_PX
from model.command import run_command
from model.config import Config, InputError
from model.data import DeviceData
from model.evaluate import EVAL_BATCH, evaluate
from model.memory import (
    GIB,
    PROCESS_BYTES,
    available_bytes,
    largest_multiple,
    needed_bytes,
    needs_of,
    ran_out_of_memory,
)
from model.recipes import choose
from model.train import best_device, init_state, train_step


def largest_batch(config: Config, num_classes: int, examples: int, device: torch.device) -> int:
    """The most images that fit into a batch, at most those trained on and a multiple of ghost_batch; 0 if none fits.

    On the CPU it is estimated; on CUDA tried, in doublings or halvings of the config's batch.
    """
    most, unit = config.trained_images(examples), config.ghost_batch or 1
    if device.type == "cpu":
        return min(
            largest_multiple(needs_of(config, num_classes, examples), config, available_bytes(device)),
            most // unit * unit,
        )

    def fits(batch: int) -> bool:
        return few_steps_fit(replace(config, batch_size=batch), num_classes, examples, device)

    return _largest_by_trying(fits, config.batch_size, unit, most)


def _largest_by_trying(fits: Callable[[int], bool], start: int, unit: int, most: int) -> int:
    """The largest of start, its doublings up to `most` and its halvings (multiples of `unit`) that fits; 0 if none."""
    batch = start
    if not fits(batch):
        while batch:
            batch = batch // 2 // unit * unit
            if batch and fits(batch):
                return batch
        return 0
    while 2 * batch <= most and fits(2 * batch):
        batch *= 2
    return batch


def few_steps_fit(config: Config, num_classes: int, examples: int, device: torch.device) -> bool:
    """Whether training steps and an evaluation on random data run without running out of the device's memory.

    Three steps: that of training's warm-up, the first that has the optimiser's state beside it, and one more, for which
    torch's reserve of a GPU has to serve again.
    """
    try:
        torch.backends.cudnn.benchmark = device.type == "cuda"  # as in training: the fastest kernels, not the smallest
        data = random_data(max(examples, config.batch_size), num_classes, device)
        state = init_state(config, data, seed=0)
        undo = [tensor.clone() for tensor in state.net.state_dict().values()]  # which training keeps in its warm-up
        inputs = torch.rand(config.batch_size, SIDE_PX, SIDE_PX, CHANNELS, device=device).permute(0, 3, 1, 2)
        labels = data.train_labels[: config.batch_size]
        train_step(config, state.net, state.optimizer, inputs, labels)
        del undo
        for _ in range(2):
            train_step(config, state.net, state.optimizer, inputs, labels)
        evaluate(state.scored_net, config, data)
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        return False
    return True


def random_data(examples: int, num_classes: int, device: torch.device) -> DeviceData:
    """Random training images on the device, the first of which are scored: to time and to measure with."""
    images = torch.randint(256, (examples, SIDE_PX, SIDE_PX, CHANNELS), dtype=torch.uint8, device=device)
    labels = torch.randint(num_classes, (examples,), device=device)
    mean, std = torch.full((CHANNELS,), 127.5, device=device), torch.full((CHANNELS,), 73.9, device=device)
    scored = (images[:EVAL_BATCH], labels[:EVAL_BATCH])
    return DeviceData(images, labels, *scored, mean, std, "test", num_classes, device)


@dataclass(frozen=True)
class Options:
    """Tell what a config needs of the device's memory, which batch would still fit, and how many trials at once."""

    recipe: str = "s0"
    """the published recipe to start from"""
    config: Path | None = None
    """start from this JSON file (of tune.export, or of model.train --out) instead of a recipe"""
    set: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FIELD=VALUE")] = ()
    """change fields of the config"""
    data_images: int = 50_000
    """images of the data set, which stays on the device"""
    classes: int = 10
    """classes of the data set"""


def main(options: Options) -> None:
    config = choose(options.recipe, options.config, [text for texts in options.set for text in texts])
    for name in ("data_images", "classes"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)}: it must be 1 or more")
    print(report(config, options.classes, options.data_images, best_device()))


def report(config: Config, num_classes: int, examples: int, device: torch.device) -> str:
    """The command's answer, one paragraph. On CUDA measured, and trials counted by what is then taken of the GPU."""
    needed = PROCESS_BYTES + needed_bytes(config, num_classes, examples)
    total = available_bytes(device)
    trials, share = total // needed, ""
    if device.type == "cuda":
        fits = few_steps_fit(config, num_classes, examples, device)
        free, total = torch.cuda.mem_get_info(device)
        needed = total - free if fits else needed  # with torch's reserve and the process's own
        trials = total // needed if fits else 0
        share = f", with --gpus-per-trial {10**6 // trials / 10**6:g}" if trials else ""
        torch.cuda.empty_cache()
    largest = largest_batch(config, num_classes, examples, device)
    count = "1 trial fits" if trials == 1 else f"{trials:,} trials fit"
    there = f"the GPU has {total / GIB:.1f} GiB" if device.type == "cuda" else f"{total / GIB:.1f} GiB are free"
    return (
        f"Training at width = {config.width} with batch_size = {config.batch_size} in {config.precision} needs about "
        f"{needed / GIB:.2f} GiB of memory, process and {examples:,} images of data included, and {there}. The largest "
        f"batch that fits is {largest:,} images. As configured, {count} on the device ({device.type}) at once{share}."
    )


if __name__ == "__main__":
    run_command(main, Options, prog="python -m model.fit")
