"""Where the trainings of a confirmation run: each has its device to itself, so that its time is a time."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from model.config import Config
from model.data import Dataset, to_device
from model.meter import peak_memory, reset_peak_memory
from model.ranks import Ranks
from model.train import EpochMetrics, best_device, init_state, train


class Place:
    """A device, or as many as a trial has ranks, on which one training runs at a time.

    Args:
        ranks: the processes that train; None trains in this one.
    """

    def __init__(self, name: str, dataset: Dataset, ranks: Ranks | None) -> None:
        self.name, self._ranks = name, ranks
        self.peak_mib: float | None = None
        """most memory of the last training, known where this process trains: of tensors on a GPU, else resident"""
        if ranks is None:
            self._device = best_device()
            self._data = to_device(dataset, self._device)

    def train(self, config: Config, seed: int) -> Iterator[EpochMetrics]:
        if self._ranks:
            yield from self._ranks.train(config, seed=seed)
            return
        reset_peak_memory(self._device)
        self._state = init_state(config, self._data, seed)
        yield from train(config, self._data, seed=seed, state=self._state)
        memory = peak_memory(self._device)
        self.peak_mib = memory.get("allocated_mib", memory.get("rss_mib"))

    def scored_state(self) -> dict[str, torch.Tensor]:
        """State dict of the net whose accuracy counts, after a training."""
        if self._ranks:
            assert self._ranks.state
            state: dict[str, torch.Tensor] = self._ranks.state["ema"] or self._ranks.state["net"]
            return state
        return self._state.scored_net.state_dict()

    def close(self) -> None:
        if self._ranks:
            self._ranks.close()


@contextmanager
def open_places(dataset: Dataset, ranks: int) -> Iterator[list[Place]]:
    """One for each device that a training of so many ranks has to itself; on a CPU there is one."""
    gpus = torch.cuda.device_count()
    places = max(1, gpus // ranks)
    if ranks == 1 and places == 1:
        yield [Place(str(best_device()), dataset, None)]
        return
    threads = max(1, torch.get_num_threads() // (ranks * places))
    devices = [torch.device("cuda" if gpus else "cpu", place * ranks) for place in range(places)]
    with ExitStack() as stack:
        groups = [stack.enter_context(Ranks(dataset, ranks, threads=threads, device=device)) for device in devices]
        yield [Place(str(device), dataset, group) for device, group in zip(devices, groups, strict=True)]
