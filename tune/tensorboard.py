"""TensorBoard events. Of a trial: `val/acc`, `train/loss`, `lr`, `time/train_s`, what an experiment measured as
`measured/NAME`, sample images, config, hparams. Of a confirmed config: confusion matrix, misclassified images, sample
images, config."""

import json
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from model.augment import augment, draw
from model.config import Config
from model.data import Dataset, to_device
from model.diagnostics import MEASURED
from model.files import write_whole
from model.predict import scored_logits
from model.weights import restore_net
from tune.pictures import confusion_matrix, misclassified

SAMPLES = 8
LAYOUT = {
    "training": {
        "accuracy": ["Multiline", ["(val|test)/acc"]],
        "loss": ["Multiline", ["train/loss", "(val|test)/loss"]],
        "learning rate": ["Multiline", ["lr"]],
    }
}
"""of the tab CUSTOM SCALARS: regular expressions of tags by category and chart"""


class TrialEvents:
    """The event file of one trial. Events left by a killed search are replaced, so that no epoch stands there twice."""

    def __init__(self, folder: Path, config: Config, params: dict[str, Any], dataset: Dataset, seed: int) -> None:
        _clear(folder)
        self._writer = _writer(folder)
        self._params = params
        self._writer.add_text("config", _code(config.to_dict()))
        self._writer.add_image("train/images", sample_images(config, dataset, seed))
        if folder.name == "0":  # one layout serves the whole run; the trial that every run has carries it
            self._writer.add_custom_scalars(LAYOUT)

    def epoch(self, metrics: dict[str, Any]) -> None:
        split, step = metrics["split"], metrics["epoch"]
        scalars = {
            f"{split}/acc": metrics["acc"],
            f"{split}/loss": metrics["loss"],
            "train/loss": metrics["train_loss"],
            "lr": metrics["lr"],
            "time/train_s": metrics["train_s"],
            **{name: value for name, value in metrics.items() if name.startswith(MEASURED)},
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
            params = {name: str(value) if isinstance(value, bool) else value for name, value in self._params.items()}
            events = self._writer._get_file_writer()  # add_hparams() would make a folder of its own for each trial
            # The first summary would name the columns of the whole view, of which TensorBoard takes an arbitrary
            # trial's. Without any it finds them itself: every hparam, then every scalar, final/acc first.
            for summary in hparams(params, {})[1:]:
                events.add_summary(summary)
            for tag, value in final.items():
                self._writer.add_scalar(tag, value, last["epoch"])
        self._writer.close()


def confirm_events(
    folder: Path, config: Config, dataset: Dataset, state_dict: dict[str, torch.Tensor], facts: dict[str, Any]
) -> None:
    """Write what a confirmed net does on the test images into `folder`, in place of what an earlier call wrote.

    Args:
        dataset: the one the net was scored on, test images as its evaluation images.
        state_dict: of the scored net; it is evaluated on the device of its tensors.
        facts: JSON values to show, such as its row of confirm.json; "seed" draws the augmented samples.
    """
    net = restore_net(config, len(dataset.classes), state_dict)
    data = to_device(dataset, next(iter(state_dict.values())).device)
    probabilities = scored_logits(net, config, data.eval_images, data.mean, data.std).softmax(dim=1).cpu()
    with TemporaryDirectory() as made:  # TensorBoard can't write to a path that is no UTF-8
        writer = _writer(Path(made))
        writer.add_text("config", _code(config.to_dict()))
        writer.add_text("confirm", _code(facts))
        writer.add_image("test/confusion", confusion_matrix(probabilities, dataset), dataformats="HWC")
        writer.add_image("test/misclassified", misclassified(probabilities, dataset), dataformats="HWC")
        writer.add_image("train/images", sample_images(config, dataset, int(facts.get("seed", 0))))
        writer.close()
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)
        for file in Path(made).iterdir():
            write_whole(folder / file.name, file.read_bytes())


def sample_images(config: Config, dataset: Dataset, seed: int) -> torch.Tensor:
    """A row of training images as the net sees them: uint8 [3, H, W]; cutout shows as the mean colour."""
    data = to_device(dataset, torch.device("cpu"))
    images = data.train_images[:SAMPLES]
    choices = draw(len(images), config, torch.Generator().manual_seed(seed))
    inputs = augment(images, choices, config, data.mean, data.std)
    pixels = inputs * data.std[:, None, None] + data.mean[:, None, None]
    framed = torch.nn.functional.pad(pixels.round().clamp(0, 255).to(torch.uint8), (1, 1, 1, 1))
    return framed.permute(1, 2, 0, 3).flatten(2)  # torchvision's make_grid takes as long to import as torch itself


def _writer(folder: Path) -> SummaryWriter:
    threading.excepthook = _thread_error
    return SummaryWriter(str(folder), flush_secs=10)


def _clear(folder: Path) -> None:
    """Remove events that an earlier writer left."""
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()


def _thread_error(error: threading.ExceptHookArgs) -> None:
    """Say what a thread died of, as Python does; but a writer of events leaves its error to the next call of it."""
    if not (isinstance(error.exc_value, OSError) and type(error.thread).__module__.startswith("tensorboard.")):
        threading.__excepthook__(error)


def _code(content: dict[str, Any]) -> str:
    """JSON as a block of code in Markdown: none of its lines can end the block, whatever its strings are."""
    return "```json\n" + json.dumps(content, indent=2) + "\n```"
