"""`python -m model.train`: train one config, print a line per epoch and what it took."""

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from model.config import Config, InputError, save_config
from model.data import Dataset, describe, hold_out, take, to_device
from model.files import write_whole
from model.machine import usable_cores
from model.meter import describe_summary, slow_precision, summary
from model.profile import describe_profile, profile
from model.ranks import RankError, Ranks
from model.recipes import choose, table
from model.sources import load
from model.train import EpochMetrics, best_device, check_batch, check_device, init_state, train


@dataclass(frozen=True)
class Options:
    """Train one config and print a line per epoch."""

    recipe: str = "s0"
    """the published recipe to start from; list shows them all"""
    config: Path | None = None
    """start from this JSON file (of tune.export, or of --out) instead of a recipe"""
    data: str = "auto"
    """auto, digits, cifar10 (downloads into data/), or the path of a data folder"""
    set: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FIELD=VALUE")] = ()
    """change fields of the config"""
    seed: int = 0
    """initial weights, order of the images, augmentation"""
    out: Path | None = None
    """write config.json, metrics.jsonl, summary.json and weights.pt into this new folder"""
    split: Literal["test", "val"] = "test"
    """test: train on all training images, score on the test set; val: the search's split, a tenth held out"""
    train_examples: int | None = None
    """train on so many of the images only"""
    threads: int | None = None
    """CPU threads, of each rank (default: all cores, shared out)"""
    ranks: int = 1
    """processes that share each batch: one per GPU, or on CPU cores"""
    target_acc: tuple[float, ...] = ()
    """say when these accuracies (0..1) were reached"""
    profile: bool = False
    """instead of training, show where the time of a step goes"""


def main(options: Options) -> None:
    if options.recipe == "list":
        print(table())
        return
    config, dataset = _chosen(options)
    device = best_device()
    threads = options.threads or max(1, min(torch.get_num_threads(), usable_cores()) // options.ranks)
    torch.set_num_threads(threads)
    print(describe(dataset))
    print(f"config: {config.describe()}")
    print(f"seed {options.seed}, {device}, {options.ranks} x {threads} CPU threads")
    if warning := slow_precision(config, device):
        print(warning)
    if options.profile:
        data = to_device(dataset, device)
        print(describe_profile(profile(config, data), config, len(data.train_labels)))
        return
    if options.out:
        with _out(options.out) as out:
            out.mkdir(parents=True)
            save_config(out / "config.json", config, seed=options.seed, dataset=dataset.name, split=options.split)
    history: list[EpochMetrics] = []
    for metrics, state in _epochs(config, dataset, device, options.ranks, threads, options.seed):
        history.append(metrics)
        print(
            f"epoch {metrics.epoch:3d}/{config.epochs}  lr {metrics.lr:.4f}  train loss {metrics.train_loss:.4f}  "
            f"{metrics.split} loss {metrics.loss:.4f}  {metrics.split} acc {100 * metrics.acc:.2f}%  "
            f"{metrics.train_s:.1f} s",
            flush=True,
        )
        if options.out:
            weights = io.BytesIO()
            torch.save(state["ema"] or state["net"], weights)
            with _out(options.out) as out:
                write_whole(out / "weights.pt", weights.getvalue())
                write_whole(out / "metrics.jsonl", "".join(f"{json.dumps(asdict(each))}\n" for each in history))
    counts = len(dataset.classes), len(dataset.train_labels)
    found = summary(config, *counts, history, device, options.target_acc, options.ranks)
    print(describe_summary(found))
    if options.out:
        with _out(options.out) as out:
            write_whole(out / "summary.json", json.dumps(found, indent=2) + "\n")
    if history[-1].diverged:
        sys.exit("training diverged: the loss is no longer finite; lower peak_lr or lr_scale")


@contextmanager
def _out(folder: Path) -> Iterator[Path]:
    """The folder of --out, to write into; what is there already stays.

    Raises:
        InputError: it can't be written, or it exists and is made here.
    """
    try:
        yield folder
    except OSError as error:
        raise InputError(f"--out {folder}: {error.strerror}; name a new folder that can be written") from error


def _epochs(
    config: Config, dataset: Dataset, device: torch.device, ranks: int, threads: int, seed: int
) -> Iterator[tuple[EpochMetrics, dict[str, Any]]]:
    """Each epoch's metrics and the state after it, trained in this process or by several ranks."""
    if ranks == 1:
        data = to_device(dataset, device)
        state = init_state(config, data, seed)
        for metrics in train(config, data, seed=seed, state=state):
            yield metrics, state.state_dict()
        return
    with Ranks(dataset, ranks, threads=threads, device=device) as group:
        try:
            for metrics in group.train(config, seed=seed):
                assert group.state is not None
                yield metrics, group.state
        except RankError as error:
            raise InputError(f"--ranks {ranks}: {error}") from error


def _chosen(options: Options) -> tuple[Config, Dataset]:
    """The config and the dataset that the command line asks for."""
    config = choose(options.recipe, options.config, [text for texts in options.set for text in texts])
    if options.seed < 0:
        raise InputError(f"--seed {options.seed}: it must be 0 or more")
    for name, value in [("threads", options.threads), ("ranks", options.ranks)]:
        if value is not None and value < 1:
            raise InputError(f"--{name} {value}: it must be 1 or more")
    gpus = torch.cuda.device_count()
    if gpus and options.ranks > gpus:
        raise InputError(f"--ranks {options.ranks}: this machine has {gpus} GPUs, one for each rank")
    for target in options.target_acc:
        if not 0 < target <= 1:
            raise InputError(f"--target-acc {target}: it must be above 0 up to 1, such as 0.94")
    dataset = load(options.data)
    if options.split == "val":
        dataset = hold_out(dataset, options.train_examples)
    elif options.train_examples is not None:
        dataset = take(dataset, options.train_examples)
    check_batch(config, len(dataset.train_labels), options.ranks)
    check_device(config, best_device())
    return config, dataset
