"""`python -m model.predict`: image files of any kind, hostile names, what is refused."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import noise
from PIL import Image

import model.predict
from model.command import run_command
from model.config import Config
from model.data import Dataset, to_device
from model.evaluate import evaluate
from model.images import as_rgb32
from model.predict import probabilities, read_images, scored_logits
from model.train import init_state, train
from model.weights import load_weights, save_weights

DATA = noise(64, 20)
Predict = Callable[..., tuple[int, str, str]]


def write_weights(file: Path, config: Config, dataset: Dataset = DATA, **facts: Any) -> Path:
    data = to_device(dataset, torch.device("cpu"))
    state = init_state(config, data, seed=0)
    list(train(replace(config, epochs=1), data, state=state))
    save_weights(file, state.scored_net.state_dict(), config, dataset, **facts)
    return file


@pytest.fixture
def weights(tiny: Config, tmp_path: Path) -> Path:
    return write_weights(tmp_path / "net.safetensors", tiny, test_acc=0.45)


@pytest.fixture
def predict(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Predict:
    """Run the command; returns its exit code and what it wrote to stdout and stderr."""

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["predict", *map(str, args)])
        code = 0
        try:
            run_command(model.predict.main, model.predict.Options, prog="python -m model.predict")
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return run


def save_image(file: Path, index: int = 0) -> Path:
    Image.fromarray(DATA.eval_images[index]).save(file, format="PNG")
    return file


def test_a_line_for_each_image_with_the_likeliest_classes(predict: Predict, weights: Path, tmp_path: Path) -> None:
    files = [save_image(tmp_path / f"{index}.png", index) for index in range(3)]
    code, out, _ = predict(weights, *files, "--top", 2)
    net, record = load_weights(weights)
    shares = probabilities(net, record, torch.from_numpy(DATA.eval_images[:3]))
    header, *lines = out.splitlines()
    assert code == 0
    assert "4 classes of noise" in header and "test acc 45.00% (this net, n = 1)" in header
    for file, line, share in zip(files, lines, shares, strict=True):
        first, second = share.argsort(descending=True)[:2].tolist()
        best, next_best = (f"{DATA.classes[label]} {100 * share[label]:.1f}%" for label in (first, second))
        assert line == f"{file}: {best}, {next_best}"


def test_more_classes_asked_for_than_there_are(predict: Predict, weights: Path, tmp_path: Path) -> None:
    code, out, _ = predict(weights, save_image(tmp_path / "i.png"), "--top", 99)
    shares = [float(answer.split()[1].rstrip("%")) for answer in out.splitlines()[1].split(": ")[-1].split(", ")]
    assert code == 0 and len(shares) == 4 and sum(shares) == pytest.approx(100, abs=0.3)
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("changes", [{"tta": "flip"}, {"tta": "shift"}, {"precision": "bf16"}])
def test_it_scores_as_training_does(tiny: Config, changes: dict[str, Any], tmp_path: Path) -> None:
    """Views and precision are the config's; without them the answers are others."""
    config = replace(tiny, **changes)
    net, record = load_weights(write_weights(tmp_path / "w", config))
    data = to_device(noise(64, 600), torch.device("cpu"))
    logits = scored_logits(net, record.config, data.eval_images, data.mean, data.std)
    assert (logits.argmax(1) == data.eval_labels).float().mean().item() == pytest.approx(evaluate(net, config, data)[0])
    assert not torch.equal(logits, scored_logits(net, tiny, data.eval_images, data.mean, data.std))


def test_weights_trained_in_fp16_answer_on_a_cpu(tiny: Config, tmp_path: Path) -> None:
    net, record = load_weights(write_weights(tmp_path / "w", tiny))
    images = torch.from_numpy(DATA.eval_images)
    half = replace(record, config=replace(tiny, precision="fp16"))
    assert torch.equal(probabilities(net, half, images), probabilities(net, record, images))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F"])
@pytest.mark.parametrize("size", [(32, 32), (1, 1), (75, 40)])
def test_any_mode_and_size(mode: str, size: tuple[int, int], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 256)
    else:
        image = Image.fromarray(pixels).convert(mode)
    assert image.mode == mode
    file = tmp_path / ("i.png" if mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else "i.tiff")
    image.save(file)
    (found,) = read_images([file])
    assert found.shape == (32, 32, 3)
    with Image.open(file) as again:
        np.testing.assert_array_equal(found.numpy(), as_rgb32(again, set()))


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda file: None, ["can't be read: No such file"]),
        (lambda file: file.mkdir(), ["is a folder: name the image files in it"]),
        (lambda file: file.write_bytes(b""), ["can't be decoded as an image"]),
        (lambda file: file.write_text("no image"), ["can't be decoded as an image: unknown format"]),
        (lambda file: file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 50), ["can't be decoded as an image"]),
        (lambda file: file.symlink_to(file), ["can't be read"]),
    ],
)
def test_an_image_that_cant_be_read_is_named(
    predict: Predict, weights: Path, tmp_path: Path, make: Callable[[Path], object], facts: list[str]
) -> None:
    """Also beside one that can: nothing is printed of either."""
    make(tmp_path / "bad")
    code, out, err = predict(weights, save_image(tmp_path / "good.png"), tmp_path / "bad")
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and str(tmp_path / "bad") in err
    for fact in facts:
        assert fact in err


@pytest.mark.parametrize(
    ("args", "fact"),
    [
        ((), "WEIGHTS"),
        (("net.safetensors",), "no images: name one file or more"),
        (("net.safetensors", "i.png", "--top", 0), "--top 0: it must be 1 or more"),
        (("absent.safetensors", "i.png"), "weights absent.safetensors can't be read"),
        (("i.png", "i.png"), "weights i.png are no whole safetensors file"),
    ],
)
def test_what_is_refused(
    predict: Predict, weights: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[object, ...], fact: str
) -> None:
    monkeypatch.chdir(weights.parent)
    save_image(Path("i.png"))
    code, out, err = predict(*args)
    assert (code, out) == (2, "") and err.count("\n") == 1 and fact in err


HOSTILE = {
    b"a\x1b[31mb\x07": "a\\x1b[31mb\\x07",
    b"two\nlines": "two\\nlines",
    b"[red]x": "[red]x",
    "right\u202eleft".encode(): "right\\u202eleft",
    b"not utf-8 \xff": "not utf-8 \\udcff",
    "猫.png".encode(): "猫.png",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_names_are_shown_and_do_nothing(
    predict: Predict, weights: Path, tmp_path: Path, name: bytes
) -> None:
    file = tmp_path / os.fsdecode(name)
    code, out, err = predict(weights, save_image(file))
    assert code == 0, err
    assert out.count("\n") == 2 and HOSTILE[name] in out
    assert all(c.isprintable() for c in out.replace("\n", ""))
    file.write_bytes(b"no image")
    code, _, err = predict(weights, file)
    assert code == 2 and err.count("\n") == 1
    assert all(c.isprintable() for c in err.replace("\n", ""))


def test_hostile_class_names_are_shown_and_do_nothing(predict: Predict, tiny: Config, tmp_path: Path) -> None:
    dataset = replace(DATA, classes=("\x1b[2J", "[red]", "a\nb", "<script>"), name="\x1b]0;title\x07")
    weights = write_weights(tmp_path / "w", tiny, dataset)
    code, out, _ = predict(weights, save_image(tmp_path / "i.png"), "--top", 4)
    assert code == 0 and out.count("\n") == 2
    assert all(c.isprintable() for c in out.replace("\n", ""))
    assert "\\x1b[2J" in out and "[red]" in out and "a\\nb" in out


def test_what_was_done_to_the_images_is_said_and_all_broken_ones_are_named(
    predict: Predict, weights: Path, tmp_path: Path
) -> None:
    file = tmp_path / "i.png"
    Image.fromarray(DATA.eval_images[0]).convert("RGBA").resize((8, 8)).save(file)
    code, out, _ = predict(weights, file)
    assert code == 0 and out.splitlines()[1] == "images of 8x8 resized to 32x32"
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"broken")
    code, out, err = predict(weights, tmp_path / "a", file, tmp_path / "b", tmp_path / "c")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert all(fact in err for fact in ("a can't be decoded", "b can't be decoded", "c can't be read"))


def test_a_name_like_an_option_comes_after_two_dashes(
    predict: Predict, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(weights.parent)
    save_image(Path("-odd.png"))
    code, out, err = predict("--top", 1, "--", weights.name, "-odd.png")
    assert (code, err) == (0, "") and out.splitlines()[1].startswith("-odd.png: ")
