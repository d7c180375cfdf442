"""Data folders as people have them: either all images are read, or the one line names what is in the way."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.hostile.box import STRANGER, Box, Case, Ended, World

TRAIN = ("model.train", "--data", "data", "--set", "width=1", "epochs=1", "batch_size=4")
CLASSES = 2


def image(path: object, seed: int = 0, mode: str = "RGB", **options: object) -> None:
    """Write an image of 32x32 random pixels; no two seeds have the same."""
    channels = {"RGB": (3,), "RGBA": (4,), "LA": (2,), "L": ()}.get(mode, ())
    pixels = np.random.default_rng(seed).integers(256, size=(32, 32, *channels))
    wide = {"I;16": np.uint16, "I": np.int32}
    scaled = (pixels * 257).astype(wide[mode]) if mode in wide else pixels.astype(np.uint8)
    Image.fromarray(scaled).save(path, **options)


def image_folder(folder: Path, classes: int = CLASSES, train: int = 12, test: int = 4, seed: int = 0) -> Path:
    """Images in train/CLASS and test/CLASS, so many in all."""
    for split, count in (("train", train), ("test", test)):
        for number in range(count):
            place = folder / split / f"class{number % classes}"
            place.mkdir(parents=True, exist_ok=True)
            image(place / f"{number // classes}.png", seed=hash((seed, split, number)) % 2**32)
    return folder


def batches(folder: Path, each: int = 8) -> Path:
    """The five batches and the test batch of CIFAR-10, with so many images in each."""
    folder.mkdir(parents=True)
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        (folder / name).write_bytes(pickle.dumps(_batch(number, each)))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcd")}))
    return folder


def _batch(seed: int, each: int) -> dict[str, object]:
    pixels = np.random.default_rng(seed).integers(256, size=(each, 3072), dtype=np.uint8)
    return {"data": pixels, "labels": [n % 4 for n in range(each)]}


def binary_batches(folder: Path, each: int = 8) -> Path:
    """The binary version of CIFAR-10: a byte of label and 3,072 of pixels for each image."""
    folder.mkdir(parents=True)
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        batch = _batch(number, each)
        (folder / f"{name}.bin").write_bytes(
            b"".join(bytes([label]) + bytes(row) for label, row in zip(batch["labels"], batch["data"], strict=True))
        )
    (folder / "batches.meta.txt").write_text("\n".join("abcd") + "\n", encoding="utf-8")
    return folder


def parquet(file: Path, rows: int, seed: int, labels: list[int | None] | None = None, broken: tuple = ()) -> None:
    """A file in the layout of Hugging Face, with so many images."""
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(".png")
    encoded = []
    for row in range(rows):
        image(scratch, seed=seed + row)
        encoded.append({"bytes": b"broken" if row in broken else scratch.read_bytes(), "path": None})
    scratch.unlink()
    table = {"img": encoded, "label": pa.array(labels or [row % 4 for row in range(rows)], pa.int64())}
    pq.write_table(pa.table(table), file)


def parquets(folder: Path, train: str = "train-00000-of-00001", test: str = "test-00000-of-00001") -> Path:
    parquet(folder / f"{train}.parquet", 12, seed=0)
    parquet(folder / f"{test}.parquet", 4, seed=100)
    return folder


def counted(ended: Ended, train: int, test: int) -> Ended:
    """Check that all of these images were read, if it wasn't refused."""
    found = re.search(r"([\d,]+) training and ([\d,]+) test images", ended.out)
    if ended.code == 0:
        if not found:
            ended.fault("it doesn't say how many images it read")
        elif (counts := (int(found[1].replace(",", "")), int(found[2].replace(",", "")))) != (train, test):
            ended.fault(f"it read {counts} training and test images, there are {(train, test)}")
    return ended


def read(
    name: str,
    make: Callable[[Path], object],
    change: Callable[[Path], object] = lambda folder: None,
    *,
    counts: tuple[int, int] | None = None,
    names: tuple[str, ...] = (),
    says: tuple[str, ...] = (),
    command: tuple[str, ...] = TRAIN,
    world: World | None = None,
) -> Case:
    """A training on a data folder.

    Args:
        counts: training and test images that are to be read; None: it must be refused.
        names: what a refusal has to name; where there are counts and none of these, it must not be refused.
        says: what has to be said where the images are read.
    """

    def act(box: Box) -> Ended:
        folder = box.folder / "data"
        make(folder)
        change(folder)
        ended = box.run(*command, world=world)
        codes = ((0,) if counts else ()) + ((2,) if names or not counts else ())
        ended.ended(*codes, says=says if ended.code == 0 else [re.escape(name) for name in names])
        return counted(ended, *counts) if counts else ended

    return Case(f"{name}", act)


def copied(source: str, target: str) -> Callable[[Path], object]:
    return lambda folder: (folder / target).write_bytes((folder / source).read_bytes())


def written(*files: tuple[str, bytes]) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        for name, content in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    return change


def images(*names: str, mode: str = "RGB") -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        for number, name in enumerate(names):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            image(folder / name, seed=1000 + number, mode=mode)

    return change


def two_shardings(folder: Path) -> None:
    parquets(folder)
    parquet(folder / "train-00000-of-00002.parquet", 6, seed=0)
    parquet(folder / "train-00001-of-00002.parquet", 6, seed=6)


def in_a_subfolder(name: str) -> Callable[[Path], object]:
    return lambda folder: parquets(folder / name)


def no_rights(folder: Path) -> None:
    (folder / "train/class0/1.png").chmod(0)


def empty_class(box: Box) -> Ended:
    """Read twice: the second time from the cache, with the same outcome."""
    image_folder(box.folder / "data")
    (box.folder / "data/train/empty").mkdir()
    first, second = box.run(*TRAIN), box.run(*TRAIN)
    if (first.code, first.err) != (second.code, second.err):
        second.fault(f"at first it ended with exit code {first.code}: {first.err}")
    return counted(second.ended(0, 2, says=["empty"] if second.code == 2 else []), 12, 4)


def emptied_class(box: Box) -> Ended:
    """A class becomes empty after the data were cached."""
    image_folder(box.folder / "data", classes=3)
    box.run(*TRAIN).ended(0)
    for file in (box.folder / "data/train/class2").iterdir():
        file.unlink()
    return box.run(*TRAIN).ended(2, says=["class2"])


def called_cifar10(box: Box) -> Ended:
    """`--data cifar10` is a download; a folder of that name stands beside it."""
    image_folder(box.folder / "cifar10")
    command = ["model.train", "--data", "cifar10", *TRAIN[3:]]
    ended = box.run(*command, env={"https_proxy": "http://127.0.0.1:9"}).ended(0, 2, says=["cifar10"])
    if ended.code == 2 and "./cifar10" not in ended.err:
        ended.fault("it doesn't say how to read the folder beside it (--data ./cifar10)")
    return ended


def cache_unwritable(box: Box) -> Ended:
    image_folder(box.folder / "data")
    (box.home / ".cache").write_text("a file", encoding="utf-8")
    return counted(box.run(*TRAIN).ended(0), 12, 4)


def data_auto(box: Box) -> Ended:
    """Without --data, what lies under data/ is CIFAR-10 or said not to be taken."""
    image_folder(box.folder / "data")
    return box.run("model.train", "--set", *TRAIN[4:], "--train-examples", "16").ended(0, 2, says=["data"])


FOLDER_FILE = "train/class0/0.png"
CASES = [
    read("a folder of images", image_folder, counts=(12, 4)),
    read("batches with a copy, 'data_batch_1 (1)'", batches, copied("data_batch_1", "data_batch_1 (1)"),
         counts=(40, 8), names=("data_batch_1 (1)",)),
    read("batches with a copy, data_batch_1.bak", batches, copied("data_batch_1", "data_batch_1.bak"),
         counts=(40, 8), names=("data_batch_1.bak",)),
    read("a batch is missing", batches, lambda folder: (folder / "data_batch_3").unlink(), names=("data_batch_3",)),
    read("the binary version", binary_batches, counts=(40, 8), names=("binary",)),
    read("two batches are broken", batches, written(("data_batch_2", b"x"), ("test_batch", b"y")),
         names=("data_batch_2", "test_batch")),
    read("two shardings", two_shardings, names=("train-00000-of-00002.parquet",)),
    read("a shard is missing", lambda folder: parquets(folder, train="train-00000-of-00002"),
         names=("train-00000-of-00002",)),
    read("parquet with a copy", parquets, copied("train-00000-of-00001.parquet", "train-00000-of-00001 (1).parquet"),
         counts=(12, 4), names=("train-00000-of-00001 (1).parquet",)),
    read("the hub's layout, plain_text/", in_a_subfolder("plain_text"), counts=(12, 4)),
    read("the hub's layout, data/", in_a_subfolder("data"), counts=(12, 4)),
    read("parquet without some labels", lambda folder: parquet(parquets(folder) / "train-00000-of-00001.parquet", 4, 0,
         labels=[0, None, 1, 2]), names=("label",)),
    read("parquet with two broken images", lambda folder: parquet(parquets(folder) / "train-00000-of-00001.parquet", 4,
         0, broken=(1, 3)), names=("1", "3")),
    read("parquet of zero bytes", parquets, written(("test-00000-of-00001.parquet", b"")), names=("test-00000",)),
    read(".tif files", image_folder, images("train/class0/a.tif", "train/class1/b.TIFF"),
         counts=(14, 4), names=(".tif",)),
    read("endings in capitals, and .jpeg", image_folder, images("train/class0/a.PNG", "test/class1/b.JPeG"),
         counts=(13, 5)),
    read("images in sub-folders of classes", image_folder, images("train/class0/more/a.png", "train/class1/b/c/d.png"),
         counts=(14, 4), names=("more",)),
    read("hidden files of a Mac", image_folder, written(("train/class0/._0.png", b"\0\5\x16\7"),
         ("train/.DS_Store", b"x")), counts=(12, 4)),
    read("a hidden folder of Jupyter", image_folder, images("train/.ipynb_checkpoints/a.png"), counts=(12, 4)),
    read("a text file and Thumbs.db beside images", image_folder, written(("train/class0/README.txt", b"x"),
         ("train/class1/Thumbs.db", b"x")), counts=(12, 4), names=("README.txt", "Thumbs.db")),
    Case("an empty class, read twice", empty_class, cost=2),
    Case("a class that becomes empty", emptied_class, cost=2),
    read("grey images of 16 bits", image_folder, images(FOLDER_FILE, mode="I;16"), counts=(12, 4)),
    read("grey images of 32 bits", image_folder, images("train/class0/a.tif", mode="I"),
         counts=(13, 4), names=("a.tif",)),
    read("images with an alpha channel", image_folder, images(FOLDER_FILE, mode="RGBA"), counts=(12, 4),
         names=("0.png",), says=("alpha|transparen",)),
    read("two images are broken", image_folder, written(("train/class0/1.png", b"x"), ("test/class1/0.png", b"")),
         names=("1.png", "0.png")),
    read("a class of the test set that training lacks", image_folder, images("test/strange/a.png"), names=("strange",)),
    read("no test set", lambda folder: image_folder(folder, test=0), names=("test",)),
    read("a file that can't be read", image_folder, no_rights, names=("1.png",), world=World(user=STRANGER)),
    read("a link to its own folder", image_folder, lambda folder: (folder / "train/class0/loop").symlink_to(".."),
         counts=(12, 4), names=("loop",)),
    read("a link to nowhere", image_folder, lambda folder: (folder / "train/class0/a.png").symlink_to("gone"),
         names=("a.png",)),
    read("a file instead of a folder", lambda folder: folder.write_bytes(b"x"), names=("data",)),
    read("an empty folder", lambda folder: folder.mkdir(), names=("data",)),
    read("an archive that is not unpacked", lambda folder: written(("cifar-10-python.tar.gz", b"x"))(folder),
         names=("data",)),
    read("fewer images than a batch", lambda folder: image_folder(folder, train=2), names=("batch_size",)),
    Case("--data cifar10 beside a folder of that name", called_cifar10),
    Case("a cache that can't be written", cache_unwritable),
    Case("images under data/ without --data", data_auto),
]  # fmt: skip
