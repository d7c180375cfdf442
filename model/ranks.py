"""The processes of a data-parallel training run, and how well they scale. `model.parallel` is what they share."""

import io
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist

from model.command import STOP_SIGNALS
from model.config import Config, InputError
from model.data import Dataset, DeviceData, to_device
from model.memory import OutOfMemory, ran_out_of_memory, release_freed_memory
from model.train import EpochMetrics, TrainState, best_device, check_batch, init_state, train

TIMED_EPOCHS, TIMED_STEPS = 4, 4
CPU = torch.device("cpu")
FAREWELL_S = 2.0  # what ranks get to say, or to die, once one of them is in trouble


class RankError(RuntimeError):
    """A rank died or failed; the run can go on from its last saved state, in new processes."""


class Ranks:
    """`ranks` processes that train together, each on its own GPU (NCCL) or on CPU threads (gloo).

    They start once, train one run after another, and die with the process that made them, however it ends.

    Args:
        threads: CPU threads of each rank.
        device: of rank 0; where it is a GPU, the others have the next ones.
    """

    def __init__(self, dataset: Dataset, ranks: int, *, threads: int, device: torch.device = CPU) -> None:
        self.ranks = ranks
        self._are_ready = False
        self._examples = len(dataset.train_labels)
        self.state: dict[str, Any] | None = None
        """what `TrainState.state_dict()` of the run was after its last epoch, on the CPU"""
        self._folder = tempfile.TemporaryDirectory(prefix="ranks-")
        store = Path(self._folder.name) / "store"
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(ranks):
            ours, theirs = context.Pipe()
            its_device = device if device.type == "cpu" else torch.device("cuda", (device.index or 0) + rank)
            arguments = (rank, ranks, dataset, threads, its_device, store, theirs)
            process = context.Process(target=_rank_main, args=arguments, daemon=True)
            process.start()
            theirs.close()  # so that its death reads as the end of the pipe
            self._pipes.append(ours)
            self._processes.append(process)

    def train(self, config: Config, *, seed: int = 0, state: dict[str, Any] | None = None) -> Iterator[EpochMetrics]:
        """As `model.train.train`, over the ranks; `self.state` may be saved after any yield and given as `state`.

        Raises:
            InputError: a batch can't be shared evenly, or there are fewer training images; or, once the ranks are at
                work, what `model.train.train` raises of the config or the memory. All ranks are gone then.
            RankError: a rank died or failed, at its start or later; all the others are gone then, too.
        """
        check_batch(config, self._examples, self.ranks)
        if not self._are_ready:  # else a long message to a rank that doesn't come up would wait for ever
            self._receive()
            self._are_ready = True
        self.state = state
        self._send(("start", config, seed, _packed(state) if state else None))
        self._receive()
        while True:
            self._send(("epoch",))
            replies = self._receive()
            if replies[0] is None:
                return
            metrics, packed = replies[0]
            self.state = torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)
            yield metrics

    def _send(self, message: tuple[Any, ...]) -> None:
        for rank, pipe in enumerate(self._pipes):
            try:
                pipe.send(message)
            except OSError:
                raise self._broken({rank: RankError("is gone")}) from None

    def _receive(self) -> list[Any]:
        """One reply of each rank."""
        replies: dict[int, Any] = {}
        troubles: dict[int, Exception] = {}
        waiting = set(range(self.ranks))
        while waiting:
            ready = wait([self._pipes[rank] for rank in waiting], timeout=FAREWELL_S if troubles else None)
            if not ready:  # the others wait in vain for one that is in trouble
                break
            for rank in [rank for rank in waiting if self._pipes[rank] in ready]:
                waiting.remove(rank)
                try:
                    reply, error = self._pipes[rank].recv()
                except (EOFError, OSError):
                    troubles[rank] = RankError("died")
                else:
                    replies[rank] = reply
                    if error:
                        troubles[rank] = error
        if troubles:
            raise self._broken(troubles)
        return [replies[rank] for rank in range(self.ranks)]

    def _broken(self, troubles: dict[int, Exception]) -> Exception:
        """End all ranks; the error that says what happened. Where one died, the others' complaints are about that."""
        for rank, process in enumerate(self._processes):
            process.join(FAREWELL_S if rank in troubles else 0)
        dead = {rank: process.exitcode for rank, process in enumerate(self._processes) if process.exitcode}
        self.close()
        if dead:
            return RankError("; ".join(f"rank {rank} of {self.ranks} died (exit code {c})" for rank, c in dead.items()))
        kind = next((type(error) for error in troubles.values() if isinstance(error, InputError)), RankError)
        return kind("; ".join(f"rank {rank} of {self.ranks}: {error}" for rank, error in troubles.items()))

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _packed(state: dict[str, Any]) -> bytes:
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()


def _rank_main(
    rank: int, ranks: int, dataset: Dataset, threads: int, device: torch.device, store: Path, pipe: Connection
) -> None:
    """Say (None, trouble) once it is ready, then serve ("start", config, seed, state) and ("epoch",) with replies
    (answer, trouble)."""
    for each in (signal.SIGINT, *STOP_SIGNALS):  # they are the parent's to handle, with which this process ends
        signal.signal(each, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        data = _join(rank, ranks, dataset, threads, device, store)
    except Exception as error:
        pipe.send((None, _portable(error)))
        return
    pipe.send((None, None))
    state: TrainState | None = None
    epochs: Iterator[EpochMetrics] = iter(())
    while True:
        try:
            message = pipe.recv()
        except EOFError:
            os._exit(1)
        try:
            if message[0] == "start":
                _, config, seed, saved = message
                state, epochs = None, iter(())  # frees the net of the run before
                release_freed_memory()
                state = init_state(config, data, seed)
                if saved:
                    state.load_state_dict(torch.load(io.BytesIO(saved), map_location=device, weights_only=True))
                epochs = train(config, data, seed=seed, state=state)
                answer: Any = None
            else:
                metrics = next(epochs, None)
                answer = (metrics, _packed(state.state_dict())) if state and metrics and rank == 0 else None
        except Exception as error:
            pipe.send((None, _portable(error)))
        else:
            pipe.send((answer, None))


def _join(rank: int, ranks: int, dataset: Dataset, threads: int, device: torch.device, store: Path) -> DeviceData:
    """Enter the process group of all ranks; the data on this one's device."""
    torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=ranks)
    return to_device(dataset, device)


def _portable(error: Exception) -> Exception:
    """The error as one that another process can read, on one line, of the kind that matters to who gets it."""
    if isinstance(error, InputError):
        return error
    kind = OutOfMemory if ran_out_of_memory(error) else RankError
    return kind(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")


def _end_with_parent() -> None:
    """Wait until the parent process has ended in whatever way, then end this one."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def scaling(config: Config, dataset: Dataset, ranks: int, *, threads: int, gpus: float) -> float:
    """How many times as fast `ranks` processes train steps of this config as one with the same threads, or one GPU.

    Timed on real steps of real data, each the fastest of a few short epochs.

    Args:
        gpus: of all ranks together; 0 trains on CPUs.
    """
    examples = min(len(dataset.train_labels), TIMED_STEPS * config.batch_size)
    few = replace(
        dataset,
        train_images=dataset.train_images[:examples],
        train_labels=dataset.train_labels[:examples],
        eval_images=dataset.eval_images[:100],
        eval_labels=dataset.eval_labels[:100],
    )
    seconds = []
    for processes in (1, ranks):
        with Ranks(few, processes, threads=threads, device=best_device(gpus)) as group:
            ends_s = [metrics.train_s for metrics in group.train(replace(config, epochs=TIMED_EPOCHS, train_frac=1.0))]
        # the first epoch holds the whitening of the data
        seconds.append(min(end_s - start_s for start_s, end_s in pairwise(ends_s)))
    return seconds[0] / seconds[1]
