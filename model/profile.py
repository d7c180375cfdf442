"""Where the time of a training step goes: convolutions, norms, activations, ... (the table of post 3)."""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.autograd.profiler import record_function
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity

from model.augment import augment, draw
from model.config import Config
from model.data import DeviceData
from model.evaluate import Ema, autocast, build_ema, evaluate
from model.layers import Celu, Interleaved, MaxAndMean, Residual, Scale
from model.meter import now_s
from model.net import PreActBlock, build_net
from model.optim import build_optimizer, lr_schedule, set_lr

CONV, NORM, ACT, POOL = "convolution", "norm", "activation", "pooling and add"
HEAD, OPTIMISER, DATA = "classifier and loss", "optimiser", "data"
CATEGORIES = (CONV, NORM, ACT, POOL, HEAD, OPTIMISER, DATA)

FORWARD: dict[type[nn.Module], str] = {
    nn.Conv2d: CONV,
    nn.BatchNorm2d: NORM,
    Interleaved: NORM,  # what it does itself serves the ghosts
    nn.ReLU: ACT,
    nn.GELU: ACT,
    Celu: ACT,
    nn.MaxPool2d: POOL,
    nn.AdaptiveAvgPool2d: POOL,
    MaxAndMean: POOL,
    Residual: POOL,  # what isn't in its branch is skip and sum
    PreActBlock: POOL,
    nn.Linear: HEAD,
    Scale: HEAD,
}
ENGINE = "autograd::engine::evaluate_function: "
BACKWARD = (  # what is in the name of a node of the backward pass
    ("Convolution", CONV),
    ("ToCopy", CONV),  # autocast lowers the filters
    ("BatchNorm", NORM),
    ("Cat", NORM),  # ghosts are split and joined
    ("Split", NORM),
    ("Relu", ACT),
    ("Gelu", ACT),
    ("Elu", ACT),  # torch's name of celu
    ("Celu", ACT),
    ("MaxPool", POOL),
    ("Amax", POOL),
    ("Mean", POOL),
    ("ConstantPad", POOL),  # of shortcuts without weights
    ("Slice", POOL),
    ("AddBackward", POOL),
    ("AccumulateGrad", OPTIMISER),
)


def profile(config: Config, data: DeviceData, steps: int = 5) -> dict[str, float]:
    """Seconds of one training step in each of `CATEGORIES`, forward and backward together, of a fresh net.

    `step` is the whole step by the clock, the mean of `steps`. What of it is in no category is `launch gaps` on CUDA,
    time in which no kernel runs, and `python and framework` on CPUs, time outside of the operators; a little of it is
    the profiler's own. `evaluation` is one evaluation, which is no part of a step. The net isn't compiled.

    Args:
        data: at least one batch of training images.
    """
    cuda = data.device.type == "cuda"
    torch.backends.cudnn.benchmark = cuda
    with torch.random.fork_rng(devices=[]):
        net = build_net(config, data.num_classes).to(data.device)
    ema = build_ema(config, net)
    optimizer = build_optimizer(config, net)
    set_lr(optimizer, lr_schedule(config, config.epochs / 2) / 1000)  # the time doesn't depend on it, NaNs might
    _mark(net)
    _train(config, data, net, optimizer, ema, steps=2)  # kernel selection and allocation
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if cuda else [ProfilerActivity.CPU]
    with _quiet():
        with torch.profiler.profile(activities=activities) as profiler:
            start_s = now_s(data.device)
            _train(config, data, net, optimizer, ema, steps)
            step_s = (now_s(data.device) - start_s) / steps
        events = profiler.events() or []
    result = {category: seconds / steps for category, seconds in _by_category(events, cuda).items()}
    result["launch gaps" if cuda else "python and framework"] = step_s - sum(result.values())
    result["step"] = step_s
    scored = ema.net if ema else net
    start_s = now_s(data.device)
    evaluate(scored, config, data)
    result["evaluation"] = now_s(data.device) - start_s
    return result


def _mark(net: nn.Module) -> None:
    """Let every module of a category in `FORWARD` record when it runs, under the category's name."""
    for module in net.modules():
        category = next((name for kind, name in FORWARD.items() if isinstance(module, kind)), None)
        if category:
            _record(module, category)


def _record(module: nn.Module, category: str) -> None:
    open_regions: list[record_function] = []

    def enter(*_: Any) -> None:
        open_regions.append(record_function(category))
        open_regions[-1].__enter__()

    def leave(*_: Any) -> None:
        open_regions.pop().__exit__(None, None, None)

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave)


def _train(
    config: Config, data: DeviceData, net: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None, steps: int
) -> None:
    """The loop of model.train, in regions."""
    net.train()
    generator = torch.Generator().manual_seed(0)
    examples = len(data.train_labels)
    order = torch.randperm(examples, generator=generator).to(data.device)
    choices = draw(examples, config, generator).to(data.device)
    for step in range(steps):
        with record_function(DATA):
            first = step % (examples // config.batch_size) * config.batch_size
            batch = slice(first, first + config.batch_size)
            index = order[batch]
            inputs = augment(data.train_images[index], choices.of(batch), config, data.mean, data.std)
            labels = data.train_labels[index]
        with autocast(config, data.device):
            logits = net(inputs)
        with record_function(HEAD):
            loss = cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
        with record_function(OPTIMISER):
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        with record_function(OPTIMISER):
            optimizer.step()
            if ema:
                ema.update(net, step, progress=0.5)


def _by_category(events: Iterable[Any], cuda: bool) -> dict[str, float]:
    """Seconds of the operators themselves: on CUDA of the kernels that they start."""
    seconds = dict.fromkeys(CATEGORIES, 0.0)
    for event in events:
        if event.device_type != DeviceType.CPU or event.name in CATEGORIES:  # a region's own time is Python's
            continue
        category = _category(event)
        if category:
            seconds[category] += (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6
    return seconds


def _category(event: Any) -> str | None:
    """Of an operator's event: that of the nearest region or node of the backward pass around it."""
    around = event
    while around is not None:
        if around.name in CATEGORIES:
            return around.name
        if around.name.startswith(ENGINE):
            if event.name.startswith("aten::add") and event.cpu_parent is around:
                return POOL  # gradients of the two ways past a residual meet
            # Flatten, scaling, the classifier and the loss have nodes of many names.
            return next((category for part, category in BACKWARD if part in around.name), HEAD)
        around = around.cpu_parent
    return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Discard what the profiler's library writes to the process's stderr: on a machine without a GPU it complains."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def describe_profile(seconds: dict[str, float], config: Config, examples: int) -> str:
    """A table of what `profile` found: milliseconds of a step and their share of it, then the evaluation.

    Args:
        examples: training images of the data.
    """
    step_s, steps = seconds["step"], config.trained_images(examples) // config.batch_size
    lines = [f"{'':22}{'ms per step':>12}{'share':>8}"]
    for name, part_s in seconds.items():
        if name != "evaluation":
            lines.append(f"{name:22}{1e3 * part_s:12.2f}{100 * part_s / step_s:7.1f}%")
    evaluation_s = seconds["evaluation"]
    share = evaluation_s / (step_s * steps + evaluation_s)
    lines.append(f"one evaluation: {evaluation_s:.2f} s, {100 * share:.1f}% of an epoch of {steps} steps")
    return "\n".join(lines)
