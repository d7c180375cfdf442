import json
import mmap
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from model.config import Config
from model.meter import (
    describe_summary,
    first_reach,
    flops_per_image,
    flops_per_update,
    matmul_flops_per_s,
    now_s,
    peak_memory,
    reset_peak_memory,
    slow_precision,
    summary,
)
from model.recipes import RECIPES

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Metrics:
    epoch: int
    acc: float
    train_s: float
    warm_up_s: float = 0.5


EPOCHS = [Metrics(1, 0.3, 2.0), Metrics(2, 0.95, 4.0), Metrics(3, 0.93, 6.0), Metrics(4, 0.96, 8.0)]


def conv_flops(c_in: int, c_out: int, side_px: int, kernel_px: int = 3) -> int:
    """Of one image forward: two for each weight and output pixel."""
    return 2 * kernel_px**2 * c_in * c_out * side_px**2


def test_flops_of_resnet9_are_those_of_its_layers() -> None:
    first = conv_flops(3, 64, 32)
    rest = (
        conv_flops(64, 128, 32)
        + 2 * conv_flops(128, 128, 16)
        + conv_flops(128, 256, 16)
        + conv_flops(256, 512, 8)
        + 2 * conv_flops(512, 512, 4)
        + 2 * 512 * 10
    )
    assert first + rest == 758_523_904
    # The backward pass costs twice the forward pass, but nobody needs the gradient of the images.
    assert flops_per_image(Config(width=64), 10) == 3 * rest + 2 * first


def test_flops_of_resnet20_are_those_of_its_layers() -> None:
    """Six convolutions at each size, the first of the smaller ones from half the channels."""
    first = conv_flops(3, 16, 32)
    rest = 6 * conv_flops(16, 16, 32) + conv_flops(16, 32, 16) + 5 * conv_flops(32, 32, 16)
    rest += conv_flops(32, 64, 8) + 5 * conv_flops(64, 64, 8) + 2 * 64 * 10
    assert first + rest == 2 * 40_551_040
    assert flops_per_image(Config(net="resnet20", width=16), 10) == 3 * rest + 2 * first


def test_flops_of_whitening_are_forward_only() -> None:
    config = RECIPES["s8"].config()
    before = flops_per_image(replace(config, whiten=False), 10) - 2 * conv_flops(3, 64, 32)
    # The 1x1 convolution behind the fixed filters does without the gradient of its input as well.
    whitened = conv_flops(3, 27, 32) + 2 * conv_flops(27, 64, 32, kernel_px=1)
    assert flops_per_image(config, 10) == before + whitened


def test_flops_of_2x2_whitening_in_both_signs() -> None:
    """31 pixels a side become 15, 7 and 3; layer 1 takes the 24 channels, whose bias needs their gradient."""
    config = replace(RECIPES["s8"].config(), whiten_px=2, whiten_both_signs=True)
    rest = (
        conv_flops(24, 128, 31)
        + 2 * conv_flops(128, 128, 15)
        + conv_flops(128, 256, 15)
        + conv_flops(256, 512, 7)
        + 2 * conv_flops(512, 512, 3)
        + 2 * 512 * 10
    )
    assert flops_per_image(config, 10) == conv_flops(3, 24, 31, kernel_px=2) + 3 * rest


def test_flops_of_an_update_are_those_of_muons_matrix_products() -> None:
    """For a matrix of m rows, the shorter side, and n columns: X X', its square and the product with X, in 3 steps."""
    assert flops_per_update(Config(width=2), 10) == 0
    shapes = [(2, 27), (4, 18), *2 * [(4, 36)], (8, 36), (16, 72), *2 * [(16, 144)]]
    expected = sum(3 * (2 * m * m * n + 2 * m**3 + 2 * m * m * n) for m, n in shapes)
    assert flops_per_update(Config(width=2, solver="muon"), 10) == expected
    s8 = replace(RECIPES["s8"].config(), solver="muon")
    assert flops_per_update(s8, 10) < 0.04 * 512 * flops_per_image(s8, 10)


@pytest.mark.parametrize("recipe", RECIPES)
def test_flops_of_every_recipe(recipe: str) -> None:
    config = RECIPES[recipe].config()
    assert flops_per_image(config, 10) == pytest.approx(2.756e9 if recipe == "dawn" else 2.272e9, rel=0.01)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_matmul_speed_is_a_plausible_number(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.meter.MATMUL_SIDE", {"cpu": 256})
    assert 1e8 < matmul_flops_per_s(CPU, precision) < 1e14


@pytest.mark.parametrize("slow", [torch.bfloat16, torch.float32])
def test_a_cpu_that_only_emulates_bf16_is_warned_of(slow: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def conv2d(images: torch.Tensor, kernel: torch.Tensor, padding: int) -> torch.Tensor:
        time.sleep(1.0 if images.dtype == slow else 0.0)
        return torch.nn.functional.conv2d(images, kernel, padding=padding)

    monkeypatch.setattr("model.meter.conv2d", conv2d)
    warning = slow_precision(Config(precision="bf16"), CPU)
    assert ("times as slow as fp32" in warning) == (slow == torch.bfloat16)
    assert not slow_precision(Config(), CPU)


def test_peak_memory_is_the_most_that_was_held() -> None:
    before = peak_memory(CPU)["rss_mib"]
    size = int(before + 100) * 2**20  # more than ever before
    with mmap.mmap(-1, size) as held:  # not a tensor, whose memory may be kept when it is freed
        for _ in range(size // 2**20):
            held.write(b"1" * 2**20)
    assert peak_memory(CPU)["rss_mib"] >= size / 2**20
    reset_peak_memory(CPU)
    assert peak_memory(CPU)["rss_mib"] < size / 2**20 or not Path("/proc/self/clear_refs").exists()


def test_first_reach() -> None:
    assert first_reach(EPOCHS, 0.94) == (2, 4.0)
    assert first_reach(EPOCHS, 0.95) == (2, 4.0)
    assert first_reach(EPOCHS, 0.3) == (1, 2.0)
    assert first_reach(EPOCHS, 0.97) is None
    assert first_reach([], 0.1) is None


def test_summary_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.meter.matmul_flops_per_s", lambda device, precision: 1e9)
    config = Config(width=4, batch_size=16)
    result = summary(config, 10, 100, EPOCHS, CPU, [0.94, 0.97])
    assert (result["epochs"], result["train_s"], result["warm_up_s"]) == (4, 8.0, 0.5)
    assert result["images_per_s"] == 4 * 96 / 8.0  # the last 4 images of an epoch are dropped
    assert result["flops"] == flops_per_image(config, 10) * 4 * 96
    assert result["peak_share"] == pytest.approx(result["flops"] / 8.0 / 1e9)
    assert result["targets"] == {"0.94": {"epoch": 2, "train_s": 4.0}, "0.97": None}
    assert json.loads(json.dumps(result)) == result


def test_summary_of_a_share_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.meter.matmul_flops_per_s", lambda device, precision: 1e9)
    config = Config(width=4, batch_size=16, train_frac=0.5)
    result = summary(config, 10, 100, EPOCHS, CPU, [])
    assert result["images_per_s"] == 4 * 48 / 8.0 and result["flops"] == flops_per_image(config, 10) * 4 * 48


def test_summary_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.meter.matmul_flops_per_s", lambda device, precision: 2e12)
    text = describe_summary(summary(Config(width=4, batch_size=16), 10, 100, EPOCHS, CPU, [0.94, 0.97]))
    assert "4 epochs trained in 8.0 s after 0.5 s of warm-up, 48 images/s" in text
    assert "of the 2 TFLOP/s of a large matrix product" in text
    assert "accuracy 94%: in epoch 2, after 4.0 s" in text
    assert "accuracy 97%: not reached" in text


def test_the_clock_counts_seconds() -> None:
    start_s = now_s(CPU)
    assert 0 <= now_s(CPU) - start_s < 1
