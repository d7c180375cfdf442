"""The data sources on small made-up data, and on the real CIFAR-10 where it is at hand."""

import hashlib
import io
import json
import os
import pickle
import pwd
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import REAL_DATA
from PIL import Image
from torchvision.datasets import ImageFolder

import model.readers
from model.command import printable
from model.config import InputError
from model.data import chosen_images, describe, hold_out, take, to_device
from model.sources import load, resolve

CLASSES = ("cat", "dog", "owl")
COUNTS = {"train": 30, "test": 9}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pixels(split: str, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    rng = np.random.default_rng(len(split))
    return rng.integers(256, size=(COUNTS[split], size[1], size[0], 3), dtype=np.uint8)


def labels(split: str) -> np.ndarray:
    return np.arange(COUNTS[split], dtype=np.int64) % 3


def png(image: np.ndarray, mode: str = "RGB") -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).convert(mode).save(content, "png")
    return content.getvalue()


def write_parquet(
    folder: Path, *, size: tuple[int, int] = (32, 32), mode: str = "RGB", change: Callable[[dict], None] | None = None
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split in COUNTS:
        images = [{"bytes": png(image, mode), "path": None} for image in pixels(split, size)]
        columns: dict[str, Any] = {"img": images, "label": labels(split).tolist()}
        if change and split == "train":
            change(columns)
        table = pa.table({name: pa.array(values) for name, values in columns.items()})
        names = json.dumps({"info": {"features": {"label": {"names": CLASSES}}}})
        pq.write_table(
            table.replace_schema_metadata({"huggingface": names}), folder / f"{split}-00000-of-00001.parquet"
        )
    return folder


def write_batches(folder: Path) -> Path:
    folder.mkdir(parents=True)
    flat = {split: pixels(split).transpose(0, 3, 1, 2).reshape(COUNTS[split], -1) for split in COUNTS}
    for index, part in enumerate(np.split(np.arange(30), 2), start=1):
        batch = {"data": flat["train"][part], "labels": labels("train")[part].tolist()}
        (folder / f"data_batch_{index}").write_bytes(pickle.dumps(batch))
    (folder / "test_batch").write_bytes(pickle.dumps({"data": flat["test"], "labels": labels("test").tolist()}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CLASSES)}))
    return folder


def write_image_folder(folder: Path, *, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> Path:
    for split in COUNTS:
        for index, (image, label) in enumerate(zip(pixels(split, size), labels(split), strict=True)):
            file = folder / split / CLASSES[label] / f"{index:03d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(image, mode))
        (folder / split / "cat" / "notes.txt").write_text("not an image")
    return folder


WRITERS = [write_parquet, write_batches, write_image_folder]


@pytest.mark.parametrize("write", WRITERS)
def test_every_layout_gives_the_pixels_and_labels_that_were_written(write: Callable, tmp_path: Path) -> None:
    dataset = load(str(write(tmp_path / "set")))
    assert dataset.classes == CLASSES and dataset.eval_split == "test"
    left_out = "left out, as no images in a class folder: 2 ('train/cat/notes.txt', 'test/cat/notes.txt')"
    assert dataset.note == (left_out if write is write_image_folder else "")
    for split, images, found in [
        ("train", dataset.train_images, dataset.train_labels),
        ("test", dataset.eval_images, dataset.eval_labels),
    ]:
        order = np.arange(COUNTS[split])
        if write is write_image_folder:  # sorted by class, then name
            order = np.argsort(labels(split), kind="stable")
        assert np.array_equal(images, pixels(split)[order]) and images.dtype == np.uint8
        assert np.array_equal(found, labels(split)[order]) and found.dtype == np.int64
    flat = pixels("train").reshape(-1, 3).astype(float)
    assert dataset.mean == pytest.approx(flat.mean(0)) and dataset.std == pytest.approx(flat.std(0))


@pytest.mark.parametrize("write", WRITERS)
def test_fingerprint_is_of_the_content_not_the_place(write: Callable, tmp_path: Path) -> None:
    here = write(tmp_path / "here")
    first = load(str(here)).fingerprint
    moved = shutil.move(here, tmp_path / "there")
    assert load(str(moved)).fingerprint == first
    if write is write_parquet:
        write_parquet(Path(moved), change=_set("label", 2, row=0))
    elif write is write_batches:
        shutil.copy(Path(moved) / "data_batch_1", Path(moved) / "data_batch_2")
    else:
        (Path(moved) / "train" / "cat" / "000.png").unlink()
    assert load(str(moved)).fingerprint != first


@pytest.mark.parametrize("write", [write_parquet, write_image_folder])
@pytest.mark.parametrize(
    ("size", "mode", "facts"),
    [
        ((60, 40), "RGB", ["60x40", "resized to 32x32"]),
        ((32, 32), "L", ["grey images made RGB"]),
        ((8, 8), "L", ["grey", "8x8"]),
    ],
)
def test_other_images_are_brought_to_3x32x32_and_the_line_says_so(
    write: Callable, tmp_path: Path, size: tuple[int, int], mode: str, facts: list[str]
) -> None:
    dataset = load(str(write(tmp_path / "set", size=size, mode=mode)))
    assert dataset.train_images.shape == (30, 32, 32, 3)
    for fact in facts:
        assert fact in describe(dataset)
    assert describe(load(str(tmp_path / "set"))) == describe(dataset)  # from the cache as well


def test_images_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_parquet(tmp_path / "set")
    first = load(str(folder))
    decodings: list[int] = []
    original = model.readers.decoded

    def counted(*args: Any) -> np.ndarray:
        decodings.append(1)
        return original(*args)

    monkeypatch.setattr(model.readers, "decoded", counted)
    again = load(str(folder))
    assert not decodings and again.mean == first.mean
    assert isinstance(again.train_images.base, np.memmap) and type(again.train_images) is np.ndarray
    assert np.array_equal(again.train_images, first.train_images)
    buffers: list[pickle.PickleBuffer] = []  # what Ray does: the pixels don't go through the pickle
    assert len(pickle.dumps(again, protocol=5, buffer_callback=buffers.append)) < 10_000 and len(buffers) == 4
    moved = shutil.move(folder, tmp_path / "renamed")
    assert load(str(moved)).name == "renamed" and not decodings


def _junk(file: Path) -> None:
    file.write_bytes(b"PK\x03\x04 damaged")


def _other_shape(file: Path) -> None:
    np.save(file, np.zeros((5, 2)))


def _label_out_of_range(file: Path) -> None:
    np.save(file, np.full(30, 7))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("train_images.npy", _junk),
        ("train_images.npy", _other_shape),
        ("train_images.npy", Path.unlink),
        ("train_labels.npy", _label_out_of_range),
        ("eval_labels.npy", lambda file: file.write_bytes(b"")),
        ("facts.json", _junk),
        ("facts.json", lambda file: file.write_text("{}")),
    ],
)
def test_a_damaged_cache_is_made_again(
    tmp_path: Path, own_cache: Path, name: str, damage: Callable[[Path], Any]
) -> None:
    folder = write_parquet(tmp_path / "set")
    first = load(str(folder))
    damage(next(own_cache.rglob(name)))
    for _ in range(2):  # decoded, then from the cache
        again = load(str(folder))
        assert np.array_equal(again.train_images, first.train_images) and again.mean == first.mean
        assert np.array_equal(again.train_labels, first.train_labels)
    assert [entry.name for entry in (own_cache / "resnet9-tune").iterdir()] == [first.fingerprint]


def test_a_full_disk_leaves_no_half_cache(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "save", full)
    assert len(load(str(write_parquet(tmp_path / "set"))).train_labels) == 30
    assert not list((own_cache / "resnet9-tune").iterdir())


def test_an_image_moved_to_the_other_split_makes_other_data(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "set")
    train, test = sorted(folder.iterdir(), reverse=True)
    test.rename(folder / "test-00000-of-00002.parquet")
    test = shutil.copy(folder / "test-00000-of-00002.parquet", folder / "test-00001-of-00002.parquet")
    before = load(str(folder))
    train.rename(folder / "train-00000-of-00002.parquet")
    test.rename(folder / "train-00001-of-00002.parquet")
    (folder / "test-00000-of-00002.parquet").rename(folder / "test.parquet")
    after = load(str(folder))
    assert (len(before.eval_labels), len(after.eval_labels)) == (18, 9)
    assert (len(after.train_labels), after.fingerprint != before.fingerprint) == (39, True)


def test_without_a_writable_cache_it_works_all_the_same(tmp_path: Path, own_cache: Path) -> None:
    own_cache.write_text("a file stands in the way", encoding="utf-8")
    assert len(load(str(write_parquet(tmp_path / "set"))).train_labels) == 30


def _set(name: str, value: Any, row: int = 4) -> Callable[[dict], None]:
    def change(columns: dict) -> None:
        columns[name][row] = value

    return change


def _rename(old: str, new: str) -> Callable[[dict], None]:
    def change(columns: dict) -> None:
        columns[new] = columns.pop(old)

    return change


def _text_labels(columns: dict) -> None:
    columns["label"] = [str(label) for label in columns["label"]]


def _only_cats(columns: dict) -> None:
    columns["label"] = [0] * len(columns["label"])


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (_set("label", 3), ["row 4 has label 3", "from 0 to 2"]),
        (_set("label", -1), ["row 4 has label -1", "from 0 to 2"]),
        (_set("img", {"bytes": b"no image", "path": None}), ["row 4", "can't be decoded"]),
        (_set("img", {"bytes": None, "path": None}), ["row 4", "can't be decoded"]),
        (_rename("img", "pixels"), ["pixels", "expected img"]),
        (_rename("label", "class"), ["class", "label (integer)"]),
        (_text_labels, ["label: string", "label (integer)"]),
        (_set("label", None), ["1 rows without a label"]),
        (_only_cats, ["no training image of class 'dog'"]),
    ],
)
def test_bad_parquet_content(tmp_path: Path, change: Callable, facts: list[str]) -> None:
    refused(write_parquet(tmp_path / "set", change=change), *facts)


def refused(path: Path | str, *facts: str) -> None:
    with pytest.raises(InputError) as error:
        load(str(path))
    line = printable(str(error.value))
    assert "\n" not in str(error.value) and line.startswith("--data ")
    for fact in facts:
        assert fact in line


def test_folders_that_are_no_data_set(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "--data", "no such folder")
    refused("cifr10", "did you mean cifar10?")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "is no data set", "train-*.parquet", "cifar-10-batches-py")
    (tmp_path / "file").write_text("hello")
    refused(tmp_path / "file", "it is a file", f"give {tmp_path}")
    (tmp_path / "bare" / "train").mkdir(parents=True)
    refused(tmp_path / "bare", "no folder test/", "train/CLASS")
    (tmp_path / "bare" / "test").mkdir()
    refused(tmp_path / "bare", "has no images", "train/CLASS/*.png")


def test_an_empty_split_and_columns_of_another_name(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "set")
    test = next(folder.glob("test*"))
    table = pq.read_table(test)
    pq.write_table(table.rename_columns(["image", "label"]), test)
    assert len(load(str(folder)).eval_labels) == 9
    pq.write_table(table[:0], test)
    refused(folder, "the test split has no images")


def test_without_class_names_the_labels_are_the_names(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "set")
    for file in folder.iterdir():
        pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)
    assert load(str(folder)).classes == ("0", "1", "2")
    batches = write_batches(tmp_path / "cifar-10-batches-py")
    (batches / "batches.meta").unlink()
    assert load(str(tmp_path)).classes == ("0", "1", "2")  # the parent folder


def test_16_bit_grey_is_scaled_not_cut(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "set")
    values = np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64
    Image.fromarray(values).save(folder / "train" / "cat" / "000.png")
    assert np.array_equal(load(str(folder)).train_images[0, ..., 0], values // 256)


def test_missing_or_broken_parts(tmp_path: Path) -> None:
    parquet = write_parquet(tmp_path / "parquet")
    test_file = next(parquet.glob("test*"))
    content = test_file.read_bytes()
    test_file.write_bytes(content[: len(content) // 2])
    refused(parquet, test_file.name, "can't be read as parquet")
    test_file.unlink()
    refused(parquet, "no test*.parquet")

    batches = write_batches(tmp_path / "cifar-10-batches-py")
    (batches / "data_batch_2").write_bytes(b"\x80\x04 garbage")
    refused(batches, "data_batch_2", "can't be read")
    (batches / "data_batch_2").write_bytes(pickle.dumps([1, 2]))
    refused(batches, "data_batch_2", "not a dict")
    (batches / "data_batch_2").write_bytes(pickle.dumps({"data": np.zeros((2, 7)), "labels": [0, 0]}))
    refused(batches, "not a CIFAR batch")
    for pixels_of, labels_of in [(2, 3), (3, 2)]:
        batch = {"data": np.zeros((pixels_of, 3072), np.uint8), "labels": [0] * labels_of}
        (batches / "data_batch_2").write_bytes(pickle.dumps(batch))
        refused(batches, "data_batch_2", "as many labels")
    (batches / "data_batch_2").write_bytes(b"\x80\x04K\x01K\x01\x81.")  # raises a TypeError inside pickle
    refused(batches, "data_batch_2", "can't be read")
    (batches / "data_batch_2").unlink()
    whole = (batches / "test_batch").read_bytes()
    (batches / "test_batch").write_bytes(pickle.dumps({"data": np.zeros((0, 3072), np.uint8), "labels": []}))
    refused(batches, "the test split has no images")
    (batches / "test_batch").write_bytes(pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [3]}))
    refused(batches, "test row 0 has label 3", "from 0 to 2")
    (batches / "test_batch").write_bytes(whole)
    assert len(load(str(batches)).train_labels) == 15  # as many batches as there are
    (batches / "test_batch").unlink()
    refused(batches, "no test_batch")

    images = write_image_folder(tmp_path / "images")
    (images / "test" / "yak").mkdir()
    shutil.copy(images / "test" / "cat" / "000.png", images / "test" / "yak")
    refused(images, "class 'yak'", "train/ lacks")
    shutil.rmtree(images / "test" / "yak")
    (images / "train" / "dog" / "001.png").write_bytes(b"no image")
    refused(images, "dog/001.png", "can't be decoded")
    (images / "train" / "dog" / "001.png").unlink()
    (images / "train" / "dog" / "line\nbreak.png").write_bytes(b"no image")
    refused(images, "break.png", "can't be decoded")
    (images / "train" / "dog" / "line\nbreak.png").unlink()
    shutil.rmtree(images / "test")
    refused(images, "no folder test/")


def test_a_failed_download_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **options: object) -> None:
        raise OSError("no network,\nreally")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torchvision.datasets.CIFAR10", offline)
    refused("cifar10", "the download failed", "no network, really", "--data PATH")


def test_auto_is_cifar10_under_data_else_digits_and_says_how_to_get_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = describe(load())
    assert "digits" in line and "--data cifar10 downloads it" in line and "--data PATH" in line
    write_image_folder(tmp_path / "data")  # images of something else
    assert resolve("auto") == "digits"
    write_parquet(tmp_path / "data" / "cifar10")
    assert load().classes == CLASSES and load(resolve("auto")).fingerprint == load().fingerprint
    write_batches(tmp_path / "data" / "cifar-10-batches-py")
    assert load().name == "cifar10"


def test_digits_need_no_files(tmp_path: Path) -> None:
    dataset = load("digits")
    assert (len(dataset.train_labels), len(dataset.eval_labels)) == (1497, 300)
    assert np.bincount(dataset.eval_labels).tolist() == [30] * 10
    assert "8x8 grey images" in describe(dataset)
    assert np.array_equal(dataset.train_images[..., 0], dataset.train_images[..., 2])


def test_the_held_out_tenth_is_fixed_balanced_and_apart(tmp_path: Path) -> None:
    dataset = load("digits")
    split, again = hold_out(dataset), hold_out(load("digits"))
    assert split.eval_split == "val"
    assert len(split.train_labels) + len(split.eval_labels) == 1497
    assert set(np.bincount(split.eval_labels)) <= {14, 15}
    rare = replace(dataset, train_labels=np.minimum(np.arange(1497), 1))  # a class of one image
    assert np.bincount(hold_out(rare).eval_labels).tolist() == [1, 150]
    assert np.array_equal(split.eval_images, again.eval_images)
    train, val = ({image.tobytes() for image in images} for images in (split.train_images, split.eval_images))
    whole = {image.tobytes() for image in dataset.train_images}
    assert train | val == whole and len(train & val) == len(train) + len(val) - len(whole)


def test_fewer_training_images_leave_as_many_to_score_on_up_to_half_as_many() -> None:
    dataset = load("digits")
    whole, many, few = hold_out(dataset), hold_out(dataset, 400), hold_out(dataset, 100)
    assert [len(split.train_labels) for split in (whole, many, few)] == [1348, 400, 100]
    assert [len(split.eval_labels) for split in (whole, many, few)] == [149, 149, 50]
    assert np.bincount(few.train_labels).tolist() == [10] * 10 and np.bincount(few.eval_labels).tolist() == [5] * 10
    for part in ("train_images", "eval_images"):
        smallest, small, all_ = ({image.tobytes() for image in getattr(s, part)} for s in (few, many, whole))
        assert smallest < small <= all_
    assert np.bincount(hold_out(dataset, 10).eval_labels).tolist() == [1] * 10  # of each class one, whatever it costs
    with pytest.raises(InputError, match=r"--train-examples 1400: .* beside 149 held out; .*from 10 to 1348"):
        hold_out(dataset, 1400)


def test_fewer_training_images(tmp_path: Path) -> None:
    dataset = load("digits")
    small, larger = take(dataset, 200), take(dataset, 400)
    assert np.bincount(small.train_labels).tolist() == [20] * 10
    assert {image.tobytes() for image in small.train_images} <= {image.tobytes() for image in larger.train_images}
    assert small.mean == dataset.mean and small.fingerprint == dataset.fingerprint
    for wrong in (0, 9, 1498):
        with pytest.raises(InputError, match=f"--train-examples {wrong}: .*from 10 to 1497"):
            take(dataset, wrong)


def test_a_choice_of_images_is_balanced_nested_and_the_same_at_every_call() -> None:
    labels = np.array([2, 0, 1, 0, 0, 2, 1, 0, 0, 0])  # six images of class 0, two of each other
    choices = [chosen_images(labels, images) for images in range(11)]
    for few, more in pairwise(choices):
        assert set(few) < set(more) and (np.diff(more) > 0).all()
    counts = [np.bincount(labels[choice], minlength=3).tolist() for choice in choices]
    assert counts[3] == [1, 1, 1] and counts[6] == [2, 2, 2] and counts[8] == [4, 2, 2] and counts[10] == [6, 2, 2]
    assert np.array_equal(chosen_images(labels, 5), choices[5]) and choices[10].tolist() == list(range(10))


def test_on_the_cpu_the_arrays_are_not_copied(tmp_path: Path) -> None:
    dataset = load(str(write_parquet(tmp_path / "set")))
    data = to_device(dataset, torch.device("cpu"))
    assert data.train_images.data_ptr() == dataset.train_images.ctypes.data
    assert data.num_classes == 3 and data.mean.dtype == torch.float32


# Data as people have them


def copies(folder: Path, *names: str, of: str) -> None:
    for name in names:
        shutil.copy(folder / of, folder / name)


SHARD = "train-00000-of-00001.parquet"


@pytest.mark.parametrize(
    "name",
    ["train-00000-of-00001 (1).parquet", "train-00000-of-00002.parquet", "train.parquet", "train_old.parquet"],
)
def test_a_copy_beside_the_shards_is_named_not_read(tmp_path: Path, name: str) -> None:
    folder = write_parquet(tmp_path / "set")
    copies(folder, name, of=SHARD)
    refused(folder, name, "no copies beside it")


def test_shards_are_one_whole_set(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "set")
    (folder / SHARD).rename(folder / "train-00000-of-00002.parquet")
    refused(folder, "train-00000-of-00002.parquet", "all of one set")
    copies(folder, "train-00001-of-00002.parquet", of="train-00000-of-00002.parquet")
    twice = load(str(folder))
    assert len(twice.train_labels) == 60 and "30 training images are exact copies of others" in twice.note
    copies(folder, SHARD, of="train-00000-of-00002.parquet")  # two shardings side by side
    refused(folder, SHARD, "train-00001-of-00002.parquet", "no copies beside it")


@pytest.mark.parametrize(
    "name",
    ["data_batch_1 (1)", "data_batch_1.bak", "data_batch_01", "data_batch_2~", "test_batch.old", "test_batch.bin"],
)
def test_a_copy_beside_the_batches_is_named_not_read(tmp_path: Path, name: str) -> None:
    folder = write_batches(tmp_path / "set")
    copies(folder, name, of="test_batch" if "test" in name else "data_batch_1")
    refused(folder, name, "move copies elsewhere")


def test_a_missing_batch_is_named(tmp_path: Path) -> None:
    folder = write_batches(tmp_path / "set")
    (folder / "data_batch_1").rename(folder / "data_batch_3")
    refused(folder, "no data_batch_1", "not a whole CIFAR-10")
    for number, name in ((1, "data_batch_3"), (2, "data_batch_2")):
        batch = pickle.loads((folder / name).read_bytes()) | {"batch_label": f"training batch {number} of 5"}
        (folder / f"data_batch_{number}").write_bytes(pickle.dumps(batch))
    (folder / "data_batch_3").unlink()
    refused(folder, "data_batch_1 says it is training batch 1 of 5, but there are 2")  # the last are missing


def test_images_that_are_also_in_the_test_set_are_counted(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "set")
    shutil.copy(folder / "test" / "cat" / "000.png", folder / "train" / "dog" / "copy.png")
    note = load(str(folder)).note
    assert "0 training images are exact copies of others and 1 of test images" in note
    assert load(str(folder)).note == note  # from the cache as well


def test_the_fingerprint_of_a_kind_of_data_stays(tmp_path: Path) -> None:
    """Runs are known by it: it is made of the same bytes as in earlier versions."""

    def digest(*parts: bytes) -> str:
        return hashlib.sha256(b"1" + b"".join(parts)).hexdigest()[:12]

    assert load("digits").fingerprint == "b7caf5fcc75e"
    assert load(str(write_batches(tmp_path / "batches"))).fingerprint == "fcc83f3d248c"
    shards = [
        part
        for file in sorted(write_parquet(tmp_path / "parquet").iterdir(), reverse=True)
        for part in (file.name.split("-")[0].encode(), file.read_bytes())
    ]
    assert load(str(tmp_path / "parquet")).fingerprint == digest(*shards)
    images = write_image_folder(tmp_path / "images")
    files = [file for split in COUNTS for file in sorted((images / split).glob("*/*.png"))]
    named = (part for file in files for part in (str(file.relative_to(images)).encode(), file.read_bytes()))
    assert load(str(images)).fingerprint == digest(*named)


def test_images_of_every_format_and_in_sub_folders_are_read_as_torchvision_reads_them(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "set")
    (folder / "train" / "cat" / "more" / "b.png").mkdir(parents=True)
    extra = Image.fromarray(pixels("test")[0])
    for name in ("more/a.tif", "more/b.png/c.TIFF", "d.ppm", "e.webp", "f.gif", "g.pgm"):
        (extra.convert("L") if name.endswith("pgm") else extra).save(folder / "train" / "cat" / name)
    dataset = load(str(folder))
    theirs = ImageFolder(str(folder / "train"))
    ours = np.bincount(dataset.train_labels)
    assert (ours - np.bincount(theirs.targets)).tolist() == [1, 0, 0]  # the GIF
    np.testing.assert_array_equal(dataset.train_images[-20], np.asarray(theirs[-20][0]))


def test_what_is_no_image_is_named_and_counted(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "set")
    copies(folder / "train" / "cat", "photo.heic", "../no_class.png", of="000.png")
    copies(folder / "test" / "owl", "no_ending", of="002.png")
    (folder / "val").mkdir()
    note = load(str(folder)).note
    for fact in ("no images in a class folder: 5 (", "'train/cat/photo.heic'", "'train/no_class.png'", "and 1 more"):
        assert fact in note
    assert "val/ not read" in note
    os.mkfifo(folder / "train" / "owl" / "pipe.png")
    refused(folder, "pipe.png is no plain file")


HIDDEN = ["._000.png", ".DS_Store", "Thumbs.db", "desktop.ini", ".hidden.jpg"]


def test_hidden_files_and_folders_count_nowhere(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "set")
    before = load(str(folder))
    for place in (folder, folder / "train", folder / "test", folder / "train" / "cat"):
        for name in HIDDEN:
            (place / name).write_bytes(b"junk")
        for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):
            (place / name).mkdir()
            copies(place / name, "copy.png", of=str(folder / "train" / "cat" / "000.png"))
    after = load(str(folder))
    assert (after.classes, after.fingerprint, after.note) == (CLASSES, before.fingerprint, before.note)
    for write, names in ((write_parquet, [SHARD]), (write_batches, ["data_batch_1", "test_batch"])):
        folder = write(tmp_path / write.__name__)
        fingerprint = load(str(folder)).fingerprint
        for name in names:
            (folder / f"._{name}").write_bytes(b"junk")
        assert load(str(folder)).fingerprint == fingerprint


def test_an_empty_class_is_refused_with_and_without_a_cache(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "set")
    load(str(folder))
    (folder / "train" / "yak").mkdir()
    refused(folder, "no training image of class 'yak'")


GREY = np.arange(1024).reshape(32, 32)


@pytest.mark.parametrize(
    ("values", "expected", "note"),
    [
        ((GREY * 64).astype(np.int32), GREY // 4, "32-bit grey scaled from 0..65535"),
        ((GREY // 4).astype(np.int32), GREY // 4, "32-bit grey scaled from 0..255"),
        ((GREY / 1023).astype(np.float32), np.rint(GREY / 1023 * 255), "32-bit grey scaled from 0..1"),
        ((GREY // 4).astype(np.float32), GREY // 4, "32-bit grey scaled from 0..255"),
        ((GREY * 64).astype(np.float32), GREY // 4, "32-bit grey scaled from 0..65535"),
        ((GREY * 64).astype(">u2"), GREY // 4, "grey images made RGB"),
        ((GREY * 64).astype("<u2"), GREY // 4, "grey images made RGB"),
        (GREY % 2 == 1, GREY % 2 * 255, "grey images made RGB"),
    ],
)
def test_grey_of_every_depth_is_scaled(tmp_path: Path, values: np.ndarray, expected: np.ndarray, note: str) -> None:
    folder = write_image_folder(tmp_path / "set")
    Image.fromarray(values).save(folder / "train" / "cat" / "000.tif")
    dataset = load(str(folder))
    np.testing.assert_array_equal(dataset.train_images[1], np.repeat(expected[..., None], 3, axis=2))
    assert note in dataset.note


@pytest.mark.parametrize(
    ("values", "facts"),
    [
        (np.full((32, 32), -1, np.int32), ["from -1 to -1", "0 to 255 or 65535"]),
        (np.full((32, 32), 2**30, np.int32), ["000.tif", "32-bit grey values"]),
        (np.full((32, 32), np.nan, np.float32), ["from nan to nan", "0 to 1 or 255 or 65535"]),
        (np.full((32, 32), 300.0, np.float32), ["0..255 beside", "0..65535", "one scale"]),
    ],
)
def test_grey_of_no_known_scale_is_refused(tmp_path: Path, values: np.ndarray, facts: list[str]) -> None:
    folder = write_image_folder(tmp_path / "set")
    Image.fromarray(values).save(folder / "train" / "cat" / "000.tif")
    Image.fromarray(GREY.astype(np.float32) / 5).save(folder / "train" / "cat" / "001.tif")
    refused(folder, *facts)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparency_is_dropped_and_the_line_says_so(tmp_path: Path, mode: str) -> None:
    folder = write_image_folder(tmp_path / "set")
    file = folder / "train" / "cat" / f"000.{'tif' if mode == 'PA' else 'png'}"
    image = Image.fromarray(np.dstack([pixels("train")[0], (GREY % 256).astype(np.uint8)])).convert(mode)
    image.save(file, **({"transparency": bytes(range(256))} if mode == "P" else {}))
    dataset = load(str(folder))
    with Image.open(file) as again, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.asarray(again.convert("RGB"))
    assert "transparency dropped" in dataset.note
    assert any(np.array_equal(image, expected) for image in dataset.train_images[:2])
    image = Image.fromarray(pixels("train")[0]).convert("RGBA")  # nothing is transparent, nothing is lost
    image.save(file.with_suffix(".png"))
    file.with_suffix(".tif").unlink(missing_ok=True)
    assert "transparency" not in load(str(folder)).note


def test_of_an_animation_the_first_picture_is_read_and_the_line_says_so(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "set")
    pictures = [Image.fromarray(image) for image in pixels("train")[:2]]
    pictures[0].save(folder / "train" / "cat" / "000.png", save_all=True, append_images=pictures[1:])
    dataset = load(str(folder))
    assert "only the first picture" in dataset.note
    np.testing.assert_array_equal(dataset.train_images[0], pixels("train")[0])


@pytest.mark.parametrize("inner", ["plain_text", "data", "data/plain_text", "set"])
@pytest.mark.parametrize("write", WRITERS)
def test_a_data_set_is_found_in_a_folder_of_its_repository(tmp_path: Path, write: Callable, inner: str) -> None:
    write(tmp_path / "repository" / inner)
    (tmp_path / "repository" / "README.md").write_text("# The data")
    (tmp_path / "repository" / ".git").mkdir()
    dataset = load(str(tmp_path / "repository"))
    assert len(dataset.train_labels) == 30 and dataset.name == ("cifar10" if write is write_batches else "repository")
    write(tmp_path / "repository" / inner / ".." / "other")
    refused(tmp_path / "repository", "several data sets", "other", inner)


def write_binary(folder: Path, batches: int = 5) -> Path:
    folder.mkdir()
    flat = {split: pixels(split).transpose(0, 3, 1, 2).reshape(COUNTS[split], -1) for split in COUNTS}
    rows = {split: np.column_stack([labels(split).astype(np.uint8), flat[split]]) for split in COUNTS}
    for number, part in enumerate(np.split(rows["train"], batches), start=1):
        (folder / f"data_batch_{number}.bin").write_bytes(part.tobytes())
    (folder / "test_batch.bin").write_bytes(rows["test"].tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(CLASSES) + "\n\n")
    return folder


def test_the_binary_version_is_the_same_data_as_the_python_version(tmp_path: Path) -> None:
    binary = load(str(write_binary(tmp_path / "cifar-10-batches-bin").parent))
    python = load(str(write_batches(tmp_path / "python")))
    assert (binary.fingerprint, binary.classes, binary.name) == (python.fingerprint, CLASSES, "cifar10")
    np.testing.assert_array_equal(binary.train_images, python.train_images)
    folder = tmp_path / "cifar-10-batches-bin"
    content = (folder / "data_batch_3.bin").read_bytes()
    for damaged in (b"", content[:-1]):
        (folder / "data_batch_3.bin").write_bytes(damaged)
        refused(folder, "data_batch_3.bin is not a CIFAR-10 batch", f"{len(damaged):,} bytes")
    (folder / "data_batch_3.bin").unlink()
    refused(folder, "no data_batch_3.bin")


def test_cifar100_is_read_with_its_fine_labels(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for split in COUNTS:
        batch = {"data": pixels(split).transpose(0, 3, 1, 2).reshape(COUNTS[split], -1)}
        names = {"batch_label": "training batch 1 of 1", "coarse_labels": [0] * COUNTS[split]}
        (folder / split).write_bytes(pickle.dumps(batch | names | {"fine_labels": labels(split).tolist()}))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": list(CLASSES), "coarse_label_names": ["animal"]}))
    dataset = load(str(folder))
    assert (dataset.classes, dataset.name) == (CLASSES, "cifar100")
    np.testing.assert_array_equal(dataset.train_images, pixels("train"))


def test_files_and_inner_folders_are_answered_with_the_folder_to_give(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"")
    refused(tmp_path / "cifar-10-python.tar.gz", "it is an archive: unpack it")
    refused(tmp_path, "is no data set", "unpack cifar-10-python.tar.gz")
    refused(write_parquet(tmp_path / "set") / SHARD, "it is a file", f"give {tmp_path / 'set'}")
    refused(write_image_folder(tmp_path / "images") / "train", f"did you mean {tmp_path / 'images'}?")
    refused(tmp_path / "moved" / "away", "there is no such folder", "if the data moved, give --data PATH")
    refused("x" * 300, "File name too long")


@pytest.mark.parametrize("write", WRITERS)
def test_all_broken_files_are_named_at_once(tmp_path: Path, write: Callable) -> None:
    folder = write(tmp_path / "set")
    broken = [file for file in folder.rglob("*") if file.is_file() and file.suffix != ".txt" and "1" in file.name]
    broken += list(folder.glob("test_batch"))
    for file in broken:
        file.write_bytes(b"broken")
    named = [file.name for file in broken] if len(broken) <= 4 else [f"and {len(broken) - 4} more"]
    refused(folder, *named)


def test_links_are_followed_and_loops_refused(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "set")
    plain = load(str(folder))
    (folder / "train" / "cat").rename(tmp_path / "elsewhere")
    (folder / "train" / "cat").symlink_to(tmp_path / "elsewhere")
    assert load(str(folder)).fingerprint == plain.fingerprint
    (folder / "train" / "cat" / "gone.png").symlink_to(tmp_path / "gone.png")
    refused(folder, "No such file", "gone.png")
    (folder / "train" / "cat" / "gone.png").unlink()
    (folder / "train" / "cat" / "loop").symlink_to(folder)
    refused(folder, "loop", "a folder that holds it")


@pytest.mark.parametrize("split", ["validation", "val"])
def test_a_validation_split_is_the_test_set_where_there_is_no_other(tmp_path: Path, split: str) -> None:
    parquet = write_parquet(tmp_path / "parquet")
    test = next(parquet.glob("test*"))
    other = parquet / test.name.replace("test", split)
    shutil.copy(test, other)
    assert f"left out, as neither train nor test: 1 ('{other.name}')" in load(str(parquet)).note
    test.unlink()
    assert f"the test set is {split}" in load(str(parquet)).note
    images = write_image_folder(tmp_path / "images")
    (images / "test").rename(images / split)
    assert len(load(str(images)).eval_labels) == 9 and f"the test set is {split}/" in load(str(images)).note


def _cast(name: str, kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.schema.get_field_index(name), name, table[name].cast(kind))


def _plain_bytes(table: pa.Table) -> pa.Table:
    return table.set_column(0, "image", pa.array([row["bytes"] for row in table["img"].to_pylist()], pa.large_binary()))


@pytest.mark.parametrize(
    "change",
    [
        _cast("label", pa.uint8()),
        _cast("label", pa.int32()),
        lambda table: table.set_column(1, "label", table["label"].dictionary_encode()),
        _cast("img", pa.struct({"bytes": pa.large_binary(), "path": pa.string()})),
        _plain_bytes,
        lambda table: table.rename_columns(["img", "fine_label"]),
    ],
)
def test_columns_of_other_types_and_names_are_read(tmp_path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    folder = write_parquet(tmp_path / "fold=1")
    expected = load(str(folder))
    for file in folder.iterdir():
        pq.write_table(change(pq.read_table(file, partitioning=None)), file)
    found = load(str(folder))
    np.testing.assert_array_equal(found.train_images, expected.train_images)
    np.testing.assert_array_equal(found.train_labels, expected.train_labels)


def test_metadata_that_are_no_names_are_none(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "set")
    for text in (b"[" * 100_000, b"\xef\xbb\xbfnot json", b"[]", b"\xff"):
        for file in folder.iterdir():
            pq.write_table(pq.read_table(file).replace_schema_metadata({"huggingface": text}), file)
        assert load(str(folder)).classes == ("0", "1", "2")
    names = b"\xef\xbb\xbf" + json.dumps({"info": {"features": {"label": {"names": CLASSES}}}}).encode()
    for file in folder.iterdir():
        pq.write_table(pq.read_table(file).replace_schema_metadata({"huggingface": names}), file)
    assert load(str(folder)).classes == CLASSES


def test_a_word_wins_over_a_folder_of_its_name_and_the_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_parquet(tmp_path / "cifar10")
    write_batches(tmp_path / "data" / "cifar-10-batches-py")
    dataset = load("cifar10")
    assert dataset.name == "cifar10" and "--data ./cifar10 reads it" in dataset.note
    assert load("./cifar10").fingerprint != dataset.fingerprint and load("./cifar10").note == ""
    shutil.rmtree(tmp_path / "data" / "cifar-10-batches-py")
    (tmp_path / "data" / "cifar-10-batches-py").mkdir()
    refused("cifar10", "not a whole CIFAR-10")


@pytest.mark.parametrize("name", [b"not utf-8 \xff", b"two\nlines", "ca\u0301t".encode(), b"[red]"])
def test_names_that_are_not_text_are_read_and_shown(tmp_path: Path, name: bytes) -> None:
    folder = write_image_folder(tmp_path / os.fsdecode(name))
    for split in COUNTS:
        (folder / split / "owl").rename(folder / split / os.fsdecode(name))
    copies(folder / "train" / "cat", os.fsdecode(name) + ".png", os.fsdecode(name) + ".txt", of="000.png")
    for _ in range(2):  # decoded, then from the cache
        dataset = load(str(folder))
        assert len(dataset.train_labels) == 31 and len(dataset.classes) == 3
        for text in (dataset.name, *dataset.classes, describe(dataset)):
            assert text.isprintable() and text.encode()
    (folder / "train" / "cat" / os.fsdecode(name + b".png")).write_bytes(b"broken")
    refused(folder, "can't be decoded")
    (folder / "train" / "cat" / "line\nbreak.png").write_bytes(b"")
    refused(folder, "it is empty", "unknown format")


@pytest.mark.parametrize("home", ["/proc", None])
def test_without_a_home_it_works_without_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    """Also as a user whom the list of users lacks."""

    def absent(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", absent)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    if home:
        monkeypatch.setenv("HOME", home)
    monkeypatch.chdir(write_parquet(tmp_path / "set"))
    assert len(load(".").train_labels) == 30 and len(list(Path.cwd().iterdir())) == 2


def test_what_an_earlier_decoder_cached_is_decoded_again(tmp_path: Path, own_cache: Path) -> None:
    folder = write_parquet(tmp_path / "set")
    load(str(folder))
    file = next(own_cache.rglob("facts.json"))
    facts = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in facts.items() if key != "decoder"} | {"note": "stale"}))
    assert load(str(folder)).note == "" and json.loads(file.read_text()) == facts


@pytest.mark.skipif(not (REAL_DATA / "cifar10").exists(), reason=f"no real CIFAR-10 at {REAL_DATA}/cifar10")
def test_the_real_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    dataset = load(str(REAL_DATA / "cifar10"))
    assert (dataset.fingerprint, dataset.note) == ("e662357a6eb8", "")
    assert dataset.train_images.shape == (50_000, 32, 32, 3) and dataset.eval_images.shape == (10_000, 32, 32, 3)
    assert dataset.classes[0] == "airplane" and dataset.classes[9] == "truck"
    assert dataset.mean == pytest.approx((125.3, 122.9, 113.9), abs=0.5)
    split = hold_out(dataset)
    assert np.bincount(split.train_labels).tolist() == [4500] * 10
    assert np.bincount(split.eval_labels).tolist() == [500] * 10
