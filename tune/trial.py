"""One slot of the search: a Ray trainable around `model.train` that stays alive from trial to trial."""

import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import ray
import torch
from ray import tune as ray_tune

from model.config import Config, InputError
from model.data import Dataset, to_device
from model.diagnostics import MEASURED, MEASURES
from model.memory import ran_out_of_memory, release_freed_memory
from model.meter import peak_memory, reset_peak_memory
from model.ranks import RankError, Ranks
from model.train import EpochMetrics, TrainState, best_device, init_state, train
from tune.checkpoint import Checkpoints

RANK_DEATHS = 3  # a trial that lost a rank this often is not tried again


class Worker(ray_tune.Trainable):
    """Runs one trial after another in one process: torch, the data and the CUDA context are set up once.

    What it is given is {"number", "config" (all of it), "seed", "until_epoch"}: one leg of a trial, from where its
    checkpoint ends to that epoch. Each step trains one epoch, saves the checkpoint, then reports; so a trial whose
    worker dies goes on from its last epoch in another worker. The first report also holds the epochs of the
    checkpoint, in case the driver never saw them. The last epoch of a whole training also holds what is measured then.

    An error other than of the config, or a lack of memory, may have left this process unfit for any training (after a
    failed assertion on a GPU nothing runs there any more). So the worker reports why the trial failed and raises in its
    next step: Ray then ends the process, and the next trial gets a new one.
    """

    def setup(  # type: ignore[override]  # with_parameters() gives the rest
        self,
        config: dict[str, Any],
        dataset: Dataset,
        checkpoints: Checkpoints,
        threads: int,
        ranks: int,
        gpus: float,
        measure: str | None,
    ) -> None:
        assert measure is None or ranks == 1
        self._dataset, self._threads, self._ranks = dataset, threads, ranks
        self._measure = MEASURES[measure] if measure else None
        self._device = best_device(gpus)  # not what this process sees: without a share it may see all
        self._shares_memory = gpus < 1  # with other trials: what is too much beside them may fit later
        self._group: Ranks | None = None
        self._is_broken = False
        if ranks == 1:
            torch.set_num_threads(threads)
            self._data = to_device(dataset, self._device)
        self._checkpoints = checkpoints
        mine = ray.get_runtime_context().get_accelerator_ids()["GPU"]
        # which slot trained an epoch, and with how much: a run may go on on another machine
        self._worker = {"host": platform.node(), "pid": os.getpid(), "gpus": mine, "threads": threads}
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._config = Config.from_dict(new_config["config"])
        self._seed, self._until_epoch = new_config["seed"], new_config["until_epoch"]
        self._number = new_config["number"]
        self._history: list[dict[str, Any]] = []
        self._unreported: list[dict[str, Any]] = []
        self._rank_deaths = 0
        self._state: TrainState | None = None  # where there is one rank
        self._state_dict: Callable[[], dict[str, Any] | None] | None = None
        self._epochs: Iterator[EpochMetrics] | None = None  # made in the first step, where it may fail
        return True

    def cleanup(self) -> None:
        if self._group:
            self._group.close()
        self._group = None

    def step(self) -> dict[str, Any]:
        if self._is_broken:
            raise RuntimeError("the process may be unfit for any training since the last error, which was reported")
        began_s = time.time()
        failed = disk_error = metrics = None
        out_of_memory = False
        try:
            metrics = self._next_epoch()
            if metrics:
                measured = self._measured(metrics)
                entry = asdict(metrics) | {"diverged": metrics.diverged, **self._worker}
                entry |= {"began_s": began_s, "ended_s": time.time()}
                if self._ranks == 1:
                    entry |= peak_memory(self._device)
                entry |= measured
        except Exception as error:  # whatever goes wrong in one trial must not end the search
            metrics = None
            said = str(error).partition("\n")[0]
            failed = said if isinstance(error, InputError) else f"{type(error).__name__}: {said}"
            short = ran_out_of_memory(error)
            out_of_memory = self._shares_memory and short
            self._is_broken = not (short or isinstance(error, InputError))
            self.cleanup()  # of ranks in which an error was raised none is left
        if metrics:
            self._history.append(entry)
            self._unreported.append(entry)
            try:
                self._save()
            except OSError as error:  # a full disk is no fault of this trial
                disk_error = f"trial {self._number}'s checkpoint: {error.strerror or error}"
        done = not self._is_broken and (not metrics or metrics.diverged or metrics.epoch == self._until_epoch)
        if done:
            self._state = self._state_dict = self._epochs = None  # frees the net before the next trial builds its own
            if self._shares_memory:
                release_freed_memory()
        new_epochs, self._unreported = self._unreported, []
        return {
            "new_epochs": new_epochs,
            "acc": new_epochs[-1]["acc"] if new_epochs else math.nan,
            "failed": failed,
            "out_of_memory": out_of_memory,
            "disk_error": disk_error,
            "done": done,
            "node": ray.get_runtime_context().get_node_id(),
        }

    def _next_epoch(self) -> EpochMetrics | None:
        """Train one epoch, if the leg is not over; where a rank dies, go on from the checkpoint, a few times."""
        try:
            if self._epochs is None:
                self._epochs = self._start()
            over = len(self._history) >= self._until_epoch or (self._history and self._history[-1]["diverged"])
            return None if over else next(self._epochs)
        except RankError:
            self._group = self._epochs = None
            self._rank_deaths += 1
            if self._rank_deaths == RANK_DEATHS:
                raise
        return self._next_epoch()

    def _measured(self, metrics: EpochMetrics) -> dict[str, float]:
        """What the experiment measures, if the training has just come to its end."""
        if not (self._measure and metrics.epoch == self._config.epochs and not metrics.diverged):
            return {}
        assert self._state is not None
        found = self._measure(self._config, self._data, self._state, self._seed)
        return {f"{MEASURED}{name}": value for name, value in found.items()}

    def _start(self) -> Iterator[EpochMetrics]:
        """The trial's epochs from where its checkpoint ends, or from the beginning."""
        saved = self._checkpoints.load(self._number)
        if saved:
            self._history = saved["history"]
            self._unreported = list(self._history)
        if self._ranks > 1:
            group = self._group = self._group or Ranks(
                self._dataset, self._ranks, threads=self._threads, device=self._device
            )
            self._state_dict = lambda: group.state
            return group.train(self._config, seed=self._seed, state=saved["state"] if saved else None)
        reset_peak_memory(self._device)
        self._state = state = init_state(self._config, self._data, self._seed)
        if saved:
            state.load_state_dict(saved["state"])
        self._state_dict = state.state_dict
        return train(self._config, self._data, seed=self._seed, state=state)

    def _save(self) -> None:
        assert self._state_dict is not None
        self._checkpoints.save(self._number, {"state": self._state_dict(), "history": self._history})
