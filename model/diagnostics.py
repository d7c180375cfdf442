"""What experiments look at besides accuracy: numbers measured on a net at the end of its training.

A measure leaves the state as it was, in mode, statistics and optimiser, and the caller's random state alone. What it
finds is named by a word, such as `step_s`, or, where it belongs to a series, by the series and a place in it: a number,
as in `recency 0.25`, or a layer or part, as in `share norm`.
"""

from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy

from model.config import Config
from model.curvature import curvature
from model.data import DeviceData
from model.dynamics import steps
from model.evaluate import autocast
from model.profile import profile
from model.train import TrainState, batches

MEASURED = "measured/"
"""before the name of what was measured, where it stands among the metrics of a training's last epoch"""
AGES = 10  # bins of an epoch


@torch.inference_mode()
def recency(config: Config, data: DeviceData, state: TrainState, seed: int) -> dict[str, float]:
    """Loss of the last epoch's batches by how long ago they were trained on (post 2; claims C06, C07).

    Each batch is given to the final net once more, in the order and with the augmented inputs of its training, but
    with running batch-norm statistics and without label smoothing, so that losses compare with the held-out one.

    Returns:
        "recency A", the mean cross entropy of the batches of a tenth of an epoch, A its middle: epochs before the end
        of training; an epoch of fewer than ten batches has one for each. "old_loss", that of the batches trained on
        half an epoch before the end or earlier.
    """
    net = state.scored_net
    was_training = net.training
    net.eval()
    losses = []
    for inputs, labels in batches(config, data, seed, state.epoch - 1):
        with autocast(config, data.device):
            logits = net(inputs)
        losses.append(cross_entropy(logits.float(), labels))
    net.train(was_training)
    newest_first, steps = torch.stack(losses).flip(0).cpu(), len(losses)
    bins = min(AGES, steps)
    place = torch.arange(steps) * bins // steps
    found = {f"recency {(each + 0.5) / bins:g}": newest_first[place == each].mean().item() for each in range(bins)}
    return {**found, "old_loss": newest_first[steps // 2 :].mean().item()}


def layer_times(config: Config, data: DeviceData, state: TrainState, seed: int) -> dict[str, float]:
    """Where the time of a training step goes (post 3; claim C08), see `model.profile`.

    Returns:
        "share PART" of a step's time for each part, 0..1, and "step_s". Beside other work on the device the shares say
        more than the seconds.
    """
    seconds = profile(config, data)
    step_s = seconds.pop("step")
    del seconds["evaluation"]  # no part of a step
    return {"step_s": step_s, **{f"share {part}": part_s / step_s for part, part_s in seconds.items()}}


MEASURES: dict[str, Callable[[Config, DeviceData, TrainState, int], dict[str, float]]] = {
    "recency": recency,
    "layer_times": layer_times,
    "steps": steps,
    "curvature": curvature,
}
"""by the name that an experiment gives; the last argument is the seed of the training"""
