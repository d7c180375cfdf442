"""What a run costs: the clock, arithmetic (FLOP, counted, not timed), the device's peak and its memory."""

import contextlib
import resource
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.functional import conv2d, cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from model.augment import CHANNELS, SIDE_PX
from model.config import Config
from model.net import build_net
from model.optim import orthogonalised

MIB = 2**20
TIMED_MATMULS = 5
MATMUL_SIDE = {"cuda": 8192, "cpu": 2048}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # Config.precision
SLOW = 1.5  # times as long as in fp32


class Epoch(Protocol):
    """What is read of `model.train.EpochMetrics`."""

    @property
    def epoch(self) -> int: ...
    @property
    def acc(self) -> float: ...
    @property
    def train_s(self) -> float: ...
    @property
    def warm_up_s(self) -> float: ...


def now_s(device: torch.device) -> float:
    """Seconds on a monotonic clock, read once everything queued on the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def flops_per_image(config: Config, num_classes: int) -> float:
    """Floating-point operations (a multiply-add is two) of forward and backward for one training image.

    Convolutions and matrix products only, as usual: the rest is a percent. Counted on the meta device, which computes
    nothing.
    """
    meta = torch.device("meta")
    batch = config.ghost_batch or 2
    with meta:
        net = build_net(config, num_classes)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.forward = torch.clone  # type: ignore[method-assign]  # counts nothing, takes most time
    images = torch.empty(batch, SIDE_PX, SIDE_PX, CHANNELS, device=meta).permute(0, 3, 1, 2)
    labels = torch.zeros(batch, dtype=torch.int64, device=meta)
    with FlopCounterMode(display=False) as counter:
        cross_entropy(net(images), labels).backward()
    return counter.get_total_flops() / batch


def flops_per_update(config: Config, num_classes: int) -> float:
    """Of one update of the weights, counted alike: 0 but for muon, whose products cost some percent of a step."""
    if config.solver != "muon":
        return 0.0
    with torch.device("meta"):
        net = build_net(config, num_classes)
    with FlopCounterMode(display=False) as counter:
        for weight in net.parameters():
            if weight.requires_grad and weight.dim() == 4:
                orthogonalised(weight.detach().flatten(1))
    return float(counter.get_total_flops())


def matmul_flops_per_s(device: torch.device, precision: str) -> float:
    """The device's attainable peak: FLOP per second of a large square matrix product in `Config.precision`, the median
    of 5 on the threads that torch is set to use. It takes about a second."""
    side = MATMUL_SIDE[device.type]
    factor = torch.randn(side, side, device=device).to(DTYPES[precision])
    times_s = []
    for _ in range(TIMED_MATMULS + 1):
        start_s = now_s(device)
        factor @ factor
        times_s.append(now_s(device) - start_s)
    return 2 * side**3 / statistics.median(times_s[1:])  # the first one selects kernels


def slow_precision(config: Config, device: torch.device) -> str:
    """A warning, on one line, where a CPU takes longer in bf16 than in fp32; else nothing.

    Torch emulates bf16 on CPUs without instructions for it. Timed on a convolution, forward and backward, the best of
    3, which takes 0.3 s.
    """
    if config.precision != "bf16" or device.type != "cpu":
        return ""
    times_s = {}
    for precision in ("fp32", "bf16"):
        images = torch.randn(32, 32, 16, 16, dtype=DTYPES[precision], requires_grad=True)
        kernel = torch.randn(32, 32, 3, 3, dtype=DTYPES[precision], requires_grad=True)
        measured = []
        for _ in range(3):
            start_s = now_s(device)
            conv2d(images, kernel, padding=1).sum().backward()
            measured.append(now_s(device) - start_s)
        times_s[precision] = min(measured)
    slowdown = times_s["bf16"] / times_s["fp32"]
    if slowdown < SLOW:
        return ""
    return f"warning: precision = bf16 is {slowdown:.1f} times as slow as fp32 on this CPU, which only emulates it"


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` count from now on; on the CPU of other systems than Linux nothing happens."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_memory(device: torch.device) -> dict[str, float]:
    """Most memory used so far, in MiB: of tensors and of torch's reserve on CUDA, else resident in this process."""
    if device.type == "cuda":
        return {
            "allocated_mib": torch.cuda.max_memory_allocated(device) / MIB,
            "reserved_mib": torch.cuda.max_memory_reserved(device) / MIB,
        }
    try:  # ru_maxrss would count the process that started this one as well
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
        return {"rss_mib": int(status["VmHWM"].split()[0]) * 1024 / MIB}
    except (OSError, KeyError):
        unit = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss
        return {"rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB}


def first_reach(epochs: Sequence[Epoch], target: float) -> tuple[int, float] | None:
    """The first epoch whose accuracy (0..1) is at least `target`, and the training seconds until its end."""
    for metrics in epochs:
        if metrics.acc >= target:
            return metrics.epoch, metrics.train_s
    return None


def summary(
    config: Config,
    num_classes: int,
    examples: int,
    epochs: Sequence[Epoch],
    device: torch.device,
    targets: Iterable[float],
    ranks: int = 1,
) -> dict[str, Any]:
    """What a finished run cost, ready for JSON; names carry the units, `describe_summary` says it in words.

    Args:
        examples: training images of the data.
        epochs: of one run, at least one, from its first on.
        targets: accuracies (0..1) whose first epoch is wanted.
        ranks: processes that trained. The peak of a large matrix product is that of as many devices as this one;
            memory is known only where this process is the one that trained.
    """
    last = epochs[-1]
    steps = last.epoch * (config.trained_images(examples) // config.batch_size)
    images = steps * config.batch_size  # the incomplete batch is dropped
    flops = flops_per_image(config, num_classes) * images + flops_per_update(config, num_classes) * steps
    peak_flops_per_s = ranks * matmul_flops_per_s(device, config.precision)
    reached = {f"{target:g}": first_reach(epochs, target) for target in targets}
    return {
        "epochs": last.epoch,
        "train_s": last.train_s,
        "warm_up_s": last.warm_up_s,
        "images_per_s": images / last.train_s,
        "flops": flops,
        "matmul_flops_per_s": peak_flops_per_s,
        "peak_share": flops / last.train_s / peak_flops_per_s,
        "memory": peak_memory(device) if ranks == 1 else {},
        "targets": {
            target: {"epoch": first[0], "train_s": first[1]} if first else None for target, first in reached.items()
        },
    }


def describe_summary(summary: dict[str, Any]) -> str:
    """A few lines for the terminal."""
    achieved = summary["flops"] / summary["train_s"]
    memory = ", ".join(
        f"{mib:.0f} MiB {name.removesuffix('_mib').replace('rss', 'resident')}"
        for name, mib in summary["memory"].items()
    )
    lines = [
        f"{summary['epochs']} epochs trained in {summary['train_s']:.1f} s after {summary['warm_up_s']:.1f} s of "
        f"warm-up, {summary['images_per_s']:,.0f} images/s",
        f"{summary['flops']:.3g} FLOP at {_si(achieved)}FLOP/s: {100 * summary['peak_share']:.0f}% of the "
        f"{_si(summary['matmul_flops_per_s'])}FLOP/s of a large matrix product",
    ]
    if memory:
        lines.append(f"peak memory: {memory}")
    for target, first in summary["targets"].items():
        when = f"in epoch {first['epoch']}, after {first['train_s']:.1f} s" if first else "not reached"
        lines.append(f"accuracy {100 * float(target):g}%: {when}")
    return "\n".join(lines)


def _si(value: float) -> str:
    """Three digits and the prefix of a unit: 1.2e9 -> '1.2 G'."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value / 1e6:.3g} M"
