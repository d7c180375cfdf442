"""Accuracy and loss on the held-out images."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from model.augment import normalise
from model.config import Config
from model.data import DeviceData

EVAL_BATCH = 1000


def autocast(config: Config, device: torch.device) -> torch.autocast:
    """The context in which forward passes run: bf16 where the config asks for it, else nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")


@torch.inference_mode()
def evaluate(net: nn.Module, config: Config, data: DeviceData) -> tuple[float, float]:
    """Accuracy (0..1) and mean cross entropy over all evaluation images, with running batch-norm statistics."""
    net.eval()
    correct = torch.zeros((), dtype=torch.int64, device=data.device)
    loss = torch.zeros((), dtype=torch.float64, device=data.device)
    for images, labels in zip(data.eval_images.split(EVAL_BATCH), data.eval_labels.split(EVAL_BATCH), strict=True):
        with autocast(config, data.device):
            logits = net(normalise(images, data.mean, data.std))
        correct += (logits.argmax(dim=1) == labels).sum()
        loss += cross_entropy(logits.float(), labels, reduction="sum").double()
    count = len(data.eval_labels)
    return correct.item() / count, loss.item() / count
