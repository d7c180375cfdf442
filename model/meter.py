"""The clock: what counts as training time."""

import time

import torch


def now_s(device: torch.device) -> float:
    """Seconds on a monotonic clock, read once everything queued on the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
