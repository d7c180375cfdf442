"""A data set as one record of uint8 arrays, the search's split of it, and its copy on a device."""

import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch

from model.config import InputError

SPLIT_SEED = 20_181_126
HELD_OUT = 0.1


@dataclass(frozen=True)
class Dataset:
    """Training images and the images to score on."""

    name: str
    train_images: np.ndarray
    """uint8 [N, 32, 32, 3]"""
    train_labels: np.ndarray
    """int64 [N]"""
    eval_images: np.ndarray
    """uint8 [M, 32, 32, 3]"""
    eval_labels: np.ndarray
    """int64 [M]"""
    eval_split: str
    """'test', or 'val' once a part of the training images is held out"""
    mean: tuple[float, float, float]
    """per channel over all training images of the source, in 0..255 units"""
    std: tuple[float, float, float]
    classes: tuple[str, ...]
    fingerprint: str
    """12 hex digits of the content's sha256; the same wherever the data lie"""
    note: str
    """what was done to bring the images to 3x32x32, what was left out and what is suspect; empty if nothing"""


def take(dataset: Dataset, examples: int) -> Dataset:
    """The same data with only `examples` training images: a fixed choice, as many of each class as possible.

    Raises:
        InputError: there are fewer images, or not one for each class.
    """
    there, classes = len(dataset.train_labels), len(dataset.classes)
    if not classes <= examples <= there:
        beside = f" beside {len(dataset.eval_labels)} held out" if dataset.eval_split == "val" else ""
        raise InputError(
            f"--train-examples {examples}: {dataset.name} has {there} training images in {classes} classes{beside}; "
            f"give a number from {classes} to {there}"
        )
    return _keep(dataset, chosen_images(dataset.train_labels, examples))


def hold_out(dataset: Dataset, examples: int | None = None) -> Dataset:
    """The search's split: a fixed tenth of each class of the training images is scored on, the rest trained on.

    50,000 training images become 45,000 and 5,000 val images. The test set is left out. Who trains on fewer images
    needs no fewer to score on: a difference of a point drowns in 1,000 of them. So only the rest is chosen from, and as
    many are held out, but no more than half as many as are trained on, which bounds what scoring costs.

    Args:
        examples: train on so many only, as many of each class as possible.

    Raises:
        InputError: fewer are left for training, or not one for each class.
    """
    held = _held_out(dataset.train_labels)
    images, labels = dataset.train_images[held], dataset.train_labels[held]
    split = replace(_keep(dataset, np.flatnonzero(~held)), eval_images=images, eval_labels=labels, eval_split="val")
    if examples is None:
        return split
    split = take(split, examples)
    few = chosen_images(labels, max(examples // 2, len(dataset.classes)))
    return replace(split, eval_images=images[few], eval_labels=labels[few])


def describe(dataset: Dataset) -> str:
    """The line that announces the data."""
    note = f" ({dataset.note})" if dataset.note else ""
    return (
        f"data: {dataset.name}, fingerprint {dataset.fingerprint}, {len(dataset.train_labels):,} training and "
        f"{len(dataset.eval_labels):,} {dataset.eval_split} images, {len(dataset.classes)} classes{note}"
    )


@dataclass(frozen=True)
class DeviceData:
    """A `Dataset` on a device: images uint8 NHWC as they are, labels int64, mean and std float32 [3]."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    eval_images: torch.Tensor
    eval_labels: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor
    eval_split: str
    num_classes: int
    device: torch.device


def to_device(dataset: Dataset, device: torch.device) -> DeviceData:
    """Move the data to a device, once, without waiting for the copies; on the CPU nothing is copied."""

    def moved(array: np.ndarray) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nobody writes to it
            tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

    return DeviceData(
        train_images=moved(dataset.train_images),
        train_labels=moved(dataset.train_labels),
        eval_images=moved(dataset.eval_images),
        eval_labels=moved(dataset.eval_labels),
        mean=torch.tensor(dataset.mean, dtype=torch.float32, device=device),
        std=torch.tensor(dataset.std, dtype=torch.float32, device=device),
        eval_split=dataset.eval_split,
        num_classes=len(dataset.classes),
        device=device,
    )


def chosen_images(labels: np.ndarray, images: int) -> np.ndarray:
    """Which images to take, in ascending order: as many of each class as possible, and the same at every call. Of the
    same labels a smaller choice is part of a larger one."""
    return np.sort(rank_within_class(labels).argsort(kind="stable")[:images])


def rank_within_class(labels: np.ndarray) -> np.ndarray:
    """A number for each image: its place (0, 1, ...) among the images of its class, in a fixed random order."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    return rank


def _held_out(labels: np.ndarray) -> np.ndarray:
    """Mask of the held-out tenth: of each class the same share, one image at least."""
    per_class = np.maximum(1, np.round(HELD_OUT * np.bincount(labels)).astype(np.int64))
    return rank_within_class(labels) < per_class[labels]


def _keep(dataset: Dataset, index: np.ndarray) -> Dataset:
    return replace(dataset, train_images=dataset.train_images[index], train_labels=dataset.train_labels[index])
