"""Readers of data sets, one for each layout: scikit-learn's digits, parquet, CIFAR's own files, folders of images.

No image is read twice, and nothing is left out in silence.
"""

import hashlib
import json
import os
import pickle
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from model.config import InputError
from model.data import Dataset, rank_within_class
from model.images import SIDE_PX, as_rgb32, cached, decoded, fingerprint_of, listed, note_of

CIFAR_FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-bin")
TEST_SPLITS = ("test", "validation", "valid", "val")
"""what the split to test on may be called; a later name counts where the earlier ones are absent"""
SYSTEM_FILES = ("thumbs.db", "desktop.ini", "__macosx", "@eadir")
"""what systems put beside a user's files, in lower case"""
MANY_COPIES = 0.01  # of the training images

T = TypeVar("T")


def is_cifar100(path: Path) -> bool:
    return all((path / name).is_file() for name in ("train", "test", "meta"))


def visible(folder: Path) -> list[os.DirEntry[str]]:
    """What a user put into the folder, sorted by name: without hidden entries and what systems leave there."""
    with os.scandir(folder) as entries:
        kept = (entry for entry in entries if not entry.name.startswith(".") and entry.name.lower() not in SYSTEM_FILES)
        return sorted(kept, key=lambda entry: entry.name)


def _each(read: Callable[[Path], T], files: Iterable[Path]) -> Iterator[T]:
    """What `read` returns for each file.

    Raises:
        InputError: some can't be read; after the last file, so that all are named at once.
    """
    broken = []
    for file in files:
        try:
            if file.exists() and not file.is_file():  # a pipe would be waited for
                raise InputError(f"{file} is no plain file")
            content = read(file)
        except (InputError, OSError) as error:
            broken.append(str(error))
        else:
            yield content
    if broken:
        raise InputError(listed(broken, "; "))


def noted(dataset: Dataset, *notes: str) -> Dataset:
    return replace(dataset, note="; ".join(filter(None, (dataset.note, *notes))))


def _left_out(names: list[str], what: str) -> str:
    """A note on files that aren't read; '' if there are none."""
    return f"left out, as {what}: {len(names):,} ({listed([repr(name) for name in names])})" if names else ""


# A reader returns the whole Dataset; its InputErrors get their "--data ..." from load().


def digits() -> Dataset:
    os.environ.setdefault("JOBLIB_MULTIPROCESSING", "0")  # else it warns where semaphores can't be made
    from sklearn.datasets import load_digits  # slow to import, and only needed here

    found = load_digits()
    grey = np.round(found.images * (255 / 16)).astype(np.uint8)
    images = np.stack([as_rgb32(Image.fromarray(image), set()) for image in grey])
    labels = found.target.astype(np.int64)
    # a sixth is the test set: the tenth held out twice over would leave too few
    test = rank_within_class(labels) < 30
    parts = [images[~test], labels[~test], images[test], labels[test]]
    note = "8x8 grey images enlarged to 3x32x32"
    return _dataset("digits", parts, tuple("0123456789"), fingerprint_of([images.tobytes(), labels.tobytes()]), note)


def parquet(path: Path) -> Dataset:
    entries = [Path(entry) for entry in visible(path) if entry.name.endswith(".parquet")]
    test = next((split for split in TEST_SPLITS if any(file.name.startswith(split) for file in entries)), "test")
    train_files, test_files = _shards(entries, "train"), _shards(entries, test)
    files = train_files + test_files

    def content(file: Path) -> tuple[bytes, bytes]:
        # the split is hashed too: a file moved from test to train makes other data
        return b"train" if file in train_files else b"test", file.read_bytes()

    fingerprint = fingerprint_of(part for parts in _each(content, files) for part in parts)

    def decode() -> Dataset:
        encoded, labels, names = zip(*_each(_parquet_rows, files), strict=True)
        kinds: set[str] = set()
        rows = (
            (f"{file}, row {row}", image)
            for file, images in zip(files, encoded, strict=True)
            for row, image in enumerate(images)
        )
        images = decoded(rows, sum(map(len, labels)), kinds)
        train, test = np.concatenate(labels[: len(train_files)]), np.concatenate(labels[len(train_files) :])
        arrays = [images[: len(train)], train, images[len(train) :], test]
        classes = _class_names(next(filter(None, names), None), train)
        return _dataset(path.name, arrays, classes, fingerprint, note_of(kinds))

    others = [file.name for file in entries if file not in files]
    return noted(
        cached(fingerprint, decode),
        f"the test set is {test}" if test != "test" else "",
        _left_out(others, "neither train nor test"),
    )


def _shards(files: list[Path], split: str) -> list[Path]:
    """The split's files.

    Raises:
        InputError: there are none, or they aren't one whole set: copies would be both trained and scored on.
    """
    found = [file for file in files if file.name.startswith(split)]
    if not found:
        raise InputError(f"there is no {split}*.parquet: both train and test are needed")
    names = [re.fullmatch(rf"{split}(-(\d+)-of-(\d+)(-[0-9a-f]+)?)?\.parquet", file.name) for file in found]
    shards = sorted((int(name[2] or 0), int(name[3] or 1)) for name in names if name)
    if shards != [(index, len(found)) for index in range(len(found))]:
        raise InputError(
            f"{listed([file.name for file in found])}: expected {split}.parquet alone, or all of one set of "
            f"{split}-00000-of-NNNNN.parquet and no copies beside it"
        )
    return found


def _parquet_rows(file: Path) -> tuple[list[bytes | None], np.ndarray, Any]:
    """Encoded images, int64 labels and what the file's metadata give as class names (None if nothing)."""
    try:
        table = pq.read_table(file, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file} can't be read as parquet: {error}") from error
    kinds = {field.name: field.type for field in table.schema}
    image = "img" if "img" in kinds else "image"
    label = "label" if "label" in kinds else "fine_label"  # CIFAR-100's
    image_type, label_type = (kinds.get(column, pa.null()) for column in (image, label))
    if pa.types.is_dictionary(label_type):
        label_type = label_type.value_type
    in_struct = pa.types.is_struct(image_type) and image_type.get_field_index("bytes") >= 0
    is_bytes = pa.types.is_binary(image_type) or pa.types.is_large_binary(image_type)
    if not (in_struct or is_bytes) or not pa.types.is_integer(label_type):
        found = ", ".join(f"{name}: {kind}" for name, kind in kinds.items())
        raise InputError(
            f"{file} has columns {found}: expected img (encoded images, or a struct with bytes) and label (integer)"
        )
    labels = table[label].cast(label_type)
    if labels.null_count:
        raise InputError(f"{file} has {labels.null_count} rows without a label: each image needs one")
    encoded: list[bytes | None] = []
    for chunk in table[image].chunks:
        encoded += (pc.struct_field(chunk, "bytes") if in_struct else chunk).to_pylist()
    names = None
    with suppress(KeyError, ValueError, TypeError, RecursionError):
        names = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"][label]["names"]
    return encoded, labels.to_numpy().astype(np.int64), names


def batches(path: Path) -> Dataset:
    """CIFAR-10's python and binary versions, and CIFAR-100's python version."""
    path = next((path / name for name in CIFAR_FOLDERS if (path / name).is_dir()), path)
    cifar100 = is_cifar100(path)
    files, meta = ([path / "train", path / "test"], path / "meta") if cifar100 else _cifar10_files(path)
    images, labels, titles = zip(*_each(_batch, files), strict=True)
    arrays = [np.concatenate(images[:-1]), np.concatenate(labels[:-1]), images[-1], labels[-1]]
    for file, title in zip(files, titles, strict=True):
        place = re.fullmatch(r"training batch (\d+) of (\d+)", title)
        if place and not cifar100 and (file.name, int(place[2])) != (f"data_batch_{place[1]}", len(files) - 1):
            raise InputError(
                f"{file} says it is {title}, but there are {len(files) - 1}: expected each of them once, under its name"
            )
    classes = _class_names(_class_names_of_batches(meta), arrays[1])
    sizes = (str(array.shape).encode() for array in arrays)  # so that the splits' border counts
    named = "\n".join(classes).encode(errors="surrogatepass")
    fingerprint = fingerprint_of((*sizes, *(array.tobytes() for array in arrays), named))
    return _dataset("cifar100" if cifar100 else "cifar10", arrays, classes, fingerprint, "")


def _cifar10_files(path: Path) -> tuple[list[Path], Path]:
    """The training batches and, last, the test batch; and the file with the classes' names.

    Raises:
        InputError: one is missing, or another lies there that may be a copy.
    """
    names = [entry.name for entry in visible(path) if entry.name.startswith(("data_batch", "test_batch"))]
    numbers = [int(found[1]) for name in names if (found := re.fullmatch(r"data_batch_(\d{1,2})", name))]
    binary = not numbers and "test_batch" not in names
    end, count = (".bin", 5) if binary else ("", max(numbers, default=1))
    expected = [*sorted(f"data_batch_{number}{end}" for number in range(1, count + 1)), f"test_batch{end}"]
    missing, strange = (
        [name for name in some if name not in others] for some, others in ((expected, names), (names, expected))
    )
    if missing:
        raise InputError(f"{path} has no {listed(missing)}: it is not a whole CIFAR-10")
    if strange:
        raise InputError(
            f"{path} has {listed(strange)} beside {expected[0]} to {expected[-1]}: move copies elsewhere, since they "
            f"would be both trained and scored on"
        )
    return [path / name for name in expected], path / ("batches.meta.txt" if binary else "batches.meta")


def _batch(file: Path) -> tuple[np.ndarray, np.ndarray, str]:
    """Images uint8 [n, 32, 32, 3], labels int64 [n] and the title of one file, pickled or binary."""
    batch = _of_binary(file) if file.suffix == ".bin" else _unpickled(file)
    try:
        labels = np.asarray(batch["labels" if "labels" in batch else "fine_labels"], dtype=np.int64)
        pixels = np.asarray(batch["data"], dtype=np.uint8).reshape(len(labels), 3, SIDE_PX, SIDE_PX)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{file} is not a CIFAR batch: expected data and as many labels ({error})") from error
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), labels, str(batch.get("batch_label", ""))


def _of_binary(file: Path) -> dict[str, Any]:
    """The file's rows of a label and 3,072 values, as the python version has them."""
    content, row = np.fromfile(file, dtype=np.uint8), 1 + 3 * SIDE_PX**2
    if not len(content) or len(content) % row:
        raise InputError(f"{file} is not a CIFAR-10 batch: {len(content):,} bytes are no images of {row:,}")
    rows = content.reshape(-1, row)
    return {"labels": rows[:, 0], "data": rows[:, 1:]}


def _class_names_of_batches(meta: Path) -> Any:
    if not meta.exists():
        return None
    if meta.suffix == ".txt":
        return meta.read_text(encoding="utf-8-sig", errors="surrogateescape").split()
    content = _unpickled(meta)
    return content.get("label_names", content.get("fine_label_names"))


def _unpickled(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as content:
            batch = pickle.load(content, encoding="latin1")
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(f"{file} can't be read as a CIFAR batch: {error}") from error
    if not isinstance(batch, dict):
        raise InputError(f"{file} is not a CIFAR batch: it holds a {type(batch).__name__}, not a dict")
    return batch


def image_folder(path: Path) -> Dataset:
    there = [split for split in TEST_SPLITS if (path / split).is_dir()]
    if not there:
        raise InputError(f"{path} has no folder test/: expected train/CLASS and test/CLASS")
    test, *unread = there
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    classes = [entry.name for entry in visible(path / "train") if entry.is_dir()]
    files: list[Path] = []
    labels: list[np.ndarray] = []
    others: list[str] = []
    for split in ("train", test):
        found: list[Path] = []
        for file in _files(path / split):
            if file.suffix.lower() in endings and file.parent != path / split:
                found.append(file)
            else:
                others.append(str(file.relative_to(path)))
        if not found:
            raise InputError(f"{path / split} has no images: expected {split}/CLASS/*.png (or jpg, tif, webp, ...)")
        names = [file.relative_to(path / split).parts[0] for file in found]
        if strange := sorted(set(names) - set(classes)):
            raise InputError(f"{path / split} has class {strange[0]!r}, which train/ lacks: {', '.join(classes)}")
        if split == "train" and (empty := sorted(set(classes) - set(names))):
            raise InputError(
                f"there is no training image of class {listed([repr(name) for name in empty])}: each class "
                f"needs at least one"
            )
        index = {name: label for label, name in enumerate(classes)}
        files += found
        labels.append(np.array([index[name] for name in names], dtype=np.int64))

    def content(file: Path) -> tuple[bytes, bytes]:
        return os.fsencode(file.relative_to(path)), file.read_bytes()

    # the names of the classes are hashed with the files, of which each class has one
    fingerprint = fingerprint_of(part for parts in _each(content, files) for part in parts)

    def decode() -> Dataset:
        kinds: set[str] = set()
        images = decoded(((str(file), file) for file in files), len(files), kinds)
        train = len(labels[0])
        arrays = [images[:train], labels[0], images[train:], labels[1]]
        return _dataset(path.name, arrays, tuple(classes), fingerprint, note_of(kinds))

    return noted(
        cached(fingerprint, decode),
        f"the test set is {test}/" if test != "test" else "",
        f"{'/ and '.join(unread)}/ not read" if unread else "",
        _left_out(others, "no images in a class folder"),
    )


def _files(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """All visible files below the folder, through links to folders as well, in the order of their paths."""
    real = folder.resolve()
    if real in above:
        raise InputError(f"{folder} is a link to a folder that holds it")
    for entry in visible(folder):
        if entry.is_dir():
            yield from _files(Path(entry), (*above, real))
        else:
            yield Path(entry)


def _dataset(name: str, arrays: list[np.ndarray], classes: tuple[str, ...], fingerprint: str, note: str) -> Dataset:
    """The record of `arrays` (in the order of ARRAYS), with the training images' exact mean and SD.

    Raises:
        InputError: a split is empty, a label is out of range, a class has no training image.
    """
    train_images, train_labels, test_images, test_labels = arrays
    for split, labels in (("train", train_labels), ("test", test_labels)):
        if not len(labels):
            raise InputError(f"the {split} split has no images: expected at least one")
        wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
        if len(wrong):
            raise InputError(
                f"{split} row {wrong[0]} has label {labels[wrong[0]]}: labels must be from 0 to {len(classes) - 1} "
                f"for the {len(classes)} class names"
            )
    absent = np.flatnonzero(np.bincount(train_labels, minlength=len(classes)) == 0)
    if len(absent):
        raise InputError(f"there is no training image of class {classes[absent[0]]!r}: each class needs at least one")
    note = "; ".join(filter(None, (note, _copies(train_images, test_images))))
    histogram = np.stack([np.bincount(train_images[..., channel].ravel(), minlength=256) for channel in range(3)])
    values = np.arange(256)
    mean = (histogram @ values) / histogram.sum(1)
    std = np.sqrt((histogram @ values**2) / histogram.sum(1) - mean**2)
    std = np.maximum(std, 1.0)  # a constant channel must not divide by zero
    return Dataset(
        name=name,
        train_images=train_images,
        train_labels=train_labels,
        eval_images=test_images,
        eval_labels=test_labels,
        eval_split="test",
        mean=(float(mean[0]), float(mean[1]), float(mean[2])),
        std=(float(std[0]), float(std[1]), float(std[2])),
        classes=classes,
        fingerprint=fingerprint,
        note=note,
    )


def _copies(train_images: np.ndarray, test_images: np.ndarray) -> str:
    """A note that many training images are there twice, '' otherwise; the original CIFAR-10 has a few that are."""
    train, test = (
        [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]
        for images in (train_images, test_images)
    )
    twice = len(train) - len(set(train))
    tested = len(set(train) & set(test))
    if max(twice, tested) <= MANY_COPIES * len(train):
        return ""
    return (
        f"{twice:,} training images are exact copies of others and {tested:,} of test images, so that accuracies are "
        f"too high"
    )


def _class_names(found: Any, labels: np.ndarray) -> tuple[str, ...]:
    """The names the source gives, else '0', '1', ... for the training labels; no more classes than images."""
    if isinstance(found, list) and found:
        return tuple(map(str, found))
    return tuple(map(str, range(min(int(labels.max(initial=-1)) + 1, len(labels)))))
