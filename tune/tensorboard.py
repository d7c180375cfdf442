"""TensorBoard events of the trials: `val/acc`, `train/loss`, `lr`, `time/train_s`, sample images, config, hparams."""

import json
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from torchvision.utils import make_grid

from model.augment import augment, draw
from model.config import Config
from model.data import Dataset, to_device

SAMPLES = 8


class TrialEvents:
    """The event file of one trial. Events left by a killed search are replaced, so that no epoch stands there twice."""

    def __init__(self, folder: Path, config: Config, params: dict[str, Any], dataset: Dataset, seed: int) -> None:
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = SummaryWriter(str(folder), flush_secs=10)
        self._params = params
        self._writer.add_text("config", "```json\n" + json.dumps(config.to_dict(), indent=2) + "\n```")
        self._writer.add_image("train/images", sample_images(config, dataset, seed))

    def epoch(self, metrics: dict[str, Any]) -> None:
        split, step = metrics["split"], metrics["epoch"]
        scalars = {
            f"{split}/acc": metrics["acc"],
            f"{split}/loss": metrics["loss"],
            "train/loss": metrics["train_loss"],
            "lr": metrics["lr"],
            "time/train_s": metrics["train_s"],
        }
        for tag, value in scalars.items():
            if value is not None:
                self._writer.add_scalar(tag, value, step)
        self._writer.flush()

    def close(self, last: dict[str, Any] | None, *, complete: bool) -> None:
        """Write the hparams with the trial's last metrics. `final/acc` is there for a trial that ran to the end only,
        so that sorting by it compares like with like."""
        if last:
            final = {"final/acc": last["acc"]} if complete else {}
            final["final/epochs"] = last["epoch"]
            events = self._writer._get_file_writer()  # add_hparams() would make a folder of its own for each trial
            for summary in hparams(self._params, final):
                events.add_summary(summary)
            for tag, value in final.items():
                self._writer.add_scalar(tag, value, last["epoch"])
        self._writer.close()


def sample_images(config: Config, dataset: Dataset, seed: int) -> torch.Tensor:
    """A grid of training images as the net sees them: uint8 [3, H, W]; cutout shows as the mean colour."""
    data = to_device(dataset, torch.device("cpu"))
    images = data.train_images[:SAMPLES]
    choices = draw(len(images), config, torch.Generator().manual_seed(seed))
    inputs = augment(images, choices, config, data.mean, data.std)
    pixels = inputs * data.std[:, None, None] + data.mean[:, None, None]
    return make_grid(pixels.round().clamp(0, 255).to(torch.uint8), nrow=8)
