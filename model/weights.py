"""A trained net as one safetensors file: its tensors, and all it takes to use them in the file's header.

Nothing else is read: a pickle can run any code when it is loaded, safetensors are only numbers.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from model.config import Config, InputError
from model.data import Dataset
from model.files import parse_json, write_whole
from model.net import build_net

WEIGHTS_VERSION = 1
PICKLES = (b"PK\x03\x04", b"\x80")  # torch.save's zip file, and a bare pickle


@dataclass(frozen=True)
class Record:
    """What the header of a weights file says beside the tensors."""

    config: Config
    dataset: str
    """name of the data it was trained on"""
    fingerprint: str
    """of these data, see `Dataset`"""
    classes: tuple[str, ...]
    """in the order of the logits"""
    mean: tuple[float, ...]
    """per channel, in 0..255 units, as subtracted in training"""
    std: tuple[float, ...]
    facts: dict[str, Any]
    """whatever the writer said of this training: seed, accuracy, ..."""


def save_weights(
    path: Path, state_dict: Mapping[str, torch.Tensor], config: Config, dataset: Dataset, **facts: Any
) -> None:
    """Write the state dict of the scored net (the moving average where there is one), whole or not at all.

    Args:
        facts: JSON values that say where the weights come from.

    Raises:
        OSError: the file can't be written.
    """
    content = {
        "version": WEIGHTS_VERSION,
        "config": config.to_dict(),
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint,
        "classes": dataset.classes,
        "mean": dataset.mean,
        "std": dataset.std,
        "facts": facts,
    }
    metadata = {"format": "pt", **{key: json.dumps(value) for key, value in content.items()}}
    # a copy of its own for each: the file holds neither shared nor channels-last memory
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state_dict.items()
    }
    write_whole(path, save(tensors, metadata))


def load_weights(path: Path) -> tuple[nn.Module, Record]:
    """The net in evaluation mode on the CPU, and what the file says of it.

    Raises:
        InputError: the file can't be read, is no whole safetensors file, lacks what `save_weights` writes, or its
            tensors are not those of the net that its config describes.
    """
    try:
        content = path.read_bytes()  # safetensors itself opens only paths in UTF-8
        tensors = load(content)
        end = 8 + int.from_bytes(content[:8], "little")  # of the header, which is whole and JSON since they were loaded
        metadata = parse_json(content[8:end]).get("__metadata__", {})
    except OSError as error:
        raise InputError(f"weights {path} can't be read: {error.strerror or error}") from error
    except SafetensorError as error:
        what = f"no whole safetensors file ({error}): copy or export them again"
        if content.startswith(PICKLES):
            what = "a pickle (torch.save), which can run any code when loaded: only safetensors files are loaded"
        raise InputError(f"weights {path} are {what}") from error
    record = _record(path, metadata)
    return restore_net(record.config, len(record.classes), tensors, f"weights {path}"), record


def restore_net(
    config: Config, num_classes: int, tensors: Mapping[str, torch.Tensor], called: str = "the weights"
) -> nn.Module:
    """The net of `config` with these tensors, on their device, in evaluation mode; no random state is touched.

    Raises:
        InputError: they are not the net's tensors; `called` names them.
    """
    with torch.device("meta"):  # no memory, no random numbers: a wrong file is refused before either
        net = build_net(config, num_classes)
    needed = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in [*needed, *given]:
        if needed.get(name) != given.get(name):
            has, needs = (str(list(shapes[name])) if name in shapes else "no such tensor" for shapes in (given, needed))
            raise InputError(f"{called} don't fit the config ({config.describe()}): {name} has {has}, the net {needs}")
    device = next(iter(tensors.values())).device
    net.to_empty(device=device)
    net.load_state_dict(dict(tensors))
    return net.eval()


def _record(path: Path, metadata: Mapping[str, str]) -> Record:
    """The header's content, checked.

    Raises:
        InputError: something is missing, or not as `save_weights` writes it.
    """
    absent = [key for key in ("version", "config", "classes", "mean", "std") if key not in metadata]
    if absent:
        raise InputError(
            f"weights {path} say nothing of {', '.join(absent)} in their header: this program reads files that "
            f"tune.confirm or tune.export --weights wrote"
        )
    try:
        content = {key: parse_json(value) for key, value in metadata.items() if key != "format"}
        if content["version"] != WEIGHTS_VERSION:
            raise InputError(f"version {content['version']!r}: this program reads version {WEIGHTS_VERSION}")
        classes, mean, std = content["classes"], content["mean"], content["std"]
        if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
            raise InputError("classes are no list of names")
        finite = all(isinstance(value, int | float) and math.isfinite(value) for value in (*mean, *std))
        if len(mean) != 3 or len(std) != 3 or not finite or min(std) <= 0:
            raise InputError("mean and std are not three numbers each, std above 0")
        return Record(
            config=Config.from_dict(content["config"]),
            dataset=str(content.get("dataset", "unknown data")),
            fingerprint=str(content.get("fingerprint", "unknown")),
            classes=tuple(classes),
            mean=tuple(mean),
            std=tuple(std),
            facts=dict(content.get("facts", {})),
        )
    except InputError as error:
        raise InputError(f"weights {path}, header: {error}") from error
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(f"weights {path} have a damaged header ({error}): export them again") from error
