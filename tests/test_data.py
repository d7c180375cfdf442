"""The data sources on small made-up data, and on the real CIFAR-10 where it is at hand."""

import io
import json
import pickle
import shutil
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

import model.sources
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
    assert dataset.classes == CLASSES and dataset.note == "" and dataset.eval_split == "test"
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
    original = model.sources.decoded

    def counted(*args: Any) -> np.ndarray:
        decodings.append(1)
        return original(*args)

    monkeypatch.setattr(model.sources, "decoded", counted)
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
    test = next(folder.glob("test*"))
    shutil.copy(test, folder / "test-00001.parquet")
    before = load(str(folder))
    test.rename(folder / "train-00001.parquet")
    after = load(str(folder))
    assert (len(before.eval_labels), len(after.eval_labels)) == (18, 9)
    assert (len(after.train_labels), after.fingerprint != before.fingerprint) == (39, True)


def test_without_a_writable_cache_it_works_all_the_same(tmp_path: Path, own_cache: Path) -> None:
    own_cache.write_text("a file stands in the way")
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
    line = str(error.value)
    assert "\n" not in line and line.startswith("--data ")
    for fact in facts:
        assert fact in line


def test_folders_that_are_no_data_set(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "--data", "no such folder")
    refused("cifr10", "did you mean cifar10?")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "is no data set", "train-*.parquet", "cifar-10-batches-py")
    (tmp_path / "file").write_text("hello")
    refused(tmp_path / "file", "is no data set")
    (tmp_path / "bare" / "train").mkdir(parents=True)
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
    refused(batches, "not a CIFAR-10 batch")
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
    (images / "train" / "dog" / "folder.png").mkdir()
    refused(images, "folder.png", "Is a directory")
    (images / "train" / "dog" / "folder.png").rmdir()
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


@pytest.mark.skipif(not (REAL_DATA / "cifar10").exists(), reason=f"no real CIFAR-10 at {REAL_DATA}/cifar10")
def test_the_real_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    dataset = load(str(REAL_DATA / "cifar10"))
    assert dataset.train_images.shape == (50_000, 32, 32, 3) and dataset.eval_images.shape == (10_000, 32, 32, 3)
    assert dataset.classes[0] == "airplane" and dataset.classes[9] == "truck"
    assert dataset.mean == pytest.approx((125.3, 122.9, 113.9), abs=0.5)
    split = hold_out(dataset)
    assert np.bincount(split.train_labels).tolist() == [4500] * 10
    assert np.bincount(split.eval_labels).tolist() == [500] * 10
