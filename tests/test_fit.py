import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch

from model import fit, memory
from model.config import Config, InputError
from model.fit import few_steps_fit, largest_batch
from model.memory import available_bytes, check_memory, needed_bytes
from model.recipes import RECIPES

CPU = torch.device("cpu")
GIB = 2**30


@pytest.fixture
def no_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors only, as one counts them by hand."""
    monkeypatch.setattr(memory, "HEAP_FACTOR", 1.0)


def by_weights(config: Config) -> int:
    """What `needed_bytes` says of a config whose batch weighs less than the update of its weights, less CPU_BYTES."""
    return needed_bytes(replace(config, batch_size=2), 10, 0) - memory.CPU_BYTES


def test_weights_by_hand(monkeypatch: pytest.MonkeyPatch, no_holes: None) -> None:
    monkeypatch.setattr(memory, "EVAL_BATCH", 1)  # else an evaluation needs more
    config = Config(width=64)
    trained = 4 * 6_573_120
    statistics = sum(2 * 4 * channels + 8 for channels in (64, 128, 128, 128, 256, 512, 512, 512))
    twice = 2 * (trained + statistics)  # and the copy that undoes the warm-up
    assert by_weights(config) == twice + 3 * trained  # gradients, momentum, the update
    adam = replace(config, solver="adam", momentum=0.9, nesterov=True)
    assert by_weights(adam) == twice + 4 * trained
    assert by_weights(replace(config, ema_decay=0.99)) == 2 * twice + 3 * trained
    assert by_weights(replace(config, norm_scale_frozen=True)) == twice + 3 * (trained - 4 * 2_240)


def test_data_set_by_hand() -> None:
    config = Config(width=16)
    assert needed_bytes(config, 10, 50_000) - needed_bytes(config, 10, 0) == 50_000 * 3072


def test_activations_by_hand(no_holes: None) -> None:
    """The backward pass starts at the top, so the worst moment is in layer1, most of whose tensors are still there."""
    config = Config(width=64, residual_layers="none", batch_size=1)
    a_batch = needed_bytes(replace(config, batch_size=20_000), 10, 0) - needed_bytes(
        replace(config, batch_size=10_000), 10, 0
    )
    first = 64 * 1024 * 4  # bytes of the first convolution's output
    # Kept are: image, prep's convolution and norm (ReLU in place), layer1's (twice the channels) with pool and
    # int64 indices, layer2's and layer3's half and a quarter of that. The gradient of layer1's pool comes on top.
    layer1 = 2 * first + 2 * first + first / 2 + first
    kept = 3072 * 4 + 2 * first + layer1 + layer1 / 2
    peak_of_layer1 = kept + 2 * first
    assert a_batch / 10_000 == pytest.approx(peak_of_layer1, rel=0.1)


def test_half_the_precision_needs_nearly_half_the_memory() -> None:
    config = Config(width=16, batch_size=100_000)
    assert 0.5 < needed_bytes(replace(config, precision="bf16"), 10, 0) / needed_bytes(config, 10, 0) < 0.65


def test_the_number_of_ghosts_does_not_matter() -> None:
    config = Config(width=16, batch_size=4096, ghost_batch=32)
    assert needed_bytes(config, 10, 0) == needed_bytes(replace(config, ghost_batch=1024), 10, 0)


@pytest.mark.parametrize("recipe", ["dawn", "s0", "s8"])
def test_bound_is_one(recipe: str) -> None:
    """The bound by which a check is skipped is above the estimate, also for the largest net and solver."""
    largest = {} if recipe == "dawn" else {"residual_layers": "123", "extra_layers": "123", "pool_place": "last"}
    adam = replace(RECIPES[recipe].config(), solver="adam", momentum=0.9, nesterov=True, ema_decay=0.9, **largest)
    for config in (adam, replace(adam, act="gelu", celu_alpha=0.0)):
        for width, batch_size in product((1, 16, 1024), (32, 4096)):
            changed = replace(config, width=width, batch_size=batch_size)
            assert needed_bytes(changed, 10, 50_000) < memory._at_most_bytes(changed, 50_000)


@pytest.mark.parametrize("width", [1, 64])
def test_bound_is_one_for_deep_nets(width: int) -> None:
    """An estimate grows with the batch in a straight line, and the bound as well, but for small batches."""
    config = Config(net="resnet56", width=width, solver="adam", ema_decay=0.9, ghost_batch=1, celu_alpha=0.3)
    needs = memory.needs_of(config, 10, 50_000)
    for batch_size in (1, 250, 100_000):
        changed = replace(config, batch_size=batch_size)
        assert needs.of_batch(batch_size) < memory._at_most_bytes(changed, 50_000)


@pytest.mark.parametrize(
    "recipe, fields",
    [("s8", {"width": 16}), ("dawn", {"width": 8, "net": "resnet20", "residual_act": "after_add"})],
)
def test_estimate_against_33_real_steps(recipe: str, fields: dict[str, Any]) -> None:
    """Resident memory of a process that trains an epoch and scores: the first step takes half of that."""
    program = f"""
import resource, torch
from dataclasses import replace
from model.fit import random_data
from model.memory import needed_bytes
from model.meter import peak_memory
from model.recipes import RECIPES
from model.train import train
torch.set_num_threads(1)
cpu = torch.device("cpu")
config = replace(RECIPES["{recipe}"].config(), batch_size=128, epochs=1, **{fields})
before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
list(train(config, random_data(33 * 128, 10, cpu)))
grown = peak_memory(cpu)["rss_mib"] * 2**20 - before
print(grown / needed_bytes(config, 10, 33 * 128))
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 0.65 < float(result.stdout) < 1.25


def test_available_memory_is_that_of_this_machine() -> None:
    assert 2**20 < available_bytes(CPU) < 2**50


def test_what_fits_passes(monkeypatch: pytest.MonkeyPatch, tiny: Config) -> None:
    check_memory(tiny, 4, 64, CPU)
    config = Config(width=16)
    monkeypatch.setattr(memory, "available_bytes", lambda device: needed_bytes(config, 10, 100))
    check_memory(config, 10, 100, CPU)


def test_impossible_config_is_refused_in_one_line_at_once() -> None:
    config = Config(width=1024, batch_size=1_000_000)
    needed_bytes(config, 10, 50_000)  # what is imported once doesn't count
    start_s = time.perf_counter()
    with pytest.raises(InputError) as error:
        check_memory(config, 10, 50_000, CPU)
    assert time.perf_counter() - start_s < 1
    assert "\n" not in str(error.value)
    assert re.match(
        r"batch_size = 1000000 at width = 1024 needs about \d{5,}\.\d GiB of memory, and \d+\.\d GiB are free: lower ",
        str(error.value),
    )


def test_refusal_names_a_batch_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(width=64, batch_size=8192, ghost_batch=32)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 4 * GIB)
    with pytest.raises(InputError) as error:
        check_memory(config, 10, 50_000, CPU)
    named = re.search(r"at most ([\d,]+) would fit", str(error.value))
    assert named
    fits = int(named[1].replace(",", ""))
    assert fits % 32 == 0
    check_memory(replace(config, batch_size=fits), 10, 50_000, CPU)
    with pytest.raises(InputError):
        check_memory(replace(config, batch_size=fits + 32), 10, 50_000, CPU)


def test_refusal_where_no_batch_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (memory, fit):
        monkeypatch.setattr(module, "available_bytes", lambda device: GIB)
    with pytest.raises(InputError, match=r"1\.0 GiB are free: lower width$"):
        check_memory(Config(width=512), 10, 50_000, CPU)
    assert largest_batch(Config(width=512), 10, 50_000, CPU) == 0


def test_largest_batch_is_the_last_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(width=64)
    monkeypatch.setattr(fit, "available_bytes", lambda device: 4 * GIB)
    largest = largest_batch(config, 10, 50_000, CPU)
    assert needed_bytes(replace(config, batch_size=largest), 10, 50_000) <= 4 * GIB
    assert needed_bytes(replace(config, batch_size=largest + 1), 10, 50_000) > 4 * GIB


def test_largest_batch_is_at_most_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "available_bytes", lambda device: 100 * GIB)
    assert largest_batch(Config(width=4), 10, 1000, CPU) == 1000
    assert largest_batch(Config(width=4, ghost_batch=32), 10, 1000, CPU) == 992
    assert largest_batch(Config(width=4, train_frac=0.25), 10, 1000, CPU) == 250


@pytest.mark.parametrize(
    "limit, start, unit, most, largest",
    [
        (5000, 512, 1, 50_000, 4096),
        (5000, 512, 1, 2000, 1024),
        (100, 512, 1, 50_000, 64),
        (100, 96, 32, 50_000, 96),
        (90, 96, 32, 50_000, 32),  # half of 96 is no multiple of 32
        (10, 96, 32, 50_000, 0),
        (0, 512, 1, 50_000, 0),
    ],
)
def test_largest_by_trying(limit: int, start: int, unit: int, most: int, largest: int) -> None:
    assert fit._largest_by_trying(lambda batch: batch <= limit, start, unit, most) == largest


@pytest.mark.parametrize("recipe", ["s8", "dawn"])
def test_a_few_steps(recipe: str) -> None:
    assert few_steps_fit(replace(RECIPES[recipe].config(), width=2, batch_size=32), 10, 64, CPU)


def test_a_few_steps_out_of_memory(monkeypatch: pytest.MonkeyPatch, tiny: Config) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("model.fit.train_step", full)
    assert not few_steps_fit(tiny, 10, 64, CPU)


Run = Callable[..., subprocess.CompletedProcess[str]]


def test_command_tells_in_one_paragraph(command: Run) -> None:
    result = command("model.fit", "--recipe", "s8", "--set", "width=16", "--data-images", 1000)
    assert (result.returncode, result.stderr) == (0, "")
    assert len(result.stdout.splitlines()) == 1
    assert "width = 16 with batch_size = 512 in fp32 needs about" in result.stdout
    assert re.search(r"largest batch that fits is [\d,]+ images\. As configured, [\d,]+ trials? fits?", result.stdout)


def test_command_refuses_bad_input(command: Run) -> None:
    with pytest.raises(InputError, match="--data-images 0: it must be 1 or more"):
        fit.main(fit.Options(data_images=0))
    with pytest.raises(InputError, match="--recipe 's9' is unknown"):
        fit.main(fit.Options(recipe="s9"))
    result = command("model.fit", "--set", "width=0")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: width = 0 is not allowed: it must be an integer from 1 to 1024\n"


def test_command_on_cuda_names_the_share_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "few_steps_fit", lambda config, *_: config.batch_size <= 5000)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (70 * GIB, 80 * GIB))
    text = fit.report(Config(width=16), 10, 50_000, torch.device("cuda"))
    assert "needs about 10.00 GiB of memory" in text
    assert "The largest batch that fits is 4,096 images." in text
    assert text.endswith("8 trials fit on the device (cuda) at once, with --gpus-per-trial 0.125.")
