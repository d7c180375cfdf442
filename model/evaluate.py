"""Accuracy and loss on the held-out images: the averaged weights, the averaged views."""

from copy import deepcopy

import torch
from torch import nn
from torch.nn.functional import cross_entropy, pad

from model.augment import SIDE_PX, normalise
from model.config import Config
from model.data import DeviceData
from model.parallel import average, place

EVAL_BATCH = 250  # on CPUs activations then stay in the cache: 1.4 x as fast as 1,000 at width 16


class Ema:
    """A copy of the net whose floating-point state, batch-norm statistics included, follows by a moving average.

    Every `every_steps` steps it moves by 1 - decay**every_steps; the count starts anew with each epoch (post 8). With
    `lookahead` it moves by 1 - decay**every_steps * progress**3, and the net is set to it (arXiv 2404.00498, 3.4).
    """

    def __init__(self, net: nn.Module, *, decay: float, every_steps: int, lookahead: bool = False) -> None:
        self.net = deepcopy(net).requires_grad_(False)
        self._decay, self._every_steps, self._lookahead = decay, every_steps, lookahead

    @torch.no_grad()
    def update(self, net: nn.Module, step: int, progress: float) -> None:
        """Follow `net` after its step number `step` of the epoch, from 0, with a share `progress` of all steps done."""
        if step % self._every_steps == 0:
            average, fast = _floats(self.net), _floats(net)
            keep = self._decay**self._every_steps
            torch._foreach_lerp_(average, fast, 1 - (keep * progress**3 if self._lookahead else keep))
            if self._lookahead:
                torch._foreach_copy_(fast, average)


def build_ema(config: Config, net: nn.Module) -> Ema | None:
    if not config.ema_decay:
        return None
    return Ema(net, decay=config.ema_decay, every_steps=config.ema_every_steps, lookahead=config.lookahead)


def _floats(net: nn.Module) -> list[torch.Tensor]:
    return [tensor for tensor in net.state_dict().values() if tensor.is_floating_point()]


def autocast(config: Config, device: torch.device) -> torch.autocast:
    """The context in which forward passes run: bf16 or fp16 where the config asks for it, else nothing."""
    dtype = torch.float16 if config.precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=config.precision != "fp32")


@torch.inference_mode()
def evaluate(net: nn.Module, config: Config, data: DeviceData) -> tuple[float, float]:
    """Accuracy (0..1) and mean cross entropy over all evaluation images, with running batch-norm statistics.

    In a process group each rank scores its share of the images, and all return the same.
    """
    net.eval()
    rank, ranks = place()
    all_images, all_labels = data.eval_images[rank::ranks], data.eval_labels[rank::ranks]
    sums = torch.zeros(2, dtype=torch.float64, device=data.device)  # right answers, loss
    for images, labels in zip(all_images.split(EVAL_BATCH), all_labels.split(EVAL_BATCH), strict=True):
        with autocast(config, data.device):
            logits = tta_logits(net, normalise(images, data.mean, data.std), config.tta)
        sums[0] += (logits.argmax(dim=1) == labels).sum()
        sums[1] += cross_entropy(logits, labels, reduction="sum")
    average([sums])
    correct, loss = (sums * ranks / len(data.eval_labels)).tolist()
    return correct, loss


def tta_logits(net: nn.Module, images: torch.Tensor, views: str) -> torch.Tensor:
    """Logits [B, classes] in fp32, averaged over the views of images [B, 3, 32, 32] (`Config.tta`).

    flip: the image and its mirror. shift: half of that, and a quarter for each of the same two views moved by one
    pixel along the diagonal, up left and down right, over reflected borders.
    """
    if views == "none":
        return net(images).float()
    if views == "flip":
        return (net(images).float() + net(images.flip(3)).float()) / 2
    padded = pad(images, (1, 1, 1, 1), mode="reflect")
    corners = [padded[:, :, :SIDE_PX, :SIDE_PX], padded[:, :, 2:, 2:]]
    moved = [tta_logits(net, corner.contiguous(memory_format=torch.channels_last), "flip") for corner in corners]
    return tta_logits(net, images, "flip") / 2 + (moved[0] + moved[1]) / 4
