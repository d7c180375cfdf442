"""`python -m model.predict WEIGHTS image...`: classify image files with a net that `tune.export --weights` wrote."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import nn

from model.augment import normalise
from model.command import printable, run_command
from model.config import Config, InputError
from model.evaluate import EVAL_BATCH, autocast, tta_logits
from model.images import decoded, note_of
from model.train import best_device
from model.weights import Record, load_weights


@dataclass(frozen=True)
class Options:
    """Classify image files: a line for each with its likeliest classes."""

    weights: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="WEIGHTS")]
    """a safetensors file of tune.export --weights or tune.confirm"""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE ...")]
    """image files of any size; they are brought to 32x32 as in training"""
    top: int = 3
    """how many classes to show"""


def main(options: Options) -> None:
    if options.top < 1:
        raise InputError(f"--top {options.top}: it must be 1 or more")
    if not options.images:
        raise InputError("no images: name one file or more after the weights")
    net, record = load_weights(options.weights)
    kinds: set[str] = set()
    images = read_images(options.images, kinds)
    print(_describe(options.weights, record))
    if kinds:
        print(note_of(kinds))
    best, labels = probabilities(net.to(best_device()), record, images).topk(min(options.top, len(record.classes)))
    for path, shares, indices in zip(options.images, best.tolist(), labels.tolist(), strict=True):
        answers = [f"{record.classes[i]} {100 * share:.1f}%" for share, i in zip(shares, indices, strict=True)]
        print(printable(f"{path}: {', '.join(answers)}"))


def read_images(paths: Sequence[Path], kinds: set[str] | None = None) -> torch.Tensor:
    """The image files as uint8 [N, 32, 32, 3]; adds what was done to them to `kinds`.

    Raises:
        InputError: some can't be read, or are no images.
    """
    if folder := next((path for path in paths if path.is_dir()), None):
        raise InputError(f"{folder} is a folder: name the image files in it, such as {folder / '*.png'}")
    files = ((str(path), path) for path in paths)
    return torch.from_numpy(decoded(files, len(paths), set() if kinds is None else kinds))


def probabilities(net: nn.Module, record: Record, images: torch.Tensor) -> torch.Tensor:
    """Softmax outputs [N, classes], on the CPU, of what `load_weights` returned, for uint8 images [N, 32, 32, 3]."""
    device = next(net.parameters()).device
    mean, std = (torch.tensor(values, device=device) for values in (record.mean, record.std))
    return scored_logits(net, record.config, images.to(device), mean, std).softmax(dim=1).cpu()


@torch.inference_mode()
def scored_logits(
    net: nn.Module, config: Config, images: torch.Tensor, mean: torch.Tensor, std: torch.Tensor
) -> torch.Tensor:
    """Logits [N, classes] in the config's views and precision, as `evaluate` has them.

    Args:
        net: in evaluation mode, on the device of the others.
        images: uint8 [N, 32, 32, 3]; mean and std [3] in 0..255 units.
    """
    if config.precision == "fp16" and images.device.type != "cuda":
        config = replace(config, precision="fp32")
    parts = []
    for batch in images.split(EVAL_BATCH):
        with autocast(config, images.device):
            parts.append(tta_logits(net, normalise(batch, mean, std), config.tta))
    return torch.cat(parts)


def _describe(path: Path, record: Record) -> str:
    """What answers, and what is known of how good it is."""
    acc = record.facts.get("test_acc")
    scored = f", test acc {100 * acc:.2f}% (this net, n = 1)" if isinstance(acc, float) else ""
    views = "" if record.config.tta == "none" else f", views averaged: {record.config.tta}"
    return printable(
        f"{path.name}: {len(record.classes)} classes of {record.dataset}{scored}{views}; shares are softmax outputs, "
        f"not calibrated"
    )


if __name__ == "__main__":
    run_command(main, Options, prog="python -m model.predict")
