"""The memory that training needs, estimated before it starts, and what is free."""

import ctypes
import weakref
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.augment import CHANNELS, SIDE_PX
from model.config import RESNETS, Config, InputError
from model.evaluate import EVAL_BATCH
from model.layers import Celu
from model.machine import available_memory_bytes
from model.meter import DTYPES
from model.net import WHITEN_CHUNK, WHITEN_IMAGES, build_net

GIB = 2**30
IMAGE_BYTES = SIDE_PX * SIDE_PX * CHANNELS
FLOAT_BYTES = 4
MANY = 1_000_000  # images of a batch beside which the weights weigh nothing
CPU_BYTES = 90 * 2**20
"""What training takes on CPUs besides its tensors: the libraries' first use."""
HEAP_FACTOR = 1.7
"""Bytes of glibc's heap for each byte of the tensors that come and go, measured together with `CPU_BYTES`. Blocks of
many sizes leave holes that fit none of the next ones: over 33 steps the heap grows by up to a half, then hardly."""
PROCESS_BYTES = 590 * 2**20  # of a Python process that has imported torch, measured
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "_ALLOC_FAILED")
"""what errors say that have no type of their own: torch's on CPUs, CUDA's outside of torch's reserve, cuBLAS's and
cuDNN's"""
OPTIMIZER_COPIES = {"sgd": 1, "lars": 1, "muon": 1, "rmsprop": 1, "adagrad": 1, "adadelta": 2, "adam": 2}
"""numbers that a solver keeps for each trained weight"""


class OutOfMemory(InputError):
    """A training that can't fit into the memory that is free now."""


@dataclass(frozen=True)
class Needs:
    """What one trial needs, in bytes."""

    held: int
    """from start to end: data set, weights, gradients, optimiser, moving average, the copy that undoes the warm-up
    step, and `CPU_BYTES`"""
    per_image: int
    """at the worst moment of a training step, for each image of the batch, with the heap's holes"""
    passing: int
    """at the worst of the moments that don't depend on the batch: evaluation, the update of the weights, whitening;
    with the heap's holes"""

    def of_batch(self, batch_size: int) -> int:
        return self.held + max(self.per_image * batch_size, self.passing)


def ran_out_of_memory(error: Exception) -> bool:
    """Whether this is what torch, CUDA's libraries or Python raise where memory is short. Nothing is broken then: the
    same process may train what needs less."""
    known = isinstance(error, OutOfMemory | MemoryError | torch.OutOfMemoryError)
    return known or any(text in str(error) for text in NO_MEMORY)


def keep_freed_memory() -> None:
    """Let this process keep what its tensors free for the next ones, where the C library is glibc.

    By default each large block goes back to the system, which hands it out again page by page, zeroed: at width 16 with
    batches of 512 that made a step of s0 take 580 ms instead of 430 (one thread of an AMD EPYC of family 26, virtual).
    With blocks of 4 MiB or more taken from the system there are no holes in the heap (`HEAP_FACTOR`), but a step took
    880 ms, and 500 ms where torch asks for huge pages; so holes are put up with.
    """
    with suppress(OSError, AttributeError):  # no glibc
        libc = ctypes.CDLL("libc.so.6")
        for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            libc.mallopt(parameter, -1)  # without limit


def release_freed_memory() -> None:
    """Give back what torch and `keep_freed_memory` kept for later: other processes may need it before this one."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def needed_bytes(config: Config, num_classes: int, examples: int) -> int:
    """Memory that training takes on CPUs, without training: what one trial adds to a process that has imported torch.

    From 6% below to 42% above the peak RSS measured over 33 to 300 steps for s0, s8, dawn and resnet20 at widths 8 to
    32, batches of 128 to 512, fp32 and bf16 (AMD EPYC of family 26, glibc 2.36).

    Args:
        examples: images of the data set, which stays on the device. 0 leaves it out.
    """
    return needs_of(config, num_classes, examples).of_batch(config.batch_size)


def needs_of(config: Config, num_classes: int, examples: int) -> Needs:
    net = _meta_net(config, num_classes)
    weights = sum(tensor.nbytes for tensor in net.state_dict().values())
    trained = sum(weight.nbytes for weight in net.parameters() if weight.requires_grad)
    _lower(net, DTYPES[config.precision])
    kept = weights * (2 if config.ema_decay else 1)
    held = CPU_BYTES + examples * IMAGE_BYTES + 2 * kept + trained * (1 + OPTIMIZER_COPIES[config.solver])
    normalised = FLOAT_BYTES * IMAGE_BYTES * min(WHITEN_IMAGES, examples)
    patches = FLOAT_BYTES * CHANNELS * config.whiten_px**2 * (SIDE_PX - config.whiten_px + 1) ** 2
    # The patches of a chunk, a copy of them, and those of the chunk before.
    whitening = 3 * patches * min(WHITEN_CHUNK, examples) if config.whiten else 0
    fitting = normalised + whitening if config.whiten or config.norm == "frozen" else 0
    with torch.no_grad():
        scoring = _peak_bytes_per_image(config, net.eval()) * EVAL_BATCH
    # The update makes one more copy of what it adds to the weights.
    passing = max(trained, scoring, fitting)
    return Needs(held, int(HEAP_FACTOR * _peak_bytes_per_image(config, net.train())), int(HEAP_FACTOR * passing))


def _meta_net(config: Config, num_classes: int) -> nn.Module:
    """The net on the meta device: shapes without numbers, so that a batch of any size costs nothing."""
    with torch.device("meta"):
        # Two ghosts of any size need as much memory as many small ones.
        net = build_net(
            replace(config, batch_size=MANY, ghost_batch=MANY // 2 if config.ghost_batch else 0), num_classes
        )
    for parent in list(net.modules()):
        for name, module in parent.named_children():
            if isinstance(module, Celu):  # works in small chunks on all but CUDA
                setattr(parent, name, nn.CELU(module.alpha, inplace=True))
    return net


def _lower(net: nn.Module, dtype: torch.dtype) -> None:
    """Do to a net on the meta device what autocast does elsewhere, but not there."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(dtype)


def _peak_bytes_per_image(config: Config, net: nn.Module) -> int:
    """The most bytes alive at once while a batch passes forward and, where gradients are on, backward."""
    images = torch.empty(MANY, SIDE_PX, SIDE_PX, CHANNELS, device="meta").permute(0, 3, 1, 2)
    labels = torch.zeros(MANY, dtype=torch.int64, device="meta")
    with _Alive() as alive:
        loss = cross_entropy(net(images.to(DTYPES[config.precision])).float(), labels)
        if loss.requires_grad:
            loss.backward()
    net.zero_grad(set_to_none=True)
    return (alive.peak + images.nbytes) // MANY


class _Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is on and still referred to, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._storages: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:  # of an input, or a view of it
            return

        def gone(_: Any) -> None:
            self.now -= size
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def available_bytes(device: torch.device) -> int:
    """Memory that is free now: of the GPU, or what the machine and the control groups of this process leave."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory_bytes()


def check_memory(config: Config, num_classes: int, examples: int, device: torch.device) -> None:
    """Raises OutOfMemory when training can't fit into the memory that is free, before the system kills the process.

    On CUDA nothing is checked: running out of memory raises an error there.
    """
    if device.type == "cuda":
        return
    free = available_bytes(device)
    if _at_most_bytes(config, examples) <= free:
        return
    needs = needs_of(config, num_classes, examples)
    if needs.of_batch(config.batch_size) > free:
        fits = largest_multiple(needs, config, free)
        advice = f"lower batch_size (at most {fits:,} would fit) or width" if fits else "lower width"
        raise OutOfMemory(
            f"batch_size = {config.batch_size} at width = {config.width} needs about "
            f"{needs.of_batch(config.batch_size) / GIB:.1f} GiB of memory, and {free / GIB:.1f} GiB are free: {advice}"
        )


def _at_most_bytes(config: Config, examples: int) -> int:
    """A bound on `needed_bytes` that takes no time: the first use of the meta device imports for a second.

    The largest net of the posts, dawn or layers 1, 2, 3 all with residual and extra convolutions, stays below 2,800
    width^2 weights and 30 images' worth of the first activation, and deep nets below 65 width^2 and 1.5 for each layer.
    """
    layers = int(config.net.removeprefix("resnet")) if config.net in RESNETS else 20
    weights = 150 * layers * (config.width + 4) ** 2 * FLOAT_BYTES
    activation = 2 * (config.width + 32) * SIDE_PX**2 * FLOAT_BYTES
    passing = int(HEAP_FACTOR * activation * max(layers * config.batch_size, 20 * EVAL_BATCH))
    return CPU_BYTES + examples * IMAGE_BYTES + 8 * weights + passing


def largest_multiple(needs: Needs, config: Config, free: int) -> int:
    """The largest batch whose needs are at most `free` bytes, a multiple of ghost_batch; 0 if there is none."""
    if needs.held + needs.passing > free:
        return 0
    return (free - needs.held) // needs.per_image // (config.ghost_batch or 1) * (config.ghost_batch or 1)
