"""One training run over several processes, its ranks: each on a device of its own, each with a share of every batch.

Rank r of k trains on the images r, r + k, ... of a batch. Batch norm sees a rank's share only, as ghost batch norm
would; gradients and running statistics are averaged over the ranks, so all hold the same state after every epoch.
"""

import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def place() -> tuple[int, int]:
    """(this process's rank, number of ranks); (0, 1) outside of a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def data_parallel(net: nn.Module) -> nn.Module:
    """The net, in a process group with gradients that are averaged over the ranks in the backward pass."""
    if place()[1] == 1:
        return net
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")  # its successor is new in 2.14
        return DistributedDataParallel(net, broadcast_buffers=False)


@torch.no_grad()
def average(tensors: list[torch.Tensor]) -> None:
    """Replace each tensor by its mean over the ranks, in place."""
    ranks = place()[1]
    if ranks > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor /= ranks


def running_statistics(net: nn.Module) -> list[torch.Tensor]:
    """The batch-norm statistics of a net: all of its floating-point buffers."""
    return [buffer for buffer in net.buffers() if buffer.is_floating_point()]
