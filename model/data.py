"""Data sets as one record of uint8 arrays: where they come from, the search's split, the copy on a device."""

import hashlib
import io
import json
import os
import pickle
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track

from model.config import InputError

SIDE_PX = 32
FORMAT = "1"  # of the cached arrays; part of every fingerprint
SPLIT_SEED = 20_181_126
HELD_OUT = 0.1
IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


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
    mean: tuple[float, ...]
    """per channel over all training images of the source, in 0..255 units"""
    std: tuple[float, ...]
    classes: tuple[str, ...]
    fingerprint: str
    """12 hex digits of the content's sha256; the same wherever the data lie"""
    note: str
    """what was done to bring the images to 3x32x32; empty if nothing"""


def load(source: str = "auto") -> Dataset:
    """All training images and the official test set.

    Args:
        source: 'digits' (scikit-learn's, needs no files), 'cifar10' (downloads into data/ if it isn't there), the path
            of a folder (parquet files in the Hugging Face layout, cifar-10-batches-py, or train/CLASS/* and
            test/CLASS/*), or 'auto': CIFAR-10 if it lies under data/, else digits.

    Raises:
        InputError: there are no data there, or they can't be read.
    """
    if source == "auto" and resolve(source) == "digits":
        digits = _digits()
        hint = "the default where data/ has no CIFAR-10: --data cifar10 downloads it, --data PATH reads a folder"
        return replace(digits, note=f"{digits.note}; {hint}")
    given, source = source, resolve(source)
    if source == "digits":
        return _digits()
    path = _downloaded() if source == "cifar10" else Path(source)
    if not path.exists():
        raise InputError(f"--data {given}: there is no such folder; allowed are digits, cifar10, auto or a path")
    read = _layout(path) if path.is_dir() else None
    if read is None:
        raise InputError(
            f"--data {given} is no data set: expected train-*.parquet and test-*.parquet, cifar-10-batches-py, "
            f"or folders train/CLASS and test/CLASS with images"
        )
    return read(path)


def resolve(source: str) -> str:
    """The source that 'auto' means here, CIFAR-10 under data/ or digits; a path made absolute; else as it is."""
    if source == "auto":
        here = [Path("data"), Path("data/cifar10")]
        source = next((str(path) for path in here if path.is_dir() and _layout(path)), "digits")
    return source if source in ("digits", "cifar10") else str(Path(source).absolute())


def take(dataset: Dataset, examples: int) -> Dataset:
    """The same data with only `examples` training images: a fixed choice, as many of each class as possible.

    Raises:
        InputError: there are fewer images, or not one for each class.
    """
    there, classes = len(dataset.train_labels), len(dataset.classes)
    if not classes <= examples <= there:
        raise InputError(
            f"--train-examples {examples}: {dataset.name} has {there} training images in {classes} classes; "
            f"give a number from {classes} to {there}"
        )
    return _keep(dataset, _rank_within_class(dataset.train_labels).argsort(kind="stable")[:examples])


def hold_out(dataset: Dataset) -> Dataset:
    """The search's split: a fixed tenth of each class of the training images is scored on, the rest trained on.

    50,000 training images become 45,000 and 5,000 val images. The test set is left out.
    """
    held = _held_out(dataset.train_labels)
    rest = _keep(dataset, np.flatnonzero(~held))
    images, labels = dataset.train_images[held], dataset.train_labels[held]
    return replace(rest, eval_images=images, eval_labels=labels, eval_split="val")


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
    """Move the data to a device, once; on the CPU nothing is copied."""

    def moved(array: np.ndarray) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nobody writes to it
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

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


# --- splits


def _rank_within_class(labels: np.ndarray) -> np.ndarray:
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
    return _rank_within_class(labels) < per_class[labels]


def _keep(dataset: Dataset, index: np.ndarray) -> Dataset:
    index = np.sort(index)
    return replace(dataset, train_images=dataset.train_images[index], train_labels=dataset.train_labels[index])


# --- sources. A reader returns (images, labels) of a split, or raises InputError.


def _digits() -> Dataset:
    from sklearn.datasets import load_digits  # slow to import, and only needed here

    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    images = np.stack([_as_rgb32(Image.fromarray(image)) for image in grey])
    labels = digits.target.astype(np.int64)
    # a sixth is the test set: the tenth held out twice over would leave too few
    test = _rank_within_class(labels) < 30
    parts = (images[~test], labels[~test], images[test], labels[test])
    note = "8x8 grey images, enlarged to 3x32x32"
    return _dataset("digits", parts, tuple("0123456789"), _hash([images.tobytes(), labels.tobytes()]), note)


def _layout(path: Path) -> Callable[[Path], Dataset] | None:
    """The reader for what lies in this folder."""
    if any(path.glob("train*.parquet")):
        return _parquet
    if any(path.glob("data_batch_*")) or (path / "cifar-10-batches-py").is_dir():
        return _batches
    if (path / "train").is_dir():
        return _image_folder
    return None


def _downloaded() -> Path:
    """CIFAR-10 under data/, downloaded by torchvision if it isn't there."""
    path = Path("data/cifar-10-batches-py")
    if not path.is_dir():
        from torchvision.datasets import CIFAR10

        try:
            CIFAR10("data", download=True)
        except Exception as error:
            raise InputError(
                f"--data cifar10: the download failed ({type(error).__name__}: {error}); put cifar-10-batches-py into "
                f"data/ by hand, or give --data PATH"
            ) from error
    return path


def _parquet(path: Path) -> Dataset:
    files = {split: sorted(path.glob(f"{split}*.parquet")) for split in ("train", "test")}
    if not files["test"]:
        raise InputError(f"--data {path} has train*.parquet but no test*.parquet: both are needed")
    tables = {split: _parquet_table(files[split]) for split in files}
    metadata = tables["train"].schema.metadata or {}
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, ValueError, TypeError):
        names = [str(label) for label in range(max(tables["train"]["label"].to_pylist()) + 1)]
    fingerprint = _hash(file.read_bytes() for split in files for file in files[split])

    def decode() -> tuple[list[np.ndarray], str]:
        arrays: list[np.ndarray] = []
        sizes: set[str] = set()
        for split, table in tables.items():
            column = "img" if "img" in table.column_names else "image"
            encoded = pa.compute.struct_field(table[column].combine_chunks(), "bytes").to_pylist()
            names_of_rows = (f"{path}, {split} row {row}" for row in range(len(encoded)))
            arrays.append(_decoded(zip(names_of_rows, encoded, strict=True), len(encoded), sizes))
            arrays.append(_checked_labels(table["label"].to_numpy(), len(names), f"{path}, {split}"))
        return arrays, _size_note(sizes)

    arrays, note = _cached(fingerprint, decode)
    return _dataset(path.name, arrays, tuple(names), fingerprint, note)


def _parquet_table(files: list[Path]) -> pa.Table:
    tables = []
    for file in files:
        try:
            table = pq.read_table(file)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{file} can't be read as parquet: {error}") from error
        columns = {field.name: field.type for field in table.schema}
        images = columns.get("img", columns.get("image"))
        has_bytes = images is not None and pa.types.is_struct(images) and images.get_field_index("bytes") >= 0
        if not has_bytes or not pa.types.is_integer(columns.get("label", pa.null())):
            found = ", ".join(f"{name}: {kind}" for name, kind in columns.items())
            raise InputError(f"{file} has columns {found}: expected img (a struct with bytes) and label (integer)")
        tables.append(table)
    table = pa.concat_tables(tables)
    if not len(table):
        raise InputError(f"{files[0]} has no rows: expected at least one image per class")
    return table


def _batches(path: Path) -> Dataset:
    """torchvision's and the original's cifar-10-batches-py."""
    if (path / "cifar-10-batches-py").is_dir():
        path = path / "cifar-10-batches-py"
    arrays: list[np.ndarray] = []
    for pattern in ("data_batch_*", "test_batch"):
        files = sorted(path.glob(pattern))
        if not files:
            raise InputError(f"--data {path} has no {pattern}: it is not a whole cifar-10-batches-py")
        batches = [_unpickled(file) for file in files]
        try:
            pixels = np.concatenate([np.asarray(batch["data"], dtype=np.uint8) for batch in batches])
            labels = np.concatenate([np.asarray(batch["labels"], dtype=np.int64) for batch in batches])
            images = pixels.reshape(-1, 3, SIDE_PX, SIDE_PX).transpose(0, 2, 3, 1)
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(f"{files[0]} is not a CIFAR-10 batch: expected data and labels ({error})") from error
        arrays += [np.ascontiguousarray(images), labels]
    names = _unpickled(path / "batches.meta").get("label_names") if (path / "batches.meta").exists() else None
    names = names or [str(label) for label in range(arrays[1].max() + 1)]
    for labels in arrays[1::2]:
        _checked_labels(labels, len(names), str(path))
    return _dataset("cifar10", arrays, tuple(names), _hash(array.tobytes() for array in arrays), "")


def _unpickled(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as content:
            batch = pickle.load(content, encoding="latin1")
    except (OSError, EOFError, ValueError, pickle.UnpicklingError, AttributeError, ImportError, IndexError) as error:
        raise InputError(f"{file} can't be read as a CIFAR-10 batch: {error}") from error
    if not isinstance(batch, dict):
        raise InputError(f"{file} is not a CIFAR-10 batch: it holds a {type(batch).__name__}, not a dict")
    return batch


def _image_folder(path: Path) -> Dataset:
    classes = sorted(folder.name for folder in (path / "train").iterdir() if folder.is_dir())
    files: dict[str, list[Path]] = {}
    for split in ("train", "test"):
        if not (path / split).is_dir():
            raise InputError(f"--data {path} has no folder {split}/: expected train/CLASS and test/CLASS")
        found = [file for file in (path / split).glob("*/*") if file.suffix.lower() in IMAGE_ENDINGS]
        files[split] = sorted(found)
        strange = {file.parent.name for file in found} - set(classes)
        if strange:
            raise InputError(
                f"{path / split} has class {sorted(strange)[0]!r}, which train/ lacks: {', '.join(classes)}"
            )
        if not found:
            raise InputError(f"{path / split} has no images: expected {split}/CLASS/*.png (or jpg, jpeg, bmp, webp)")
    every = files["train"] + files["test"]
    content = (part for file in every for part in (str(file.relative_to(path)).encode(), file.read_bytes()))
    fingerprint = _hash(content)

    def decode() -> tuple[list[np.ndarray], str]:
        arrays: list[np.ndarray] = []
        sizes: set[str] = set()
        for group in files.values():
            encoded = ((str(file), file.read_bytes()) for file in group)
            arrays.append(_decoded(encoded, len(group), sizes))
            arrays.append(np.array([classes.index(file.parent.name) for file in group], dtype=np.int64))
        return arrays, _size_note(sizes)

    arrays, note = _cached(fingerprint, decode)
    return _dataset(path.name, arrays, tuple(classes), fingerprint, note)


# --- parts of the readers


def _dataset(name: str, arrays: Iterable[np.ndarray], classes: tuple[str, ...], fingerprint: str, note: str) -> Dataset:
    train_images, train_labels, test_images, test_labels = arrays
    present = np.unique(train_labels)
    if len(present) < len(classes):
        absent = next(name for label, name in enumerate(classes) if label not in present)
        raise InputError(f"--data {name} has no training image of class {absent!r}: each class needs at least one")
    histogram = np.stack([np.bincount(train_images[..., channel].ravel(), minlength=256) for channel in range(3)])
    values = np.arange(256)
    mean = (histogram @ values) / histogram.sum(1)
    std = np.sqrt((histogram @ values**2) / histogram.sum(1) - mean**2)
    return Dataset(
        name=name,
        train_images=train_images,
        train_labels=train_labels,
        eval_images=test_images,
        eval_labels=test_labels,
        eval_split="test",
        mean=tuple(mean.tolist()),
        std=tuple(np.maximum(std, 1.0).tolist()),  # a constant channel must not divide by zero
        classes=classes,
        fingerprint=fingerprint,
        note=note,
    )


def _decoded(encoded: Iterable[tuple[str, bytes]], count: int, sizes: set[str]) -> np.ndarray:
    """uint8 [count, 32, 32, 3] of the encoded images; adds what they were to `sizes`."""
    images = np.empty((count, SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    progress = track(encoded, "decoding", total=count, console=Console(stderr=True), transient=True)
    for row, (name, content) in enumerate(progress):
        try:
            image = Image.open(io.BytesIO(content))
            images[row] = _as_rgb32(image)
        except (OSError, ValueError, TypeError, SyntaxError) as error:
            raise InputError(f"{name} can't be decoded as an image: {error}") from error
        if image.size != (SIDE_PX, SIDE_PX):
            sizes.add(f"{image.width}x{image.height}")
        if image.mode in ("1", "L", "LA", "I", "I;16", "F"):
            sizes.add("grey")
    return images


def _as_rgb32(image: Image.Image) -> np.ndarray:
    rgb = image.convert("RGB")
    if rgb.size != (SIDE_PX, SIDE_PX):
        rgb = rgb.resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR)
    return np.asarray(rgb)


def _size_note(sizes: set[str]) -> str:
    resized = sorted(sizes - {"grey"})
    notes = ["grey images made RGB"] if "grey" in sizes else []
    if resized:
        notes.append(f"images of {resized[0]}{' and other sizes' if len(resized) > 1 else ''} resized to 32x32")
    return ", ".join(notes)


def _checked_labels(labels: np.ndarray, classes: int, where: str) -> np.ndarray:
    labels = labels.astype(np.int64)
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise InputError(
            f"{where} row {wrong[0]} has label {labels[wrong[0]]}: labels must be from 0 to {classes - 1} "
            f"for the {classes} class names"
        )
    return labels


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256(FORMAT.encode())
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:12]


def _cached(fingerprint: str, decode: Callable[[], tuple[list[np.ndarray], str]]) -> tuple[list[np.ndarray], str]:
    """The decoded arrays and the note, memory-mapped from the machine's cache; decoded and put there if absent."""
    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "resnet9-tune"
    folder = root / fingerprint
    try:
        arrays = [np.load(folder / f"{index}.npy", mmap_mode="r") for index in range(4)]
        return arrays, (folder / "note.txt").read_text()
    except (OSError, ValueError, EOFError):
        pass  # absent or damaged
    arrays, note = decode()
    try:
        root.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=root))
        for index, array in enumerate(arrays):
            np.save(temporary / f"{index}.npy", array)
        (temporary / "note.txt").write_text(note)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)  # whole or not at all, also when two processes decode at once
    except OSError:
        pass  # no cache then
    return arrays, note
