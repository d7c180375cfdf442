"""Where data come from: scikit-learn's digits, CIFAR-10's own files, parquet, folders of images."""

import json
import pickle
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from model.config import InputError, nearest
from model.data import Dataset, rank_within_class
from model.images import SIDE_PX, as_rgb32, cached, decoded, fingerprint_of, size_note

IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


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
        raise InputError(
            f"--data {given}: there is no such folder{nearest(given, ('digits', 'cifar10', 'auto'))}; "
            f"allowed are digits, cifar10, auto or a path"
        )
    read = _layout(path) if path.is_dir() else None
    if read is None:
        raise InputError(
            f"--data {given} is no data set: expected train-*.parquet and test-*.parquet, cifar-10-batches-py, "
            f"or folders train/CLASS and test/CLASS with images"
        )
    try:
        return read(path)
    except (InputError, OSError) as error:  # a library's message or a file's name may hold line breaks
        raise InputError(" ".join(f"--data {given}: {error}".split())) from error


def resolve(source: str) -> str:
    """The source that 'auto' means here, CIFAR-10 under data/ or digits; a path made absolute; else as it is."""
    if source == "auto":
        here = [Path("data"), Path("data/cifar10")]
        cifar10 = (path for path in here if path.is_dir() and _layout(path) in (_parquet, _batches))
        source = str(next(cifar10, "digits"))
    return source if source in ("digits", "cifar10") else str(Path(source).absolute())


# A reader returns the whole Dataset; its InputErrors get their "--data ..." from load().


def _digits() -> Dataset:
    from sklearn.datasets import load_digits  # slow to import, and only needed here

    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    images = np.stack([as_rgb32(Image.fromarray(image)) for image in grey])
    labels = digits.target.astype(np.int64)
    # a sixth is the test set: the tenth held out twice over would leave too few
    test = rank_within_class(labels) < 30
    parts = [images[~test], labels[~test], images[test], labels[test]]
    note = "8x8 grey images enlarged to 3x32x32"
    return _dataset("digits", parts, tuple("0123456789"), fingerprint_of([images.tobytes(), labels.tobytes()]), note)


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
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(
                f"--data cifar10: the download failed ({reason}); put cifar-10-batches-py into data/ by hand, or give "
                f"--data PATH"
            ) from error
    return path


def _parquet(path: Path) -> Dataset:
    files = {split: sorted(path.glob(f"{split}*.parquet")) for split in ("train", "test")}
    if not files["test"]:
        raise InputError(f"{path} has train*.parquet but no test*.parquet: both are needed")
    # the split is hashed too: a file moved from test to train makes other data
    contents = (part for split in files for file in files[split] for part in (split.encode(), file.read_bytes()))
    fingerprint = fingerprint_of(contents)

    def decode() -> Dataset:
        arrays: list[np.ndarray] = []
        sizes: set[str] = set()
        names: Any = None
        for split in files:
            encoded, labels, found = _parquet_rows(files[split])
            names = names or found
            rows = ((f"{path}, {split} row {row}", content) for row, content in enumerate(encoded))
            arrays += [decoded(rows, len(encoded), sizes), labels]
        return _dataset(path.name, arrays, _class_names(names, arrays[1]), fingerprint, size_note(sizes))

    return replace(cached(fingerprint, decode), name=path.name)


def _parquet_rows(files: list[Path]) -> tuple[list[bytes | None], np.ndarray, Any]:
    """Encoded images, int64 labels and what the first file's metadata give as class names (None if nothing)."""
    encoded: list[bytes | None] = []
    labels: list[np.ndarray] = []
    names = None
    for file in files:
        try:
            table = pq.read_table(file)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{file} can't be read as parquet: {error}") from error
        columns = {field.name: field.type for field in table.schema}
        column = "img" if "img" in columns else "image"
        images = columns.get(column, pa.null())
        has_bytes = pa.types.is_struct(images) and images.get_field_index("bytes") >= 0
        if not has_bytes or not pa.types.is_integer(columns.get("label", pa.null())):
            found = ", ".join(f"{name}: {kind}" for name, kind in columns.items())
            raise InputError(f"{file} has columns {found}: expected img (a struct with bytes) and label (integer)")
        if table["label"].null_count:
            raise InputError(f"{file} has {table['label'].null_count} rows without a label: each image needs one")
        for chunk in table[column].chunks:
            encoded += pc.struct_field(chunk, "bytes").to_pylist()
        labels.append(table["label"].to_numpy().astype(np.int64))
        with suppress(KeyError, ValueError, TypeError):
            names = names or json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    return encoded, np.concatenate(labels), names


def _batches(path: Path) -> Dataset:
    """torchvision's and the original's cifar-10-batches-py."""
    if (path / "cifar-10-batches-py").is_dir():
        path = path / "cifar-10-batches-py"
    arrays: list[np.ndarray] = []
    for pattern in ("data_batch_*", "test_batch"):
        files = sorted(path.glob(pattern))
        if not files:
            raise InputError(f"{path} has no {pattern}: it is not a whole cifar-10-batches-py")
        images, labels = zip(*(_batch(file) for file in files), strict=True)
        arrays += [np.concatenate(images), np.concatenate(labels)]
    meta = path / "batches.meta"
    classes = _class_names(_unpickled(meta).get("label_names") if meta.exists() else None, arrays[1])
    sizes = (str(array.shape).encode() for array in arrays)  # so that the splits' border counts
    fingerprint = fingerprint_of((*sizes, *(array.tobytes() for array in arrays), "\n".join(classes).encode()))
    return _dataset("cifar10", arrays, classes, fingerprint, "")


def _batch(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, 32, 32, 3] and labels int64 [n] of one pickled file."""
    batch = _unpickled(file)
    try:
        labels = np.asarray(batch["labels"], dtype=np.int64)
        pixels = np.asarray(batch["data"], dtype=np.uint8).reshape(len(labels), 3, SIDE_PX, SIDE_PX)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{file} is not a CIFAR-10 batch: expected data and as many labels ({error})") from error
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), labels


def _unpickled(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as content:
            batch = pickle.load(content, encoding="latin1")
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(f"{file} can't be read as a CIFAR-10 batch: {error}") from error
    if not isinstance(batch, dict):
        raise InputError(f"{file} is not a CIFAR-10 batch: it holds a {type(batch).__name__}, not a dict")
    return batch


def _image_folder(path: Path) -> Dataset:
    classes = sorted(folder.name for folder in (path / "train").iterdir() if folder.is_dir())
    files: dict[str, list[Path]] = {}
    for split in ("train", "test"):
        if not (path / split).is_dir():
            raise InputError(f"{path} has no folder {split}/: expected train/CLASS and test/CLASS")
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
    fingerprint = fingerprint_of(content)

    def decode() -> Dataset:
        arrays: list[np.ndarray] = []
        sizes: set[str] = set()
        for group in files.values():
            encoded = ((str(file), file.read_bytes()) for file in group)
            arrays.append(decoded(encoded, len(group), sizes))
            arrays.append(np.array([classes.index(file.parent.name) for file in group], dtype=np.int64))
        return _dataset(path.name, arrays, tuple(classes), fingerprint, size_note(sizes))

    return replace(cached(fingerprint, decode), name=path.name)


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


def _class_names(found: Any, labels: np.ndarray) -> tuple[str, ...]:
    """The names the source gives, else '0', '1', ... for the training labels; no more classes than images."""
    if isinstance(found, list) and found:
        return tuple(map(str, found))
    return tuple(map(str, range(min(int(labels.max(initial=-1)) + 1, len(labels)))))
