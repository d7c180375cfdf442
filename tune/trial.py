"""One slot of the search: a Ray trainable around `model.train` that stays alive from trial to trial."""

import io
import math
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune as ray_tune

from model.config import Config
from model.data import Dataset, to_device
from model.train import EpochMetrics, TrainState, best_device, init_state, train

CHECKPOINT = "checkpoint.pt"


class Worker(ray_tune.Trainable):
    """Runs one trial after another in one process: torch, the data and the CUDA context are set up once.

    A trial's config is {"number", "config" (all of it), "seed"}. Each step trains one epoch, saves the checkpoint,
    then reports; so a trial whose worker dies goes on from its last epoch in another worker. The first report also
    holds the epochs of the checkpoint, in case the driver never saw them.
    """

    def setup(  # type: ignore[override]  # with_parameters() gives the rest
        self, config: dict[str, Any], dataset: Dataset, run_dir: str, threads: int
    ) -> None:
        torch.set_num_threads(threads)
        self._data = to_device(dataset, best_device())
        self._run_dir = Path(run_dir)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._folder = self._run_dir / "trials" / str(new_config["number"])
        self._folder.mkdir(exist_ok=True)
        self._unreported: list[dict[str, Any]] = []
        self._epochs: Iterator[EpochMetrics] = iter(())
        self._state: TrainState | None = None  # the trial starts in its first step, where it may fail
        return True

    def step(self) -> dict[str, Any]:
        failed = disk_error = None
        try:
            if self._state is None:
                self._start()
            metrics = next(self._epochs, None)
        except Exception as error:  # whatever goes wrong in one trial must not end the search
            metrics, failed = None, f"{type(error).__name__}: {error}"
        if metrics:
            entry = asdict(metrics) | {"diverged": metrics.diverged}
            self._history.append(entry)
            self._unreported.append(entry)
            try:
                self._save()
            except OSError as error:  # a full disk is no fault of this trial
                disk_error = f"{self._folder}: {error.strerror}"
        new_epochs, self._unreported = self._unreported, []
        done = failed is not None or not metrics or metrics.diverged or metrics.epoch == self._config.epochs
        if done:
            self._state, self._epochs = None, iter(())  # frees the net before the next trial builds its own
        return {
            "new_epochs": new_epochs,
            "acc": new_epochs[-1]["acc"] if new_epochs else math.nan,
            "failed": failed,
            "disk_error": disk_error,
            "done": done,
            "pid": os.getpid(),
            "gpus": ray.get_runtime_context().get_accelerator_ids()["GPU"],
        }

    def _start(self) -> None:
        self._config = Config.from_dict(self.config["config"])
        self._history: list[dict[str, Any]] = []
        self._state = init_state(self._config, self._data, self.config["seed"])
        file = self._folder / CHECKPOINT
        if file.exists():
            saved = torch.load(file, map_location=self._data.device, weights_only=True)
            self._state.load_state_dict(saved["state"])
            self._history = saved["history"]
            self._unreported = list(self._history)
        self._epochs: Iterator[EpochMetrics] = train(
            self._config, self._data, seed=self.config["seed"], state=self._state
        )

    def _save(self) -> None:
        assert self._state is not None
        content = io.BytesIO()
        torch.save({"state": self._state.state_dict(), "history": self._history}, content)
        temporary = self._folder / f"{CHECKPOINT}.{os.getpid()}"
        temporary.write_bytes(content.getbuffer())
        temporary.replace(self._folder / CHECKPOINT)  # atomic: there is always one whole checkpoint
