"""The parts of which the nets are made that torch doesn't have, or not as fast."""

import math
from typing import Any

import torch
from torch import nn
from torch.nn.functional import batch_norm, pad

CELU_CHUNK = 2**17  # elements; stays in two cores' caches


class Residual(nn.Module):
    """skip(x) + branch(x); without a skip x itself."""

    def __init__(self, branch: nn.Module, skip: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.skip = nn.Identity() if skip is None else skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.skip(x) + self.branch(x)


class Subsample(nn.Module):
    """Every second pixel of every second row, and as many channels of zeros behind: [B, C, H, W] -> [B, 2 C, H / 2,
    W / 2]. Shortcut A of He et al. 2015: it has no weights."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, x.shape[1]))


class Scale(nn.Module):
    """x times a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


class EverySecond(nn.Conv2d):
    """1x1 convolution of every second pixel of every second row: [B, C, H, W] -> [B, c_out, H / 2, W / 2].

    The same as stride 2, whose backward pass in torch 2.14 writes beyond its memory on CPUs without AVX-512, in NHWC
    with less than 8 channels, and kills the process there or later.
    """

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x[:, :, ::2, ::2])


class Celu(nn.Module):
    """max(0, x) + min(0, alpha * (exp(x / alpha) - 1)), in place."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.celu_(x, self.alpha) if x.is_cuda else _CpuCelu.apply(x, self.alpha)


class _CpuCelu(torch.autograd.Function):
    """torch's celu on CPUs spends its time in expm1; exp in fp32 is as good here, and 7 x as fast in small chunks."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, alpha: float) -> torch.Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        log_alpha = torch.tensor(math.log(alpha), dtype=wide)
        for part in x.split(max(1, CELU_CHUNK * len(x) // max(1, x.numel()))):
            values = part.to(wide)  # part itself, unless it is bf16
            # alpha * exp(x / alpha) - alpha lies above x below zero, and is cut to 0 above: the larger one counts
            negative = torch.add(log_alpha, values, alpha=1 / alpha).exp_().clamp_(max=alpha).sub_(alpha)
            part.copy_(torch.maximum(values, negative, out=values))
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        ctx.alpha = alpha
        return x

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (out,) = ctx.saved_tensors
        return torch.ops.aten.elu_backward(grad, ctx.alpha, 1, 1 / ctx.alpha, True, out), None


class GhostNorm(nn.BatchNorm2d):
    """Batch norm of each `ghost_batch` images that follow one another: [B, C, H, W] -> the same.

    The running statistics are the mean of those that each group would keep (post 8).
    """

    def __init__(self, channels: int, ghost_batch: int) -> None:
        super().__init__(channels)
        self.ghost_batch = ghost_batch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        groups = len(x) // self.ghost_batch
        means, variances = self.running_mean.repeat(groups, 1), self.running_var.repeat(groups, 1)
        if x.is_cuda:  # one kernel over groups x channels instead of one per group
            out = merged_norm(x, means, variances, self.weight, self.bias, self.momentum, self.eps)
        else:
            parts = zip(x.split(self.ghost_batch), means, variances, strict=True)
            fixed = (self.weight, self.bias, True, self.momentum, self.eps)
            out = torch.cat([batch_norm(part, mean, variance, *fixed) for part, mean, variance in parts])
        self.running_mean.copy_(means.mean(0))
        self.running_var.copy_(variances.mean(0))
        return out


def merged_norm(
    x: torch.Tensor,
    means: torch.Tensor,
    variances: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    momentum: float,
    eps: float,
) -> torch.Tensor:
    """Batch norm of equal consecutive groups of x [B, C, H, W] as one with groups x C channels; running statistics
    [groups, C] are updated in place."""
    groups, channels = means.shape
    side_by_side = x.unflatten(0, (groups, -1)).transpose(0, 1).flatten(1, 2)  # [B / groups, groups * C, H, W]
    scales, biases = scale.repeat(groups), bias.repeat(groups)
    out = batch_norm(side_by_side, means.view(-1), variances.view(-1), scales, biases, True, momentum, eps)
    out = out.unflatten(1, (groups, channels)).transpose(0, 1).flatten(0, 1)
    return out.contiguous(memory_format=torch.channels_last)


class Interleaved(nn.Module):
    """Runs a net that works on groups of consecutive images so that group i of k holds the images i, i + k, ...

    So post 8 splits a batch. Moving the input once is cheaper than strided statistics in every norm.
    """

    def __init__(self, net: nn.Module, ghost_batch: int) -> None:
        super().__init__()
        self.net, self.ghost_batch = net, ghost_batch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return self.net(x)
        channels_last = x.permute(0, 2, 3, 1)
        grouped = channels_last.unflatten(0, (self.ghost_batch, -1)).transpose(0, 1).flatten(0, 1)
        return self.net(grouped.permute(0, 3, 1, 2)).unflatten(0, (-1, self.ghost_batch)).transpose(0, 1).flatten(0, 1)


class FrozenNorm(nn.BatchNorm2d):
    """Batch norm whose statistics are those of one batch, measured by `fit_to_data`, for ever (post 7)."""

    measuring = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, var = self.running_mean, self.running_var
        if self.measuring:
            batch_norm(x, mean, var, training=True, momentum=1.0, eps=self.eps)
        return batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)


class MaxAndMean(nn.Module):
    """Global max and global mean side by side: [B, C, H, W] -> [B, 2 C]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.amax(dim=(2, 3)), x.mean(dim=(2, 3))], dim=1)
